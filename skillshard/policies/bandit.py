"""What the two bandits, ODM and EXP3, share: the exploration rate and their state."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.policies.policy import Observation, State, check_losses
from skillshard.policies.prior import prior_weights


def exploration(num_skills: int, turn: int) -> float:
    r"""The weight that every skill keeps: :math:`\varepsilon_t = \min(1 / k, \sqrt{\ln k / (k t)})`; 1 / k before turn 1.

    >>> exploration(4, 0), exploration(4, 5), round(exploration(4, 40), 6)
    (0.25, 0.25, 0.093082)
    """
    if not turn:
        return 1 / num_skills
    return min(1 / num_skills, math.sqrt(math.log(num_skills) / (num_skills * turn)))


def first_state(policy: str, prior: Mapping[str, float] | None, skills: Sequence[str], reward: float | None) -> State:
    """The state of a bandit before any observation; `reward` is that of a skill nobody has seen."""
    weights = prior_weights(policy, prior, skills).tolist()
    return {"skills": list(skills), "turn": 0, "rewards": [reward] * len(skills), "weights": weights}


def observed(state: State, observation: Observation) -> tuple[int, dict[int, float]]:
    """The turn of an observation, and the losses it names by the skills' places."""
    losses = check_losses(observation.losses, state["skills"], step=observation.step, may_miss=True)
    place_of = {name: place for place, name in enumerate(state["skills"])}
    return state["turn"] + 1, {place_of[name]: loss for name, loss in losses.items()}


def explored(shares: Float[np.ndarray, " train_skill"], turn: int) -> list[float]:
    """Shares that sum to 1, mixed with the exploration of this turn."""
    least = exploration(len(shares), turn)
    mixed: Any = (1 - len(shares) * least) * shares + least
    return (mixed / mixed.sum()).tolist()
