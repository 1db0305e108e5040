"""Find a key that stands twice in one object of JSON. Parsers keep the last value of such a key and lose the others.

No fast parser reports a repeated key, so keys are counted: JSON without a repeated key has as many keys as the parsed value. The count of
keys in the bytes is an upper bound, which most often is exact. Only JSON with a larger bound is scanned string by string.
"""

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Int

_Places = Int[np.ndarray, " place"]
_Ends = Int[np.ndarray, " end"]

# A string with the colon that makes it a key, or the begin or end of an object. Braces in strings belong to the string.
_TOKEN = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"([ \t\r\n]*:)?|([{}])', re.DOTALL)
COLON = b":"[0]
_QUOTE, _BACKSLASH, _SPACE = b'"\\ '
_MAX_SPACES = 100
"""Number of spaces before a colon that are looked through. After more spaces, the colon counts as the colon of a key."""
# Only spaces, or a quotation mark that is not escaped, before the spaces at the end.
_ENDS = re.compile(rb'(?:\A|(?:\A|[^\\]|\\\\)")[ \t\r\n]*\Z')
_CONTAINERS = (dict, list)


def repeated_key(data: bytes, value: Any) -> str | None:
    """Return the first key that stands twice in one object, or None.

    Args:
        data: Valid JSON.
        value: The same JSON, parsed.

    >>> text = b'{"a": 1, "b": {"a": 2}, "a": 3}'
    >>> repeated_key(text, json.loads(text))
    'a'
    """
    if type(value) is not dict and type(value) is not list:
        return None
    num = num_keys(value)
    has_no_more = num == data.count(b":") or not may_have_more_keys(data, _colons(data), num)
    return None if has_no_more else _scanned(data)


def repeated_keys(data: bytes, lines: Sequence[bytes], values: Sequence[Any]) -> dict[int, str]:
    """Return the number of each line with a key that stands twice in one object, and the first such key of the line.

    Args:
        data: JSON lines.
        lines: The same lines, split.
        values: The same lines, parsed. The value of a line that is not JSON has another type than values of JSON.

    >>> lines = [b'{"a": 1}', b'{"a": 2, "a": 3}']
    >>> repeated_keys(b"\\n".join(lines), lines, [json.loads(line) for line in lines])
    {1: 'a'}
    """
    colons = _colons(data)
    if not _may_repeat_keys(data, colons, values):
        return {}
    ends = np.sort(np.concatenate([_unspaced_ends(data, colons), _spaced_ends(data, colons)]))
    line_ends = np.cumsum([len(line) + 1 for line in lines])
    ends_by_line = np.diff(np.searchsorted(ends, line_ends), prepend=0).tolist()
    repeated = {}
    for number, (value, num_ends) in enumerate(zip(values, ends_by_line, strict=True)):
        is_suspect = type(value) in _CONTAINERS and num_keys(value) < num_ends
        if is_suspect and (key := _scanned(lines[number])) is not None:
            repeated[number] = key
    return repeated


def may_repeat_keys(data: bytes, values: Sequence[Any]) -> bool:
    """Return whether a key may stand twice in an object of some lines. False is certain.

    >>> may_repeat_keys(b'{"a": 1}', [{"a": 1}]), may_repeat_keys(b'{"a": 2, "a": 3}', [{"a": 3}])
    (False, True)
    """
    return _may_repeat_keys(data, _colons(data), values)


def may_have_more_keys(data: bytes, colons: _Places, num_keys: int) -> bool:
    """Return whether valid JSON may have more keys than a number. False is certain.

    Args:
        data: Valid JSON.
        colons: Places of all colons in the JSON.
        num_keys: Number of different keys, which the JSON has at least.

    >>> may_have_more_keys(b'{"a": 1}', np.array([4]), 1), may_have_more_keys(b'{"a": 1, "a": 2}', np.array([4, 12]), 1)
    (False, True)
    """
    before = np.frombuffer(data, np.uint8)[colons - 1]
    if np.count_nonzero(before == _QUOTE) == num_keys and not np.count_nonzero(before <= _SPACE):
        return False
    return len(_unspaced_ends(data, colons)) + len(_spaced_ends(data, colons)) != num_keys


def _may_repeat_keys(data: bytes, colons: _Places, values: Sequence[Any]) -> bool:
    if not may_have_more_keys(data, colons, _num_shallow_keys(values)):
        return False
    return may_have_more_keys(data, colons, sum(map(num_keys, values)))


def num_keys(value: Any) -> int:
    """Count the keys of all objects in a parsed value.

    >>> num_keys({"a": [{"b": 1}, 2], "c": {"d": {}}})
    4
    """
    count, containers = 0, [value]
    for container in containers:  # no recursion, because a deep value would exceed Python's stack
        if type(container) is dict:
            count += len(container)
            container = container.values()
        elif type(container) is not list:
            continue
        containers += [inner for inner in container if type(inner) in _CONTAINERS]
    return count


def _num_shallow_keys(values: Sequence[Any]) -> int:
    """Count the keys of objects, and of the objects that are values of the objects."""
    # A line costs no call of a Python function here, because every line of a corpus passes.
    objects = [value for value in values if type(value) is dict]
    inner = [value for value in chain.from_iterable(map(dict.values, objects)) if type(value) is dict]
    return sum(map(len, objects)) + sum(map(len, inner))


def _colons(data: bytes) -> _Places:
    """Return the places of the colons. One pass of NumPy over single characters is faster than `bytes.count` of two characters."""
    return np.flatnonzero(np.frombuffer(data, np.uint8) == COLON)


def _unspaced_ends(data: bytes, colons: _Places) -> _Ends:
    """Return the places of the quotation marks that may end a key, with a colon next to them.

    A mark after one backslash belongs to the string. After two backslashes or more, the mark counts as the end of the string.

    >>> text = b'{"a": "x: y", "b": ":"}, {"c": "He said \\\\"no\\\\": I"}'
    >>> _unspaced_ends(text, _colons(text)).tolist()
    [3, 16, 19, 28]
    """
    characters = np.frombuffer(data, np.uint8)
    quotes = colons[characters[colons - 1] == _QUOTE] - 1
    is_escaped = (characters[quotes - 1] == _BACKSLASH) & (characters[quotes - 2] != _BACKSLASH)
    return quotes[~is_escaped]


def _spaced_ends(data: bytes, colons: _Places) -> _Ends:
    """Return the places of the white space before the colons that may end a key.

    >>> text = b'{"a" : "x : y", "b"  : 1}'
    >>> _spaced_ends(text, _colons(text)).tolist()
    [4, 20]
    """
    characters = np.frombuffer(data, np.uint8)
    # JSON has no other characters up to the space than white space.
    spaces = colons[characters[colons - 1] <= _SPACE] - 1
    # Many texts have a space before a colon. Only few have a quotation mark or more spaces before the space.
    before = characters[spaces - 1]
    spaces = spaces[(before == _QUOTE) | (before <= _SPACE)]
    is_end = [_ENDS.search(data[max(0, space - _MAX_SPACES) : space]) is not None for space in spaces.tolist()]
    return spaces[np.array(is_end, dtype=bool)]


def _scanned(data: bytes) -> str | None:
    """Return the first key that stands twice in one object of valid JSON, or None."""
    open_objects: list[set[str]] = []
    for token in _TOKEN.finditer(data):
        string, colon, brace = token.groups()
        if brace == b"{":
            open_objects.append(set())
        elif brace == b"}":
            open_objects.pop()
        elif colon:
            key = json.loads(b'"%b"' % string) if b"\\" in string else string.decode()
            if key in open_objects[-1]:
                return key
            open_objects[-1].add(key)
    return None
