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
from collections.abc import Collection, Iterator, Sequence

from skillshard.corpus.members import Members
from skillshard.shards.manifest import TAR_BLOCK, whole_blocks
from skillshard.shards.tar import KEY_DIGITS, Bytes

_JSON_BYTES = struct.Struct("<I")
_MEMBER = struct.Struct("<BI")
MAX_SUFFIXES = 256
"""Largest number of suffixes of a shard set, which a byte of the payload numbers."""
# Offsets of the fields by POSIX: name 0 to 100, size 124 to 135.
_NAME, _SIZE = slice(0, 100), slice(124, 135)


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
