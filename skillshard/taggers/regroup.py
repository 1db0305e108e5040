"""Make new skills from the skills of finished tags: cross, rename, merge.

`regroup_tags` makes tags from one or two finished sets in two stages of tasks. The first stage counts the pairs of skills and adds
up the embeddings of each pair. The second stage writes the parts. The corpus itself is not read. The metadata that the first set keeps
beside its tags comes along, row for row, so that the new tags can be compared with it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skillshard import artefact, storage
from skillshard.errors import TagsError, name_some
from skillshard.execution import Backend, OnStage, Record, keyed, run, shown
from skillshard.taggers.clusters.embeddings import EMBEDDINGS, array_place, has_embeddings
from skillshard.taggers.fields import FOLDER as FIELDS
from skillshard.taggers.fields import fields_place, has_fields
from skillshard.taggers.groups import Vector, added, check_share, final_names
from skillshard.tags import (
    MANIFEST,
    TagColumns,
    TagRow,
    Tags,
    TagsManifest,
    kinds_of,
    part_place,
    read_part,
    refuse_two_forms,
    rejected_place,
    set_aside_by,
    split_rests,
    tags_manifest,
    write_part,
)

JOIN = "/"


def regroup_tags(
    places: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    mapping: Mapping[str, str] | None = None,
    min_share: float = 0.0,
    rest: str | None = None,
    vectors: Mapping[str, Vector] = {},
    backend: Backend = Backend(),
    on_stage: OnStage | None = None,
    progress: bool = True,
) -> Tags:
    """Make tags from tags: cross two sets, then rename skills, then merge small skills.

    Args:
        places: One directory of tags, or two directories of tags of the same corpus. With two, every pair of skills becomes a skill, with
            the names joined by "/" and the score of the second set.
        mapping: Old name -> new name. The key "*" stands for all skills without a key. Without "*", skills without a key keep their names.
        min_share: Smallest share of the samples. Skills below this share are merged.
        rest: Name of the skill that takes all small skills. With None, each small skill goes to the nearest skill, by the mean of the
            embeddings or by `vectors`.
        vectors: Vectors of skills, for example rows of a graph, in place of embeddings.
        backend: Local pool or Ray. Both give the same bytes.
        on_stage: Function that is called with the name and the number of tasks of each stage. The function that it returns is called for
            each finished task. None shows bars in a terminal or a notebook.
        progress: Whether to show bars.

    Raises:
        TagsError: The tags belong to different corpora or partitions, or the arguments do not fit together.
    """
    check_share(min_share, rest)
    if len(places) not in (1, 2):
        raise TagsError(
            f"{len(places)} directories of tags were given ({name_some((str(place) for place in places), are_paths=True)}). Give one directory, "
            "or two directories to make every pair of their skills a skill."
        )
    combine = len(places) == 2
    if not combine and mapping is None and not min_share:
        raise TagsError(
            f"{places[0]}: nothing says how to regroup these tags. Give a map, a least share, or a second directory of tags."
        )
    sets = [Tags.open(place) for place in places]
    _refuse_unlike(sets)
    first = sets[0].manifest.made_from
    arguments = {"combine": combine, "map": mapping, "min_share": min_share, "rest": rest}
    arguments["vectors"] = {skill: np.asarray(vector).tolist() for skill, vector in sorted(vectors.items())}
    made_from = {
        "command": "tag",
        "arguments": {**first["arguments"], "tagger": "regroup", "tagger_arguments": arguments},
        "inputs": first["inputs"],
        "tags": [tags.digest for tags in sets],
    }
    with shown(on_stage, progress) as stages:
        artefact.make(
            out, MANIFEST, made_from, lambda work: _regroup(sets, work, made_from, arguments, vectors, backend, stages)
        )
    return Tags.open(out)


def _refuse_unlike(sets: Sequence[Tags]) -> None:
    refuse_two_forms(sets[0], sets[-1])
    rows = [[part.stretches for part in tags.manifest.parts] for tags in sets]
    if rows[0] != rows[-1]:
        raise TagsError(
            f"{sets[0].folder} and {sets[1].folder} are not tags of the same rows. The corpora or the partition sizes differ, or the corpus "
            "changed in between. Tag both from the same corpus with the same partition size."
        )


def _regroup(
    sets: Sequence[Tags],
    work: artefact.Work,
    made_from: dict[str, Any],
    arguments: Mapping[str, Any],
    vectors: Mapping[str, Vector],
    backend: Backend,
    on_stage: OnStage,
) -> None:
    folders = [tags.folder for tags in sets]
    num_parts = len(sets[0].manifest.parts)
    # Only the merging into the nearest skill needs vectors, and reading all embeddings of a corpus takes time.
    embedded = _embedded(sets) if arguments["min_share"] and arguments["rest"] is None and not vectors else None
    tasks = keyed(
        {"folders": folders, "part": part, "embedded": embedded, "place": work.scratch(f"{part:06d}.npz")}
        for part in range(num_parts)
    )
    counted = run(
        count_pairs, tasks, backend=backend, records=work.records("count"), on_done=on_stage("counting", num_parts)
    )
    if embedded:
        vectors = _summed([str(task.arguments["place"]) for task in tasks])
    names = final_names(
        added(record["skills"] for record in counted),
        arguments["map"],
        arguments["min_share"],
        arguments["rest"],
        vectors,
    )
    if not names:
        raise TagsError(f"{' and '.join(folders)} tag no sample in common, so the result would have no skill.")
    tasks = keyed({"folders": folders, "part": part, "names": names, "out": work.out} for part in range(num_parts))
    written = run(
        write_regrouped, tasks, backend=backend, records=work.records("write"), on_done=on_stage("writing", num_parts)
    )
    _bring_fields(sets, work, num_parts)
    work.finish(_manifest(made_from, sets, names, written).model_dump(by_alias=True))


def _bring_fields(sets: Sequence[Tags], work: artefact.Work, num_parts: int) -> None:
    """Bring the metadata beside the first set that keeps metadata. All sets are of the same rows."""
    source = next((tags.place(FIELDS) for tags in sets if has_fields(tags.folder, num_parts)), None)
    if source is not None:
        storage.bring_all(
            [(fields_place(source, part), fields_place(work.place(FIELDS), part)) for part in range(num_parts)]
        )


def _embedded(sets: Sequence[Tags]) -> str | None:
    """Return the directory of embeddings beside the first set that has embeddings."""
    return next((tags.place(EMBEDDINGS) for tags in sets if has_embeddings(tags.folder)), None)


def count_pairs(folders: Sequence[str], part: int, embedded: str | None, place: str) -> Record:
    """Count the samples of each (crossed) skill of a part, and add up their embeddings."""
    skills = [skill for skill, _, _ in _crossed(folders, part)]
    counts = added([{skill: 1} for skill in skills if skill is not None])
    if embedded is not None:
        vectors = storage.load_array(array_place(embedded, part))
        number = {skill: index for index, skill in enumerate(counts)}
        # The sums are float64, because a sum of millions of float16 numbers would lose the small ones.
        sums = np.zeros((len(counts), vectors.shape[1]))
        for row, skill in enumerate(skills):
            if skill is not None:
                sums[number[skill]] += vectors[row]
        storage.write_arrays(place, {"skills": np.array(list(counts), np.str_), "sums": sums})
    return {"skills": counts}


def _summed(places: Sequence[str]) -> dict[str, Vector]:
    total: dict[str, Vector] = {}
    for place in places:
        arrays = storage.load_arrays(place)
        for skill, row in zip(arrays["skills"].tolist(), arrays["sums"], strict=True):
            total[skill] = total[skill] + row if skill in total else row
    return total


def _crossed(folders: Sequence[str], part: int) -> list[tuple[str | None, TagRow, int]]:
    """Return (skill, row of tags, number of the set) for each row.

    For a row that is set aside, the skill is None, and the set is the first set in which the row is set aside.
    """
    rows = zip(*(read_part(part_place(folder, part)) for folder in folders), strict=True)
    crossed: list[tuple[str | None, TagRow, int]] = []
    for row_of_sets in rows:
        aside = next((number for number, row in enumerate(row_of_sets) if row.skill is None), None)
        if aside is not None:
            crossed.append((None, row_of_sets[aside], aside))
        else:
            crossed.append((JOIN.join(str(row.skill) for row in row_of_sets), row_of_sets[-1], 0))
    return crossed


def write_regrouped(folders: Sequence[str], part: int, names: Mapping[str, str], out: str) -> Record:
    """Write one part of the new tags, and the rows that are set aside in the part."""
    rejected = [iter(_rejected(folder, part)) for folder in folders]
    rows, lines, counts, aside = [], [], {}, {}  # type: ignore[var-annotated]
    for row_of_sets, (skill, row, number) in zip(
        zip(*(read_part(part_place(folder, part)) for folder in folders), strict=True),
        _crossed(folders, part),
        strict=True,
    ):
        # A file of rejected rows has a line for each row that its set sets aside. So the lines of every set advance, also if another set decides.
        own_lines = [
            next(lines_of_set) if set_row.skill is None else b""
            for set_row, lines_of_set in zip(row_of_sets, rejected, strict=True)
        ]
        if skill is None:
            rows.append(TagRow(row.id, None, None, row.reason))
            lines.append(own_lines[number])
            aside[str(row.reason)] = aside.get(str(row.reason), 0) + 1
        else:
            rows.append(TagRow(row.id, names[skill], row.score, None))
            counts[skill] = counts.get(skill, 0) + 1
    place = part_place(out, part)
    write_part(place, [TagColumns.of(rows)])
    if lines:
        storage.write_bytes(rejected_place(out, part), b"".join(line + b"\n" for line in lines))
    return {
        "skills": counts,
        "set_aside": aside,
        "num_set_aside": len(lines),
        "set_aside_by": [(file, reason, field, num) for (file, reason, field), num in kinds_of(lines).items()],
        "part_digest": storage.file_digest(place),
    }


def _rejected(folder: str, part: int) -> list[bytes]:
    place = rejected_place(folder, part)
    return storage.read_bytes(place).splitlines() if Path(place).exists() else []


def _manifest(
    made_from: dict[str, Any], sets: Sequence[Tags], names: Mapping[str, str], written: Sequence[Record]
) -> TagsManifest:
    sizes = added(record["skills"] for record in written)
    num_samples = added({names[skill]: num} for skill, num in sizes.items())
    aside, unread = split_rests(added(record["set_aside"] for record in written))
    known = {skill.name: skill.num_text_bytes for skill in sets[0].manifest.skills}
    # Tags know the bytes of a skill, not of a pair of skills. After a crossing the number stays unknown.
    text_bytes: dict[str, int | None] = dict.fromkeys(num_samples)
    if len(sets) == 1:
        text_bytes |= added({names[skill]: known[skill] or 0} for skill in sizes)
    return tags_manifest(
        made_from=made_from,
        parts=[
            {**part.model_dump(), "num_set_aside": record["num_set_aside"], "part_digest": record["part_digest"]}
            for part, record in zip(sets[0].manifest.parts, written, strict=True)
        ],
        skills=[
            {"name": name, "num_samples": num, "num_text_bytes": text_bytes[name]} for name, num in num_samples.items()
        ],
        num_rows=sum(part.num_rows for part in sets[0].manifest.parts) - sum(unread.values()),
        num_tagged=sum(num_samples.values()),
        set_aside=aside,
        unread=unread,
        set_aside_by=set_aside_by(tuple(count) for record in written for count in record["set_aside_by"]),
        left_out=sets[0].manifest.left_out,
    )
