"""List all entries under a directory or all matches of a glob, also hidden files, pipes, devices and broken links.

The standard library lists local directories, because local names need not be UTF-8. The listing recognizes pipes and devices, because
a reader of a pipe would wait forever.
"""

import glob
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from skillshard import places, storage
from skillshard.errors import CorpusError
from skillshard.printable import printable

_QUERY = re.compile(r"\?\w+=[^?]*$")


@dataclass(frozen=True, slots=True)
class Entry:
    """File, device, pipe or broken link in a listing.

    Attributes:
        place: Path or URI.
        name: Place relative to the listed directory, with "/".
        num_bytes: Size.
        mtime_ns: Modification time, in nanoseconds.
        special: "" for a file, otherwise the kind: "a named pipe", "a device", "a socket" or "a link to nothing".
        is_linked: Whether the entry, or a directory above it in the listing, is a link.
    """

    place: str
    name: str
    num_bytes: int
    mtime_ns: int
    special: str = ""
    is_linked: bool = False


def list_directory(place: str) -> list[Entry]:
    """List all entries under a directory, sorted by name. Links are followed."""
    if not places.is_remote(place):
        return sorted(_walk(place, "", ()), key=lambda entry: entry.name)
    files = storage.list_files(place, hidden=True)
    return [Entry(file.place, places.relative(file.place, place), file.num_bytes, file.mtime_ns) for file in files]


def list_glob(pattern: str) -> tuple[str, list[Entry]]:
    """Return the directory before the first wildcard of a glob, and all entries that match or lie in a matching directory."""
    path = without_query(pattern)
    parts = path.split("/")
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    base = "/".join(parts[:fixed]) or "/"
    if places.is_remote(pattern):
        base += pattern[len(path) :]
        return base, [entry for entry in list_directory(base) if _leads_to(entry.name.split("/"), parts[fixed:])]
    entries: dict[str, Entry] = {}  # by place, because `**` matches a directory and also the entries in the directory
    for match in sorted(glob.glob(pattern, recursive=True)):
        match = match.rstrip("/")
        is_linked = _is_linked(match, base)
        if os.path.isdir(match):
            listed = list(_walk(match, _relative(match, base), (), is_linked=is_linked))
        else:
            listed = [replace(_entry(match, base), is_linked=is_linked)]
        entries |= {entry.place: entry for entry in listed}
    return base, sorted(entries.values(), key=lambda entry: entry.name)


def without_query(place: str) -> str:
    """Return a place without the query of a store's address, which is no part of a name. Elsewhere "?" is a wildcard or a character.

    >>> without_query("s3://bucket/part-?.jsonl?region=us-east-1&scheme=http"), without_query("s3://bucket/part-?.jsonl")
    ('s3://bucket/part-?.jsonl', 's3://bucket/part-?.jsonl')
    """
    return _QUERY.sub("", place) if places.is_remote(place) else place


def shown_place(place: str) -> str:
    """Return a place for a message, without the keys that the address of a store can hold."""
    return printable(places.public(place))


def special_kind(place: str) -> str | None:
    """Return the kind of a local place: "" for a file, "a directory", a kind as in `Entry`, or None if nothing exists."""
    try:
        return storage.special_kind(os.stat(place).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return "a link to nothing" if os.path.islink(place) else None
    except OSError as error:
        raise CorpusError(f"{printable(place)} cannot be opened: {error.strerror}. Check the path.") from error


def _is_linked(place: str, base: str) -> bool:
    """Return whether a place, or a directory between the place and its base, is a link."""
    return os.path.realpath(place) != os.path.join(os.path.realpath(base), _relative(place, base))


def _walk(folder: str, name: str, above: tuple[tuple[int, int], ...], *, is_linked: bool = False) -> Iterator[Entry]:
    """Yield all entries under a local directory.

    Args:
        folder: Path of the directory.
        name: Name of the directory in the listing.
        above: Device and inode of each directory above. A link to such a directory is passed over, because its files are listed
            already, and because the walk would not end.
        is_linked: As in `Entry`, for the directory.
    """
    try:
        status = os.stat(folder)
        # The list is complete before the descent, so a deep tree does not use up the limit of open files.
        with os.scandir(folder) as scan:
            children = list(scan)
    except OSError as error:
        reason = f"{printable(folder)} cannot be listed: {error.strerror}"
        raise CorpusError(f"{reason}. Make the directory readable, or choose the files with a glob.") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for child in children:
        child_name = f"{name}/{child.name}" if name else child.name
        try:
            child_status = child.stat()
        except OSError:
            yield Entry(child.path, child_name, 0, 0, "a link to nothing")
            continue
        if stat.S_ISDIR(child_status.st_mode):
            linked = is_linked or child.is_symlink()
            yield from _walk(child.path, child_name, (*above, identity), is_linked=linked)
        else:
            kind = storage.special_kind(child_status.st_mode)
            size, mtime_ns = child_status.st_size, child_status.st_mtime_ns
            yield Entry(child.path, child_name, size, mtime_ns, kind, is_linked or child.is_symlink())


def _entry(place: str, base: str) -> Entry:
    kind = special_kind(place) or ""
    if kind:
        return Entry(place, _relative(place, base), 0, 0, kind)
    status = os.stat(place)
    return Entry(place, _relative(place, base), status.st_size, status.st_mtime_ns)


def _relative(place: str, base: str) -> str:
    return without_query(place)[len(without_query(base).rstrip("/")) + 1 :]


def _leads_to(parts: list[str], patterns: list[str]) -> bool:
    """Return whether a path, or a directory above the path, matches the parts of a glob.

    >>> _leads_to(["2024", "a.jsonl"], ["20*"]), _leads_to(["x", "y", "a.jsonl"], ["**", "*.jsonl"])
    (True, True)
    >>> _leads_to(["sub", "a.jsonl"], ["*.jsonl"])
    False
    """
    return any(_matches(parts[:length], patterns) for length in range(1, len(parts) + 1))


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or (bool(parts) and _matches(parts[1:], patterns))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])
