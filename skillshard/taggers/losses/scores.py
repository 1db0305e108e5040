"""Score the rows of a corpus by a costly tagger, in tasks of a thousand rows instead of whole partitions.

A partition of 64 MiB takes an hour of forward passes on one core. Small tasks spread over the workers, show their progress, and are
not repeated after a stop. The part of the partition is then written from the files of the tasks.

    SCRATCH/000000/000003.json    row -> [skill, score] or [reason, detail], for the rows from 3 x SAMPLES_AT_ONCE on
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import orjson

from skillshard import places, storage
from skillshard.corpus import CorpusReading, Partition, PartitionReader, Sample
from skillshard.execution import Record, Task
from skillshard.taggers.tagger import SAMPLES_AT_ONCE, Search, Tag, Tagger, Untagged, groups_of_rows

FOLDER = "scores"


@dataclass(frozen=True)
class ScoredRows:
    """A row tagger by the files that `score_rows` wrote."""

    folder: str

    def tag_rows(self, partition: int, rows: Sequence[int]) -> list[Tag | Untagged]:
        if not rows:
            return []
        # No group of `groups_of_rows` goes beyond the rows of a task, so all rows of a call lie in the same file.
        outcomes = _read(_place(self.folder, partition, rows[0] // SAMPLES_AT_ONCE))
        return [outcomes[row] for row in rows]


def score_rows(tagger: Tagger, search: Search, num_rows: Sequence[int], *, num_gpus: float = 0.0) -> ScoredRows:
    """Call a tagger for all samples of a corpus, in the same groups in which `tag_corpus` would call the tagger.

    Args:
        tagger: Tagger to call.
        search: Search in which the tagger is used.
        num_rows: Number of rows of each partition.
        num_gpus: Number of GPUs that a process takes.
    """
    folder = search.work.scratch(FOLDER)
    tasks = [
        Task(
            f"{partition.index:06d}-{number:06d}",
            {
                "partition": partition,
                "number": number,
                "reading": search.reading,
                "tagger": tagger,
                "place": _place(folder, partition.index, number),
            },
            partition.name,
        )
        for partition, num in zip(search.partitions, num_rows, strict=True)
        for number in range(-(-num // SAMPLES_AT_ONCE))
    ]
    search.run(score_task, tasks, stage="score", title="scoring", keeps_model=True, num_gpus=num_gpus)
    return ScoredRows(folder)


def score_task(partition: Partition, number: int, reading: CorpusReading, tagger: Tagger, place: str) -> Record:
    """Write the outcomes of the group with this number in a partition."""
    first = number * SAMPLES_AT_ONCE
    # The rows before the group are read again, which costs little beside the tagger.
    rows = islice(PartitionReader(partition, reading), first, first + SAMPLES_AT_ONCE)
    numbers = itertools.count(first)
    outcomes: dict[int, Tag | Untagged] = {}
    for group in groups_of_rows(rows):
        samples = {number: row for row, number in zip(group, numbers, strict=False) if isinstance(row, Sample)}
        outcomes.update(zip(samples, tagger.tag(list(samples.values())), strict=True))
    rows_as_json = {str(position): _to_json(outcome) for position, outcome in outcomes.items()}
    storage.write_bytes(place, orjson.dumps(rows_as_json))
    return {"num_samples": len(outcomes)}


def _place(folder: str, partition: int, number: int) -> str:
    return places.join(folder, f"{partition:06d}", f"{number:06d}.json")


def _to_json(outcome: Tag | Untagged) -> list[str | float]:
    return [outcome.skill, outcome.score] if isinstance(outcome, Tag) else [outcome.reason, outcome.detail]


@lru_cache(maxsize=1)
def _read(place: str) -> dict[int, Tag | Untagged]:
    rows_as_json = orjson.loads(storage.read_bytes(place))
    # A score is always a float and a detail always a string, so the type tells the two kinds of pairs apart.
    return {
        int(row): Tag(first, second) if isinstance(second, float) else Untagged(first, second)
        for row, (first, second) in rows_as_json.items()
    }
