"""The interface of a policy: an immutable configuration with three pure functions and a JSON state.

A policy gets its knowledge in two values: an `Observation` (the losses, and the samples that the model had seen) and the `NextRound`
(the round to decide, and the draws and weights of the rounds before). Both values are in the ledger, so every decision replays.
docs/design/0006-policies.md gives the reasons.
"""

import abc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsFloat, runtime_checkable

import numpy as np
from jaxtyping import Float

from skillshard.errors import ObservationError, PolicyError, name_some, with_suggestions
from skillshard.number_checks import is_finite

State = dict[str, Any]
"""The memory of a policy as plain JSON. Every round records the state, so the state survives any crash."""


@dataclass(frozen=True)
class Observation:
    """Losses measured at a point of training.

    Attributes:
        step: Number of optimizer steps taken.
        draw: Number of samples of the mixed stream that the model has seen.
        losses: Evaluation skill -> loss in nats per token.
        drawn: Training skill -> number of samples seen of the skill, or their approximate number of tokens if the run's weights
            count tokens. Empty if unknown.
        round: Round of the last sample seen. -1 before the first sample, and if unknown.

    Example:
        >>> Observation(step=0, losses={"add": 2.3})
        Observation(step=0, losses={'add': 2.3}, draw=0, drawn={}, round=-1)
    """

    step: int
    losses: Mapping[str, float]
    # With the defaults a user can call a policy without a mixer. A policy that needs the facts refuses the defaults by name.
    draw: int = 0
    drawn: Mapping[str, int] = field(default_factory=dict)
    round: int = -1


@dataclass(frozen=True)
class NextRound:
    """The known facts of a round before its decision. All facts are in the ledger.

    Positions are draws. Amounts of a skill are in the unit of the run's weights: samples or tokens.

    Attributes:
        number: Number of the round: 0, 1, 2, ...
        first_draw: Position of the first draw of the round in the stream.
        num_draws: Number of draws of the round.
        num_samples: Number of samples (or tokens) of each training skill, in the order of the skills.
        drawn: Number of samples (or approximate number of tokens) of each training skill drawn in all rounds before.
        weights_before: Weights of the round before. None for round 0.
    """

    number: int
    first_draw: int
    num_draws: int
    num_samples: tuple[int, ...]
    drawn: tuple[int, ...]
    weights_before: tuple[float, ...] | None = None


@dataclass(frozen=True)
class RunFacts:
    """The facts of a run that translate optimizer steps and tokens into draws. All facts are known before the first round.

    Attributes:
        skills: Training skills.
        num_samples: Number of samples of each skill.
        num_tokens: Number of tokens of each skill if the run's weights count tokens, else None.
        step_draws: Number of draws of an optimizer step. None if unknown.
        first_step: Number of optimizer steps taken before the run: 0, or the steps of the runs that the run continues. None if unknown.
        first_draw: Number of draws before the run.
    """

    skills: tuple[str, ...]
    num_samples: tuple[int, ...]
    num_tokens: tuple[int, ...] | None = None
    step_draws: int | None = None
    first_step: int | None = 0
    first_draw: int = 0


@runtime_checkable
class Policy(Protocol):
    """A rule that sets the weights of the training skills from observations. Implementations are frozen, picklable dataclasses.

    A policy may have two more attributes. `initial_losses: bool` says whether the first losses are the losses of the model before the
    first step (default: False). `loss: LossKind | None` is the kind of losses with which its graph was measured (default: None, any
    kind fits). A policy whose arguments count steps or tokens is also `Convertible`.
    """

    @property
    def name(self) -> str:
        """Name of the method, as in the paper."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the policy as JSON. A run records the arguments and refuses a policy with other arguments."""

    @property
    def eval_skills(self) -> tuple[str, ...] | None:
        """Skills whose losses the policy reads. None for the training skills."""

    @property
    def reads_losses(self) -> bool:
        """Whether the weights depend on observations. If not, no round waits for an observation."""

    @property
    def may_miss_losses(self) -> bool:
        """Whether an observation may name only a part of the evaluation skills, at least one skill."""

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        """Return the state before any observation. Raise PolicyError if the policy does not fit the training skills.

        `num_samples` is the size of each skill in the unit of the run's weights: samples or tokens.
        """

    def observe(self, state: State, observation: Observation) -> State:
        """Return the state after another observation. The argument `state` is not changed."""

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        """Return the weights of a round, in the order of the training skills: non-negative, sum 1.

        A mixer always gives `upcoming`, so every policy has this parameter. Outside of a run `upcoming` is None. PolicyError if
        `upcoming` is None and the policy needs the round.
        """


@runtime_checkable
class Probing(Protocol):
    """A policy that chooses the weights of certain rounds to learn the effect of the weights on the losses."""

    def probe(self, upcoming: NextRound, skills: Sequence[str]) -> Float[np.ndarray, " train_skill"] | None:
        """Return the weights of a probe round, or None for another round. Transforms do not change the weights of a probe.

        A probe depends only on the round's number and the skills, so that a probe is known before any loss.
        """


@runtime_checkable
class Convertible(Protocol):
    """A policy with arguments that may count optimizer steps or tokens."""

    def in_draws(self, facts: RunFacts) -> Policy:
        """Return the policy with all positions in draws. Raise PolicyError if the facts do not allow the conversion."""


@runtime_checkable
class Transform(Protocol):
    """A pure function on weights, chained after a policy."""

    @property
    def name(self) -> str: ...

    @property
    def arguments(self) -> dict[str, Any]: ...

    def check(self, num_samples: Sequence[int]) -> None:
        """Raise PolicyError if the transform cannot fit skills of these sizes for any weights."""

    def apply(
        self, weights: Float[np.ndarray, " train_skill"], upcoming: NextRound | None = None
    ) -> Float[np.ndarray, " train_skill"]:
        """Return transformed weights: non-negative, sum 1. PolicyError if `upcoming` is None and the transform needs the round."""


class NoLosses(abc.ABC):
    """The flags of a policy that reads no losses. A policy overrides a flag that differs."""

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

    # Abstract, because a default would let a policy without these functions pass as complete.
    @abc.abstractmethod
    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        """Return the state before any observation."""

    def observe(self, state: State, observation: Observation) -> State:
        return state

    @abc.abstractmethod
    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        """Return the weights of a round."""


class Static(NoLosses):
    """A policy with constant weights. The state holds the weights, and a final class computes the weights."""

    @abc.abstractmethod
    def constant_weights(self, skills: Sequence[str], num_samples: Sequence[int] | None) -> Sequence[float]:
        """Compute the weights."""

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        return {"weights": [float(weight) for weight in self.constant_weights(skills, num_samples)]}

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
        """Return the state after another observation."""


def softmax(scores: Float[np.ndarray, " skill"]) -> Float[np.ndarray, " skill"]:
    """Compute weights proportional to exp(scores).

    The maximum is subtracted first, so that no score overflows. An infinite score counts as 1e300.

    >>> softmax(np.array([1000.0, 1000.0])).tolist()
    [0.5, 0.5]
    """
    # Without the clip, infinity minus infinity would give NaN. 1e300 leaves room for the difference of two clipped scores.
    scores = np.clip(scores, -1e300, 1e300)
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def sizes(policy: str, num_samples: Sequence[int] | None) -> Float[np.ndarray, " train_skill"]:
    """Return the number of samples of each skill as an array. Raise PolicyError if the policy needs the sizes and has none."""
    if num_samples is None:
        raise PolicyError(f"{policy} needs the number of samples of each skill: init(skills, num_samples).")
    return np.array(num_samples, dtype=np.float64)


def known_round(name: str, upcoming: NextRound | None) -> NextRound:
    """Return the round. Raise PolicyError if a policy or a transform needs the round and has none."""
    if upcoming is None:
        raise PolicyError(f"{name} needs the round that it decides: weights(state, upcoming=NextRound(...)).")
    return upcoming


def in_draws(policy: Policy, facts: RunFacts) -> Policy:
    """Convert the steps and tokens in the arguments of a policy to draws. A policy without such arguments is returned unchanged.

    A mixer converts the arguments once, before the first round, and `run.json` records the draws.

    Raises:
        PolicyError: The facts do not allow the conversion.
    """
    return policy.in_draws(facts) if isinstance(policy, Convertible) else policy


def check_is_policy(policy: object) -> None:
    """Raise PolicyError with the missing attributes unless an object has all attributes of a policy."""
    if isinstance(policy, type):
        raise PolicyError(f"the class {policy.__name__} is no policy: give an instance, {policy.__name__}(...).")
    if isinstance(policy, str):
        raise PolicyError(
            f"str is no policy: give a policy such as policies.stratified(), or skillshard.read_policy({policy!r})."
        )
    needed = ("arguments", "eval_skills", "init", "may_miss_losses", "name", "observe", "reads_losses", "weights")
    missing = [name for name in needed if not hasattr(policy, name)]
    if missing:
        hint = f" Call the function {getattr(policy, '__name__', '')}(...)." if callable(policy) else ""
        raise PolicyError(f"{type(policy).__name__} is no policy: it lacks {', '.join(missing)}.{hint}")


def check_names(what: str, given: Collection[str], skills: Collection[str]) -> None:
    """Raise PolicyError unless the given names are the names of the skills, in any order. `what` begins the message."""
    named, mixed = set(given), set(skills)
    unknown, missing = [name for name in given if name not in mixed], [name for name in skills if name not in named]
    if unknown or missing:
        raise PolicyError(
            f"{what} do not name the skills of the mix: unknown: {name_some(with_suggestions(unknown, skills)) or 'none'}; missing: "
            f"{name_some(missing) or 'none'}. Give every skill a number."
        )


def check_loss_of_each(whose: str, losses: Any) -> None:
    """Raise PolicyError unless the losses in an argument of a policy are a mapping from skills to finite numbers. `whose` begins the message."""
    if not isinstance(losses, Mapping):
        raise PolicyError(
            f"{whose} losses are of type {type(losses).__name__}: give a mapping, training skill -> loss."
        )
    bad = [f"{name} is {loss!r}" for name, loss in losses.items() if not is_finite(loss)]
    if bad or not losses:
        raise PolicyError(f"{whose} losses are not finite numbers: {name_some(bad) or 'none are given'}.")


MOST_LOSS = 1e30
"""Largest loss in nats per token. A larger loss is an overflow like infinity: sums and products of larger losses would not be finite."""


def check_flag(name: str, value: object) -> None:
    """Raise PolicyError unless a value is True or False. A text such as "no" would count as True."""
    if not isinstance(value, bool):
        raise PolicyError(f"{name} is {value!r}: give True or False.")


def check_losses(
    losses: Mapping[str, Any],
    eval_skills: Collection[str],
    *,
    step: int,
    may_miss: bool = False,
    may_overflow: bool = False,
) -> dict[str, float]:
    """Check losses and convert them to floats in the order of the evaluation skills.

    The losses must name exactly the evaluation skills and be finite numbers >= 0. Numbers of NumPy and arrays and tensors of a single
    element are numbers too.

    Args:
        losses: Evaluation skill -> nats per token.
        eval_skills: Skills whose losses are required.
        step: Number of the step in error messages.
        may_miss: Whether skills may be missing, but not all skills (training losses of a batch without a sample of a skill).
        may_overflow: Whether a NaN or an infinite loss is returned unchanged.

    Raises:
        ObservationError: The losses are no mapping or name no skill, a skill is unknown or missing, or a value is no finite number
            >= 0. The message names every such skill and value.

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
            f"{name_some(eval_skills, 30)}. If nothing was measured, do not report."
        )
    values = {name: _as_number(losses[name]) for name in eval_skills if name in losses}
    # A negative loss or a value that is no number is a mistake of the caller, and `may_overflow` does not excuse it. An overflow
    # may come from a single bad batch.
    wrong = {name for name, value in values.items() if value is None or value < 0}
    overflown = set() if may_overflow else {name for name, value in values.items() if overflows(value)}
    bad = [f"{name} is {losses[name]}" for name in losses if name in wrong | overflown]
    if bad:
        remedy = (
            "Give numbers in nats per token. Nothing was recorded."
            if wrong
            else "A NaN or infinite loss usually means a diverged model or an empty holdout. Nothing was recorded. "
            "Mixer(on_bad_loss='leave-out') continues without such a report."
        )
        raise ObservationError(f"losses at step {step} are not finite numbers >= 0: {name_some(bad)}. {remedy}")
    return {name: value for name, value in values.items() if value is not None}


def overflows(loss: float | None) -> bool:
    """Return whether a number >= 0 is not finite or larger than `MOST_LOSS`.

    >>> [overflows(float(loss)) for loss in ("nan", "inf", "1e308", "12")]
    [True, True, True, False]
    """
    return loss is not None and not loss <= MOST_LOSS  # "not <=" and not ">", so that a NaN overflows


def _as_number(value: object) -> float | None:
    """Convert a number, or the single element of an array or a tensor, to a float. Return None for any other value."""
    if (
        type(value) is float
    ):  # the usual case: a check for a protocol takes microseconds, and a run may have 10,000 skills
        return value
    if isinstance(value, bool):
        return None
    try:
        element = value.item() if hasattr(value, "item") else value
        return float(element) if isinstance(element, SupportsFloat) and not isinstance(element, bool) else None
    except (TypeError, ValueError, RuntimeError, OverflowError):  # several elements, or an integer beyond floats
        return None
