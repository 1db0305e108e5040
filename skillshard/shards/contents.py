"""Contents of many samples in one buffer, as binary arrays of Arrow, which gathers and joins the contents without a Python object for each.

A contiguous array of Arrow has one buffer of bytes and the bounds of the values. So the order of the samples changes by one `take`, and the
pieces of many tar members become one stretch of bytes by one `binary_join_element_wise`.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

# A chunk is built and written while its bytes are in the caches of a CPU. With chunks of 256 kB, the steps of each chunk cost more than the
# caches save (docs/LOG.md).
CHUNK_BYTES = 1 << 19
"""Bytes of samples that are gathered together, about."""
_NOTHING = pa.scalar(b"", pa.large_binary())


def memory_of(num_bytes: int) -> np.ndarray:
    """Return memory without content, dtype uint8. NumPy asks for huge pages, which the kernel provides in a fifth of the time of a `bytearray`."""
    return np.empty(num_bytes, np.uint8)


class GrowingBytes:
    """Bytes that grow at the end, in memory of `memory_of`.

    Args:
        expected_bytes: Number of bytes that need no larger memory and thus no copy. The kernel provides only the pages that are written to.
    """

    def __init__(self, expected_bytes: int = CHUNK_BYTES) -> None:
        self._memory = memory_of(expected_bytes)
        self._num_bytes = 0

    def __len__(self) -> int:
        return self._num_bytes

    def append(self, data: memoryview) -> None:
        end = self._num_bytes + len(data)
        if end > len(self._memory):
            larger = memory_of(max(end, 2 * len(self._memory)))
            larger[: self._num_bytes] = self._memory[: self._num_bytes]
            self._memory = larger
        self._memory[self._num_bytes : end] = np.frombuffer(data, np.uint8)
        self._num_bytes = end

    def view(self) -> np.ndarray:
        """Return all bytes, dtype uint8, without a copy."""
        return self._memory[: self._num_bytes]


def array_of(
    data: bytes | bytearray | memoryview | np.ndarray, sizes: Int[np.ndarray, " value"]
) -> pa.LargeBinaryArray:
    """Return the neighbouring values of a buffer as an array, without a copy.

    Args:
        data: Bytes of all values, one after the other.
        sizes: Bytes of each value.

    >>> array_of(b"onetwo", np.array([3, 3])).to_pylist()
    [b'one', b'two']
    """
    bounds = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=bounds[1:])
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(sizes), [None, pa.py_buffer(bounds), pa.py_buffer(data)]
    )


def sizes_of(contents: pa.LargeBinaryArray) -> Int[np.ndarray, " value"]:
    """Return the bytes of each value."""
    return np.diff(_bounds(contents))


def bytes_of(contents: pa.LargeBinaryArray) -> memoryview:
    """Return the bytes of all values, one after the other, without a copy."""
    bounds = _bounds(contents)
    return memoryview(contents.buffers()[2])[bounds[0] : bounds[-1]]


def values_of(contents: pa.LargeBinaryArray) -> list[memoryview]:
    """Return each value, without a copy."""
    data = memoryview(contents.buffers()[2])
    return [data[start:stop] for start, stop in pairwise(_bounds(contents).tolist())]


def joined(columns: Sequence[pa.LargeBinaryArray]) -> memoryview:
    """Return the bytes of the first values of all columns, then of the second values, and so on.

    >>> bytes(joined([array_of(b"onetwo", np.array([3, 3])), array_of(b"12", np.array([1, 1]))]))
    b'one1two2'
    """
    return bytes_of(pc.binary_join_element_wise(*columns, _NOTHING))


def gathered(contents: pa.LargeBinaryArray, order: Int[np.ndarray, " value"]) -> Iterator[memoryview]:
    """Yield the bytes of the values in another order, in chunks.

    Args:
        contents: Values.
        order: Positions of the values.
    """
    start = 0
    for stop in stops_of(sizes_of(contents)[order]):
        yield bytes_of(contents.take(pa.array(order[start:stop])))
        start = stop


def stops_of(sizes: Int[np.ndarray, " value"]) -> Iterator[int]:
    """Yield the ends of chunks of values: a chunk ends with the value that reaches `CHUNK_BYTES`.

    Args:
        sizes: Bytes of each value.
    """
    ends = np.cumsum(sizes)
    stop = before = 0
    while stop < len(ends):
        stop = min(int(np.searchsorted(ends, before + CHUNK_BYTES)) + 1, len(ends))
        before = int(ends[stop - 1])
        yield stop


def _bounds(contents: pa.LargeBinaryArray) -> Int[np.ndarray, " bound"]:
    bounds = np.frombuffer(contents.buffers()[1], np.int64)
    return bounds[contents.offset : contents.offset + len(contents) + 1]
