"""Tags, which give each sample of a corpus a skill. Each partition of the corpus has one Parquet part with the same rows.

    T/parts/000000.parquet    id, skill, score, reason: one row per row of the partition, in the same order
    T/rejected/000000.jsonl   the rows that were set aside, with file, line, reason and the raw line
    T/tags.json               written last: inputs and arguments, counts, digests (schemas/tags-2.json, tags-3.json)

A row that was set aside has a `reason` and no skill. Tags and corpus can therefore be read side by side without a join, and every row of
the corpus is accounted for.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from skillshard import artefact, canonical, places, storage
from skillshard.corpus import RESTS, Corpus, FileLayout, Packing, Partition
from skillshard.corpus.recorded import check_tags
from skillshard.errors import TagsError
from skillshard.printable import counted
from skillshard.progress import advance

MANIFEST = "tags.json"
SCHEMA = pa.schema(
    [("id", pa.string()), ("skill", pa.string()), ("score", pa.float32()), ("reason", pa.string())],
)
_MOST_BYTES = (1 << 31) - 1
ROWS_PER_GROUP = 65_536
"""Rows of a row group of a part. The number bounds the memory for reading and writing, and is part of the bytes on disk."""
_ANEW = "Make the tags anew in another directory with 'skillshard tag'."


class TagRow(NamedTuple):
    """One row of the tags: a tagged sample (skill and score), or a row that was set aside (reason)."""

    id: str | None
    skill: str | None
    score: float | None
    reason: str | None


class TagColumns(NamedTuple):
    """Neighbouring rows of the tags, as columns of equal length: lists, or arrays of Arrow. The fields are as in `TagRow`."""

    ids: Sequence[str | None] | pa.Array
    skills: Sequence[str | None] | pa.Array
    scores: Sequence[float | None] | pa.Array
    reasons: Sequence[str | None] | pa.Array

    @classmethod
    def of(cls, rows: Iterable[TagRow]) -> "TagColumns":
        """Return the columns of rows."""
        listed = list(rows)
        return cls(
            [row.id for row in listed],
            [row.skill for row in listed],
            [row.score for row in listed],
            [row.reason for row in listed],
        )


class TagsStretch(BaseModel):
    """A stretch of a corpus file, with the digest of its rows."""

    model_config = ConfigDict(extra="forbid")

    file: str = Field(description="name of the corpus file")
    start: int = Field(ge=0, description="first byte, row group or batch of the stretch")
    stop: int = Field(ge=0, description="end of the stretch, exclusive")
    num_rows: int = Field(
        ge=0, description="rows of the stretch; the rest of a file that was set aside counts as one row"
    )
    rows_digest: str = Field(description="digest of the rows' content, by which a changed corpus is noticed")


class TagsPart(BaseModel):
    """A partition of the corpus with its part of the tags."""

    model_config = ConfigDict(extra="forbid")

    stretches: list[TagsStretch] = Field(min_length=1, description="a stretch of a large file, or several small files")
    num_set_aside: int = Field(ge=0)
    part_digest: str = Field(description="digest of the Parquet file")

    @property
    def num_rows(self) -> int:
        """Number of rows of the part. The rest of a file that was set aside counts as one row."""
        return sum(stretch.num_rows for stretch in self.stretches)

    @property
    def bounds(self) -> list[tuple[str, int, int]]:
        """Name of the file, start and end of each stretch, as `Partition.bounds`."""
        return [(stretch.file, stretch.start, stretch.stop) for stretch in self.stretches]

    @property
    def rows_digests(self) -> list[str]:
        """Digest of the rows of each stretch."""
        return [stretch.rows_digest for stretch in self.stretches]


class TagsSkill(BaseModel):
    """A skill with its number of samples and bytes."""

    model_config = ConfigDict(extra="forbid")

    name: str
    num_samples: int = Field(ge=1)
    num_text_bytes: int | None = Field(
        ge=0, description="UTF-8 bytes of the skill's texts; null if tags were crossed without reading the corpus"
    )


class LeftOut(BaseModel):
    """Numbers of things that are not data of the corpus and were left out, by kind."""

    model_config = ConfigDict(extra="forbid")

    files: dict[str, int] = Field({}, description="files of the corpus directories that were not read, by kind")
    members: dict[str, int] = Field(
        {}, description="members of tars, records and blank text files that are no samples, by kind"
    )
    columns: dict[str, int] = Field({}, description="column -> rows whose value has no JSON form and is not in meta")


class TagsSetAside(BaseModel):
    """Rows of a file that were set aside for one reason."""

    model_config = ConfigDict(extra="forbid")

    file: str = Field(description="name of the corpus file")
    reason: str
    field: str | None = Field(description="path of the field with the fault; null if the fault is of the whole row")
    num_rows: int = Field(ge=1, description="the rest of a file that was set aside counts as one row")


class _TagsManifest(BaseModel):
    """The content of tags.json in all versions, without the parts."""

    model_config = ConfigDict(extra="forbid")

    made_from: Annotated[dict[str, Any], AfterValidator(check_tags)] = Field(
        description="command, arguments and inputs (names and sizes), which determine the bytes"
    )
    skills: list[TagsSkill] = Field(description="in the order of their names")
    num_rows: int = Field(ge=0)
    num_tagged: int = Field(ge=0)
    set_aside: dict[str, int] = Field(description="reason -> number of rows")
    unread: dict[str, int] = Field(
        {},
        description="reason -> number of files that were set aside from some row on, or as a whole; num_rows does not count their rows",
    )
    left_out: LeftOut = LeftOut()


class TagsManifest(_TagsManifest):
    """The content of tags.json."""

    schema_version: Literal["skillshard/tags/2"] = Field("skillshard/tags/2", alias="schema")
    parts: list[TagsPart]
    set_aside_by: list[TagsSetAside] = Field(
        [], description="rows that were set aside, in the order of file, reason and field; empty for tags of version 1"
    )

    @property
    def packing(self) -> Packing | None:
        """Packing rule for small files: several files in one partition. None: each file had its own partition."""
        recorded = self.made_from["arguments"].get("packing")
        return None if recorded is None else Packing(**recorded)


class TagsManifest3(TagsManifest):
    """The content of tags.json if a digest of rows has a form that version 2 did not know.

    The form is the word before the colon: "columns" (skillshard/corpus/table_digest.py) or "fields" (skillshard/corpus/documents.py).
    """

    schema_version: Literal["skillshard/tags/3"] = Field("skillshard/tags/3", alias="schema")  # type: ignore[assignment]


class TagsPart1(TagsStretch):
    """A partition of the corpus with its part of the tags, in version 1. A partition was a stretch of one file."""

    num_set_aside: int = Field(ge=0)
    part_digest: str = Field(description="digest of the Parquet file")


class TagsManifest1(_TagsManifest):
    """The content of tags.json in version 1. Each file had its own partition."""

    schema_version: Literal["skillshard/tags/1"] = Field("skillshard/tags/1", alias="schema")
    parts: list[TagsPart1]

    def in_present_version(self) -> TagsManifest:
        """Return the same facts in the present version."""
        kinds = set(TagsStretch.model_fields)
        parts = [
            {"stretches": [part.model_dump(include=kinds)], **part.model_dump(exclude=kinds)} for part in self.parts
        ]
        rest = self.model_dump(exclude={"schema_version", "parts"})
        return TagsManifest(**rest, parts=parts)


def tags_manifest(parts: Sequence[Mapping[str, Any]], **content: Any) -> TagsManifest:
    """Return the content of tags.json in the version that the digests of the rows need. The arguments are the fields of `TagsManifest`."""
    digests = (stretch["rows_digest"] for part in parts for stretch in part["stretches"])
    model = TagsManifest3 if any(map(_form_of, digests)) else TagsManifest
    return model(parts=parts, **content)


def set_aside_by(counts: Iterable[tuple[str, str, str | None, int]]) -> list[TagsSetAside]:
    """Add up numbers of rows by file, reason and field."""
    total: Counter[tuple[str, str, str | None]] = Counter()
    for file, reason, field, num_rows in counts:
        total[file, reason, field] += num_rows
    ordered = sorted(total, key=lambda key: (key[0], key[1], key[2] or ""))
    return [
        TagsSetAside(file=file, reason=reason, field=field, num_rows=total[file, reason, field])
        for file, reason, field in ordered
    ]


def kinds_of(lines: Iterable[bytes]) -> Counter[tuple[str, str, str | None]]:
    """Count lines of rejected/ by file, reason and field. Lines of earlier versions name no field.

    Raises:
        ValueError: A line is no row of rejected/.
    """
    counts: Counter[tuple[str, str, str | None]] = Counter()
    for line in lines:
        row = orjson.loads(line)
        if not isinstance(row, dict) or not {"file", "reason"} <= row.keys():
            raise ValueError(f"no row of rejected/: {line[:60]!r}")
        counts[row["file"], row["reason"], row.get("field")] += 1
    return counts


_VERSIONS: dict[str, tuple[str, type[TagsManifest1] | type[TagsManifest]]] = {
    "skillshard/tags/1": ("tags-1.json", TagsManifest1),
    "skillshard/tags/2": ("tags-2.json", TagsManifest),
    "skillshard/tags/3": ("tags-3.json", TagsManifest3),
}


@dataclass(frozen=True)
class Tags:
    """A finished tags artefact."""

    folder: str
    manifest: TagsManifest

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> "Tags":
        """Open tags by their directory, local or in a store.

        Raises:
            TagsError: The directory holds no finished tags, or tags.json is damaged.
        """
        folder = os.fspath(place) if places.is_remote(place) else str(places.local_path(place))
        manifest_place = places.join(folder, MANIFEST)
        if not storage.exists(manifest_place):
            raise TagsError(
                f"{places.public(folder)} holds no finished tags: {MANIFEST} is not there. Run 'skillshard tag' to its end."
            )
        if not places.is_remote(folder):
            storage.refuse_special(manifest_place)
        data = storage.read_bytes(manifest_place)
        content = canonical.from_json(data, places.public(manifest_place))
        version = content.get("schema") if isinstance(content, dict) else None
        schema, model = _VERSIONS.get(version if isinstance(version, str) else "", _VERSIONS["skillshard/tags/2"])
        manifest = artefact.parse_manifest(
            data,
            model,
            place=places.public(manifest_place),
            schema=schema,
            error=TagsError,
            anew=_ANEW,
        )
        return cls(folder, manifest.in_present_version() if isinstance(manifest, TagsManifest1) else manifest)

    def __repr__(self) -> str:
        """Return one line with the place and the numbers of skills, samples and parts."""
        manifest = self.manifest
        return (
            f"Tags({places.public(self.folder)!r}: {counted(len(manifest.skills), 'skill')}, {counted(manifest.num_tagged, 'sample')}, "
            f"{sum(manifest.set_aside.values()):,} set aside, {counted(len(manifest.parts), 'part')})"
        )

    @property
    def digest(self) -> str:
        """Digest of tags.json, which holds the digests of all parts."""
        return storage.file_digest(self.place(MANIFEST))

    def place(self, *parts: str) -> str:
        """Return the place of a file or directory of the tags."""
        return places.join(self.folder, *parts)

    @property
    def layout(self) -> FileLayout:
        """Layout of the corpus files at the tagging."""
        return FileLayout.from_json(self.manifest.made_from["arguments"].get("layout", {}))

    @property
    def limit(self) -> int | None:
        """Number of rows to which the reading of the corpus was limited. None: the whole corpus was read."""
        limit: int | None = self.manifest.made_from["arguments"].get("limit")
        return limit

    def partitions_of(self, corpus: Corpus) -> list[Partition]:
        """Return the partitions of the present corpus that belong to the parts, in the order of the parts.

        Raises:
            TagsError: The corpus has another number of partitions.
        """
        partitions = corpus.partitions_again(
            [[stretch.num_rows for stretch in part.stretches] for part in self.manifest.parts],
            self.limit,
            partition_bytes=self.manifest.made_from["arguments"]["partition_bytes"],
            packing=self.manifest.packing,
        )
        if len(partitions) != len(self.manifest.parts):
            raise TagsError(
                f"the corpus has {len(partitions):,} partitions, but {places.public(self.folder)} has {len(self.manifest.parts):,} parts: the "
                "corpus changed after the tagging. Tag the present corpus into another directory, and shard with the new tags."
            )
        return partitions

    def file_rows(self) -> list[tuple[str, int]]:
        """Return file and number of rows of each stretch."""
        return [(stretch.file, stretch.num_rows) for part in self.manifest.parts for stretch in part.stretches]

    def set_aside_counts(self) -> list[tuple[str, str, str | None, int]]:
        """Return file, reason, field and number of rows that were set aside. Version 1 knows no fields, and the file is then empty."""
        if self.manifest.set_aside_by:
            return [(count.file, count.reason, count.field, count.num_rows) for count in self.manifest.set_aside_by]
        reasons = {**self.manifest.set_aside, **self.manifest.unread}
        return [("", reason, None, num_rows) for reason, num_rows in reasons.items()]

    def rows(self, part: int) -> Iterator[TagRow]:
        """Read the rows of one part, in the order of the corpus."""
        return read_part(part_place(self.folder, part))

    def verify(self) -> list[str]:
        """Return one sentence for every fault. Without faults, the list is empty."""
        faults = []
        for number, part in enumerate(self.manifest.parts):
            advance(number, len(self.manifest.parts))
            place = part_place(self.folder, number)
            if not storage.exists(place):
                faults.append(f"{places.public(place)} is missing. {_ANEW}")
            elif (got := storage.file_digest(place)) != part.part_digest:
                faults.append(
                    f"{places.public(place)} has digest {got}, tags.json says {part.part_digest}: damaged or edited. {_ANEW}"
                )
            num_rejected = count_rejected(self.folder, [number]) if part.num_set_aside else 0
            if num_rejected != part.num_set_aside:
                faults.append(
                    f"{places.public(rejected_place(self.folder, number))} holds {num_rejected:,} rows, tags.json says {part.num_set_aside:,}: "
                    f"missing, damaged or edited. {_ANEW}"
                )
        # The rest of a file that was set aside is a row of its part, but no row of the corpus.
        num_in_parts = sum(part.num_rows for part in self.manifest.parts) - sum(self.manifest.unread.values())
        num_counted = self.manifest.num_tagged + sum(self.manifest.set_aside.values())
        if (num_in_parts, num_counted) != (self.manifest.num_rows, self.manifest.num_rows):
            faults.append(
                f"tags.json says num_rows is {self.manifest.num_rows:,}, but its parts make {num_in_parts:,}, and tagged and set "
                f"aside {num_counted:,}: damaged or edited. {_ANEW}"
            )
        return faults


def _form_of(rows_digest: str) -> str:
    """Return the word before the colon of a digest of rows, or "" for a digest of hexadecimal digits alone."""
    return rows_digest.rpartition(":")[0]


def refuse_two_forms(tags: Tags, other: Tags) -> None:
    """Raise TagsError if two tags of the same files have digests of rows in two forms, which cannot be compared."""
    stretches = [[stretch for part in each.manifest.parts for stretch in part.stretches] for each in (tags, other)]
    are_files_alike = [own.file for own in stretches[0]] == [own.file for own in stretches[1]]
    if are_files_alike and any(
        _form_of(own.rows_digest) != _form_of(two.rows_digest) for own, two in zip(*stretches, strict=True)
    ):
        raise TagsError(
            f"{places.public(tags.folder)} and {places.public(other.folder)} have digests of rows in two forms, because an earlier version of "
            "skillshard made one of the two. So nothing shows that both are tags of the same rows. Tag the older one anew with this version."
        )


def part_place(folder: str | os.PathLike[str], part: int) -> str:
    return places.join(folder, "parts", f"{part:06d}.parquet")


def rejected_place(folder: str | os.PathLike[str], part: int) -> str:
    return places.join(folder, "rejected", f"{part:06d}.jsonl")


def split_rests(reasons: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Split numbers of rejections by reason into rejected rows and rejected rests of files.

    >>> split_rests({"missing-field": 3, "truncated": 1})
    ({'missing-field': 3}, {'truncated': 1})
    """
    rows = {reason: count for reason, count in reasons.items() if reason not in RESTS}
    return rows, {reason: count for reason, count in reasons.items() if reason in RESTS}


def first_rejected(place: str, num_rows: int | None) -> bytes:
    """Return the first lines of a file of rejected/. None: all lines."""
    data = storage.read_bytes(place)
    return data if num_rows is None else b"".join(data.splitlines(keepends=True)[:num_rows])


def count_rejected(folder: str | os.PathLike[str], parts: Iterable[int]) -> int:
    """Count the rows in rejected/ for the given parts."""
    files = [rejected_place(folder, part) for part in parts]
    return sum(storage.num_lines(place) for place in files if storage.exists(place))


def read_part(place: str) -> Iterator[TagRow]:
    """Read the rows of one Parquet part as a stream.

    Raises:
        TagsError: The part is missing or damaged.
    """
    for batch in read_batches(place):
        yield from map(TagRow, *(column.to_pylist() for column in batch.columns))


def read_batches(place: str) -> Iterator[pa.RecordBatch]:
    """Read one Parquet part as a stream of batches with the columns of `SCHEMA`.

    Raises:
        TagsError: The part is missing or damaged.
    """
    source = storage.readable(place)
    try:
        with pq.ParquetFile(source) as file:
            # A Parquet file of another program would otherwise fail somewhere in the middle of a shard.
            if not file.schema_arrow.equals(SCHEMA):
                raise TagsError(
                    f"{places.public(place)} has columns {file.schema_arrow.names}, tags have {SCHEMA.names}. {_ANEW}"
                )
            yield from file.iter_batches(ROWS_PER_GROUP)
    except FileNotFoundError as error:
        raise TagsError(f"{places.public(place)} is missing, but tags.json names it. {_ANEW}") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise TagsError(
            f"{places.public(place)} cannot be read as Parquet: damaged or edited ({error}). {_ANEW}"
        ) from error


def write_part(place: str, blocks: Iterable[TagColumns]) -> None:
    """Write one part, whole or not at all, in row groups of bounded size.

    Args:
        place: File of the part.
        blocks: Rows of the tags in blocks of any size.
    """
    # Rows are collected to groups of a fixed size, because the size of the groups is part of the bytes.
    with storage.writing(place) as part, pq.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
        waiting: list[TagColumns] = []
        num_rows = 0
        for block in blocks:
            while num_rows + len(block.ids) >= ROWS_PER_GROUP:
                num_left = ROWS_PER_GROUP - num_rows
                writer.write_table(_table([*waiting, TagColumns(*(column[:num_left] for column in block))]))
                block = TagColumns(*(column[num_left:] for column in block))
                waiting, num_rows = [], 0
            waiting.append(block)
            num_rows += len(block.ids)
        if num_rows:
            writer.write_table(_table(waiting))


def _table(blocks: Sequence[TagColumns]) -> pa.Table:
    return pa.table(
        [_column(columns, field.type) for columns, field in zip(zip(*blocks, strict=True), SCHEMA, strict=True)],
        schema=SCHEMA,
    )


def _column(columns: Sequence[Any], type: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Return one column of neighbouring blocks. Neighbouring lists become one array, because an array for each small list takes long."""
    arrays: list[pa.Array] = []
    for is_array, neighbours in itertools.groupby(columns, lambda column: isinstance(column, pa.Array)):
        run = list(neighbours)
        arrays += run if is_array else [pa.array(list(itertools.chain.from_iterable(run)), type)]
    # The offsets of a contiguous array have 32 bits. A column in one piece gives the same pages for blocks of any size.
    is_contiguous = sum(array.nbytes for array in arrays) <= _MOST_BYTES
    return pa.concat_arrays(arrays) if is_contiguous else pa.chunked_array(arrays)
