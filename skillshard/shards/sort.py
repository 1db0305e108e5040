"""A partition's samples, sorted by (skill, side of the cut, hash of id) in scratch files: written by one task, read by many.

    SCRATCH/000.npy          one entry per sample, sorted: skill and side, hash of id, hash of text, row, where its bytes start, bytes
                             of text and of JSON
    SCRATCH/000.data         text and JSON of each sample, in that order
    SCRATCH/000.texts.npy    the chunk's distinct texts (copies.py)
    SCRATCH/000.copies.npy   which entries are copies, where copies are dropped

A chunk holds about `SORT_BYTES`, so a partition of any size takes bounded memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, BinaryIO

import numpy as np
import orjson
import xxhash
from jaxtyping import Int

from skillshard import progress, storage
from skillshard.corpus import Partition, PartitionReader, Sample
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

SORT_BYTES = 128 << 20
"""Memory of the samples of a chunk."""
_OVERHEAD_BYTES = 250
"""Memory of a sample besides its text and JSON: two objects of bytes, three numbers, five places in lists."""
_SAMPLES_PER_ADVANCE = 1024
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
    reading: Mapping[str, Any],
    num_rows: int,
    skills: list[str],
    cut: str,
    scratch: str,
) -> Record:
    """Sort one partition's tagged samples by (skill, side of the cut, hash of id) into scratch files of about `SORT_BYTES`.

    Returns:
        Number of scratch chunks, of samples, and of entries in the tables of texts.
    """
    index = {skill: at for at, skill in enumerate(skills)}
    chunks = num_samples = num_texts = 0
    waiting = _Waiting(cut)
    for row, sample, skill in _zip_tags(partition, tags_part, expected_digest, reading):
        hashed = xxhash.xxh3_64_intdigest(sample.id.encode())
        waiting.add(index[skill], hashed, row, sample.text.encode(), member_json(sample, skill))
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


def member_json(sample: Sample, skill: str) -> bytes:
    """The JSON member of a sample: id, skill, meta, in this order; meta keeps the order of the corpus."""
    # The copy has the size of its content, while orjson's own bytes keep the buffer of some kilobytes that they were written into.
    return bytes(memoryview(orjson.dumps({"id": sample.id, "skill": skill, "meta": sample.meta})))


def _zip_tags(
    partition: Partition, tags_part: str, expected_digest: str, reading: Mapping[str, Any]
) -> Iterator[tuple[int, Sample, str]]:
    reader = PartitionReader(partition, **reading)
    rows = read_part(tags_part)
    for number, (row, tag) in enumerate(zip_longest(reader, rows)):
        if tag is not None and row is not None and tag.reason is not None:
            continue
        if tag is None or tag.skill is None or not isinstance(row, Sample) or tag.id != row.id:
            raise _changed(partition, tags_part)
        yield number, row, tag.skill
    if reader.digest() != expected_digest:
        raise _changed(partition, tags_part)


def _changed(partition: Partition, tags_part: str) -> TagsError:
    return TagsError(
        f"{partition.name} is not what was tagged: its rows differ from {tags_part}. Tag the corpus as it is now into "
        "another directory, and shard with those tags."
    )


class _Waiting:
    """Samples read but not yet sorted and written."""

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
        """Write PLACE.npy, the sorted index, PLACE.data, the texts and JSONs in that order, and PLACE.texts.npy.

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
        table = texts_of_chunk(texts, skills, rows, tar_bytes_of(text_bytes, json_bytes), np.argsort(order))
        with storage.writing(f"{place}.data") as part, part.open("wb") as file:
            file.writelines(piece for at in order for piece in (self.texts[at], self.jsons[at]))
        storage.write_array(f"{place}.texts.npy", table)
        storage.write_array(f"{place}.npy", index)
        return len(table)


Collected = tuple[list[np.ndarray], list[bytes], list[bytes]]
"""Hashes of ids, texts and JSONs of one shard's samples, in the order of the corpus."""


def collect(
    chunks: list[str], shards: Sequence[ShardPlan], exceptions: Mapping[int, Sequence[str]], *, drop: bool
) -> list[Collected]:
    """The samples of some shards; every chunk is opened once.

    Args:
        exceptions: skill -> hashes of its texts that are on the other side of the cut.
        drop: whether CHUNK.copies.npy says which samples are left out.
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
                for neighbours in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
                    if len(neighbours):
                        rows = np.array(index[int(neighbours[0]) : int(neighbours[-1]) + 1])
                        hashes.append(rows["hash"])
                        _read(file, rows, texts, jsons)
    return collected


def _read(file: BinaryIO, rows: np.ndarray, texts: list[bytes], jsons: list[bytes]) -> None:
    """Append the texts and JSONs of neighbouring entries."""
    base, last = int(rows["start"][0]), rows[-1]
    file.seek(base)
    data = file.read(int(last["start"]) + int(last["text_bytes"]) + int(last["json_bytes"]) - base)
    for start, text, json in zip(
        *((rows[name]).tolist() for name in ("start", "text_bytes", "json_bytes")), strict=True
    ):
        at = start - base
        texts.append(data[at : at + text])
        jsons.append(data[at + text : at + text + json])


def _places_of(index: np.ndarray, shard: ShardPlan, moved: np.ndarray | None) -> Int[np.ndarray, " sample"]:
    """The entries of a chunk's sorted index that belong to a shard, rising: of its side those that are no exceptions, of the
    other side the exceptions."""
    own_side = SPLITS.index(shard.split)
    places = []
    for side in (TRAIN, HOLDOUT):
        if side != own_side and moved is None:
            continue
        key = len(SPLITS) * shard.skill + side
        first, last = np.searchsorted(index["skill_side"], np.array([key, key + 1], np.uint32)).tolist()
        within = rows_between(index["hash"][first:last], shard.low, shard.high)
        found = np.arange(first + within.start, first + within.stop)
        if moved is not None:
            texts = index["text"][first + within.start : first + within.stop]
            found = found[np.isin(texts, moved) == (side != own_side)]
        places.append(found)
    return np.concatenate(places)
