"""A test for your own policy: `check_policy` checks every promise that the mixer and the ledger rely on.

def test_my_policy_keeps_the_contract() -> None:
    check_policy(lambda: MyPolicy(eta=0.2), skills=("add", "carry", "negate"))
"""

import copy
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from skillshard.errors import ObservationError, PolicyError, SkillshardError
from skillshard.policies.policy import NextRound, Observation, Probing, check_is_policy

ROUND_DRAWS = 1000
SAME = 1e-9
"""Largest difference of equal weights. Another order of a sum may change the last digits."""


def check_policy(
    make_policy: Callable[[], Any],
    *,
    skills: Sequence[str] = ("add", "carry", "negate", "copy"),
    num_samples: Sequence[int] = (1000, 300, 20, 1),
    seed: int = 0,
) -> None:
    """Check a policy against the contract of all policies.

    The contract has these promises:

    - Weights are a distribution over the skills, whatever the losses (zero, equal, huge, one-sided).
    - `init`, `observe` and `weights` are pure functions, and nothing is remembered outside the state.
    - The state is JSON and is the same after a round trip through JSON.
    - The policy can be pickled, and its arguments are JSON.
    - Another order of the skills gives the same weights in that order.
    - Losses that are NaN, negative, infinite or of an unknown skill are refused, and an observation without losses is refused.
    - Missing losses leave a distribution if `may_miss_losses` is true, and are refused if `may_miss_losses` is false.
    - A policy with `reads_losses` false gives weights that do not depend on losses.
    - The weights of a probe depend on the round alone.

    Args:
        make_policy: Function that builds the policy. Every call must give the same policy.
        skills: Training skills that fit the policy, at least 2.
        num_samples: Number of samples of each skill.
        seed: Seed for the losses.

    Raises:
        PolicyError: The message has one sentence for each broken promise. Or `make_policy` is a policy, and not a function.

    Example:
        >>> from skillshard import policies
        >>> check_policy(policies.stratified)
        >>> class Forgetful:
        ...     pass
        >>> check_policy(Forgetful)
        Traceback (most recent call last):
        skillshard.errors.PolicyError: Forgetful is no policy: it lacks arguments, eval_skills, init, may_miss_losses, name, observe, reads_losses, weights.
    """
    if not callable(make_policy):
        raise PolicyError(
            f"check_policy builds the policy several times: give what makes it, such as lambda: {type(make_policy).__name__}(...), not the policy."
        )
    policy = make_policy()
    check_is_policy(policy)
    candidate = Candidate(make_policy, tuple(skills), tuple(num_samples), seed)
    faults = [fault for check in CHECKS for fault in _faults_of(check, candidate)]
    if faults:
        broken = "; ".join(f"({number}) {fault}" for number, fault in enumerate(dict.fromkeys(faults), start=1))
        raise PolicyError(f"policy {policy.name!r} breaks the contract: {broken}.")


class Candidate:
    """A policy under test, with the skills, losses and rounds of the test."""

    def __init__(
        self, make_policy: Callable[[], Any], skills: tuple[str, ...], num_samples: tuple[int, ...], seed: int
    ) -> None:
        self.make_policy, self.skills, self.num_samples = make_policy, skills, num_samples
        self.policy = make_policy()
        self.eval_skills: tuple[str, ...] = tuple(self.policy.eval_skills or skills)
        self.sequences = dict(_loss_sequences(self.eval_skills, seed))

    def init(self, policy: Any, skills: tuple[str, ...] | None = None) -> Any:
        chosen = skills or self.skills
        return policy.init(chosen, [self.num_samples[self.skills.index(skill)] for skill in chosen])

    def observation(self, number: int, losses: dict[str, float]) -> Observation:
        """Make the observation at the end of round `number`, in a stream that draws all skills equally often."""
        draw = (number + 1) * ROUND_DRAWS
        drawn = {skill: draw // len(self.skills) for skill in self.skills}
        return Observation(10 * (number + 1), losses, draw, drawn, number)

    def upcoming(self, number: int, skills: tuple[str, ...] | None = None) -> NextRound:
        """Describe round `number` of the same stream."""
        chosen = skills or self.skills
        k, first = len(chosen), number * ROUND_DRAWS
        counts = tuple(self.num_samples[self.skills.index(skill)] for skill in chosen)
        before = (1 / k,) * k if number else None
        return NextRound(number, first, ROUND_DRAWS, counts, (first // k,) * k, before)

    def after(self, policy: Any, losses: list[dict[str, float]], skills: tuple[str, ...] | None = None) -> Any:
        """Return the state after observations of the given losses."""
        state = self.init(policy, skills)
        for number, losses_of_round in enumerate(losses):
            state = policy.observe(state, self.observation(number, losses_of_round))
        return state


def _loss_sequences(eval_skills: tuple[str, ...], seed: int) -> Iterator[tuple[str, list[dict[str, float]]]]:
    names, random = list(eval_skills), np.random.default_rng(seed)
    yield "no losses yet", []
    yield (
        "falling losses",
        [dict(zip(names, random.uniform(1, 4, len(names)) / (1 + n), strict=True)) for n in range(20)],
    )
    yield "equal losses", [dict.fromkeys(names, 1.5)] * 6
    # Zero, huge and one-sided losses: a formula with a logarithm, an exponential or a quotient fails on these first.
    yield "losses of zero", [dict.fromkeys(names, 0.0)] * 6
    yield "losses of 1000", [dict.fromkeys(names, 1000.0)] * 6
    yield "one loss of 1000, the others 0", [dict.fromkeys(names, 0.0) | {names[0]: 1000.0}] * 6


def _faults_of(check: Callable[[Candidate], Iterator[str]], candidate: Candidate) -> list[str]:
    """Return the faults that a check reports. An unexpected error of the policy is a fault as well."""
    faults: list[str] = []
    try:
        for fault in check(candidate):
            faults.append(fault)
    except Exception as error:  # the policy is code of the user, and may raise any class
        faults.append(f"{check.__name__.strip('_').replace('_', ' ')}: it raised {type(error).__name__}: {error}")
    return faults


def _fault_of_weights(weights: Any, k: int) -> str | None:
    if not isinstance(weights, np.ndarray) or weights.dtype.kind != "f":
        return f"weights are {type(weights).__name__}, not an array of floats"
    if weights.shape != (k,):
        return f"weights have shape {weights.shape}, and there are {k} skills"
    if not np.all(np.isfinite(weights)):
        return f"weights are not finite: {weights.tolist()}"
    if weights.min() < 0:
        return f"a weight is below 0: {weights.tolist()}"
    if abs(float(weights.sum()) - 1) > SAME:
        return f"weights sum to {float(weights.sum()):.9g}, not to 1"
    return None


def _weights_are_a_distribution(candidate: Candidate) -> Iterator[str]:
    for name, losses in candidate.sequences.items():
        state = candidate.init(candidate.policy)
        for number in range(len(losses) + 1):
            fault = _fault_of_weights(
                candidate.policy.weights(state, candidate.upcoming(number)), len(candidate.skills)
            )
            if fault:
                yield f"after {name}: {fault}"
                break
            if number < len(losses):
                state = candidate.policy.observe(state, candidate.observation(number, losses[number]))


def _it_is_pure(candidate: Candidate) -> Iterator[str]:
    policy, losses = candidate.policy, candidate.sequences["falling losses"]
    state = candidate.after(policy, losses[:3])
    before, observation = copy.deepcopy(state), candidate.observation(3, losses[3])
    first, second = policy.observe(state, observation), policy.observe(copy.deepcopy(before), observation)
    if state != before:
        yield "observe changes the state that it is given"
    if first != second:
        yield "observe gives another state when it is called again with the same"
    before, upcoming = copy.deepcopy(first), candidate.upcoming(4)
    once, twice = policy.weights(first, upcoming), policy.weights(first, upcoming)
    if first != before:
        yield "weights changes the state that it is given"
    if not np.array_equal(once, twice):
        yield "weights gives others when it is called again with the same state"
    if candidate.init(policy) != candidate.init(policy):
        yield "init gives another state when it is called again"


def _nothing_is_remembered_outside_the_state(candidate: Candidate) -> Iterator[str]:
    losses = candidate.sequences["falling losses"]
    used = candidate.make_policy()
    state = candidate.after(used, losses)
    fresh = candidate.make_policy()
    upcoming = candidate.upcoming(len(losses))
    if not np.array_equal(fresh.weights(copy.deepcopy(state), upcoming), used.weights(state, upcoming)):
        yield "a new instance gives other weights for the same state: something is remembered outside the state"
    again = candidate.after(used, losses)
    if again != candidate.after(candidate.make_policy(), losses):
        yield "an instance that was used before gives another state than a new instance"


def _the_state_is_json(candidate: Candidate) -> Iterator[str]:
    for name, losses in candidate.sequences.items():
        state = candidate.after(candidate.policy, losses)
        try:
            restored = json.loads(json.dumps(state, allow_nan=False))
        except (TypeError, ValueError) as error:
            yield f"the state after {name} is not JSON: {error}"
            return
        upcoming = candidate.upcoming(len(losses))
        if restored != state or not np.array_equal(
            candidate.policy.weights(restored, upcoming), candidate.policy.weights(state, upcoming)
        ):
            yield f"the state after {name} does not come back from JSON as it was"
            return


def _name_and_arguments_are_json_and_the_policy_can_be_pickled(candidate: Candidate) -> Iterator[str]:
    policy = candidate.policy
    if not isinstance(policy.name, str) or not policy.name:
        yield f"its name is {policy.name!r}, not a word"
    try:
        if json.loads(json.dumps(policy.arguments, allow_nan=False)) != policy.arguments:
            yield "its arguments do not come back from JSON as they were, so a run would not know itself again"
    except (TypeError, ValueError) as error:
        yield f"its arguments are not JSON: {error}"
    if candidate.make_policy().arguments != policy.arguments:
        yield "make_policy gives other arguments each time"
    losses = candidate.sequences["falling losses"]
    state, upcoming = candidate.after(policy, losses), candidate.upcoming(len(losses))
    try:
        again = pickle.loads(pickle.dumps(policy))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        yield f"it cannot be pickled, which a loader with workers needs: {error}"
        return
    if not np.array_equal(again.weights(state, upcoming), policy.weights(state, upcoming)):
        yield "pickled, it gives other weights"


def _another_order_of_the_skills_gives_the_weights_in_that_order(candidate: Candidate) -> Iterator[str]:
    # A reversed order alone would not find a policy that treats the middle skill apart.
    order = tuple(candidate.skills[index] for index in np.random.default_rng(1).permutation(len(candidate.skills)))
    for moved in (tuple(reversed(candidate.skills)), order):
        for name, losses in candidate.sequences.items():
            upcoming = candidate.upcoming(len(losses))
            weights = candidate.policy.weights(candidate.after(candidate.policy, losses), upcoming)
            upcoming = candidate.upcoming(len(losses), moved)
            got = candidate.policy.weights(candidate.after(candidate.policy, losses, moved), upcoming)
            expected = [weights[candidate.skills.index(skill)] for skill in moved]
            if not np.allclose(got, expected, rtol=0, atol=SAME):
                yield f"after {name}, another order of the skills gives other weights: they depend on places, not on names"
                return


def _bad_losses_are_refused(candidate: Candidate) -> Iterator[str]:
    if not candidate.policy.reads_losses:
        return
    names = candidate.eval_skills
    good = dict.fromkeys(names, 1.0)
    for what, losses in (
        ("NaN", good | {names[0]: float("nan")}),
        ("infinite", good | {names[0]: float("inf")}),
        ("negative", good | {names[0]: -1.0}),
        ("of an unknown skill", good | {"skill that nobody has": 1.0}),
    ):
        try:
            candidate.policy.observe(candidate.init(candidate.policy), candidate.observation(0, losses))
        except ObservationError:
            continue
        yield f"a loss that is {what} is taken: raise ObservationError, as skillshard.policies.policy.check_losses does"


def _missing_losses_are_refused_unless_it_may_miss_them(candidate: Candidate) -> Iterator[str]:
    if not candidate.policy.reads_losses:
        return
    if len(candidate.eval_skills) > 1 and candidate.policy.may_miss_losses:
        yield from _faults_with_some_losses(candidate)
    elif len(candidate.eval_skills) > 1 and _takes(candidate, dict.fromkeys(candidate.eval_skills[1:], 1.0)):
        yield (
            "may_miss_losses is False, and yet it takes an observation in which a skill is missing: raise ObservationError, as "
            "skillshard.policies.policy.check_losses does, or say that it may miss them"
        )
    if _takes(candidate, {}):
        yield "an observation without any loss is taken: raise ObservationError, as skillshard.policies.policy.check_losses does"


def _faults_with_some_losses(candidate: Candidate) -> Iterator[str]:
    """Check a policy that may miss losses: observe each skill alone in turn, then all skills, then all skills but one."""
    names, state = candidate.eval_skills, candidate.init(candidate.policy)
    parts = [(name,) for name in names] + [names] + [tuple(other for other in names if other != name) for name in names]
    for number, part in enumerate(parts):
        losses = {name: 1.0 + index + 1 / (1 + number) for index, name in enumerate(names) if name in part}
        try:
            state = candidate.policy.observe(state, candidate.observation(number, losses))
        except ObservationError as error:
            yield f"may_miss_losses is True, and yet it refuses an observation of {len(part)} of {len(names)} skills: {error}"
            return
        fault = _fault_of_weights(
            candidate.policy.weights(state, candidate.upcoming(number + 1)), len(candidate.skills)
        )
        if fault:
            yield f"after an observation in which a skill is missing: {fault}"
            return


def _takes(candidate: Candidate, losses: dict[str, float]) -> bool:
    """Whether a new run accepts these losses."""
    try:
        candidate.policy.observe(candidate.init(candidate.policy), candidate.observation(0, losses))
    except ObservationError:
        return False
    return True


def _other_skills_are_refused_with_a_sentence(candidate: Candidate) -> Iterator[str]:
    try:
        state = candidate.policy.init((*candidate.skills, "a new skill"), (*candidate.num_samples, 10))
    except SkillshardError:
        return
    k = len(candidate.skills) + 1
    upcoming = NextRound(0, 0, ROUND_DRAWS, (*candidate.num_samples, 10), (0,) * k)
    fault = _fault_of_weights(candidate.policy.weights(state, upcoming), k)
    if fault:
        yield f"with a new skill: {fault}"


def _a_policy_that_reads_no_losses_does_not(candidate: Candidate) -> Iterator[str]:
    if candidate.policy.reads_losses:
        return
    state, upcoming = candidate.init(candidate.policy), candidate.upcoming(5)
    observed = candidate.after(candidate.policy, candidate.sequences["falling losses"])
    if not np.array_equal(candidate.policy.weights(observed, upcoming), candidate.policy.weights(state, upcoming)):
        yield "reads_losses is False, and yet its weights change with the losses, for which no round would wait"


def _probes_depend_on_the_round_alone(candidate: Candidate) -> Iterator[str]:
    policy: Any = candidate.policy
    k = len(candidate.skills)
    if not isinstance(candidate.policy, Probing):
        return
    state, seen = candidate.init(policy), candidate.after(policy, candidate.sequences["falling losses"])
    for number in range(40):  # enough rounds to contain several probes of a policy that probes now and then
        upcoming = candidate.upcoming(number)
        probe = policy.probe(upcoming, candidate.skills)
        if probe is None:
            continue
        fault = _fault_of_weights(probe, k)
        if fault:
            yield f"the probe of round {number}: {fault}"
            return
        if not all(np.array_equal(policy.weights(each, upcoming), probe) for each in (state, seen)):
            yield f"round {number} is a probe, and weights gives other weights than probe"
            return


CHECKS: tuple[Callable[[Candidate], Iterator[str]], ...] = (
    _weights_are_a_distribution,
    _it_is_pure,
    _nothing_is_remembered_outside_the_state,
    _the_state_is_json,
    _name_and_arguments_are_json_and_the_policy_can_be_pickled,
    _another_order_of_the_skills_gives_the_weights_in_that_order,
    _bad_losses_are_refused,
    _missing_losses_are_refused_unless_it_may_miss_them,
    _other_skills_are_refused_with_a_sentence,
    _a_policy_that_reads_no_losses_does_not,
    _probes_depend_on_the_round_alone,
)
