"""Files by path or URI: open, list, write whole or not at all, put if absent.

A place is a local path or a URI (`s3://`, `gs://`, `abfs://`, `hf://`, `file://`); pyarrow.fs does the rest, and also
opens `.gz` and `.zst`. Writing goes through a temporary file beside the target (local) or on this machine (remote),
and only a finished file gets its name, so a killed process leaves nothing half-written under a final name.
"""

import contextlib
import fnmatch
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.fs as pafs
import xxhash
from pydantic import ValidationError

from skillshard.errors import StorageError

COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_PART = ".part"


@dataclass(frozen=True)
class FileStat:
    """One file: its place, size in bytes and time of last change in nanoseconds (0 where the store tells none)."""

    place: str
    num_bytes: int
    mtime_ns: int


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URI that is not a local file.

    >>> is_remote("s3://bucket/key"), is_remote("/tmp/x"), is_remote("file:///tmp/x")
    (True, False, False)
    """
    text = os.fspath(place)
    return "://" in text and not text.startswith("file://")


def local_path(place: str | os.PathLike[str]) -> Path:
    """The local path of a place; an error for a remote one."""
    text = os.fspath(place)
    if is_remote(text):
        raise StorageError(f"{text} is not on this machine: this needs a local directory.")
    return Path(text.removeprefix("file://"))


def join(place: str | os.PathLike[str], *parts: str) -> str:
    """
    >>> join("s3://bucket/run/", "tags.json"), join("out", "train", "0.tar")
    ('s3://bucket/run/tags.json', 'out/train/0.tar')
    """
    return "/".join([os.fspath(place).rstrip("/") or "/", *parts])


def filesystem(place: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a place, and the path in it."""
    text = os.fspath(place)
    if not is_remote(text):
        return pafs.LocalFileSystem(), os.path.abspath(text.removeprefix("file://"))
    try:
        return pafs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, ValueError, OSError) as error:
        raise StorageError(f"{text} cannot be opened: {error}") from error


def exists(place: str | os.PathLike[str]) -> bool:
    fs, path = filesystem(place)
    return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)


def stat(place: str | os.PathLike[str]) -> FileStat:
    """Size and time of change of one file; an error where there is none."""
    fs, path = filesystem(place)
    info = fs.get_file_info(path)
    if info.type != pafs.FileType.File:
        raise StorageError(f"{os.fspath(place)}: no such file.")
    return FileStat(os.fspath(place), info.size, info.mtime_ns or 0)


def list_files(place: str | os.PathLike[str], pattern: str = "*") -> list[FileStat]:
    """All files under a directory, sorted by place; hidden ones (a leading dot in any part) are left out."""
    fs, path = filesystem(place)
    base = os.fspath(place).rstrip("/")
    found = []
    for info in fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True)):
        relative = info.path[len(path.rstrip("/")) + 1 :]
        hidden = any(part.startswith(".") for part in relative.split("/"))
        if info.type == pafs.FileType.File and not hidden and fnmatch.fnmatch(info.base_name, pattern):
            found.append(FileStat(f"{base}/{relative}", info.size, info.mtime_ns or 0))
    return sorted(found, key=lambda file: file.place)


def open_stream(place: str | os.PathLike[str], *, compression: str | None = None) -> pa.NativeFile:
    """A stream of bytes from the start of a file, decompressed if `compression` ("gzip", "zstd") is given."""
    fs, path = filesystem(place)
    try:
        return fs.open_input_stream(path, compression=compression)
    except FileNotFoundError as error:
        raise StorageError(f"{os.fspath(place)}: no such file.") from error
    except OSError as error:
        raise StorageError(f"{os.fspath(place)} cannot be read: {error}") from error


def open_random(place: str | os.PathLike[str]) -> pa.NativeFile:
    """A seekable file; memory-mapped where it is local."""
    if not is_remote(place):
        try:
            return pa.memory_map(str(local_path(place)), "r")
        except FileNotFoundError as error:
            raise StorageError(f"{os.fspath(place)}: no such file.") from error
    fs, path = filesystem(place)
    return fs.open_input_file(path)


def read_bytes(place: str | os.PathLike[str]) -> bytes:
    with open_stream(place) as stream:
        return bytes(stream.read())


@contextlib.contextmanager
def writing(place: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a local path to write to; it becomes `place`, whole, when the block ends, and nothing if it fails.

    A second writer of the same place may run at the same time: the last one to finish wins, and readers see one
    whole file or the other.
    """
    if is_remote(place):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part"
            yield part
            fs, path = filesystem(place)
            pafs.copy_files(str(part), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)
        return
    target = local_path(place)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{_PART}")
    try:
        yield part
        sync(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(place: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, whole or not at all."""
    with writing(place) as part:
        part.write_bytes(data)


def put_if_absent(path: Path, data: bytes) -> bool:
    """Write a local file unless it is there; whether it was written. Exactly one of several racing writers wins.

    A hard link is the atomic step: it fails if the name exists, on local file systems and on NFS. The file survives the
    death of any process; `sync` makes it survive that of the machine.
    """
    if path.exists():
        return False
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_PART}")
    try:
        part.write_bytes(data)
        os.link(part, path)
    except FileExistsError:
        return False
    finally:
        part.unlink(missing_ok=True)
    return True


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete the temporary files that killed writers left under a local directory."""
    for part in local_path(folder).rglob(f".*{_PART}"):
        part.unlink(missing_ok=True)


def to_json(value: Any) -> bytes:
    """The one JSON form of a value: sorted keys, indented by two, a newline at the end. Equal values, equal bytes."""
    return orjson.dumps(
        value,
        option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY,
    )


def from_json(data: bytes, place: str | os.PathLike[str]) -> Any:
    """Parse JSON; `place` is named where it is not JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise StorageError(f"{os.fspath(place)} is not valid JSON: {error}. It is damaged or edited.") from error


def read_json(place: str | os.PathLike[str]) -> Any:
    return from_json(read_bytes(place), place)


def first_fault(error: ValidationError) -> str:
    """What is wrong first with a JSON file that does not fit its model, and where in it."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {fault['msg']}" if where else fault["msg"]


def digest(data: bytes | memoryview) -> str:
    """The digest of content that every artefact uses: xxh3, 128 bits, in hex. Finds damage, not forgery.

    >>> digest(b"skill")
    'd48a3536c201ca8e3ea8a9b7351e5067'
    """
    return xxhash.xxh3_128_hexdigest(data)


def file_digest(place: str | os.PathLike[str], chunk_bytes: int = 1 << 20) -> str:
    """`digest` of a file's bytes, read in chunks."""
    hasher = xxhash.xxh3_128()
    with open_stream(place) as stream:
        while chunk := stream.read(chunk_bytes):
            hasher.update(chunk)
    return hasher.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
