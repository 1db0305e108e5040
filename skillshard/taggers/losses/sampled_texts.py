"""A sample of a corpus's texts by the hash of their ids: the same whatever the partitions and the workers.

A task reads one partition and keeps at most `limit` texts, those of the smallest hashes; the sample is the smallest of all.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import xxhash

from skillshard import places, storage
from skillshard.corpus import Partition, PartitionReader, Rejection, Sample
from skillshard.errors import CorpusError, ObservationError
from skillshard.execution import Backend, Record, Task, keyed, run
from skillshard.loss import LossKind, prompt_chars

Refusal = Callable[[str], str | None]
"""Says why a text cannot be used, as the middle of a sentence; None if it can. Picklable."""


@dataclass(frozen=True)
class SampledText:
    """A text of the sample, with the hash that chose it.

    Attributes:
        prompt: number of characters of the text's prompt; None where no metadata field says it.
    """

    hash: int
    id: str
    text: str
    prompt: int | None = None


def sample_texts(
    partitions: Sequence[Partition],
    *,
    limit: int,
    reading: Mapping[str, Any],
    refusal: Refusal,
    stop_at_refused: bool,
    scratch: str,
    records: str,
    backend: Backend,
    on_done: Callable[[Task, Record], None],
    prompt_field: str | None = None,
) -> list[SampledText]:
    """At most `limit` texts of a corpus, in the order of their hashes; equal ids of different places count once.

    Args:
        partitions: of the corpus.
        limit: most texts, at least 1; memory and scratch hold so many per partition.
        reading: keyword arguments of `PartitionReader`.
        refusal: texts that it refuses are left out.
        stop_at_refused: refuse the corpus instead.
        scratch, records: directories for parts and records.
        backend: local pool or Ray.
        on_done: called for each finished partition.
        prompt_field: metadata field with the number of characters of a text's prompt; a text without it is refused.

    Raises:
        CorpusError: a row without a sample or with a refused text, where `stop_at_refused`.
    """
    common = {
        "limit": limit,
        "reading": reading,
        "refusal": refusal,
        "stop_at_refused": stop_at_refused,
        "prompt_field": prompt_field,
    }
    tasks = keyed(
        {**common, "partition": partition, "out": places.join(scratch, f"{at:06d}.jsonl")}
        for at, partition in enumerate(partitions)
    )
    run(sample_partition, tasks, backend=backend, records=records, on_done=on_done)
    merged: dict[str, SampledText] = {}
    for task in tasks:
        merged.update((found.id, found) for found in _read(task.arguments["out"]) if found.id not in merged)
    return _smallest(merged.values(), limit)


def sample_partition(
    partition: Partition,
    limit: int,
    reading: Mapping[str, Any],
    refusal: Refusal,
    stop_at_refused: bool,
    prompt_field: str | None,
    out: str,
) -> Record:
    """The texts of the smallest hashes of one partition, as JSON lines."""
    chosen = _smallest(_texts(partition, reading, refusal, stop_at_refused, prompt_field), limit)
    rows = ([text.hash, text.id, text.text, text.prompt] for text in chosen)
    lines = (orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    storage.write_bytes(out, b"".join(lines))
    return {"num_texts": len(chosen)}


def _texts(
    partition: Partition,
    reading: Mapping[str, Any],
    refusal: Refusal,
    stop_at_refused: bool,
    prompt_field: str | None,
) -> Iterator[SampledText]:
    for row in PartitionReader(partition, **reading):
        if isinstance(row, Rejection):
            if stop_at_refused:
                raise CorpusError(row.sentence())
            continue
        why, prompt = prompt_or_fault(row, refusal, prompt_field)
        if why is None:
            yield SampledText(xxhash.xxh3_64_intdigest(row.id.encode()), row.id, row.text, prompt)
        elif stop_at_refused:
            raise CorpusError(refused_sentence(partition, row, why))


def prompt_or_fault(sample: Sample, refusal: Refusal, prompt_field: str | None) -> tuple[str | None, int | None]:
    """Why a sample cannot be used, as the middle of a sentence, or None; and the number of characters of its prompt, or None.

    Args:
        sample: read from a corpus.
        refusal: of its text.
        prompt_field: metadata field with the number of characters of the prompt; None: the prompt is not known by metadata.
    """
    why = refusal(sample.text)
    if why is not None or prompt_field is None:
        return why, None
    try:
        return None, prompt_chars(sample.text, LossKind(prompt_field=prompt_field), sample.meta)
    except ObservationError as error:
        return str(error).rstrip("."), None


def refused_sentence(partition: Partition, sample: Sample, why: str) -> str:
    """The error for a text that the tagger cannot use."""
    return (
        f"{partition.name}: the text of sample {sample.id!r} cannot be read: {why}. Mend it, give another `answer_after`, "
        "`prompt_field` or `segment_at`, or set such samples aside with `on_bad_sample='set-aside'`."
    )


def _smallest(texts: Iterable[SampledText], limit: int) -> list[SampledText]:
    return heapq.nsmallest(limit, texts, key=lambda found: (found.hash, found.id))


def _read(place: str) -> Iterator[SampledText]:
    return (SampledText(*orjson.loads(line)) for line in storage.read_bytes(place).splitlines())
