"""Members beside the text and the JSON of a sample, such as images: `KEY.SUFFIX` after `KEY.json`, in the layout `pairs` alone.

    0000000700000000.txt
    0000000700000000.json
    0000000700000000.jpg        the bytes of the corpus
    0000000700000000.left.wav

The index says where a text and its JSON lie, and the members follow. A reader of members walks over their headers, which costs little beside
the members themselves, so sets with and without members have the same index. A sample may lack members.

Between the stages of `shard`, a sample with members has one stretch of bytes behind its text, the payload: the bytes of the JSON in 4 bytes, the
JSON, and for each member the number of its suffix in 1 byte, its bytes in 4 bytes, and the bytes. Without members the payload is the JSON.
"""

import mmap
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from skillshard.corpus.members import Members
from skillshard.shards import pairs
from skillshard.shards.manifest import END_BYTES, TAR_BLOCK, whole_blocks
from skillshard.shards.tar import KEY_DIGITS, Bytes, blocks_of, member_sizes

_JSON_BYTES = struct.Struct("<I")
_MEMBER = struct.Struct("<BI")
MAX_SUFFIXES = 256
"""Largest number of suffixes of a shard set, which a byte of the payload numbers."""
# Offsets of the fields by POSIX: name 0 to 100, size 124 to 135.
_NAME, _SIZE = slice(0, 100), slice(124, 135)
_ROWS_AT_ONCE = 4096
"""Number of rows whose headers are looked at together: 2 MB of headers."""


def payload_of(json: bytes, members: Members, suffixes: Sequence[str]) -> bytes:
    """Return the payload of a sample.

    Args:
        json: JSON member.
        members: Further members.
        suffixes: All suffixes of the shard set. Without suffixes the payload is the JSON.

    >>> payload_of(b"{}", (("jpg", b"abc"),), ("jpg",)).hex(" ")
    '02 00 00 00 7b 7d 00 03 00 00 00 61 62 63'
    """
    if not suffixes:
        return json
    parts = [_JSON_BYTES.pack(len(json)), json]
    for suffix, content in members:
        parts += (_MEMBER.pack(suffixes.index(suffix), len(content)), content)
    return b"".join(parts)


def parts_of(payload: memoryview, suffixes: Sequence[str]) -> tuple[memoryview, list[tuple[str, memoryview]]]:
    """Return the JSON of a payload, and the suffix and the bytes of each member.

    >>> json, members = parts_of(memoryview(payload_of(b"{}", (("jpg", b"abc"),), ("jpg",))), ("jpg",))
    >>> bytes(json), [(suffix, bytes(content)) for suffix, content in members]
    (b'{}', [('jpg', b'abc')])
    """
    start = _JSON_BYTES.size
    (json_bytes,) = _JSON_BYTES.unpack(payload[:start])
    json, position = payload[start : start + json_bytes], start + json_bytes
    members = []
    while position < len(payload):
        number, num_bytes = _MEMBER.unpack(payload[position : position + _MEMBER.size])
        position += _MEMBER.size
        members.append((suffixes[number], payload[position : position + num_bytes]))
        position += num_bytes
    return json, members


def tar_bytes_of(members: Sequence[tuple[str, Bytes]]) -> int:
    """Return the bytes of the members of a sample in a tar: a header each, and whole blocks.

    >>> tar_bytes_of([("jpg", b"abc"), ("png", bytes(513))])
    2560
    """
    return sum(TAR_BLOCK + whole_blocks(len(content)) for _, content in members)


def spans(data: Bytes | mmap.mmap, json_start: int, json_bytes: int) -> Iterator[tuple[str, int, int]]:
    """Yield the suffix, the first byte and the end of each member of a sample in a tar of this package.

    Args:
        data: Bytes of the tar.
        json_start: First byte of the sample's JSON.
        json_bytes: Bytes of the JSON.
    """
    key = bytes(data[json_start - TAR_BLOCK : json_start - TAR_BLOCK + KEY_DIGITS])
    position = json_start + whole_blocks(json_bytes)
    while True:
        header = bytes(data[position : position + TAR_BLOCK])
        # The next sample has another key, and the end mark of the tar has none.
        if header[:KEY_DIGITS] != key:
            return
        name = header[_NAME].rstrip(b"\0").decode()
        start, num_bytes = position + TAR_BLOCK, int(header[_SIZE], 8)
        yield name[KEY_DIGITS + 1 :], start, start + num_bytes
        position = start + whole_blocks(num_bytes)


def read_members(
    data: Bytes | mmap.mmap, json_start: int, json_bytes: int, wanted: Collection[str] | None = None
) -> dict[str, bytes]:
    """Read the members of a sample: suffix -> bytes.

    Args:
        data, json_start, json_bytes: As in `spans`.
        wanted: Suffixes to read. None: all suffixes.
    """
    return {
        suffix: bytes(data[start:end])
        for suffix, start, end in spans(data, json_start, json_bytes)
        if wanted is None or suffix in wanted
    }


class MemberTotals(NamedTuple):
    """Members of a shard.

    Attributes:
        num_samples: Suffix -> number of samples with the member.
        num_bytes: Suffix -> bytes of all members, without headers and padding.
        fault: Rest of a sentence that begins with the name of the tar, about the first place where no member is as expected, or None.
    """

    num_samples: Counter[str]
    num_bytes: Counter[str]
    fault: str | None


def totals_of(data: Bytes | mmap.mmap, index: np.ndarray) -> MemberTotals:
    """Count the members of a shard by the headers in its tar, and check that members fill the tar between the samples.

    A reader follows the headers from the JSON of a sample on. Each header must have the key of the sample and a suffix that the sample did not have
    before, and the last member must end where the next sample begins.

    Args:
        data: Bytes of the tar, in the layout `pairs`.
        index: Index of the shard, which agrees with the headers of texts and JSONs.
    """
    blocks = blocks_of(memoryview(data))
    totals = MemberTotals(Counter(), Counter(), None)
    starts = index["text_start"].astype(np.int64) - TAR_BLOCK
    ends = np.append(starts[1:], len(data) - END_BYTES) // TAR_BLOCK
    json_starts = pairs.json_starts(index)
    headers = (json_starts + whole_blocks(index["json_bytes"].astype(np.int64))) // TAR_BLOCK
    keys = json_starts // TAR_BLOCK - 1
    for begin in range(0, len(index), _ROWS_AT_ONCE):
        rows = np.arange(begin, min(begin + _ROWS_AT_ONCE, len(index)))
        if (fault := _add_totals(totals, blocks, rows, keys, headers, ends)) is not None:
            return totals._replace(fault=fault)
    return totals


def _add_totals(
    totals: MemberTotals,
    blocks: UInt8[np.ndarray, "block 512"],
    rows: Int[np.ndarray, " row"],
    keys: Int[np.ndarray, " sample"],
    headers: Int[np.ndarray, " sample"],
    ends: Int[np.ndarray, " sample"],
) -> str | None:
    """Add the members of rows to the totals, and return the fault of the first row with a fault, or None.

    Args:
        totals: Totals, which the function changes.
        blocks: Blocks of the tar.
        rows: Rows of the shard.
        keys: Block of each sample with its key: the header of its JSON.
        headers: Block behind the JSON of each sample, where the header of the first member stands.
        ends: Block at which the next sample begins, or the end mark.
    """
    place, seen = headers[rows], set[tuple[int, str]]()
    while True:
        if len(beyond := np.flatnonzero(place > ends[rows])):
            return f"has members of row {rows[beyond[0]] + 1:,} that reach into the next sample"
        open_rows = place < ends[rows]
        rows, place = rows[open_rows], place[open_rows]
        if not len(rows):
            return None
        member_headers = blocks[place]
        sizes = member_sizes(member_headers)
        is_own = (member_headers[:, :KEY_DIGITS] == blocks[keys[rows], :KEY_DIGITS]).all(axis=1) & (sizes >= 0)
        if not is_own.all():
            return f"has no member of row {rows[np.argmin(is_own)] + 1:,} where its last member ends"
        names, which = np.unique(
            np.ascontiguousarray(member_headers[:, KEY_DIGITS + 1 : _NAME.stop]).view(
                f"S{_NAME.stop - KEY_DIGITS - 1}"
            )[:, 0],
            return_inverse=True,
        )
        for number, name in enumerate(names.tolist()):
            suffix, own = name.decode("ascii", "replace"), which == number
            pairs_of_rows = {(row, suffix) for row in rows[own].tolist()}
            if twice := seen & pairs_of_rows:
                return f"has two members {suffix!r} of row {min(twice)[0] + 1:,}"
            seen |= pairs_of_rows
            totals.num_samples[suffix] += len(pairs_of_rows)
            totals.num_bytes[suffix] += int(sizes[own].sum())
        place = place + 1 + whole_blocks(sizes) // TAR_BLOCK
