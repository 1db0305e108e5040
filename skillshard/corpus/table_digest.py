"""Digest of the rows of a table, column by column, so that no row becomes Python objects only to be hashed.

Each column has two hashes: one over the sizes or the presence of the values, and one over the bytes of the values. Both go over all rows, so
the digest does not depend on row groups, batches or dictionaries. Tags of earlier versions have another digest, which hashes each row as JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import xxhash

PREFIX = "columns:"
"""Beginning of the digests of this module. A digest of JSON rows has hexadecimal digits alone."""
Kind = Literal["bytes", "integer", "float", "boolean", "null", "json"]
_MISSING = -1


def is_by_columns(digest: str) -> bool:
    """Return whether a digest is of this module.

    >>> is_by_columns("columns:d48a"), is_by_columns("d48a")
    (True, False)
    """
    return digest.startswith(PREFIX)


class TableDigest:
    """Digest of all batches of a stretch of a table."""

    def __init__(self) -> None:
        self._columns: dict[str, tuple[Kind, xxhash.xxh3_128, xxhash.xxh3_128]] = {}
        self._num_rows = 0

    def update(self, batch: pa.RecordBatch, values: Mapping[str, Sequence[Any]]) -> None:
        """Add the rows of a batch.

        Args:
            batch: Rows. The columns of the first batch are the columns of every batch.
            values: Name of each column that is read -> JSON values. Only columns without a kind of their own (`kind_of`) need values.
        """
        self._num_rows += batch.num_rows
        for name, column_values in values.items():
            column = batch.column(name)
            kind = kind_of(column.type)
            _, sizes, content = self._columns.setdefault(name, (kind, xxhash.xxh3_128(), xxhash.xxh3_128()))
            for hasher, data in zip((sizes, content), _bytes_of(column, kind, column_values), strict=True):
                hasher.update(data)

    def hexdigest(self) -> str:
        """Return the digest, which begins with `PREFIX`."""
        columns = [
            [name, kind, sizes.hexdigest(), content.hexdigest()]
            for name, (kind, sizes, content) in self._columns.items()
        ]
        return PREFIX + xxhash.xxh3_128_hexdigest(orjson.dumps([self._num_rows, columns]))


def kind_of(type: pa.DataType) -> Kind:
    """Return the way in which the values of a type are hashed. The width of a number and the size of an offset do not matter.

    >>> kind_of(pa.int16()), kind_of(pa.dictionary(pa.int8(), pa.string())), kind_of(pa.list_(pa.string()))
    ('integer', 'bytes', 'json')
    """
    types = pa.types
    if types.is_dictionary(type):
        kind = kind_of(type.value_type)
        return kind if kind == "bytes" else "json"
    if types.is_string(type) or types.is_large_string(type) or types.is_binary(type) or types.is_large_binary(type):
        return "bytes"
    if types.is_uint64(type):  # may be beyond the other integers
        return "json"
    if types.is_integer(type):
        return "integer"
    if types.is_float32(type) or types.is_float64(type):
        return "float"
    if types.is_boolean(type):
        return "boolean"
    return "null" if types.is_null(type) else "json"


def decoded(column: pa.Array) -> pa.Array:
    """Return a column without its dictionary."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _bytes_of(column: pa.Array, kind: Kind, values: Sequence[Any]) -> tuple[Any, Any]:
    """Return the sizes or the presence of the values of a column, and the bytes of the values."""
    if kind == "json":
        written = [orjson.dumps(value, default=repr) for value in values]
        return np.array(list(map(len, written)), "<i8"), b"".join(written)
    if kind == "bytes":
        return _sizes_and_bytes(decoded(column))
    is_valid = np.asarray(column.is_valid(), np.uint8)
    if kind == "null":
        return is_valid, b""
    if column.null_count:
        column = column.fill_null(0 if kind != "boolean" else False)
    width = {"integer": "<i8", "float": "<f8", "boolean": "u1"}[kind]
    return is_valid, np.ascontiguousarray(column.to_numpy(zero_copy_only=False), width)


def _sizes_and_bytes(column: pa.Array) -> tuple[np.ndarray, Any]:
    is_valid = np.asarray(column.is_valid()) if column.null_count else None
    # A null may have bytes of its own, which are no part of the values.
    offsets, content = bytes_and_offsets(column.drop_null() if column.null_count else column)
    sizes = np.diff(offsets).astype("<i8")
    if is_valid is None:
        return sizes, content
    all_sizes = np.full(len(column), _MISSING, "<i8")
    all_sizes[is_valid] = sizes
    return all_sizes, content


def bytes_and_offsets(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets of strings without nulls, one more than strings, in the bytes of all strings, and the bytes."""
    types = pa.types
    is_large = types.is_large_string(column.type) or types.is_large_binary(column.type)
    _, offset_buffer, data = column.buffers()
    if offset_buffer is None or not len(column):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    width = np.dtype(np.int64 if is_large else np.int32)
    # The buffer may be longer than the offsets, and its size need not be a multiple of the width.
    offsets = np.frombuffer(offset_buffer, width, len(column) + 1, column.offset * width.itemsize)
    if data is None:
        return offsets - offsets[0], np.zeros(0, np.uint8)
    return offsets - offsets[0], np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
