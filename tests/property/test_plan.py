"""The plan of shards and the division of shards into tasks."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.shards.plan import GROUP_BYTES, GROUP_SHARDS, ShardPlan, groups, plan

some_sizes = st.lists(st.integers(0, 2 * GROUP_BYTES) | st.integers(0, 1000), max_size=80)


@settings(deadline=None)
@given(sizes=some_sizes)
def test_groups_hold_every_shard_once_in_order_and_none_is_larger_or_smaller_than_it_must_be(sizes: list[int]) -> None:
    shards = [ShardPlan(number, 0, "train", number, 0, 1, size) for number, size in enumerate(sizes)]
    divided = list(groups(shards))
    assert [shard for group in divided for shard in group] == shards
    for group in divided:
        assert 1 <= len(group) <= GROUP_SHARDS
        assert len(group) == 1 or sum(shard.num_bytes for shard in group) <= GROUP_BYTES
    for group, following in pairwise(divided):
        with_next = sum(shard.num_bytes for shard in group) + following[0].num_bytes
        assert len(group) == GROUP_SHARDS or with_next > GROUP_BYTES


@settings(deadline=None)
@given(num_bytes=st.integers(1, 10**9), shard_bytes=st.integers(10**7, 10**9))
def test_shards_of_a_skill_divide_the_hashes_and_have_about_the_size_that_was_asked_for(
    num_bytes: int, shard_bytes: int
) -> None:
    sizes = np.zeros((1, 2, 3), np.int64)
    sizes[0, 0] = (10**9, 10**9, num_bytes)  # the number of samples does not limit the number of shards
    shards = plan(sizes, shard_bytes)
    assert all(before.high == after.low for before, after in pairwise(shards))
    assert (shards[0].low, shards[-1].high) == (0, 2**64)
    spans = [shard.high - shard.low for shard in shards]
    assert max(spans) - min(spans) <= 1
    assert all(shard.num_bytes == num_bytes // len(shards) for shard in shards)
    assert len(shards) == 1 or 2 / 3 <= num_bytes / len(shards) / shard_bytes <= 3 / 2


@settings(deadline=None)
@given(num_samples=st.integers(0, 50), num_bytes=st.integers(1, 10**6), shard_bytes=st.integers(1, 10**6))
def test_a_skill_never_has_more_shards_than_samples(num_samples: int, num_bytes: int, shard_bytes: int) -> None:
    sizes = np.zeros((1, 2, 3), np.int64)
    sizes[0, 0] = (num_samples, num_samples, num_bytes)
    shards = plan(sizes, shard_bytes)
    assert bool(shards) == bool(num_samples) and len(shards) <= num_samples
