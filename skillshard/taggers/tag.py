"""Tag a whole corpus: one task per partition, then one look at all ids together.

0. A tagger that finds the skills in the corpus (`Finder`) does so, in stages of its own.
1. `tag_partition`: rows -> one part of the tags, and the sorted hashes of its ids, both scratch files.
2. `find_duplicates`: a range of hashes -> ids that stand more than once, over all partitions.
3. Where samples are set aside, partitions with later copies of an id are tagged again with those rows set aside; the
   other parts get their final names as they are. So one name has one content, whatever is tried twice or late.

Memory of a task: row groups of the part; 16 bytes per id of the partition (stage 1) or of the range (stage 2).
"""

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import xxhash

from skillshard import artefact, storage
from skillshard.corpus import Corpus, Partition, PartitionReader, PassedOver, Rejection, Sample, line_numbers
from skillshard.corpus.compare import places_changed
from skillshard.errors import CorpusError, TagsError, name_some
from skillshard.execution import Backend, OnStage, Record, Task, keyed, run, shown
from skillshard.hash_ranges import hash_bounds, rows_between
from skillshard.printable import counted
from skillshard.taggers.groups import added
from skillshard.taggers.tagger import (
    SAMPLES_AT_ONCE,
    Finder,
    OnBadSample,
    RowTagger,
    Search,
    Tag,
    Tagger,
    Untagged,
)
from skillshard.tags import (
    MANIFEST,
    LeftOut,
    TagRow,
    Tags,
    TagsManifest,
    part_place,
    rejected_place,
    split_rests,
    write_part,
)

MAX_SKILLS = 10_000
IDS_PER_RANGE = 8_000_000
HASH_DTYPE = np.dtype([("hash", "<u8"), ("row", "<u8")])


def tag_corpus(
    corpus: Corpus,
    tagger: Tagger | Finder,
    out: str | os.PathLike[str],
    *,
    on_bad_sample: OnBadSample = "stop",
    id_field: str | None = "id",
    text_field: str = "text",
    max_sample_bytes: int = 16 << 20,
    partition_bytes: int = 64 << 20,
    backend: Backend = Backend(),
    on_stage: OnStage | None = None,
    progress: bool = True,
) -> Tags:
    """Tag every sample of a corpus; resumes where a killed run stopped, and does nothing if the tags are finished.

    Args:
        corpus: what to tag.
        tagger: gives the skills.
        out: local directory.
        on_bad_sample: "stop" at the first bad sample with an error, or "set-aside": keep it in rejected/ with its reason.
        id_field: Field of the id. None: the ids are made from the file name and the position.
        text_field: Field of the text.
        max_sample_bytes: largest sample, bytes of text and metadata.
        partition_bytes: size of a task; a .gz or .zst file is always one task.
        backend: local pool or Ray; the bytes are the same.
        on_stage: called with a stage's name and number of tasks; what it returns is called for each finished task. None: bars where
            there is a terminal or a notebook.
        progress: whether there are bars.

    Raises:
        CorpusError: a bad sample, with file, line and remedy.
        TagsError: no sample could be tagged, or there are more than `MAX_SKILLS` skills.
        StorageError: `out` holds something else.
    """
    reading = {"id_field": id_field, "text_field": text_field, "max_sample_bytes": max_sample_bytes}
    made_from = {
        "command": "tag",
        "arguments": {
            "tagger": tagger.name,
            "tagger_arguments": tagger.arguments,
            "on_bad_sample": on_bad_sample,
            "reading": reading,
            "partition_bytes": partition_bytes,
        },
        "inputs": corpus.inputs,
    }
    with shown(on_stage, progress) as stages:
        artefact.make(
            out,
            MANIFEST,
            made_from,
            lambda work: _tag(corpus, tagger, work, made_from, backend, stages),
            mtimes_ns=corpus.mtimes_ns,
            changed=lambda folder, places: places_changed(
                corpus.partitions(partition_bytes=partition_bytes), _rows_digests(folder), places, reading
            ),
        )
    return Tags.open(out)


def _rows_digests(folder: Path) -> dict[int, str]:
    """Index of a partition -> digest of its rows, as far as they were read for finished or unfinished tags."""
    if (folder / MANIFEST).exists():
        return {part: found.rows_digest for part, found in enumerate(Tags.open(folder).manifest.parts)}
    records = (folder / ".work" / "records").glob("*/*.json")
    return {
        int(place.stem): record["rows_digest"]
        for place in records
        if place.parent.name in ("count", "tag") and "rows_digest" in (record := storage.read_json(place))
    }


def _tag(
    corpus: Corpus,
    tagger: Tagger | Finder,
    work: artefact.Work,
    made_from: dict[str, Any],
    backend: Backend,
    on_stage: OnStage,
) -> None:
    arguments = made_from["arguments"]
    partitions = corpus.partitions(partition_bytes=arguments["partition_bytes"])
    ready: Tagger | RowTagger
    if isinstance(tagger, Finder):
        reading, on_bad_sample = arguments["reading"], arguments["on_bad_sample"]
        ready = tagger.find(Search(partitions, reading, on_bad_sample, work, backend, on_stage))
    else:
        ready = tagger
    common = {
        "tagger": ready,
        "out": str(work.scratch()),
        "on_bad_sample": arguments["on_bad_sample"],
        "reading": arguments["reading"],
    }
    tasks = keyed(
        {**common, "partition": partition, "hashes": str(work.scratch(f"{at:06d}.npy"))}
        for at, partition in enumerate(partitions)
    )
    records = run(
        tag_partition, tasks, backend=backend, records=work.records("tag"), on_done=on_stage("tagging", len(tasks))
    )
    if not all("left_out" in record for record in records):
        raise TagsError(
            f"{work.out} holds unfinished work of an earlier version of skillshard, which cannot be taken up. Remove {work.out} and "
            "run the command again."
        )
    duplicates = _duplicates(tasks, records, work, backend, on_stage)
    if duplicates and arguments["on_bad_sample"] == "stop":
        raise CorpusError(_duplicate_sentence(duplicates, partitions, arguments["reading"]))
    again = {
        at: [later for later in duplicates if later["part"] == at]
        for at in sorted({later["part"] for later in duplicates})
    }
    if again:
        repeated = [
            Task(tasks[at].key, {**tasks[at].arguments, "out": str(work.out), "duplicates": _by_row(rows)})
            for at, rows in again.items()
        ]
        again_records = run(
            tag_partition,
            repeated,
            backend=backend,
            records=work.records("again"),
            on_done=on_stage("tagging again", len(repeated)),
        )
        for at, record in zip(again, again_records, strict=True):
            records[at] = record
    _publish(work, [partition.index for partition in partitions if partition.index not in again])
    work.finish(_manifest(made_from, partitions, records, corpus.left_out).model_dump(by_alias=True))


def _by_row(duplicates: Sequence[Record]) -> dict[str, str]:
    return {str(row["row"]): row["id"] for row in duplicates}


def _publish(work: artefact.Work, parts: Sequence[int]) -> None:
    """Give finished parts of stage 1 their final names, and what a tagger keeps beside them."""
    for place in (part_place, rejected_place):
        for part in parts:
            _link(Path(place(work.scratch(), part)), Path(place(work.out, part)))
    kept = work.scratch("kept")
    for path in sorted(kept.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            _link(path, work.out / path.relative_to(kept))


def _link(scratch: Path, final: Path) -> None:
    if scratch.exists() and not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(scratch, final)
        except FileExistsError:  # another command, which writes the same bytes, was first
            return
        except OSError as error:
            if error.errno not in storage.NO_HARD_LINKS:
                raise
            with storage.writing(final) as part:
                shutil.copyfile(scratch, part)


# --- stage 1 and 3 ---------------------------------------------------------------------------------------------------


def tag_partition(
    partition: Partition,
    tagger: Tagger | RowTagger,
    out: str,
    on_bad_sample: OnBadSample,
    reading: Mapping[str, Any],
    hashes: str,
    duplicates: Mapping[str, str] = {},
) -> Record:
    """Tag one partition and write its part.

    Args:
        hashes: scratch file for the hashes of the ids.
        duplicates: row -> id of rows that repeat an earlier id and are set aside.
    """
    counts: dict[str, list[int]] = {}
    ids: list[tuple[int, int]] = []
    refused: list[tuple[int, Rejection]] = []
    reader = PartitionReader(partition, **reading)

    def rows() -> Iterator[TagRow]:
        for number, (row, outcome) in enumerate(_tagged(iter(reader), tagger, partition.index)):
            rejection = _refusal(partition, row, outcome, reader.passed_over, is_duplicate=str(number) in duplicates)
            if rejection is not None:
                if on_bad_sample == "stop":
                    raise CorpusError(_located([(number, rejection)], partition, reading)[0].sentence())
                refused.append((number, rejection))
                yield TagRow(rejection.id, None, None, rejection.reason)
                continue
            assert isinstance(row, Sample) and isinstance(outcome, Tag)
            found = counts.setdefault(outcome.skill, [0, 0])
            found[0] += 1
            found[1] += len(row.text.encode())
            ids.append((xxhash.xxh3_64_intdigest(row.id.encode()), number))
            yield TagRow(row.id, outcome.skill, outcome.score, None)

    place = part_place(out, partition.index)
    write_part(place, rows())
    rejected = _located(refused, partition, reading)
    if rejected:
        lines = (orjson.dumps(rejection.to_json(), option=orjson.OPT_APPEND_NEWLINE) for rejection in rejected)
        storage.write_bytes(rejected_place(out, partition.index), b"".join(lines))
    sorted_ids = np.sort(np.array(ids, HASH_DTYPE), order=("hash", "row"))
    storage.write_array(hashes, sorted_ids)
    return {
        "skills": counts,
        "set_aside": dict(Counter(rejection.reason for rejection in rejected)),
        "num_rows": len(ids) + len(rejected),
        "num_set_aside": len(rejected),
        "rows_digest": reader.digest(),
        "part_digest": storage.file_digest(place),
        "left_out": {"members": dict(reader.passed_over.members), "columns": dict(reader.passed_over.columns)},
    }


def _tagged(
    reader: Iterator[Sample | Rejection], tagger: Tagger | RowTagger, partition: int
) -> Iterator[tuple[Sample, Tag | Untagged] | tuple[Rejection, None]]:
    """Every row with its outcome; samples are handed to the tagger some at a time."""
    numbers = itertools.count()
    while rows := list(islice(reader, SAMPLES_AT_ONCE)):
        samples = [(next(numbers), row) for row in rows]
        outcomes = _outcomes([(number, row) for number, row in samples if isinstance(row, Sample)], tagger, partition)
        for row in rows:
            if isinstance(row, Sample):
                yield row, next(outcomes)
            else:
                yield row, None


def _outcomes(
    samples: Sequence[tuple[int, Sample]], tagger: Tagger | RowTagger, partition: int
) -> Iterator[Tag | Untagged]:
    if isinstance(tagger, RowTagger):
        return iter(tagger.tag_rows(partition, [number for number, _ in samples]))
    return iter(tagger.tag([sample for _, sample in samples]))


def _refusal(
    partition: Partition,
    row: Sample | Rejection,
    outcome: Tag | Untagged | None,
    passed_over: PassedOver,
    *,
    is_duplicate: bool,
) -> Rejection | None:
    """Why a row is set aside, its line not yet known; None if it has a skill."""
    if isinstance(row, Rejection):
        return row
    if is_duplicate:
        outcome = Untagged("duplicate-id", f"id {row.id!r} stands earlier in the corpus")
    if not isinstance(outcome, Untagged):
        return None
    raw = orjson.dumps({"id": row.id, "text": row.text, "meta": row.meta}).decode()
    detail = outcome.detail
    if outcome.reason == "missing-field" and passed_over.columns:
        detail += f"; columns without a JSON form, which are left out of meta: {name_some(sorted(passed_over.columns))}"
    return Rejection(partition.name, None, outcome.reason, detail, row.id, raw)


def _located(
    refused: Sequence[tuple[int, Rejection]], partition: Partition, reading: Mapping[str, Any]
) -> list[Rejection]:
    """The rejections, those of the tagger with their line; the file is read again only if there are any."""
    unplaced = {number for number, rejection in refused if rejection.line is None and rejection.id is not None}
    limit = reading["max_sample_bytes"]
    lines = line_numbers(partition, unplaced, max_sample_bytes=limit) if unplaced else {}
    return [replace(rejection, line=lines[number]) if number in lines else rejection for number, rejection in refused]


# --- stage 2 ---------------------------------------------------------------------------------------------------------


def _duplicates(
    tasks: Sequence[Task], records: Sequence[Record], work: artefact.Work, backend: Backend, on_stage: OnStage
) -> list[Record]:
    """Rows that repeat an earlier id, in the order of the corpus."""
    num_ids = sum(record["num_rows"] - record["num_set_aside"] for record in records)
    num_ranges = -(-num_ids // IDS_PER_RANGE) or 1
    hashes = [task.arguments["hashes"] for task in tasks]
    ranges = keyed(
        {"hashes": hashes, "parts": str(work.scratch()), "low": low, "high": high}
        for low, high in pairwise(hash_bounds(num_ranges))
    )
    found = run(
        find_duplicates,
        ranges,
        backend=backend,
        records=work.records("duplicates"),
        on_done=on_stage("checking ids", len(ranges)),
    )
    return sorted((row for record in found for row in record["rows"]), key=lambda row: (row["part"], row["row"]))


def find_duplicates(hashes: Sequence[str], parts: str, low: int, high: int) -> Record:
    """Rows whose id stands in an earlier row, among the ids whose hash is in [low, high)."""
    tables = (np.load(place, mmap_mode="r") for place in hashes)
    slices = [np.array(table[rows_between(table["hash"], low, high)]) for table in tables]
    part = np.repeat(np.arange(len(slices)), [len(rows) for rows in slices])
    rows = np.concatenate(slices)
    order = np.argsort(rows["hash"], kind="stable")
    rows, part = rows[order], part[order]
    same = np.flatnonzero(rows["hash"][1:] == rows["hash"][:-1])
    suspects = sorted({at for first in same.tolist() for at in (first, first + 1)})
    wanted = [(int(part[at]), int(rows["row"][at])) for at in suspects]
    first_of: dict[str, tuple[int, int]] = {}
    later = []
    for (part_number, row), identity in sorted(_ids_at(parts, wanted).items()):
        first = first_of.setdefault(identity, (part_number, row))
        if first != (part_number, row):
            later.append(
                {"part": part_number, "row": row, "id": identity, "first_part": first[0], "first_row": first[1]}
            )
    return {"rows": later}


def _ids_at(parts: str, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
    by_part: dict[int, list[int]] = {}
    for part, row in wanted:
        by_part.setdefault(part, []).append(row)
    found: dict[tuple[int, int], str] = {}
    for part, rows in by_part.items():
        ids = pq.read_table(part_place(parts, part), columns=["id"])["id"].take(rows).to_pylist()
        found.update(zip(((part, row) for row in rows), ids, strict=True))
    return found


def _duplicate_sentence(
    duplicates: Sequence[Record], partitions: Sequence[Partition], reading: Mapping[str, Any]
) -> str:
    """The error for the first repeated id: both places, how many there are, and what to do."""
    found = duplicates[0]
    limit = reading["max_sample_bytes"]
    first, later = (
        line_numbers(partitions[part], [row], max_sample_bytes=limit)[row]
        for part, row in ((found["first_part"], found["first_row"]), (found["part"], found["row"]))
    )
    identity = found["id"] if len(found["id"]) <= 100 else f"{found['id'][:97]}..."
    first_partition = partitions[found["first_part"]]
    unit = "line" if first_partition.format.startswith("jsonl") else "row"
    earlier = f"id {identity!r} stands already in {first_partition.name}, {unit} {first}"
    more = f"; {len(duplicates):,} rows repeat an id" if len(duplicates) > 1 else ""
    return Rejection(partitions[found["part"]].name, later, "duplicate-id", earlier + more).sentence()


# --- the end ---------------------------------------------------------------------------------------------------------


def _manifest(
    made_from: dict[str, Any],
    partitions: Sequence[Partition],
    records: Sequence[Record],
    files_left_out: Mapping[str, int],
) -> TagsManifest:
    skills: dict[str, list[int]] = {}
    set_aside: dict[str, int] = {}
    for record in records:
        for skill, (num_samples, num_bytes) in record["skills"].items():
            found = skills.setdefault(skill, [0, 0])
            found[:] = [found[0] + num_samples, found[1] + num_bytes]
        for reason, count in record["set_aside"].items():
            set_aside[reason] = set_aside.get(reason, 0) + count
    aside, unread = split_rests(set_aside)
    if not skills:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(set_aside.items()))
        rests = f" and the unread rest of {counted(sum(unread.values()), 'file')}" if unread else ""
        why = (
            f"{counted(sum(aside.values()), 'row')}{rests} {'was' if sum(aside.values()) == 1 and not rests else 'were'} set aside ({reasons})"
            if set_aside
            else "the corpus has no rows"
        )
        raise TagsError(
            f"no sample could be tagged: {why}. Check the corpus, `id_field`, `text_field` and the fields of the tagger."
        )
    if len(skills) > MAX_SKILLS:
        raise TagsError(
            f"{len(skills):,} different skills (such as {', '.join(sorted(skills)[:3])}), at most {MAX_SKILLS:,} make sense: tag by "
            "a field with fewer values."
        )
    fields = ("num_rows", "num_set_aside", "rows_digest", "part_digest")
    return TagsManifest(
        made_from=made_from,
        parts=[
            {"file": partition.name, "start": partition.start, "stop": partition.stop}
            | {name: record[name] for name in fields}
            for partition, record in zip(partitions, records, strict=True)
        ],
        skills=[
            {"name": name, "num_samples": found[0], "num_text_bytes": found[1]}
            for name, found in sorted(skills.items())
        ],
        num_rows=sum(record["num_rows"] for record in records) - sum(unread.values()),
        num_tagged=sum(found[0] for found in skills.values()),
        set_aside=aside,
        unread=unread,
        left_out=LeftOut(
            files=dict(files_left_out),
            **{
                kind: dict(sorted(added(record["left_out"][kind] for record in records).items()))
                for kind in ("members", "columns")
            },
        ),
    )
