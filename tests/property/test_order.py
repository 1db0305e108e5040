"""The order is a pure function, and keeps its promises for all inputs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.keyed_random import permutation
from skillshard.mixing.order import SCALE_BITS, fixed_point, interleave, limited_quotas, quotas, round_order
from skillshard.mixing.round_plan import order_round
from skillshard.mixing.round_records import RoundRecord
from skillshard.mixing.skill_order import STRIPE_ROWS, OpenEpoch, Permutation, SkillOrder

raw_weights = st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda weights: sum(weights) > 1e-6)


def weights_of(raw: list[float]) -> np.ndarray:
    return np.array(raw) / sum(raw)


def places(order: SkillOrder, start: int, stop: int) -> list[tuple[int, int]]:
    """Return shard and row of each draw."""
    stretch = order.read(start, stop)
    read = [(shard, row) for shard, rows in stretch.segments for row in rows.tolist()]
    return read if stretch.place is None else [read[place] for place in stretch.place.tolist()]


@given(raw_weights)
def test_fixed_point_weights_sum_to_one_exactly_and_are_off_by_less_than_two_units(raw: list[float]) -> None:
    weights = weights_of(raw)
    fixed = fixed_point(weights)
    assert fixed.sum() == 1 << SCALE_BITS
    assert np.all(np.abs(fixed - weights * 2**SCALE_BITS) < 2)
    assert np.all(fixed >= 0)


@given(st.lists(raw_weights, min_size=1, max_size=20), st.integers(1, 5000))
@settings(deadline=None)
def test_counts_of_every_round_are_within_one_sample_of_its_weights(rounds: list[list[float]], num_draws: int) -> None:
    num_skills = len(rounds[0])
    carry = np.zeros(num_skills, np.int64)
    owed = np.zeros(num_skills)
    for raw in rounds:
        if len(raw) != num_skills:
            continue
        fixed = fixed_point(weights_of(raw))
        counts, carry = quotas(fixed, carry, num_draws)
        exact = fixed / 2**SCALE_BITS * num_draws
        assert counts.sum() == num_draws
        assert np.all(np.abs(counts - exact) < 1)
        assert np.all(counts[fixed == 0] == 0)
        assert carry.sum() == 0
        owed += exact - counts
        assert np.allclose(owed, carry / 2**SCALE_BITS, atol=1e-6)
        assert owed.max() < 1 + math.log(num_skills) + 1e-6


@given(raw_weights, st.integers(1, 97))
@settings(deadline=None)
def test_with_constant_weights_no_skill_is_ever_two_samples_off(raw: list[float], num_draws: int) -> None:
    fixed = fixed_point(weights_of(raw))
    carry = np.zeros(len(raw), np.int64)
    for _ in range(200):
        _, carry = quotas(fixed, carry, num_draws)
        assert np.all(np.abs(carry) < 2 << SCALE_BITS)


def test_the_carry_of_a_round_that_was_cut_begins_anew() -> None:
    """Computed by hand: skill 0 has one sample left, and two skills of equal weight share three draws, whatever the carry was before."""
    fixed = fixed_point(np.array([0.5, 0.25, 0.25]))
    half = 1 << (SCALE_BITS - 1)
    for owed in ([0, -half, half], [0, half, -half], [0, 0, 0]):
        counts, carry = limited_quotas(fixed, np.array(owed), 4, np.array([1, 9, 9]))
        assert counts.tolist() == [1, 2, 1]
        assert carry.tolist() == [0, -half, half]


@given(raw_weights, st.integers(1, 200), st.data())
def test_a_round_that_is_not_cut_keeps_the_carry(raw: list[float], num_draws: int, data: st.DataObject) -> None:
    fixed = fixed_point(weights_of(raw))
    _, carry = quotas(fixed, np.zeros(len(raw), np.int64), data.draw(st.integers(1, 50)))
    expected = quotas(fixed, carry, num_draws)
    limited = limited_quotas(fixed, carry, num_draws, np.full(len(raw), num_draws))
    assert [part.tolist() for part in limited] == [part.tolist() for part in expected]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=9).filter(lambda counts: sum(counts) > 0), st.integers(0, 99))
def test_a_round_holds_its_counts_and_every_prefix_is_close_to_its_share(counts: list[int], key: int) -> None:
    num_draws, num_skills = sum(counts), len(counts)
    skill, slot = interleave(np.array(counts), "test", key)
    assert np.bincount(skill, minlength=num_skills).tolist() == counts
    assert sorted(slot.tolist()) == list(range(num_draws))
    for number, count in enumerate(counts):
        assert np.all(np.diff(slot[skill == number]) == 1)
        so_far = np.cumsum(skill == number)
        expected = count * np.arange(1, num_draws + 1) / num_draws
        assert np.all(np.abs(so_far - expected) < 1 + num_skills * count / num_draws + 1e-9)


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), st.integers(0, 2), st.integers(0, 3)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_an_order_in_memory_is_the_order_of_its_round(asked: list[tuple[list[int], int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("skillshard.mixing.order.KEPT_DRAWS", 12)  # rounds with more draws are ordered anew
        for counts, seed, number in asked:
            expected = interleave(np.array(counts), "round", seed, number)
            got = round_order(counts, seed=seed, number=number)
            assert [part.tolist() for part in got] == [part.tolist() for part in expected]


def test_whoever_writes_into_an_order_changes_no_other_order() -> None:
    with pytest.raises(ValueError, match="read-only"):
        round_order([4, 2], seed=0, number=0)[0][:] = 7
    fields = {"weights": [0.5, 0.5], "epochs": [0.0, 0.0], "drawn_before": [0, 0], "carry": [0, 0], "observed_to": -1}
    record = RoundRecord(
        round=0,
        first_draw=0,
        num_draws=6,
        counts=[4, 2],
        num_observed=0,
        observations=[],
        last_observation=None,
        policy_state={},
        previous="",
        **fields,
    )
    before = [part.tolist() for part in order_round(record, seed=0)]
    for part in order_round(record, seed=0):
        part[:] = 7
    assert [part.tolist() for part in order_round(record, seed=0)] == before


@given(st.integers(1, 5000), st.integers(0, 99))
def test_a_permutation_holds_every_number_once(num: int, key: int) -> None:
    assert sorted(permutation(num, "test", key).tolist()) == list(range(num))


@given(st.lists(st.integers(1, 3 * STRIPE_ROWS), min_size=1, max_size=5), st.integers(0, 99), st.integers(0, 3))
@settings(max_examples=50, deadline=None)  # the time of the machine does not concern the order
def test_every_epoch_of_a_skill_holds_every_sample_once(shard_rows: list[int], seed: int, epoch: int) -> None:
    order = SkillOrder(np.array(shard_rows), (seed, "add"))
    num = order.num_samples
    assert sorted(places(order, epoch * num, (epoch + 1) * num)) == [
        (shard, row) for shard, num_rows in enumerate(shard_rows) for row in range(num_rows)
    ]


@given(st.lists(st.integers(1, 2500), min_size=1, max_size=4), st.data())
@settings(max_examples=50, deadline=None)  # the time of the machine does not concern the order
def test_a_skill_can_be_read_from_any_position(shard_rows: list[int], data: st.DataObject) -> None:
    num = sum(shard_rows)
    start = data.draw(st.integers(0, 3 * num))
    stop = data.draw(st.integers(start, start + 2 * num))
    whole = places(SkillOrder(np.array(shard_rows), (0, "add")), 0, 5 * num)
    assert places(SkillOrder(np.array(shard_rows), (0, "add")), start, stop) == whole[start:stop]


def test_epochs_differ_and_so_do_seeds_and_skills() -> None:
    def first(*labels: str | int, epoch: int = 0) -> list[tuple[int, int]]:
        return places(SkillOrder(np.array([500]), labels), epoch * 500, epoch * 500 + 500)

    orders = [first(0, "add"), first(1, "add"), first(0, "carry"), first(0, "add", epoch=1)]
    assert all(order != earlier for number, order in enumerate(orders) for earlier in orders[:number])


def check_tokens(order: SkillOrder, epoch: int, *, extra: int, shares: list[float]) -> None:
    """Compare counts and searches of tokens at shares of an epoch with the sums over all samples of the epoch."""
    # Some samples have no token.
    counts = [np.random.default_rng([7, int(rows)]).integers(0, 9, rows) for rows in order.shard_rows]
    shard_tokens = np.array([rows.sum() for rows in counts])
    first = epoch * order.num_samples
    sizes = [counts[shard][row] for shard, row in places(order, first, first + order.num_samples)]
    before = np.concatenate([[0], np.cumsum(sizes)])
    for position in {int(share * (order.num_samples + 1)) for share in shares}:
        num_tokens = order.tokens_before(first + position, shard_tokens, counts.__getitem__)
        assert num_tokens == epoch * before[-1] + before[position]
    begins = before + extra * np.arange(len(before))
    for token in {int(share * begins[-1]) for share in shares if begins[-1]}:
        position, begin = order.find_token(epoch, token, shard_tokens, counts.__getitem__, extra=extra)
        assert begins[position] == begin <= token < begins[position + 1]


shares_of_an_epoch = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=12)


@given(
    st.lists(st.integers(1, 3 * STRIPE_ROWS), min_size=1, max_size=4),
    st.integers(0, 99),
    st.sampled_from([0, 1]),
    shares_of_an_epoch,
)
@settings(max_examples=50, deadline=None)  # the time of the machine does not concern the order
def test_tokens_are_counted_and_found_in_shards_of_several_stripes(
    shard_rows: list[int], seed: int, extra: int, shares: list[float]
) -> None:
    """The counts and the search go down from the shards over the stripes to the rows."""
    order = SkillOrder(np.array(shard_rows), (seed, "add"))
    for epoch in (0, 1):
        check_tokens(order, epoch, extra=extra, shares=shares)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=4), st.sampled_from([0, 1]), shares_of_an_epoch, st.data())
def test_tokens_are_counted_and_found_in_an_epoch_that_appended_shards_join(
    shard_rows: list[int], extra: int, shares: list[float], data: st.DataObject
) -> None:
    joined_at = data.draw(st.integers(0, shard_rows[0]))
    opened = OpenEpoch(0, 0, ((1, 0), (len(shard_rows), joined_at)))
    check_tokens(SkillOrder(np.array(shard_rows), (0, "add"), opened), 0, extra=extra, shares=shares)


@given(st.lists(st.integers(1, 2 * STRIPE_ROWS), min_size=1, max_size=5), st.integers(0, 9))
@settings(max_examples=50, deadline=None)  # the time of the machine does not concern the order
def test_the_rows_of_appended_shards_are_permuted_by_the_number_of_the_shard(shard_rows: list[int], first: int) -> None:
    """The order of a run must not change where a later version counts the shards of an appended part from 0."""
    appended = Permutation(np.array(shard_rows), first, ("appended", first), ("add",))
    segments = appended.read(0, appended.num_samples).segments
    assert {shard for shard, _ in segments} == set(range(first, first + len(shard_rows)))
    for shard, rows in segments:
        stripe = int(rows[0]) // STRIPE_ROWS
        expected = stripe * STRIPE_ROWS + permutation(len(rows), "add", shard, stripe)
        assert rows.tolist() == expected.tolist()
