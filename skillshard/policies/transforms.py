"""Transforms of weights, and `chain`, which applies transforms after a policy.

The transforms are applied from first to last. A later transform may break the bound of an earlier transform, so put the most important
bound last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.loss import LossKind
from skillshard.number_checks import is_finite
from skillshard.policies.policy import (
    NextRound,
    Observation,
    Policy,
    Probing,
    RunFacts,
    State,
    Transform,
    check_is_policy,
    in_draws,
    known_round,
)
from skillshard.policies.unimax import check_budget

ROUNDING = 1e-9
"""Tolerance of a bound, larger than the rounding error of a sum of shares."""


@dataclass(frozen=True)
class Chain:
    """See `chain`."""

    policy: Policy
    transforms: tuple[Transform, ...]

    @property
    def name(self) -> str:
        return "+".join([self.policy.name, *(transform.name for transform in self.transforms)])

    @property
    def arguments(self) -> dict[str, Any]:
        # A list, because the order of transforms matters, and because a chain may apply a transform twice.
        transforms = [[transform.name, transform.arguments] for transform in self.transforms]
        return {"policy": [self.policy.name, self.policy.arguments], "transforms": transforms}

    @property
    def eval_skills(self) -> tuple[str, ...] | None:
        return self.policy.eval_skills

    @property
    def reads_losses(self) -> bool:
        return self.policy.reads_losses

    @property
    def may_miss_losses(self) -> bool:
        return self.policy.may_miss_losses

    @property
    def initial_losses(self) -> bool:
        return bool(getattr(self.policy, "initial_losses", False))

    @property
    def loss(self) -> LossKind | None:
        loss: LossKind | None = getattr(self.policy, "loss", None)
        return loss

    @property
    def any_loss(self) -> bool:
        return bool(getattr(self.policy, "any_loss", False))

    def held(self) -> tuple[Policy, ...]:
        return (self.policy,)

    def in_draws(self, facts: RunFacts) -> Policy:
        return replace(self, policy=in_draws(self.policy, facts))

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        state = self.policy.init(skills, num_samples)
        # An impossible bound is an error before the training begins, and not in the first round.
        counts = (1,) * len(skills) if num_samples is None else tuple(int(count) for count in num_samples)
        for transform in self.transforms:
            transform.check(counts)
        return {"skills": list(skills), "policy": state}

    def observe(self, state: State, observation: Observation) -> State:
        return {**state, "policy": self.policy.observe(state["policy"], observation)}

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        weights = self.policy.weights(state["policy"], upcoming)
        for transform in self.transforms:
            weights = transform.apply(weights, upcoming)
        return weights


@dataclass(frozen=True)
class ProbingChain(Chain):
    """A chain whose policy chooses probe rounds."""

    def probe(self, upcoming: NextRound, skills: Sequence[str]) -> Float[np.ndarray, " train_skill"] | None:
        assert isinstance(self.policy, Probing)  # `chain` uses this class only for policies that probe
        return self.policy.probe(upcoming, skills)

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        if upcoming is not None and self.probe(upcoming, state["skills"]) is not None:
            return self.policy.weights(state["policy"], upcoming)  # a floor would change the measured effect
        return super().weights(state, upcoming)


def chain(policy: Policy, *transforms: Transform) -> Policy:
    """Apply `transforms` to the weights of a policy, from first to last. Probe rounds keep the weights of the policy.

    Raises:
        PolicyError: `policy` is no policy, or one of `transforms` is no transform.

    >>> from skillshard.policies import proportional
    >>> policy = chain(proportional(), floor(0.1))
    >>> policy.weights(policy.init(("add", "carry"), (100, 0))).tolist()
    [0.9, 0.1]
    """
    check_is_policy(policy)
    for transform in transforms:
        if not isinstance(transform, Transform):
            raise PolicyError(
                f"{transform!r} is no transform: give the result of a function such as policies.floor(0.01)."
            )
    return ProbingChain(policy, transforms) if isinstance(policy, Probing) else Chain(policy, transforms)


def filled(
    weights: Float[np.ndarray, " train_skill"], most: Float[np.ndarray, " train_skill"]
) -> Float[np.ndarray, " train_skill"]:
    """Limit weights to `most`. The excess goes to the other skills in proportion to the weights of these skills, whose ratios stay the same.

    `most` must sum to 1 or more. If all skills below the limits have the weight 0, these skills share the excess equally.

    >>> filled(np.array([0.8, 0.15, 0.05]), np.array([0.6, 0.2, 1.0])).round(6).tolist()
    [0.6, 0.2, 0.2]
    """
    # Excess may push another skill over its limit, so the division repeats. Each pass fills at least one more skill, so there are
    # at most as many passes as skills.
    full = np.zeros(len(weights), dtype=bool)
    while not full.all():
        open_weights = np.where(full, 0.0, weights)
        # Without a weight above 0 there is no proportion to keep.
        if not open_weights.any():
            open_weights = np.where(full, 0.0, 1.0)
        open_weights = open_weights / open_weights.max()  # the sum of tiny weights could underflow
        shared = np.where(full, most, (1 - most[full].sum()) * open_weights / open_weights.sum())
        over = ~full & (shared > most)
        if not over.any():
            return shared / shared.sum()
        full |= over
    return most / most.sum()


@dataclass(frozen=True)
class Floor:
    """See `floor`."""

    least: float
    name: str = "floor"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"least": self.least}

    def check(self, num_samples: Sequence[int]) -> None:
        num_skills = len(num_samples)
        if self.least * num_skills >= 1:
            raise PolicyError(
                f"floor {self.least} x {num_skills} skills is {self.least * num_skills:.3g}: "
                f"give a floor below 1 / {num_skills} = {1 / num_skills:.4g}."
            )

    def apply(
        self, weights: Float[np.ndarray, " train_skill"], upcoming: NextRound | None = None
    ) -> Float[np.ndarray, " train_skill"]:
        # A mix with equal weights and not a maximum: raising single weights and normalizing again could end below the floor.
        return (1 - len(weights) * self.least) * weights + self.least


def floor(least: float) -> Transform:
    r"""Raise every weight to at least `least` by :math:`(1 - k f) q + f`, which keeps the sum 1.

    Raises:
        PolicyError: least is not in [0, 1). Later, least is not below 1 / k for the k skills of the mix.
    """
    if not (is_finite(least) and 0 <= least < 1):
        raise PolicyError(f"floor is {least!r}: give a number from 0 to below 1 / (number of skills).")
    return Floor(least)


@dataclass(frozen=True)
class Cap:
    """See `cap`."""

    most: float
    name: str = "cap"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"most": self.most}

    def check(self, num_samples: Sequence[int]) -> None:
        num_skills = len(num_samples)
        if self.most * num_skills < 1:
            raise PolicyError(
                f"cap {self.most} x {num_skills} skills is {self.most * num_skills:.3g}, less than the whole: give a cap of at least "
                f"1 / {num_skills} = {1 / num_skills:.4g}."
            )

    def apply(
        self, weights: Float[np.ndarray, " train_skill"], upcoming: NextRound | None = None
    ) -> Float[np.ndarray, " train_skill"]:
        return filled(weights, np.full(len(weights), self.most))


def cap(most: float) -> Transform:
    """Limit every weight to `most`. The excess goes to the other skills in proportion to their weights.

    Raises:
        PolicyError: most is not in (0, 1]. Later, most is below 1 / k for the k skills of the mix.

    >>> cap(0.5).apply(np.array([0.8, 0.15, 0.05])).round(6).tolist()
    [0.5, 0.375, 0.125]
    """
    if not (is_finite(most) and 0 < most <= 1):
        raise PolicyError(f"cap is {most!r}: give a number from 1 / (number of skills) to 1.")
    return Cap(most)


@dataclass(frozen=True)
class RepetitionLimit:
    """See `repetition_limit`."""

    epochs: float
    draws: int
    name: str = "repetition_limit"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "draws": self.draws}

    def check(self, num_samples: Sequence[int]) -> None:
        """Check nothing, because only the first round tells whether the samples suffice."""

    def apply(
        self, weights: Float[np.ndarray, " train_skill"], upcoming: NextRound | None = None
    ) -> Float[np.ndarray, " train_skill"]:
        upcoming = known_round(self.name, upcoming)
        seen = sum(upcoming.drawn)
        # In a run with weights in tokens, `drawn` counts tokens and `num_draws` counts draws. The mean number of tokens of a draw
        # converts. The rest of the run is at least this round, so that the limit stays finite beyond the planned length.
        draw_size = seen / upcoming.first_draw if upcoming.first_draw else 1.0
        left = max(self.draws - seen, upcoming.num_draws * draw_size)
        room = np.maximum(self.epochs * np.array(upcoming.num_samples) - np.array(upcoming.drawn), 0) / left
        if room.sum() < 1 - ROUNDING:
            raise PolicyError(
                f"round {upcoming.number}: {self.epochs:g} epochs of all samples leave {room.sum() * left:,.0f} draws, and the run still has "
                f"{left:,.0f} draws. Give repetition_limit more epochs or fewer draws, or train on more samples."
            )
        return filled(weights, room / min(room.sum(), 1.0))


def repetition_limit(epochs: float, *, draws: int) -> Transform:
    r"""Limit the weights so that no skill is drawn more than `epochs` times over the run: :math:`p_i \le (N n_i - d_i) / (R - d)`.

    d_i is the number of draws of skill i so far, d is the number of draws of all skills, and R is `draws`. The limit is N n_i / R in the
    first round, and shrinks as a skill is used up. The excess goes to the other skills in proportion to their weights. Counts are whole
    numbers, so a skill may pass its limit by a sample. The mixer's own `repeat="cap:N"` stops a skill at its limit. The transform slows
    the skill down before the limit.

    Args:
        epochs: Maximal number N of epochs, > 0. Muennighoff et al. (arXiv:2305.16264) find up to 4 epochs as good as new data.
        draws: Number R of samples of the whole run, >= 1, or number of tokens if the mixer's unit is tokens.

    Raises:
        PolicyError: epochs or draws is out of range. Later, all samples together do not suffice, or the round is unknown.

    >>> limit = repetition_limit(2.0, draws=400)
    >>> limit.apply(np.array([0.5, 0.5]), NextRound(0, 0, 100, (1000, 20), (0, 0))).round(6).tolist()
    [0.9, 0.1]

    Reference:
        The constraint of Olmix, arXiv:2602.12237, applied to the rest of the run in place of the whole run.
    """
    check_budget(epochs, draws)
    return RepetitionLimit(epochs, draws)


@dataclass(frozen=True)
class MaxChange:
    """See `max_change`."""

    most: float
    name: str = "max_change"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"most": self.most}

    def check(self, num_samples: Sequence[int]) -> None:
        """Check nothing, because the transform fits any skills."""

    def apply(
        self, weights: Float[np.ndarray, " train_skill"], upcoming: NextRound | None = None
    ) -> Float[np.ndarray, " train_skill"]:
        before = known_round(self.name, upcoming).weights_before
        if before is None:
            return weights
        # A point on the straight line between two weight vectors is a weight vector: non-negative, with the sum 1.
        change = weights - np.array(before)
        distance = np.abs(change).sum() / 2
        return weights if distance <= self.most else np.array(before) + self.most / distance * change


def max_change(most: float) -> Transform:
    r"""Limit the change of the weights between rounds to `most` in total variation, :math:`\frac{1}{2} \sum_i |p_i - q_i|`.

    The weights move straight towards the policy's weights, up to the limit. The first round has no limit. After a probe round, the change
    is measured from the weights of the probe.

    Raises:
        PolicyError: most is not in (0, 1]. Later, the round is unknown.

    >>> change = max_change(0.1)
    >>> change.apply(np.array([0.9, 0.1]), NextRound(1, 100, 100, (100, 100), (50, 50), (0.5, 0.5))).round(6).tolist()
    [0.6, 0.4]
    """
    if not (is_finite(most) and 0 < most <= 1):
        raise PolicyError(f"max_change is {most!r}: give a total variation above 0, at most 1.")
    return MaxChange(most)


@dataclass(frozen=True)
class Smoothing:
    """See `smoothing`."""

    keep: float
    name: str = "smoothing"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"keep": self.keep}

    def check(self, num_samples: Sequence[int]) -> None:
        """Check nothing, because the transform fits any skills."""

    def apply(
        self, weights: Float[np.ndarray, " train_skill"], upcoming: NextRound | None = None
    ) -> Float[np.ndarray, " train_skill"]:
        before = known_round(self.name, upcoming).weights_before
        return weights if before is None else self.keep * np.array(before) + (1 - self.keep) * weights


def smoothing(keep: float) -> Transform:
    r"""Average the weights over rounds by a running mean, :math:`p_r = a p_{r-1} + (1 - a) q_r`.

    The first round has the policy's weights.

    Raises:
        PolicyError: keep (a) is not in [0, 1). Later, the round is unknown.

    >>> smoothing(0.75).apply(np.array([0.9, 0.1]), NextRound(1, 100, 100, (100, 100), (50, 50), (0.5, 0.5))).round(6).tolist()
    [0.6, 0.4]
    """
    if not (is_finite(keep) and 0 <= keep < 1):
        raise PolicyError(
            f"smoothing is {keep!r}: give the share of the weights of the round before, from 0 to below 1."
        )
    return Smoothing(keep)
