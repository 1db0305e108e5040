"""The compact layout of a shard: a member `KEY.txt` for each sample, and the JSONs of up to 1,024 samples in one member of JSON Lines.

    0000000700000000.txt                     text of row 0 of the shard
    ...
    0000000700001023.txt
    __samples__/0000000700000000.jsonl       JSONs of the rows 0 to 1,023, one on each line
    0000000700001024.txt
    ...

A tar member takes a header of 512 bytes and whole blocks, so a member for each JSON costs about 1,024 bytes for each sample. The package
`webdataset` passes over members of a folder `__NAME__`, so the package sees the keys and the texts alone.

The places of all members follow from the sizes of texts and JSONs, whatever the batches of the writer.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt8

from skillshard.shards.contents import array_of, joined, sizes_of
from skillshard.shards.manifest import INDEX_DTYPE, TAR_BLOCK, whole_blocks
from skillshard.shards.tar import Bytes, blocks_of, headers, member_sizes, padding, pieces

# As many rows as a stripe of the order has, so a mixer that reads fields finds the JSONs near their texts.
MEMBER_ROWS = 1024
"""Largest number of JSONs in a member."""
# The writer holds the JSONs of a member in memory until the texts are written.
MEMBER_BYTES = 16 << 20
"""Bytes of JSONs after which a member ends."""
DTYPE = np.dtype([*INDEX_DTYPE.descr, ("json_start", "<u8")])
"""Entry of the index of a compact shard."""
_FOLDER = b"__samples__/"


def tar_bytes_of(text_bytes: Int[np.ndarray, " row"], json_bytes: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
    """Return the bytes of each sample in a shard, without its share of the header of the JSON Lines.

    >>> tar_bytes_of(np.array([1, 513]), np.array([40, 40])).tolist()
    [1065, 1577]
    """
    return TAR_BLOCK + whole_blocks(text_bytes) + json_bytes + 1


def tar_chunks(
    shard: int, parts: Iterable[tuple[pa.LargeBinaryArray, pa.LargeBinaryArray]]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a shard's tar without the end mark.

    Args:
        shard: Number of the shard in the whole set.
        parts: UTF-8 texts of neighbouring samples and their JSONs, in the order of the shard.
    """
    first_key = key = shard * 10**8
    lines = bytearray()
    for texts, jsons in parts:
        sizes = sizes_of(jsons)
        start = 0
        while start < len(texts):
            num_rows, is_complete = _rows_of_member(sizes[start:], key - first_key, len(lines))
            stop = start + num_rows
            yield joined(pieces(np.arange(key, key + num_rows), texts[start:stop], b".txt"))
            newlines = array_of(b"\n" * num_rows, np.ones(num_rows, np.int64))
            lines += joined((jsons[start:stop], newlines))
            start, key = stop, key + num_rows
            if is_complete:
                yield _member(first_key, lines)
                first_key, lines = key, bytearray()
    if lines:
        yield _member(first_key, lines)


def _member(key: int, lines: bytearray) -> bytes:
    header = headers(np.array([key]), b".jsonl", np.array([len(lines)]), folder=_FOLDER)
    return b"".join((header.data, lines, padding(len(lines))))


def _rows_of_member(json_bytes: Int[np.ndarray, " row"], num_rows: int, num_bytes: int) -> tuple[int, bool]:
    """Return the number of the next rows whose JSONs belong to a member, and whether the member is then complete.

    Args:
        json_bytes: Bytes of the JSONs of the next rows.
        num_rows, num_bytes: Rows and bytes that the member has already.
    """
    room = MEMBER_ROWS - num_rows
    sizes = np.cumsum(json_bytes[:room] + 1)
    stop = int(np.searchsorted(sizes, MEMBER_BYTES - num_bytes)) + 1
    return (stop, True) if stop <= len(sizes) else (len(sizes), len(sizes) == room)


def member_bounds(json_bytes: Int[np.ndarray, " row"]) -> list[int]:
    """Return the first row of each member of JSON Lines, with the number of rows at the end.

    >>> member_bounds(np.full(2500, 40))
    [0, 1024, 2048, 2500]
    """
    bounds = [0]
    while bounds[-1] < len(json_bytes):
        num_rows, _ = _rows_of_member(json_bytes[bounds[-1] :], 0, 0)
        bounds.append(bounds[-1] + num_rows)
    return bounds


def index_of(text_bytes: Int[np.ndarray, " row"], json_bytes: Int[np.ndarray, " row"]) -> np.ndarray:
    """Return the index of a shard, one entry per row, dtype `DTYPE`, from the sizes of the samples."""
    index = np.empty(len(text_bytes), DTYPE)
    spans, lines = TAR_BLOCK + whole_blocks(text_bytes), json_bytes + 1
    begin = 0
    for first, last in pairwise(member_bounds(json_bytes)):
        rows = slice(first, last)
        ends, line_ends = np.cumsum(spans[rows]), np.cumsum(lines[rows])
        index["text_start"][rows] = begin + ends - spans[rows] + TAR_BLOCK
        begin += int(ends[-1]) + TAR_BLOCK
        index["json_start"][rows] = begin + line_ends - lines[rows]
        begin += whole_blocks(int(line_ends[-1]))
    index["text_bytes"], index["json_bytes"] = text_bytes, json_bytes
    return index


def json_starts(entries: np.ndarray) -> Int[np.ndarray, " row"]:
    """Return the first byte of each JSON."""
    return entries["json_start"].astype(np.int64)


def disagreement(data: Bytes, index: np.ndarray) -> str | None:
    """Describe the first row of the index that the headers of the tar contradict, or return None.

    The description is the rest of a sentence that begins with the name of the tar.
    """
    blocks = blocks_of(data)
    json_bytes = index["json_bytes"].astype(np.int64)
    expected = index_of(index["text_bytes"].astype(np.int64), json_bytes)
    bounds = member_bounds(json_bytes)
    # The first JSON of a member follows the header of the member. The bytes of the JSONs are the size of the member.
    member_starts = (expected["json_start"][bounds[:-1]] // TAR_BLOCK).astype(np.int64) - 1
    member_bytes = np.add.reduceat(json_bytes + 1, bounds[:-1])
    num_rows = np.diff(bounds)
    text_sizes = _sizes_at(blocks, (index["text_start"] // TAR_BLOCK).astype(np.int64) - 1)
    lines_sizes = np.repeat(_sizes_at(blocks, member_starts), num_rows)
    is_right = (
        (index == expected) & (text_sizes == index["text_bytes"]) & (lines_sizes == np.repeat(member_bytes, num_rows))
    )
    wrong = np.flatnonzero(~is_right)
    if not len(wrong):
        return None
    row = int(wrong[0])
    got = [f"{sizes[row]:,}" if sizes[row] >= 0 else "none" for sizes in (text_sizes, lines_sizes)]
    return (
        f"has no sample where its index says row {row + 1:,} is: expected a text of {int(index['text_bytes'][row]):,} bytes at byte "
        f"{int(expected['text_start'][row]):,} and a JSON of {int(json_bytes[row]):,} at byte {int(expected['json_start'][row]):,}, got members "
        f"of {got[0]} and {got[1]} and an index that says {int(index['text_start'][row]):,} and {int(index['json_start'][row]):,}"
    )


def _sizes_at(blocks: UInt8[np.ndarray, "block 512"], places: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
    """Return the member sizes in the headers at some blocks, or -1 where no header is. A damaged index can point anywhere."""
    is_inside = (places >= 0) & (places < len(blocks))
    return np.where(is_inside, member_sizes(blocks[np.where(is_inside, places, 0)]), -1)
