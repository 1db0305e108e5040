"""Clusters of a whole corpus's embeddings: fitted on a sample, moved by steps over all rows, given to each row.

k-means on a seeded sample in one process, then steps over all rows (`step_partition`): each adds up its rows, the sums are
added in the order of the partitions. `assign_partition` writes each row's cluster and distance. Memory of a task: its
embeddings by chunks of 8192 rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from skillshard import canonical, storage
from skillshard.errors import TagsError
from skillshard.execution import OnStage, Record, Task, keyed, silent
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.embeddings import SampledRows, array_place, vector_chunks
from skillshard.taggers.clusters.kmeans import Clusters
from skillshard.taggers.clusters.saved import CENTROIDS
from skillshard.taggers.tagger import Search

STEPS_OVER_ALL = 2
NUM_NEAREST = 5
BALANCE_TRIES = 5
CRITERION = "simplified silhouette"
"""Shown with the curve; `kmeans.best_of` says which number is taken."""
ASSIGNMENTS = "assigned"
ASSIGNED = np.dtype([("cluster", "<i4"), ("distance", "<f4")])


@dataclass(frozen=True)
class Fitted:
    """Clusters, and with skills "auto" what was tried."""

    clusters: Clusters
    tried: tuple[kmeans.Choice, ...]


def fit_clusters(
    search: Search,
    places: Sequence[str],
    sample: SampledRows,
    *,
    skills: int | Literal["auto"],
    skills_range: tuple[int, int],
    min_share: float,
    seed: int,
    covers_all: bool,
) -> Fitted:
    """Clusters from the sample, then steps over all rows unless the sample `covers_all`."""
    folder, done = search.work.scratch("fit"), search.work.scratch("fit", "tried.json")
    if not done.exists():
        fitted = choose_clusters(
            sample.points, skills, skills_range, seed=seed, min_share=min_share, on_stage=search.on_stage
        )
        storage.write_array(folder / CENTROIDS, fitted.clusters.centroids)
        storage.write_bytes(done, canonical.to_json([[one.num_clusters, one.score] for one in fitted.tried]))
    tried = [kmeans.Choice(num, score) for num, score in storage.read_json(done)]
    clusters = _unbalanced(np.load(folder / CENTROIDS))
    for step in range(0 if covers_all else STEPS_OVER_ALL):
        clusters = _step_over_all(search, places, clusters, step)
    return Fitted(clusters, tuple(tried))


def _unbalanced(centroids: Float[np.ndarray, "cluster dim"]) -> Clusters:
    return Clusters(centroids, np.zeros(len(centroids), np.float32), True)


def choose_clusters(
    points: Float[np.ndarray, "point dim"],
    skills: int | Literal["auto"],
    skills_range: tuple[int, int],
    *,
    seed: int,
    spherical: bool = True,
    min_share: float = 0.0,
    on_stage: OnStage = silent,
) -> Fitted:
    """k-means with a given number of clusters, or with that of `skills_range` which `kmeans.best_of` takes; and what was tried."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        if skills != "auto":
            return Fitted(kmeans.fit(points, skills, seed=seed, spherical=spherical, min_share=min_share), ())
        least, most = skills_range
        kmeans.refuse_too_many(points, least)
        most = min(most, kmeans.count_distinct(points, most), _most_with(min_share))
        numbers = kmeans.tried_numbers(least, max(least, most))
        advance = on_stage("fitting", len(numbers))
        tried, found = [], {}
        for number in numbers:
            found[number] = kmeans.fit(points, number, seed=seed, spherical=spherical, min_share=min_share)
            tried.append(kmeans.Choice(number, kmeans.simplified_silhouette(points, found[number])))
            advance(Task(str(number), {}), {})
        return Fitted(found[kmeans.best_of(tried).num_clusters], tuple(tried))


def _most_with(min_share: float) -> int:
    return int(0.5 / min_share) if min_share else 1 << 30


def _step_over_all(search: Search, places: Sequence[str], clusters: Clusters, step: int) -> Clusters:
    folder = search.work.scratch(f"step-{step}")
    storage.write_array(folder / CENTROIDS, clusters.centroids)
    tasks = keyed(
        {"vectors": place, "centroids": str(folder / CENTROIDS), "place": str(folder / f"{at:06d}.npz")}
        for at, place in enumerate(places)
    )
    search.run(step_partition, tasks, stage=f"step-{step}", title=f"k-means {step + 1}")
    sums, counts = np.zeros(clusters.centroids.shape), np.zeros(clusters.num_clusters, np.int64)
    for task in tasks:
        with np.load(task.arguments["place"]) as found:
            sums += found["sums"]
            counts += found["counts"]
    return kmeans.moved(clusters, sums, counts)


def step_partition(vectors: str, centroids: str, place: str) -> Record:
    """The sums and counts of one partition's rows, for a step of k-means."""
    from threadpoolctl import threadpool_limits

    clusters = _unbalanced(np.load(centroids))
    sums, counts = np.zeros(clusters.centroids.shape), np.zeros(clusters.num_clusters, np.int64)
    with threadpool_limits(1):
        for _, points in vector_chunks(vectors):
            found = kmeans.sums_of(points, kmeans.assign(points, clusters).cluster, clusters.num_clusters)
            sums, counts = sums + found[0], counts + found[1]
    storage.write_arrays(place, {"sums": sums, "counts": counts})
    return {"num_rows": int(counts.sum())}


def assign_balanced(
    search: Search, places: Sequence[str], sample: SampledRows, clusters: Clusters, *, min_share: float
) -> tuple[Clusters, list[Record]]:
    """Assign every row; where a least share is asked for, with a margin that grows until all of the corpus keeps it."""
    if not min_share:
        return clusters, assign_rows(search, places, clusters, "assign")
    smallest = 0.0
    for attempt in range(BALANCE_TRIES):
        share = min(min_share * (1 + 0.1 * attempt), 0.5 / clusters.num_clusters)
        balanced = kmeans.with_bonus(sample.points, clusters, int(np.ceil(share * len(sample.points))))
        records = assign_rows(search, places, balanced, f"assign-{attempt}")
        counts = np.sum([record["counts"] for record in records], axis=0)
        smallest = counts.min() / counts.sum()
        if smallest >= min_share:
            return balanced, records
    raise TagsError(
        f"`min_share={min_share}`: the smallest of {clusters.num_clusters} skills still has a share of {smallest:.4f} after {BALANCE_TRIES} tries. "
        "Lower `min_share` or `skills`."
    )


def assign_rows(search: Search, places: Sequence[str], clusters: Clusters, stage: str) -> list[Record]:
    """Write each row's cluster and distance; how many and how far, for each partition."""
    folder = search.work.scratch(stage)
    storage.write_array(folder / CENTROIDS, clusters.centroids)
    out = search.work.scratch(ASSIGNMENTS)
    tasks = keyed(
        {
            "vectors": place,
            "centroids": str(folder / CENTROIDS),
            "bonus": clusters.bonus.tolist(),
            "spherical": clusters.spherical,
            "place": array_place(out, at),
        }
        for at, place in enumerate(places)
    )
    return search.run(assign_partition, tasks, stage=stage, title="assigning")


def assign_partition(vectors: str, centroids: str, bonus: Sequence[float], spherical: bool, place: str) -> Record:
    """Cluster and distance of each row of one partition; -1 where a row holds no sample."""
    from threadpoolctl import threadpool_limits

    clusters = Clusters(np.load(centroids), np.array(bonus, np.float32), spherical)
    num = clusters.num_clusters
    counts, distances = np.zeros(num, np.int64), np.zeros(num)
    found = np.zeros(len(np.load(vectors, mmap_mode="r")), ASSIGNED)
    found["cluster"] = -1
    with threadpool_limits(1):
        for rows, points in vector_chunks(vectors):
            assigned = kmeans.assign(points, clusters)
            found["cluster"][rows], found["distance"][rows] = assigned.cluster, assigned.distance
            counts += np.bincount(assigned.cluster, minlength=num)
            distances += np.bincount(assigned.cluster, assigned.distance, minlength=num)
    storage.write_array(place, found)
    return {"counts": counts.tolist(), "distances": distances.tolist(), "nearest": _nearest_rows(found, num)}


def _nearest_rows(found: np.ndarray, num_clusters: int) -> list[list[tuple[float, int]]]:
    """For each cluster (distance, row) of the rows nearest to its centroid."""
    rows = np.flatnonzero(found["cluster"] >= 0)
    rows = rows[np.lexsort((rows, found["distance"][rows], found["cluster"][rows]))]
    edges = np.searchsorted(found["cluster"][rows], np.arange(num_clusters))
    ends = np.append(edges[1:], len(rows))
    best = [rows[edge : min(end, edge + NUM_NEAREST)] for edge, end in zip(edges, ends, strict=True)]
    return [[(float(found["distance"][row]), int(row)) for row in some] for some in best]
