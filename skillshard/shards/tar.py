"""Members of a tar in the USTAR format. NumPy computes the header fields of thousands of members at a time.

Plain `tar`, `webdataset` and Python's `tarfile` read the result. Every field except name, size and checksum is constant (mode 644,
owner 0, mtime 0), so equal samples give equal bytes.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from skillshard.shards.manifest import END_BYTES, TAR_BLOCK

END_OF_ARCHIVE = bytes(END_BYTES)
KEY_DIGITS = 16  # 8 of the shard and 8 of the row
_ROWS_AT_ONCE = 4096  # 4 MB of headers
_BYTES_AT_ONCE = 16 << 20  # a chunk is a copy of its samples
Bytes = bytes | memoryview
_MAGIC = np.frombuffer(b"ustar", np.uint8)
_MAX_MEMBER_BYTES = 8**11 - 1  # the field of the size has 11 octal digits


def members(key: int, contents: Sequence[Bytes], suffix: bytes) -> Iterator[bytes]:
    """Yield the bytes of neighbouring members `KEY` + `suffix`, in chunks.

    Args:
        key: Key of the first member. The keys rise by 1.
        contents: Content of each member.
        suffix: End of the names.
    """
    start = 0
    for stop in stops_of(map(len, contents), len(contents)):
        batch = contents[start:stop]
        sizes = np.array([len(content) for content in batch])
        of_batch = headers(np.arange(key + start, key + stop), suffix, sizes)
        pieces: list[Bytes] = []
        for row, content in enumerate(batch):
            pieces += (of_batch[row * TAR_BLOCK : (row + 1) * TAR_BLOCK], content, padding(len(content)))
        yield b"".join(pieces)
        start = stop


def stops_of(sizes: Iterable[int], num: int) -> Iterator[int]:
    """Yield the ends of chunks of samples: after `_ROWS_AT_ONCE` samples, or after about `_BYTES_AT_ONCE` bytes of long texts.

    Args:
        sizes: Bytes of each sample.
        num: Number of samples.
    """
    start = num_bytes = 0
    for stop, size in enumerate(sizes, start=1):
        num_bytes += size
        if stop - start == _ROWS_AT_ONCE or num_bytes >= _BYTES_AT_ONCE or stop == num:
            yield stop
            start, num_bytes = stop, 0


def padding(num_bytes: int) -> bytes:
    """Return the zeros that fill the last block of a member."""
    return _PADS[-num_bytes % TAR_BLOCK]


def headers(
    keys: Int[np.ndarray, " row"], suffix: bytes, sizes: Int[np.ndarray, " row"], *, folder: bytes = b""
) -> bytes:
    """Return the USTAR headers of members `folder` + `KEY` + `suffix`, 512 bytes each.

    Raises:
        ValueError: A member is larger than the header can say.

    >>> len(headers(np.array([7]), b".txt", np.array([3])))
    512
    """
    if len(sizes) and int(sizes.max()) > _MAX_MEMBER_BYTES:
        raise ValueError(
            f"a tar member may have at most {_MAX_MEMBER_BYTES:,} bytes, but the largest has {int(sizes.max()):,}"
        )
    # Offsets of the fields by POSIX: name 0, size 124, checksum 148.
    block = np.tile(np.frombuffer(_template(folder, suffix), np.uint8), (len(keys), 1))
    block[:, len(folder) : len(folder) + KEY_DIGITS] = _digits(keys, KEY_DIGITS, 10)
    block[:, 124:135] = _digits(sizes, 11, 8)
    # The checksum counts its own field as spaces, as the template has the field, so the sum comes before the digits.
    block[:, 148:154] = _digits(block.sum(axis=1, dtype=np.int64), 6, 8)
    block[:, 154:156] = (0, ord(" "))
    return block.tobytes()


def blocks_of(data: Bytes) -> UInt8[np.ndarray, "block 512"]:
    """Return a tar as an array of blocks, so that NumPy compares all headers in a few operations."""
    return np.frombuffer(data, np.uint8).reshape(-1, TAR_BLOCK)


def member_sizes(blocks: UInt8[np.ndarray, "row 512"]) -> Int[np.ndarray, " row"]:
    """Return the member size in each header, or -1 for a block that is not a header of this module."""
    # Not the checksum: the digest of the tar covers all bytes. The check only shows whether the index points at a header.
    digits = blocks[:, 124:135].astype(np.int64) - ord("0")
    sizes = digits @ (8 ** np.arange(10, -1, -1))
    is_header = (digits >= 0).all(axis=1) & (digits < 8).all(axis=1) & (blocks[:, 257:262] == _MAGIC).all(axis=1)
    return np.where(is_header, sizes, -1)


def _template(folder: bytes, suffix: bytes) -> bytes:
    fields = bytearray(TAR_BLOCK)
    for start, value in (
        (0, folder),
        (len(folder) + KEY_DIGITS, suffix),
        (100, b"0000644\0"),  # mode
        (108, b"0000000\0"),  # user
        (116, b"0000000\0"),  # group
        (136, b"00000000000\0"),  # modification time
        (148, b" " * 8),  # checksum
        (156, b"0"),  # type: a regular file
        (257, b"ustar\x0000"),  # magic and version
    ):
        fields[start : start + len(value)] = value
    return bytes(fields)


def _digits(values: Int[np.ndarray, " row"], width: int, base: int) -> UInt8[np.ndarray, "row width"]:
    powers = base ** np.arange(width - 1, -1, -1)
    return (values[:, None] // powers % base + ord("0")).astype(np.uint8)


_PADS = [bytes(length) for length in range(TAR_BLOCK)]
