"""What a policy is: an immutable configuration with three pure functions and a JSON state."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, SupportsFloat, runtime_checkable

import numpy as np
from jaxtyping import Float

from skillshard.errors import ObservationError, did_you_mean, name_some

State = dict[str, Any]
"""Plain JSON: everything a policy remembers. Recorded in every round, so it survives any crash."""


@dataclass(frozen=True)
class Observation:
    """Losses measured at one point of training.

    Attributes:
        step: optimizer steps taken when the model was measured.
        draw: samples of the mixed stream that the model had seen then.
        losses: evaluation skill -> loss in nats per token.
    """

    step: int
    losses: Mapping[str, float]
    draw: int = 0


@runtime_checkable
class Policy(Protocol):
    """Decides the weights of the training skills. Implementations are frozen dataclasses, so that they can be pickled."""

    @property
    def name(self) -> str:
        """The method's name, as in the paper."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was built with, as JSON: a run records it and refuses another."""

    @property
    def eval_skills(self) -> tuple[str, ...] | None:
        """The skills that every observation must name; None: the training skills."""

    @property
    def reads_losses(self) -> bool:
        """Whether weights depend on observations. If not, no round ever waits for one."""

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        """The state before any observation; PolicyError if the policy does not fit these training skills."""

    def observe(self, state: State, observation: Observation) -> State:
        """The state after one more observation; the given state is left as it is."""

    def weights(self, state: State) -> Float[np.ndarray, " train_skill"]:
        """Weights over the training skills, in their order: non-negative, sum 1."""


@runtime_checkable
class Transform(Protocol):
    """A pure function on weights, chained after a policy."""

    @property
    def name(self) -> str: ...

    @property
    def arguments(self) -> dict[str, Any]: ...

    def apply(self, weights: Float[np.ndarray, " train_skill"]) -> Float[np.ndarray, " train_skill"]:
        """Other weights: non-negative, sum 1."""


def softmax(scores: Float[np.ndarray, " skill"]) -> Float[np.ndarray, " skill"]:
    """Weights proportional to exp(scores); the maximum is subtracted first, so no finite score overflows.

    >>> softmax(np.array([1000.0, 1000.0])).tolist()
    [0.5, 0.5]
    """
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def check_losses(losses: Mapping[str, Any], eval_skills: Collection[str], *, step: int) -> dict[str, float]:
    """Losses as floats in the order of the evaluation skills, which they must name exactly; finite numbers >= 0.

    Numbers of NumPy and one-element tensors will do.

    Raises:
        ObservationError: names every unknown and missing skill, and every bad value.
    """
    unknown = [f"{name!r}{did_you_mean(name, eval_skills)}" for name in losses if name not in eval_skills]
    missing = [name for name in eval_skills if name not in losses]
    if unknown or missing:
        parts = [f"unknown {name_some(unknown)}"] if unknown else []
        parts += [f"missing {name_some(repr(name) for name in missing)}"] if missing else []
        raise ObservationError(
            f"losses at step {step} do not name the evaluation skills: {'; '.join(parts)}. "
            f"Report exactly these {len(eval_skills)}: {name_some(eval_skills, 30)}."
        )
    bad = [
        f"{name} is {value}"
        for name, value in losses.items()
        if not (_is_number(value) and 0 <= float(value) < math.inf)
    ]
    if bad:
        raise ObservationError(
            f"losses at step {step} are not finite numbers >= 0: {name_some(bad)}. A NaN or infinite loss usually means "
            "a diverged model or an empty holdout; nothing was recorded."
        )
    return {name: float(losses[name]) for name in eval_skills}


def _is_number(value: object) -> bool:
    return type(value) is float or (isinstance(value, SupportsFloat) and not isinstance(value, bool))
