r"""Write shards from a corpus and its tags, in five stages. The bytes do not depend on the number of tasks.

1. `sort_partition` (sort.py) sorts the samples of one corpus partition by (skill, side of the cut, hash of the id) into scratch
   files. Each scratch file has a table of its texts.
2. `find_copies` (copies.py) reads a range of text hashes from all tables. The task counts the samples of each skill on both sides
   of the cut, and the copies. `split_of` (split.py) adds the exceptions to the cut. Only skills that need an exception cause a
   second look at the tables, by `find_texts`.
3. With `copies="drop"`, `set_copies_aside` (copies.py) marks the copies, in one task for each partition.
4. `plan` (plan.py) derives from the sizes how many shards each skill and split gets, and the range of id hashes of each shard.
   The plan is a pure function.
5. `write_group` collects the samples of some neighbouring shards from all scratch files and writes the tars and indexes.

The order by the hash of the id shuffles each skill globally. The cut stays the same when the corpus is sharded or tagged again.
A range of hashes without samples gives no shard, so the numbers of shards may have gaps.

Memory of a task: `SORT_BYTES` in stage 1, `TEXTS_PER_RANGE` entries in stage 2, and samples for about `GROUP_BYTES` of shards in
stage 5. Scratch space: the size of the corpus and about 110 bytes for each sample.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import xxhash

from skillshard import artefact, canonical, places, storage
from skillshard.corpus import Corpus, CorpusReading
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
from skillshard.shards.split import Candidate, Order, Sizes, cut_of, split_of
from skillshard.shards.tar import index_of, tar_chunks
from skillshard.tags import Tags, part_place, rejected_place

STAGES = ("sort", "merge-tables", "copies", "texts", "merge-firsts", "set-aside", "merge-samples", "write")
"""Stages of tasks, in their order. The stage "texts" has a step for each search, and the merges have a step for each level. A stage without
tasks is passed over."""
Copies = Literal["keep", "drop"]
"""Whether samples whose text stands earlier in the corpus are kept or dropped."""
# Most skills need one text or none. A search costs a stage over all tables, and 16 texts make a second search rare.
TEXTS_AT_ONCE = 16
"""Number of texts of a skill that one search for exceptions returns. Any other number leads to the same exceptions."""
# Two digests of 32 digits, three numbers, and quotes, commas and white space around each.
MANIFEST_BYTES_PER_SHARD = 256
"""Upper bound of the bytes of a shard in the manifest."""


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
    """Write the shards of a tagged corpus.

    An interrupted run is continued. Finished shards are only opened.

    Args:
        corpus: Corpus that was tagged. A change since the tagging is an error.
        tags: Tags of the corpus.
        out: Directory for the shard set, local or in a store.
        shard_bytes: Size of a shard to aim at, in bytes. Hash ranges are equal, so sizes spread by a few per cent.
        holdout: Share of all texts that is held out for measuring losses, in [0, 1). With 0, no text is held out. The hash of the
            folded text (texts.py) decides, so a text never stands in both train and holdout, whatever its skills. Each skill keeps
            a sample in train and has a held-out sample if its texts allow one (split.py).
        copies: Treatment of samples whose folded text stands earlier in the corpus, in any skill. "keep" keeps the samples, and
            "drop" writes the samples to rejected/.
        backend: Local pool of processes or Ray. The bytes are the same.
        on_stage: Function that is called with the name of a stage and the number of its tasks. The returned function is called
            for each finished task. With None, progress bars appear in a terminal or a notebook.
        progress: Whether progress bars are shown.

    Returns:
        The finished shard set, opened.

    Raises:
        ShardError: An argument is out of range.
        TagsError: The tags belong to another corpus, or the corpus has changed.
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
            keep_unfinished_files=backend.array_part is not None,
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
            f"{places.public(work.out)} and run the command again."
        )
    # The split and the plan need sizes from every partition. So each stage waits for the whole stage before.
    tables = _Tables(chunks, sum(part["texts"] for part in sorted_parts), len(skills), drop, work, backend, on_stage)
    num_copies, sizes = tables.count(cut)
    split = split_of(sizes, tables.search, holds_out=arguments["holdout"] > 0)
    if drop:
        tables.set_aside(tags, tasks, num_copies)

    shards = plan(split.sizes, arguments["shard_bytes"])
    _refuse_too_many(shards)
    common = {
        "out": work.out,
        "chunks": list(itertools.chain.from_iterable(chunks)),
        "folders": folder_names(skills),
        "drop": drop,
    }
    parts = keyed(
        {
            **common,
            "shards": group,
            # A task is keyed by its arguments, so only the exceptions of its own skills belong to them.
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
    """Tables of the texts of all chunks, with the stages that read the tables.

    Attributes:
        chunks: Chunks of each partition.
        num_texts: Number of entries of all tables.
        num_skills: Number of skills.
        drop: Whether copies are dropped.
    """

    chunks: list[list[str]]
    num_texts: int
    num_skills: int
    drop: bool
    work: artefact.Work
    backend: Backend
    on_stage: OnStage

    def count(self, cut: str) -> tuple[list[int], Sizes]:
        """Count the copies of each skill, and the texts, samples and bytes that the cut gives to each skill and split."""
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

    def search(self, beyond: dict[int, str], order: Order) -> dict[int, list[Candidate]]:
        """Return the first texts of some skills in the requested order of their hashes (a `split.Search`)."""
        skills = {str(skill): after for skill, after in beyond.items()}
        arguments = {"beyond": skills, "order": order, "drop": self.drop, "most": TEXTS_AT_ONCE}
        tasks = keyed({**bounds, **arguments} for bounds in self._ranges())
        # Searches follow one another with other arguments. A folder of records for each keeps their results apart on a resume.
        search_digest = canonical.digest(canonical.to_json(arguments))
        records = run(find_texts, tasks, backend=self.backend, records=self.work.records(f"texts-{search_digest}"))
        candidates: dict[int, list[Candidate]] = {skill: [] for skill in beyond}
        # Records are in rising order of hashes, so the search for the highest texts begins with the last range.
        for record in records if order == "lowest" else reversed(records):
            for skill, texts in record["skills"].items():
                for text, members in texts[: TEXTS_AT_ONCE - len(candidates[int(skill)])]:
                    sizes = {int(member): (num, num_bytes) for member, (num, num_bytes) in members.items()}
                    candidates[int(skill)].append(Candidate(text, sizes))
        return candidates

    def set_aside(self, tags: Tags, sort_tasks: Sequence[Task], num_copies: Sequence[int]) -> None:
        """Mark the copies in the chunks and write the copies to rejected/ of the output."""
        first_chunks = itertools.accumulate((len(part_chunks) for part_chunks in self.chunks), initial=0)
        tasks = keyed(
            (
                {
                    "partition": task.arguments["partition"],
                    "chunks": part_chunks,
                    "first_chunk": first_chunk,
                    "firsts": self._firsts(),
                    "rejected_before": rejected_place(tags.folder, index) if part.num_set_aside else None,
                    "rejected": rejected_place(self.work.out, index),
                    "max_sample_bytes": task.arguments["reading"].max_sample_bytes,
                }
                for index, (task, part_chunks, first_chunk, part) in enumerate(
                    # Not strict: `first_chunks` ends with the total number of chunks and so has one element more.
                    zip(sort_tasks, self.chunks, first_chunks, tags.manifest.parts, strict=False)
                )
            ),
            about=(task.about for task in sort_tasks),
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
                f"{marked:,} copies were set aside, but {sum(num_copies):,} were counted: scratch files are damaged. Remove "
                f"{places.public(self.work.out)} and run the command again."
            )

    def _num_ranges(self) -> int:
        return -(-self.num_texts // TEXTS_PER_RANGE) or 1  # rounded up

    def _ranges(self) -> list[dict[str, Any]]:
        """Return the chunks and the bounds of each range of hashes."""
        # The hash of a text has 128 bits. The ranges cut the upper 64 bits, and the lower 64 bits of a bound are 0.
        bounds = [f"{bound:016x}{0:016x}" for bound in hash_bounds(self._num_ranges())[:-1]]
        chunks = list(itertools.chain.from_iterable(self.chunks))
        return [{"chunks": chunks, "low": low, "high": high} for low, high in pairwise([*bounds, None])]

    def _firsts(self) -> list[str]:
        """Return the place of the first samples of each range, for `find_copies` to write and `set_copies_aside` to read."""
        return [self.work.scratch("firsts", f"{number:06d}") for number in range(self._num_ranges())]


def _refuse_too_many(shards: Sequence[ShardPlan]) -> None:
    """Raise ShardError if the manifest would be larger than the limit for reading."""
    if len(shards) > MAX_MANIFEST_BYTES // MANIFEST_BYTES_PER_SHARD:
        raise ShardError(
            f"{len(shards):,} shards of {sum(shard.num_bytes for shard in shards) // len(shards):,} bytes are too many for one shard set "
            f"(at most {MAX_MANIFEST_BYTES // MANIFEST_BYTES_PER_SHARD:,}). Give a larger `shard_bytes` and another `out`."
        )


def _changed(corpus: Corpus, tags: Tags, suspects: Sequence[str]) -> list[str]:
    """Read the suspect files again and return the files whose rows differ from the tagged rows."""
    arguments = tags.manifest.made_from["arguments"]
    partitions = corpus.partitions(partition_bytes=arguments["partition_bytes"])
    digests = {index: part.rows_digest for index, part in enumerate(tags.manifest.parts)}
    return places_changed(partitions, digests, suspects, CorpusReading.from_json(arguments["reading"]))


def _refuse_other_corpus(corpus: Corpus, tags: Tags) -> None:
    """Raise TagsError if the layout, names or sizes of the corpus files differ from the tagged ones. The sorting compares the rows."""
    corpus.refuse_other_mappings(tags.manifest.made_from["arguments"]["reading"], tags.folder)
    recorded = tags.manifest.made_from["arguments"]
    before_layouts = {name: recorded[name] for name in ("layout", "layouts") if name in recorded}
    if corpus.layout_record != before_layouts:
        raise TagsError(
            f"{tags.folder} was made from files with the layout {before_layouts}, but the corpus was opened with the layout "
            f"{corpus.layout_record}. Open the corpus with `layout=Tags.open(...).layout`, or with the same corpus file."
        )
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
        f"{places.public(tags.folder)} was made from another corpus, or the corpus changed since: {name_some(changed, 3)}. Tag the present "
        "corpus into another directory, and shard with the new tags."
    )


def _sort_tasks(corpus: Corpus, tags: Tags, work: artefact.Work, skills: list[str], cut: str) -> list[Task]:
    tag_arguments = tags.manifest.made_from["arguments"]
    partitions = corpus.partitions(partition_bytes=tag_arguments["partition_bytes"])
    reading = CorpusReading.from_json(tag_arguments["reading"])
    if len(partitions) != len(tags.manifest.parts):
        raise TagsError(
            f"the corpus has {len(partitions):,} partitions, but {places.public(tags.folder)} has {len(tags.manifest.parts):,} parts: the "
            "corpus changed after the tagging. Tag the present corpus into another directory, and shard with the new tags."
        )
    return keyed(
        (
            {
                "partition": partition,
                "tags_part": part_place(tags.folder, index),
                "expected_digest": part.rows_digest,
                "reading": reading,
                "num_rows": part.num_rows,
                "skills": skills,
                "cut": cut,
                "scratch": work.scratch(f"{index:06d}"),
            }
            for index, (partition, part) in enumerate(zip(partitions, tags.manifest.parts, strict=True))
        ),
        about=(partition.name for partition in partitions),
    )


def write_group(
    out: str,
    chunks: list[str],
    folders: list[str],
    shards: list[ShardPlan],
    exceptions: Mapping[int, Sequence[str]],
    drop: bool,
) -> Record:
    """Write some neighbouring shards. A shard whose range of hashes holds no sample is not written."""
    collected = collect(chunks, shards, exceptions, drop=drop)
    return {
        "shards": [
            _write_shard(out, folders[shard.skill], shard, hashes, texts, jsons)
            for shard, (hashes, texts, jsons) in zip(shards, collected, strict=True)
            if texts
        ]
    }


def _write_shard(
    out: str, folder: str, shard: ShardPlan, hashes: list[np.ndarray], texts: list[bytes], jsons: list[bytes]
) -> Record:
    # A stable sort leaves samples of equal hash in the order of the chunks, so the bytes depend on nothing else.
    order = np.argsort(np.concatenate(hashes), kind="stable").tolist()
    texts, jsons = [texts[index] for index in order], [jsons[index] for index in order]
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
    # The digest is taken of the bytes on their way to the disk, so the tar is not read again.
    hasher, num_bytes = xxhash.xxh3_128(), 0
    with storage.writing(place) as part, part.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            hasher.update(chunk)
            num_bytes += len(chunk)
    return num_bytes, hasher.hexdigest()


def _copy_rejected(tags: Tags, out: str) -> None:
    for index, part in enumerate(tags.manifest.parts):
        if part.num_set_aside:
            storage.write_bytes(rejected_place(out, index), storage.read_bytes(rejected_place(tags.folder, index)))


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
                num_copies=num_copies[index],
                **{split: ShardColumns(**shards[index, split]) for split in SPLITS},
            )
            for index, (name, folder) in enumerate(zip(skills, folder_names(skills), strict=True))
        ],
        num_rows=tags.manifest.num_rows,
        num_train=totals["train"],
        num_holdout=totals["holdout"],
        set_aside=set_aside,
        unread=tags.manifest.unread,
    )
