"""Compare a corpus with its tags, and make the sorting tasks of the tagged corpus."""

from collections import Counter
from collections.abc import Sequence

from skillshard import artefact, places
from skillshard.corpus import Corpus, CorpusReading
from skillshard.corpus.compare import places_changed
from skillshard.errors import TagsError, name_some
from skillshard.execution import Task, keyed
from skillshard.tags import Tags, part_place


def changed_files(corpus: Corpus, tags: Tags, suspects: Sequence[str]) -> list[str]:
    """Read the suspect files again and return the files whose rows differ from the tagged rows."""
    arguments = tags.manifest.made_from["arguments"]
    partitions = corpus.partitions(partition_bytes=arguments["partition_bytes"])
    digests = {index: part.rows_digest for index, part in enumerate(tags.manifest.parts)}
    return places_changed(partitions, digests, suspects, CorpusReading.from_json(arguments["reading"]))


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


def sort_tasks(corpus: Corpus, tags: Tags, work: artefact.Work, skills: list[str], cut: str) -> list[Task]:
    """Return a task of `sort_partition` for each partition of the corpus.

    Raises:
        TagsError: The corpus has another number of partitions than the tags.
    """
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
