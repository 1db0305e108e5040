"""The common part of the two bandits, ODM and EXP3: the exploration rate and the state."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.policies.policy import Observation, State, check_losses
from skillshard.policies.prior import prior_weights


def exploration(num_skills: int, turn: int) -> float:
    r"""Compute the weight that every skill keeps: :math:`\varepsilon_t = \min(1 / k, \sqrt{\ln k / (k t)})`, or 1 / k before turn 1.

    >>> exploration(4, 0), exploration(4, 5), round(exploration(4, 40), 6)
    (0.25, 0.25, 0.093082)
    """
    # ln k / (k t) has no value at turn 0, where nothing is known about any skill.
    if not turn:
        return 1 / num_skills
    return min(1 / num_skills, math.sqrt(math.log(num_skills) / (num_skills * turn)))


def first_state(policy: str, prior: Mapping[str, float] | None, skills: Sequence[str], reward: float | None) -> State:
    """Return the state of a bandit before any observation. `reward` is the reward of a skill without an observation."""
    weights = prior_weights(policy, prior, skills).tolist()
    return {"skills": list(skills), "turn": 0, "rewards": [reward] * len(skills), "weights": weights}


def observed(state: State, observation: Observation) -> tuple[int, dict[int, float]]:
    """Return the turn of an observation, and its losses by the numbers of the skills."""
    losses = check_losses(observation.losses, state["skills"], step=observation.step, may_miss=True)
    place_of = {name: place for place, name in enumerate(state["skills"])}
    return state["turn"] + 1, {place_of[name]: loss for name, loss in losses.items()}


def explored(shares: Float[np.ndarray, " train_skill"], turn: int) -> list[float]:
    """Mix shares that sum to 1 with the exploration of this turn."""
    least = exploration(len(shares), turn)
    mixed: Any = (1 - len(shares) * least) * shares + least  # sums to 1 except for rounding, which the division removes
    return (mixed / mixed.sum()).tolist()
