"""Columns of every type that pyarrow can write, two levels deep, give the same JSON values with and without pandas, and no exception."""

import datetime
import decimal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.corpus import Corpus, PartitionReader, Rejection, Sample, read_partition
from skillshard.corpus import values as values_of_arrow
from skillshard.tags import Tags
from tests.commands import fails, skillshard, works

LEAVES: dict[str, tuple[pa.DataType, list[Any]]] = {
    str(kind): (kind, values)
    for kind, values in [
        (pa.null(), []),
        (pa.bool_(), [True]),
        *((kind, [0, 127]) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16())),
        (pa.uint32(), [2**32 - 1]),
        (pa.uint64(), [2**64 - 1]),
        *((kind, [1.5, float("nan"), float("inf")]) for kind in (pa.float16(), pa.float32(), pa.float64())),
        *((kind, ["é"]) for kind in (pa.string(), pa.large_string(), pa.string_view())),
        *((kind, [b"ok", b"\xff\xd8"]) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())),
        (pa.binary(2), [b"ab", b"\xff\xd8"]),
        (pa.decimal32(5, 2), [decimal.Decimal("1.50")]),
        (pa.decimal64(15, 2), [decimal.Decimal("1.50")]),
        (pa.decimal128(38, 0), [decimal.Decimal(36893488147419103233)]),
        (pa.decimal256(50, 5), [decimal.Decimal("36893488147419103233.00001")]),
        *((kind, [0, 2**31 - 1, -(2**31)]) for kind in (pa.date32(), pa.time32("s"), pa.time32("ms"))),
        *(
            (kind, [86_400_000 * n for n in (0, 1, 3_000_000)])
            for kind in (pa.date64(), pa.time64("us"), pa.time64("ns"))
        ),
        *((pa.timestamp(unit), [0, 2**62, -(2**62)]) for unit in ("s", "ms", "us", "ns")),
        *(
            (pa.timestamp("ns", tz), [1_700_000_000 * 10**9 + 1])
            for tz in ("UTC", "tzutc()", "+05:30", "Europe/Berlin")
        ),
        *((pa.duration(unit), [1, -(2**62)]) for unit in ("s", "ms", "us", "ns")),
        (pa.month_day_nano_interval(), [(1, 2, 3)]),
        (pa.dictionary(pa.int8(), pa.string()), ["a", "b"]),
        (pa.dictionary(pa.int32(), pa.int64()), [5]),
        (pa.run_end_encoded(pa.int32(), pa.string()), ["a", "a"]),
    ]
}


def array_of(kind: pa.DataType, values: list[Any]) -> pa.Array:
    """Make an array of the values with a null at the end."""
    integers = values and all(isinstance(value, int) for value in values)
    storage = {32: pa.int32(), 64: pa.int64()}
    if integers and pa.types.is_temporal(kind):
        return pa.array([*values, None], storage[kind.bit_width]).view(kind)
    if pa.types.is_run_end_encoded(kind):
        return pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], kind.run_end_type), pa.array([values[0], None]))
    return pa.array([*values, None], kind)


def in_list(inner: pa.Array, make: Callable[..., pa.Array] = pa.ListArray.from_arrays, offset: Any = None) -> pa.Array:
    offsets = pa.array([0, 0, *range(1, len(inner) + 1)], offset or pa.int32())
    return make(offsets, inner)


def in_map(inner: pa.Array) -> pa.Array:
    keys = pa.array([f"k{number}" for number in range(len(inner))])
    return pa.MapArray.from_arrays(
        pa.array([0, *range(len(inner)), len(inner)][: len(inner) + 1], pa.int32()), keys, inner
    )


NESTS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "struct": lambda inner: pa.StructArray.from_arrays([inner, pa.array(range(len(inner)))], names=["x", "n"]),
    "struct with nulls": lambda inner: pa.StructArray.from_arrays(
        [inner], names=["x"], mask=pa.array([row == 0 for row in range(len(inner))])
    ),
    "list": in_list,
    "large list": lambda inner: in_list(inner, pa.LargeListArray.from_arrays, pa.int64()),
    "fixed list": lambda inner: pa.FixedSizeListArray.from_arrays(inner, 1),
    "list view": lambda inner: pa.ListViewArray.from_arrays(
        pa.array(range(len(inner)), pa.int32()), pa.array([1] * len(inner), pa.int32()), inner
    ),
    "map": in_map,
}


def columns_of(leaf: str) -> dict[str, pa.Array]:
    """Make a column of the type, and all columns with the type nested once and twice."""
    base = array_of(*LEAVES[leaf])
    columns = {"flat": base}
    for name, nest in NESTS.items():
        columns[name] = nest(base)
        columns |= {f"{outer} of {name}": outer_nest(columns[name]) for outer, outer_nest in NESTS.items()}
    return columns


def table_of(column: pa.Array) -> pa.Table:
    rows = range(len(column))
    ids = [f"{row}" for row in rows]
    return pa.table({"id": ids, "text": [f"text {row}" for row in rows], "cat": ["a" for _ in rows], "x": column})


def write_table(table: pa.Table, path: Path) -> bool:
    """Write the table, and return whether pyarrow can write the table in this format."""
    try:
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        else:
            opened = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
            with opened(path, table.schema) as writer:
                writer.write_table(table)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def items_of(place: Path) -> list[Sample | Rejection]:
    return [item for partition in Corpus.open(place).partitions() for item in read_partition(partition)]


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_column_that_nobody_asked_for_never_costs_a_row(leaf: str, tmp_path: Path) -> None:
    num_read = 0
    for name, column in columns_of(leaf).items():
        table = table_of(column)
        for suffix in (".parquet", ".feather", ".arrow"):
            path = tmp_path / f"{name}{suffix}"
            if not write_table(table, path):
                continue
            (partition,) = Corpus.open(path).partitions()
            items = list(reader := PartitionReader(partition))
            assert [item.id for item in items] == table["id"].to_pylist(), (name, suffix, items)
            assert all(isinstance(item, Sample) and orjson.dumps(item.meta) for item in items), (name, suffix)
            lacking = [item for item in items if isinstance(item, Sample) and "x" not in item.meta]
            assert not lacking or reader.passed_over.columns, (name, suffix)
            num_read += 1
    assert num_read > len(NESTS)


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("field", ["id", "text"])
def test_a_column_that_is_asked_for_is_read_or_named(leaf: str, field: str, tmp_path: Path) -> None:
    column = array_of(*LEAVES[leaf])
    rows = range(len(column))
    columns: dict[str, Any] = {"id": [f"{row}" for row in rows], "text": ["t" for _ in rows]}
    path = tmp_path / "a.arrow"
    assert write_table(pa.table({**columns, field: column}), path)
    for item in items_of(path):
        assert isinstance(item, Sample) or f"{field!r}" in item.detail


WITHOUT_PANDAS = """
import sys
if sys.argv[2] == "without":
    sys.modules["pandas"] = None
else:
    import types, datetime
    class Timestamp(datetime.datetime):
        def __new__(cls, value, unit=None, tz=None):
            return datetime.datetime.__new__(cls, 2001, 1, 1)
    fake = types.ModuleType("pandas")
    fake.__version__, fake.Timestamp, fake.Timedelta, fake.DataFrame, fake.Series = "2.2.0", Timestamp, Timestamp, object, object
    fake.Index = fake.Categorical = fake.DateOffset = object
    sys.modules["pandas"] = fake
from pathlib import Path
from skillshard.corpus import Corpus, PartitionReader
for path in sorted(Path(sys.argv[1]).iterdir()):
    for partition in Corpus.open(path).partitions():
        reader = PartitionReader(partition)
        for item in reader:
            print(path.name, item)
        print(reader.digests(), sorted(reader.passed_over.columns.items()))
"""


def test_pandas_and_time_zones_of_the_machine_change_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    temporal = [leaf for leaf in LEAVES if any(word in leaf for word in ("timestamp", "date", "time", "duration"))]
    written = [
        write_table(table_of(column), folder / f"{number}-{name}.arrow")
        for number, leaf in enumerate(temporal)
        for name, column in columns_of(leaf).items()
    ]
    assert sum(written) > 500
    answers = {
        subprocess.run(
            [sys.executable, "-c", WITHOUT_PANDAS, folder, pandas],
            check=True,
            capture_output=True,
            text=True,
            env={"TZ": zone, "TZDIR": "/nowhere", "PATH": ""},
        ).stdout
        for pandas, zone in (("with", "America/Lima"), ("without", "Asia/Tokyo"))
    }
    assert len(answers) == 1 and "2023-11-14 22:13:20.000000001Z" in answers.pop()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
        (pa.array([decimal.Decimal(36893488147419103233)], pa.decimal128(38, 0)), "36893488147419103233"),
        (pa.array([decimal.Decimal("0.10")], pa.decimal128(5, 2)), "0.10"),
        (pa.array([1], pa.timestamp("us", tz="tzutc()")), "1970-01-01 00:00:00.000001Z"),
        (pa.array([1], pa.timestamp("ms", tz="Europe/Berlin")), "1970-01-01 00:00:00.001Z"),
        (
            pa.array([{"when": 10**9 + 1}], pa.struct([("when", pa.timestamp("ns"))])),
            {"when": "1970-01-01 00:00:01.000000001"},
        ),
        (pa.array([[10**9]], pa.list_(pa.timestamp("ns", "UTC"))), ["1970-01-01 00:00:01.000000000Z"]),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.date32())), [["k", "1970-01-02"]]),
        (pa.array([float("nan")]), None),
        (pa.array([b"caf\xc3\xa9"]), "café"),
        (pa.array([[b"a", None]]), ["a", None]),
        (pa.array([{"bytes": b"\x89PNG", "path": "a.png"}]), {"path": "a.png"}),
        (pa.array([uuid.UUID(int=7).bytes], pa.uuid()), str(uuid.UUID(int=7))),
        (pa.array([datetime.time(1, 2)]), "01:02:00.000000"),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_values_have_the_form_that_the_table_of_forms_says(
    column: pa.Array, value: Any, suffix: str, tmp_path: Path
) -> None:
    assert write_table(table_of(column), tmp_path / f"a{suffix}")
    assert items_of(tmp_path) == [Sample("0", "text 0", {"cat": "a", "x": value})]


def test_columns_that_are_left_out_are_said_with_their_type_and_number_of_rows(tmp_path: Path) -> None:
    pictures = pa.array([{"bytes": b"\xff\xd8", "path": f"{row}.jpg"} for row in range(20)])
    table = table_of(pictures).append_column("took", pa.array(range(20), pa.duration("s")))
    assert write_table(table, tmp_path / "a.parquet")
    outcome = skillshard(
        "tag", "metadata", tmp_path / "a.parquet", "--out", tmp_path / "T", "--field", "cat", "--workers", 1
    )
    assert outcome.code == 0
    expected = {"took (duration[s])": 20, "x.bytes (binary)": 20}
    assert Tags.open(tmp_path / "T").manifest.left_out.columns == expected
    line = "left out of meta, because they have no JSON form: took (duration[s]) 20, x.bytes (binary) 20"
    assert line in outcome.out
    works("shard", tmp_path / "a.parquet", "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1)


def test_a_field_without_a_form_is_named_with_file_and_column(tmp_path: Path) -> None:
    assert write_table(table_of(pa.array([1], pa.duration("s"))), tmp_path / "a.parquet")
    for option, says in (
        ("--field", "field 'x' is missing"),
        ("--text-field", "column 'x' of type duration[s]"),
    ):
        options = (option, "x") if option == "--field" else (option, "x", "--field", "cat")
        sentence = fails(
            "tag", "metadata", tmp_path / "a.parquet", "--out", tmp_path / option, *options, "--workers", 1
        )
        assert (
            sentence.startswith("a.parquet row 1: ")
            and says in sentence
            and "x (duration[s])" in sentence.replace("'x' of type duration[s]", "x (duration[s])")
        )


def test_text_and_category_of_type_binary_are_read_as_text(tmp_path: Path) -> None:
    table = pa.table({"id": [b"a", b"b"], "text": [b"one", b"two"], "cat": [b"law", b"code"]})
    assert write_table(table, tmp_path / "a.parquet")
    works("tag", "metadata", tmp_path / "a.parquet", "--out", tmp_path / "T", "--field", "cat", "--workers", 1)
    assert [skill.name for skill in Tags.open(tmp_path / "T").manifest.skills] == ["code", "law"]


def test_two_columns_of_one_name_stop_the_job_only_where_they_are_asked_for(tmp_path: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array(["t"]), pa.array([1]), pa.array([2])], ["id", "text", "n", "n"]
    )
    assert write_table(table, tmp_path / "a.arrow")
    assert items_of(tmp_path) == [Sample("a", "t", {})]
    assert write_table(table.rename_columns(["id", "text", "text", "n"]), tmp_path / "a.arrow")
    (bad,) = items_of(tmp_path)
    assert isinstance(bad, Rejection) and "2 columns have the name 'text', which is asked for" in bad.detail


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(
    column=st.lists(
        st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), max_size=4) | st.none(), min_size=1, max_size=30
    ),
    low=st.integers(0, 29),
)
def test_slices_of_lists_give_their_own_values(
    column: list[Any], low: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("a") / "a.arrow"
    records = [None if value is None else {"v": value} for value in column]
    table = table_of(pa.array(records, pa.struct([("v", pa.list_(pa.int64()))])))[low:]
    assert write_table(table, path)
    assert [item.meta["x"] for item in items_of(path) if isinstance(item, Sample)] == records[low:]


def test_rows_of_a_table_without_a_column_that_can_be_meant_are_still_rows(tmp_path: Path) -> None:
    assert write_table(pa.Table.from_arrays([pa.array([1, 2]), pa.array([3, 4])], ["n", "n"]), tmp_path / "a.arrow")
    assert [item.line for item in items_of(tmp_path) if isinstance(item, Rejection)] == [1, 2]


def test_times_of_spark_outside_the_range_of_nanoseconds_do_not_wrap(tmp_path: Path) -> None:
    times = [datetime.datetime(9999, 12, 31), datetime.datetime(1, 1, 1), datetime.datetime(2020, 1, 1, 0, 0, 1)]
    table = table_of(pa.array(times, pa.timestamp("us")))
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    read = [item.meta["x"] for item in items_of(tmp_path) if isinstance(item, Sample)]
    assert read == [f"{day}.000000" for day in ("9999-12-31 00:00:00", "0001-01-01 00:00:00", "2020-01-01 00:00:01")]


@pytest.mark.parametrize(
    ("head", "says"), [(b"FEA1", "Feather file of version 1"), (b"PARE", "encrypted Parquet file")]
)
def test_forms_that_are_not_read_are_no_damage(head: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.feather" if head == b"FEA1" else "a.parquet")
    path.write_bytes(head + bytes(64) + head)
    (bad,) = items_of(path)
    assert isinstance(bad, Rejection) and bad.reason == "unsupported" and says in bad.sentence()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.timestamp("s"), 2**62),
        (pa.timestamp("s", "UTC"), -(2**62)),
        (pa.time32("ms"), 86_400_000),
        (pa.time64("ns"), -1),
    ],
)
def test_a_time_that_no_calendar_or_clock_shows_has_no_form(kind: pa.DataType, value: int) -> None:
    left_out: Counter[str] = Counter()
    out_of_range, sound = values_of_arrow.json_values(
        pa.array([value, 0], pa.int64() if kind.bit_width == 64 else pa.int32()).view(kind), "v", left_out
    )
    assert isinstance(out_of_range, values_of_arrow.NoForm) and "out of range" in out_of_range.detail
    assert isinstance(sound, str) and "range" not in sound
