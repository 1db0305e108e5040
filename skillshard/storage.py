"""Files by path or URI: open, list, write whole or not at all, put if absent.

A place is a local path or a URI (`s3://`, `gs://`, `abfs://`, `hf://`, `file://`); pyarrow.fs does the rest, and also
opens `.gz` and `.zst`. `http://` and `https://` can be read, file by file (web.py). What a URI says after `?` belongs to the
store (`s3://bucket/S?region=us-east-1&endpoint_override=host:9000&scheme=http`), not to the path. Writing goes through a temporary file beside the target (local) or on this machine (remote),
and only a finished file gets its name, so a killed process leaves nothing half-written under a final name.
"""

import contextlib
import errno
import fnmatch
import os
import random
import re
import secrets
import ssl
import stat as stat_module
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from skillshard import places, stores, web
from skillshard.canonical import digest_of, from_json
from skillshard.errors import StorageError, first_line, is_of_a_client

T = TypeVar("T")
TRIES = 6
"""How often a remote file is asked for before an error."""
BACK_OFF_S = 0.5
"""The first pause between two tries; each is twice the one before, so at most 15.5 s of pauses, and half of that at least."""
MAX_PAUSE_S = 60.0
"""Longest pause that a server can ask for."""
CHUNK_BYTES = 8 << 20
"""Read from a store at once: pyarrow sends one request for each read."""
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_PART = ".part"


@dataclass(frozen=True)
class FileStat:
    """One file: its place, size in bytes and time of last change in nanoseconds (0 where the store tells none)."""

    place: str
    num_bytes: int
    mtime_ns: int


def exists(place: str | os.PathLike[str]) -> bool:
    if web.is_web(os.fspath(place)):
        return retried(place, lambda: web.num_bytes(os.fspath(place))) is not None
    return bool(info(place).type != pafs.FileType.NotFound)


def stat(place: str | os.PathLike[str]) -> FileStat:
    """Size and time of change of one file; an error where there is none."""
    if web.is_web(os.fspath(place)):
        num_bytes = retried(place, lambda: web.num_bytes(os.fspath(place)))
        if num_bytes is None:
            raise StorageError(f"{places.public(place)}: no such file.")
        return FileStat(os.fspath(place), num_bytes, 0)
    found = info(place)
    if found.type != pafs.FileType.File:
        raise StorageError(f"{os.fspath(place)}: no such file.")
    return FileStat(os.fspath(place), found.size, found.mtime_ns or 0)


def info(place: str | os.PathLike[str]) -> pafs.FileInfo:
    """What is at a place: a file, a directory or nothing."""
    fs, path = places.filesystem(place)
    if not places.is_remote(place):
        return fs.get_file_info(path)
    with stores.no_fork:
        return retried(place, lambda: fs.get_file_info(path))


def special_kind(mode: int) -> str:
    """What has this mode of `os.stat`: "" for a file, else "a directory", "a named pipe", "a socket" or "a device"."""
    if stat_module.S_ISREG(mode):
        return ""
    kinds = (
        (stat_module.S_ISDIR, "a directory"),
        (stat_module.S_ISFIFO, "a named pipe"),
        (stat_module.S_ISSOCK, "a socket"),
    )
    return next((kind for test, kind in kinds if test(mode)), "a device")


def refuse_special(place: str | os.PathLike[str]) -> None:
    """StorageError where a local place is there and is no file; whoever opened a pipe would wait for its writer for ever."""
    try:
        kind = special_kind(os.stat(places.local_path(place)).st_mode)
    except FileNotFoundError:
        return
    if kind:
        raise StorageError(f"{os.fspath(place)} is {kind}, not a file. Put the file there, or give another place.")


def list_files(place: str | os.PathLike[str], pattern: str = "*", *, hidden: bool = False) -> list[FileStat]:
    """All files under a directory, sorted by place; hidden ones (a leading dot in any part) only if asked for."""
    fs, path = places.filesystem(place)
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    if places.is_remote(place):
        with stores.no_fork:
            infos = retried(place, lambda: fs.get_file_info(selector))
    else:
        infos = fs.get_file_info(selector)
    found = []
    for info in infos:
        relative = info.path[len(path.rstrip("/")) + 1 :]
        is_hidden = any(part.startswith(".") for part in relative.split("/"))
        if info.type == pafs.FileType.File and (hidden or not is_hidden) and fnmatch.fnmatch(info.base_name, pattern):
            found.append(FileStat(places.join(place, relative), info.size, info.mtime_ns or 0))
    return sorted(found, key=lambda file: file.place)


def open_stream(place: str | os.PathLike[str], *, compression: str | None = None) -> pa.NativeFile:
    """A stream of bytes from the start of a file, decompressed if `compression` ("gzip", "zstd") is given."""
    if web.is_web(os.fspath(place)):
        body = pa.PythonFile(retried(place, lambda: web.get(os.fspath(place))), mode="r")
        return pa.CompressedInputStream(body, compression) if compression else body
    fs, path = places.filesystem(place)
    if places.is_remote(place):
        return retried(place, lambda: fs.open_input_stream(path, compression=compression))
    try:
        return fs.open_input_stream(path, compression=compression)
    except FileNotFoundError as error:
        raise StorageError(f"{os.fspath(place)}: no such file.") from error
    except OSError as error:
        refuse_special(place)
        raise StorageError(f"{os.fspath(place)} cannot be read: {error}") from error


def open_random(place: str | os.PathLike[str]) -> pa.NativeFile:
    """A seekable file; memory-mapped where it is local."""
    if not places.is_remote(place):
        try:
            return pa.memory_map(str(places.local_path(place)), "r")
        except FileNotFoundError as error:
            raise StorageError(f"{os.fspath(place)}: no such file.") from error
        except OSError as error:
            refuse_special(place)
            raise StorageError(f"{os.fspath(place)} cannot be read: {error}") from error
    fs, path = places.filesystem(place)
    return retried(place, lambda: fs.open_input_file(path))


def chunks(place: str | os.PathLike[str]) -> Iterator[bytes | bytearray]:
    """The bytes of a file; what goes wrong at a store is raised as it is, once: for `retried`.

    The S3 client writes what a store says of an error into the buffer for the file's bytes, and reads it from there, with all that
    follows: "no" and then an old `<a></a>` end the process. So each request gets a buffer of zeros.
    """
    if web.is_web(os.fspath(place)):
        with web.get(os.fspath(place)) as body:
            while chunk := body.read1(1 << 20):
                yield chunk
        return
    with stores.no_fork:
        fs, path = places.filesystem(place)
        file = fs.open_input_file(path)
        left = file.size()
    try:
        while left > 0:
            buffer = bytearray(min(left, CHUNK_BYTES))
            with stores.no_fork:
                got = file.readinto(buffer)
            if not got:
                return
            left -= got
            yield buffer[:got] if got < len(buffer) else buffer
    finally:
        with stores.no_fork:
            file.close()


def retried(place: str | os.PathLike[str], action: Callable[[], T]) -> T:
    """The result of reading from a remote place, tried `TRIES` times while what goes wrong may pass.

    Raises:
        StorageError: it cannot be read, or could not in so many tries.
    """
    started_s = time.monotonic()
    for attempt in range(TRIES):
        try:
            return action()
        except StorageError:
            raise
        except FileNotFoundError as error:
            raise StorageError(f"{places.public(place)}: no such file.") from error
        except OSError as error:
            if not may_pass(error):
                raise StorageError(
                    f"{places.public(place)} cannot be read: {error}. Is the address right, and may you read it?"
                ) from error
            last: Exception = error
        except Exception as error:  # fsspec has stores of many makers, each with exceptions of its own
            if not is_of_a_client(error):
                raise
            if not may_pass(error):
                raise StorageError(
                    f"{places.public(place)} cannot be read: {first_line(error)}. Is the address right, and is there a network?"
                ) from error
            last = error
        if attempt < TRIES - 1:
            pause_s = BACK_OFF_S * 2**attempt * random.uniform(0.5, 1)
            # A busy server says when to come back. A minute is the limit, because a wrong header must not stop a training.
            asked_s = last.retry_after_s if isinstance(last, web.WebError) else None
            time.sleep(max(pause_s, min(asked_s or 0.0, MAX_PAUSE_S)))
    raise StorageError(
        f"{places.public(place)} could not be read in {TRIES} tries over {time.monotonic() - started_s:.0f} s; the last one: "
        f"{first_line(last)}. Is there a network, and is the server well? Then run it again: what is finished is kept."
    ) from last


_FOR_GOOD = re.compile(
    r"AWS Error (ACCESS_DENIED|NO_SUCH_\w+|INVALID_\w+|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|MISSING_\w+|RESOURCE_NOT_FOUND)"
    r"|HTTP status 4(?!08|29)\d\d"
)


def may_pass(error: BaseException) -> bool:
    """Whether what a store said may be otherwise in a moment: 5xx, 408, 429, resets, time-outs and short bodies are.

    >>> may_pass(ConnectionResetError()), may_pass(TimeoutError()), may_pass(PermissionError())
    (True, True, False)
    """
    if isinstance(error, web.WebError):
        return error.may_pass
    if isinstance(error, FileNotFoundError | PermissionError | StorageError | ssl.SSLCertVerificationError):
        return False
    if is_of_a_client(error):
        return not _FOR_GOOD.search(str(error)) and "Name or service not known" not in str(error)
    return isinstance(error, OSError) and not _FOR_GOOD.search(str(error))


def read_bytes(place: str | os.PathLike[str]) -> bytes:
    if places.is_remote(place):
        return retried(place, lambda: b"".join(chunks(place)))
    with open_stream(place) as stream:
        return bytes(stream.read())


@contextlib.contextmanager
def writing(place: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a local path to write to; it becomes `place`, whole, when the block ends, and nothing if it fails.

    A second writer of the same place may run at the same time: the last one to finish wins, and readers see one
    whole file or the other.
    """
    if places.is_remote(place):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part"
            yield part
            fs, path = places.filesystem(place)
            pafs.copy_files(str(part), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)
        return
    target = places.local_path(place)
    part = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{_PART}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        sync(part)
        os.replace(part, target)
    except OSError as error:
        if error.errno not in _REMEDIES or error.filename not in (None, str(part), *map(str, part.parents)):
            raise
        raise StorageError(
            f"{target} cannot be written: {os.strerror(error.errno)}. {_REMEDIES[error.errno]}. What is finished is kept: mend the cause and "
            "run the same command again."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


_REMEDIES = {
    errno.ENOSPC: "Free space on that disk, or write to another one",
    errno.EDQUOT: "Your quota there is used up: free some of it, or write to another disk",
    errno.EFBIG: "The file system or a limit (ulimit -f) allows no larger files",
    errno.EROFS: "It lies on a file system that is read-only: write to another one",
    errno.EACCES: "You may not write there: change the permissions, or write to another directory",
    errno.EPERM: "You may not write there: change the permissions, or write to another directory",
    errno.ENOTDIR: "A part of that path is a file: write to another directory",
    errno.EEXIST: "A part of that path is a file: write to another directory",
    errno.ENAMETOOLONG: "The file system allows no names of that length: write to another directory",
}
"""What to do where a file cannot be written, for causes that do not pass by themselves."""


def write_bytes(place: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, whole or not at all."""
    with writing(place) as part:
        part.write_bytes(data)


def write_array(place: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an array as .npy, whole or not at all."""
    with writing(place) as part, part.open("wb") as file:
        np.save(file, array)


def write_arrays(place: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as .npz, whole or not at all."""
    with writing(place) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub sees its own flag in **


NO_HARD_LINKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EMLINK, errno.EACCES)
"""What `os.link` says on a file system without hard links. FAT and some FUSE file systems say EPERM, some network ones EACCES."""


def put_if_absent(path: str | os.PathLike[str], data: bytes) -> bool:
    """Write a local file unless its name is taken. Exactly one of several racing writers wins.

    A hard link is the atomic step: the link fails if the name exists, on local file systems and on NFS. Where a file system
    has no hard links, a symbolic link to a hidden file beside it is the same step. The file survives the death of any
    process. `sync` makes the file survive the death of the machine.

    Returns:
        Whether this call wrote the file.

    Raises:
        StorageError: the file system has neither hard links nor symbolic links.
        OSError: the folder is missing, full or read-only.
    """
    if os.path.lexists(path):
        return False
    folder, name = os.path.split(path)
    part = os.path.join(folder, f".{name}.{os.getpid()}-{secrets.token_hex(4)}{_PART}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)
        try:
            os.link(part, path)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            _link_by_name(part, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    return True


def _link_by_name(part: str, path: str | os.PathLike[str]) -> None:
    """Give a written file its name by a symbolic link; FileExistsError if the name is taken."""
    hidden = f"{part.removesuffix(_PART)}.data"  # `remove_leftovers` deletes what ends in _PART
    os.rename(part, hidden)
    try:
        os.symlink(os.path.basename(hidden), path)
    except OSError as error:
        os.unlink(hidden)
        if isinstance(error, FileExistsError) or error.errno not in NO_HARD_LINKS:
            raise
        raise StorageError(
            f"{os.fspath(path)}: this file system has neither hard links nor symbolic links ({error.strerror}), so several processes "
            "cannot agree on one file there. Give a directory on another file system, such as a local disk or NFS."
        ) from error


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete the temporary files that killed writers left under a local directory."""
    for part in places.local_path(folder).rglob(f".*{_PART}"):
        part.unlink(missing_ok=True)


def read_json(place: str | os.PathLike[str]) -> Any:
    return from_json(read_bytes(place), place)


def file_digest(place: str | os.PathLike[str], chunk_bytes: int = 1 << 20) -> str:
    """`digest` of a file's bytes, read in chunks."""
    if not places.is_remote(place):
        refuse_special(place)
    with open_stream(place) as stream:
        return digest_of(iter(lambda: stream.read(chunk_bytes), b""))


def num_lines(place: str | os.PathLike[str]) -> int:
    """Number of lines of a file whose every line ends with a line break."""
    return read_bytes(place).count(b"\n")


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
