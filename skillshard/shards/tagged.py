"""Compare a corpus with its tags, and make the sorting tasks of the tagged corpus."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from skillshard import artefact, places
from skillshard.corpus import Corpus, CorpusReading
from skillshard.corpus.compare import places_changed
from skillshard.errors import ShardError, TagsError, name_some
from skillshard.execution import Record, Task, keyed
from skillshard.shards.manifest import Layout
from skillshard.tags import Tags, part_place


def changed_files(corpus: Corpus, tags: Tags, suspects: Sequence[str]) -> list[str]:
    """Read the suspect files again and return the files whose rows differ from the tagged rows."""
    digests = {index: part.rows_digests for index, part in enumerate(tags.manifest.parts)}
    reading = CorpusReading.from_json(tags.manifest.made_from["arguments"]["reading"])
    return places_changed(tags.partitions_of(corpus), digests, suspects, reading)


def refuse_other_corpus(corpus: Corpus, tags: Tags) -> None:
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


def limit_of(tags: Tags, limit: int | None) -> int | None:
    """Return the number of rows to which shards are limited, by the argument and by the limit of the tags.

    Raises:
        ShardError: The limit is below 1, or exceeds the limit of the tags.
    """
    if limit is None:
        return tags.limit
    if limit < 1:
        raise ShardError(f"`{limit=}`: give the number of rows to shard, at least 1.")
    if tags.limit is not None and limit > tags.limit:
        raise ShardError(
            f"`{limit=}`, but {places.public(tags.folder)} has tags of the first {tags.limit:,} rows only: tagging had a limit, too. Give a smaller "
            "`limit`, or tag more rows into another directory."
        )
    return limit


def sort_tasks(
    corpus: Corpus,
    tags: Tags,
    work: artefact.Work,
    skills: list[str],
    cut: str,
    limit: int | None,
    layout: Layout,
    inherited: Sequence[str] | None,
    members: Mapping[str, str],
    drop: bool,
) -> list[Task]:
    """Return a task of `sort_partition` for each partition with some of the first `limit` rows of the tags. None: all rows.

    Raises:
        TagsError: The corpus has another number of partitions than the tags.
    """
    reading = replace(CorpusReading.from_json(tags.manifest.made_from["arguments"]["reading"]), members=members)
    num_left = limit
    file_numbers = {file.name: number for number, file in enumerate(corpus.files)}
    rows_before: Counter[str] = Counter()
    tasks: list[dict[str, Any]] = []
    for index, (partition, part) in enumerate(zip(tags.partitions_of(corpus), tags.manifest.parts, strict=True)):
        if num_left == 0:
            break
        most_rows = None if num_left is None or num_left >= part.num_rows else num_left
        num_left = None if num_left is None else max(0, num_left - part.num_rows)
        tasks.append(
            {
                "partition": partition,
                "tags_part": part_place(tags.folder, index),
                "expected_digests": part.rows_digests,
                "reading": reading,
                "num_rows": part.num_rows,
                "skills": skills,
                "cut": cut,
                "scratch": work.scratch(),
                "files": [file_numbers[stretch.name] for stretch in partition.stretches],
                "first_row": rows_before[partition.stretches[0].name],
                "most_rows": most_rows,
                "layout": layout,
                "inherited": inherited,
                "drop": drop,
            }
        )
        for stretch in part.stretches:
            rows_before[stretch.file] += stretch.num_rows
    return keyed(tasks, about=(task["partition"].name for task in tasks))


def num_rejected(task: Task, record: Record) -> int | None:
    """Return the number of rows of a partition that the tags set aside and that belong to the shards. None: all such rows of the part.

    Args:
        task: Task of the sorting.
        record: Record of the task.
    """
    return None if task.arguments["most_rows"] is None else sum(record["set_aside"].values())
