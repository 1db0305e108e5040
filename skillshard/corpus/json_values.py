"""Parse JSON into values that are exact, and JSON that stands in a string.

orjson turns integers of more than 64 bits into floats, and reads deeper nesting than orjson writes. A check of each value would cost a third
of the reading time. So the bytes of a line are checked first, and the values only if the bytes give a reason.
"""

import json
import math
import re
from typing import Any

import numpy as np
import orjson

from skillshard.canonical import explain, is_beyond
from skillshard.corpus.bad_record import BadRecord, Reason
from skillshard.repeated_keys import repeated_key

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


def opened(value: Any) -> Any:
    """Return the object or the array that a string holds as JSON, and every other value unchanged.

    Tables often hold JSON in a column of strings. Other strings, also strings with a number or a quoted text, stay strings.

    >>> opened('{"topic": "law"}'), opened(' [1, 2]'), opened("[sic]"), opened("12"), opened([1])
    ({'topic': 'law'}, [1, 2], '[sic]', '12', [1])
    """
    if type(value) is not str or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return parse_json(value.encode())
    except (ValueError, BadRecord):  # not JSON, or JSON that a row could not hold either
        return value
