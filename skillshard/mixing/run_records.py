"""The records of a whole run: run.json, and handover.json, which a run leaves to the run that continues it.

A run has a schema with more fields only if the run uses these fields, so that all other runs keep their bytes. The functions below read a field
that a plain record does not have.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from skillshard.loss import LossKind, MeasuredOn
from skillshard.mixing.ledger_record import LedgerRecord, check_numbers
from skillshard.mixing.place_records import (
    AheadEpoch,
    AheadSkippedPart,
    BlocksSkippedPart,
    Continued,
    CutSample,
    LastDraw,
    SeenObservation,
    SkillPosition,
    SkipInEpoch,
    SkippedPart,
)

Lag = int | Literal["live"]


class HandoverRecord(LedgerRecord):
    """The record handover.json: everything that a run leaves to the run that continues it."""

    schema_version: Literal["skillshard/handover/1"] = Field("skillshard/handover/1", alias="schema")
    run: str = Field(description="checksum of the run.json of the run before")
    draw: int = Field(ge=0, description="draw from which the new run continues")
    step: int | None = Field(ge=0, description="optimizer steps taken at the draw; null if unknown")
    num_rounds: int = Field(ge=0, description="number of rounds begun before the draw, over all earlier runs")
    skills: list[SkillPosition] = Field(description="skills of the run before, then absent skills")
    present: list[str] = Field(min_length=1, description="skills of the run before, in the order of its lists")
    weights: list[float] | None = Field(description="weights of the last round begun; null before the first round")
    unit: str = Field(description="unit of the weights")
    sizes: list[int] = Field(description="number of training samples (or tokens) of each present skill")
    policy: str
    policy_arguments: dict[str, Any]
    policy_state: dict[str, Any] | None = Field(
        description="state after the last round begun; null before the first round"
    )
    loss: LossKind
    measured_on: MeasuredOn
    observations: list[SeenObservation] = Field(description="observations after the state, or the last observation")
    num_unread: int = Field(ge=0, description="number of these observations that the state does not contain yet")
    last_skill: str | None = Field(description="label of the skill of the last draw; null before the first draw")
    restart: list[str] = Field(description="skills that begin again although their samples may have been drawn")


class SkippingHandoverRecord(HandoverRecord):
    """The handover of a run that skips draws of the run before, or that continues a run with skipped samples in an open epoch."""

    schema_version: Literal["skillshard/handover/2"] = Field("skillshard/handover/2", alias="schema")  # type: ignore[assignment]
    skipped: SkippedPart | None = Field(description="draws that the new run skips; null if none")
    open_skips: list[SkipInEpoch] = Field(description="all skips in the open epochs, the oldest first")


class AheadHandoverRecord(SkippingHandoverRecord):
    """The handover of a run with skipped samples in later epochs."""

    schema_version: Literal["skillshard/handover/3"] = Field("skillshard/handover/3", alias="schema")  # type: ignore[assignment]
    skipped: AheadSkippedPart | None = Field(description="draws that the new run skips; null if none")
    ahead: list[AheadEpoch] = Field(description="later epochs with skipped samples, rising for each skill")


class BlocksHandoverRecord(AheadHandoverRecord):
    """The handover of a run whose draws are blocks of one skill. The places count samples with at least one token in a block as drawn."""

    schema_version: Literal["skillshard/handover/4"] = Field("skillshard/handover/4", alias="schema")  # type: ignore[assignment]
    encoding: str = Field(description="digest of the tokenizer, its special tokens and the rendering of conversations")
    separator: str | None = Field(description="text of the token after each sample; null without a separator")
    cuts: list[CutSample] = Field(description="cut samples of skills")


class BlockSkipsHandoverRecord(BlocksHandoverRecord):
    """The handover of a run whose draws are blocks of one skill, if the new run skips blocks."""

    schema_version: Literal["skillshard/handover/5"] = Field("skillshard/handover/5", alias="schema")  # type: ignore[assignment]
    skipped: BlocksSkippedPart = Field(description="blocks that the new run skips")


class LastDrawHandoverRecord(AheadHandoverRecord):
    """The handover of a run that gave no draw, if the place of the last draw of an earlier run does not follow from the other places.

    After a skip, the place of a skill no longer says which sample was the last draw.
    """

    schema_version: Literal["skillshard/handover/6"] = Field("skillshard/handover/6", alias="schema")  # type: ignore[assignment]
    last: LastDraw = Field(description="place after the last draw")

    @model_validator(mode="after")
    def _names_its_skill(self) -> "LastDrawHandoverRecord":
        if self.last.place.label != self.last_skill:
            raise ValueError(f"the last draw is of {self.last.place.label}, and last_skill is {self.last_skill}")
        return self


class BlockUnit(BaseModel):
    """The blocks of a run whose draws are blocks of one skill."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: str = Field(description="digest of tokens.json")
    block_tokens: int = Field(ge=1, description="number of tokens of a block")
    separator: str | None = Field(description="text of the token after each sample; null without a separator")


class RunRecord(LedgerRecord):
    """The record run.json: the facts that determine the stream together with the observations."""

    schema_version: Literal["skillshard/run/5"] = Field("skillshard/run/5", alias="schema")
    shards: str = Field(description="digest of the shard set's manifest")
    skills: list[str] = Field(min_length=1, description="training skills, in the order of every list of numbers")
    num_samples: list[int] = Field(
        description="number of draws of an epoch of each skill: its training samples, or its blocks if the unit is blocks"
    )
    unit: str = Field(
        pattern=r"^(samples|tokens|blocks)$",
        description="unit of the policy's weights; with blocks also the unit of draws",
    )
    blocks: BlockUnit | None = Field(description="blocks of the draws; null unless the unit is blocks")
    num_tokens: list[int] | None = Field(
        description="number of training tokens of each skill; null unless the unit is tokens"
    )
    seed: int
    order: str = Field(description="version of the arithmetic of the order")
    round_draws: int = Field(ge=1)
    lag: Lag
    repeat: str = Field(
        pattern=r"^(epochs|stop|drop|cap:[1-9][0-9]*)$", description="rule for a skill without unread samples"
    )
    policy: str
    policy_arguments: dict[str, Any]
    initial_losses: bool = Field(
        description="whether the first observation is of the first draw, before the first step"
    )
    loss: LossKind = Field(description="reduction and mask of the losses")
    measured_on: MeasuredOn = Field(
        description="samples of the losses: held-out samples, or the batches of the training"
    )
    num_shards: list[int] = Field(description="number of training shards of each skill")
    contents: list[str] = Field(description="digest of the training shards of each skill, without the skill's name")
    continues: Continued | None = Field(description="the run before; null for a run from the beginning")

    @model_validator(mode="after")
    def _fits(self) -> "RunRecord":
        for name, values in (("num_samples", self.num_samples), ("num_tokens", self.num_tokens)):
            if values is not None:
                check_numbers(name, values, len(self.skills), least=1)
        if (self.unit == "blocks") != (self.blocks is not None):
            raise ValueError(f"the unit is {self.unit}, and blocks is {self.blocks}")
        return self

    @model_validator(mode="after")
    def _continues(self) -> "RunRecord":
        check_numbers("num_shards", self.num_shards, len(self.skills), least=1)
        if len(self.contents) != len(self.skills):
            raise ValueError(f"contents has {len(self.contents):,} digests for {len(self.skills):,} skills")
        if self.continues is not None:
            known = [(skill.skill, skill.content) for skill in self.continues.skills]
            sizes = [skill.num_samples for skill in self.continues.skills]
            is_of_samples = self.blocks is None  # otherwise num_samples has the blocks of an epoch
            if known != list(zip(self.skills, self.contents, strict=True)) or (
                is_of_samples and sizes != self.num_samples
            ):
                raise ValueError("the skills of continues are not the skills of the run")
        return self

    # All positions of a run are computed here from its first draw, because a continued run begins in the middle of a stream.
    @property
    def first_draw(self) -> int:
        """Draw at which the run begins."""
        return self.continues.draw if self.continues else 0

    @property
    def drawn_before(self) -> list[int]:
        """Number of draws of each skill before the run, as if the skill had always had its present samples. Skipped samples count."""
        if self.continues is None:
            return [0] * len(self.skills)
        if isinstance(self, BlocksRunRecord):
            return self.drawn
        return [
            skill.drawn + sum(epoch.num_skipped for epoch in ahead_of(self) if epoch.label == skill.label)
            for skill in self.continues.skills
        ]

    @property
    def num_rounds_before(self) -> int:
        """Number of rounds of the runs before."""
        return self.continues.num_rounds if self.continues else 0

    @property
    def num_copied(self) -> int:
        """Number of observations that were copied from the run before: 0 or 1."""
        return int(self.continues is not None and self.continues.observation is not None)

    @property
    def copied_draw(self) -> int:
        """Draw of the copied observation, or -1 without."""
        copied = self.continues and self.continues.observation
        return copied.draw if copied else -1

    @property
    def needs_first_losses(self) -> bool:
        """Whether the first report must be of the first draw, before the first step."""
        return self.initial_losses and not self.num_copied

    def round_of(self, draw: int) -> int:
        """Return the number of the round with a draw."""
        return (draw - self.first_draw) // self.round_draws

    def first_draw_of(self, number: int) -> int:
        """Return the first draw of a round."""
        return self.first_draw + number * self.round_draws

    def num_rounds_to(self, draw: int) -> int:
        """Return the number of rounds with a draw before `draw`."""
        # Rounded up: a round whose first draw was consumed has begun.
        return -(-(draw - self.first_draw) // self.round_draws)


class SkippingRunRecord(RunRecord):
    """A run that skips draws of the run before, or that began with skipped samples in an open epoch."""

    schema_version: Literal["skillshard/run/6"] = Field("skillshard/run/6", alias="schema")  # type: ignore[assignment]
    skipped: SkippedPart | None = Field(description="draws that the run skips; null if none")
    open_skips: list[SkipInEpoch] = Field(description="all skips in the open epochs, the oldest first")


class AheadRunRecord(SkippingRunRecord):
    """A run that began with skipped samples in later epochs."""

    schema_version: Literal["skillshard/run/7"] = Field("skillshard/run/7", alias="schema")  # type: ignore[assignment]
    skipped: AheadSkippedPart | None = Field(description="draws that the run skips; null if none")
    ahead: list[AheadEpoch] = Field(description="later epochs with skipped samples, rising for each skill")


class BlocksRunRecord(AheadRunRecord):
    """A run that continues another run, with blocks of one skill as draws."""

    schema_version: Literal["skillshard/run/8"] = Field("skillshard/run/8", alias="schema")  # type: ignore[assignment]
    cuts: list[CutSample] = Field(description="cut samples that go on in the first block of their skills")
    drawn: list[int] = Field(
        description="number of blocks of each skill before the run, as if all epochs had the present number of blocks"
    )

    @model_validator(mode="after")
    def _counts(self) -> "BlocksRunRecord":
        check_numbers("drawn", self.drawn, len(self.skills), least=0)
        if self.blocks is None or self.continues is None:
            raise ValueError("the draws are no blocks, or the run continues no run")
        return self


class BlockSkipsRunRecord(AheadRunRecord):
    """A run of samples that skips blocks of one skill of the run before."""

    schema_version: Literal["skillshard/run/9"] = Field("skillshard/run/9", alias="schema")  # type: ignore[assignment]
    skipped: BlocksSkippedPart = Field(description="blocks that the run skips")


class BlockSkipsBlocksRunRecord(BlocksRunRecord):
    """A run with blocks of one skill as draws that skips blocks of the run before."""

    schema_version: Literal["skillshard/run/10"] = Field("skillshard/run/10", alias="schema")  # type: ignore[assignment]
    skipped: BlocksSkippedPart = Field(description="blocks that the run skips")


def skipped_by(record: RunRecord | HandoverRecord) -> SkippedPart | None:
    """Return the draws of the run before that a run skips, or None."""
    return record.skipped if isinstance(record, (SkippingRunRecord, SkippingHandoverRecord)) else None


def open_skips_of(record: RunRecord | HandoverRecord) -> list[SkipInEpoch]:
    """Return the skips in the open epochs in which a run begins, the oldest first."""
    return record.open_skips if isinstance(record, (SkippingRunRecord, SkippingHandoverRecord)) else []


def ahead_of(record: RunRecord | HandoverRecord) -> list[AheadEpoch]:
    """Return the later epochs with skipped samples, rising for each skill."""
    return record.ahead if isinstance(record, (AheadRunRecord, AheadHandoverRecord)) else []


def last_draw_of(handover: HandoverRecord) -> LastDraw | None:
    """Return the place of the last draw, or None if the place follows from the other places or no draw is known."""
    return handover.last if isinstance(handover, LastDrawHandoverRecord) else None


def cuts_of(record: RunRecord | HandoverRecord) -> dict[str, int]:
    """Return the label of each skill with a cut sample -> number of tokens of the sample that no block has."""
    if not isinstance(record, (BlocksRunRecord, BlocksHandoverRecord)):
        return {}
    return {cut.label: cut.left for cut in record.cuts}
