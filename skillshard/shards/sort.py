"""Sort the samples of a partition by (skill, side of the cut, hash of the id) into scratch files, and read the files.

    SCRATCH/000.npy          one entry for each sample, sorted: skill and side, hash of the id, hash of the text, row, start of the
                             bytes, bytes of the text, bytes of the JSON
    SCRATCH/000.data         text and JSON of each sample, in the sorted order
    SCRATCH/000.texts.npy    distinct texts of the chunk (copies.py)
    SCRATCH/000.copies.npy   whether each entry is a copy; only if copies are dropped

One task writes the files, and many tasks read the files. A chunk holds about `SORT_BYTES`, so the memory does not grow with the
size of the partition.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, BinaryIO

import numpy as np
import orjson
import xxhash
from jaxtyping import Int

from skillshard import progress, storage
from skillshard.corpus import CorpusReading, Partition, PartitionReader, Sample
from skillshard.errors import TagsError
from skillshard.execution import Record
from skillshard.hash_ranges import rows_between
from skillshard.shards.copies import texts_of_chunk
from skillshard.shards.manifest import SPLITS
from skillshard.shards.plan import ShardPlan
from skillshard.shards.split import HOLDOUT, TRAIN
from skillshard.shards.tar import tar_bytes_of
from skillshard.shards.texts import HASH_DTYPE, hash_of, hashes_of, text_hashes
from skillshard.tags import read_part

# Twice the default size of a partition, so a partition of plain JSON lines has one chunk. Later tasks open every chunk.
SORT_BYTES = 128 << 20
"""Memory of the samples of a chunk, in bytes."""
# Memory of a sample besides its text and JSON: two bytes objects, three numbers, five places in lists.
_OVERHEAD_BYTES = 250
_SAMPLES_PER_ADVANCE = 1024  # a report for each sample would slow the sorting down
SORTED_DTYPE = np.dtype(
    [
        ("skill_side", "<u4"),  # twice the number of the skill, and 1 more where the text is below the cut
        ("hash", "<u8"),
        ("text", HASH_DTYPE),
        ("row", "<u8"),
        ("start", "<u8"),
        ("text_bytes", "<u4"),
        ("json_bytes", "<u4"),
    ]
)


def sort_partition(
    partition: Partition,
    tags_part: str,
    expected_digest: str,
    reading: CorpusReading,
    num_rows: int,
    skills: list[str],
    cut: str,
    scratch: str,
) -> Record:
    """Sort the tagged samples of a partition by (skill, side of the cut, hash of the id) into chunks of about `SORT_BYTES`.

    Args:
        partition: Partition of the corpus.
        tags_part: File with the tags of the partition.
        expected_digest: Digest of the rows at the tagging.
        reading: Field mappings and limits of the corpus.
        num_rows: Number of rows, for the progress.
        skills: Names of all skills, in the order of their indexes.
        cut: Hash below which a text is held out.
        scratch: Directory for the chunks.

    Returns:
        Number of chunks, of samples, and of entries in the tables of texts.

    Raises:
        TagsError: The rows differ from the tagged rows.
    """
    indexes = {skill: index for index, skill in enumerate(skills)}
    chunks = num_samples = num_texts = 0
    waiting = _Waiting(cut)
    for row, sample, skill in _zip_tags(partition, tags_part, expected_digest, reading):
        hashed = xxhash.xxh3_64_intdigest(sample.id.encode())
        waiting.add(
            indexes[skill], hashed, row, sample.text.encode(), member_json(sample.id, skill, reading.kept_meta(sample))
        )
        num_samples += 1
        if not num_samples % _SAMPLES_PER_ADVANCE:
            progress.advance(row + 1, num_rows)
        if waiting.num_bytes >= SORT_BYTES:
            num_texts += waiting.write(f"{scratch}/{chunks:03d}")
            chunks, waiting = chunks + 1, _Waiting(cut)
    if waiting.texts:
        num_texts += waiting.write(f"{scratch}/{chunks:03d}")
        chunks += 1
    return {"chunks": chunks, "samples": num_samples, "texts": num_texts}


def member_json(identity: str, skill: str, meta: dict[str, Any]) -> bytes:
    """Return the JSON member of a sample: id, skill and meta, in this order. The meta keeps the order of the corpus."""
    # orjson's bytes keep their output buffer of some kilobytes. A copy has the size of its content.
    return bytes(memoryview(orjson.dumps({"id": identity, "skill": skill, "meta": meta})))


def _zip_tags(
    partition: Partition, tags_part: str, expected_digest: str, reading: CorpusReading
) -> Iterator[tuple[int, Sample, str]]:
    reader = PartitionReader(partition, reading)
    tags = read_part(tags_part)
    # `zip_longest`, not `zip`: a row without a tag, or a tag without a row, means that the corpus has changed.
    for number, (row, tag) in enumerate(zip_longest(reader, tags)):
        if tag is not None and row is not None and tag.reason is not None:
            continue  # set aside at the tagging
        if tag is None or tag.skill is None or not isinstance(row, Sample) or tag.id != row.id:
            raise _changed(partition, tags_part)
        yield number, row, tag.skill
    # The ids alone cannot show a changed text or meta. The digest is complete only after the last row.
    if reader.digest() != expected_digest:
        raise _changed(partition, tags_part)


def _changed(partition: Partition, tags_part: str) -> TagsError:
    return TagsError(
        f"{partition.name} changed after the tagging: its rows differ from {tags_part}. Tag the present corpus into another "
        "directory, and shard with the new tags."
    )


class _Waiting:
    """Samples that are read but not yet sorted and written.

    Args:
        cut: Hash below which a text is held out.
    """

    def __init__(self, cut: str) -> None:
        self.cut = cut
        self.skills: list[int] = []
        self.hashes: list[int] = []
        self.rows: list[int] = []
        self.texts: list[bytes] = []
        self.jsons: list[bytes] = []
        self.num_bytes = 0

    def add(self, skill: int, hashed: int, row: int, text: bytes, json: bytes) -> None:
        self.skills.append(skill)
        self.hashes.append(hashed)
        self.rows.append(row)
        self.texts.append(text)
        self.jsons.append(json)
        self.num_bytes += len(text) + len(json) + _OVERHEAD_BYTES

    def write(self, place: str) -> int:
        """Write the sorted index PLACE.npy, the texts and JSONs PLACE.data, and the table of texts PLACE.texts.npy.

        Returns:
            Number of entries in PLACE.texts.npy.
        """
        skills, hashes, rows = np.array(self.skills), np.array(self.hashes, np.uint64), np.array(self.rows, np.uint64)
        text_bytes = np.array([len(text) for text in self.texts])
        json_bytes = np.array([len(json) for json in self.jsons])
        texts = text_hashes(self.texts)
        sides = np.where(texts < hash_of(self.cut), HOLDOUT, TRAIN)
        order = np.lexsort((hashes, len(SPLITS) * skills + sides))
        index = np.empty(len(order), SORTED_DTYPE)
        index["skill_side"] = (len(SPLITS) * skills + sides)[order]
        index["hash"], index["text"], index["row"] = hashes[order], texts[order], rows[order]
        index["text_bytes"], index["json_bytes"] = text_bytes[order], json_bytes[order]
        spans = index["text_bytes"].astype(np.uint64) + index["json_bytes"]
        index["start"] = np.cumsum(spans) - spans
        # The argsort of a permutation is its inverse: the place in the sorted index of each sample.
        table = texts_of_chunk(texts, skills, rows, tar_bytes_of(text_bytes, json_bytes), np.argsort(order))
        with storage.writing(f"{place}.data") as part, part.open("wb") as file:
            file.writelines(piece for sample in order for piece in (self.texts[sample], self.jsons[sample]))
        storage.write_array(f"{place}.texts.npy", table)
        storage.write_array(f"{place}.npy", index)
        return len(table)


Collected = tuple[list[np.ndarray], list[bytes], list[bytes]]
"""Hashes of ids, texts and JSONs of the samples of a shard, chunk by chunk."""


def collect(
    chunks: list[str], shards: Sequence[ShardPlan], exceptions: Mapping[int, Sequence[str]], *, drop: bool
) -> list[Collected]:
    """Collect the samples of some shards from all chunks. Each chunk is opened once.

    Args:
        chunks: All chunks, in the order of the corpus.
        shards: Shards to collect.
        exceptions: Skill -> hashes of its texts that are on the other side of the cut.
        drop: Whether copies are dropped. CHUNK.copies.npy then marks the copies.

    Returns:
        Hashes of ids, texts and JSONs of each shard, in the order of `shards`.
    """
    moved = {skill: hashes_of(texts) for skill, texts in exceptions.items()}
    collected: list[Collected] = [([], [], []) for _ in shards]
    for chunk in chunks:
        index = np.load(f"{chunk}.npy", mmap_mode="r")
        copies = np.load(f"{chunk}.copies.npy", mmap_mode="r") if drop else None
        with open(f"{chunk}.data", "rb") as file:
            for shard, (hashes, texts, jsons) in zip(shards, collected, strict=True):
                places = _places_of(index, shard, moved.get(shard.skill))
                if copies is not None:
                    places = places[~copies[places]]
                # Neighbouring entries lie together in the file, so one read fetches all of them.
                for neighbours in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
                    if len(neighbours):
                        rows = np.array(index[int(neighbours[0]) : int(neighbours[-1]) + 1])
                        hashes.append(rows["hash"])
                        _read(file, rows, texts, jsons)
    return collected


def _read(file: BinaryIO, rows: np.ndarray, texts: list[bytes], jsons: list[bytes]) -> None:
    """Read neighbouring entries, and append their texts and JSONs to the lists."""
    base, last = int(rows["start"][0]), rows[-1]
    file.seek(base)
    data = file.read(int(last["start"]) + int(last["text_bytes"]) + int(last["json_bytes"]) - base)
    for start, text_bytes, json_bytes in zip(
        *((rows[name]).tolist() for name in ("start", "text_bytes", "json_bytes")), strict=True
    ):
        json_start = start - base + text_bytes
        texts.append(data[start - base : json_start])
        jsons.append(data[json_start : json_start + json_bytes])


def _places_of(index: np.ndarray, shard: ShardPlan, moved: np.ndarray | None) -> Int[np.ndarray, " sample"]:
    """Return the positions in a chunk's sorted index of the samples of a shard, rising within each side of the cut.

    The samples are the samples on the shard's side of the cut without the exceptions, and the exceptions of the other side.
    """
    own_side = SPLITS.index(shard.split)
    places = []
    for side in (TRAIN, HOLDOUT):
        if side != own_side and moved is None:
            continue
        key = len(SPLITS) * shard.skill + side
        # Keys of the dtype of the column: NumPy would convert the whole memory-mapped column to search for another dtype.
        first, last = np.searchsorted(index["skill_side"], np.array([key, key + 1], np.uint32)).tolist()
        within = rows_between(index["hash"][first:last], shard.low, shard.high)
        positions = np.arange(first + within.start, first + within.stop)
        if moved is not None:
            texts = index["text"][first + within.start : first + within.stop]
            positions = positions[np.isin(texts, moved) == (side != own_side)]
        places.append(positions)
    return np.concatenate(places)
