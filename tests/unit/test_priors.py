"""Priors and relative losses: the formula by hand, and the bits of earlier versions without a prior and without relative losses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.errors import PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies import (
    NextRound,
    Observation,
    Policy,
    ado,
    aioli,
    exp3,
    fixed,
    graph_refresh,
    loss_order,
    odm,
    skill_it,
    softmax_loss,
)
from skillshard.policies.policy import softmax

SKILLS = ("add", "carry", "negate")
GRAPH = SkillGraph(SKILLS, SKILLS, [[1.0, 0.5, 0.0], [0.0, 1.0, -0.25], [0.0, 0.0, 1.0]])
PRIOR = {"negate": 1.0, "add": 4.0, "carry": 3.0}
SHARES = np.array([0.5, 0.375, 0.125])
WITH_PRIOR: dict[str, Callable[[Any], Policy]] = {
    "skill_it": lambda prior: skill_it(GRAPH, eta=0.5, prior=prior),
    "skill_it paper": lambda prior: skill_it(GRAPH, eta=0.5, mode="paper", prior=prior),
    "skill_it static": lambda prior: skill_it(GRAPH, eta=0.5, mode="static", prior=prior),
    "skill_it relative": lambda prior: skill_it(GRAPH, eta=0.5, normalize_losses=True, prior=prior),
    "loss_order": lambda prior: loss_order(eta=0.5, prior=prior),
    "softmax_loss": lambda prior: softmax_loss(temperature=2.0, prior=prior),
    "graph_refresh": lambda prior: graph_refresh(GRAPH, eta=0.5, period_rounds=9, sweeps=1, prior=prior),
}
ANY_PRIOR: dict[str, Callable[[Any], Policy]] = {
    **WITH_PRIOR,
    "ado": lambda prior: ado(warmup_steps=1, refit_steps=1, prior=prior),
    "odm": lambda prior: odm(warmup_steps=1, prior=prior),
    "exp3": lambda prior: exp3(prior=prior),
    "aioli": lambda prior: aioli(eta=0.5, period_rounds=9, sweeps=1, prior=prior),
}
ROUND = NextRound(5, 500, 100, (600, 300, 100), (100, 100, 100), (0.2, 0.3, 0.5))
windows = st.lists(st.lists(st.floats(0.01, 50), min_size=3, max_size=3), max_size=5)


def after(policy: Policy, seen: list[list[float]]) -> np.ndarray:
    state = policy.init(SKILLS, (600, 300, 100))
    for step, losses in enumerate(seen):
        drawn = dict.fromkeys(SKILLS, 100 * step)
        state = policy.observe(
            state, Observation(step, dict(zip(SKILLS, losses, strict=True)), 300 * step, drawn, 10 + step)
        )
    return policy.weights(state, ROUND)


@pytest.mark.parametrize("build", WITH_PRIOR.values(), ids=WITH_PRIOR)
@given(seen=windows)
def test_a_prior_multiplies_the_weights_that_the_policy_has_without_it(
    build: Callable[[Any], Policy], seen: list[list[float]]
) -> None:
    plain = after(build(None), seen)
    # The power of a score of -700 has lost three digits to the rounding of the score, and is no weight that a draw could follow.
    close = {"rtol": 1e-12, "atol": 1e-100}
    np.testing.assert_allclose(after(build(PRIOR), seen), SHARES * plain / (SHARES * plain).sum(), **close)
    np.testing.assert_allclose(after(build(dict.fromkeys(SKILLS, 7.0)), seen), plain, **close)


def test_a_prior_multiplies_the_weights_of_scores_that_lie_hundreds_apart() -> None:
    seen = [[1.0, 0.01, 1.0], [1.0, 14.75, 1.0]]
    plain, with_prior = (
        after(skill_it(GRAPH, eta=0.5, normalize_losses=True, prior=prior), seen) for prior in (None, PRIOR)
    )
    assert plain.min() < 1e-100
    np.testing.assert_allclose(with_prior, SHARES * plain / (SHARES * plain).sum(), rtol=1e-12, atol=1e-100)


@given(seen=windows, window=st.integers(1, 4), reduce=st.sampled_from(("sum", "mean")))
def test_without_a_prior_the_weights_have_the_bits_that_they_always_had(
    seen: list[list[float]], window: int, reduce: str
) -> None:
    latest = np.array(seen[-window:])
    losses = np.ones(3) if not seen else latest.sum(axis=0) if reduce == "sum" else latest.mean(axis=0)
    expected = softmax(0.5 * GRAPH.edges @ losses)
    assert after(skill_it(GRAPH, eta=0.5, window=window, reduce=reduce), seen).tolist() == expected.tolist()  # type: ignore[arg-type]
    if seen:
        assert after(softmax_loss(temperature=2.0), seen).tolist() == softmax(np.array(seen[-1]) / 2.0).tolist()


def test_static_weights_are_the_prior_times_e_to_eta_times_the_row_sums() -> None:
    powers = SHARES * np.exp(0.5 * np.array([1.5, 0.75, 1.0]))
    static = skill_it(GRAPH, eta=0.5, mode="static", prior=PRIOR)
    np.testing.assert_allclose(after(static, []), powers / powers.sum(), rtol=1e-14)
    assert after(static, [[9.0, 1.0, 5.0]]).tolist() == after(static, []).tolist()
    assert after(skill_it(GRAPH, eta=0.0, prior=PRIOR), [[9.0, 1.0, 5.0]]).round(12).tolist() == SHARES.tolist()


def test_ado_starts_from_its_prior_and_multiplies_by_it() -> None:
    assert after(ado(warmup_steps=1, refit_steps=1, prior=PRIOR), []).tolist() == SHARES.tolist()
    assert after(ado(warmup_steps=1, refit_steps=1), []).tolist() == [0.6, 0.3, 0.1], "the natural shares"
    falling = [[5.0 / (1 + step), 4.0 / (1 + step), 3.0 / (1 + step)] for step in range(9)]
    natural = dict(zip(SKILLS, (600.0, 300.0, 100.0), strict=True))
    same = after(ado(warmup_steps=1, refit_steps=1, prior=natural), falling)
    np.testing.assert_allclose(same, after(ado(warmup_steps=1, refit_steps=1), falling), rtol=1e-12)
    other = after(ado(warmup_steps=1, refit_steps=1, prior=PRIOR), falling)
    assert other[0] < same[0] and other[2] > same[2]


@given(seen=windows.filter(bool), scale=st.lists(st.floats(0.01, 100), min_size=3, max_size=3))
def test_relative_losses_do_not_know_the_unit_of_each_skill(seen: list[list[float]], scale: list[float]) -> None:
    policy = skill_it(GRAPH, eta=0.5, normalize_losses=True)
    scaled = [[loss * factor for loss, factor in zip(losses, scale, strict=True)] for losses in seen]
    np.testing.assert_allclose(after(policy, scaled), after(policy, seen), rtol=1e-9)
    relative = [[loss / first for loss, first in zip(losses, seen[0], strict=True)] for losses in seen]
    np.testing.assert_allclose(after(policy, seen), after(skill_it(GRAPH, eta=0.5), relative), rtol=1e-9)


def test_the_first_observation_leaves_relative_losses_where_the_run_began() -> None:
    policy = skill_it(GRAPH, eta=0.5, normalize_losses=True)
    np.testing.assert_allclose(after(policy, [[7.0, 2.0, 0.1]]), after(policy, []), rtol=1e-12)


@pytest.mark.parametrize("mode", ["official", "paper"])
def test_a_first_loss_of_0_counts_as_a_millionth_of_a_nat(mode: Any) -> None:
    policy = skill_it(GRAPH, eta=0.5, window=1, mode=mode, normalize_losses=True)
    later = [1.0, 1e-6, 1.0]
    np.testing.assert_allclose(
        after(policy, [[1.0, 0.0, 1.0], later]), after(policy, [[1.0, 1e-6, 1.0], later]), rtol=1e-9
    )
    assert np.isfinite(after(policy, [[5e-324, 0.0, 1e3], [1e3, 1e3, 1e3]])).all()


@pytest.mark.parametrize("build", ANY_PRIOR.values(), ids=ANY_PRIOR)
def test_a_prior_that_is_none_is_refused_in_one_sentence(build: Callable[[Any], Policy]) -> None:
    for prior, sentence in (
        ({"add": 1.0}, "prior weights do not name the skills of the mix: unknown: none; missing: carry, negate"),
        ({**PRIOR, "add": 0.0}, "add is 0.0"),
        ({**PRIOR, "add": float("nan")}, "add is nan"),
        ({**PRIOR, "add": "much"}, "add is 'much'"),
        ({**PRIOR, "add": None}, "add is None"),
        ({**PRIOR, "add": True}, "add is True"),
        ({**PRIOR, "add": [1.0]}, r"add is \[1.0\]"),
        ({}, "names no skill"),
    ):
        with pytest.raises(PolicyError, match=sentence):
            build(prior).init(SKILLS, (600, 300, 100))


def test_policies_that_weigh_differently_are_recorded_differently() -> None:
    builds = [*(build(None) for build in ANY_PRIOR.values()), *(build(PRIOR) for build in ANY_PRIOR.values())]
    records = [(policy.name, repr(policy.arguments)) for policy in builds]
    assert len(set(records)) == len(records)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([np.inf, 0.0], [1.0, 0.0]),
        ([-np.inf, 0.0], [0.0, 1.0]),
        ([np.inf, np.inf], [0.5, 0.5]),
        ([1e308, -1e308], [1.0, 0.0]),
    ],
)
def test_no_score_overflows_in_a_softmax(scores: list[float], expected: list[float]) -> None:
    assert softmax(np.array(scores)).tolist() == expected


@pytest.mark.parametrize("weights", [{"add": 1e308, "carry": 1e308}, {"add": 1e101, "carry": 1.0}])
def test_weights_whose_sum_would_overflow_are_refused(weights: dict[str, float]) -> None:
    """Such weights once gave weights of 0, or of NaN."""
    with pytest.raises(PolicyError, match=r"add is 1e\+"):
        skill_it(GRAPH, eta=0.5, prior=weights)
    with pytest.raises(PolicyError, match=r"add is 1e\+"):
        fixed(weights)
