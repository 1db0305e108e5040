"""Write the tar of a shard in the USTAR format. NumPy computes the header fields of thousands of members at a time.

Plain `tar`, `webdataset` and Python's `tarfile` read the result. Every field except name, size and checksum is constant (mode 644,
owner 0, mtime 0), so equal samples give equal bytes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from skillshard.shards.manifest import END_BYTES, INDEX_DTYPE, TAR_BLOCK, whole_blocks

END_OF_ARCHIVE = bytes(END_BYTES)
KEY_DIGITS = 16  # 8 of the shard and 8 of the row
_ROWS_AT_ONCE = 4096  # 4 MB of headers
_BYTES_AT_ONCE = 16 << 20  # a chunk is a copy of its samples
Bytes = bytes | memoryview
_MAGIC = np.frombuffer(b"ustar", np.uint8)
_MAX_MEMBER_BYTES = 8**11 - 1  # the field of the size has 11 octal digits


def tar_bytes_of(text_bytes: Int[np.ndarray, " row"], json_bytes: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
    """Return the bytes of each sample in a shard: two headers, and text and JSON in whole blocks.

    >>> tar_bytes_of(np.array([1, 513]), np.array([40, 40])).tolist()
    [2048, 2560]
    """
    return 2 * TAR_BLOCK + whole_blocks(text_bytes) + whole_blocks(json_bytes)


def tar_chunks(shard: int, first_row: int, texts: Sequence[Bytes], jsons: Sequence[Bytes]) -> Iterator[bytes]:
    """Yield the bytes of neighbouring samples in a shard's tar, in chunks. `END_OF_ARCHIVE` follows the last sample of a shard.

    Args:
        shard: Number of the shard in the whole set. A key has 8 digits of this number and 8 digits of the row.
        first_row: Row of the first sample.
        texts: UTF-8 texts, in the order of the shard.
        jsons: JSON members of the texts.
    """
    start = 0
    for stop in _stops(texts, jsons):
        batch_texts, batch_jsons = texts[start:stop], jsons[start:stop]
        keys = shard * 10**8 + np.arange(first_row + start, first_row + stop)
        text_headers = headers(keys, b".txt", np.array([len(text) for text in batch_texts]))
        json_headers = headers(keys, b".json", np.array([len(json) for json in batch_jsons]))
        pieces: list[Bytes] = []
        for row, (text, json) in enumerate(zip(batch_texts, batch_jsons, strict=True)):
            span = slice(row * TAR_BLOCK, (row + 1) * TAR_BLOCK)
            pieces += (text_headers[span], text, _PADS[-len(text) % TAR_BLOCK])
            pieces += (json_headers[span], json, _PADS[-len(json) % TAR_BLOCK])
        yield b"".join(pieces)
        start = stop


def _stops(texts: Sequence[Bytes], jsons: Sequence[Bytes]) -> Iterator[int]:
    """Yield the ends of the chunks: rows after `_ROWS_AT_ONCE` rows, or after about `_BYTES_AT_ONCE` bytes of long texts."""
    start = num_bytes = 0
    for stop, (text, json) in enumerate(zip(texts, jsons, strict=True), start=1):
        num_bytes += len(text) + len(json)
        if stop - start == _ROWS_AT_ONCE or num_bytes >= _BYTES_AT_ONCE or stop == len(texts):
            yield stop
            start, num_bytes = stop, 0


def index_of(text_bytes: Int[np.ndarray, " row"], json_bytes: Int[np.ndarray, " row"]) -> np.ndarray:
    """Return the offset index of a shard, one entry per row, dtype `INDEX_DTYPE`, from the sizes of the samples."""
    spans = tar_bytes_of(text_bytes, json_bytes)
    index = np.empty(len(text_bytes), INDEX_DTYPE)
    index["text_start"] = np.cumsum(spans) - spans + TAR_BLOCK
    index["text_bytes"] = text_bytes
    index["json_bytes"] = json_bytes
    return index


def headers(keys: Int[np.ndarray, " row"], suffix: bytes, sizes: Int[np.ndarray, " row"]) -> bytes:
    """Return the USTAR headers of members `KEY` + `suffix`, 512 bytes each.

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
    block = np.tile(np.frombuffer(_template(suffix), np.uint8), (len(keys), 1))
    block[:, :KEY_DIGITS] = _digits(keys, KEY_DIGITS, 10)
    block[:, 124:135] = _digits(sizes, 11, 8)
    # The checksum counts its own field as spaces, as the template has the field, so the sum comes before the digits.
    block[:, 148:154] = _digits(block.sum(axis=1, dtype=np.int64), 6, 8)
    block[:, 154:156] = (0, ord(" "))
    return block.tobytes()


def member_sizes(blocks: UInt8[np.ndarray, "row 512"]) -> Int[np.ndarray, " row"]:
    """Return the member size in each header, or -1 for a block that is not a header of this module."""
    # Not the checksum: the digest of the tar covers all bytes. The check only shows whether the index points at a header.
    digits = blocks[:, 124:135].astype(np.int64) - ord("0")
    sizes = digits @ (8 ** np.arange(10, -1, -1))
    is_header = (digits >= 0).all(axis=1) & (digits < 8).all(axis=1) & (blocks[:, 257:262] == _MAGIC).all(axis=1)
    return np.where(is_header, sizes, -1)


def _template(suffix: bytes) -> bytes:
    fields = bytearray(TAR_BLOCK)
    for start, value in (
        (KEY_DIGITS, suffix),
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
