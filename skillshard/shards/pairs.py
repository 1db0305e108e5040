"""The default layout of a shard: two members for each sample, `KEY.txt` with the text and `KEY.json` with id, skill and meta.

A set may keep further members, such as images (members.py). The members of a sample then follow its JSON.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from skillshard.shards.contents import joined
from skillshard.shards.manifest import INDEX_DTYPE, TAR_BLOCK, whole_blocks
from skillshard.shards.tar import Bytes, blocks_of, headers, member_sizes, padding, pieces

DTYPE = INDEX_DTYPE
"""Entry of the index of a shard."""


def tar_bytes_of(text_bytes: Int[np.ndarray, " row"], json_bytes: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
    """Return the bytes of each sample in a shard: two headers, and text and JSON in whole blocks.

    >>> tar_bytes_of(np.array([1, 513]), np.array([40, 40])).tolist()
    [2048, 2560]
    """
    return 2 * TAR_BLOCK + whole_blocks(text_bytes) + whole_blocks(json_bytes)


def tar_chunks(shard: int, parts: Iterable[tuple[pa.LargeBinaryArray, pa.LargeBinaryArray]]) -> Iterator[memoryview]:
    """Yield the bytes of a shard's tar without the end mark.

    Args:
        shard: Number of the shard in the whole set. A key has 8 digits of this number and 8 digits of the row.
        parts: UTF-8 texts of neighbouring samples and their JSONs, in the order of the shard. A part becomes a chunk.
    """
    key = shard * 10**8
    for texts, jsons in parts:
        keys = np.arange(key, key + len(texts))
        yield joined((*pieces(keys, texts, b".txt"), *pieces(keys, jsons, b".json")))
        key += len(texts)


def tar_chunks_with_members(
    shard: int, parts: Iterable[tuple[Sequence[Bytes], Sequence[Bytes], Sequence[Sequence[tuple[str, Bytes]]]]]
) -> Iterator[bytes]:
    """Yield the bytes of a shard's tar without the end mark, with further members of the samples.

    Args:
        shard: Number of the shard in the whole set.
        parts: Texts, JSONs, and the suffix and the bytes of each further member of neighbouring samples, in the order of the shard.
    """
    key = shard * 10**8
    for texts, jsons, members in parts:
        for text, json, further in zip(texts, jsons, members, strict=True):
            contents = [("txt", text), ("json", json), *further]
            yield b"".join(piece for suffix, content in contents for piece in _member(key, suffix, content))
            key += 1


def _member(key: int, suffix: str, content: Bytes) -> tuple[Bytes, Bytes, Bytes]:
    header = headers(np.array([key]), f".{suffix}".encode(), np.array([len(content)]))
    return header.data, content, padding(len(content))


def index_of(
    text_bytes: Int[np.ndarray, " row"],
    json_bytes: Int[np.ndarray, " row"],
    member_bytes: Int[np.ndarray, " row"] | None = None,
) -> np.ndarray:
    """Return the offset index of a shard, one entry per row, dtype `DTYPE`.

    Args:
        text_bytes, json_bytes: Sizes of the samples.
        member_bytes: Bytes of further members of each sample in the tar, headers and padding included. None: no members.
    """
    spans = tar_bytes_of(text_bytes, json_bytes)
    if member_bytes is not None:
        spans = spans + member_bytes
    index = np.empty(len(text_bytes), DTYPE)
    index["text_start"] = np.cumsum(spans) - spans + TAR_BLOCK
    index["text_bytes"] = text_bytes
    index["json_bytes"] = json_bytes
    return index


def json_starts(entries: np.ndarray) -> Int[np.ndarray, " row"]:
    """Return the first byte of each JSON. The text fills whole blocks, and the header of the JSON member takes one block more."""
    return whole_blocks(entries["text_start"].astype(np.int64) + entries["text_bytes"]) + TAR_BLOCK


def disagreement(data: Bytes, index: np.ndarray) -> str | None:
    """Describe the first row of the index that the headers of the tar contradict, or return None.

    The description is the rest of a sentence that begins with the name of the tar.
    """
    blocks = blocks_of(data)
    text_blocks = (index["text_start"] // TAR_BLOCK).astype(np.int64)
    json_headers = text_blocks + whole_blocks(index["text_bytes"].astype(np.int64)) // TAR_BLOCK
    # A damaged index can point anywhere. Rows outside the tar look at block 0 instead and count as wrong.
    inside = (json_headers < len(blocks)) & (index["text_start"] % TAR_BLOCK == 0)
    header_sizes = []
    for places, sizes in ((text_blocks - 1, index["text_bytes"]), (json_headers, index["json_bytes"])):
        header_sizes.append(np.where(inside, member_sizes(blocks[np.where(inside, places, 0)]), -1))
        inside = inside & (header_sizes[-1] == sizes)
    wrong = np.flatnonzero(~inside)
    if not len(wrong):
        return None
    row = int(wrong[0])
    start, *expected = index[row].tolist()
    got = [f"{sizes[row]:,}" if sizes[row] >= 0 else "none" for sizes in header_sizes]
    return (
        f"has no sample where its index says row {row + 1:,} is: expected a text of {expected[0]:,} bytes at byte {start:,} and then "
        f"a JSON of {expected[1]:,}, got members of {got[0]} and {got[1]}"
    )
