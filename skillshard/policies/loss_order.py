"""SKILL-IT with a graph from the order of the losses: each skill helps the skill with the next higher loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.number_checks import is_finite
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
        log_prior(self.name, self.prior, skills)  # wrong names in a prior are an error now, and not in the first round
        return {"skills": list(skills), "window": []}

    def observe(self, state: State, observation: Observation) -> State:
        losses = list(check_losses(observation.losses, state["skills"], step=observation.step).values())
        return {**state, "window": [*state["window"], losses][-self.window :]}

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        losses = reduced(state["window"], len(state["skills"]), self.reduce)
        # The scores of a graph with 1 on the diagonal and `edge` from each skill to its successor. No matrix is needed.
        scores = self.eta * losses + self.eta * self.edge * next_above(losses)
        return softmax(scores + log_prior(self.name, self.prior, state["skills"]))


def next_above(losses: Float[np.ndarray, " skill"]) -> Float[np.ndarray, " skill"]:
    """Find the smallest loss above each skill's own loss. For the skill with the largest loss the result is 0.

    >>> next_above(np.array([0.7, 0.1, 0.7, 0.3])).tolist()
    [0.0, 0.3, 0.0, 0.7]
    """
    # The 0 at the end is the successor of the largest loss. `unique` merges equal losses, so that skills of equal losses share
    # a successor.
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
    r"""Compute SKILL-IT's weights with the order of the latest losses in place of a graph.

    .. math:: \ell_j = \operatorname{reduce}_{\tau > t-w} L_j(\tau), \quad
        p_i \propto q_i \exp\big(\eta\, (\ell_i + c \min\{\ell_j : \ell_j > \ell_i\})\big)

    q is the prior. The last term is 0 for the skill with the largest loss. A skill that is learned sooner counts as a prerequisite of
    the next skill. So no graph has to be learned or known, and later losses correct a wrong order. Before the first observation the
    weights are the prior. Skills of equal losses have the same helpers. The losses must be comparable: if the skills differ in their
    reachable losses, as in real text, the order of the losses is not the order of learning. NaN, missing and unknown skills are refused.

    Args:
        eta: Step size in 1 / nats, as in `skill_it`.
        window: Number of the latest observations used, as in `skill_it`.
        reduce: "sum" or "mean" over the window, as in `skill_it`.
        edge: Edge c from each skill to the next skill, finite and >= 0. The authors' graphs use 0.5. 0 is SKILL-IT without a graph.
        prior: Prior q, training skill -> weight > 0, normalized to the sum 1. None: equal weights.

    Returns:
        A policy. The state is the window, oldest observation first.

    Raises:
        PolicyError: An argument is out of range. Later, the prior's names are not the skills of the mix.

    Example:
        >>> policy = loss_order(eta=1.0)
        >>> seen = Observation(step=100, losses={"add": 0.0, "carry": 0.5, "negate": 0.75})
        >>> policy.weights(policy.observe(policy.init(("add", "carry", "negate")), seen)).round(3).tolist()
        [0.221, 0.414, 0.365]

    Reference:
        A method of skillshard: Chen et al., "Skill-it!", NeurIPS 2023, arXiv:2307.14430, Algorithm 1, with another graph in every round.
        `benchmarks/skillit.py` compares the method with stratified.
    """
    if not (is_finite(edge) and edge >= 0):
        raise PolicyError(f"edge is {edge!r}: give a finite number >= 0 (0.5 in the authors' graphs).")
    check_arguments(eta=eta, window=window, reduce=reduce)
    return LossOrder(eta, edge, window, reduce, checked_prior("loss_order", prior))
