"""The DoReMi update: more weight for the skills with higher losses than a reference model's losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError, name_some
from skillshard.number_checks import is_finite
from skillshard.policies.policy import (
    NextRound,
    Observation,
    Online,
    Policy,
    State,
    check_loss_of_each,
    check_losses,
    check_names,
    softmax,
)

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
        # The equal weights before the first observation are no result, so they are no part of the average.
        average = (state["turn"] * np.array(state["average"]) + latest) / turn if state["turn"] else latest
        return {**state, "turn": turn, "latest": latest.tolist(), "average": average.tolist()}

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        return np.array(state[self.use])


def doremi(reference: Mapping[str, float], *, eta: float = 1.0, smoothing: float = 1e-4, use: Use = "latest") -> Policy:
    r"""Take exponentiated gradient steps on the excess of the losses over a reference model's losses.

    .. math:: \lambda_i = \max(L_i - L^{\text{ref}}_i, 0), \quad
        p \leftarrow (1 - c) \operatorname{softmax}(\log p + \eta \lambda) + c / k

    Equal weights before the first observation. NaN, missing and unknown skills are refused.

    Args:
        reference: Training skill -> loss of a trained reference model in nats per token. The caller trains the reference model.
        eta: Step size in 1 / nats per observation, finite and >= 0. The authors' code uses 1.
        smoothing: Share c in (0, 1) of equal weights, so that every skill keeps a weight above 0. The authors' code uses 1e-4, and the
            versions of Aioli and DataFlex use 1e-3.
        use: Weights of a round: the "latest" weights for live mixing, or the "average" over all observations, which DoReMi uses to
            train the final model.

    Returns:
        A policy. The weights are `(train_skill,)`, at least c / k, sum 1. The state holds the latest and the average weights.

    Raises:
        PolicyError: An argument is out of range. Later, the reference does not name the skills of the mix.

    Example:
        >>> policy = doremi({"add": 1.0, "carry": 1.0}, smoothing=1e-9)
        >>> state = policy.init(("add", "carry"))
        >>> state = policy.observe(state, Observation(1, {"add": 1.0 + np.log(3), "carry": 0.5}))
        >>> policy.weights(state).round(6).tolist()
        [0.75, 0.25]

    Reference:
        Xie et al., "DoReMi", NeurIPS 2023, arXiv:2305.10429, Algorithm 1. This policy differs from Algorithm 1 in two points. The
        excess is clipped at 0 per skill and not per token, because an excess per token needs both models. (For the paper's excess,
        report the clipped excess per token with a reference of 0.) The weights draw samples and do not scale the loss.
    """
    check_loss_of_each("doremi's reference", reference)
    bad = [f"{name} is {loss}" for name, loss in reference.items() if loss < 0]
    if bad:
        raise PolicyError(f"doremi's reference losses are not finite numbers >= 0: {name_some(bad)}.")
    if not (is_finite(eta) and eta >= 0):
        raise PolicyError(f"eta is {eta!r}: give a finite number >= 0 (1 in the authors' code).")
    if not (is_finite(smoothing) and 0 < smoothing < 1):
        raise PolicyError(f"smoothing is {smoothing!r}: give a number between 0 and 1 (1e-4 in the authors' code).")
    if use not in ("latest", "average"):
        raise PolicyError(f"use is {use!r}: give 'latest' (default) or 'average'.")
    return DoReMi(dict(reference), eta, smoothing, use)
