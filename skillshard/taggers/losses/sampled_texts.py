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
from skillshard.answers import AnswerRule
from skillshard.corpus import CorpusReading, Partition, PartitionReader, Rejection, Sample
from skillshard.corpus.template import Span, pairs_of
from skillshard.errors import CorpusError
from skillshard.execution import Backend, Record, Task, keyed, run
from skillshard.proxy.reading import Refusal
from skillshard.proxy.samples import CORRECTION, ReadableText, readable


@dataclass(frozen=True)
class SampledText:
    """A text of the sample, with the hash that chose the text.

    Attributes:
        hash: 64-bit hash of the id.
        id: Id of the sample.
        text: Text of the sample, or its rendered conversation.
        answers: Stretches of the text that are predicted, or None if the reading finds the answers in the text.
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
    rule: AnswerRule,
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
        rule: Rule for the texts and the answers. A sample without an answer is refused.

    Raises:
        CorpusError: A row has no sample or a refused text, and `stop_at_refused` is true.
    """
    common = {
        "limit": limit,
        "reading": reading,
        "refusal": refusal,
        "stop_at_refused": stop_at_refused,
        "rule": rule,
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
    rule: AnswerRule,
    out: str,
) -> Record:
    """Write the texts with the smallest hashes of a partition as JSON lines."""
    chosen = _smallest(_texts(partition, reading, refusal, stop_at_refused, rule), limit)
    rows = ([text.hash, text.id, text.text, text.answers] for text in chosen)
    lines = (orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    storage.write_bytes(out, b"".join(lines))
    return {"num_texts": len(chosen)}


def _texts(
    partition: Partition,
    reading: CorpusReading,
    refusal: Refusal,
    stop_at_refused: bool,
    rule: AnswerRule,
) -> Iterator[SampledText]:
    for row in PartitionReader(partition, reading):
        if isinstance(row, Rejection):
            if stop_at_refused:
                raise CorpusError(reading.sentence_of(row))
            continue
        text = readable(row, refusal, rule)
        if isinstance(text, ReadableText):
            yield SampledText(xxhash.xxh3_64_intdigest(row.id.encode()), row.id, text.text, text.answers)
        elif stop_at_refused:
            raise CorpusError(refused_sentence(row, text))


def refused_sentence(sample: Sample, why: str) -> str:
    """Write the error for a text that the tagger cannot use."""
    return (
        f"{sample.file}: the text of sample {sample.id!r} cannot be read: {why}. {CORRECTION} Or set bad samples aside with "
        "`on_bad_sample='set-aside'`."
    )


def _smallest(texts: Iterable[SampledText], limit: int) -> list[SampledText]:
    # The id breaks the tie of two ids with equal hashes.
    return heapq.nsmallest(limit, texts, key=lambda sample: (sample.hash, sample.id))


def _read(place: str) -> Iterator[SampledText]:
    for line in storage.read_bytes(place).splitlines():
        hashed, identity, text, answers = orjson.loads(line)
        yield SampledText(hashed, identity, text, None if answers is None else pairs_of(answers))
