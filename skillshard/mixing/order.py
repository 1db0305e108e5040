r"""The order of the mixed stream: pure functions of integers, the same on every platform.

Three steps turn weights into samples.

1. `quotas`: a round of n draws gives skill i either floor(w_i n) or ceil(w_i n) of them; who is rounded up is decided
   by the error carried over from the rounds before, largest first. Weights are fixed-point integers
   (units of 2**-40), so no float decides.
2. `interleave`: inside the round, skill i's c_i draws each get a stratum of width n / c_i and a keyed random place in it.
   So every skill is spread evenly over the round: among the first p draws, the number of skill i differs from
   c_i p / n by less than 1 + k c_i / n (k skills; proof in docs/design/0002).
3. `SkillOrder`: inside a skill, epoch e is a permutation keyed by (seed, skill, e): the shards are permuted, then stripes of
   `STRIPE_ROWS` rows in a shard, then the rows of a stripe. Reading stays local, and any position is found without walking
   there.

Randomness is keyed by labels (`skillshard.keyed_random`), and so is stable over versions of NumPy and over platforms.

All is NumPy over whole rounds: about 0.1 microseconds per draw.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from skillshard.kept import kept
from skillshard.keyed_random import keyed_words, permutation

SCALE_BITS = 40
"""Weights are integers that sum to 2**40; a round may have up to 2**22 draws without overflow of 64 bits."""
MAX_ROUND_DRAWS = 1 << 22
ENDLESS = int(np.iinfo(np.int64).max)
"""More draws than any stream gives."""
STRIPE_ROWS = 1024
ORDER_VERSION = "order/1"
"""Changes whenever any function here gives another order; runs record it and refuse another one."""


def fixed_point(weights: Float[np.ndarray, " skill"]) -> Int[np.ndarray, " skill"]:
    """Weights as integers that sum to 2**40 exactly: rounded down, and the rest to the largest remainders.

    Args:
        weights: non-negative, sum 1 within 1e-6.

    >>> (fixed_point(np.array([0.25, 0.75])) / 2**40).tolist()
    [0.25, 0.75]
    """
    scaled = weights / weights.sum() * (1 << SCALE_BITS)
    fixed = scaled.astype(np.int64)
    missing = (1 << SCALE_BITS) - int(fixed.sum())
    step = 1 if missing >= 0 else -1
    order = (-step * (scaled - fixed)).argsort(kind="stable")
    each, some = divmod(abs(missing), len(order))
    fixed += step * each
    fixed[order[:some]] += step
    return fixed


def draw_weights(
    weights: Float[np.ndarray, " skill"], num_samples: Int[np.ndarray, " skill"], num_tokens: Int[np.ndarray, " skill"]
) -> Float[np.ndarray, " skill"]:
    r"""Weights over draws that give each skill its weight in tokens.

    .. math:: p_i \propto w_i / m_i, \quad m_i = \text{tokens of skill } i / \text{samples of skill } i

    Over whole epochs the shares in tokens are the weights exactly; within a round they are so in expectation, since its samples are
    a random part of the skill.

    Args:
        weights: shares in tokens, non-negative, sum 1.
        num_tokens: tokens of all training samples of each skill, positive.

    Example:
        Half the tokens each, where samples of the second are three times as long:

        >>> draw_weights(np.array([0.5, 0.5]), np.array([10, 10]), np.array([100, 300])).tolist()
        [0.75, 0.25]
    """
    per_token = weights * num_samples / num_tokens
    return per_token / per_token.sum()


def quotas(
    fixed: Int[np.ndarray, " skill"], carry: Int[np.ndarray, " skill"], num_draws: int
) -> tuple[Int[np.ndarray, " skill"], Int[np.ndarray, " skill"]]:
    """How many of a round's draws each skill gets, and the error that is carried over.

    Args:
        fixed: weights in units of 2**-40, from `fixed_point`.
        carry: draws owed to each skill by earlier rounds, in units of 2**-40 draws; sum 0.
        num_draws: draws in this round, 1 to 2**22.

    Returns:
        Counts that sum to `num_draws`, each within one of weight x num_draws (a weight of 0 gets none, a whole quota is met
        exactly); and the new carry, sum 0.

    >>> counts, carry = quotas(fixed_point(np.array([0.5, 0.25, 0.25])), np.zeros(3, np.int64), 2)
    >>> counts.tolist(), (carry / 2**40).tolist()
    ([1, 1, 0], [0.0, -0.5, 0.5])
    >>> quotas(fixed_point(np.array([0.5, 0.25, 0.25])), carry, 2)[0].tolist()
    [1, 0, 1]
    """
    target = fixed * num_draws
    counts = target >> SCALE_BITS
    remainder = target - (counts << SCALE_BITS)
    left = num_draws - int(counts.sum())
    owed = np.where(remainder > 0, -(carry + remainder), ENDLESS)
    counts[owed.argsort(kind="stable")[:left]] += 1
    return counts, carry + target - (counts << SCALE_BITS)


def limited_quotas(
    fixed: Int[np.ndarray, " skill"],
    carry: Int[np.ndarray, " skill"],
    num_draws: int,
    available: Int[np.ndarray, " skill"],
) -> tuple[Int[np.ndarray, " skill"], Int[np.ndarray, " skill"]]:
    """`quotas`, but no skill gets more than is `available`; what it cannot take goes to the others by their weights.

    Returns:
        Counts that sum to `num_draws`, or to all that is available where that is less; and the new carry.

    >>> counts, _ = limited_quotas(fixed_point(np.array([0.5, 0.25, 0.25])), np.zeros(3, np.int64), 8, np.array([1, 9, 9]))
    >>> counts.tolist()
    [1, 4, 3]
    """
    counts, new_carry = quotas(fixed, carry, num_draws)
    over = counts > available
    if not over.any():
        return counts, new_carry
    counts = np.where(over, available, 0)
    left, open_weights = num_draws - int(counts.sum()), np.where(over, 0, fixed)
    carry = np.zeros_like(carry)
    if left and open_weights.any():
        more, carry = limited_quotas(
            fixed_point(open_weights.astype(np.float64)), carry, left, np.where(over, 0, available)
        )
        counts = counts + more
    return counts, carry


def interleave(
    counts: Int[np.ndarray, " skill"], *labels: str | int
) -> tuple[Int[np.ndarray, " draw"], Int[np.ndarray, " draw"]]:
    """Which skill each draw of a round is of, spread evenly and mixed.

    Args:
        counts: draws of each skill, non-negative, sum at least 1.
        labels: the key of the shuffle.

    Returns:
        For each draw its skill (an index), and its slot: draws in the order of their skills, then in the order in which
        the skill is drawn, so that slot - (first slot of the skill) counts the skill's earlier draws in this round.

    >>> skill, slot = interleave(np.array([4, 2]), "round", 0)
    >>> skill.tolist(), slot.tolist()
    ([0, 0, 1, 0, 1, 0], [0, 1, 4, 2, 5, 3])
    """
    num_draws = int(counts.sum())
    slots = np.arange(num_draws, dtype=np.uint64)
    drawn, num = np.repeat(np.array([counts.cumsum() - counts, counts], np.uint64), counts, axis=1)
    jitter = keyed_words(num_draws, *labels) >> np.uint64(44)
    strata = ((slots - drawn) << np.uint64(20)) | jitter
    keys = (strata << np.uint64(20)) // num << np.uint64(22) | slots
    keys.sort(kind="stable")  # finds the skills' rising runs and merges them, three times as fast; keys are distinct
    slot = (keys & np.uint64((1 << 22) - 1)).astype(np.int64)
    return np.repeat(np.arange(len(counts)), counts).take(slot), slot


Arranged = tuple[list[int], list[int]]
"""Parts in their order, and where each ends: lists, since single numbers are looked up."""


@dataclass(frozen=True)
class SkillOrder:
    """The endless order of one skill's samples: epoch after epoch, each a permutation of all of them.

    Attributes:
        shard_rows: number of samples of each shard, all positive.
        labels: what keys the permutations: seed and skill.
    """

    shard_rows: Int[np.ndarray, " shard"]
    labels: tuple[str | int, ...]
    _kept: dict[str, dict[tuple[int, ...], Any]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def num_samples(self) -> int:
        return int(self.shard_rows.sum())

    def segments(self, start: int, stop: int) -> Iterator[tuple[int, Int[np.ndarray, " some"]]]:
        """The draws start..stop-1 of this skill (counted from its first draw of the run): shard, and rows of that shard.

        Neighbouring segments may be of one shard.
        """
        while start < stop:
            epoch, offset = divmod(start, self.num_samples)
            shards, shard_ends = self._shards_of(epoch)
            at = bisect_right(shard_ends, offset)
            shard, shard_end = shards[at], shard_ends[at]
            row = offset - shard_end + int(self.shard_rows[shard])
            stripes, stripe_ends = self._stripes_of(epoch, shard)
            at = bisect_right(stripe_ends, row)
            begin, end = stripe_ends[at - 1] if at else 0, stripe_ends[at]
            taken = min(stop - start, end - row)
            inside = self._inside(epoch, shard, stripes[at], end - begin)
            yield shard, stripes[at] * STRIPE_ROWS + inside[row - begin : row - begin + taken]
            start += taken

    def tokens_before(
        self, position: int, shard_tokens: Int[np.ndarray, " shard"], rows: Callable[[int], np.ndarray]
    ) -> int:
        """Tokens of this skill's draws 0 .. position - 1, found without walking there.

        Whole epochs, whole shards and whole stripes are added up; only one stripe's permutation is looked at.

        Args:
            shard_tokens: tokens of each shard.
            rows: shard -> tokens of each of its rows.
        """
        epoch, offset = divmod(position, self.num_samples)
        found = epoch * int(shard_tokens.sum())
        if not offset:
            return found
        shards, shard_ends = self._shards_of(epoch)
        at = bisect_right(shard_ends, offset)
        shard, row = shards[at], offset - (shard_ends[at] - int(self.shard_rows[shards[at]]))
        found += int(shard_tokens[shards[:at]].sum())
        if not row:
            return found
        counts = rows(shard)
        stripes, stripe_ends = self._stripes_of(epoch, shard)
        at = bisect_right(stripe_ends, row)
        begin = stripe_ends[at - 1] if at else 0
        of_stripe = np.add.reduceat(counts, np.arange(0, len(counts), STRIPE_ROWS), dtype=np.int64)
        found += int(of_stripe[stripes[:at]].sum())
        inside = self._inside(epoch, shard, stripes[at], stripe_ends[at] - begin)[: row - begin]
        return found + int(counts[stripes[at] * STRIPE_ROWS + inside].sum(dtype=np.int64))

    def shards(self, start: int, stop: int) -> list[int]:
        """The shards that hold the draws start..stop-1 of this skill, in the order in which they are read."""
        found: list[int] = []
        while start < stop:
            epoch, offset = divmod(start, self.num_samples)
            shards, ends = self._shards_of(epoch)
            first = bisect_right(ends, offset)
            last = bisect_left(ends, min(offset + stop - start, self.num_samples))
            found += shards[first : last + 1]
            start += ends[last] - offset
        return found

    def _shards_of(self, epoch: int) -> Arranged:
        return self._keep("shards", (epoch,), lambda: _arranged(self.shard_rows, *self.labels, epoch))

    def _stripes_of(self, epoch: int, shard: int) -> Arranged:
        def make() -> Arranged:
            return _arranged(_stripe_rows(int(self.shard_rows[shard])), *self.labels, epoch, shard)

        return self._keep("stripes", (epoch, shard), make)

    def _inside(self, epoch: int, shard: int, stripe: int, num_rows: int) -> Int[np.ndarray, " row"]:
        key = (epoch, shard, stripe)
        return self._keep("rows", key, lambda: permutation(num_rows, *self.labels, *key))

    def _keep(self, level: str, key: tuple[int, ...], make: Callable[[], Any]) -> Any:
        """What was made last at a level: a reader moves from one stripe to the next, and comes back to none."""
        return kept(self._kept.setdefault(level, {}), key, lambda _: make(), most=1)


def _stripe_rows(num_rows: int) -> Int[np.ndarray, " stripe"]:
    """Rows of each stripe of a shard: all full but the last."""
    sizes = np.full(-(-num_rows // STRIPE_ROWS), STRIPE_ROWS)
    sizes[-1] = num_rows - STRIPE_ROWS * (len(sizes) - 1)
    return sizes


def _arranged(sizes: Int[np.ndarray, " part"], *labels: str | int) -> Arranged:
    """A permutation of some parts, and where each ends once they stand in that order."""
    order = permutation(len(sizes), *labels)
    return order.tolist(), np.cumsum(sizes[order]).tolist()
