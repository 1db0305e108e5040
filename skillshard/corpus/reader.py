"""Read a partition of any format: every row gives a sample or a rejection, in the order of the file."""

import bisect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain, islice, pairwise
from typing import Any

import orjson
import xxhash

from skillshard import storage
from skillshard.corpus import lines
from skillshard.corpus.columns import MetaField, SampleColumns, SampleJsons, SampleLists
from skillshard.corpus.delimited import lines_of_records, read_delimited
from skillshard.corpus.documents import FIELDS_PREFIX, holds_documents, lines_of_rows, read_documents
from skillshard.corpus.formats import Format
from skillshard.corpus.line_columns import LineColumns
from skillshard.corpus.line_jsons import LineJsons
from skillshard.corpus.lines import read_lines
from skillshard.corpus.mapping import CorpusReading, RowFields
from skillshard.corpus.partitions import Partition
from skillshard.corpus.paths import hive_fields
from skillshard.corpus.sample import PassedOver, Rejection, Sample
from skillshard.corpus.stretches import Stretch
from skillshard.corpus.table_digest import TableDigest, is_by_columns
from skillshard.corpus.tables import read_table, rows_before
from skillshard.corpus.tars import read_tar
from skillshard.corpus.texts import read_text
from skillshard.corpus.wet import read_wet
from skillshard.errors import CorpusError

_ROWS_OF_BLOCK = 64
_BYTES_OF_BLOCK = 1 << 20
_READERS: dict[Format, Callable[..., Iterator[Sample | Rejection]]] = {
    "csv": read_delimited,
    "tar": read_tar,
    "text": read_text,
    "tsv": read_delimited,
    "wet": read_wet,
}


class PartitionReader:
    """Reader of the rows of a partition. The rows can be read once, and then the digest is known.

    Args:
        partition: Partition from `Corpus.partitions`.
        reading: Field mappings of the rows, and the limit of the size of a sample.
        digests_before: Digest of each stretch at an earlier reading. The digests of this reading then have the same forms. None: the present form.

    Attributes:
        passed_over: Data that is left out in the rows read so far, by kind.
        first_rows: Row of the partition with which each stretch begins, for the stretches whose reading has begun.

    Raises:
        CorpusError: The size of the file has changed since the corpus was opened.
        StorageError: The file cannot be read.
    """

    def __init__(
        self,
        partition: Partition,
        reading: CorpusReading = CorpusReading(),
        digests_before: Sequence[str] | None = None,
    ) -> None:
        self.partition = partition
        self._digests_before = digests_before
        self.passed_over = PassedOver()
        self.first_rows: list[int] = []
        self._num_rows = 0
        self._digests: list[str] = []
        self._reading = reading
        self._begun = self._finished = False
        self._wanted: MetaField | None = None
        # The files of a partition share the readers of columns, because most files of a corpus have rows of one shape.
        self._line_columns: dict[tuple[str, str], LineColumns] = {}
        self._line_jsons: dict[tuple[str, str], LineJsons] = {}
        self._with_jsons = False

    def __iter__(self) -> Iterator[Sample | Rejection]:
        for block in self.blocks():
            yield from block

    def blocks(self) -> Iterator[list[Sample | Rejection]]:
        """Yield the rows in lists of neighbouring rows, which is faster than row by row. A list belongs to one stretch.

        The lists depend on the format, and take a few megabytes or hold a single row.
        """
        for block in self._all_blocks():
            assert not isinstance(block, SampleColumns)
            yield block if isinstance(block, list) else block.samples()

    def blocks_or_lists(self) -> Iterator[list[Sample | Rejection] | SampleJsons | SampleLists]:
        """Yield the rows as `blocks`, and ordinary rows as lists of their ids, texts and metadata, which is faster than samples.

        The metadata of ordinary JSON lines stays JSON, unless the reading keeps a part of the metadata only.
        """
        self._with_jsons = True
        for block in self._all_blocks():
            assert not isinstance(block, SampleColumns)
            yield block

    def blocks_or_columns(self, wanted: MetaField | None) -> Iterator[list[Sample | Rejection] | SampleColumns]:
        """Yield the rows as `blocks`, and ordinary rows as columns, which is faster than samples.

        Args:
            wanted: Field of the metadata for the columns. None: all rows are read as samples.
        """
        self._wanted = wanted
        for block in self._all_blocks():
            yield block.samples() if isinstance(block, SampleJsons | SampleLists) else block

    def _all_blocks(self) -> Iterator[list[Sample | Rejection] | SampleColumns | SampleJsons | SampleLists]:
        if self._begun:
            raise CorpusError(
                f"{self.partition.name}: a reader reads its partition only once. Make another PartitionReader."
            )
        self._begun = True
        for number, stretch in enumerate(self.partition.stretches):
            self.first_rows.append(self._num_rows)
            before = None if self._digests_before is None else self._digests_before[number]
            hasher: xxhash.xxh3_128 | TableDigest = xxhash.xxh3_128()
            # A stretch that is read up to a certain row hashes the values of the rows, because batches may have more rows.
            if (
                _reader_of(stretch) is read_table
                and stretch.num_rows is None
                and (before is None or is_by_columns(before))
            ):
                hasher = TableDigest()
            by_fields = (
                _has_rows_inside(stretch)
                and stretch.num_rows is None
                and (before is None or before.startswith(FIELDS_PREFIX))
            )
            for block in self._blocks(stretch, hasher, by_fields):
                self._num_rows += len(block) if isinstance(block, list) else block.num_rows
                yield block
            self._digests.append((FIELDS_PREFIX if by_fields else "") + hasher.hexdigest())
        self._finished = True

    def _blocks(self, stretch: Stretch, hasher: xxhash.xxh3_128 | TableDigest, by_fields: bool) -> Iterator[Any]:
        _refuse_changed(stretch)
        fields = self._reading.rows_of(stretch.name)
        folder_fields = hive_fields(stretch.name)
        options = {} if stretch.num_rows is not None or folder_fields else self._column_options(stretch, fields)
        if isinstance(hasher, TableDigest):
            options["digest"] = hasher
        if _has_rows_inside(stretch):
            options["hash_fields"] = by_fields
        blocks = _reader_of(stretch)(
            stretch,
            fields=fields,
            max_sample_bytes=self._reading.max_sample_bytes,
            # The readers hash whole blocks, which may have more rows than are read.
            hasher=xxhash.xxh3_128() if stretch.num_rows is not None or isinstance(hasher, TableDigest) else hasher,
            passed_over=self.passed_over,
            **options,
        )
        if stretch.num_rows is None and not folder_fields:
            return blocks
        blocks = (block.samples() if isinstance(block, SampleLists) else block for block in blocks)
        if folder_fields:
            blocks = _with_fields(blocks, folder_fields)
        if stretch.num_rows is None:
            return blocks
        assert not isinstance(hasher, TableDigest)
        return _in_blocks(_hashed(islice(chain.from_iterable(blocks), stretch.num_rows), hasher))

    def _column_options(self, stretch: Stretch, fields: RowFields) -> dict[str, Any]:
        """Return the arguments by which a reader reads ordinary rows as columns or with JSON. Without arguments, it gives samples or lists."""
        id_field, text_field, wanted = fields.id_field, fields.text_field, self._wanted
        if not fields.is_quick or id_field is None or id_field == text_field:
            return {}
        read = _reader_of(stretch)
        if wanted is None:
            keeps_all = fields.mapping.columns is None and not fields.mapping.drop
            if not self._with_jsons or read is not read_lines or not keeps_all:
                return {}
            return {"jsons": self._line_jsons.setdefault((id_field, text_field), LineJsons(id_field, text_field))}
        if read is read_table:
            return {"wanted": wanted}
        if read is not read_lines:
            return {}
        columns = self._line_columns.setdefault((id_field, text_field), LineColumns(id_field, text_field, wanted))
        return {"columns": columns}

    def num_rows(self) -> list[int]:
        """Return the number of rows of each stretch, rejected rows included.

        Raises:
            CorpusError: Not all rows have been read.
        """
        self._refuse_unread()
        return [last - first for first, last in pairwise([*self.first_rows, self._num_rows])]

    def digests(self) -> list[str]:
        """Return the digest of the rows of each stretch, rejected rows included: xxh3, 128 bits, in hexadecimal digits.

        Equal rows of the same format have equal digests. JSONL hashes the decompressed bytes of the lines. Parquet and Arrow hash the
        columns (table_digest.py), JSON documents the bytes of the rows and the fields beside the rows, and other formats the values of the rows. A stretch that is read up to a certain row always hashes the values of the rows.

        Raises:
            CorpusError: Not all rows have been read.
        """
        self._refuse_unread()
        return self._digests

    def _refuse_unread(self) -> None:
        if not self._finished:
            raise CorpusError(f"{self.partition.name}: the digest is known after the last row. Read all rows first.")


def read_partition(partition: Partition, reading: CorpusReading = CorpusReading()) -> Iterator[Sample | Rejection]:
    """Yield the rows of a partition, each as a `Sample` or a `Rejection`. The arguments are as in `PartitionReader`."""
    return iter(PartitionReader(partition, reading))


def count_rows(stretch: Stretch, reading: CorpusReading, *, most: int) -> int:
    """Return the number of items that `read_partition` gives for a stretch, at most `most`. Lines are counted without parsing."""
    if not has_lines(stretch):
        return sum(1 for _ in islice(read_partition(Partition(0, (stretch,)), reading), most))
    _refuse_changed(stretch)
    num_rows = 0
    for num_block_rows in lines.rows_of_blocks(stretch, max_sample_bytes=reading.max_sample_bytes):
        num_rows += num_block_rows
        if num_rows >= most:
            return most
    return num_rows


def has_lines(stretch: Stretch) -> bool:
    """Return whether each line that is not blank is a row."""
    if stretch.format == "jsonl":
        return not holds_documents(stretch)
    return stretch.format == "text" and stretch.layout.text_files == "lines"


def row_places(
    partition: Partition, first_rows: Sequence[int], rows: Collection[int], *, max_sample_bytes: int
) -> dict[int, tuple[str, int | None]]:
    """Return the file and the place in the file of some rows of a partition: the 1-based line for JSONL, the 1-based row for other formats.

    The files are read again, so the function is for errors and rejected rows.

    Args:
        partition: Partition of a corpus.
        first_rows: Row of the partition with which each stretch begins, as `PartitionReader.first_rows`.
        rows: Rows of the partition. Row 0 is the first row.
        max_sample_bytes: Limit of the size of a sample.
    """
    row_of_file: dict[int, dict[int, int]] = {}
    for row in rows:
        # A stretch without rows has the same first row as the next stretch, so the last stretch with this first row is meant.
        number = bisect.bisect_right(first_rows, row) - 1
        row_of_file.setdefault(number, {})[row - first_rows[number]] = row
    places: dict[int, tuple[str, int | None]] = {}
    for number, rows_of_file in row_of_file.items():
        stretch = partition.stretches[number]
        numbers = line_numbers(stretch, rows_of_file, max_sample_bytes=max_sample_bytes)
        places.update((row, (stretch.name, numbers.get(in_file))) for in_file, row in rows_of_file.items())
    return places


def line_numbers(stretch: Stretch, rows: Collection[int], *, max_sample_bytes: int) -> dict[int, int]:
    """Return the place in the file of some rows of a stretch: the 1-based line for JSONL, the 1-based row for other formats.

    Row 0 is the first row of the stretch. The file is read again.
    """
    if stretch.format == "text" or (stretch.format == "jsonl" and not holds_documents(stretch)):
        return lines.line_numbers(stretch, rows, max_sample_bytes=max_sample_bytes)
    if stretch.format in ("jsonl", "csv", "tsv"):
        lines_of = lines_of_rows if stretch.format == "jsonl" else lines_of_records
        numbers = enumerate(lines_of(stretch, max_sample_bytes=max_sample_bytes))
        return {row: line for row, line in numbers if row in rows}
    before = rows_before(stretch) if stretch.format in ("parquet", "arrow", "arrow-stream") else 0
    return {row: before + row + 1 for row in rows}


def _has_rows_inside(stretch: Stretch) -> bool:
    """Return whether a stretch is of JSON documents with fields beside the rows."""
    return stretch.format == "jsonl" and stretch.layout.rows is not None


def _reader_of(stretch: Stretch) -> Callable[..., Iterator[Any]]:
    """Return the function that reads a stretch in blocks."""
    if stretch.format == "jsonl" and not holds_documents(stretch):
        return read_lines
    if stretch.format in ("parquet", "arrow", "arrow-stream"):
        return read_table
    read_rows = read_documents if stretch.format == "jsonl" else _READERS[stretch.format]
    return lambda *arguments, **options: _in_blocks(read_rows(*arguments, **options))


def _with_fields(
    blocks: Iterator[list[Sample | Rejection]], folder_fields: Mapping[str, str | None]
) -> Iterator[list[Sample | Rejection]]:
    """Add the fields of the folders to the metadata. A field of the row has priority."""
    for block in blocks:
        for row in block:
            if isinstance(row, Sample):
                for name, value in folder_fields.items():
                    row.meta.setdefault(name, value)
        yield block


def _in_blocks(rows: Iterator[Sample | Rejection]) -> Iterator[list[Sample | Rejection]]:
    """Yield rows in lists of up to `_ROWS_OF_BLOCK` rows. A list ends after long texts or members, because the rows of a list are in memory together."""
    block: list[Sample | Rejection] = []
    num_bytes = 0
    for row in rows:
        block.append(row)
        num_bytes += len(row.text if isinstance(row, Sample) else row.raw or "")
        if isinstance(row, Sample) and row.members:
            num_bytes += sum(len(content) for _, content in row.members)
        if len(block) == _ROWS_OF_BLOCK or num_bytes >= _BYTES_OF_BLOCK:
            yield block
            block, num_bytes = [], 0
    if block:
        yield block


def _hashed(rows: Iterator[Sample | Rejection], hasher: xxhash.xxh3_128) -> Iterator[Sample | Rejection]:
    """Update a hash with the values of each row."""
    for row in rows:
        values = [row.id, row.text, row.meta] if isinstance(row, Sample) else row.to_json()
        hasher.update(orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE))
        yield row


def _refuse_changed(stretch: Stretch) -> None:
    num_bytes = storage.stat(stretch.place).num_bytes
    if num_bytes != stretch.file_bytes:
        raise CorpusError(
            f"{stretch.place} is {num_bytes:,} bytes, but was {stretch.file_bytes:,} when the corpus was opened: "
            "the file has changed since. Start again with the present corpus."
        )
