"""The rounds of a run whose draws are blocks of one skill (`packing="skill"`).

The samples of a skill, in the order of the skill, are one stream of tokens, and the stream is cut into blocks of L tokens. A text that the
end of a block cuts goes on in the next block of the same skill. An epoch of T tokens, separators included, has floor(T / L) blocks. The last
T mod L tokens of the order of an epoch are left out, and the next epoch begins with a new block. Each epoch has another order, so other
tokens are left out.

So block n of a skill has the tokens jL .. (j+1)L - 1 of epoch e, for (e, j) = divmod(n, floor(T / L)), and `SkillOrder.find_token` finds
the first sample of the block without the blocks before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from skillshard.errors import PolicyError, TokensError
from skillshard.memo import memoized
from skillshard.mixing.ledger import BlockUnit
from skillshard.mixing.round_ids import TABLES_KEPT, WINDOW_DRAWS, IdFiles, IdTable
from skillshard.mixing.skill_order import SkillOrder
from skillshard.mixing.stream import LAST_DRAW, is_whole
from skillshard.shards.token_set import SkillTokens, TokenSet


def block_unit(tokens: TokenSet | None, block_tokens: int | None, separator: str | None) -> BlockUnit:
    """Return the blocks of a run for its record.

    Raises:
        PolicyError: The tokens or the number of tokens of a block are missing or out of range.
        TokensError: The separator is no token.
    """
    if tokens is None or not is_whole(block_tokens, 1, LAST_DRAW):
        raise PolicyError(
            f"unit='blocks' needs tokens and block_tokens, and block_tokens is {block_tokens!r}: give Mixer(..., unit='blocks', "
            "tokens=TokenSet.open(DIRECTORY), block_tokens=L, separator=TEXT), with L at least 1."
        )
    if separator is not None:
        tokens.token_id(separator)
    assert block_tokens is not None
    return BlockUnit(tokens=tokens.digest, block_tokens=int(block_tokens), separator=separator)


def epoch_blocks(tokens: SkillTokens, unit: BlockUnit) -> int:
    """Return the number of blocks of an epoch of a skill.

    Raises:
        TokensError: The skill has fewer tokens than a block.
    """
    extra = tokens.num_samples * (unit.separator is not None)
    num_blocks = (tokens.num_tokens + extra) // unit.block_tokens
    if not num_blocks:
        raise TokensError(
            f"the training samples of skill {tokens.skill!r} have {tokens.num_tokens + extra:,} tokens, separators included, and a block has "
            f"{unit.block_tokens:,}: no block of this skill can be filled. Give fewer block_tokens, or merge the skill with another skill."
        )
    return num_blocks


class _Parts(NamedTuple):
    """Segments of neighbouring blocks of a skill. The files are numbered from 0."""

    shards: list[int]
    start: Int[np.ndarray, " segment"]
    stop: Int[np.ndarray, " segment"]
    draw: Int[np.ndarray, " segment"]
    is_last: Bool[np.ndarray, " segment"]
    file: Int[np.ndarray, " segment"]
    first_id: Int[np.ndarray, " segment"]


@dataclass(frozen=True)
class SkillRound:
    """A round as tokens, if a draw is a block of one skill. Every draw has L tokens of the stream.

    Attributes:
        first_draw: First draw of the round.
        first: Number of places of the stream before the round.
        skill: Skill of each draw.
        number: Number of each draw among the draws of its skill, counted from the beginning of the run.
        orders, tokens: Order of the samples and tokens of each skill of the mix.
        unit: Blocks of the run.
    """

    first_draw: int
    first: int
    skill: Int[np.ndarray, " draw"]
    number: Int[np.ndarray, " draw"]
    orders: Sequence[SkillOrder]
    tokens: Sequence[SkillTokens]
    unit: BlockUnit
    _tables: dict[int, IdTable] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def end(self) -> int:
        """Number of places of the stream before the next round."""
        return self.first + len(self.skill) * self.unit.block_tokens

    def draws_to(self, place: int) -> int:
        """Return the number of draws of the stream with a token at this place or before."""
        return self.first_draw + self._draw_at(place) + 1

    def table_at(self, place: int) -> IdTable:
        """Return the table of the window of draws that holds a place of the stream."""
        return memoized(self._tables, self._draw_at(place) // WINDOW_DRAWS, self._table, most=TABLES_KEPT)

    def _draw_at(self, place: int) -> int:
        """Return the draw of a place of the stream, counted from the beginning of the round."""
        return (place - self.first) // self.unit.block_tokens

    def _table(self, window: int) -> IdTable:
        first = window * WINDOW_DRAWS
        skill = self.skill[first : first + WINDOW_DRAWS]
        by_skill = np.argsort(skill, kind="stable")
        present, begins = np.unique(skill[by_skill], return_index=True)
        parts: list[tuple[int, _Parts]] = []
        for number, draws in zip(present.tolist(), np.split(by_skill + first, begins[1:]), strict=True):
            parts += [(number, part) for part in self._parts_of(number, draws)]
        # An epoch that ends within the window may come to a shard again, and a file is opened once.
        shards = list(dict.fromkeys((number, shard) for number, part in parts for shard in part.shards))
        number_of = {shard: index for index, shard in enumerate(shards)}
        files = IdFiles(shards, self.tokens)
        which = [
            np.array([number_of[number, shard] for shard in part.shards], np.int64)[part.file] for number, part in parts
        ]
        start = np.concatenate([part.start for _, part in parts])
        order = np.argsort(start, kind="stable")
        stop, draw, is_last, first_id = (
            np.concatenate([getattr(part, name) for _, part in parts])[order]
            for name in ("stop", "draw", "is_last", "first_id")
        )
        start = start[order]
        views, answer_views = files.views(np.concatenate(which)[order], first_id, first_id + stop - start)
        end = self.first + (first + len(skill)) * self.unit.block_tokens
        return IdTable(start, stop, end, draw + self.first_draw, self.skill[draw], is_last, views, answer_views, files)

    def _parts_of(self, skill: int, draws: Int[np.ndarray, " draw"]) -> list[_Parts]:
        """Find the segments of neighbouring blocks of a skill, epoch by epoch. `draws` are counted from the beginning of the round."""
        per_epoch = epoch_blocks(self.tokens[skill], self.unit)
        block, parts = int(self.number[draws[0]]), []
        while len(draws):
            epoch, first = divmod(block, per_epoch)
            own = draws[: per_epoch - first]
            parts.append(self._part(skill, epoch, first, own))
            draws, block = draws[len(own) :], block + len(own)
        return parts

    def _part(self, skill: int, epoch: int, first: int, draws: Int[np.ndarray, " draw"]) -> _Parts:
        """Find the segments of the blocks first, first + 1, ... of an epoch, a block for each draw."""
        order, tokens, length = self.orders[skill], self.tokens[skill], self.unit.block_tokens
        extra = int(self.unit.separator is not None)
        begin, end = first * length, (first + len(draws)) * length
        position, before = order.find_token(epoch, begin, tokens.shard_tokens, tokens.rows, extra=extra)
        last, _ = order.find_token(epoch, end - 1, tokens.shard_tokens, tokens.rows, extra=extra)
        epoch_begin = epoch * order.num_samples
        segments = order.read(epoch_begin + position, epoch_begin + last + 1).segments
        self._prefetch(skill, epoch_begin + position, epoch_begin + last + 1)
        sizes = np.concatenate([tokens.rows(shard)[rows] for shard, rows in segments]).astype(np.int64) + extra
        begins = before + np.append(0, np.cumsum(sizes))
        # Segments begin at the samples and at the blocks. A sample without tokens begins where the next sample begins.
        start = np.unique(np.concatenate([np.maximum(begins[:-1], begin), np.arange(begin, end, length)]))
        stop = np.append(start[1:], end)
        sample = np.searchsorted(begins[1:], start, side="right")
        shards = list(dict.fromkeys(shard for shard, _ in segments))
        file = np.repeat([shards.index(shard) for shard, _ in segments], [len(rows) for _, rows in segments])
        first_ids = np.concatenate([tokens.starts(shard, rows) for shard, rows in segments])
        draw = draws[start // length - first]
        # From a position in the tokens of the epoch to a position in the tokens of the stream.
        shift = self.first + draw * length - start // length * length
        return _Parts(
            shards,
            start + shift,
            stop + shift,
            draw,
            stop == begins[sample + 1],
            file[sample],
            first_ids[sample] + start - begins[sample],
        )

    def _prefetch(self, skill: int, start: int, stop: int) -> None:
        """Fetch the files of draws of a skill from a store, and the files of as many following draws."""
        if self.tokens[skill].files.is_remote:
            for shard in self.orders[skill].shards(start, 2 * stop - start):
                self.tokens[skill].prefetch(shard)
