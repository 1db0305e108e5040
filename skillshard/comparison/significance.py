"""Statistics of differences that are paired by seed: t test, Holm's correction, power, and the limits of a sign test."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from skillshard.extras import needed

LEVEL = 0.05
"""Largest corrected p value of a significant difference, by convention."""
POWER = 0.8
"""Probability with which a test shows the detectable difference, by convention (Cohen 1988)."""
MOST_SEEDS = 1000
"""Largest number of seeds that `seeds_needed` considers. Nobody trains more."""
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class PairedTest:
    """The result of a paired, two-sided t test of the mean difference against 0.

    Attributes:
        mean: Mean of the differences.
        standard_deviation: Standard deviation of the differences, with n - 1.
        p: p value, before any correction.
    """

    mean: float
    standard_deviation: float
    p: float


def paired_t(differences: Sequence[float]) -> PairedTest:
    """Test whether the mean of paired differences is 0, as `scipy.stats.ttest_rel` does.

    Equal differences have no spread. Equal differences have p = 1 if all are 0, and p = 0 otherwise.

    Args:
        differences: At least 2 differences, one for each seed.

    >>> test = paired_t([1.0, 2.0, 3.0])
    >>> test.mean, test.standard_deviation, round(test.p, 4)
    (2.0, 1.0, 0.0742)
    """
    needed("fit", what="A comparison")
    from scipy.stats import t

    values = np.asarray(differences, np.float64)
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    if deviation == 0:
        return PairedTest(mean, 0.0, float(mean == 0))
    ratio = abs(mean) / (deviation / math.sqrt(len(values)))
    return PairedTest(mean, deviation, float(2 * t.sf(ratio, len(values) - 1)))


def holm(ps: Mapping[Name, float]) -> dict[Name, float]:
    """Correct p values by Holm's step-down rule (Holm 1979), so that the chance of any false finding stays below the level.

    The smallest of n values is multiplied by n, the next by n - 1, and so on. The results never fall and are at most 1.

    >>> holm({"a": 0.02, "b": 0.04, "c": 0.03})
    {'a': 0.06, 'c': 0.06, 'b': 0.06}
    """
    ranked = sorted(ps, key=ps.__getitem__)
    factors = np.arange(len(ranked), 0, -1)
    corrected = np.maximum.accumulate(np.minimum([ps[name] for name in ranked] * factors, 1.0))
    return dict(zip(ranked, corrected.tolist(), strict=True))


def power_of(difference: float, standard_deviation: float, num_seeds: int, *, level: float = LEVEL) -> float:
    """Return the probability that a paired t test shows a true mean difference.

    >>> round(power_of(1.0, 1.0, 10), 3)
    0.803
    """
    needed("fit", what="A comparison")
    from scipy.stats import nct, t

    critical = t.ppf(1 - level / 2, num_seeds - 1)
    shift = difference / standard_deviation * math.sqrt(num_seeds)
    # Far from 0 the distribution in scipy underflows to NaN, where the power is 1.
    below, above = nct.cdf(-critical, num_seeds - 1, shift), nct.sf(critical, num_seeds - 1, shift)
    return float(np.nan_to_num(above, nan=1.0) + np.nan_to_num(below, nan=0.0))


def detectable_difference(
    standard_deviation: float, num_seeds: int, *, level: float = LEVEL, power: float = POWER
) -> float:
    """Return the smallest true difference that a paired t test shows with the given power.

    Args:
        standard_deviation: Standard deviation of the differences, above 0.
        num_seeds: Number of seeds, at least 2.
        level: Level of the test, divided by the number of policies where several policies are tested.
        power: Probability of a significant result.

    >>> round(detectable_difference(1.0, 10), 3)
    0.996
    """
    lower, upper = 0.0, standard_deviation
    while power_of(upper, standard_deviation, num_seeds, level=level) < power:
        upper *= 2
    # Forty halvings give eleven digits.
    for _ in range(40):
        middle = (lower + upper) / 2
        is_enough = power_of(middle, standard_deviation, num_seeds, level=level) >= power
        lower, upper = (lower, middle) if is_enough else (middle, upper)
    return upper


def seeds_needed(
    difference: float, standard_deviation: float, *, level: float = LEVEL, power: float = POWER
) -> int | None:
    """Return the smallest number of seeds with which a paired t test shows a difference, or None above `MOST_SEEDS`.

    >>> seeds_needed(1.0, 1.0), seeds_needed(0.0, 1.0)
    (10, None)
    """
    lower, upper = 1, MOST_SEEDS
    if power_of(difference, standard_deviation, upper, level=level) < power:
        return None
    while upper - lower > 1:  # the power rises with the number of seeds
        middle = (lower + upper) // 2
        is_enough = power_of(difference, standard_deviation, middle, level=level) >= power
        lower, upper = (lower, middle) if is_enough else (middle, upper)
    return upper


def sign_test_seeds(level: float = LEVEL) -> int:
    """Return the smallest number of seeds with which a two-sided sign test can reach the level, if all differences have one sign.

    >>> sign_test_seeds(), sign_test_seeds(0.01)
    (6, 8)
    """
    return math.ceil(1 - math.log2(level))
