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
6. `write_group` reads the samples of some neighbouring shards from the chunks or the merged files, and writes the tars and indexes.

The order by the hash of the id shuffles each skill globally. The cut stays the same when the corpus is sharded or tagged again.
A range of hashes without samples gives no shard, so the numbers of shards may have gaps.

A scratch file is deleted once every task that reads the file has a record. Memory of a task: `SORT_BYTES` in stage 1, `TEXTS_PER_RANGE`
entries in stage 2, and `BATCH_BYTES` in stages 5 and 6. Scratch space: the texts and JSONs of the corpus, and 120 bytes for each sample.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import xxhash

from skillshard import artefact, canonical, places, storage
from skillshard.corpus import Corpus, CorpusReading
from skillshard.corpus.compare import places_changed
from skillshard.errors import ShardError, TagsError, name_some
from skillshard.execution import Backend, OnStage, Record, Task, keyed, run, shown
from skillshard.hash_ranges import hash_bounds
from skillshard.merge_levels import Merge, plan_merges
from skillshard.shards.chunks import chunk_number, chunk_place
from skillshard.shards.copies import (
    FIRSTS_DTYPE,
    TEXTS_DTYPE,
    TEXTS_PER_RANGE,
    find_copies,
    find_texts,
    merge_firsts,
    merge_tables,
    set_copies_aside,
)
from skillshard.shards.manifest import (
    KEYS_DTYPE,
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
    keys_name,
    shard_name,
)
from skillshard.shards.merge import Batch, Piece, SampleReader, merge_samples, pieces_of
from skillshard.shards.plan import ShardPlan, groups, plan
from skillshard.shards.read import ShardSet
from skillshard.shards.sort import ENTRY_DTYPE, FORMAT, sort_partition
from skillshard.shards.split import Candidate, Order, Sizes, cut_of, split_of
from skillshard.shards.stages import Stages
from skillshard.shards.tar import END_OF_ARCHIVE, index_of, tar_chunks
from skillshard.tags import Tags, part_place, rejected_place

STAGES = ("sort", "merge-tables", "copies", "texts", "merge-firsts", "set-aside", "merge-samples", "write")
"""Stages of tasks, in their order. The stage "texts" has a step for each search, and the merges have a step for each level. A stage without
tasks is passed over."""
Copies = Literal["keep", "drop"]
"""Whether samples whose text stands earlier in the corpus are kept or dropped."""
# Most skills need one text or none. A search costs a stage over all tables, and 16 texts make a second search rare.
TEXTS_AT_ONCE = 16
"""Number of texts of a skill that one search for exceptions returns. Any other number leads to the same exceptions."""
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
    reading = CorpusReading.from_json(tags.manifest.made_from["arguments"]["reading"])
    made_from = {
        "command": "shard",
        "arguments": {
            "shard_bytes": shard_bytes,
            "holdout": float(holdout),
            "copies": copies,
            # The digest of the tags covers every reading. A template or a choice of metadata is also of interest to readers of the shards.
            **({} if reading.is_plain else {"reading": reading.to_json()}),
        },
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
    tasks = _sort_tasks(corpus, tags, work, skills, cut)
    sorted_parts = run(
        sort_partition, tasks, backend=backend, records=work.records("sort"), on_done=on_stage("sorting", len(tasks))
    )
    if any(part.get("format") != FORMAT for part in sorted_parts):
        raise ShardError(
            f"{places.public(work.out)} holds unfinished work of another version of skillshard, and this version cannot continue the work. Remove "
            f"{places.public(work.out)} and run the command again."
        )
    num_samples = sum(part["samples"] for part in sorted_parts)
    if num_samples != tags.manifest.num_tagged:
        raise ShardError(
            f"{num_samples:,} samples were sorted, but {tags.manifest.num_tagged:,} are tagged: scratch files are damaged. Remove "
            f"{places.public(work.out)} and run the command again."
        )
    stages = Stages(work, backend, on_stage)
    # The split and the plan need sizes from every partition. So each stage waits for the whole stage before.
    tables = _Tables(
        [part["chunks"] for part in sorted_parts],
        sum(part["texts"] for part in sorted_parts),
        len(skills),
        drop,
        stages,
    )
    num_copies, sizes = tables.count(cut)
    split = split_of(sizes, tables.search, holds_out=arguments["holdout"] > 0)
    if drop:
        tables.set_aside(tags, tasks, num_copies)
    tables.remove()

    shards = plan(split.sizes, arguments["shard_bytes"])
    _refuse_too_many(shards)
    num_bytes = sum(part["bytes"] + ENTRY_DTYPE.itemsize * part["samples"] for part in sorted_parts)
    written = _write_groups(
        list(groups(shards)), tables.chunks, num_bytes, split.exceptions, folder_names(skills), drop=drop, stages=stages
    )
    if not drop:
        _copy_rejected(tags, work.out)
    rule = SplitRule(cut=cut, also_held_out=split.also_held_out, kept_in_train=split.kept_in_train)
    manifest = _manifest(made_from, tags, rule, num_copies, [shard for record in written for shard in record["shards"]])
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

    merge_plan = plan_merges(len(chunks), len(grouped), num_bytes)
    suffixes = (".npy", ".data", ".copies.npy")
    columns = stages.merged("samples", merge_samples, merge_plan, chunks, suffixes, merge_arguments)
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
                    **reading(inputs, len(merge_plan.fan_ins), shards),
                }
            )
            cells.append(inputs)
    return stages.run("write", "writing", write_group, tasks, cells, suffixes)


@dataclass
class _Tables:
    """Tables of the texts of all chunks, with the stages that read the tables.

    Attributes:
        num_chunks: Number of chunks of each partition.
        num_texts: Number of entries of all tables.
        num_skills: Number of skills.
        drop: Whether copies are dropped.
        stages: Runner of the tasks.
    """

    num_chunks: Sequence[int]
    num_texts: int
    num_skills: int
    drop: bool
    stages: Stages
    _num_firsts: int = 0

    @cached_property
    def chunks(self) -> list[str]:
        """Places of all chunks, without suffixes, in the order of the corpus."""
        return [
            chunk_place(self._scratch, chunk_number(partition, chunk))
            for partition, num_chunks in enumerate(self.num_chunks)
            for chunk in range(num_chunks)
        ]

    def count(self, cut: str) -> tuple[list[int], Sizes]:
        """Count the copies of each skill, and the texts, samples and bytes that the cut gives to each skill and split."""
        common = {"cut": cut, "num_skills": self.num_skills, "scratch": self._scratch}
        totals_places = [self.stages.work.scratch("totals", f"{number:06d}.npy") for number in range(self._num_ranges)]
        records = self.stages.run(
            "copies",
            "finding copies",
            find_copies,
            [
                {**bounds, **common, "totals": totals_place, "firsts": firsts if self.drop else None}
                for bounds, totals_place, firsts in zip(self._ranges, totals_places, self._firsts, strict=True)
            ],
        )
        self._num_firsts = sum(record["firsts"] for record in records)
        # One range after the other, because the totals of all ranges together may not fit into the memory.
        totals = np.zeros((self.num_skills, 7), np.int64)
        for place in totals_places:
            totals += storage.load_array(place)
        return totals[:, 0].tolist(), totals[:, 1:].reshape(self.num_skills, 2, 3)

    def search(self, beyond: dict[int, str], order: Order) -> dict[int, list[Candidate]]:
        """Return the first texts of some skills in the requested order of their hashes (a `split.Search`)."""
        skills = {str(skill): after for skill, after in beyond.items()}
        arguments = {"beyond": skills, "order": order, "drop": self.drop, "most": TEXTS_AT_ONCE}
        # Searches follow one another with other arguments. A folder of records for each keeps their results apart on a resume.
        search_digest = canonical.digest(canonical.to_json(arguments))
        tasks = [{**bounds, **arguments} for bounds in self._ranges]
        records = self.stages.run(f"texts-{search_digest}", None, find_texts, tasks)
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
        first_samples = plan_merges(self._num_ranges, len(sort_tasks), self._num_firsts * FIRSTS_DTYPE.itemsize)

        def merge_arguments(merge: Merge, inputs: list[str], out: str) -> dict[str, Any]:
            low, high = chunk_number(merge.first_reader, 0), chunk_number(merge.last_reader, 0)
            return {"inputs": inputs, "out": out, "low": low, "high": high}

        columns = self.stages.merged(
            "firsts", merge_firsts, first_samples, self._firsts, (".npy", ".data"), merge_arguments
        )
        records = self.stages.run(
            "set-aside",
            "setting copies aside",
            set_copies_aside,
            [
                {
                    "partition": sort_tasks[index].arguments["partition"],
                    "num_chunks": self.num_chunks[index],
                    "scratch": self._scratch,
                    "first_row": sort_tasks[index].arguments["first_row"],
                    "firsts": firsts,
                    "rejected_before": rejected_place(tags.folder, index)
                    if tags.manifest.parts[index].num_set_aside
                    else None,
                    "rejected": rejected_place(self.stages.work.out, index),
                    "max_sample_bytes": sort_tasks[index].arguments["reading"].max_sample_bytes,
                }
                for firsts, readers in columns
                for index in readers
            ],
            [firsts for firsts, readers in columns for _ in readers],
            (".npy", ".data"),
            about=(task.about for task in sort_tasks),
        )
        if (marked := sum(record["copies"] for record in records)) != sum(num_copies):
            raise ShardError(
                f"{marked:,} copies were set aside, but {sum(num_copies):,} were counted: scratch files are damaged. Remove "
                f"{places.public(self.stages.work.out)} and run the command again."
            )

    def remove(self) -> None:
        """Delete the tables. The records of all tasks that read the tables exist."""
        for place in {table for bounds in self._ranges for table in bounds["tables"]}:
            storage.remove(place)

    @cached_property
    def _scratch(self) -> str:
        return self.stages.work.scratch()

    @cached_property
    def _num_ranges(self) -> int:
        return -(-self.num_texts // TEXTS_PER_RANGE) or 1  # rounded up

    @cached_property
    def _ranges(self) -> list[dict[str, Any]]:
        """The tables and the bounds of each range of hashes. Many tables are merged first."""
        # The hash of a text has 128 bits. The ranges cut the upper 64 bits, and the lower 64 bits of a bound are 0.
        bounds = [*(f"{bound:016x}{0:016x}" for bound in hash_bounds(self._num_ranges)[:-1]), None]

        def merge_arguments(merge: Merge, inputs: list[str], out: str) -> dict[str, Any]:
            low, high = bounds[merge.first_reader], bounds[merge.last_reader]
            return {"inputs": inputs, "out": out, "low": low, "high": high}

        tables = [places.with_suffix(chunk, ".texts.npy") for chunk in self.chunks]
        merge_plan = plan_merges(len(tables), self._num_ranges, self.num_texts * TEXTS_DTYPE.itemsize)
        columns = self.stages.merged("tables", merge_tables, merge_plan, tables, ("",), merge_arguments)
        return [
            {"tables": inputs, "low": bounds[number], "high": bounds[number + 1]}
            for inputs, readers in columns
            for number in readers
        ]

    @cached_property
    def _firsts(self) -> list[str]:
        """Places of the first samples of each range, for `find_copies` to write and `set_copies_aside` to read."""
        return [self.stages.work.scratch("firsts", f"{number:06d}") for number in range(self._num_ranges)]


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
    file_numbers = {file.name: number for number, file in enumerate(corpus.files)}
    rows_before: Counter[str] = Counter()
    tasks = []
    for index, (partition, part) in enumerate(zip(partitions, tags.manifest.parts, strict=True)):
        tasks.append(
            {
                "partition": partition,
                "tags_part": part_place(tags.folder, index),
                "expected_digest": part.rows_digest,
                "reading": reading,
                "num_rows": part.num_rows,
                "skills": skills,
                "cut": cut,
                "scratch": work.scratch(),
                "file": file_numbers[partition.name],
                "first_row": rows_before[partition.name],
            }
        )
        rows_before[partition.name] += part.num_rows
    return keyed(tasks, about=(partition.name for partition in partitions))


def write_group(
    out: str,
    folders: Mapping[int, str],
    shards: Sequence[ShardPlan],
    inputs: list[str],
    is_merged: bool,
    exceptions: Mapping[int, Sequence[str]],
    drop: bool,
) -> Record:
    """Write some neighbouring shards. A shard whose range of hashes holds no sample is not written.

    Args:
        out: Directory of the shard set.
        folders: Skill -> name of its directory.
        shards: Shards to write.
        inputs: Sorted files, as in `SampleReader`.
        is_merged: Origin of the files, as in `SampleReader`.
        exceptions: Exceptions to the cut, as in `SampleReader`.
        drop: Whether copies are dropped.
    """
    pieces = [Piece(shard.skill, SPLITS.index(shard.split), shard.low, shard.high) for shard in shards]
    _, batches = SampleReader(inputs, is_merged, exceptions, drop).batches(pieces)
    records = []
    # A batch has several small shards, and a large shard has several batches.
    for number, parts in itertools.groupby(_shard_parts(batches), key=lambda part: part[0]):
        shard = shards[number]
        records.append(_write_shard(out, folders[shard.skill], shard, ((entries, data) for _, entries, data in parts)))
    return {"shards": records}


def _shard_parts(batches: Iterable[Batch]) -> Iterator[tuple[int, np.ndarray, memoryview]]:
    """Yield the number of a shard with its entries in each batch and the data of the batch."""
    for batch in batches:
        begin = 0
        for number, num_samples in batch.parts:
            yield number, batch.entries[begin : begin + num_samples], batch.data
            begin += num_samples


def _write_shard(out: str, folder: str, shard: ShardPlan, parts: Iterable[tuple[np.ndarray, memoryview]]) -> Record:
    name = shard_name(shard.split, folder, shard.number)
    sizes: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    num_bytes, digest = _write_tar(places.join(out, name), _tar_of(shard, parts, sizes, keys))
    index_place = places.join(out, index_name(name))
    text_bytes, json_bytes = np.concatenate(sizes, axis=1)
    storage.write_array(index_place, index_of(text_bytes, json_bytes))
    keys_place = places.join(out, keys_name(name))
    storage.write_array(keys_place, np.concatenate(keys))
    return {
        "skill": shard.skill,
        "split": shard.split,
        "number": shard.number,
        "num_samples": len(text_bytes),
        "num_bytes": num_bytes,
        "digest": digest,
        "index_digest": storage.file_digest(index_place),
        "keys_digest": storage.file_digest(keys_place),
    }


def _tar_of(
    shard: ShardPlan,
    parts: Iterable[tuple[np.ndarray, memoryview]],
    sizes: list[np.ndarray],
    keys: list[np.ndarray],
) -> Iterator[bytes]:
    """Yield the bytes of a shard's tar. Append the bytes of texts and JSONs of each part to `sizes`, and the keys to `keys`."""
    first_row = 0
    for entries, data in parts:
        text_bytes, json_bytes = (entries[name].astype(np.int64) for name in ("text_bytes", "json_bytes"))
        starts = entries["start"].astype(np.int64)
        bounds = zip(*((starts + shift).tolist() for shift in (0, text_bytes, text_bytes + json_bytes)), strict=True)
        texts, jsons = zip(*((data[start:middle], data[middle:stop]) for start, middle, stop in bounds), strict=True)
        yield from tar_chunks(shard.position, first_row, texts, jsons)
        first_row += len(entries)
        sizes.append(np.stack((text_bytes, json_bytes)))
        keys.append(_keys_of(entries))
    yield END_OF_ARCHIVE


def _keys_of(entries: np.ndarray) -> np.ndarray:
    """Return the keys of samples, dtype `KEYS_DTYPE`."""
    keys = np.empty(len(entries), KEYS_DTYPE)
    for name, column in (("id", "hash"), ("row", "row"), ("file", "file"), ("text", "text")):
        keys[name] = entries[column]
    return keys


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
