"""`packing="one"`: a block is one draw, cut after L tokens or filled up to L tokens. Block b is draw b."""

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
class OneRound:
    """A round whose draws are blocks.

    Attributes:
        plan: Rows of the samples of the round.
        first_draw: First draw of the round.
        first: Number of places of the stream before the round.
        sizes: Number of tokens of each draw, separators included.
        tokens: Tokens of each skill of the mix.
        block_tokens: Number of tokens of a block.
    """

    plan: RoundPlan
    first_draw: int
    first: int
    sizes: Int[np.ndarray, " draw"]
    tokens: Sequence[SkillTokens]
    block_tokens: int
    _tables: dict[int, IdTable] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def end(self) -> int:
        """Number of places of the stream before the next round."""
        return self.first + len(self.sizes) * self.block_tokens

    @cached_property
    def ids(self) -> RoundIds:
        """Ids of the draws. The files are opened when the first block of the round is read."""
        return RoundIds(self.plan, self.tokens)

    def draws_to(self, place: int) -> int:
        """Return the number of draws of the stream with a place here or before."""
        return self.first_draw + self._draw_at(place) + 1

    def table_at(self, place: int) -> IdTable:
        """Return the table of the window of draws that holds a place of the stream."""
        return memoized(self._tables, self._draw_at(place) // WINDOW_DRAWS, self._table, most=TABLES_KEPT)

    def _draw_at(self, place: int) -> int:
        """Return the draw of a place of the stream, counted from the beginning of the round."""
        return (place - self.first) // self.block_tokens

    def _table(self, window: int) -> IdTable:
        """Make the table of a window of draws. A draw without tokens has no segment."""
        length = self.block_tokens
        draw = np.arange(window * WINDOW_DRAWS, min((window + 1) * WINDOW_DRAWS, len(self.sizes)))
        end = int(draw[-1] + 1) * length
        draw = draw[self.sizes[draw] > 0]
        start, sizes = draw * length, self.sizes[draw]
        stop = start + np.minimum(sizes, length)
        return self.ids.table(
            start, stop, end, draw, start, sizes <= length, first=self.first, first_draw=self.first_draw
        )


@dataclass(frozen=True)
class One:
    """The packing `one`. The attributes are described in `Packing` and `SampleDraws`."""

    draws: SampleDraws
    is_dense: bool = False

    def packed(self, number: int, first: int | None) -> OneRound | None:
        """Return a round as places, as `Packing.packed` says."""
        own = self.draws
        plan = own.plan(number)
        if plan is None:
            return None
        sizes = own.counts(plan) + own.has_separator
        first = self.places_before(number) if first is None else first
        return OneRound(plan, own.first_draw(number), first, sizes, own.tokens, own.block_tokens)

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

    def _place_after(self, drawn: Sequence[int]) -> int:
        """Return the place of the stream after the first `drawn[i]` draws of each skill i, over all runs."""
        num_draws = sum(drawn) - sum(self.draws.mixer.run.drawn_before)
        return (self.draws.begin.block + num_draws) * self.draws.block_tokens

    def cut_draw(self) -> None:
        """Return None: no block cuts a draw that the next block goes on with."""

    def draws_per_block(self) -> float:
        """Return the number of draws of a block: 1."""
        return 1.0
