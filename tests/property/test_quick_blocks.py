"""Ordinary blocks of JSON lines and of tables are read at once, and every block gives the rows of the reading row by row."""

import json
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard import taggers
from skillshard.corpus import Corpus, FieldMapping, PartitionReader, Rejection, Sample, lookup, quick_lines
from skillshard.corpus import lines as lines_module
from skillshard.corpus import tables as tables_module
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.quick_lines import quick_samples
from skillshard.corpus.sample import MISSING
from skillshard.taggers.metadata import Metadata
from skillshard.taggers.tagger import Tag, Tagger
from tests.conftest import HERE, samples

FIELDS = RowFields(FieldMapping(), "a.jsonl")
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
good = st.builds(
    lambda text, meta, number: {"id": f"i{number}", "text": f"t{text}", **meta},
    st.text(max_size=8),
    st.dictionaries(st.sampled_from(["meta", "skill", "a", "b"]), values, max_size=3),
    st.integers(0, 9),
)
good_lines = good.map(lambda record: json.dumps(record, ensure_ascii=False).encode())
ODD = (
    b"",
    b" ",
    b"1",
    b"[]",
    b"{",
    b'{"id": "1"}',
    b'{"id": 7, "text": "integer id"}',
    b'{"id": true, "text": "x"}',
    b'{"id": "", "text": "x"}',
    b'{"id": "1", "text": " \\n"}',
    b'{"id": "1", "text": "x", "id": "2"}',
    b'{"id": "1", "text": "x", "m": {"a": 1, "a": 2}}',
    b'{"id": "1", "text": "x", "n": 1e400}',
    b'{"id": "1", "text": "x", "n": 123456789012345678901234567890}',
    b'{"id": "1", "text": "\xff"}',
    b'{"id": "1", "text": "\\ud800"}',
    b'{"id": "1", "text": "a : b", "k" : 1}',
    b'{"id": "1", "text": "x"}\r',
    b'{"id": "1", "text": "x"} , {"id": "2", "text": "y"}',
    b'{"id": "1", "text": "x"},0,{"id": "2", "text": "y"}',
    b'{"id": "1", "text": "x", "a": [{}',
    b"{}]}",
    b'{"id": "1", "text": "x',
    b'y"}',
    b'{"id": "1", "text": "x"',
    b'"a": 1}',
    b'{"id": "1", "text": "deep", "d": ' + 260 * b"[" + 260 * b"]" + b"}",
    b'{"id": "1", "text": "deep", "d": ' + 240 * b'{"a":' + b"1" + 240 * b"}" + b"}",
)
# The same faults without spaces, as orjson writes JSON.
COMPACT_ODD = (
    *(line.replace(b": ", b":").replace(b", ", b",") for line in ODD),
    b'{"id":"1","text":"x","e":1e5}',
    b'{"id":"1","text":"deep","d":' + 252 * b"[" + 252 * b"]" + b"}",
    b'{"id":"1","text":"x"},{"id":"2","text":"y"}',
)


def rows_of(data: bytes, partition_bytes: int = 1 << 26) -> tuple[list[Any], list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.jsonl").write_bytes(data)
        readers = [PartitionReader(part) for part in Corpus.open(folder).partitions(partition_bytes=partition_bytes)]
        rows = [row for reader in readers for row in reader]
        return rows, [digest for reader in readers for digest in reader.digests()]


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(good_lines | st.sampled_from(ODD), min_size=1, max_size=6)
    | st.lists(good.map(orjson.dumps) | st.sampled_from(COMPACT_ODD), min_size=1, max_size=6),
    ends=st.booleans(),
)
def test_every_block_gives_the_rows_of_the_reading_line_by_line(lines: list[bytes], ends: bool) -> None:
    data = b"\n".join(lines) + (b"\n" if ends else b"")
    quick = rows_of(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "quick_samples", lambda *_: None)
        assert rows_of(data) == quick


@given(st.lists(good_lines, min_size=1, max_size=6))
def test_ordinary_lines_are_read_at_once(lines: list[bytes]) -> None:
    """The quick way is taken for most blocks, so that its speed counts. Only digits and many brackets need a closer look."""
    data = b"\n".join(lines)
    rows = quick_samples(data, FIELDS)
    is_odd = any(character in data for character in (b"[", b"\\", b" :")) or max(map(len, data.split(b" "))) > 15
    assert rows is not None or is_odd
    if rows is not None:
        assert rows.texts == [orjson.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_an_odd_line_among_ordinary_lines_is_told_by_its_number(odd: bytes) -> None:
    before = [json.dumps(record).encode() for record in samples(add=3)]
    rows, _ = rows_of(b"\n".join([*before, odd, *before]))
    rejected = [row.line for row in rows if isinstance(row, Rejection)]
    assert set(rejected) <= {4} and len(rows) == 6 + (1 if odd.strip() else 0)


words = st.text(max_size=6)
COLUMNS = {
    "s": (pa.string(), words),
    "n": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "u": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "b": (pa.bool_(), st.booleans()),
    "f": (pa.float64(), st.floats()),
    "l": (pa.list_(pa.string()), st.lists(words, max_size=2)),
    "meta": (pa.struct([("k", pa.string())]), st.fixed_dictionaries({"k": words})),
    "d": (pa.duration("s"), st.just(1)),
}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), names=st.lists(st.sampled_from(sorted(COLUMNS)), max_size=3, unique=True))
def test_every_batch_of_a_table_gives_the_rows_of_the_reading_row_by_row(data: st.DataObject, names: list[str]) -> None:
    num_rows = data.draw(st.integers(1, 5))
    is_tidy = data.draw(st.booleans())
    texts_of = words.map("t".__add__) if is_tidy else st.none() | words
    columns = {
        name: pa.array(data.draw(st.lists(texts_of, min_size=num_rows, max_size=num_rows)), pa.string())
        for name in ("id", "text")
    }
    for name in names:
        kind, strategy = COLUMNS[name]
        drawn = data.draw(st.lists(st.none() | strategy, min_size=num_rows, max_size=num_rows))
        columns[name] = pa.array(drawn, kind)
    limit = data.draw(st.sampled_from([20, 1 << 24]))
    outcomes = []
    calls: list[bool] = []
    quick = tables_module._quick_samples
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        pq.write_table(pa.table(columns), Path(folder) / "a.parquet", row_group_size=2)
        corpus = Corpus.open(folder)
        (partition,) = corpus.partitions()
        for function in (lambda *arguments: None, quick):

            def watched(*arguments: Any) -> Any:
                rows = function(*arguments)  # noqa: B023  # called within the step of the loop
                calls.append(rows is not None)
                return rows

            patch.setattr(tables_module, "_quick_samples", watched)
            reader = PartitionReader(partition, corpus.reading(limit))
            outcomes.append((list(reader), reader.digests(), dict(reader.passed_over.columns)))
    assert outcomes[0] == outcomes[1]
    if is_tidy and set(names) <= {"s", "n", "u", "b"} and limit > 20:
        assert any(calls)


@pytest.mark.parametrize("field", ["skill", "meta.skill", "meta", "id", "meta.id", "meta.", "a.b", "file.stem"])
@given(
    metas=st.lists(
        st.dictionaries(
            st.sampled_from(["skill", "meta", "meta.skill", "id", "", "a.b", "a"]),
            scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from(["skill", "b"]), scalars),
            max_size=3,
        ),
        max_size=4,
    )
)
def test_a_field_gives_the_skill_of_the_lookup(field: str, metas: list[dict[str, Any]]) -> None:
    tagger = taggers.metadata(field)
    given_samples = [Sample(f"{number}", "t", meta, "f.jsonl") for number, meta in enumerate(metas)]
    outcomes = tagger.tag(given_samples)
    assert isinstance(tagger, Metadata)
    assert outcomes == [tagger._tag_one(sample) for sample in given_samples]
    for sample, outcome in zip(given_samples, outcomes, strict=True):
        value = lookup(sample, field)
        assert (isinstance(outcome, Tag)) == (value is not MISSING and isinstance(value, str | int) and value != "")


class Grouped:
    """The tagger by metadata, called for the groups of `groups_of_rows`."""

    def __init__(self, tagger: Tagger) -> None:
        self.name, self.arguments, self.tag = tagger.name, tagger.arguments, tagger.tag


def test_blocks_and_groups_give_the_same_part(tmp_path: Path) -> None:
    (tmp_path / "C").mkdir()
    records = [json.dumps(record).encode() for record in samples(add=1500, carry=1100)]
    records[700:700] = [b"no JSON", b'{"id": "lone", "text": "no skill"}']
    (tmp_path / "C" / "a.jsonl").write_bytes(b"\n".join(records))
    corpus = Corpus.open(tmp_path / "C")
    contents = []
    for name, tagger in (("blocks", taggers.metadata("skill")), ("groups", Grouped(taggers.metadata("skill")))):
        out = tmp_path / name
        taggers.tag_corpus(corpus, tagger, out, on_bad_sample="set-aside", backend=HERE)
        contents.append({file.name: file.read_bytes() for file in out.rglob("*") if file.is_file()})
    assert contents[0] == contents[1]


@given(st.lists(good, min_size=1, max_size=6))
def test_lines_as_orjson_writes_them_need_no_search_for_repeated_keys(records: list[dict[str, Any]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick_lines, "may_repeat_keys", lambda *_: pytest.fail("the lines were searched"))
        rows = quick_samples(b"\n".join(map(orjson.dumps, records)), FIELDS)
    assert rows is not None and rows.texts == [record["text"] for record in records]
