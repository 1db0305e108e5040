"""`packing="best-fit"`: the draws of a round are packed into blocks so that no text is cut that fits a block, with few fillers.

A round is the window of the packing (`fit.py`), so a block never reaches into the next round. The number of blocks of a round follows from its
texts. So block b is found from the numbers of blocks of the rounds, which are kept beside the ledger (`mixing/block_counts.py`). A saved
state has the number of consumed blocks of its round, so that a resume packs this round alone.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from skillshard.memo import memoized
from skillshard.mixing.block_counts import BlocksRecord, keep_blocks, kept_blocks
from skillshard.mixing.packings.fit import Fit, fit_round
from skillshard.mixing.packings.packing import Draws
from skillshard.mixing.packings.sample_round import SampleRound
from skillshard.mixing.round_ids import WINDOW_DRAWS, IdTable
from skillshard.mixing.round_plan import RoundPlan
from skillshard.mixing.round_records import RoundRecord
from skillshard.mixing.run_records import BlockUnit


@dataclass(frozen=True)
class BestFitRound(SampleRound):
    """A round whose draws are packed into blocks. The pieces of draws number the windows.

    Attributes:
        counts: Number of tokens of each draw, without separators.
        sizes: Number of tokens of each draw, with the separators that stand in a block.
        blocks: Pieces of draws in the blocks of the round.
    """

    counts: Int[np.ndarray, " draw"]
    sizes: Int[np.ndarray, " draw"]
    blocks: Fit

    @property
    def end(self) -> int:
        """Number of places of the stream before the next round."""
        return self.first + self.blocks.num_blocks * self.block_tokens

    def draws_to(self, place: int) -> int:
        """Return the number of draws of the stream with a token in this block or before. Draws without tokens count as begun."""
        block = self._block_at(place)
        num_without = len(self.sizes) - int(self.blocks.num_begun[-1])
        return self.first_draw + num_without + int(self.blocks.num_begun[block])

    def number_at(self, place: int) -> int:
        """Return the first piece of the block that holds a place of the stream."""
        return int(self.blocks.first_piece[self._block_at(place)])

    def _block_at(self, place: int) -> int:
        """Return the block of a place of the stream, counted from the beginning of the round."""
        return (place - self.first) // self.block_tokens

    def table(self, window: int) -> IdTable:
        """Make the table of the blocks whose first pieces lie in a window of pieces."""
        length, bounds = self.block_tokens, self.blocks.first_piece
        low, high = np.searchsorted(bounds[:-1], (window * WINDOW_DRAWS, (window + 1) * WINDOW_DRAWS)).tolist()
        pieces = slice(*bounds[[low, high]].tolist())
        draw, part = self.blocks.draw[pieces].astype(np.int64), self.blocks.part[pieces].astype(np.int64)
        size = np.minimum(self.sizes[draw] - part * length, length)
        before = np.cumsum(size) - size
        num_pieces = np.diff(bounds[low : high + 1])
        in_block = before - np.repeat(before[bounds[low:high] - bounds[low]], num_pieces)
        start = np.repeat(np.arange(low, high) * length, num_pieces) + in_block
        is_last = ((part + 1) * length >= self.sizes[draw]) & (self.sizes[draw] > self.counts[draw])
        return self.ids.table(
            start,
            start + size,
            high * length,
            draw,
            start - part * length,
            is_last,
            first=self.first,
            first_draw=self.first_draw,
        )


@dataclass(frozen=True)
class BestFit:
    """The packing `best-fit`.

    Attributes:
        draws: Draws of the mixer.
        unit: Blocks of the run, which name the records of the numbers of blocks.
        is_dense: As in `Packing`.
    """

    draws: Draws
    unit: BlockUnit
    is_dense: bool = False
    _lengths: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def packed(self, number: int, first: int | None) -> BestFitRound | None:
        """Return a round as places, as `Packing.packed` says."""
        own = self.draws
        plan = own.plan(number)
        if plan is None:
            return None
        record = own.mixer.round(number)
        first = self.places_before(number) if first is None else first
        counts, sizes, blocks = self._fit(record, plan)
        self._keep(record, first // own.block_tokens - own.begin.block, blocks.num_blocks)
        return BestFitRound(plan, record.first_draw, first, own.tokens, own.block_tokens, counts, sizes, blocks)

    def places_before(self, number: int) -> int:
        """Return the number of places before a decided round."""
        return (self.draws.begin.block + self._blocks_before(number)) * self.draws.block_tokens

    def places_to(self, number: int) -> int:
        """Return the number of places up to the end of a decided round."""
        return self.places_before(number + 1)

    def num_places(self) -> int | None:
        """Return the number of places of the whole stream, or None under the conditions of `Mixer.length`.

        The first call packs every round, at about a microsecond per draw.
        """
        rounds = self.draws.mixer.rounds_to_end()
        if rounds is None:
            return None
        num_blocks = memoized(self._lengths, 0, lambda _: sum(map(self._num_blocks, rounds)), most=1)
        return (self.draws.begin.block + num_blocks) * self.draws.block_tokens

    def cut_draw(self) -> None:
        """Return None: no block cuts a draw over the end of a round."""

    def draws_per_block(self) -> float:
        """Return the number of draws of a block in round 0."""
        return self.draws.mixer.round(0).num_draws / max(1, self._blocks_before(1))

    def _blocks_before(self, number: int) -> int:
        """Count the blocks of the run before a round, from the last round whose number was kept."""
        mixer, known, num_blocks = self.draws.mixer, number, 0
        while known:
            blocks = kept_blocks(mixer.ledger, mixer.round(known - 1), self.unit)
            if blocks is not None:
                num_blocks = blocks.end_block
                break
            known -= 1
        for missing in range(known, number):
            record = mixer.round(missing)
            num = self._num_blocks(record)
            self._keep(record, num_blocks, num)
            num_blocks += num
        return num_blocks

    def _num_blocks(self, record: RoundRecord) -> int:
        if not record.num_draws:
            return 0
        blocks = kept_blocks(self.draws.mixer.ledger, record, self.unit)
        return self._fit(record, self.draws.plan_of(record))[2].num_blocks if blocks is None else blocks.num_blocks

    def _fit(
        self, record: RoundRecord, plan: RoundPlan
    ) -> tuple[Int[np.ndarray, " draw"], Int[np.ndarray, " draw"], Fit]:
        own = self.draws
        counts = own.counts(plan)
        sizes, blocks = fit_round(
            counts, own.block_tokens, separated=own.has_separator, seed=own.mixer.seed, number=record.round
        )
        return counts, sizes, blocks

    def _keep(self, record: RoundRecord, first_block: int, num_blocks: int) -> None:
        blocks = BlocksRecord(
            round=record.round,
            round_checksum=record.checksum,
            unit=self.unit,
            first_block=first_block,
            num_blocks=num_blocks,
        )
        keep_blocks(self.draws.mixer.ledger, blocks, record)
