"""What a policy is: an immutable configuration with three pure functions and a JSON state.

What it knows comes in two values: an `Observation` (what was measured, and what the model had seen) and the `NextRound`
(which round is to be decided, and what the rounds before it gave). Both are in the ledger, so every decision replays.
docs/design/0006-policies.md says why.
"""

import abc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsFloat, runtime_checkable

import numpy as np
from jaxtyping import Float

from skillshard.errors import ObservationError, PolicyError, name_some, with_suggestions

State = dict[str, Any]
"""Plain JSON: everything a policy remembers. Recorded in every round, so it survives any crash."""


@dataclass(frozen=True)
class Observation:
    """Losses measured at one point of training.

    Attributes:
        step: optimizer steps taken when the model was measured.
        draw: samples of the mixed stream that the model had seen then.
        losses: evaluation skill -> loss in nats per token.
        drawn: training skill -> how many of those `draw` samples were of it, or, where the run's weights count tokens, about how
            many tokens those had; empty where nobody counted.
        round: the round of the last of those samples; -1 before the first one, and where nobody counted.

    Example:
        >>> Observation(step=0, losses={"add": 2.3})
        Observation(step=0, losses={'add': 2.3}, draw=0, drawn={}, round=-1)
    """

    step: int
    losses: Mapping[str, float]
    draw: int = 0
    drawn: Mapping[str, int] = field(default_factory=dict)
    round: int = -1


@dataclass(frozen=True)
class NextRound:
    """What is known of a round before it is decided; all of it stands in the ledger.

    Positions are draws. What is told of each skill is in the unit of the run's weights: samples, or tokens.

    Attributes:
        number: 0, 1, 2, ...
        first_draw: position of its first draw in the stream.
        num_draws: draws it is to have.
        num_samples: samples (or tokens) of each training skill, in the order of the skills.
        drawn: samples (or about how many tokens) of each training skill were drawn in all rounds before.
        weights_before: weights of the round before; None for round 0.
    """

    number: int
    first_draw: int
    num_draws: int
    num_samples: tuple[int, ...]
    drawn: tuple[int, ...]
    weights_before: tuple[float, ...] | None = None


@runtime_checkable
class Policy(Protocol):
    """Decides the weights of the training skills. Implementations are frozen dataclasses, so that they can be pickled.

    A policy may have two more attributes. `initial_losses: bool` says whether the first losses are those of the model before the
    first step (default: False). `loss: LossKind | None` is the kind of losses that its graph was measured with (default: None, any
    kind fits).
    """

    @property
    def name(self) -> str:
        """The method's name, as in the paper."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was built with, as JSON: a run records it and refuses another."""

    @property
    def eval_skills(self) -> tuple[str, ...] | None:
        """The skills whose losses it reads; None: the training skills."""

    @property
    def reads_losses(self) -> bool:
        """Whether weights depend on observations. If not, no round ever waits for one."""

    @property
    def may_miss_losses(self) -> bool:
        """Whether an observation may name a part of the evaluation skills (at least one). If not, it names them all."""

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        """The state before any observation; PolicyError if the policy does not fit these training skills.

        `num_samples` is the size of each in the unit of the run's weights: samples, or tokens.
        """

    def observe(self, state: State, observation: Observation) -> State:
        """The state after one more observation; the given state is left as it is."""

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        """Weights of a round over the training skills, in their order: non-negative, sum 1.

        A mixer always gives `upcoming`, so every policy has this parameter. `upcoming` is None where no run is at hand. PolicyError
        if `upcoming` is None and the policy needs to know the round.
        """


@runtime_checkable
class Probing(Protocol):
    """A policy that asks for some rounds with weights of its own choice, to learn from what they do to the losses."""

    def probe(self, upcoming: NextRound, skills: Sequence[str]) -> Float[np.ndarray, " train_skill"] | None:
        """The weights that a probe round must have, untouched by transforms; None for a round that is none.

        A function of the round's number and the skills alone, so that it is known before any loss is.
        """


@runtime_checkable
class Transform(Protocol):
    """A pure function on weights, chained after a policy."""

    @property
    def name(self) -> str: ...

    @property
    def arguments(self) -> dict[str, Any]: ...

    def check(self, num_samples: Sequence[int]) -> None:
        """PolicyError if it cannot fit skills of so many samples, whatever the weights; as early as that is known."""

    def apply(
        self, weights: Float[np.ndarray, " train_skill"], upcoming: NextRound | None = None
    ) -> Float[np.ndarray, " train_skill"]:
        """Other weights: non-negative, sum 1. PolicyError if `upcoming` is None and it needs to know the round."""


class NoLosses(abc.ABC):
    """The flags of a policy that reads no losses. A policy states its own value where it differs."""

    @property
    def arguments(self) -> dict[str, Any]:
        return {}

    @property
    def eval_skills(self) -> tuple[str, ...] | None:
        return None

    @property
    def reads_losses(self) -> bool:
        return False

    @property
    def may_miss_losses(self) -> bool:
        return True

    @property
    def initial_losses(self) -> bool:
        return False

    @abc.abstractmethod
    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        """The state before any observation."""

    def observe(self, state: State, observation: Observation) -> State:
        return state

    @abc.abstractmethod
    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        """Weights of a round."""


class Static(NoLosses):
    """A policy that never changes: its state is its weights. Final classes say how they are made."""

    @abc.abstractmethod
    def made(self, skills: Sequence[str], num_samples: Sequence[int] | None) -> Sequence[float]:
        """The weights."""

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        return {"weights": [float(weight) for weight in self.made(skills, num_samples)]}

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        return np.array(state["weights"])


class Online(NoLosses):
    """The flags of a policy that reads the losses of every evaluation skill at every observation."""

    @property
    def reads_losses(self) -> bool:
        return True

    @property
    def may_miss_losses(self) -> bool:
        return False

    @abc.abstractmethod
    def observe(self, state: State, observation: Observation) -> State:
        """The state after one more observation."""


def softmax(scores: Float[np.ndarray, " skill"]) -> Float[np.ndarray, " skill"]:
    """Weights proportional to exp(scores); the maximum is subtracted first, so no score overflows. Infinite ones count as 1e300.

    >>> softmax(np.array([1000.0, 1000.0])).tolist()
    [0.5, 0.5]
    """
    scores = np.clip(scores, -1e300, 1e300)
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def sizes(policy: str, num_samples: Sequence[int] | None) -> Float[np.ndarray, " train_skill"]:
    """The skills' numbers of samples, for a policy that needs them; PolicyError if they were not given."""
    if num_samples is None:
        raise PolicyError(f"{policy} needs the number of samples of each skill: init(skills, num_samples).")
    return np.array(num_samples, dtype=np.float64)


def known_round(name: str, upcoming: NextRound | None) -> NextRound:
    """The round, for a policy or transform that needs it; PolicyError if it was not given."""
    if upcoming is None:
        raise PolicyError(f"{name} needs to know the round that it decides: weights(state, upcoming=NextRound(...)).")
    return upcoming


def check_is_policy(policy: object) -> None:
    """PolicyError, with what it lacks, unless an object has all that a policy has."""
    needed = ("arguments", "eval_skills", "init", "may_miss_losses", "name", "observe", "reads_losses", "weights")
    missing = [name for name in needed if not hasattr(policy, name)]
    if missing:
        raise PolicyError(f"{type(policy).__name__} is no policy: it lacks {', '.join(missing)}.")


def check_names(what: str, given: Collection[str], skills: Collection[str]) -> None:
    """PolicyError unless the given names are those of the skills, in any order."""
    named, mixed = set(given), set(skills)
    unknown, missing = [name for name in given if name not in mixed], [name for name in skills if name not in named]
    if unknown or missing:
        raise PolicyError(
            f"{what} do not name the skills of the mix: unknown: {name_some(unknown) or 'none'}; missing: "
            f"{name_some(missing) or 'none'}."
        )


MOST_LOSS = 1e30
"""Nats per token. A larger loss is an overflow, as infinity is: sums and products of such losses would not be finite."""


def check_losses(
    losses: Mapping[str, Any],
    eval_skills: Collection[str],
    *,
    step: int,
    may_miss: bool = False,
    may_overflow: bool = False,
) -> dict[str, float]:
    """Losses as floats in the order of the evaluation skills, which they must name exactly; finite numbers >= 0.

    Numbers of NumPy and one-element arrays and tensors will do.

    Args:
        losses: evaluation skill -> nats per token.
        eval_skills: the skills whose losses are asked for.
        step: for the message.
        may_miss: whether skills may be missing, but not all of them (training losses of a batch that has no sample of a skill).
        may_overflow: whether a NaN or an infinite loss is returned as it is.

    Raises:
        ObservationError: no mapping, no skill at all; names every unknown and missing skill, and every bad value.

    >>> check_losses({"carry": 2}, ("add", "carry"), step=8, may_miss=True)
    {'carry': 2.0}
    """
    if not isinstance(losses, Mapping):
        raise ObservationError(
            f"losses at step {step} are of type {type(losses).__name__}: give a mapping, evaluation skill -> nats per token."
        )
    known = set(eval_skills)  # a tuple of 10,000 names would be searched 10,000 times
    unknown = with_suggestions([name for name in losses if name not in known], eval_skills)
    missing = [] if may_miss else [name for name in eval_skills if name not in losses]
    if unknown or missing:
        parts = [f"unknown {name_some(unknown)}"] if unknown else []
        parts += [f"missing {name_some(repr(name) for name in missing)}"] if missing else []
        raise ObservationError(
            f"losses at step {step} do not name the evaluation skills: {'; '.join(parts)}. "
            f"Report {'some of' if may_miss else 'exactly'} these {len(eval_skills)}: {name_some(eval_skills, 30)}."
        )
    if not losses:
        raise ObservationError(
            f"losses at step {step} name no skill at all. Report at least one of these {len(eval_skills)}: "
            f"{name_some(eval_skills, 30)}; or nothing, where nothing was measured."
        )
    values = {name: _as_number(losses[name]) for name in eval_skills if name in losses}
    wrong = {name for name, value in values.items() if value is None or value < 0}
    overflown = set() if may_overflow else {name for name, value in values.items() if overflows(value)}
    bad = [f"{name} is {losses[name]}" for name in losses if name in wrong | overflown]
    if bad:
        remedy = (
            "Give numbers in nats per token; nothing was recorded."
            if wrong
            else "A NaN or infinite loss usually means a diverged model or an empty holdout; nothing was recorded. "
            "Mixer(on_bad_loss='leave-out') goes on without such a report."
        )
        raise ObservationError(f"losses at step {step} are not finite numbers >= 0: {name_some(bad)}. {remedy}")
    return {name: value for name, value in values.items() if value is not None}


def overflows(loss: float | None) -> bool:
    """Whether a number >= 0 is not finite, or so large that it is an overflow.

    >>> [overflows(float(loss)) for loss in ("nan", "inf", "1e308", "12")]
    [True, True, True, False]
    """
    return loss is not None and not loss <= MOST_LOSS


def _as_number(value: object) -> float | None:
    """A number, or the one element of an array or a tensor, as a float; None for anything else."""
    if type(value) is float:  # the usual case: asking for a protocol takes microseconds, and there may be 10,000 skills
        return value
    if isinstance(value, bool):
        return None
    try:
        element = value.item() if hasattr(value, "item") else value
        return float(element) if isinstance(element, SupportsFloat) and not isinstance(element, bool) else None
    except (TypeError, ValueError, RuntimeError, OverflowError):  # several elements, or an integer beyond floats
        return None
