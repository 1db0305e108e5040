"""Softmax of the losses: the simplest policy that reads losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.number_checks import is_finite
from skillshard.policies.policy import NextRound, Observation, Online, Policy, State, check_losses, softmax
from skillshard.policies.prior import checked_prior, log_prior


@dataclass(frozen=True)
class SoftmaxLoss(Online):
    """See `softmax_loss`."""

    temperature: float
    prior: Mapping[str, float] | None
    name: str = "softmax_loss"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"temperature": self.temperature} | ({} if self.prior is None else {"prior": dict(self.prior)})

    @property
    def initial_losses(self) -> bool:
        return True

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        log_prior(self.name, self.prior, skills)  # wrong names in a prior are an error now, and not in the first round
        # Equal losses, so that the weights before the first observation are the prior.
        return {"skills": list(skills), "losses": [0.0] * len(skills)}

    def observe(self, state: State, observation: Observation) -> State:
        losses = check_losses(observation.losses, state["skills"], step=observation.step)
        return {**state, "losses": list(losses.values())}

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        scores = np.array(state["losses"]) / self.temperature
        return softmax(scores + log_prior(self.name, self.prior, state["skills"]))


def softmax_loss(*, temperature: float, prior: Mapping[str, float] | None = None) -> Policy:
    r"""Give more weight to skills with larger losses.

    .. math:: p_i \propto q_i \exp(L_i / T)

    q is the prior. Before the first observation the weights are the prior. The policy equals SKILL-IT with the identity graph, a window
    of 1 and eta = 1 / T.

    Args:
        temperature: Temperature T in nats, > 0. With a small T nearly all weight goes to the largest loss, and with a large T the weights
            are nearly the prior. The pull request for ms-swift (9142) names no default, so the argument is required.
        prior: Prior q, training skill -> weight > 0, normalized to the sum 1. None: equal weights.

    Raises:
        PolicyError: temperature or prior is out of range. Later, the prior's names are not the skills of the mix.

    Example:
        >>> policy = softmax_loss(temperature=1.0)
        >>> losses = {"add": np.log(3), "carry": 0.0}
        >>> policy.weights(policy.observe(policy.init(("add", "carry")), Observation(1, losses))).round(6).tolist()
        [0.75, 0.25]

    Reference:
        The loss-proportional heuristics of ms-swift (pull request 9142) and of Mixtera's SimpleAveraging (which is proportional to the
        loss itself). In contrast to both, the losses are holdout losses and not the losses of the training batches.
    """
    if not (is_finite(temperature) and temperature > 0):
        raise PolicyError(f"temperature is {temperature!r}: give nats, a finite number > 0.")
    return SoftmaxLoss(temperature, checked_prior("softmax_loss", prior))
