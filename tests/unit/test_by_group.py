"""Groups of skills: numbers by hand, and the promises of the two levels."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.errors import PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.mixer import Mixer
from skillshard.policies import (
    NextRound,
    Observation,
    Policy,
    aioli,
    by_group,
    chain,
    fixed,
    loss_order,
    max_change,
    odm,
    proportional,
    skill_it,
    softmax_loss,
    stages,
    stratified,
)
from skillshard.policies.policy import RunFacts, in_draws
from skillshard.shards.read import ShardSet

SKILLS = ("code/c", "code/python", "web")
SIZES = (100, 300, 50)
UNCHECKED: Any = inspect.unwrap(by_group)
"""The function without the check of types that the suite adds."""
OF_GROUPS = SkillGraph(("code", "web"), ("code", "web"), [[1.0, 0.5], [0.0, 1.0]])


def test_the_weights_are_the_products_of_both_levels() -> None:
    policy = by_group(fixed({"code": 0.6, "web": 0.4}), stratified(), groups="prefix")
    assert policy.weights(policy.init(SKILLS, SIZES)).tolist() == [0.3, 0.3, 0.4]


def test_skill_it_over_groups_reads_the_mean_loss_of_each_group_weighted_by_size() -> None:
    policy = by_group(skill_it(OF_GROUPS, eta=1.0, window=1), proportional(), groups="prefix")
    state = policy.observe(policy.init(SKILLS, SIZES), Observation(8, {"code/c": 3.0, "code/python": 1.0, "web": 2.0}))
    # The loss of code is (100 x 3 + 300 x 1) / 400 = 1.5. The scores are 1.5 + 0.5 x 2 = 2.5 for code and 2 for web.
    assert state["outer"]["window"] == [[1.5, 2.0]]
    code = np.exp(2.5) / (np.exp(2.5) + np.exp(2.0))
    np.testing.assert_allclose(policy.weights(state), [code / 4, code * 3 / 4, 1 - code], rtol=1e-12)


def test_an_inner_policy_sees_the_losses_and_the_round_of_its_group_alone() -> None:
    inner = {"code": chain(softmax_loss(temperature=1.0), max_change(0.1)), "web": stratified()}
    policy = by_group(fixed({"code": 0.5, "web": 0.5}), inner, groups={"code": SKILLS[:2], "web": SKILLS[2:]})
    assert policy.eval_skills == ("code/c", "code/python")
    state = policy.observe(policy.init(SKILLS, SIZES), Observation(8, {"code/c": 2.0, "code/python": 2.0 + np.log(3)}))
    # The softmax of the losses is 1/4 and 3/4 within code. In the round before, code had 0.4 and 0.1 of all draws, so 0.8 and 0.2 within.
    now = NextRound(1, 100, 100, SIZES, (40, 10, 50), (0.4, 0.1, 0.5))
    np.testing.assert_allclose(policy.weights(state, now), [0.35, 0.15, 0.5], rtol=1e-12)
    # A group without a draw in the round before has no weights before, as in the first round.
    new = NextRound(1, 100, 100, SIZES, (0, 0, 100), (0.0, 0.0, 1.0))
    np.testing.assert_allclose(policy.weights(state, new), [0.125, 0.375, 0.5], rtol=1e-12)


def test_a_group_without_a_reported_skill_keeps_its_weight() -> None:
    policy = by_group(odm(warmup_steps=0, smoothing=0.0), stratified(), groups="prefix")
    assert policy.may_miss_losses
    state = policy.observe(policy.init(SKILLS, SIZES), Observation(8, {"code/python": 1.0}))
    np.testing.assert_allclose(policy.weights(state), [0.25, 0.25, 0.5])
    # Both skills of code count in their sizes when both are reported, and a reported skill alone stands for its group.
    rewards = policy.observe(state, Observation(9, {"code/c": 4.0, "code/python": 0.0}))["outer"]["rewards"]
    np.testing.assert_allclose(rewards[0], 1.0)
    assert rewards[1] is None


@given(
    losses=st.lists(st.sampled_from((0.1, 0.3, 0.7)), min_size=6, max_size=6),
    order=st.permutations(range(6)),
)
def test_the_order_of_the_skills_changes_no_bit_even_for_a_policy_that_compares_equal_losses(
    losses: list[float], order: list[int]
) -> None:
    policy = by_group(loss_order(eta=0.3), proportional(), groups="prefix")
    seen = Observation(1, dict(zip(NAMES, losses, strict=True)))
    names, counts = tuple(NAMES[place] for place in order), (3, 7, 11, 13, 17, 19)
    state = policy.observe(policy.init(NAMES, counts), seen)
    two = policy.observe(policy.init(names, [counts[place] for place in order]), seen)
    np.testing.assert_allclose(policy.weights(two), policy.weights(state)[order], rtol=1e-12)


weights_of = st.lists(st.floats(0.01, 1), min_size=6, max_size=6)
NAMES = ("a/1", "a/2", "b", "c/1", "c/2", "c/3")


@given(losses=st.lists(st.floats(0, 100), min_size=6, max_size=6), order=st.permutations(NAMES), raw=weights_of)
def test_weights_sum_to_one_do_not_depend_on_the_order_and_a_group_of_one_skill_has_its_group_s_weight(
    losses: list[float], order: list[str], raw: list[float]
) -> None:
    prior = dict(zip("abc", raw, strict=False))
    policy = by_group(softmax_loss(temperature=3.0, prior=prior), softmax_loss(temperature=2.0), groups="prefix")
    seen = Observation(1, dict(zip(NAMES, losses, strict=True)))
    size_of = dict(zip(NAMES, (10, 20, 30, 40, 50, 60), strict=True))

    def weights(names: tuple[str, ...]) -> dict[str, float]:
        state = json.loads(json.dumps(policy.init(names, [size_of[name] for name in names]), sort_keys=True))
        weights_of_names = policy.weights(json.loads(json.dumps(policy.observe(state, seen), sort_keys=True)))
        assert abs(weights_of_names.sum() - 1) < 1e-9
        return dict(zip(names, weights_of_names.tolist(), strict=True))

    first, second = weights(NAMES), weights(tuple(order))
    np.testing.assert_allclose([first[name] for name in NAMES], [second[name] for name in NAMES], rtol=1e-9, atol=1e-12)
    outer = softmax_loss(temperature=3.0, prior=prior)
    means = {
        group: float(np.average([seen.losses[name] for name in own], weights=[size_of[name] for name in own]))
        for group, own in {"a": NAMES[:2], "b": NAMES[2:3], "c": NAMES[3:]}.items()
    }
    alone = outer.weights(outer.observe(outer.init(("a", "b", "c")), Observation(1, means)))
    np.testing.assert_allclose(first["b"], alone[1], rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: by_group(stratified(), stratified(), groups={}), "groups are no mapping from groups to lists of skills"),
        (lambda: UNCHECKED(stratified(), stratified(), groups="suffix"), "groups are no mapping"),
        (lambda: by_group(stratified(), stratified(), groups={"a": "web"}), "groups are no mapping"),
        (lambda: by_group(stratified(), stratified(), groups={"a": ["web"], "b": []}), "'b' has no skill: give each group at least one skill"),
        (lambda: by_group(stratified(), stratified(), groups={"a": ["web"], "b": ["web"]}), "skill 'web' is in group 'a' and in group 'b'"),
        (lambda: by_group(stratified(), aioli(eta=0.1, period_rounds=9), groups="prefix"), "policy aioli has probes"),
        (lambda: UNCHECKED(stratified(), "odm", groups="prefix"), "str is no policy"),
        (
            lambda: by_group(stratified(), stratified(), groups={"code": ["code/c", "code/pyton"], "w": ["web"]}).init(SKILLS),
            r"unknown: 'code/pyton' \(did you mean 'code/python'\?\); without a group: 'code/python'",
        ),
        (
            lambda: by_group(stratified(), {"code": stratified(), "wob": stratified()}, groups="prefix").init(SKILLS),
            r"the inner policies do not name the groups: unknown: 'wob' \(did you mean 'web'\?\); without a policy: 'web'",
        ),
        (
            lambda: by_group(stratified(), {"a": stratified()}, groups={"a": ["x"], "b": ["y"]}),
            "the inner policies do not name the groups: unknown: none; without a policy: 'b'",
        ),
        (
            lambda: by_group(skill_it(SkillGraph(("code", "web"), ("code", "wep"), np.eye(2)), eta=1.0), stratified(), groups="prefix").init(SKILLS, SIZES),
            r"reads the losses of 'wep' \(did you mean 'web'\?\), and the groups are 'code', 'web'",
        ),
        (lambda: by_group(fixed({"code": 1.0}), stratified(), groups="prefix").init(SKILLS), "policy of the groups: the fixed weights"),
        (lambda: by_group(stratified(), fixed({"code/c": 1.0}), groups="prefix").init(SKILLS), "group 'code': the fixed weights"),
        (lambda: by_group(loss_order(eta=1.0), stratified(), groups="prefix").init(SKILLS), "by_group needs the number of samples of each skill"),
        (
            lambda: in_draws(by_group(stages([(9, stratified()), (None, stratified())], unit="tokens"), stratified(), groups="prefix"), RunFacts(SKILLS, SIZES, SIZES)),
            "stages counts tokens, and the number of tokens of a draw is unknown",
        ),
    ],
)  # fmt: skip
def test_wrong_groups_are_refused_with_a_sentence(make: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        make()


@pytest.mark.parametrize("groups", ["prefix", {"sums": ["add", "carry"], "rest": ["negate"]}])
def test_a_run_over_groups_has_the_weights_that_follow_from_the_reported_losses(
    groups: Any, shards: ShardSet, tmp_path: Path
) -> None:
    names = ("add", "carry", "negate") if groups == "prefix" else tuple(groups)
    policy: Policy = by_group(skill_it(SkillGraph.identity(names), eta=1.0, window=1), proportional(), groups=groups)
    mixer = Mixer(shards, policy, ledger=tmp_path, round_draws=20, step_draws=20)
    size = {skill: len(shards.train[skill]) for skill in mixer.skills}
    mixer.report(0, {"add": 2.0, "carry": 1.0, "negate": 0.5})
    sums = (size["add"] * 2.0 + size["carry"] * 1.0) / (size["add"] + size["carry"])
    scores = np.exp([2.0, 1.0, 0.5] if groups == "prefix" else [sums, 0.5])
    shares = scores / scores.sum()
    if groups != "prefix":
        within = np.array([size["add"], size["carry"]]) / (size["add"] + size["carry"])
        shares = np.append(shares[0] * within, shares[1])
    weight_of = dict(zip(("add", "carry", "negate"), shares, strict=True))
    np.testing.assert_allclose(mixer.round(1).weights, [weight_of[skill] for skill in mixer.skills], rtol=1e-12)
    again = Mixer(shards, policy, ledger=tmp_path, round_draws=20, step_draws=20)
    assert again.ids(0, 40) == mixer.ids(0, 40)
