"""Statistics of paired differences agree with scipy and with published values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from skillshard.comparison.significance import (
    detectable_difference,
    holm,
    paired_t,
    power_of,
    seeds_needed,
    sign_test_seeds,
)


@pytest.mark.parametrize("seed", range(5))
def test_the_paired_t_test_is_that_of_scipy(seed: int) -> None:
    ours, theirs = np.random.default_rng(seed).normal(size=(2, 7))
    test, golden = paired_t((ours - theirs).tolist()), stats.ttest_rel(ours, theirs)
    assert test.p == pytest.approx(golden.pvalue, rel=1e-12)
    assert test.mean == pytest.approx((ours - theirs).mean())


def test_differences_without_a_spread_are_certain() -> None:
    assert paired_t([0.0, 0.0, 0.0]).p == 1.0
    assert paired_t([0.5, 0.5]).p == 0.0


def test_power_and_detectable_difference_are_the_published_values() -> None:
    # Cohen 1988 and G*Power: ten pairs show an effect of one standard deviation with a power of 0.803.
    assert power_of(1.0, 1.0, 10) == pytest.approx(0.8031, abs=1e-4)
    assert power_of(0.5, 1.0, 34) == pytest.approx(0.8078, abs=1e-3)
    assert seeds_needed(0.5, 1.0) == 34


@given(st.floats(0.01, 10), st.integers(2, 40))
def test_the_detectable_difference_has_the_power_that_it_promises(deviation: float, num: int) -> None:
    assert power_of(detectable_difference(deviation, num), deviation, num) == pytest.approx(0.8, abs=1e-6)


def test_simulated_differences_of_the_detectable_size_are_shown_in_four_of_five_experiments() -> None:
    drawn = np.random.default_rng(0).normal(detectable_difference(1.0, 5, level=0.01), 1.0, size=(2000, 5))
    shown = np.mean([paired_t(row.tolist()).p <= 0.01 for row in drawn])
    assert shown == pytest.approx(0.8, abs=0.03)


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(ps: dict[str, float]) -> None:
    corrected = holm(ps)
    assert all(ps[name] <= corrected[name] <= min(1, len(ps) * ps[name]) for name in ps)
    ranked = sorted(ps, key=ps.__getitem__)
    assert [corrected[name] for name in ranked] == sorted(corrected.values())


def test_holm_of_a_worked_example() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )


def test_a_sign_test_of_five_seeds_never_reaches_the_level() -> None:
    assert stats.binomtest(5, 5).pvalue > 0.05
    assert stats.binomtest(sign_test_seeds(), sign_test_seeds()).pvalue <= 0.05
