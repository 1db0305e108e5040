"""The reader of packed blocks: from the numbers of blocks to their tokens, masks and segments, for every packing.

A table of a window of a round has the parts of samples in the blocks (`round_ids.IdTable`). A batch is a part of the table, and one call of
Arrow copies its tokens. No step runs in Python for each token or each sample.

Places without a token hold the separator, or token 0 without a separator, and form a segment of draw -1 at the end of their block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from skillshard.mixing.packed_batch import Segments
from skillshard.mixing.packed_rounds import PackedRounds
from skillshard.mixing.round_ids import IdTable


class ReadBlocks(NamedTuple):
    """Blocks that were read: their numbers, and the tokens, masks and segments of all blocks, one block after the other."""

    block: Int[np.ndarray, " block"]
    ids: Int[np.ndarray, " token"]
    answer: Bool[np.ndarray, " token"] | None
    segments: Segments


class Pieces(NamedTuple):
    """The parts of the blocks of a batch in one table.

    Attributes:
        table: Segments of a window of a round.
        row: Row of each piece in the batch.
        start, stop: The piece has the places start .. stop - 1 of the stream.
        low, high: The piece has the segments low .. high - 1 of the table.
        size: Number of tokens of each piece, at its beginning. The places after them hold no token.
    """

    table: IdTable
    row: Int[np.ndarray, " piece"]
    start: Int[np.ndarray, " piece"]
    stop: Int[np.ndarray, " piece"]
    low: Int[np.ndarray, " piece"]
    high: Int[np.ndarray, " piece"]
    size: Int[np.ndarray, " piece"]


@dataclass(frozen=True)
class BlockReader:
    """The reader of the blocks of a packed stream.

    Attributes:
        rounds: Rounds of the stream.
        block_tokens: Number of tokens of a block, L.
        separator: Id of the token after each sample, or None.
        has_answers: Whether the token set has a mask of answers.
    """

    rounds: PackedRounds
    block_tokens: int
    separator: int | None
    has_answers: bool

    def read(self, blocks: Int[np.ndarray, " block"]) -> ReadBlocks:
        """Read blocks in any order. Blocks beyond the end of the stream are left out."""
        if len(blocks) and (blocks[1:] - blocks[:-1] == 1).all():
            return self.read_neighbours(int(blocks[0]), len(blocks))
        return self._scattered(blocks)

    def read_neighbours(self, first: int, num: int) -> ReadBlocks:
        """Read the blocks first .. first + num - 1, the usual case of a process that reads on."""
        blocks = np.arange(first, first + num)
        return self._neighbours(blocks, first, num) or self._scattered(blocks)

    def _neighbours(self, blocks: Int[np.ndarray, " block"], first_block: int, num: int) -> ReadBlocks | None:
        """Read neighbouring blocks whose every place holds a token. Return None for other blocks.

        The result is that of `_scattered`. The segments are slices of the tables, so that a batch takes half the time.
        """
        if not self.rounds.packing.is_dense or num <= 0:
            return None
        first = first_block * self.block_tokens
        stop = first + num * self.block_tokens
        ids = np.empty(stop - first, np.int64)
        answer = np.ones(stop - first, bool) if self.has_answers else None
        columns, place = [], first
        while place < stop:
            packed = self.rounds.at(place)
            if packed is None:
                return None  # the last block of the stream is filled up
            table = packed.table_at(place)
            end = min(table.end, stop)
            columns.append(self._copy_places(table, place, end, ids, answer, first))
            place = end
        return ReadBlocks(blocks, ids, answer, _joined(columns))

    def _copy_places(
        self,
        table: IdTable,
        start: int,
        stop: int,
        ids: Int[np.ndarray, " token"],
        answer: Bool[np.ndarray, " token"] | None,
        first: int,
    ) -> Segments:
        """Copy the tokens at neighbouring places of a table into a batch, and return their segments.

        Args:
            table: Table without a place that holds no token.
            start, stop: First place, and the place after the last. A segment begins at `start`, and a segment ends before `stop`.
            ids, answer: Tokens of the batch and their mask.
            first: First place of the batch.
        """
        chosen = slice(*table.start.searchsorted((start, stop)).tolist())
        inside = slice(start - first, stop - first)
        copied, mask = table.copy(chosen)
        ids[inside] = copied
        if answer is not None and mask is not None:
            answer[inside] = mask
        if self.separator is not None:
            ends = slice(*table.last_tokens.searchsorted((start, stop)).tolist())
            separators = table.last_tokens[ends] - first
            ids[separators] = self.separator
            if answer is not None and mask is not None:
                answer[separators] = True
        return Segments(table.start[chosen] - first, table.draw[chosen], table.skill[chosen])

    def _scattered(self, blocks: Int[np.ndarray, " block"]) -> ReadBlocks:
        """Read blocks in any order, over the ends of windows, and with places without a token."""
        numbers, pieces_of = self._pieces(blocks)
        num_tokens = len(numbers) * self.block_tokens
        num_filled = np.zeros(len(numbers), np.int64)
        for pieces in pieces_of:
            num_filled[pieces.row] += pieces.size
        short = np.flatnonzero(num_filled < self.block_tokens)
        # Arrays with places without a token begin as fillers.
        filler = 0 if self.separator is None else self.separator
        ids = np.full(num_tokens, filler, np.int64) if len(short) else np.empty(num_tokens, np.int64)
        answer = np.ones(num_tokens, bool) if self.has_answers else None
        columns = [self._copy(pieces, ids, answer) for pieces in pieces_of]
        if len(short):
            nothing = np.full(len(short), -1)
            columns.append(Segments(short * self.block_tokens + num_filled[short], nothing, nothing))
        return ReadBlocks(numbers, ids, answer, _joined(columns))

    def _pieces(self, blocks: Int[np.ndarray, " block"]) -> tuple[Int[np.ndarray, " reached"], list[Pieces]]:
        """Split blocks at the ends of tables. Return the blocks that the stream reaches, and their pieces, table by table."""
        begin, end = blocks * self.block_tokens, (blocks + 1) * self.block_tokens
        # The next place of each block that no piece has yet. The earliest such place of all blocks names the next table.
        following, split = begin.copy(), []
        while (is_open := following < end).any():
            place = int(following[is_open].min())
            packed = self.rounds.at(place)
            if packed is None:
                break
            table = packed.table_at(place)
            rows = np.flatnonzero(is_open & (following < table.end))
            stop = np.minimum(end[rows], table.end)
            split.append((table, rows, following[rows], stop))
            following[rows] = stop
        exists = following > begin
        row_of = np.cumsum(exists) - 1
        pieces_of = []
        for table, rows, start, stop in split:
            low, high = np.searchsorted(table.start, start), np.searchsorted(table.start, stop)
            # The segments of a block follow one another from its beginning, so the last segment ends the tokens.
            size = np.append(table.stop, 0)[high - 1] - start
            pieces_of.append(Pieces(table, row_of[rows], start, stop, low, high, np.where(high > low, size, 0)))
        return blocks[exists], pieces_of

    def _copy(
        self, pieces: Pieces, ids: Int[np.ndarray, " token"], answer: Bool[np.ndarray, " token"] | None
    ) -> Segments:
        """Copy the tokens of the pieces of a table into the batch, and return their segments.

        Args:
            pieces: Pieces of one table.
            ids, answer: Tokens of the batch and their mask, one block after the other.
        """
        table, lows, highs = pieces.table, pieces.low, pieces.high
        begins = pieces.row * self.block_tokens + pieces.start % self.block_tokens
        shifts = begins - pieces.start  # from a place in the stream to a place in the batch
        chosen: slice | np.ndarray
        if (lows[1:] == highs[:-1]).all() and (shifts == shifts[0]).all():
            # Neighbouring blocks, as a single process reads them: a slice copies no columns.
            chosen, shift = slice(int(lows[0]), int(highs[-1])), shifts[0]
        else:
            nums = highs - lows
            chosen = np.arange(int(nums.sum())) + np.repeat(lows - (np.cumsum(nums) - nums), nums)
            shift = np.repeat(shifts, nums)
        copied, mask = table.copy(chosen)
        self._place(begins, pieces.size, copied, ids)
        if self.separator is not None:
            last_tokens = (table.stop[chosen] + shift - 1)[table.is_last[chosen]]
            ids[last_tokens] = self.separator
        if answer is not None and mask is not None:
            self._place(begins, pieces.size, mask, answer)
            if self.separator is not None:
                answer[last_tokens] = True
        return Segments(table.start[chosen] + shift, table.draw[chosen], table.skill[chosen])

    @staticmethod
    def _place(
        begins: Int[np.ndarray, " piece"],
        sizes: Int[np.ndarray, " piece"],
        source: Shaped[np.ndarray, " copied"],
        target: Shaped[np.ndarray, " token"],
    ) -> None:
        """Write the tokens of pieces, which stand one piece after the other in `source`, to their places in the batch."""
        # Pieces of neighbouring rows follow one another in the batch, so that one assignment writes many pieces.
        edges = [0, *(np.flatnonzero(begins[1:] != begins[:-1] + sizes[:-1]) + 1).tolist(), len(begins)]
        done = 0
        for first, last in pairwise(edges):
            num, begin = int(sizes[first:last].sum()), int(begins[first])
            target[begin : begin + num] = source[done : done + num]
            done += num


def _joined(columns: Sequence[Segments]) -> Segments:
    """Join the segments of several tables, in the order of their places in the batch."""
    if len(columns) == 1:
        return columns[0]
    none = Segments(*(np.empty(0, np.int64),) * 3)
    start, draw, skill = (
        np.concatenate([getattr(part, name) for part in [none, *columns]]) for name in ("start", "draw", "skill")
    )
    order = np.argsort(start, kind="stable")
    return Segments(start[order], draw[order], skill[order])
