"""Files by path or URI: open, list, write whole or not at all, and create if absent.

A place is a local path or a URI (`s3://`, `gs://`, `abfs://`, `hf://`, `file://`). pyarrow.fs opens files of all kinds of places, and
decompresses `.gz` and `.zst`. Files of `http://` and `https://` can be read only (web.py). The part of a URI after `?` is for the store
(`s3://bucket/S?region=us-east-1&endpoint_override=host:9000&scheme=http`), and not part of the path. A file is first written to a
temporary file, beside the target (local) or on this machine (remote). Only a finished file gets its final name, so a killed process
leaves no half-written file under a final name. uploads.py puts the finished files of remote places.
"""

import contextlib
import errno
import fnmatch
import glob
import io
import os
import random
import re
import secrets
import shutil
import ssl
import stat as stat_module
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from skillshard import places, stores, uploads, web
from skillshard.canonical import digest_of, from_json
from skillshard.errors import StorageError, first_line, is_of_a_client

T = TypeVar("T")
Item = TypeVar("Item")
TRIES = 6
"""Number of tries to read a remote file before an error."""
BACK_OFF_S = 0.5
"""The first pause between two tries. Each pause is twice the pause before: together 7.75 to 15.5 s, since pauses are shortened at random."""
MAX_PAUSE_S = 60.0
"""Longest pause that a server can ask for."""
MAX_REQUESTS = 16
"""Largest number of requests to a store that a process makes at the same time."""
CHUNK_BYTES = 8 << 20
"""Bytes of one read from a store. pyarrow sends one request for each read."""
_PART = ".part"


@dataclass(frozen=True)
class FileStat:
    """A file with its place, its size in bytes and its time of last change in nanoseconds (0 if the store gives no time)."""

    place: str
    num_bytes: int
    mtime_ns: int


def exists(place: str | os.PathLike[str]) -> bool:
    if web.is_web(os.fspath(place)):
        return retried(place, lambda: web.num_bytes(os.fspath(place))) is not None
    return bool(info(place).type != pafs.FileType.NotFound)


def stat(place: str | os.PathLike[str]) -> FileStat:
    """Return the size and the time of last change of one file.

    Raises:
        StorageError: The file does not exist.
    """
    if web.is_web(os.fspath(place)):
        num_bytes = retried(place, lambda: web.num_bytes(os.fspath(place)))
        if num_bytes is None:
            raise StorageError(f"{places.public(place)}: no such file.")
        return FileStat(os.fspath(place), num_bytes, 0)
    file_info = info(place)
    if file_info.type != pafs.FileType.File:
        raise StorageError(f"{os.fspath(place)}: no such file.")
    return FileStat(os.fspath(place), file_info.size, file_info.mtime_ns or 0)


def info(place: str | os.PathLike[str]) -> pafs.FileInfo:
    """Return pyarrow's information about a place: a file, a directory or nothing."""
    fs, path = places.filesystem(place)
    if not places.is_remote(place):
        return fs.get_file_info(path)
    with stores.no_fork:
        return retried(place, lambda: fs.get_file_info(path))


def special_kind(mode: int) -> str:
    """Name the kind of a mode of `os.stat`: "" for a file, else "a directory", "a named pipe", "a socket" or "a device"."""
    if stat_module.S_ISREG(mode):
        return ""
    kinds = (
        (stat_module.S_ISDIR, "a directory"),
        (stat_module.S_ISFIFO, "a named pipe"),
        (stat_module.S_ISSOCK, "a socket"),
    )
    return next((kind for test, kind in kinds if test(mode)), "a device")


def refuse_special(place: str | os.PathLike[str]) -> None:
    """Refuse a local place that exists and is no file. A process that opens a pipe would wait for a writer for ever.

    Raises:
        StorageError: The place is a directory, a named pipe, a socket or a device.
    """
    # A missing file is left to the read, whose error names the file.
    try:
        kind = special_kind(os.stat(places.local_path(place)).st_mode)
    except FileNotFoundError:
        return
    if kind:
        raise StorageError(f"{os.fspath(place)} is {kind}, not a file. Put the file there, or give another place.")


def list_files(place: str | os.PathLike[str], pattern: str = "*", *, hidden: bool = False) -> list[FileStat]:
    """List all files under a directory, sorted by place. Hidden files (a leading dot in any part) are listed if `hidden` is true."""
    fs, path = places.filesystem(place)
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    if places.is_remote(place):
        with stores.no_fork:
            infos = retried(place, lambda: fs.get_file_info(selector))
    else:
        infos = fs.get_file_info(selector)
    files = []
    for info in infos:
        relative = info.path[len(path.rstrip("/")) + 1 :]
        is_hidden = any(part.startswith(".") for part in relative.split("/"))
        if info.type == pafs.FileType.File and (hidden or not is_hidden) and fnmatch.fnmatch(info.base_name, pattern):
            files.append(FileStat(places.inside(place, relative), info.size, info.mtime_ns or 0))
    return sorted(files, key=lambda file: file.place)


def names_in(place: str | os.PathLike[str]) -> list[str]:
    """Return the names of the files and directories directly in a directory, hidden ones too, sorted. A missing directory has none."""
    if not places.is_remote(place):
        folder = places.local_path(place)
        return sorted(os.listdir(folder)) if folder.is_dir() else []
    fs, path = places.filesystem(place)
    selector = pafs.FileSelector(path, allow_not_found=True)
    with stores.no_fork:
        infos = retried(place, lambda: fs.get_file_info(selector))
    return sorted(info.base_name for info in infos)


def open_stream(place: str | os.PathLike[str], *, compression: str | None = None) -> pa.NativeFile:
    """Open a stream of bytes from the start of a file, decompressed if `compression` ("gzip", "zstd") is given."""
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
    """Open a file that can be read at any position. A local file is memory-mapped."""
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


def open_at(place: str | os.PathLike[str]) -> io.FileIO | pa.NativeFile:
    """Open a file that is read at a few positions. The pages of a local file do not count as memory of the process.

    Raises:
        FileNotFoundError: A local file is missing.
        StorageError: A remote file is missing or cannot be read.
    """
    if places.is_remote(place):
        return open_random(place)
    return open(places.local_path(place), "rb", buffering=0)


def chunks(place: str | os.PathLike[str]) -> Iterator[bytes | bytearray]:
    """Read the bytes of a file in chunks, for `retried`: an error of a store is raised unchanged and after one try.

    Each request gets a buffer of zeros. The S3 client writes the text of a store's error into the buffer for the file's bytes, and then
    parses the whole buffer. An old `<a></a>` after the text "no" would end the process.
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
    """Read from a remote place, with up to `TRIES` tries as long as the error may be temporary.

    Raises:
        StorageError: The place cannot be read, or every try failed.
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
        except Exception as error:  # fsspec supports stores of many makers, each with exceptions of its own
            if not is_of_a_client(error):
                raise
            if not may_pass(error):
                raise StorageError(
                    f"{places.public(place)} cannot be read: {first_line(error)}. Is the address right, and is there a network?"
                ) from error
            last = error
        if attempt < TRIES - 1:
            # Shortened at random, so that many readers whose requests failed together do not come back together.
            pause_s = BACK_OFF_S * 2**attempt * random.uniform(0.5, 1)
            # A busy server says when to come back. A minute is the limit, because a wrong header must not stop a training.
            asked_s = last.retry_after_s if isinstance(last, web.WebError) else None
            time.sleep(max(pause_s, min(asked_s or 0.0, MAX_PAUSE_S)))
    raise StorageError(
        f"{places.public(place)} could not be read in {TRIES} tries over {time.monotonic() - started_s:.0f} s; the last one: "
        f"{first_line(last)}. Is there a network, and is the server well? Then run it again: what is finished is kept."
    ) from last


# Answers of a store that another try will not change. Of the 4xx answers, 408 (time-out) and 429 (too many requests) may pass.
_FOR_GOOD = re.compile(
    r"AWS Error (ACCESS_DENIED|NO_SUCH_\w+|INVALID_\w+|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|MISSING_\w+|RESOURCE_NOT_FOUND)"
    r"|HTTP status 4(?!08|29)\d\d"
)


def may_pass(error: BaseException) -> bool:
    """Whether an error of a store may be temporary: answers 5xx, 408 and 429, resets, time-outs and short bodies are.

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
    """Yield a local path to write to. At the end of the block the file becomes `place`, whole. If the block fails, `place` is unchanged.

    A second writer of the same place may run at the same time. The writer that finishes last wins, and readers see one of the two files,
    whole.
    """
    if places.is_remote(place):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part"
            yield part
            uploads.put(os.fspath(place), part)
        return
    target = places.local_path(place)
    # Beside the target, since a rename is atomic within a file system only. The random word keeps two threads and two hosts apart.
    part = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{_PART}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        # The bytes reach the disk before the name does: after a crash of the machine, a final name never holds a short file.
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


# The remedy for each cause that keeps a file from being written and does not pass by itself.
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


def write_bytes(place: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, whole or not at all."""
    if places.is_remote(place):
        uploads.put(os.fspath(place), data)
        return
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


NO_HARD_LINKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EMLINK, errno.EACCES, errno.EXDEV)
"""Errors of `os.link` on a file system without hard links, or between two file systems. FAT and some FUSE file systems give EPERM, some
network file systems EACCES."""


def put_if_absent(path: str | os.PathLike[str], data: bytes) -> bool:
    """Write a file unless its name is taken. Exactly one of several racing writers wins.

    A hard link is the atomic step: the link fails if the name exists, on local file systems and on NFS. On a file system
    without hard links, a symbolic link to a hidden file beside the name is the atomic step. The file survives the death of any
    process. `sync` makes the file survive the death of the machine. In a store, the atomic step is a conditional request.

    Returns:
        Whether this call wrote the file.

    Raises:
        StorageError: The file system has neither hard links nor symbolic links.
        OSError: The folder is missing, full or read-only.
    """
    if places.is_remote(path):
        return uploads.create(os.fspath(path), data)
    if os.path.lexists(path):  # the usual case of a reader of a busy ledger: no temporary file is written
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
    """Give a written file its name by a symbolic link.

    Raises:
        FileExistsError: The name is taken.
        StorageError: The file system has no symbolic links either.
    """
    hidden = f"{part.removesuffix(_PART)}.data"  # `remove_leftovers` deletes files whose name ends in _PART
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


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give a finished file a second name, unless the name is taken. A local file gets a hard link, an object of a store a copy.

    Both names must be local, or both in one store. Another process that writes the same bytes under the name may be first.
    """
    if places.is_remote(target):
        uploads.copy(os.fspath(source), os.fspath(target))
        return
    source_path, target_path = places.local_path(source), places.local_path(target)
    if target_path.exists():
        return
    target_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source_path, target_path)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        with writing(target_path) as part:
            shutil.copyfile(source_path, part)


def link_or_copy_all(names: Sequence[tuple[str, str]]) -> None:
    """Call `link_or_copy` for pairs of a file and its second name. Requests to a store run at the same time."""
    if names and places.is_remote(names[0][1]):
        at_once(lambda pair: link_or_copy(*pair), names)
        return
    for source, target in names:
        link_or_copy(source, target)


def bring_all(names: Sequence[tuple[str, str]]) -> None:
    """Bring finished files of one artefact into another, as pairs of a file and its new name. The two artefacts may lie in different places.

    Local files get hard links where the file system has them.
    """
    for source, target in names:
        if not places.is_remote(source) and not places.is_remote(target):
            link_or_copy(source, target)
        else:
            write_bytes(target, read_bytes(source))


def at_once(function: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
    """Call a function that waits for a disk or a store, for several items at the same time, and return the results in order.

    Raises:
        Any exception of the function: the exception of the first item that has one.
    """
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(MAX_REQUESTS) as threads:
        return list(threads.map(function, items))


def remove(*files: str | os.PathLike[str]) -> None:
    """Delete files. A missing file is no error."""
    if remote := [os.fspath(place) for place in files if places.is_remote(place)]:
        uploads.delete(remote)
    for place in files:
        if not places.is_remote(place):
            places.local_path(place).unlink(missing_ok=True)


def remove_tree(place: str | os.PathLike[str]) -> None:
    """Delete a directory with all files. A missing directory is no error, and a local file that cannot be deleted stays."""
    if places.is_remote(place):
        uploads.delete(file.place for file in list_files(place, hidden=True))
    else:
        shutil.rmtree(places.local_path(place), ignore_errors=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete the temporary files that killed writers left under a local directory. A store has none."""
    if places.is_remote(folder):
        return
    for part in places.local_path(folder).rglob(f".*{_PART}"):
        part.unlink(missing_ok=True)


def remove_leftovers_of(place: str | os.PathLike[str]) -> None:
    """Delete the temporary files that killed writers of one local file left beside the file. A store has none."""
    if places.is_remote(place):
        return
    target = places.local_path(place)
    for part in target.parent.glob(f".{glob.escape(target.name)}.*{_PART}"):
        part.unlink(missing_ok=True)


def load_array(place: str | os.PathLike[str]) -> np.ndarray:
    """Read a .npy file. A local file is memory-mapped, so only the parts that are used are read."""
    if not places.is_remote(place):
        return np.load(places.local_path(place), mmap_mode="r")
    return np.load(io.BytesIO(read_bytes(place)))


def load_arrays(place: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all arrays of a .npz file."""
    with np.load(io.BytesIO(read_bytes(place))) as arrays:
        return dict(arrays)


def readable(place: str | os.PathLike[str]) -> str | io.BytesIO:
    """Return a file for a library that reads paths or file objects. A file of a store is read whole: many small requests take longer.

    Raises:
        StorageError: The place is a directory or a device, or the store does not give the file.
    """
    if places.is_remote(place):
        return io.BytesIO(read_bytes(place))
    refuse_special(place)
    return str(places.local_path(place))


def read_json(place: str | os.PathLike[str]) -> Any:
    return from_json(read_bytes(place), place)


def file_digest(place: str | os.PathLike[str], chunk_bytes: int = 1 << 20) -> str:
    """Return the `digest` of a file's bytes, which are read in chunks."""
    if not places.is_remote(place):
        refuse_special(place)
    with open_stream(place) as stream:
        return digest_of(iter(lambda: stream.read(chunk_bytes), b""))


def num_lines(place: str | os.PathLike[str]) -> int:
    """Count the lines of a file in which every line ends with a line break."""
    return read_bytes(place).count(b"\n")


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
