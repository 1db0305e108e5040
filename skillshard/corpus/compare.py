"""Compare the rows of changed files. The content decides, and the modification time only says which files to read."""

from collections.abc import Mapping, Sequence

from skillshard.corpus.mapping import CorpusReading
from skillshard.corpus.partitions import Partition
from skillshard.corpus.reader import PartitionReader
from skillshard.corpus.stretches import Stretch


def places_changed(
    partitions: Sequence[Partition], digests: Mapping[int, Sequence[str]], places: Sequence[str], reading: CorpusReading
) -> list[str]:
    """Read suspect files again, and return the files with rows that differ from the first reading.

    Args:
        partitions: Partitions of the present corpus.
        digests: Index of a partition -> digests of the rows of its stretches at the first reading. Partitions without a digest were not read yet.
        places: Suspect files.
        reading: Field mappings and limits of the corpus.
    """
    changed = {
        stretch.place
        for partition in partitions
        if partition.index in digests
        for stretch, digest in zip(partition.stretches, digests[partition.index], strict=True)
        if stretch.place in places and _digest(stretch, reading, digest) != digest
    }
    return [place for place in places if place in changed]


def _digest(stretch: Stretch, reading: CorpusReading, before: str) -> str:
    reader = PartitionReader(Partition(0, (stretch,)), reading, [before])
    for _ in reader:
        pass  # the digest is known after the last row
    return reader.digests()[0]
