"""Read a block of ordinary JSON lines whose metadata stays JSON, because `shard` writes the metadata as JSON again.

The first line shows the keys. The parser then finds the raw piece of each value, and the lines put together again from these pieces must be the
block. So each line is one object with the same keys in the same order, and no key stands twice. Ids, texts and metadata are then parsed as
three arrays, which checks every value. A block with any other line is left to quick_lines.py.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import msgspec
import orjson

from skillshard.corpus.columns import META, SampleJsons
from skillshard.corpus.json_values import long_digit_runs
from skillshard.corpus.quick_lines import may_be_deep, strings
from skillshard.repeated_keys import may_repeat_keys

# A block that is refused is parsed twice. Files whose blocks are refused more often than this, and more often than not, are left alone.
_MAX_REFUSALS = 6
_MAX_KEYS = 256  # a type with more fields takes long to make, and the keys are probably data
# The colon and the comma that orjson writes, and those of Python's own module.
_COMPACT, _SPACED = (b":", b","), (b": ", b", ")


class LineJsons:
    """Reader of blocks of JSON lines with the metadata as JSON.

    Args:
        id_field, text_field: Two different keys.
    """

    def __init__(self, id_field: str, text_field: str) -> None:
        self._names = (id_field, text_field)
        self._shape: tuple[list[str], bool] = ([], False)
        self._form: _Form | None = None
        self._num_read = self._num_refused = 0

    def read(self, data: bytes, file: str) -> SampleJsons | None:
        """Return the samples of whole lines of a file, or None if a line needs a closer look, or has other keys than the first line."""
        if self._num_refused > _MAX_REFUSALS + self._num_read:
            return None
        form = self._form_of(data[: data.find(b"\n") + 1] or data)
        samples = None if form is None else form.read(data, file)
        if samples is None:
            self._num_refused += 1
        else:
            self._num_read += 1
        return samples

    def _form_of(self, line: bytes) -> "_Form | None":
        """Return the form of lines like a first line."""
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            return None
        if type(record) is not dict or not record:
            return None
        keys = list(record)
        shape = (keys, line.startswith(b"{" + orjson.dumps(keys[0]) + _SPACED[0]))
        if shape != self._shape:
            self._shape, self._form = shape, _form(*shape, *self._names)
        return self._form


def _form(keys: Sequence[str], is_spaced: bool, id_field: str, text_field: str) -> "_Form | None":
    """Return the form of lines with some keys, or None if the parser knows no such keys."""
    if id_field not in keys or text_field not in keys or len(keys) > _MAX_KEYS:
        return None
    try:
        return _Form(keys, id_field, text_field, *(_SPACED if is_spaced else _COMPACT))
    except ValueError:  # quotation marks, backslashes or control characters
        return None


class _Form:
    """Form of lines: the keys in their order, with a certain colon and comma.

    Args:
        keys: Keys.
        id_field, text_field: Two of the keys.
        colon, comma: Separators.
    """

    def __init__(self, keys: Sequence[str], id_field: str, text_field: str, colon: bytes, comma: bytes) -> None:
        names = [f"_{number}" for number in range(len(keys))]
        fields = [(name, msgspec.Raw, msgspec.field(name=key)) for name, key in zip(names, keys, strict=True)]
        # A line with a further key is refused by the parser, before the lines are put together again.
        row_type = msgspec.defstruct("Row", fields, forbid_unknown_fields=True, gc=False)
        self._decoder = msgspec.json.Decoder(row_type)
        self._getters = [attrgetter(name) for name in names]
        self._between = _between(keys, colon, comma, b"}\n")
        self._id, self._text = keys.index(id_field), keys.index(text_field)
        self._rest = [number for number in range(len(keys)) if number not in (self._id, self._text)]
        others = [keys[number] for number in self._rest]
        self._is_inner = others == [META]
        self._between_rest = _between(others, *_COMPACT, b"}\n")

    def read(self, data: bytes, file: str) -> SampleJsons | None:
        try:
            rows = self._decoder.decode_lines(data)
            values = [list(map(getter, rows)) for getter in self._getters]
            lines = _interleaved(self._between, values)
            if lines != data and lines[:-1] != data:
                return None
            # The joined values are parsed here, so the checks of the parser cover every byte of the values.
            parsed_ids, texts = _parsed(values[self._id]), _parsed(values[self._text])
            if self._is_inner:
                (raw_metas,) = (values[number] for number in self._rest)
                metas = b"\n".join(raw_metas)
            else:
                metas = _interleaved(self._between_rest, [values[number] for number in self._rest], len(rows))[:-1]
            meta_jsons = _canonical(metas, len(rows))
        except (msgspec.DecodeError, orjson.JSONDecodeError, orjson.JSONEncodeError):
            return None
        ids = strings(parsed_ids)
        if ids is None or meta_jsons is None or may_be_deep(data, len(rows)):
            return None
        if set(map(type, texts)) != {str} or not all(texts) or any(map(str.isspace, texts)):
            return None
        if not len(ids) == len(texts) == len(rows):
            return None
        return SampleJsons(ids, texts, list(map(orjson.dumps, ids)), meta_jsons, file)


def _between(keys: Sequence[str], colon: bytes, comma: bytes, end: bytes) -> list[bytes]:
    """Return the bytes before each value of an object with some keys, and the bytes after the last value.

    >>> _between(["a", "b"], b":", b",", b"}")
    [b'{"a":', b',"b":', b'}']
    """
    begins = [orjson.dumps(key) + colon for key in keys]
    return [(comma if number else b"{") + begin for number, begin in enumerate(begins)] + [end if keys else b"{" + end]


def _interleaved(between: Sequence[bytes], values: Sequence[list[Any]], num_rows: int | None = None) -> bytes:
    """Return objects one after the other.

    Args:
        between: Bytes before each value of an object, and after the last value.
        values: Values of the first key of all objects, then of the second key, and so on.
        num_rows: Number of objects. None: the number of values of the first key.

    >>> _interleaved([b'{"a":', b"}"], [[b"1", b"2"]])
    b'{"a":1}{"a":2}'
    """
    num_rows = len(values[0]) if num_rows is None else num_rows
    row: list[Any] = [None] * (2 * len(values) + 1)
    row[::2] = between
    pieces = row * num_rows
    for number, column in enumerate(values):
        pieces[2 * number + 1 :: len(row)] = column
    return b"".join(pieces)


def _parsed(values: list[Any]) -> list[Any]:
    parsed: list[Any] = orjson.loads(b"[%b]" % b",".join(values))
    return parsed


def _canonical(metas: bytes, num: int) -> list[bytes] | None:
    """Return JSON objects as orjson writes them, or None if a value is no object or needs a closer look.

    Args:
        metas: Objects, one on each line.
        num: Number of objects.

    >>> _canonical(b'{"a":1}\\n{"b": 2}', 2), _canonical(b'{"a": 1, "a": 2}', 1)
    ([b'{"a":1}', b'{"b":2}'], None)
    """
    array = b"[%b]" % metas.replace(b"\n", b",")
    values = orjson.loads(array)
    # A newline within a value is white space, and the value then stands on two lines.
    if len(values) != num or metas.count(b"\n") != num - 1 or set(map(type, values)) != {dict}:
        return None
    # What orjson writes in the same way repeats no key, and has no integer of more than 64 bits.
    if orjson.dumps(values) == array:
        return metas.split(b"\n")
    if long_digit_runs(array) or may_repeat_keys(array, values):
        return None
    return list(map(orjson.dumps, values))
