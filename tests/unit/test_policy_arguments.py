"""Arguments of policies and transforms that are no numbers, no graphs or no policies are refused in a sentence, before a run begins."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from skillshard import policies
from skillshard.errors import PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies import stratified


class Unchecked:
    """The functions of `policies` without the check of types that the suite adds to them."""

    def __getattr__(self, name: str) -> Any:
        return inspect.unwrap(getattr(policies, name))


RAW = Unchecked()
GRAPH = SkillGraph.identity(("add", "carry"))
LOSSES = {"add": 1.0, "carry": 2.0}
TWO_STAGES = [(100, stratified()), (None, stratified())]

NUMBERS: dict[str, Callable[[Any], Any]] = {
    "floor": RAW.floor,
    "cap": RAW.cap,
    "max_change": RAW.max_change,
    "smoothing": RAW.smoothing,
    "epochs of repetition_limit": lambda value: RAW.repetition_limit(value, draws=100),
    "temperature": RAW.temperature,
    "epochs of unimax": lambda value: RAW.unimax(draws=100, epochs=value),
    "softmax_loss": lambda value: RAW.softmax_loss(temperature=value),
    "exp3": lambda value: RAW.exp3(scale=value),
    "smoothing of odm": lambda value: RAW.odm(smoothing=value, warmup_steps=0),
    "least_log_loss": lambda value: RAW.ado(warmup_steps=0, refit_steps=2, least_log_loss=value),
    "eta of doremi": lambda value: RAW.doremi(LOSSES, eta=value),
    "smoothing of doremi": lambda value: RAW.doremi(LOSSES, smoothing=value),
    "a reference loss": lambda value: RAW.doremi({**LOSSES, "add": value}),
    "a loss of a curriculum": lambda value: RAW.curriculum({**LOSSES, "add": value}, draws=100),
    "eta of skill_it": lambda value: RAW.skill_it(GRAPH, eta=value),
    "edge": lambda value: RAW.loss_order(eta=0.5, edge=value),
    "eta of aioli": lambda value: RAW.aioli(eta=value, period_rounds=10),
    "one_hot": lambda value: RAW.aioli(eta=0.1, period_rounds=10, one_hot=value),
    "off_diagonal": lambda value: RAW.graph_refresh(GRAPH, eta=0.1, period_rounds=10, off_diagonal=value),
    "draw_tokens": lambda value: RAW.stages(TWO_STAGES, unit="tokens", draw_tokens=value),
}
"""Arguments that take a finite number."""

COUNTS: dict[str, Callable[[Any], Any]] = {
    "draws of repetition_limit": lambda value: RAW.repetition_limit(2.0, draws=value),
    "draws of unimax": lambda value: RAW.unimax(draws=value, epochs=1.0),
    "draws of a curriculum": lambda value: RAW.curriculum(LOSSES, draws=value),
    "warmup_steps of odm": lambda value: RAW.odm(warmup_steps=value),
    "warmup_steps of ado": lambda value: RAW.ado(warmup_steps=value, refit_steps=2),
    "refit_steps": lambda value: RAW.ado(warmup_steps=0, refit_steps=value),
    "window": lambda value: RAW.skill_it(GRAPH, eta=0.5, window=value),
    "period_rounds": lambda value: RAW.aioli(eta=0.1, period_rounds=value),
    "sweeps": lambda value: RAW.aioli(eta=0.1, period_rounds=10, sweeps=value),
    "warmup_rounds": lambda value: RAW.aioli(eta=0.1, period_rounds=10, warmup_rounds=value),
    "seed": lambda value: RAW.aioli(eta=0.1, period_rounds=10, seed=value),
    "step_draws": lambda value: RAW.stages(TWO_STAGES, unit="steps", step_draws=value),
}
"""Arguments that take a whole number."""


@pytest.mark.parametrize("value", ["0.5", True, math.nan, math.inf, 1j, [0.5], np.array([0.5])], ids=repr)
@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_an_argument_that_is_no_finite_number_is_refused(make: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(PolicyError):
        make(value)


@pytest.mark.parametrize("value", ["2", True, math.nan, math.inf, 2.5, [2], 10**30], ids=repr)
@pytest.mark.parametrize("make", COUNTS.values(), ids=COUNTS)
def test_an_argument_that_is_no_whole_number_is_refused(make: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(PolicyError):
        make(value)


@pytest.mark.parametrize(
    "make",
    [
        RAW.skill_stratified,
        lambda graph: RAW.skill_it(graph, eta=1.0),
    ],
)
def test_the_name_of_a_file_is_no_graph(make: Callable[[Any], Any]) -> None:
    with pytest.raises(
        PolicyError, match=r"graph is 'graph.json': give a graph, such as SkillGraph.open\('graph.json'\)"
    ):
        make("graph.json")


@pytest.mark.parametrize("losses", [None, "losses.json", [1.0, 2.0], {}])
def test_losses_that_are_no_mapping_are_refused(losses: Any) -> None:
    with pytest.raises(PolicyError, match=r"curriculum's losses are"):
        RAW.curriculum(losses, draws=10)
    with pytest.raises(PolicyError, match=r"doremi's reference losses are"):
        RAW.doremi(losses)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (
            "stratified",
            r"str is no policy: give a policy such as policies.stratified\(\), or skillshard.read_policy\('stratified'\)",
        ),
        (policies.stratified, r"function is no policy: it lacks .* Call the function stratified\(\.\.\.\)"),
        (type(stratified()), r"the class Stratified is no policy: give an instance, Stratified\(\.\.\.\)"),
        (RAW.floor(0.1), r"Floor is no policy: it lacks "),
    ],
)
def test_a_chain_and_a_group_begin_with_a_policy(policy: Any, sentence: str) -> None:
    with pytest.raises(PolicyError, match=sentence):
        RAW.chain(policy, RAW.floor(0.1))
    with pytest.raises(PolicyError, match=sentence):
        RAW.by_group(policy, stratified(), groups="prefix")


@pytest.mark.parametrize("transform", [policies.floor, "floor:least=0.1", None, stratified()])
def test_a_chain_goes_on_with_transforms(transform: Any) -> None:
    with pytest.raises(
        PolicyError, match=r"is no transform: give the result of a function such as policies.floor\(0.01\)"
    ):
        RAW.chain(stratified(), transform)


@pytest.mark.parametrize("names", ["add", [1], [], 5])
def test_the_evaluation_skills_of_aioli_are_a_list_of_names(names: Any) -> None:
    with pytest.raises(PolicyError, match=r"eval_skills is .* give a list of names of skills, or None"):
        RAW.aioli(eta=0.1, period_rounds=10, eval_skills=names)


def test_a_probe_gives_its_skill_more_weight_than_the_other_skills_have() -> None:
    policy = RAW.aioli(eta=0.1, period_rounds=40, one_hot=0.25)
    policy.init(("add", "carry", "copy", "negate", "sort"))
    with pytest.raises(PolicyError, match=r"one_hot is 0.25, and equal weights of 4 skills are 0.25"):
        policy.init(("add", "carry", "copy", "negate"))
