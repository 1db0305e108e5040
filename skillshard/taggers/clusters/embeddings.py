"""Compute the embeddings of a corpus, keep the embeddings row for row, and read the embeddings in chunks.

EMBEDDINGS/embeddings.json    written last: dimensions, and the rows and the digest of the file of each partition
EMBEDDINGS/000000.npy         float16, row x dim, with NaN in rows without a sample

An encoder that must be fitted sees a seeded sample of the texts. Batches are formed inside blocks of 1,024 rows of a partition, so the
bytes do not depend on the number of workers. A task needs memory for the texts of a block at a time.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import orjson
from jaxtyping import Float, Int

from skillshard import canonical, places, progress, storage
from skillshard.corpus import CorpusReading, Partition, Sample, read_partition
from skillshard.errors import TagsError
from skillshard.execution import Record, Task
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.encoder import Encoder, Unfitted, VectorsOf
from skillshard.taggers.clusters.lexical import open_lexical
from skillshard.taggers.clusters.saved import ANEW, FOLDER, file_fault
from skillshard.taggers.rows import sample_rows
from skillshard.taggers.tagger import Search
from skillshard.tags import Tags

EMBEDDINGS = "embeddings"
MANIFEST = "embeddings.json"
# So many texts form batches of similar length, and even a small corpus has a block for each process.
ROWS_AT_ONCE = 1024


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
    """Encode every partition, and return the places of the embeddings.

    A large partition is encoded in several pieces, so that a corpus in few files keeps all processes busy. Batches never cross a block of
    `ROWS_AT_ONCE` rows, and a piece is a number of whole blocks, so the bytes are the same for any pieces.
    """
    folder = search.work.scratch("kept", EMBEDDINGS)
    files = [array_place(folder, index) for index in range(len(search.partitions))]
    pieces = _pieces(encoder, search, num_rows)
    tasks = [
        Task(
            f"{index:06d}" if len(bounds) == 1 else f"{index:06d}-{number:04d}",
            {
                "partition": search.partitions[index],
                "encoder": encoder,
                "reading": search.reading,
                "first": first,
                "end": end,
                "place": files[index] if len(bounds) == 1 else _piece_place(search, index, number),
            },
            search.partitions[index].name,
        )
        for index, bounds in enumerate(pieces)
        for number, (first, end) in enumerate(bounds)
    ]
    records = search.run(
        encode_partition, tasks, stage="encode", title="encoding", keeps_model=True, num_gpus=encoder.num_gpus
    )
    digests = {task.arguments["place"]: record["digest"] for task, record in zip(tasks, records, strict=True)}
    cut = [index for index, bounds in enumerate(pieces) if len(bounds) > 1]
    if cut:
        joins = [
            Task(
                f"{index:06d}",
                {
                    "pieces": [_piece_place(search, index, number) for number in range(len(pieces[index]))],
                    "place": files[index],
                },
                search.partitions[index].name,
            )
            for index in cut
        ]
        joined = search.run(join_pieces, joins, stage="join", title="joining")
        digests |= {task.arguments["place"]: record["digest"] for task, record in zip(joins, joined, strict=True)}
    parts = [{"num_rows": num, "digest": digests[place]} for num, place in zip(num_rows, files, strict=True)]
    manifest = {"schema": "skillshard/embeddings/1", "dim": encoder.dim, "parts": parts}
    storage.write_bytes(places.join(folder, MANIFEST), canonical.to_json(manifest))
    return files


def _piece_place(search: Search, partition: int, piece: int) -> str:
    return search.work.scratch("pieces", f"{partition:06d}-{piece:04d}.npy")


def _pieces(encoder: Encoder, search: Search, num_rows: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Cut the partitions into pieces, as (first row, row after the last row) of each piece.

    A command that continues the work of another command keeps its pieces, whatever the number of processes, so that no finished piece is
    encoded again.
    """
    if search.backend.array_part is not None:  # the processes of a job array divide whole partitions
        return pieces_of(num_rows, 1)
    place = search.work.scratch("pieces.json")
    if not storage.exists(place):
        processes = search.backend.processes(sum(num_rows), num_gpus=encoder.num_gpus)
        storage.write_bytes(place, canonical.to_json(pieces_of(num_rows, processes)))
    return [[(first, end) for first, end in bounds] for bounds in storage.read_json(place)]


def pieces_of(num_rows: Sequence[int], processes: int) -> list[list[tuple[int, int]]]:
    """Cut partitions into pieces of about an equal share of all blocks for each process. A small partition is one piece.

    Args:
        num_rows: Number of rows of each partition.
        processes: Number of processes that encode at the same time.

    >>> pieces_of([3000, 10], 2)
    [[(0, 2048), (2048, 3000)], [(0, 10)]]
    >>> pieces_of([3000, 10], 1)
    [[(0, 3000)], [(0, 10)]]
    """
    if processes == 1:
        return [[(0, num)] for num in num_rows]
    num_blocks = [-(-num // ROWS_AT_ONCE) for num in num_rows]
    rows = ROWS_AT_ONCE * max(1, -(-sum(num_blocks) // processes))
    return [[(first, min(first + rows, num)) for first in range(0, max(num, 1), rows)] for num in num_rows]


def encode_partition(
    partition: Partition, encoder: Encoder, reading: CorpusReading, first: int, end: int, place: str
) -> Record:
    """Write the embeddings of the rows from `first` to before `end` of a partition, row for row, as float16."""
    # The memory map keeps only the current texts in memory, whatever the size of the partition.
    with storage.writing(place) as part:
        vectors = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=(end - first, encoder.dim))
        vectors[:] = np.nan
        waiting: list[tuple[int, Sample]] = []
        for number, row in enumerate(islice(read_partition(partition, reading), first, end)):
            if isinstance(row, Sample):
                waiting.append((number, row))
            # `first` is a multiple of the block, so the blocks are those of the partition.
            if (number + 1) % ROWS_AT_ONCE == 0:
                _put(vectors, waiting, encoder)
                waiting = []
                progress.advance(number + 1, end - first)
        _put(vectors, waiting, encoder)
        vectors.flush()
        del vectors
    return {"digest": storage.file_digest(place)}


def join_pieces(pieces: Sequence[str], place: str) -> Record:
    """Join the embeddings of the pieces of a partition to one file."""
    arrays = [storage.load_array(piece) for piece in pieces]
    shape = (sum(len(array) for array in arrays), arrays[0].shape[1])
    with storage.writing(place) as part:
        vectors = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
        np.concatenate(arrays, out=vectors)
        vectors.flush()
        del vectors
    return {"digest": storage.file_digest(place)}


def _put(vectors: np.ndarray, waiting: Sequence[tuple[int, Sample]], encoder: Encoder) -> None:
    if not waiting:
        return
    encoded = encoder.encode([sample.text for _, sample in waiting])
    # NaN would later count as a row without a sample, and the sample would be lost without an error.
    bad = np.flatnonzero(~np.isfinite(encoded).all(axis=1))
    if len(bad):
        sample = waiting[int(bad[0])][1]
        raise TagsError(
            f"{sample.file}: {encoder.name} gave numbers that are not finite for {len(bad):,} of {len(waiting):,} samples, the first with "
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


def bring_embeddings(tags: Tags, folder: str) -> list[str]:
    """Bring the embeddings beside tags to another directory, and return their places. Local files get hard links where that is possible.

    Raises:
        TagsError: A file of the embeddings is damaged or missing.
    """
    faults = verify_embeddings(tags.folder)
    if faults:
        raise TagsError(faults[0])
    names = [places.name(array_place(folder, part)) for part in range(len(tags.manifest.parts))]
    storage.bring_all([(tags.place(EMBEDDINGS, name), places.join(folder, name)) for name in (*names, MANIFEST)])
    return [places.join(folder, name) for name in names]


def verify_embeddings(tags: str | os.PathLike[str]) -> list[str]:
    """List the faults of the embeddings beside tags. Tags without embeddings have no fault."""
    folder = places.join(tags, EMBEDDINGS)
    manifest = places.join(folder, MANIFEST)
    if not storage.exists(manifest):
        return []
    content = storage.read_json(manifest)
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) and "digest" in part for part in parts):
        return [f"{places.public(manifest)} does not list the embeddings of the parts: damaged or edited. {ANEW}"]
    faults = (file_fault(array_place(folder, index), part["digest"], MANIFEST) for index, part in enumerate(parts))
    return [fault for fault in faults if fault]


def array_place(folder: str | os.PathLike[str], part: int) -> str:
    """Return the place of the array that holds the rows of one partition."""
    return places.join(folder, f"{part:06d}.npy")
