"""Ordinary batches of tables are read as columns, and the digest of a table depends on the rows alone."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard import taggers
from skillshard.corpus import Corpus, CorpusReading, Partition, PartitionReader
from skillshard.corpus.table_digest import TableDigest, is_by_columns
from skillshard.errors import CorpusError, TagsError
from skillshard.report.clusters import compare
from skillshard.shards.write import write_shards
from skillshard.taggers.regroup import regroup_tags
from skillshard.tags import Tags
from tests.conftest import HERE, samples
from tests.property.test_columns import rows_of
from tests.property.test_quick_blocks import COLUMNS, words

FIELDS = ("s", "meta.s", "meta", "n", "text")


def outcomes_of(folder: Path, field: str, limit: int, *, as_columns: bool) -> tuple[list[Any], int]:
    """Return the rows with their number, digests and unread columns, and the number of rows read as columns."""
    (partition,) = Corpus.open(folder).partitions()
    reader = PartitionReader(partition, CorpusReading(max_sample_bytes=limit))
    rows, num_in_columns = rows_of(reader, field, as_columns=as_columns)
    return [rows, reader.num_rows(), reader.digests(), dict(reader.passed_over.columns)], num_in_columns


@settings(max_examples=150, deadline=None)
@given(data=st.data(), names=st.lists(st.sampled_from(sorted(COLUMNS)), max_size=3, unique=True))
def test_columns_of_a_table_say_what_the_samples_say(data: st.DataObject, names: list[str]) -> None:
    num_rows = data.draw(st.integers(1, 5))
    is_tidy = data.draw(st.booleans())
    strategies = {"id": (pa.string(), words), "text": (pa.string(), words), **{name: COLUMNS[name] for name in names}}
    columns = {}
    for name, (kind, strategy) in strategies.items():
        values = (words.map("t".__add__) if kind == pa.string() else strategy) if is_tidy else st.none() | strategy
        drawn = data.draw(st.lists(values, min_size=num_rows, max_size=num_rows))
        columns[name] = pa.array(drawn, kind)
        if kind == pa.string() and data.draw(st.booleans()):
            columns[name] = columns[name].dictionary_encode()
    field, limit = data.draw(st.sampled_from(FIELDS)), data.draw(st.sampled_from([20, 1 << 24]))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=2)
        by_columns, num_in_columns = outcomes_of(folder, field, limit, as_columns=True)
        assert by_columns == outcomes_of(folder, field, limit, as_columns=False)[0]
    if is_tidy and field in ("s", "meta.s") and "s" in names and set(names) <= {"s", "n", "b"} and limit > 20:
        assert num_in_columns == num_rows


@pytest.mark.parametrize("text", [" ", "\u3000", "", "\u00e9", "\x7f", "\u2028 x"])
def test_a_text_of_white_space_alone_is_found(tmp_path: Path, text: str) -> None:
    pq.write_table(pa.table({"id": ["1", "2"], "text": ["x", text], "s": ["a", "b"]}), tmp_path / "a.parquet")
    by_columns, num_in_columns = outcomes_of(tmp_path, "s", 1 << 20, as_columns=True)
    assert by_columns == outcomes_of(tmp_path, "s", 1 << 20, as_columns=False)[0]
    assert num_in_columns == (2 if text.strip() else 0)


@pytest.mark.parametrize("content", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"a\xe2\x82"])
def test_invalid_utf8_is_found(tmp_path: Path, content: bytes) -> None:
    texts = pa.array([b"x", content]).view(pa.string())
    pq.write_table(pa.table({"id": ["1", "2"], "text": ["x", "y"], "s": texts}), tmp_path / "a.parquet")
    by_columns, num_in_columns = outcomes_of(tmp_path, "s", 1 << 20, as_columns=True)
    assert by_columns == outcomes_of(tmp_path, "s", 1 << 20, as_columns=False)[0]
    assert num_in_columns == 0


# ------------------------------------------------------------------------------------------------------------- the digest


def digest_of(table: pa.Table, max_rows: int = 100) -> str:
    digest = TableDigest()
    for batch in table.to_batches(max_chunksize=max_rows):
        digest.update(batch, {name: batch.column(name).to_pylist() for name in batch.schema.names})
    return digest.hexdigest()


kinds = {
    "text": (pa.string(), words),
    "data": (pa.binary(), st.binary(max_size=4)),
    "n": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "u": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "b": (pa.bool_(), st.booleans()),
    "f": (pa.float64(), st.floats(allow_nan=False)),
    "l": (pa.list_(pa.int8()), st.lists(st.integers(0, 9), max_size=2)),
    "z": (pa.null(), st.none()),
}
tables = st.integers(0, 6).flatmap(
    lambda num: st.fixed_dictionaries(
        {name: st.lists(st.none() | values, min_size=num, max_size=num) for name, (_, values) in kinds.items()}
    )
)


def as_table(columns: dict[str, list[Any]]) -> pa.Table:
    return pa.table({name: pa.array(values, kinds[name][0]) for name, values in columns.items()})


@given(tables, st.integers(1, 4), st.integers(0, 2))
def test_the_digest_depends_on_no_batch_width_or_dictionary(
    columns: dict[str, list[Any]], max_rows: int, first: int
) -> None:
    table = as_table(columns)
    padded = pa.concat_tables([table.slice(0, first), table]).combine_chunks().slice(min(first, len(table)))
    others = table.set_column(
        table.schema.get_field_index("text"), "text", table["text"].cast(pa.large_string()).dictionary_encode()
    )
    others = others.set_column(table.schema.get_field_index("n"), "n", table["n"].cast(pa.int64()))
    assert digest_of(table) == digest_of(table, max_rows) == digest_of(padded, max_rows) == digest_of(others)


@given(tables, st.data())
def test_another_value_name_or_order_gives_another_digest(columns: dict[str, list[Any]], data: st.DataObject) -> None:
    table = as_table(columns)
    name = data.draw(st.sampled_from(sorted(set(columns) - {"z"})))
    assert digest_of(table) != digest_of(
        pa.concat_tables([table, table.slice(0, 0), as_table({n: [None] for n in columns})])
    )
    if not len(table):
        return
    renamed = table.rename_columns([f"{each}x" if each == name else each for each in columns])
    assert digest_of(table) != digest_of(renamed)
    row = data.draw(st.integers(0, len(table) - 1))
    value = data.draw(st.none() | kinds[name][1])
    changed = {each: list(values) for each, values in columns.items()}
    changed[name][row] = value
    # 0.0 equals -0.0, and JSON tells them apart.
    is_same = repr(value) == repr(columns[name][row])
    assert (digest_of(table) == digest_of(as_table(changed))) == is_same
    if repr(columns[name]) != repr(columns[name][::-1]):
        assert digest_of(table) != digest_of(as_table({each: values[::-1] for each, values in columns.items()}))


@pytest.mark.parametrize(
    ("type", "value"),
    [
        (pa.string(), ""),
        (pa.binary(), b""),
        (pa.int32(), 0),
        (pa.float64(), 0.0),
        (pa.bool_(), False),
        (pa.uint64(), 0),
    ],
    ids=str,
)
def test_a_missing_value_and_an_empty_value_have_different_digests(type: pa.DataType, value: Any) -> None:
    missing, empty = (pa.table({"a": pa.array([value, other], type)}) for other in (None, value))
    assert digest_of(missing) != digest_of(empty)


# ----------------------------------------------------------------------------------------------- tags of earlier versions


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "C").mkdir()
    rows = [{"id": row["id"], "text": row["text"], "skill": row["meta"]["skill"]} for row in samples(add=40, carry=30)]
    write_table(rows, tmp_path / "C" / "a.parquet")
    return Corpus.open(tmp_path / "C")


def write_table(rows: list[dict[str, Any]], file: Path) -> None:
    """Write a table whose size does not depend on the order of characters."""
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, file, row_group_size=16, compression="none", use_dictionary=False, write_statistics=False)


def tagged(corpus: Corpus, out: Path, *, by_rows: bool = False) -> Tags:
    with pytest.MonkeyPatch.context() as patch:
        if by_rows:  # as an earlier version

            def reader(partition: Partition, reading: CorpusReading) -> PartitionReader:
                return PartitionReader(partition, reading, ["" for _ in partition.stretches])

            patch.setattr(taggers.tag, "PartitionReader", reader)
        return taggers.tag_corpus(corpus, taggers.metadata("skill"), out, partition_bytes=1000, backend=HERE)


def test_tags_of_an_earlier_version_are_read_and_a_changed_table_is_found(corpus: Corpus, tmp_path: Path) -> None:
    older, newer = tagged(corpus, tmp_path / "older", by_rows=True), tagged(corpus, tmp_path / "newer")
    schemas = [json.loads((tmp_path / name / "tags.json").read_text())["schema"] for name in ("older", "newer")]
    assert schemas == ["skillshard/tags/2", "skillshard/tags/3"]
    assert not any(is_by_columns(digest) for part in older.manifest.parts for digest in part.rows_digests)
    assert all(is_by_columns(digest) for part in newer.manifest.parts for digest in part.rows_digests)
    tars = []
    for tags in (older, newer):
        out = tmp_path / f"shards of {Path(tags.folder).name}"
        write_shards(corpus, tags, out, backend=HERE)
        tars.append({file.relative_to(out): file.read_bytes() for file in out.rglob("*.tar")})
    assert tars[0] == tars[1] and tars[0]
    # The command is done, whichever version has done it.
    assert taggers.tag_corpus(corpus, taggers.metadata("skill"), tmp_path / "older", partition_bytes=1000, backend=HERE)
    file = tmp_path / "C" / "a.parquet"
    data = pq.read_table(file).to_pylist()
    data[-1]["text"] = data[-1]["text"][::-1]
    write_table(data, file)
    changed = Corpus.open(tmp_path / "C")
    assert changed.files[0].num_bytes == corpus.files[0].num_bytes
    for name in ("older", "newer"):
        with pytest.raises((TagsError, CorpusError), match="changed"):
            write_shards(changed, Tags.open(tmp_path / name), tmp_path / f"{name} shards of changed rows", backend=HERE)


def test_tags_with_digests_in_two_forms_are_not_paired(corpus: Corpus, tmp_path: Path) -> None:
    older, newer = tagged(corpus, tmp_path / "older", by_rows=True), tagged(corpus, tmp_path / "newer")
    with pytest.raises(TagsError, match="digests of rows in two forms"):
        compare(newer, older.folder)
    with pytest.raises(TagsError, match="digests of rows in two forms"):
        regroup_tags([older.folder, newer.folder], tmp_path / "crossed", backend=HERE)
