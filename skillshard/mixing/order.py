r"""The order of the mixed stream: pure functions of integers, the same on every platform.

Three steps turn weights into samples.

1. `quotas`: a round of n draws gives skill i either floor(w_i n) or ceil(w_i n) draws. The error carried over from earlier rounds
   decides which skills are rounded up, largest error first. Weights are fixed-point integers (units of 2**-40), so no float decides.
2. `interleave`: inside the round, each of the c_i draws of skill i gets a stratum of width n / c_i and a keyed random place in the
   stratum. So every skill is spread evenly over the round: among the first p draws, the number of draws of skill i differs from
   c_i p / n by less than 1 + k c_i / n, for k skills. docs/design/0002 has the proof.
3. `SkillOrder`: inside a skill, epoch e is a permutation keyed by (seed, skill, e). The permutation has three levels: the shards,
   the stripes of `STRIPE_ROWS` rows in a shard, and the rows of a stripe. So reads stay local, and any position is found without
   walking through the positions before.

Randomness is keyed by labels (`skillshard.keyed_random`), so the order does not depend on the version of NumPy or on the platform.

All functions are NumPy over whole rounds and take about 0.1 microseconds per draw.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from skillshard.keyed_random import keyed_words, permutation
from skillshard.memo import memoized

SCALE_BITS = 40
"""Number of fractional bits of a weight: weights are integers that sum to 2**40.

The product of a weight and the number of draws of a round, at most 2**62, fits into a signed integer of 64 bits.
"""
MAX_ROUND_DRAWS = 1 << 22
ENDLESS = int(np.iinfo(np.int64).max)
"""A number of draws larger than any stream."""
STRIPE_ROWS = 1024
"""Number of neighbouring rows of a shard that are drawn one after the other, in permuted order.

With texts of 1 kB, reads stay within about a megabyte of the shard, and a position is found by a permutation of 1,024 rows and not of
the whole shard. Another number gives another order, and so needs another `ORDER_VERSION`.
"""
ORDER_VERSION = "order/1"
"""Version of the order. It changes whenever a function of this module gives another order. A run refuses another version."""


def fixed_point(weights: Float[np.ndarray, " skill"]) -> Int[np.ndarray, " skill"]:
    """Convert weights to integers that sum to exactly 2**40. Round down, and give the rest to the largest remainders.

    Args:
        weights: Weights, non-negative, with a sum of 1 within 1e-6.

    >>> (fixed_point(np.array([0.25, 0.75])) / 2**40).tolist()
    [0.25, 0.75]
    """
    # Floats end here. Quotas, carry and order are integers from this point on, so that two machines with the same weights never
    # disagree about a draw, and `verify` can compare counts for equality.
    scaled = weights / weights.sum() * (1 << SCALE_BITS)
    fixed = scaled.astype(np.int64)
    # Rounding of the floats can make the sum too large as well as too small, so the correction has a sign. A stable sort breaks
    # ties by the number of the skill.
    missing = (1 << SCALE_BITS) - int(fixed.sum())
    step = 1 if missing >= 0 else -1
    order = (-step * (scaled - fixed)).argsort(kind="stable")
    per_skill, rest = divmod(abs(missing), len(order))
    fixed += step * per_skill
    fixed[order[:rest]] += step
    return fixed


def draw_weights(
    weights: Float[np.ndarray, " skill"], num_samples: Int[np.ndarray, " skill"], num_tokens: Int[np.ndarray, " skill"]
) -> Float[np.ndarray, " skill"]:
    r"""Compute the weights over draws that give each skill its weight in tokens.

    .. math:: p_i \propto w_i / m_i, \quad m_i = \text{tokens of skill } i / \text{samples of skill } i

    Over whole epochs the shares in tokens equal the weights exactly. Within a round the shares equal the weights in expectation,
    because the samples of a round are a random part of the skill.

    Args:
        weights: Shares in tokens, non-negative, sum 1.
        num_samples: Number of training samples of each skill, positive.
        num_tokens: Number of tokens of all training samples of each skill, positive.

    Example:
        Each skill gets half the tokens, and the samples of the second skill are three times as long:

        >>> draw_weights(np.array([0.5, 0.5]), np.array([10, 10]), np.array([100, 300])).tolist()
        [0.75, 0.25]
    """
    per_token = weights * num_samples / num_tokens
    return per_token / per_token.sum()


def quotas(
    fixed: Int[np.ndarray, " skill"], carry: Int[np.ndarray, " skill"], num_draws: int
) -> tuple[Int[np.ndarray, " skill"], Int[np.ndarray, " skill"]]:
    """Divide the draws of a round among the skills, and carry the rounding error over to the next round.

    Args:
        fixed: Weights in units of 2**-40, from `fixed_point`.
        carry: Draws owed to each skill by earlier rounds, in units of 2**-40 draws, with the sum 0.
        num_draws: Number of draws of the round, 1 to 2**22.

    Returns:
        Counts with the sum `num_draws`, and the new carry with the sum 0. Each count differs from weight x num_draws by less than 1.
        So a weight of 0 gets no draw, and an integer quota is met exactly.

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
    # The remaining draws go to the skills with the largest debts, the debts of earlier rounds included. Without the carry, a
    # skill with a weight of 1/3 in rounds of 1 draw might never be drawn. A remainder of 0 sorts last, so that a skill
    # with an integer quota, or with a weight of 0, gets no extra draw whatever the other rounds owe.
    owed = np.where(remainder > 0, -(carry + remainder), ENDLESS)
    counts[owed.argsort(kind="stable")[:left]] += 1
    return counts, carry + target - (counts << SCALE_BITS)


def limited_quotas(
    fixed: Int[np.ndarray, " skill"],
    carry: Int[np.ndarray, " skill"],
    num_draws: int,
    available: Int[np.ndarray, " skill"],
) -> tuple[Int[np.ndarray, " skill"], Int[np.ndarray, " skill"]]:
    """Divide the draws as `quotas` does, but give no skill more than its `available` draws.

    The other skills share the draws that a skill cannot take, in proportion to their weights.

    Args:
        fixed: Weights in units of 2**-40, as for `quotas`.
        carry: Draws owed to each skill by earlier rounds, as for `quotas`.
        num_draws: Number of draws of the round, 1 to 2**22.
        available: Maximal number of draws of each skill.

    Returns:
        Counts with the sum `num_draws`, or with the sum of the available draws if it is smaller, and the new carry.

    >>> counts, _ = limited_quotas(fixed_point(np.array([0.5, 0.25, 0.25])), np.zeros(3, np.int64), 8, np.array([1, 9, 9]))
    >>> counts.tolist()
    [1, 4, 3]
    """
    counts, new_carry = quotas(fixed, carry, num_draws)
    over = counts > available
    if not over.any():
        return counts, new_carry
    # An exhausted skill gets the rest of its samples, and the other skills divide the remaining draws by renormalized weights.
    # The carry begins anew at 0: the debt of an exhausted skill can never be paid, so the debts of the other skills no longer
    # sum to 0, and the bound on the carry rests on the sum 0. The recursion ends, because each level exhausts at least one more
    # skill.
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
    """Order the draws of a round so that each skill is spread evenly over the round and mixed with the other skills.

    Args:
        counts: Number of draws of each skill, non-negative, with a sum of at least 1.
        labels: Key of the shuffle.

    Returns:
        The skill (an index) and the slot of each draw. Slots number the draws skill by skill, and within a skill in the order in which
        the skill is drawn. So the slot minus the first slot of the skill is the number of the skill's earlier draws in this round.

    >>> skill, slot = interleave(np.array([4, 2]), "round", 0)
    >>> skill.tolist(), slot.tolist()
    ([0, 0, 1, 0, 1, 0], [0, 1, 4, 2, 5, 3])
    """
    num_draws = int(counts.sum())
    slots = np.arange(num_draws, dtype=np.uint64)
    first_slot, num = np.repeat(np.array([counts.cumsum() - counts, counts], np.uint64), counts, axis=1)
    # Draw j of the c draws of a skill gets the place (j + random) / c in [0, 1). One word of 64 bits holds the place and the
    # slot, so that a single sort of plain integers orders the draws and carries the slots along:
    # - 20 bits of randomness, the upper bits of a keyed word, give the place in the stratum: (j << 20 | jitter) < c * 2**20.
    # - Shifted by 20 more bits and divided by c, the place is a fraction of 40 bits. A round has at most 2**22 draws, so the number
    #   before the division has at most 22 + 20 + 20 = 62 bits.
    # - The slot takes the lowest 22 bits, and the place the 40 bits above. Equal places are ordered by their slots, so the keys are
    #   distinct and the order is unique.
    jitter = keyed_words(num_draws, *labels) >> np.uint64(44)
    strata = ((slots - first_slot) << np.uint64(20)) | jitter
    keys = (strata << np.uint64(20)) // num << np.uint64(22) | slots
    # The stable sort finds the rising runs of the skills and merges the runs, three times as fast as the default sort. The keys
    # are distinct, so every sort gives the same order.
    keys.sort(kind="stable")
    slot = (keys & np.uint64((1 << 22) - 1)).astype(np.int64)
    return np.repeat(np.arange(len(counts)), counts).take(slot), slot


Arranged = tuple[list[int], list[int]]
"""The parts in permuted order, and the end of each part. Lists, because looking up single numbers in an array is slower."""


class Stretch(NamedTuple):
    """The rows of neighbouring draws of a skill.

    Attributes:
        segments: A shard and some of its rows, a segment for each stripe. Neighbouring segments may lie in the same shard.
        place: Position of each draw among the rows of all segments. None: the rows have the order of the draws.
    """

    segments: list[tuple[int, Int[np.ndarray, " some"]]]
    place: Int[np.ndarray, " draw"] | None

    @property
    def num_rows(self) -> int:
        return sum(len(rows) for _, rows in self.segments)


class OpenEpoch(NamedTuple):
    """The epoch of a skill in which a run continued another run.

    Attributes:
        number: Number of the epoch.
        seed: Seed of the order of this epoch. Later epochs have the seed of the run.
        layers: Number of shards, and the number of draws of the epoch before these shards were known. The first layer has 0 draws. Each
            further layer stands for shards that were appended within the epoch.
        skips: Skipped samples of the epoch, in the order of the runs that skipped them.
    """

    number: int
    seed: int
    layers: tuple[tuple[int, int], ...]
    skips: "tuple[Skip, ...]" = ()


class Skip(NamedTuple):
    """Samples of an epoch that a run skipped at its beginning.

    Attributes:
        num_layers: Number of layers of the epoch that were known at this time.
        position: Number of draws of the epoch at this time, earlier skipped samples included.
        parts: First position and end of each skipped part of the epoch, rising, from `position` on.
    """

    num_layers: int
    position: int
    parts: tuple[tuple[int, int], ...]


@runtime_checkable
class Permuted(Protocol):
    """Samples of a skill in permuted order, each sample once."""

    @property
    def num_samples(self) -> int: ...

    def read(self, start: int, stop: int) -> Stretch:
        """Find the rows at the positions start .. stop - 1."""
        ...

    def shards(self, start: int, stop: int) -> list[int]:
        """List the shards that hold the positions start .. stop - 1, in the order in which the shards are read."""
        ...

    def offset(self, shard: int, row: int) -> int:
        """Return the position of a sample."""
        ...

    def tokens_before(
        self, position: int, shard_tokens: Int[np.ndarray, " shard"], rows: Callable[[int], np.ndarray]
    ) -> int:
        """Count the tokens at the positions 0 .. position - 1. The arguments are those of `SkillOrder.tokens_before`."""
        ...


@dataclass(frozen=True)
class Permutation:
    """A permutation of all samples of some neighbouring shards: of the shards, of the stripes of a shard, and of the rows of a stripe.

    Attributes:
        shard_rows: Number of samples of each shard, positive.
        first: Number of the first shard.
        shards_key: Key of the permutation of the shards.
        labels: Key of the permutations inside a shard.
    """

    shard_rows: Int[np.ndarray, " shard"]
    first: int
    shards_key: tuple[str | int, ...]
    labels: tuple[str | int, ...]
    _kept: dict[str, dict[tuple[int, ...], Any]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def num_samples(self) -> int:
        return int(self.shard_rows.sum())

    @cached_property
    def _shards(self) -> Arranged:
        """Positions of the shards in `shard_rows`, in permuted order, and the end of each shard."""
        return _arranged(self.shard_rows, *self.shards_key)

    def read(self, start: int, stop: int) -> Stretch:
        shards, shard_ends = self._shards
        segments = []
        while start < stop:
            place = bisect_right(shard_ends, start)
            shard, shard_end = shards[place], shard_ends[place]
            row = start - shard_end + int(self.shard_rows[shard])
            stripes, stripe_ends = self._stripes_of(shard)
            place = bisect_right(stripe_ends, row)
            begin, end = stripe_ends[place - 1] if place else 0, stripe_ends[place]
            taken = min(stop - start, end - row)
            inside = self._inside(shard, stripes[place], end - begin)
            rows = stripes[place] * STRIPE_ROWS + inside[row - begin : row - begin + taken]
            segments.append((self.first + shard, rows))
            start += taken
        return Stretch(segments, None)

    def shards(self, start: int, stop: int) -> list[int]:
        if start >= stop:
            return []
        shards, ends = self._shards
        return [self.first + shard for shard in shards[bisect_right(ends, start) : bisect_left(ends, stop) + 1]]

    def offset(self, shard: int, row: int) -> int:
        shards, shard_ends = self._shards
        own = shard - self.first
        begin = shard_ends[shards.index(own)] - int(self.shard_rows[own])
        stripe, inside = divmod(row, STRIPE_ROWS)
        stripes, stripe_ends = self._stripes_of(own)
        place = stripes.index(stripe)
        stripe_begin = stripe_ends[place - 1] if place else 0
        rows = self._inside(own, stripe, stripe_ends[place] - stripe_begin)
        return begin + stripe_begin + int(np.flatnonzero(rows == inside)[0])

    def tokens_before(
        self, position: int, shard_tokens: Int[np.ndarray, " shard"], rows: Callable[[int], np.ndarray]
    ) -> int:
        # Whole shards and whole stripes are summed. Only the permutation of the last stripe is computed.
        own_tokens = shard_tokens[self.first : self.first + len(self.shard_rows)]
        if position == self.num_samples:
            return int(own_tokens.sum())
        shards, shard_ends = self._shards
        place = bisect_right(shard_ends, position)
        shard, row = shards[place], position - (shard_ends[place] - int(self.shard_rows[shards[place]]))
        num_tokens = int(own_tokens[shards[:place]].sum())
        if not row:
            return num_tokens
        counts = rows(self.first + shard)
        stripes, stripe_ends = self._stripes_of(shard)
        place = bisect_right(stripe_ends, row)
        begin = stripe_ends[place - 1] if place else 0
        stripe_tokens = np.add.reduceat(counts, np.arange(0, len(counts), STRIPE_ROWS), dtype=np.int64)
        num_tokens += int(stripe_tokens[stripes[:place]].sum())
        inside = self._inside(shard, stripes[place], stripe_ends[place] - begin)[: row - begin]
        return num_tokens + int(counts[stripes[place] * STRIPE_ROWS + inside].sum(dtype=np.int64))

    def find_token(
        self, token: int, shard_tokens: Int[np.ndarray, " shard"], rows: Callable[[int], np.ndarray], *, extra: int
    ) -> tuple[int, int]:
        """Find the sample that holds a token. The arguments and the result are those of `SkillOrder.find_token`."""
        # The way down from the shards over the stripes to the rows reads the counts of a single shard.
        shards, shard_ends = self._shards
        own_tokens = shard_tokens[self.first : self.first + len(self.shard_rows)]
        place, before = _part_of(token, 0, own_tokens[shards] + extra * self.shard_rows[shards])
        shard = shards[place]
        position = shard_ends[place] - int(self.shard_rows[shard])
        counts = rows(self.first + shard)
        stripes, stripe_ends = self._stripes_of(shard)
        stripe_tokens = np.add.reduceat(counts, np.arange(0, len(counts), STRIPE_ROWS), dtype=np.int64)
        place, before = _part_of(token, before, stripe_tokens[stripes] + extra * np.diff(stripe_ends, prepend=0))
        begin = stripe_ends[place - 1] if place else 0
        inside = self._inside(shard, stripes[place], stripe_ends[place] - begin)
        row, before = _part_of(token, before, counts[stripes[place] * STRIPE_ROWS + inside].astype(np.int64) + extra)
        return position + begin + row, before

    def _stripes_of(self, shard: int) -> Arranged:
        def make() -> Arranged:
            return _arranged(_stripe_rows(int(self.shard_rows[shard])), *self.labels, self.first + shard)

        return self._keep("stripes", (shard,), make)

    def _inside(self, shard: int, stripe: int, num_rows: int) -> Int[np.ndarray, " row"]:
        key = (self.first + shard, stripe)
        return self._keep("rows", key, lambda: permutation(num_rows, *self.labels, *key))

    def _keep(self, level: str, key: tuple[int, ...], make: Callable[[], Any]) -> Any:
        """Return the last permutation of a level, or make the permutation."""
        # One permutation per level is enough: a reader moves from a stripe to the next stripe and does not come back.
        return memoized(self._kept.setdefault(level, {}), key, lambda _: make(), most=1)


@dataclass(frozen=True)
class Merged:
    """Samples in permuted order, into whose rest other samples were merged evenly.

    The order up to `position` is the order of `before`. From there on, among any t neighbouring draws from `position` on, floor(t M / (R + M))
    are of `added`, for R samples of the rest and M samples of `added`. Both keep their own orders.

    Attributes:
        before: Samples of the epoch before the others were known.
        position: Number of draws of the epoch at this time.
        added: The other samples.
        first_added: Number of the first shard of the other samples.
    """

    before: Permuted
    position: int
    added: Permuted
    first_added: int

    @cached_property
    def num_samples(self) -> int:
        return self.before.num_samples + self.added.num_samples

    def _num_added(self, position: int) -> int:
        """Return the number of added samples before a position."""
        drawn = position - self.position
        return max(0, drawn) * self.added.num_samples // max(1, self.num_samples - self.position)

    def _parts(self, start: int, stop: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the positions in `before` and the positions in `added` of the positions start .. stop - 1."""
        first, last = self._num_added(start), self._num_added(stop)
        return (start - first, stop - last), (first, last)

    def read(self, start: int, stop: int) -> Stretch:
        of_before, of_added = self._parts(start, stop)
        old, new = self.before.read(*of_before), self.added.read(*of_added)
        # The division of `_num_added` for all positions at once. The product of a whole position and M may need more than 64 bits,
        # so it is split at `begin`: from there on, at most 2**22 draws of a round times M.
        begin = max(start, self.position)
        after = np.arange(max(0, stop - begin) + 1)
        total = max(1, self.num_samples - self.position)
        _, rest = divmod((begin - self.position) * self.added.num_samples, total)
        is_added = np.zeros(stop - start, bool)
        is_added[begin - start :] = np.diff((rest + after * self.added.num_samples) // total) > 0
        place = np.empty(stop - start, np.int64)
        place[~is_added] = _places(old)
        place[is_added] = old.num_rows + _places(new)
        return Stretch(old.segments + new.segments, place)

    def shards(self, start: int, stop: int) -> list[int]:
        of_before, of_added = self._parts(start, stop)
        return self.before.shards(*of_before) + self.added.shards(*of_added)

    def offset(self, shard: int, row: int) -> int:
        total, num_added = self.num_samples - self.position, self.added.num_samples
        if shard >= self.first_added:
            # The first t with floor((t + 1) M / N) > q, for the added sample q.
            return self.position - (-(self.added.offset(shard, row) + 1) * total // num_added) - 1
        place = self.before.offset(shard, row) - self.position
        # Among t draws, t - floor(t M / N) = ceil(t R / N) are of the rest. The first t with ceil((t + 1) R / N) > i, for the sample i of the rest.
        return self.position + (place if place < 0 else place * total // (total - num_added))

    def tokens_before(
        self, position: int, shard_tokens: Int[np.ndarray, " shard"], rows: Callable[[int], np.ndarray]
    ) -> int:
        (_, of_before), (_, of_added) = self._parts(0, position)
        tokens = self.before.tokens_before(of_before, shard_tokens, rows)
        return tokens + self.added.tokens_before(of_added, shard_tokens, rows)


@dataclass(frozen=True)
class Skipped:
    """Samples in permuted order, some of which a run skipped at a position.

    The skipped samples have the next positions, so that they count as drawn. The other samples follow in their order. All samples keep one
    position, so an epoch stays a permutation of its samples.

    Attributes:
        before: Samples of the epoch in the order without the skip.
        position: Number of draws of the epoch at the time of the skip.
        parts: First position and end of each skipped part in the order without the skip, rising and disjoint, from `position` on.
    """

    before: Permuted
    position: int
    parts: tuple[tuple[int, int], ...]

    @property
    def num_samples(self) -> int:
        return self.before.num_samples

    @cached_property
    def _stretches(self) -> list[tuple[int, int]]:
        """First position and end in `before` of the stretches of this order, one stretch after the other."""
        others = zip([self.position, *(end for _, end in self.parts)], [first for first, _ in self.parts], strict=False)
        return [(0, self.position), *self.parts, *others, (self.parts[-1][1], self.num_samples)]

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the stretches of `before` at the positions start .. stop - 1."""
        begin = 0
        for first, end in self._stretches:
            low, high = max(start, begin), min(stop, begin + end - first)
            if low < high:
                yield first + low - begin, first + high - begin
            begin += end - first

    def read(self, start: int, stop: int) -> Stretch:
        return _joined(self.before.read(*part) for part in self._parts(start, stop))

    def shards(self, start: int, stop: int) -> list[int]:
        return [shard for part in self._parts(start, stop) for shard in self.before.shards(*part)]

    def offset(self, shard: int, row: int) -> int:
        place, begin = self.before.offset(shard, row), 0
        for first, end in self._stretches:
            if first <= place < end:
                return begin + place - first
            begin += end - first
        raise AssertionError(f"position {place} is in no stretch of {self._stretches}")

    def tokens_before(
        self, position: int, shard_tokens: Int[np.ndarray, " shard"], rows: Callable[[int], np.ndarray]
    ) -> int:
        before = self.before.tokens_before
        return sum(
            before(end, shard_tokens, rows) - before(first, shard_tokens, rows)
            for first, end in self._parts(0, position)
        )


@dataclass(frozen=True)
class SkillOrder:
    """The endless order of a skill's samples: epoch after epoch, each epoch a permutation of all samples.

    Attributes:
        shard_rows: Number of samples of each shard, positive.
        labels: Key of the permutations: seed and skill.
        opened: Epoch in which the run continued another run. The epochs before are unknown. None: a run from the beginning.
    """

    shard_rows: Int[np.ndarray, " shard"]
    labels: tuple[str | int, ...]
    opened: OpenEpoch | None = None
    _kept: dict[int, Permuted] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def num_samples(self) -> int:
        return int(self.shard_rows.sum())

    def read(self, start: int, stop: int) -> Stretch:
        """Find the draws start .. stop - 1 of this skill, counted from its first draw of the run."""
        return _joined(self._epoch(epoch).read(first, last) for epoch, first, last in self._parts(start, stop))

    def offset(self, epoch: int, shard: int, row: int) -> int:
        """Return the position of a sample in an epoch: the inverse of `read`.

        Args:
            epoch: Number of the epoch.
            shard: Index of the shard.
            row: Row in the shard.
        """
        return self._epoch(epoch).offset(shard, row)

    def tokens_before(
        self, position: int, shard_tokens: Int[np.ndarray, " shard"], rows: Callable[[int], np.ndarray]
    ) -> int:
        """Count the tokens of this skill's draws 0 .. position - 1 without walking through the draws.

        The sum adds whole epochs, whole shards and whole stripes. Only the permutation of the last stripe is computed.

        Args:
            position: Number of draws of this skill.
            shard_tokens: Number of tokens of each shard.
            rows: Function from a shard to the number of tokens of each of its rows.
        """
        epoch, offset = divmod(position, self.num_samples)
        num_tokens = epoch * int(shard_tokens.sum())
        return num_tokens + (self._epoch(epoch).tokens_before(offset, shard_tokens, rows) if offset else 0)

    def find_token(
        self,
        epoch: int,
        token: int,
        shard_tokens: Int[np.ndarray, " shard"],
        rows: Callable[[int], np.ndarray],
        *,
        extra: int,
    ) -> tuple[int, int]:
        """Find the sample that holds a token of an epoch, without walking through the samples before.

        Args:
            epoch: Number of the epoch.
            token: Token of the epoch, below the number of its tokens, the extra tokens included.
            shard_tokens, rows: As for `tokens_before`.
            extra: Number of tokens after each sample that the counts leave out: 1 with a separator, else 0.

        Returns:
            The position of the sample in the epoch, and the number of tokens of the epoch before the sample.
        """
        samples = self._epoch(epoch)
        # A run of blocks does not continue another run, so no shards were appended within the epoch.
        assert isinstance(samples, Permutation)
        return samples.find_token(token, shard_tokens, rows, extra=extra)

    def shards(self, start: int, stop: int) -> list[int]:
        """List the shards that hold the draws start .. stop - 1 of this skill, in the order in which the shards are read."""
        return [shard for epoch, *part in self._parts(start, stop) for shard in self._epoch(epoch).shards(*part)]

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Split draws at the ends of epochs. Yield the epoch, and the first position and the end in the epoch."""
        while start < stop:
            epoch, offset = divmod(start, self.num_samples)
            taken = min(stop - start, self.num_samples - offset)
            yield epoch, offset, offset + taken
            start += taken

    def _epoch(self, number: int) -> Permuted:
        # Two epochs, because a reader looks ahead into the next epoch.
        return memoized(self._kept, number, self._make_epoch, most=2)

    def _make_epoch(self, number: int) -> Permuted:
        if self.opened is None or number != self.opened.number:
            labels = (*self.labels, number)
            return Permutation(self.shard_rows, 0, labels, labels)
        labels = (self.opened.seed, *self.labels[1:], number)
        (known, _), *appended = self.opened.layers
        samples: Permuted = Permutation(self.shard_rows[:known], 0, labels, labels)
        samples = self._skipped(samples, 1)
        for num_layers, (num_shards, position) in enumerate(appended, start=2):
            # The stripes and rows of a shard are keyed by the number of the shard. Only the permutation of the shards needs another key.
            key = (*labels, "appended", known)
            added = Permutation(self.shard_rows[known:num_shards], known, key, labels)
            samples, known = self._skipped(Merged(samples, position, added, known), num_layers), num_shards
        return samples

    def _skipped(self, samples: Permuted, num_layers: int) -> Permuted:
        """Return the open epoch after the skips that knew a number of layers."""
        assert self.opened is not None
        for skip in self.opened.skips:
            if skip.num_layers == num_layers:
                samples = Skipped(samples, skip.position, skip.parts)
        return samples


def _part_of(token: int, before: int, sizes: Int[np.ndarray, " part"]) -> tuple[int, int]:
    """Return the part that holds a token, and the number of tokens before the part. The parts begin after `before` tokens."""
    ends = before + np.cumsum(sizes)
    # With side="right" a part without tokens is passed over.
    part = int(np.searchsorted(ends, token, side="right"))
    return part, int(ends[part] - sizes[part])


def _joined(parts: Iterable[Stretch]) -> Stretch:
    """Join stretches that follow one another."""
    segments, places, num_rows = [], list[np.ndarray](), 0
    is_in_order = True
    for part in parts:
        is_in_order &= part.place is None
        places.append(num_rows + _places(part))
        segments += part.segments
        num_rows += part.num_rows
    return Stretch(segments, None if is_in_order else np.concatenate(places))


def _places(stretch: Stretch) -> Int[np.ndarray, " draw"]:
    return np.arange(stretch.num_rows) if stretch.place is None else stretch.place


def _stripe_rows(num_rows: int) -> Int[np.ndarray, " stripe"]:
    """Compute the number of rows of each stripe of a shard. Only the last stripe may have fewer than `STRIPE_ROWS` rows."""
    sizes = np.full(-(-num_rows // STRIPE_ROWS), STRIPE_ROWS)
    sizes[-1] = num_rows - STRIPE_ROWS * (len(sizes) - 1)
    return sizes


def _arranged(sizes: Int[np.ndarray, " part"], *labels: str | int) -> Arranged:
    """Permute parts. Return the permutation, and the end of each part in the permuted order."""
    order = permutation(len(sizes), *labels)
    return order.tolist(), np.cumsum(sizes[order]).tolist()
