"""Samples, rejected rows, and the checks that decide between the two.

The checks raise `BadRecord`, so a good row does not pay for the parts of a rejection. The rows of every format go through
`RowFields.sample` (mapping.py), so the same rules hold for all formats.
"""

import json
import math
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import orjson

from skillshard.canonical import explain, is_beyond
from skillshard.corpus.formats import format_of
from skillshard.corpus.members import Members
from skillshard.corpus.paths import MISSING, in_meta, of_file, single, unknown
from skillshard.repeated_keys import repeated_key

Reason = Literal[
    "malformed-json",
    "malformed-row",
    "invalid-utf8",
    "missing-field",
    "wrong-type",
    "empty-text",
    "too-large",
    "truncated",
    "not-the-named-format",
    "unsupported",
    "unclear-members",
    "duplicate-id",
    "no-label",
    "copy",
]
RESTS: frozenset[Reason] = frozenset(("truncated", "not-the-named-format", "unsupported"))
"""Reasons that refuse the rest of a file, or a whole file. The number of refused rows is not known."""
_SET_ASIDE = "set such samples aside with `on_bad_sample='set-aside'`"
_REMEDIES: dict[Reason, str] = {
    "missing-field": f"Mend the row, name another field with `fields`, `id_field` or `text_field`, or {_SET_ASIDE}.",
    "wrong-type": f"Mend the row, name another field with `fields`, `id_field` or `text_field`, or {_SET_ASIDE}.",
    "too-large": f"Split the sample, raise `max_sample_bytes`, or {_SET_ASIDE}.",
    "truncated": "Fetch or write the file again, or set the rest of it aside with `on_bad_sample='set-aside'`.",
    "unsupported": "Or set the rest of the file aside with `on_bad_sample='set-aside'`.",
    "unclear-members": f"Rename or repack the members, or {_SET_ASIDE}.",
    "duplicate-id": f"Give it another id, or {_SET_ASIDE}.",
    "no-label": f"Add the id to the labels, or {_SET_ASIDE}.",
    "not-the-named-format": "Rename or rewrite the file, or set it aside with `on_bad_sample='set-aside'`.",
}
_JSON_TYPES = {
    "NoneType": "null",
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
    "str": "a string",
    "list": "an array",
    "dict": "an object",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Text of a corpus with its id and metadata.

    Attributes:
        id: Id as in the corpus. An integer becomes its digits, and "00123" stays "00123".
        text: Text, valid as UTF-8, not empty and not only white space.
        meta: Plain JSON values of the row, without the id and the text. If "meta" is the only other field, its values.
        file: Name of the file in the corpus. Empty for a sample that was not read from a corpus.
        members: Suffix and bytes of each kept member, such as an image, by rising suffix. Empty unless the reading keeps members.
    """

    id: str
    text: str
    meta: dict[str, Any]
    file: str = field(default="", compare=False, repr=False)
    members: Members = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Row without a usable sample, or the unreadable rest of a file.

    Attributes:
        file: Name of the file in the corpus.
        line: 1-based line of a text file (of the decompressed text), or 1-based row of a table or tar. None stands for the whole
            file.
        reason: Stable category, for counting.
        detail: Description of the fault, as the middle of a sentence.
        id: Id of the sample, if known.
        raw: Text of the row, with invalid UTF-8 as `\\xff`. None without a single row to show.
        field: Path of the field with the fault. None if the fault is of the whole row.
    """

    file: str
    line: int | None
    reason: Reason
    detail: str
    id: str | None = None
    raw: str | None = None
    field: str | None = None

    def to_json(self) -> dict[str, str | int | None]:
        """Return plain values for a line of rejected/."""
        return asdict(self)

    def sentence(self) -> str:
        """Return the error for this row: the place, the fault and the remedy.

        >>> print(Rejection(file="a.jsonl", line=17, reason="malformed-json", detail="not valid JSON").sentence())
        a.jsonl line 17: not valid JSON. Mend the line, or set such samples aside with `on_bad_sample='set-aside'`.
        """
        unit = unit_of(self.file)
        where = self.file if self.line is None else f"{self.file} {unit} {self.line}"
        return f"{where}: {self.detail}. {_REMEDIES.get(self.reason, f'Mend the {unit}, or {_SET_ASIDE}.')}"


@dataclass(frozen=True)
class PassedOver:
    """Data of a partition that is left out without a rejection: kind -> number.

    Attributes:
        members: Members of a tar, records of a WET file and blank text files that are no samples.
        columns: Values of a table without a JSON form.
    """

    members: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)


class BadRecord(Exception):
    """Error for a row without a usable sample. The caller knows the place of the row and makes a `Rejection` of the error.

    Args:
        reason: Stable category, for counting.
        detail: Description of the fault, as the middle of a sentence.
        id: Id of the sample, if known.
        field: Path of the field with the fault, if the fault is of one field.
    """

    def __init__(self, reason: Reason, detail: str, id: str | None = None, field: str | None = None) -> None:
        super().__init__(reason, detail, id, field)
        self.reason: Reason = reason
        self.detail = detail
        self.id = id
        self.field = field


def lookup(sample: Sample, path: str) -> Any:
    """Return the value at a dotted path, or `MISSING`. An array of one element counts as the element itself.

    "id" and "text" name the sample's own fields, and "file.name", "file.stem", "file.folder" and "file.parts" the file of the sample.
    Every other path is looked up in the metadata, with or without "meta." before the path. `skillshard.corpus.paths` has the rules.

    >>> sample = Sample("7", "1 + 1 = 2", {"task": {"name": "add"}, "a.b": 3, "id": "inner", "kinds": ["sum"]}, "web/a.jsonl")
    >>> [lookup(sample, path) for path in ("task.name", "meta.task.name", "a.b", "task.size", "kinds", "kinds.0")]
    ['add', 'add', 3, MISSING, 'sum', 'sum']
    >>> lookup(sample, "id"), lookup(sample, "meta.id"), lookup(sample, "file.folder")
    ('7', 'inner', 'web')
    """
    if path == "id":
        return sample.id
    if path == "text":
        return sample.text
    value = of_file(sample.file, path)
    return single(in_meta(sample.meta, path) if value is MISSING else value)


def category_of(value: str | int | float) -> str:
    """Return a metadata value as the name of a category: a string unchanged, any other value as JSON.

    >>> [category_of(value) for value in ("law", 3, True)]
    ['law', '3', 'true']
    """
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def id_of(value: Any, path: str, row: Any) -> str:
    """Return the id of a row.

    Args:
        value: Value of the id's field.
        path: Path of the field.
        row: Row, for the names of its fields.

    Raises:
        BadRecord: The value is no id.
    """
    value = single(value)
    if type(value) is str and value:
        return value
    if type(value) is int:
        return str(value)
    if value is MISSING:
        raise BadRecord(
            "missing-field",
            f"no field {path!r} for the id{unknown(path, row)}. Where rows have no ids, `id_field=None` makes ids of the file and the row",
            field=path,
        )
    if value == "":
        raise BadRecord("missing-field", f"the id in {path!r} is empty", field=path)
    raise BadRecord(
        "wrong-type", f"the id in {path!r} must be a string or an integer, got {json_type(value)}", field=path
    )


def text_of(value: Any, path: str, sample_id: str, row: Any) -> str:
    """Return the text of a row. The arguments are as in `id_of`, with the id of the sample for errors.

    Raises:
        BadRecord: The value is no text.
    """
    value = single(value)
    if type(value) is str and value and not value.isspace():
        return value
    if value is MISSING:
        raise BadRecord("missing-field", f"no field {path!r} for the text{unknown(path, row)}", sample_id, path)
    if not isinstance(value, str):
        raise BadRecord("wrong-type", f"the text in {path!r} must be a string, got {json_type(value)}", sample_id, path)
    raise BadRecord("empty-text", f"the text in {path!r} is empty or only white space", sample_id, path)


def rest_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a row without its id and text: the row, or the values of "meta" if no other field is left."""
    if len(record) == 1 and type(inner := record.get("meta")) is dict:
        return inner
    return record


def json_type(value: Any) -> str:
    """Return the type of a JSON value with its article, and the value of a number or a boolean."""
    name = type(value).__name__
    return _JSON_TYPES.get(name, name) + (f" ({value!r})" if isinstance(value, (bool, int, float)) else "")


def check_size(sample: Sample, kept_meta: dict[str, Any], max_sample_bytes: int) -> None:
    """Raise BadRecord if the text and the kept metadata (as compact JSON) together exceed the limit, in bytes of UTF-8."""
    size = len(sample.text.encode()) + len(orjson.dumps(kept_meta))
    if size > max_sample_bytes:
        detail = f"the sample is {size:,} bytes of text and meta, and at most {max_sample_bytes:,} are allowed"
        raise BadRecord("too-large", detail, sample.id)


def json_fault(error: orjson.JSONDecodeError) -> tuple[Reason, str]:
    """Return the reason and the description of a fault in JSON.

    The JSON is malformed, or has a number beyond the range of 64-bit floats, which is a limit of the reader.

    >>> try:
    ...     orjson.loads('{"n": 1e400}')
    ... except orjson.JSONDecodeError as error:
    ...     print(*json_fault(error), sep=", ")
    wrong-type, a number at column 7 is beyond those that are read, from -1.8e308 to 1.8e308
    """
    return (
        ("wrong-type", explain(error)) if is_beyond(error) else ("malformed-json", f"not valid JSON ({explain(error)})")
    )


# ------------------------------------------------------------------------------------------------------- long integers

# orjson turns integers of more than 64 bits into floats, and reads deeper nesting than orjson writes. A check of each value would
# cost a third of the reading time. So the bytes of a line are checked first, and the values only if the bytes give a reason.
_PLAIN_TYPES = frozenset((str, int, bool, type(None)))
# The upper half of each byte, and the upper half of the ASCII digits, which are 0x30 to 0x39.
_HIGH_HALVES, _DIGIT_HALVES = np.uint64(0xF0F0F0F0F0F0F0F0), np.uint64(0x3030303030303030)
_LONG_DIGITS = re.compile(rb"[0-9]{19}")  # -9223372036854775809 is the shortest integer that needs more than 64 bits
_FLOAT_LIMIT = float(1 << 63)
MAX_DEPTH = 250  # orjson reads 1,024 levels and writes 254
is_plain = _PLAIN_TYPES.issuperset
"""Return whether values of all given types are exact as orjson parses them."""


def long_digit_runs(data: bytes) -> list[int]:
    """Return the positions in JSON at which an integer of more than 64 bits may begin. Digits in strings count too.

    >>> long_digit_runs(b'{"hash": 36893488147419103233}'), long_digit_runs(b'{"hash": 368934881474191032}')
    ([9], [])
    """
    # A run of 15 digits or more covers a whole aligned word of 8 bytes. So NumPy looks for words of digits first.
    words = np.frombuffer(data, "<u8", len(data) // 8)
    positions: list[int] = []
    for word in np.flatnonzero((words & _HIGH_HALVES) == _DIGIT_HALVES).tolist():
        run = _LONG_DIGITS.search(data, max(0, 8 * word - 18), 8 * word + 26)
        if run is not None and (not positions or run.start() > positions[-1]):
            positions.append(run.start())
    return positions


def may_be_deep(line: bytes) -> bool:
    """Return whether a line may be nested so deeply that orjson cannot write its metadata again."""
    return line.count(b"[") + line.count(b"{") > MAX_DEPTH


def needs_exact(value: Any) -> bool:
    """Return whether a value parsed by orjson has a float that may have been an integer of more than 64 bits.

    Raises:
        BadRecord: The value is nested too deeply to be written again.
    """
    # Level by level and not by recursion, because a deep value would exceed Python's stack.
    level, depth, needed = [value], 0, False
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise BadRecord("malformed-json", f"nested deeper than {MAX_DEPTH} levels")
        deeper = []
        for container in level:
            inner = container.values() if type(container) is dict else container
            types = set(map(type, inner))
            if float in types:
                floats = inner if len(types) == 1 else [item for item in inner if type(item) is float]
                needed = needed or max(floats) >= _FLOAT_LIMIT or min(floats) <= -_FLOAT_LIMIT
            if dict in types or list in types:
                deeper += [item for item in inner if type(item) is dict or type(item) is list]
        level = deeper
    return needed


def exact_json(data: bytes) -> Any:
    """Parse JSON, with integers of more than 64 bits as strings of their digits.

    >>> exact_json(b'{"hash": 36893488147419103233, "n": 18446744073709551615}')
    {'hash': '36893488147419103233', 'n': 18446744073709551615}
    """
    return json.loads(data.decode(), parse_int=_integer_or_digits)


def parse_json(data: bytes) -> Any:
    """Parse JSON, with integers of more than 64 bits as strings of their digits.

    Raises:
        BadRecord: A key stands twice in one object, or the nesting is too deep.
        orjson.JSONDecodeError: The bytes are not JSON, or have a float beyond the range of 64-bit floats.
    """
    record = parse_quickly(data)
    if (key := repeated_key(data, record)) is not None:
        raise BadRecord("malformed-json", f"the key {key!r} stands twice in one object")
    return exact_json(data) if isinstance(record, dict | list) and needs_exact(record) else record


def parse_quickly(data: bytes) -> Any:
    """Parse JSON. Integers from 2**64 to the largest float become floats, and longer integers become strings of their digits.

    Raises:
        orjson.JSONDecodeError: The bytes are not JSON, or have a float beyond the range of 64-bit floats.

    >>> parse_quickly(b'{"n": 1' + 400 * b"0" + b"}") == {"n": "1" + 400 * "0"}
    True
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if not is_beyond(error) or may_be_deep(data):
            raise
        try:
            record = json.loads(
                data.decode(), parse_int=_integer_or_digits, parse_float=_finite, parse_constant=_finite
            )
            orjson.dumps(
                record
            )  # fails on half a surrogate pair, which the parser of the standard library lets through
        except (ValueError, orjson.JSONEncodeError):
            raise error from None
        return record


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(digits)
    return number


def _integer_or_digits(digits: str) -> int | str:
    # 2**64 has 20 digits. A longer integer is too large, and Python refuses to parse thousands of digits.
    value = int(digits) if len(digits) <= 20 else None
    return value if value is not None and -(1 << 63) <= value < 1 << 64 else digits


def unit_of(name: str) -> str:
    """Return the unit of the places in a file: "line" for text, "row" for tables and tars.

    >>> unit_of("a.json.gz"), unit_of("a.parquet")
    ('line', 'row')
    """
    return "row" if format_of(name) in ("parquet", "arrow", "tar", "wet") else "line"
