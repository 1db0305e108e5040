"""Tag a whole corpus: tag each partition in a task, then look for repeated ids in all partitions.

0. A tagger that finds the skills in the corpus (`Finder`) first runs stages of its own.
1. `tag_partition` reads the rows and writes a part of the tags and the sorted hashes of the ids. Both are scratch files.
2. `find_duplicates` (repeated_ids.py) takes a range of hashes and finds the ids that occur more than once in the corpus.
3. Where bad samples are set aside, partitions with later copies of an id are tagged again, and the copies are set aside. All
   other parts only get their final names. A final name never has two contents, so a late or repeated task does no harm.

A task needs memory for the row groups of a part, and for 24 bytes per id of the partition (stage 1) or of the range (stage 2).
"""

import itertools
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import orjson
import pyarrow as pa

from skillshard import artefact, places, storage
from skillshard.corpus import (
    DEFAULT_PACKING,
    Corpus,
    CorpusReading,
    MetaField,
    Packing,
    Partition,
    PartitionReader,
    PassedOver,
    Rejection,
    Sample,
    SampleColumns,
    row_places,
    unit_of,
)
from skillshard.corpus.bad_rows import DEFAULT_SHARE
from skillshard.corpus.compare import places_changed
from skillshard.corpus.mapping import in_keys
from skillshard.errors import CorpusError, TagsError, name_some
from skillshard.execution import Backend, OnStage, Record, keyed, run, shown, silent
from skillshard.hash_ranges import id_hashes
from skillshard.opened import refuse_unopened
from skillshard.printable import counted
from skillshard.stages import Stages
from skillshard.taggers.ceiling import (
    Ceiling,
    CeilingWatch,
    check_partitions,
    counts_of,
    early_check,
)
from skillshard.taggers.groups import added
from skillshard.taggers.repeated_ids import hashes_of_part, repeated_rows
from skillshard.taggers.tagger import (
    ColumnTagger,
    Finder,
    OnBadSample,
    RowTagger,
    RowwiseTagger,
    Search,
    Tag,
    Tagger,
    Untagged,
    groups_of_rows,
    refuse_token_ids,
)
from skillshard.tags import (
    MANIFEST,
    LeftOut,
    TagColumns,
    TagRow,
    Tags,
    TagsManifest,
    part_place,
    rejected_place,
    set_aside_by,
    split_rests,
    tags_manifest,
    write_part,
)

STAGES = ("tag", "merge-ids", "duplicates", "again")
"""Stages of tasks of every tagger, in their order. A `Finder` has its own stages before."""
_Outcome = Tag | Untagged | None
# More skills mean that the field is an id or a title. Every report, round and graph lists all skills.
MAX_SKILLS = 10_000


def tag_corpus(
    corpus: Corpus,
    tagger: Tagger | Finder,
    out: str | os.PathLike[str],
    *,
    on_bad_sample: OnBadSample = "stop",
    max_set_aside: float = DEFAULT_SHARE,
    max_sample_bytes: int = 16 << 20,
    partition_bytes: int = 64 << 20,
    limit: int | None = None,
    backend: Backend = Backend(),
    on_stage: OnStage | None = None,
    progress: bool = True,
) -> Tags:
    """Tag every sample of a corpus.

    A call resumes where a killed call stopped, and does nothing if the tags are finished.

    Args:
        corpus: Corpus to tag, with the fields of the id and of the text.
        tagger: Tagger that gives each sample a skill.
        out: Directory for the tags, local or in a store.
        on_bad_sample: Action at a bad sample. "stop" raises an error at the first bad sample. "set-aside" keeps bad samples in rejected/
            with the reasons.
        max_set_aside: Largest share of the rows that may be set aside, from 0 to 1. The work stops before its end where the first rows of the
            corpus, at least `EARLY_ROWS`, exceed the share. A call with a larger share goes on with the finished tasks.
        max_sample_bytes: Size limit of a sample, in bytes of text and metadata.
        partition_bytes: Size of a task in bytes. A .gz or .zst file is always one task.
        limit: Number of rows to read, from the beginning of the corpus. The limit is a part of the record, so tags with a limit are never taken
            for tags of the whole corpus. None: the whole corpus.
        backend: Local pool or Ray. Both give the same bytes.
        on_stage: Function that is called with the name and the number of tasks of each stage. The function that it returns is called for
            each finished task. None shows bars in a terminal or a notebook.
        progress: Whether to show bars.

    Raises:
        CorpusError: `corpus` is no opened corpus. Or a sample is bad: the message names the file, the line and the remedy. Or more rows are bad than `max_set_aside` allows.
        TagsError: No sample could be tagged, the tags have more than `MAX_SKILLS` skills, or the tagger reads texts and the samples are token ids.
        StorageError: `out` holds another artefact or other files.
    """
    refuse_unopened(corpus, Corpus, "corpus", "corpus", CorpusError)
    ceiling = Ceiling(max_set_aside)
    reading = corpus.reading(max_sample_bytes)
    refuse_token_ids(tagger, reading)
    made_from: dict[str, Any] = {
        "command": "tag",
        "arguments": {
            "tagger": tagger.name,
            "tagger_arguments": tagger.arguments,
            "on_bad_sample": on_bad_sample,
            "reading": reading.to_json(),
            "partition_bytes": partition_bytes,
            "packing": DEFAULT_PACKING.to_json(),
            # Recorded only where the layout differs from the default, which leaves the record of most corpora as it is.
            **corpus.layout_record,
            **({} if limit is None else {"limit": limit}),
        },
        "inputs": corpus.inputs,
    }
    with shown(on_stage, progress) as stages:
        artefact.make(
            out,
            MANIFEST,
            made_from,
            lambda work: _tag(corpus, reading, tagger, work, made_from, ceiling, backend, stages),
            mtimes_ns=corpus.mtimes_ns,
            changed=lambda folder, suspects: _changed(corpus, made_from["arguments"], folder, suspects, reading),
            keep_unfinished_files=backend.array_part is not None,
        )
    tags = Tags.open(out)
    # Tags that an earlier call finished with a larger share are refused like unfinished tags, so equal calls end alike.
    ceiling.check(tags.file_rows(), tags.set_aside_counts(), is_whole=True)
    return tags


def stages_of(tagger: Tagger | Finder) -> tuple[str, ...]:
    """Return the stages of `tag_corpus` with a tagger, in their order.

    Raises:
        TagsError: The tagger finds the skills in steps that depend on each other, so a job array cannot divide the work.
    """
    if not isinstance(tagger, Finder):
        return STAGES
    if not tagger.stages:
        raise TagsError(
            f"tagging by {tagger.name} finds the skills in steps that depend on each other. Run the command whole, in one process: leave out `stage`."
        )
    return (*tagger.stages, *STAGES)


def partitions_of(corpus: Corpus, arguments: Mapping[str, Any]) -> list[Partition]:
    """Return the partitions of a command from the arguments."""
    packing = Packing(**arguments["packing"])
    partition_bytes, limit = arguments["partition_bytes"], arguments.get("limit")
    if limit is None:
        return corpus.partitions(partition_bytes=partition_bytes, packing=packing)
    max_sample_bytes = arguments["reading"]["max_sample_bytes"]
    return corpus.first_partitions(
        limit, partition_bytes=partition_bytes, packing=packing, max_sample_bytes=max_sample_bytes
    )


def _changed(
    corpus: Corpus, arguments: Mapping[str, Any], folder: str, suspects: Sequence[str], reading: CorpusReading
) -> list[str]:
    """Read the suspect files again and return the files whose rows differ from the rows at the tagging."""
    is_finished = storage.exists(places.join(folder, MANIFEST))
    partitions = Tags.open(folder).partitions_of(corpus) if is_finished else partitions_of(corpus, arguments)
    return places_changed(partitions, _rows_digests(folder), suspects, reading)


def _rows_digests(folder: str) -> dict[int, list[str]]:
    """Map the index of a partition to the digests of the rows of its stretches, for each partition that finished or unfinished tags have read."""
    if storage.exists(places.join(folder, MANIFEST)):
        return {index: part.rows_digests for index, part in enumerate(Tags.open(folder).manifest.parts)}
    # These two stages have one record for each partition, under the index of the partition. Other stages number other tasks.
    return {
        int(record.place.rpartition("/")[2].partition(".json")[0]): content["rows_digests"]
        for stage in ("count", "tag")
        for record in storage.list_files(places.join(folder, ".work", "records", stage), "*.json")
        if "rows_digests" in (content := storage.read_json(record.place))
    }


def _tag(
    corpus: Corpus,
    reading: CorpusReading,
    tagger: Tagger | Finder,
    work: artefact.Work,
    made_from: dict[str, Any],
    ceiling: Ceiling,
    backend: Backend,
    on_stage: OnStage,
) -> None:
    arguments = made_from["arguments"]
    partitions = partitions_of(corpus, arguments)
    ready: Tagger | RowTagger
    if isinstance(tagger, Finder):
        on_bad_sample = arguments["on_bad_sample"]
        ready = tagger.find(Search(partitions, reading, on_bad_sample, work, backend, on_stage, ceiling))
    else:
        ready = tagger
    common = {
        "tagger": ready,
        "out": work.scratch(),
        "on_bad_sample": arguments["on_bad_sample"],
        "reading": reading,
        "ceiling": ceiling,
    }
    tasks = keyed(
        (
            {**common, "partition": partition, "hashes": work.scratch(f"{index:06d}.npy")}
            for index, partition in enumerate(partitions)
        ),
        about=(partition.name for partition in partitions),
    )
    records = run(
        tag_partition,
        tasks,
        backend=backend,
        records=work.records("tag"),
        on_done=CeilingWatch(on_stage("tagging", len(tasks)), ceiling, partitions),
    )
    # Records of earlier versions lack the rows of each file, or their numbers by field, so the manifest would be wrong.
    if not all("set_aside_by" in record for record in records):
        raise TagsError(
            f"{places.public(work.out)} holds unfinished work of an earlier version of skillshard, and this version cannot continue the "
            f"work. Remove {places.public(work.out)} and run the command again."
        )
    num_ids = sum(sum(record["file_rows"]) - record["num_set_aside"] for record in records)
    files = [task.arguments["hashes"] for task in tasks]
    duplicates = repeated_rows(files, work.scratch(), num_ids, Stages(work, backend, on_stage))
    if duplicates and arguments["on_bad_sample"] == "stop":
        raise CorpusError(_duplicate_sentence(duplicates, partitions, records, reading))
    again = {
        part: [duplicate for duplicate in duplicates if duplicate["part"] == part]
        for part in sorted({duplicate["part"] for duplicate in duplicates})
    }
    # The repeated tasks write to the final place. A second content under the scratch name could meet a late task of stage 1.
    repeated = [
        replace(tasks[part], arguments={**tasks[part].arguments, "out": work.out, "duplicates": _by_row(rows)})
        for part, rows in again.items()
    ]
    again_records = run(
        tag_partition,
        repeated,
        backend=backend,
        records=work.records("again"),
        on_done=(on_stage if repeated else silent)("tagging again", len(repeated)),
    )
    for part, record in zip(again, again_records, strict=True):
        records[part] = record
    if any(record["skills"] for record in records):  # without any skill, another error says more
        check_partitions(ceiling, partitions, records)
    _publish(work, {part: records[part] for part in range(len(partitions)) if part not in again})
    work.finish(_manifest(made_from, partitions, records, corpus.left_out).model_dump(by_alias=True))


def _by_row(duplicates: Sequence[Record]) -> dict[str, str]:
    return {str(row["row"]): row["id"] for row in duplicates}


def _publish(work: artefact.Work, records: Mapping[int, Record]) -> None:
    """Give the finished parts of stage 1, and the files that the tagger keeps, their final names.

    Args:
        work: Work with the scratch files.
        records: Part -> record of its task.
    """
    # A link or a copy leaves the scratch file in place, so that the records of stage 1 stay true after a kill at this point.
    names = [(part_place(work.scratch(), part), part_place(work.out, part)) for part in records]
    names += [
        (rejected_place(work.scratch(), part), rejected_place(work.out, part))
        for part, record in records.items()
        if record["num_set_aside"]
    ]
    kept_folder = work.scratch("kept")
    for file in storage.list_files(kept_folder):  # a hidden name belongs to a write that was interrupted
        names.append((file.place, work.place(places.relative(file.place, kept_folder))))
    storage.link_or_copy_all(names)


# --- stage 1 and 3 ---------------------------------------------------------------------------------------------------


def tag_partition(
    partition: Partition,
    tagger: Tagger | RowTagger,
    out: str,
    on_bad_sample: OnBadSample,
    reading: CorpusReading,
    ceiling: Ceiling,
    hashes: str,
    duplicates: Mapping[str, str] = {},
) -> Record:
    """Tag one partition and write the part.

    Args:
        partition: Partition to read.
        tagger: Tagger that gives each sample a skill.
        out: Directory of the part.
        on_bad_sample: Action at a bad sample.
        reading: Field mappings and limits of the corpus.
        ceiling: Ceiling of the rows that may be set aside.
        hashes: Scratch file for the hashes of the ids.
        duplicates: Rows that repeat an earlier id and are set aside, with the ids. The row numbers are strings, as in JSON.
    """
    counts: dict[str, list[int]] = {}
    # 16 bytes for each id. A list of pairs takes ten times as much.
    hashes_of_ids, id_rows = array("Q"), array("Q")
    refused: list[tuple[int, Rejection]] = []
    reader = PartitionReader(partition, reading)
    later_rows = set(map(int, duplicates))
    check = early_check(ceiling, reader)

    def add(skill: str, num_samples: int, num_bytes: int) -> None:
        sizes = counts.setdefault(skill, [0, 0])
        sizes[:] = sizes[0] + num_samples, sizes[1] + num_bytes

    def count(ids: Sequence[str], skills: Sequence[str], num_text_bytes: Iterable[int], numbers: Iterable[int]) -> None:
        num_bytes_of: defaultdict[str, int] = defaultdict(int)
        for skill, num_bytes in zip(skills, num_text_bytes, strict=True):
            num_bytes_of[skill] += num_bytes
        for skill, num_samples in Counter(skills).items():
            add(skill, num_samples, num_bytes_of[skill])
        hashes_of_ids.extend(id_hashes(ids))
        id_rows.extend(numbers)

    def count_arrays(ids: pa.StringArray, skills: pa.StringArray, num_text_bytes: np.ndarray, first_row: int) -> None:
        encoded = skills.dictionary_encode()
        codes = encoded.indices.to_numpy()
        # The sums of bytes are exact in float64 below 2**53.
        sums = (np.bincount(codes), np.bincount(codes, num_text_bytes).astype(np.int64))
        for skill, *sizes in zip(encoded.dictionary.to_pylist(), *(column.tolist() for column in sums), strict=True):
            add(skill, *sizes)
        hashes_of_ids.extend(id_hashes(ids))
        id_rows.frombytes(np.arange(first_row, first_row + len(ids), dtype=np.uint64).tobytes())

    def columns_of(
        number: int, rows: Sequence[Sample | Rejection] | SampleColumns, outcomes: Sequence[_Outcome]
    ) -> TagColumns:
        """Return the rows of the tags for neighbouring rows, of which the first has the number."""
        if isinstance(rows, SampleColumns):
            if isinstance(rows.values, list):
                count(rows.ids, rows.values, rows.num_text_bytes, range(number, number + rows.num_rows))
                return TagColumns(rows.ids, rows.values, [1.0] * rows.num_rows, [None] * rows.num_rows)
            count_arrays(rows.ids, rows.values, np.asarray(rows.num_text_bytes), number)
            scores = pa.array(np.ones(rows.num_rows, np.float32))
            return TagColumns(rows.ids, rows.values, scores, pa.nulls(rows.num_rows, pa.string()))
        if not later_rows and set(map(type, outcomes)) == {Tag}:  # the usual case, without a step for each row
            samples, tags = cast(Sequence[Sample], rows), cast(Sequence[Tag], outcomes)
            skills = [tag.skill for tag in tags]
            ids = [sample.id for sample in samples]
            count(ids, skills, map(_num_text_bytes, samples), range(number, number + len(samples)))
            return TagColumns(ids, skills, [tag.score for tag in tags], [None] * len(samples))
        tag_rows = []
        for row_number, (row, outcome) in enumerate(zip(rows, outcomes, strict=True), start=number):
            rejection = _refusal(row, outcome, reader.passed_over, is_duplicate=row_number in later_rows)
            if rejection is None:
                assert isinstance(row, Sample) and isinstance(outcome, Tag)
                count([row.id], [outcome.skill], [_num_text_bytes(row)], [row_number])
                tag_rows.append(TagRow(row.id, outcome.skill, outcome.score, None))
                continue
            if on_bad_sample == "stop":
                (located,) = _located([(row_number, rejection)], reader, reading)
                raise CorpusError(reading.sentence_of(located))
            refused.append((row_number, rejection))
            check(row_number + 1, len(refused), (rejection for _, rejection in refused))
            tag_rows.append(TagRow(rejection.id, None, None, rejection.reason))
        return TagColumns.of(tag_rows)

    place = part_place(out, partition.index)
    # Rows that are set aside as repeated need their samples.
    wanted = tagger.wanted if isinstance(tagger, ColumnTagger) and not later_rows else None
    write_part(place, (columns_of(*block) for block in _tagged(reader, tagger, partition.index, wanted)))
    rejected = _located(refused, reader, reading)
    if rejected:
        lines = (orjson.dumps(rejection.to_json(), option=orjson.OPT_APPEND_NEWLINE) for rejection in rejected)
        storage.write_bytes(rejected_place(out, partition.index), b"".join(lines))
    storage.write_array(hashes, hashes_of_part(hashes_of_ids, id_rows, partition.index))
    return {
        "skills": counts,
        "set_aside": dict(Counter(rejection.reason for rejection in rejected)),
        "file_rows": reader.num_rows(),
        "num_set_aside": len(rejected),
        "rows_digests": reader.digests(),
        "set_aside_by": counts_of(rejected),
        "part_digest": storage.file_digest(place),
        "left_out": {"members": dict(reader.passed_over.members), "columns": dict(reader.passed_over.columns)},
    }


def _num_text_bytes(sample: Sample) -> int:
    return len(sample.text) if sample.text.isascii() else len(sample.text.encode())


def _tagged(
    reader: PartitionReader, tagger: Tagger | RowTagger, partition: int, wanted: MetaField | None
) -> Iterator[tuple[int, Sequence[Sample | Rejection] | SampleColumns, list[_Outcome]]]:
    """Yield neighbouring rows: the number of the first row, the rows, and the outcome of each row.

    A rejection has the outcome None. Columns have no outcomes, because the values of the wanted field are the skills.
    """
    number = 0
    for rows in reader.blocks_or_columns(wanted) if isinstance(tagger, RowwiseTagger) else groups_of_rows(reader):
        if isinstance(rows, SampleColumns):
            yield number, rows, []
            number += rows.num_rows
            continue
        samples = [(place, row) for place, row in enumerate(rows, start=number) if isinstance(row, Sample)]
        outcomes = _outcomes(samples, tagger, partition)
        if len(samples) == len(rows):
            yield number, rows, list(outcomes)
        else:
            yield number, rows, [next(outcomes) if isinstance(row, Sample) else None for row in rows]
        number += len(rows)


def _outcomes(
    samples: Sequence[tuple[int, Sample]], tagger: Tagger | RowTagger, partition: int
) -> Iterator[Tag | Untagged]:
    if isinstance(tagger, RowTagger):
        return iter(tagger.tag_rows(partition, [number for number, _ in samples]))
    return iter(tagger.tag([sample for _, sample in samples]))


def _refusal(
    row: Sample | Rejection,
    outcome: _Outcome,
    passed_over: PassedOver,
    *,
    is_duplicate: bool,
) -> Rejection | None:
    """Return the reason why a row is set aside, still without the line. Return None if the row has a skill."""
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
    return Rejection(row.file, None, outcome.reason, detail, row.id, raw, outcome.field)


def _located(
    refused: Sequence[tuple[int, Rejection]], reader: PartitionReader, reading: CorpusReading
) -> list[Rejection]:
    """Add the lines to the rejections by the tagger. A file is read a second time only if the tagger rejected a row."""
    unplaced = {number for number, rejection in refused if rejection.line is None and rejection.id is not None}
    lines = row_places(reader.partition, reader.first_rows, unplaced, max_sample_bytes=reading.max_sample_bytes)
    return [
        replace(rejection, line=lines[number][1]) if number in lines else rejection for number, rejection in refused
    ]


def _duplicate_sentence(
    duplicates: Sequence[Record], partitions: Sequence[Partition], records: Sequence[Record], reading: CorpusReading
) -> str:
    """Write the error for the first repeated id: both places, the number of repeated ids, and the remedy."""
    duplicate = duplicates[0]

    def place_of(part: int, row: int) -> tuple[str, int | None]:
        first_rows = [0, *itertools.accumulate(records[part]["file_rows"][:-1])]
        return row_places(partitions[part], first_rows, [row], max_sample_bytes=reading.max_sample_bytes)[row]

    first_file, first = place_of(duplicate["first_part"], duplicate["first_row"])
    later_file, later = place_of(duplicate["part"], duplicate["row"])
    identity = duplicate["id"] if len(duplicate["id"]) <= 100 else f"{duplicate['id'][:97]}..."
    earlier = f"id {identity!r} stands already in {first_file}, {unit_of(first_file)} {first}"
    more = f"; {len(duplicates):,} rows repeat an id" if len(duplicates) > 1 else ""
    return reading.sentence_of(Rejection(later_file, later, "duplicate-id", earlier + more))


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
            sizes = skills.setdefault(skill, [0, 0])
            sizes[:] = [sizes[0] + num_samples, sizes[1] + num_bytes]
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
        sentence = f"no sample could be tagged: {why}. Check the corpus, `id_field`, `text_field` and the fields of the tagger."
        raise TagsError(in_keys(sentence) if "corpora" in made_from["arguments"]["reading"] else sentence)
    if len(skills) > MAX_SKILLS:
        raise TagsError(
            f"{len(skills):,} different skills (such as {', '.join(sorted(skills)[:3])}), and at most {MAX_SKILLS:,} make sense. Tag by "
            "a field with fewer values."
        )
    return tags_manifest(
        made_from=made_from,
        parts=[
            {
                "stretches": [
                    {
                        "file": stretch.name,
                        "start": stretch.start,
                        "stop": stretch.stop,
                        "num_rows": num_rows,
                        "rows_digest": rows_digest,
                    }
                    for stretch, num_rows, rows_digest in zip(
                        partition.stretches, record["file_rows"], record["rows_digests"], strict=True
                    )
                ],
                "num_set_aside": record["num_set_aside"],
                "part_digest": record["part_digest"],
            }
            for partition, record in zip(partitions, records, strict=True)
        ],
        skills=[
            {"name": name, "num_samples": num_samples, "num_text_bytes": num_bytes}
            for name, (num_samples, num_bytes) in sorted(skills.items())
        ],
        num_rows=sum(sum(record["file_rows"]) for record in records) - sum(unread.values()),
        num_tagged=sum(num_samples for num_samples, _ in skills.values()),
        set_aside=aside,
        unread=unread,
        set_aside_by=set_aside_by(tuple(count) for record in records for count in record["set_aside_by"]),
        left_out=LeftOut(
            files=dict(files_left_out),
            **{
                kind: dict(sorted(added(record["left_out"][kind] for record in records).items()))
                for kind in ("members", "columns")
            },
        ),
    )
