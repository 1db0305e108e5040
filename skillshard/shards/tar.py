"""Members of a tar in the USTAR format. NumPy computes the header fields of thousands of members at a time.

Plain `tar`, `webdataset` and Python's `tarfile` read the result. Every field except name, size and checksum is constant (mode 644,
owner 0, mtime 0), so equal samples give equal bytes.
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt8, UInt32

from skillshard.shards.contents import array_of, sizes_of
from skillshard.shards.manifest import END_BYTES, TAR_BLOCK, whole_blocks

END_OF_ARCHIVE = bytes(END_BYTES)
KEY_DIGITS = 16  # 8 of the shard and 8 of the row
Bytes = bytes | memoryview
_MAGIC = np.frombuffer(b"ustar", np.uint8)
_SIZE_DIGITS = 11
_MAX_MEMBER_BYTES = 8**_SIZE_DIGITS - 1
_CHECKSUM_DIGITS = 6
# Four digits are looked up together, so that no digit needs a division of its own.
_DECIMALS = (np.arange(10_000)[:, None] // (1000, 100, 10, 1) % 10 + ord("0")).astype(np.uint8).view("<u4")[:, 0]
"""The four digits of each number below 10,000, as the bytes of an integer."""
_OCTALS = (np.arange(8**4)[:, None] // (512, 64, 8, 1) % 8 + ord("0")).astype(np.uint8).view("<u4")[:, 0]
"""The four octal digits of each number below 8**4, as the bytes of an integer."""


def pieces(
    keys: Int[np.ndarray, " row"], contents: pa.LargeBinaryArray, suffix: bytes
) -> tuple[pa.LargeBinaryArray, pa.LargeBinaryArray, pa.LargeBinaryArray]:
    """Return the headers, the contents and the padding of members `KEY` + `suffix`.

    Joined (`contents.joined`), the pieces are the bytes of the members.

    Args:
        keys: Key of each member.
        contents: Content of each member.
        suffix: End of the names.
    """
    sizes = sizes_of(contents)
    header_bytes = np.full(len(keys), TAR_BLOCK)
    pad_bytes = whole_blocks(sizes) - sizes
    padding_of_all = np.zeros(int(pad_bytes.sum()), np.uint8)
    return array_of(headers(keys, suffix, sizes), header_bytes), contents, array_of(padding_of_all, pad_bytes)


def padding(num_bytes: int) -> bytes:
    """Return the zeros that fill the last block of a member."""
    return bytes(-num_bytes % TAR_BLOCK)


def headers(
    keys: Int[np.ndarray, " row"], suffix: bytes, sizes: Int[np.ndarray, " row"], *, folder: bytes = b""
) -> UInt8[np.ndarray, " byte"]:
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
    template = np.frombuffer(_template(folder, suffix), np.uint8)
    block = np.empty((len(keys), TAR_BLOCK), np.uint8)
    block[:] = template
    key_digits, size_digits = _digits(keys, 10**4, _DECIMALS, KEY_DIGITS), _digits(sizes, 8**4, _OCTALS, _SIZE_DIGITS)
    block[:, len(folder) : len(folder) + KEY_DIGITS] = key_digits
    block[:, 124 : 124 + _SIZE_DIGITS] = size_digits
    # The checksum counts its own field as spaces, as the template has the field. The fields of the digits are zero in the template.
    checksums = int(template.sum(dtype=np.int64)) + _row_sums(key_digits) + _row_sums(size_digits)
    block[:, 148 : 148 + _CHECKSUM_DIGITS] = _digits(checksums, 8**4, _OCTALS, _CHECKSUM_DIGITS)
    block[:, 154:156] = (0, ord(" "))
    return block.ravel()


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


def _digits(
    values: Int[np.ndarray, " row"], base: int, table: UInt32[np.ndarray, " number"], num_digits: int
) -> UInt8[np.ndarray, "row digit"]:
    """Return the last digits of numbers, four at a time.

    Args:
        values: Numbers.
        base: Number of combinations of four digits.
        table: Digits of each number below the base, as the bytes of an integer.
        num_digits: Number of digits.

    >>> _digits(np.array([7, 123456]), 10**4, _DECIMALS, 6).tobytes()
    b'000007123456'
    """
    num_words = -(-num_digits // 4)
    words = np.empty((len(values), num_words), "<u4")
    for word in range(num_words - 1, -1, -1):
        higher = values // base  # a single divisor, because NumPy divides by many divisors one by one
        words[:, word] = table[values - higher * base]
        values = higher
    return words.view(np.uint8)[:, 4 * num_words - num_digits :]


def _row_sums(digits: UInt8[np.ndarray, "row digit"]) -> Int[np.ndarray, " row"]:
    return np.einsum("rd->r", digits, dtype=np.int64)
