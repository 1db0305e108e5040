"""The endless order of the samples of a skill: epoch after epoch, each epoch a permutation of all samples.

`Permutation` is an epoch of a run from the beginning. A run that continues another run changes its open epoch: `Merged` has appended
samples, and in `Skipped` some samples count as drawn. All answer in a few divisions, so any position is found without the positions before.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from skillshard.keyed_random import permutation
from skillshard.memo import memoized

STRIPE_ROWS = 1024
"""Number of neighbouring rows of a shard that are drawn one after the other, in permuted order.

With texts of 1 kB, reads stay within about a megabyte of the shard, and a position is found by a permutation of 1,024 rows and not of
the whole shard. Another number gives another order, and so needs another `ORDER_VERSION`.
"""
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
        num_skipped: Number of samples of a later epoch that were skipped before the epoch began. These samples have the first positions of the epoch.
            0 for the epoch in which the run began.
    """

    number: int
    seed: int
    layers: tuple[tuple[int, int], ...]
    skips: "tuple[Skip, ...]" = ()
    num_skipped: int = 0


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


def place_of(draw: int, num_samples: int, ahead: Sequence[OpenEpoch] = ()) -> tuple[int, int]:
    """Return the epoch and the position of a draw of a skill.

    Draws count the skipped samples of later epochs from the beginning of the run on. The positions of these samples are passed over where
    their epoch begins.

    Args:
        draw: Number of the draw, over all epochs, not before the run.
        num_samples: Number of samples of an epoch.
        ahead: Later epochs with skipped samples, rising.

    Example:
        Epoch 1 has 3 skipped samples, which count as drawn when the run begins at draw 6 + 3 in the middle of epoch 0:

        >>> ahead = [OpenEpoch(1, 0, ((1, 0),), (), 3)]
        >>> [place_of(draw, 10, ahead) for draw in (9, 12, 13, 19, 20)]
        [(0, 6), (0, 9), (1, 3), (1, 9), (2, 0)]
    """
    place = draw - sum(epoch.num_skipped for epoch in ahead)
    for epoch in ahead:
        if place < epoch.number * num_samples:
            break
        place += epoch.num_skipped
    return divmod(place, num_samples)


def draw_of(epoch: int, position: int, num_samples: int, ahead: Sequence[OpenEpoch] = ()) -> int | None:
    """Return the draw of a position of an epoch: the inverse of `place_of`. None for a sample that was skipped before the epoch began.

    Example:
        >>> ahead = [OpenEpoch(1, 0, ((1, 0),), (), 3)]
        >>> [draw_of(*place, 10, ahead) for place in ((0, 6), (1, 2), (1, 3), (2, 0))]
        [9, None, 13, 20]
    """
    if any(own.number == epoch and position < own.num_skipped for own in ahead):
        return None
    return epoch * num_samples + position + sum(own.num_skipped for own in ahead if own.number > epoch)


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

    The skipped samples have the next positions, and count as drawn. The other samples follow in their order. All samples keep one
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
        ahead: Later epochs with samples that were skipped before the run began, rising.
    """

    shard_rows: Int[np.ndarray, " shard"]
    labels: tuple[str | int, ...]
    opened: OpenEpoch | None = None
    ahead: tuple[OpenEpoch, ...] = ()
    _kept: dict[int, Permuted] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def num_samples(self) -> int:
        return int(self.shard_rows.sum())

    def read(self, start: int, stop: int) -> Stretch:
        """Find the draws start .. stop - 1 of this skill, counted from its first draw of the run."""
        return _joined(self._epoch(epoch).read(first, last) for epoch, first, last in self._parts(start, stop))

    def place_of(self, draw: int) -> tuple[int, int]:
        """Return the epoch and the position of a draw of this skill, as `place_of` does."""
        return place_of(draw, self.num_samples, self.ahead)

    def draw_of(self, epoch: int, position: int) -> int | None:
        """Return the draw of a position of an epoch of this skill, as `draw_of` does."""
        return draw_of(epoch, position, self.num_samples, self.ahead)

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
        epoch, offset = self.place_of(position)
        parts = [(epoch, offset), *((own.number, own.num_skipped) for own in self.ahead if own.number > epoch)]
        num_tokens = epoch * int(shard_tokens.sum())
        return num_tokens + sum(
            self._epoch(number).tokens_before(end, shard_tokens, rows) for number, end in parts if end
        )

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
        if isinstance(samples, Permutation):
            return samples.find_token(token, shard_tokens, rows, extra=extra)

        def end_of(num: int) -> int:
            return samples.tokens_before(num, shard_tokens, rows) + extra * num

        # An open epoch with appended or skipped samples. The search asks for the tokens before a few positions.
        position = bisect_right(range(1, self.num_samples + 1), token, key=end_of)
        return position, end_of(position)

    def tokens_in(
        self, epoch: int, position: int, shard_tokens: Int[np.ndarray, " shard"], rows: Callable[[int], np.ndarray]
    ) -> int:
        """Count the tokens before a position of an epoch. The other arguments are those of `tokens_before`."""
        return self._epoch(epoch).tokens_before(position, shard_tokens, rows) if position else 0

    def read_in(self, epoch: int, start: int, stop: int) -> Stretch:
        """Find the rows at the positions start .. stop - 1 of an epoch."""
        return self._epoch(epoch).read(start, stop)

    def shards_in(self, epoch: int, start: int, stop: int) -> list[int]:
        """List the shards that hold the positions start .. stop - 1 of an epoch, in the order in which the shards are read."""
        return self._epoch(epoch).shards(start, min(stop, self.num_samples))

    def shards(self, start: int, stop: int) -> list[int]:
        """List the shards that hold the draws start .. stop - 1 of this skill, in the order in which the shards are read."""
        return [shard for epoch, *part in self._parts(start, stop) for shard in self._epoch(epoch).shards(*part)]

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Split draws at the ends of epochs. Yield the epoch, and the first position and the end in the epoch."""
        while start < stop:
            epoch, offset = self.place_of(start)
            taken = min(stop - start, self.num_samples - offset)
            yield epoch, offset, offset + taken
            start += taken

    def _epoch(self, number: int) -> Permuted:
        # Two epochs, because a reader looks ahead into the next epoch. The number of tokens before a draw needs the later epochs too.
        return memoized(self._kept, number, self._make_epoch, most=2 + len(self.ahead))

    def _make_epoch(self, number: int) -> Permuted:
        opened = next(
            (own for own in (self.opened, *self.ahead) if own is not None and own.number == number),
            None,
        )
        if opened is None:
            labels = (*self.labels, number)
            return Permutation(self.shard_rows, 0, labels, labels)
        labels = (opened.seed, *self.labels[1:], number)
        (known, _), *appended = opened.layers
        samples: Permuted = Permutation(self.shard_rows[:known], 0, labels, labels)
        samples = _skipped(samples, opened, 1)
        for num_layers, (num_shards, position) in enumerate(appended, start=2):
            # The stripes and rows of a shard are keyed by the number of the shard. Only the permutation of the shards needs another key.
            key = (*labels, "appended", known)
            added = Permutation(self.shard_rows[known:num_shards], known, key, labels)
            samples, known = _skipped(Merged(samples, position, added, known), opened, num_layers), num_shards
        return samples


def _skipped(samples: Permuted, opened: OpenEpoch, num_layers: int) -> Permuted:
    """Return an open epoch after its skips that knew a number of layers."""
    for skip in opened.skips:
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
    """Join neighbouring stretches."""
    parts = list(parts)
    segments = [segment for part in parts for segment in part.segments]
    if all(part.place is None for part in parts):
        return Stretch(segments, None)
    begins = accumulate((part.num_rows for part in parts), initial=0)
    places = [begin + _places(part) for part, begin in zip(parts, begins, strict=False)]
    return Stretch(segments, np.concatenate(places))


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
