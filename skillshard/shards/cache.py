"""A cache on this machine for the files of remote shard sets.

    CACHE/DIGEST         a whole file; its bytes have this digest, and its modification time is the time of the last opening
    CACHE/DIGEST.part    a file during the download, locked by the downloading process

Entries are named by content, so shard sets and versions share a cache and never mix. The directory may be deleted at any time, and
must be on a local disk.

Locks are `flock`, which the kernel releases when a process dies. The downloading process locks the `.part` file. Other processes
wait, and start the file anew if that process dies. An open or mapped entry has a shared lock, because a memory map keeps the lock
of its file. Eviction deletes only entries without a lock, the longest unused first. So open files stay, whatever the limit. The
newest file stays until the next file arrives, and files during the download come on top of the limit.

A process that ends during a read-ahead leaves `.part` files. The next user of the cache deletes the unfinished files.

Memory: a chunk (8 MiB) for each download. A download is tried `storage.TRIES` times.
"""

import contextlib
import fcntl
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from skillshard import canonical, places, storage
from skillshard.errors import ShardError, StorageError
from skillshard.shards.files import Unwritable, Wanted, download

PART = ".part"
# A round needs shards of several skills at once. A few downloads side by side hide the time that a store takes to answer.
NUM_THREADS = 4
"""Number of files that one process reads ahead at the same time."""
# All tries of a download, with their pauses and time-outs, take less than seven minutes.
WAIT_S = 600.0
"""Longest time without progress of another process's download, in seconds."""
_POLL_S = 0.01  # short against a download, and long against the system calls of a look
_DIGEST = re.compile(r"[0-9a-f]{32}")  # xxh3, 128 bits; also keeps a path in a damaged manifest out of the cache


class Cache:
    """Directory of fetched files, shared by any number of processes.

    Args:
        folder: Directory on a local disk. A missing directory is created.
        max_bytes: Limit of the size of the directory, in bytes. With None, the disk is the limit.

    Raises:
        StorageError: `max_bytes` is less than 1.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int | None) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise StorageError(f"cache_bytes is {max_bytes:,}: give at least 1, or None for no limit.")
        self.folder, self.max_bytes = places.local_path(folder).absolute(), max_bytes
        self._checked: dict[str, tuple[int, int, int]] = {}
        self._ahead: _ReadAhead | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def open(self, place: str, wanted: Wanted) -> BinaryIO:
        """Open a remote file from the cache, or fetch the file first. An open file is locked against eviction.

        Raises:
            ShardError: Wrong bytes arrived at every try, or the remote file is missing.
            StorageError: No bytes arrived, or the disk has no room.
        """
        # A loop: between the claim and the opening, another process can finish the entry and yet another can evict the entry.
        while (file := self._open_entry(wanted)) is None:
            descriptor = self._claim(wanted)
            if descriptor is not None:
                return self._fetch(place, wanted, descriptor)
        return file

    def prefetch(self, place: str, wanted: Wanted) -> None:
        """Fetch a file in the background. After an error, the opening of the file tries again and raises."""
        if self._entry(wanted).exists():
            return
        # A forked child inherits the object but not the threads, so the child starts its own.
        if self._ahead is None or self._ahead.pid != os.getpid():
            self._ahead = _ReadAhead(self)
        self._ahead.put(place, wanted)

    def __getstate__(self) -> dict[str, object]:
        # Threads cannot be pickled. Another process checks the bytes itself.
        return {**self.__dict__, "_ahead": None, "_checked": {}}

    def _entry(self, wanted: Wanted) -> Path:
        if not _DIGEST.fullmatch(wanted.digest):
            raise ShardError(
                f"the manifest gives {wanted.name} the digest {wanted.digest!r}, but a digest has 32 hexadecimal digits: damaged or edited."
            )
        return self.folder / wanted.digest

    def _open_entry(self, wanted: Wanted) -> BinaryIO | None:
        """Open the entry and take a shared lock. A missing entry gives None, and a damaged entry is deleted."""
        entry = self._entry(wanted)
        try:
            file = open(entry, "rb")  # noqa: SIM115  # the caller closes it
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if not self._is_whole(file, wanted):
            # Another process may have replaced the damaged entry, and then the name belongs to a good file.
            if _names(entry, file.fileno()):
                entry.unlink(missing_ok=True)
            file.close()
            return None
        with contextlib.suppress(PermissionError):  # another user's entry
            os.utime(file.fileno())  # eviction reads the modification time as the last use
        return file

    def _is_whole(self, file: BinaryIO, wanted: Wanted) -> bool:
        """Return whether an entry has the right size and, at the first opening by this process, the right digest."""
        if wanted.num_bytes not in (None, os.fstat(file.fileno()).st_size):
            return False
        identity = _identity(file.fileno())
        if self._checked.get(wanted.digest) != identity:
            if canonical.digest_of(iter(lambda: file.read(storage.CHUNK_BYTES), b"")) != wanted.digest:
                return False
            self._checked[wanted.digest] = identity
        return True

    def _claim(self, wanted: Wanted) -> int | None:
        """Lock the temporary file of an entry and return its descriptor, or None once another process finishes the entry.

        Raises:
            StorageError: Another process holds the lock and has written nothing for `WAIT_S` seconds.
        """
        entry = self._entry(wanted)
        part = entry.with_suffix(PART)
        seen: tuple[int, int] | None = None
        seen_s = time.monotonic()
        while not entry.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            _descriptors.add(descriptor)
            # Between the opening and the lock, another process can rename or delete the file. The lock then guards nothing.
            if _lock(descriptor) and _names(part, descriptor):
                if not entry.exists():
                    return descriptor
                part.unlink(missing_ok=True)
            stat = os.fstat(descriptor)
            _close(descriptor)
            if (stat.st_size, stat.st_mtime_ns) != seen:
                seen, seen_s = (stat.st_size, stat.st_mtime_ns), time.monotonic()
            elif time.monotonic() - seen_s > WAIT_S:
                raise StorageError(
                    f"{part} is locked by another process that has written nothing for {WAIT_S:.0f} s. End that process, and run the "
                    "command again."
                )
            time.sleep(_POLL_S)
        return None

    def _fetch(self, place: str, wanted: Wanted, descriptor: int) -> BinaryIO:
        """Download into a claimed temporary file, rename the file, and return the file with a shared lock."""
        entry = self._entry(wanted)
        part = entry.with_suffix(PART)
        try:
            self._make_room(wanted.num_bytes or 0)
            while True:
                try:
                    download(place, wanted, descriptor)
                    break
                except Unwritable as error:
                    os.ftruncate(descriptor, 0)  # the partial download would take the room that is needed
                    if not error.is_full:
                        raise StorageError(
                            f"{wanted.name} cannot be written to the cache {self.folder}: {error}."
                        ) from error
                    if not self._evict(wanted.num_bytes or 1):
                        raise self._no_room(wanted) from error
            # A user may delete the cache at any time, and then the name can belong to another download.
            if _names(part, descriptor):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(part, entry)
        except BaseException:
            if _names(part, descriptor):
                part.unlink(missing_ok=True)
            _unlock(descriptor)
            _close(descriptor)
            raise
        self._checked[wanted.digest] = _identity(descriptor)
        # The shared lock lets other processes open the entry, and still keeps eviction away.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _descriptors.discard(descriptor)
        file = os.fdopen(descriptor, "rb")
        self._make_room(0)
        return file

    def _no_room(self, wanted: Wanted) -> StorageError:
        total_bytes = sum(size for _, size, _ in self._entries())
        size = "a file" if wanted.num_bytes is None else f"{wanted.num_bytes:,} bytes"
        return StorageError(
            f"no room in the cache {self.folder} for {wanted.name} ({size}): the disk is full, and all entries of the cache "
            f"({total_bytes:,} bytes) are in use. Make room on that disk, or put the cache on another disk."
        )

    def _make_room(self, num_bytes: int) -> None:
        """Evict entries until `num_bytes` more would be within the limit, or until all remaining entries are in use."""
        if self.max_bytes is not None:
            total = sum(size for _, size, _ in self._entries())
            if total + num_bytes > self.max_bytes:
                self._evict(total + num_bytes - self.max_bytes)

    def _evict(self, num_bytes: int) -> int:
        """Delete unlocked entries, the longest unused first, until `num_bytes` are freed. Return the number of freed bytes."""
        freed = 0
        with self._only_one_evicts():
            for _, size, entry in sorted(self._entries()):
                if freed >= num_bytes:
                    break
                if _delete_unused(entry):
                    freed += size
        return freed

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Return the time of the last use, the bytes on disk and the path of each entry."""
        entries = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as files:
            for file in files:
                if _DIGEST.fullmatch(file.name):
                    with contextlib.suppress(FileNotFoundError):
                        stat = file.stat()
                        entries.append((stat.st_mtime_ns, stat.st_size, Path(file.path)))
        return entries

    # Two processes that evict at the same time would each free the bytes, and delete twice as much as needed.
    @contextlib.contextmanager
    def _only_one_evicts(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            _unlock(descriptor)
            os.close(descriptor)

    def _sweep(self) -> None:
        """Delete the `.part` files of killed downloads."""
        for part in self.folder.glob(f"*{PART}"):
            _delete_unused(part)


class _ReadAhead:
    """Background threads of a process, which fetch files.

    The first request starts a thread. The threads are daemons, so a process that ends does not wait for a download.
    """

    def __init__(self, cache: Cache) -> None:
        self.pid = os.getpid()
        self._cache = cache
        self._queue: queue.SimpleQueue[tuple[str, Wanted]] = queue.SimpleQueue()
        self._waiting: set[str] = set()
        self._threads: list[threading.Thread] = []

    def put(self, place: str, wanted: Wanted) -> None:
        if wanted.digest in self._waiting:
            return
        self._waiting.add(wanted.digest)
        self._queue.put((place, wanted))
        if len(self._threads) < min(NUM_THREADS, len(self._waiting)):
            self._threads.append(threading.Thread(target=self._fetch, name="skillshard-read-ahead", daemon=True))
            self._threads[-1].start()

    def _fetch(self) -> None:
        while True:
            place, wanted = self._queue.get()
            with contextlib.suppress(StorageError, ShardError, OSError):  # raised again where the file is opened
                self._cache.open(place, wanted).close()
            self._waiting.discard(wanted.digest)


# Descriptors of the files that this process downloads. A forked child closes its copies, because a copy would hold the lock.
_descriptors: set[int] = set()


def _close_inherited() -> None:
    while _descriptors:
        os.close(_descriptors.pop())


os.register_at_fork(after_in_child=_close_inherited)


def _close(descriptor: int) -> None:
    _descriptors.discard(descriptor)
    os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Take an exclusive lock if no other descriptor has a lock. Return whether the lock is taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    """Release a lock at once, even if a forked child has a copy of the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def _identity(descriptor: int) -> tuple[int, int, int]:
    """Return the device, inode and size of an open file, which differ for another file under the same name."""
    stat = os.fstat(descriptor)
    return stat.st_dev, stat.st_ino, stat.st_size


def _names(path: Path, descriptor: int) -> bool:
    """Return whether a path is the name of an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _delete_unused(path: Path) -> bool:
    """Delete a file without a lock. Return whether the file was deleted."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return False
    try:
        if not (_lock(descriptor) and _names(path, descriptor)):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)
