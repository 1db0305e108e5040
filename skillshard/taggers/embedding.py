"""Skills are clusters of embeddings.

1. `count_partition`: every row read once, so that what is wrong with a sample is said before anything costly begins.
2. An encoder that must be fitted sees a seeded sample of the texts (`take_texts`).
3. `encode_partition`: rows -> embeddings/000000.npy, float16, row for row, NaN where a row holds no sample. Batches are formed
   inside a partition, so the bytes do not depend on the number of workers.
4. k-means on a seeded sample in one process, then steps over all rows (`step_partition`): each adds up its rows, the sums
   are added in the order of the partitions.
5. `assign_partition`: cluster and distance of each row. 6. `look_at_rows`: terms and nearest samples, for names.

With a kept model there are only 1, 3 and 5. Memory of a unit: its texts, 1024 at a time, and its embeddings by chunks of 8192 rows. On
paper a billion samples of 384 dimensions are 768 GB of embeddings; a step or the assignment to 256 clusters is 2e14 operations,
about an hour on one core of 50 GFLOPS, spread over all units.
"""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from jaxtyping import Float, Int

from skillshard import storage
from skillshard.corpus import Partition, Rejection, Sample, read_partition
from skillshard.errors import CorpusError, TagsError
from skillshard.execution import Record, Unit, keyed, num_cpus, run
from skillshard.taggers import kmeans
from skillshard.taggers.cluster_model import (
    CENTROIDS,
    FOLDER,
    Cluster,
    ClusterModel,
    EncoderRecord,
    NearestSample,
    TriedNumber,
    copy_model,
    file_fault,
    save_model,
)
from skillshard.taggers.cluster_names import count_terms, name_clusters
from skillshard.taggers.encoder import Encoder, Unfitted, VectorsOf
from skillshard.taggers.fields import FOLDER as FIELDS
from skillshard.taggers.fields import FieldTable, fields_place
from skillshard.taggers.kmeans import Clusters
from skillshard.taggers.lexical import FILES as LEXICAL_FILES
from skillshard.taggers.lexical import open_lexical
from skillshard.taggers.tagger import Finder, OnBadSample, RowTagger, Search, Tag

TEXTS_AT_ONCE = 8192
STEPS_OVER_ALL = 2
NUM_NEAREST = 5
NAMED_BY = 300
"""Samples of a cluster whose words are looked at for its name."""
PREVIEW_CHARS = 160
BALANCE_TRIES = 5
ONE_PARTITION_BYTES = 4 << 20
"""A corpus smaller than this may be one partition and nobody minds."""
EMBEDDINGS = "embeddings"
CRITERION = "simplified silhouette"
"""Shown with the curve; `kmeans.best_of` says which number is taken."""
ASSIGNED = np.dtype([("cluster", "<i4"), ("distance", "<f4")])


# --- what tags -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedding:
    """See `embedding`."""

    encoder: Encoder | Unfitted
    skills: int | Literal["auto"]
    skills_range: tuple[int, int]
    min_share: float
    seed: int

    @property
    def name(self) -> str:
        return "embedding"

    @property
    def arguments(self) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "encoder": self.encoder.name,
            "encoder_arguments": self.encoder.arguments,
            "skills": self.skills,
        }
        if self.skills == "auto":
            asked["skills_range"] = list(self.skills_range)
        return {**asked, "min_share": self.min_share, "seed": self.seed}

    def find(self, search: Search) -> RowTagger:
        num_rows, num_samples = count_rows(search)
        if num_samples == 0:
            return AssignedRows("", ())
        encoder = _fitted(self.encoder, search, num_rows, self.seed)
        places = _encode(encoder, search, num_rows)
        sample = _sample(places, num_rows, kmeans.sample_size(self._most), self.seed)
        fitted = _fit(self, search, places, sample, covers_all=len(sample.points) == num_samples)
        clusters, records = _assign_balanced(self, search, places, sample, fitted.clusters)
        names = _describe(encoder, search, num_rows, sample, clusters, records, fitted.tried)
        return AssignedRows(str(search.work.scratch("assigned")), tuple(names))

    @property
    def _most(self) -> int:
        return self.skills if isinstance(self.skills, int) else self.skills_range[1]


@dataclass(frozen=True)
class KeptClusters:
    """See `kept_clusters`."""

    model: ClusterModel
    encoder: Encoder

    @property
    def name(self) -> str:
        return "embedding"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"model": self.model.digest, "encoder_arguments": self.encoder.arguments}

    def find(self, search: Search) -> RowTagger:
        num_rows, _ = count_rows(search)
        places = _encode(self.encoder, search, num_rows)
        _assign(search, places, self.model.clusters, "assign")
        copy_model(self.model, search.work.scratch("kept", FOLDER))
        return AssignedRows(str(search.work.scratch("assigned")), tuple(self.model.names))


@dataclass(frozen=True)
class AssignedRows:
    """Tags by the clusters that stage 5 wrote."""

    folder: str
    names: tuple[str, ...]

    def tag_rows(self, partition: int, rows: Sequence[int]) -> list[Tag]:
        if not rows:
            return []
        found = np.load(_place(self.folder, partition), mmap_mode="r")[list(rows)]
        return [
            Tag(self.names[cluster], distance)
            for cluster, distance in zip(found["cluster"].tolist(), found["distance"].tolist(), strict=True)
        ]


def embedding(
    encoder: Encoder | Unfitted,
    *,
    skills: int | Literal["auto"],
    skills_range: tuple[int, int] = (2, 64),
    min_share: float = 0.0,
    seed: int = 0,
) -> Finder:
    """Tag by clusters of embeddings; the score is the distance to the cluster's centroid, 1 - cosine, in [0, 2].

    Args:
        encoder: `lexical()`, or `sentence_encoder(NAME)`.
        skills: number of clusters; "auto": the knee of the simplified silhouette over numbers in `skills_range`.
        skills_range: least and most clusters that "auto" tries.
        min_share: no cluster gets a smaller share of the samples.
        seed: of the samples and starts.

    Raises:
        TagsError: arguments out of range.
    """
    least, most = skills_range
    if not 2 <= least <= most:
        raise TagsError(f"--skills auto tries from {least} to {most}: give 2 or more, and the smaller number first.")
    if skills != "auto" and skills < 2:
        raise TagsError(f"--skills {skills} leaves nothing to tell apart: give 2 or more, or 'auto'.")
    if not 0 <= min_share < 0.5:
        raise TagsError(f"--balance {min_share}: give the least share of a skill, from 0 to below 0.5.")
    return Embedding(encoder, skills, skills_range, min_share, seed)


def kept_clusters(model: ClusterModel, encoder: Encoder) -> Finder:
    """Tag by clusters that were found before, perhaps in another corpus.

    Raises:
        TagsError: the encoder is not the one that the centroids belong to.
    """
    kept = model.manifest.encoder
    if encoder.dim != kept.dim:
        raise TagsError(
            f"the centroids in {model.folder} have {kept.dim} dimensions, and {encoder.name} gives {encoder.dim}: give the encoder that "
            f"they were made with, {kept.name}."
        )
    for what in ("weights_digest", "digests", "prompt", "max_length", "windows"):
        if encoder.arguments.get(what) != kept.arguments.get(what):
            raise TagsError(
                f"the centroids in {model.folder} were made with {kept.name} with {what} {kept.arguments.get(what)!r}, and this encoder has "
                f"{encoder.arguments.get(what)!r}: give the same."
            )
    return KeptClusters(model, encoder)


def kept_lexical(model: ClusterModel) -> Encoder:
    """The lexical encoder that a model keeps; TagsError if it was made with another."""
    kept = model.manifest.encoder
    if kept.kind != "lexical":
        raise TagsError(
            f"the centroids in {model.folder} have {kept.dim} dimensions, and were made with --encoder {kept.name}, not lexical: give the same."
        )
    return open_lexical(str(model.folder))


def encoder_files(encoder: Encoder) -> tuple[str, ...]:
    """What an encoder keeps beside the centroids."""
    return LEXICAL_FILES if encoder.name == "lexical" else ()


# --- 1 to 3: rows, texts, vectors ------------------------------------------------------------------------------------


def count_rows(search: Search) -> tuple[list[int], int]:
    """Rows of each partition, and samples of all."""
    fields = search.work.scratch("kept", FIELDS)
    units = keyed(
        {
            "partition": partition,
            "reading": search.reading,
            "on_bad_sample": search.on_bad_sample,
            "fields": fields_place(fields, at),
        }
        for at, partition in enumerate(search.partitions)
    )
    records = _stage(search, count_partition, units, "count", "counting")
    return [record["num_rows"] for record in records], sum(record["num_samples"] for record in records)


def count_partition(
    partition: Partition, reading: Mapping[str, Any], on_bad_sample: OnBadSample, fields: str
) -> Record:
    """Read a partition, and keep its metadata of few values; CorpusError at the first bad row unless these are set aside."""
    table = FieldTable()
    num_rows = num_samples = 0
    for row in read_partition(partition, **reading):
        if isinstance(row, Rejection) and on_bad_sample == "stop":
            raise CorpusError(row.sentence())
        table.add(row.meta if isinstance(row, Sample) else {})
        num_rows += 1
        num_samples += isinstance(row, Sample)
    table.write(fields)
    return {"num_rows": num_rows, "num_samples": num_samples}


def _fitted(encoder: Encoder | Unfitted, search: Search, num_rows: Sequence[int], seed: int) -> Encoder:
    if not isinstance(encoder, Unfitted):
        return encoder
    rows = sample_rows(num_rows, encoder.sample_size, seed)
    places = [str(search.work.scratch("texts", f"{at:06d}.json")) for at in range(len(rows))]
    units = [
        Unit(f"{at:06d}", {"partition": partition, "reading": search.reading, "rows": found.tolist(), "place": place})
        for at, (partition, found, place) in enumerate(zip(search.partitions, rows, places, strict=True))
        if len(found)
    ]
    _stage(search, take_texts, units, "texts", "sampling")
    folder = search.work.scratch("kept", FOLDER)
    done = search.work.scratch("encoder.json")
    if not done.exists():
        texts = [text for unit in units for text in storage.read_json(unit.arguments["place"])]
        encoder.fit(texts, str(folder), seed=seed)
        storage.write_bytes(done, storage.to_json(encoder.arguments))
    return open_lexical(str(folder))


def take_texts(partition: Partition, reading: Mapping[str, Any], rows: Sequence[int], place: str) -> Record:
    """Some rows' texts, as a JSON list."""
    wanted = set(rows)
    texts = [
        row.text
        for number, row in enumerate(read_partition(partition, **reading))
        if number in wanted and isinstance(row, Sample)
    ]
    storage.write_bytes(place, orjson.dumps(texts))
    return {"num_texts": len(texts)}


def _encode(encoder: Encoder, search: Search, num_rows: Sequence[int]) -> list[str]:
    """Embeddings of every partition; their places."""
    _warn_of_one_partition(search)
    folder = search.work.scratch("kept", EMBEDDINGS)
    places = [_place(str(folder), at) for at in range(len(search.partitions))]
    units = keyed(
        {"partition": partition, "encoder": encoder, "reading": search.reading, "num_rows": num, "place": place}
        for partition, num, place in zip(search.partitions, num_rows, places, strict=True)
    )
    records = run(
        encode_partition,
        units,
        where=search.where,
        records=search.work.records("encode"),
        on_done=search.on_stage("encoding", len(units)),
        keeps_model=True,
        num_gpus=encoder.num_gpus,
    )
    parts = [{"num_rows": num, **record} for num, record in zip(num_rows, records, strict=True)]
    manifest = {"schema": "skillshard/embeddings/1", "dim": encoder.dim, "parts": parts}
    storage.write_bytes(folder / "embeddings.json", storage.to_json(manifest))
    return places


def _warn_of_one_partition(search: Search) -> None:
    workers = search.where.workers or num_cpus()
    if len(search.partitions) == 1 and workers > 1 and search.partitions[0].file_bytes > ONE_PARTITION_BYTES:
        only = search.partitions[0]
        how = "split the file" if only.format in ("jsonl.gz", "jsonl.zst", "tar") else "give a smaller --partition-size"
        warnings.warn(
            f"the corpus is one partition ({only.name}, {only.file_bytes:,} bytes), so one process of {workers} encodes it: {how} to use "
            "them all",
            stacklevel=2,
        )


def encode_partition(
    partition: Partition, encoder: Encoder, reading: Mapping[str, Any], num_rows: int, place: str
) -> Record:
    """Embeddings of a partition, row for row, as float16."""
    with storage.writing(place) as part:
        vectors = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=(num_rows, encoder.dim))
        vectors[:] = np.nan
        waiting: list[tuple[int, Sample]] = []
        for number, row in enumerate(read_partition(partition, **reading)):
            if isinstance(row, Sample):
                waiting.append((number, row))
            if len(waiting) == TEXTS_AT_ONCE:
                _put(vectors, waiting, encoder, partition)
                waiting = []
        _put(vectors, waiting, encoder, partition)
        vectors.flush()
        del vectors
    return {"digest": storage.file_digest(place)}


def _put(vectors: np.ndarray, waiting: Sequence[tuple[int, Sample]], encoder: Encoder, partition: Partition) -> None:
    if not waiting:
        return
    found = encoder.encode([sample.text for _, sample in waiting])
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        sample = waiting[int(bad[0])][1]
        raise TagsError(
            f"{partition.name}: {encoder.name} gave numbers that are not finite for {len(bad):,} of {len(waiting):,} samples, the first with "
            f"id {sample.id!r}. Try --dtype float32 or another encoder; if it is only these samples, take them out."
        )
    vectors[[number for number, _ in waiting]] = found


# --- 4 and 5: clusters -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampledRows:
    """Rows that k-means is fitted on: their partition, their row in it, their vectors."""

    partition: Int[np.ndarray, " point"]
    row: Int[np.ndarray, " point"]
    points: Float[np.ndarray, "point dim"]


@dataclass(frozen=True)
class Fitted:
    """Clusters, and with --skills auto what was tried."""

    clusters: Clusters
    tried: tuple[kmeans.Choice, ...]


def sample_rows(num_rows: Sequence[int], size: int, seed: int) -> list[Int[np.ndarray, " row"]]:
    """Rows chosen evenly over all partitions, for each partition in their order; all of them if there are not more.

    >>> [rows.tolist() for rows in sample_rows([2, 0, 3], 9, seed=0)]
    [[0, 1], [], [0, 1, 2]]
    """
    total = sum(num_rows)
    random = np.random.default_rng([seed, total])
    chosen = np.arange(total) if size >= total else np.sort(random.choice(total, size, replace=False, shuffle=False))
    edges = np.concatenate([[0], np.cumsum(np.asarray(num_rows, np.int64))])
    cuts = np.searchsorted(chosen, edges)
    return [chosen[a:b] - edge for a, b, edge in zip(cuts[:-1], cuts[1:], edges[:-1], strict=True)]


def _sample(places: Sequence[str], num_rows: Sequence[int], size: int, seed: int) -> SampledRows:
    rows = sample_rows(num_rows, size, seed)
    points = [
        np.load(place, mmap_mode="r")[found].astype(np.float32) for place, found in zip(places, rows, strict=True)
    ]
    every, partition = np.concatenate(points), np.repeat(np.arange(len(rows)), [len(found) for found in rows])
    good = ~np.isnan(every[:, 0])
    return SampledRows(partition[good], np.concatenate(rows)[good], every[good])


def _fit(tagger: Embedding, search: Search, places: Sequence[str], sample: SampledRows, *, covers_all: bool) -> Fitted:
    """Clusters from the sample, then steps over all rows."""
    from threadpoolctl import threadpool_limits

    folder, done = search.work.scratch("fit"), search.work.scratch("fit", "tried.json")
    if not done.exists():
        with threadpool_limits(1):
            fitted = _fit_sample(tagger, sample.points, search)
        _save(folder / CENTROIDS, fitted.clusters.centroids)
        storage.write_bytes(done, storage.to_json([[one.num_clusters, one.score] for one in fitted.tried]))
    tried = [kmeans.Choice(num, score) for num, score in storage.read_json(done)]
    clusters = _unbalanced(np.load(folder / CENTROIDS))
    for step in range(0 if covers_all else STEPS_OVER_ALL):
        clusters = _step_over_all(search, places, clusters, step)
    return Fitted(clusters, tuple(tried))


def _unbalanced(centroids: Float[np.ndarray, "cluster dim"]) -> Clusters:
    return Clusters(centroids, np.zeros(len(centroids), np.float32), True)


def _fit_sample(tagger: Embedding, points: VectorsOf, search: Search) -> Fitted:
    if tagger.skills != "auto":
        return Fitted(kmeans.fit(points, tagger.skills, seed=tagger.seed, min_share=tagger.min_share), ())
    least, most = tagger.skills_range
    most = min(most, kmeans.count_distinct(points, most), _most_with(tagger.min_share))
    kmeans.refuse_too_many(points, least)
    numbers = kmeans.tried_numbers(least, max(least, most))
    advance = search.on_stage("fitting", len(numbers))
    tried, found = [], {}
    for number in numbers:
        found[number] = kmeans.fit(points, number, seed=tagger.seed, min_share=tagger.min_share)
        tried.append(kmeans.Choice(number, kmeans.simplified_silhouette(points, found[number])))
        advance(Unit(str(number), {}), {})
    return Fitted(found[kmeans.best_of(tried).num_clusters], tuple(tried))


def _most_with(min_share: float) -> int:
    return int(0.5 / min_share) if min_share else 1 << 30


def _step_over_all(search: Search, places: Sequence[str], clusters: Clusters, step: int) -> Clusters:
    folder = search.work.scratch(f"step-{step}")
    _save(folder / CENTROIDS, clusters.centroids)
    units = keyed(
        {"vectors": place, "centroids": str(folder / CENTROIDS), "place": str(folder / f"{at:06d}.npz")}
        for at, place in enumerate(places)
    )
    _stage(search, step_partition, units, f"step-{step}", f"k-means {step + 1}")
    sums, counts = np.zeros(clusters.centroids.shape), np.zeros(clusters.num_clusters, np.int64)
    for unit in units:
        with np.load(unit.arguments["place"]) as found:
            sums += found["sums"]
            counts += found["counts"]
    return kmeans.moved(clusters, sums, counts)


def step_partition(vectors: str, centroids: str, place: str) -> Record:
    """The sums and counts of one partition's rows, for a step of k-means."""
    from threadpoolctl import threadpool_limits

    clusters = _unbalanced(np.load(centroids))
    sums, counts = np.zeros(clusters.centroids.shape), np.zeros(clusters.num_clusters, np.int64)
    with threadpool_limits(1):
        for _, points in _chunks(vectors):
            found = kmeans.sums_of(points, kmeans.assign(points, clusters).cluster, clusters.num_clusters)
            sums, counts = sums + found[0], counts + found[1]
    with storage.writing(place) as part, part.open("wb") as file:
        np.savez(file, sums=sums, counts=counts)
    return {"num_rows": int(counts.sum())}


def _chunks(place: str) -> Iterator[tuple[Int[np.ndarray, " row"], VectorsOf]]:
    """The rows that hold samples, and their vectors, some at a time."""
    vectors = np.load(place, mmap_mode="r")
    for first in range(0, len(vectors), kmeans.ROWS_AT_ONCE):
        block = np.asarray(vectors[first : first + kmeans.ROWS_AT_ONCE]).astype(np.float32)
        good = np.flatnonzero(~np.isnan(block[:, 0]))
        yield first + good, block if len(good) == len(block) else block[good]


def _assign_balanced(
    tagger: Embedding, search: Search, places: Sequence[str], sample: SampledRows, clusters: Clusters
) -> tuple[Clusters, list[Record]]:
    """Assign every row; where a least share is asked for, with a margin that grows until all of the corpus keeps it."""
    if not tagger.min_share:
        return clusters, _assign(search, places, clusters, "assign")
    smallest = 0.0
    for attempt in range(BALANCE_TRIES):
        share = min(tagger.min_share * (1 + 0.1 * attempt), 0.5 / clusters.num_clusters)
        balanced = kmeans.with_bonus(sample.points, clusters, int(np.ceil(share * len(sample.points))))
        records = _assign(search, places, balanced, f"assign-{attempt}")
        counts = np.sum([record["counts"] for record in records], axis=0)
        smallest = counts.min() / counts.sum()
        if smallest >= tagger.min_share:
            return balanced, records
    raise TagsError(
        f"--balance {tagger.min_share}: the smallest of {clusters.num_clusters} skills still has a share of {smallest:.4f} after {BALANCE_TRIES} tries. "
        "Lower --balance or --skills."
    )


def _assign(search: Search, places: Sequence[str], clusters: Clusters, stage: str) -> list[Record]:
    folder = search.work.scratch(stage)
    _save(folder / CENTROIDS, clusters.centroids)
    out = str(search.work.scratch("assigned"))
    units = keyed(
        {
            "vectors": place,
            "centroids": str(folder / CENTROIDS),
            "bonus": clusters.bonus.tolist(),
            "spherical": clusters.spherical,
            "place": _place(out, at),
        }
        for at, place in enumerate(places)
    )
    return _stage(search, assign_partition, units, stage, "assigning")


def assign_partition(vectors: str, centroids: str, bonus: Sequence[float], spherical: bool, place: str) -> Record:
    """Cluster and distance of each row of one partition; -1 where a row holds no sample."""
    from threadpoolctl import threadpool_limits

    clusters = Clusters(np.load(centroids), np.array(bonus, np.float32), spherical)
    num = clusters.num_clusters
    counts, distances = np.zeros(num, np.int64), np.zeros(num)
    found = np.zeros(len(np.load(vectors, mmap_mode="r")), ASSIGNED)
    found["cluster"] = -1
    with threadpool_limits(1):
        for rows, points in _chunks(vectors):
            assigned = kmeans.assign(points, clusters)
            found["cluster"][rows], found["distance"][rows] = assigned.cluster, assigned.distance
            counts += np.bincount(assigned.cluster, minlength=num)
            distances += np.bincount(assigned.cluster, assigned.distance, minlength=num)
    _save(Path(place), found)
    return {"counts": counts.tolist(), "distances": distances.tolist(), "nearest": _nearest_rows(found, num)}


def _nearest_rows(found: np.ndarray, num_clusters: int) -> list[list[tuple[float, int]]]:
    """For each cluster (distance, row) of the rows nearest to its centroid."""
    rows = np.flatnonzero(found["cluster"] >= 0)
    rows = rows[np.lexsort((rows, found["distance"][rows], found["cluster"][rows]))]
    edges = np.searchsorted(found["cluster"][rows], np.arange(num_clusters))
    ends = np.append(edges[1:], len(rows))
    best = [rows[edge : min(end, edge + NUM_NEAREST)] for edge, end in zip(edges, ends, strict=True)]
    return [[(float(found["distance"][row]), int(row)) for row in some] for some in best]


# --- 6: names --------------------------------------------------------------------------------------------------------


def _describe(
    encoder: Encoder,
    search: Search,
    num_rows: Sequence[int],
    sample: SampledRows,
    clusters: Clusters,
    records: Sequence[Record],
    tried: Sequence[kmeans.Choice],
) -> list[str]:
    """Name the clusters and keep all that is known of them; the names."""
    num = clusters.num_clusters
    nearest = [_nearest_of(records, cluster) for cluster in range(num)]
    looked_at = _rows_for_names(sample, search, num, nearest)
    units = [
        Unit(f"{at:06d}", {"partition": search.partitions[at], "reading": search.reading, "rows": rows})
        for at, rows in sorted(looked_at.items())
    ]
    seen = dict(zip(sorted(looked_at), _stage(search, look_at_rows, units, "names", "naming"), strict=True))
    terms: list[Counter[str]] = [Counter() for _ in range(num)]
    num_seen = [0] * num
    for at, record in seen.items():
        for cluster, counted in record["terms"].items():
            terms[int(cluster)].update(counted)
        for cluster in looked_at[at].values():
            num_seen[cluster] += 1
    counts = np.sum([record["counts"] for record in records], axis=0)
    distances = np.sum([record["distances"] for record in records], axis=0)
    described = [
        Cluster(
            name=named.name,
            terms=list(named.terms),
            num_samples=int(counts[at]),
            mean_distance=round(float(distances[at] / max(counts[at], 1)), 6),
            bonus=float(clusters.bonus[at]),
            nearest=[
                NearestSample(distance=round(distance, 6), **seen[partition]["rows"][str(row)])
                for distance, partition, row in nearest[at]
            ],
        )
        for at, named in enumerate(name_clusters(terms, num_seen))
    ]
    kind = encoder.name if encoder.name == "lexical" else "sentence-transformers"
    save_model(
        search.work.scratch("kept", FOLDER),
        clusters,
        encoder=EncoderRecord(kind=kind, name=encoder.name, arguments=encoder.arguments, dim=encoder.dim),
        described=described,
        tried=[TriedNumber(num_clusters=choice.num_clusters, score=choice.score) for choice in tried],
        criterion=CRITERION if tried else None,
        encoder_files=encoder_files(encoder),
    )
    return [cluster.name for cluster in described]


def _nearest_of(records: Sequence[Record], cluster: int) -> list[tuple[float, int, int]]:
    """(distance, partition, row) of the samples nearest to a centroid, over all partitions."""
    every = (
        (distance, at, int(row)) for at, record in enumerate(records) for distance, row in record["nearest"][cluster]
    )
    return sorted(every)[:NUM_NEAREST]


def _rows_for_names(
    sample: SampledRows, search: Search, num_clusters: int, nearest: Sequence[Sequence[tuple[float, int, int]]]
) -> dict[int, dict[str, int]]:
    """Partition -> row -> cluster, of at most about `NAMED_BY` sampled rows of each cluster, and the nearest."""
    chosen: dict[int, dict[str, int]] = {}
    left = [NAMED_BY] * num_clusters
    clusters = np.empty(len(sample.row), np.int64)
    for partition in np.unique(sample.partition).tolist():
        here = sample.partition == partition
        found = np.load(_place(str(search.work.scratch("assigned")), partition), mmap_mode="r")
        clusters[here] = found["cluster"][sample.row[here]]
    order = np.random.default_rng(len(sample.row)).permutation(len(sample.row))
    columns = (sample.partition[order].tolist(), sample.row[order].tolist(), clusters[order].tolist())
    for partition, row, cluster in zip(*columns, strict=True):
        if left[cluster] > 0:
            left[cluster] -= 1
            chosen.setdefault(partition, {})[str(row)] = cluster
    for cluster, rows in enumerate(nearest):
        for _, partition, row in rows:
            chosen.setdefault(partition, {})[str(row)] = cluster
    return chosen


def look_at_rows(partition: Partition, reading: Mapping[str, Any], rows: Mapping[str, int]) -> Record:
    """Of some rows, given with their clusters: how many of a cluster hold each term, and the beginning of each text."""
    texts: dict[int, list[str]] = {}
    previews = {}
    for number, row in enumerate(read_partition(partition, **reading)):
        cluster = rows.get(str(number))
        if cluster is not None and isinstance(row, Sample):
            texts.setdefault(cluster, []).append(row.text)
            previews[str(number)] = {
                "id": row.id,
                "text": preview(row.text),
            }
    return {"terms": {str(cluster): count_terms(found) for cluster, found in texts.items()}, "rows": previews}


def preview(text: str) -> str:
    """The beginning of a text, on one line.

    >>> preview(" one\\n two ")
    'one two'
    """
    return " ".join(text[: 4 * PREVIEW_CHARS].split())[:PREVIEW_CHARS]


def verify_embeddings(tags: str | os.PathLike[str]) -> list[str]:
    """Every fault of the embeddings beside tags; none if there are none."""
    folder = storage.join(tags, EMBEDDINGS)
    manifest = storage.join(folder, "embeddings.json")
    if not storage.exists(manifest):
        return []
    parts = storage.read_json(manifest)["parts"]
    faults = (file_fault(_place(folder, at), part["digest"], "embeddings.json") for at, part in enumerate(parts))
    return [fault for fault in faults if fault]


# --- files -----------------------------------------------------------------------------------------------------------


def _stage(search: Search, function: Any, units: Sequence[Unit], stage: str, title: str) -> list[Record]:
    on_done = search.on_stage(title, len(units))
    return run(function, units, where=search.where, records=search.work.records(stage), on_done=on_done)


def _place(folder: str, part: int) -> str:
    return storage.join(folder, f"{part:06d}.npy")


def _save(place: Path, value: np.ndarray) -> None:
    with storage.writing(place) as part, part.open("wb") as file:
        np.save(file, value)
