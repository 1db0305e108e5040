"""The rounds of a run whose draws are blocks of one skill (`packing="skill"`).

The samples of a skill, in the order of the skill, are one stream of tokens, and the stream is cut into blocks of L tokens. A text that the
end of a block cuts goes on in the next block of the same skill. An epoch of T tokens, separators included, has floor(T / L) blocks. The last
T mod L tokens of the order of an epoch are left out, and the next epoch begins with a new block. Each epoch has another order, so other
tokens are left out.

In a run that continues another run, the open epoch begins with the rest of the last begun sample, and has as many blocks as its other tokens fill.

So block n of a skill has the tokens jL .. (j+1)L - 1 of epoch e, for (e, j) = divmod(n, floor(T / L)), and `SkillOrder.find_token` finds
the first sample of the block without the blocks before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from skillshard import places
from skillshard.errors import PolicyError, TokensError
from skillshard.memo import memoized
from skillshard.mixing.positions import Standing, beginnings, order_of, standing_at
from skillshard.mixing.round_ids import TABLES_KEPT, WINDOW_DRAWS, IdFiles, IdTable
from skillshard.mixing.run_records import BlockUnit, RunRecord, cuts_of
from skillshard.mixing.skill_order import OpenEpoch, SkillOrder, Stretch, draw_of, place_of
from skillshard.mixing.stream import LAST_DRAW
from skillshard.number_checks import is_whole
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


def refuse_other_tokens(tokens: TokenSet, unit: BlockUnit, run: str) -> None:
    """Raise TokensError unless the tokens are the tokens of blocks. `run` is the run in words."""
    if tokens.digest != unit.tokens:
        raise TokensError(
            f"the blocks of {run} are of the tokens {unit.tokens}, and {places.public(tokens.root)} holds the tokens {tokens.digest}: give the tokens of "
            f"{run}."
        )


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


class EpochSamples(NamedTuple):
    """Neighbouring samples of an epoch of a skill.

    Attributes:
        stretch: Rows of the samples.
        begins: First token of each sample, counted from the beginning of the epoch, and the end of the last sample.
    """

    stretch: Stretch
    begins: Int[np.ndarray, " bound"]


@dataclass(frozen=True)
class SkillBlocks:
    """The blocks of a skill in a run: from the number of a block to the tokens of an epoch.

    Attributes:
        start: Place at the beginning of the run. The place counts samples.
        left: Number of tokens at the end of the last begun sample that the run still gives.
        seed: Seed of the run.
        tokens: Tokens of the skill.
        unit: Blocks of the run.
    """

    start: Standing
    left: int
    seed: int
    tokens: SkillTokens
    unit: BlockUnit

    @cached_property
    def order(self) -> SkillOrder:
        """Order of the samples."""
        return order_of(self.start, np.array(self.tokens.columns.num_samples), self.seed)

    @property
    def extra(self) -> int:
        """Number of tokens after each sample: 1 with a separator, else 0."""
        return int(self.unit.separator is not None)

    @cached_property
    def per_epoch(self) -> int:
        """Number of blocks of a whole epoch."""
        return epoch_blocks(self.tokens, self.unit)

    @cached_property
    def _begins(self) -> dict[int, int]:
        """Number of tokens before the first block of the open epoch and of the later epochs with skipped samples."""
        begins = {self.start.place.epoch: self._end_of(self.start.place.epoch, self.start.place.position) - self.left}
        return begins | {own.epoch: self._end_of(own.epoch, own.num_skipped) for own in self.start.ahead}

    @cached_property
    def _passed(self) -> dict[int, int]:
        """Number of blocks of each of these epochs that count as drawn before the run, so that the others fill the rest of the epoch."""
        total = self.tokens.num_tokens + self.extra * self.tokens.num_samples
        length = self.unit.block_tokens
        return {epoch: self.per_epoch - (total - begin) // length for epoch, begin in self._begins.items()}

    @cached_property
    def _ahead(self) -> tuple[OpenEpoch, ...]:
        own = self.start.place.epoch
        return tuple(OpenEpoch(epoch, 0, (), (), num) for epoch, num in sorted(self._passed.items()) if epoch != own)

    @cached_property
    def drawn(self) -> int:
        """Number of blocks before the run, as if every epoch had the present number of blocks."""
        return self.start.place.epoch * self.per_epoch + sum(self._passed.values())

    def place_of(self, block: int) -> tuple[int, int]:
        """Return the epoch of a block, and its number in the epoch."""
        return place_of(block, self.per_epoch, self._ahead)

    def blocks_with(self, epoch: int, shard: int, row: int) -> list[int]:
        """List the blocks of an epoch with a token of a sample, rising. Blocks before the run are left out."""
        size = int(self.tokens.rows(shard)[row]) + self.extra
        begin = self._begins.get(epoch, 0)
        first = self._end_of(epoch, self.order.offset(epoch, shard, row)) - begin
        low, high = max(0, first) // self.unit.block_tokens, -(-(first + size) // self.unit.block_tokens)
        passed = self._passed.get(epoch, 0)
        numbers = range(passed + low, min(passed + high, self.per_epoch)) if size else range(0)
        draws = (draw_of(epoch, number, self.per_epoch, self._ahead) for number in numbers)
        return [draw for draw in draws if draw is not None]

    def first_token(self, epoch: int, block: int) -> int:
        """Return the first token of a block of an epoch, counted from the beginning of the epoch."""
        return self._begins.get(epoch, 0) + (block - self._passed.get(epoch, 0)) * self.unit.block_tokens

    def find(self, epoch: int, token: int) -> tuple[int, int]:
        """Return the position of the sample with a token of an epoch, and the number of tokens of the epoch before the sample."""
        return self.order.find_token(epoch, token, self.tokens.shard_tokens, self.tokens.rows, extra=self.extra)

    def positions(self, epoch: int, begin: int, end: int) -> tuple[int, int]:
        """Return the position of the sample with the token `begin` of an epoch, and the position after the sample with the token end - 1."""
        return self.find(epoch, begin)[0], self.find(epoch, end - 1)[0] + 1

    def samples(self, epoch: int, start: int, stop: int) -> "EpochSamples":
        """Find the samples at the positions start .. stop - 1 of an epoch."""
        stretch = self.order.read_in(epoch, start, stop)
        counts = [self.tokens.rows(shard)[rows] for shard, rows in stretch.segments]
        sizes = np.concatenate(counts).astype(np.int64) + self.extra
        if stretch.place is not None:
            sizes = sizes.take(stretch.place)
        return EpochSamples(stretch, self._end_of(epoch, start) + np.append(0, np.cumsum(sizes)))

    def after(self, drawn: int) -> tuple[Standing, int]:
        """Return the place after some blocks, and the number of tokens of the last begun sample that no block has."""
        if drawn == self.drawn:
            return self.start, self.left
        epoch, block = self.place_of(drawn - 1)
        end = self.first_token(epoch, block) + self.unit.block_tokens
        position, _ = self.find(epoch, end - 1)
        standing = standing_at(self.start, epoch, position + 1, self.seed)
        return standing, self._end_of(epoch, position + 1) - end

    def _end_of(self, epoch: int, position: int) -> int:
        """Count the tokens of an epoch before a position, separators included."""
        tokens = self.order.tokens_in(epoch, position, self.tokens.shard_tokens, self.tokens.rows)
        return tokens + self.extra * position


def blocks_of_run(run: RunRecord, tokens: Sequence[SkillTokens]) -> list[SkillBlocks]:
    """Return the blocks of each skill of a run whose draws are blocks.

    Args:
        run: Run of blocks.
        tokens: Tokens of each skill.
    """
    assert run.blocks is not None
    cuts, blocks = cuts_of(run), []
    # Absent skills follow the skills of the run.
    for start, own in zip(beginnings(run), tokens, strict=False):
        if run.continues is None:  # the record has the blocks of an epoch in place of the samples
            start = start._replace(place=start.place.model_copy(update={"num_samples": own.num_samples}))
        blocks.append(SkillBlocks(start, cuts.get(start.place.label, 0), run.seed, own, run.blocks))
    return blocks


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
        blocks: Blocks of each skill of the mix.
        unit: Blocks of the run.
    """

    first_draw: int
    first: int
    skill: Int[np.ndarray, " draw"]
    number: Int[np.ndarray, " draw"]
    blocks: Sequence[SkillBlocks]
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
        files = IdFiles(shards, [own.tokens for own in self.blocks])
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
        own_blocks = self.blocks[skill]
        block, parts = int(self.number[draws[0]]), []
        while len(draws):
            epoch, first = own_blocks.place_of(block)
            own = draws[: own_blocks.per_epoch - first]
            parts.append(self._part(skill, epoch, first, own))
            draws, block = draws[len(own) :], block + len(own)
        return parts

    def _part(self, skill: int, epoch: int, first: int, draws: Int[np.ndarray, " draw"]) -> _Parts:
        """Find the segments of the blocks first, first + 1, ... of an epoch, a block for each draw."""
        own, length = self.blocks[skill], self.unit.block_tokens
        tokens = own.tokens
        begin = own.first_token(epoch, first)
        end = begin + len(draws) * length
        positions = own.positions(epoch, begin, end)
        self._prefetch(skill, epoch, *positions)
        (segments, place), begins = own.samples(epoch, *positions)
        shards = list(dict.fromkeys(shard for shard, _ in segments))
        file = np.repeat([shards.index(shard) for shard, _ in segments], [len(rows) for _, rows in segments])
        first_ids = np.concatenate([tokens.starts(shard, rows) for shard, rows in segments])
        if place is not None:
            file, first_ids = file.take(place), first_ids.take(place)
        # Segments begin at the samples and at the blocks. A sample without tokens begins where the next sample begins.
        start = np.unique(np.concatenate([np.maximum(begins[:-1], begin), np.arange(begin, end, length)]))
        stop = np.append(start[1:], end)
        sample = np.searchsorted(begins[1:], start, side="right")
        draw = draws[(start - begin) // length]
        # From a position in the tokens of the epoch to a position in the tokens of the stream.
        shift = self.first + draw * length - begin - (start - begin) // length * length
        return _Parts(
            shards,
            start + shift,
            stop + shift,
            draw,
            stop == begins[sample + 1],
            file[sample],
            first_ids[sample] + start - begins[sample],
        )

    def _prefetch(self, skill: int, epoch: int, start: int, stop: int) -> None:
        """Fetch the files of positions of an epoch of a skill from a store, and the files of as many following positions."""
        own = self.blocks[skill]
        if own.tokens.files.is_remote:
            for shard in own.order.shards_in(epoch, start, 2 * stop - start):
                own.tokens.prefetch(shard)
