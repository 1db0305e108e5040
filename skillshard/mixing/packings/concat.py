"""`packing="concat"`: the tokens of all draws one after the other, cut into blocks.

The places before round r are, for each skill, the tokens of its first `drawn_before` samples. The sum adds whole epochs, whole shards,
whole stripes and a part of a stripe (`SkillOrder.tokens_before`). Inside the round, a search in the cumulative token counts of the draws
finds the draws of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Int

from skillshard.memo import memoized
from skillshard.mixing.packings.packing import SampleDraws
from skillshard.mixing.round_ids import TABLES_KEPT, WINDOW_DRAWS, IdTable, RoundIds
from skillshard.mixing.round_plan import RoundPlan
from skillshard.shards.token_set import SkillTokens


@dataclass(frozen=True)
class ConcatRound:
    """A round whose draws follow one another without a gap.

    Attributes:
        plan: Rows of the samples of the round.
        first_draw: First draw of the round.
        first: Number of places of the stream before the round.
        begins: Beginning of each draw's tokens, counted from the round's first place, and the end of the last draw.
        tokens: Tokens of each skill of the mix.
        block_tokens: Number of tokens of a block.
    """

    plan: RoundPlan
    first_draw: int
    first: int
    begins: Int[np.ndarray, " bound"]
    tokens: Sequence[SkillTokens]
    block_tokens: int
    _tables: dict[int, IdTable] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def end(self) -> int:
        """Number of places of the stream before the next round."""
        return self.first + int(self.begins[-1])

    @cached_property
    def ids(self) -> RoundIds:
        """Ids of the draws. The files are opened when the first block of the round is read."""
        return RoundIds(self.plan, self.tokens)

    def draws_to(self, place: int) -> int:
        """Return the number of draws of the stream with a token at this place or before."""
        return self.first_draw + self._draw_at(place) + 1

    def table_at(self, place: int) -> IdTable:
        """Return the table of the window of draws that holds a place of the stream."""
        return memoized(self._tables, self._draw_at(place) // WINDOW_DRAWS, self._table, most=TABLES_KEPT)

    def left_after(self, place: int) -> int:
        """Return the number of tokens after a place that its draw still has."""
        return self.first + int(self.begins[self._draw_at(place) + 1]) - place - 1

    def _draw_at(self, place: int) -> int:
        """Return the draw of a place of the stream, counted from the beginning of the round."""
        # With side="right" a draw without tokens, whose end equals its beginning, is passed over.
        return int(np.searchsorted(self.begins[1:], place - self.first, side="right"))

    def _table(self, window: int) -> IdTable:
        """Make the table of a window of draws with at least one token."""
        begins = self.begins
        draws = slice(window * WINDOW_DRAWS, min((window + 1) * WINDOW_DRAWS, len(begins) - 1))
        begin, end = int(begins[draws.start]), int(begins[draws.stop])
        first_cut = -(self.first + begin) % self.block_tokens + begin
        cuts = np.concatenate([begins[draws], np.arange(first_cut, end, self.block_tokens)])
        cuts.sort(kind="stable")  # a merge of two rising parts
        # A draw without tokens begins where the next draw begins, or at the end of the window. So it has no beginning of its own.
        start = cuts[np.append(cuts[1:], end) != cuts]
        stop = np.append(start[1:], end)
        draw = np.searchsorted(begins[draws.start + 1 : draws.stop + 1], start, side="right") + draws.start
        is_last = stop == begins[draw + 1]
        return self.ids.table(
            start, stop, end, draw, begins[draw], is_last, first=self.first, first_draw=self.first_draw
        )


@dataclass(frozen=True)
class Concat:
    """The packing `concat`. The attributes are described in `Packing` and `SampleDraws`."""

    draws: SampleDraws
    is_dense: bool = True

    def packed(self, number: int, first: int | None) -> ConcatRound | None:
        """Return a round as places, as `Packing.packed` says."""
        own = self.draws
        plan = own.plan(number)
        if plan is None:
            return None
        first = self.places_before(number) if first is None else first
        begins = np.append(0, np.cumsum(own.counts(plan) + own.has_separator))
        return ConcatRound(plan, own.first_draw(number), first, begins, own.tokens, own.block_tokens)

    def places_before(self, number: int) -> int:
        """Return the number of places before a decided round."""
        return self._place_after(self.draws.mixer.round(number).drawn_before)

    def places_to(self, number: int) -> int:
        """Return the number of places up to the end of a decided round."""
        return self._place_after(self.draws.drawn_after(self.draws.mixer.round(number)))

    def num_places(self) -> int | None:
        """Return the number of places of the whole stream, or None under the conditions of `Mixer.length`."""
        drawn = self.draws.mixer.num_drawn()
        return None if drawn is None else self._place_after(drawn)

    def cut_draw(self) -> ConcatRound | None:
        """Return the last draw before the run as a round. Its tokens go on at the place where the last block has cut them."""
        own = self.draws
        plan = own.mixer.plan_before()
        if plan is None:
            return None
        begins = np.append(0, np.cumsum(own.counts(plan) + own.has_separator))
        first = own.begin.block * own.block_tokens + own.begin.left - int(begins[-1])
        return ConcatRound(plan, own.mixer.first_draw - 1, first, begins, own.tokens, own.block_tokens)

    def draws_per_block(self) -> float:
        """Return the expected number of draws of a block, over whole epochs, separators included."""
        own = self.draws
        means = [
            tokens.num_tokens / order.num_samples + own.has_separator
            for tokens, order in zip(own.tokens, own.mixer.orders, strict=True)
        ]
        weights = own.mixer.round(0).weights
        return own.block_tokens / sum(weight * mean for weight, mean in zip(weights, means, strict=True))

    def _place_after(self, drawn: Sequence[int]) -> int:
        """Return the place of the stream after the first `drawn[i]` draws of each skill i, over all runs."""
        begin, mixer = self.draws.begin, self.draws.mixer
        before = self._tokens_of(mixer.run.drawn_before)
        return begin.block * self.draws.block_tokens + begin.left + self._tokens_of(drawn) - before

    def _tokens_of(self, drawn: Sequence[int]) -> int:
        """Count the tokens of the first `drawn[i]` draws of each skill i, separators included."""
        per_skill = zip(self.draws.mixer.orders, self.draws.tokens, drawn, strict=True)
        tokens = sum(order.tokens_before(num, counts.shard_tokens, counts.rows) for order, counts, num in per_skill)
        return tokens + sum(drawn) * self.draws.has_separator
