"""Read and count the rows of a corpus, so that a bad sample ends the command before any costly stage begins."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from skillshard.corpus import CorpusReading, Partition, PartitionReader, Rejection, Sample
from skillshard.errors import CorpusError
from skillshard.execution import Record, keyed
from skillshard.keyed_random import distinct
from skillshard.taggers.ceiling import Ceiling, check_partitions, counts_of, early_check
from skillshard.taggers.fields import FOLDER as FIELDS
from skillshard.taggers.fields import FieldTable, fields_place
from skillshard.taggers.tagger import OnBadSample, Search


def count_rows(search: Search) -> tuple[list[int], int]:
    """Count the rows of each partition, and the samples of the corpus.

    Raises:
        CorpusError: A row is bad, where bad samples stop the command.
    """
    records = read_rows(search)
    return [record["num_rows"] for record in records], sum(record["num_samples"] for record in records)


def read_rows(search: Search, digests_before: Sequence[Sequence[str]] | None = None) -> list[Record]:
    """Return the number of rows and of samples of each partition, and the digest of the rows.

    The metadata with few values is kept beside the tags (`skillshard.taggers.fields`).

    Args:
        search: Corpus, and the way to run tasks.
        digests_before: Digests of the stretches of each partition at an earlier reading, whose forms the digests take.

    Raises:
        CorpusError: A row is bad, where bad samples stop the command, or more rows are bad than the ceiling allows.
    """
    fields = search.work.scratch("kept", FIELDS)
    tasks = keyed(
        (
            {
                "partition": partition,
                "reading": search.reading,
                "on_bad_sample": search.on_bad_sample,
                "ceiling": search.ceiling,
                "fields": fields_place(fields, index),
                **({} if digests_before is None else {"digests_before": digests_before[index]}),
            }
            for index, partition in enumerate(search.partitions)
        ),
        about=(partition.name for partition in search.partitions),
    )
    records = search.run(count_partition, tasks, stage="count", title="counting", is_watched=True)
    # Work of earlier versions has no such counts. The check at the end of the tagging covers every row.
    if all("set_aside_by" in record for record in records):
        check_partitions(search.ceiling, search.partitions, records)
    return records


def num_rows_of(search: Search) -> list[int]:
    """Count only the rows of each partition."""
    tasks = keyed(
        ({"partition": partition, "reading": search.reading} for partition in search.partitions),
        about=(partition.name for partition in search.partitions),
    )
    return [record["num_rows"] for record in search.run(count_only, tasks, stage="count", title="counting")]


def count_only(partition: Partition, reading: CorpusReading) -> Record:
    """Count the rows of a partition, bad rows included."""
    reader = PartitionReader(partition, reading)
    return {"num_rows": sum(1 for _ in reader), "rows_digests": reader.digests()}


def count_partition(
    partition: Partition,
    reading: CorpusReading,
    on_bad_sample: OnBadSample,
    ceiling: Ceiling,
    fields: str,
    digests_before: Sequence[str] | None = None,
) -> Record:
    """Read a partition, count rows and samples, and write the metadata with few values.

    Raises:
        CorpusError: A row is bad, and `on_bad_sample` is "stop", or too many of the first rows of the corpus are bad.
    """
    table = FieldTable()
    num_rows = num_samples = 0
    rejections: list[Rejection] = []
    reader = PartitionReader(partition, reading, digests_before)
    check = early_check(ceiling, reader)
    for row in reader:
        if isinstance(row, Rejection) and on_bad_sample == "stop":
            raise CorpusError(reading.sentence_of(row))
        # A bad row gets an empty entry, because the table stands row for row beside the tags.
        table.add(row.meta if isinstance(row, Sample) else {})
        num_rows += 1
        num_samples += isinstance(row, Sample)
        if isinstance(row, Rejection):
            rejections.append(replace(row, raw=None))
            check(num_rows, len(rejections), rejections)
    table.write(fields)
    return {
        "num_rows": num_rows,
        "num_samples": num_samples,
        "rows_digests": reader.digests(),
        "file_rows": reader.num_rows(),
        "set_aside_by": counts_of(rejections),
    }


def sample_rows(num_rows: Sequence[int], size: int, seed: int) -> list[Int[np.ndarray, " row"]]:
    """Choose `size` rows evenly over all partitions, or all rows of a smaller corpus.

    Args:
        num_rows: Number of rows of each partition.
        size: Number of rows to choose.
        seed: Seed for the choice.

    Returns:
        The chosen rows of each partition, in ascending order.

    >>> [rows.tolist() for rows in sample_rows([2, 0, 3], 9, seed=0)]
    [[0, 1], [], [0, 1, 2]]
    """
    total = sum(num_rows)
    chosen = distinct(size, total, "rows", seed, total)
    # `chosen` is sorted, so the rows of a partition are a slice.
    edges = np.concatenate([[0], np.cumsum(np.asarray(num_rows, np.int64))])
    cuts = np.searchsorted(chosen, edges)
    return [chosen[first:end] - edge for first, end, edge in zip(cuts[:-1], cuts[1:], edges[:-1], strict=True)]
