"""Every policy keeps the same promises. A new policy is one row."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.errors import GraphError, ObservationError, PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies import (
    NextRound,
    Observation,
    Policy,
    Probing,
    Transform,
    ado,
    aioli,
    anti_curriculum,
    by_group,
    cap,
    chain,
    curriculum,
    doremi,
    exp3,
    fixed,
    floor,
    graph_refresh,
    loss_order,
    max_change,
    odm,
    proportional,
    repetition_limit,
    skill_curriculum,
    skill_it,
    skill_stratified,
    smoothing,
    softmax_loss,
    stages,
    stratified,
    temperature,
    unimax,
)
from skillshard.testing import check_policy

SKILLS = ("add", "carry", "negate", "copy")
SIZES = (1000, 300, 20, 1)
GRAPH = SkillGraph(SKILLS, SKILLS, np.eye(4) + 0.5 * np.eye(4, k=1) - 0.3 * np.eye(4, k=-2))

PRIOR = dict(zip(SKILLS, (4.0, 3.0, 2.0, 1.0), strict=True))
HARDNESS = dict(zip(SKILLS, (2.0, 1.0, 2.0, 3.0), strict=True))
GROUPS = {"sums": ["carry", "add", "negate"], "texts": ["copy"]}

POLICIES: dict[str, Callable[[], Policy]] = {
    "stratified": stratified,
    "proportional": proportional,
    "skill_it": lambda: skill_it(GRAPH, eta=0.5),
    "skill_it mean": lambda: skill_it(GRAPH, eta=2.0, window=1, reduce="mean"),
    "skill_it with a floor": lambda: chain(skill_it(GRAPH, eta=0.5), floor(0.05)),
    "chain of nothing": lambda: chain(proportional()),
    "fixed": lambda: fixed({"add": 1.0, "carry": 2.0, "negate": 0.0, "copy": 1.0}),
    "fixed with new skills": lambda: fixed({"add": 1.0, "carry": 2.0}, new="proportional"),
    "temperature": lambda: temperature(3.33),
    "unimax": lambda: unimax(draws=500, epochs=4.0),
    "skill_stratified": lambda: skill_stratified(SkillGraph(SKILLS, ("exam",), [[1.0], [0.5], [0.0], [-1.0]])),
    "skill_it paper": lambda: skill_it(GRAPH, eta=0.5, mode="paper"),
    "skill_it static": lambda: skill_it(GRAPH, eta=0.5, mode="static"),
    "skill_it of lone nodes": lambda: skill_it(SkillGraph(SKILLS, SKILLS, np.zeros((4, 4))), eta=0.5),
    "skill_it with a prior": lambda: skill_it(GRAPH, eta=0.5, prior=PRIOR),
    "skill_it static with a prior": lambda: skill_it(GRAPH, eta=0.5, mode="static", prior=PRIOR),
    "skill_it of losses relative to the first": lambda: skill_it(GRAPH, eta=0.5, normalize_losses=True),
    "skill_it paper of relative losses": lambda: skill_it(GRAPH, eta=0.5, mode="paper", normalize_losses=True),
    "softmax_loss with a prior": lambda: softmax_loss(temperature=0.5, prior=PRIOR),
    "loss_order with a prior": lambda: loss_order(eta=0.5, prior=PRIOR),
    "ado with a prior": lambda: ado(warmup_steps=1, refit_steps=400, prior=PRIOR),
    "graph_refresh with a prior": lambda: graph_refresh(GRAPH, eta=0.5, period_rounds=6, sweeps=1, prior=PRIOR),
    "softmax_loss": lambda: softmax_loss(temperature=0.5),
    "loss_order": lambda: loss_order(eta=0.5),
    "loss_order mean": lambda: loss_order(eta=2.0, edge=1.0, window=1, reduce="mean"),
    "odm": lambda: odm(warmup_steps=0),
    "odm with a prior": lambda: odm(
        warmup_steps=3, smoothing=0.5, prior=dict(zip(SKILLS, (4.0, 3.0, 2.0, 1.0), strict=True))
    ),
    "exp3": exp3,
    "ado": lambda: ado(warmup_steps=1, refit_steps=400),
    "doremi": lambda: doremi(dict.fromkeys(SKILLS, 1.0), use="average"),
    "aioli": lambda: aioli(eta=0.5, period_rounds=6, sweeps=1),
    "aioli diagonal with ema": lambda: aioli(
        eta=0.5, period_rounds=12, sweeps=2, ema=0.1, diagonal=True, one_hot=0.625
    ),
    "aioli after a warm-up": lambda: aioli(eta=0.5, period_rounds=6, sweeps=1, warmup_rounds=3),
    "graph_refresh": lambda: graph_refresh(GRAPH, eta=0.5, period_rounds=6, sweeps=1),
    "graph_refresh with ema": lambda: graph_refresh(
        SkillGraph.identity(SKILLS), eta=0.5, period_rounds=7, sweeps=1, ema=0.5, reduce="mean"
    ),
    "curriculum": lambda: curriculum(HARDNESS, draws=7000),
    "anti_curriculum": lambda: anti_curriculum(HARDNESS, draws=7000),
    "skill_curriculum": lambda: skill_curriculum(HARDNESS, draws=7000),
    "odm with every transform": lambda: chain(
        odm(warmup_steps=0),
        smoothing(0.5),
        max_change(0.1),
        floor(0.01),
        cap(0.6),
        repetition_limit(4000.0, draws=30_000),
    ),
    "aioli with a floor": lambda: chain(aioli(eta=0.5, period_rounds=6, sweeps=1), floor(0.1)),
    "stages of constant weights": lambda: stages([(2500, PRIOR), (4000, proportional()), (None, stratified())]),
    "stages of losses": lambda: stages(
        [(1500, stratified()), (3200, skill_it(GRAPH, eta=0.5)), (None, odm(warmup_steps=0))], blend="cosine"
    ),
    "stages of odm": lambda: stages([(2000, odm(warmup_steps=0)), (None, PRIOR)], blend="linear"),
    "stages of aioli": lambda: stages([(8500, aioli(eta=0.5, period_rounds=6, sweeps=1)), (None, PRIOR)]),
    "stages of steps": lambda: stages([(20, exp3()), (None, stratified())], unit="steps", step_draws=100),
    "stages with a floor": lambda: chain(stages([(2000, loss_order(eta=0.5)), (None, PRIOR)]), floor(0.05)),
    "groups of constant weights": lambda: by_group(temperature(2.0), proportional(), groups=GROUPS),
    "skill_it over groups": lambda: by_group(
        skill_it(SkillGraph(("sums", "texts"), ("sums", "texts"), [[1.0, 0.5], [0.0, 1.0]]), eta=0.5),
        loss_order(eta=0.5),
        groups=GROUPS,
    ),
    "odm over groups": lambda: by_group(odm(warmup_steps=0), exp3(), groups=GROUPS),
    "groups with a policy each": lambda: by_group(
        stratified(), {"sums": odm(warmup_steps=0), "texts": exp3()}, groups=GROUPS
    ),
    "groups by prefix": lambda: by_group(
        ado(warmup_steps=1, refit_steps=400), softmax_loss(temperature=0.5), groups="prefix"
    ),
    "groups in a stage": lambda: stages(
        [(2000, by_group(exp3(), stages([(500, stratified()), (None, proportional())]), groups=GROUPS)), (None, PRIOR)]
    ),
}
some_losses = st.lists(st.fixed_dictionaries(dict.fromkeys(SKILLS, st.floats(0, 1e3))), max_size=5)


ROUND_DRAWS = 1000


def sizes(skills: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(SIZES[SKILLS.index(skill)] for skill in skills)


def observation(number: int, losses: dict[str, float]) -> Observation:
    """Return the observation at the end of round `number`. The stream has drawn more of each skill than of the skill before."""
    draws = (number + 1) * ROUND_DRAWS
    shares = dict(zip(SKILLS, (0.1, 0.2, 0.3, 0.4), strict=True))
    drawn = {skill: round(share * draws) for skill, share in shares.items()}
    return Observation(number, losses, draws, drawn, number)


def upcoming(number: int, skills: tuple[str, ...]) -> NextRound:
    before = dict(zip(SKILLS, (0.1, 0.2, 0.3, 0.4), strict=True))
    drawn = observation(number - 1, {}).drawn
    return NextRound(
        number,
        number * ROUND_DRAWS,
        ROUND_DRAWS,
        sizes(skills),
        tuple(drawn[skill] for skill in skills),
        tuple(before[skill] for skill in skills) if number else None,
    )


def after(policy: Policy, skills: tuple[str, ...], losses: list[dict[str, float]]) -> np.ndarray:
    state = policy.init(skills, sizes(skills))
    for number, row in enumerate(losses):
        state = policy.observe(state, observation(number, row))
    return policy.weights(state, upcoming(len(losses), skills))


@pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)
@settings(deadline=None, max_examples=30)
@given(losses=some_losses)
def test_weights_are_a_distribution(build: Callable[[], Policy], losses: list[dict[str, float]]) -> None:
    weights = after(build(), SKILLS, losses)
    assert weights.shape == (4,)
    assert np.all(weights >= 0)
    assert abs(weights.sum() - 1) < 1e-9


@pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)
@settings(deadline=None, max_examples=30)
@given(losses=some_losses, order=st.permutations(SKILLS))
def test_another_order_of_skills_gives_the_weights_in_that_order(
    build: Callable[[], Policy], losses: list[dict[str, float]], order: list[str]
) -> None:
    weights = after(build(), SKILLS, losses)
    moved = after(build(), tuple(order), losses)
    np.testing.assert_allclose(moved, [weights[SKILLS.index(skill)] for skill in order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)
@settings(deadline=None, max_examples=30)
@given(losses=some_losses)
def test_the_state_comes_back_from_json_and_observing_is_pure(
    build: Callable[[], Policy], losses: list[dict[str, float]]
) -> None:
    policy = build()
    state = policy.init(SKILLS, SIZES)
    for number, row in enumerate(losses):
        before = json.dumps(state)
        state, again = (policy.observe(json.loads(before), observation(number, row)) for _ in range(2))
        assert state == again
        assert json.loads(json.dumps(state)) == state
    now = upcoming(len(losses), SKILLS)
    assert np.array_equal(policy.weights(json.loads(json.dumps(state)), now), build().weights(state, now))


@pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)
def test_every_policy_keeps_the_contract(build: Callable[[], Policy]) -> None:
    check_policy(build, skills=SKILLS, num_samples=SIZES)


@pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)
def test_a_policy_cannot_be_changed_after_its_arguments_were_recorded(build: Callable[[], Policy]) -> None:
    policy = build()
    with pytest.raises(AttributeError):
        policy.name = "another"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("transform", "argument"),
    [
        (floor(0.1), "least"),
        (cap(0.5), "most"),
        (max_change(0.1), "most"),
        (smoothing(0.5), "keep"),
        (repetition_limit(4.0, draws=10), "epochs"),
    ],
)
def test_a_transform_cannot_be_changed_after_its_arguments_were_recorded(transform: Transform, argument: str) -> None:
    assert hasattr(transform, argument)
    with pytest.raises(AttributeError):
        setattr(transform, argument, 0.2)


@pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)
def test_an_observation_without_a_skill_is_refused_by_name_or_used(build: Callable[[], Policy]) -> None:
    policy = build()
    state = policy.init(SKILLS, SIZES)
    names = policy.eval_skills or SKILLS
    seen = observation(0, dict.fromkeys(names[1:], 1.0))
    # Policies of policies may miss losses if all of their policies may.
    needs_all = re.search(
        "skill_it|loss_order|softmax_loss|doremi|aioli|graph_refresh", json.dumps(policy.arguments) + policy.name
    )
    assert policy.may_miss_losses == (needs_all is None or not policy.reads_losses)
    if policy.may_miss_losses:
        assert abs(policy.weights(policy.observe(state, seen), upcoming(1, SKILLS)).sum() - 1) < 1e-9
        return
    with pytest.raises(ObservationError, match=f"missing '{names[0]}'"):
        policy.observe(state, seen)


some_weights = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda ws: sum(ws) > 1e-6)


@given(raw=some_weights, most=st.floats(0.25, 1))
def test_no_weight_is_above_the_cap(raw: list[float], most: float) -> None:
    weights = cap(most).apply(np.array(raw) / sum(raw))
    assert weights.max() <= most + 1e-9
    assert abs(weights.sum() - 1) < 1e-9


@given(raw=some_weights, most=st.floats(0.01, 1))
def test_the_weights_move_by_at_most_the_maximal_change(raw: list[float], most: float) -> None:
    wanted, now = np.array(raw) / sum(raw), upcoming(3, SKILLS)
    weights = max_change(most).apply(wanted, now)
    before = np.array(now.weights_before)
    assert np.abs(weights - before).sum() / 2 <= most + 1e-12
    assert abs(weights.sum() - 1) < 1e-9
    if np.abs(wanted - before).sum() / 2 <= most:
        assert np.array_equal(weights, wanted)
    assert np.array_equal(max_change(most).apply(wanted, upcoming(0, SKILLS)), wanted)


@given(raw=some_weights, num_samples=st.lists(st.integers(100, 3000), min_size=4, max_size=4), epochs=st.floats(1, 5))
def test_no_skill_is_drawn_more_often_than_the_repetition_limit(
    raw: list[float], num_samples: list[int], epochs: float
) -> None:
    """The limit holds over a whole run of rounds that follow the weights, whatever the policy asks for."""
    draws = int(0.9 * epochs * sum(num_samples))
    limit, drawn, first = repetition_limit(epochs, draws=draws), np.zeros(4, int), 0
    for number in range(8):
        num = (draws - first) // (8 - number)
        now = NextRound(number, first, num, tuple(num_samples), tuple(int(n) for n in drawn))
        weights = limit.apply(np.roll(raw, number) / sum(raw), now)
        assert abs(weights.sum() - 1) < 1e-9
        counts = np.floor(weights * num).astype(int)
        counts[np.argsort(counts - weights * num, kind="stable")[: num - counts.sum()]] += 1
        drawn, first = drawn + counts, first + num
    assert np.all(drawn <= epochs * np.array(num_samples) + 8)


@pytest.mark.parametrize(
    ("first_draw", "drawn", "num_draws", "draws", "room"),
    [
        (0, (0, 0), 8, 10, 4 / 10),  # the rest of the run is longer than the round
        (96, (3, 93), 8, 100, 1 / 8),  # the round is longer than the rest of the run
        (96, (3, 189), 8, 200, 1 / 16),  # the weights count tokens, so 96 draws of the round's kind are 192 draws
    ],
)
def test_the_repetition_limit_spreads_what_is_left_of_a_skill_over_the_draws_that_are_left(
    first_draw: int, drawn: tuple[int, int], num_draws: int, draws: int, room: float
) -> None:
    """Skill 0 has 2 samples, so 2 epochs are 4 draws."""
    upcoming = NextRound(first_draw // 8, first_draw, num_draws, (2, 1000), drawn)
    weights = repetition_limit(2.0, draws=draws).apply(np.array([0.9, 0.1]), upcoming)
    np.testing.assert_allclose(weights, [room, 1 - room])


def test_smoothing_is_a_running_mean_of_rounds() -> None:
    wanted = np.array([1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(smoothing(0.75).apply(wanted, upcoming(2, SKILLS)), [0.325, 0.15, 0.225, 0.3])
    assert np.array_equal(smoothing(0.75).apply(wanted, upcoming(0, SKILLS)), wanted)


def test_a_chain_probes_exactly_where_its_policy_probes() -> None:
    probing = [name for name, make in POLICIES.items() if isinstance(make(), Probing)]
    assert "aioli with a floor" in probing
    assert all("aioli" in name or "refresh" in name for name in probing)
    nested = chain(chain(POLICIES["aioli"](), floor(0.1)), floor(0.2))
    assert isinstance(nested, Probing)
    state, now = nested.init(SKILLS, SIZES), upcoming(0, SKILLS)
    assert np.array_equal(nested.weights(state, now), POLICIES["aioli"]().weights(state["policy"]["policy"], now))
    assert not isinstance(chain(chain(proportional()), floor(0.1)), Probing)


def test_transforms_leave_the_probes_of_a_policy_alone() -> None:
    policy = chain(aioli(eta=0.5, period_rounds=6, sweeps=1, one_hot=0.97), floor(0.1), max_change(0.01))
    state = policy.init(SKILLS, SIZES)
    weights = [policy.weights(state, upcoming(number, SKILLS)) for number in range(6)]
    assert [round(float(vector.max()), 2) for vector in weights[:4]] == [0.97] * 4
    assert len({int(vector.argmax()) for vector in weights[:4]}) == 4
    assert all(vector.max() < 0.5 for vector in weights[4:])


def test_a_curriculum_ends_with_everything_and_begins_with_what_is_easy() -> None:
    for build, first in ((curriculum, "carry"), (anti_curriculum, "copy")):
        policy = build(HARDNESS, draws=660_500)
        state = policy.init(SKILLS, SIZES)
        weights = policy.weights(state, upcoming(0, SKILLS))
        assert SKILLS[int(weights.argmax())] == first
        at_the_end = policy.weights(state, upcoming(700, SKILLS))
        np.testing.assert_allclose(at_the_end, np.array(SIZES) / sum(SIZES))
    # The limit admits 660.5 of 1,321 samples. The 300 of carry are the easiest. add and negate come next, together, 1,000 to 20.
    policy = curriculum(HARDNESS, draws=2000)
    half = policy.weights(policy.init(SKILLS, SIZES), upcoming(0, SKILLS))
    np.testing.assert_allclose(half, np.array([360.5 * 1000 / 1020, 300, 360.5 * 20 / 1020, 0]) / 660.5)


def test_a_skill_curriculum_goes_from_skill_to_skill() -> None:
    policy = skill_curriculum(HARDNESS, draws=10_000)
    state = policy.init(SKILLS, SIZES)
    order = [SKILLS[int(policy.weights(state, upcoming(number, SKILLS)).argmax())] for number in (0, 2, 4, 6)]
    assert order == ["carry", "add", "negate", "copy"]
    np.testing.assert_allclose(policy.weights(state, upcoming(9, SKILLS)), np.array(SIZES) / sum(SIZES))
    np.testing.assert_allclose(policy.weights(state, upcoming(99, SKILLS)), np.array(SIZES) / sum(SIZES))


def test_skill_stratified_in_the_three_settings_of_the_paper() -> None:
    edges = np.array([[1.0, 0.2, 0.0], [0.0, 1.0, -0.4], [0.0, 0.0, 1.0], [0.0, 0.1, 0.0]])
    for columns, names, expected in (
        ([0, 1, 2], SKILLS[:3], [0.25, 0.25, 0.25, 0.25]),  # pre-training, with a prerequisite that is not measured
        ([1], SKILLS[1:2], [1 / 3, 1 / 3, 0, 1 / 3]),  # fine-tuning to carry
        ([2], ("exam",), [0, 0, 1, 0]),  # out of domain
    ):
        policy = skill_stratified(SkillGraph(SKILLS, names, edges[:, columns]))
        np.testing.assert_allclose(policy.weights(policy.init(SKILLS)), expected)


def test_new_skills_get_their_natural_share_and_the_others_keep_their_ratios() -> None:
    policy = fixed({"add": 0.2, "carry": 0.6}, new="proportional")
    weights = policy.weights(policy.init(SKILLS, SIZES))
    np.testing.assert_allclose(weights[2:], [20 / 1321, 1 / 1321])
    assert weights[1] / weights[0] == pytest.approx(3)


def stratified_with(transform: Transform) -> Any:
    return chain(stratified(), transform).init(SKILLS)


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
        (lambda: floor(1.5), PolicyError, "floor is 1.5: give a number from 0"),
        (lambda: floor(-0.1), PolicyError, "floor is -0.1: give a number from 0"),
        (
            lambda: chain(stratified(), floor(0.25)).init(SKILLS),
            PolicyError,
            "floor 0.25 x 4 skills is 1: give a floor below 1 / 4 = 0.25.",
        ),
        (
            lambda: stratified_with(cap(0.2)),
            PolicyError,
            "cap 0.2 x 4 skills is 0.8, less than the whole: give a cap of at least 1 / 4 = 0.25.",
        ),
        (lambda: cap(0.0), PolicyError, "cap is 0.0: give a number from 1 / (number of skills) to 1."),
        (lambda: max_change(0.0), PolicyError, "max_change is 0.0: give a total variation above 0, at most 1."),
        (lambda: smoothing(1.0), PolicyError, "smoothing is 1.0: give the share of the weights of the round before"),
        (
            lambda: repetition_limit(0.0, draws=1),
            PolicyError,
            "epochs is 0.0: give the maximal number of passes over a skill",
        ),
        (
            lambda: repetition_limit(1.0, draws=10_000).apply(np.full(4, 0.25), upcoming(0, SKILLS)),
            PolicyError,
            "round 0: 1 epochs of all samples leave 1,321 draws, and the run still has 10,000 draws.",
        ),
        (
            lambda: smoothing(0.5).apply(np.full(4, 0.25)),
            PolicyError,
            "smoothing needs the round that it decides",
        ),
        (
            lambda: fixed({"add": 1.0}).init(SKILLS),
            PolicyError,
            "unknown: none; without a weight: carry, negate, copy.",
        ),
        (
            lambda: fixed({"addd": 1.0}).init(("add",)),
            PolicyError,
            "unknown: 'addd' (did you mean 'add'?); without a weight: add.",
        ),
        (
            lambda: fixed({"add": -1.0}),
            PolicyError,
            "the fixed weights are not numbers >= 0 with a sum > 0: add is -1.0.",
        ),
        (lambda: temperature(0.0), PolicyError, "tau is 0.0: give a finite number > 0"),
        (lambda: temperature(1.0).init(SKILLS), PolicyError, "temperature needs the number of samples of each skill"),
        (
            lambda: unimax(draws=0, epochs=1.0),
            PolicyError,
            "draws is 0: give the number of samples that the whole run takes",
        ),
        (
            lambda: skill_stratified(SkillGraph(SKILLS, ("exam",), np.zeros((4, 1)))).init(SKILLS),
            PolicyError,
            "no training skill has an edge > 0 to any evaluation skill",
        ),
        (lambda: softmax_loss(temperature=0.0), PolicyError, "temperature is 0.0: give nats"),
        (lambda: odm(smoothing=1.0, warmup_steps=0), PolicyError, "smoothing is 1.0: give a number from 0 to below 1"),
        (
            lambda: odm(warmup_steps=0, prior={"add": 1.0}).init(SKILLS),
            PolicyError,
            "odm's prior weights do not name the skills of the mix: unknown: none; missing: carry, negate, copy.",
        ),
        (lambda: exp3(scale=0.0), PolicyError, "scale is 0.0: give nats"),
        (
            lambda: doremi({"add": 1.0}).init(SKILLS),
            PolicyError,
            "doremi's reference losses do not name the skills of the mix",
        ),
        (
            lambda: ado(warmup_steps=0, refit_steps=1).observe(
                ado(warmup_steps=0, refit_steps=1).init(SKILLS, SIZES), Observation(3, {}, 9)
            ),
            ObservationError,
            "the observation at step 3 does not say how many draws each skill had, which ado needs",
        ),
        (
            lambda: aioli(eta=0.1, period_rounds=16, sweeps=4).init(SKILLS),
            PolicyError,
            "aioli's 4 sweeps over 4 skills are 16 probe rounds, and a period is 16: give period_rounds of more than 16.",
        ),
        (
            lambda: aioli(eta=0.1, period_rounds=16, sweeps=1).weights(
                aioli(eta=0.1, period_rounds=16, sweeps=1).init(SKILLS)
            ),
            PolicyError,
            "aioli needs the round that it decides",
        ),
        (
            lambda: aioli(eta=0.1, period_rounds=16, sweeps=1).observe(
                aioli(eta=0.1, period_rounds=16, sweeps=1).init(SKILLS),
                Observation(3, dict.fromkeys(SKILLS, 1.0), 40, dict.fromkeys(SKILLS, 10)),
            ),
            ObservationError,
            "the observation at step 3 does not say in which round it was made",
        ),
        (
            lambda: curriculum({"add": 1.0}, draws=10).init(SKILLS),
            PolicyError,
            "curriculum's losses do not name the skills of the mix",
        ),
        (lambda: curriculum({}, draws=10), PolicyError, "curriculum's losses are not finite numbers: none are given"),
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
