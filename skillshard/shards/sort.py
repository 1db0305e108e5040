"""Sort the samples of a partition by (skill, side of the cut, hash of the id) into scratch files.

    SCRATCH/000000/000.npy          one entry for each sample, sorted, dtype `ENTRY_DTYPE`
    SCRATCH/000000/000.data         text and JSON of each sample, in the sorted order; with members, text and payload (members.py)
    SCRATCH/000000/000.texts.npy    distinct texts of the chunk (copies.py)
    SCRATCH/000000/000.copies.npy   whether each entry is a copy; only if copies are dropped
    SCRATCH/000000/000.ids.npy      hash of each id, sorted, and the entry, dtype `IDS_DTYPE`; only if shards are appended

One task writes the chunks of a partition, and many tasks read the chunks. A chunk takes about `SORT_BYTES` of memory, so the memory
does not grow with the size of the partition.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import orjson
from jaxtyping import UInt64

from skillshard import places, progress, storage
from skillshard.corpus import CorpusReading, Partition, PartitionReader, Sample
from skillshard.errors import TagsError
from skillshard.execution import Record
from skillshard.hash_ranges import id_hash
from skillshard.shards.chunks import chunk_number, chunk_place
from skillshard.shards.copies import is_below, texts_of_chunk
from skillshard.shards.layouts import LAYOUTS
from skillshard.shards.manifest import SPLITS, Layout
from skillshard.shards.members import payload_of, tar_bytes_of
from skillshard.shards.split import HOLDOUT, TRAIN
from skillshard.shards.texts import HASH_DTYPE, text_hashes
from skillshard.tags import read_part

# Twice the default size of a partition, so a partition of plain JSON lines of usual length has one chunk.
SORT_BYTES = 128 << 20
"""Memory of the samples of a chunk, in bytes."""
# 32 bytes in the columns below. Writing the chunk then takes 56 bytes for the entry, 60 for the table of texts, and about as much for the
# hashes of the texts and the arrays for sorting.
_OVERHEAD_BYTES = 250
_SAMPLES_PER_ADVANCE = 1024  # a report for each sample would slow the sorting down
# The 8-byte fields come first, so that each field is aligned. NumPy searches an aligned column of a memory map without a copy.
ENTRY_DTYPE = np.dtype(
    [
        ("hash", "<u8"),  # xxh3 of the id
        ("start", "<u8"),
        ("row", "<u8"),  # in the file, rows that are set aside included
        ("text", HASH_DTYPE),  # of the folded text
        ("skill_side", "<u4"),  # twice the number of the skill, and 1 more where the text is below the cut
        ("file", "<u4"),  # in the order of the corpus
        ("text_bytes", "<u4"),
        ("json_bytes", "<u4"),
    ]
)
IDS_DTYPE = np.dtype([("hash", "<u8"), ("place", "<u4")])
FORMAT = 2
"""Version of the scratch files, in the records of the sorting. Work of another version cannot be continued."""


def sort_partition(
    partition: Partition,
    tags_part: str,
    expected_digests: list[str],
    reading: CorpusReading,
    num_rows: int,
    skills: list[str],
    cut: str,
    scratch: str,
    files: list[int],
    first_row: int,
    most_rows: int | None,
    layout: Layout,
    inherited: Sequence[str] | None,
) -> Record:
    """Sort the tagged samples of a partition by (skill, side of the cut, hash of the id) into chunks of about `SORT_BYTES`.

    Args:
        partition: Partition of the corpus.
        tags_part: File with the tags of the partition.
        expected_digests: Digests of the rows of each stretch at the tagging.
        reading: Field mappings and limits of the corpus, and the members that samples keep.
        num_rows: Number of rows, for the progress.
        skills: Names of all skills, in the order of their indexes.
        cut: Hash below which a text is held out.
        scratch: Directory for the chunks of all partitions.
        files: Number of the file in the corpus of each stretch.
        first_row: Number of rows of the first file before the partition. Later stretches are whole files.
        most_rows: Number of rows to sort, from the beginning of the partition. The rest is read all the same, because only the digest of all
            rows shows a change. None: all rows.
        layout: Layout of the shards, for the bytes of a sample in a tar.
        inherited: Exceptions to the cut in the parent, a shard set that is continued. None without a parent.

    Returns:
        Version of the scratch files, and numbers of chunks, of samples, of entries in the tables of texts, and of bytes of text and JSON. The
        rows that the tags set aside are counted by reason. With members, the number of samples with each member, and the numbers of the
        members that are left out.

    Raises:
        TagsError: The rows differ from the tagged rows.
        CorpusError: The members of a sample are too large.
    """
    suffixes = tuple(reading.members)
    indexes = {skill: index for index, skill in enumerate(skills)}
    chunks = num_samples = num_texts = num_bytes = 0
    waiting = _Waiting(cut, layout, inherited)

    def write() -> None:
        nonlocal chunks, num_texts, num_bytes, waiting
        num_bytes += len(waiting.data)
        num_texts += waiting.write(scratch, chunk_number(partition.index, chunks))
        chunks, waiting = chunks + 1, _Waiting(cut, layout, inherited)

    reader = PartitionReader(partition, reading)
    set_aside: Counter[str] = Counter()
    num_with: Counter[str] = Counter()
    for row, sample, skill in _zip_tags(reader, tags_part, expected_digests, set_aside, most_rows):
        stretch = len(reader.first_rows) - 1  # the rows are read one by one, so the reader is in the stretch of the row
        row_in_file = row - reader.first_rows[stretch] + (0 if stretch else first_row)
        json = member_json(sample.id, skill, reading.kept_meta(sample))
        waiting.add(
            indexes[skill],
            id_hash(sample.id),
            files[stretch],
            row_in_file,
            sample.text.encode(),
            payload_of(json, sample.members, suffixes),
        )
        if suffixes:
            waiting.add_members(len(json), tar_bytes_of(sample.members))
            num_with.update(suffix for suffix, _ in sample.members)
        num_samples += 1
        if not num_samples % _SAMPLES_PER_ADVANCE:
            progress.advance(row + 1, num_rows)
        if waiting.num_bytes >= SORT_BYTES:
            write()
    if waiting.num_samples:
        write()
    return {
        "format": FORMAT,
        "chunks": chunks,
        "samples": num_samples,
        "texts": num_texts,
        "bytes": num_bytes,
        "set_aside": dict(set_aside),
        **({"members": dict(num_with), "left_out": dict(reader.passed_over.members)} if suffixes else {}),
    }


def member_json(identity: str, skill: str, meta: dict[str, Any]) -> bytes:
    """Return the JSON member of a sample: id, skill and meta, in this order. The meta keeps the order of the corpus.

    orjson's bytes keep an output buffer of some kilobytes, so a caller copies the bytes at once.
    """
    return orjson.dumps({"id": identity, "skill": skill, "meta": meta})


def _zip_tags(
    reader: PartitionReader,
    tags_part: str,
    expected_digests: list[str],
    set_aside: Counter[str],
    most_rows: int | None,
) -> Iterator[tuple[int, Sample, str]]:
    """Yield the number, the sample and the skill of each tagged row among the first rows. Count the other rows by reason in `set_aside`."""
    tags = read_part(tags_part)
    # `zip_longest`, not `zip`: a row without a tag, or a tag without a row, means that the corpus has changed.
    for number, (row, tag) in enumerate(zip_longest(reader, tags)):
        is_left_out = most_rows is not None and number >= most_rows
        if tag is not None and row is not None and tag.reason is not None:
            set_aside[tag.reason] += not is_left_out
            continue  # set aside at the tagging
        if tag is None or tag.skill is None or not isinstance(row, Sample) or tag.id != row.id:
            raise _changed(reader.partition.stretches[len(reader.first_rows) - 1].name, tags_part)
        if not is_left_out:
            yield number, row, tag.skill
    # The ids alone cannot show a changed text or meta. The digest is complete only after the last row.
    for stretch, digest, expected in zip(reader.partition.stretches, reader.digests(), expected_digests, strict=True):
        if digest != expected:
            raise _changed(stretch.name, tags_part)


def _changed(name: str, tags_part: str) -> TagsError:
    return TagsError(
        f"{name} changed after the tagging: its rows differ from {tags_part}. Tag the present corpus into another "
        "directory, and shard with the new tags."
    )


class _Waiting:
    """Samples that are read but not yet sorted and written.

    All texts and JSONs stand in one buffer. An object for each sample would take more memory than a short text.

    Args:
        cut: Hash below which a text is held out.
        layout: Layout of the shards.
        inherited: Exceptions to the cut in the parent. None without a parent.
    """

    def __init__(self, cut: str, layout: Layout, inherited: Sequence[str] | None) -> None:
        self.cut, self.layout, self.inherited = cut, layout, inherited
        self.data = bytearray()
        self.skills, self.files = array("I"), array("I")
        self.hashes, self.rows = array("Q"), array("Q")
        self.text_bytes, self.json_bytes = array("I"), array("I")
        self.own_json_bytes, self.member_bytes = array("I"), array("Q")

    @property
    def num_samples(self) -> int:
        return len(self.hashes)

    @property
    def num_bytes(self) -> int:
        """Memory of the samples until the chunk is written, in bytes."""
        return len(self.data) + _OVERHEAD_BYTES * self.num_samples

    def add(self, skill: int, hashed: int, file: int, row: int, text: bytes, json: bytes) -> None:
        self.skills.append(skill)
        self.hashes.append(hashed)
        self.files.append(file)
        self.rows.append(row)
        self.text_bytes.append(len(text))
        self.json_bytes.append(len(json))
        self.data += text
        self.data += json

    def add_members(self, json_bytes: int, member_bytes: int) -> None:
        """Add the sizes of the sample that was added last, where samples have members.

        Args:
            json_bytes: Bytes of the JSON alone.
            member_bytes: Bytes of the members in a tar.
        """
        self.own_json_bytes.append(json_bytes)
        self.member_bytes.append(member_bytes)

    def write(self, scratch: str, number: int) -> int:
        """Write the sorted index, the texts and JSONs, and the table of texts of a chunk.

        Returns:
            Number of entries in the table of texts.
        """
        columns = (self.skills, self.hashes, self.files, self.rows, self.text_bytes, self.json_bytes)
        skills, hashes, files, rows, *sizes = map(np.array, columns)
        text_bytes, json_bytes = (size.astype(np.int64) for size in sizes)
        stops = np.cumsum(text_bytes + json_bytes)
        starts = stops - text_bytes - json_bytes
        view = memoryview(self.data)
        spans = zip(starts.tolist(), (starts + text_bytes).tolist(), strict=True)
        texts = text_hashes(bytes(view[start:stop]) for start, stop in spans)
        sides = np.where(is_below(texts, self.cut, self.inherited or ()), HOLDOUT, TRAIN)
        skill_sides = len(SPLITS) * skills + sides
        # The rows rise, so the stable sort leaves samples of equal hash in the order of the corpus.
        order = np.lexsort((hashes, skill_sides))
        index = np.empty(len(order), ENTRY_DTYPE)
        for name, values in (
            ("skill_side", skill_sides),
            ("hash", hashes),
            ("text", texts),
            ("file", files),
            ("row", rows),
            ("text_bytes", text_bytes),
            ("json_bytes", json_bytes),
        ):
            index[name] = values[order]
        index["start"] = starts_of(index)
        # The argsort of a permutation is its inverse: the place in the sorted index of each sample.
        if self.member_bytes:
            own_json_bytes, member_bytes = (
                np.array(sizes, np.int64) for sizes in (self.own_json_bytes, self.member_bytes)
            )
            tar_bytes = LAYOUTS[self.layout].tar_bytes_of(text_bytes, own_json_bytes) + member_bytes
        else:
            tar_bytes = LAYOUTS[self.layout].tar_bytes_of(text_bytes, json_bytes)
        table = texts_of_chunk(texts, skills, files, rows, tar_bytes, np.argsort(order), chunk=number)
        place = chunk_place(scratch, number)
        with storage.writing(places.with_suffix(place, ".data")) as part, part.open("wb") as file:
            file.writelines(
                view[start:stop] for start, stop in zip(starts[order].tolist(), stops[order].tolist(), strict=True)
            )
        storage.write_array(places.with_suffix(place, ".texts.npy"), table)
        if self.inherited is not None:
            by_hash = np.argsort(index["hash"], kind="stable")
            ids = np.empty(len(index), IDS_DTYPE)
            ids["hash"], ids["place"] = index["hash"][by_hash], by_hash
            storage.write_array(places.with_suffix(place, ".ids.npy"), ids)
        storage.write_array(places.with_suffix(place, ".npy"), index)
        return len(table)


def starts_of(entries: np.ndarray) -> UInt64[np.ndarray, " sample"]:
    """Return the start of each sample's text and JSON in a data file that holds the samples in the order of the entries."""
    sizes = entries["text_bytes"].astype(np.uint64) + entries["json_bytes"]
    return np.cumsum(sizes, dtype=np.uint64) - sizes
