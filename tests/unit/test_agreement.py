"""The agreement from a table of counts equals scikit-learn's figures for the labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from skillshard.errors import TagsError
from skillshard.taggers.agreement import agreement

labels = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("uvwxyz")), min_size=1, max_size=60)


@given(pairs=labels)
def test_nmi_and_ari_are_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    predicted, true = zip(*pairs, strict=True)
    measured = agreement(pairs)
    assert measured.nmi == pytest.approx(normalized_mutual_info_score(true, predicted), abs=1e-9)
    assert measured.ari == pytest.approx(adjusted_rand_score(true, predicted), abs=1e-9)
    assert measured.counts.sum() == len(pairs)
    assert measured.accuracy <= measured.purity + 1e-12


@given(pairs=labels, seed=st.integers(0, 99))
def test_order_and_names_do_not_matter(pairs: list[tuple[str, str]], seed: int) -> None:
    random = np.random.default_rng(seed)
    renamed = dict(zip("abcd", random.permutation(list("PQRS")), strict=True))
    moved = [(str(renamed[skill]), true) for skill, true in (pairs[index] for index in random.permutation(len(pairs)))]
    before, after = agreement(pairs), agreement(moved)
    for measure in ("nmi", "ari", "purity", "accuracy"):
        assert getattr(before, measure) == pytest.approx(getattr(after, measure), abs=1e-9)


def test_the_same_tags_under_other_names_agree_wholly() -> None:
    measured = agreement([("a", "x"), ("b", "y"), ("b", "y"), ("c", "z")])
    assert (measured.nmi, measured.ari, measured.purity, measured.accuracy) == pytest.approx((1, 1, 1, 1))


def test_nothing_to_compare_is_a_sentence() -> None:
    with pytest.raises(TagsError, match="no sample has both a skill and a value"):
        agreement([])
