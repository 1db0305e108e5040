"""Everything that lies under a directory, or matches a glob: files, hidden ones too, and what is no file.

Directories of this machine are read with the standard library: it takes names that are not UTF-8, and it tells files
from named pipes and devices, which would make a reader wait for ever.
"""

import glob
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from skillshard import places, storage
from skillshard.errors import CorpusError
from skillshard.printable import printable


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, a device, a pipe or a broken link that a listing shows.

    Attributes:
        place: path or URI.
        name: place relative to the directory that was listed, with "/".
        num_bytes, mtime_ns: size and time of last change.
        special: "" for a file, else what it is: "a named pipe", "a device", "a socket" or "a link to nothing".
    """

    place: str
    name: str
    num_bytes: int
    mtime_ns: int
    special: str = ""


def list_directory(place: str) -> list[Entry]:
    """Everything under a directory, sorted by name; links are followed."""
    if not places.is_remote(place):
        return sorted(_walk(place, "", ()), key=lambda entry: entry.name)
    files = storage.list_files(place, hidden=True)
    return [Entry(file.place, _relative(file.place, place), file.num_bytes, file.mtime_ns) for file in files]


def list_glob(pattern: str) -> tuple[str, list[Entry]]:
    """The directory before a glob's first wildcard, and everything that matches or lies in a matching directory."""
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = "/".join(parts[:fixed]) or "/"
    if places.is_remote(pattern):
        return base, [e for e in list_directory(base) if _leads_to(e.name.split("/"), parts[fixed:])]
    found: dict[str, Entry] = {}
    for match in sorted(glob.glob(pattern, recursive=True)):
        match = match.rstrip("/")
        for entry in _walk(match, _relative(match, base), ()) if os.path.isdir(match) else [_entry(match, base)]:
            found[entry.place] = entry
    return base, sorted(found.values(), key=lambda entry: entry.name)


def special_kind(place: str) -> str | None:
    """What stands at a local place: "" for a file, "a directory", another kind as in `Entry`; None for nothing."""
    try:
        return storage.special_kind(os.stat(place).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return "a link to nothing" if os.path.islink(place) else None
    except OSError as error:
        raise CorpusError(f"{printable(place)} cannot be opened: {error.strerror}. Check the path.") from error


def _walk(folder: str, name: str, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
    """Everything under a local directory. A link to a directory above it is passed over: its files are listed already."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as children:
            found = list(children)
    except OSError as error:
        reason = f"{printable(folder)} cannot be listed: {error.strerror}"
        raise CorpusError(f"{reason}. Make it readable, or name the files that are meant with a glob.") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for child in found:
        child_name = f"{name}/{child.name}" if name else child.name
        try:
            child_status = child.stat()
        except OSError:
            yield Entry(child.path, child_name, 0, 0, "a link to nothing")
            continue
        if stat.S_ISDIR(child_status.st_mode):
            yield from _walk(child.path, child_name, (*above, here))
        else:
            kind = storage.special_kind(child_status.st_mode)
            yield Entry(child.path, child_name, child_status.st_size, child_status.st_mtime_ns, kind)


def _entry(place: str, base: str) -> Entry:
    kind = special_kind(place) or ""
    if kind:
        return Entry(place, _relative(place, base), 0, 0, kind)
    status = os.stat(place)
    return Entry(place, _relative(place, base), status.st_size, status.st_mtime_ns)


def _relative(place: str, base: str) -> str:
    if places.is_remote(base):
        place, base = place.partition("?")[0], base.partition("?")[0]
    return place[len(base.rstrip("/")) + 1 :]


def _leads_to(parts: list[str], patterns: list[str]) -> bool:
    """Whether a path, or a directory above it, matches a glob given in its parts.

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
