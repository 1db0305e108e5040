"""The parts of records that say where a run stands: places in the orders of skills, skipped samples, and the beginning of a continued run."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Layer(BaseModel):
    """Shards of a skill that were known from a position of an epoch on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_shards: int = Field(ge=1, description="number of shards of the skill, earlier layers included")
    position: int = Field(ge=0, description="draws of the epoch before the shards were known")


class SkillPosition(BaseModel):
    """The place of a run in the order of a skill."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    skill: str = Field(description="name of the skill; the last name of an absent skill")
    label: str = Field(description="name in the key of the order, which survives a change of the skill's name")
    content: str = Field(description="digest of the training shards, without the names of the skill")
    num_shards: int = Field(ge=1)
    num_samples: int = Field(ge=1)
    seed: int = Field(description="seed of the order in the open epoch")
    epoch: int = Field(ge=0, description="number of the open epoch")
    position: int = Field(ge=0, description="draws of the open epoch")
    passes: float = Field(ge=0, description="number of passes over the samples, fractions included")
    layers: list[Layer] = Field(min_length=1, description="shards that joined the open epoch, the oldest first")

    @property
    def drawn(self) -> int:
        """Number of draws, as if the skill had always had its present samples."""
        return self.epoch * self.num_samples + self.position

    @model_validator(mode="after")
    def _fits(self) -> "SkillPosition":
        # Equal, and not nearly equal: every writer divides the same two integers, so another number shows an edited record.
        if self.position > self.num_samples or self.passes != self.drawn / self.num_samples:
            raise ValueError(
                f"{self.skill}: {self.position:,} draws of epoch {self.epoch:,} are not {self.passes} passes"
            )
        places = [(layer.num_shards, layer.position) for layer in self.layers]
        if places[0][1] or places != sorted(places) or self.layers[-1].num_shards != self.num_shards:
            raise ValueError(f"{self.skill}: the layers of the epoch do not rise to {self.num_shards:,} shards")
        return self


class SeenObservation(BaseModel):
    """An observation of the run before, with its place in that run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int = Field(ge=0)
    draw: int = Field(ge=0)
    losses: dict[str, float | None]
    left_out: bool
    drawn: list[int] = Field(description="draws of each present skill up to the observation")
    round: int = Field(ge=-1, description="round of the last draw before the observation; -1 before the first draw")


class SkippedDraws(BaseModel):
    """The skipped draws of a skill."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(description="name of the skill in the key of its order")
    first: int = Field(ge=0, description="number of the first skipped draw in the order of the skill, over all epochs")
    num: int = Field(ge=1)


class SkippedInOrder(BaseModel):
    """Neighbouring draws of the run before that the new run skips, and the skipped samples in the orders of their skills."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: int = Field(ge=0, description="first draw of the stretch in the stream of the run before")
    num: int = Field(ge=1, description="number of draws")
    why: str = Field(min_length=1, description="reason in the words of the user")
    skills: list[SkippedDraws] = Field(description="draws of each skill in the stretch")

    @property
    def sentence(self) -> str:
        return self.sentence_of("the run before")

    def sentence_of(self, run: str) -> str:
        """Say that the draws of a run are skipped, and why."""
        last = self.first + self.num - 1
        draws = f"draw {self.first:,}" if self.num == 1 else f"draws {self.first:,} to {last:,}"
        return f"{draws} of {run} {'is' if self.num == 1 else 'are'} skipped, because {self.why}"


class SkippedStretch(SkippedInOrder):
    """Neighbouring draws of the run before whose samples the new run skips."""

    @model_validator(mode="after")
    def _fits(self) -> "SkippedStretch":
        if sum(skill.num for skill in self.skills) != self.num:
            raise ValueError(f"the draws of the skills do not sum to {self.num:,}")
        return self


class SkippedBlocks(SkippedInOrder):
    """Neighbouring blocks of one skill of the run before that the new run skips, with the samples that have a token in these blocks."""


class SkipInEpoch(BaseModel):
    """Samples of the open epoch of a skill that a run skipped although earlier samples of the epoch were left."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(description="name of the skill in the key of its order")
    num_layers: int = Field(ge=1, description="number of layers of the epoch that were known")
    position: int = Field(ge=0, description="draws of the open epoch before the skip")
    parts: list[tuple[int, int]] = Field(
        min_length=1, description="first position and end of each skipped part of the epoch"
    )

    @model_validator(mode="after")
    def _fits(self) -> "SkipInEpoch":
        # Rising parts cannot overlap, so no sample is skipped twice.
        edges = [self.position, *(edge for part in self.parts for edge in part)]
        if any(first >= end for first, end in self.parts) or edges != sorted(edges):
            raise ValueError(f"{self.label}: the skipped parts do not rise from position {self.position:,}")
        return self


class AheadEpoch(BaseModel):
    """A later epoch of a skill. A run skipped samples of this epoch before the epoch began, while samples of an earlier epoch were left."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(description="name of the skill in the key of its order")
    epoch: int = Field(ge=1, description="number of the epoch")
    seed: int = Field(description="seed of the order in this epoch")
    num_skipped: int = Field(ge=1, description="number of skipped samples, which have the first positions of the epoch")
    layers: list[Layer] = Field(min_length=1, description="shards that joined the epoch, the oldest first")
    skips: list[SkipInEpoch] = Field(description="skips in this epoch, the oldest first")


class LastDraw(BaseModel):
    """The place of a skill after the last draw of a chain of runs, in the order that the skill had at this draw."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    place: SkillPosition = Field(description="place after the draw; the sample has the last position before this place")
    skips: list[SkipInEpoch] = Field(description="skips in the epoch of the draw, the oldest first")

    @model_validator(mode="after")
    def _fits(self) -> "LastDraw":
        if not self.place.position:
            raise ValueError(f"{self.place.label}: no draw comes before position 0 of an epoch")
        return self


class SkippedPart(BaseModel):
    """The stretches of the run before that a run skips, with the places before the skip."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(description="seed of the run before")
    places: list[SkillPosition] = Field(description="place of each skill of the run before, without the skip")
    earlier: list[SkipInEpoch] = Field(description="earlier skips in the open epochs")
    stretches: list[SkippedStretch] = Field(min_length=1, description="skipped draws, rising")


class AheadSkippedPart(SkippedPart):
    """The stretches that a run skips, if samples of later epochs were skipped before."""

    ahead: list[AheadEpoch] = Field(description="later epochs with skipped samples, without the skip")


class SkipBegin(BaseModel):
    """The place of a skill after the skipped blocks that follow the place of the run without a gap."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(description="name of the skill in the key of its order")
    drawn: int = Field(ge=0, description="number of the skill's samples before the place, over all epochs")
    goes_on: bool = Field(
        description="whether the last of these samples is cut and goes on in the first block of the new run"
    )


class BlocksSkippedPart(AheadSkippedPart):
    """The stretches that a run skips, if the draws of the run before are blocks of one skill."""

    stretches: list[SkippedBlocks] = Field(min_length=1, description="skipped blocks, rising")  # type: ignore[assignment]
    begins: list[SkipBegin] = Field(description="place of each skill with a skipped block")


class CutSample(BaseModel):
    """The last begun sample of a skill, if the end of a block of this skill has cut the sample."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(description="name of the skill in the key of its order")
    left: int = Field(
        ge=1, description="number of tokens at the end of the sample that no block has, separator included"
    )


class CopiedObservation(BaseModel):
    """The last observation of the run before, as the first observation of the new run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int = Field(ge=0)
    draw: int = Field(ge=0)
    losses: dict[str, float | None]
    left_out: bool


class Continued(BaseModel):
    """The beginning of a run that continues another run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str = Field(description="checksum of the run.json of the run before")
    handover: str = Field(description="checksum of handover.json")
    draw: int = Field(ge=0, description="first draw of this run")
    step: int | None = Field(ge=0, description="optimizer steps taken at the first draw; null if unknown")
    num_rounds: int = Field(ge=0, description="number of rounds of all earlier runs, for the policy")
    skills: list[SkillPosition] = Field(description="place in the order of each skill, in the order of skills")
    absent: list[SkillPosition] = Field(description="skills of earlier runs that this run does not have")
    weights_before: list[float] | None = Field(description="weights of the round before; null without a round before")
    policy_state: dict[str, Any] = Field(description="state of the policy before the first round")
    observation: CopiedObservation | None = Field(description="last observation of the run before; null if none fits")
