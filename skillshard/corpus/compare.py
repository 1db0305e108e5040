"""Whether files whose time of change is new have new rows: content decides, a time only says where to look."""

from collections.abc import Mapping, Sequence
from typing import Any

from skillshard.corpus.partitions import Partition
from skillshard.corpus.reader import PartitionReader


def places_changed(
    partitions: Sequence[Partition], digests: Mapping[int, str], places: Sequence[str], reading: Mapping[str, Any]
) -> list[str]:
    """The suspect files whose rows differ from the rows that were read before; these files are read again.

    Args:
        partitions: of the corpus as it is now.
        digests: index of a partition -> digest of its rows when it was read; what is missing was not read yet.
        places: files to look at.
        reading: keyword arguments of `PartitionReader`.
    """
    changed = {
        partition.place
        for partition in partitions
        if partition.place in places
        and partition.index in digests
        and _digest(partition, reading) != digests[partition.index]
    }
    return [place for place in places if place in changed]


def _digest(partition: Partition, reading: Mapping[str, Any]) -> str:
    reader = PartitionReader(partition, **reading)
    for _ in reader:
        pass
    return reader.digest()
