"""Read JSON documents: an array of rows, objects over several lines, or an object with the rows inside.

| file | rows |
|---|---|
| `[{...}, {...}]` | the elements |
| `{...} {...}`, each over several lines | the objects |
| `{"Source": ..., "Instances": [{...}, {...}]}`, with `rows="Instances"` | the elements, with the other fields of the object as fields of each row |
| `{"21645374": {...}, "21645375": {...}}`, with `rows="*"` | the objects, each with its name as the field "key" |
| `{"data": [{"title": ..., "qas": [{...}]}]}`, with `rows="data.qas"` | the elements of all inner arrays, with the other fields of the objects around them |

The standard library finds the end of each value in a window of the file. Then the bytes of a row go through the same parser and the
same checks as a line of JSONL. Memory is bounded by the largest row and the fields beside the rows. An array on the way to the rows is read
element by element, so memory is then bounded by the largest element.

The digest of a document with rows inside also goes over the values of the fields beside the rows. Tags of earlier versions have another digest,
which hashes only the names of these fields.
"""

import codecs
import json
from collections.abc import Iterator
from typing import Any

import orjson
import xxhash

from skillshard.corpus.bad_record import BadRecord, Reason
from skillshard.corpus.contents import BOM, Refused, cut_off, open_text, opened_text
from skillshard.corpus.formats import base_suffix
from skillshard.corpus.json_values import json_fault, parse_json, parse_quickly
from skillshard.corpus.lines import rejection
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.sample import PassedOver, Rejection, Sample, check_size, json_type
from skillshard.corpus.sources import Source
from skillshard.corpus.stretches import Stretch
from skillshard.errors import name_some

FIELDS_PREFIX = "fields:"
"""Beginning of the digests that go over the values of the fields beside the rows. Other digests have hexadecimal digits alone."""
EACH, KEY = "*", "key"
"""Step of the path of the rows that stands for each field of an object, and the field of the rows with the name of this field."""
_BLOCK_BYTES = 1 << 20
_SPACE = " \t\r\n"
# A fault this close to the end of the window may only show that the window ends. The longest token is a pair of escapes \uXXXX\uXXXX.
_MARGIN = 16
# Numbers stay strings, because only the ends of the values matter here. Python also refuses to parse thousands of digits.
_FINDER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, strict=False)
_STRICT_FINDER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)


class _Cut(Exception):
    """Error for the rest of a document that cannot be read."""

    def __init__(self, detail: str, reason: Reason = "truncated") -> None:
        super().__init__(detail)
        self.reason: Reason = reason


class _NoRows(Exception):
    """Error for a document without an array at the path of the rows."""


def holds_documents(stretch: Stretch) -> bool:
    """Return whether a JSON file holds documents, and not a row on each line. The content of a file ".json" decides."""
    if stretch.layout.rows is not None:
        return True
    if base_suffix(stretch.name) != ".json":
        return False
    source = open_text(stretch.whole(), expected="JSON")
    if isinstance(source, Rejection):
        return False
    text = source.read(_BLOCK_BYTES).removeprefix(BOM).decode(errors="surrogateescape").lstrip(_SPACE)
    if not text.startswith("{"):
        return text.startswith("[")
    try:
        _, end = _STRICT_FINDER.raw_decode(text)
    except json.JSONDecodeError as error:
        # An unfinished object over several lines. A fault inside is a bad line of JSONL.
        return "\n" in text and not _is_definite(error, len(text))
    except RecursionError:
        return False
    return "\n" in text[:end]


def read_documents(
    stretch: Stretch,
    *,
    fields: RowFields,
    max_sample_bytes: int,
    hasher: xxhash.xxh3_128,
    passed_over: PassedOver,
    hash_fields: bool = False,
) -> Iterator[Sample | Rejection]:
    """Yield the rows of the JSON documents of a file.

    The line of a rejection is the line at which the row begins. The description has the number of the row, because a whole document
    may stand on a line.

    Args:
        stretch: Stretch to read. The first stretch of a file reads the whole file, and the others have no rows.
        fields: Field mapping of the rows.
        max_sample_bytes: Largest size of a sample.
        hasher: Hash that is updated with the bytes of the rows and of the fields beside the rows.
        passed_over: Not used, because every value of a document is a row or a field.
        hash_fields: Whether the hash goes over the values of the fields beside the rows. False: over their names, as in earlier versions.
    """
    if stretch.start > 0:
        return
    name, row = stretch.name, 0
    window: _Window | None = None
    hashed: dict[str, Any] | None = None
    try:
        for window, beside, data in _rows(stretch, 16 * max_sample_bytes + _BLOCK_BYTES):
            row += 1
            hasher.update(b"%d:" % len(data) + data)
            if (
                hash_fields and beside is not hashed
            ):  # once for each object, because the fields may be longer than the rows
                hasher.update(orjson.dumps(beside, option=orjson.OPT_SORT_KEYS))
                hashed = beside
            try:
                record = parse_json(data)
                if beside and isinstance(record, dict):
                    if not hash_fields:
                        hasher.update(orjson.dumps(sorted(beside)))
                    record = {**beside, **record}
                sample = fields.sample(record, row)
                check_size(sample, fields.mapping.kept_meta(sample.meta), max_sample_bytes)
            except (orjson.JSONDecodeError, BadRecord) as error:
                bad = rejection(error, data, name=name, number=window.line)
                hint = _hint(data) if bad.reason == "missing-field" and stretch.layout.rows is None else ""
                yield Rejection(
                    name, bad.line, bad.reason, f"in row {row:,}, {bad.detail}{hint}", bad.id, bad.raw, bad.field
                )
            else:
                yield sample
    except Refused as error:
        yield error.rejection
    except _Cut as error:
        yield cut_off(name, window.line if window else 1, f"after {row:,} rows, {error}", error.reason)
    except _NoRows as error:
        yield Rejection(name, window.line if window else 1, "missing-field", str(error))


def _hint(data: bytes) -> str:
    """Return the words that name an array of objects inside an object, which may be the rows."""
    record = parse_quickly(data)
    arrays = [name for name, value in record.items() if type(value) is list and value and type(value[0]) is dict]
    if not arrays:
        return ""
    longest = max(arrays, key=lambda name: len(record[name]))
    return f"; the field {longest!r} is an array of objects, and `rows={longest!r}` makes each object a row"


def lines_of_rows(stretch: Stretch, *, max_sample_bytes: int) -> Iterator[int]:
    """Yield the line at which each row of a file of documents begins."""
    try:
        for window, _, _ in _rows(stretch, 16 * max_sample_bytes + _BLOCK_BYTES):
            yield window.line
    except (Refused, _Cut, _NoRows):
        return


def _rows(stretch: Stretch, limit: int) -> Iterator[tuple["_Window", dict[str, Any], bytes]]:
    """Yield the rows of a file: the window behind the row, the fields beside the rows, and the bytes of the row."""
    window, path = _Window(opened_text(stretch, expected="JSON"), limit), stretch.layout.rows
    if path is None:
        while window.next_character():
            for data in _elements_or_object(window):
                yield window, {}, data
        return
    # Fields that stand after the rows belong to each row too. So a second window runs ahead by a document, and collects the fields.
    collector = _Window(opened_text(stretch, expected="JSON"), limit)
    while collector.next_character():
        beside: dict[str, Any] = {}
        for _ in _in_object(collector, path, beside):
            pass  # the rows are read by the other window
        window.next_character()
        outer: dict[str, Any] = {}
        fields = beside
        for inner, data in _in_object(window, path, {}):
            if inner is not outer:
                outer, fields = inner, {**beside, **inner}
            yield window, fields, data


def _elements_or_object(window: "_Window") -> Iterator[bytes]:
    """Yield the elements of an array, or any other value as a whole."""
    if window.next_character() == "[":
        yield from _elements(window)
    else:
        yield window.value()


def _elements(window: "_Window") -> Iterator[bytes]:
    window.expect("[")
    if window.next_character() == "]":
        window.expect("]")
        return
    while True:
        yield window.value()
        if window.expect(",", "]") == "]":
            return


def _in_object(window: "_Window", path: str, beside: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the rows of an object at a path, and collect the other fields. A name that contains dots has priority over a nested path.

    Yields:
        The fields of the objects inside an array on the way to the row, and the bytes of the row.

    Raises:
        _NoRows: The object has no array at the path.
    """
    if window.next_character() != "{":
        raise _NoRows(f"expected an object with the rows at {path!r}, got {window.kind()}")
    window.expect("{")
    first, _, rest = path.partition(".")
    names: dict[str, None] = {}  # an object of rows may have a million names
    has_rows = False
    while window.next_character() != "}":
        name = str(_parsed(window, "in the name of a field"))
        if name in names:
            raise _Cut(f"the key {name!r} stands twice in one object")
        names[name] = None
        window.expect(":")
        kind = window.next_character()
        if first == EACH and kind in "{[":
            has_rows = True
            yield from _in_each(window, name, rest)
        elif name == path:
            if kind != "[":
                raise _NoRows(f"expected an array with the rows at {path!r}, got {window.kind()}")
            has_rows = True
            no_fields: dict[str, Any] = {}
            for data in _elements(window):
                yield no_fields, data
        elif name == first and rest and kind == "{":
            has_rows = True
            yield from _in_object(window, rest, beside)
        elif name == first and rest and kind == "[":
            has_rows = True
            for number, element in enumerate(_elements(window)):
                value = _parsed_bytes(element, "in an object around the rows")
                yield from _in_element(value, rest, f"{name}.{number}")
        else:
            beside[name] = _parsed(window, "in a field beside the rows")
        if window.expect(",", "}") == "}":
            break
    else:
        window.expect("}")
    if not has_rows:
        raise _no_field(path, list(names))


def _in_each(window: "_Window", name: str, path: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the rows of a field of an object that holds rows under each name: the value, its elements, or the rows inside at a path."""
    fields = {KEY: name}
    if window.next_character() == "[":
        for number, element in enumerate(_elements(window)):
            if not path:
                yield fields, element
            else:
                value = _parsed_bytes(element, "in an object around the rows")
                for inner, data in _in_element(value, path, f"{name}.{number}"):
                    yield {**fields, **inner}, data
    elif not path:
        yield fields, window.value()
    else:
        for inner, data in _in_element(_parsed(window, "in an object around the rows"), path, name):
            yield {**fields, **inner}, data


def _in_element(value: Any, path: str, place: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the rows inside an element of an array.

    Args:
        value: Element.
        path: Path of the rows inside the element.
        place: Path of the element, for errors.

    Yields:
        The fields of the objects inside the element, without the rows, and the bytes of a row.

    Raises:
        _NoRows: The element has no array at the path.
    """
    if type(value) is not dict:
        raise _NoRows(f"expected an object with the rows at {place!r}, got {json_type(value)}")
    first, _, rest = path.partition(".")
    name = path if path in value else first
    if name not in value:
        raise _no_field(f"{place}.{path}", list(value))
    beside, inside = {key: field for key, field in value.items() if key != name}, value[name]
    if name == path:
        if type(inside) is not list:
            raise _NoRows(f"expected an array with the rows at '{place}.{path}', got {json_type(inside)}")
        for row in inside:
            yield beside, orjson.dumps(row)
        return
    elements = inside if type(inside) is list else [inside]
    for number, element in enumerate(elements):
        deeper, fields = beside, beside
        for inner, data in _in_element(element, rest, f"{place}.{name}.{number}"):
            if inner is not deeper:
                deeper, fields = inner, {**beside, **inner}
            yield fields, data


def _no_field(path: str, names: list[str]) -> _NoRows:
    fields = f"the fields are {name_some(names)}" if names else "the object is empty"
    return _NoRows(f"no field {path!r} with the rows; {fields}. Name the field with `rows`")


def _parsed(window: "_Window", where: str) -> Any:
    """Parse the next value, which is no row. Raise _Cut for a fault, because the rows after the value cannot be told apart from its rest."""
    return _parsed_bytes(window.value(), where)


def _parsed_bytes(data: bytes, where: str) -> Any:
    try:
        return parse_json(data)
    except (orjson.JSONDecodeError, BadRecord) as error:
        detail = error.detail if isinstance(error, BadRecord) else json_fault(error)[1]
        raise _Cut(f"{where}, {detail}") from error


class _Window:
    """Window of decoded text that moves over a file, from value to value.

    Attributes:
        line: 1-based line at which the last value begins.
    """

    def __init__(self, source: Source, limit: int) -> None:
        self.line = 1
        self._source, self._limit = source, limit
        # An invalid byte becomes half a surrogate pair, and the parser of the row then refuses this row alone.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._text, self._position, self._counted = "", 0, 0
        self._has_ended = False

    def next_character(self) -> str:
        """Pass over white space and return the next character without passing it, or "" at the end of the file."""
        while True:
            while self._position < len(self._text):
                character = self._text[self._position]
                if character not in _SPACE:
                    return character
                self._position += 1
            if not self._more():
                if self._source.damage is not None:
                    raise _Cut(self._source.damage, self._source.reason)
                return ""

    def expect(self, *characters: str) -> str:
        """Pass over white space and one of the given characters, and return the character."""
        character = self.next_character()
        if character not in characters or not character:
            expected = " or ".join(map(repr, characters))
            got = repr(character) if character else "the end of the file"
            raise _Cut(f"not valid JSON: expected {expected}, got {got}")
        self._position += 1
        return character

    def kind(self) -> str:
        """Describe the value at the present position by its first character."""
        kinds = {
            "{": "an object",
            "[": "an array",
            '"': "a string",
            "t": "a boolean",
            "f": "a boolean",
            "n": "null",
            "": "nothing",
        }
        return kinds.get(self.next_character(), "a number")

    def value(self) -> bytes:
        """Pass over a value and return its bytes."""
        self.next_character()
        self._count_lines()
        while True:
            try:
                _, end = _FINDER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if _is_definite(error, len(self._text)) or not self._more():
                    raise _Cut(
                        self._source.damage or f"not valid JSON: {_place(error, self.line)}", self._source.reason
                    ) from error
                continue
            except RecursionError as error:
                raise _Cut("a value is nested too deeply", "unsupported") from error
            # A number at the end of the window may go on.
            if end == len(self._text) and self._text[self._position] not in '"{[' and self._more():
                continue
            data = self._text[self._position : end].encode(errors="surrogateescape")
            self._position = end
            return data

    def _count_lines(self) -> None:
        self.line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position

    def _more(self) -> bool:
        """Read on, and drop the text before the position. Return False at the end of the file."""
        if self._has_ended:
            return False
        rest = len(self._text) - self._position
        if rest > self._limit:
            raise _Cut(f"a value is longer than {self._limit:,} characters", "unsupported")
        self._count_lines()
        # As much again as is waiting: a long value is scanned from its start each time, and doubling keeps the work linear.
        chunk = self._source.read(max(_BLOCK_BYTES, rest))
        self._has_ended = not chunk
        self._text = self._text[self._position :] + self._decoder.decode(chunk, final=not chunk)
        self._position = self._counted = 0
        return True


def _is_definite(error: json.JSONDecodeError, length: int) -> bool:
    """Return whether a fault is no consequence of the end of the window."""
    return error.pos < length - _MARGIN and not error.msg.startswith("Unterminated string")


def _place(error: json.JSONDecodeError, line: int) -> str:
    """Describe a fault. The line is counted from the beginning of the value."""
    return f"{error.msg} (line {line + error.lineno - 1})"
