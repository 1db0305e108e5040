"""Algorithm 1 of SKILL-IT through the mixer: six rounds computed by hand, beginning with the losses before the first step."""

from pathlib import Path

import numpy as np
import pytest

from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.policies import skill_it
from skillshard.shards.read import ShardSet

SKILLS = ("add", "carry", "negate")
GRAPH = [[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]
ETA, ROUND_DRAWS = 0.5, 100
REPORTS = [  # draw, losses of add, carry, negate. Algorithm 1 observes the model at the beginning of every round
    (0, (2.0, 3.0, 1.0)),
    (100, (1.8, 2.5, 1.1)),
    (200, (1.5, 2.0, 1.0)),
    (300, (1.2, 1.7, 0.9)),
    (400, (1.0, 1.4, 0.8)),
]
BY_HAND = [
    # Every loss counts as 1: exp(0.5 x (1.5, 1.5, 1)), normalised.
    (0.35986746732333263, 0.35986746732333263, 0.28026506535333470),
    # The summed losses are (2, 3, 1), and the scores 0.5 x (3.5, 3.5, 1).
    (0.43734874353781890, 0.43734874353781890, 0.12530251292436217),
    # The summed losses are (3.8, 5.5, 2.1), and the scores 0.5 x (6.55, 6.55, 2.1).
    (0.47436813033598020, 0.47436813033598020, 0.05126373932803965),
    # The summed losses are (5.3, 7.5, 3.1), and the scores 0.5 x (9.05, 9.05, 3.1).
    (0.48755576464058240, 0.48755576464058240, 0.02488847071883515),
    # The last three reports count: summed losses (4.5, 6.2, 3.0), and scores 0.5 x (7.6, 7.7, 3.0).
    (0.46478553765980407, 0.48861560175534220, 0.04659886058485362),
    # The summed losses are (3.7, 5.1, 2.7), and the scores 0.5 x (6.25, 6.45, 2.7).
    (0.43962723051680360, 0.48586322996131000, 0.07450953952188658),
]


def build(shards: ShardSet, ledger: Path) -> Mixer:
    policy = skill_it(SkillGraph(SKILLS, SKILLS, np.array(GRAPH)), eta=ETA, window=3, mode="paper")
    return Mixer(shards, policy, ledger=ledger, round_draws=ROUND_DRAWS, lag=1, step_draws=10, wait_s=0.0)


@pytest.mark.parametrize("ahead", [False, True])
def test_six_rounds_are_those_of_algorithm_1_by_hand(shards: ShardSet, tmp_path: Path, ahead: bool) -> None:
    """The loader asks for a round as early as possible, or after the report that the round does not use yet."""
    mixer = build(shards, tmp_path)
    weights = []
    for number in range(6):
        if ahead and number:
            weights.append(mixer.round(number).weights)
        if number < len(REPORTS):
            draw, losses = REPORTS[number]
            mixer.report(draw // 10, dict(zip(SKILLS, losses, strict=True)))
        if not ahead or not number:
            weights.append(mixer.round(number).weights)
    np.testing.assert_allclose(weights, BY_HAND, rtol=0, atol=1e-12)
    assert [mixer.round(number).observations for number in range(6)] == [[], [0], [100], [200], [300], [400]]
    assert verify_ledger(mixer.ledger) == []
