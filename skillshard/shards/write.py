r"""Corpus and tags -> shards. Two stages of units, a plan between them, and nothing that depends on their number.

1. `sort_partition` (sort.py): one corpus partition -> samples sorted by (skill, hash of id) in scratch files, and sizes.
2. `plan` (plan.py): sizes -> how many shards each skill and split gets, and which hashes each takes (pure).
3. `write_group`: some neighbouring shards -> their samples from all scratch files, as tars with an index.

Ordered by hash, a skill is shuffled globally, and the holdout is the same after re-runs and re-tagging. Memory of a unit:
`SORT_BYTES` in stage 1; the samples of about `GROUP_BYTES` of shards in stage 3. Scratch space: the size of the corpus. A hash
range that holds no sample gives no shard, so numbers may have gaps.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from skillshard import artefact, storage
from skillshard.corpus import Corpus
from skillshard.errors import ExecutionError, ShardError, StorageError, TagsError, name_some
from skillshard.execution import Record, Unit, Where, keyed, run
from skillshard.shards.manifest import MANIFEST, SPLITS, Manifest, folder_names, index_name, shard_name
from skillshard.shards.plan import ShardPlan, groups, plan
from skillshard.shards.sort import collect, sort_partition
from skillshard.shards.tar import index_of, tar_chunks
from skillshard.tags import Tags, part_place, rejected_place


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
    parts = keyed(
        {"out": str(work.out), "chunks": chunks, "folders": folders, "shards": group} for group in groups(shards)
    )
    written = run(
        write_group, parts, where=where, records=work.records("write"), on_done=on_stage("writing", len(parts))
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


def write_group(out: str, chunks: list[str], folders: list[str], shards: list[ShardPlan]) -> Record:
    """Write some shards; a shard whose range holds no sample is left out."""
    collected = collect(chunks, shards)
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
    storage.write_array(index_place, index)
    return {
        "skill": shard.skill,
        "split": shard.split,
        "number": shard.number,
        "num_samples": len(texts),
        "num_bytes": num_bytes,
        "digest": digest,
        "index_digest": storage.file_digest(index_place),
    }


def _write_tar(place: str, chunks: Iterator[bytes]) -> tuple[int, str]:
    hasher, num_bytes = xxhash.xxh3_128(), 0
    with storage.writing(place) as part, part.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            hasher.update(chunk)
            num_bytes += len(chunk)
    return num_bytes, hasher.hexdigest()


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
