"""k-means: as good as scikit-learn's, the same bytes every time, and chunks that add up."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from skillshard.errors import TagsError
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.kmeans import Choice, assign, best_of, fit, moved, sums_of


def blobs(num_each: int, num_blobs: int, *, seed: int = 0, spread: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Make points of length 1 around a number of directions, and return the direction of each point."""
    random = np.random.default_rng(seed)
    centres = np.linalg.qr(random.normal(size=(16, 16)))[0][:num_blobs]
    points = np.repeat(centres, num_each, axis=0) + random.normal(size=(num_each * num_blobs, 16)) * spread
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32), np.repeat(np.arange(num_blobs), num_each)


@pytest.mark.parametrize("spherical", [True, False])
def test_separate_blobs_are_found(spherical: bool) -> None:
    points, true = blobs(80, 7)
    assigned = assign(points, fit(points, 7, seed=3, spherical=spherical))
    assert adjusted_rand_score(true, assigned.cluster) == 1


def test_the_mean_distance_is_no_worse_than_scikit_learns() -> None:
    points = np.random.default_rng(1).normal(size=(1500, 8)).astype(np.float32)
    theirs = KMeans(12, n_init=5, random_state=0).fit(points).inertia_
    ours = assign(points, fit(points, 12, seed=0, spherical=False)).distance.sum(dtype=np.float64)
    assert ours <= 1.02 * theirs


def test_equal_seeds_give_equal_bytes_and_the_input_is_left_as_it_was() -> None:
    points, _ = blobs(60, 5, spread=0.5)
    before = points.copy()
    first, second = fit(points, 6, seed=11), fit(points, 6, seed=11)
    assert first.centroids.tobytes() == second.centroids.tobytes()
    assert np.array_equal(points, before)


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=5))
def test_a_step_over_any_chunks_is_the_step_over_all(cuts: list[int]) -> None:
    points, _ = blobs(60, 5, spread=0.4)
    clusters = fit(points, 5, seed=0, max_steps=2)
    edges = sorted({0, len(points), *cuts})
    chunks = [points[a:b] for a, b in itertools.pairwise(edges)]
    parts = [sums_of(chunk, assign(chunk, clusters).cluster, 5) for chunk in chunks]
    whole = sums_of(points, assign(points, clusters).cluster, 5)
    np.testing.assert_allclose(sum(part[0] for part in parts), whole[0], atol=1e-9)
    assert np.array_equal(sum(part[1] for part in parts), whole[1])
    means = moved(clusters, *whole).centroids
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 1, atol=1e-6)


def test_no_cluster_stays_empty_while_there_are_enough_different_points() -> None:
    points = np.repeat(np.eye(6, dtype=np.float32), [500, 1, 1, 1, 1, 1], axis=0)
    assigned = assign(points, fit(points, 6, seed=0, num_starts=1))
    assert np.bincount(assigned.cluster, minlength=6).min() == 1


@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 1 / 12), seed=st.integers(0, 5))
def test_a_balanced_cluster_never_gets_less_than_its_share(share: float, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(400, 5)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    counts = np.bincount(assign(points, fit(points, 6, seed=seed, min_share=share)).cluster, minlength=6)
    assert counts.min() >= share * 400


def test_a_balance_that_is_already_there_changes_nothing() -> None:
    points, true = blobs(50, 4)
    assigned = assign(points, fit(points, 4, seed=0, min_share=0.12))
    assert adjusted_rand_score(true, assigned.cluster) == 1


@pytest.mark.parametrize(
    ("points", "num_clusters", "share", "says"),
    [
        (np.eye(5), 1, 0.0, "`skills=1` leaves nothing to tell apart: give 2 or more"),
        (np.eye(5), 6, 0.0, "`skills=6` is more than the 5 samples"),
        (np.repeat(np.eye(3), 4, axis=0), 4, 0.0, "`skills=4` is more than the 3 different samples of 12"),
        (
            np.eye(5),
            4,
            0.3,
            "`min_share=0.3`: with 4 skills give a least share from 0 to half of an equal one, 1 / (2 x 4) = 0.125",
        ),
        (np.repeat(np.eye(3), [98, 1, 1], axis=0), 3, 0.1, "no balance with at least 10 of 100 samples"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(points: np.ndarray, num_clusters: int, share: float, says: str) -> None:
    with pytest.raises(TagsError, match=re.escape(says)):
        fit(points.astype(np.float32), num_clusters, seed=0, min_share=share)


def test_the_silhouette_is_highest_at_the_number_of_blobs() -> None:
    points, _ = blobs(60, 6, spread=0.15)
    scores = [
        Choice(k, kmeans.simplified_silhouette(points, fit(points, k, seed=0))) for k in kmeans.tried_numbers(2, 12)
    ]
    assert best_of(scores).num_clusters == 6


@pytest.mark.parametrize(
    ("scores", "chosen", "says"),
    [
        ((0.2, 0.4, 0.5, 0.45), 8, ["8 has the highest score."]),
        (
            (0.2, 0.4, 0.41, 0.42),
            4,
            ["4 is the knee of the curve.", "The score still rises at 16, the end of the range"],
        ),
        ((0.2, 0.21, 0.25, 0.5), 16, ["16 has the highest score.", "The score still rises at 16"]),
        ((0.6, 0.2, 0.4, 0.3), 8, ["8 is the highest peak inside the range."]),
        ((0.6, 0.4, 0.3, 0.2), 2, ["2 has the highest score.", "2 is the smallest number that was tried"]),
        ((0.3, 0.3, 0.3, 0.3), 2, ["2 has the highest score.", "2 is the smallest number that was tried"]),
    ],
)
def test_an_inner_maximum_is_preferred_and_an_end_of_the_range_is_said(
    scores: tuple[float, ...], chosen: int, says: list[str]
) -> None:
    choices = [Choice(number, score) for number, score in zip((2, 4, 8, 16), scores, strict=True)]
    assert best_of(choices).num_clusters == chosen
    sentences = kmeans.about_choice(choices, chosen)
    assert len(sentences) == len(says)
    assert all(sentence.startswith(beginning) for sentence, beginning in zip(sentences, says, strict=True))


def test_texts_without_a_known_term_take_no_centroid() -> None:
    """Zero vectors are the farthest points from every centroid, so that each empty cluster would take one of them."""
    points, _ = blobs(30, 4)
    with_zeros = np.concatenate([np.zeros((20, points.shape[1]), np.float32), points])
    clusters = fit(with_zeros, 4, seed=0)
    assert np.array_equal(clusters.centroids, fit(points, 4, seed=0).centroids)
    assert np.bincount(assign(points, clusters).cluster, minlength=4).all()
    with pytest.raises(TagsError, match=r"`skills=2`: all 9 samples are the same to the encoder"):
        fit(np.zeros((9, 3), np.float32), 2, seed=0)
    with pytest.raises(TagsError, match=r"`skills=5` is more than the 4 samples whose embedding is not zero"):
        fit(np.concatenate([np.zeros((3, 4)), np.eye(4)]).astype(np.float32), 5, seed=0)


def test_a_single_number_is_no_choice_by_the_score() -> None:
    assert kmeans.about_choice([kmeans.Choice(2, 1.0)], 2) == [
        "2 is the only number that was tried: the range or the samples allow no other."
    ]


def test_no_larger_number_is_proposed_where_nothing_is_left_to_tell_apart() -> None:
    points = np.repeat(np.eye(3, dtype=np.float32), 40, axis=0)
    choices = [Choice(k, kmeans.simplified_silhouette(points, fit(points, k, seed=0))) for k in (2, 3)]
    assert kmeans.about_choice(choices, best_of(choices).num_clusters) == [
        "3 has the highest score.",
        "With 3 skills all samples of a skill are the same to the encoder, so larger numbers tell nothing more apart.",
    ]


@pytest.mark.parametrize("spherical", [True, False])
def test_a_cluster_that_loses_its_points_takes_the_farthest_one(spherical: bool) -> None:
    """No point is nearest to two of the centroids. Lloyd's steps alone would leave these clusters empty for ever."""
    points, true = blobs(30, 4)
    away = -points.mean(axis=0) / np.linalg.norm(points.mean(axis=0))
    centroids = np.stack([points[true == 0].mean(axis=0), points[true == 1].mean(axis=0), away, away])
    start = kmeans.Clusters(centroids.astype(np.float32), np.zeros(4, np.float32), spherical)
    assert len(set(assign(points, start).cluster.tolist())) == 2
    assigned = assign(points, start)
    farthest = np.argsort(-assigned.distance, kind="stable")[:2]
    assert np.array_equal(kmeans._stepped(points, start, assigned).centroids[2:], points[farthest])
    clusters, _ = kmeans._descend(points, start, 20)
    assert np.bincount(assign(points, clusters).cluster, minlength=4).all()
