"""Members of a tar in the USTAR format. NumPy computes the header fields of thousands of members at a time.

Plain `tar`, `webdataset` and Python's `tarfile` read the result. Every field except name, size and checksum is constant (mode 644,
owner 0, mtime 0), so equal samples give equal bytes.
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt8

from skillshard.shards.contents import array_of, sizes_of
from skillshard.shards.manifest import END_BYTES, TAR_BLOCK, whole_blocks

END_OF_ARCHIVE = bytes(END_BYTES)
KEY_DIGITS = 16  # 8 of the shard and 8 of the row
Bytes = bytes | memoryview
_MAGIC = np.frombuffer(b"ustar", np.uint8)
_SIZE_DIGITS = 11
_MAX_MEMBER_BYTES = 8**_SIZE_DIGITS - 1
_CHECKSUM_DIGITS = 6
# The digits of a number below 10,000. A key has four such numbers, so that no digit needs a division of its own.
_FOUR_DIGITS = (np.arange(10_000)[:, None] // (1000, 100, 10, 1) % 10 + ord("0")).astype(np.uint8)


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
    template = np.frombuffer(_template(folder, suffix), np.uint8)
    block = np.tile(template, (len(keys), 1))
    digits = np.concatenate((_decimal(keys), _octal(sizes, _SIZE_DIGITS)), axis=1)
    block[:, len(folder) : len(folder) + KEY_DIGITS] = digits[:, :KEY_DIGITS]
    block[:, 124 : 124 + _SIZE_DIGITS] = digits[:, KEY_DIGITS:]
    # The checksum counts its own field as spaces, as the template has the field. The fields of the digits are zero in the template.
    checksums = int(template.sum(dtype=np.int64)) + digits.sum(axis=1, dtype=np.int64)
    block[:, 148 : 148 + _CHECKSUM_DIGITS] = _octal(checksums, _CHECKSUM_DIGITS)
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


def _decimal(keys: Int[np.ndarray, " row"]) -> UInt8[np.ndarray, "row 16"]:
    numbers = keys[:, None] // (10**12, 10**8, 10**4, 1) % 10**4
    return _FOUR_DIGITS[numbers].reshape(len(keys), KEY_DIGITS)


def _octal(values: Int[np.ndarray, " row"], width: int) -> UInt8[np.ndarray, "row width"]:
    return (values[:, None] >> np.arange(3 * (width - 1), -1, -3) & 7).astype(np.uint8) + np.uint8(ord("0"))
