"""Sort the samples of a partition by (skill, side of the cut, hash of the id) into scratch files.

    SCRATCH/000000/000.npy          one entry for each sample, sorted, dtype `ENTRY_DTYPE`
    SCRATCH/000000/000.data         text and JSON of each sample, in the sorted order; with members, text and payload (members.py)
    SCRATCH/000000/000.texts.npy    distinct texts of the chunk (copies.py)
    SCRATCH/000000/000.texts.ids.*  ids of the first samples of these texts; only if copies are dropped
    SCRATCH/000000/000.copies.npy   whether each entry is a copy; only if copies are dropped
    SCRATCH/000000/000.ids.npy      hash of each id, sorted, and the entry, dtype `IDS_DTYPE`; only if shards are appended

One task writes the chunks of a partition, and many tasks read the chunks. A chunk takes about `SORT_BYTES` of memory, so the memory
does not grow with the size of the partition.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from jaxtyping import Int, UInt64

from skillshard import places, progress, storage
from skillshard.corpus import CorpusReading, Partition, PartitionReader
from skillshard.execution import Record
from skillshard.hash_ranges import id_hashes
from skillshard.shards.chunks import chunk_number, chunk_place
from skillshard.shards.contents import GrowingBytes, array_of, gathered
from skillshard.shards.copies import is_below, texts_of_chunk, write_table
from skillshard.shards.layouts import LAYOUTS
from skillshard.shards.manifest import SPLITS, Layout
from skillshard.shards.members import payload_of, tar_bytes_of
from skillshard.shards.split import HOLDOUT, TRAIN
from skillshard.shards.tagged_rows import TaggedRows, tagged_rows
from skillshard.shards.texts import HASH_DTYPE, ascii_hashes, text_hashes

# Twice the default size of a partition, so a partition of plain JSON lines of usual length has one chunk.
SORT_BYTES = 128 << 20
"""Memory of the samples of a chunk, in bytes."""
# 60 bytes in the entries below. Writing the chunk then takes 56 bytes for the entry, 60 for the table of texts, and about as much for the
# hashes of the texts and the arrays for sorting.
_OVERHEAD_BYTES = 250
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
_BLOCK_DTYPE = np.dtype(
    [
        ("hash", "<u8"),
        ("row", "<u8"),
        ("member_bytes", "<u8"),  # of the members in a tar
        ("text", HASH_DTYPE),
        ("skill", "<u4"),
        ("file", "<u4"),
        ("text_bytes", "<u4"),
        ("json_bytes", "<u4"),  # of the payload
        ("id_bytes", "<u4"),
        ("own_json_bytes", "<u4"),  # of the JSON without members, if samples have members
    ]
)
IDS_DTYPE = np.dtype(
    [
        ("hash", "<u8"),
        ("chunk", "<u8"),  # or the shard of a parent, counted from `copies.PARENT_CHUNK`
        ("row", "<u4"),  # entry of the chunk, or row of the shard
    ]
)
FORMAT = 4
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
    drop: bool,
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
        drop: Whether copies are dropped. The table of texts then has ids, because the list of the dropped samples names ids.

    Returns:
        Version of the scratch files, and numbers of chunks, of samples, of entries in the tables of texts, and of bytes of text and JSON. The
        rows that the tags set aside are counted by reason. With members, the number of samples with each member, and the numbers of the
        members that are left out.

    Raises:
        TagsError: The rows differ from the tagged rows.
        CorpusError: The members of a sample are too large.
    """
    suffixes = tuple(reading.members)
    chunks = num_samples = num_texts = num_bytes = 0
    waiting = _Waiting(cut, layout, inherited, drop)

    def write() -> None:
        nonlocal chunks, num_texts, num_bytes, waiting
        num_bytes += len(waiting.data)
        num_texts += waiting.write(scratch, chunk_number(partition.index, chunks), with_members=bool(suffixes))
        chunks, waiting = chunks + 1, _Waiting(cut, layout, inherited, drop)

    reader = PartitionReader(partition, reading, expected_digests)
    set_aside: Counter[str] = Counter()
    num_with: Counter[str] = Counter()
    for tagged in tagged_rows(reader, tags_part, expected_digests, skills, set_aside, most_rows):
        stretch = len(reader.first_rows) - 1  # the reader is in the stretch of the rows that it gave last
        rows = tagged.rows - reader.first_rows[stretch] + (0 if stretch else first_row)
        rest = _block(tagged._replace(rows=rows), skills, files[stretch], reading, with_ids=drop)
        while len(rest):
            block, rest = rest.cut(waiting.num_fitting(rest))
            waiting.add(block)
            if waiting.num_bytes >= SORT_BYTES:
                write()
        if suffixes:
            num_with.update(suffix for members in tagged.members for suffix, _ in members)
        num_samples += len(tagged.ids)
        progress.advance(int(tagged.rows[-1]) + 1, num_rows)
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

    orjson's bytes keep an output buffer of about a kilobyte, so a caller keeps the bytes of a few thousand samples at most.
    """
    return orjson.dumps({"id": identity, "skill": skill, "meta": meta})


def _member_jsons(tagged: TaggedRows, skills: list[str]) -> list[bytes]:
    """Return the JSON member of each sample whose metadata is JSON, with the bytes of `member_json`."""
    numbers = tagged.skills.tolist()
    skill_jsons = {number: orjson.dumps(skills[number]) for number in set(numbers)}
    pieces: list[bytes] = [b'{"id":', b"", b',"skill":', b"", b',"meta":', b"", b"}\n"] * len(numbers)
    pieces[1::7] = tagged.id_jsons
    pieces[3::7] = [skill_jsons[number] for number in numbers]
    pieces[5::7] = tagged.meta_jsons
    # JSON from orjson has no newline, so one join and one split make all members, without a call for each.
    return b"".join(pieces).split(b"\n")[:-1]


@dataclass(frozen=True)
class _Block:
    """Samples of neighbouring rows.

    Attributes:
        entries: Numbers and hash of each sample, dtype `_BLOCK_DTYPE`.
        texts, payloads: Text and payload of each sample, one after the other.
        ids: Ids, one after the other, if the table of texts needs ids.
    """

    entries: np.ndarray
    texts: memoryview
    payloads: memoryview
    ids: memoryview

    def __len__(self) -> int:
        return len(self.entries)

    def cut(self, position: int) -> tuple["_Block", "_Block"]:
        """Return the samples before a position, and the samples from the position on."""
        before = self.entries[:position]
        texts, payloads, ids = (
            int(before[name].sum(dtype=np.int64)) for name in ("text_bytes", "json_bytes", "id_bytes")
        )
        return (
            _Block(before, self.texts[:texts], self.payloads[:payloads], self.ids[:ids]),
            _Block(self.entries[position:], self.texts[texts:], self.payloads[payloads:], self.ids[ids:]),
        )


def _block(tagged: TaggedRows, skills: list[str], file: int, reading: CorpusReading, *, with_ids: bool) -> _Block:
    """Return the texts, the payloads and the entries of tagged samples.

    Args:
        tagged: Samples of one file, with rows of the file.
        skills: Names of all skills.
        file: Number of the file in the corpus.
        reading: Field mappings of the corpus, and the members that samples keep.
        with_ids: Whether the block needs the ids.
    """
    metas = tagged.metas
    mapping = reading.mappings[reading.prefix_of(tagged.file)]
    if mapping.columns is not None or mapping.drop:
        metas = list(map(mapping.kept_meta, metas))
    texts, text_bytes, hashes = _encoded(tagged.texts)
    if tagged.meta_jsons:
        jsons = _member_jsons(tagged, skills)
    else:
        jsons = list(map(member_json, tagged.ids, [skills[skill] for skill in tagged.skills.tolist()], metas))
    payloads = jsons
    entries = np.zeros(len(jsons), _BLOCK_DTYPE)
    if reading.members:
        suffixes = tuple(reading.members)
        members = tagged.members or [()] * len(jsons)
        payloads = [payload_of(json, of_sample, suffixes) for json, of_sample in zip(jsons, members, strict=True)]
        entries["own_json_bytes"] = _lengths(jsons)
        entries["member_bytes"] = list(map(tar_bytes_of, members))
    entries["hash"] = np.fromiter(id_hashes(tagged.ids), np.uint64, len(jsons))
    entries["skill"], entries["file"], entries["row"] = tagged.skills, file, tagged.rows
    payload_bytes = _lengths(payloads)
    entries["text"], entries["text_bytes"], entries["json_bytes"] = hashes, text_bytes, payload_bytes
    ids = list(map(str.encode, tagged.ids)) if with_ids else []
    if with_ids:
        entries["id_bytes"] = _lengths(ids)
    return _Block(entries, memoryview(texts), memoryview(b"".join(payloads)), memoryview(b"".join(ids)))


def _encoded(texts: list[str]) -> tuple[bytes, Int[np.ndarray, " text"], np.ndarray]:
    """Return texts in UTF-8, one after the other, the bytes of each text, and the hash of each folded text."""
    together = "".join(texts)
    if together.isascii():  # one object for all texts in place of one for each
        data, sizes = together.encode(), _lengths(texts)
        return data, sizes, ascii_hashes(data, sizes)
    encoded = list(map(str.encode, texts))
    return b"".join(encoded), _lengths(encoded), text_hashes(encoded)


def _lengths(values: Sequence[str | bytes]) -> Int[np.ndarray, " value"]:
    return np.fromiter(map(len, values), np.int64, len(values))


class _Waiting:
    """Samples that are read but not yet sorted and written.

    All texts and payloads stand in one buffer: the texts of a block, and then its payloads. An object for each sample would take more memory
    than a short text.

    Args:
        cut: Hash below which a text is held out.
        layout: Layout of the shards.
        inherited: Exceptions to the cut in the parent. None without a parent.
        with_ids: Whether the table of texts has the ids of the first samples.
    """

    def __init__(self, cut: str, layout: Layout, inherited: Sequence[str] | None, with_ids: bool) -> None:
        self.cut, self.layout, self.inherited, self.with_ids = cut, layout, inherited, with_ids
        self.data, self.ids = GrowingBytes(SORT_BYTES), GrowingBytes()
        self.num_samples = 0
        self._entries: list[np.ndarray] = []

    @property
    def num_bytes(self) -> int:
        """Memory of the samples until the chunk is written, in bytes."""
        return len(self.data) + len(self.ids) + _OVERHEAD_BYTES * self.num_samples

    def num_fitting(self, block: _Block) -> int:
        """Return the number of samples of a block up to the sample that reaches `SORT_BYTES`."""
        sizes = block.entries["text_bytes"].astype(np.int64) + block.entries["json_bytes"] + _OVERHEAD_BYTES
        if self.with_ids:
            sizes += block.entries["id_bytes"]
        return min(len(block), int(np.searchsorted(np.cumsum(sizes), SORT_BYTES - self.num_bytes)) + 1)

    def add(self, block: _Block) -> None:
        self._entries.append(block.entries)
        self.data.append(block.texts)
        self.data.append(block.payloads)
        self.ids.append(block.ids)
        self.num_samples += len(block)

    def write(self, scratch: str, number: int, *, with_members: bool = False) -> int:
        """Write the sorted index, the texts and JSONs, and the table of texts of a chunk.

        Args:
            scratch: Directory for the chunks of all partitions.
            number: Number of the chunk.
            with_members: Whether samples may have members.

        Returns:
            Number of entries in the table of texts.
        """
        entries = np.concatenate(self._entries)
        block_samples = np.array(list(map(len, self._entries)))
        self._entries.clear()
        skills, hashes, texts, files, rows = (entries[name] for name in ("skill", "hash", "text", "file", "row"))
        text_bytes, json_bytes = (entries[name].astype(np.int64) for name in ("text_bytes", "json_bytes"))
        sides = np.where(is_below(texts, self.cut, self.inherited or ()), HOLDOUT, TRAIN)
        skill_sides = len(SPLITS) * skills + sides
        # The rows rise, so the stable sort leaves samples of equal hash in the order of the corpus.
        order = np.lexsort((hashes, skill_sides))
        index = np.empty(len(order), ENTRY_DTYPE)
        for name in ("hash", "text", "file", "row", "text_bytes", "json_bytes"):
            index[name] = entries[name][order]
        index["skill_side"] = skill_sides[order]
        index["start"] = starts_of(index)
        if with_members:
            own_json_bytes, member_bytes = (
                entries[name].astype(np.int64) for name in ("own_json_bytes", "member_bytes")
            )
            tar_bytes = LAYOUTS[self.layout].tar_bytes_of(text_bytes, own_json_bytes) + member_bytes
        else:
            tar_bytes = LAYOUTS[self.layout].tar_bytes_of(text_bytes, json_bytes)
        id_bytes = entries["id_bytes"].astype(np.int64) if self.with_ids else np.zeros(len(entries), np.int64)
        table, firsts = texts_of_chunk(texts, skills, files, rows, tar_bytes, id_bytes, chunk=number)
        place = chunk_place(scratch, number)
        with storage.writing(places.with_suffix(place, ".data")) as part, part.open("wb") as file:
            file.writelines(_in_order(self.data.view(), text_bytes, json_bytes, block_samples, order))
        write_table(places.with_suffix(place, ".texts"), table, gathered(array_of(self.ids.view(), id_bytes), firsts))
        if self.inherited is not None:
            by_hash = np.argsort(index["hash"], kind="stable")
            ids = np.empty(len(index), IDS_DTYPE)
            ids["hash"], ids["chunk"], ids["row"] = index["hash"][by_hash], number, by_hash
            storage.write_array(places.with_suffix(place, ".ids.npy"), ids)
        storage.write_array(places.with_suffix(place, ".npy"), index)
        return len(table)


def _in_order(
    data: np.ndarray,
    text_bytes: Int[np.ndarray, " sample"],
    payload_bytes: Int[np.ndarray, " sample"],
    block_samples: Int[np.ndarray, " block"],
    order: Int[np.ndarray, " sample"],
) -> Iterator[memoryview]:
    """Yield the text and the payload of each sample in an order, in chunks.

    Args:
        data: Texts of the first block, its payloads, texts of the second block, and so on.
        text_bytes, payload_bytes: Bytes of each text and payload.
        block_samples: Number of samples of each block.
        order: Positions of the samples.
    """
    samples_before = np.repeat(np.cumsum(block_samples) - block_samples, block_samples)
    texts = np.arange(len(text_bytes)) + samples_before
    payloads = texts + np.repeat(block_samples, block_samples)
    sizes = np.empty(2 * len(texts), np.int64)
    sizes[texts], sizes[payloads] = text_bytes, payload_bytes
    return gathered(array_of(data, sizes), np.column_stack((texts[order], payloads[order])).ravel())


def starts_of(entries: np.ndarray) -> UInt64[np.ndarray, " sample"]:
    """Return the start of each sample's text and JSON in a data file that holds the samples in the order of the entries."""
    sizes = entries["text_bytes"].astype(np.uint64) + entries["json_bytes"]
    return np.cumsum(sizes, dtype=np.uint64) - sizes
