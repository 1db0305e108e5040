"""Describe clusters of loss trajectories: order the clusters by the time of learning, and name them by terms that differ."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from skillshard.taggers.clusters.description import preview
from skillshard.taggers.clusters.fit import NUM_NEAREST
from skillshard.taggers.clusters.kmeans import Assignment, Clusters, assign
from skillshard.taggers.clusters.names import Named, count_terms, name_clusters
from skillshard.taggers.clusters.saved import Cluster, NearestSample, Term
from skillshard.taggers.losses.sampled_texts import SampledText

LEAST_DIFFERENCE = 0.1
"""Smallest difference between clusters in the share of samples with a term. A term with a smaller difference names no cluster."""


def by_time_learnt(
    clusters: Clusters,
    points: Float[np.ndarray, "sample feature"],
    losses: Float[np.ndarray, "trial checkpoint sample"],
) -> Clusters:
    """Sort the clusters by the mean loss of their points, and drop the clusters without a point.

    Samples that are learnt early have a low mean loss over the checkpoints.
    """
    labels = assign(points, clusters).cluster
    mean_loss = losses.mean(axis=(0, 1))
    used = np.unique(labels)
    order = used[np.argsort([mean_loss[labels == label].mean() for label in used], kind="stable")]
    return Clusters(clusters.centroids[order], clusters.bonus[order], clusters.spherical)


def describe_learnt(assigned: Assignment, samples: Sequence[SampledText]) -> list[Cluster]:
    """Describe each cluster by name, terms, size and nearest samples, from the fitting samples.

    If the clusters do not differ in their terms, the names are `learnt-1`, `learnt-2`, ... in the order of learning.
    """
    clusters = range(int(assigned.cluster.max()) + 1)
    members = [np.flatnonzero(assigned.cluster == cluster).tolist() for cluster in clusters]
    counts = [count_terms(samples[row].text for row in rows) for rows in members]
    return [
        Cluster(
            name=named.name,
            has_topic=named.has_topic,
            terms=[Term(term=term, share=share) for term, share in named.terms],
            num_samples=len(rows),
            mean_distance=round(float(assigned.distance[rows].mean(dtype=np.float64)), 6),
            bonus=0.0,
            nearest=[
                _nearest(samples[row], assigned.distance[row])
                for row in sorted(rows, key=lambda row: assigned.distance[row])[:NUM_NEAREST]
            ],
        )
        for named, rows in zip(_named(counts, [len(rows) for rows in members]), members, strict=True)
    ]


def _nearest(sample: SampledText, distance: np.floating) -> NearestSample:
    return NearestSample(id=sample.id, distance=round(float(distance), 6), text=preview(sample.text))


def _named(counts: Sequence[Counter[str]], sizes: Sequence[int]) -> list[Named]:
    # In a synthetic corpus all skills share a small vocabulary, and names by terms would mean nothing.
    terms = {term for counts_of_cluster in counts for term in counts_of_cluster}
    shares = {
        term: [counts_of_cluster[term] / size for counts_of_cluster, size in zip(counts, sizes, strict=True)]
        for term in terms
    }
    telling = {term for term in terms if max(shares[term]) - min(shares[term]) >= LEAST_DIFFERENCE}
    if not telling:
        return [Named(f"learnt-{number}", (), False) for number in range(1, len(counts) + 1)]
    return name_clusters(
        [
            {term: counts_of_cluster[term] for term in telling if counts_of_cluster[term]}
            for counts_of_cluster in counts
        ],
        sizes,
    )
