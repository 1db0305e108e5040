"""Which shards there are: a pure function of the sizes of the skills.

A sample's side is decided by the hash of its text (split.py), its place on that side by the 64-bit hash of its id: shard j of n takes the
j-th n-th of all hashes. So copies, which have one side and many ids, do not stand together in the stream.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from skillshard.hash_ranges import hash_bounds
from skillshard.shards.manifest import SPLITS, Split
from skillshard.shards.split import BYTES, SAMPLES, Sizes

GROUP_BYTES = 256 << 20
GROUP_SHARDS = 16


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be written: a range of hashes of ids of one skill and split.

    Attributes:
        position: number in the whole set; part of every key.
        skill: index of the skill.
        number: number within skill and split; names the file.
        low, high: the range of hashes, high exclusive.
        num_bytes: expected size.
    """

    position: int
    skill: int
    split: Split
    number: int
    low: int
    high: int
    num_bytes: int


def plan(sizes: Sizes, shard_bytes: int) -> list[ShardPlan]:
    """Which shards there are: pure, from what the skills hold of each split.

    >>> import numpy as np
    >>> sizes = np.zeros((1, 2, 3), np.int64)
    >>> sizes[0] = [[90, 100, 204_800], [2, 3, 6_144]]
    >>> [(shard.split, shard.number, shard.num_bytes) for shard in plan(sizes, 100_000)]
    [('train', 0, 102400), ('train', 1, 102400), ('holdout', 0, 6144)]
    """
    shards: list[ShardPlan] = []
    for skill, of_skill in enumerate(sizes):
        for split, size in zip(SPLITS, of_skill, strict=True):
            num_bytes = int(size[BYTES])
            num = max(1, round(num_bytes / shard_bytes)) if size[SAMPLES] else 0
            bounds = hash_bounds(num) if num else []
            shards += [
                ShardPlan(len(shards) + number, skill, split, number, low, high, num_bytes // num)
                for number, (low, high) in enumerate(pairwise(bounds))
            ]
    return shards


def groups(shards: Sequence[ShardPlan]) -> Iterator[list[ShardPlan]]:
    """Neighbouring shards that one task writes: at most `GROUP_SHARDS`, of about `GROUP_BYTES` together."""
    group: list[ShardPlan] = []
    num_bytes = 0
    for shard in shards:
        if group and (num_bytes + shard.num_bytes > GROUP_BYTES or len(group) == GROUP_SHARDS):
            yield group
            group, num_bytes = [], 0
        group.append(shard)
        num_bytes += shard.num_bytes
    if group:
        yield group
