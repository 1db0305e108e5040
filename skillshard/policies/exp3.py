"""EXP3: the textbook bandit, with exponential weights over importance-weighted rewards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.number_checks import is_finite
from skillshard.policies.bandit import exploration, explored, first_state, observed
from skillshard.policies.policy import NextRound, Observation, Online, Policy, State, softmax
from skillshard.policies.prior import checked_prior


@dataclass(frozen=True)
class Exp3(Online):
    """See `exp3`."""

    scale: float
    prior: Mapping[str, float] | None
    name: str = "exp3"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"scale": self.scale, "prior": None if self.prior is None else dict(self.prior)}

    @property
    def may_miss_losses(self) -> bool:
        return True

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        return first_state(self.name, self.prior, skills, 0.0)

    def observe(self, state: State, observation: Observation) -> State:
        turn, losses = observed(state, observation)
        rewards = list(state["rewards"])
        # Divided by the weight, as in the textbook, where a skill with a small weight is drawn and rewarded rarely.
        for index, loss in losses.items():
            rewards[index] += loss / self.scale / state["weights"][index]
        # The rate of the turn before, as in the authors' code: `explored` mixes with the rate of this turn.
        rate = exploration(len(rewards), state["turn"])
        return {**state, "turn": turn, "rewards": rewards, "weights": explored(softmax(rate * np.array(rewards)), turn)}

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        return np.array(state["weights"])


def exp3(*, scale: float = 10.0, prior: Mapping[str, float] | None = None) -> Policy:
    r"""Compute exponential weights over all rewards, with a fading exploration.

    .. math:: R_i \leftarrow R_i + \frac{L_i / s}{p_i}, \quad
        p_i = (1 - k \varepsilon_t) \frac{e^{\varepsilon_{t-1} R_i}}{\sum_j e^{\varepsilon_{t-1} R_j}} + \varepsilon_t, \quad
        \varepsilon_t = \min\big(1 / k, \sqrt{\ln k / (k t)}\big)

    t counts observations. p in the reward is this policy's own last weight, as in the authors' code. The weight in force may differ,
    because of transforms and of the mixer's lag. A skill gets no reward from an observation that does not name the skill. NaN and
    unknown skills are refused.

    Args:
        scale: Scale s in nats, > 0, so that rewards are about 0 to 1. The authors' code uses 10, about the loss of an untrained model.
        prior: Weights before the first observation. None: equal weights.

    Returns:
        A policy. The weights are `(train_skill,)`, positive, sum 1. The state holds R, the weights and t.

    Raises:
        PolicyError: scale or prior is out of range.

    Example:
        >>> policy = exp3()
        >>> state = policy.init(("add", "carry"))
        >>> for step in range(1, 9):
        ...     state = policy.observe(state, Observation(step, {"add": 2.0, "carry": 0.0}))
        >>> policy.weights(state).round(4).tolist()
        [0.5929, 0.4071]

    Reference:
        Auer et al., "The Nonstochastic Multiarmed Bandit Problem", 2002, Section 3, as in `Exp3WeightUpdater` of Albalak et al.,
        arXiv:2312.02406. In contrast to the textbook, every skill of an observation is rewarded, not a single arm. In contrast to the
        code, the maximum is subtracted before exp.
    """
    if not (is_finite(scale) and scale > 0):
        raise PolicyError(f"scale is {scale!r}: give nats, a finite number > 0 (10 in the authors' code).")
    return Exp3(scale, checked_prior("exp3", prior))
