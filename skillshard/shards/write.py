r"""Write shards from a corpus and its tags, in six stages. The bytes do not depend on the number of tasks.

1. `sort_partition` (sort.py) sorts the samples of one corpus partition by (skill, side of the cut, hash of the id) into scratch
   files, the chunks. Each chunk has a table of its texts.
2. `find_copies` (copies.py) reads a range of text hashes from all tables. The task counts the samples of each skill on both sides
   of the cut, and the copies. `split_of` (split.py) adds the exceptions to the cut. Only skills that need an exception cause a
   second look at the tables, by `find_texts`.
3. With `copies="drop"`, `set_copies_aside` (copies.py) marks the copies, in one task for each partition.
4. `plan` (plan.py) derives from the sizes how many shards each skill and split gets, and the range of id hashes of each shard.
   The plan is a pure function.
5. `merge_samples` (merge.py) turns many chunks into as many merged files with shorter ranges, where that costs less than opening every
   chunk in every task of stage 6 (merge_levels.py). Small corpora need no merges. The tables of stages 2 and 3 are merged in the same way.
6. `write_group` (group.py) reads the samples of some neighbouring shards from the chunks or the merged files, and writes the tars and indexes.

The order by the hash of the id shuffles each skill globally. The cut stays the same when the corpus is sharded or tagged again.
A range of hashes without samples gives no shard, so the numbers of shards may have gaps.

A scratch file is deleted once every task that reads the file has a record. Memory of a task: `SORT_BYTES` in stage 1, `TEXTS_PER_RANGE`
entries in stage 2, and `BATCH_BYTES` in stages 5 and 6. Scratch space: the texts and JSONs of the corpus, and 120 bytes for each sample.
"""

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from skillshard import artefact, places, storage
from skillshard.corpus import Corpus, CorpusReading
from skillshard.errors import ShardError
from skillshard.execution import Backend, OnStage, Record, run, shown
from skillshard.merge_levels import Merge
from skillshard.shards.group import write_group
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
)
from skillshard.shards.merge import merge_samples, pieces_of
from skillshard.shards.plan import ShardPlan, groups, plan
from skillshard.shards.read import ShardSet
from skillshard.shards.sort import ENTRY_DTYPE, FORMAT, sort_partition
from skillshard.shards.split import cut_of, split_of
from skillshard.shards.tables import TextTables
from skillshard.shards.tagged import changed_files, limit_of, num_rejected, refuse_other_corpus, sort_tasks
from skillshard.stages import Stages
from skillshard.tags import Tags, first_rejected, rejected_place, split_rests

STAGES = ("sort", "merge-tables", "copies", "texts", "merge-firsts", "set-aside", "merge-samples", "write")
"""Stages of tasks, in their order. The stage "texts" has a step for each search, and the merges have a step for each level. A stage without
tasks is passed over."""
Copies = Literal["keep", "drop"]
"""Whether samples whose text stands earlier in the corpus are kept or dropped."""
# Three digests of 32 digits, three numbers, and quotes, commas and white space around each.
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
    scratch: str | os.PathLike[str] | None = None,
    limit: int | None = None,
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
        scratch: Directory for the scratch files, local or in a store, which all nodes share. The scratch files take as many bytes as the
            texts and JSONs, and 120 bytes for each sample. None: a directory in `out`.
        limit: Number of rows to shard, from the beginning of the corpus, which must not exceed the limit of the tags. The skills stay those of the
            tags, and a skill without a sample among the rows has no shards. None: all rows of the tags, which are the first rows of the
            corpus if the tags have a limit. The limit is a part of the record.
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
    limit = limit_of(tags, limit)
    reading = CorpusReading.from_json(tags.manifest.made_from["arguments"]["reading"])
    made_from = {
        "command": "shard",
        "arguments": {
            "shard_bytes": shard_bytes,
            "holdout": float(holdout),
            "copies": copies,
            # The digest of the tags covers every reading. A template or a choice of metadata is also of interest to readers of the shards.
            **({} if reading.is_plain else {"reading": reading.to_json()}),
            **({} if limit is None else {"limit": limit}),
        },
        "inputs": corpus.inputs,
        "tags": tags.digest,
    }
    refuse_other_corpus(corpus, tags)
    with shown(on_stage, progress) as stages:
        artefact.make(
            out,
            MANIFEST,
            made_from,
            lambda work: _write(corpus, tags, work, made_from, backend, stages),
            mtimes_ns=corpus.mtimes_ns,
            changed=lambda _, suspects: changed_files(corpus, tags, suspects),
            scratch=scratch,
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
    limit = arguments.get("limit")
    tasks = sort_tasks(corpus, tags, work, skills, cut, limit)
    sorted_parts = run(
        sort_partition, tasks, backend=backend, records=work.records("sort"), on_done=on_stage("sorting", len(tasks))
    )
    if any(part.get("format") != FORMAT for part in sorted_parts):
        raise ShardError(
            f"{places.public(work.out)} holds unfinished work of another version of skillshard, and this version cannot continue the work. Remove "
            f"{places.public(work.out)} and run the command again."
        )
    num_samples = sum(part["samples"] for part in sorted_parts)
    is_cut = limit is not None and limit < sum(part.num_rows for part in tags.manifest.parts)
    if num_samples != tags.manifest.num_tagged and not is_cut:
        raise ShardError(
            f"{num_samples:,} samples were sorted, but {tags.manifest.num_tagged:,} are tagged: scratch files are damaged. Remove "
            f"{places.public(work.out)} and run the command again."
        )
    stages = Stages(work, backend, on_stage)
    # The split and the plan need sizes from every partition. So each stage waits for the whole stage before.
    tables = TextTables(
        [part["chunks"] for part in sorted_parts],
        sum(part["texts"] for part in sorted_parts),
        len(skills),
        drop,
        stages,
    )
    num_copies, sizes = tables.count(cut)
    split = split_of(sizes, tables.search, holds_out=arguments["holdout"] > 0)
    kept_rejected = list(map(num_rejected, tasks, sorted_parts))
    if drop:
        tables.set_aside(tags, tasks, kept_rejected, num_copies)
    tables.remove()

    shards = plan(split.sizes, arguments["shard_bytes"])
    _refuse_too_many(shards)
    num_bytes = sum(part["bytes"] + ENTRY_DTYPE.itemsize * part["samples"] for part in sorted_parts)
    written = _write_groups(
        list(groups(shards)), tables.chunks, num_bytes, split.exceptions, folder_names(skills), drop=drop, stages=stages
    )
    if not drop:
        _copy_rejected(tags, kept_rejected, work.out)
    rule = SplitRule(cut=cut, also_held_out=split.also_held_out, kept_in_train=split.kept_in_train)
    set_aside, unread = tags.manifest.set_aside, tags.manifest.unread
    if is_cut:
        set_aside, unread = split_rests(sum((Counter(part["set_aside"]) for part in sorted_parts), Counter()))
    shard_records = [shard for record in written for shard in record["shards"]]
    manifest = _manifest(made_from, skills, rule, num_copies, shard_records, num_samples, set_aside, unread)
    work.finish(manifest.model_dump(by_alias=True))


def _write_groups(
    grouped: Sequence[Sequence[ShardPlan]],
    chunks: Sequence[str],
    num_bytes: int,
    exceptions: Mapping[int, Sequence[str]],
    folders: Sequence[str],
    *,
    drop: bool,
    stages: Stages,
) -> list[Record]:
    """Merge the chunks where that is cheaper, and write the groups of shards.

    Args:
        grouped: Groups of neighbouring shards. A task writes a group.
        chunks: Places of all chunks, without suffixes.
        num_bytes: Bytes of all chunks.
        exceptions: Skill -> hashes of its texts that are on the other side of the cut.
        folders: Directory name of each skill.
        drop: Whether copies are dropped.
        stages: Runner of the tasks.
    """

    def reading(inputs: list[str], level: int, shards: Sequence[ShardPlan]) -> dict[str, Any]:
        # A task is keyed by its arguments, so only the exceptions of its own skills belong to them. Merged files have no exceptions left.
        own = {} if level else {shard.skill: exceptions[shard.skill] for shard in shards if shard.skill in exceptions}
        return {"inputs": inputs, "is_merged": level > 0, "exceptions": own, "drop": drop and not level}

    def merge_arguments(merge: Merge, inputs: list[str], out: str) -> dict[str, Any]:
        shards = [shard for group in grouped[merge.first_reader : merge.last_reader] for shard in group]
        return {**reading(inputs, merge.output.level - 1, shards), "pieces": pieces_of(shards), "out": out}

    suffixes = (".npy", ".data", ".copies.npy")
    num_levels, columns = stages.merged(
        "samples", merge_samples, chunks, suffixes, len(grouped), num_bytes, merge_arguments
    )
    tasks, cells = [], []
    for inputs, readers in columns:
        for number in readers:
            shards = grouped[number]
            own_folders = {shard.skill: folders[shard.skill] for shard in shards}
            tasks.append(
                {
                    "out": stages.work.out,
                    "folders": own_folders,
                    "shards": shards,
                    **reading(inputs, num_levels, shards),
                }
            )
            cells.append(inputs)
    return stages.run("write", "writing", write_group, tasks, cells, suffixes)


def _refuse_too_many(shards: Sequence[ShardPlan]) -> None:
    """Raise ShardError if the manifest would be larger than the limit for reading."""
    if len(shards) > MAX_MANIFEST_BYTES // MANIFEST_BYTES_PER_SHARD:
        raise ShardError(
            f"{len(shards):,} shards of {sum(shard.num_bytes for shard in shards) // len(shards):,} bytes are too many for one shard set "
            f"(at most {MAX_MANIFEST_BYTES // MANIFEST_BYTES_PER_SHARD:,}). Give a larger `shard_bytes` and another `out`."
        )


def _copy_rejected(tags: Tags, kept_rejected: Sequence[int | None], out: str) -> None:
    """Copy the rows that the tags set aside.

    Args:
        tags: Tags of the corpus.
        kept_rejected: Number of such rows that belong to the shards, for each part. None: all rows of the part.
        out: Directory of the shard set.
    """
    for index, num_rows in enumerate(kept_rejected):
        if tags.manifest.parts[index].num_set_aside and num_rows != 0:
            storage.write_bytes(
                rejected_place(out, index), first_rejected(rejected_place(tags.folder, index), num_rows)
            )


def _manifest(
    made_from: dict[str, Any],
    skills: Sequence[str],
    rule: SplitRule,
    num_copies: Sequence[int],
    written: list[Record],
    num_tagged: int,
    tags_set_aside: Mapping[str, int],
    unread: Mapping[str, int],
) -> Manifest:
    """Make the manifest.

    Args:
        made_from: Inputs and arguments.
        skills: Names of the skills.
        rule: Rule of the split.
        num_copies: Number of copies of each skill.
        written: Record of each shard.
        num_tagged: Number of samples, copies included.
        tags_set_aside: Reason -> number of rows that the tags set aside.
        unread: Reason -> number of files of which the rest was not read.
    """
    shards = gathered(
        (((record["skill"], record["split"]), record) for record in written),
        itertools.product(range(len(skills)), SPLITS),
        ShardColumns,
    )
    totals = dict.fromkeys(SPLITS, 0)
    for record in written:
        totals[record["split"]] += record["num_samples"]
    num_rows = num_tagged + sum(tags_set_aside.values())
    set_aside = dict(tags_set_aside)
    if made_from["arguments"]["copies"] == "drop" and sum(num_copies):
        set_aside["copy"] = sum(num_copies)
    num_expected = num_rows - sum(set_aside.values())
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
        num_rows=num_rows,
        num_train=totals["train"],
        num_holdout=totals["holdout"],
        set_aside=set_aside,
        unread=dict(unread),
    )
