"""Policies with constant weights: stratified, proportional and fixed weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from skillshard.errors import PolicyError, name_some, with_suggestions
from skillshard.policies.policy import Policy, Static, sizes
from skillshard.policies.prior import is_weight


@dataclass(frozen=True)
class Stratified(Static):
    """See `stratified`."""

    name: str = "stratified"

    def constant_weights(self, skills: Sequence[str], num_samples: Sequence[int] | None) -> list[float]:
        return [1 / len(skills)] * len(skills)


@dataclass(frozen=True)
class Proportional(Static):
    """See `proportional`."""

    name: str = "proportional"

    def constant_weights(self, skills: Sequence[str], num_samples: Sequence[int] | None) -> list[float]:
        counts = sizes(self.name, num_samples)
        return (counts / counts.sum()).tolist()


@dataclass(frozen=True)
class Fixed(Static):
    """See `fixed`."""

    weight_of: Mapping[str, float]
    new: Literal["refuse", "proportional"]
    name: str = "fixed"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"weights": dict(self.weight_of), "new": self.new}

    def constant_weights(self, skills: Sequence[str], num_samples: Sequence[int] | None) -> list[float]:
        mixed = set(skills)
        unknown = with_suggestions([name for name in self.weight_of if name not in mixed], skills)
        new = [name for name in skills if name not in self.weight_of]
        if unknown or (new and self.new == "refuse"):
            raise PolicyError(
                f"the fixed weights do not name the skills of the mix: unknown: {name_some(unknown) or 'none'}; without a weight: "
                f"{name_some(new) or 'none'}. Give every skill a weight (0 is a weight too), or choose the skills of the mix (`ShardSet.choose(names)`), or "
                "give the skills without a weight their natural shares (`new='proportional'`)."
            )
        total = sum(self.weight_of.values())
        if not new:
            return [self.weight_of[name] / total for name in skills]
        # Every new skill gets its natural share. The given weights divide the rest, so that their ratios stay.
        counts = sizes("fixed with new='proportional'", num_samples)
        natural = dict(zip(skills, (counts / counts.sum()).tolist(), strict=True))
        left = 1 - sum(natural[name] for name in new)
        return [left * self.weight_of[name] / total if name in self.weight_of else natural[name] for name in skills]


def stratified() -> Policy:
    """Give every training skill the weight 1 / k. The baseline is hard to beat (Aioli, arXiv:2411.05735, Table 2).

    >>> policy = stratified()
    >>> policy.weights(policy.init(("add", "carry"))).tolist()
    [0.5, 0.5]
    """
    return Stratified()


def proportional() -> Policy:
    """Give every training sample the same weight, so that weights are proportional to the skills' sizes ("natural", "random").

    >>> policy = proportional()
    >>> policy.weights(policy.init(("add", "carry"), (300, 100))).tolist()
    [0.75, 0.25]
    """
    return Proportional()


def fixed(weights: Mapping[str, float], *, new: Literal["refuse", "proportional"] = "refuse") -> Policy:
    """Use the same weights in every round, for example the weights that `skillshard fit` proposes.

    Args:
        weights: Skill -> weight >= 0, normalized to the sum 1.
        new: Rule for skills of the mix without a weight. "refuse": an error. "proportional": the skills get their shares of all samples,
            and the other skills keep the ratios of their weights (as Olmix does with new domains, arXiv:2602.12237).

    Raises:
        PolicyError: A weight is no finite number >= 0, or all weights are 0. Later, the names are not the skills of the mix.

    Example:
        >>> policy = fixed({"add": 3.0, "carry": 1.0}, new="proportional")
        >>> policy.weights(policy.init(("add", "carry", "negate"), (100, 100, 200))).tolist()
        [0.375, 0.125, 0.5]
    """
    if not isinstance(weights, Mapping):
        raise PolicyError(
            f"the fixed weights are of type {type(weights).__name__}: give a mapping, skill -> weight >= 0."
        )
    bad = [f"{name} is {weight!r}" for name, weight in weights.items() if not is_weight(weight)]
    if bad or not sum(map(float, weights.values())) > 0:
        raise PolicyError(f"the fixed weights are not numbers >= 0 with a sum > 0: {name_some(bad) or 'all are 0'}.")
    if new not in ("refuse", "proportional"):
        raise PolicyError(f"new is {new!r}: give 'refuse' or 'proportional'.")
    return Fixed({name: float(weight) for name, weight in weights.items()}, new)
