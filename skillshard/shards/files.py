"""Where the files of a shard set come from: a local directory, or a store from which they are fetched and checked."""

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
    """A file of a shard set: its name there, and what its bytes must be.

    Attributes:
        digest: xxh3, 128 bits, in hex.
        num_bytes: its size; None where the manifest says none.
    """

    name: str
    digest: str
    num_bytes: int | None = None


@runtime_checkable
class Files(Protocol):
    """Where the files of a shard set come from."""

    @property
    def root(self) -> Path | str:
        """The shard set's directory or URI."""

    @property
    def is_remote(self) -> bool:
        """Whether `prefetch` is worth calling."""

    @property
    def are_locked(self) -> bool:
        """Whether an open file is locked against eviction, so that it is kept open as long as it is read."""

    def open(self, wanted: Wanted) -> BinaryIO:
        """The file, open for reading; it can be mapped and stays readable whatever happens to its name."""

    def prefetch(self, wanted: Wanted) -> None:
        """Say that a file will be opened soon."""


class LocalFiles(NamedTuple):
    """The files of a directory, as they are; whoever reads them compares them with the manifest."""

    root: Path

    @property
    def is_remote(self) -> bool:
        return False

    @property
    def are_locked(self) -> bool:
        return False

    def open(self, wanted: Wanted) -> BinaryIO:
        place = self.root / wanted.name
        storage.refuse_special(place)
        return open(place, "rb")

    def prefetch(self, wanted: Wanted) -> None:
        """Nothing: they are here."""


@runtime_checkable
class FileCache(Protocol):
    """Where fetched files are kept on this machine."""

    def open(self, place: str, wanted: Wanted) -> BinaryIO:
        """The file that lies at `place`, fetched unless it is here."""

    def prefetch(self, place: str, wanted: Wanted) -> None:
        """Begin to fetch a file in the background."""


class RemoteFiles:
    """The files of a remote shard set, checked on arrival.

    Args:
        root: its URI.
        cache: where files are kept; None: every file is fetched whenever it is opened, into a temporary file without a name.
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
        """The file; ShardError if other bytes arrive than the manifest says, StorageError if none do."""
        place = places.join(self.root, wanted.name)
        if self.cache is not None:
            return self.cache.open(place, wanted)
        with contextlib.ExitStack() as on_error:
            file: BinaryIO = on_error.enter_context(tempfile.TemporaryFile())
            try:
                download(place, wanted, file.fileno())
            except Unwritable as error:
                raise StorageError(
                    f"{wanted.name} cannot be kept in {tempfile.gettempdir()} ({error}). Make room, or name a roomier directory in "
                    "TMPDIR."
                ) from error
            on_error.pop_all()
        return file

    def prefetch(self, wanted: Wanted) -> None:
        if self.cache is not None:
            self.cache.prefetch(places.join(self.root, wanted.name), wanted)


class _Damaged(OSError):
    """Other bytes arrived than were wanted."""


class Unwritable(StorageError):
    """What arrived cannot be written to the disk."""

    @property
    def is_full(self) -> bool:
        """Whether more room would help."""
        return isinstance(self.__cause__, OSError) and self.__cause__.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
        )


def download(place: str, wanted: Wanted, descriptor: int) -> None:
    """Fetch a remote file into an open one, and compare its bytes with what is wanted.

    Raises:
        ShardError: the file is not there, or other bytes arrived, every time.
        StorageError: none arrived, or they could not be written.
    """

    def attempt() -> None:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        hasher, got = xxhash.xxh3_128(), 0
        for chunk in storage.chunks(place):
            got += len(chunk)
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
                "again, or look for a proxy that changes it."
            ) from error
        raise


def _write(descriptor: int, chunk: bytes | bytearray) -> None:
    view = memoryview(chunk)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise Unwritable(str(error)) from error
