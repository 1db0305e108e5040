r"""Corpus and tags -> shards. Two stages of units, a plan between them, and nothing that depends on their number.

A sample's place is decided by one number: the 64-bit hash of its id. Within a skill, samples with the lowest hashes are the
holdout (so the choice survives re-runs and re-tagging), the rest is train, and shard j of n takes the j-th n-th of the
range. Ordered by hash, a skill is shuffled globally.

1. `sort_partition`: one corpus partition -> samples sorted by (skill, hash) in scratch files, sizes per skill.
2. `plan`: sizes -> how many shards each skill and split gets (pure).
3. `write_group`: some neighbouring shards -> their samples from all scratch files, as tars with an index.

Memory of a unit: `SORT_BYTES` in stage 1; the samples of about `GROUP_BYTES` of shards in stage 3. Scratch space: the size of the
corpus. A hash range that holds no sample gives no shard, so numbers may have gaps.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

from skillshard import artefact, storage
from skillshard.corpus import Corpus, Partition, PartitionReader, Sample
from skillshard.errors import ExecutionError, ShardError, StorageError, TagsError, name_some
from skillshard.execution import Record, Unit, Where, keyed, run
from skillshard.shards.manifest import MANIFEST, SPLITS, Manifest, Split, folder_names, index_name, shard_name
from skillshard.shards.tar import index_of, tar_bytes_of, tar_chunks
from skillshard.tags import Tags, part_place, read_part, rejected_place

HASH_SPACE = 1 << 64
SORT_BYTES = 256 << 20
GROUP_BYTES = 256 << 20
GROUP_SHARDS = 16
SORTED_DTYPE = np.dtype(
    [("skill", "<u4"), ("hash", "<u8"), ("start", "<u8"), ("text_bytes", "<u4"), ("json_bytes", "<u4")]
)


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be written: a range of hashes of one skill.

    Attributes:
        position: number in the whole set; part of every key.
        skill: index of the skill.
        number: number within skill and split; names the file.
        low, high: the range of hashes, high exclusive.
        num_bytes: expected size.
    """

    position: int
    skill: int
    split: Split
    number: int
    low: int
    high: int
    num_bytes: int


def write_shards(
    corpus: Corpus,
    tags: Tags,
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = 64 << 20,
    holdout: float = 0.01,
    where: Where = Where(),
    on_stage: Callable[[str, int], Callable[[Unit, Record], None]] = lambda name, num: lambda unit, record: None,
) -> Manifest:
    """Write the shards of a tagged corpus; resumes where a killed run stopped, and does nothing if they are finished.

    Args:
        corpus: the corpus that was tagged; a change since then is an error.
        out: local directory.
        shard_bytes: size to aim at; the hash ranges are equal, so sizes spread by a few per cent of the samples.
        holdout: share of each skill kept for measuring, in [0, 1). A skill of two samples or more keeps at least one
            in holdout (if the share is not 0) and one in train.
        where: local pool or Ray; the bytes are the same.
        on_stage: called with a stage's name and number of units; what it returns is called for each finished unit.

    Raises:
        ShardError: arguments out of range.
        TagsError: tags are of another corpus, or the corpus changed.
        StorageError: `out` holds something else.
    """
    if not 0 <= holdout < 1:
        raise ShardError(f"--holdout is {holdout}: give a share from 0 to below 1.")
    if shard_bytes < 1:
        raise ShardError(f"--shard-size is {shard_bytes} bytes: give a positive size, such as 64MB.")
    made_from = {
        "command": "shard",
        "arguments": {"shard_bytes": shard_bytes, "holdout": holdout},
        "inputs": corpus.inputs,
        "tags": tags.digest,
    }
    _refuse_other_corpus(corpus, tags)
    work = artefact.begin(out, MANIFEST, made_from, corpus.mtimes_ns)
    if work is None:
        return Manifest.model_validate(storage.read_json(Path(out) / MANIFEST))
    try:
        return _write(corpus, tags, work, made_from, where, on_stage)
    except (FileNotFoundError, StorageError, ExecutionError):  # another run of the same finished and cleaned up
        if artefact.begin(out, MANIFEST, made_from, corpus.mtimes_ns) is None:
            return Manifest.model_validate(storage.read_json(Path(out) / MANIFEST))
        raise


def _write(
    corpus: Corpus,
    tags: Tags,
    work: artefact.Work,
    made_from: dict[str, Any],
    where: Where,
    on_stage: Callable[[str, int], Callable[[Unit, Record], None]],
) -> Manifest:
    skills = [skill.name for skill in tags.manifest.skills]
    units = _sort_units(corpus, tags, work, skills)
    sorted_parts = run(
        sort_partition, units, where=where, records=work.records("sort"), on_done=on_stage("sorting", len(units))
    )
    arguments = made_from["arguments"]
    shards = plan(sorted_parts, len(skills), arguments["shard_bytes"], arguments["holdout"])
    folders = folder_names(skills)
    scratch = [str(work.scratch(f"{at:06d}")) for at in range(len(units))]
    chunks = [
        f"{folder}/{chunk:03d}"
        for folder, part in zip(scratch, sorted_parts, strict=True)
        for chunk in range(part["chunks"])
    ]
    groups = keyed(
        {"out": str(work.out), "chunks": chunks, "folders": folders, "shards": group} for group in _groups(shards)
    )
    written = run(
        write_group, groups, where=where, records=work.records("write"), on_done=on_stage("writing", len(groups))
    )
    _copy_rejected(tags, work.out)
    manifest = _manifest(made_from, tags, skills, folders, [shard for record in written for shard in record["shards"]])
    work.finish(manifest.model_dump(by_alias=True))
    return manifest


def _refuse_other_corpus(corpus: Corpus, tags: Tags) -> None:
    """By names and sizes of the files; that the rows are the same is seen as they are read."""
    before: dict[str, int] = dict(tags.manifest.made_from["inputs"])
    now = {file.name: file.num_bytes for file in corpus.files}
    if before == now:
        return
    changed = [
        f"{name} has {now[name]:,} bytes now and had {before[name]:,}"
        if name in now and name in before
        else f"{name} is {'new' if name in now else 'not there any more'}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    raise TagsError(
        f"{tags.folder} was made from another corpus, or the corpus changed since: {name_some(changed, 3)}. Tag the "
        "corpus as it is now into another directory, and shard with those tags."
    )


def _sort_units(corpus: Corpus, tags: Tags, work: artefact.Work, skills: list[str]) -> list[Unit]:
    made = tags.manifest.made_from
    partitions = corpus.partitions(partition_bytes=made["arguments"]["partition_bytes"])
    if len(partitions) != len(tags.manifest.parts):
        raise TagsError(
            f"the corpus has {len(partitions):,} partitions, but {tags.folder} has {len(tags.manifest.parts):,} parts: the "
            "corpus changed since it was tagged. Tag it as it is now into another directory, and shard with those tags."
        )
    return keyed(
        {
            "partition": partition,
            "tags_part": part_place(tags.folder, at),
            "expected_digest": tags.manifest.parts[at].rows_digest,
            "reading": made["arguments"]["reading"],
            "skills": skills,
            "scratch": str(work.scratch(f"{at:06d}")),
        }
        for at, partition in enumerate(partitions)
    )


# --- stage 1 ---------------------------------------------------------------------------------------------------------


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
        with storage.writing(f"{place}.npy") as part, part.open("wb") as file:
            np.save(file, index)


# --- the plan --------------------------------------------------------------------------------------------------------


def plan(sorted_parts: Sequence[Record], num_skills: int, shard_bytes: int, holdout: float) -> list[ShardPlan]:
    """Which shards there are: pure, from the sizes that stage 1 found."""
    shards: list[ShardPlan] = []
    for skill in range(num_skills):
        found = [part["skills"][str(skill)] for part in sorted_parts if str(skill) in part["skills"]]
        num_bytes = sum(sizes[1] for sizes in found)
        cut = holdout_cut(
            [sizes[0] for sizes in found], [sizes[2] for sizes in found], [sizes[3] for sizes in found], holdout
        )
        for split, low, high in zip(SPLITS, (cut, 0), (HASH_SPACE, cut), strict=True):
            expected = num_bytes * (high - low) // HASH_SPACE
            num = max(1, round(expected / shard_bytes)) if high > low else 0
            bounds = [low + (high - low) * at // num for at in range(num)] + [high]
            shards += [
                ShardPlan(len(shards) + at, skill, split, at, bounds[at], bounds[at + 1], expected // num)
                for at in range(num)
            ]
    return shards


def holdout_cut(counts: Sequence[int], lowest: Sequence[int], highest: Sequence[int], holdout: float) -> int:
    """The hash below which samples of a skill are held out.

    >>> holdout_cut([3], [10], [1 << 63], 0.25) == 1 << 62
    True
    >>> holdout_cut([3], [1 << 63], [(1 << 63) + 9], 0.25) == (1 << 63) + 1   # at least one
    True
    >>> holdout_cut([1], [10], [10], 0.25)                                    # a single sample is for training
    0
    """
    if holdout == 0 or sum(counts) < 2:
        return 0
    return min(max(int(holdout * HASH_SPACE), min(lowest) + 1), max(highest))


def _groups(shards: Sequence[ShardPlan]) -> Iterator[list[ShardPlan]]:
    group: list[ShardPlan] = []
    num_bytes = 0
    for shard in shards:
        if group and (num_bytes + shard.num_bytes > GROUP_BYTES or len(group) == GROUP_SHARDS):
            yield group
            group, num_bytes = [], 0
        group.append(shard)
        num_bytes += shard.num_bytes
    if group:
        yield group


# --- stage 2 ---------------------------------------------------------------------------------------------------------


def write_group(out: str, chunks: list[str], folders: list[str], shards: list[ShardPlan]) -> Record:
    """Write some shards; a shard whose range holds no sample is left out."""
    collected = _collect(chunks, shards)
    return {
        "shards": [
            _write_shard(out, folders[shard.skill], shard, *found)
            for shard, found in zip(shards, collected, strict=True)
            if found[1]
        ]
    }


def _write_shard(
    out: str, folder: str, shard: ShardPlan, hashes: list[np.ndarray], texts: list[bytes], jsons: list[bytes]
) -> Record:
    order = np.argsort(np.concatenate(hashes), kind="stable").tolist()
    texts, jsons = [texts[at] for at in order], [jsons[at] for at in order]
    name = shard_name(shard.split, folder, shard.number)
    num_bytes, digest = _write_tar(storage.join(out, name), tar_chunks(shard.position, texts, jsons))
    index_place = storage.join(out, index_name(name))
    index = index_of(np.array([len(text) for text in texts]), np.array([len(json) for json in jsons]))
    with storage.writing(index_place) as part, part.open("wb") as file:
        np.save(file, index)
    return {
        "skill": shard.skill,
        "split": shard.split,
        "number": shard.number,
        "num_samples": len(texts),
        "num_bytes": num_bytes,
        "digest": digest,
        "index_digest": storage.file_digest(index_place),
    }


Collected = tuple[list[np.ndarray], list[bytes], list[bytes]]
"""Hashes, texts and JSONs of one shard's samples, in the order of the corpus."""


def _collect(chunks: list[str], shards: Sequence[ShardPlan]) -> list[Collected]:
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


def _write_tar(place: str, chunks: Iterator[bytes]) -> tuple[int, str]:
    hasher, num_bytes = xxhash.xxh3_128(), 0
    with storage.writing(place) as part, part.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            hasher.update(chunk)
            num_bytes += len(chunk)
    return num_bytes, hasher.hexdigest()


# --- the end ---------------------------------------------------------------------------------------------------------


def _copy_rejected(tags: Tags, out: Path) -> None:
    for at, part in enumerate(tags.manifest.parts):
        if part.num_set_aside:
            storage.write_bytes(rejected_place(out, at), storage.read_bytes(rejected_place(tags.folder, at)))


def _manifest(
    made_from: dict[str, Any], tags: Tags, skills: list[str], folders: list[str], written: list[Record]
) -> Manifest:
    columns = ("number", "num_samples", "num_bytes", "digest", "index_digest")
    shards: dict[tuple[int, str], dict[str, list[Any]]] = {
        (skill, split): {name: [] for name in columns} for skill in range(len(skills)) for split in SPLITS
    }
    totals = dict.fromkeys(SPLITS, 0)
    for record in written:
        totals[record["split"]] += record["num_samples"]
        for name in columns:
            shards[record["skill"], record["split"]][name].append(record[name])
    if sum(totals.values()) != tags.manifest.num_tagged:
        raise ShardError(
            f"{sum(totals.values()):,} samples were written, but {tags.manifest.num_tagged:,} are tagged: scratch files are "
            "damaged. Remove the output directory and run the command again."
        )
    return Manifest(
        made_from=made_from,
        skills=[
            {"name": name, "folder": folders[at], **{split: shards[at, split] for split in SPLITS}}
            for at, name in enumerate(skills)
        ],
        num_rows=tags.manifest.num_rows,
        num_train=totals["train"],
        num_holdout=totals["holdout"],
        set_aside=tags.manifest.set_aside,
    )
