"""Outcomes of a costly tagger, in tasks of a thousand rows instead of whole partitions.

A partition of 64 MiB is an hour of forward passes on one core. So its rows are scored in small tasks, which are spread over the
workers, show how far they are, and are not done again after a stop; the partition's part is then written from their files.

    SCRATCH/000000/000003.json    row -> [skill, score], or why its text cannot be used; of the rows from 3 x SAMPLES_AT_ONCE on
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import orjson

from skillshard import places, storage
from skillshard.corpus import Partition, PartitionReader, Sample
from skillshard.execution import Record, Task
from skillshard.taggers.tagger import SAMPLES_AT_ONCE, Search, Tag, Tagger, Untagged

FOLDER = "scores"


@dataclass(frozen=True)
class ScoredRows:
    """Tags by what `score_rows` wrote."""

    folder: str

    def tag_rows(self, partition: int, rows: Sequence[int]) -> list[Tag | Untagged]:
        if not rows:
            return []
        outcomes = _read(_place(self.folder, partition, rows[0] // SAMPLES_AT_ONCE))
        return [outcomes[row] for row in rows]


def score_rows(tagger: Tagger, search: Search, num_rows: Sequence[int], *, num_gpus: float = 0.0) -> ScoredRows:
    """Call a tagger for all samples of a corpus, for just those together that `tag_corpus` would give it together.

    Args:
        num_rows: rows of each partition.
        num_gpus: GPUs that a process takes.
    """
    folder = str(search.work.scratch(FOLDER))
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
        )
        for partition, num in zip(search.partitions, num_rows, strict=True)
        for number in range(-(-num // SAMPLES_AT_ONCE))
    ]
    search.run(score_task, tasks, stage="score", title="scoring", keeps_model=True, num_gpus=num_gpus)
    return ScoredRows(folder)


def score_task(partition: Partition, number: int, reading: Mapping[str, Any], tagger: Tagger, place: str) -> Record:
    """The outcomes of one stretch of a partition's rows. The rows before it are read again, which costs little beside the tagger."""
    first = number * SAMPLES_AT_ONCE
    rows = enumerate(PartitionReader(partition, **reading))
    samples = {at: row for at, row in islice(rows, first, first + SAMPLES_AT_ONCE) if isinstance(row, Sample)}
    outcomes = zip(samples, tagger.tag(list(samples.values())), strict=True)
    told = {str(row): _to_json(outcome) for row, outcome in outcomes}
    storage.write_bytes(place, orjson.dumps(told))
    return {"num_samples": len(samples)}


def _place(folder: str, partition: int, number: int) -> str:
    return places.join(folder, f"{partition:06d}", f"{number:06d}.json")


def _to_json(outcome: Tag | Untagged) -> list[str | float]:
    return [outcome.skill, outcome.score] if isinstance(outcome, Tag) else [outcome.reason, outcome.detail]


@lru_cache(maxsize=1)
def _read(place: str) -> dict[int, Tag | Untagged]:
    found = orjson.loads(storage.read_bytes(place))
    return {
        int(row): Tag(first, second) if isinstance(second, float) else Untagged(first, second)
        for row, (first, second) in found.items()
    }
