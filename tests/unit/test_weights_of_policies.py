"""The weights that a policy of a user gives: every form of numbers makes the same run for every reader, and anything else is refused."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skillshard.errors import PolicyError
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.policies.policy import Static
from skillshard.shards.read import ShardSet


class Given(Static):
    """A policy that gives one value in every round."""

    name = "given"

    def __init__(self, weights: Any) -> None:
        self.given = weights

    def constant_weights(self, skills: Sequence[str], num_samples: Sequence[int] | None) -> Sequence[float]:
        return [1 / len(skills)] * len(skills)

    def weights(self, state: Any, upcoming: Any = None) -> Any:
        return self.given


def open_mixer(shards: ShardSet, weights: Any, ledger: Path) -> Mixer:
    return Mixer(shards, Given(weights), ledger=ledger, round_draws=64)


@pytest.mark.parametrize(
    "weights",
    [
        np.full(3, 1 / 3, np.float32),
        np.array([0.7, 0.2, 0.1], np.float32),
        np.array([0.5, 0.25, 0.25], np.float16),
        torch.tensor([0.2, 0.3, 0.5]),
        [0.2, 0.3, 0.5],
        (0.0, 1.0, 0.0),
        np.array([0, 1, 0]),
    ],
    ids=repr,
)
def test_another_reader_finds_the_rounds_of_any_form_of_weights_intact(
    weights: Any, shards: ShardSet, tmp_path: Path
) -> None:
    with pytest.warns(match="epochs"):
        stream = open_mixer(shards, weights, tmp_path).ids(0, 1000)
        assert open_mixer(shards, weights, tmp_path).ids(0, 1000) == stream
    assert verify_ledger(open_mixer(shards, weights, tmp_path).ledger) == []


@pytest.mark.parametrize(
    "weights",
    [
        np.array([math.nan, 0.5, 0.5]),
        np.array([-0.5, 1.0, 0.5]),
        np.array([math.inf, 0.0, 0.0]),
        np.zeros(3),
        np.full(3, 1 / 3, np.float16),
        np.full((1, 3), 1 / 3),
        np.array([0.5, 0.5]),
        np.array([1 + 0j, 0, 0]),
        ["0.5", "0.25", "0.25"],
        {"add": 0.5, "carry": 0.25, "negate": 0.25},
        None,
        1.0,
    ],
    ids=repr,
)
def test_weights_that_are_no_distribution_are_refused_before_a_round_is_recorded(
    weights: Any, shards: ShardSet, tmp_path: Path
) -> None:
    mixer = open_mixer(shards, weights, tmp_path)
    with pytest.raises(PolicyError, match=re.escape("policy given gave ")) as caught:
        mixer.batch(0, 1)
    assert "weights must be 3 numbers >= 0 that sum to 1." in str(caught.value)
    assert mixer.num_rounds == 0
