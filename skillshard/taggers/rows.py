"""The rows of a corpus: read once and counted, so that what is wrong with a sample is said before anything costly begins."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from skillshard.corpus import Partition, PartitionReader, Rejection, Sample
from skillshard.errors import CorpusError
from skillshard.execution import Record, keyed
from skillshard.keyed_random import distinct
from skillshard.taggers.fields import FOLDER as FIELDS
from skillshard.taggers.fields import FieldTable, fields_place
from skillshard.taggers.tagger import OnBadSample, Search


def count_rows(search: Search) -> tuple[list[int], int]:
    """Rows of each partition, and samples of all."""
    fields = search.work.scratch("kept", FIELDS)
    tasks = keyed(
        {
            "partition": partition,
            "reading": search.reading,
            "on_bad_sample": search.on_bad_sample,
            "fields": fields_place(fields, at),
        }
        for at, partition in enumerate(search.partitions)
    )
    records = search.run(count_partition, tasks, stage="count", title="counting")
    return [record["num_rows"] for record in records], sum(record["num_samples"] for record in records)


def num_rows_of(search: Search) -> list[int]:
    """Rows of each partition, where nothing else about them has to be known."""
    tasks = keyed({"partition": partition, "reading": search.reading} for partition in search.partitions)
    return [record["num_rows"] for record in search.run(count_only, tasks, stage="count", title="counting")]


def count_only(partition: Partition, reading: Mapping[str, Any]) -> Record:
    """The number of rows of a partition, bad ones too."""
    reader = PartitionReader(partition, **reading)
    return {"num_rows": sum(1 for _ in reader), "rows_digest": reader.digest()}


def count_partition(
    partition: Partition, reading: Mapping[str, Any], on_bad_sample: OnBadSample, fields: str
) -> Record:
    """Read a partition, and keep its metadata of few values; CorpusError at the first bad row unless these are set aside."""
    table = FieldTable()
    num_rows = num_samples = 0
    reader = PartitionReader(partition, **reading)
    for row in reader:
        if isinstance(row, Rejection) and on_bad_sample == "stop":
            raise CorpusError(row.sentence())
        table.add(row.meta if isinstance(row, Sample) else {})
        num_rows += 1
        num_samples += isinstance(row, Sample)
    table.write(fields)
    return {"num_rows": num_rows, "num_samples": num_samples, "rows_digest": reader.digest()}


def sample_rows(num_rows: Sequence[int], size: int, seed: int) -> list[Int[np.ndarray, " row"]]:
    """Rows chosen evenly over all partitions, for each partition in their order; all of them if there are not more.

    >>> [rows.tolist() for rows in sample_rows([2, 0, 3], 9, seed=0)]
    [[0, 1], [], [0, 1, 2]]
    """
    total = sum(num_rows)
    chosen = distinct(size, total, "rows", seed, total)
    edges = np.concatenate([[0], np.cumsum(np.asarray(num_rows, np.int64))])
    cuts = np.searchsorted(chosen, edges)
    return [chosen[a:b] - edge for a, b, edge in zip(cuts[:-1], cuts[1:], edges[:-1], strict=True)]
