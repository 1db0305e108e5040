"""k-means: fit clusters on points in memory, refine and assign over any number of chunks.

All functions are pure: equal points, arguments and seeds give equal bytes, as long as BLAS runs on one thread. `fit` sees a sample.
`sums_of` and `moved` make one Lloyd step over all points: chunks are added up in any processes, and the sums are combined. Besides the
points of a chunk, a function needs memory for `ROWS_AT_ONCE` x k distances.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
from jaxtyping import Float, Int

from skillshard.errors import TagsError
from skillshard.keyed_random import keyed_words
from skillshard.printable import counted

# With 256 clusters, a chunk has 8 MB of distances, small enough for one worker of many.
ROWS_AT_ONCE = 8192
NUM_STARTS = 10
"""Number of starts, of which the best is kept. On small corpora a third to a half of all starts end with two topics in one cluster. Five
starts fail on one seed of ninety, and ten starts on none of 180 (docs/LOG.md)."""
STARTS_OF_A_TRY = 3
"""Number of starts for each number of clusters that skills "auto" tries. A score needs fewer starts than the clusters that are kept."""
# The limit is for points on which k-means converges slowly. The tolerance usually ends a fit earlier.
MAX_STEPS = 60
TOLERANCE = 1e-4
"""Smallest relative fall of the mean distance. Lloyd steps end when the distance falls by less."""
# Each step finds the prices anew, which costs more than a Lloyd step, and the centroids have settled before the balancing.
BALANCED_STEPS = 8
POINTS_PER_CLUSTER = 256
"""Number of points to fit on, for each cluster. More points change the centroids little (Johnson et al., FAISS, arXiv:1702.08734)."""
# With few clusters, 256 points for each cluster would be a small sample of a corpus, and rare topics would be missing.
MIN_SAMPLE = 25_000
# With fewer samples than 16, the square root leaves hardly a number to try.
LEAST_MOST = 4
MOST_TRIED = 256
"""Largest number of clusters that skills "auto" tries without a given range. More skills are hard to read, and a fit of more takes minutes."""
NOTHING_LEFT = 0.999
"""Score from which no larger number can help, because every point lies at its centroid. Embeddings of float16 are a little off."""


@dataclass(frozen=True)
class Clusters:
    """Centroids of clusters, with the rule for the distance of a point.

    Attributes:
        centroids: Centroids, of length 1 if `spherical`.
        bonus: Amount that is subtracted from the distance to each cluster before the nearest cluster is chosen. The bonus is 0 without
            balance.
        spherical: Whether the distance is 1 - cosine, in [0, 2], of points of length 1. Otherwise the distance is the squared Euclidean
            distance.
    """

    centroids: Float[np.ndarray, "cluster dim"]
    bonus: Float[np.ndarray, " cluster"]
    spherical: bool

    @property
    def num_clusters(self) -> int:
        return len(self.centroids)


@dataclass(frozen=True)
class Assignment:
    """The cluster of each point, and the distance to the centroid of the cluster."""

    cluster: Int[np.ndarray, " point"]
    distance: Float[np.ndarray, " point"]


def fit(
    points: Float[np.ndarray, "point dim"],
    num_clusters: int,
    *,
    seed: int,
    spherical: bool = True,
    num_starts: int = NUM_STARTS,
    max_steps: int = MAX_STEPS,
    min_share: float = 0.0,
) -> Clusters:
    """Find clusters by k-means++ from several starts. The start with the smallest mean distance after Lloyd steps wins.

    Args:
        points: Points, float32, of length 1 (or 0) if `spherical`.
        num_clusters: Number of clusters, at least 2 and at most the number of different points.
        seed: Seed for the starts.
        spherical: Whether the distance is 1 - cosine. Otherwise the distance is the squared Euclidean distance.
        num_starts: Number of starts, at least 1.
        max_steps: Largest number of Lloyd steps of a start.
        min_share: Smallest share of the points that a cluster may have, at most half of an equal share.

    Raises:
        TagsError: The points or the different points are too few, or no balance exists.

    Example:
        >>> points = np.array([[0.0], [0.1], [5.0], [5.1]], np.float32)
        >>> clusters = fit(points, 2, seed=0, spherical=False)
        >>> sorted(clusters.centroids[:, 0].astype(float).round(2).tolist())
        [0.05, 5.05]

    Reference:
        Arthur and Vassilvitskii, "k-means++", SODA 2007; spherical: Dhillon and Modha, "Concept decompositions", Machine
        Learning 42, 2001; balanced: Bradley, Bennett and Demiriz, "Constrained k-means clustering", MSR-TR-2000-65.
        Differs from the last: the prices of the constraints are raised one cluster at a time, as in an auction, and kept as
        `bonus`, so that the same prices assign new points.
    """
    points = with_direction(points) if spherical else points
    refuse_too_many(points, num_clusters)
    if not 0 <= min_share <= 0.5 / num_clusters:
        raise TagsError(
            f"`min_share={min_share}`: with {num_clusters} skills give a least share from 0 to half of an equal one, "
            f"1 / (2 x {num_clusters}) = {0.5 / num_clusters:.4g}."
        )
    fits = [_descend(points, start, max_steps) for start in _starts(points, num_clusters, num_starts, seed, spherical)]
    best = fits[int(np.argmin([mean for _, mean in fits]))][0]
    return _balanced(points, best, min_share) if min_share else best


def with_direction(points: Float[np.ndarray, "point dim"]) -> Float[np.ndarray, "directed dim"]:
    """Leave out the zero vectors, which are texts without a known term, unless all points are zero.

    A zero vector has the same distance to every centroid, so a centroid of zero vectors would hold no point.
    """
    has_direction = points.any(axis=1)
    return points if has_direction.all() or not has_direction.any() else points[has_direction]


def refuse_more_than(num_samples: int, num_clusters: int) -> None:
    """Check that the clusters are not more than the samples. The check needs no embeddings.

    Raises:
        TagsError: The clusters are more than the samples.
    """
    if num_clusters > num_samples:
        raise TagsError(
            f"`skills={num_clusters:,}` is more than the {counted(num_samples, 'sample')} of the corpus: "
            f"{f'give at most {num_samples:,}' if num_samples > 1 else 'nothing can be told apart'}."
        )


def refuse_too_many(points: Float[np.ndarray, "point dim"], num_clusters: int, argument: str | None = None) -> None:
    """Check that points can form `num_clusters` clusters.

    Args:
        points: Points to cluster.
        num_clusters: Number of clusters.
        argument: Argument that gave the number, for messages. None: `skills`.

    Raises:
        TagsError: The number is below 2, or above the number of points or of different points.
    """
    argument = argument or f"`skills={num_clusters:,}`"
    if num_clusters < 2:
        raise TagsError(f"{argument} leaves nothing to tell apart: give 2 or more, or 'auto'.")
    if num_clusters > len(points):
        # The number of all samples was checked before the embedding, so these are the samples that `with_direction` keeps.
        raise TagsError(
            f"{argument} is more than the {counted(len(points), 'sample')} whose embedding is not zero (a text without a term that the "
            f"encoder knows has a zero embedding): give at most as many."
        )
    num_distinct = count_distinct(points, num_clusters)
    if num_distinct == 1:
        raise TagsError(
            f"{argument}: all {len(points):,} samples are the same to the encoder, so nothing can be told apart. Look at the text of a sample, "
            "or give another encoder."
        )
    if num_clusters > num_distinct:
        raise TagsError(
            f"{argument} is more than the {num_distinct:,} different samples of {len(points):,} (the others are the same to the encoder): "
            f"give at most {num_distinct:,}."
        )


def count_distinct(points: Float[np.ndarray, "point dim"], enough: int) -> int:
    """Count the different points. The count stops at `enough`."""
    seen: set[bytes] = set()
    for row in points:
        seen.add((row + 0.0).tobytes())  # -0 becomes 0: the numbers are equal, but not their bytes
        if len(seen) >= enough:
            break
    return len(seen)


def assign(points: Float[np.ndarray, "point dim"], clusters: Clusters) -> Assignment:
    """Find the cluster of each point, and the distance to the centroid.

    >>> clusters = Clusters(np.eye(2, dtype=np.float32), np.zeros(2, np.float32), True)
    >>> found = assign(np.array([[0.6, 0.8]], np.float32), clusters)
    >>> found.cluster.tolist(), found.distance.astype(float).round(4).tolist()
    ([1], [0.2])
    """
    labels, nearest = np.empty(len(points), np.int32), np.empty(len(points), np.float32)
    for rows in _blocks(len(points)):
        distances = _distances(points[rows], clusters)
        labels[rows] = (distances - clusters.bonus).argmin(axis=1)
        # The bonus decides the cluster, but a score is a true distance.
        nearest[rows] = distances[np.arange(len(distances)), labels[rows]]
    return Assignment(labels, nearest)


def sums_of(
    points: Float[np.ndarray, "point dim"], cluster: Int[np.ndarray, " point"], num_clusters: int
) -> tuple[Float[np.ndarray, "cluster dim"], Int[np.ndarray, " cluster"]]:
    """Compute the sum (float64) and the number of the points of each cluster, which a Lloyd step needs of every chunk."""
    from scipy.sparse import csr_matrix

    sums = np.zeros((num_clusters, points.shape[1]))
    for rows in _blocks(len(points)):
        block = points[rows]
        # A product with a sparse matrix adds the rows of all clusters in one call and in a fixed order.
        ones = csr_matrix((np.ones(len(block)), (cluster[rows], np.arange(len(block)))), (num_clusters, len(block)))
        sums += ones @ block.astype(np.float64)
    return sums, np.bincount(cluster, minlength=num_clusters)


def moved(clusters: Clusters, sums: Float[np.ndarray, "cluster dim"], counts: Int[np.ndarray, " cluster"]) -> Clusters:
    """Move each centroid to the mean of its points. A centroid without points stays."""
    means = sums / np.maximum(counts, 1)[:, None]
    centroids = np.where((counts > 0)[:, None], means, clusters.centroids)
    if clusters.spherical:
        lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
        centroids = np.where(lengths > 0, centroids / np.maximum(lengths, 1e-12), clusters.centroids)
    return Clusters(centroids.astype(np.float32), clusters.bonus, clusters.spherical)


def sample_size(num_clusters: int) -> int:
    """Return the number of points to fit on.

    >>> sample_size(9), sample_size(256)
    (25000, 65536)
    """
    return max(MIN_SAMPLE, POINTS_PER_CLUSTER * num_clusters)


def _blocks(num_points: int) -> Iterator[slice]:
    return (slice(first, first + ROWS_AT_ONCE) for first in range(0, num_points, ROWS_AT_ONCE))


def _distances(points: Float[np.ndarray, "point dim"], clusters: Clusters) -> Float[np.ndarray, "point cluster"]:
    products = points @ clusters.centroids.T
    if clusters.spherical:
        return np.maximum(1 - products, 0)
    lengths = np.einsum("pd,pd->p", points, points)[:, None] + np.einsum(
        "cd,cd->c", clusters.centroids, clusters.centroids
    )
    return np.maximum(lengths - 2 * products, 0)


def _starts(
    points: Float[np.ndarray, "point dim"], num_clusters: int, num_starts: int, seed: int, spherical: bool
) -> Iterator[Clusters]:
    from sklearn.cluster import kmeans_plusplus

    for start in range(num_starts):
        random = np.random.RandomState(keyed_words(2, "start", seed, start).astype("<u8").view("<u4"))
        centroids, _ = kmeans_plusplus(points, num_clusters, random_state=random)
        yield Clusters(np.ascontiguousarray(centroids, np.float32), np.zeros(num_clusters, np.float32), spherical)


def _descend(points: Float[np.ndarray, "point dim"], clusters: Clusters, max_steps: int) -> tuple[Clusters, float]:
    """Make Lloyd steps until the mean distance hardly falls. Return the clusters and the mean distance."""
    before = np.inf
    for _ in range(max_steps):
        assigned = assign(points, clusters)
        mean = float(assigned.distance.mean(dtype=np.float64))
        # An empty cluster gets a point in the next step, so the steps go on.
        if mean >= before * (1 - TOLERANCE) and np.bincount(assigned.cluster, minlength=clusters.num_clusters).all():
            break
        # A refilled cluster may raise the mean for a step. The smallest mean so far is the measure of progress.
        before = min(mean, before)
        clusters = _stepped(points, clusters, assigned)
    return clusters, mean


def _stepped(points: Float[np.ndarray, "point dim"], clusters: Clusters, assigned: Assignment) -> Clusters:
    """Make one Lloyd step. A cluster without points takes the point with the largest distance to its centroid."""
    sums, counts = sums_of(points, assigned.cluster, clusters.num_clusters)
    clusters = moved(clusters, sums, counts)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        farthest = np.argsort(-assigned.distance, kind="stable")[: len(empty)]
        clusters.centroids[empty] = points[farthest]
    return clusters


# --- balance ---------------------------------------------------------------------------------------------------------


def _balanced(points: Float[np.ndarray, "point dim"], clusters: Clusters, min_share: float) -> Clusters:
    """Make Lloyd steps in which every cluster gets at least the least share."""
    least = int(np.ceil(min_share * len(points)))
    for _ in range(BALANCED_STEPS):
        clusters = with_bonus(points, clusters, least)
        sums, counts = sums_of(points, assign(points, clusters).cluster, clusters.num_clusters)
        clusters = moved(clusters, sums, counts)
    return with_bonus(points, clusters, least)


def with_bonus(points: Float[np.ndarray, "point dim"], clusters: Clusters, least: int) -> Clusters:
    """Raise the bonus of the clusters that are too small until each cluster has `least` points.

    The bonus is the price of an auction: in each round the smallest cluster bids just enough for the points that it still needs.

    Raises:
        TagsError: No balance was found, because too many points are the same.
    """
    distances = np.concatenate([_distances(points[rows], clusters) for rows in _blocks(len(points))])
    bonus = np.zeros(clusters.num_clusters, np.float32)
    # An auction ends far earlier unless equal points jump between clusters without end.
    for _ in range(100 * clusters.num_clusters):
        costs = distances - bonus
        nearest = costs.argmin(axis=1)
        counts = np.bincount(nearest, minlength=clusters.num_clusters)
        poorest = int(counts.argmin())
        if counts[poorest] >= least:
            return Clusters(clusters.centroids, bonus, clusters.spherical)
        # `away` has the additional bonus that brings each point outside into the cluster. The bonus rises just enough for the missing
        # points. `nextafter` and 1e-6 make sure that rounding does not leave the last point outside.
        away = np.sort((costs[:, poorest] - costs.min(axis=1))[nearest != poorest], kind="stable")
        bonus[poorest] += np.nextafter(away[least - counts[poorest] - 1], np.float32(np.inf)) + np.float32(1e-6)
    raise TagsError(
        f"no balance with at least {least:,} of {len(points):,} samples in each of {clusters.num_clusters} skills was found, because many "
        "samples are the same to the encoder. Lower `min_share` or `skills`."
    )


# --- the number of clusters ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A number of clusters that was tried, with the simplified silhouette."""

    num_clusters: int
    score: float


def default_range(num_samples: int) -> tuple[int, int]:
    """Return the smallest and the largest number of clusters to try on a corpus: up to the square root of the number of samples.

    >>> default_range(240), default_range(16_500), default_range(10**9)
    ((2, 15), (2, 128), (2, 256))
    """
    return 2, min(max(isqrt(num_samples), LEAST_MOST), MOST_TRIED)


def refuse_range(skills_range: tuple[int, int] | None) -> None:
    """Check the range of numbers of clusters that skills "auto" tries.

    Raises:
        TagsError: A number is below 2, or the larger number comes first.
    """
    if skills_range is not None and not 2 <= skills_range[0] <= skills_range[1]:
        raise TagsError(
            f"`skills_range` goes from {skills_range[0]} to {skills_range[1]}: give 2 or more, and the smaller number first."
        )


def tried_numbers(least: int, most: int, num: int = 12) -> list[int]:
    """Spread the numbers of clusters to try evenly on a logarithmic scale, with both ends included.

    >>> tried_numbers(2, 64, 6)
    [2, 4, 8, 16, 32, 64]
    """
    spread = np.geomspace(least, most, num)
    return sorted({int(number) for number in spread.round()})


def simplified_silhouette(points: Float[np.ndarray, "point dim"], clusters: Clusters) -> float:
    """Compute the mean of (b - a) / b over points, in [0, 1].

    The distance to the nearest centroid is a, and the distance to the second nearest centroid is b.

    Reference:
        Vendramin, Campello and Hruschka, "Relative clustering validity criteria", Statistical Analysis and Data Mining 3,
        2010: O(n k) in place of the silhouette's O(n^2).
    """
    total = 0.0
    for rows in _blocks(len(points)):
        two = np.partition(_distances(points[rows], clusters), 1, axis=1)[:, :2].astype(np.float64)
        total += float(((two[:, 1] - two[:, 0]) / np.maximum(two[:, 1], 1e-12)).sum())
    return total / len(points)


def best_of(choices: Sequence[Choice]) -> Choice:
    """Choose a number of clusters from the curve of the scores: the highest score inside the range, or the knee.

    - If the highest score lies inside the range, this number is chosen.
    - If the smallest number has the highest score, the highest inner peak is chosen. A peak has a higher score than both its neighbours.
    - If the largest number has the highest score, the knee is chosen: the point that lies highest above the diagonal, where both axes are
      scaled to [0, 1], with log k on x and the score on y. Ties go to the higher score.

    Without an inner peak or a knee, an end of the range is chosen.

    >>> best_of([Choice(2, 0.26), Choice(5, 0.37), Choice(10, 0.49), Choice(34, 0.47), Choice(64, 0.40)]).num_clusters
    10
    >>> best_of([Choice(2, 0.26), Choice(5, 0.37), Choice(10, 0.485), Choice(34, 0.496), Choice(64, 0.497)]).num_clusters
    10
    >>> best_of([Choice(2, 0.50), Choice(5, 0.31), Choice(10, 0.45), Choice(34, 0.40)]).num_clusters
    10

    Reference:
        Satopaa et al., "Finding a kneedle in a haystack", ICDCS Workshops 2011; without its smoothing and threshold.
    """
    first, last = choices[0], choices[-1]
    # Of equal scores the smaller number counts, because fewer skills are easier to read.
    top = max(choices, key=lambda choice: (choice.score, -choice.num_clusters))
    if top not in (first, last):
        return top
    if top is first:
        peaks = [
            choice
            for before, choice, after in zip(choices, choices[1:], choices[2:], strict=False)
            if before.score < choice.score > after.score
        ]
        return max(peaks, key=lambda choice: choice.score, default=first)
    rise, width = last.score - first.score, np.log(last.num_clusters / first.num_clusters)

    def above_diagonal(choice: Choice) -> float:
        height = (choice.score - first.score) / rise
        # The height is rounded, so that the last bits of a logarithm do not decide between equal heights.
        return round(float(height - np.log(choice.num_clusters / first.num_clusters) / width), 6)

    return max(choices, key=lambda choice: (above_diagonal(choice), choice.score))


def about_choice(choices: Sequence[Choice], chosen: int) -> list[str]:
    """Say how a number of clusters was chosen from the curve, and whether the range ended too early.

    >>> about_choice([Choice(2, 0.2), Choice(4, 0.3), Choice(8, 0.4)], 8)[1]
    'The score still rises at 8, the end of the range: try larger numbers too, such as from 8 to 32.'
    >>> about_choice([Choice(2, 0.8), Choice(3, 1.0)], 3)[1]
    'With 3 skills all samples of a skill are the same to the encoder, so larger numbers tell nothing more apart.'
    """
    first, last = choices[0], choices[-1]
    if first is last:
        return [f"{chosen} is the only number that was tried: the range or the samples allow no other."]
    top = max(choices, key=lambda choice: (choice.score, -choice.num_clusters))
    if chosen == top.num_clusters:
        sentences = [f"{chosen} has the highest score."]
    elif top is first:
        sentences = [f"{chosen} is the highest peak inside the range."]
    else:
        sentences = [f"{chosen} is the knee of the curve."]
    if top is last and last.score >= NOTHING_LEFT:
        sentences.append(
            f"With {last.num_clusters} skills all samples of a skill are the same to the encoder, so larger numbers tell nothing more apart."
        )
    elif top is last:
        sentences.append(
            f"The score still rises at {last.num_clusters}, the end of the range: try larger numbers too, such as from "
            f"{last.num_clusters} to {4 * last.num_clusters}."
        )
    if chosen == first.num_clusters:
        sentences.append(
            f"{chosen} is the smallest number that was tried, so the texts form no clear groups to this encoder, or fewer than {chosen}."
        )
    return sentences
