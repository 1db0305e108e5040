"""Sources of the files of a shard set: a local directory, or a remote place with files that are fetched and checked."""

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

import xxhash

from skillshard import places, storage
from skillshard.errors import ShardError, StorageError


class Wanted(NamedTuple):
    """File of a shard set with its expected bytes.

    Attributes:
        name: Path inside the shard set.
        digest: xxh3, 128 bits, in hexadecimal digits.
        num_bytes: Size in bytes. None if the manifest has no size, as for an index.
        edition: Number of the edition that wrote the file. 0 if the set continues no other set.
    """

    name: str
    digest: str
    num_bytes: int | None = None
    edition: int = 0


@runtime_checkable
class Files(Protocol):
    """Source of the files of a shard set."""

    @property
    def root(self) -> Path | str:
        """Directory or URI of the shard set."""

    @property
    def is_remote(self) -> bool:
        """Whether the files are on another machine, so that `prefetch` is useful."""

    @property
    def are_locked(self) -> bool:
        """Whether an open file has a lock against eviction. A reader keeps such a file open during the reading."""

    def open(self, wanted: Wanted) -> BinaryIO:
        """Open a file for reading. The file can be mapped, and stays readable if its name is deleted."""

    def prefetch(self, wanted: Wanted) -> None:
        """Announce that a file will be opened soon."""


class LocalFiles(NamedTuple):
    """Files of a local directory. The reader compares the files with the manifest."""

    root: Path

    @property
    def is_remote(self) -> bool:
        return False

    @property
    def are_locked(self) -> bool:
        return False

    def open(self, wanted: Wanted) -> BinaryIO:
        place = self.root / wanted.name
        storage.refuse_special(place)  # a named pipe would block the opening forever
        return open(place, "rb")

    def prefetch(self, wanted: Wanted) -> None:
        """Do nothing, because the files are local."""


@runtime_checkable
class FileCache(Protocol):
    """Store of fetched files on this machine."""

    def open(self, place: str, wanted: Wanted) -> BinaryIO:
        """Open the file from `place`. A file that is not in the cache is fetched first."""

    def prefetch(self, place: str, wanted: Wanted) -> None:
        """Start to fetch a file in the background."""


class RemoteFiles:
    """Files of a remote shard set, checked on arrival.

    Args:
        root: URI of the shard set.
        cache: Cache of fetched files. With None, each opening fetches the file into a temporary file without a name.
    """

    def __init__(self, root: str, cache: FileCache | None) -> None:
        self.root = root
        self.cache = cache

    @property
    def is_remote(self) -> bool:
        return True

    @property
    def are_locked(self) -> bool:
        return self.cache is not None

    def open(self, wanted: Wanted) -> BinaryIO:
        """Open a file, fetched if needed.

        Raises:
            ShardError: The file is missing, or wrong bytes arrived at every try.
            StorageError: No bytes arrived, or the bytes cannot be written.
        """
        place = places.join(self.root, wanted.name)
        if self.cache is not None:
            return self.cache.open(place, wanted)
        # The file outlives this function. The stack closes the file only if the download fails.
        with contextlib.ExitStack() as on_error:
            file: BinaryIO = on_error.enter_context(tempfile.TemporaryFile())
            try:
                download(place, wanted, file.fileno())
            except Unwritable as error:
                raise StorageError(
                    f"{wanted.name} cannot be written to {tempfile.gettempdir()} ({error}). Make room, or name a directory with more room "
                    "in TMPDIR."
                ) from error
            on_error.pop_all()
        return file

    def prefetch(self, wanted: Wanted) -> None:
        if self.cache is not None:
            self.cache.prefetch(places.join(self.root, wanted.name), wanted)


class EditionFiles(NamedTuple):
    """Files of a shard set that continues other sets: the files of each set, the oldest first."""

    editions: tuple[LocalFiles | RemoteFiles, ...]

    @property
    def root(self) -> Path | str:
        return self.editions[-1].root

    @property
    def is_remote(self) -> bool:
        return any(files.is_remote for files in self.editions)

    @property
    def are_locked(self) -> bool:
        return any(files.are_locked for files in self.editions)

    def open(self, wanted: Wanted) -> BinaryIO:
        return self.editions[wanted.edition].open(wanted)

    def prefetch(self, wanted: Wanted) -> None:
        self.editions[wanted.edition].prefetch(wanted)


def files_at(place: str, cache: FileCache | None) -> LocalFiles | RemoteFiles:
    """Return the source of the files of a shard set in a directory or at a URI. A local directory does not use the cache."""
    return RemoteFiles(place, cache) if places.is_remote(place) else LocalFiles(places.local_path(place))


def uncached(files: Files) -> Files:
    """Return the same files without the cache, so that remote bytes are fetched anew."""
    if isinstance(files, EditionFiles):
        return EditionFiles(tuple(files_at(os.fspath(edition.root), None) for edition in files.editions))
    return files_at(os.fspath(files.root), None)


class _Damaged(OSError):
    """Error for a download with wrong bytes. As an OSError, it lets `storage.retried` try again."""


class Unwritable(StorageError):
    """Error for a download that cannot be written to the disk."""

    @property
    def is_full(self) -> bool:
        """Whether the write failed for lack of room on the disk."""
        return isinstance(self.__cause__, OSError) and self.__cause__.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
        )


def download(place: str, wanted: Wanted, descriptor: int) -> None:
    """Fetch a remote file into an open file, and compare the bytes with the expected bytes.

    Args:
        place: URI of the remote file.
        wanted: Expected bytes.
        descriptor: Open file for the bytes.

    Raises:
        ShardError: The file is missing, or wrong bytes arrived at every try.
        StorageError: No bytes arrived, or the bytes cannot be written.
    """

    def attempt() -> None:
        os.ftruncate(descriptor, 0)  # a failed try leaves bytes behind
        os.lseek(descriptor, 0, os.SEEK_SET)
        hasher, got = xxhash.xxh3_128(), 0
        for chunk in storage.chunks(place):
            got += len(chunk)
            # Checked before the write: a server that sends without end must not fill the disk.
            if wanted.num_bytes is not None and got > wanted.num_bytes:
                raise _Damaged(f"it has more than the {wanted.num_bytes:,} bytes that the manifest says")
            hasher.update(chunk)
            _write(descriptor, chunk)
        if wanted.num_bytes not in (None, got):
            raise _Damaged(f"it has {got:,} bytes but the manifest says {wanted.num_bytes:,}")
        if (digest := hasher.hexdigest()) != wanted.digest:
            raise _Damaged(f"it has digest {digest} but the manifest says {wanted.digest}")

    try:
        storage.retried(place, attempt)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ShardError(
                f"{places.public(place)} is missing, but the manifest names it. Copy this file there again."
            ) from error
        if isinstance(error.__cause__, _Damaged):
            raise ShardError(
                f"{places.public(place)} arrived damaged {storage.TRIES} times; the last time {error.__cause__}. Copy this file there "
                "again, or look for a proxy that changes the file."
            ) from error
        raise


def _write(descriptor: int, chunk: bytes | bytearray) -> None:
    view = memoryview(chunk)
    try:
        while view:  # a write may take only a part of the bytes
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise Unwritable(str(error)) from error
