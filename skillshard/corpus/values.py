"""Turn the values of Arrow columns into JSON values, the same as in a line of JSON.

| Arrow | JSON |
|---|---|
| null, booleans, integers, strings | the same |
| floats | the same, but null for NaN and no form for an infinity |
| decimals | the digits as a string, because JSON readers would round a number |
| dates, times, timestamps | ISO text, with a time zone in UTC and with "Z" |
| binary | a string for UTF-8 without the character NUL, otherwise no form |
| lists, maps, structs | arrays, arrays of pairs, objects |
| dictionary and run-end encoding, extension types | the encoded values, and text for a UUID |
| durations, intervals, unions, all others | no form |

The rules hold at every depth. The rules need neither pandas nor a database of time zones, which some machines lack. So equal files
give equal values on all machines. A value without a form is counted and left out of its object. An array with such a value has no
form either.
"""

import math
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from skillshard.corpus.bad_record import Reason

_MAX_DEPTH = 50  # well inside the limits of Python's stack and of orjson, and deeper than the metadata of texts
_TYPE_CHARS = 40  # the type of a struct names all fields, and could fill a page
_NO_TIME = "<value out of range"  # the text of pyarrow for an impossible time


@dataclass(frozen=True, slots=True)
class NoForm:
    """Value without a JSON form.

    Attributes:
        reason: Stable category, for counting.
        detail: Description of the fault, as the middle of a sentence.
    """

    reason: Reason
    detail: str


def json_values(array: pa.Array, path: str, left_out: Counter[str]) -> list[Any]:
    """Return the JSON values of a column, with `NoForm` for each value without a form.

    Args:
        array: Column.
        path: Name of the column.
        left_out: Counter of the values that are left out of objects, under "column.field (type)".
    """
    return _values(array, path, left_out, 0)


def label(path: str, type: pa.DataType) -> str:
    """Return the name under which the values of a column are counted: the path and the type.

    >>> label("image.bytes", pa.binary())
    'image.bytes (binary)'
    """
    text = str(type)
    return f"{path} ({text if len(text) <= _TYPE_CHARS else text[: _TYPE_CHARS - 3] + '...'})"


def _values(array: pa.Array, path: str, left_out: Counter[str], depth: int) -> list[Any]:
    kind = array.type
    types = pa.types
    if depth > _MAX_DEPTH:
        return _without_form(array, path)
    if isinstance(kind, pa.BaseExtensionType):
        return _extension(array, path, left_out, depth)
    if types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind):
        return array.to_pylist()
    if types.is_list(kind) and types.is_string(kind.value_type):  # a fast path for the most frequent nesting
        try:
            return array.to_pylist()
        except UnicodeDecodeError:
            pass  # the code below checks each string by itself
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return _strings(array, path)
    if types.is_floating(kind):
        return _floats(array, path)
    if types.is_decimal(kind):
        return [None if value is None else format(value, "f") for value in array.to_pylist()]
    if types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind):
        return _times(array, path)
    if types.is_struct(kind):
        return _objects(array, path, left_out, depth)
    if types.is_map(kind):
        return _maps(array, path, left_out, depth)
    if types.is_dictionary(kind):
        if len(array.dictionary) > len(array):  # one dictionary can serve many small batches
            return _values(array.dictionary.take(array.indices), path, left_out, depth + 1)
        values = _values(array.dictionary, path, left_out, depth + 1)
        return [None if index is None else values[index] for index in array.indices.to_pylist()]
    if types.is_run_end_encoded(kind):
        return _runs(array, path, left_out, depth)
    if is_binary(kind):
        return [None if value is None else _text_of(value, path) for value in array.to_pylist()]
    if (bounds := _bounds(array)) is not None:
        return _arrays(array, bounds, path, left_out, depth)
    return _without_form(array, path)


def is_binary(kind: pa.DataType) -> bool:
    """Return whether a type has bytes as its values."""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _without_form(array: pa.Array, path: str) -> list[Any]:
    no_form = NoForm("wrong-type", f"column {path!r} of type {array.type} has no JSON form")
    return [no_form if is_valid else None for is_valid in array.is_valid().to_pylist()]


def _strings(array: pa.Array, path: str) -> list[Any]:
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        as_bytes = pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary()
        if pa.types.is_string_view(array.type):
            as_bytes = pa.binary_view()
        return [None if value is None else _decoded(value, path) for value in array.view(as_bytes).to_pylist()]


def _decoded(value: bytes, path: str) -> str | NoForm:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        return NoForm("invalid-utf8", f"not valid UTF-8 (byte {error.start + 1} of column {path!r})")


def _text_of(value: bytes, path: str) -> str | NoForm:
    """Return bytes as text. Numbers and hashes can be UTF-8 by chance, but most contain a NUL, and texts do not."""
    if b"\0" in value:
        return NoForm("wrong-type", f"column {path!r} of bytes has no JSON form where it holds the byte NUL")
    return _decoded(value, path)


def _floats(array: pa.Array, path: str) -> list[Any]:
    values = [None if value is None else float(value) for value in array.to_pylist()]
    if pc.all(pc.is_finite(array.cast(pa.float64()))).as_py() is not False:
        return values
    infinite = NoForm("wrong-type", f"column {path!r} of type {array.type} has no JSON form where it is infinite")
    return [
        value if value is None or math.isfinite(value) else None if math.isnan(value) else infinite for value in values
    ]


def _times(array: pa.Array, path: str) -> list[Any]:
    mark = ""
    # A timestamp with a zone stores UTC. A view without the zone gives the text in UTC, without the database of time zones.
    if pa.types.is_timestamp(array.type) and array.type.tz is not None:
        array, mark = array.view(pa.timestamp(array.type.unit)), "Z"
    try:
        texts = array.cast(pa.string()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        texts = [_time(array.slice(row, 1), path) for row in range(len(array))]
    out_of_range = NoForm(
        "wrong-type", f"column {path!r} of type {array.type} has no JSON form where it is out of range"
    )
    return [
        text if not isinstance(text, str) else out_of_range if text.startswith(_NO_TIME) else text + mark
        for text in texts
    ]


def _time(array: pa.Array, path: str) -> str | NoForm | None:
    """Return the text of a single time. A file can hold impossible times, such as 25 o'clock."""
    try:
        (text,) = array.cast(pa.string()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return NoForm("wrong-type", f"column {path!r} of type {array.type} has no JSON form where it is out of range")
    return text


def _objects(array: pa.Array, path: str, left_out: Counter[str], depth: int) -> list[Any]:
    names = [field.name for field in array.type]
    if len(set(names)) < len(names):  # a JSON object would keep only the last of equal names
        return _without_form(array, path)
    valid = array.is_valid().to_pylist()
    records: list[Any] = [{} if is_valid else None for is_valid in valid]
    for index, name in enumerate(names):
        child = array.field(index)
        for record, value in zip(records, _values(child, f"{path}.{name}", left_out, depth + 1), strict=True):
            if record is None:
                continue
            if isinstance(value, NoForm):
                left_out[label(f"{path}.{name}", child.type)] += 1
            else:
                record[name] = value
    return records


def _arrays(
    array: pa.Array, bounds: Sequence[tuple[int, int]], path: str, left_out: Counter[str], depth: int
) -> list[Any]:
    valid = array.is_valid().to_pylist()
    first, last = _span(bounds, valid)
    values = _values(array.values.slice(first, last - first), path, left_out, depth + 1)
    return [
        _whole(values[start - first : stop - first]) if is_valid else None
        for (start, stop), is_valid in zip(bounds, valid, strict=True)
    ]


def _maps(array: pa.Array, path: str, left_out: Counter[str], depth: int) -> list[Any]:
    bounds, valid = list(pairwise(array.offsets.to_pylist())), array.is_valid().to_pylist()
    first, last = _span(bounds, valid)
    keys, items = (
        _values(child.slice(first, last - first), path, left_out, depth + 2) for child in (array.keys, array.items)
    )
    pairs = [_whole(list(pair)) for pair in zip(keys, items, strict=True)]
    return [
        _whole(pairs[start - first : stop - first]) if is_valid else None
        for (start, stop), is_valid in zip(bounds, valid, strict=True)
    ]


def _bounds(array: pa.Array) -> list[tuple[int, int]] | None:
    """Return the start and the end, exclusive, of each list in `array.values`, or None for other types."""
    types, kind = pa.types, array.type
    if types.is_list(kind) or types.is_large_list(kind):
        return list(pairwise(array.offsets.to_pylist()))
    if types.is_fixed_size_list(kind):
        size = kind.list_size
        return [((array.offset + row) * size, (array.offset + row + 1) * size) for row in range(len(array))]
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        pairs = zip(array.offsets.to_pylist(), array.sizes.to_pylist(), strict=True)
        return [(start, start + size) for start, size in pairs]
    return None


def _span(bounds: Sequence[tuple[int, int]], valid: Sequence[bool]) -> tuple[int, int]:
    """Return the stretch of values with all lists that are not null. A null list may have arbitrary bounds."""
    used = [bound for bound, is_valid in zip(bounds, valid, strict=True) if is_valid and bound[1] > bound[0]]
    return (min(start for start, _ in used), max(stop for _, stop in used)) if used else (0, 0)


def _whole(values: list[Any]) -> list[Any] | NoForm:
    return next((value for value in values if isinstance(value, NoForm)), values)


def _runs(array: pa.Array, path: str, left_out: Counter[str], depth: int) -> list[Any]:
    first, num_runs = array.find_physical_offset(), array.find_physical_length()
    values = _values(array.values.slice(first, num_runs), path, left_out, depth + 1)
    repeated: list[Any] = []
    for value, end in zip(values, array.run_ends.slice(first, num_runs).to_pylist(), strict=True):
        repeated += [value] * (min(end - array.offset, len(array)) - len(repeated))
    return repeated


def _extension(array: pa.Array, path: str, left_out: Counter[str], depth: int) -> list[Any]:
    name = getattr(array.type, "extension_name", "")
    if name == "arrow.uuid":
        return [None if value is None else str(uuid.UUID(bytes=value)) for value in array.storage.to_pylist()]
    if name == "arrow.bool8":
        return [None if value is None else bool(value) for value in array.storage.to_pylist()]
    return _values(array.storage, path, left_out, depth + 1)
