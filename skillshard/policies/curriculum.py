"""Curricula: easy first, hard first, or one skill after the other; schedules from the losses of the untrained model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError, name_some
from skillshard.policies.policy import NextRound, NoLosses, Policy, State, check_names, known_round

Order = Literal["curriculum", "anti_curriculum", "skill_curriculum"]


def pool_shares(
    hardness: Float[np.ndarray, " train_skill"], num_samples: Float[np.ndarray, " train_skill"], share: float
) -> Float[np.ndarray, " train_skill"]:
    """The shares of each skill in the least hard `share` of all samples; equally hard skills come in together.

    >>> pool_shares(np.array([2.0, 1.0]), np.array([100.0, 300.0]), 0.8).tolist()
    [0.0625, 0.9375]
    """
    before = (num_samples * (hardness[None, :] < hardness[:, None])).sum(axis=1)
    alike = (num_samples * (hardness[None, :] == hardness[:, None])).sum(axis=1)
    taken = np.clip(share * num_samples.sum() - before, 0, alike) * num_samples / np.maximum(alike, 1)
    return taken / taken.sum()


@dataclass(frozen=True)
class Curriculum(NoLosses):
    """See `curriculum`, `anti_curriculum` and `skill_curriculum`."""

    losses: Mapping[str, float]
    draws: int
    name: Order

    @property
    def arguments(self) -> dict[str, Any]:
        return {"losses": dict(self.losses), "draws": self.draws}

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        check_names(f"{self.name}'s losses", self.losses, skills)
        return {"skills": list(skills)}

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        upcoming = known_round(self.name, upcoming)
        num_samples = np.array(upcoming.num_samples, dtype=np.float64)
        if self.name == "skill_curriculum":
            return self._blocks(state["skills"], num_samples, upcoming)
        losses = np.array([self.losses[skill] for skill in state["skills"]])
        hardness = losses if self.name == "curriculum" else -losses
        share = min(1.0, (upcoming.first_draw + upcoming.num_draws) / self.draws)
        return pool_shares(hardness, num_samples, share)

    def _blocks(
        self, skills: list[str], num_samples: Float[np.ndarray, " train_skill"], upcoming: NextRound
    ) -> Float[np.ndarray, " train_skill"]:
        """One block of equal length for each skill, the last over all samples; a round over two blocks has the mean."""
        natural = num_samples / num_samples.sum()
        order = sorted(range(len(skills)), key=lambda at: (self.losses[skills[at]], skills[at]))
        edges = np.linspace(0, self.draws, len(skills) + 2)
        edges[-1] = math.inf
        first, last = upcoming.first_draw, upcoming.first_draw + upcoming.num_draws
        inside = np.clip(np.minimum(edges[1:], last) - np.maximum(edges[:-1], first), 0, None)
        weights = inside[-1] * natural
        weights[order] += inside[:-1]
        return weights / weights.sum()


def curriculum(losses: Mapping[str, float], *, draws: int) -> Policy:
    r"""Easy samples first: a pool that grows from the easiest skill to all, linearly over the run.

    Round r draws from the easiest share :math:`\min(1, (\text{draws up to its end}) / \text{draws})` of all samples, every
    sample alike. Equally hard skills come in together.

    Args:
        losses: training skill -> loss of the untrained model in nats per token: how hard it is.
        draws: samples after which the pool holds everything, >= 1; the length of the run in the paper.

    Raises:
        PolicyError: draws is out of range or a loss no finite number; later, the losses do not name the skills of the mix, or the
            round is not known.

    Example:
        >>> policy = curriculum({"add": 1.0, "carry": 2.0}, draws=400)
        >>> state = policy.init(("add", "carry"))
        >>> policy.weights(state, NextRound(0, 0, 100, (100, 100), (0, 0))).tolist()
        [1.0, 0.0]
        >>> policy.weights(state, NextRound(3, 300, 100, (100, 100), (300, 0))).tolist()
        [0.5, 0.5]

    Reference:
        The baseline of Chen et al., "Skill-it!", NeurIPS 2023, arXiv:2307.14430, Section 4, baselines (the pacing is that of the authors' code). Differs from it: skills
        are sorted by their mean loss, not samples by their own, since the order within a skill is the stream's.
    """
    return _schedule(losses, draws, "curriculum")


def anti_curriculum(losses: Mapping[str, float], *, draws: int) -> Policy:
    """Hard samples first: `curriculum` with the order of the skills turned round; arguments and errors are the same."""
    return _schedule(losses, draws, "anti_curriculum")


def skill_curriculum(losses: Mapping[str, float], *, draws: int) -> Policy:
    """One skill after the other, the easiest first, each for draws / (k + 1); then all samples alike.

    Equally hard skills come in the order of their names. A round that lies over two blocks has their mean weights.

    Args:
        losses: training skill -> loss of the untrained model in nats per token: how hard it is.
        draws: length of the run, >= 1; after it the last block goes on.

    Raises:
        PolicyError: as for `curriculum`.

    Example:
        >>> policy = skill_curriculum({"add": 1.0, "carry": 2.0}, draws=300)
        >>> policy.weights(policy.init(("add", "carry")), NextRound(0, 50, 100, (100, 300), (0, 0))).tolist()
        [0.5, 0.5]

    Reference:
        The baseline "skill-curriculum" of Chen et al., arXiv:2307.14430, Appendix D.3.1. Differs from the code: the blocks are equally
        long, and none brings back a fraction of earlier skills.
    """
    return _schedule(losses, draws, "skill_curriculum")


def _schedule(losses: Mapping[str, float], draws: int, order: Order) -> Policy:
    bad = [f"{name} is {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
    if bad or not losses:
        raise PolicyError(f"{order}'s losses are not finite numbers: {name_some(bad) or 'none are given'}.")
    if draws < 1:
        raise PolicyError(f"draws is {draws:,}: give the number of samples of the whole run, at least 1.")
    return Curriculum(dict(losses), draws, order)
