"""Groups of skills: one policy mixes the groups, and another policy mixes the skills inside each group."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError, name_some, with_suggestions
from skillshard.loss import LossKind
from skillshard.policies.inner import Holder, check_covered, common_loss, part_of, read_together
from skillshard.policies.policy import (
    NextRound,
    Observation,
    Policy,
    Probing,
    RunFacts,
    State,
    check_is_policy,
    check_losses,
    in_draws,
    sizes,
)

Groups = Mapping[str, Sequence[str]] | Literal["prefix"]


def groups_of(skills: Sequence[str]) -> dict[str, list[str]]:
    """Group skills by the part of the name before the first "/". A skill without "/" is in the group of its own name.

    >>> groups_of(("code/c", "web", "code/python"))
    {'code': ['code/c', 'code/python'], 'web': ['web']}
    """
    groups: dict[str, list[str]] = {}
    for skill in skills:
        groups.setdefault(skill.split("/", 1)[0], []).append(skill)
    return groups


@dataclass(frozen=True)
class ByGroup(Holder):
    """See `by_group`."""

    outer: Policy
    inner: Policy | Mapping[str, Policy]
    groups: Mapping[str, tuple[str, ...]] | None

    @property
    def name(self) -> str:
        return "by_group"

    @property
    def arguments(self) -> dict[str, Any]:
        inner: Any = (
            {group: [policy.name, policy.arguments] for group, policy in self.inner.items()}
            if isinstance(self.inner, Mapping)
            else [self.inner.name, self.inner.arguments]
        )
        groups = "prefix" if self.groups is None else {group: list(skills) for group, skills in self.groups.items()}
        return {"outer": [self.outer.name, self.outer.arguments], "inner": inner, "groups": groups}

    def held(self) -> tuple[Policy, ...]:
        inner = self.inner.values() if isinstance(self.inner, Mapping) else (self.inner,)
        return (self.outer, *inner)

    @property
    def eval_skills(self) -> tuple[str, ...] | None:
        named: list[tuple[str, ...] | None] = []
        if self.outer.reads_losses:
            named.append(self._skills_of_groups(self.outer.eval_skills))
        for group, policy in self._policies():
            if policy.reads_losses:
                named.append(policy.eval_skills or (None if group is None else self._skills_of_groups((group,))))
        return read_together(named)

    def _policies(self) -> list[tuple[str | None, Policy]]:
        """Return each group with its inner policy. The group is None if only the skills of the mix tell the groups."""
        if isinstance(self.inner, Mapping):
            return list(self.inner.items())
        return [(group, self.inner) for group in self.groups or (None,)]

    def _skills_of_groups(self, groups: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Return the skills of groups, or None if only the skills of the mix tell them."""
        if groups is None or self.groups is None:
            return None
        return tuple(skill for group in groups for skill in self.groups.get(group, ()))

    @property
    def loss(self) -> LossKind | None:
        return common_loss(self.name, self.held())

    def in_draws(self, facts: RunFacts) -> Policy:
        # The tokens of a draw depend on the weights of the groups and of the skills together, so an inner policy does not know them.
        facts = replace(facts, num_tokens=None)
        inner = (
            {group: in_draws(policy, facts) for group, policy in self.inner.items()}
            if isinstance(self.inner, Mapping)
            else in_draws(self.inner, facts)
        )
        return replace(self, outer=in_draws(self.outer, facts), inner=inner)

    def _inner_of(self, group: str) -> Policy:
        return self.inner[group] if isinstance(self.inner, Mapping) else self.inner

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        groups = groups_of(skills) if self.groups is None else self.groups
        self._check_groups(groups, skills)
        place_of = {skill: place for place, skill in enumerate(skills)}
        # The order of the mix, so that the state does not depend on the order of the names in the argument. The record of a run sorts the
        # groups by name, and the policy of the record must have the same state.
        places = {group: sorted(place_of[skill] for skill in named) for group, named in groups.items()}
        members = dict(sorted(places.items(), key=lambda item: item[1][0]))
        counts = sizes(self.name, num_samples) if self.outer.reads_losses or num_samples is not None else None

        def size_of(places: list[int]) -> list[int] | None:
            return None if num_samples is None else [int(num_samples[place]) for place in places]

        if self.outer.reads_losses:
            unknown = [group for group in self.outer.eval_skills or () if group not in groups]
            if unknown:
                raise PolicyError(
                    f"the policy of the groups ({self.outer.name}) reads the losses of {name_some(with_suggestions(unknown, groups))}, and the "
                    f"groups are {name_some(map(repr, groups))}: the loss of a group is the mean loss of its skills, so give a graph whose columns "
                    "are groups."
                )
            for group in self.outer.eval_skills or groups:
                check_covered("the policy of the groups", groups[group], self.eval_skills)
        try:
            outer = self.outer.init(
                tuple(members), None if num_samples is None else [sum(size_of(own) or ()) for own in members.values()]
            )
        except PolicyError as error:
            raise PolicyError(f"policy of the groups: {error}") from error
        inner: dict[str, State] = {}
        for group, own in members.items():
            policy, names = self._inner_of(group), tuple(skills[place] for place in own)
            if policy.reads_losses and policy.eval_skills is None:
                check_covered(f"the policy of group {group!r}", names, self.eval_skills)
            try:
                inner[group] = policy.init(names, size_of(own))
            except PolicyError as error:
                raise PolicyError(f"group {group!r}: {error}") from error
        return {
            "skills": list(skills),
            "sizes": None if counts is None else [int(count) for count in counts],
            "groups": [[group, own] for group, own in members.items()],
            "outer": outer,
            "inner": inner,
        }

    def _check_groups(self, groups: Mapping[str, Sequence[str]], skills: Sequence[str]) -> None:
        mixed, grouped = set(skills), {skill for named in groups.values() for skill in named}
        unknown = with_suggestions([skill for skill in sorted(grouped) if skill not in mixed], skills)
        missing = [skill for skill in skills if skill not in grouped]
        if unknown or missing:
            raise PolicyError(
                f"the groups do not name the skills of the mix: unknown: {name_some(unknown) or 'none'}; without a group: "
                f"{name_some(map(repr, missing)) or 'none'}. Give every skill one group, or give the word 'prefix' in place of the groups."
            )
        if isinstance(self.inner, Mapping) and set(self.inner) != set(groups):
            unknown = with_suggestions([group for group in self.inner if group not in groups], groups)
            missing = [group for group in groups if group not in self.inner]
            raise PolicyError(
                f"the inner policies do not name the groups: unknown: {name_some(unknown) or 'none'}; without a policy: "
                f"{name_some(map(repr, missing)) or 'none'}. Give every group a policy, or one policy for all groups."
            )

    def observe(self, state: State, observation: Observation) -> State:
        skills = state["skills"]
        read = check_losses(
            observation.losses, self.eval_skills or skills, step=observation.step, may_miss=self.may_miss_losses
        )
        seen = replace(observation, losses=read)
        outer = state["outer"]
        if self.outer.reads_losses:
            part = part_of(_of_groups(seen, state), self.outer.eval_skills or [group for group, _ in state["groups"]])
            outer = outer if part is None else self.outer.observe(outer, part)
        inner = {
            group: self._observed(group, state["inner"][group], [skills[place] for place in places], seen)
            for group, places in state["groups"]
        }
        return {**state, "outer": outer, "inner": inner}

    def _observed(self, group: str, state: State, names: list[str], observation: Observation) -> State:
        policy = self._inner_of(group)
        part = part_of(observation, policy.eval_skills or names) if policy.reads_losses else None
        if part is None:
            return state
        drawn = {name: observation.drawn[name] for name in names if name in observation.drawn}
        return policy.observe(state, replace(part, drawn=drawn))

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        members: list[list[int]] = [own for _, own in state["groups"]]
        shares = self.outer.weights(state["outer"], None if upcoming is None else _round_of_groups(upcoming, members))
        weights = np.zeros(len(state["skills"]))
        for (group, own), share in zip(state["groups"], shares.tolist(), strict=True):
            within = None if upcoming is None else _round_within(upcoming, own)
            weights[own] = share * self._inner_of(group).weights(state["inner"][group], within)
        return weights


def _of_groups(observation: Observation, state: State) -> Observation:
    """Return an observation of the groups: the mean loss of each group, weighted by the sizes of its skills with a loss."""
    losses, drawn = {}, {}
    for group, places in state["groups"]:
        names = [state["skills"][place] for place in places]
        seen = [
            (observation.losses[name], state["sizes"][place])
            for name, place in zip(names, places, strict=True)
            if name in observation.losses
        ]
        if seen:
            losses[group] = _mean_loss(seen)
        if observation.drawn:
            drawn[group] = sum(observation.drawn.get(name, 0) for name in names)
    return replace(observation, losses=losses, drawn=drawn)


def _mean_loss(seen: Sequence[tuple[float, int]]) -> float:
    """Return the mean of losses, weighted by sizes. The order of the losses changes no bit, and the mean of equal losses is the loss itself.

    >>> _mean_loss([(3.0, 100), (1.0, 300)]), _mean_loss([(0.1, 3), (0.1, 7)])
    (1.5, 0.1)
    """
    # A policy may compare the losses of groups, as loss_order does, so rounding errors of a plain sum could change the weights.
    least = min(loss for loss, _ in seen)
    total = sum(size for _, size in seen)
    return least + math.fsum((loss - least) * (size / total) for loss, size in seen)


def _round_of_groups(upcoming: NextRound, members: list[list[int]]) -> NextRound:
    """Return a round in which each group counts as a skill."""
    before = upcoming.weights_before
    return replace(
        upcoming,
        num_samples=tuple(sum(upcoming.num_samples[place] for place in own) for own in members),
        drawn=tuple(sum(upcoming.drawn[place] for place in own) for own in members),
        weights_before=None if before is None else tuple(sum(before[place] for place in own) for own in members),
    )


def _round_within(upcoming: NextRound, own: list[int]) -> NextRound:
    """Return a round with the skills of a group alone. A group without weight in the round before has no weights before."""
    before = None if upcoming.weights_before is None else [upcoming.weights_before[place] for place in own]
    total = sum(before or ())
    return replace(
        upcoming,
        num_samples=tuple(upcoming.num_samples[place] for place in own),
        drawn=tuple(upcoming.drawn[place] for place in own),
        weights_before=tuple(weight / total for weight in before) if before and total > 0 else None,
    )


def by_group(outer: Policy, inner: Policy | Mapping[str, Policy], *, groups: Groups) -> Policy:
    r"""Mix groups of skills by one policy, and the skills inside each group by another policy.

    .. math:: p_i = P_g \cdot p_{i | g}, \quad L_g = \frac{\sum_{i \in g} n_i L_i}{\sum_{i \in g} n_i}

    P are the weights of `outer` over the groups, and :math:`p_{i|g}` the weights of the inner policy of group g over its skills.
    `outer` sees each group as one skill. The size of a group, and its draws, are the sums over its skills. The loss of a group is the mean over its
    skills, weighted by their sizes n in the unit of the run's weights, so it is the loss of the group as if the group were one skill. If
    reports may miss skills, the mean is over the reported skills of the group, and a group without a reported skill has no loss.

    An inner policy sees only the skills of its group. The positions of its rounds count the draws of the whole stream, and the draws of
    skills are those of its group.

    Args:
        outer: Policy over the groups. Its training skills are the names of the groups, so `skill_it` takes a graph whose rows and columns are
            groups.
        inner: Policy for all groups, or group -> policy.
        groups: Group -> its skills. Each skill of the mix is in exactly one group. "prefix": the group of a skill is the part of its name
            before the first "/". A skill without "/" is in the group of its own name.

    Returns:
        A policy. Its state holds the states of `outer` and of each group's policy.

    Raises:
        PolicyError: A group is empty, a skill is in two groups, or a policy has probes. Later, the groups do not name the skills of the mix, or a
            policy does not fit its skills.

    Example:
        >>> from skillshard.policies import fixed, proportional
        >>> policy = by_group(fixed({"code": 0.75, "web": 0.25}), proportional(), groups="prefix")
        >>> policy.weights(policy.init(("code/c", "code/python", "web"), (100, 300, 50))).tolist()
        [0.1875, 0.5625, 0.25]

    Reference:
        A method of skillshard.
    """
    inner_policies = list(inner.values()) if isinstance(inner, Mapping) else [inner]
    for policy in (outer, *inner_policies):
        check_is_policy(policy)
        # The weights of a probe are known before any loss, and the weights of the other level may depend on losses.
        if isinstance(policy, Probing):
            raise PolicyError(
                f"policy {policy.name} has probes, whose weights must not depend on losses, and by_group multiplies the weights of two policies: "
                "give by_group policies that do not probe."
            )
    checked = None if isinstance(groups, str) and groups == "prefix" else _checked_groups(groups)
    if isinstance(inner, Mapping) and checked is not None:
        ByGroup(outer, inner, checked)._check_groups(checked, [skill for own in checked.values() for skill in own])
    common_loss("by_group", (outer, *inner_policies))
    return ByGroup(outer, dict(inner) if isinstance(inner, Mapping) else inner, checked)


def _checked_groups(groups: Any) -> dict[str, tuple[str, ...]]:
    is_mapping = isinstance(groups, Mapping) and groups
    if not is_mapping or any(isinstance(own, str) or not isinstance(own, Sequence) for own in groups.values()):
        raise PolicyError(
            "groups are no mapping from groups to lists of skills: give groups={'code': ['c', 'python'], 'web': ['news']}, or groups='prefix'."
        )
    empty = [group for group, own in groups.items() if not own]
    if empty:
        raise PolicyError(
            f"{name_some(map(repr, empty))} has no skill: give each group at least one skill, or leave the group out."
        )
    group_of: dict[str, str] = {}
    for group, own in groups.items():
        for skill in own:
            if skill in group_of:
                raise PolicyError(
                    f"skill {skill!r} is in group {group_of[skill]!r} and in group {group!r}: give every skill one group, once."
                )
            group_of[skill] = group
    return {group: tuple(own) for group, own in groups.items()}
