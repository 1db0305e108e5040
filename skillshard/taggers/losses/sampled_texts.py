"""A sample of a corpus's texts by the hash of their ids: the same whatever the partitions and the workers.

A unit reads one partition and keeps at most `limit` texts, those of the smallest hashes; the sample is the smallest of all.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import xxhash

from skillshard import places, storage
from skillshard.corpus import Partition, PartitionReader, Rejection, Sample
from skillshard.errors import CorpusError
from skillshard.execution import Record, Unit, Where, keyed, run

Refusal = Callable[[str], str | None]
"""Says why a text cannot be used, as the middle of a sentence; None if it can. Picklable."""


@dataclass(frozen=True)
class SampledText:
    """A text of the sample, with the hash that chose it."""

    hash: int
    id: str
    text: str


def sample_texts(
    partitions: Sequence[Partition],
    *,
    limit: int,
    reading: Mapping[str, Any],
    refusal: Refusal,
    stop_at_refused: bool,
    scratch: str,
    records: str,
    where: Where,
    on_done: Callable[[Unit, Record], None],
) -> list[SampledText]:
    """At most `limit` texts of a corpus, in the order of their hashes; equal ids of different places count once.

    Args:
        partitions: of the corpus.
        limit: most texts, at least 1; memory and scratch hold so many per partition.
        reading: keyword arguments of `PartitionReader`.
        refusal: texts that it refuses are left out.
        stop_at_refused: refuse the corpus instead.
        scratch, records: directories for parts and records.
        where: local pool or Ray.
        on_done: called for each finished partition.

    Raises:
        CorpusError: a row without a sample or with a refused text, where `stop_at_refused`.
    """
    common = {"limit": limit, "reading": reading, "refusal": refusal, "stop_at_refused": stop_at_refused}
    units = keyed(
        {**common, "partition": partition, "out": places.join(scratch, f"{at:06d}.jsonl")}
        for at, partition in enumerate(partitions)
    )
    run(sample_partition, units, where=where, records=records, on_done=on_done)
    merged: dict[str, SampledText] = {}
    for unit in units:
        merged.update((found.id, found) for found in _read(unit.arguments["out"]) if found.id not in merged)
    return _smallest(merged.values(), limit)


def sample_partition(
    partition: Partition, limit: int, reading: Mapping[str, Any], refusal: Refusal, stop_at_refused: bool, out: str
) -> Record:
    """The texts of the smallest hashes of one partition, as JSON lines."""
    chosen = _smallest(_texts(partition, reading, refusal, stop_at_refused), limit)
    lines = (orjson.dumps([found.hash, found.id, found.text], option=orjson.OPT_APPEND_NEWLINE) for found in chosen)
    storage.write_bytes(out, b"".join(lines))
    return {"num_texts": len(chosen)}


def _texts(
    partition: Partition, reading: Mapping[str, Any], refusal: Refusal, stop_at_refused: bool
) -> Iterator[SampledText]:
    for row in PartitionReader(partition, **reading):
        why = _why_not(row, refusal)
        if why is None:
            assert isinstance(row, Sample)
            yield SampledText(xxhash.xxh3_64_intdigest(row.id.encode()), row.id, row.text)
        elif stop_at_refused:
            raise CorpusError(row.sentence() if isinstance(row, Rejection) else refused_sentence(partition, row, why))


def _why_not(row: Sample | Rejection, refusal: Refusal) -> str | None:
    return row.detail if isinstance(row, Rejection) else refusal(row.text)


def refused_sentence(partition: Partition, sample: Sample, why: str) -> str:
    """The error for a text that the tagger cannot use."""
    return (
        f"{partition.name}: the text of sample {sample.id!r} cannot be read: {why}. Mend it, give another --answer-after or "
        "--segment-at, or set such samples aside with --on-bad-sample set-aside."
    )


def _smallest(texts: Iterable[SampledText], limit: int) -> list[SampledText]:
    return heapq.nsmallest(limit, texts, key=lambda found: (found.hash, found.id))


def _read(place: str) -> Iterator[SampledText]:
    return (SampledText(*orjson.loads(line)) for line in storage.read_bytes(place).splitlines())
