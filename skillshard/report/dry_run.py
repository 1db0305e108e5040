"""Print the input, the output and the cost of `tag` and `shard` before any work. Nothing is written."""

import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from skillshard import places, storage
from skillshard.bars import duration
from skillshard.corpus import DEFAULT_PACKING, Corpus, CorpusReading, Partition, Sample
from skillshard.corpus.estimate import Estimate, estimate
from skillshard.corpus.peek import FILE_BYTES, FILE_ROWS
from skillshard.execution import Backend
from skillshard.merge_levels import plan_merges
from skillshard.printable import counted, size_in_words
from skillshard.report.text import print_line, share
from skillshard.shards import pairs
from skillshard.shards.layouts import LAYOUTS
from skillshard.shards.manifest import MANIFEST, SPLITS, Layout
from skillshard.shards.members import payload_of
from skillshard.shards.plan import groups, plan
from skillshard.shards.sort import SORT_BYTES, member_json
from skillshard.shards.split import BYTES, SAMPLES, Sizes
from skillshard.shards.tagged import limit_of, refuse_other_corpus
from skillshard.shards.texts import text_hashes
from skillshard.taggers.ceiling import Ceiling, counts_of, described
from skillshard.taggers.tag import partitions_of
from skillshard.taggers.tagger import Finder, OnBadSample, Tag, Tagger, refuse_token_ids
from skillshard.tags import MANIFEST as TAGS_MANIFEST
from skillshard.tags import SCHEMA, Tags

TAGGED_ROWS = 256
"""Largest number of samples that a tagger gets for its time. A model on a CPU needs seconds for so many samples."""
_ID_BYTES = 16
"""Scratch bytes of the hash and the row of an id."""
_SAMPLE_BYTES = 120
"""Scratch bytes of `shard` for each sample, beside its text and JSON."""
_KEYS_AND_INDEX_BYTES = 60
"""Bytes of the keys and of the offset index of a sample, about."""


def show_tag_plan(
    corpus: Corpus,
    tagger: Tagger | Finder,
    out: str,
    *,
    on_bad_sample: OnBadSample,
    max_set_aside: float,
    max_sample_bytes: int,
    partition_bytes: int,
    limit: int | None,
    backend: Backend,
) -> None:
    """Print the plan of `tag_corpus` with the same arguments."""
    reading = corpus.reading(max_sample_bytes)
    refuse_token_ids(tagger, reading)
    arguments = {
        "partition_bytes": partition_bytes,
        "packing": DEFAULT_PACKING.to_json(),
        "reading": reading.to_json(),
        "limit": limit,
    }
    partitions = partitions_of(corpus, arguments)
    first = estimate(corpus, reading)
    # The last partition is cut only if the corpus has as many rows as the limit.
    is_cut = limit is not None and bool(partitions) and partitions[-1].stretches[-1].num_rows is not None
    num_rows = limit if limit is not None and is_cut else first.num_rows
    is_exact = is_cut or first.is_exact
    _show_input(corpus, partitions, num_rows, is_exact)
    tags, tag_s, is_loaded = _timed_tags(tagger, first.samples)
    part_bytes = _part_bytes(first.samples, [tag.skill for tag in tags]) * num_rows
    num_parts = counted(len(partitions), "part")
    print_line(
        f"write: {num_parts}, about {size_in_words(round(part_bytes))}; scratch about {size_in_words(round(part_bytes + _ID_BYTES * num_rows))}"
    )
    if isinstance(tagger, Finder):
        print_line(
            "       embeddings, models and checkpoints of the search for skills come in addition, and are not estimated"
        )
    read_s = first.seconds / max(1, first.num_read)
    _show_time(read_s + tag_s, num_rows, len(partitions), backend)
    if isinstance(tagger, Finder):
        print_line(f"       for reading the corpus once; the search for skills by {tagger.name} is not estimated")
    _show_out(out, TAGS_MANIFEST)
    _show_basis(first, corpus)
    if tags and not isinstance(tagger, Finder):
        counts = Counter(tag.skill for tag in tags).most_common(8)
        print_line(
            f"skills of {counted(len(tags), 'sample')} tagged for this plan: "
            + ", ".join(f"{name} {share(count, len(tags))}" for name, count in counts)
            + (", and others" if len({tag.skill for tag in tags}) > len(counts) else "")
            + ("" if is_loaded else " (the model was loaded for this plan, and the time of loading is not counted)")
        )
    _show_bad(first, on_bad_sample, Ceiling(max_set_aside))


def show_shard_plan(
    corpus: Corpus,
    tags: Tags,
    out: str,
    *,
    shard_bytes: int,
    holdout: float,
    layout: Layout,
    members: Mapping[str, str],
    scratch: str | None,
    limit: int | None,
    backend: Backend,
) -> None:
    """Print the plan of `write_shards` with the same arguments. Members are given as suffix -> source.

    Raises:
        CorpusError: The members of a sample are too large.
        ShardError: The limit does not fit the tags.
        TagsError: The tags belong to another corpus.
    """
    refuse_other_corpus(corpus, tags)
    limit = limit_of(tags, limit)
    reading = replace(CorpusReading.from_json(tags.manifest.made_from["arguments"]["reading"]), members=members)
    rows_before = itertools.accumulate((part.num_rows for part in tags.manifest.parts), initial=0)
    all_rows = sum(part.num_rows for part in tags.manifest.parts)
    num_rows = all_rows if limit is None else min(limit, all_rows)
    partitions = [
        part for part, before in zip(tags.partitions_of(corpus), rows_before, strict=False) if before < num_rows
    ]
    _show_input(corpus, partitions, num_rows, True)
    first = estimate(corpus, reading)
    sizes_of_members = _members(first.samples, reading, layout)
    num_samples, member_bytes, sizes = _expected_sizes(tags, sizes_of_members, num_rows / max(1, all_rows), holdout)
    shards = plan(sizes, shard_bytes)
    tar_bytes = int(sizes[:, :, BYTES].sum())
    num_chunks = max(len(partitions), -(-member_bytes // SORT_BYTES))
    num_levels = len(plan_merges(num_chunks, len(list(groups(shards))), member_bytes).fan_ins)
    print_line(
        f"write: about {counted(len(shards), 'shard')} of {counted(len(sizes), 'skill')}, {size_in_words(tar_bytes)}, with keys and indexes "
        f"{size_in_words(tar_bytes + _KEYS_AND_INDEX_BYTES * num_samples)} in {counted(3 * len(shards), 'file')}"
    )
    print_line(
        f"scratch: about {size_in_words(member_bytes + _SAMPLE_BYTES * num_samples)} in {places.public(scratch) if scratch else 'the output'}, written and read "
        f"once{f', and once more in each of {num_levels} merge levels' if num_levels else ''}"
    )
    _show_time(
        first.seconds / max(1, first.num_read) + sizes_of_members.seconds_of_row, num_rows, len(partitions), backend
    )
    print_line("       for reading, hashing and building the tars; the time of the disk or the store is not measured")
    _show_out(out, MANIFEST)
    _show_basis(first, corpus)
    print_line(
        "       the tags give the numbers of rows and samples and the bytes of the texts exactly; copies and small skills change the shards a little"
        if num_rows == all_rows
        else "       the first rows are assumed to have each skill as often as all rows that are tagged"
    )


@dataclass(frozen=True)
class _Members:
    """The members of some samples in a shard.

    Attributes:
        text_bytes: Mean size of a text.
        json_bytes: Mean size of a JSON member, and of the further members that the samples keep.
        tar_bytes: Mean size of the headers and of the padding.
        seconds_of_row: Time to hash a sample and to build its tar in memory.
    """

    text_bytes: float
    json_bytes: float
    tar_bytes: float
    seconds_of_row: float


def _members(samples: Sequence[Sample], reading: CorpusReading, layout: Layout) -> _Members:
    if not samples:
        return _Members(0.0, 0.0, 0.0, 0.0)
    started_s = time.perf_counter()
    texts = [sample.text.encode() for sample in samples]
    jsons = [member_json(sample.id, "skill", reading.kept_meta(sample)) for sample in samples]
    text_hashes(texts)
    hasher = xxhash.xxh3_128()
    further = [sample.members for sample in samples]
    chunks = (
        pairs.tar_chunks_with_members(0, [(texts, jsons, further)])
        if reading.members
        else LAYOUTS[layout].tar_chunks(0, [(pa.array(texts, pa.large_binary()), pa.array(jsons, pa.large_binary()))])
    )
    num_tar_bytes = 0
    for chunk in chunks:
        hasher.update(chunk)
        num_tar_bytes += len(chunk)
    seconds = time.perf_counter() - started_s
    suffixes = tuple(reading.members)
    payloads = [payload_of(json, members, suffixes) for json, members in zip(jsons, further, strict=True)]
    num_text_bytes, num_json_bytes = sum(map(len, texts)), sum(map(len, payloads))
    num_other_bytes = num_tar_bytes - num_text_bytes - num_json_bytes
    num = len(samples)
    return _Members(num_text_bytes / num, num_json_bytes / num, num_other_bytes / num, seconds / num)


def _expected_sizes(tags: Tags, members: _Members, share: float, holdout: float) -> tuple[int, int, Sizes]:
    """Return the number of samples, the bytes of all texts and JSON members, and the sizes of the skills for the plan of the shards.

    Args:
        tags: Tags of the corpus.
        members: Mean sizes of the members.
        share: Share of the tagged rows that are sharded.
        holdout: Share of the texts that are held out.
    """
    skills = tags.manifest.skills
    sizes = np.zeros((len(skills), len(SPLITS), 3), np.int64)
    member_bytes = 0.0
    for number, skill in enumerate(skills):
        num_samples = skill.num_samples * share
        text_bytes = members.text_bytes * num_samples if skill.num_text_bytes is None else skill.num_text_bytes * share
        member_bytes += text_bytes + members.json_bytes * num_samples
        for split, part in enumerate((1 - holdout, holdout)):
            sizes[number, split, SAMPLES] = round(num_samples * part)
            sizes[number, split, BYTES] = round(
                part * (text_bytes + num_samples * (members.json_bytes + members.tar_bytes))
            )
    return round(tags.manifest.num_tagged * share), round(member_bytes), sizes


def _show_input(corpus: Corpus, partitions: Sequence[Partition], num_rows: int, is_exact: bool) -> None:
    used = {stretch.name for partition in partitions for stretch in partition.stretches}
    num_bytes = sum(file.num_bytes for file in corpus.files if file.name in used)
    print_line("dry run: nothing is written")
    print_line(
        f"read: {counted(len(used), 'file')}, {size_in_words(num_bytes)}, in {counted(len(partitions), 'partition')} (tasks); "
        f"{'' if is_exact else 'about '}{counted(num_rows, 'row')}"
    )


def _timed_tags(tagger: Tagger | Finder, samples: Sequence[Sample]) -> tuple[list[Tag], float, bool]:
    """Return the tags of some samples, the seconds for a sample, and whether the first call took about as long as the second."""
    chosen = samples[:: max(1, len(samples) // TAGGED_ROWS)][:TAGGED_ROWS]
    if isinstance(tagger, Finder) or not chosen:
        return [], 0.0, True
    started_s = time.perf_counter()
    tagger.tag(chosen[:1])  # loads a model
    loaded_s = time.perf_counter()
    outcomes = tagger.tag(chosen)
    seconds = time.perf_counter() - loaded_s
    return (
        [outcome for outcome in outcomes if isinstance(outcome, Tag)],
        seconds / len(chosen),
        loaded_s - started_s < 1,
    )


def _part_bytes(samples: Sequence[Sample], skills: Sequence[str]) -> float:
    """Return the bytes of a row of the tags, measured by writing the ids of the samples to memory."""
    if not samples:
        return 0.0
    names = list(itertools.islice(itertools.cycle(skills or ["skill"]), len(samples)))
    columns = [[sample.id for sample in samples], names, [1.0] * len(samples), [None] * len(samples)]
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().size / len(samples)


def _show_time(seconds_of_row: float, num_rows: int, num_tasks: int, backend: Backend) -> None:
    cpu_s = seconds_of_row * num_rows
    if backend.ray_address is not None:
        print_line(f"time: {_about(cpu_s)} of one CPU, divided among the CPUs of the Ray cluster")
        return
    processes = backend.processes(max(1, num_tasks))
    of_all = f" with {processes} processes, {_about(cpu_s)} of one CPU" if processes > 1 else " with one process"
    print_line(f"time: {_about(cpu_s / processes)}{of_all}")


def _about(seconds: float) -> str:
    return f"about {duration(seconds)}" if seconds >= 1 else "less than 1 s"


def _show_out(out: str, manifest: str) -> None:
    if storage.exists(places.join(out, manifest)):
        state = (
            "is finished: the command compares its inputs and arguments with those of this output, and writes nothing"
        )
    elif storage.exists(places.join(out, ".work", "job.json")):
        state = "holds unfinished work, which the command continues if inputs and arguments are the same"
    elif storage.names_in(out):
        state = "holds other files: the command refuses this output"
    else:
        state = "is new"
    print_line(f"out: {places.public(out)} {state}")


def _show_basis(first: Estimate, corpus: Corpus) -> None:
    print_line(
        f"based on: {counted(first.num_read, 'row')} from the beginning of {counted(len(first.files), 'file')} of {len(corpus.files):,} (at most "
        f"{FILE_ROWS:,} rows and {FILE_BYTES >> 20} MiB of a file), read in {first.seconds:.1f} s by one process of this machine, as "
        "busy as the machine is now; the other rows are assumed to be alike"
    )


def _show_bad(first: Estimate, on_bad_sample: OnBadSample, ceiling: Ceiling) -> None:
    if not first.rejections:
        return
    num_bad = len(first.rejections)
    if on_bad_sample == "stop":
        result = ", and the command stops at the first bad row"
    elif ceiling.is_exceeded(num_bad, first.num_read):
        result = f", more than the {100 * ceiling.share:g} % that may be set aside: the command would stop"
    else:
        result = ""
    print_line(f"bad rows: {num_bad:,} of {first.num_read:,} ({described(counts_of(first.rejections))}){result}")
