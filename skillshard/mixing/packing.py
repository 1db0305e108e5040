r"""The mixed stream as blocks of tokens of equal length, for trainers of language models.

The packed stream is the tokens of draws 0, 1, 2, ... in this order. The separator follows the tokens of each draw. The packed
stream is cut into blocks of L tokens: block b is the tokens bL .. (b+1)L - 1. So a block, like a draw, is a pure function of the
shards, the tokens, the seed and the ledger. The state is one integer, the number of blocks consumed.

The token ids are kept beside the shards (shards/tokens.py), so nothing is tokenized during the training, and no text is read. The token
counts are known, so a block is found without the blocks before. A saved state names the draw of its block, and so the round. Otherwise,
bisection over the ledger's rounds finds the round (`packed_rounds.py`). A reader that reads on keeps its rounds in memory.

`packings/` has a module for each packing: the places of the draws of a round in the blocks. `block_reader.py` copies the tokens of blocks.

If `repeat` ends the stream, the last block is filled up with the separator (or with token 0 without a separator), marked by
draw -1. No token is lost.
"""

import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, SupportsIndex, cast, get_args

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from skillshard import places
from skillshard.canonical import first_fault
from skillshard.errors import LedgerError, PolicyError, RoundError, TokensError, did_you_mean, name_some
from skillshard.loss import LossKind, MeasuredOn
from skillshard.mixing.block_reader import BlockReader, ReadBlocks
from skillshard.mixing.metrics import MOST_SKILLS
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.noted_places import TOKENS_NOTE, note_place
from skillshard.mixing.packed_batch import PackedBatch, Segments
from skillshard.mixing.packed_begin import PackedBegin
from skillshard.mixing.packed_rounds import PackedRounds
from skillshard.mixing.packings.best_fit import BestFit
from skillshard.mixing.packings.concat import Concat, ConcatRound
from skillshard.mixing.packings.one import One
from skillshard.mixing.packings.packing import Draws, Packing
from skillshard.mixing.packings.skill import Skill
from skillshard.mixing.place_records import Continued
from skillshard.mixing.run_records import BlockUnit, Lag
from skillshard.mixing.skill_blocks import blocks_of_run
from skillshard.mixing.state import MixerState
from skillshard.mixing.stream import BLOCKS, LAST_DRAW, Clock, whole_number
from skillshard.number_checks import is_whole
from skillshard.opened import refuse_unopened
from skillshard.printable import counted
from skillshard.shards.token_set import SkillTokens, TokenSet

PackingName = Literal["concat", "one", "skill", "best-fit"]
"""The way from draws to blocks.

"concat": the tokens of all draws one after the other. "one": a block for each draw. "skill": blocks of one skill as draws. "best-fit": the
draws of a round packed without a cut.
"""


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
    packing: PackingName
    round_blocks: int | None = Field(
        ge=0,
        description="blocks consumed of the round of the mixer's last draw; null unless the packing is best-fit",
    )

    @model_validator(mode="after")
    def _fits(self) -> "PackedState":
        if (self.round_blocks is not None) != (self.packing == "best-fit") or (self.round_blocks or 0) > self.block:
            raise ValueError(
                f"round_blocks is {self.round_blocks}, with packing {self.packing} and block {self.block:,}"
            )
        return self


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
            `block_tokens` and `separator`). At the end of an epoch of a skill, the tokens that fill no block are left out. "best-fit": the
            draws of each round are packed, so that no sample is cut that fits a block. The few places that stay free are filled up.

    Raises:
        TokensError: The tokens belong to other shards or have no ids, the separator is no token, or a skill has no tokens.
        PolicyError: An argument is out of range, or the mixer is strict (lag=0), because steps do not end with the rounds.

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
        refuse_unopened(tokens, TokenSet, "tokens", "token set", TokensError)
        if packing not in get_args(PackingName):
            raise PolicyError(
                f"packing is {packing!r}{did_you_mean(packing, get_args(PackingName))}: give 'concat', 'one', 'skill' or 'best-fit'."
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
        if mixer.lag == 0 and mixer.policy.reads_losses and packing == "best-fit":
            raise PolicyError(
                "Mixer(lag=0) begins a round only after the losses at the end of the previous round. With packing='best-fit' each round has another "
                "number of blocks, so optimizer steps do not end with the rounds. Use lag=1 (default) or 'live', or packing='one' or 'skill'."
            )
        tokens.refuse_other_shards(mixer.shards)
        self._separator = None if separator is None else tokens.token_id(separator)
        _refuse_other_unit(
            mixer.blocks, packing, BlockUnit(tokens=tokens.digest, block_tokens=int(block_tokens), separator=separator)
        )
        tokens.refuse_counts_alone()
        self.mixer, self.tokens = mixer, tokens
        self.block_tokens, self.separator = operator.index(block_tokens), separator
        self.packing = cast(PackingName, packing)
        self._tokens = [tokens.train[skill] for skill in mixer.skills]
        if packing != "skill":
            _refuse_empty(self._tokens, tokens, separator)
        if packing == "best-fit":  # a run that continues this run inside a round reads these tokens
            note_place(mixer.ledger, TOKENS_NOTE, tokens.root)
        self._begin = PackedBegin(mixer)
        self._packing = self._make_packing(tokens.digest)
        self._rounds = PackedRounds(mixer, self._packing, self._begin, self.block_tokens)
        self._reader = BlockReader(self._rounds, self.block_tokens, self._separator, tokens.answers is not None)
        self._block = 0
        self.clock = Clock(BLOCKS, None if step_blocks is None else operator.index(step_blocks))
        self._mixer_draw = mixer.draw
        if mixer.run.continues is not None:
            self._stand_at(self._begin.block, mixer.run.continues.step)

    def _make_packing(self, tokens: str) -> Packing:
        draws = Draws(self.mixer, self._tokens, self.block_tokens, self._separator is not None, self._begin)
        if self.mixer.blocks is not None:
            return Skill(draws, blocks_of_run(self.mixer.run, self._tokens), self.mixer.blocks)
        if self.packing == "best-fit":
            return BestFit(draws, BlockUnit(tokens=tokens, block_tokens=self.block_tokens, separator=self.separator))
        return One(draws) if self.packing == "one" else Concat(draws)

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
        self._check_read()
        return self._batch_of(self._reader.read(np.asarray(blocks, np.int64)))

    def _check_read(self) -> None:
        """Refuse a stream that was moved by its mixer, and record the beginning before a block is read."""
        self._refuse_moved()
        self._begin.record()

    def _batch_of(self, read: ReadBlocks) -> PackedBatch:
        sample_draw, fields = self._fields(read.segments)
        shape = (len(read.block), self.block_tokens)
        answer = None if read.answer is None else read.answer.reshape(shape)
        return PackedBatch(
            read.block, read.ids.reshape(shape), read.segments, self.mixer.skills, answer, sample_draw, fields
        )

    def _fields(self, segments: Segments) -> tuple[Int[np.ndarray, " sample"], dict[str, list[Any]]]:
        """Return the draws with a token in a batch, and the fields of the samples. Both are empty if the mixer has no fields."""
        if not self.mixer.fields:
            return np.empty(0, np.int64), {}
        sample_draw = np.unique(segments.draw[segments.draw >= 0])
        own = sample_draw[sample_draw >= self.mixer.first_draw]
        fields = self.mixer.samples.fields_at(self.mixer.find(own))
        if len(own) < len(sample_draw):
            # The sample that the last block of the run before has cut comes before all other draws.
            plan = self.mixer.plan_before()
            assert plan is not None
            cut = plan.fields(self.mixer.fields, slice(0, 1))
            fields = {path: cut[path] + values for path, values in fields.items()}
        return sample_draw, fields

    def batch(self, first: int, num: int) -> PackedBatch:
        """Read the blocks first .. first + num - 1, or the blocks up to the end of the stream."""
        self._check_read()
        return self._batch_of(self._reader.read_neighbours(first, num))

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
        return max(1, self._packing.places_to(0) - self._packing.places_before(0)) / self.block_tokens

    @property
    def draws_per_position(self) -> float:
        """Expected number of draws of a block under the weights of round 0, separators included."""
        return self._packing.draws_per_block()

    def holds(self, block: int) -> bool:
        """Return whether the stream reaches a block."""
        return self._rounds.at(block * self.block_tokens) is not None

    def length(self) -> int | None:
        """Return the number of blocks of the stream, the last block filled up. Return None under the conditions of `Mixer.length`."""
        num_places = self._packing.num_places()
        return None if num_places is None else -(-num_places // self.block_tokens)

    def draws_before(self, block: int) -> int:
        """Return the number of draws with at least one token before a block.

        A model that was trained on the blocks before has seen these draws, the last draw perhaps in part.
        """
        if block <= self._begin.block:
            return self.mixer.first_draw
        last = block * self.block_tokens - 1
        packed = self._rounds.at(last)
        if packed is not None:
            return packed.draws_to(last)
        # Beyond the end of the stream only the filled last block remains, and a model that has seen it has seen every draw.
        newest = self.mixer.round(self.mixer.num_rounds - 1)
        return newest.first_draw + newest.num_draws

    def _left_after(self, block: int) -> int:
        """Return the number of tokens of the last draw with a token before a block that the blocks before do not have."""
        if block <= self._begin.block:
            return self._begin.left
        last = block * self.block_tokens - 1
        packed = self._rounds.at(last)
        return packed.left_after(last) if isinstance(packed, ConcatRound) else 0

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
        self._begin.record()
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
        end = 0 if newest is None else self._packing.places_to(num_rounds - 1)
        if seen > self._begin.block and is_open and seen * self.block_tokens > end:
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
        self._begin.record()
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
            round_blocks=self._round_blocks(block),
        )

    def _round_blocks(self, block: int) -> int | None:
        """Return the number of blocks up to `block` in the round of the last of these blocks. Return None unless the packing is best-fit."""
        if self.packing != "best-fit" or block <= self._begin.block:
            return 0 if self.packing == "best-fit" else None
        packed = self._rounds.at(block * self.block_tokens - 1)
        first = self._packing.places_before(self.mixer.num_rounds - 1) if packed is None else packed.first
        return block - first // self.block_tokens

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
        if before is not None and self.mixer.begins_after(saved.mixer):
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
        self._stand_at(saved.block, saved.step, saved.round_blocks)

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
        begun = self._begin.put(saved.block, left)
        if begun != (saved.block, left):
            raise LedgerError(
                f"the packed stream of {self.mixer.ledger} has begun at block {begun[0]:,} with {counted(begun[1], 'token')} of a cut sample, and this "
                f"state begins at block {saved.block:,} with {counted(left, 'token')}: continue the run in a new ledger directory."
            )
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

    def _stand_at(self, block: int, step: int | None, round_blocks: int | None = None) -> None:
        resumed = None
        if round_blocks is not None:
            number = max(0, self.mixer.draw - self.mixer.first_draw - 1) // self.mixer.round_draws
            resumed = number, (block - round_blocks) * self.block_tokens
        self._rounds.resume(resumed)
        self._mixer_draw = self.mixer.draw
        self._block = block
        self.clock = self.clock.resumed(step, block)


def _refuse_other_unit(unit: BlockUnit | None, packing: str, own: BlockUnit) -> None:
    """Raise PolicyError unless the draws of the mixer fit the packing."""
    if (unit is not None) != (packing == "skill"):
        raise PolicyError(
            "packing='skill' needs a mixer whose draws are blocks: Mixer(..., unit='blocks', tokens=TOKENS, block_tokens=L, separator=TEXT)."
            if unit is None
            else f"the draws of the mixer are blocks (unit='blocks'), and packing is {packing!r}: give packing='skill', or a mixer of samples."
        )
    if unit is not None and unit != own:
        differences = [
            f"{name} {mixer_value!r} in the mixer and {packed_value!r} in the packed stream"
            for (name, mixer_value), (_, packed_value) in zip(unit, own, strict=True)
            if mixer_value != packed_value
        ]
        raise PolicyError(
            f"the blocks of the mixer are not those of the packed stream: {', '.join(differences)}. Give Mixer and PackedTokens the same values."
        )


def _refuse_empty(tokens: Sequence[SkillTokens], token_set: TokenSet, separator: str | None) -> None:
    """Raise TokensError for a skill without tokens if no separator follows its samples: its draws would never fill a block."""
    empty = [skill_tokens.skill for skill_tokens in tokens if not skill_tokens.num_tokens]
    if empty and separator is None:
        raise TokensError(
            f"no training sample of skill {empty[0]!r} has a token in {places.public(token_set.root)}, so its draws would fill no block. Give a "
            "separator, or tag these samples otherwise and shard again."
        )
