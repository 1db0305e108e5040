"""Curricula: schedules from the losses of the untrained model, easy skills first, hard skills first, or skill after skill."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.number_checks import is_whole
from skillshard.policies.policy import NextRound, NoLosses, Policy, State, check_loss_of_each, check_names, known_round

Order = Literal["curriculum", "anti_curriculum", "skill_curriculum"]


def pool_shares(
    hardness: Float[np.ndarray, " train_skill"], num_samples: Float[np.ndarray, " train_skill"], share: float
) -> Float[np.ndarray, " train_skill"]:
    """Compute the share of each skill in the easiest `share` of all samples. Equally hard skills enter together.

    >>> pool_shares(np.array([2.0, 1.0]), np.array([100.0, 300.0]), 0.8).tolist()
    [0.0625, 0.9375]
    """
    # `before` counts the samples of all easier skills, and `alike` the samples of all equally hard skills. A group of equally hard
    # skills takes what the pool has left beyond `before`, and its skills divide the amount by their sizes.
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
        """Return the weights of blocks of equal length: a block for each skill, and a last block for all samples.

        A round over the end of a block has the mean weights of its blocks.
        """
        natural = num_samples / num_samples.sum()
        order = sorted(range(len(skills)), key=lambda index: (self.losses[skills[index]], skills[index]))
        edges = np.linspace(0, self.draws, len(skills) + 2)
        edges[-1] = math.inf  # the last block continues beyond the planned length of the run
        first, last = upcoming.first_draw, upcoming.first_draw + upcoming.num_draws
        inside = np.clip(np.minimum(edges[1:], last) - np.maximum(edges[:-1], first), 0, None)
        weights = inside[-1] * natural
        weights[order] += inside[:-1]
        return weights / weights.sum()


def curriculum(losses: Mapping[str, float], *, draws: int) -> Policy:
    r"""Draw easy samples first: the pool grows linearly over the run, from the easiest skill to all skills.

    Round r draws from the easiest share :math:`\min(1, (\text{draws up to its end}) / \text{draws})` of all samples, each sample with
    equal probability. Equally hard skills enter together.

    Args:
        losses: Training skill -> loss of the untrained model in nats per token, as the measure of hardness.
        draws: Number of draws until the pool holds all samples, >= 1. The paper uses the length of the run.

    Raises:
        PolicyError: draws is out of range, or a loss is no finite number. Later, the losses do not name the skills of the mix, or the
            round is unknown.

    Example:
        >>> policy = curriculum({"add": 1.0, "carry": 2.0}, draws=400)
        >>> state = policy.init(("add", "carry"))
        >>> policy.weights(state, NextRound(0, 0, 100, (100, 100), (0, 0))).tolist()
        [1.0, 0.0]
        >>> policy.weights(state, NextRound(3, 300, 100, (100, 100), (300, 0))).tolist()
        [0.5, 0.5]

    Reference:
        The baseline of Chen et al., "Skill-it!", NeurIPS 2023, arXiv:2307.14430, Section 4, with the pacing of the authors' code. This
        policy sorts skills by their mean loss. The paper sorts samples by their own losses. Here the stream sets the order within a
        skill.
    """
    return _schedule(losses, draws, "curriculum")


def anti_curriculum(losses: Mapping[str, float], *, draws: int) -> Policy:
    """Draw hard samples first: `curriculum` with the reversed order of the skills. Arguments and errors are equal."""
    return _schedule(losses, draws, "anti_curriculum")


def skill_curriculum(losses: Mapping[str, float], *, draws: int) -> Policy:
    """Draw the skills one after the other, the easiest skill first, each skill for draws / (k + 1). Then draw all samples alike.

    Equally hard skills follow in the order of their names. A round over the end of a block has the mean weights of its blocks.

    Args:
        losses: Training skill -> loss of the untrained model in nats per token, as the measure of hardness.
        draws: Number of draws of the run, >= 1. After the run's end the last block continues.

    Raises:
        PolicyError: An argument is wrong, as for `curriculum`.

    Example:
        >>> policy = skill_curriculum({"add": 1.0, "carry": 2.0}, draws=300)
        >>> policy.weights(policy.init(("add", "carry")), NextRound(0, 50, 100, (100, 300), (0, 0))).tolist()
        [0.5, 0.5]

    Reference:
        The baseline "skill-curriculum" of Chen et al., arXiv:2307.14430, Appendix D.3.1. In contrast to the authors' code, all blocks
        have equal lengths, and no block repeats a fraction of the earlier skills.
    """
    return _schedule(losses, draws, "skill_curriculum")


def _schedule(losses: Any, draws: Any, order: Order) -> Policy:
    check_loss_of_each(f"{order}'s", losses)
    if not is_whole(draws, 1):
        raise PolicyError(f"draws is {draws!r}: give the number of samples of the whole run, a whole number >= 1.")
    return Curriculum(dict(losses), draws, order)
