"""A graph that is estimated during the run: found from probes, scaled, and used by SKILL-IT's rule."""

import re

import numpy as np
import pytest

from skillshard.errors import PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies import NextRound, Observation, Policy, graph_refresh, skill_it

SKILLS, EVALS, ROUND_DRAWS = ("add", "carry", "negate"), ("add", "exam"), 1000
GIVEN = SkillGraph(SKILLS, EVALS, [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
PLANTED = np.array([[0.08, 0.03], [0.01, 0.06], [-0.02, 0.0]])
SCALED = SkillGraph(SKILLS, EVALS, [[1.0, 0.25], [0.5 * 0.01 / 0.06, 0.5], [0.0, 0.0]])
"""The planted graph as the policy uses the graph: the own edge of add is 1, the largest other edge (.06) is 0.5, harm is 0."""
START = np.array([3.0, 2.5])
AFTER_PROBES = NextRound(4, 4000, ROUND_DRAWS, (100,) * 3, (1000, 1000, 2000))


def train(policy: Policy, rounds: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return weights and losses of rounds in which each loss falls by the planted effects of the drawn samples."""
    skills = list(SKILLS)
    state, losses, drawn = policy.init(skills, (100,) * 3), START.copy(), np.zeros(3)
    state = policy.observe(
        state, Observation(0, dict(zip(EVALS, losses, strict=True)), 0, dict.fromkeys(SKILLS, 0), -1)
    )
    weights, seen = [], [losses.copy()]
    for number in range(rounds):
        upcoming = NextRound(number, number * ROUND_DRAWS, ROUND_DRAWS, (100,) * 3, tuple(map(int, drawn)))
        weights.append(policy.weights(state, upcoming))
        counts = np.round(weights[-1] * ROUND_DRAWS)
        drawn, losses = drawn + counts, losses - counts / counts.sum() @ PLANTED
        seen.append(losses.copy())
        num_drawn = {skill: int(count) for skill, count in zip(SKILLS, drawn, strict=True)}
        state = policy.observe(
            state, Observation(number + 1, dict(zip(EVALS, losses, strict=True)), int(drawn.sum()), num_drawn, number)
        )
    return weights, seen


def test_a_planted_graph_is_found_by_the_probes_and_used_as_skill_it_uses_a_graph() -> None:
    policy = graph_refresh(GIVEN, eta=0.5, period_rounds=8, sweeps=1, window=2)
    weights, losses = train(policy, 12)
    assert all(max(vector) == pytest.approx(0.75) for vector in weights[:3] + weights[8:11]), "probes"
    by_hand = skill_it(SCALED, eta=0.5, window=2)
    for number in (3, 5, 7, 11):
        state = by_hand.init(SKILLS)
        for step in (number - 1, number):
            state = by_hand.observe(state, Observation(step, dict(zip(EVALS, losses[step], strict=True))))
        assert weights[number] == pytest.approx(by_hand.weights(state), abs=1e-9)


def test_probes_begin_after_the_warm_up_and_find_the_same_graph() -> None:
    arguments = {"eta": 0.5, "period_rounds": 8, "sweeps": 1, "window": 2}
    early, _ = train(graph_refresh(GIVEN, **arguments), 8)
    late, losses = train(graph_refresh(GIVEN, **arguments, warmup_rounds=4), 12)
    begun = skill_it(GIVEN, eta=0.5, window=2)
    state = begun.init(SKILLS)
    for number, weights in enumerate(late[:4]):
        state = begun.observe(state, Observation(number, dict(zip(EVALS, losses[number], strict=True))))
        assert weights == pytest.approx(begun.weights(state), abs=1e-12), "the graph of the beginning"
    assert [vector.argmax() for vector in late[4:7]] == [vector.argmax() for vector in early[:3]]
    assert all(max(vector) == pytest.approx(0.75) for vector in late[4:7]), "probes"
    by_hand = skill_it(SCALED, eta=0.5, window=2)
    state = by_hand.init(SKILLS)
    for step in (6, 7):
        state = by_hand.observe(state, Observation(step, dict(zip(EVALS, losses[step], strict=True))))
    assert late[7] == pytest.approx(by_hand.weights(state), abs=1e-9)
    with pytest.raises(PolicyError, match="warmup_rounds is -1: give the number of rounds before the first probe"):
        graph_refresh(GIVEN, **arguments, warmup_rounds=-1)


def test_the_strongest_edge_is_as_asked_for_whatever_the_size_of_the_effects() -> None:
    """Effects shrink while a model learns, and eta must keep its meaning."""
    policy = graph_refresh(GIVEN, eta=0.5, period_rounds=8, sweeps=1, off_diagonal=0.25)
    results = []
    for size in (1.0, 1e-6):
        state = policy.init(SKILLS)
        state["probing"]["graph"] = (size * PLANTED).tolist()
        results.append(policy.weights(state, AFTER_PROBES))
    assert results[0] == pytest.approx(results[1], abs=1e-12)
    by_hand = skill_it(SkillGraph(SKILLS, EVALS, [[1.0, 0.125], [0.25 / 6, 0.25], [0.0, 0.0]]), eta=0.5)
    assert results[0] == pytest.approx(by_hand.weights(by_hand.init(SKILLS)), abs=1e-12)


def test_until_the_first_estimate_the_given_graph_is_used_and_harm_counts_as_nothing() -> None:
    plain, policy = skill_it(GIVEN, eta=0.5), graph_refresh(GIVEN, eta=0.5, period_rounds=8, sweeps=1)
    state = policy.init(SKILLS)
    assert policy.weights(state, AFTER_PROBES) == pytest.approx(plain.weights(plain.init(SKILLS)))
    state["probing"]["graph"] = (-np.abs(PLANTED)).tolist()
    own = skill_it(SkillGraph(SKILLS, EVALS, [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), eta=0.5)
    assert policy.weights(state, AFTER_PROBES) == pytest.approx(own.weights(own.init(SKILLS)))


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_a_strongest_edge_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(PolicyError, match="give a finite number above 0"):
        graph_refresh(GIVEN, eta=0.5, period_rounds=8, off_diagonal=wrong)


def test_probes_that_fill_the_period_and_other_skills_are_refused() -> None:
    with pytest.raises(PolicyError, match=re.escape("give period_rounds of more than 12")):
        graph_refresh(GIVEN, eta=0.5, period_rounds=12).init(SKILLS)
    with pytest.raises(PolicyError, match="the graph's rows are not the skills of the mix"):
        graph_refresh(GIVEN, eta=0.5, period_rounds=13).init(("add", "carry", "copy"))
