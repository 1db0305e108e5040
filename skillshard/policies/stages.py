"""Stages: other weights or another policy in each part of a run, with an optional gradual change."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.loss import LossKind
from skillshard.number_checks import is_finite, is_whole
from skillshard.policies.inner import Holder, check_covered, common_loss, part_of, read_together
from skillshard.policies.policy import (
    NextRound,
    Observation,
    Policy,
    Probing,
    RunFacts,
    State,
    check_is_policy,
    check_losses,
    in_draws,
    known_round,
)
from skillshard.policies.static import fixed

Unit = Literal["draws", "steps", "tokens"]
Blend = Literal["none", "linear", "cosine"]
MOST_UNTIL = 2**62
"""Largest end of a stage. Draws of a stream are at most 2**62."""


def mean_progress(blend: Blend, start: float, end: float) -> float:
    r"""Return the mean of a blend between two points of a stage. 0 is the beginning of the stage, 1 its end.

    The blend at a point x is x (linear) or :math:`(1 - \cos \pi x) / 2` (cosine).

    >>> mean_progress("linear", 0.25, 0.75), round(mean_progress("cosine", 0.0, 0.5), 6)
    (0.5, 0.18169)
    """
    if blend == "none":
        return 0.0
    if blend == "linear":
        return (start + end) / 2
    # The integral of the cosine, because a round may be as long as the whole stage.
    return 0.5 - (math.sin(math.pi * end) - math.sin(math.pi * start)) / (2 * math.pi * (end - start))


def stage_shares(ends: Sequence[int], blend: Blend, first: int, num: int) -> Float[np.ndarray, " stage"]:
    """Return the share of each stage in the weights of a round: the mean over the draws of the round. The shares sum to 1.

    Args:
        ends: Draw at which each stage but the last ends.
        blend: Way from a stage to the next stage.
        first: First draw of the round.
        num: Number of draws of the round, at least 1.

    >>> stage_shares([100, 200], "none", 75, 100).tolist(), stage_shares([100, 200], "linear", 150, 100).tolist()
    ([0.25, 0.75, 0.0], [0.0, 0.125, 0.875])
    """
    shares = np.zeros(len(ends) + 1)
    start = 0
    for number, end in enumerate(ends):
        begin, stop = max(first, start), min(first + num, end)
        if begin < stop:
            moved = mean_progress(blend, (begin - start) / (end - start), (stop - start) / (end - start))
            shares[number : number + 2] += (stop - begin) * np.array([1 - moved, moved])
        start = end
    shares[-1] += max(first + num - max(first, start), 0)
    return shares / num


@dataclass(frozen=True)
class Stages(Holder):
    """See `stages`. The ends are in draws, or None before the conversion."""

    policies: tuple[Policy, ...]
    until: tuple[int, ...]
    unit: Unit
    blend: Blend
    step_draws: int | None
    draw_tokens: float | None
    ends: tuple[int, ...] | None

    @property
    def name(self) -> str:
        return "stages"

    @property
    def arguments(self) -> dict[str, Any]:
        stages: list[dict[str, Any]] = []
        for number, policy in enumerate(self.policies):
            is_last = number == len(self.until)
            stages.append(
                {
                    "until": None if is_last else self.until[number],
                    "until_draw": None if is_last or self.ends is None else self.ends[number],
                    "policy": [policy.name, policy.arguments],
                }
            )
        return {"stages": stages, "unit": self.unit, "blend": self.blend}

    def held(self) -> tuple[Policy, ...]:
        return self.policies

    @property
    def eval_skills(self) -> tuple[str, ...] | None:
        return read_together(policy.eval_skills for policy in self._readers)

    @property
    def loss(self) -> LossKind | None:
        return common_loss(self.name, self.policies)

    def in_draws(self, facts: RunFacts) -> Policy:
        if self.unit == "steps" and facts.step_draws is not None and self.step_draws not in (None, facts.step_draws):
            raise PolicyError(
                f"stages counts steps of {self.step_draws:,} draws, and the run has steps of {facts.step_draws:,} draws: leave out `step_draws` of "
                "the stages, or give both the same number."
            )
        converted = replace(self, policies=tuple(in_draws(policy, facts) for policy in self.policies))
        return converted if self.ends is not None else replace(converted, ends=converted._ends(facts))

    def _ends(self, facts: RunFacts) -> tuple[int, ...]:
        """Convert the ends of the stages to draws by the facts of a run."""
        if self.unit == "steps":
            if facts.step_draws is None:
                raise PolicyError(_UNKNOWN_STEP)
            if facts.first_step is None:
                raise PolicyError(
                    "stages counts steps, and the run continues another run after an unknown number of steps: give the step to "
                    "Mixer.continue_from(..., step=...), or stages(..., step_draws=...)."
                )
            # The steps before this run may have had another size, so the ends are counted from the beginning of this run.
            return tuple(
                max(0, facts.first_draw + (until - facts.first_step) * facts.step_draws) for until in self.until
            )
        if facts.num_tokens is None:
            raise PolicyError(_UNKNOWN_TOKENS)
        ends, draws, before = [], 0.0, 0
        for number, until in enumerate(self.until):
            draws += (until - before) * self._draws_of_token(number, facts)
            ends.append(round(draws))
            before = until
        return tuple(ends)

    def _draws_of_token(self, number: int, facts: RunFacts) -> float:
        """Return the mean number of draws that bring a token of a stage, from the weights of the stage."""
        mixed = self.policies[number : number + (1 if self.blend == "none" else 2)]
        num_tokens = np.array(facts.num_tokens, dtype=np.float64)
        weights = np.zeros(len(facts.skills))
        for policy in mixed:
            try:
                if policy.reads_losses:
                    raise PolicyError(f"the weights of {policy.name} follow the losses")
                weights += policy.weights(policy.init(facts.skills, facts.num_tokens), None) / len(mixed)
            except PolicyError as error:
                raise PolicyError(
                    f"stages counts tokens, and the number of tokens of a draw is unknown in stage {number + 1}, because its weights are not "
                    f"constant ({str(error).rstrip('.')}): give stages(..., draw_tokens=mean number of tokens of a draw)."
                ) from error
        # The weights are shares of the tokens, so a token of skill j takes n_j / t_j draws.
        return float((weights * np.array(facts.num_samples) / num_tokens).sum())

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        if self.ends is None:
            raise PolicyError(_UNKNOWN_STEP if self.unit == "steps" else _UNKNOWN_TOKENS)
        states: list[State] = []
        for number, policy in enumerate(self.policies, start=1):
            if policy.reads_losses and policy.eval_skills is None:
                check_covered(f"stage {number} ({policy.name})", skills, self.eval_skills)
            try:
                states.append(policy.init(skills, num_samples))
            except PolicyError as error:
                raise PolicyError(f"stage {number}: {error}") from error
        return {"skills": list(skills), "stages": states}

    def observe(self, state: State, observation: Observation) -> State:
        skills = state["skills"]
        read = check_losses(
            observation.losses,
            self.eval_skills or skills,
            step=observation.step,
            may_miss=self.may_miss_losses,
        )
        seen = replace(observation, losses=read)
        states = [self._observed(number, own, seen, skills) for number, own in enumerate(state["stages"])]
        return {**state, "stages": states}

    def _observed(self, number: int, state: State, observation: Observation, skills: list[str]) -> State:
        policy = self.policies[number]
        if not policy.reads_losses:
            return state
        # After its stage a probing policy has no probes, and the losses of other rounds would pass for losses of probes.
        if isinstance(policy, Probing) and self.until and observation.draw > self._known_ends()[number]:
            return state
        part = part_of(observation, policy.eval_skills or skills)
        return state if part is None else policy.observe(state, part)

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        if len(self.policies) == 1:
            return self.policies[0].weights(state["stages"][0], upcoming)
        upcoming = known_round(self.name, upcoming)
        shares = stage_shares(self._known_ends(), self.blend, upcoming.first_draw, upcoming.num_draws)
        # Only the stages of the round are asked: a transform of another stage may not fit this round.
        parts = [
            (share, policy.weights(own, upcoming))
            for share, policy, own in zip(shares.tolist(), self.policies, state["stages"], strict=True)
            if share > 0
        ]
        if len(parts) == 1:
            return parts[0][1]  # without a multiplication, so that the weights keep their bits
        weights = np.sum([share * part for share, part in parts], axis=0)
        total: Float[np.ndarray, " train_skill"] = weights / weights.sum()
        return total

    def _known_ends(self) -> tuple[int, ...]:
        assert self.ends is not None  # `init` refuses stages without ends
        return self.ends


@dataclass(frozen=True)
class ProbingStages(Stages):
    """Stages whose first policy chooses probe rounds."""

    def probe(self, upcoming: NextRound, skills: Sequence[str]) -> Float[np.ndarray, " train_skill"] | None:
        first = self.policies[0]
        assert isinstance(first, Probing)  # `stages` uses this class only for such policies
        ends = self._known_ends()
        is_inside = not ends or upcoming.first_draw + upcoming.num_draws <= ends[0]
        return first.probe(upcoming, skills) if is_inside else None


_UNKNOWN_STEP = (
    "stages counts steps, and the number of draws of a step is unknown: give `step_draws` to stages or to the Mixer, the samples of an "
    "optimizer step over all ranks and gradient accumulation."
)
_UNKNOWN_TOKENS = (
    "stages counts tokens, and the number of tokens of a draw is unknown: give `draw_tokens` to stages, the mean number of tokens of a "
    "draw, or Mixer(..., unit='tokens', tokens=...)."
)


def stages(
    stages: Sequence[tuple[int | None, Policy | Mapping[str, float]]],
    *,
    unit: Unit = "draws",
    blend: Blend = "none",
    step_draws: int | None = None,
    draw_tokens: float | None = None,
) -> Policy:
    r"""Use other weights, or another policy, in each stage of a run.

    .. math:: p(d) = (1 - s) p_i + s p_{i+1}, \quad s = f\Big(\frac{d - u_{i-1}}{u_i - u_{i-1}}\Big) \quad
        \text{for } u_{i-1} \le d < u_i

    :math:`p_i` are the weights of stage i, and :math:`u_i` is its end. f is 0 without a blend, x with "linear" and
    :math:`(1 - \cos \pi x) / 2` with "cosine". With a blend the weights of a stage change gradually, from its own weights at its beginning
    to the weights of the next stage at its end. A stage that keeps its weights, and then changes, is two stages with the same weights. The
    last stage has no end: it is the stage for annealing. A round has the mean weights of its draws.

    Every observation reaches the policy of every stage, also before and after the stage. So a later policy begins its stage with the losses
    of the whole run, and a policy with a memory of its own weights (odm, exp3) has moved them before its stage. Every round waits for
    reports if the policy of any stage reads losses. A policy that probes (aioli, graph_refresh) observes until the end of its stage. Its
    probes have fixed rounds, so it must be the first stage, and no blend is possible.

    Positions count the draws, steps or tokens of all runs of a chain of continued runs. Steps and tokens are converted to draws once,
    before the first round, and `run.json` records both numbers.

    Args:
        stages: Pairs of the end of the stage and its weights (training skill -> weight >= 0) or its policy. Ends rise, and the last end is
            None. The end itself belongs to the next stage.
        unit: Unit of the ends.
        blend: Way from a stage to the next stage.
        step_draws: Number of draws of an optimizer step, at least 1, for the unit "steps". None: the mixer's own `step_draws`.
        draw_tokens: Mean number of tokens of a draw, above 0, for the unit "tokens". None: the number follows from the mixer's token counts and
            the constant weights of the stages.

    Returns:
        A policy. Its state holds the state of each stage's policy.

    Raises:
        PolicyError: An argument is out of range, a policy that probes is not alone at the beginning, or the graphs of two stages have
            different kinds of losses. Later, a stage does not fit the skills, or the unit cannot be converted to draws.

    Example:
        >>> policy = stages([(200, {"add": 1.0, "carry": 0.0}), (None, {"add": 0.5, "carry": 0.5})], blend="linear")
        >>> state = policy.init(("add", "carry"))
        >>> policy.weights(state, NextRound(1, 100, 100, (10, 10), (90, 10))).tolist()
        [0.625, 0.375]

    Reference:
        A method of skillshard. Stages of a pre-training with an annealing stage are common, for example in Llama 3, arXiv:2407.21783,
        Section 3.4.
    """
    if unit not in get_args(Unit):
        raise PolicyError(f"unit is {unit!r}: give 'draws' (default), 'steps' or 'tokens'.")
    if blend not in get_args(Blend):
        raise PolicyError(f"blend is {blend!r}: give 'none' (default), 'linear' or 'cosine'.")
    if step_draws is not None and (unit != "steps" or not _is_whole(step_draws)):
        raise PolicyError(
            f"step_draws is {step_draws!r}, and unit is {unit!r}: give the samples of an optimizer step, at least 1, and only for unit='steps'."
        )
    if draw_tokens is not None and (unit != "tokens" or not is_finite(draw_tokens) or draw_tokens <= 0):
        raise PolicyError(
            f"draw_tokens is {draw_tokens!r}, and unit is {unit!r}: give the mean number of tokens of a draw, above 0, and only for unit='tokens'."
        )
    pairs = _checked_pairs(stages)
    policies = tuple(_as_policy(number, entry) for number, (_, entry) in enumerate(pairs, start=1))
    until = _checked_ends([end for end, _ in pairs], unit)
    probing = [number for number, policy in enumerate(policies, start=1) if isinstance(policy, Probing)]
    if probing and (probing != [1] or (blend != "none" and len(policies) > 1)):
        raise PolicyError(
            f"stage {probing[-1]} ({policies[probing[-1] - 1].name}) has probes at fixed rounds, and they would be mixed or left out: use a policy that "
            "probes only in the first stage, with blend='none', or let a new run continue the run with this policy (Mixer.continue_from)."
        )
    common_loss("stages", policies)
    ends: tuple[int, ...] | None = until
    if unit == "steps" and until:
        ends = None if step_draws is None else tuple(end * int(step_draws) for end in until)
    if unit == "tokens" and until:
        ends = None if draw_tokens is None else tuple(round(end / draw_tokens) for end in until)
    kind = ProbingStages if probing else Stages
    return kind(policies, until, unit, blend, step_draws, draw_tokens, ends)


def with_ends(policy: Policy, ends: Sequence[int]) -> Policy:
    """Return stages whose ends are known in draws, as the record of a run holds the draws.

    Args:
        policy: Policy of `stages`.
        ends: Draw at which each stage but the last ends.
    """
    assert isinstance(policy, Stages) and len(ends) == len(policy.until)
    return replace(policy, ends=tuple(ends))


def _checked_pairs(stages: Any) -> list[tuple[Any, Any]]:
    is_list = isinstance(stages, Sequence) and not isinstance(stages, str)
    if not is_list or not stages or not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in stages):
        raise PolicyError(
            "stages are no list of pairs: give at least one pair (until, weights or policy), such as "
            '[(2000, policies.proportional()), (None, {"add": 0.7, "carry": 0.3})].'
        )
    return [(end, entry) for end, entry in stages]


def _as_policy(number: int, entry: Any) -> Policy:
    try:
        if isinstance(entry, Mapping):
            return fixed(entry)
        check_is_policy(entry)
    except PolicyError as error:
        raise PolicyError(f"stage {number}: {error}") from error
    policy: Policy = entry
    return policy


def _checked_ends(values: list[Any], unit: str) -> tuple[int, ...]:
    """Return the ends of all stages but the last. Raise PolicyError unless they are whole numbers that rise, and the last end is None."""
    *ends, last = values
    if last is not None:
        raise PolicyError(
            f"the last stage ends at {last!r}, and a stream has no end: give the last stage the end None, or add a stage with the end None."
        )
    before = 0
    for number, end in enumerate(ends, start=1):
        if not _is_whole(end) or end <= before:
            raise PolicyError(
                f"stage {number} ends at {end!r}: give a whole number of {unit} above {before:,}, the beginning of the stage. Only the last stage "
                "has no end."
            )
        before = int(end)
    return tuple(int(end) for end in ends)


def _is_whole(value: Any) -> bool:
    """Return whether a value is a whole number from 1 to `MOST_UNTIL`. 1e9 is whole, and True is no number."""
    return is_finite(value) and value == int(value) and is_whole(int(value), 1, MOST_UNTIL)
