"""Estimate the rows of a corpus from the first rows of some files, for a plan before any work.

At most `MAX_FILES` files are read, up to `FILE_BYTES` bytes or `FILE_ROWS` rows each. The other rows are assumed to be of the same size. The rows
of Parquet files are known from their footers. The expansion of a compressed file is measured on its first mebibyte.
"""

import bz2
import lzma
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from skillshard import storage
from skillshard.corpus.files import Corpus
from skillshard.corpus.formats import Compression, CorpusFile, suffix_of
from skillshard.corpus.mapping import CorpusReading
from skillshard.corpus.partitions import Partition
from skillshard.corpus.peek import FILE_BYTES, FILE_ROWS, chosen_files
from skillshard.corpus.reader import count_rows, has_lines, read_partition
from skillshard.corpus.sample import Rejection, Sample
from skillshard.corpus.stretches import storage_damage, stretches_of

_HEAD_BYTES = 1 << 20
_EXACT_FILES = 64
"""Largest number of Parquet files whose footers are all read. More footers take too long for an estimate."""


@dataclass(frozen=True)
class Estimate:
    """The first rows of some files, and the number of rows of the whole corpus.

    Attributes:
        samples: Samples that were read.
        rejections: Bad rows that were read.
        files: Names of the files that were read.
        num_rows: Estimated number of rows of the corpus.
        is_exact: Whether the number of rows is known, not estimated.
        seconds: Time that one process took to read the rows.
    """

    samples: Sequence[Sample]
    rejections: Sequence[Rejection]
    files: Sequence[str]
    num_rows: int
    is_exact: bool
    seconds: float

    @property
    def num_read(self) -> int:
        """Number of rows that were read."""
        return len(self.samples) + len(self.rejections)


@dataclass(frozen=True)
class _Look:
    """The first rows of a file.

    Attributes:
        rows: Rows that were read.
        share: Share of the file that the rows take.
        seconds: Time of the reading.
    """

    rows: Sequence[Sample | Rejection]
    share: float
    seconds: float


def estimate(corpus: Corpus, reading: CorpusReading) -> Estimate:
    """Read the first rows of some files, and estimate the number of rows of the corpus.

    Raises:
        StorageError: A file cannot be read.
    """
    files = chosen_files(corpus.files)
    looks = {file.name: _look(file, reading) for file in files}
    rows = [row for look in looks.values() for row in look.rows]
    known = {name: len(look.rows) for name, look in looks.items() if look.share == 1}
    tables = [file for file in corpus.files if file.format == "parquet"]
    for file in tables if len(tables) <= _EXACT_FILES else []:
        if (num_rows := _rows_of_footer(file)) is not None:
            known[file.name] = num_rows
    texts = [file.name for file in corpus.files if file.format == "text" and file.layout.text_files != "lines"]
    known |= dict.fromkeys(texts, 1)
    others = [file for file in corpus.files if file.name not in known]
    num_rows = sum(known.values()) + round(sum(_expected_rows(file, files, looks, known) for file in others))
    return Estimate(
        [row for row in rows if isinstance(row, Sample)],
        [row for row in rows if isinstance(row, Rejection)],
        [file.name for file in files],
        num_rows,
        not others and not texts,  # a blank text is no row
        sum(look.seconds for look in looks.values()),
    )


def _expected_rows(
    file: CorpusFile, read: Sequence[CorpusFile], looks: dict[str, _Look], known: dict[str, int]
) -> float:
    """Return the expected rows of a file, by its size and the rows for each byte of the files that were read, of the same suffix if possible."""
    if file.name in looks and looks[file.name].share:
        return len(looks[file.name].rows) / looks[file.name].share
    alike = [other for other in read if suffix_of(other.name) == suffix_of(file.name)] or list(read)
    num_rows = sum(
        known.get(other.name, len(looks[other.name].rows) / (looks[other.name].share or 1)) for other in alike
    )
    return file.num_bytes * num_rows / max(1, sum(other.num_bytes for other in alike))


def _look(file: CorpusFile, reading: CorpusReading) -> _Look:
    stretch = stretches_of(file, FILE_BYTES)[0]
    rows: list[Sample | Rejection] = []
    num_bytes, started_s = 0, time.perf_counter()
    for row in islice(read_partition(Partition(0, (stretch,)), reading), FILE_ROWS):
        rows.append(row)
        num_bytes += _bytes_of(row)
        if num_bytes > FILE_BYTES:
            break
    seconds = time.perf_counter() - started_s
    is_whole = len(rows) < FILE_ROWS and num_bytes <= FILE_BYTES
    is_cut_by_bytes = has_lines(stretch) and file.compression is None
    of_file = (stretch.stop - stretch.start) / max(1, file.num_bytes) if is_cut_by_bytes else 1.0
    if file.format == "parquet" and (num_rows := _rows_of_footer(file)):
        share = len(rows) / num_rows
    elif is_cut_by_bytes and (of_file < 1 or not is_whole):
        share = of_file * len(rows) / max(1, count_rows(stretch, reading, most=1 << 62))
    elif is_whole and file.format != "arrow":
        share = 1.0
    else:
        share = min(1.0, num_bytes / max(1.0, file.num_bytes * _expansion(file)))
    return _Look(rows, share, seconds)


def _bytes_of(row: Sample | Rejection) -> int:
    if isinstance(row, Rejection):
        return len((row.raw or "").encode())
    num_member_bytes = sum(len(content) for _, content in row.members)
    return len(row.id) + len(row.text.encode()) + len(orjson.dumps(row.meta)) + num_member_bytes


def _rows_of_footer(file: CorpusFile) -> int | None:
    try:
        with storage.open_random(file.place) as source:
            return int(pq.read_metadata(source).num_rows)
    except storage_damage(file.place):
        return None


def _expansion(file: CorpusFile) -> float:
    """Return the bytes of content for each byte of a file. 1 for a file without compression, and for a damaged file."""
    if file.compression is None:
        return 1.0
    with storage.open_stream(file.place) as stream:
        head = bytes(stream.read(_HEAD_BYTES))
    try:
        if file.compression == "zstd":
            return _zstd_expansion(head)
        stepper = _stepper(file.compression)
        content = stepper.decompress(head)
        return len(content) / max(1, len(head) - len(stepper.unused_data))
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return 1.0


def _stepper(compression: Compression) -> Any:
    if compression == "gzip":
        return zlib.decompressobj(31)  # 31: with the header of gzip
    return bz2.BZ2Decompressor() if compression == "bz2" else lzma.LZMADecompressor()


def _zstd_expansion(head: bytes) -> float:
    num_bytes = 0
    with pa.CompressedInputStream(pa.BufferReader(head), "zstd") as stream:
        try:
            while chunk := stream.read(_HEAD_BYTES):
                num_bytes += len(chunk)
        except OSError:  # the head ends in the middle of a frame
            pass
    return max(1.0, num_bytes / max(1, len(head)))
