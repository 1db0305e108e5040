"""A repeated key is found in all JSON, however the JSON is written, and never where no key stands twice."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skillshard.repeated_keys import repeated_key, repeated_keys

SPACES = st.text(" \t\r", max_size=3) | st.just(" " * 200)
STRINGS = st.text('ab:"\\\\ {}[],', max_size=4)


class Twice(Exception):
    """Error for a key that stands twice."""


@st.composite
def json_texts(draw: st.DrawFn, depth: int = 3) -> str:
    """JSON on one line, with any spaces, any escapes and few names, so that a name often stands twice."""
    kinds = ["string", "number", "object", "list"] if depth else ["string", "number"]
    kind = draw(st.sampled_from(kinds))
    if kind == "string":
        return draw(strings())
    if kind == "number":
        return draw(st.sampled_from(["0", "-1.5e3", "true", "null"]))
    space = draw(SPACES)
    if kind == "list":
        return f"[{space}{','.join(draw(st.lists(json_texts(depth - 1), max_size=3)))}{space}]"
    pairs = draw(st.lists(st.tuples(strings(), SPACES, json_texts(depth - 1)), max_size=3))
    return f"{{{space}{','.join(f'{space}{key}{before}:{space}{value}' for key, before, value in pairs)}{space}}}"


@st.composite
def strings(draw: st.DrawFn) -> str:
    """A string of JSON, plain or with each character escaped by its number."""
    text = draw(STRINGS)
    return json.dumps(text) if draw(st.booleans()) else '"' + "".join(f"\\u{ord(letter):04x}" for letter in text) + '"'


def has_twice(text: str) -> bool:
    """Whether a key stands twice, as the slow parser of the standard library says."""

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise Twice
        return dict(pairs)

    try:
        json.loads(text, object_pairs_hook=check)
    except Twice:
        return True
    return False


@given(st.lists(json_texts(), min_size=1, max_size=4), st.booleans())
@example([r'{"a\\":1,"a\\":2}'], True)
@example(['{"a":":", "b":": x"}', '{"a":1, "a":2}'], False)
def test_a_repeated_key_is_found_in_the_lines_that_have_one(texts: list[str], ends_with_line_break: bool) -> None:
    lines = [text.encode() for text in texts]
    data = b"\n".join(lines) + b"\n" * ends_with_line_break
    values = [orjson.loads(text) for text in texts]
    repeated = repeated_keys(data, lines, values)
    assert [number in repeated for number in range(len(texts))] == [has_twice(text) for text in texts]
    assert [repeated_key(*pair) for pair in zip(lines, values, strict=True)] == [
        repeated.get(number) for number in range(len(texts))
    ]


def test_the_key_that_stands_twice_is_named_as_the_parser_reads_it() -> None:
    text = rb'[{"a": 1}, {"a": {"\u0062": 1, "c": "}{", "b": 2}}]'
    assert repeated_key(text, orjson.loads(text)) == "b"


def test_lines_that_are_not_json_hide_no_repeated_key() -> None:
    lines = [b'{"a": 1', b'{"b": 1, "b": 2}', b'":":":', b""]
    values = [ValueError(), {"b": 2}, ValueError(), ValueError()]
    assert repeated_keys(b"\n".join(lines), lines, values) == {1: "b"}


def test_texts_with_colons_and_quotation_marks_need_no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'He said: "yes" : "no": {"x": 1}  : \\'
    rows = [{"id": str(i), "text": text, "meta": {"a": {"b": [{"c": text}]}}} for i in range(50)]
    lines = [json.dumps(row, separators=(", ", " : ")).encode() for row in rows]
    monkeypatch.setattr("skillshard.repeated_keys._scanned", None)
    assert repeated_keys(b"\n".join(lines), lines, rows) == {}


def test_deeply_nested_json_is_scanned_without_a_limit_of_the_stack() -> None:
    text = b"[" * 1000 + b'{"a":1,"a":2}' + b"]" * 1000
    assert repeated_key(text, orjson.loads(text)) == "a"
