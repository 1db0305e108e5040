"""Read a block of ordinary JSON lines at once. A block with any line that needs a closer look is left to lines.py.

The lines become one JSON array, so the parser is called once for a block, and the lines are never cut apart. The checks look at the block as a
whole too.
"""

import secrets
from typing import Any

import numpy as np
import orjson

from skillshard.corpus.columns import SampleLists
from skillshard.corpus.json_values import MAX_DEPTH, long_digit_runs
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.sample import rest_of
from skillshard.repeated_keys import may_repeat_keys

# The mark stands between two lines. A file cannot know the mark, so a line that ends in the middle of a value, or holds two values, always
# puts a mark into a value, or a value into the place of a mark. The newline stays, because JSON does not allow a newline in a string.
_MARK = secrets.token_hex(16)
_BETWEEN = f'\n,"{_MARK}",'.encode()
# "[" and "{" differ in this bit alone.
_OPEN, _BRACE_BIT, _NEWLINE = b"{"[0], 0x20, b"\n"[0]
_MIN_INTEGER, _MAX_INTEGER = -(1 << 63), (1 << 64) - 1


def quick_samples(data: bytes, fields: RowFields) -> SampleLists | None:
    """Return the samples of a block of lines, or None if a line needs a closer look: a fault, an unusual value or an empty line.

    Args:
        data: Whole lines.
        fields: Field mapping that names two keys (`RowFields.is_quick`).
    """
    id_field, text_field = fields.id_field, fields.text_field
    if id_field is None:
        return None
    records = parsed_objects(data)
    if records is None or may_be_deep(data, len(records)):
        return None
    # An integer of more than 64 bits is parsed in another way.
    if not _is_canonical(data, records) and (long_digit_runs(data) or may_repeat_keys(data, records)):
        return None
    ids = strings([record.pop(id_field, None) for record in records])
    texts = [record.pop(text_field, None) for record in records]
    if ids is None or set(map(type, texts)) != {str} or not all(texts) or any(map(str.isspace, texts)):
        return None
    return SampleLists(ids, texts, list(map(rest_of, records)), fields.name)


def _is_canonical(data: bytes, records: list[dict[str, Any]]) -> bool:
    """Return whether orjson writes exactly these lines for the objects.

    Such lines repeat no key, and have no integer of more than 64 bits: orjson would write the last value, and a float.
    """
    lines = data.removesuffix(b"\n")
    try:
        # The lines of a file come from one program, so the first line answers the question for most other files.
        if not lines.startswith(orjson.dumps(records[0])):
            return False
        return b"\n".join(map(orjson.dumps, records)) == lines
    except orjson.JSONEncodeError:  # nested too deeply to be written
        return False


def strings(values: list[Any]) -> list[str] | None:
    """Return strings and integers as strings, or None if a value is of another type, empty, or an integer of more than 64 bits."""
    if set(map(type, values)) == {str}:
        return values if all(values) else None
    texts = []
    for value in values:
        if type(value) is int and _MIN_INTEGER <= value <= _MAX_INTEGER:
            value = str(value)
        if type(value) is not str or not value:
            return None
        texts.append(value)
    return texts


def parsed_objects(data: bytes) -> list[dict[str, Any]] | None:
    """Return the objects of the lines, or None if a line is not exactly one object."""
    try:
        values = orjson.loads(b"[%b]" % data.removesuffix(b"\n").replace(b"\n", _BETWEEN))
    except orjson.JSONDecodeError:
        return None
    records, marks = values[::2], values[1::2]
    are_lines = len(values) % 2 == 1 and marks.count(_MARK) == len(marks)
    return records if are_lines and set(map(type, records)) == {dict} else None


def may_be_deep(data: bytes, num_objects: int) -> bool:
    """Return whether an object of the lines may be nested too deeply for orjson to write the object again.

    Args:
        data: Lines.
        num_objects: Number of objects, one on each line.
    """
    characters = np.frombuffer(data, np.uint8)
    is_open = (characters | _BRACE_BIT) == _OPEN
    # Each line has at least one brace. So a line has at most the brackets of the block, less one for each other line.
    if np.count_nonzero(is_open) - num_objects < MAX_DEPTH:
        return False
    line_ends = np.flatnonzero(characters == _NEWLINE)
    num_brackets = np.diff(
        np.searchsorted(np.flatnonzero(is_open), line_ends), prepend=0, append=np.count_nonzero(is_open)
    )
    return bool(num_brackets.max() > MAX_DEPTH)
