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

`append_shards` continues a finished set (parent.py). Two more stages follow the sorting: `read_keys` reads the texts and ids of the parent, and
`find_equal_ids` compares the ids, which are merged first where that is cheaper. The tables of the parent join the tables of stage 2.

The order by the hash of the id shuffles each skill globally. The cut stays the same when the corpus is sharded or tagged again.
A range of hashes without samples gives no shard, so the numbers of shards may have gaps.

A scratch file is deleted once every task that reads the file has a record. Memory of a task: `SORT_BYTES` in stage 1, `TEXTS_PER_RANGE`
entries in stage 2, and `BATCH_BYTES` in stages 5 and 6. Scratch space: the texts and JSONs of the corpus, and 120 bytes for each sample.
"""

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from skillshard import artefact, places, storage
from skillshard.corpus import Corpus, CorpusReading
from skillshard.corpus.members import members_record, parse_members, refuse_absent, suffixes_beside_texts
from skillshard.corpus.token_ids import in_words
from skillshard.errors import CorpusError, ShardError, TagsError
from skillshard.execution import Backend, OnStage, Record, run, shown
from skillshard.merge_levels import Merge
from skillshard.opened import refuse_unopened
from skillshard.shards.group import write_group
from skillshard.shards.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SPLITS,
    Layout,
    Manifest,
    Manifest4,
    ManifestSkill,
    ManifestSkill4,
    ShardColumns,
    ShardColumns4,
    folder_names,
    gathered,
)
from skillshard.shards.members import MAX_SUFFIXES
from skillshard.shards.merge import merge_samples, pieces_of
from skillshard.shards.parent import Parent, ParentTables, parent_of
from skillshard.shards.plan import ShardPlan, groups, plan
from skillshard.shards.read import ShardSet
from skillshard.shards.sort import ENTRY_DTYPE, FORMAT, sort_partition
from skillshard.shards.split import Split, cut_of, split_of
from skillshard.shards.tables import TextTables
from skillshard.shards.tagged import changed_files, limit_of, num_rejected, refuse_other_corpus, sort_tasks
from skillshard.stages import Stages
from skillshard.tags import Tags, first_rejected, rejected_place, split_rests

STAGES = ("sort", "merge-tables", "copies", "texts", "merge-firsts", "set-aside", "merge-samples", "write")
"""Stages of tasks, in their order. The stage "texts" has a step for each search, and the merges have a step for each level. A stage without
tasks is passed over."""
APPEND_STAGES = ("sort", "parent", "merge-ids", "ids", *STAGES[1:])
"""Stages of appended shards."""
SHARD_BYTES = 64 << 20
"""Default size of a shard, in bytes."""
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
    shard_bytes: int = SHARD_BYTES,
    holdout: float = 0.01,
    copies: Copies = "keep",
    layout: Layout = "pairs",
    members: Sequence[str] = (),
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
        layout: Layout of the members in the tars (layouts.py): "pairs", or "compact" for short texts.
        members: Members that samples keep beside text and metadata as they are, such as images: suffixes ("jpg") of a tar, or names of columns of
            bytes of a table, also as "SUFFIX=COLUMN". All other members are left out. Members need the layout "pairs" and copies="keep".
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
        CorpusError: No sample has one of the members, or the members of a sample are too large.
        TagsError: The tags belong to another corpus, or the corpus has changed.
        StorageError: `out` holds something else.
    """
    _refuse_unopened(corpus, tags)
    if not 0 <= holdout < 1:
        raise ShardError(f"`{holdout=}`: give a share from 0 to below 1.")
    for name, value, values in (("copies", copies, get_args(Copies)), ("layout", layout, get_args(Layout))):
        if value not in values:
            raise ShardError(f"`{name}={value!r}`: give {' or '.join(values)}.")
    sources = parse_members(members)
    if sources and layout != "pairs":
        raise ShardError(
            "a compact shard has no place for members beside the texts: leave out `members`, or give `layout='pairs'`."
        )
    if sources and copies == "drop":
        raise ShardError(
            "copies are samples of the same text, and two images may have the same caption: with `members`, give `copies='keep'`."
        )
    if len(sources) > MAX_SUFFIXES:
        raise ShardError(f"{len(sources):,} members are given, and at most {MAX_SUFFIXES} are kept.")
    rules = _Rules(float(holdout), cut_of(holdout), copies == "drop", layout, sources, None)
    return _make(corpus, tags, out, rules, shard_bytes, scratch, limit, backend, on_stage, progress)


def append_shards(
    parent: ShardSet,
    corpus: Corpus,
    tags: Tags,
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = SHARD_BYTES,
    scratch: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    backend: Backend = Backend(),
    on_stage: OnStage | None = None,
    progress: bool = True,
) -> ShardSet:
    """Write shards for new files, as a shard set that continues a finished shard set.

    The new directory holds the shards of the new corpus. Its manifest lists the shards of the parent too, with the place of the parent. No
    file of the parent changes, so a run with the parent goes on. The split, the treatment of copies, the layout and the kept members are those of
    the parent.
    A text that stands in the parent's holdout goes to the holdout. The result is not the result of `write_shards` of both corpora together,
    because the shuffle and the exceptions to the cut of the parent stay. The result is deterministic.

    Args:
        parent: Shard set to continue, also a set with appended shards.
        corpus: Corpus of the new samples alone.
        tags: Tags of the new corpus. New skills are possible.
        out: New directory, local or in a store. The manifest names the parent relative to this directory where both are local, or where both lie
            in one bucket.
        shard_bytes: Size of a new shard to aim at, in bytes.
        scratch: Directory for the scratch files, as in `write_shards`. The files take 84 bytes more for each sample of the parent.
        limit: Number of rows of the new corpus to shard, from its beginning, as in `write_shards`.
        backend: Local pool of processes or Ray. The bytes are the same.
        on_stage: Function that is called with the name of a stage and the number of its tasks, as in `write_shards`.
        progress: Whether progress bars are shown.

    Returns:
        The finished shard set with all shards, opened.

    Raises:
        ShardError: The parent has no keys, an id of the parent stands in the new corpus, or an argument is out of range.
        TagsError: The tags belong to another corpus, or the corpus has changed.
        StorageError: `out` holds something else.
    """
    refuse_unopened(parent, ShardSet, "parent", "shard set", ShardError)
    _refuse_unopened(corpus, tags)
    continued = parent_of(parent)
    if places.is_remote(out) and not places.is_remote(parent.root):
        raise ShardError(
            f"{parent.root} lies on this machine, and {places.public(out)} does not: readers of the new shards would not find the shards that "
            "they continue. Copy the parent to the store first, or name a local `out`."
        )
    arguments = continued.manifest.made_from["arguments"]
    rules = _Rules(
        arguments["holdout"],
        continued.manifest.split.cut,
        arguments["copies"] == "drop",
        parent.layout,
        parent.kept_members,
        continued,
    )
    return _make(corpus, tags, out, rules, shard_bytes, scratch, limit, backend, on_stage, progress)


def _refuse_unopened(corpus: Corpus, tags: Tags) -> None:
    refuse_unopened(corpus, Corpus, "corpus", "corpus", CorpusError)
    refuse_unopened(tags, Tags, "tags", "set of tags", TagsError)


@dataclass(frozen=True)
class _Rules:
    """Rules that all shards of a set share.

    Attributes:
        holdout: Share of the texts that is held out.
        cut: Hash below which a text is held out.
        drop: Whether copies are dropped.
        layout: Layout of the members in the tars.
        members: Suffix -> source of each member that samples keep beside text and JSON.
        parent: Shard set that is continued, or None.
    """

    holdout: float
    cut: str
    drop: bool
    layout: Layout
    members: Mapping[str, str]
    parent: Parent | None


def _make(
    corpus: Corpus,
    tags: Tags,
    out: str | os.PathLike[str],
    rules: _Rules,
    shard_bytes: int,
    scratch: str | os.PathLike[str] | None,
    limit: int | None,
    backend: Backend,
    on_stage: OnStage | None,
    progress: bool,
) -> ShardSet:
    limit = limit_of(tags, limit)
    if shard_bytes < 1:
        raise ShardError(f"`{shard_bytes=}`: give a positive size in bytes, such as 64_000_000.")
    reading = CorpusReading.from_json(tags.manifest.made_from["arguments"]["reading"])
    if rules.parent is not None:
        _refuse_other_form(rules.parent.shards, reading)
    made_from = {
        "command": "shard",
        "arguments": {
            "shard_bytes": shard_bytes,
            "holdout": rules.holdout,
            "copies": "drop" if rules.drop else "keep",
            # Sets of the default layout keep the bytes of their manifests.
            **({} if rules.layout == "pairs" else {"layout": rules.layout}),
            **({"members": members_record(rules.members)} if rules.members else {}),
            # The digest of the tags covers every reading. A template or a choice of metadata is also of interest to readers of the shards.
            **({} if reading.is_plain else {"reading": reading.to_json()}),
            **({} if limit is None else {"limit": limit}),
        },
        "inputs": corpus.inputs,
        "tags": tags.digest,
        **({} if rules.parent is None else {"parent": rules.parent.shards.digest}),
    }
    refuse_other_corpus(corpus, tags)
    with shown(on_stage, progress) as stages:
        artefact.make(
            out,
            MANIFEST,
            made_from,
            lambda work: _write(corpus, tags, work, made_from, rules, backend, stages),
            mtimes_ns=corpus.mtimes_ns,
            # The digests of the tags do not cover members, so a newer file may hold other members.
            changed=lambda _, suspects: list(suspects) if rules.members else changed_files(corpus, tags, suspects),
            scratch=scratch,
            keep_unfinished_files=backend.array_part is not None,
        )
    return ShardSet.open(out)


def _refuse_other_form(parent: ShardSet, reading: CorpusReading) -> None:
    """Raise ShardError unless the new samples are texts or token ids as the samples of the parent are."""
    before, now = parent.token_form, reading.token_form
    if before != now:
        raise ShardError(
            f"the samples of {places.public(parent.root)} are {in_words(before)}, and the new samples are {in_words(now)}: readers treat all samples of "
            "a shard set alike. Tag the new corpus with the fields and the `vocab_size` of the first corpus, or shard the new corpus by itself."
        )


def _write(
    corpus: Corpus,
    tags: Tags,
    work: artefact.Work,
    made_from: dict[str, Any],
    rules: _Rules,
    backend: Backend,
    on_stage: OnStage,
) -> None:
    parent = rules.parent
    skills = sorted({*(skill.name for skill in tags.manifest.skills), *(parent.folders if parent else ())})
    limit = made_from["arguments"].get("limit")
    inherited = None if parent is None else parent.inherited
    tasks = sort_tasks(corpus, tags, work, skills, rules.cut, limit, rules.layout, inherited, rules.members, rules.drop)
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
    if rules.members and parent is None:
        _refuse_absent(rules.members, sorted_parts)
    stages = Stages(work, backend, on_stage)
    # The split and the plan need sizes from every partition. So each stage waits for the whole stage before.
    parent_tables, parent_ids = (ParentTables(), []) if parent is None else parent.read(stages)
    tables = TextTables(
        [part["chunks"] for part in sorted_parts],
        sum(part["texts"] for part in sorted_parts),
        len(skills),
        rules.drop,
        stages,
        parent_tables,
    )
    if parent is not None:
        parent.refuse_equal_ids(stages, tables.chunks, num_samples, parent_ids)
    num_copies, sizes = tables.count(rules.cut)
    presence = np.zeros_like(sizes) if parent is None else parent.presence(skills)
    split = split_of(sizes + presence, tables.search, holds_out=rules.holdout > 0)
    kept_rejected = list(map(num_rejected, tasks, sorted_parts))
    if rules.drop:
        tables.set_aside(tags, tasks, kept_rejected, num_copies)
    tables.remove()

    first_position, first_numbers = (
        (0, {}) if parent is None else (parent.first_position(), parent.first_numbers(skills))
    )
    shards = plan(
        split.sizes - presence,
        made_from["arguments"]["shard_bytes"],
        first_position=first_position,
        first_numbers=first_numbers,
    )
    _refuse_too_many(shards, 0 if parent is None else parent.num_shards)
    num_bytes = sum(part["bytes"] + ENTRY_DTYPE.itemsize * part["samples"] for part in sorted_parts)
    folders = folder_names(skills, {} if parent is None else parent.folders)
    written = _write_groups(
        list(groups(shards)),
        tables.chunks,
        num_bytes,
        split.exceptions,
        folders,
        drop=rules.drop,
        layout=rules.layout,
        members=tuple(rules.members),
        stages=stages,
    )
    if not rules.drop:
        _copy_rejected(tags, kept_rejected, work.out)
    set_aside, unread = tags.manifest.set_aside, tags.manifest.unread
    if is_cut:
        set_aside, unread = split_rests(sum((Counter(part["set_aside"]) for part in sorted_parts), Counter()))
    of_all = [shard for record in written for shard in record["shards"]]
    copies_of = dict(zip(skills, num_copies, strict=True))
    manifest = _manifest(made_from, rules, split, copies_of, folders, of_all, num_samples, set_aside, unread, work.out)
    work.finish(manifest.model_dump(by_alias=True))


def _write_groups(
    grouped: Sequence[Sequence[ShardPlan]],
    chunks: Sequence[str],
    num_bytes: int,
    exceptions: Mapping[int, Sequence[str]],
    folders: Sequence[str],
    *,
    drop: bool,
    layout: Layout,
    members: Sequence[str],
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
        layout: Layout of the shards.
        members: Suffixes of the members that the samples keep beside text and JSON.
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
                    "layout": layout,
                    "suffixes": members,
                }
            )
            cells.append(inputs)
    return stages.run("write", "writing", write_group, tasks, cells, suffixes)


def _refuse_absent(members: Mapping[str, str], sorted_parts: Sequence[Record]) -> None:
    """Raise CorpusError if no sample has one of the kept members.

    Args:
        members: Suffix -> source of each kept member.
        sorted_parts: Records of the sorting.
    """
    present = {suffix for part in sorted_parts for suffix in part["members"]}
    refuse_absent(members, present, suffixes_beside_texts({name for part in sorted_parts for name in part["left_out"]}))


def _refuse_too_many(shards: Sequence[ShardPlan], num_before: int) -> None:
    """Raise ShardError if the manifest would be larger than the limit for reading.

    Args:
        shards: Planned shards.
        num_before: Number of the shards of a parent, which the manifest lists too.
    """
    if len(shards) + num_before > MAX_MANIFEST_BYTES // MANIFEST_BYTES_PER_SHARD:
        after = f" after the {num_before:,} shards that are continued" if num_before else ""
        raise ShardError(
            f"{len(shards):,} shards of {sum(shard.num_bytes for shard in shards) // max(len(shards), 1):,} bytes{after} are too many for one "
            f"shard set (at most {MAX_MANIFEST_BYTES // MANIFEST_BYTES_PER_SHARD:,}). Give a larger `shard_bytes` and another `out`."
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
    rules: _Rules,
    split: Split,
    num_copies: Mapping[str, int],
    folders: Sequence[str],
    written: list[Record],
    num_tagged: int,
    tags_set_aside: Mapping[str, int],
    unread: Mapping[str, int],
    out: str,
) -> Manifest | Manifest4:
    """Make the manifest.

    Args:
        made_from: Inputs and arguments.
        rules: Rules of the set.
        split: Exceptions to the cut.
        num_copies: Skill -> number of copies among the new samples, in the order of the skills.
        folders: Directory name of each skill.
        written: Record of each new shard.
        num_tagged: Number of new samples, copies included.
        tags_set_aside: Reason -> number of rows that the tags set aside.
        unread: Reason -> number of files of which the rest was not read.
        out: Directory of the shard set.
    """
    num_rows = num_tagged + sum(tags_set_aside.values())
    set_aside = dict(tags_set_aside)
    if rules.drop and any(num_copies.values()):
        set_aside["copy"] = sum(num_copies.values())
    totals: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for record in written:
        totals[record["split"]] += record["num_samples"]
    num_expected = num_rows - sum(set_aside.values())
    if sum(totals.values()) != num_expected:
        raise ShardError(
            f"{sum(totals.values()):,} samples were written, but {num_expected:,} belong into shards: scratch files are damaged. "
            "Remove the output directory and run the command again."
        )
    parent = None if rules.parent is None else rules.parent.manifest
    before = {skill.name: skill for skill in parent.skills} if parent else {}
    earlier = _earlier(rules.parent, out)
    is_plain = rules.layout == "pairs" and not earlier
    shards = gathered(
        (((record["skill"], record["split"]), {**record, "edition": len(earlier)}) for record in written),
        itertools.product(range(len(num_copies)), SPLITS),
        ShardColumns if is_plain else ShardColumns4,
    )
    common: dict[str, Any] = {
        "made_from": made_from,
        "split": {
            "cut": rules.cut,
            "also_held_out": sorted([*(parent.split.also_held_out if parent else ()), *split.also_held_out]),
            "kept_in_train": sorted([*(parent.split.kept_in_train if parent else ()), *split.kept_in_train]),
        },
        "skills": [
            {
                "name": name,
                "folder": folder,
                "num_copies": num + (before[name].num_copies if name in before else 0),
                **{side: _joined(before.get(name), side, shards[index, side]) for side in SPLITS},
            }
            for index, ((name, num), folder) in enumerate(zip(num_copies.items(), folders, strict=True))
        ],
        "num_rows": num_rows + (parent.num_rows if parent else 0),
        "num_train": totals["train"] + (parent.num_train if parent else 0),
        "num_holdout": totals["holdout"] + (parent.num_holdout if parent else 0),
        "set_aside": _added(set_aside, parent.set_aside if parent else {}),
        "unread": _added(unread, parent.unread if parent else {}),
    }
    if is_plain:
        return Manifest.model_validate(common)
    return Manifest4.model_validate({**common, "layout": rules.layout, "earlier": earlier})


def _added(counts: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: counts.get(name, 0) + before.get(name, 0) for name in {**before, **counts}}


def _joined(
    before: ManifestSkill | ManifestSkill4 | None, split: str, own: dict[str, list[Any]]
) -> dict[str, list[Any]]:
    """Return the columns of a skill's shards, the shards of the parent first."""
    if before is None:
        return own
    columns: dict[str, list[Any]] = getattr(before, split).model_dump()
    columns.setdefault("edition", [0] * len(columns["number"]))
    return {name: [*columns[name], *values] for name, values in own.items()}


def _earlier(parent: Parent | None, out: str) -> list[dict[str, str]]:
    """Return the sets that a new set continues, with places relative to the new set where possible."""
    if parent is None:
        return []
    root = os.fspath(parent.shards.root)
    before = parent.manifest.earlier if isinstance(parent.manifest, Manifest4) else []
    all_places = [
        *((places.resolve(edition.place, root), edition.digest) for edition in before),
        (root, parent.shards.digest),
    ]
    return [{"place": places.relative_to(place, out), "digest": digest} for place, digest in all_places]
