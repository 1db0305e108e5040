r"""The mixed stream as blocks of tokens of one length, for trainers of language models.

The token streams of draws 0, 1, 2, ... are put one after the other, each followed by the separator, and cut into blocks of L
tokens: block b is the tokens bL .. (b+1)L - 1. So blocks are as much a pure function of shards, counts, seed and ledger as draws
are, and the state is one integer, the block.

A block is found without tokenizing what comes before it, because the token counts (shards/tokens.py) are known:

1. Tokens before round r: for each skill, those of its first `drawn_before` samples: whole epochs, whole shards, whole blocks
   of rows, and a part of one (`SkillOrder.tokens_before`). The round is found by bisection over the ledger's rounds; one
   that reads on remembers the rounds it is in.
2. Inside the round, the counts in the order of the draws are added up and searched.

Only the samples that a block overlaps are tokenized, each once per call; the last one is kept for the next call, so that a long
sample is not tokenized again for each of its blocks.

The end: where `repeat` ends the stream, the last block is filled up with the separator (token 0 where there is none), marked by
draw -1. No token is lost.
"""

import operator
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Bool, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard.canonical import first_fault
from skillshard.errors import LedgerError, ObservationError, PolicyError, TokensError
from skillshard.loss import LossKind, answer_tokens, prompt_chars
from skillshard.mixing.ledger import Lag
from skillshard.mixing.mixer import Mixer, MixerState
from skillshard.mixing.records import RECORDS_KEPT
from skillshard.mixing.round_plan import RoundPlan
from skillshard.mixing.stream import BLOCKS, LAST_DRAW, Clock, is_whole, whole_number
from skillshard.printable import counted
from skillshard.shards.tokens import SkillTokens, TokenCounts, encode, encode_with_ends


@dataclass(frozen=True)
class PackedBatch:
    """Some blocks of the packed stream.

    Attributes:
        block: position in the packed stream of each block.
        input_ids: token ids, by the name that language models give them.
        draw: the draw that each token is of (its separator too); -1: filled up beyond the end of the stream. Where it
            changes, another sample begins.
        skill_tokens: tokens of each skill in each block, separators included.
        skill_names: the skills of the mix.
        prompt: which tokens are prompts that are not learned; None where no prompts are masked.
    """

    block: Int[np.ndarray, " block"]
    input_ids: Int[np.ndarray, "block token"]
    draw: Int[np.ndarray, "block token"]
    skill_tokens: Int[np.ndarray, "block skill"]
    skill_names: tuple[str, ...]
    prompt: Bool[np.ndarray, "block token"] | None = None

    def __len__(self) -> int:
        return len(self.block)

    def __repr__(self) -> str:
        """One line without the tokens."""
        first = f" from block {int(self.block[0]):,} on" if len(self) else ""
        return f"PackedBatch({counted(len(self), 'block')} of {counted(self.input_ids.shape[1], 'token')}{first})"

    @property
    def learned(self) -> Bool[np.ndarray, "block token"]:
        """Which tokens are learned: all but prompts that are masked and what is filled up beyond the end. Separators are learned."""
        inside = self.draw >= 0
        return inside if self.prompt is None else inside & ~self.prompt

    @cached_property
    def position_ids(self) -> Int[np.ndarray, "block token"]:
        """Place of each token in its sample's part of the block, from 0: position ids for attention that ends with the sample."""
        here = np.broadcast_to(np.arange(self.draw.shape[1]), self.draw.shape)
        begins = np.diff(self.draw, axis=1, prepend=-2) != 0
        return here - np.maximum.accumulate(np.where(begins, here, 0), axis=1)


class PackedState(BaseModel):
    """Where a packed stream stands: what a checkpoint keeps of it, in place of the mixer's state."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/packed/2"] = Field("skillshard/packed/2", alias="schema")
    block: int = Field(ge=0, le=LAST_DRAW, description="blocks consumed")
    step: int | None = Field(description="optimizer steps taken; null where the trainer did not say")
    mixer: MixerState = Field(description="the state of the mixer at the draws of which these blocks hold a token")
    tokens: str = Field(description="digest of tokens.json")
    block_tokens: int = Field(ge=1)
    separator: str | None


class PackedRound(NamedTuple):
    """A round as tokens.

    Attributes:
        plan: where its samples lie.
        first_draw: of the stream.
        first: tokens of the stream before it.
        ends: where each draw's tokens end, counted from the round's first token; the separators are counted in.
    """

    plan: RoundPlan
    first_draw: int
    first: int
    ends: Int[np.ndarray, " draw"]

    @property
    def end(self) -> int:
        """Tokens of the stream before the next round."""
        return self.first + (int(self.ends[-1]) if len(self.ends) else 0)

    def draw_at(self, token: int) -> int:
        """The draw, counted in the round, that a token of the stream is of."""
        return int(np.searchsorted(self.ends, token - self.first, side="right"))


class Piece(NamedTuple):
    """The part of a block that lies in one round: tokens start .. stop - 1 of the stream, of draws first .. last of the round."""

    round: PackedRound
    start: int
    stop: int
    first: int
    last: int


class PackedTokens:
    """The mixed stream of a mixer as blocks of tokens.

    Args:
        mixer: whose stream it is. Its own position is not used; resume by `load_state_dict` here.
        counts: token counts of the mixer's shards; they bring their tokenizer.
        block_tokens: tokens of a block, L.
        separator: the token put after each sample, by its text such as "<|endoftext|>"; None: none.
        step_blocks: blocks that one optimizer step takes, over all ranks and accumulation; translates steps into
            blocks in `report` and `state_dict`.
        answer_after: Text before the answer. The prompt before the text is masked, so that only answers and separators are learned
            (`PackedBatch.learned`); see `LossKind`. The blocks stay the same. None: no mask.
        prompt_field: Metadata field with the length of the prompt, which is masked in the same way. None: no mask.

    Raises:
        TokensError: the counts are of other shards, the separator is no token, or a skill has no tokens at all.
        PolicyError: an argument is out of range, or the mixer is strict (lag=0): blocks reach over the ends of rounds.

    Example:
        packed = PackedTokens(mixer, TokenCounts.open("T"), block_tokens=1024, separator="<|endoftext|>", step_blocks=32)
        for batch in packed.batches(32): ...
    """

    def __init__(
        self,
        mixer: Mixer,
        counts: TokenCounts,
        *,
        block_tokens: int,
        separator: str | None,
        step_blocks: int | None = None,
        answer_after: str | None = None,
        prompt_field: str | None = None,
    ) -> None:
        for name, value in {"block_tokens": block_tokens, "step_blocks": step_blocks}.items():
            if not (is_whole(value, 1, LAST_DRAW) or (value is None and name == "step_blocks")):
                raise PolicyError(f"{name} is {value!r}: give at least 1, as a whole number.")
        if mixer.lag == 0 and mixer.policy.reads_losses:
            raise PolicyError(
                "Mixer(lag=0) begins a round only after the losses at the end of the one before, but a block reaches over that end, so "
                "it would wait for itself. Use lag=1 (default) or 'live' with packed tokens."
            )
        counts.refuse_other_shards(mixer.shards)
        self.mixer, self.counts = mixer, counts
        self.block_tokens, self.separator = operator.index(block_tokens), separator
        self._separator = [] if separator is None else [counts.token_id(separator)]
        self._kind = LossKind(answer_after=answer_after, prompt_field=prompt_field)
        self._tokens = [counts.train[skill] for skill in mixer.skills]
        _refuse_empty(self._tokens, counts, separator)
        self._block = 0
        self.clock = Clock(BLOCKS, None if step_blocks is None else operator.index(step_blocks))
        self._mixer_draw = mixer.draw
        self._rounds: dict[int, PackedRound] = {}
        self._last_sample: tuple[int, np.ndarray] | None = None

    def __repr__(self) -> str:
        """One line: the length of the blocks, where the stream stands, and the mixer."""
        return f"PackedTokens(blocks of {counted(self.block_tokens, 'token')}, at block {self._block:,}, of {self.mixer!r})"

    # --- the stream --------------------------------------------------------------------------------------------------

    def at(self, blocks: Int[np.ndarray, " block"]) -> PackedBatch:
        """Any blocks, in any order; those beyond the end of the stream are left out.

        Raises:
            TokensError: a sample has another number of tokens than was counted.
        """
        self._refuse_moved()
        found = [(block, pieces) for block in blocks.tolist() if (pieces := self._pieces(block))]
        ids = self._tokenized([piece for _, pieces in found for piece in pieces])
        shape = (len(found), self.block_tokens)
        tokens = np.full(shape, self._separator[0] if self._separator else 0, np.int64)
        draws = np.full(shape, -1, np.int64)
        skill_tokens = np.zeros((len(found), len(self._tokens)), np.int64)
        for row, (block, pieces) in enumerate(found):
            for piece in pieces:
                here = slice(piece.start - block * self.block_tokens, piece.stop - block * self.block_tokens)
                tokens[row, here], draws[row, here] = self._cut(piece, ids)
                skills = piece.round.plan.skill[draws[row, here] - piece.round.first_draw]
                skill_tokens[row] += np.bincount(skills, minlength=len(self._tokens))
        prompts = tokens < 0 if self._kind.masks else None
        if prompts is not None:
            tokens = np.where(prompts, ~tokens, tokens)
        numbers = np.array([block for block, _ in found], np.int64)
        return PackedBatch(numbers, tokens, draws, skill_tokens, self.mixer.skills, prompts)

    def batch(self, first: int, num: int) -> PackedBatch:
        """The blocks first .. first + num - 1, or up to the end of the stream."""
        return self.at(np.arange(first, first + num))

    def batches(self, batch_size: int) -> Iterator[PackedBatch]:
        """The stream from where it stands, in batches; each moves `block` on when it is handed out."""
        self.mixer.check_begin(self._block)
        while len(batch := self.batch(self._block, batch_size)):
            self._block += len(batch)
            yield batch

    @property
    def block(self) -> int:
        """Blocks handed out by iterating, or set by `load_state_dict`."""
        return self._block

    @property
    def position(self) -> int:
        """The block at which the stream stands, as `block`: the name that all streams share (`skillshard.mixing.stream`)."""
        return self._block

    @property
    def step_blocks(self) -> int | None:
        """Blocks that one optimizer step takes, over all ranks and accumulation; None: unknown."""
        return self.clock.step_size

    @property
    def round_size(self) -> float:
        """Blocks of round 0, a part of a block included; later rounds have more or fewer, by their weights and samples."""
        return max(1, self._tokens_of(self.mixer.round(0).counts)) / self.block_tokens

    @property
    def draws_per_position(self) -> float:
        """Expected draws of one block by the weights of round 0, over whole epochs; separators are counted in."""
        weights = self.mixer.round(0).weights
        means = [
            tokens.num_tokens / order.num_samples + len(self._separator)
            for tokens, order in zip(self._tokens, self.mixer.orders, strict=True)
        ]
        return self.block_tokens / sum(weight * mean for weight, mean in zip(weights, means, strict=True))

    def holds(self, block: int) -> bool:
        """Whether the stream has not ended before a block."""
        return self._round_at(block * self.block_tokens) is not None

    def length(self) -> int | None:
        """Number of blocks of the whole stream, the last of them filled up, or None, as `Mixer.length`."""
        drawn = self.mixer.num_drawn()
        return None if drawn is None else -(-self._tokens_of(drawn) // self.block_tokens)

    def draws_before(self, block: int) -> int:
        """The draws of which at least one token lies before a block: what a model has seen that has seen the blocks before it."""
        if block == 0:
            return 0
        last = block * self.block_tokens - 1
        found = self._round_at(last)
        if found is not None:
            return found.first_draw + found.draw_at(last) + 1
        number = self.mixer.num_rounds - 1
        return number * self.mixer.round_draws + self.mixer.round(number).num_draws

    def _pieces(self, block: int) -> list[Piece]:
        """The parts of a block, round by round; none beyond the end, and less than a block at the end."""
        pieces = []
        start, stop = block * self.block_tokens, (block + 1) * self.block_tokens
        while start < stop and (found := self._round_at(start)) is not None:
            until = min(stop, found.end)
            pieces.append(Piece(found, start, until, found.draw_at(start), found.draw_at(until - 1)))
            start = until
        return pieces

    def _tokenized(self, pieces: Sequence[Piece]) -> "dict[int, Int[np.ndarray, ' token']]":
        """Draw -> token ids with the separator, of every draw of some pieces; each sample is tokenized once.

        A token of a prompt that is masked is the complement of its id, below 0, so that the mask is cut as the tokens are.
        """
        rounds = {piece.round.first_draw: piece.round for piece in pieces}
        wanted: dict[int, set[int]] = {first_draw: set() for first_draw in rounds}
        for piece in pieces:
            wanted[piece.round.first_draw].update(range(piece.first, piece.last + 1))
        ids: dict[int, np.ndarray] = {}
        for first_draw, found in rounds.items():
            ids |= self._tokenized_in(found, np.array(sorted(wanted[first_draw])))
        if ids:
            last = max(ids)
            self._last_sample = last, ids[last]
        return ids

    def _tokenized_in(
        self, found: PackedRound, within: Int[np.ndarray, " draw"]
    ) -> "dict[int, Int[np.ndarray, ' token']]":
        last_sample: dict[int, np.ndarray] = {}
        if self._last_sample is not None and self._last_sample[0] - found.first_draw in within:
            last_sample = dict([self._last_sample])
            within = within[within != self._last_sample[0] - found.first_draw]
        encoded = self._masked(found, within) if self._kind.masks else self._encoded(found.plan.texts(within))
        expected = np.diff(found.ends, prepend=0)[within] - len(self._separator)
        for at, (ids, num) in enumerate(zip(encoded, expected.tolist(), strict=True)):
            if len(ids) != num:
                raise TokensError(self._miscounted(found, int(within[at]), len(ids), num))
        arrays = [np.array(ids + self._separator, np.int64) for ids in encoded]
        return last_sample | dict(zip((found.first_draw + within).tolist(), arrays, strict=True))

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        return encode(self.counts.tokenizer, texts, special_tokens=self.counts.manifest.special_tokens)

    def _masked(self, found: PackedRound, within: Int[np.ndarray, " draw"]) -> list[list[int]]:
        """The token ids of some samples, those of their prompts as complements."""
        plan = found.plan
        texts = plan.texts(within)
        metas = [None] * len(texts) if self._kind.prompt_field is None else plan.metas(within)
        encoded = encode_with_ends(self.counts.tokenizer, texts, special_tokens=self.counts.manifest.special_tokens)
        masked = []
        for number, (text, meta, (ids, ends)) in enumerate(zip(texts, metas, encoded, strict=True)):
            try:
                is_answer = answer_tokens(ends, prompt_chars(text, self._kind, meta))
            except ObservationError as error:
                draw = int(within[number])
                (identity,) = plan.ids(slice(draw, draw + 1))
                raise ObservationError(
                    f"sample {identity!r} of skill {self.mixer.skills[plan.skill[draw]]!r} (draw {found.first_draw + draw:,}): {error}"
                ) from error
            tokens = np.array(ids, np.int64)
            masked.append(np.where(is_answer, tokens, ~tokens).tolist())
        return masked

    def _miscounted(self, found: PackedRound, within: int, got: int, counted: int) -> str:
        (identity,) = found.plan.ids(slice(within, within + 1))
        skill = self.mixer.skills[found.plan.skill[within]]
        return (
            f"sample {identity!r} of skill {skill!r} (draw {found.first_draw + within:,}) has {got:,} tokens, but {self.counts.root} counts "
            f"{counted:,}: it was counted by another version of the package tokenizers, or its counts are damaged. Run 'skillshard "
            "verify' on both, and count anew with 'skillshard tokens'."
        )

    def _cut(
        self, piece: Piece, ids: Mapping[int, np.ndarray]
    ) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " token"]]:
        """The tokens of a piece, and the draw of each."""
        found = piece.round
        numbers = np.arange(piece.first, piece.last + 1)
        begin = found.first + (int(found.ends[piece.first - 1]) if piece.first else 0)
        inside = slice(piece.start - begin, piece.stop - begin)
        tokens = np.concatenate([ids[found.first_draw + number] for number in numbers.tolist()])
        sizes = np.diff(found.ends[piece.first : piece.last + 1], prepend=begin - found.first)
        return tokens[inside], np.repeat(found.first_draw + numbers, sizes)[inside]

    # --- rounds as tokens --------------------------------------------------------------------------------------------

    def _round_at(self, token: int) -> PackedRound | None:
        """The round that holds a token of the stream; None beyond its end."""
        for packed in self._rounds.values():
            if packed.first <= token < packed.end:
                return packed
        found = self._next_to(token)
        if found is None or not found.first <= token < found.end:
            found = self._packed(self._number_at(token))
        while found is not None and found.end <= token:
            found = self._packed(found.first_draw // self.mixer.round_draws + 1)
        return found

    def _next_to(self, token: int) -> PackedRound | None:
        """The round after the last one that was read before a token: who reads on needs no search."""
        read = [number for number, packed in self._rounds.items() if packed.end <= token]
        return self._packed(max(read) + 1) if read else None

    def _number_at(self, token: int) -> int:
        """The last round of the ledger that begins at a token or before."""
        known = self.mixer.num_rounds
        return max(0, bisect_right(range(known), token, key=self._tokens_before) - 1)

    def _tokens_before(self, number: int) -> int:
        """Tokens of the stream before a round."""
        return self._tokens_of(self.mixer.round(number).drawn_before)

    def _tokens_of(self, drawn: Sequence[int]) -> int:
        """Tokens of the first draws of each skill, so many of each."""
        each = zip(self.mixer.orders, self._tokens, drawn, strict=True)
        tokens = sum(order.tokens_before(num, found.shard_tokens, found.rows) for order, found, num in each)
        return tokens + sum(drawn) * len(self._separator)

    def _packed(self, number: int) -> PackedRound | None:
        plan = self.mixer.plan(number)
        if plan is None:
            return None
        before = self._rounds.get(number - 1)
        first = self._tokens_before(number) if before is None else before.end
        sizes = self._draw_tokens(plan) + len(self._separator)
        packed = PackedRound(plan, number * self.mixer.round_draws, first, np.cumsum(sizes))
        self._rounds[number] = packed
        if len(self._rounds) > RECORDS_KEPT:
            del self._rounds[min(self._rounds)]
        return packed

    def _draw_tokens(self, plan: RoundPlan) -> Int[np.ndarray, " draw"]:
        """Tokens of each draw of a round, without separators."""
        order = np.argsort(plan.segment, kind="stable")
        bounds = np.searchsorted(plan.segment[order], np.arange(len(plan.segments) + 1))
        tokens = np.empty(len(order), np.int64)
        for at, (skill, shard) in enumerate(plan.segments):
            draws = order[bounds[at] : bounds[at + 1]]
            tokens[draws] = self._tokens[skill].rows(shard)[plan.row[draws]]
        return tokens

    def _refuse_moved(self) -> None:
        if self.mixer.draw != self._mixer_draw:
            raise PolicyError(
                f"the mixer stands at draw {self.mixer.draw:,} and stood at {self._mixer_draw:,} when its packed stream was begun or resumed: "
                "resume by the packed stream's load_state_dict alone, and read one of the two."
            )

    # --- losses in, state out ----------------------------------------------------------------------------------------

    def report(self, step: SupportsIndex, losses: Mapping[str, Any], *, block: SupportsIndex | None = None) -> None:
        """Record the losses measured after `step` optimizer steps, as `Mixer.report` does.

        The observation is made at the draws of which the model has seen at least one token (`draws_before`). Two reports within one
        very long sample are at the same draw. Only the first one is recorded, and a warning says so.

        Args:
            block: blocks seen when they were measured; `step * step_blocks` if that is known (counted from the last
                resume, so that it may change between runs).
        """
        seen = self.clock.position_at(step) if block is None else whole_number("block", block)
        draw = self.draws_before(seen)
        earlier = self.mixer.step_reported_at(draw)
        if earlier is not None and earlier < whole_number("step", step):
            warnings.warn(
                f"the report of step {step} is left out: since the report of step {earlier} the model has read on within one long sample, so both "
                "are at one draw. Report more rarely, or give larger blocks.",
                stacklevel=2,
            )
            return
        self.mixer.report(step, losses, draw=draw)

    def state_dict(self, *, step: SupportsIndex | None = None) -> dict[str, Any]:
        """Where the packed stream stands; it takes the place of the mixer's own state.

        Args:
            step: optimizer steps taken, for a trainer whose loader reads ahead (`step_blocks` must be known). None: the
                blocks handed out by iterating.
        """
        number = None if step is None else whole_number("step", step)
        block = self._block if number is None else self.clock.position_at(number)
        return self.state_at(block, number).model_dump(by_alias=True)

    def state_at(self, block: int, step: int | None = None) -> PackedState:
        """The state of a packed stream of which `block` blocks were consumed; LedgerError as `Mixer.state_dict`."""
        return PackedState(
            block=block,
            step=step,
            mixer=self.mixer.state_at(self.draws_before(block)),
            tokens=self.counts.digest,
            block_tokens=self.block_tokens,
            separator=self.separator,
        )

    def load_state_dict(self, state: Mapping[str, Any], *, generation: int | None = None) -> None:
        """Go on at a saved block, in a new generation of the ledger, as `Mixer.load_state_dict` does.

        Args:
            state: from `state_dict`.
            generation: the generation that rank 0 has begun for all ranks; None: this process begins it, or joins the one of its job.

        Raises:
            LedgerError: the state is of another run, another ledger, other token counts, or other blocks.
        """
        try:
            saved = PackedState.model_validate(state)
        except ValidationError as error:
            raise LedgerError(
                f"this is no state of packed tokens (schemas/packed-2.json): {first_fault(error)}."
            ) from error
        present = {"tokens": self.counts.digest, "block_tokens": self.block_tokens, "separator": self.separator}
        for name, value in present.items():
            if getattr(saved, name) != value:
                raise LedgerError(
                    f"this state is of {name} {getattr(saved, name)!r}, but here {name} is {value!r}. A packed stream goes on with "
                    "the run, token counts, block_tokens and separator that it had."
                )
        self.mixer.load_state_dict(saved.mixer.model_dump(by_alias=True), generation=generation)
        self._stand_at(saved.block, saved.step)

    def restart(self, *, generation: int | None = None) -> None:
        """Begin the run again from block 0, as `Mixer.restart` does."""
        self.mixer.restart(generation=generation)
        self._stand_at(0, None)

    @property
    def generation(self) -> int:
        """How often the run had been resumed or restarted when this process joined it."""
        return self.mixer.generation

    @property
    def repeat(self) -> str:
        """What happens when a skill runs out, as given to `Mixer`."""
        return self.mixer.repeat

    @property
    def lag(self) -> Lag:
        """How many rounds a decision may lag behind the losses, as given to `Mixer`."""
        return self.mixer.lag

    @property
    def reads_losses(self) -> bool:
        """Whether the policy reads losses, so that a round may have to wait for a report."""
        return self.mixer.reads_losses

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the stream beside the losses, as JSON."""
        tokens, block_tokens, separator = self.counts.digest, self.block_tokens, self.separator
        return {**self.mixer.identity, "tokens": tokens, "block_tokens": block_tokens, "separator": separator}

    @property
    def initial_losses(self) -> bool:
        """Whether the first report is of draw 0, the model before the first step."""
        return self.mixer.initial_losses

    def check_start(self, *, rank: int = 0) -> None:
        """As `Mixer.check_start`."""
        self.mixer.check_start(rank=rank)

    def _stand_at(self, block: int, step: int | None) -> None:
        self._rounds.clear()
        self._last_sample, self._mixer_draw = None, self.mixer.draw
        self._block = block
        self.clock = self.clock.resumed(step, block)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rounds": {}, "_last_sample": None}


def _refuse_empty(tokens: Sequence[SkillTokens], counts: TokenCounts, separator: str | None) -> None:
    """Without separators, a stretch of one skill without tokens would never fill a block."""
    empty = [found.skill for found in tokens if not found.num_tokens]
    if empty and separator is None:
        raise TokensError(
            f"no training sample of skill {empty[0]!r} has a token in {counts.root}, so its draws would fill no block. Give a separator, or "
            "tag such samples otherwise and shard again."
        )
