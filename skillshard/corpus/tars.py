"""WebDataset tars: a sample is the members that share a key, `key.txt` with its text and `key.json` with the rest.

The key is a member's path up to the first dot of its last part. Read as a stream with the standard library, one sample
in memory at a time; other members of a sample (images, pickles) are passed over and never opened.

Members that belong to no sample neither make one nor end one, and are counted: hidden ones (macOS packs a `._NAME` before
each NAME), those without a suffix, `__NAME__` of webdataset, descriptions of the data set (README.md, LICENSE.txt).
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
import xxhash

from skillshard import storage
from skillshard.corpus.partitions import Partition
from skillshard.corpus.sample import (
    MISSING,
    BadRecord,
    PassedOver,
    Rejection,
    Sample,
    check_size,
    exact_json,
    json_fault,
    needs_exact,
    sample_of,
)
from skillshard.errors import name_some
from skillshard.printable import printable

_RECORD = tarfile.BLOCKSIZE
_CHUNK_BYTES = 1 << 20
_DESCRIPTIONS = (
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "changelog",
    "citation",
    "authors",
    "dataset_card",
)
# Of a damaged header, tarfile lets more through than its own errors. An OSError is the disk or the network.
_DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, IndexError)


@dataclass(slots=True)
class _Group:
    """The members of one key, by extension.

    Attributes:
        too_large: the extension of a member that was not read, because of its size.
        link: a text or JSON member that is a link: its extension and the name of the member that it points to.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    too_large: str | None = None
    link: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of a sample: its bytes (None: the member is too large), or the target of a link. A key of None marks the end of the tar."""

    key: str | None
    ext: str = ""
    data: bytes | None = b""
    link: str | None = None


class _Cut(Exception):
    """The rest of the tar cannot be read."""


def read_tar(
    partition: Partition,
    *,
    id_field: str | None,
    text_field: str,
    max_sample_bytes: int,
    hasher: xxhash.xxh3_128,
    passed_over: PassedOver,
) -> Iterator[Sample | Rejection]:
    """The samples of a tar; `hasher` takes in the bytes that each was made of, `passed_over` members of no sample."""
    name, row = partition.name, 0
    try:
        for group in _groups(partition, 16 * max_sample_bytes + _CHUNK_BYTES, passed_over):
            row += 1
            names = (group.key, *sorted(group.members))
            hasher.update(orjson.dumps([_id_of(name) or printable(name) for name in names]))
            for ext in sorted(group.members):
                hasher.update(b"%d:" % len(group.members[ext]) + group.members[ext])
            try:
                record = _record(group, passed_over, id_field=id_field, text_field=text_field)
                sample = sample_of(record, id_field, text_field, name, row)
                check_size(sample, max_sample_bytes)
            except BadRecord as error:
                raw = next((data for ext, data in sorted(group.members.items()) if ext.endswith(".json")), None)
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


def _groups(partition: Partition, member_limit: int, passed_over: PassedOver) -> Iterator[_Group]:
    """Neighbouring members of one key; what follows a group, at last the tar's own end, shows that it is whole."""
    group: _Group | None = None
    for member in _members(partition, member_limit, passed_over):
        if group is not None and (member.key != group.key or member.ext in group.members):
            yield group
            group = None
        if member.key is None:
            continue
        group = group or _Group(member.key)
        if member.link is not None:
            group.link = (member.ext, member.link)
        elif member.data is None:
            group.too_large = member.ext
        else:
            group.members[member.ext] = member.data


def _members(partition: Partition, member_limit: int, passed_over: PassedOver) -> Iterator[_Member]:
    """The members of samples, with empty bytes for those not ours, and at last the mark of the tar's end."""
    if partition.file_bytes == 0:
        raise _Cut("the file is empty, 0 bytes")
    with storage.open_stream(partition.place) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # or the tar remembers every member
                    if member.isdir():
                        continue
                    if (kind := _of_no_sample(member)) is not None:
                        passed_over.members[kind] += 1
                        continue
                    key, ext = _key_and_ext(member.name)
                    is_link = not member.isreg() and ext.endswith((".txt", ".json"))
                    data = _content(tar, member, ext, member_limit) if member.isreg() else b""
                    yield _Member(key, ext, data, member.linkname if is_link else None)
                end = tar.offset
        except _DAMAGE as error:
            raise _Cut(str(error) or type(error).__name__) from error
    with storage.open_random(partition.place) as file:
        file.seek(min(end, partition.file_bytes))
        _check_end_mark(bytes(file.read(_RECORD)), end)
        yield _Member(None)
        while chunk := bytes(file.read(_CHUNK_BYTES)):
            if chunk.strip(b"\0"):
                raise _Cut("data after the end-of-archive mark, as of two tars joined")


def _of_no_sample(member: tarfile.TarInfo) -> str | None:
    """The kind of a member that belongs to no sample, or None."""
    *folders, base = [part for part in member.name.split("/") if part not in ("", ".")] or [""]
    for folder in folders:
        if (folder.startswith(".") and folder != "..") or folder == "__MACOSX":
            return f"{printable(folder)}/"
    stem, dot, ext = base.partition(".")
    if not (member.isreg() or member.islnk() or member.issym()):
        return "pipes and devices"
    if base.startswith("._"):
        return "._*"
    if base.startswith("."):
        return ".*"
    if stem.startswith("__") and stem.endswith("__"):
        return printable(base)
    if not dot:
        return "without a suffix"
    if ext in ("md", "rst"):
        return f"*.{ext}"
    is_description = stem.lower() in _DESCRIPTIONS and ext in ("txt", "html", "pdf")
    return base if is_description and len(folders) < 2 else None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, ext: str, member_limit: int) -> bytes | None:
    if not ext.endswith((".txt", ".json")):
        return b""
    file = tar.extractfile(member)
    return None if member.size > member_limit or file is None else file.read()


def _key_and_ext(path: str) -> tuple[str, str]:
    """
    >>> _key_and_ext("./a.b/000.meta.JSON")
    ('a.b/000', '.meta.json')
    """
    folder, slash, base = path.removeprefix("./").rpartition("/")
    stem, dot, ext = base.partition(".")
    return folder + slash + stem, dot + ext.lower()


def _check_end_mark(mark: bytes, offset: int) -> None:
    """tarfile stops without a word at a header that is cut off or damaged; a whole tar has zeros there."""
    if len(mark) < _RECORD:
        raise _Cut("no end-of-archive mark")
    if mark.strip(b"\0"):
        raise _Cut(f"no tar header at byte {offset:,}")


def _member(group: _Group, ending: Literal[".txt", ".json"], passed_over: PassedOver) -> bytes | None:
    """The member whose extension is `ending`, or else the only member whose extension ends so; None if there is none."""
    exts = sorted(ext for ext in group.members if ext.endswith(ending))
    if ending in group.members:
        if len(exts) > 1:
            passed_over.members[f"more {ending} members of a sample"] += len(exts) - 1
        return group.members[ending]
    if len(exts) > 1:
        names = name_some((printable(group.key + ext) for ext in exts), 4)
        detail = (
            f"{len(exts)} members end in {ending} and have one key, which is the path up to the first dot of the name: "
            f"{names}"
        )
        raise BadRecord("unclear-members", detail, _id_of(group.key))
    return group.members[exts[0]] if exts else None


def _id_of(key: str) -> str | None:
    """The key as an id, where it is text and not bytes of another encoding."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return None
    return key


def _record(group: _Group, passed_over: PassedOver, *, id_field: str | None, text_field: str) -> Any:
    key = printable(group.key)
    if group.too_large is not None:
        raise BadRecord("too-large", f"member {key}{group.too_large} is too large to be read", _id_of(group.key))
    if group.link is not None:
        ext, target = group.link
        detail = f"member {key}{ext} is a link to {printable(target)}, and links are not followed; pack with tar "
        raise BadRecord("unclear-members", f"{detail}--dereference --hard-dereference", _id_of(group.key))
    record = _json(group, passed_over)
    if not isinstance(record, dict):
        return record
    text = _member(group, ".txt", passed_over)
    if text is not None:
        decoded = _text(text, group.key)
        if record.get(text_field, decoded) != decoded:
            passed_over.members[f"field {text_field!r} of a JSON member beside another text"] += 1
        record[text_field] = decoded
    if id_field is not None and record.get(id_field, MISSING) is MISSING:
        if _id_of(group.key) is None:
            raise BadRecord("invalid-utf8", f"the name of its members, {key}, is not valid UTF-8")
        record[id_field] = group.key
    return record


def _json(group: _Group, passed_over: PassedOver) -> Any:
    data = _member(group, ".json", passed_over)
    if data is None:
        return {}
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        reason, detail = json_fault(error)
        where = "its JSON member is" if reason == "malformed-json" else "in its JSON member,"
        raise BadRecord(reason, f"{where} {detail}", _id_of(group.key)) from error
    is_container = isinstance(record, dict | list)
    return exact_json(data) if is_container and needs_exact(record) else record


def _text(data: bytes, key: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        detail = f"its text member is not valid UTF-8 (byte 0x{data[error.start]:02x} at {error.start:,})"
        raise BadRecord("invalid-utf8", detail, _id_of(key)) from error
