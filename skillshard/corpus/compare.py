"""Compare the rows of changed files. The content decides, and the modification time only says which files to read."""

from collections.abc import Mapping, Sequence

from skillshard.corpus.mapping import CorpusReading
from skillshard.corpus.partitions import Partition
from skillshard.corpus.reader import PartitionReader


def places_changed(
    partitions: Sequence[Partition], digests: Mapping[int, str], places: Sequence[str], reading: CorpusReading
) -> list[str]:
    """Read suspect files again, and return the files with rows that differ from the first reading.

    Args:
        partitions: Partitions of the present corpus.
        digests: Index of a partition -> digest of its rows at the first reading. Partitions without a digest were not read yet.
        places: Suspect files.
        reading: Field mappings and limits of the corpus.
    """
    changed = {
        partition.place
        for partition in partitions
        if partition.place in places
        and partition.index in digests
        and _digest(partition, reading) != digests[partition.index]
    }
    return [place for place in places if place in changed]


def _digest(partition: Partition, reading: CorpusReading) -> str:
    reader = PartitionReader(partition, reading)
    for _ in reader:
        pass  # the digest is known after the last row
    return reader.digest()
