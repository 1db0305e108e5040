"""The order of the losses as a graph: the formula, ties, and a graph without edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.errors import PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies import Observation, Policy, loss_order, skill_it

SKILLS = ("a", "b", "c", "d")
all_losses = st.lists(st.sampled_from((0.0, 0.01, 0.3, 0.6, 0.7, 2.5)), min_size=4, max_size=4)


def after(policy: Policy, *windows: list[float]) -> np.ndarray:
    state = policy.init(SKILLS)
    for step, losses in enumerate(windows):
        state = policy.observe(state, Observation(step, dict(zip(SKILLS, losses, strict=True))))
    return policy.weights(state)


@given(first=all_losses, second=all_losses, edge=st.sampled_from((0.0, 0.5, 2.0)))
def test_a_skill_scores_its_own_loss_and_a_share_of_the_next_larger_one(
    first: list[float], second: list[float], edge: float
) -> None:
    sums = [loss + neighbour for loss, neighbour in zip(first, second, strict=True)]
    following = [min((neighbour for neighbour in sums if neighbour > own), default=0.0) for own in sums]
    powers = np.exp([0.5 * (own + edge * neighbour) for own, neighbour in zip(sums, following, strict=True)])
    assert np.allclose(after(loss_order(eta=0.5, edge=edge), first, second), powers / powers.sum())


@given(losses=all_losses)
def test_without_edges_it_is_skill_it_without_a_graph(losses: list[float]) -> None:
    plain = skill_it(SkillGraph.identity(SKILLS), eta=0.5)
    assert np.allclose(after(loss_order(eta=0.5, edge=0.0), losses), after(plain, losses))


def test_a_chain_that_is_being_learned_is_mixed_as_by_the_graph_of_the_chain() -> None:
    learning = [0.05, 0.3, 0.6, 0.7]
    known = SkillGraph(SKILLS, SKILLS, np.eye(4) + 0.5 * np.eye(4, k=1))
    assert np.allclose(after(loss_order(eta=0.5), learning), after(skill_it(known, eta=0.5), learning))
    assert after(loss_order(eta=0.5), learning).argmax() == 2, "the last skill waits for the one before it"


def test_skills_alike_have_equal_weights_and_share_what_helps_them() -> None:
    assert after(loss_order(eta=0.5)).tolist() == [0.25] * 4, "before the first observation"
    assert after(loss_order(eta=0.5), [0.7] * 4).tolist() == [0.25] * 4
    low, *high = after(loss_order(eta=1.0, window=1), [0.2, 0.7, 0.7, 0.7])
    assert len(set(high)) == 1 and np.isclose(high[0] / low, np.exp(0.7 - (0.2 + 0.35)))


def test_an_edge_or_rate_out_of_range_is_refused() -> None:
    for edge in (-0.5, float("inf"), float("nan")):
        with pytest.raises(PolicyError, match=r"edge is .*: give a finite number >= 0"):
            loss_order(eta=0.5, edge=edge)
    with pytest.raises(PolicyError, match="eta is -1"):
        loss_order(eta=-1.0)
