"""Read one partition, whatever its format: every row gives one sample or one rejection, in the order of the file."""

from collections.abc import Collection, Iterator

import xxhash

from skillshard import storage
from skillshard.corpus import lines
from skillshard.corpus.lines import read_lines
from skillshard.corpus.partitions import Partition
from skillshard.corpus.sample import PassedOver, Rejection, Sample
from skillshard.corpus.tables import read_table, rows_before
from skillshard.corpus.tars import read_tar
from skillshard.errors import CorpusError

DEFAULT_MAX_SAMPLE_BYTES = 16 << 20  # about four million tokens, more than any context in use: a mistake, not a text


class PartitionReader:
    """The rows of one partition, read once, and then the digest of what was read.

    Args:
        partition: as cut by `Corpus.partitions`.
        id_field: the field with the id; None if the corpus has none: then it is the file's name, "@" and the byte
            offset (JSONL; of the decompressed text) or 1-based row (any other).
        text_field: the field with the text.
        max_sample_bytes: most bytes of UTF-8 of text and meta together; a larger sample is rejected.

    Attributes:
        passed_over: what the rows read so far left out, by kind.

    Raises:
        CorpusError: the file has another size than when the corpus was opened.
        StorageError: the file cannot be read.
    """

    def __init__(
        self,
        partition: Partition,
        *,
        id_field: str | None = "id",
        text_field: str = "text",
        max_sample_bytes: int = DEFAULT_MAX_SAMPLE_BYTES,
    ) -> None:
        self.partition = partition
        self.passed_over = PassedOver()
        self._hasher = xxhash.xxh3_128()
        self._read = {"tar": read_tar, "parquet": read_table, "arrow": read_table, "arrow-stream": read_table}.get(
            partition.format, read_lines
        )
        self._id_field, self._text_field, self._max_sample_bytes = id_field, text_field, max_sample_bytes
        self._begun = self._finished = False

    def __iter__(self) -> Iterator[Sample | Rejection]:
        if self._begun:
            raise CorpusError(
                f"{self.partition.name}: a reader reads its partition once. Make another PartitionReader."
            )
        self._begun = True
        _refuse_changed(self.partition)
        yield from self._read(
            self.partition,
            id_field=self._id_field,
            text_field=self._text_field,
            max_sample_bytes=self._max_sample_bytes,
            hasher=self._hasher,
            passed_over=self.passed_over,
        )
        self._finished = True

    def digest(self) -> str:
        """xxh3, 128 bits, in hex, over all rows, rejected ones too: equal rows of one format, equal digest.

        Of JSONL it is the bytes of the partition's lines, compressed or not; of other formats the rows themselves.
        """
        if not self._finished:
            raise CorpusError(
                f"{self.partition.name}: the digest is known when all rows have been read. Read on first."
            )
        return self._hasher.hexdigest()


def read_partition(
    partition: Partition,
    *,
    id_field: str | None = "id",
    text_field: str = "text",
    max_sample_bytes: int = DEFAULT_MAX_SAMPLE_BYTES,
) -> Iterator[Sample | Rejection]:
    """The rows of a partition, each a `Sample` or a `Rejection`; arguments as of `PartitionReader`."""
    return iter(PartitionReader(partition, id_field=id_field, text_field=text_field, max_sample_bytes=max_sample_bytes))


def line_numbers(partition: Partition, rows: Collection[int], *, max_sample_bytes: int) -> dict[int, int]:
    """Where some rows of a partition (0 is its first) stand in the file: the 1-based line of JSONL, row of any other.

    Reads the partition's file again; for errors only.
    """
    if partition.format.startswith("jsonl"):
        return lines.line_numbers(partition, rows, max_sample_bytes=max_sample_bytes)
    before = rows_before(partition) if partition.format in ("parquet", "arrow", "arrow-stream") else 0
    return {row: before + row + 1 for row in rows}


def _refuse_changed(partition: Partition) -> None:
    num_bytes = storage.stat(partition.place).num_bytes
    if num_bytes != partition.file_bytes:
        raise CorpusError(
            f"{partition.place} is {num_bytes:,} bytes, but was {partition.file_bytes:,} when the corpus was opened: "
            "it has changed since. Start again with the corpus as it is now."
        )
