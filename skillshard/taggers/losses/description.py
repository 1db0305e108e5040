"""Clusters of loss trajectories: in the order in which they were learnt, and named where terms tell them apart."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from skillshard.taggers.clusters.description import preview
from skillshard.taggers.clusters.fit import NUM_NEAREST
from skillshard.taggers.clusters.kmeans import Assignment, Clusters, assign
from skillshard.taggers.clusters.names import Named, count_terms, name_clusters
from skillshard.taggers.clusters.saved import Cluster, NearestSample
from skillshard.taggers.losses.sampled_texts import SampledText

LEAST_DIFFERENCE = 0.1
"""A term whose share of samples differs less than this between clusters tells none of them apart."""


def by_time_learnt(
    clusters: Clusters,
    points: Float[np.ndarray, "sample feature"],
    losses: Float[np.ndarray, "trial checkpoint sample"],
) -> Clusters:
    """The clusters that hold any of the points, those learnt first (of the least mean loss) first."""
    labels = assign(points, clusters).cluster
    mean_loss = losses.mean(axis=(0, 1))
    held = np.unique(labels)
    order = held[np.argsort([mean_loss[labels == label].mean() for label in held], kind="stable")]
    return Clusters(clusters.centroids[order], clusters.bonus[order], clusters.spherical)


def describe_learnt(found: Assignment, samples: Sequence[SampledText]) -> list[Cluster]:
    """Name, terms, size and nearest samples of each cluster, as far as the fitting samples tell.

    Where no terms tell the clusters apart their names are `learnt-1`, `learnt-2`, ...: the order in which they were learnt.
    """
    members = [np.flatnonzero(found.cluster == cluster).tolist() for cluster in range(int(found.cluster.max()) + 1)]
    named = _named([count_terms(samples[at].text for at in rows) for rows in members], [len(rows) for rows in members])
    return [
        Cluster(
            name=one.name,
            terms=list(one.terms),
            num_samples=len(rows),
            mean_distance=round(float(found.distance[rows].mean(dtype=np.float64)), 6),
            bonus=0.0,
            nearest=[
                _nearest(samples[at], found.distance[at])
                for at in sorted(rows, key=lambda at: found.distance[at])[:NUM_NEAREST]
            ],
        )
        for one, rows in zip(named, members, strict=True)
    ]


def _nearest(sample: SampledText, distance: np.floating) -> NearestSample:
    return NearestSample(id=sample.id, distance=round(float(distance), 6), text=preview(sample.text))


def _named(counts: Sequence[Counter[str]], sizes: Sequence[int]) -> list[Named]:
    terms = {term for found in counts for term in found}
    shares = {term: [found[term] / size for found, size in zip(counts, sizes, strict=True)] for term in terms}
    telling = {term for term in terms if max(shares[term]) - min(shares[term]) >= LEAST_DIFFERENCE}
    if not telling:
        return [Named(f"learnt-{number}", ()) for number in range(1, len(counts) + 1)]
    return name_clusters([{term: found[term] for term in telling if found[term]} for found in counts], sizes)
