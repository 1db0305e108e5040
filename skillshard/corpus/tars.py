"""WebDataset tars: a sample is the members that share a key, `key.txt` with its text and `key.json` with the rest.

The key is a member's path up to the first dot of its last part. Read as a stream with the standard library, one sample
in memory at a time; other members (images, pickles) are passed over and never opened.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
import xxhash

from skillshard import storage
from skillshard.corpus.partitions import Partition
from skillshard.corpus.sample import MISSING, BadRecord, Rejection, Sample, check_size, sample_of

_RECORD = tarfile.BLOCKSIZE
_CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class _Group:
    """The members of one key, by extension; `too_large` names one that was not read."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    too_large: str | None = None


class _Cut(Exception):
    """The rest of the tar cannot be read."""


def read_tar(
    partition: Partition, *, id_field: str | None, text_field: str, max_sample_bytes: int, hasher: xxhash.xxh3_128
) -> Iterator[Sample | Rejection]:
    """The samples of a tar; `hasher` takes in the bytes that each was made of."""
    name, row = partition.name, 0
    try:
        for group in _groups(partition, member_limit=16 * max_sample_bytes + _CHUNK_BYTES):
            row += 1
            hasher.update(orjson.dumps([group.key, *sorted(group.members)]))
            for ext in sorted(group.members):
                hasher.update(b"%d:" % len(group.members[ext]) + group.members[ext])
            try:
                record = _record(group, id_field=id_field, text_field=text_field)
                sample = sample_of(record, id_field, text_field, name, row)
                check_size(sample, max_sample_bytes)
            except BadRecord as error:
                raw = _member(group, ".json")
                shown = None if raw is None else raw.decode(errors="backslashreplace")
                yield Rejection(name, row, error.reason, error.detail, error.id, shown)
            else:
                yield sample
    except _Cut as error:
        yield _cut_off(partition, row, str(error))


def _cut_off(partition: Partition, row: int, damage: str) -> Rejection:
    if row == 0 and not _begins_as_tar(partition):
        detail = "not what its name says (expected a tar, found no tar header at its start)"
        return Rejection(partition.name, None, "not-the-named-format", detail)
    detail = f"from here on the file is cut off or damaged ({damage})"
    return Rejection(partition.name, row + 1, "truncated", detail)


def _begins_as_tar(partition: Partition) -> bool:
    with storage.open_stream(partition.place) as stream:
        head = bytes(stream.read(_RECORD))
    if len(head) < _RECORD:  # too short for its checksum: a path with zeros behind it, then an octal number
        path, mode = head[:100].rstrip(b"\0"), head[100:107]
        return b"\0" not in path and not path.startswith((b"{", b"\x1f\x8b")) and (not mode or mode.isdigit())
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return str(error) == "end of file header"
    return True


def _groups(partition: Partition, *, member_limit: int) -> Iterator[_Group]:
    """Neighbouring members of one key; what follows a group, at last the tar's own end, shows that it is whole."""
    group: _Group | None = None
    for key, ext, data in _members(partition, member_limit=member_limit):
        if group is not None and (key != group.key or ext in group.members):
            yield group
            group = None
        if key is None:
            continue
        group = group or _Group(key)
        if data is None:
            group.too_large = ext
        else:
            group.members[ext] = data


def _members(partition: Partition, *, member_limit: int) -> Iterator[tuple[str | None, str, bytes | None]]:
    """Key, extension and bytes of each file in the tar, empty for those not ours, None for one over the limit; key None
    for the mark at the tar's end."""
    if partition.file_bytes == 0:
        raise _Cut("the file is empty, 0 bytes")
    with storage.open_stream(partition.place) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # or the tar remembers every member
                    if member.isreg():
                        key, ext = _key_and_ext(member.name)
                        yield key, ext, _content(tar, member, ext, member_limit)
                end = tar.offset
        except (tarfile.ReadError, tarfile.HeaderError) as error:
            raise _Cut(str(error)) from error
    with storage.open_random(partition.place) as file:
        file.seek(min(end, partition.file_bytes))
        _check_end_mark(bytes(file.read(_RECORD)), end)
        yield None, "", None
        while chunk := bytes(file.read(_CHUNK_BYTES)):
            if chunk.strip(b"\0"):
                raise _Cut("data after the end-of-archive mark, as of two tars joined")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, ext: str, member_limit: int) -> bytes | None:
    if not ext.endswith((".txt", ".json")):
        return b""
    file = tar.extractfile(member)
    return None if member.size > member_limit or file is None else file.read()


def _key_and_ext(path: str) -> tuple[str, str]:
    """
    >>> _key_and_ext("./a.b/000.meta.json")
    ('a.b/000', '.meta.json')
    """
    folder, slash, base = path.removeprefix("./").rpartition("/")
    stem, dot, ext = base.partition(".")
    return folder + slash + stem, dot + ext


def _check_end_mark(mark: bytes, offset: int) -> None:
    """tarfile stops without a word at a header that is cut off or damaged; a whole tar has zeros there."""
    if len(mark) < _RECORD:
        raise _Cut("no end-of-archive mark")
    if mark.strip(b"\0"):
        raise _Cut(f"no tar header at byte {offset:,}")


def _member(group: _Group, ending: Literal[".txt", ".json"]) -> bytes | None:
    """The member of exactly this extension, or the first that ends in it."""
    others = (data for ext, data in sorted(group.members.items()) if ext.endswith(ending))
    return group.members.get(ending, next(others, None))


def _record(group: _Group, *, id_field: str | None, text_field: str) -> Any:
    if group.too_large is not None:
        raise BadRecord("too-large", f"member {group.key}{group.too_large} is too large to be read", group.key)
    record = _json(group)
    if not isinstance(record, dict):
        return record
    text = _member(group, ".txt")
    if text is not None:
        record[text_field] = _text(text, group.key)
    if id_field is not None and record.get(id_field, MISSING) is MISSING:
        record[id_field] = group.key
    return record


def _json(group: _Group) -> Any:
    data = _member(group, ".json")
    if data is None:
        return {}
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        what = f"{error.msg}: line {error.lineno} column {error.colno}"
        raise BadRecord("malformed-json", f"its JSON member is not valid JSON ({what})", group.key) from error


def _text(data: bytes, key: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        detail = f"its text member is not valid UTF-8 (byte 0x{data[error.start]:02x} at {error.start:,})"
        raise BadRecord("invalid-utf8", detail, key) from error
