"""The mixer tells a policy rounds, draws and samples, the same at every replay of a ledger."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skillshard.mixing.mixer import Mixer
from skillshard.policies import (
    Policy,
    ado,
    aioli,
    chain,
    curriculum,
    floor,
    max_change,
    odm,
    repetition_limit,
    skill_curriculum,
    smoothing,
    softmax_loss,
)
from skillshard.shards.read import ShardSet

HARDNESS = {"add": 1.0, "carry": 2.0, "negate": 3.0}
POLICIES: dict[str, Callable[[], Policy]] = {
    "ado": lambda: ado(warmup_steps=0, refit_steps=5),
    "aioli": lambda: aioli(eta=0.5, period_rounds=5, sweeps=1),
    "curriculum": lambda: curriculum(HARDNESS, draws=400),
    "skill_curriculum": lambda: skill_curriculum(HARDNESS, draws=400),
    "odm, slowly": lambda: chain(odm(warmup_steps=0), smoothing(0.5), max_change(0.05)),
    "softmax_loss, limited": lambda: chain(softmax_loss(temperature=0.2), repetition_limit(2.0, draws=480)),
}


def trained(shards: ShardSet, policy: Policy, folder: Path, when: tuple[int, ...] = (1, 3)) -> Mixer:
    """Run 12 rounds of 4 steps. Losses fall with the draws, and are reported after some of the steps of each round."""
    mixer = Mixer(shards, policy, ledger=folder, round_draws=40, step_draws=10, lag=1)
    for step in range(48):
        skills = mixer.batch(10 * step, 10).skill
        assert len(skills) == 10
        if step % 4 in when or step == 0:
            draw = 10 * (step + 1) if step else 0
            losses = {name: hard / (1 + 0.01 * draw) for name, hard in HARDNESS.items()}
            mixer.report(step + 1 if step else 0, losses, draw=draw)
    return mixer


@pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)
def test_a_run_replays_to_the_same_bytes(build: Callable[[], Policy], shards: ShardSet, tmp_path: Path) -> None:
    first, second = (trained(shards, build(), tmp_path / name) for name in ("first", "second"))
    for number in range(12):
        assert first.round(number).to_bytes() == second.round(number).to_bytes()
    again = Mixer(shards, build(), ledger=tmp_path / "first", round_draws=40, step_draws=10, lag=1)
    assert again.ids(0, 480) == second.ids(0, 480)


@pytest.mark.parametrize("step_of_round", [0, 1, 2, 3])
def test_ado_counts_the_draws_that_the_model_saw(shards: ShardSet, tmp_path: Path, step_of_round: int) -> None:
    mixer = trained(shards, POLICIES["ado"](), tmp_path, when=(step_of_round,))
    record = mixer.round(11)
    (last,) = record.observations
    assert last % 40 == 10 * (step_of_round + 1) % 40
    seen = [skill for first in range(0, last, 10) for skill in mixer.batch(first, 10).skill]
    assert record.policy_state["drawn"] == [seen.count(skill) for skill in mixer.skills]


def test_the_probe_rounds_of_aioli_have_the_weights_it_asked_for(shards: ShardSet, tmp_path: Path) -> None:
    mixer = trained(shards, POLICIES["aioli"](), tmp_path)
    largest = [max(mixer.round(number).weights) for number in range(10)]
    assert [number for number, weight in enumerate(largest) if weight == 0.75] == [0, 1, 2, 5, 6, 7]
    assert mixer.round(11).policy_state["graph"] is not None


def test_weights_change_by_no_more_than_allowed_and_no_skill_repeats_beyond_its_limit(
    shards: ShardSet, tmp_path: Path
) -> None:
    slow = trained(shards, POLICIES["odm, slowly"](), tmp_path / "slow")
    weights = np.array([slow.round(number).weights for number in range(12)])
    assert np.abs(np.diff(weights, axis=0)).sum(axis=1).max() / 2 <= 0.05 + 1e-9
    limited = trained(shards, POLICIES["softmax_loss, limited"](), tmp_path / "limited")
    assert max(limited.round(11).epochs) <= 2 + 1 / 20


@pytest.mark.parametrize(
    ("policy", "begins_with_losses"), [(odm(warmup_steps=0), False), (softmax_loss(temperature=0.2), True)]
)
def test_a_transform_does_not_change_the_step_of_the_first_report(
    policy: Policy, begins_with_losses: bool, shards: ShardSet, tmp_path: Path
) -> None:
    for name, chosen in (("bare", policy), ("chained", chain(policy, floor(0.01)))):
        mixer = Mixer(shards, chosen, ledger=tmp_path / name, round_draws=40, step_draws=10)
        assert mixer.initial_losses is begins_with_losses
