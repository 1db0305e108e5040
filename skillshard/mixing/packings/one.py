"""`packing="one"`: a block is one draw, cut after L tokens or filled up to L tokens. Block b is draw b."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from skillshard.mixing.packings.packing import InOrder
from skillshard.mixing.packings.sample_round import SampleRound
from skillshard.mixing.round_ids import WINDOW_DRAWS, IdTable


@dataclass(frozen=True)
class OneRound(SampleRound):
    """A round whose draws are blocks.

    Attributes:
        sizes: Number of tokens of each draw, separators included.
    """

    sizes: Int[np.ndarray, " draw"]

    @property
    def end(self) -> int:
        """Number of places of the stream before the next round."""
        return self.first + len(self.sizes) * self.block_tokens

    def number_at(self, place: int) -> int:
        """Return the draw of a place of the stream, counted from the beginning of the round."""
        return (place - self.first) // self.block_tokens

    def table(self, window: int) -> IdTable:
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
class One(InOrder):
    """The packing `one`. The attributes are described in `Packing` and `InOrder`."""

    is_dense: bool = False

    def packed(self, number: int, first: int | None) -> OneRound | None:
        """Return a round as places, as `Packing.packed` says."""
        own = self.draws
        plan = own.plan(number)
        if plan is None:
            return None
        sizes = own.counts(plan) + own.has_separator
        first = self.places_before(number) if first is None else first
        return OneRound(plan, own.first_draw(number), first, own.tokens, own.block_tokens, sizes)

    def place_after(self, drawn: Sequence[int]) -> int:
        """Return the place of the stream after the first `drawn[i]` draws of each skill i, over all runs."""
        return self.draws.blocks_after(drawn) * self.draws.block_tokens

    def draws_per_block(self) -> float:
        """Return the number of draws of a block: 1."""
        return 1.0
