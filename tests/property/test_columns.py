"""Ordinary rows are read as columns, and the columns say what the samples of the same rows say. Every other row is read as a sample."""

import contextlib
import json
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard import taggers
from skillshard.corpus import (
    Corpus,
    CorpusReading,
    FieldMapping,
    PartitionReader,
    Rejection,
    SampleColumns,
    line_columns,
)
from skillshard.corpus.columns import MetaField
from skillshard.corpus.line_columns import LineColumns
from skillshard.errors import CorpusError
from skillshard.taggers.tagger import Tag
from tests.conftest import HERE, samples
from tests.property.test_quick_blocks import ODD, good_lines, scalars, values

FIELDS = ("skill", "meta.skill", "meta", "meta.meta", "b", "meta.id")
shaped = st.builds(
    lambda number, skill, inner, rest: json.dumps(
        {
            "id": f"i{number}",
            "text": f"t{skill}",
            **({"meta": inner} if number % 2 else {"skill": skill, "a": inner}),
            **rest,
        },
        ensure_ascii=bool(number % 3),
    ).encode(),
    st.integers(0, 9),
    st.text(max_size=4) | st.integers(-(2**70), 2**70) | st.none(),
    st.dictionaries(st.sampled_from(["skill", "meta", "b", "meta.skill"]), values | st.text(max_size=3), max_size=3),
    st.just({}) | st.dictionaries(st.sampled_from(["b", "c d", 'q"', "text"]), scalars | st.text(), max_size=2),
)
lines = st.lists(good_lines | shaped | st.sampled_from(ODD), min_size=1, max_size=5)
blocks = st.lists(lines, min_size=1, max_size=4)


@contextlib.contextmanager
def reader_of(data: Sequence[bytes], reading: CorpusReading = CorpusReading()) -> Iterator[PartitionReader]:
    """Write each block to a file of its own, and read all files as one partition."""
    with tempfile.TemporaryDirectory() as folder:
        for number, block in enumerate(data):
            (Path(folder) / f"{number}.jsonl").write_bytes(block)
        (partition,) = Corpus.open(folder).partitions()
        yield PartitionReader(partition, reading)


def lines_of(rows: Iterable[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def rows_of(reader: PartitionReader, field: str, *, as_columns: bool) -> tuple[list[Any], int]:
    """Return id, size of the text and skill of each row or the reason against it, and the number of rows read as columns."""
    tagger = taggers.metadata(field)
    rows_read: list[Any] = []
    num_in_columns = 0
    for rows in reader.blocks_or_columns(MetaField.of(field) if as_columns else None):
        if isinstance(rows, SampleColumns):
            num_in_columns += rows.num_rows
            rows_read += zip(*(column if isinstance(column, list) else column.tolist() for column in rows), strict=True)
            continue
        for row in rows:
            if isinstance(row, Rejection):
                rows_read.append(row)
                continue
            (outcome,) = tagger.tag([row])
            skill = outcome.skill if isinstance(outcome, Tag) else outcome
            rows_read.append((row.id, len(row.text.encode()), skill))
    return rows_read, num_in_columns


def outcomes_of(data: list[bytes], field: str, *, as_columns: bool) -> tuple[list[Any], int]:
    """Return the rows with their number and digests, and the number of rows read as columns."""
    with reader_of(data) as reader:
        rows, num_in_columns = rows_of(reader, field, as_columns=as_columns)
        return [rows, reader.num_rows(), reader.digests()], num_in_columns


@settings(max_examples=300, deadline=None)
@given(data=blocks, field=st.sampled_from(FIELDS), ends=st.booleans())
def test_columns_say_what_the_samples_say(data: list[list[bytes]], field: str, ends: bool) -> None:
    joined = [b"\n".join(block) + (b"\n" if ends else b"") for block in data]
    by_columns, _ = outcomes_of(joined, field, as_columns=True)
    assert by_columns == outcomes_of(joined, field, as_columns=False)[0]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_an_odd_line_in_a_block_of_a_known_shape_is_read_as_a_sample(odd: bytes) -> None:
    before = [json.dumps({"id": f"{number}", "text": "x", "skill": "s"}).encode() for number in range(4)]
    data = [b"\n".join(before), b"\n".join([*before, odd, *before]), b"\n".join(before)]
    by_columns, num_in_columns = outcomes_of(data, "skill", as_columns=True)
    assert by_columns == outcomes_of(data, "skill", as_columns=False)[0]
    assert num_in_columns >= 8


@pytest.mark.parametrize(
    "template",
    [
        '{"id": "%d", "text": "a: \\"b\\": c", "skill": "s"}',
        '{"id": %d, "text": "\\u00e9\\n", "skill": 7, "n": [1, null, "x"], "o": {"p": {"q": 1.5}}}',
        '{"id": "%d", "text": "x", "meta": {"skill": "s", "n": -3}}',
    ],
)
def test_ordinary_rows_are_read_as_columns(template: str) -> None:
    data = ["\n".join(template % (10 * block + row) for row in range(5)).encode() for block in range(3)]
    _, num_in_columns = outcomes_of(data, "meta.skill", as_columns=True)
    assert num_in_columns == 15


def test_keys_that_some_rows_lack_are_learned() -> None:
    rows = [
        {"id": str(n), "text": "x", "skill": "s", **({"a": {"b": 1}} if n % 2 else {}), **({"c": n} if n > 7 else {})}
        for n in range(15)
    ]
    data = [lines_of(rows[first : first + 5]) for first in range(0, 15, 5)]
    assert outcomes_of(data, "skill", as_columns=True)[1] == 15


@pytest.mark.parametrize(("depth", "num_in_columns"), [(8, 15), (9, 0)])
def test_objects_of_eight_levels_below_the_row_are_read_as_columns_and_deeper_objects_as_samples(
    depth: int, num_in_columns: int
) -> None:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    data = [lines_of({"id": str(n), "text": "x", "skill": "s", "a": value} for n in range(5))] * 3
    by_columns, num_read = outcomes_of(data, "skill", as_columns=True)
    assert by_columns == outcomes_of(data, "skill", as_columns=False)[0]
    assert num_read == num_in_columns


def test_the_shape_of_rows_counts_the_rows_with_each_key() -> None:
    shape = line_columns._Shape()
    for row in ({"a": 1, "b": {"c": 1}}, {"a": "x", "b": {"c": 2, "d": [3]}}, {"a": None}):
        assert shape.add(row)
    assert (shape.num_objects, shape.counts) == (3, {"a": 3, "b": 2})
    assert (shape.objects["b"].num_objects, shape.objects["b"].counts) == (2, {"c": 2, "d": 1})
    assert (shape.scalars, shape.objects["b"].lists) == ({"a"}, {"d"})


def test_rows_of_ever_new_shapes_are_read_as_samples() -> None:
    data = [json.dumps({"id": str(n), "text": "x", "skill": "s", f"key {n}": n}).encode() for n in range(30)]
    by_columns, num_in_columns = outcomes_of(data, "skill", as_columns=True)
    assert by_columns == outcomes_of(data, "skill", as_columns=False)[0]
    assert num_in_columns < 10


@pytest.mark.parametrize("num_before", [1, 4, 6, 7, 14])
def test_a_block_of_samples_among_blocks_of_columns_does_not_end_the_reading_of_columns(num_before: int) -> None:
    def block(number: int) -> bytes:
        return lines_of({"id": f"{number}-{row}", "text": "x", "skill": "s"} for row in range(5))

    # No column holds a text of white space alone.
    by_samples = lines_of([{"id": "odd", "text": " ", "skill": "s"}])
    data = [*map(block, range(num_before)), by_samples, *map(block, range(num_before, num_before + 3))]
    assert outcomes_of(data, "skill", as_columns=True)[1] == 5 * (num_before + 3)


def test_a_mutated_block_is_refused_or_says_what_the_lines_say() -> None:
    """One or two bytes of a block change. The parser of columns accepts nothing that the parser of lines refuses."""
    number = random.Random(0)
    row = '{"id":"%d","text":"a\\u00e9 \\"x\\": \\\\","skill":"s%d","m":{"n":-1.5e3,"b":true},"l":[1,null,"é"]}'
    ordinary = "\n".join(row % (n, n) for n in range(3)).encode()
    reader = LineColumns("id", "text", MetaField("skill"))
    assert reader.read(ordinary) is not None
    num_read = 0
    for _ in range(20_000):
        data = bytearray(ordinary)
        for _ in range(number.randint(1, 2)):
            place = number.randrange(len(data))
            kind = number.randrange(3)
            if kind == 0:
                data[place] = number.choice(b'{}[]",:\\\n\r 0aeE.-+\x00\xc3\xff')
            elif kind == 1:
                del data[place : place + number.randint(1, 3)]
            else:
                data[place:place] = bytes([number.choice(b'{}[]",:\\\n\r 0aeE.-+\x00\xc3\xff')])
        columns = reader._form.read(bytes(data)) if reader._form is not None else None
        if columns is None:
            continue
        num_read += 1
        records = [orjson.loads(line) for line in bytes(data).removesuffix(b"\n").split(b"\n")]
        assert columns.ids == [str(record["id"]) for record in records]
        assert columns.values == [str(record["skill"]) for record in records]
        assert columns.num_text_bytes == [len(record["text"].encode()) for record in records]
        assert all(
            bytes(data).count(b'"%b"' % key.encode()) == len(records) for key in ("id", "text", "skill", "n", "b")
        )
    assert num_read > 1000


def test_the_artefact_is_the_same_and_the_refusal_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "C").mkdir()
    records = [json.dumps(record).encode() for record in samples(add=900, carry=700)]
    odd = [b"no JSON", b'{"id": "lone", "text": "no skill"}', records[3]]
    (tmp_path / "C" / "a.jsonl").write_bytes(b"\n".join([*records, *odd, *records[:0]]))
    (tmp_path / "C" / "b.jsonl").write_bytes(b"\n".join(line.replace(b'"add', b'"b-add') for line in records))
    corpus = Corpus.open(tmp_path / "C")

    def contents(name: str) -> dict[str, bytes]:
        out = tmp_path / name
        taggers.tag_corpus(
            corpus, taggers.metadata("skill"), out, on_bad_sample="set-aside", max_set_aside=1.0, backend=HERE
        )
        return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}

    def refusal(name: str) -> str:
        with pytest.raises(CorpusError) as error:
            taggers.tag_corpus(corpus, taggers.metadata("skill"), tmp_path / name, backend=HERE)
        return str(error.value)

    by_columns = contents("columns"), refusal("no columns")
    monkeypatch.setattr(LineColumns, "read", lambda *_: None)
    assert (contents("samples"), refusal("no samples")) == by_columns


def test_the_parser_reads_no_key_of_quotation_marks_as_a_field() -> None:
    """The parser of columns refuses such names of fields. Rows with such keys are then read as samples."""
    with pytest.raises(ValueError):
        msgspec.defstruct("Row", [("a", int, msgspec.field(name='q"'))])
    data = [json.dumps({"id": str(n), "text": "x", "skill": "s", 'q"': 1}).encode() for n in range(3)]
    assert outcomes_of(data, "skill", as_columns=True)[1] == 0


def test_a_mapping_by_paths_and_a_folder_with_a_field_give_samples(tmp_path: Path) -> None:
    line = json.dumps({"id": "1", "text": "x", "skill": "s", "m": {"t": "y"}}).encode()
    (tmp_path / "lang=en").mkdir()
    (tmp_path / "lang=en" / "a.jsonl").write_bytes(line)
    (tmp_path / "b.jsonl").write_bytes(line)
    (partition,) = Corpus.open(tmp_path).partitions()
    readings = {"keys": CorpusReading(), "paths": CorpusReading({"": FieldMapping(text_field="m.t")})}
    kinds = {
        name: [type(block) for block in PartitionReader(partition, reading).blocks_or_columns(MetaField("skill"))]
        for name, reading in readings.items()
    }
    assert kinds == {"keys": [SampleColumns, list], "paths": [list, list]}


@pytest.mark.parametrize("data", [b"\n", b"\n\n", b" \n", b'\n{"id": "1", "text": "x", "skill": "s"}'])
def test_blank_lines_are_no_rows_of_columns(data: bytes) -> None:
    line = b'{"id": "0", "text": "x", "skill": "s"}'
    by_columns, num_in_columns = outcomes_of([line, data, line], "skill", as_columns=True)
    assert by_columns == outcomes_of([line, data, line], "skill", as_columns=False)[0]
    assert num_in_columns >= 2
