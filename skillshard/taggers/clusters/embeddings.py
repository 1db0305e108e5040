"""Compute the embeddings of a corpus, keep the embeddings row for row, and read them in chunks.

EMBEDDINGS/embeddings.json    written last: dimensions, and the rows and the digest of the file of each partition
EMBEDDINGS/000000.npy         float16, row x dim, with NaN in rows without a sample

An encoder that must be fitted sees a seeded sample of the texts. Batches are formed inside a partition, so the bytes do not depend on
the number of workers. A task needs memory for 8,192 texts at a time.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from jaxtyping import Float, Int

from skillshard import canonical, places, progress, storage
from skillshard.corpus import CorpusReading, Partition, Sample, read_partition
from skillshard.errors import TagsError
from skillshard.execution import Record, Task, keyed, num_cpus
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.encoder import Encoder, Unfitted, VectorsOf
from skillshard.taggers.clusters.lexical import open_lexical
from skillshard.taggers.clusters.saved import FOLDER, file_fault
from skillshard.taggers.rows import sample_rows
from skillshard.taggers.tagger import Search

EMBEDDINGS = "embeddings"
MANIFEST = "embeddings.json"
# So many texts form batches of similar length, and still fit into memory.
TEXTS_AT_ONCE = 8192
ONE_PARTITION_BYTES = 4 << 20
"""Size below which a corpus in one partition gives no warning, because one process encodes the corpus quickly."""


@dataclass(frozen=True)
class SampledRows:
    """Rows that k-means is fitted on, each with its partition, the number of the row in the partition, and the vector."""

    partition: Int[np.ndarray, " point"]
    row: Int[np.ndarray, " point"]
    points: Float[np.ndarray, "point dim"]


def fit_encoder(encoder: Encoder | Unfitted, search: Search, num_rows: Sequence[int], *, seed: int) -> Encoder:
    """Return a fitted encoder unchanged, or fit an unfitted encoder on a seeded sample of the texts."""
    if not isinstance(encoder, Unfitted):
        return encoder
    rows = sample_rows(num_rows, encoder.sample_size, seed)
    files = [search.work.scratch("texts", f"{index:06d}.json") for index in range(len(rows))]
    tasks = [
        Task(
            f"{index:06d}",
            {"partition": partition, "reading": search.reading, "rows": chosen.tolist(), "place": place},
            partition.name,
        )
        for index, (partition, chosen, place) in enumerate(zip(search.partitions, rows, files, strict=True))
        if len(chosen)
    ]
    search.run(take_texts, tasks, stage="texts", title="sampling")
    folder = search.work.scratch("kept", FOLDER)
    done = search.work.scratch("encoder.json")
    # `encoder.json` comes last, so a fit that was killed between its files is done again.
    if not storage.exists(done):
        texts = [text for task in tasks for text in storage.read_json(task.arguments["place"])]
        encoder.fit(texts, folder, seed=seed)
        storage.write_bytes(done, canonical.to_json(encoder.arguments))
    return open_lexical(folder)


def take_texts(partition: Partition, reading: CorpusReading, rows: Sequence[int], place: str) -> Record:
    """Write the texts of the given rows as a JSON list."""
    wanted = set(rows)
    texts = [
        row.text
        for number, row in enumerate(read_partition(partition, reading))
        if number in wanted and isinstance(row, Sample)
    ]
    storage.write_bytes(place, orjson.dumps(texts))
    return {"num_texts": len(texts)}


def encode_rows(encoder: Encoder, search: Search, num_rows: Sequence[int]) -> list[str]:
    """Encode every partition, and return the places of the embeddings."""
    _warn_of_one_partition(search)
    folder = search.work.scratch("kept", EMBEDDINGS)
    files = [array_place(folder, index) for index in range(len(search.partitions))]
    tasks = keyed(
        (
            {"partition": partition, "encoder": encoder, "reading": search.reading, "num_rows": num, "place": place}
            for partition, num, place in zip(search.partitions, num_rows, files, strict=True)
        ),
        about=(partition.name for partition in search.partitions),
    )
    records = search.run(
        encode_partition, tasks, stage="encode", title="encoding", keeps_model=True, num_gpus=encoder.num_gpus
    )
    parts = [{"num_rows": num, **record} for num, record in zip(num_rows, records, strict=True)]
    manifest = {"schema": "skillshard/embeddings/1", "dim": encoder.dim, "parts": parts}
    storage.write_bytes(places.join(folder, MANIFEST), canonical.to_json(manifest))
    return files


def _warn_of_one_partition(search: Search) -> None:
    workers = search.backend.workers or num_cpus()
    if len(search.partitions) == 1 and workers > 1 and search.partitions[0].file_bytes > ONE_PARTITION_BYTES:
        only = search.partitions[0]
        remedy = (
            "Split the file"
            if only.compression or only.format not in ("jsonl", "parquet", "arrow")
            else "Give a smaller `partition_bytes`"
        )
        warnings.warn(
            f"the corpus is one partition ({only.name}, {only.file_bytes:,} bytes), so a single process of {workers} encodes the corpus. "
            f"{remedy} to use all processes",
            stacklevel=2,
        )


def encode_partition(
    partition: Partition, encoder: Encoder, reading: CorpusReading, num_rows: int, place: str
) -> Record:
    """Write the embeddings of a partition, row for row, as float16."""
    # The memory map keeps only the current texts in memory, whatever the size of the partition.
    with storage.writing(place) as part:
        vectors = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=(num_rows, encoder.dim))
        vectors[:] = np.nan
        waiting: list[tuple[int, Sample]] = []
        for number, row in enumerate(read_partition(partition, reading)):
            if isinstance(row, Sample):
                waiting.append((number, row))
            if len(waiting) == TEXTS_AT_ONCE:
                _put(vectors, waiting, encoder, partition)
                waiting = []
                progress.advance(number + 1, num_rows)
        _put(vectors, waiting, encoder, partition)
        vectors.flush()
        del vectors
    return {"digest": storage.file_digest(place)}


def _put(vectors: np.ndarray, waiting: Sequence[tuple[int, Sample]], encoder: Encoder, partition: Partition) -> None:
    if not waiting:
        return
    encoded = encoder.encode([sample.text for _, sample in waiting])
    # NaN would later count as a row without a sample, and the sample would be lost without an error.
    bad = np.flatnonzero(~np.isfinite(encoded).all(axis=1))
    if len(bad):
        sample = waiting[int(bad[0])][1]
        raise TagsError(
            f"{partition.name}: {encoder.name} gave numbers that are not finite for {len(bad):,} of {len(waiting):,} samples, the first with "
            f"id {sample.id!r}. Try `dtype='float32'` or another encoder. If only these samples fail, remove them from the corpus."
        )
    vectors[[number for number, _ in waiting]] = encoded


def sample_vectors(files: Sequence[str], num_rows: Sequence[int], size: int, *, seed: int) -> SampledRows:
    """Choose rows evenly over all partitions, drop the rows without a sample, and load the vectors."""
    rows = sample_rows(num_rows, size, seed)
    points = [storage.load_array(place)[chosen].astype(np.float32) for place, chosen in zip(files, rows, strict=True)]
    every, partition = np.concatenate(points), np.repeat(np.arange(len(rows)), [len(chosen) for chosen in rows])
    # A vector is NaN as a whole or not at all.
    has_sample = ~np.isnan(every[:, 0])
    return SampledRows(partition[has_sample], np.concatenate(rows)[has_sample], every[has_sample])


def vector_chunks(place: str) -> Iterator[tuple[Int[np.ndarray, " row"], VectorsOf]]:
    """Yield the numbers of rows with samples, and the vectors of the rows, in chunks."""
    vectors = storage.load_array(place)
    for first in range(0, len(vectors), kmeans.ROWS_AT_ONCE):
        block = np.asarray(vectors[first : first + kmeans.ROWS_AT_ONCE]).astype(np.float32)
        with_sample = np.flatnonzero(~np.isnan(block[:, 0]))
        # Most chunks have no bad row, and indexing would copy the chunk.
        yield first + with_sample, block if len(with_sample) == len(block) else block[with_sample]


def has_embeddings(tags: str | os.PathLike[str]) -> bool:
    """Tell whether embeddings lie beside tags."""
    return storage.exists(places.join(tags, EMBEDDINGS, MANIFEST))


def verify_embeddings(tags: str | os.PathLike[str]) -> list[str]:
    """List the faults of the embeddings beside tags. Tags without embeddings have no fault."""
    folder = places.join(tags, EMBEDDINGS)
    manifest = places.join(folder, MANIFEST)
    if not storage.exists(manifest):
        return []
    parts = storage.read_json(manifest)["parts"]
    faults = (file_fault(array_place(folder, index), part["digest"], MANIFEST) for index, part in enumerate(parts))
    return [fault for fault in faults if fault]


def array_place(folder: str | os.PathLike[str], part: int) -> str:
    """Return the place of the array that holds the rows of one partition."""
    return places.join(folder, f"{part:06d}.npy")
