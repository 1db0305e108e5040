"""Weights by stage: numbers by hand, units, blends, and runs."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.errors import ObservationError, PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.loss import LossKind
from skillshard.mixing.mixer import Mixer
from skillshard.policies import (
    NextRound,
    Observation,
    Policy,
    aioli,
    chain,
    curriculum,
    floor,
    loss_order,
    odm,
    proportional,
    skill_it,
    stages,
    stratified,
    temperature,
)
from skillshard.policies.policy import Probing, RunFacts, in_draws
from skillshard.policies.stages import Blend, stage_shares
from skillshard.shards.read import ShardSet

SKILLS = ("add", "carry")
ADD, CARRY, EQUAL = {"add": 1.0, "carry": 0.0}, {"add": 0.0, "carry": 1.0}, {"add": 0.5, "carry": 0.5}
UNCHECKED: Any = inspect.unwrap(stages)
"""The function without the check of types that the suite adds."""
LOSSES = {"add": 2.0, "carry": 1.0, "negate": 3.0}


def upcoming(first: int, num: int = 100) -> NextRound:
    return NextRound(first // num, first, num, (10, 30), (0, 0))


def at(policy: Policy, first: int, num: int = 100) -> list[float]:
    return policy.weights(policy.init(SKILLS, (10, 30)), upcoming(first, num)).tolist()


def test_each_round_has_the_weights_of_its_stage_and_a_round_over_an_end_the_mean_of_its_draws() -> None:
    policy = stages([(200, ADD), (450, proportional()), (None, CARRY)])
    assert [at(policy, first) for first in (0, 100, 200, 300)] == [[1, 0], [1, 0], [0.25, 0.75], [0.25, 0.75]]
    # Half of the draws 400 to 499 have the weights 1/4 and 3/4, and half of them 0 and 1.
    assert at(policy, 400) == [0.125, 0.875]
    assert at(policy, 500) == at(policy, 10**12) == [0, 1]


def test_a_linear_blend_reaches_the_weights_of_the_next_stage_at_the_end_of_the_stage() -> None:
    policy = stages([(400, ADD), (None, EQUAL)], blend="linear")
    # The middles of the rounds lie at 1/8, 3/8, 5/8 and 7/8 of the stage, and the weight of add falls from 1 to 1/2.
    assert [at(policy, first)[0] for first in (0, 100, 200, 300, 400)] == [0.9375, 0.8125, 0.6875, 0.5625, 0.5]


def test_a_cosine_blend_changes_slowly_at_both_ends() -> None:
    policy = stages([(400, ADD), (None, CARRY)], blend="cosine")
    falls = [at(policy, first)[0] for first in range(0, 400, 100)]
    # The mean of (1 - cos(pi x)) / 2 over the first quarter is 1/2 - 2 sin(pi/4) / pi = 0.049842, and over the second 0.313538.
    np.testing.assert_allclose(falls, [0.950158, 0.686462, 0.313538, 0.049842], atol=5e-7)
    assert at(policy, 0, 400) == [0.5, 0.5]


def test_a_stage_that_keeps_its_weights_before_a_blend_is_two_stages() -> None:
    policy = stages([(100, ADD), (200, ADD), (None, CARRY)], blend="linear")
    assert [at(policy, first) for first in (0, 100, 200)] == [[1, 0], [0.5, 0.5], [0, 1]]


@given(
    ends=st.lists(st.integers(1, 5000), max_size=6, unique=True).map(sorted),
    blend=st.sampled_from(("none", "linear", "cosine")),
    first=st.integers(0, 6000),
    num=st.integers(1, 3000),
    parts=st.integers(1, 4),
)
def test_the_shares_of_the_stages_sum_to_one_and_a_round_in_parts_has_the_same_shares(
    ends: list[int], blend: Blend, first: int, num: int, parts: int
) -> None:
    shares = stage_shares(ends, blend, first, num)
    assert shares.min() >= -1e-12
    assert abs(shares.sum() - 1) < 1e-9
    edges = np.linspace(first, first + num, parts + 1).astype(int)
    pieces = [
        (stop - start) * stage_shares(ends, blend, start, stop - start)
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        if start < stop
    ]
    np.testing.assert_allclose(np.sum(pieces, axis=0) / num, shares, atol=1e-9)


def test_one_stage_is_the_policy_itself() -> None:
    policy, alone = (
        stages([(None, skill_it(SkillGraph.chain(SKILLS), eta=0.7))]),
        skill_it(SkillGraph.chain(SKILLS), eta=0.7),
    )
    seen = Observation(8, {"add": 0.3, "carry": 1.7})
    own = alone.weights(alone.observe(alone.init(SKILLS), seen))
    assert np.array_equal(policy.weights(policy.observe(policy.init(SKILLS), seen)), own)


def test_a_later_stage_begins_with_the_losses_of_the_whole_run() -> None:
    live = skill_it(SkillGraph.identity(SKILLS), eta=1.0, window=2)
    policy = stages([(300, EQUAL), (None, live)])
    state, alone = policy.init(SKILLS, (10, 30)), live.init(SKILLS)
    for number, loss in enumerate((3.0, 2.0, 1.0)):
        seen = Observation(number, {"add": loss, "carry": 0.0}, 100 * (number + 1), {"add": 1, "carry": 1}, number)
        state, alone = policy.observe(state, seen), live.observe(alone, seen)
    # The window holds the last two losses: 2 + 1 = 3 nats for add, and 0 for carry.
    expected = np.exp([3.0, 0.0]) / np.exp([3.0, 0.0]).sum()
    np.testing.assert_allclose(policy.weights(state, upcoming(300)), expected, rtol=1e-12)
    assert state["stages"][1] == alone
    assert policy.weights(state, upcoming(200)).tolist() == [0.5, 0.5]


def test_steps_are_converted_by_the_size_of_a_step() -> None:
    policy = stages([(10, ADD), (25, EQUAL), (None, CARRY)], unit="steps", step_draws=20)
    assert [stage["until_draw"] for stage in policy.arguments["stages"]] == [200, 500, None]
    assert [stage["until"] for stage in policy.arguments["stages"]] == [10, 25, None]
    assert at(policy, 100) == [1, 0] and at(policy, 200) == [0.5, 0.5] and at(policy, 500) == [0, 1]


def test_tokens_are_converted_by_the_mean_length_of_a_draw_or_by_the_weights_of_each_stage() -> None:
    given_length = UNCHECKED([(1e9, ADD), (None, CARRY)], unit="tokens", draw_tokens=500.0)
    assert given_length.arguments["stages"][0]["until_draw"] == 2_000_000
    # A sample of add has 100 tokens, a sample of carry 300. A token of add takes 1/100 draw, a token of carry 1/300 draw.
    facts = RunFacts(SKILLS, (10, 30), (1_000, 9_000))
    policy = in_draws(stages([(6_000, ADD), (12_000, CARRY), (18_000, EQUAL), (None, ADD)], unit="tokens"), facts)
    # 60 draws of add, then 20 draws of carry, then 6,000 x (1/100 + 1/300) / 2 = 40 draws of both.
    assert [stage["until_draw"] for stage in policy.arguments["stages"]] == [60, 80, 120, None]
    # With a blend the weights of the first stage are equal in the mean.
    blended = in_draws(stages([(6_000, ADD), (None, CARRY)], unit="tokens", blend="cosine"), facts)
    assert blended.arguments["stages"][0]["until_draw"] == 40
    # A transform around the stages, and stages inside stages, are converted too.
    outer = in_draws(chain(stages([(6_000, ADD), (None, CARRY)], unit="tokens"), floor(0.1)), facts)
    assert outer.arguments["policy"][1]["stages"][0]["until_draw"] == 60


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stages([(10, ADD), (None, CARRY)], unit="steps").init(SKILLS), "stages counts steps, and the number of draws of a step is unknown: give `step_draws`"),
        (lambda: stages([(10, ADD), (None, CARRY)], unit="tokens").init(SKILLS), "stages counts tokens, and the number of tokens of a draw is unknown: give `draw_tokens`"),
        (lambda: stages([]), "stages are no list of pairs: give at least one pair"),
        (lambda: UNCHECKED({"add": 1.0}), "stages are no list of pairs"),
        (lambda: stages([(10, ADD)]), "the last stage ends at 10, and a stream has no end: give the last stage the end None"),
        (lambda: stages([(10, ADD), (10, ADD), (None, ADD)]), "stage 2 ends at 10: give a whole number of draws above 10"),
        (lambda: stages([(None, ADD), (None, ADD)]), "stage 1 ends at None: give a whole number of draws above 0"),
        (lambda: UNCHECKED([(1.5, ADD), (None, ADD)]), "stage 1 ends at 1.5: give a whole number"),
        (lambda: stages([(None, {"add": -1.0})]), "stage 1: the fixed weights are not numbers >= 0"),
        (lambda: UNCHECKED([(None, "stratified")]), "stage 1: str is no policy"),
        (lambda: stages([(9, ADD), (None, {"ad": 1.0})]).init(SKILLS), r"stage 2: the fixed weights .* 'ad' \(did you mean 'add'\?\)"),
        (lambda: UNCHECKED([(None, ADD)], unit="epochs"), "unit is 'epochs': give 'draws'"),
        (lambda: UNCHECKED([(None, ADD)], blend="cubic"), "blend is 'cubic': give 'none'"),
        (lambda: stages([(None, ADD)], step_draws=8), "step_draws is 8, and unit is 'draws'"),
        (lambda: stages([(9, ADD), (None, ADD)], unit="steps", step_draws=0), "step_draws is 0"),
        (lambda: stages([(9, ADD), (None, ADD)], unit="tokens", draw_tokens=0.0), "draw_tokens is 0.0"),
        (lambda: stages([(9, ADD), (None, ADD)]).weights({"stages": []}), "stages needs the round that it decides"),
        (
            lambda: stages([(9, ADD), (None, aioli(eta=0.1, period_rounds=9))]),
            r"stage 2 \(aioli\) has probes at fixed rounds",
        ),
        (
            lambda: stages([(9, aioli(eta=0.1, period_rounds=9)), (None, ADD)], blend="linear"),
            r"stage 1 \(aioli\) has probes at fixed rounds",
        ),
        (
            lambda: stages([(9, skill_it(SkillGraph(SKILLS, ("exam",), [[1.0], [1.0]]), eta=0.1)), (None, odm(warmup_steps=0))]).init(SKILLS),
            r"stage 2 \(odm\) reads the losses of the training skills, .* do not include 'add', 'carry'",
        ),
        (
            lambda: stages([(9, _of_kind("per_sample")), (None, _of_kind("per_token"))]),
            "stages holds policies whose graphs were measured with different kinds of losses",
        ),
        (
            lambda: in_draws(
                stages([(9, loss_order(eta=0.1)), (None, ADD)], unit="tokens"), RunFacts(SKILLS, (1, 1), (9, 9))
            ),
            "the number of tokens of a draw is unknown in stage 1, because its weights are not constant",
        ),
        (
            lambda: in_draws(
                stages([(9, curriculum(ADD, draws=9)), (None, ADD)], unit="tokens"), RunFacts(SKILLS, (1, 1), (9, 9))
            ),
            "the number of tokens of a draw is unknown in stage 1, because its weights are not constant",
        ),
        (
            lambda: in_draws(stages([(9, ADD), (None, ADD)], unit="steps"), RunFacts(SKILLS, (1, 1), None, 8, None, 64)),
            "continues another run after an unknown number of steps",
        ),
        (
            lambda: in_draws(stages([(9, ADD), (None, ADD)], unit="steps", step_draws=4), RunFacts(SKILLS, (1, 1), None, 8)),
            "stages counts steps of 4 draws, and the run has steps of 8 draws",
        ),
    ],
)  # fmt: skip
def test_wrong_stages_are_refused_with_a_sentence(make: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        make()


def _of_kind(reduction: Any) -> Policy:
    return skill_it(SkillGraph(SKILLS, SKILLS, np.eye(2), loss=LossKind(reduction=reduction)), eta=0.1)


def test_stages_read_the_losses_of_all_their_policies_and_refuse_others() -> None:
    graph = SkillGraph(SKILLS, ("add", "exam"), np.eye(2))
    policy = stages([(9, skill_it(graph, eta=0.1)), (50, _of_kind("per_sample")), (None, EQUAL)])
    assert policy.eval_skills == ("add", "exam", "carry")
    assert policy.reads_losses and not policy.may_miss_losses
    state = policy.observe(policy.init(SKILLS), Observation(0, {"carry": 3.0, "add": 1.0, "exam": 2.0}))
    assert [own.get("window") for own in state["stages"]] == [[[1.0, 2.0]], [[1.0, 3.0]], None]
    with pytest.raises(ObservationError, match="missing 'carry'"):
        policy.observe(state, Observation(0, {"add": 1.0, "exam": 2.0}))
    assert stages([(9, EQUAL), (None, ADD)]).reads_losses is False
    assert stages([(9, odm(warmup_steps=0)), (None, ADD)]).may_miss_losses is True


def test_probes_end_with_the_first_stage_and_so_do_its_observations() -> None:
    policy = stages([(300, aioli(eta=0.5, period_rounds=5, sweeps=1, one_hot=0.8)), (None, EQUAL)])
    assert isinstance(policy, Probing)
    state = policy.init(SKILLS, (10, 30))
    assert [policy.probe(upcoming(first), SKILLS) is not None for first in (0, 100, 200, 300, 500, 600)] == [
        True, True, False, False, False, False,
    ]  # fmt: skip
    assert max(policy.weights(state, upcoming(0))) == 0.8
    late = Observation(9, {"add": 1.0, "carry": 1.0}, 301, {"add": 150, "carry": 151}, 3)
    assert policy.observe(state, late)["stages"][0] == state["stages"][0]


# --- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_follows_the_stages_and_records_the_draws(shards: ShardSet, tmp_path: Path) -> None:
    """Rounds of 20 draws: the stage of 6 steps of 5 draws ends in the middle of round 1."""
    plan = stages(
        [(6, {"add": 1.0, "carry": 0.0, "negate": 0.0}), (None, {"add": 0.0, "carry": 1.0, "negate": 1.0})],
        unit="steps",
    )
    mixer = Mixer(shards, plan, ledger=tmp_path, round_draws=20, step_draws=5)
    assert [dict(zip(mixer.skills, mixer.round(number).weights, strict=True)) for number in range(3)] == [
        {"add": 1.0, "carry": 0.0, "negate": 0.0},
        {"add": 0.5, "carry": 0.25, "negate": 0.25},
        {"add": 0.0, "carry": 0.5, "negate": 0.5},
    ]
    record = json.loads((tmp_path / "run.json").read_text())["policy_arguments"]
    assert [(stage["until"], stage["until_draw"]) for stage in record["stages"]] == [(6, 30), (None, None)]
    assert mixer.batch(0, 20).skill == ["add"] * 20
    again = Mixer(shards, plan, ledger=tmp_path, round_draws=20, step_draws=5)
    assert again.ids(0, 60) == mixer.ids(0, 60)


def test_a_run_without_the_size_of_a_step_refuses_stages_of_steps(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="the number of draws of a step is unknown: give `step_draws`"):
        Mixer(
            shards, stages([(6, stratified()), (None, proportional())], unit="steps"), ledger=tmp_path, round_draws=20
        )
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("unit", ["draws", "steps"])
def test_a_continued_run_counts_the_stages_over_all_runs(unit: Any, shards: ShardSet, tmp_path: Path) -> None:
    ends = {"draws": 96, "steps": 12}
    policy = stages([(ends[unit], loss_order(eta=1.0)), (None, temperature(2.0))], unit=unit)
    common: dict[str, Any] = {"round_draws": 16, "step_draws": 8, "wait_s": 0.0}
    old = Mixer(shards, policy, ledger=tmp_path / "1", **common)
    old.report(0, LOSSES)
    for step in range(1, 9):
        old.batch((step - 1) * 8, 8)
        old.report(step, {skill: loss / step for skill, loss in LOSSES.items()})
    new = Mixer.continue_from(
        tmp_path / "1", draw=64, step=8, shards=shards, policy=policy, ledger=tmp_path / "2", **common
    )
    assert new._rounds.run.policy_arguments == old._rounds.run.policy_arguments
    # The state is kept, because the policy is the same policy: the window holds three observations.
    assert len(new.round(0).policy_state["stages"][0]["window"]) == 3
    for step in range(9, 15):
        new.batch((step - 1) * 8, 8)
        new.report(step, {skill: loss / step for skill, loss in LOSSES.items()})
    sizes = np.sqrt([len(shards.train[skill]) for skill in new.skills])
    assert not np.allclose(new.round(1).weights, sizes / sizes.sum())
    np.testing.assert_allclose(new.round(2).weights, sizes / sizes.sum())


def test_a_continued_run_with_another_size_of_a_step_ends_the_stage_at_the_same_step(
    shards: ShardSet, tmp_path: Path
) -> None:
    policy = stages([(12, stratified()), (None, proportional())], unit="steps")
    old = Mixer(shards, policy, ledger=tmp_path / "1", round_draws=16, step_draws=8)
    old.batch(0, 64)
    new = Mixer.continue_from(
        tmp_path / "1",
        draw=64,
        step=8,
        shards=shards,
        policy=policy,
        ledger=tmp_path / "2",
        round_draws=16,
        step_draws=16,
    )
    # 8 steps of 8 draws, and 4 steps of 16 draws.
    assert new._rounds.run.policy_arguments["stages"][0]["until_draw"] == 64 + 64
