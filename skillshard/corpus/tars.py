"""Read WebDataset tars: neighbouring members with the same key are a sample, with the text in `key.txt` and the rest in `key.json`.

The key is the path of a member up to the first dot of the last part. The standard library reads a tar as a stream, with one sample
in memory at a time. Other members of a sample (images, pickles) are passed over and never opened, unless the reading keeps them as bytes.

Some members belong to no sample: hidden members (macOS packs a `._NAME` before each NAME), members without a suffix, `__NAME__` of
webdataset, and descriptions of the data set (README.md, LICENSE.txt). Such a member is counted, and neither begins nor ends a sample.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson
import xxhash

from skillshard import storage
from skillshard.corpus.bad_record import BadRecord
from skillshard.corpus.json_values import json_fault, parse_json
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.members import MAX_MEMBER_BYTES, beside_texts, too_large
from skillshard.corpus.paths import MISSING, follow, is_of_file
from skillshard.corpus.sample import PassedOver, Rejection, Sample, check_size
from skillshard.corpus.stretches import Stretch
from skillshard.errors import CorpusError, name_some
from skillshard.printable import printable

_RECORD = tarfile.BLOCKSIZE  # 512 bytes: a header, and the unit of the end mark
_CHUNK_BYTES = 1 << 20
# Names of files beside the data, in any letter case, which packers add to the top of a tar.
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
# A damaged header can make tarfile raise more than its own errors. An OSError comes from the disk or the network, and is raised.
_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z")
_DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, IndexError)


@dataclass(slots=True)
class _Group:
    """Members with the same key.

    Attributes:
        key: Key of the members.
        members: Extension -> content of texts and JSONs. Other members have no content here.
        kept: Suffix -> content of each member that is kept as bytes.
        too_large: Extension of a member that is too large to be read.
        link: Extension and target of a text or JSON member that is a link.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)
    too_large: str | None = None
    link: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Member:
    """Member of a sample.

    Attributes:
        key: Key of the member. None marks the end of the tar.
        ext: Extension in lower case, with its dots.
        data: Content. None for a member that is too large, and empty for a member that is not read.
        link: Target of a text or JSON member that is a link, otherwise None.
        kept: Suffix and content of a member that is kept as bytes, otherwise None.
    """

    key: str | None
    ext: str = ""
    data: bytes | None = b""
    link: str | None = None
    kept: tuple[str, bytes] | None = None


class _Cut(Exception):
    """Error for the rest of a tar that cannot be read."""


def read_tar(
    stretch: Stretch,
    *,
    fields: RowFields,
    max_sample_bytes: int,
    hasher: xxhash.xxh3_128,
    passed_over: PassedOver,
) -> Iterator[Sample | Rejection]:
    """Yield the samples of a tar.

    Args:
        stretch: Stretch to read, a whole tar.
        fields: Field mapping of the JSON members. A sample without the field of the id gets the key as its id. A text member is the value of
            the text's field. Members that the mapping keeps come with the sample, and do not change the hash.
        max_sample_bytes: Largest size of a sample.
        hasher: Hash that is updated with the names and the content of the members of each sample.
        passed_over: Counter of the members that belong to no sample, and of the members that are neither text nor JSON and are not kept.

    Raises:
        CorpusError: A kept member is too large, or is a link.
    """
    name, row = stretch.name, 0
    try:
        for group in _groups(stretch, 16 * max_sample_bytes + _CHUNK_BYTES, fields.members, passed_over):
            row += 1
            names = (group.key, *sorted(group.members))
            hasher.update(orjson.dumps([_id_of(name) or printable(name) for name in names]))
            for ext in sorted(group.members):
                # With the length first, two members cannot give the same bytes as two others that are cut elsewhere.
                hasher.update(b"%d:" % len(group.members[ext]) + group.members[ext])
                if not ext.endswith((".txt", ".json")) and ext[1:] not in fields.members.values():
                    passed_over.members[beside_texts(printable(ext))] += 1
            try:
                sample = fields.sample(_record(group, passed_over, fields), row)
                check_size(sample, fields.mapping.kept_meta(sample.meta), max_sample_bytes)
            except BadRecord as error:
                raw = next((data for ext, data in sorted(group.members.items()) if ext.endswith(".json")), None)
                shown = None if raw is None else raw.decode(errors="backslashreplace")
                yield Rejection(name, row, error.reason, error.detail, error.id, shown, error.field)
            else:
                yield replace(sample, members=tuple(sorted(group.kept.items()))) if group.kept else sample
    except _Cut as error:
        yield _cut_off(stretch, row, str(error))


def _cut_off(stretch: Stretch, row: int, damage: str) -> Rejection:
    if row == 0 and not _begins_as_tar(stretch):
        detail = "not what its name says (expected a tar, found no tar header at its start)"
        return Rejection(stretch.name, None, "not-the-named-format", detail)
    detail = f"from here on the file is cut off or damaged ({damage})"
    return Rejection(stretch.name, row + 1, "truncated", detail)


def _begins_as_tar(stretch: Stretch) -> bool:
    with storage.open_stream(stretch.place) as stream:
        head = bytes(stream.read(_RECORD))
    # A file shorter than a header has no checksum. Its start must look like a path, zeros, and an octal number.
    if len(head) < _RECORD:
        path, mode = head[:100].rstrip(b"\0"), head[100:107]
        return b"\0" not in path and not path.startswith((b"{", b"\x1f\x8b")) and (not mode or mode.isdigit())
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return str(error) == "end of file header"
    return True


def _groups(stretch: Stretch, member_limit: int, kept: Mapping[str, str], passed_over: PassedOver) -> Iterator[_Group]:
    """Yield groups of neighbouring members with the same key. The next member, or the end of the tar, completes a group.

    A tar that is cut off has no end mark, so the last group of such a tar is not complete and is not yielded.
    """
    group: _Group | None = None
    for member in _members(stretch, member_limit, kept, passed_over):
        # A repeated extension begins another sample. Otherwise the second member would replace the first in silence.
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
        if member.kept is not None:
            suffix, content = member.kept
            group.kept[suffix] = content
            num_bytes = sum(map(len, group.kept.values()))
            if num_bytes > MAX_MEMBER_BYTES:
                raise too_large(f"{stretch.name}: sample {printable(group.key)}", num_bytes)


def _members(
    stretch: Stretch, member_limit: int, kept: Mapping[str, str], passed_over: PassedOver
) -> Iterator[_Member]:
    """Yield the members of samples, and a member without key at the end of a whole tar.

    Members other than texts and JSON have empty content.

    Args:
        stretch: Stretch to read, a whole tar.
        member_limit: Largest size of a text or JSON member that is read, in bytes.
        kept: Suffix -> source of each member that is kept as bytes.
        passed_over: Counter of the members that belong to no sample.

    Raises:
        _Cut: The tar is damaged or cut off.
        CorpusError: A kept member is too large, or is a link.
    """
    suffixes = {f".{source}": suffix for suffix, source in kept.items()}
    if stretch.file_bytes == 0:
        raise _Cut("the file is empty, 0 bytes")
    with storage.open_stream(stretch.place) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every member, which fills the memory
                    if member.isdir():
                        continue
                    if (kind := _of_no_sample(member)) is not None:
                        passed_over.members[kind] += 1
                        continue
                    key, ext = _key_and_ext(member.name)
                    is_link = not member.isreg() and ext.endswith((".txt", ".json"))
                    data = _content(tar, member, ext, member_limit) if member.isreg() else b""
                    bytes_of = None
                    if ext in suffixes:
                        bytes_of = suffixes[ext], _kept_content(tar, member, stretch.name)
                    yield _Member(key, ext, data, member.linkname if is_link else None, bytes_of)
                end = tar.offset
        except CorpusError:  # a ValueError too, and no damage
            raise
        except _DAMAGE as error:
            raise _Cut(str(error) or type(error).__name__) from error
    # tarfile does not say why it stops, so the block at the place of the stop is read again.
    with storage.open_random(stretch.place) as file:
        file.seek(min(end, stretch.file_bytes))
        _check_end_mark(bytes(file.read(_RECORD)), end)
        yield _Member(None)  # before the rest is checked: damage after the end mark does not refuse the last sample
        while chunk := bytes(file.read(_CHUNK_BYTES)):
            if chunk.strip(b"\0"):
                raise _Cut("data after the end-of-archive mark, as of two tars joined")


def _of_no_sample(member: tarfile.TarInfo) -> str | None:
    """Return the kind of a member that belongs to no sample, or None for a member of a sample."""
    *folders, base = [part for part in member.name.split("/") if part not in ("", ".")] or [""]
    for folder in folders:
        if (folder.startswith(".") and folder != "..") or folder == "__MACOSX":
            return f"{printable(folder)}/"
    # As in webdataset, only the first folder counts. The JSON Lines of compact shards lie in such a folder.
    if folders and re.fullmatch("__.*__", folders[0], flags=re.DOTALL):
        return f"{printable(folders[0])}/"
    stem, dot, ext = base.partition(".")
    if not (member.isreg() or member.islnk() or member.issym()):
        return "pipes and devices"
    if base.startswith("._"):
        return "._*"
    if base.startswith("."):
        return ".*"
    if re.fullmatch("__.+__", stem, flags=re.DOTALL):
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


def _kept_content(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    """Read a member that is kept as bytes.

    Raises:
        CorpusError: The member is too large, or is a link.
    """
    shown = f"{name}: member {printable(member.name)}"
    if not member.isreg():
        raise CorpusError(
            f"{shown} is a link to {printable(member.linkname)}, and links are not followed. Pack with tar --dereference --hard-dereference."
        )
    if member.size > MAX_MEMBER_BYTES:
        raise too_large(shown, member.size)
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _key_and_ext(path: str) -> tuple[str, str]:
    """Split the path of a member into the key and the extension in lower case.

    >>> _key_and_ext("./a.b/000.meta.JSON")
    ('a.b/000', '.meta.json')
    """
    folder, slash, base = path.removeprefix("./").rpartition("/")
    stem, dot, ext = base.partition(".")
    return folder + slash + stem, dot + ext.lower()


def _check_end_mark(mark: bytes, offset: int) -> None:
    """Raise `_Cut` unless the block after the last member is zeros. tarfile stops silently at a damaged or missing header."""
    if len(mark) < _RECORD:
        raise _Cut("no end-of-archive mark")
    if mark.strip(b"\0"):
        raise _Cut(f"no tar header at byte {offset:,}")


def _member(group: _Group, ending: Literal[".txt", ".json"], passed_over: PassedOver) -> bytes | None:
    """Return the member with the extension `ending`, or the only member whose extension ends with `ending`, or None.

    Raises:
        BadRecord: Several extensions end with `ending`, and no extension is `ending` itself.
    """
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
    """Return the key as an id, or None if the key is not valid UTF-8."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return None
    return key


def _record(group: _Group, passed_over: PassedOver, fields: RowFields) -> Any:
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
        decoded, text_field = _text(text, group.key), fields.text_member
        if record.get(text_field, decoded) != decoded:
            passed_over.members[f"field {text_field!r} of a JSON member beside another text"] += 1
        record[text_field] = decoded
    paths = () if fields.mapping.template is None else fields.mapping.template.paths
    if not record and not (paths and all(map(is_of_file, paths))):
        raise BadRecord("missing-field", _without_text(group), _id_of(group.key), fields.text_member)
    id_field = fields.mapping.id_field
    if id_field is not None and not is_of_file(id_field) and follow(record, id_field) is MISSING:
        if _id_of(group.key) is None:
            raise BadRecord("invalid-utf8", f"the name of its members, {key}, is not valid UTF-8")
        record[id_field] = group.key
    return record


def _without_text(group: _Group) -> str:
    """Return the sentence about a sample without a text member and without a JSON member."""
    names = name_some(f"{printable(group.key)}{ext}" for ext in group.members)
    archives = [ext for ext in group.members if ext.endswith(_ARCHIVES)]
    remedy = ". An archive inside a tar is not read: unpack it" if archives else ""
    return f"no member .txt or .json for the text; the members of the sample are {names or 'none'}{remedy}"


def _json(group: _Group, passed_over: PassedOver) -> Any:
    data = _member(group, ".json", passed_over)
    if data is None:
        return {}
    try:
        return parse_json(data)
    except orjson.JSONDecodeError as error:
        reason, detail = json_fault(error)
        where = "its JSON member is" if reason == "malformed-json" else "in its JSON member,"
        raise BadRecord(reason, f"{where} {detail}", _id_of(group.key)) from error
    except BadRecord as error:
        raise BadRecord(error.reason, f"in its JSON member, {error.detail}", _id_of(group.key), error.field) from error


def _text(data: bytes, key: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        detail = f"its text member is not valid UTF-8 (byte 0x{data[error.start]:02x} at {error.start:,})"
        raise BadRecord("invalid-utf8", detail, _id_of(key)) from error
