"""Ordinary lines keep their metadata as JSON, and the JSON is what orjson writes for the samples of the same lines."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.corpus import CorpusReading, FieldMapping, Rejection, SampleJsons
from skillshard.corpus.line_jsons import LineJsons
from tests.property.test_columns import reader_of, shaped
from tests.property.test_quick_blocks import COMPACT_ODD, ODD, good, good_lines, values

# Every block needs lines of one shape, so a strategy of lines of any shape would seldom read a block.
alike = st.builds(
    lambda keys, rows, is_compact: [
        (orjson.dumps if is_compact else lambda record: json.dumps(record).encode())(
            {"id": f"i{number}", "text": f"t{number}", **dict(zip(keys, row, strict=False))}
        )
        for number, row in enumerate(rows)
    ],
    st.lists(st.sampled_from(["meta", "skill", "a", "é"]), max_size=3, unique=True),
    st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=5),
    st.booleans(),
)
mixed = st.lists(
    good_lines | shaped | good.map(orjson.dumps) | st.sampled_from(ODD + COMPACT_ODD), min_size=1, max_size=3
)
blocks = st.lists(st.builds(lambda same, others: same + others, alike, st.just([]) | mixed), min_size=1, max_size=3)


def outcomes_of(
    data: list[bytes], *, with_jsons: bool, reading: CorpusReading = CorpusReading()
) -> tuple[list[Any], int]:
    """Return the rows with digests, and the number of rows read with JSON. A sample is its id, its text and the JSONs of id and metadata."""
    rows: list[Any] = []
    num_with_jsons = 0
    with reader_of(data, reading) as reader:
        for block in reader.blocks_or_lists() if with_jsons else reader.blocks():
            if isinstance(block, SampleJsons):
                num_with_jsons += block.num_rows
                rows += zip(block.ids, block.texts, block.id_jsons, block.meta_jsons, strict=True)
                continue
            for row in block if isinstance(block, list) else block.samples():
                rows.append(
                    row
                    if isinstance(row, Rejection)
                    else (row.id, row.text, orjson.dumps(row.id), orjson.dumps(row.meta))
                )
        return [rows, reader.num_rows(), reader.digests()], num_with_jsons


@settings(max_examples=300, deadline=None)
@given(data=blocks, ends=st.booleans())
def test_the_jsons_are_those_of_the_samples(data: list[list[bytes]], ends: bool) -> None:
    joined = [b"\n".join(block) + (b"\n" if ends else b"") for block in data]
    with_jsons, _ = outcomes_of(joined, with_jsons=True)
    assert with_jsons == outcomes_of(joined, with_jsons=False)[0]


@pytest.mark.parametrize("odd", [*ODD, *COMPACT_ODD], ids=repr)
@pytest.mark.parametrize("dump", [json.dumps, lambda record: orjson.dumps(record).decode()], ids=["spaced", "compact"])
def test_a_block_with_an_odd_line_gives_the_rows_of_the_reading_as_samples(odd: bytes, dump: Any) -> None:
    before = [dump({"id": f"{number}", "text": "x"}).encode() for number in range(3)]
    data = [b"\n".join(before), b"\n".join([*before, odd, *before])]
    with_jsons, num = outcomes_of(data, with_jsons=True)
    assert with_jsons == outcomes_of(data, with_jsons=False)[0]
    assert num >= 3


@pytest.mark.parametrize(
    "template",
    [
        '{"id":"%d","text":"a: \\"b\\": c","meta":{"skill":"s","n":[1,{"o":null}]}}',
        '{"id": "%d", "text": "\\u00e9\\n", "meta": {"skill": "\\u00e9", "n": 1e5}}',
        '{"text":"x","skill":"s","id":%d,"o":{"p":{"q":1.5}}}',
        '{"n": 1.50, "id": "%d", "text": "x"}',
        '{"id":"%d","text":"x"}',
    ],
)
def test_lines_of_one_shape_are_read_with_jsons(template: str) -> None:
    data = ["\n".join(template % (10 * block + row) for row in range(5)).encode() for block in range(3)]
    with_jsons, num = outcomes_of(data, with_jsons=True)
    assert num == 15
    assert with_jsons == outcomes_of(data, with_jsons=False)[0]


def test_each_shape_of_a_partition_is_read_with_jsons() -> None:
    data = [b"\n".join(orjson.dumps({"id": str(row), key: row, "text": "x"}) for row in range(3)) for key in "abcabc"]
    with_jsons, num = outcomes_of(data, with_jsons=True)
    assert num == 18
    assert with_jsons == outcomes_of(data, with_jsons=False)[0]


@pytest.mark.parametrize(
    "lines",
    [
        b'{"id":"1","text":"x","a":{\n"b":1}}',  # an object on two lines, which are two faults
        b'{"id":"1","text":"x","a":1,"a":1}',
        b'{"id":"1","id":"1","text":"x"}',
        b'{"id":"1","text":"x"}{"id":"2","text":"y"}',
        b'{"id":"1","text":"x","a":{"b": 1,"b": 1}}',
        b'{"id":"1","text":"x","a":36893488147419103233}',
        b'{"id":"1","text":"x","a":1}\n{"id":"2","a":1,"text":"y"}',  # another order, which the metadata would lose
        b'{"id":"1","text":"x","meta":{}}\n{"id":"2","text":"y","meta":3}',
        b'{"id":"1","text":"x","a\\"b":1}',
        b'{"id":"1","text":" "}',
        b'{"id":"1","text":5}',
        b'{"id":null,"text":"x"}',
        b'{"id" :"1","text":"x"}',
        b'["id","text"]',
        b"x",
    ],
)
def test_lines_that_need_a_closer_look_are_left(lines: bytes) -> None:
    assert LineJsons("id", "text").read(lines + b"\n", "a.jsonl") is None


def test_files_whose_blocks_are_refused_are_left_alone() -> None:
    """A block that is refused is parsed twice, so lines of ever other keys are not tried for ever."""
    jsons = LineJsons("id", "text")
    good_block, bad_block = b'{"id":"1","text":"x"}\n', b'{"id":"1","text":"x"}\n{"id":"2","text":"x","a":1}\n'
    for _ in range(3):
        assert jsons.read(good_block, "") is not None
    for _ in range(10):
        assert jsons.read(bad_block, "") is None
    assert jsons.read(good_block, "") is None


def test_a_reading_that_keeps_a_part_of_the_metadata_gives_objects() -> None:
    data = [b'{"id":"1","text":"x","a":1,"b":2}\n'] * 2
    reading = CorpusReading({"": FieldMapping(drop=("a",))})
    assert outcomes_of(data, with_jsons=True, reading=reading)[1] == 0
    assert outcomes_of(data, with_jsons=True)[1] == 2
