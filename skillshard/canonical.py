"""The canonical JSON form of records, and digests. Neither may ever change, because records on disk name each other by digests."""

import mmap
import os
import re
from collections.abc import Iterable
from typing import Any

import orjson
import xxhash
from pydantic import ValidationError

from skillshard.errors import StorageError
from skillshard.repeated_keys import repeated_key

_NOT_A_NUMBER = re.compile(r"-?(NaN|Infinity)")


def to_json(value: Any) -> bytes:
    """Write a value as JSON with sorted keys, an indent of two, and a newline at the end. Equal values give equal bytes."""
    return orjson.dumps(
        value,
        option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY,
    )


def from_json(data: bytes, place: str | os.PathLike[str]) -> Any:
    """Parse JSON.

    Raises:
        StorageError: The bytes are not JSON, or a key stands twice in one object. The message names `place`.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        fault = (
            f": {explain(error)}."
            if is_beyond(error)
            else f" is not valid JSON ({explain(error)}). It is damaged or edited."
        )
        raise StorageError(f"{os.fspath(place)}{fault}") from error
    if (key := repeated_key(data, value)) is not None:
        raise StorageError(
            f"{os.fspath(place)}: the key {key!r} stands twice in one object. Keep one of the two values."
        )
    return value


def is_beyond(error: orjson.JSONDecodeError) -> bool:
    """Whether the fault in JSON is a number beyond the range of 64-bit floats."""
    return "infinity" in error.msg


def explain(error: orjson.JSONDecodeError) -> str:
    """Describe a fault in JSON and its place. Python and pandas write NaN and Infinity, which JSON does not allow.

    >>> try:
    ...     orjson.loads('{"n": -Infinity}')
    ... except orjson.JSONDecodeError as error:
    ...     print(explain(error))
    -Infinity is no JSON value, write null in its place: column 7
    """
    if is_beyond(error):
        where = _place(error.lineno, error.colno)
        return f"a number at {where} is beyond those that are read, from -1.8e308 to 1.8e308"
    for start in (error.pos - 1, error.pos):
        if constant := _NOT_A_NUMBER.match(error.doc, max(0, start)):
            column = error.colno - (error.pos - constant.start())
            return f"{constant[0]} is no JSON value, write null in its place: {_place(error.lineno, column)}"
    return f"{error.msg}: {_place(error.lineno, error.colno)}"


def _place(line: int, column: int) -> str:
    """Return the place in JSON. A row of JSON lines has one line, and its number in the file is another one."""
    return f"column {column}" if line == 1 else f"line {line} column {column}"


def first_fault(error: ValidationError) -> str:
    """Describe the first fault of a JSON file that does not fit its model, with the position of the fault in the file."""
    # Without the link to pydantic's documentation and without the class of the error, which mean nothing to a user.
    fault = error.errors(include_url=False)[0]
    sentence = fault["msg"].removeprefix("Value error, ")
    where = ".".join(map(str, fault["loc"]))
    got = f", got {fault['input']!r}" if isinstance(fault["input"], str | int | float) else ""
    return f"{where}: {sentence}{got}" if where else sentence


def digest(data: bytes | memoryview | mmap.mmap) -> str:
    """Return the digest of content that every artefact uses: xxh3, 128 bits, in hex. The digest detects damage, not forgery.

    >>> digest(b"skill")
    'd48a3536c201ca8e3ea8a9b7351e5067'
    """
    # xxh3 is stable since version 0.8 of xxhash. With SHA-256 the writing of shards would take a quarter more time.
    return xxhash.xxh3_128_hexdigest(data)


def digest_of(pieces: Iterable[bytes | memoryview]) -> str:
    """Return the `digest` of bytes that come in pieces.

    >>> digest_of([b"sk", b"ill"]) == digest(b"skill")
    True
    """
    hasher = xxhash.xxh3_128()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()
