"""Every policy keeps the same promises; a new one is one row."""

import json
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.errors import GraphError, ObservationError, PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies import Observation, Policy, chain, floor, proportional, skill_it, stratified

SKILLS = ("add", "carry", "negate", "copy")
SIZES = (1000, 300, 20, 1)
GRAPH = SkillGraph(SKILLS, SKILLS, np.eye(4) + 0.5 * np.eye(4, k=1) - 0.3 * np.eye(4, k=-2))

POLICIES: dict[str, Callable[[], Policy]] = {
    "stratified": stratified,
    "proportional": proportional,
    "skill_it": lambda: skill_it(GRAPH, eta=0.5),
    "skill_it mean": lambda: skill_it(GRAPH, eta=2.0, window=1, reduce="mean"),
    "skill_it with a floor": lambda: chain(skill_it(GRAPH, eta=0.5), floor(0.05)),
    "chain of nothing": lambda: chain(proportional()),
}
some_losses = st.lists(st.fixed_dictionaries(dict.fromkeys(SKILLS, st.floats(0, 1e3))), max_size=5)


def after(policy: Policy, skills: tuple[str, ...], losses: list[dict[str, float]]) -> np.ndarray:
    state = policy.init(skills, [SIZES[SKILLS.index(skill)] for skill in skills])
    for step, found in enumerate(losses):
        state = policy.observe(state, Observation(step, found))
    return policy.weights(state)


@pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)
@given(losses=some_losses)
def test_weights_are_a_distribution(build: Callable[[], Policy], losses: list[dict[str, float]]) -> None:
    weights = after(build(), SKILLS, losses)
    assert weights.shape == (4,)
    assert np.all(weights >= 0)
    assert abs(weights.sum() - 1) < 1e-9


@pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)
@given(losses=some_losses, order=st.permutations(SKILLS))
def test_another_order_of_skills_gives_the_weights_in_that_order(
    build: Callable[[], Policy], losses: list[dict[str, float]], order: list[str]
) -> None:
    weights = after(build(), SKILLS, losses)
    moved = after(build(), tuple(order), losses)
    np.testing.assert_allclose(moved, [weights[SKILLS.index(skill)] for skill in order], rtol=1e-12)


@pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)
def test_the_state_is_json_and_the_policy_can_be_pickled(build: Callable[[], Policy]) -> None:
    policy = build()
    state = policy.init(SKILLS, SIZES)
    before = json.dumps(state)
    observed = policy.observe(state, Observation(1, dict.fromkeys(SKILLS, 0.5)))
    assert json.dumps(state) == before
    again = pickle.loads(pickle.dumps(policy))
    assert np.array_equal(again.weights(json.loads(json.dumps(observed))), policy.weights(observed))
    assert json.loads(json.dumps(policy.arguments)) == policy.arguments
    assert isinstance(policy.name, str)
    assert isinstance(policy, Policy)


@given(losses=some_losses, least=st.floats(0, 0.2499))
def test_no_weight_is_below_the_floor(losses: list[dict[str, float]], least: float) -> None:
    weights = after(chain(skill_it(GRAPH, eta=3.0), floor(least)), SKILLS, losses)
    assert weights.min() >= least - 1e-12
    assert abs(weights.sum() - 1) < 1e-9


def test_an_eta_of_zero_gives_equal_weights_and_a_huge_one_does_not_overflow() -> None:
    losses = [dict(zip(SKILLS, (5.0, 0.1, 0.2, 0.3), strict=True))]
    np.testing.assert_allclose(after(skill_it(GRAPH, eta=0.0), SKILLS, losses), 0.25)
    assert np.isfinite(after(skill_it(GRAPH, eta=1e6), SKILLS, losses)).all()


def test_a_complete_graph_with_equal_losses_is_stratified() -> None:
    complete = SkillGraph(SKILLS, SKILLS, np.ones((4, 4)))
    np.testing.assert_allclose(after(skill_it(complete, eta=0.7), SKILLS, [dict.fromkeys(SKILLS, 1.3)]), 0.25)


def test_evaluation_skills_may_be_others_than_training_skills() -> None:
    graph = SkillGraph(SKILLS, ("exam",), [[1.0], [0.5], [0.0], [-1.0]])
    weights = after(skill_it(graph, eta=1.0), SKILLS, [{"exam": 2.0}])
    np.testing.assert_allclose(np.log(weights / weights[2]), [2.0, 1.0, 0.0, -2.0], atol=1e-12)


@pytest.mark.parametrize(
    ("build", "error", "sentence"),
    [
        (lambda: skill_it(GRAPH, eta=float("nan")), PolicyError, "eta is nan: give a finite number >= 0"),
        (lambda: skill_it(GRAPH, eta=-1.0), PolicyError, "eta is -1.0"),
        (
            lambda: skill_it(GRAPH, eta=0.5, window=0),
            PolicyError,
            "window is 0: give the number of latest observations",
        ),
        (lambda: floor(1.0), PolicyError, "floor is 1.0: give a number from 0"),
        (
            lambda: chain(stratified(), floor(0.25)).init(SKILLS),
            PolicyError,
            "floor 0.25 x 4 skills is 1: give a floor below 1 / 4 = 0.25.",
        ),
        (lambda: proportional().init(SKILLS), PolicyError, "proportional needs the number of samples of each skill"),
        (
            lambda: SkillGraph(("a", "b"), ("a",), [[1.0, 2.0]]),
            GraphError,
            "the graph's matrix has shape (1, 2), its names make (2, 1)",
        ),
        (
            lambda: SkillGraph(("a", "a"), ("a",), [[1.0], [1.0]]),
            GraphError,
            "training skills are not distinct: a twice or more",
        ),
        (
            lambda: SkillGraph(("a",), ("b",), [[float("inf")]]),
            GraphError,
            "edge a -> b is inf: edges must be finite numbers (1 are not)",
        ),
        (
            lambda: skill_it(GRAPH, eta=1.0).observe(
                {"skills": list(SKILLS), "window": []}, Observation(3, {"add": 1.0})
            ),
            ObservationError,
            "losses at step 3 do not name the evaluation skills: missing 'carry', 'negate', 'copy'.",
        ),
    ],
)
def test_bad_arguments_get_one_clear_sentence(build: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        build()


def test_a_graph_comes_back_from_its_file(tmp_path: Any) -> None:
    GRAPH.save(tmp_path / "graph.json")
    again = SkillGraph.open(tmp_path / "graph.json")
    assert again.digest == GRAPH.digest
    assert np.array_equal(again.edges, GRAPH.edges)
    (tmp_path / "bad.json").write_text('{"schema": "skillshard/graph/2"}')
    with pytest.raises(GraphError, match="is not a skills graph"):
        SkillGraph.open(tmp_path / "bad.json")
