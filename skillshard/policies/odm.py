"""ODM, online data mixing: a bandit that is rewarded by the perplexity of a skill."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.number_checks import is_finite, is_whole
from skillshard.policies.bandit import explored, first_state, observed
from skillshard.policies.policy import NextRound, Observation, Online, Policy, State, softmax
from skillshard.policies.prior import checked_prior


@dataclass(frozen=True)
class Odm(Online):
    """See `odm`."""

    smoothing: float
    warmup_steps: int
    prior: Mapping[str, float] | None
    name: str = "odm"

    @property
    def arguments(self) -> dict[str, Any]:
        prior = None if self.prior is None else dict(self.prior)
        return {"smoothing": self.smoothing, "warmup_steps": self.warmup_steps, "prior": prior}

    @property
    def may_miss_losses(self) -> bool:
        return True

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        return first_state(self.name, self.prior, skills, None)

    def observe(self, state: State, observation: Observation) -> State:
        turn, losses = observed(state, observation)
        if observation.step <= self.warmup_steps and self.warmup_steps:
            return {**state, "turn": turn}
        rewards = [self._reward(old, losses.get(index)) for index, old in enumerate(state["rewards"])]
        return {**state, "turn": turn, "rewards": rewards, "weights": self._weights(rewards, state["weights"], turn)}

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        return np.array(state["weights"])

    def _reward(self, old: float | None, loss: float | None) -> float | None:
        """Compute the logarithm of the smoothed perplexity. None stands for a perplexity of 0."""
        if loss is None:
            return old
        # R <- a R + (1 - a) exp(loss), in logarithms: exp(loss) overflows for a loss of 710 nats.
        new = math.log1p(-self.smoothing) + loss
        return new if old is None or not self.smoothing else float(np.logaddexp(math.log(self.smoothing) + old, new))

    def _weights(self, rewards: list[float | None], before: list[float], turn: int) -> list[float]:
        # A skill without a reward has no perplexity to compare, so the skill keeps its weight, and the others share the rest.
        seen = np.array([reward is not None for reward in rewards])
        if not seen.any():
            return before
        share = np.zeros(len(rewards))
        share[seen] = softmax(np.array([reward for reward in rewards if reward is not None]))
        unseen = np.where(seen, 0.0, before)
        return explored(unseen + (1 - unseen.sum()) * share, turn)


def odm(*, smoothing: float = 0.9, warmup_steps: int, prior: Mapping[str, float] | None = None) -> Policy:
    r"""Give more weight to skills with a higher perplexity, with a fading exploration.

    .. math:: R_i \leftarrow a R_i + (1 - a) e^{L_i}, \quad
        p_i = (1 - k \varepsilon_t) \frac{R_i}{\sum_j R_j} + \varepsilon_t, \quad
        \varepsilon_t = \min\big(1 / k, \sqrt{\ln k / (k t)}\big)

    t counts observations (the authors' code observes in every step). A skill keeps its reward if an observation does not name the skill,
    and its prior weight until the first observation that names the skill. NaN and unknown skills are refused.

    Args:
        smoothing: Share a in [0, 1) of the old reward. 0.9 is the default of the authors' class, and their scripts for 1B parameters use
            0.5.
        warmup_steps: Number of optimizer steps with the weights of the prior, because the first perplexities carry no information. The
            authors use 2,000 on the Pile. 0: no warm-up.
        prior: Weights before the first reward. None: equal weights. The authors use the natural shares of the Pile.

    Returns:
        A policy. The weights are `(train_skill,)`, positive, sum 1. The state holds log R, so that no loss overflows.

    Raises:
        PolicyError: smoothing, warmup_steps or prior is out of range.

    Example:
        >>> policy = odm(smoothing=0.0, warmup_steps=0)
        >>> state = policy.init(("add", "carry"))
        >>> for step in range(1, 9):
        ...     state = policy.observe(state, Observation(step, {"add": math.log(3), "carry": 0.0}))
        >>> policy.weights(state).round(4).tolist()
        [0.6459, 0.3541]

    Reference:
        Albalak et al., "Efficient Online Data Mixing", 2023, arXiv:2312.02406, as in the authors' `SmoothedMeanWeightUpdater`, which
        their README names as the paper's method. In contrast to the paper as printed, the weights are linear in the perplexity, without
        exponential weights or importance weights (`exp3` uses both). In contrast to the code, the state holds log R, and the losses are
        holdout losses, unless the trainer reports the losses of its batches.
    """
    if not (is_finite(smoothing) and 0 <= smoothing < 1):
        raise PolicyError(f"smoothing is {smoothing!r}: give a number from 0 to below 1.")
    if not is_whole(warmup_steps, 0):
        raise PolicyError(f"warmup_steps is {warmup_steps!r}: give optimizer steps, a whole number >= 0.")
    return Odm(smoothing, warmup_steps, checked_prior("odm", prior))
