"""`packing="concat"`: the tokens of all draws one after the other, cut into blocks.

The places before round r are, for each skill, the tokens of its first `drawn_before` samples. The sum adds whole epochs, whole shards,
whole stripes and a part of a stripe (`SkillOrder.tokens_before`). Inside the round, a search in the cumulative token counts of the draws
finds the draws of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from skillshard.mixing.packings.packing import InOrder
from skillshard.mixing.packings.sample_round import SampleRound
from skillshard.mixing.round_ids import WINDOW_DRAWS, IdTable
from skillshard.mixing.round_plan import RoundPlan


@dataclass(frozen=True)
class ConcatRound(SampleRound):
    """A round whose draws follow one another without a gap.

    Attributes:
        begins: Beginning of each draw's tokens, counted from the round's first place, and the end of the last draw.
    """

    begins: Int[np.ndarray, " bound"]

    @cached_property
    def end(self) -> int:
        """Number of places of the stream before the next round."""
        return self.first + int(self.begins[-1])

    def left_after(self, place: int) -> int:
        """Return the number of tokens after a place that its draw still has."""
        return self.first + int(self.begins[self.number_at(place) + 1]) - place - 1

    def number_at(self, place: int) -> int:
        """Return the draw of a place of the stream, counted from the beginning of the round."""
        # With side="right" a draw without tokens, whose end equals its beginning, is passed over.
        return int(self.begins[1:].searchsorted(place - self.first, side="right"))

    def table(self, window: int) -> IdTable:
        """Make the table of a window of draws with at least one token."""
        first_draw, end_draw = window * WINDOW_DRAWS, min((window + 1) * WINDOW_DRAWS, len(self.begins) - 1)
        bounds = self.begins[first_draw : end_draw + 1]
        begin, end = int(bounds[0]), int(bounds[-1])
        # A draw without tokens has no segment.
        draws = np.flatnonzero(bounds[1:] > bounds[:-1])
        begins = bounds.take(draws)
        cuts = np.arange(-(self.first + begin) % self.block_tokens + begin, end, self.block_tokens)
        holder = begins.searchsorted(cuts, side="right") - 1
        is_inside = begins.take(holder) != cuts  # a cut at the beginning of a draw cuts no draw
        cuts, holder = cuts[is_inside], holder[is_inside]
        # Each cut adds a segment after the segments of its draw up to the cut, so the cuts before count as well.
        cut_segments = holder + np.arange(1, len(cuts) + 1)
        is_last = np.ones(len(draws) + len(cuts), bool)
        is_last[cut_segments - 1] = False
        own = np.arange(len(is_last))
        own[1:] -= np.cumsum(~is_last[:-1])  # the draw of each segment among the draws with tokens
        draw_begin = begins.take(own)
        start = draw_begin.copy()
        start[cut_segments] = cuts
        stop = np.append(start[1:], end)
        draw = draws.take(own) + first_draw
        return self.ids.table(start, stop, end, draw, draw_begin, is_last, first=self.first, first_draw=self.first_draw)


@dataclass(frozen=True)
class Concat(InOrder):
    """The packing `concat`. The attributes are described in `Packing` and `InOrder`."""

    is_dense: bool = True

    def packed(self, number: int, first: int | None) -> ConcatRound | None:
        """Return a round as places, as `Packing.packed` says."""
        own = self.draws
        plan = own.plan(number)
        if plan is None:
            return None
        first = self.places_before(number) if first is None else first
        return ConcatRound(plan, own.first_draw(number), first, own.tokens, own.block_tokens, self._begins(plan))

    def cut_draw(self) -> ConcatRound | None:
        """Return the last draw before the run as a round. Its tokens go on at the place where the last block has cut them."""
        own = self.draws
        plan = own.mixer.plan_before()
        if plan is None:
            return None
        begins = self._begins(plan)
        first = own.begin.block * own.block_tokens + own.begin.left - int(begins[-1])
        return ConcatRound(plan, own.mixer.first_draw - 1, first, own.tokens, own.block_tokens, begins)

    def draws_per_block(self) -> float:
        """Return the expected number of draws of a block, over whole epochs, separators included."""
        own = self.draws
        means = [
            tokens.num_tokens / order.num_samples + own.has_separator
            for tokens, order in zip(own.tokens, own.mixer.orders, strict=True)
        ]
        weights = own.mixer.round(0).weights
        return own.block_tokens / sum(weight * mean for weight, mean in zip(weights, means, strict=True))

    def place_after(self, drawn: Sequence[int]) -> int:
        """Return the place of the stream after the first `drawn[i]` draws of each skill i, over all runs."""
        begin, mixer = self.draws.begin, self.draws.mixer
        before = self._tokens_of(mixer.run.drawn_before)
        return begin.block * self.draws.block_tokens + begin.left + self._tokens_of(drawn) - before

    def _begins(self, plan: RoundPlan) -> Int[np.ndarray, " bound"]:
        """Return the beginning of each draw's tokens, and the end of the last draw."""
        counts = self.draws.counts(plan)
        begins = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts + self.draws.has_separator, out=begins[1:])
        return begins

    def _tokens_of(self, drawn: Sequence[int]) -> int:
        """Count the tokens of the first `drawn[i]` draws of each skill i, separators included."""
        per_skill = zip(self.draws.mixer.orders, self.draws.tokens, drawn, strict=True)
        tokens = sum(order.tokens_before(num, counts.shard_tokens, counts.rows) for order, counts, num in per_skill)
        return tokens + sum(drawn) * self.draws.has_separator
