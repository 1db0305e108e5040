"""A skill that runs out begins its next epoch, ends the stream, or leaves the stream to the other skills."""

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.errors import PolicyError
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.order import SCALE_BITS, fixed_point, limited_quotas
from skillshard.policies import proportional, stratified
from skillshard.shards.read import ShardSet


def mixer(shards: ShardSet, ledger: Path, **arguments: Any) -> Mixer:
    return Mixer(shards, arguments.pop("policy", stratified()), ledger=ledger, **({"round_draws": 50} | arguments))


def ids(stream: Mixer, num: int) -> list[str]:
    return stream.ids(0, num)


@pytest.mark.parametrize("round_draws", [5, 7, 11, 24, 50])
def test_stop_ends_before_the_first_sample_that_would_come_again(
    shards: ShardSet, tmp_path: Path, round_draws: int
) -> None:
    stream = mixer(shards, tmp_path, repeat="stop", round_draws=round_draws)
    texts = [sample.text for sample in stream]
    endless = mixer(shards, tmp_path / "endless", round_draws=round_draws)
    seen = ids(endless, len(texts) + 1)
    assert len(set(seen[:-1])) == len(seen) - 1
    assert seen[-1] in seen[:-1]
    assert texts == endless.batch(0, len(texts)).text
    assert stream.draw == len(texts)
    assert verify_ledger(stream.ledger) == []


def test_drop_gives_every_sample_once_and_then_ends(shards: ShardSet, tmp_path: Path) -> None:
    stream = mixer(shards, tmp_path, repeat="drop")
    batches = list(stream.batches(32))
    total = sum(len(skill) for skill in shards.train.values())
    assert sum(map(len, batches)) == total
    assert all(len(batch) == 32 for batch in batches[:-1])
    everything = ids(mixer(shards, tmp_path, repeat="drop"), total + 100)
    assert len(everything) == len(set(everything)) == total
    assert verify_ledger(stream.ledger) == []


def test_a_cap_gives_every_sample_that_often(shards: ShardSet, tmp_path: Path) -> None:
    total = sum(len(skill) for skill in shards.train.values())
    counts = Counter(ids(mixer(shards, tmp_path, repeat="cap:3"), 10 * total))
    assert set(counts.values()) == {3}
    assert len(counts) == total


def test_while_a_skill_is_dropped_the_others_keep_their_proportions(shards: ShardSet, tmp_path: Path) -> None:
    stream = mixer(shards, tmp_path, repeat="drop")
    assert stream.round(2).drawn_before[2] == len(shards.train["negate"])
    later = Counter(stream.batch(100, 100).skill)
    assert set(later) == {"add", "carry"}
    assert abs(later["add"] - 50) <= 2


def test_epochs_are_recorded_and_a_fifth_one_is_warned_of(shards: ShardSet, tmp_path: Path) -> None:
    stream = mixer(shards, tmp_path)
    negate = len(shards.train["negate"])
    number = 3 * 4 * negate // 50 + 1
    for before in range(number - 1):
        stream.round(before)
    with pytest.warns(UserWarning, match=re.escape("skill 'negate' passes 4 epochs in round")):
        record = stream.round(number)
    drawn = np.array(record.drawn_before) + np.array(record.counts)
    sizes = [len(shards.train[skill]) for skill in stream.skills]
    np.testing.assert_allclose(record.epochs, drawn / sizes)


def test_the_default_goes_on_and_no_warning_comes_while_data_is_fresh(shards: ShardSet, tmp_path: Path) -> None:
    stream = mixer(shards, tmp_path, policy=proportional())
    total = sum(len(skill) for skill in shards.train.values())
    texts = [sample.text for sample in itertools.islice(stream, 3 * total)]
    assert len(texts) == 3 * total


@pytest.mark.parametrize("repeat", ["cap:0", "cap", "twice", ""])
def test_a_wrong_word_is_refused(shards: ShardSet, tmp_path: Path, repeat: str) -> None:
    with pytest.raises(
        PolicyError, match=re.escape(f"repeat is {repeat!r}: give 'epochs' (default), 'stop', 'drop' or 'cap:N'")
    ):
        mixer(shards, tmp_path, repeat=repeat)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 60)), min_size=1, max_size=7).filter(
        lambda skills: sum(weight for weight, _ in skills) > 1e-6
    ),
    st.integers(1, 200),
)
def test_limited_quotas_give_no_skill_more_than_there_is_and_waste_nothing(
    skills: list[tuple[float, int]], num_draws: int
) -> None:
    weights = np.array([weight for weight, _ in skills])
    available = np.array([most for _, most in skills])
    fixed = fixed_point(weights / weights.sum())
    counts, carry = limited_quotas(fixed, np.zeros(len(skills), np.int64), num_draws, available)
    assert np.all(counts <= available)
    assert np.all(counts[fixed == 0] == 0)
    assert counts.sum() == min(num_draws, available[fixed > 0].sum())
    assert np.all(np.abs(carry) <= len(skills) << SCALE_BITS)
