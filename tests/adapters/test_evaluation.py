"""The loss of every skill is the same number for any batching, its standard error is honest, and no tokens give no number."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.corpus import Sample
from skillshard.errors import ObservationError
from skillshard.evaluation import losses_per_skill
from skillshard.loss import Loss, Reduction
from skillshard.policies.policy import check_losses
from skillshard.shards.read import ShardSet


def by_bytes(texts: list[str]) -> tuple[list[float], list[int]]:
    return [sum(text.encode()) / 100 for text in texts], [len(text.encode()) for text in texts]


def samples(texts: list[str]) -> list[Sample]:
    return [Sample(str(number), text, {}) for number, text in enumerate(texts)]


@given(batch_size=st.integers(1, 70), max_samples=st.integers(2, 30))
@settings(max_examples=20, deadline=None)
def test_batching_changes_nothing(shards: ShardSet, batch_size: int, max_samples: int) -> None:
    losses = losses_per_skill(
        by_bytes, shards.holdout, max_samples=max_samples, batch_size=batch_size, reduction="per_token"
    )
    assert tuple(losses) == tuple(shards.holdout)
    for skill, loss in losses.items():
        texts = [sample.text for sample in shards.holdout[skill]][:max_samples]
        nats, tokens = by_bytes(texts)
        assert loss.mean == pytest.approx(sum(nats) / sum(tokens))
        assert (loss.num_samples, loss.num_tokens) == (len(texts), sum(tokens))


def test_a_batch_holds_texts_of_like_length_whatever_their_skill(shards: ShardSet) -> None:
    calls: list[list[int]] = []

    def noting(texts: list[str]) -> tuple[list[float], list[int]]:
        calls.append([len(text) for text in texts])
        return by_bytes(texts)

    losses_per_skill(noting, shards.holdout, max_samples=20, batch_size=8)
    lengths = [length for call in calls for length in call]
    assert lengths == sorted(lengths)
    assert all(len(call) == 8 for call in calls[:-1])


@pytest.mark.parametrize("reduction", ["per_sample", "per_token"])
def test_the_standard_error_is_what_repeated_sampling_shows(reduction: Reduction) -> None:
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(400):
        lengths = rng.integers(5, 60, 50)
        nats = lengths * 2.0 + rng.normal(0, 3, 50) * np.sqrt(lengths) / 3
        texts = {f"{number:02d}" + "x" * (length - 2): nats[number] for number, length in enumerate(lengths)}
        loss = losses_per_skill(
            lambda few, known=texts: ([known[text] for text in few], [len(text) for text in few]),
            {"add": samples(list(texts))},
            max_samples=50,
            batch_size=7,
            reduction=reduction,
        )["add"]
        means.append(loss.mean)
        errors.append(loss.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_a_mixer_takes_losses_as_they_are(shards: ShardSet) -> None:
    losses = losses_per_skill(by_bytes, shards.holdout, max_samples=3, batch_size=2)
    assert check_losses(losses, tuple(losses), step=1) == {skill: loss.mean for skill, loss in losses.items()}


def test_one_sample_has_no_error_bar() -> None:
    loss = losses_per_skill(by_bytes, {"add": samples(["1+1"])}, max_samples=5, batch_size=5)["add"]
    assert loss == Loss(loss.mean, math.inf, 1, 3)


def test_a_sample_without_a_token_to_predict_is_left_out_of_the_mean_and_of_the_count() -> None:
    def model_loss(texts: list[str]) -> tuple[list[float], list[int]]:
        return [2.0 * (len(text) - 1) for text in texts], [len(text) - 1 for text in texts]

    loss = losses_per_skill(model_loss, {"add": samples(["1", "1+1", "22"])}, max_samples=5, batch_size=5)["add"]
    assert loss == Loss(2.0, 0.0, 2, 3)


@pytest.mark.parametrize(
    ("model_loss", "sentence"),
    [
        (lambda texts: ([0.0] * len(texts), [0] * len(texts)), r"skill 'add': its 2 held-out samples have no token"),
        (lambda texts: ([math.nan] * len(texts), [1] * len(texts)), r"skill 'add': held-out sample 0 has nan nats"),
        (lambda texts: ([-1.0] * len(texts), [1] * len(texts)), r"skill 'add': held-out sample 0 has -1.0 nats"),
        (lambda texts: ([1.0], [1]), r"nats of shape \(1,\) and tokens of shape \(1,\) for 2 texts"),
    ],
)
def test_a_loss_that_is_none_is_refused_with_the_skills_name(
    model_loss: Callable[[list[str]], Any], sentence: str
) -> None:
    with pytest.raises(ObservationError, match=sentence):
        losses_per_skill(model_loss, {"add": samples(["1+1", "2+2"])}, max_samples=5, batch_size=5)


def test_a_skill_without_held_out_samples_is_named() -> None:
    holdout = {"add": samples(["1+1"]), "carry": []}
    with pytest.raises(ObservationError, match=r"skill 'ad' \(did you mean 'add'\?\) has no held-out samples"):
        losses_per_skill(by_bytes, holdout, max_samples=5, batch_size=5, skills=["ad"])
    with pytest.raises(
        ObservationError, match=r"skill 'carry' has no held-out samples\. Skills with held-out samples: add, carry"
    ):
        losses_per_skill(by_bytes, holdout, max_samples=5, batch_size=5)
    with pytest.raises(ObservationError, match="max_samples is 0: give at least 1"):
        losses_per_skill(by_bytes, holdout, max_samples=0, batch_size=5)
