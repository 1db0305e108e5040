"""Which files a corpus has, and how they are cut into partitions.

Both are pure functions of the list of files, their sizes and, for Parquet and Arrow, their footers: every machine that
opens the corpus cuts it alike. A partition is plain values, so that it travels as JSON or pickle and can be read
anywhere.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

import orjson
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from skillshard import storage
from skillshard.errors import CorpusError, name_some

Format = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow", "arrow-stream", "tar"]
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".ndjson.gz": "jsonl.gz",
    ".json.gz": "jsonl.gz",
    ".jsonl.zst": "jsonl.zst",
    ".ndjson.zst": "jsonl.zst",
    ".json.zst": "jsonl.zst",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".tar": "tar",
}
DEFAULT_PARTITION_BYTES = 64 << 20  # read in 0.3 CPU-s; a terabyte has 16,000 of them
_ARROW_FILE_MAGIC = b"ARROW1"


@dataclass(frozen=True)
class CorpusFile:
    """One file: its place, its name in the corpus (relative, with "/"), format by name, size and time of change."""

    place: str
    name: str
    format: Format
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Partition:
    """A stretch of one file: the unit of work, of retry and of resume.

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


@dataclass(frozen=True)
class Corpus:
    """An ordered list of files, sorted by name."""

    files: tuple[CorpusFile, ...]

    @classmethod
    def open(cls, places: Sequence[str | Path] | str | Path) -> "Corpus":
        """Find the files of a corpus; none of their rows is read.

        Args:
            places: directories (searched recursively for known suffixes; hidden files and all others are left out),
                globs (`*`, `?`, `[...]`, `**`), or single files; local or URIs. The order does not matter.

        Raises:
            CorpusError: nothing found, an explicitly named file of unknown suffix, a file given twice, two of one name.
        """
        listed = [places] if isinstance(places, (str, Path)) else list(places)
        if not listed:
            raise CorpusError("No corpus given: name at least one directory, glob or file.")
        found = [file for place in listed for file in _files_at(_absolute(place))]
        _refuse_doubles(found)
        return cls(tuple(sorted(found, key=lambda file: file.name)))

    @property
    def inputs(self) -> list[list[str | int]]:
        """Name and size in bytes of every file: what an artefact records of its corpus."""
        return [[file.name, file.num_bytes] for file in self.files]

    @property
    def mtimes_ns(self) -> dict[str, int]:
        """Place -> time of last change of every file."""
        return {file.place: file.mtime_ns for file in self.files}

    def partitions(self, *, partition_bytes: int = DEFAULT_PARTITION_BYTES) -> list[Partition]:
        """Cut the files into partitions of about `partition_bytes` bytes on disk; at least one for each file."""
        if partition_bytes < 1:
            raise CorpusError(f"partition_bytes must be at least 1, got {partition_bytes}.")
        return list(_cut(self.files, partition_bytes))


def format_of(name: str) -> Format | None:
    """The format that a file's name promises, or None.

    >>> format_of("a/b.v1.jsonl.gz"), format_of("CORPUS.md"), format_of("X.PARQUET")
    ('jsonl.gz', None, 'parquet')
    """
    base = name.rsplit("/", 1)[-1].lower()
    return next((form for suffix, form in SUFFIXES.items() if base.endswith(suffix)), None)


# ---------------------------------------------------------------------------------------------------------- finding


def _absolute(place: str | Path) -> str:
    text = os.fspath(place)
    return text.rstrip("/") if storage.is_remote(text) else os.path.abspath(text.removeprefix("file://"))


def _files_at(place: str) -> list[CorpusFile]:
    fs, path = storage.filesystem(place)
    kind = fs.get_file_info(path).type
    if kind == pafs.FileType.File:
        return [_named_file(place)]
    if kind == pafs.FileType.Directory:
        return _some(_known(_without_bookkeeping(storage.list_files(place)), base=place), place)
    if glob.has_magic(place):
        return _some(_in_glob(place), place)
    raise CorpusError(f"{place}: no such file or directory. Give a directory, a glob in quotes, or a file.")


def _named_file(place: str) -> CorpusFile:
    stat = storage.stat(place)
    name = place.rsplit("/", 1)[-1]
    form = format_of(name)
    if form is None:
        raise CorpusError(f"{place}: unknown suffix. Known are {' '.join(SUFFIXES)}. Rename or convert the file.")
    return CorpusFile(place, name, form, stat.num_bytes, stat.mtime_ns)


def _some(files: list[CorpusFile], place: str) -> list[CorpusFile]:
    if files:
        return files
    raise CorpusError(
        f"{place}: no corpus files found. Looked for names that end in {' '.join(SUFFIXES)}, "
        "hidden files left out. Check the path, or convert the files to one of these formats."
    )


def _known(stats: Iterable[storage.FileStat], *, base: str) -> list[CorpusFile]:
    named = [(stat, stat.place[len(base.rstrip("/")) + 1 :]) for stat in stats]
    return [
        CorpusFile(stat.place, name, form, stat.num_bytes, stat.mtime_ns)
        for stat, name in named
        if (form := format_of(name)) is not None
    ]


def _without_bookkeeping(stats: list[storage.FileStat]) -> list[storage.FileStat]:
    """Leave out what Hugging Face's `save_to_disk` puts beside its data: state.json lists the only files that count."""
    states = {_parent(s.place): s.place for s in stats if s.place.endswith("/state.json")}
    listed = {folder: _data_files(place) for folder, place in states.items()}
    data = {folder: files for folder, files in listed.items() if files is not None}
    if not data:
        return stats
    return [
        stat
        for stat in stats
        if not stat.place.endswith("/dataset_dict.json")
        and (_parent(stat.place) not in data or stat.place in (data[_parent(stat.place)] or ()))
    ]


def _data_files(state_place: str) -> set[str] | None:
    """The data files that a state.json lists; None if it is some other file of that name."""
    try:
        state = orjson.loads(storage.read_bytes(state_place))
    except orjson.JSONDecodeError:
        return None
    if not isinstance(state, dict) or "_data_files" not in state:
        return None
    return {f"{_parent(state_place)}/{file['filename']}" for file in state["_data_files"]}


def _parent(place: str) -> str:
    return place.rsplit("/", 1)[0]


def _in_glob(pattern: str) -> list[CorpusFile]:
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = "/".join(parts[:fixed]) or "/"
    if storage.is_remote(pattern):
        stats = [s for s in storage.list_files(base) if _leads_to(s.place.split("/")[fixed:], parts[fixed:])]
        return _known(_without_bookkeeping(stats), base=base)
    matches = [match.rstrip("/") for match in glob.glob(pattern, recursive=True)]
    stats = [stat for m in matches for stat in (storage.list_files(m) if os.path.isdir(m) else [storage.stat(m)])]
    return _known(_without_bookkeeping(list(dict.fromkeys(stats))), base=base)


def _leads_to(parts: list[str], patterns: list[str]) -> bool:
    """Whether a path, or a directory above it, matches a glob given in its parts.

    >>> _leads_to(["2024", "a.jsonl"], ["20*"]), _leads_to(["x", "y", "a.jsonl"], ["**", "*.jsonl"])
    (True, True)
    >>> _leads_to(["sub", "a.jsonl"], ["*.jsonl"])
    False
    """
    return any(_matches(parts[:length], patterns) for length in range(1, len(parts) + 1))


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or (bool(parts) and _matches(parts[1:], patterns))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _refuse_doubles(files: list[CorpusFile]) -> None:
    places = [file.place if storage.is_remote(file.place) else os.path.realpath(file.place) for file in files]
    if twice := _repeated(places):
        raise CorpusError(f"Given twice: {name_some(twice)}. Name each file once, or only the directory they are in.")
    if same := _repeated(file.name for file in files):
        where = name_some(file.place for file in files if file.name == same[0])
        raise CorpusError(
            f"Two files have the name {same[0]!r} in the corpus: {where}. "
            "Name the directory above both, so that their names tell them apart, or rename one."
        )


def _repeated(values: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    twice = {value for value in values if value in seen or seen.add(value)}  # type: ignore[func-returns-value]
    return sorted(twice)


# ---------------------------------------------------------------------------------------------------------- cutting


def _cut(files: Iterable[CorpusFile], partition_bytes: int) -> Iterator[Partition]:
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
    return damage if storage.is_remote(place) else (*damage, OSError)
