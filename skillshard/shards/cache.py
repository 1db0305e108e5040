"""Where the files of a shard set come from: a directory, or a remote place through a cache on this machine.

    CACHE/DIGEST         a file that arrived whole: its bytes have this digest, its time of change says when it was last opened
    CACHE/DIGEST.part    one that is on its way, locked by who downloads it

Entries are named by content, so shard sets and versions share a cache and never mix; it may be deleted at any time.
Locks are `flock`, which the kernel lets go when a process dies. A `.part` is locked while it is written: others wait, and
take over what a dead one left. An entry is locked, shared, as long as anyone has it open or mapped (a memory map keeps the
lock of the file it was made from): eviction takes only entries that nobody has, the longest unused first. So the limit
bounds what is kept; what is open stays, what has just arrived stays until the next does, and what is on its way comes on top. The directory must be on
a local disk.

A process that ends while it reads ahead leaves `.part` files; whoever opens the cache next deletes them.

Memory: a chunk (8 MiB) per download. A remote file is asked for `storage.TRIES` times.
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
NUM_THREADS = 4
"""Files that one process reads ahead at the same time."""
WAIT_S = 600.0
"""How long another process's download may stand still, in seconds: longer than all its tries take."""
_POLL_S = 0.01
_DIGEST = re.compile(r"[0-9a-f]{32}")


class Cache:
    """A directory of files that came from far, shared by any number of processes.

    Args:
        folder: a directory on a local disk, made if missing.
        max_bytes: limit of what is kept there; None: no limit but the disk's.
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
        """A file of a remote place, from the cache or fetched into it; locked against eviction until it is closed.

        Raises:
            ShardError: other bytes arrived than were wanted, every time.
            StorageError: none arrived, or there is no room for them.
        """
        while (kept := self._open_kept(wanted)) is None:
            descriptor = self._claim(wanted)
            if descriptor is not None:
                return self._fetch(place, wanted, descriptor)
        return kept

    def prefetch(self, place: str, wanted: Wanted) -> None:
        """Fetch a file in the background. An error is left to whoever opens the file: it tries again, and raises."""
        if self._entry(wanted).exists():
            return
        if self._ahead is None or self._ahead.pid != os.getpid():
            self._ahead = _ReadAhead(self)
        self._ahead.put(place, wanted)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ahead": None, "_checked": {}}

    def _entry(self, wanted: Wanted) -> Path:
        if not _DIGEST.fullmatch(wanted.digest):
            raise ShardError(
                f"the manifest gives {wanted.name} the digest {wanted.digest!r}, which is none: damaged or edited."
            )
        return self.folder / wanted.digest

    def _open_kept(self, wanted: Wanted) -> BinaryIO | None:
        """The entry if it is there; one that was damaged on this disk is deleted."""
        entry = self._entry(wanted)
        try:
            file = open(entry, "rb")  # noqa: SIM115  # the caller closes it
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if not self._is_whole(file, wanted):
            if _names(entry, file.fileno()):
                entry.unlink(missing_ok=True)
            file.close()
            return None
        with contextlib.suppress(PermissionError):  # another user's entry
            os.utime(file.fileno())
        return file

    def _is_whole(self, file: BinaryIO, wanted: Wanted) -> bool:
        """Whether an entry has its size and, when this process opens that very file for the first time, its digest."""
        if wanted.num_bytes not in (None, os.fstat(file.fileno()).st_size):
            return False
        identity = _identity(file.fileno())
        if self._checked.get(wanted.digest) != identity:
            if canonical.digest_of(iter(lambda: file.read(storage.CHUNK_BYTES), b"")) != wanted.digest:
                return False
            self._checked[wanted.digest] = identity
        return True

    def _claim(self, wanted: Wanted) -> int | None:
        """The entry's temporary file, locked; None when another one has finished the entry."""
        entry = self._entry(wanted)
        part = entry.with_suffix(PART)
        seen: tuple[int, int] | None = None
        seen_s = time.monotonic()
        while not entry.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            _descriptors.add(descriptor)
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
                    f"{part} is locked by another process that has written nothing for {WAIT_S:.0f} s. End that process, and run "
                    "this again."
                )
            time.sleep(_POLL_S)
        return None

    def _fetch(self, place: str, wanted: Wanted, descriptor: int) -> BinaryIO:
        """Download into a claimed temporary file, and give it its name."""
        entry = self._entry(wanted)
        part = entry.with_suffix(PART)
        try:
            self._make_room(wanted.num_bytes or 0)
            while True:
                try:
                    download(place, wanted, descriptor)
                    break
                except Unwritable as error:
                    os.ftruncate(descriptor, 0)
                    if not error.is_full:
                        raise StorageError(
                            f"{wanted.name} cannot be written to the cache {self.folder}: {error}."
                        ) from error
                    if not self._evict(wanted.num_bytes or 1):
                        raise self._no_room(wanted) from error
            if _names(part, descriptor):  # else somebody deletes the cache, and the name may be another download's
                with contextlib.suppress(FileNotFoundError):
                    os.rename(part, entry)
        except BaseException:
            if _names(part, descriptor):
                part.unlink(missing_ok=True)
            _unlock(descriptor)
            _close(descriptor)
            raise
        self._checked[wanted.digest] = _identity(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _descriptors.discard(descriptor)
        file = os.fdopen(descriptor, "rb")
        self._make_room(0)
        return file

    def _no_room(self, wanted: Wanted) -> StorageError:
        kept = sum(size for _, size, _ in self._entries())
        size = "a file" if wanted.num_bytes is None else f"{wanted.num_bytes:,} bytes"
        return StorageError(
            f"no room in the cache {self.folder} for {wanted.name} ({size}): the disk is full, and all that the cache holds ({kept:,} "
            "bytes) is in use. Make room on that disk, or put the cache on another one."
        )

    def _make_room(self, num_bytes: int) -> None:
        """Evict until as many bytes more would be within the limit, or nothing is left that may go."""
        if self.max_bytes is not None:
            total = sum(size for _, size, _ in self._entries())
            if total + num_bytes > self.max_bytes:
                self._evict(total + num_bytes - self.max_bytes)

    def _evict(self, num_bytes: int) -> int:
        """Delete entries that nobody has open, the longest unused first, until so many bytes are free; how many are."""
        freed = 0
        with self._only_one_evicts():
            for _, size, entry in sorted(self._entries()):
                if freed >= num_bytes:
                    break
                if _delete_unused(entry):
                    freed += size
        return freed

    def _entries(self) -> list[tuple[int, int, Path]]:
        """When each entry was last used, its bytes on disk, and its place."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if _DIGEST.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        stat = entry.stat()
                        found.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
        return found

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
        """Delete what killed downloads left."""
        for part in self.folder.glob(f"*{PART}"):
            _delete_unused(part)


class _ReadAhead:
    """Fetches files in daemon threads of one process: started when there is something to fetch, gone with the process."""

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


_descriptors: set[int] = set()
"""Temporary files that this process is downloading into. A forked child closes its copies, or it would hold their locks."""


def _close_inherited() -> None:
    while _descriptors:
        os.close(_descriptors.pop())


os.register_at_fork(after_in_child=_close_inherited)


def _close(descriptor: int) -> None:
    _descriptors.discard(descriptor)
    os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a file for this one alone, if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    """Let a lock go at once, also where a forked child has a copy of the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def _identity(descriptor: int) -> tuple[int, int, int]:
    """Device, number and size of an open file: what tells it from another one that has taken its name."""
    stat = os.fstat(descriptor)
    return stat.st_dev, stat.st_ino, stat.st_size


def _names(path: Path, descriptor: int) -> bool:
    """Whether a path is the name of an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _delete_unused(path: Path) -> bool:
    """Delete a file that nobody has locked; whether it was."""
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
