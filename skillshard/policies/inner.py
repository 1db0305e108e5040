"""Policies inside another policy: the losses that the inner policies read together."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from skillshard.errors import PolicyError, name_some
from skillshard.loss import LossKind
from skillshard.policies.policy import Observation, Policy


class Holder:
    """A policy that holds other policies, and reads the losses that the held policies read."""

    def held(self) -> tuple[Policy, ...]:
        """Return the policies inside the policy."""
        raise NotImplementedError

    @property
    def _readers(self) -> list[Policy]:
        return [policy for policy in self.held() if policy.reads_losses]

    @property
    def reads_losses(self) -> bool:
        return bool(self._readers)

    @property
    def may_miss_losses(self) -> bool:
        return all(policy.may_miss_losses for policy in self._readers)

    @property
    def initial_losses(self) -> bool:
        return any(getattr(policy, "initial_losses", False) for policy in self._readers)


@runtime_checkable
class Holding(Protocol):
    """A policy that holds other policies."""

    def held(self) -> tuple[Policy, ...]:
        """Return the policies inside the policy."""


def policies_within(policy: Policy) -> Iterator[Policy]:
    """Yield a policy and all policies inside the policy."""
    yield policy
    if isinstance(policy, Holding):
        for inner in policy.held():
            yield from policies_within(inner)


def read_together(named: Iterable[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """Return the evaluation skills that several policies read together. None stands for the training skills.

    Args:
        named: Evaluation skills of each policy that reads losses.

    >>> read_together([("add", "exam"), None, ("exam", "carry")])
    ('add', 'exam', 'carry')
    """
    # In the order of the policies, and not sorted: the record of a run names the skills in this order.
    together = dict.fromkeys(skill for skills in named for skill in skills or ())
    return tuple(together) or None


def check_covered(what: str, skills: Sequence[str], eval_skills: tuple[str, ...] | None) -> None:
    """Raise PolicyError if an inner policy reads the losses of training skills that the policies together do not name.

    The names of the training skills are unknown before `init`, so a list of evaluation skills cannot be completed by them.
    """
    known = set(eval_skills or skills)
    missing = [skill for skill in skills if skill not in known]
    if missing:
        raise PolicyError(
            f"{what} reads the losses of the training skills, and the evaluation skills of another policy beside it do not include "
            f"{name_some(map(repr, missing))}: give the graph of the other policy columns for all training skills."
        )


def common_loss(name: str, policies: Iterable[Policy]) -> LossKind | None:
    """Return the kind of losses that all inner policies need. None if any kind fits.

    Raises:
        PolicyError: The graphs of two policies were measured with different kinds of losses.
    """
    # A list and not a set, so that the message names the two kinds in the order of the policies.
    kinds: list[LossKind] = []
    for policy in policies:
        kind = getattr(policy, "loss", None)
        if kind is not None and not getattr(policy, "any_loss", False):
            kinds += [] if kind in kinds else [kind]
    if len(kinds) > 1:
        raise PolicyError(
            f"{name} holds policies whose graphs were measured with different kinds of losses, {kinds[0].sentence} and {kinds[1].sentence}, "
            "and a run has losses of one kind: measure the graphs with one kind, or allow the mix with skill_it(..., any_loss=True)."
        )
    return kinds[0] if kinds else None


def part_of(observation: Observation, eval_skills: Collection[str]) -> Observation | None:
    """Return the part of an observation that a policy reads, or None if the observation has no loss for the policy.

    >>> part_of(Observation(step=8, losses={"add": 1.0, "carry": 2.0}), ("carry", "copy")).losses
    {'carry': 2.0}
    """
    losses = {skill: observation.losses[skill] for skill in eval_skills if skill in observation.losses}
    return replace(observation, losses=losses) if losses else None
