"""Files of an artefact in memory maps, compared with their entries in the manifest.

A memory map needs no open file, so `ulimit -n` (often 1,024) does not limit the number of skills and shards. Only a shard from a
cache stays open, because the open file keeps the lock on the cache entry. The soft limit of open files is raised before the
process reaches the limit.
"""

import errno
import mmap
import os
import resource
from typing import NamedTuple

import pyarrow as pa

from skillshard import canonical
from skillshard.errors import ShardError, SkillshardError, StorageError
from skillshard.shards.files import Files, Wanted

# The order reads the shards of a skill one after the other. One shard is read at a time, and few readers look back.
MAX_OPEN = 4
"""Number of shards of one skill and split that stay mapped."""
Mapped = mmap.mmap | memoryview
"""Bytes of a file in a memory map."""


class FileWords(NamedTuple):
    """The words by which an error names a file of an artefact.

    Attributes:
        error: Class of the error.
        manifest: Name of the manifest that lists the file.
        anew: Sentence on how to make the file anew.
    """

    error: type[SkillshardError]
    manifest: str
    anew: str


def mapped(files: Files, wanted: Wanted, *, check_digest: bool, keep_open: bool, words: FileWords) -> Mapped:
    """Check the size of a file of an artefact, and return the file in a memory map.

    Args:
        files: Source of the file.
        wanted: File and its expected bytes.
        check_digest: Whether the digest is compared too.
        keep_open: Whether the file stays open, with its lock, as long as the map exists.
        words: Words for an error.

    Raises:
        SkillshardError: The file is missing, or differs from its entry in the manifest. `words` has the class of the error.
    """
    name, digest, num_bytes, _ = wanted
    try:
        with files.open(wanted) as file:
            got = os.fstat(file.fileno()).st_size
            if got == 0 or got != (num_bytes or got):
                expected = f"{num_bytes:,}" if num_bytes else "more"
                raise words.error(
                    f"{name} is {got:,} bytes but {words.manifest} says {expected}: truncated copy or edited file. {words.anew}"
                )
            data = _map_kept_open(file.fileno()) if keep_open else _map(file.fileno())
    except ShardError as error:
        # A download knows no artefacts: its error about a damaged or missing file has one class for all of them.
        raise words.error(str(error)) from error
    except StorageError as error:
        if files.is_remote:
            raise
        raise words.error(f"{name} is not a readable file: {error} {words.anew}") from error
    except FileNotFoundError as error:
        raise words.error(f"{error.filename} is missing, but {words.manifest} names it. {words.anew}") from error
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise words.error(
            f"{name} cannot be opened: this process has reached its limit of "
            f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} open files. Raise the limit with 'ulimit -n' before the start, or mix "
            "fewer skills."
        ) from error
    if check_digest and (data_digest := canonical.digest(data)) != digest:
        raise words.error(
            f"{name} has digest {data_digest} but {words.manifest} says {digest}: damaged or edited file. {words.anew}"
        )
    return data


def _map_kept_open(descriptor: int) -> mmap.mmap:
    """Map a file into memory and keep the file open. Python's mmap duplicates the descriptor, and so keeps the lock."""
    _raise_limit_in_time(descriptor)
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def _map(descriptor: int) -> Mapped:
    """Map a file into memory.

    Slices of Python's map are a little faster, but the map keeps a descriptor. Once half of the allowed descriptors are in use, the
    function uses Arrow's map, which keeps no descriptor.
    """
    if 2 * _newest(descriptor) < resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    # The path of a descriptor also opens a temporary file without a name, as `RemoteFiles` has without a cache.
    with pa.memory_map(f"/dev/fd/{descriptor}") as file:
        return memoryview(file.read_buffer())


def _raise_limit_in_time(descriptor: int) -> None:
    """Raise the soft limit of open files fourfold, at most to the hard limit, once half of the soft limit is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and soft != resource.RLIM_INFINITY and _newest(descriptor) > soft // 2:
        more = 4 * soft if hard == resource.RLIM_INFINITY else min(4 * soft, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))


def _newest(descriptor: int) -> int:
    """Return the number of a new descriptor. The lowest free number is taken, so the number tells how many are in use."""
    newest = os.dup(descriptor)
    os.close(newest)
    return newest
