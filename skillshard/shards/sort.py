"""A partition's samples, sorted by (skill, hash of id) in scratch files: written by one unit, read by many.

    SCRATCH/000.npy    one entry per sample, sorted: skill, hash, where its bytes start, bytes of text and of JSON
    SCRATCH/000.data   text and JSON of each sample, in that order

A chunk holds about `SORT_BYTES`, so a partition of any size takes bounded memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import orjson
import xxhash

from skillshard import storage
from skillshard.corpus import Partition, PartitionReader, Sample
from skillshard.errors import TagsError
from skillshard.execution import Record
from skillshard.shards.plan import HASH_SPACE, ShardPlan
from skillshard.shards.tar import tar_bytes_of
from skillshard.tags import read_part

SORT_BYTES = 128 << 20
SORTED_DTYPE = np.dtype(
    [("skill", "<u4"), ("hash", "<u8"), ("start", "<u8"), ("text_bytes", "<u4"), ("json_bytes", "<u4")]
)


def sort_partition(
    partition: Partition,
    tags_part: str,
    expected_digest: str,
    reading: Mapping[str, Any],
    skills: list[str],
    scratch: str,
) -> Record:
    """Sort one partition's tagged samples by (skill, hash of id) into scratch files of about `SORT_BYTES`.

    Returns:
        Number of scratch chunks, and per skill the number of samples, bytes in a tar, lowest and highest hash.
    """
    index = {skill: at for at, skill in enumerate(skills)}
    sizes: dict[str, list[int]] = {}
    chunks = 0
    waiting = _Waiting()
    for sample, skill in _zip_tags(partition, tags_part, expected_digest, reading):
        hashed = xxhash.xxh3_64_intdigest(sample.id.encode())
        text, json = sample.text.encode(), member_json(sample, skill)
        _count(sizes, str(index[skill]), tar_bytes_of(len(text), len(json)), hashed)
        waiting.add(index[skill], hashed, text, json)
        if waiting.num_bytes >= SORT_BYTES:
            waiting.write(f"{scratch}/{chunks:03d}")
            chunks, waiting = chunks + 1, _Waiting()
    if waiting.texts:
        waiting.write(f"{scratch}/{chunks:03d}")
        chunks += 1
    return {"chunks": chunks, "skills": sizes}


def member_json(sample: Sample, skill: str) -> bytes:
    """The JSON member of a sample: id, skill, meta, in this order; meta keeps the order of the corpus."""
    return orjson.dumps({"id": sample.id, "skill": skill, "meta": sample.meta})


def _zip_tags(
    partition: Partition, tags_part: str, expected_digest: str, reading: Mapping[str, Any]
) -> Iterator[tuple[Sample, str]]:
    reader = PartitionReader(partition, **reading)
    rows = read_part(tags_part)
    for row, tag in zip_longest(reader, rows):
        if tag is not None and row is not None and tag.reason is not None:
            continue
        if tag is None or tag.skill is None or not isinstance(row, Sample) or tag.id != row.id:
            raise _changed(partition, tags_part)
        yield row, tag.skill
    if reader.digest() != expected_digest:
        raise _changed(partition, tags_part)


def _changed(partition: Partition, tags_part: str) -> TagsError:
    return TagsError(
        f"{partition.name} is not what was tagged: its rows differ from {tags_part}. Tag the corpus as it is now into "
        "another directory, and shard with those tags."
    )


def _count(sizes: dict[str, list[int]], skill: str, num_bytes: int, hashed: int) -> None:
    found = sizes.setdefault(skill, [0, 0, hashed, hashed])
    found[:] = [found[0] + 1, found[1] + num_bytes, min(found[2], hashed), max(found[3], hashed)]


class _Waiting:
    """Samples read but not yet sorted and written."""

    def __init__(self) -> None:
        self.skills: list[int] = []
        self.hashes: list[int] = []
        self.texts: list[bytes] = []
        self.jsons: list[bytes] = []
        self.num_bytes = 0

    def add(self, skill: int, hashed: int, text: bytes, json: bytes) -> None:
        self.skills.append(skill)
        self.hashes.append(hashed)
        self.texts.append(text)
        self.jsons.append(json)
        self.num_bytes += len(text) + len(json)

    def write(self, place: str) -> None:
        """Two files: PLACE.npy, the sorted index, and PLACE.data, the texts and JSONs in that order."""
        hashes = np.array(self.hashes, np.uint64)
        order = np.lexsort((hashes, np.array(self.skills)))
        index = np.empty(len(order), SORTED_DTYPE)
        index["skill"], index["hash"] = np.array(self.skills)[order], hashes[order]
        index["text_bytes"] = np.array([len(text) for text in self.texts])[order]
        index["json_bytes"] = np.array([len(json) for json in self.jsons])[order]
        spans = index["text_bytes"].astype(np.uint64) + index["json_bytes"]
        index["start"] = np.cumsum(spans) - spans
        with storage.writing(f"{place}.data") as part, part.open("wb") as file:
            file.writelines(piece for at in order for piece in (self.texts[at], self.jsons[at]))
        storage.write_array(f"{place}.npy", index)


Collected = tuple[list[np.ndarray], list[bytes], list[bytes]]
"""Hashes, texts and JSONs of one shard's samples, in the order of the corpus."""


def collect(chunks: list[str], shards: Sequence[ShardPlan]) -> list[Collected]:
    """The samples of some shards; every chunk is opened once."""
    found: list[Collected] = [([], [], []) for _ in shards]
    for chunk in chunks:
        index = np.load(f"{chunk}.npy", mmap_mode="r")
        with open(f"{chunk}.data", "rb") as file:
            for shard, (hashes, texts, jsons) in zip(shards, found, strict=True):
                rows = _rows_of(index, shard)
                if not len(rows):
                    continue
                hashes.append(rows["hash"])
                base = int(rows["start"][0])
                file.seek(base)
                last = rows[-1]
                data = file.read(int(last["start"]) + int(last["text_bytes"]) + int(last["json_bytes"]) - base)
                for start, text, json in zip(
                    *((rows[name]).tolist() for name in ("start", "text_bytes", "json_bytes")), strict=True
                ):
                    at = start - base
                    texts.append(data[at : at + text])
                    jsons.append(data[at + text : at + text + json])
    return found


def _rows_of(index: np.ndarray, shard: ShardPlan) -> np.ndarray:
    """The entries of a chunk's sorted index that belong to a shard."""
    first, last = np.searchsorted(index["skill"], np.array([shard.skill, shard.skill + 1], np.uint32))
    within = index["hash"][first:last]
    begin = int(np.searchsorted(within, np.uint64(shard.low)))
    end = len(within) if shard.high == HASH_SPACE else int(np.searchsorted(within, np.uint64(shard.high)))
    return np.array(index[int(first) + begin : int(first) + end])
