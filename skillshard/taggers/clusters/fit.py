"""Cluster the embeddings of a whole corpus: fit on a sample, refine by steps over all rows, assign each row.

k-means runs on a seeded sample in one process. In the steps over all rows, each task (`step_partition`) adds up the rows of a
partition, and the sums are added in the order of the partitions. `assign_partition` writes the cluster and the distance of each row. A
task needs memory for 8,192 embeddings at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from skillshard import canonical, places, storage
from skillshard.errors import TagsError
from skillshard.execution import OnStage, Record, Task, keyed, silent
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.embeddings import SampledRows, array_place, vector_chunks
from skillshard.taggers.clusters.kmeans import Clusters
from skillshard.taggers.clusters.saved import CENTROIDS
from skillshard.taggers.tagger import Search

# The sample has already placed the centroids, and a step costs as much as an assignment of the corpus (docs/design/0008-clusters.md).
STEPS_OVER_ALL = 2
# The reports show a handful of samples for each skill.
NUM_NEAREST = 5
# Each try raises the share on the sample by a tenth, so the last try asks for 1.4 times the least share.
BALANCE_TRIES = 5
CRITERION = "simplified silhouette"
"""Name of the criterion, which is shown with the curve. `kmeans.best_of` chooses the number of clusters."""
ASSIGNMENTS = "assigned"
ASSIGNED = np.dtype([("cluster", "<i4"), ("distance", "<f4")])


@dataclass(frozen=True)
class Fitted:
    """Clusters, with the numbers of clusters that skills "auto" tried."""

    clusters: Clusters
    tried: tuple[kmeans.Choice, ...]


def fit_clusters(
    search: Search,
    files: Sequence[str],
    sample: SampledRows,
    *,
    skills: int | Literal["auto"],
    skills_range: tuple[int, int],
    min_share: float,
    seed: int,
    spherical: bool,
    covers_all: bool,
) -> Fitted:
    """Fit clusters on the sample, then refine the clusters by steps over all rows, unless the sample `covers_all` rows."""
    folder, done = search.work.scratch("fit"), search.work.scratch("fit", "tried.json")
    if not storage.exists(done):
        fitted = choose_clusters(
            sample.points,
            skills,
            skills_range,
            seed=seed,
            spherical=spherical,
            min_share=min_share,
            on_stage=search.on_stage,
        )
        storage.write_array(places.join(folder, CENTROIDS), fitted.clusters.centroids)
        # This file comes last: its existence says that the centroids are complete.
        storage.write_bytes(done, canonical.to_json([[choice.num_clusters, choice.score] for choice in fitted.tried]))
    tried = [kmeans.Choice(num, score) for num, score in storage.read_json(done)]
    clusters = _unbalanced(storage.load_array(places.join(folder, CENTROIDS)), spherical)
    for step in range(0 if covers_all else STEPS_OVER_ALL):
        clusters = _step_over_all(search, files, clusters, step)
    return Fitted(clusters, tuple(tried))


def _unbalanced(centroids: Float[np.ndarray, "cluster dim"], spherical: bool) -> Clusters:
    return Clusters(centroids, np.zeros(len(centroids), np.float32), spherical)


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
    """Run k-means with a given number of clusters, or with the number in `skills_range` that `kmeans.best_of` chooses.

    Args:
        points: Points to cluster, float32.
        skills: Number of clusters, or "auto".
        skills_range: Smallest and largest number of clusters that "auto" tries.
        seed: Seed for the k-means starts.
        spherical: Whether the distance is 1 - cosine. Otherwise the distance is the squared Euclidean distance.
        min_share: Smallest share of the points that a cluster may have.
        on_stage: Function that shows the progress of "auto".

    Raises:
        TagsError: The points have too few different values for the number of clusters, or no balance exists.
    """
    from threadpoolctl import threadpool_limits

    # With several threads, BLAS adds in an order that depends on the machine, and the last bits differ.
    points = kmeans.with_direction(points) if spherical else points
    with threadpool_limits(1):
        if skills != "auto":
            return Fitted(kmeans.fit(points, skills, seed=seed, spherical=spherical, min_share=min_share), ())
        # A range that the user gave begins above 2, or has 2 as its smallest number, which every corpus must allow.
        kmeans.refuse_too_many(
            points, skills_range[0], "`skills='auto'`" if skills_range[0] == 2 else _named(skills_range)
        )
        numbers = _numbers_to_try(points, skills_range, min_share)
        advance = on_stage("fitting", len(numbers))
        tried = []
        for choice, _ in try_numbers(points, numbers, seed=seed, spherical=spherical, min_share=min_share):
            tried.append(choice)
            advance(Task(str(choice.num_clusters), {}), {})
        chosen = kmeans.best_of(tried).num_clusters
        return Fitted(kmeans.fit(points, chosen, seed=seed, spherical=spherical, min_share=min_share), tuple(tried))


def try_range(
    points: Float[np.ndarray, "point dim"], skills_range: tuple[int, int], *, seed: int = 0, spherical: bool = True
) -> list[tuple[kmeans.Choice, list[int]]]:
    """Try the numbers of clusters in a range, without choosing a number.

    Args:
        points: Points to cluster, float32, of length 1.
        skills_range: Smallest and largest number of clusters.
        seed: Seed for the k-means starts.
        spherical: Whether the distance is 1 - cosine. Otherwise the distance is the squared Euclidean distance.

    Returns:
        Each number with its score, and the number of points of each of its clusters.

    Raises:
        TagsError: The range is empty, or the points have too few different values for the smallest number.
    """
    from threadpoolctl import threadpool_limits

    kmeans.refuse_range(skills_range)
    points = kmeans.with_direction(points) if spherical else points
    kmeans.refuse_too_many(points, skills_range[0], _named(skills_range))
    with threadpool_limits(1):
        numbers = _numbers_to_try(points, skills_range, 0.0)
        return [
            (choice, np.bincount(kmeans.assign(points, clusters).cluster, minlength=clusters.num_clusters).tolist())
            for choice, clusters in try_numbers(points, numbers, seed=seed, spherical=spherical)
        ]


def _named(skills_range: tuple[int, int]) -> str:
    return f"`skills_range={skills_range[0]}:{skills_range[1]}`"


def try_numbers(
    points: Float[np.ndarray, "point dim"],
    numbers: Sequence[int],
    *,
    seed: int,
    spherical: bool = True,
    min_share: float = 0.0,
) -> Iterator[tuple[kmeans.Choice, Clusters]]:
    """Yield for each number of clusters the score, and the clusters of a few starts."""
    for number in numbers:
        clusters = kmeans.fit(
            points, number, seed=seed, spherical=spherical, num_starts=kmeans.STARTS_OF_A_TRY, min_share=min_share
        )
        yield kmeans.Choice(number, kmeans.simplified_silhouette(points, clusters)), clusters


def _numbers_to_try(
    points: Float[np.ndarray, "point dim"], skills_range: tuple[int, int], min_share: float
) -> list[int]:
    least, most = skills_range
    most = min(most, kmeans.count_distinct(points, most), _most_with(min_share))
    return kmeans.tried_numbers(least, max(least, most))


def _most_with(min_share: float) -> int:
    # `kmeans.fit` refuses a least share above half of an equal share. Without a least share, the number has no limit here.
    return int(0.5 / min_share) if min_share else 1 << 30


def _step_over_all(search: Search, files: Sequence[str], clusters: Clusters, step: int) -> Clusters:
    folder = search.work.scratch(f"step-{step}")
    storage.write_array(places.join(folder, CENTROIDS), clusters.centroids)
    tasks = keyed(
        {
            "vectors": place,
            "centroids": places.join(folder, CENTROIDS),
            "spherical": clusters.spherical,
            "place": places.join(folder, f"{index:06d}.npz"),
        }
        for index, place in enumerate(files)
    )
    search.run(step_partition, tasks, stage=f"step-{step}", title=f"k-means {step + 1}")
    sums, counts = np.zeros(clusters.centroids.shape), np.zeros(clusters.num_clusters, np.int64)
    # The sums are added in the order of the partitions, because a sum of floats depends on the order, and tasks end in any order.
    for task in tasks:
        arrays = storage.load_arrays(task.arguments["place"])
        sums += arrays["sums"]
        counts += arrays["counts"]
    return kmeans.moved(clusters, sums, counts)


def step_partition(vectors: str, centroids: str, spherical: bool, place: str) -> Record:
    """Add up and count the rows of each cluster in one partition, for a step of k-means."""
    from threadpoolctl import threadpool_limits

    clusters = _unbalanced(storage.load_array(centroids), spherical)
    sums, counts = np.zeros(clusters.centroids.shape), np.zeros(clusters.num_clusters, np.int64)
    with threadpool_limits(1):
        for _, points in vector_chunks(vectors):
            cluster = kmeans.assign(points, clusters).cluster
            chunk_sums, chunk_counts = kmeans.sums_of(points, cluster, clusters.num_clusters)
            sums, counts = sums + chunk_sums, counts + chunk_counts
    storage.write_arrays(place, {"sums": sums, "counts": counts})
    return {"num_rows": int(counts.sum())}


def assign_balanced(
    search: Search, files: Sequence[str], sample: SampledRows, clusters: Clusters, *, min_share: float
) -> tuple[Clusters, list[Record]]:
    """Assign every row, balanced if a least share is given.

    The prices of the clusters come from the sample. As long as a cluster of the corpus misses the least share, the function repeats
    with a larger share on the sample.

    Returns:
        The clusters with their prices, and the records of `assign_partition`.

    Raises:
        TagsError: A cluster misses the least share after `BALANCE_TRIES` tries.
    """
    if not min_share:
        return clusters, assign_rows(search, files, clusters, "assign")
    smallest = 0.0
    for attempt in range(BALANCE_TRIES):
        share = min(min_share * (1 + 0.1 * attempt), 0.5 / clusters.num_clusters)
        balanced = kmeans.with_bonus(sample.points, clusters, int(np.ceil(share * len(sample.points))))
        records = assign_rows(search, files, balanced, f"assign-{attempt}")
        counts = np.sum([record["counts"] for record in records], axis=0)
        smallest = counts.min() / counts.sum()
        if smallest >= min_share:
            return balanced, records
    raise TagsError(
        f"`min_share={min_share}`: the smallest of {clusters.num_clusters} skills still has a share of {smallest:.4f} after {BALANCE_TRIES} tries. "
        "Lower `min_share` or `skills`."
    )


def assign_rows(search: Search, files: Sequence[str], clusters: Clusters, stage: str) -> list[Record]:
    """Write the cluster and the distance of each row, and return the records of `assign_partition`."""
    folder = search.work.scratch(stage)
    storage.write_array(places.join(folder, CENTROIDS), clusters.centroids)
    out = search.work.scratch(ASSIGNMENTS)
    tasks = keyed(
        {
            "vectors": place,
            "centroids": places.join(folder, CENTROIDS),
            "bonus": clusters.bonus.tolist(),
            "spherical": clusters.spherical,
            "place": array_place(out, index),
        }
        for index, place in enumerate(files)
    )
    return search.run(assign_partition, tasks, stage=stage, title="assigning")


def assign_partition(vectors: str, centroids: str, bonus: Sequence[float], spherical: bool, place: str) -> Record:
    """Write the cluster and the distance of each row of one partition. The cluster is -1 in rows without a sample.

    Returns:
        Record with the number of samples, the sum of distances and the nearest rows of each cluster.
    """
    from threadpoolctl import threadpool_limits

    clusters = Clusters(storage.load_array(centroids), np.array(bonus, np.float32), spherical)
    num = clusters.num_clusters
    counts, distances = np.zeros(num, np.int64), np.zeros(num)
    assigned = np.zeros(len(storage.load_array(vectors)), ASSIGNED)
    assigned["cluster"] = -1
    with threadpool_limits(1):
        for rows, points in vector_chunks(vectors):
            chunk = kmeans.assign(points, clusters)
            assigned["cluster"][rows], assigned["distance"][rows] = chunk.cluster, chunk.distance
            counts += np.bincount(chunk.cluster, minlength=num)
            distances += np.bincount(chunk.cluster, chunk.distance, minlength=num)
    storage.write_array(place, assigned)
    return {"counts": counts.tolist(), "distances": distances.tolist(), "nearest": _nearest_rows(assigned, num)}


def _nearest_rows(assigned: np.ndarray, num_clusters: int) -> list[list[tuple[float, int]]]:
    """Find the rows nearest to the centroid of each cluster, as (distance, row)."""
    rows = np.flatnonzero(assigned["cluster"] >= 0)
    # The order is by cluster, then by distance. Rows at equal distance stay in the order of the partition.
    rows = rows[np.lexsort((rows, assigned["distance"][rows], assigned["cluster"][rows]))]
    edges = np.searchsorted(assigned["cluster"][rows], np.arange(num_clusters))
    ends = np.append(edges[1:], len(rows))
    nearest = [rows[edge : min(end, edge + NUM_NEAREST)] for edge, end in zip(edges, ends, strict=True)]
    return [[(float(assigned["distance"][row]), int(row)) for row in rows_of] for rows_of in nearest]
