"""Plan the shards: a pure function of the sizes of the skills.

The hash of the text decides the side of a sample (split.py). The 64-bit hash of the id decides the place on that side: shard j of
n takes the j-th n-th of all hashes. Copies of a text have different ids, so copies do not stand together in the stream.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from skillshard.hash_ranges import hash_bounds
from skillshard.shards.manifest import SPLITS, Split
from skillshard.shards.split import BYTES, SAMPLES, Sizes

# A task holds the samples of its group in memory. A group of several shards reads the index of each scratch file once.
GROUP_BYTES = 256 << 20
"""Bytes of the shards that one task writes, about."""
GROUP_SHARDS = 16
"""Largest number of shards that one task writes."""


@dataclass(frozen=True)
class ShardPlan:
    """Shard to be written: the samples of a skill and split in a range of id hashes.

    Attributes:
        position: Number in the whole set. Every key of the shard begins with the position.
        skill: Index of the skill.
        split: "train" or "holdout".
        number: Number within the skill and split, for the name of the file.
        low: First hash of the range.
        high: End of the range, exclusive.
        num_bytes: Expected size of the tar.
    """

    position: int
    skill: int
    split: Split
    number: int
    low: int
    high: int
    num_bytes: int


def plan(
    sizes: Sizes, shard_bytes: int, *, first_position: int = 0, first_numbers: Mapping[tuple[int, Split], int] = {}
) -> list[ShardPlan]:
    """Return the shards of all skills, from the number of bytes of each skill and split.

    Args:
        sizes: Sizes of each skill and split.
        shard_bytes: Size of a shard to aim at.
        first_position: Position of the first shard in the whole set.
        first_numbers: Skill and split -> number of its first shard. 0 for all others.

    >>> import numpy as np
    >>> sizes = np.zeros((1, 2, 3), np.int64)
    >>> sizes[0] = [[90, 100, 204_800], [2, 3, 6_144]]
    >>> [(shard.split, shard.number, shard.num_bytes) for shard in plan(sizes, 100_000)]
    [('train', 0, 102400), ('train', 1, 102400), ('holdout', 0, 6144)]
    """
    shards: list[ShardPlan] = []
    for skill, skill_sizes in enumerate(sizes):
        for split, size in zip(SPLITS, skill_sizes, strict=True):
            num_bytes = int(size[BYTES])
            # More shards than samples would be empty shards.
            num_shards = min(int(size[SAMPLES]), max(1, round(num_bytes / shard_bytes)))
            bounds = hash_bounds(num_shards) if num_shards else []
            position, first = first_position + len(shards), first_numbers.get((skill, split), 0)
            shards += [
                ShardPlan(position + number, skill, split, first + number, low, high, num_bytes // num_shards)
                for number, (low, high) in enumerate(pairwise(bounds))
            ]
    return shards


def groups(shards: Sequence[ShardPlan]) -> Iterator[list[ShardPlan]]:
    """Yield groups of neighbouring shards, each for one task: at most `GROUP_SHARDS` with about `GROUP_BYTES` together."""
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
