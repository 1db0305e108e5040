r"""The mixed stream as blocks of tokens of equal length, for trainers of language models.

The packed stream is the tokens of draws 0, 1, 2, ... in this order. The separator follows the tokens of each draw. The packed
stream is cut into blocks of L tokens: block b is the tokens bL .. (b+1)L - 1. So a block, like a draw, is a pure function of the
shards, the tokens, the seed and the ledger. The state is one integer, the number of blocks consumed.

The token ids are kept beside the shards (shards/tokens.py), so nothing is tokenized during the training, and no text is read. The token
counts are known, so a block is found without the blocks before:

1. The tokens before round r are, for each skill, the tokens of its first `drawn_before` samples. The sum adds whole epochs,
   whole shards, whole stripes and a part of a stripe (`SkillOrder.tokens_before`). A saved state names the draw of its block, and so the
   round. Otherwise, bisection over the ledger's rounds finds the round. A reader that reads on keeps its rounds in memory.
2. Inside the round, a search in the cumulative token counts of the draws finds the draws of the blocks.

A table of a window of draws (`round_ids.IdTable`) has the parts of samples in the blocks. A batch is a part of the table, and one call of
Arrow copies its tokens. No step runs in Python for each token or each sample.

With `packing="one"`, a block is one draw, cut after L tokens or filled up to L tokens. Then each draw counts as L tokens of the stream, and
all searches above stay the same.

If `repeat` ends the stream, the last block is filled up with the separator (or with token 0 without a separator), marked by
draw -1. No token is lost.
"""

import operator
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple, SupportsIndex, cast, get_args

import numpy as np
from jaxtyping import Bool, Int, Shaped
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard import places
from skillshard.canonical import first_fault
from skillshard.errors import LedgerError, PolicyError, RoundError, TokensError, did_you_mean, name_some
from skillshard.loss import LossKind, MeasuredOn
from skillshard.memo import memoized
from skillshard.mixing.ledger import PACKED, BlockUnit, Continued, Lag, PackedBeginRecord
from skillshard.mixing.metrics import MOST_SKILLS
from skillshard.mixing.mixer import Mixer, MixerState
from skillshard.mixing.packed_batch import PackedBatch, Segments
from skillshard.mixing.records import RECORDS_KEPT, packed_begin
from skillshard.mixing.round_ids import TABLES_KEPT, WINDOW_DRAWS, IdTable, RoundIds, counts_of
from skillshard.mixing.round_plan import RoundPlan, order_round, read_ahead
from skillshard.mixing.skill_blocks import SkillRound
from skillshard.mixing.stream import BLOCKS, LAST_DRAW, Clock, is_whole, whole_number
from skillshard.printable import counted
from skillshard.shards.token_set import SkillTokens, TokenSet

Packing = Literal["concat", "one", "skill"]
"""The way from draws to blocks: the tokens of all draws one after the other, a block for each draw, or blocks of one skill as draws."""
CUT = -1
"""Number of the round before round 0: the last draw of the run before, which a block's end has cut."""


class PackedState(BaseModel):
    """The state of a packed stream in a checkpoint, in place of the mixer's state."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/packed/5"] = Field("skillshard/packed/5", alias="schema")
    block: int = Field(ge=0, le=LAST_DRAW, description="blocks consumed")
    left: int = Field(ge=0, description="number of tokens at the end of the last draw that these blocks do not have")
    step: int | None = Field(description="optimizer steps taken; null if the trainer gave no step")
    mixer: MixerState = Field(description="state of the mixer after the draws with at least one token in these blocks")
    tokens: str = Field(description="digest of tokens.json")
    tokenizer: str = Field(description="digest of the tokenizer, its special tokens and the rendering of conversations")
    block_tokens: int = Field(ge=1)
    separator: str | None
    packing: Packing


@dataclass(frozen=True)
class PackedRound:
    """A round as tokens.

    Attributes:
        plan: Rows of the samples of the round.
        first_draw: First draw of the round.
        first: Number of tokens of the stream before the round.
        ends: End of each draw's tokens, counted from the round's first token, separators included.
        sizes: Number of tokens of each draw, separators included.
        tokens: Tokens of each skill of the mix.
        is_one: Whether a block is one draw.
    """

    plan: RoundPlan
    first_draw: int
    first: int
    ends: Int[np.ndarray, " draw"]
    sizes: Int[np.ndarray, " draw"]
    tokens: Sequence[SkillTokens]
    is_one: bool
    _tables: dict[int, IdTable | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def end(self) -> int:
        """Number of tokens of the stream before the next round."""
        return self.first + (int(self.ends[-1]) if len(self.ends) else 0)

    @cached_property
    def begins(self) -> Int[np.ndarray, " bound"]:
        """Beginning of each draw's tokens, counted from the round's first token, and the end of the last draw."""
        return np.concatenate([[0], self.ends])

    @cached_property
    def ids(self) -> RoundIds:
        """Ids of the draws. The files are opened when the first block of the round is read."""
        return RoundIds(self.plan, self.tokens)

    def table_at(self, token: int, block_tokens: int) -> IdTable:
        """Return the table of the window of draws that holds a token of the stream."""
        window = self.draw_at(token) // WINDOW_DRAWS

        def make(number: int) -> IdTable | None:
            places = {"first": self.first, "first_draw": self.first_draw, "block_tokens": block_tokens}
            if self.is_one:
                return self.ids.table_of_draws(number, self.sizes, **places)
            return self.ids.table(number, self.begins, **places)

        table = memoized(self._tables, window, make, most=TABLES_KEPT)
        assert table is not None
        return table

    def draw_at(self, token: int) -> int:
        """Return the draw of a token of the stream, counted from the beginning of the round."""
        # With side="right" a draw without tokens, whose end equals its beginning, is passed over.
        return int(np.searchsorted(self.ends, token - self.first, side="right"))


class _Read(NamedTuple):
    """Blocks that were read: their numbers, and the tokens, masks and segments of all blocks, one block after the other."""

    block: Int[np.ndarray, " block"]
    ids: Int[np.ndarray, " token"]
    answer: Bool[np.ndarray, " token"] | None
    segments: Segments


class Pieces(NamedTuple):
    """The parts of the blocks of a batch in one window of draws.

    Attributes:
        table: Segments of the window.
        row: Row of each piece in the batch.
        start, stop: The piece has the tokens start .. stop - 1 of the stream.
    """

    table: IdTable
    row: Int[np.ndarray, " piece"]
    start: Int[np.ndarray, " piece"]
    stop: Int[np.ndarray, " piece"]


class Begin(NamedTuple):
    """The beginning of a packed stream.

    Attributes:
        block: First block of the run. 0 unless the run continues another run.
        left: Number of tokens at the end of the last draw before the run that no earlier block has. The first block begins with these tokens.
        tokens_before: Number of tokens of the draws before the run, as `PackedTokens` counts the tokens of draws.
    """

    block: int
    left: int
    tokens_before: int


class PackedTokens:
    """The mixed stream of a mixer as blocks of tokens.

    Args:
        mixer: Mixer of the stream. The mixer's own position is not used. Resume by the `load_state_dict` of this class.
        tokens: Tokens of the mixer's shards with their ids. If the token set has answers, the prompts are masked, so that only answers
            and separators are learned (`PackedBatch.labels`). The blocks are the same with and without a mask.
        block_tokens: Number of tokens of a block, L.
        separator: Text of the token after each sample, such as "<|endoftext|>". None: no separator.
        step_blocks: Number of blocks of an optimizer step, over all ranks and gradient accumulation. `report` and `state_dict` use
            the number to translate steps into blocks.
        packing: "concat" (default): the tokens of all draws one after the other, as for pre-training. "one": a block is a draw, as for
            fine-tuning. The tokens of a long sample beyond `block_tokens` are left out, and a short sample is filled up. "skill": a
            block has tokens of one skill, and the draws of the mixer are these blocks (`Mixer(unit="blocks")`, with the same tokens,
            `block_tokens` and `separator`). At the end of an epoch of a skill, the tokens that fill no block are left out.

    Raises:
        TokensError: The tokens belong to other shards or have no ids, the separator is no token, or a skill has no tokens.
        PolicyError: An argument is out of range, or the mixer is strict (lag=0), because blocks reach over the ends of rounds.

    Example:
        packed = PackedTokens(mixer, TokenSet.open("T"), block_tokens=1024, separator="<|endoftext|>", step_blocks=32)
        for batch in packed.batches(32): ...
    """

    def __init__(
        self,
        mixer: Mixer,
        tokens: TokenSet,
        *,
        block_tokens: int,
        separator: str | None,
        step_blocks: int | None = None,
        packing: str = "concat",
    ) -> None:
        if packing not in get_args(Packing):
            raise PolicyError(
                f"packing is {packing!r}{did_you_mean(packing, get_args(Packing))}: give 'concat', 'one' or 'skill'."
            )
        for name, value in {"block_tokens": block_tokens, "step_blocks": step_blocks}.items():
            if not (is_whole(value, 1, LAST_DRAW) or (value is None and name == "step_blocks")):
                raise PolicyError(f"{name} is {value!r}: give at least 1, as a whole number.")
        if mixer.members:
            raise PolicyError(
                f"a block of tokens has no members of samples, and the mixer has {name_some(mixer.members.suffixes)}: omit members."
            )
        if mixer.lag == 0 and mixer.policy.reads_losses and packing == "concat":
            raise PolicyError(
                "Mixer(lag=0) begins a round only after the losses at the end of the previous round. A block that reaches over the end of a "
                "round would wait for losses that the trainer measures after the block. Use lag=1 (default) or 'live' with packed tokens."
            )
        tokens.refuse_other_shards(mixer.shards)
        _refuse_other_unit(
            mixer.blocks, packing, BlockUnit(tokens=tokens.digest, block_tokens=int(block_tokens), separator=separator)
        )
        tokens.refuse_counts_alone()
        self.mixer, self.tokens = mixer, tokens
        self.block_tokens, self.separator = operator.index(block_tokens), separator
        self.packing = cast(Packing, packing)
        self._separator = None if separator is None else tokens.token_id(separator)
        self._tokens = [tokens.train[skill] for skill in mixer.skills]
        if packing != "skill":
            _refuse_empty(self._tokens, tokens, separator)
        self._block = 0
        self.clock = Clock(BLOCKS, None if step_blocks is None else operator.index(step_blocks))
        self._mixer_draw = mixer.draw
        self._rounds: dict[int, PackedRound | SkillRound] = {}
        self._known_begin: Begin | None = None
        if mixer.run.continues is not None:
            record = packed_begin(mixer.ledger, mixer.run)
            self._stand_at(0 if record is None else record.block, mixer.run.continues.step)

    def __repr__(self) -> str:
        """Return a line with the length of the blocks, the position of the stream and the mixer."""
        return f"PackedTokens(blocks of {counted(self.block_tokens, 'token')}, at block {self._block:,}, of {self.mixer!r})"

    # --- the stream --------------------------------------------------------------------------------------------------

    def at(self, blocks: Int[np.ndarray, " block"]) -> PackedBatch:
        """Read blocks in any order. Blocks beyond the end of the stream are left out.

        Raises:
            TokensError: A file of tokens is damaged, or belongs to another token set.
            FieldError: A sample lacks a field of the mixer.
        """
        self._refuse_moved()
        self._record_begin()
        numbers = np.asarray(blocks, np.int64)
        is_one = self.packing == "one"
        read = self._draws(numbers) if is_one else self._neighbours(numbers) or self._scattered(numbers)
        sample_draw, fields = self._fields(read.segments)
        shape = (len(read.block), self.block_tokens)
        answer = None if read.answer is None else read.answer.reshape(shape)
        return PackedBatch(
            read.block, read.ids.reshape(shape), read.segments, self.mixer.skills, answer, sample_draw, fields
        )

    def _neighbours(self, blocks: Int[np.ndarray, " block"]) -> "_Read | None":
        """Read neighbouring blocks in one window, the usual case of a process that reads on. Return None for other blocks.

        The result is that of `_scattered`. The segments are a slice of the table, so that a batch takes half the time.
        """
        num = len(blocks)
        if not num or int(blocks[-1]) - int(blocks[0]) != num - 1 or not (blocks[1:] - blocks[:-1] == 1).all():
            return None
        first = int(blocks[0]) * self.block_tokens
        stop = first + num * self.block_tokens
        packed = self._round_at(first)
        if packed is None or packed.end < stop:
            return None
        table = packed.table_at(first, self.block_tokens)
        if table.end < stop:
            return None
        chosen = slice(*table.start.searchsorted((first, stop)).tolist())
        copied, mask = table.copy(chosen)
        ids, answer = copied.astype(np.int64), None if mask is None else mask.astype(bool)
        if self._separator is not None:
            places = table.last_tokens[slice(*table.last_tokens.searchsorted((first, stop)).tolist())] - first
            ids[places] = self._separator
            if answer is not None:
                answer[places] = True
        return _Read(
            blocks, ids, answer, Segments(table.start[chosen] - first, table.draw[chosen], table.skill[chosen])
        )

    def _scattered(self, blocks: Int[np.ndarray, " block"]) -> "_Read":
        """Read blocks in any order and over the ends of windows."""
        numbers, pieces_of = self._pieces(blocks)
        num_tokens = len(numbers) * self.block_tokens
        filled = sum(int((pieces.stop - pieces.start).sum()) for pieces in pieces_of)
        # The arrays of a last block that is filled up begin as fillers.
        filler = 0 if self._separator is None else self._separator
        ids = np.empty(num_tokens, np.int64) if filled == num_tokens else np.full(num_tokens, filler, np.int64)
        answer = None if self.tokens.answers is None else np.ones(num_tokens, bool)
        columns = [self._copy(pieces, ids, answer) for pieces in pieces_of]
        if filled < num_tokens:
            columns.append(self._filler(pieces_of))
        return _Read(numbers, ids, answer, _joined(columns))

    def _draws(self, blocks: Int[np.ndarray, " block"]) -> "_Read":
        """Read blocks of which each is one draw."""
        numbers, pieces_of = self._pieces(blocks)
        num_tokens = len(numbers) * self.block_tokens
        ids = np.full(num_tokens, 0 if self._separator is None else self._separator, np.int64)
        answer = None if self.tokens.answers is None else np.ones(num_tokens, bool)
        columns = []
        for pieces in pieces_of:
            table, begins = pieces.table, pieces.row * self.block_tokens
            # A draw without tokens has no segment, and its block is a filler.
            nearest = np.searchsorted(table.start, pieces.start)
            has_tokens = np.append(table.start, -1)[nearest] == pieces.start
            chosen, places = nearest[has_tokens], begins[has_tokens]
            sizes = table.stop[chosen] - table.start[chosen]
            if len(chosen):
                copied, mask = table.copy(chosen)
                inside = np.arange(len(copied)) + np.repeat(places - (np.cumsum(sizes) - sizes), sizes)
                last_tokens = (places + sizes - 1)[table.is_last[chosen]]
                ids[inside] = copied
                if answer is not None and mask is not None:
                    answer[inside] = mask
                if self._separator is not None:
                    ids[last_tokens] = self._separator
                    if answer is not None:
                        answer[last_tokens] = True
            columns.append(Segments(places, table.draw[chosen], table.skill[chosen]))
            filled = np.zeros(len(begins), np.int64)
            filled[has_tokens] = sizes
            fillers = (begins + filled)[filled < self.block_tokens]
            columns.append(Segments(fillers, *(np.full(len(fillers), -1),) * 2))
        return _Read(numbers, ids, answer, _joined(columns))

    def _copy(
        self, pieces: Pieces, ids: Int[np.ndarray, " token"], answer: Bool[np.ndarray, " token"] | None
    ) -> Segments:
        """Copy the tokens of the pieces of a window into the batch, and return their segments.

        Args:
            pieces: Pieces of one window.
            ids, answer: Tokens of the batch and their mask, one block after the other.
        """
        table = pieces.table
        lows, highs = np.searchsorted(table.start, pieces.start), np.searchsorted(table.start, pieces.stop)
        begins = pieces.row * self.block_tokens + pieces.start % self.block_tokens
        shifts = begins - pieces.start  # from a position in the stream to a position in the batch
        chosen: slice | np.ndarray
        if (lows[1:] == highs[:-1]).all() and (shifts == shifts[0]).all():
            # Neighbouring blocks, as a single process reads them: a slice copies no columns.
            chosen, shift = slice(int(lows[0]), int(highs[-1])), shifts[0]
        else:
            nums = highs - lows
            chosen = np.arange(int(nums.sum())) + np.repeat(lows - (np.cumsum(nums) - nums), nums)
            shift = np.repeat(shifts, nums)
        copied, mask = table.copy(chosen)
        self._place(begins, pieces.stop - pieces.start, copied, ids)
        if self._separator is not None:
            last_tokens = (table.stop[chosen] + shift - 1)[table.is_last[chosen]]
            ids[last_tokens] = self._separator
        if answer is not None and mask is not None:
            self._place(begins, pieces.stop - pieces.start, mask, answer)
            if self._separator is not None:
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

    def _filler(self, pieces_of: Sequence[Pieces]) -> Segments:
        """Return the segments of fillers in the last block of the stream. A batch may have the last block more than once."""
        row, stop = (np.concatenate([getattr(pieces, name) for pieces in pieces_of]) for name in ("row", "stop"))
        is_end = stop == stop.max()
        places = row[is_end] * self.block_tokens + stop[is_end] % self.block_tokens
        nothing = np.full(len(places), -1)
        return Segments(places, nothing, nothing)

    def _fields(self, segments: Segments) -> tuple[Int[np.ndarray, " sample"], dict[str, list[Any]]]:
        """Return the draws with a token in a batch, and the fields of the samples. Both are empty if the mixer has no fields."""
        if not self.mixer.fields:
            return np.empty(0, np.int64), {}
        sample_draw = np.unique(segments.draw[segments.draw >= 0])
        own = sample_draw[sample_draw >= self.mixer.first_draw]
        fields = self.mixer.fields_at(self.mixer.find(own))
        if len(own) < len(sample_draw):
            # The sample that the last block of the run before has cut comes before all other draws.
            plan = self.mixer.plan_before()
            assert plan is not None
            cut = plan.fields(self.mixer.fields, slice(0, 1))
            fields = {path: cut[path] + values for path, values in fields.items()}
        return sample_draw, fields

    def batch(self, first: int, num: int) -> PackedBatch:
        """Read the blocks first .. first + num - 1, or the blocks up to the end of the stream."""
        return self.at(np.arange(first, first + num))

    def batches(self, batch_size: int) -> Iterator[PackedBatch]:
        """Iterate over the stream in batches from its position. Each yielded batch advances `block`."""
        is_begin = self._block == self._begin.block
        self.mixer.check_begin(self.mixer.first_draw + (not is_begin))
        while len(batch := self.batch(self._block, batch_size)):
            self._block += len(batch)
            yield batch

    @property
    def block(self) -> int:
        """Number of blocks yielded by iterating, or set by `load_state_dict`."""
        return self._block

    @property
    def position(self) -> int:
        """Position of the stream, equal to `block`. All streams share the name `position` (`skillshard.mixing.stream`)."""
        return self._block

    @property
    def step_blocks(self) -> int | None:
        """Number of blocks of an optimizer step, over all ranks and gradient accumulation. None if unknown."""
        return self.clock.step_size

    @property
    def round_size(self) -> float:
        """Number of blocks of round 0, a fraction included. Later rounds may have other numbers of blocks."""
        record = self.mixer.round(0)
        after = list(map(operator.add, record.drawn_before, record.counts))
        return max(1, self._tokens_of(after) - self._tokens_of(record.drawn_before)) / self.block_tokens

    @property
    def draws_per_position(self) -> float:
        """Expected number of draws of a block under the weights of round 0, over whole epochs, separators included."""
        if self.packing != "concat":
            return 1.0
        weights = self.mixer.round(0).weights
        means = [
            tokens.num_tokens / order.num_samples + (self._separator is not None)
            for tokens, order in zip(self._tokens, self.mixer.orders, strict=True)
        ]
        return self.block_tokens / sum(weight * mean for weight, mean in zip(weights, means, strict=True))

    def holds(self, block: int) -> bool:
        """Return whether the stream reaches a block."""
        return self._round_at(block * self.block_tokens) is not None

    def length(self) -> int | None:
        """Return the number of blocks of the stream, the last block filled up. Return None under the conditions of `Mixer.length`."""
        drawn = self.mixer.num_drawn()
        return None if drawn is None else -(-self._token_after(drawn) // self.block_tokens)

    def draws_before(self, block: int) -> int:
        """Return the number of draws with at least one token before a block.

        A model that was trained on the blocks before has seen these draws, the last draw perhaps in part.
        """
        if block <= self._begin.block:
            return self.mixer.first_draw
        last = block * self.block_tokens - 1
        packed = self._round_at(last)
        if packed is not None:
            return packed.first_draw + packed.draw_at(last) + 1
        # Beyond the end of the stream only the filled last block remains, and a model that has seen it has seen every draw.
        newest = self.mixer.round(self.mixer.num_rounds - 1)
        return newest.first_draw + newest.num_draws

    def _left_after(self, block: int) -> int:
        """Return the number of tokens of the last draw with a token before a block that the blocks before do not have."""
        if self.packing != "concat":
            return 0
        if block <= self._begin.block:
            return self._begin.left
        last = block * self.block_tokens - 1
        packed = self._round_at(last)
        if not isinstance(packed, PackedRound):
            return 0
        return packed.first + int(packed.ends[packed.draw_at(last)]) - last - 1

    def _pieces(self, blocks: Int[np.ndarray, " block"]) -> tuple[Int[np.ndarray, " reached"], list[Pieces]]:
        """Split blocks at the ends of windows. Return the blocks that the stream reaches, and their pieces, window by window."""
        begin, end = blocks * self.block_tokens, (blocks + 1) * self.block_tokens
        # The next token of each block that no piece has yet. The earliest such token of all blocks names the next window.
        following, split = begin.copy(), []
        while (is_open := following < end).any():
            token = int(following[is_open].min())
            packed = self._round_at(token)
            if packed is None:
                break
            table = packed.table_at(token, self.block_tokens)
            rows = np.flatnonzero(is_open & (following < table.end))
            stop = np.minimum(end[rows], table.end)
            split.append((table, rows, following[rows], stop))
            following[rows] = stop
        exists = following > begin
        row_of = np.cumsum(exists) - 1
        return blocks[exists], [Pieces(table, row_of[rows], start, stop) for table, rows, start, stop in split]

    # --- rounds as tokens --------------------------------------------------------------------------------------------

    def _round_at(self, token: int) -> PackedRound | SkillRound | None:
        """Find the round that holds a token of the stream. Return None beyond the end of the stream."""
        # The cheapest way first: a round in memory, then the next round, then a search in the ledger, then rounds that the
        # ledger does not have yet, which are decided one after the other.
        for packed in self._rounds.values():
            if packed.first <= token < packed.end:
                return packed
        if token < self._first_token + self._begin.left:
            return self._packed(CUT)
        candidate = self._next_to(token) or self._resumed_round(token)
        if candidate is None or not candidate.first <= token < candidate.end:
            candidate = self._packed(self._number_at(token))
        while candidate is not None and candidate.end <= token:
            candidate = self._packed((candidate.first_draw - self.mixer.first_draw) // self.mixer.round_draws + 1)
        return candidate

    def _next_to(self, token: int) -> PackedRound | SkillRound | None:
        """Return the round after the last round in memory that ends before a token. A reader that reads on needs no search."""
        read = [number for number, packed in self._rounds.items() if packed.end <= token]
        return self._packed(max(read) + 1) if read else None

    def _resumed_round(self, token: int) -> PackedRound | SkillRound | None:
        """Return the round of the mixer's draw, or the round after. A resumed stream reads on there, and needs no search."""
        number = (self.mixer.draw - self.mixer.first_draw - 1) // self.mixer.round_draws
        if self._rounds or number < 0 or number >= self.mixer.num_rounds:
            return None
        packed = self._packed(number)
        return packed if packed is None or token < packed.end else self._packed(number + 1)

    def _number_at(self, token: int) -> int:
        """Find the last round of the ledger that begins at a token or before."""
        known = self.mixer.num_rounds
        return max(0, bisect_right(range(known), token, key=self._tokens_before) - 1)

    def _tokens_before(self, number: int) -> int:
        """Count the tokens of the stream before a round."""
        return self._token_after(self.mixer.round(number).drawn_before)

    @property
    def _begin(self) -> Begin:
        """Beginning of the stream. Without a record in the ledger, a continued run begins at block 0 and at the next sample."""
        if self._known_begin is None:
            run = self.mixer.run
            record = None if run.continues is None else packed_begin(self.mixer.ledger, run)
            if run.continues is None:
                self._known_begin = Begin(0, 0, 0)
            elif record is None:
                return Begin(0, 0, self._tokens_of(run.drawn_before))
            else:
                self._known_begin = Begin(record.block, record.left, self._tokens_of(run.drawn_before))
        return self._known_begin

    def _record_begin(self) -> None:
        """Record the first block of a continued run before a block is read, so that no process can begin at another block later."""
        if self._known_begin is None and self.mixer.run.continues is not None:
            self._put_begin(0, 0)

    def _put_begin(self, block: int, left: int) -> PackedBeginRecord:
        """Record the first block of the run unless the ledger knows it. Return the record of the ledger."""
        run = self.mixer.run
        self.mixer.ledger.put(PACKED, PackedBeginRecord(run=run.checksum, block=block, left=left).to_bytes())
        record = packed_begin(self.mixer.ledger, run)
        assert record is not None
        return record

    @property
    def _first_token(self) -> int:
        """First token of the stream of the run."""
        return self._begin.block * self.block_tokens

    def _token_after(self, drawn: Sequence[int]) -> int:
        """Return the token of the stream after the first `drawn[i]` draws of each skill i, over all runs."""
        return self._first_token + self._begin.left + self._tokens_of(drawn) - self._begin.tokens_before

    def _tokens_of(self, drawn: Sequence[int]) -> int:
        """Count the tokens of the first `drawn[i]` draws of each skill i, separators included."""
        if self.packing != "concat":
            return sum(drawn) * self.block_tokens
        per_skill = zip(self.mixer.orders, self._tokens, drawn, strict=True)
        tokens = sum(order.tokens_before(num, counts.shard_tokens, counts.rows) for order, counts, num in per_skill)
        return tokens + sum(drawn) * (self._separator is not None)

    def _packed(self, number: int) -> PackedRound | SkillRound | None:
        packed: PackedRound | SkillRound | None
        if number == CUT:
            packed = self._cut_draw()
        elif self.mixer.blocks is None:
            packed = self._drawn(number)
        else:
            packed = self._blocks_of_skills(self.mixer.blocks, number)
        if packed is not None:
            self._rounds[number] = packed
            if len(self._rounds) > RECORDS_KEPT:
                del self._rounds[min(self._rounds)]
        return packed

    def _blocks_of_skills(self, unit: BlockUnit, number: int) -> SkillRound | None:
        """Return a round whose draws are blocks of one skill."""
        record = self.mixer.begun(number)
        if record is None:
            return None
        skill, slot = order_round(record, seed=self.mixer.seed)
        first_slot = np.cumsum(record.counts) - record.counts
        numbers = np.array(record.drawn_before)[skill] + slot - first_slot[skill]
        return SkillRound(record.first_draw, skill, numbers, self.mixer.orders, self._tokens, unit)

    def _drawn(self, number: int) -> PackedRound | None:
        """Return a round whose draws are samples."""
        plan = self.mixer.rows_of(number)
        if plan is None:
            return None
        if self.tokens.files.is_remote:
            read_ahead(self.mixer.round(number), self.mixer.orders, [tokens.prefetch for tokens in self._tokens])
        before = self._rounds.get(number - 1)
        first = self._tokens_before(number) if before is None else before.end
        sizes = counts_of(plan, self._tokens) + (self._separator is not None)
        is_one = self.packing == "one"
        ends = np.cumsum(np.full_like(sizes, self.block_tokens) if is_one else sizes)
        first_draw = self.mixer.first_draw + number * self.mixer.round_draws
        return PackedRound(plan, first_draw, first, ends, sizes, self._tokens, is_one)

    def _cut_draw(self) -> PackedRound:
        """Return the last draw before the run, whose tokens go on at the place where the last block has cut them, as a round."""
        plan = self.mixer.plan_before()
        assert plan is not None
        sizes = counts_of(plan, self._tokens) + (self._separator is not None)
        first = self._first_token + self._begin.left - int(sizes[0])
        return PackedRound(plan, self.mixer.first_draw - 1, first, np.cumsum(sizes), sizes, self._tokens, False)

    def _refuse_moved(self) -> None:
        """Raise PolicyError if the mixer was read or resumed beside its packed stream: the positions would disagree."""
        if self.mixer.draw != self._mixer_draw:
            raise PolicyError(
                f"the mixer stands at draw {self.mixer.draw:,} and stood at {self._mixer_draw:,} when its packed stream was begun or resumed. "
                "Resume only by the packed stream's load_state_dict, and read either the mixer or the packed stream."
            )

    # --- losses in, state out ----------------------------------------------------------------------------------------

    def report(self, step: SupportsIndex, losses: Mapping[str, Any], *, block: SupportsIndex | None = None) -> None:
        """Record the losses measured after `step` optimizer steps, as `Mixer.report` does.

        The observation is recorded at the number of draws of which the model has seen at least one token (`draws_before`). Two reports
        within a very long sample have the same draw. Only the first report is recorded, and a warning names the second report.

        Args:
            step: Number of optimizer steps taken, 0 before the first step.
            losses: Evaluation skill -> loss in nats per token, as for `Mixer.report`.
            block: Number of blocks that the model has seen. The default is `step * step_blocks`, counted from the last resume, so that
                `step_blocks` may change between runs.
        """
        self._record_begin()
        seen = self.clock.position_at(step) if block is None else whole_number("block", block)
        draw = self.draws_before(seen)
        earlier = self.mixer.step_reported_at(draw)
        if earlier is not None and earlier < whole_number("step", step):
            warnings.warn(
                f"the report of step {step} is left out: since the report of step {earlier} the model has read on within one long sample, so both "
                "reports are of the same draw. Report more rarely, or give larger blocks.",
                stacklevel=2,
            )
            return
        self.mixer.report(step, losses, draw=draw)

    def metrics(
        self,
        *,
        step: SupportsIndex | None = None,
        block: SupportsIndex | None = None,
        most_skills: int = MOST_SKILLS,
    ) -> dict[str, float]:
        """Return the numbers of the run for a logger, as `Mixer.metrics` does.

        Args:
            step: Number of optimizer steps taken, which gives the block.
            block: Number of blocks that the model has seen, in place of a step. None without a step: the position of the stream.
            most_skills: As for `Mixer.metrics`.

        Raises:
            RoundError: The block lies beyond the decided rounds.
            PolicyError: As for `Mixer.metrics`.
        """
        return self.mixer.metrics(draw=self._draw_of_metrics(step, block), most_skills=most_skills)

    def metrics_table(
        self, *, step: SupportsIndex | None = None, block: SupportsIndex | None = None
    ) -> list[dict[str, str | float | None]]:
        """Return the numbers of every skill as rows, as `Mixer.metrics_table` does."""
        return self.mixer.metrics_table(draw=self._draw_of_metrics(step, block))

    def _draw_of_metrics(self, step: SupportsIndex | None, block: SupportsIndex | None) -> int:
        if step is not None and block is not None:
            raise PolicyError(f"metrics got step={step!r} and block={block!r}: give one of them, or neither.")
        seen = self._block
        if step is not None:
            seen = self.clock.position_at(step)
        elif block is not None:
            seen = whole_number("block", block)
        # draws_before would decide the rounds up to the block.
        num_rounds = self.mixer.num_rounds
        newest = self.mixer.round(num_rounds - 1) if num_rounds else None
        is_open = newest is None or newest.num_draws == self.mixer.round_draws
        drawn = [0] if newest is None else list(map(operator.add, newest.drawn_before, newest.counts))
        is_beyond = newest is None or seen * self.block_tokens > self._token_after(drawn)
        if seen > self._begin.block and is_open and is_beyond:
            raise RoundError(
                f"block {seen:,} lies beyond the {counted(num_rounds, 'decided round')}. Metrics read decided rounds only: give a step or a block that the "
                "model has seen."
            )
        return self.draws_before(seen)

    def state_dict(self, *, step: SupportsIndex | None = None) -> dict[str, Any]:
        """Return the position of the packed stream as JSON. A checkpoint keeps this state in place of the mixer's state.

        Args:
            step: Number of optimizer steps taken, for a trainer whose loader reads ahead. `step_blocks` must be known. None: the
                number of blocks yielded by iterating.
        """
        number = None if step is None else whole_number("step", step)
        block = self._block if number is None else self.clock.position_at(number)
        return self.state_at(block, number).model_dump(by_alias=True)

    def state_at(self, block: int, step: int | None = None) -> PackedState:
        """Return the state of a packed stream after `block` consumed blocks. Raise LedgerError as in `Mixer.state_dict`."""
        self._record_begin()
        return PackedState(
            block=block,
            left=self._left_after(block),
            step=step,
            mixer=self.mixer.state_at(self.draws_before(block)),
            tokens=self.tokens.digest,
            tokenizer=self.tokens.encoding,
            block_tokens=self.block_tokens,
            separator=self.separator,
            packing=self.packing,
        )

    def load_state_dict(self, state: Mapping[str, Any], *, generation: int | None = None) -> None:
        """Continue at a saved block, in a new generation of the ledger, as `Mixer.load_state_dict` does.

        Args:
            state: Result of `state_dict`.
            generation: Number of the generation that rank 0 has begun for all ranks. None: this process begins a generation, or joins
                the generation of its job.

        Raises:
            LedgerError: The state belongs to another run, another ledger, other tokens, or other blocks.
        """
        try:
            saved = PackedState.model_validate(state)
        except ValidationError as error:
            raise LedgerError(
                f"this is no state of packed tokens (schemas/packed-5.json): {first_fault(error)}."
            ) from error
        before = self.mixer.run.continues
        if before is not None and saved.mixer.run == before.run:
            self._continue_from(saved, before, generation)
            return
        present = {
            "tokens": self.tokens.digest,
            "block_tokens": self.block_tokens,
            "separator": self.separator,
            "packing": self.packing,
        }
        for name, value in present.items():
            if getattr(saved, name) != value:
                raise LedgerError(
                    f"this state was saved with {name} {getattr(saved, name)!r}, but {name} of this stream is {value!r}. A packed stream resumes "
                    "with the same run, tokens, block_tokens, separator and packing."
                )
        self.mixer.load_state_dict(saved.mixer.model_dump(by_alias=True), generation=generation)
        self._stand_at(saved.block, saved.step)

    def _continue_from(self, saved: PackedState, before: Continued, generation: int | None) -> None:
        """Begin the run at a state of the run before, in other blocks if need be.

        A sample that the last block has cut goes on at its place if the blocks have the same tokenizer, separator and packing.
        """
        self.mixer.load_state_dict(saved.mixer.model_dump(by_alias=True), generation=generation)
        goes_on = (saved.tokenizer, saved.separator, saved.packing, "concat") == (
            self.tokens.encoding,
            self.separator,
            self.packing,
            self.packing,
        )
        left = saved.left if goes_on and self.mixer.plan_before() is not None else 0
        record = self._put_begin(saved.block, left)
        if (record.block, record.left) != (saved.block, left):
            raise LedgerError(
                f"the packed stream of {self.mixer.ledger} has begun at block {record.block:,} with {counted(record.left, 'token')} of a cut sample, and this "
                f"state begins at block {saved.block:,} with {counted(left, 'token')}: continue the run in a new ledger directory."
            )
        self._known_begin = None
        self._stand_at(saved.block, saved.step if before.step is None else before.step)

    def restart(self, *, generation: int | None = None) -> None:
        """Begin the run again from its first block, as `Mixer.restart` does."""
        self.mixer.restart(generation=generation)
        before = self.mixer.run.continues
        self._stand_at(self._begin.block, None if before is None else before.step)

    @property
    def generation(self) -> int:
        """Number of resumes and restarts of the run before this process joined."""
        return self.mixer.generation

    @property
    def repeat(self) -> str:
        """Rule for a skill without unread samples, as in `Mixer`."""
        return self.mixer.repeat

    @property
    def lag(self) -> Lag:
        """Number of rounds that a decision lags behind the losses, as in `Mixer`."""
        return self.mixer.lag

    @property
    def reads_losses(self) -> bool:
        """Whether the policy reads losses, so that a round may have to wait for a report."""
        return self.mixer.reads_losses

    @property
    def identity(self) -> dict[str, Any]:
        """Facts that determine the stream together with the losses, as JSON."""
        own = {"block_tokens": self.block_tokens, "separator": self.separator, "packing": self.packing}
        return {**self.mixer.identity, "tokens": self.tokens.digest, **own}

    @property
    def initial_losses(self) -> bool:
        """Whether the first report is of draw 0, the model before the first step."""
        return self.mixer.initial_losses

    @property
    def lacks_first_losses(self) -> bool:
        """Whether the stream stands at the first block of the run, and the run begins with the losses of this block."""
        return self.initial_losses and self._block == self._begin.block

    @property
    def skills(self) -> tuple[str, ...]:
        """Training skills, in the order of the numbers of skills in a batch."""
        return self.mixer.skills

    @property
    def loss(self) -> LossKind:
        """Kind of the reported losses, as in `Mixer`."""
        return self.mixer.loss

    @property
    def measured_on(self) -> MeasuredOn:
        """Samples of the reported losses, as in `Mixer`."""
        return self.mixer.measured_on

    def check_start(self, *, rank: int = 0) -> None:
        """Refuse a wrong start in the main process, as `Mixer.check_start` does."""
        self.mixer.check_start(rank=rank)

    def _stand_at(self, block: int, step: int | None) -> None:
        self._rounds.clear()
        self._mixer_draw = self.mixer.draw
        self._block = block
        self.clock = self.clock.resumed(step, block)

    def __getstate__(self) -> dict[str, Any]:
        # The rounds in memory hold memory maps, which cannot be pickled. Each worker finds its own rounds.
        return {**self.__dict__, "_rounds": {}}


def _joined(columns: Sequence[Segments]) -> Segments:
    """Join the segments of several windows, in the order of their places in the batch."""
    if len(columns) == 1:
        return columns[0]
    none = Segments(*(np.empty(0, np.int64),) * 3)
    start, draw, skill = (
        np.concatenate([getattr(part, name) for part in [none, *columns]]) for name in ("start", "draw", "skill")
    )
    order = np.argsort(start, kind="stable")
    return Segments(start[order], draw[order], skill[order])


def _refuse_other_unit(unit: BlockUnit | None, packing: str, own: BlockUnit) -> None:
    """Raise PolicyError unless the draws of the mixer fit the packing."""
    if (unit is not None) != (packing == "skill"):
        raise PolicyError(
            "packing='skill' needs a mixer whose draws are blocks: Mixer(..., unit='blocks', tokens=TOKENS, block_tokens=L, separator=TEXT)."
            if unit is None
            else f"the draws of the mixer are blocks (unit='blocks'), and packing is {packing!r}: give packing='skill', or a mixer of samples."
        )
    if unit is not None and unit != own:
        raise PolicyError(
            f"the draws of the mixer are blocks of {unit!r}, and the packed stream has {own!r}: give both the same values."
        )


def _refuse_empty(tokens: Sequence[SkillTokens], token_set: TokenSet, separator: str | None) -> None:
    """Raise TokensError for a skill without tokens if no separator follows its samples: its draws would never fill a block."""
    empty = [skill_tokens.skill for skill_tokens in tokens if not skill_tokens.num_tokens]
    if empty and separator is None:
        raise TokensError(
            f"no training sample of skill {empty[0]!r} has a token in {places.public(token_set.root)}, so its draws would fill no block. Give a "
            "separator, or tag these samples otherwise and shard again."
        )
