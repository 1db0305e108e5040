"""The DoReMi update: more weight to what is learned worse than by a reference model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError, name_some
from skillshard.policies.policy import NextRound, Observation, Online, Policy, State, check_losses, check_names, softmax

Use = Literal["latest", "average"]


@dataclass(frozen=True)
class DoReMi(Online):
    """See `doremi`."""

    reference: Mapping[str, float]
    eta: float
    smoothing: float
    use: Use
    name: str = "doremi"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"reference": dict(self.reference), "eta": self.eta, "smoothing": self.smoothing, "use": self.use}

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        check_names("doremi's reference losses", self.reference, skills)
        equal = [1 / len(skills)] * len(skills)
        return {"skills": list(skills), "turn": 0, "latest": equal, "average": equal}

    def observe(self, state: State, observation: Observation) -> State:
        losses = check_losses(observation.losses, state["skills"], step=observation.step)
        excess = np.array([max(loss - self.reference[skill], 0.0) for skill, loss in losses.items()])
        moved = softmax(np.log(state["latest"]) + self.eta * excess)
        latest = (1 - self.smoothing) * moved + self.smoothing / len(moved)
        turn = state["turn"] + 1
        average = (state["turn"] * np.array(state["average"]) + latest) / turn if state["turn"] else latest
        return {**state, "turn": turn, "latest": latest.tolist(), "average": average.tolist()}

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        return np.array(state[self.use])


def doremi(reference: Mapping[str, float], *, eta: float = 1.0, smoothing: float = 1e-4, use: Use = "latest") -> Policy:
    r"""Exponentiated steps on the loss in excess of a reference model's.

    .. math:: \lambda_i = \max(L_i - L^{\text{ref}}_i, 0), \quad
        p \leftarrow (1 - c) \operatorname{softmax}(\log p + \eta \lambda) + c / k

    Equal weights before the first observation. NaN, missing and unknown skills are refused.

    Args:
        reference: training skill -> loss of a finished reference model in nats per token. Training it is the caller's business.
        eta: step size in 1 / nats per observation, finite and >= 0; 1 in the authors' code.
        smoothing: c in (0, 1), so that no skill is lost for ever: 1e-4 in the authors' code; Aioli's and
            DataFlex's versions take 1e-3.
        use: "latest" weights for live mixing, or the "average" over all observations so far, which DoReMi gives for training
            the final model.

    Returns:
        A policy; its weights are `(train_skill,)`, at least c / k, sum 1; its state is the latest and the average weights.

    Raises:
        PolicyError: an argument is out of range; later, the reference does not name the skills of the mix.

    Example:
        >>> policy = doremi({"add": 1.0, "carry": 1.0}, smoothing=1e-9)
        >>> state = policy.init(("add", "carry"))
        >>> state = policy.observe(state, Observation(1, {"add": 1.0 + math.log(3), "carry": 0.5}))
        >>> policy.weights(state).round(6).tolist()
        [0.75, 0.25]

    Reference:
        Xie et al., "DoReMi", NeurIPS 2023, arXiv:2305.10429, Algorithm 1. Differs from it: the excess is clipped at 0 once per
        skill, not once per token (a per-token excess needs both models at hand; report it, clipped, with a reference of 0 to
        have it); the weights draw samples, they do not scale the loss.
    """
    bad = [f"{name} is {loss}" for name, loss in reference.items() if not 0 <= loss < math.inf]
    if bad or not reference:
        raise PolicyError(
            f"doremi's reference losses are not finite numbers >= 0: {name_some(bad) or 'none are given'}."
        )
    if not (math.isfinite(eta) and eta >= 0):
        raise PolicyError(f"eta is {eta}: give a finite number >= 0 (1 in the authors' code).")
    if not 0 < smoothing < 1:
        raise PolicyError(f"smoothing is {smoothing}: give a number between 0 and 1 (1e-4 in the authors' code).")
    if use not in ("latest", "average"):
        raise PolicyError(f"use is {use!r}: give 'latest' (default) or 'average'.")
    return DoReMi(dict(reference), eta, smoothing, use)
