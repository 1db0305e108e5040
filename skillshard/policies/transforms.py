"""Transforms of weights, and `chain`, which puts them after a policy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.policies.policy import Observation, Policy, State, Transform


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
        return self.policy.arguments | {transform.name: transform.arguments for transform in self.transforms}

    @property
    def eval_skills(self) -> tuple[str, ...] | None:
        return self.policy.eval_skills

    @property
    def reads_losses(self) -> bool:
        return self.policy.reads_losses

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        state = self.policy.init(skills, num_samples)
        self.weights(state)
        return state

    def observe(self, state: State, observation: Observation) -> State:
        return self.policy.observe(state, observation)

    def weights(self, state: State) -> Float[np.ndarray, " train_skill"]:
        weights = self.policy.weights(state)
        for transform in self.transforms:
            weights = transform.apply(weights)
        return weights


def chain(policy: Policy, *transforms: Transform) -> Policy:
    """A policy whose weights go through `transforms`, first to last.

    >>> from skillshard.policies import proportional
    >>> policy = chain(proportional(), floor(0.1))
    >>> policy.weights(policy.init(("add", "carry"), (100, 0))).tolist()
    [0.9, 0.1]
    """
    return Chain(policy, transforms)


@dataclass(frozen=True)
class Floor:
    """See `floor`."""

    least: float

    @property
    def name(self) -> str:
        return "floor"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"least": self.least}

    def apply(self, weights: Float[np.ndarray, " train_skill"]) -> Float[np.ndarray, " train_skill"]:
        num_skills = len(weights)
        if self.least * num_skills >= 1:
            raise PolicyError(
                f"floor {self.least} x {num_skills} skills is {self.least * num_skills:.3g}: "
                f"give a floor below 1 / {num_skills} = {1 / num_skills:.4g}."
            )
        return (1 - num_skills * self.least) * weights + self.least


def floor(least: float) -> Transform:
    r"""No skill below `least`: :math:`(1 - k f) q + f`, which keeps the sum and never ends below the floor.

    Raises:
        PolicyError: least is not in [0, 1), or later, not below 1 / k for the k skills of the mix.
    """
    if not 0 <= least < 1:
        raise PolicyError(f"floor is {least}: give a number from 0 to below 1 / (number of skills).")
    return Floor(least)
