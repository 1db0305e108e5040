"""Sample the texts of a corpus by the hash of the id, so that the sample does not depend on partitions and workers.

A task reads a partition and keeps the texts with the smallest hashes, at most `limit` texts. The sample consists of the texts with
the smallest hashes of all partitions.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson
import xxhash

from skillshard import places, storage
from skillshard.corpus import CorpusReading, Partition, PartitionReader, Rejection, Sample
from skillshard.corpus.template import Span, pairs_of
from skillshard.errors import CorpusError, ObservationError
from skillshard.execution import Backend, Record, Task, keyed, run
from skillshard.loss import LossKind, answer_spans

Refusal = Callable[[str], str | None]
"""Function that says why a text cannot be used, as the middle of a sentence, or returns None for a usable text. It is picklable."""


@dataclass(frozen=True)
class SampledText:
    """A text of the sample, with the hash that chose the text.

    Attributes:
        hash: 64-bit hash of the id.
        id: Id of the sample.
        text: Text of the sample.
        answers: Stretches of the text that are predicted, or None without a metadata field for the prompt.
    """

    hash: int
    id: str
    text: str
    answers: list[Span] | None = None


def sample_texts(
    partitions: Sequence[Partition],
    *,
    limit: int,
    reading: CorpusReading,
    refusal: Refusal,
    stop_at_refused: bool,
    scratch: str,
    records: str,
    backend: Backend,
    on_done: Callable[[Task, Record], None],
    prompt_field: str | None = None,
) -> list[SampledText]:
    """Choose at most `limit` texts of a corpus, in the order of the hashes. A repeated id counts once.

    Args:
        partitions: Partitions of the corpus.
        limit: Largest number of texts, at least 1. Memory and scratch files hold up to `limit` texts of each partition.
        reading: Field mappings and limits of the corpus.
        refusal: Function that refuses texts. Refused texts are left out.
        stop_at_refused: Whether a refused text ends the call with an error instead.
        scratch: Directory for the parts.
        records: Directory for the records.
        backend: Local pool or Ray.
        on_done: Function that is called for each finished partition.
        prompt_field: Metadata field with the length of the prompt or the spans of the answers. A text without the field is refused.

    Raises:
        CorpusError: A row has no sample or a refused text, and `stop_at_refused` is true.
    """
    common = {
        "limit": limit,
        "reading": reading,
        "refusal": refusal,
        "stop_at_refused": stop_at_refused,
        "prompt_field": prompt_field,
    }
    tasks = keyed(
        (
            {**common, "partition": partition, "out": places.join(scratch, f"{index:06d}.jsonl")}
            for index, partition in enumerate(partitions)
        ),
        about=(partition.name for partition in partitions),
    )
    run(sample_partition, tasks, backend=backend, records=records, on_done=on_done)
    merged: dict[str, SampledText] = {}
    for task in tasks:
        # The first place of a repeated id wins, in the order of the corpus.
        merged.update((sample.id, sample) for sample in _read(task.arguments["out"]) if sample.id not in merged)
    return _smallest(merged.values(), limit)


def sample_partition(
    partition: Partition,
    limit: int,
    reading: CorpusReading,
    refusal: Refusal,
    stop_at_refused: bool,
    prompt_field: str | None,
    out: str,
) -> Record:
    """Write the texts with the smallest hashes of a partition as JSON lines."""
    chosen = _smallest(_texts(partition, reading, refusal, stop_at_refused, prompt_field), limit)
    rows = ([text.hash, text.id, text.text, text.answers] for text in chosen)
    lines = (orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    storage.write_bytes(out, b"".join(lines))
    return {"num_texts": len(chosen)}


def _texts(
    partition: Partition,
    reading: CorpusReading,
    refusal: Refusal,
    stop_at_refused: bool,
    prompt_field: str | None,
) -> Iterator[SampledText]:
    for row in PartitionReader(partition, reading):
        if isinstance(row, Rejection):
            if stop_at_refused:
                raise CorpusError(reading.sentence_of(row))
            continue
        why, answers = answers_or_fault(row, refusal, prompt_field)
        if why is None:
            yield SampledText(xxhash.xxh3_64_intdigest(row.id.encode()), row.id, row.text, answers)
        elif stop_at_refused:
            raise CorpusError(refused_sentence(row, why))


def answers_or_fault(
    sample: Sample, refusal: Refusal, prompt_field: str | None
) -> tuple[str | None, list[Span] | None]:
    """Check whether a sample can be used, and find the answers.

    Args:
        sample: Sample of a corpus.
        refusal: Function that refuses texts.
        prompt_field: Metadata field with the length of the prompt or the spans of the answers, or None.

    Returns:
        The reason why the sample cannot be used, as the middle of a sentence, or None. Then the stretches that are predicted, or
        None if the sample cannot be used or `prompt_field` is None.
    """
    why = refusal(sample.text)
    if why is not None or prompt_field is None:
        return why, None
    try:
        return None, answer_spans(sample.text, LossKind(prompt_field=prompt_field), sample.meta)
    except ObservationError as error:
        return str(error).rstrip("."), None


def refused_sentence(sample: Sample, why: str) -> str:
    """Write the error for a text that the tagger cannot use."""
    return (
        f"{sample.file}: the text of sample {sample.id!r} cannot be read: {why}. Correct the sample, give another `answer_after`, "
        "`prompt_field` or `segment_at`, or set bad samples aside with `on_bad_sample='set-aside'`."
    )


def _smallest(texts: Iterable[SampledText], limit: int) -> list[SampledText]:
    # The id breaks the tie of two ids with equal hashes.
    return heapq.nsmallest(limit, texts, key=lambda sample: (sample.hash, sample.id))


def _read(place: str) -> Iterator[SampledText]:
    for line in storage.read_bytes(place).splitlines():
        hashed, identity, text, answers = orjson.loads(line)
        yield SampledText(hashed, identity, text, None if answers is None else pairs_of(answers))
