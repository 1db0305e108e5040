"""Numbers and places of chunks, the scratch files of sorted samples."""

from skillshard import places

# 2**20 chunks of `SORT_BYTES` are more than any file system allows for one file.
_CHUNKS_PER_PARTITION = 1 << 20


def chunk_number(partition: int, chunk: int) -> int:
    """Return the number of a chunk in the whole corpus. The numbers rise in the order of the corpus."""
    return partition * _CHUNKS_PER_PARTITION + chunk


def chunk_place(scratch: str, number: int) -> str:
    """Return the place of a chunk's scratch files, without their suffixes.

    >>> chunk_place("scratch", chunk_number(12, 3))
    'scratch/000012/003'
    """
    partition, chunk = divmod(number, _CHUNKS_PER_PARTITION)
    return places.join(scratch, f"{partition:06d}", f"{chunk:03d}")
