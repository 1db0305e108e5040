"""Policies that never change: stratified and proportional."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.policies.policy import Observation, Policy, State


@dataclass(frozen=True)
class Static:
    """A policy whose state is its weights."""

    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        return {}

    @property
    def eval_skills(self) -> None:
        return None

    @property
    def reads_losses(self) -> bool:
        return False

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        if self.name == "stratified":
            return {"weights": [1 / len(skills)] * len(skills)}
        if num_samples is None:
            raise PolicyError(f"{self.name} needs the number of samples of each skill: init(skills, num_samples).")
        return {"weights": [count / sum(num_samples) for count in num_samples]}

    def observe(self, state: State, observation: Observation) -> State:
        return state

    def weights(self, state: State) -> Float[np.ndarray, " train_skill"]:
        return np.array(state["weights"])


def stratified() -> Policy:
    """Every training skill alike: 1 / k. The baseline that is hard to beat (Aioli, arXiv:2411.05735, Table 2).

    >>> policy = stratified()
    >>> policy.weights(policy.init(("add", "carry"))).tolist()
    [0.5, 0.5]
    """
    return Static("stratified")


def proportional() -> Policy:
    """Every training sample alike: weights proportional to the skills' numbers of samples ("natural", "random").

    >>> policy = proportional()
    >>> policy.weights(policy.init(("add", "carry"), (300, 100))).tolist()
    [0.75, 0.25]
    """
    return Static("proportional")
