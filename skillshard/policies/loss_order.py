"""SKILL-IT with a graph that the losses themselves tell: each skill helps the one that is next to be learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.policies.policy import NextRound, Observation, Online, Policy, State, check_losses, softmax
from skillshard.policies.prior import checked_prior, log_prior
from skillshard.policies.skill_it import Reduce, check_arguments, reduced


@dataclass(frozen=True)
class LossOrder(Online):
    """See `loss_order`."""

    eta: float
    edge: float
    window: int
    reduce: Reduce
    prior: Mapping[str, float] | None
    name: str = "loss_order"

    @property
    def arguments(self) -> dict[str, Any]:
        always = {"eta": self.eta, "edge": self.edge, "window": self.window, "reduce": self.reduce}
        return always | ({} if self.prior is None else {"prior": dict(self.prior)})

    @property
    def initial_losses(self) -> bool:
        return True

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        log_prior(self.name, self.prior, skills)
        return {"skills": list(skills), "window": []}

    def observe(self, state: State, observation: Observation) -> State:
        losses = list(check_losses(observation.losses, state["skills"], step=observation.step).values())
        return {**state, "window": [*state["window"], losses][-self.window :]}

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        losses = reduced(state["window"], len(state["skills"]), self.reduce)
        scores = self.eta * losses + self.eta * self.edge * next_above(losses)
        return softmax(scores + log_prior(self.name, self.prior, state["skills"]))


def next_above(losses: Float[np.ndarray, " skill"]) -> Float[np.ndarray, " skill"]:
    """The least loss that is above each skill's own; 0 for the largest.

    >>> next_above(np.array([0.7, 0.1, 0.7, 0.3])).tolist()
    [0.0, 0.3, 0.0, 0.7]
    """
    rising = np.append(np.unique(losses), 0.0)
    return rising[np.searchsorted(rising[:-1], losses) + 1]


def loss_order(
    *,
    eta: float,
    edge: float = 0.5,
    window: int = 3,
    reduce: Reduce = "sum",
    prior: Mapping[str, float] | None = None,
) -> Policy:
    r"""SKILL-IT's weights, where the order of the latest losses stands in for a graph.

    .. math:: \ell_j = \operatorname{reduce}_{\tau > t-w} L_j(\tau), \quad
        p_i \propto q_i \exp\big(\eta\, (\ell_i + c \min\{\ell_j : \ell_j > \ell_i\})\big)

    q is the prior. The last term is 0 for the skill with the largest loss. What is learned sooner is taken for a prerequisite of what comes next: no graph
    has to be learned or known, and a wrong order is corrected by the next losses. Before the first observation the weights are the prior; skills of
    one loss share what helps them. Losses have to be comparable: where skills differ in the loss that they can reach, as in real text, the
    order is not that of learning. NaN, missing and unknown skills are refused.

    Args:
        eta: Step size in 1 / nats, as in `skill_it`.
        window: Number of the latest observations used, as in `skill_it`.
        reduce: "sum" or "mean" over the window, as in `skill_it`.
        edge: c, from each skill to the next, finite and >= 0: 0.5 in the authors' graphs. 0 is SKILL-IT without a graph.
        prior: q, training skill -> weight > 0; made to sum to 1. None: equal weights.

    Returns:
        A policy; its state is the window, oldest first.

    Raises:
        PolicyError: an argument is out of range; later, the prior's names are not the skills of the mix.

    Example:
        >>> policy = loss_order(eta=1.0)
        >>> seen = Observation(step=100, losses={"add": 0.0, "carry": 0.5, "negate": 0.75})
        >>> policy.weights(policy.observe(policy.init(("add", "carry", "negate")), seen)).round(3).tolist()
        [0.221, 0.414, 0.365]

    Reference:
        Ours; Chen et al., "Skill-it!", NeurIPS 2023, arXiv:2307.14430, Algorithm 1, with another graph in every round. Measured against
        stratified in `benchmarks/skillit.py`.
    """
    if not 0 <= edge < np.inf:
        raise PolicyError(f"edge is {edge}: give a finite number >= 0 (0.5 in the authors' graphs).")
    check_arguments(eta=eta, window=window, reduce=reduce)
    return LossOrder(eta, edge, window, reduce, checked_prior("loss_order", prior))
