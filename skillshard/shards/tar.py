"""USTAR headers and the tar of one shard, written by hand: the header fields are computed for thousands at a time.

Plain `tar`, `webdataset` and Python's `tarfile` read the result. Every field but name, size and checksum is constant
(mode 644, owner 0, mtime 0), so equal samples give equal bytes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from skillshard.shards.manifest import END_BYTES, INDEX_DTYPE, TAR_BLOCK, whole_blocks

END_OF_ARCHIVE = bytes(END_BYTES)
KEY_DIGITS = 16
_ROWS_AT_ONCE = 4096
_MAGIC = np.frombuffer(b"ustar", np.uint8)
_MAX_MEMBER_BYTES = 8**11 - 1


def tar_bytes_of(text_bytes: Int[np.ndarray, " row"], json_bytes: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
    """Bytes that each sample takes in a shard: two headers, text and JSON in whole blocks.

    >>> tar_bytes_of(np.array([1, 513]), np.array([40, 40])).tolist()
    [2048, 2560]
    """
    return 2 * TAR_BLOCK + whole_blocks(text_bytes) + whole_blocks(json_bytes)


def tar_chunks(shard: int, texts: Sequence[bytes], jsons: Sequence[bytes]) -> Iterator[bytes]:
    """The bytes of a shard's tar, in chunks.

    Args:
        shard: number of the shard in the whole set; keys are its 8 digits and the row's 8 digits.
        texts: UTF-8 texts, in the order of the shard.
        jsons: their JSON members.
    """
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        some_texts, some_jsons = texts[start : start + _ROWS_AT_ONCE], jsons[start : start + _ROWS_AT_ONCE]
        keys = shard * 10**8 + np.arange(start, start + len(some_texts))
        text_headers = headers(keys, b".txt", np.array([len(text) for text in some_texts]))
        json_headers = headers(keys, b".json", np.array([len(json) for json in some_jsons]))
        pieces: list[bytes] = []
        for at, (text, json) in enumerate(zip(some_texts, some_jsons, strict=True)):
            span = slice(at * TAR_BLOCK, (at + 1) * TAR_BLOCK)
            pieces += (text_headers[span], text, _PADS[-len(text) % TAR_BLOCK])
            pieces += (json_headers[span], json, _PADS[-len(json) % TAR_BLOCK])
        yield b"".join(pieces)
    yield END_OF_ARCHIVE


def index_of(text_bytes: Int[np.ndarray, " row"], json_bytes: Int[np.ndarray, " row"]) -> np.ndarray:
    """The offset index of a shard with samples of these sizes; dtype `INDEX_DTYPE`, one entry per row."""
    spans = tar_bytes_of(text_bytes, json_bytes)
    index = np.empty(len(text_bytes), INDEX_DTYPE)
    index["text_start"] = np.cumsum(spans) - spans + TAR_BLOCK
    index["text_bytes"] = text_bytes
    index["json_bytes"] = json_bytes
    return index


def headers(keys: Int[np.ndarray, " row"], suffix: bytes, sizes: Int[np.ndarray, " row"]) -> bytes:
    """USTAR headers of members `KEY``suffix`, 512 bytes each.

    >>> len(headers(np.array([7]), b".txt", np.array([3])))
    512
    """
    if len(sizes) and int(sizes.max()) > _MAX_MEMBER_BYTES:
        raise ValueError(f"a tar member may have {_MAX_MEMBER_BYTES:,} bytes, one has {int(sizes.max()):,}")
    block = np.tile(np.frombuffer(_template(suffix), np.uint8), (len(keys), 1))
    block[:, :KEY_DIGITS] = _digits(keys, KEY_DIGITS, 10)
    block[:, 124:135] = _digits(sizes, 11, 8)
    block[:, 148:154] = _digits(block.sum(axis=1, dtype=np.int64), 6, 8)
    block[:, 154:156] = (0, ord(" "))
    return block.tobytes()


def member_sizes(blocks: UInt8[np.ndarray, "row 512"]) -> Int[np.ndarray, " row"]:
    """The size that each header names; -1 where a block is no header of ours."""
    digits = blocks[:, 124:135].astype(np.int64) - ord("0")
    sizes = digits @ (8 ** np.arange(10, -1, -1))
    is_header = (digits >= 0).all(axis=1) & (digits < 8).all(axis=1) & (blocks[:, 257:262] == _MAGIC).all(axis=1)
    return np.where(is_header, sizes, -1)


def _template(suffix: bytes) -> bytes:
    fields = bytearray(TAR_BLOCK)
    for start, value in (
        (KEY_DIGITS, suffix),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (136, b"00000000000\0"),
        (148, b" " * 8),
        (156, b"0"),
        (257, b"ustar\x0000"),
    ):
        fields[start : start + len(value)] = value
    return bytes(fields)


def _digits(values: Int[np.ndarray, " row"], width: int, base: int) -> UInt8[np.ndarray, "row width"]:
    powers = base ** np.arange(width - 1, -1, -1)
    return (values[:, None] // powers % base + ord("0")).astype(np.uint8)


_PADS = [bytes(length) for length in range(TAR_BLOCK)]
