r"""The mixed stream as blocks of tokens of equal length, for trainers of language models.

The packed stream is the tokens of draws 0, 1, 2, ... in this order. The separator follows the tokens of each draw. The packed
stream is cut into blocks of L tokens: block b is the tokens bL .. (b+1)L - 1. So a block, like a draw, is a pure function of the
shards, the token counts, the seed and the ledger. The state is one integer, the number of blocks consumed.

The token counts (shards/tokens.py) are known, so a block is found without tokenizing the blocks before:

1. The tokens before round r are, for each skill, the tokens of its first `drawn_before` samples. The sum adds whole epochs,
   whole shards, whole stripes and a part of a stripe (`SkillOrder.tokens_before`). Bisection over the ledger's rounds finds the
   round of a block. A reader that reads on keeps its rounds in memory and needs no search.
2. Inside the round, a search in the cumulative token counts of the draws finds the draw.

Only the samples that overlap a block are tokenized, once per call. The last sample stays in memory for the next call, so that a
long sample is not tokenized again for each of its blocks.

If `repeat` ends the stream, the last block is filled up with the separator (or with token 0 without a separator), marked by
draw -1. No token is lost.
"""

import operator
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Bool, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard.canonical import first_fault
from skillshard.errors import LedgerError, ObservationError, PolicyError, TokensError
from skillshard.loss import LossKind, answer_spans, answer_tokens
from skillshard.mixing.ledger import Lag
from skillshard.mixing.mixer import Mixer, MixerState
from skillshard.mixing.records import RECORDS_KEPT
from skillshard.mixing.round_plan import RoundPlan
from skillshard.mixing.stream import BLOCKS, LAST_DRAW, Clock, is_whole, whole_number
from skillshard.printable import counted
from skillshard.shards.tokens import SkillTokens, TokenCounts, encode, encode_with_offsets


@dataclass(frozen=True)
class PackedBatch:
    """A batch of blocks of the packed stream.

    Attributes:
        block: Position of each block in the packed stream.
        input_ids: Token ids, under the usual name of language models.
        draw: Draw of each token and of each separator. A new draw begins a new sample. -1 marks a filler beyond the end of the
            stream.
        skill_tokens: Number of tokens of each skill in each block, separators included.
        skill_names: Names of the skills of the mix.
        prompt: Mask of the prompt tokens, which are not learned. None if no prompts are masked.
        sample_draw: Draws with a token in the batch, ascending, if the mixer has fields. `searchsorted(sample_draw, draw)` leads from
            a token to its sample.
        fields: Path -> value of each sample of `sample_draw`, for each field of the mixer (`Mixer(fields=...)`).
    """

    block: Int[np.ndarray, " block"]
    input_ids: Int[np.ndarray, "block token"]
    draw: Int[np.ndarray, "block token"]
    skill_tokens: Int[np.ndarray, "block skill"]
    skill_names: tuple[str, ...]
    prompt: Bool[np.ndarray, "block token"] | None = None
    sample_draw: Int[np.ndarray, " sample"] = field(default_factory=lambda: np.empty(0, np.int64))
    fields: Mapping[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.block)

    def __repr__(self) -> str:
        """Return a line without the tokens."""
        first = f" from block {int(self.block[0]):,} on" if len(self) else ""
        return f"PackedBatch({counted(len(self), 'block')} of {counted(self.input_ids.shape[1], 'token')}{first})"

    @property
    def learned(self) -> Bool[np.ndarray, "block token"]:
        """Mask of the learned tokens: all tokens except masked prompts and fillers beyond the end. Separators are learned."""
        inside = self.draw >= 0
        return inside if self.prompt is None else inside & ~self.prompt

    @cached_property
    def position_ids(self) -> Int[np.ndarray, "block token"]:
        """Position of each token in the part of its sample in the block, from 0, for attention within the samples."""
        positions = np.broadcast_to(np.arange(self.draw.shape[1]), self.draw.shape)
        # -2 is no draw and no filler, so the first token of a block always begins a sample's part.
        begins = np.diff(self.draw, axis=1, prepend=-2) != 0
        return positions - np.maximum.accumulate(np.where(begins, positions, 0), axis=1)


class PackedState(BaseModel):
    """The state of a packed stream in a checkpoint, in place of the mixer's state."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/packed/2"] = Field("skillshard/packed/2", alias="schema")
    block: int = Field(ge=0, le=LAST_DRAW, description="blocks consumed")
    step: int | None = Field(description="optimizer steps taken; null if the trainer gave no step")
    mixer: MixerState = Field(description="state of the mixer after the draws with at least one token in these blocks")
    tokens: str = Field(description="digest of tokens.json")
    block_tokens: int = Field(ge=1)
    separator: str | None


class PackedRound(NamedTuple):
    """A round as tokens.

    Attributes:
        plan: Places of the samples of the round.
        first_draw: First draw of the round.
        first: Number of tokens of the stream before the round.
        ends: End of each draw's tokens, counted from the round's first token, separators included.
    """

    plan: RoundPlan
    first_draw: int
    first: int
    ends: Int[np.ndarray, " draw"]

    @property
    def end(self) -> int:
        """Number of tokens of the stream before the next round."""
        return self.first + (int(self.ends[-1]) if len(self.ends) else 0)

    def draw_at(self, token: int) -> int:
        """Return the draw of a token of the stream, counted from the beginning of the round."""
        # With side="right" a draw without tokens, whose end equals its beginning, is passed over.
        return int(np.searchsorted(self.ends, token - self.first, side="right"))


class Piece(NamedTuple):
    """The part of a block in a round: tokens start .. stop - 1 of the stream, from draws first .. last of the round."""

    round: PackedRound
    start: int
    stop: int
    first: int
    last: int


class PackedTokens:
    """The mixed stream of a mixer as blocks of tokens.

    Args:
        mixer: Mixer of the stream. The mixer's own position is not used. Resume by the `load_state_dict` of this class.
        counts: Token counts of the mixer's shards, with their tokenizer.
        block_tokens: Number of tokens of a block, L.
        separator: Text of the token after each sample, such as "<|endoftext|>". None: no separator.
        step_blocks: Number of blocks of an optimizer step, over all ranks and gradient accumulation. `report` and `state_dict` use
            the number to translate steps into blocks.
        answer_after: Text before the answer. The prompt before the text is masked, so that only answers and separators are learned
            (`PackedBatch.learned`, and see `LossKind`). The blocks stay the same. None: no mask.
        prompt_field: Metadata field with the length of the prompt, which is masked in the same way. None: no mask.

    Raises:
        TokensError: The counts belong to other shards, the separator is no token, or a skill has no tokens.
        PolicyError: An argument is out of range, or the mixer is strict (lag=0), because blocks reach over the ends of rounds.

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
                "Mixer(lag=0) begins a round only after the losses at the end of the previous round. A block that reaches over the end of a "
                "round would wait for losses that the trainer measures after the block. Use lag=1 (default) or 'live' with packed tokens."
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
        """Return a line with the length of the blocks, the position of the stream and the mixer."""
        return f"PackedTokens(blocks of {counted(self.block_tokens, 'token')}, at block {self._block:,}, of {self.mixer!r})"

    # --- the stream --------------------------------------------------------------------------------------------------

    def at(self, blocks: Int[np.ndarray, " block"]) -> PackedBatch:
        """Read blocks in any order. Blocks beyond the end of the stream are left out.

        Raises:
            TokensError: A sample has another number of tokens than its token count.
            FieldError: A sample lacks a field of the mixer.
        """
        self._refuse_moved()
        pieces_of = [(block, pieces) for block in blocks.tolist() if (pieces := self._pieces(block))]
        # All pieces are tokenized together, because neighbouring blocks share a sample and each sample is tokenized once.
        ids = self._tokenized([piece for _, pieces in pieces_of for piece in pieces])
        shape = (len(pieces_of), self.block_tokens)
        # The arrays begin as fillers, so that the last block of a stream that ends is complete.
        tokens = np.full(shape, self._separator[0] if self._separator else 0, np.int64)
        draws = np.full(shape, -1, np.int64)
        skill_tokens = np.zeros((len(pieces_of), len(self._tokens)), np.int64)
        for row, (block, pieces) in enumerate(pieces_of):
            for piece in pieces:
                span = slice(piece.start - block * self.block_tokens, piece.stop - block * self.block_tokens)
                tokens[row, span], draws[row, span] = self._cut(piece, ids)
                skills = piece.round.plan.skill[draws[row, span] - piece.round.first_draw]
                skill_tokens[row] += np.bincount(skills, minlength=len(self._tokens))
        prompts = tokens < 0 if self._kind.masks else None
        if prompts is not None:
            tokens = np.where(prompts, ~tokens, tokens)
        numbers = np.array([block for block, _ in pieces_of], np.int64)
        sample_draw, fields = self._fields(draws)
        return PackedBatch(numbers, tokens, draws, skill_tokens, self.mixer.skills, prompts, sample_draw, fields)

    def _fields(self, draws: Int[np.ndarray, "block token"]) -> tuple[Int[np.ndarray, " sample"], dict[str, list[Any]]]:
        """Return the draws with a token in a batch, and the fields of the samples. Both are empty if the mixer has no fields."""
        if not self.mixer.fields:
            return np.empty(0, np.int64), {}
        sample_draw = np.unique(draws[draws >= 0])
        return sample_draw, self.mixer.fields_at(self.mixer.find(sample_draw))

    def batch(self, first: int, num: int) -> PackedBatch:
        """Read the blocks first .. first + num - 1, or the blocks up to the end of the stream."""
        return self.at(np.arange(first, first + num))

    def batches(self, batch_size: int) -> Iterator[PackedBatch]:
        """Iterate over the stream in batches from its position. Each yielded batch advances `block`."""
        self.mixer.check_begin(self._block)
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
        return max(1, self._tokens_of(self.mixer.round(0).counts)) / self.block_tokens

    @property
    def draws_per_position(self) -> float:
        """Expected number of draws of a block under the weights of round 0, over whole epochs, separators included."""
        weights = self.mixer.round(0).weights
        means = [
            tokens.num_tokens / order.num_samples + len(self._separator)
            for tokens, order in zip(self._tokens, self.mixer.orders, strict=True)
        ]
        return self.block_tokens / sum(weight * mean for weight, mean in zip(weights, means, strict=True))

    def holds(self, block: int) -> bool:
        """Return whether the stream reaches a block."""
        return self._round_at(block * self.block_tokens) is not None

    def length(self) -> int | None:
        """Return the number of blocks of the stream, the last block filled up. Return None under the conditions of `Mixer.length`."""
        drawn = self.mixer.num_drawn()
        return None if drawn is None else -(-self._tokens_of(drawn) // self.block_tokens)

    def draws_before(self, block: int) -> int:
        """Return the number of draws with at least one token before a block.

        A model that was trained on the blocks before has seen these draws, the last draw perhaps in part.
        """
        if block == 0:
            return 0
        last = block * self.block_tokens - 1
        packed = self._round_at(last)
        if packed is not None:
            return packed.first_draw + packed.draw_at(last) + 1
        # Beyond the end of the stream only the filled last block remains, and a model that has seen it has seen every draw.
        number = self.mixer.num_rounds - 1
        return number * self.mixer.round_draws + self.mixer.round(number).num_draws

    def _pieces(self, block: int) -> list[Piece]:
        """Split a block at the ends of rounds. The last block of the stream is shorter, and blocks beyond the end have no pieces."""
        pieces = []
        start, stop = block * self.block_tokens, (block + 1) * self.block_tokens
        while start < stop and (packed := self._round_at(start)) is not None:
            until = min(stop, packed.end)
            pieces.append(Piece(packed, start, until, packed.draw_at(start), packed.draw_at(until - 1)))
            start = until
        return pieces

    def _tokenized(self, pieces: Sequence[Piece]) -> "dict[int, Int[np.ndarray, ' token']]":
        """Tokenize every draw of the pieces, each draw once. Return a mapping from draw to token ids, the separator included.

        The token of a masked prompt is stored as the complement of its id, which is below 0, so that the mask is cut together with
        the tokens.
        """
        rounds = {piece.round.first_draw: piece.round for piece in pieces}
        wanted: dict[int, set[int]] = {first_draw: set() for first_draw in rounds}
        for piece in pieces:
            wanted[piece.round.first_draw].update(range(piece.first, piece.last + 1))
        ids: dict[int, np.ndarray] = {}
        for first_draw, packed in rounds.items():
            ids |= self._tokenized_in(packed, np.array(sorted(wanted[first_draw])))
        if ids:
            last = max(ids)
            self._last_sample = last, ids[last]
        return ids

    def _tokenized_in(
        self, packed: PackedRound, within: Int[np.ndarray, " draw"]
    ) -> "dict[int, Int[np.ndarray, ' token']]":
        last_sample: dict[int, np.ndarray] = {}
        if self._last_sample is not None and self._last_sample[0] - packed.first_draw in within:
            last_sample = dict([self._last_sample])
            within = within[within != self._last_sample[0] - packed.first_draw]
        encoded = self._masked(packed, within) if self._kind.masks else self._encoded(packed.plan.texts(within))
        # Every position rests on the token counts. A sample of another length would shift all later blocks, so the length of
        # each tokenized sample is compared with its count.
        expected = np.diff(packed.ends, prepend=0)[within] - len(self._separator)
        for index, (ids, num) in enumerate(zip(encoded, expected.tolist(), strict=True)):
            if len(ids) != num:
                raise TokensError(self._miscounted(packed, int(within[index]), len(ids), num))
        arrays = [np.array(ids + self._separator, np.int64) for ids in encoded]
        return last_sample | dict(zip((packed.first_draw + within).tolist(), arrays, strict=True))

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        return encode(self.counts.tokenizer, texts, special_tokens=self.counts.manifest.special_tokens)

    def _masked(self, packed: PackedRound, within: Int[np.ndarray, " draw"]) -> list[list[int]]:
        """Tokenize draws of a round. The tokens of prompts are complements of their ids."""
        plan = packed.plan
        texts = plan.texts(within)
        metas = [None] * len(texts) if self._kind.prompt_field is None else plan.metas(within)
        encoded = encode_with_offsets(self.counts.tokenizer, texts, special_tokens=self.counts.manifest.special_tokens)
        masked = []
        for number, (text, meta, (ids, offsets)) in enumerate(zip(texts, metas, encoded, strict=True)):
            try:
                is_answer = answer_tokens(offsets, answer_spans(text, self._kind, meta))
            except ObservationError as error:
                draw = int(within[number])
                (identity,) = plan.ids(slice(draw, draw + 1))
                raise ObservationError(
                    f"sample {identity!r} of skill {self.mixer.skills[plan.skill[draw]]!r} (draw {packed.first_draw + draw:,}): {error}"
                ) from error
            tokens = np.array(ids, np.int64)
            masked.append(np.where(is_answer, tokens, ~tokens).tolist())
        return masked

    def _miscounted(self, packed: PackedRound, within: int, got: int, counted: int) -> str:
        (identity,) = packed.plan.ids(slice(within, within + 1))
        skill = self.mixer.skills[packed.plan.skill[within]]
        return (
            f"sample {identity!r} of skill {skill!r} (draw {packed.first_draw + within:,}) has {got:,} tokens, but {self.counts.root} counts "
            f"{counted:,}: another version of the package tokenizers counted the sample, or the counts are damaged. Run 'skillshard "
            "verify' on the shards and on the counts, and count anew with 'skillshard tokens'."
        )

    def _cut(
        self, piece: Piece, ids: Mapping[int, np.ndarray]
    ) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " token"]]:
        """Cut the tokens of a piece. Return the tokens and the draw of each token."""
        packed = piece.round
        numbers = np.arange(piece.first, piece.last + 1)
        begin = packed.first + (int(packed.ends[piece.first - 1]) if piece.first else 0)
        inside = slice(piece.start - begin, piece.stop - begin)
        tokens = np.concatenate([ids[packed.first_draw + number] for number in numbers.tolist()])
        sizes = np.diff(packed.ends[piece.first : piece.last + 1], prepend=begin - packed.first)
        return tokens[inside], np.repeat(packed.first_draw + numbers, sizes)[inside]

    # --- rounds as tokens --------------------------------------------------------------------------------------------

    def _round_at(self, token: int) -> PackedRound | None:
        """Find the round that holds a token of the stream. Return None beyond the end of the stream."""
        # The cheapest way first: a round in memory, then the next round, then a search in the ledger, then rounds that the
        # ledger does not have yet, which are decided one after the other.
        for packed in self._rounds.values():
            if packed.first <= token < packed.end:
                return packed
        candidate = self._next_to(token)
        if candidate is None or not candidate.first <= token < candidate.end:
            candidate = self._packed(self._number_at(token))
        while candidate is not None and candidate.end <= token:
            candidate = self._packed(candidate.first_draw // self.mixer.round_draws + 1)
        return candidate

    def _next_to(self, token: int) -> PackedRound | None:
        """Return the round after the last round in memory that ends before a token. A reader that reads on needs no search."""
        read = [number for number, packed in self._rounds.items() if packed.end <= token]
        return self._packed(max(read) + 1) if read else None

    def _number_at(self, token: int) -> int:
        """Find the last round of the ledger that begins at a token or before."""
        known = self.mixer.num_rounds
        return max(0, bisect_right(range(known), token, key=self._tokens_before) - 1)

    def _tokens_before(self, number: int) -> int:
        """Count the tokens of the stream before a round."""
        return self._tokens_of(self.mixer.round(number).drawn_before)

    def _tokens_of(self, drawn: Sequence[int]) -> int:
        """Count the tokens of the first `drawn[i]` draws of each skill i, separators included."""
        per_skill = zip(self.mixer.orders, self._tokens, drawn, strict=True)
        tokens = sum(order.tokens_before(num, counts.shard_tokens, counts.rows) for order, counts, num in per_skill)
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
        """Look up the number of tokens of each draw of a round, without separators."""
        # Sorting by segment gives the draws of a segment as a slice, so that each shard's counts are read once.
        order = np.argsort(plan.segment, kind="stable")
        bounds = np.searchsorted(plan.segment[order], np.arange(len(plan.segments) + 1))
        tokens = np.empty(len(order), np.int64)
        for index, (skill, shard) in enumerate(plan.segments):
            draws = order[bounds[index] : bounds[index + 1]]
            tokens[draws] = self._tokens[skill].rows(shard)[plan.row[draws]]
        return tokens

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
        return PackedState(
            block=block,
            step=step,
            mixer=self.mixer.state_at(self.draws_before(block)),
            tokens=self.counts.digest,
            block_tokens=self.block_tokens,
            separator=self.separator,
        )

    def load_state_dict(self, state: Mapping[str, Any], *, generation: int | None = None) -> None:
        """Continue at a saved block, in a new generation of the ledger, as `Mixer.load_state_dict` does.

        Args:
            state: Result of `state_dict`.
            generation: Number of the generation that rank 0 has begun for all ranks. None: this process begins a generation, or joins
                the generation of its job.

        Raises:
            LedgerError: The state belongs to another run, another ledger, other token counts, or other blocks.
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
                    f"this state was saved with {name} {getattr(saved, name)!r}, but {name} of this stream is {value!r}. A packed stream resumes "
                    "with the same run, token counts, block_tokens and separator."
                )
        self.mixer.load_state_dict(saved.mixer.model_dump(by_alias=True), generation=generation)
        self._stand_at(saved.block, saved.step)

    def restart(self, *, generation: int | None = None) -> None:
        """Begin the run again from block 0, as `Mixer.restart` does."""
        self.mixer.restart(generation=generation)
        self._stand_at(0, None)

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
        tokens, block_tokens, separator = self.counts.digest, self.block_tokens, self.separator
        return {**self.mixer.identity, "tokens": tokens, "block_tokens": block_tokens, "separator": separator}

    @property
    def initial_losses(self) -> bool:
        """Whether the first report is of draw 0, the model before the first step."""
        return self.mixer.initial_losses

    def check_start(self, *, rank: int = 0) -> None:
        """Refuse a wrong start in the main process, as `Mixer.check_start` does."""
        self.mixer.check_start(rank=rank)

    def _stand_at(self, block: int, step: int | None) -> None:
        self._rounds.clear()
        self._last_sample, self._mixer_draw = None, self.mixer.draw
        self._block = block
        self.clock = self.clock.resumed(step, block)

    def __getstate__(self) -> dict[str, Any]:
        # The rounds in memory hold memory maps, which cannot be pickled. Each worker finds its own rounds.
        return {**self.__dict__, "_rounds": {}, "_last_sample": None}


def _refuse_empty(tokens: Sequence[SkillTokens], counts: TokenCounts, separator: str | None) -> None:
    """Raise TokensError for a skill without tokens if no separator follows its samples: its draws would never fill a block."""
    empty = [skill_tokens.skill for skill_tokens in tokens if not skill_tokens.num_tokens]
    if empty and separator is None:
        raise TokensError(
            f"no training sample of skill {empty[0]!r} has a token in {counts.root}, so its draws would fill no block. Give a separator, or "
            "tag these samples otherwise and shard again."
        )
