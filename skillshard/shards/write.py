r"""Corpus and tags -> shards. Stages of tasks, plans between them, and nothing that depends on their number.

1. `sort_partition` (sort.py): one corpus partition -> samples sorted by (skill, side of the cut, hash of id) in scratch files, with
   a table of the texts in them.
2. `find_copies` (copies.py): a range of hashes of texts, over all tables -> what each skill holds of both sides, and its copies.
   `split_of` (split.py) adds the exceptions that some skills need; only for them `find_texts` looks at the tables again.
3. With `copies="drop"`: `set_copies_aside` (copies.py), one task for each partition.
4. `plan` (plan.py): sizes -> how many shards each skill and split gets, and which hashes of ids each takes (pure).
5. `write_group`: some neighbouring shards -> their samples from all scratch files, as tars with an index.

Ordered by the hash of the id, a skill is shuffled globally. The cut is the same after re-runs and re-tagging. Memory of a task:
`SORT_BYTES` in stage 1; `TEXTS_PER_RANGE` entries in stage 2; the samples of about `GROUP_BYTES` of shards in stage 5. Scratch space:
the size of the corpus and about 110 bytes for each sample. A hash range that holds no sample gives no shard, so numbers may have gaps.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import xxhash

from skillshard import artefact, canonical, places, storage
from skillshard.corpus import Corpus
from skillshard.corpus.compare import places_changed
from skillshard.errors import ShardError, TagsError, name_some
from skillshard.execution import Backend, OnStage, Record, Task, keyed, run, shown
from skillshard.hash_ranges import hash_bounds
from skillshard.shards.copies import TEXTS_PER_RANGE, find_copies, find_texts, set_copies_aside
from skillshard.shards.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SPLITS,
    Manifest,
    ManifestSkill,
    ShardColumns,
    SplitRule,
    folder_names,
    gathered,
    index_name,
    shard_name,
)
from skillshard.shards.plan import ShardPlan, groups, plan
from skillshard.shards.read import ShardSet
from skillshard.shards.sort import collect, sort_partition
from skillshard.shards.split import Found, Order, Sizes, cut_of, split_of
from skillshard.shards.tar import index_of, tar_chunks
from skillshard.tags import Tags, part_place, rejected_place

Copies = Literal["keep", "drop"]
"""What is done with samples whose text stands earlier in the corpus."""
TEXTS_AT_ONCE = 16
"""Texts of a skill that one search for exceptions gives; another number gives the same exceptions."""
MANIFEST_BYTES_PER_SHARD = 256
"""An upper bound: digests of 32 digits, numbers, and the white space around them."""


def write_shards(
    corpus: Corpus,
    tags: Tags,
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = 64 << 20,
    holdout: float = 0.01,
    copies: Copies = "keep",
    backend: Backend = Backend(),
    on_stage: OnStage | None = None,
    progress: bool = True,
) -> ShardSet:
    """Write the shards of a tagged corpus; resumes where a killed run stopped, and does nothing if they are finished.

    Args:
        corpus: the corpus that was tagged; a change since then is an error.
        out: local directory.
        shard_bytes: size to aim at; the hash ranges are equal, so sizes spread by a few per cent of the samples.
        holdout: share of all texts kept for measuring, in [0, 1); 0 holds nothing out. The hash of the folded text (texts.py)
            decides, so a text never stands in train and in holdout, in whatever skills. Every skill keeps a sample in train, and has
            one in holdout wherever its texts allow it (split.py says when).
        copies: samples whose folded text stands earlier in the corpus, in any skill: "keep" them, or "drop" them into rejected/.
        backend: local pool or Ray; the bytes are the same.
        on_stage: called with a stage's name and number of tasks; what it returns is called for each finished task. None: bars where
            there is a terminal or a notebook.
        progress: whether there are bars.

    Returns:
        The finished shard set, opened.

    Raises:
        ShardError: arguments out of range.
        TagsError: tags are of another corpus, or the corpus changed.
        StorageError: `out` holds something else.
    """
    if not 0 <= holdout < 1:
        raise ShardError(f"`{holdout=}`: give a share from 0 to below 1.")
    if shard_bytes < 1:
        raise ShardError(f"`{shard_bytes=}`: give a positive size in bytes, such as 64_000_000.")
    if copies not in get_args(Copies):
        raise ShardError(f"`{copies=}`: give {' or '.join(get_args(Copies))}.")
    made_from = {
        "command": "shard",
        "arguments": {"shard_bytes": shard_bytes, "holdout": float(holdout), "copies": copies},
        "inputs": corpus.inputs,
        "tags": tags.digest,
    }
    _refuse_other_corpus(corpus, tags)
    with shown(on_stage, progress) as stages:
        artefact.make(
            out,
            MANIFEST,
            made_from,
            lambda work: _write(corpus, tags, work, made_from, backend, stages),
            mtimes_ns=corpus.mtimes_ns,
            changed=lambda _, suspects: _changed(corpus, tags, suspects),
        )
    return ShardSet.open(out)


def _write(
    corpus: Corpus,
    tags: Tags,
    work: artefact.Work,
    made_from: dict[str, Any],
    backend: Backend,
    on_stage: OnStage,
) -> None:
    arguments = made_from["arguments"]
    skills = [skill.name for skill in tags.manifest.skills]
    cut, drop = cut_of(arguments["holdout"]), arguments["copies"] == "drop"
    tasks = _sort_tasks(corpus, tags, work, skills, cut)
    sorted_parts = run(
        sort_partition, tasks, backend=backend, records=work.records("sort"), on_done=on_stage("sorting", len(tasks))
    )
    chunks = [
        [f"{task.arguments['scratch']}/{chunk:03d}" for chunk in range(part["chunks"])]
        for task, part in zip(tasks, sorted_parts, strict=True)
    ]
    num_samples = sum(part["samples"] for part in sorted_parts)
    if num_samples != tags.manifest.num_tagged:
        raise ShardError(
            f"{num_samples:,} samples were sorted, but {tags.manifest.num_tagged:,} are tagged: scratch files are damaged. Remove "
            f"{work.out} and run the command again."
        )
    tables = _Tables(chunks, sum(part["texts"] for part in sorted_parts), len(skills), drop, work, backend, on_stage)
    num_copies, sizes = tables.count(cut)
    split = split_of(sizes, tables.search, holds_out=arguments["holdout"] > 0)
    if drop:
        tables.set_aside(tags, tasks, num_copies)

    shards = plan(split.sizes, arguments["shard_bytes"])
    _refuse_too_many(shards)
    common = {
        "out": str(work.out),
        "chunks": [chunk for of_part in chunks for chunk in of_part],
        "folders": folder_names(skills),
        "drop": drop,
    }
    parts = keyed(
        {
            **common,
            "shards": group,
            "exceptions": {
                shard.skill: split.exceptions[shard.skill] for shard in group if shard.skill in split.exceptions
            },
        }
        for group in groups(shards)
    )
    written = run(
        write_group, parts, backend=backend, records=work.records("write"), on_done=on_stage("writing", len(parts))
    )
    if not drop:
        _copy_rejected(tags, work.out)
    rule = SplitRule(cut=cut, also_held_out=split.also_held_out, kept_in_train=split.kept_in_train)
    manifest = _manifest(made_from, tags, rule, num_copies, [shard for record in written for shard in record["shards"]])
    work.finish(manifest.model_dump(by_alias=True))


@dataclass(frozen=True)
class _Tables:
    """The tables of texts of all chunks, and the tasks that read them.

    Attributes:
        chunks: the chunks of each partition.
        num_texts: entries of all tables.
        drop: whether copies are dropped.
    """

    chunks: list[list[str]]
    num_texts: int
    num_skills: int
    drop: bool
    work: artefact.Work
    backend: Backend
    on_stage: OnStage

    def count(self, cut: str) -> tuple[list[int], Sizes]:
        """Number of copies of each skill, and what the cut gives to each skill and split."""
        tasks = keyed(
            {**bounds, "cut": cut, "num_skills": self.num_skills, "firsts": place if self.drop else None}
            for bounds, place in zip(self._ranges(), self._firsts(), strict=True)
        )
        records = run(
            find_copies,
            tasks,
            backend=self.backend,
            records=self.work.records("copies"),
            on_done=self.on_stage("finding copies", len(tasks)),
        )
        copies = np.zeros(self.num_skills, np.int64)
        sizes = np.zeros((self.num_skills, 2, 3), np.int64)
        for record in records:
            for skill, (num_copies, *size) in record["skills"].items():
                copies[int(skill)] += num_copies
                sizes[int(skill)] += np.reshape(size, (2, 3))
        return copies.tolist(), sizes

    def search(self, beyond: dict[int, str], order: Order) -> dict[int, list[Found]]:
        """The first texts of some skills in an order of their hashes: a `split.Search`."""
        skills = {str(skill): after for skill, after in beyond.items()}
        arguments = {"beyond": skills, "order": order, "drop": self.drop, "most": TEXTS_AT_ONCE}
        tasks = keyed({**bounds, **arguments} for bounds in self._ranges())
        asked = canonical.digest(canonical.to_json(arguments))
        records = run(find_texts, tasks, backend=self.backend, records=self.work.records(f"texts-{asked}"))
        found: dict[int, list[Found]] = {skill: [] for skill in beyond}
        for record in records if order == "lowest" else reversed(records):
            for skill, texts in record["skills"].items():
                for text, members in texts[: TEXTS_AT_ONCE - len(found[int(skill)])]:
                    sizes = {int(member): (num, num_bytes) for member, (num, num_bytes) in members.items()}
                    found[int(skill)].append(Found(text, sizes))
        return found

    def set_aside(self, tags: Tags, sort_tasks: Sequence[Task], num_copies: Sequence[int]) -> None:
        """Mark the copies in the chunks, and write them to rejected/ of the output."""
        first_chunks = itertools.accumulate((len(of_part) for of_part in self.chunks), initial=0)
        tasks = keyed(
            {
                "partition": task.arguments["partition"],
                "chunks": of_part,
                "first_chunk": first_chunk,
                "firsts": self._firsts(),
                "rejected_before": rejected_place(tags.folder, at) if part.num_set_aside else None,
                "rejected": rejected_place(self.work.out, at),
                "max_sample_bytes": task.arguments["reading"]["max_sample_bytes"],
            }
            for at, (task, of_part, first_chunk, part) in enumerate(
                zip(sort_tasks, self.chunks, first_chunks, tags.manifest.parts, strict=False)
            )
        )
        records = run(
            set_copies_aside,
            tasks,
            backend=self.backend,
            records=self.work.records("set-aside"),
            on_done=self.on_stage("setting copies aside", len(tasks)),
        )
        if (marked := sum(record["copies"] for record in records)) != sum(num_copies):
            raise ShardError(
                f"{marked:,} copies were set aside, but {sum(num_copies):,} were found: scratch files are damaged. Remove "
                f"{self.work.out} and run the command again."
            )

    def _num_ranges(self) -> int:
        return -(-self.num_texts // TEXTS_PER_RANGE) or 1

    def _ranges(self) -> list[dict[str, Any]]:
        """Chunks and bounds of each range of hashes."""
        bounds = [f"{bound:016x}{0:016x}" for bound in hash_bounds(self._num_ranges())[:-1]]
        chunks = [chunk for of_part in self.chunks for chunk in of_part]
        return [{"chunks": chunks, "low": low, "high": high} for low, high in pairwise([*bounds, None])]

    def _firsts(self) -> list[str]:
        """Where the first samples of the texts of each range are written."""
        return [str(self.work.scratch("firsts", f"{number:06d}")) for number in range(self._num_ranges())]


def _refuse_too_many(shards: Sequence[ShardPlan]) -> None:
    """ShardError where the manifest would be larger than one that is read."""
    if len(shards) > MAX_MANIFEST_BYTES // MANIFEST_BYTES_PER_SHARD:
        raise ShardError(
            f"{len(shards):,} shards of {sum(shard.num_bytes for shard in shards) // len(shards):,} bytes are too many for one shard set "
            f"(at most {MAX_MANIFEST_BYTES // MANIFEST_BYTES_PER_SHARD:,}). Give a larger `shard_bytes` in another `out`."
        )


def _changed(corpus: Corpus, tags: Tags, suspects: Sequence[str]) -> list[str]:
    """The suspect files whose rows differ from the rows that were tagged; these files are read again."""
    arguments = tags.manifest.made_from["arguments"]
    partitions = corpus.partitions(partition_bytes=arguments["partition_bytes"])
    digests = {at: part.rows_digest for at, part in enumerate(tags.manifest.parts)}
    return places_changed(partitions, digests, suspects, arguments["reading"])


def _refuse_other_corpus(corpus: Corpus, tags: Tags) -> None:
    """Compare the names and sizes of the files. Whether the rows are the same shows when they are read."""
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


def _sort_tasks(corpus: Corpus, tags: Tags, work: artefact.Work, skills: list[str], cut: str) -> list[Task]:
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
            "num_rows": tags.manifest.parts[at].num_rows,
            "skills": skills,
            "cut": cut,
            "scratch": str(work.scratch(f"{at:06d}")),
        }
        for at, partition in enumerate(partitions)
    )


def write_group(
    out: str,
    chunks: list[str],
    folders: list[str],
    shards: list[ShardPlan],
    exceptions: Mapping[int, Sequence[str]],
    drop: bool,
) -> Record:
    """Write some shards; a shard whose range holds no sample is left out."""
    collected = collect(chunks, shards, exceptions, drop=drop)
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
    num_bytes, digest = _write_tar(places.join(out, name), tar_chunks(shard.position, texts, jsons))
    index_place = places.join(out, index_name(name))
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
    made_from: dict[str, Any], tags: Tags, rule: SplitRule, num_copies: Sequence[int], written: list[Record]
) -> Manifest:
    skills = [skill.name for skill in tags.manifest.skills]
    shards = gathered(
        (((record["skill"], record["split"]), record) for record in written),
        itertools.product(range(len(skills)), SPLITS),
        ShardColumns,
    )
    totals = dict.fromkeys(SPLITS, 0)
    for record in written:
        totals[record["split"]] += record["num_samples"]
    set_aside = dict(tags.manifest.set_aside)
    if made_from["arguments"]["copies"] == "drop" and sum(num_copies):
        set_aside["copy"] = sum(num_copies)
    num_expected = tags.manifest.num_rows - sum(set_aside.values())
    if sum(totals.values()) != num_expected:
        raise ShardError(
            f"{sum(totals.values()):,} samples were written, but {num_expected:,} belong into shards: scratch files are damaged. "
            "Remove the output directory and run the command again."
        )
    return Manifest(
        made_from=made_from,
        split=rule,
        skills=[
            ManifestSkill(
                name=name,
                folder=folder,
                num_copies=num_copies[at],
                **{split: ShardColumns(**shards[at, split]) for split in SPLITS},
            )
            for at, (name, folder) in enumerate(zip(skills, folder_names(skills), strict=True))
        ],
        num_rows=tags.manifest.num_rows,
        num_train=totals["train"],
        num_holdout=totals["holdout"],
        set_aside=set_aside,
        unread=tags.manifest.unread,
    )
