"""Divide the files of a corpus into partitions, the tasks of the commands.

A large file is cut into stretches, and each stretch is a partition. Neighbouring small files are packed into one partition, because a task
costs more than the reading of a small file. The division is a pure function of the list of files, the sizes and, for Parquet and Arrow,
the footers. So all machines divide a corpus in the same way. A partition consists of plain values, and can be sent to any machine as JSON
or pickle.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from skillshard import storage
from skillshard.corpus.formats import CorpusFile
from skillshard.corpus.stretches import Stretch, stretches_of
from skillshard.errors import CorpusError
from skillshard.printable import counted

# 64 MiB are read in 0.3 CPU seconds, and a terabyte has 16,000 partitions.
DEFAULT_PARTITION_BYTES = 64 << 20
"""Default size of a partition on disk, in bytes."""
_FILES_AT_ONCE = 4096  # the waiting requests of more files would take much memory


@dataclass(frozen=True)
class Packing:
    """Rule for packing neighbouring small files into one partition. Tags record the rule, because the rule decides the partitions.

    Attributes:
        max_files: Largest number of files in a partition. A file of a store takes about 50 ms to open, so 1,024 files take less than a minute.
        small_share: A file is small if its size is at most `partition_bytes` divided by this number. Larger files stay partitions of their
            own, so that a few files of medium size still occupy several workers.
        compression_ratio: Number of bytes that a byte of a compressed text counts. Text takes about a quarter of its size in .gz and .zst.
    """

    max_files: int = 1024
    small_share: int = 8
    compression_ratio: int = 4

    def to_json(self) -> dict[str, int]:
        """Return the numbers, for the record of an artefact."""
        return asdict(self)


DEFAULT_PACKING = Packing()
"""Rule for new tags."""


@dataclass(frozen=True)
class Partition:
    """Part of a corpus: one task, which is retried and resumed by itself.

    Attributes:
        index: Position among the partitions of the corpus, from 0.
        stretches: A stretch of a large file, or several neighbouring small files, each whole.
    """

    index: int
    stretches: tuple[Stretch, ...]

    @property
    def name(self) -> str:
        """Name of the file in the corpus, or the names of the first and of the last file, for messages."""
        first, last = self.stretches[0].name, self.stretches[-1].name
        return first if len(self.stretches) == 1 else f"{first} to {last}, {counted(len(self.stretches), 'file')}"

    @property
    def bounds(self) -> list[tuple[str, int, int]]:
        """Name of the file, start and end of each stretch."""
        return [(stretch.name, stretch.start, stretch.stop) for stretch in self.stretches]

    def up_to(self, number: int, num_rows: int) -> "Partition":
        """Return the partition without the stretches after `number`, of which `num_rows` rows are read."""
        last = replace(self.stretches[number], num_rows=num_rows)
        return replace(self, stretches=(*self.stretches[:number], last))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values, in their order."""
        return {"index": self.index, "stretches": [stretch.to_json() for stretch in self.stretches]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Partition":
        """Return the partition with the values of `to_json`.

        Raises:
            CorpusError: The fields are not the fields of a partition.

        >>> partition = Partition(0, (Stretch("/data/a.jsonl", "a.jsonl", "jsonl", 0, 10, 10),))
        >>> Partition.from_json(partition.to_json()) == partition
        True
        """
        if set(value) != set(cls.__dataclass_fields__):
            raise CorpusError(
                f"not a partition: expected the fields {', '.join(cls.__dataclass_fields__)}, got {value}. Give the values of to_json()."
            )
        return cls(value["index"], tuple(map(Stretch.from_json, value["stretches"])))


def cut(
    files: Sequence[CorpusFile], partition_bytes: int, *, packing: Packing | None = DEFAULT_PACKING
) -> Iterator[Partition]:
    """Yield the partitions of files, each with about `partition_bytes` bytes on disk.

    Args:
        files: Files in the order of the corpus.
        partition_bytes: Size of a partition on disk, in bytes.
        packing: Rule for small files. None: each file has its own partition.
    """
    groups: Iterator[tuple[Stretch, ...]]
    if packing is None:
        groups = ((stretch,) for _, stretches in _cut_all(files, partition_bytes) for stretch in stretches)
    else:
        groups = _packed(files, partition_bytes, packing)
    return (Partition(index, stretches) for index, stretches in enumerate(groups))


def _packed(files: Sequence[CorpusFile], partition_bytes: int, packing: Packing) -> Iterator[tuple[Stretch, ...]]:
    """Yield the stretches of each partition."""
    waiting: list[Stretch] = []
    num_waiting_bytes = 0
    for file, stretches in _cut_all(files, partition_bytes):
        num_bytes = file.num_bytes * (packing.compression_ratio if file.compression else 1)
        is_small = len(stretches) == 1 and num_bytes * packing.small_share <= partition_bytes
        is_full = num_waiting_bytes + num_bytes > partition_bytes or len(waiting) == packing.max_files
        if waiting and (is_full or not is_small):
            yield tuple(waiting)
            waiting, num_waiting_bytes = [], 0
        if is_small:
            waiting += stretches
            num_waiting_bytes += num_bytes
        else:
            yield from ((stretch,) for stretch in stretches)
    if waiting:
        yield tuple(waiting)


def _cut_all(files: Sequence[CorpusFile], partition_bytes: int) -> Iterator[tuple[CorpusFile, list[Stretch]]]:
    """Yield each file with its stretches. The footers of many files are read at the same time."""
    cut_one = partial(stretches_of, partition_bytes=partition_bytes)
    for first in range(0, len(files), _FILES_AT_ONCE):
        group = files[first : first + _FILES_AT_ONCE]
        # Only a table is opened for its footer. Threads cost more than the division of a plain file.
        has_tables = any(file.format in ("parquet", "arrow") for file in group)
        yield from zip(group, storage.at_once(cut_one, group) if has_tables else map(cut_one, group), strict=True)
