"""Priors: the weights from which a policy starts, and their part in the scores of a policy."""

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat, cast

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError, name_some
from skillshard.number_checks import is_finite
from skillshard.policies.policy import check_names

MOST_WEIGHT = 1e100
"""Largest weight before normalization. Sums of larger weights could overflow."""


def checked_prior(policy: str, prior: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Convert a prior to plain numbers. Raise PolicyError unless it is a mapping from skills to finite numbers > 0.

    >>> checked_prior("odm", {"add": 3, "carry": np.float32(1)})
    {'add': 3.0, 'carry': 1.0}
    """
    if prior is None:
        return None
    if not isinstance(prior, Mapping):
        raise PolicyError(
            f"{policy}'s prior is of type {type(prior).__name__}: give a mapping, training skill -> weight > 0."
        )
    bad = [
        f"{name!r} is {weight!r}" if not isinstance(name, str) else f"{name} is {weight!r}"
        for name, weight in prior.items()
        if not isinstance(name, str) or not is_weight(weight) or not float(weight) > 0
    ]
    if bad or not prior:
        raise PolicyError(
            f"{policy}'s prior holds weights that are not finite numbers > 0: {name_some(bad) or 'it names no skill'}. Give each skill "
            "of the mix a weight > 0. The weights are normalized to the sum 1."
        )
    return {name: float(weight) for name, weight in prior.items()}


def is_weight(value: object) -> bool:
    """Return whether a value is a number from 0 to 1e100. True and False are no numbers.

    >>> [is_weight(value) for value in (0.5, 2, -1.0, np.inf, True, "0.5", None, [1.0])]
    [True, True, False, False, False, False, False, False]
    """
    return is_finite(value) and 0 <= float(cast(SupportsFloat, value)) <= MOST_WEIGHT


def prior_weights(
    policy: str, prior: Mapping[str, float] | None, skills: Sequence[str]
) -> Float[np.ndarray, " train_skill"]:
    """Return the weights from which a policy starts, in the order of the skills. Without a prior the weights are equal.

    >>> prior_weights("odm", {"carry": 3.0, "add": 1.0}, ("add", "carry")).tolist()
    [0.25, 0.75]
    """
    if prior is None:
        return np.full(len(skills), 1 / len(skills))
    check_names(f"{policy}'s prior weights", prior, skills)
    # In the order of the mix: a prior is a mapping, whose order has no meaning.
    weights = np.array([prior[name] for name in skills], dtype=np.float64)
    return weights / weights.sum()


def log_prior(
    policy: str, prior: Mapping[str, float] | None, skills: Sequence[str]
) -> Float[np.ndarray, " train_skill"] | float:
    """Return the logarithm of a prior for the scores of a softmax, in the order of the skills.

    Without a prior the result is 0 and not log(1 / k), so that the weights keep their bits.

    >>> log_prior("skill_it", None, ("add", "carry"))
    0.0
    >>> np.exp(log_prior("skill_it", {"carry": 3.0, "add": 1.0}, ("add", "carry"))).round(6).tolist()
    [0.25, 0.75]
    """
    return 0.0 if prior is None else np.log(prior_weights(policy, prior, skills))
