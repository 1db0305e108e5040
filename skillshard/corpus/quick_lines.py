"""Read a block of ordinary JSON lines at once. A block with any line that needs a closer look is left to lines.py.

The lines become one JSON array, so the parser is called once for a block, and the lines are never cut apart. The checks look at the block as a
whole too.
"""

import secrets
from itertools import chain
from typing import Any

import orjson

from skillshard.corpus.mapping import RowFields
from skillshard.corpus.sample import MAX_DEPTH, Rejection, Sample, long_digit_runs
from skillshard.repeated_keys import may_repeat_keys

# The mark stands between two lines. A file cannot know the mark, so a line that ends in the middle of a value, or holds two values, always
# puts a mark into a value, or a value into the place of a mark. The newline stays, because JSON does not allow a newline in a string.
_MARK = secrets.token_hex(16)
_BETWEEN = f'\n,"{_MARK}",'.encode()
_SCALARS = frozenset((str, int, float, bool, type(None)))
_VALUES = _SCALARS | {dict}


def quick_samples(data: bytes, fields: RowFields) -> list[Sample | Rejection] | None:
    """Return the samples of a block of lines, or None if a line needs a closer look: a fault, an unusual value or an empty line.

    Args:
        data: Whole lines.
        fields: Field mapping that names two keys (`RowFields.is_quick`).
    """
    id_field, text_field, name = fields.id_field, fields.text_field, fields.name
    # An integer of more than 64 bits is parsed in another way.
    if id_field is None or long_digit_runs(data):
        return None
    records = parsed_objects(data)
    if records is None or may_repeat_keys(data, records) or _may_be_deep(data, records):
        return None
    samples: list[Sample | Rejection] = []
    add = samples.append
    for record in records:
        sample_id, text = record.pop(id_field, None), record.pop(text_field, None)
        if type(sample_id) is not str:
            if type(sample_id) is not int:
                return None
            sample_id = str(sample_id)
        if type(text) is not str or not text or not sample_id or text.isspace():
            return None
        meta = record["meta"] if len(record) == 1 and type(record.get("meta")) is dict else record
        add(Sample(sample_id, text, meta, name))
    return samples


def parsed_objects(data: bytes) -> list[dict[str, Any]] | None:
    """Return the objects of the lines, or None if a line is not exactly one object."""
    try:
        values = orjson.loads(b"[%b]" % data.removesuffix(b"\n").replace(b"\n", _BETWEEN))
    except orjson.JSONDecodeError:
        return None
    records, marks = values[::2], values[1::2]
    are_lines = len(values) % 2 == 1 and marks.count(_MARK) == len(marks)
    return records if are_lines and set(map(type, records)) == {dict} else None


def _may_be_deep(data: bytes, records: list[dict[str, Any]]) -> bool:
    """Return whether an object may be nested so deeply that orjson cannot write it again."""
    values = list(chain.from_iterable(map(dict.values, records)))
    inner = chain.from_iterable(value.values() for value in values if type(value) is dict)
    if _VALUES.issuperset(map(type, values)) and _SCALARS.issuperset(map(type, inner)):
        return False
    # Each line has at least one brace. So a line has at most the brackets of the block, less one for each other line.
    return data.count(b"{") + data.count(b"[") - len(records) >= MAX_DEPTH
