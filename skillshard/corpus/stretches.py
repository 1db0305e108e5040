"""Cut the files of a corpus into stretches, the parts of a file that a reader reads in order.

The cut is a pure function of the sizes and, for Parquet and Arrow, the footers. So all machines cut a file in the same way.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from skillshard import places, storage
from skillshard.corpus.formats import DEFAULT_LAYOUT, Compression, CorpusFile, FileLayout, Format
from skillshard.errors import CorpusError

_ARROW_FILE_MAGIC = b"ARROW1"


@dataclass(frozen=True)
class Stretch:
    """Stretch of a corpus file.

    Attributes:
        place: Absolute path or URI of the file.
        name: Name of the file in the corpus, unique in the corpus.
        format: Format of the file.
        start: First unit of the stretch. Units are bytes for plain "jsonl", row groups for "parquet" and record batches for "arrow". A line
            belongs to the stretch of its first byte. Other formats are not cut: a stretch is a whole file, in bytes.
        stop: End of the stretch, exclusive.
        file_bytes: Size of the whole file at the cut. Another size at the reading is an error.
        compression: Compression of a text format, or None.
        layout: Facts about the file that the name does not show.
        num_rows: Number of rows that are read of the stretch, from its beginning. None: all rows.
    """

    place: str
    name: str
    format: Format
    start: int
    stop: int
    file_bytes: int
    compression: Compression | None = None
    layout: FileLayout = DEFAULT_LAYOUT
    num_rows: int | None = None

    def whole(self) -> "Stretch":
        """Return the stretch of the whole file."""
        return replace(self, start=0, stop=self.file_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values, in their order."""
        return asdict(self) | {"layout": self.layout.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Stretch":
        """Return the stretch with the values of `to_json`.

        Raises:
            CorpusError: The fields are not the fields of a stretch.

        >>> stretch = Stretch("/data/a.jsonl", "a.jsonl", "jsonl", 0, 10, 10)
        >>> Stretch.from_json(stretch.to_json()) == stretch
        True
        """
        if set(value) != set(cls.__dataclass_fields__) or value["format"] not in get_args(Format):
            raise CorpusError(
                f"not a stretch of a file: expected the fields {', '.join(cls.__dataclass_fields__)}, got {value}. Give the values of to_json()."
            )
        return cls(**{**value, "layout": FileLayout.from_json(value["layout"])})


def stretches_of(file: CorpusFile, partition_bytes: int) -> list[Stretch]:
    """Cut a file into stretches of about `partition_bytes` bytes on disk, at least one."""
    form = "arrow-stream" if file.format == "arrow" and not _is_arrow_file(file) else file.format
    return [
        Stretch(file.place, file.name, form, start, stop, file.num_bytes, file.compression, file.layout)
        for start, stop in _ranges(file, form, partition_bytes)
    ]


def _ranges(file: CorpusFile, form: Format, partition_bytes: int) -> list[tuple[int, int]]:
    if _has_lines(file) and file.compression is None:
        return _even(file.num_bytes, file.num_bytes, partition_bytes)
    if form == "parquet":
        return _packed(_row_group_bytes(file), partition_bytes)
    if form == "arrow":
        return _even(_num_batches(file), file.num_bytes, partition_bytes)
    return [(0, file.num_bytes)]


def _has_lines(file: CorpusFile) -> bool:
    """Return whether each line of a file is a row, so that the file can be cut at any byte.

    A file ".json" may hold one document instead. The content shows the difference, and the first partition then reads the whole file.
    """
    if file.format == "jsonl":
        return file.layout.rows is None
    return file.format == "text" and file.layout.text_files == "lines" and file.layout.is_utf8


def _even(num_parts: int, num_bytes: int, partition_bytes: int) -> list[tuple[int, int]]:
    """Cut [0, num_parts) with `num_bytes` bytes into near-equal ranges of about `partition_bytes` bytes.

    >>> _even(10, 1000, 300)
    [(0, 2), (2, 5), (5, 7), (7, 10)]
    """
    pieces = max(1, min(num_parts, -(-num_bytes // partition_bytes)))
    return [(num_parts * i // pieces, num_parts * (i + 1) // pieces) for i in range(pieces)]


def _packed(sizes: list[int], partition_bytes: int) -> list[tuple[int, int]]:
    """Group neighbours up to `partition_bytes`. A larger part is a group by itself.

    >>> _packed([4, 4, 4, 20, 1], 8)
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    ranges, start, num_bytes = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and num_bytes + size > partition_bytes:
            ranges.append((start, index))
            start, num_bytes = index, 0
        num_bytes += size
    return [*ranges, (start, len(sizes))]


def _is_arrow_file(file: CorpusFile) -> bool:
    with storage.open_stream(file.place) as stream:
        return bool(stream.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC)


def _row_group_bytes(file: CorpusFile) -> list[int]:
    """Estimate the bytes on disk of each row group. A broken footer gives an empty list, and the reading then reports the damage.

    The estimate scales the totals of the row groups to the size of the file. The columns would give exact sizes, but a request for the
    columns of a damaged footer crashes pyarrow 26.
    """
    if file.num_bytes == 0:
        return []
    try:
        with storage.open_random(file.place) as source:
            footer = pq.read_metadata(source)
    except storage_damage(file.place):
        return []
    sizes = [footer.row_group(i).total_byte_size for i in range(footer.num_row_groups)]
    return [size * file.num_bytes // max(1, sum(sizes)) for size in sizes]


def _num_batches(file: CorpusFile) -> int:
    try:
        with storage.open_random(file.place) as source, pa.ipc.open_file(source) as reader:
            return int(reader.num_record_batches)
    except storage_damage(file.place):
        return 0


def storage_damage(place: str) -> tuple[type[Exception], ...]:
    """Return the exceptions that pyarrow raises for a damaged file.

    For a local file, OSError counts as damage. For a remote file, an OSError may come from the network. A retry cures the network, and
    a rejection would hide the fault.
    """
    kinds = (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowTypeError, pa.ArrowIndexError, pa.ArrowNotImplementedError)
    damage = (*kinds, UnicodeDecodeError)  # a column's name can be invalid UTF-8
    return damage if places.is_remote(place) else (*damage, OSError)
