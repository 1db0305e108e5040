"""How the files of a corpus are cut into partitions.

The cut is a pure function of the list of files, their sizes and, for Parquet and Arrow, their footers: every machine that
opens the corpus cuts it alike. A partition is plain values, so that it travels as JSON or pickle and can be read
anywhere.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from skillshard import places, storage
from skillshard.corpus.formats import CorpusFile, Format
from skillshard.errors import CorpusError

DEFAULT_PARTITION_BYTES = 64 << 20  # read in 0.3 CPU-s; a terabyte has 16,000 of them
_ARROW_FILE_MAGIC = b"ARROW1"


@dataclass(frozen=True)
class Partition:
    """A stretch of one file: the task, of retry and of resume.

    Attributes:
        index: position among the partitions of the corpus, from 0.
        place: where the file is, absolute.
        name: the file's name in the corpus, unique in it.
        format: how it is read.
        start, stop: the half-open stretch: bytes for "jsonl" (a line belongs to the partition it starts in), row groups
            for "parquet", record batches for "arrow"; for the others the whole file, 0 to `file_bytes`.
        file_bytes: size of the whole file when it was cut; reading stops if it has changed since.
    """

    index: int
    place: str
    name: str
    format: Format
    start: int
    stop: int
    file_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the order of the fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Partition":
        """The inverse of `to_json`.

        >>> partition = Partition(0, "/data/a.jsonl", "a.jsonl", "jsonl", 0, 10, 10)
        >>> Partition.from_json(partition.to_json()) == partition
        True
        """
        if set(value) != set(cls.__dataclass_fields__) or value["format"] not in get_args(Format):
            raise CorpusError(
                f"Not a partition: expected the fields {', '.join(cls.__dataclass_fields__)}, got {value}."
            )
        return cls(**value)


def cut(files: Iterable[CorpusFile], partition_bytes: int) -> Iterator[Partition]:
    index = 0
    for file in files:
        form = "arrow-stream" if file.format == "arrow" and not _is_arrow_file(file) else file.format
        for start, stop in _ranges(file, form, partition_bytes):
            yield Partition(index, file.place, file.name, form, start, stop, file.num_bytes)
            index += 1


def _ranges(file: CorpusFile, form: Format, partition_bytes: int) -> list[tuple[int, int]]:
    if form == "jsonl":
        return _even(file.num_bytes, file.num_bytes, partition_bytes)
    if form == "parquet":
        return _packed(_row_group_bytes(file), partition_bytes)
    if form == "arrow":
        return _even(_num_batches(file), file.num_bytes, partition_bytes)
    return [(0, file.num_bytes)]


def _even(num_parts: int, num_bytes: int, partition_bytes: int) -> list[tuple[int, int]]:
    """Cut [0, num_parts) into near-equal ranges of about `partition_bytes` of the `num_bytes` that they hold.

    >>> _even(10, 1000, 300)
    [(0, 2), (2, 5), (5, 7), (7, 10)]
    """
    pieces = max(1, min(num_parts, -(-num_bytes // partition_bytes)))
    return [(num_parts * i // pieces, num_parts * (i + 1) // pieces) for i in range(pieces)]


def _packed(sizes: list[int], partition_bytes: int) -> list[tuple[int, int]]:
    """Group neighbours up to `partition_bytes`; one that is larger stands alone.

    >>> _packed([4, 4, 4, 20, 1], 8)
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    ranges, start, held = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and held + size > partition_bytes:
            ranges.append((start, i))
            start, held = i, 0
        held += size
    return [*ranges, (start, len(sizes))]


def _is_arrow_file(file: CorpusFile) -> bool:
    with storage.open_stream(file.place) as stream:
        return bool(stream.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC)


def _row_group_bytes(file: CorpusFile) -> list[int]:
    """About the bytes on disk of each row group; none if the footer is broken, which the reading then says of the file.

    The row groups' own totals, scaled to the file: asking a damaged footer for its columns kills pyarrow 26.
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
    """What pyarrow raises for damaged columns. A local file that opened and cannot be decoded is damaged; from a remote
    one an OSError may be the network, which a retry cures and a rejection would hide."""
    kinds = (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowTypeError, pa.ArrowIndexError, pa.ArrowNotImplementedError)
    damage = (*kinds, UnicodeDecodeError)  # the last of a column's name
    return damage if places.is_remote(place) else (*damage, OSError)
