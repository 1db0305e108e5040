"""Which shards there are: a pure function of the sizes of the skills.

A sample's place is decided by one number, the 64-bit hash of its id. Within a skill the lowest hashes are the holdout, the
others are train, and shard j of n takes the j-th n-th of its split's range.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from skillshard.execution import Record
from skillshard.shards.manifest import SPLITS, Split

HASH_SPACE = 1 << 64
GROUP_BYTES = 256 << 20
GROUP_SHARDS = 16


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be written: a range of hashes of one skill.

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


def plan(sorted_parts: Sequence[Record], num_skills: int, shard_bytes: int, holdout: float) -> list[ShardPlan]:
    """Which shards there are: pure, from the sizes that stage 1 found."""
    shards: list[ShardPlan] = []
    for skill in range(num_skills):
        found = [part["skills"][str(skill)] for part in sorted_parts if str(skill) in part["skills"]]
        num_bytes = sum(sizes[1] for sizes in found)
        cut = holdout_cut(
            [sizes[0] for sizes in found], [sizes[2] for sizes in found], [sizes[3] for sizes in found], holdout
        )
        for split, low, high in zip(SPLITS, (cut, 0), (HASH_SPACE, cut), strict=True):
            expected = num_bytes * (high - low) // HASH_SPACE
            num = max(1, round(expected / shard_bytes)) if high > low else 0
            bounds = [low + (high - low) * at // num for at in range(num)] + [high]
            shards += [
                ShardPlan(len(shards) + at, skill, split, at, bounds[at], bounds[at + 1], expected // num)
                for at in range(num)
            ]
    return shards


def holdout_cut(counts: Sequence[int], lowest: Sequence[int], highest: Sequence[int], holdout: float) -> int:
    """The hash below which samples of a skill are held out.

    >>> holdout_cut([3], [10], [1 << 63], 0.25) == 1 << 62
    True
    >>> holdout_cut([3], [1 << 63], [(1 << 63) + 9], 0.25) == (1 << 63) + 1   # at least one
    True
    >>> holdout_cut([1], [10], [10], 0.25)                                    # a single sample is for training
    0
    """
    if holdout == 0 or sum(counts) < 2:
        return 0
    return min(max(int(holdout * HASH_SPACE), min(lowest) + 1), max(highest))


def groups(shards: Sequence[ShardPlan]) -> Iterator[list[ShardPlan]]:
    """Neighbouring shards that one unit writes: at most `GROUP_SHARDS`, of about `GROUP_BYTES` together."""
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
