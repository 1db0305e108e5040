"""The ledger: the append-only record of a run, and the channel over which its processes agree.

    RUN/run.json                                        the definition of the run: shards, skills, seed, round_draws, lag, policy
    RUN/handover.json                                   the run before and the place in its stream, if this run continues another run
    RUN/packed.json                                     the first block of the packed stream, if this run continues another run
    RUN/steers/00000000.json                            a steering by hand, which acts from a round on
    RUN/generations/00000001.json                       a resume: the records that generation 1 keeps of generation 0, and its job
    RUN/generations/00000000/observations/00000000.json reported losses, numbered in the order of the reports, with rising draws
    RUN/generations/00000000/rounds/00000001.json       a decided round: weights, counts, observations used, state of the policy

One primitive carries the whole protocol: *put if absent*. A process that needs a round computes the round and puts the record. The
first put wins, and every process reads the winner's record. A dead process leaves no partial record.

Every record holds a checksum of its own content and the checksum of its predecessor, so a reader notices a changed or missing
record. `skillshard.mixing.records` reads the records of a generation.
"""

import errno
import os
import threading
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from skillshard import artefact, canonical, places, storage
from skillshard.errors import LedgerError, StorageError
from skillshard.loss import LossKind, MeasuredOn
from skillshard.mixing.place_records import (
    AheadEpoch,
    AheadSkippedPart,
    BlocksSkippedPart,
    Continued,
    CutSample,
    SeenObservation,
    SkillPosition,
    SkipInEpoch,
    SkippedPart,
)

Lag = int | Literal["live"]
RUN = "run.json"
OLDER_RUNS = tuple(f"skillshard/run/{version}" for version in range(1, 5))
HANDOVER = "handover.json"
PACKED = "packed.json"
REMEDY = "Restore the file, resume from a checkpoint before it, or start a new ledger."
RecordType = TypeVar("RecordType", bound="LedgerRecord")


def _requires_checksum(schema: dict[str, Any]) -> None:
    """Require the checksum in the JSON Schema: a new record computes its checksum, and a record on disk always has a checksum."""
    schema["properties"]["checksum"].pop("default")
    schema["required"].append("checksum")


class LedgerRecord(BaseModel):
    """A record of a ledger: immutable, without unknown fields, with a single JSON form and a checksum of its content."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_requires_checksum)

    checksum: str = Field(default="", description="digest of this record's JSON form without this field")

    @model_validator(mode="after")
    def _sealed(self) -> "LedgerRecord":
        checksum = canonical.digest(canonical.to_json(self._content()))
        if not self.checksum:
            object.__setattr__(self, "checksum", checksum)  # a new record; a model of pydantic is frozen for its users
        elif self.checksum != checksum:
            raise ValueError(
                f"the content has checksum {checksum}, and the record says {self.checksum}: it was changed"
            )
        return self

    def _content(self) -> dict[str, Any]:
        # Not by `model_dump`, which copies every list: lists may be long, and every read and every put computes the checksum.
        values = {**self.__dict__}
        del values["checksum"]
        return {
            "schema": values.pop("schema_version"),
            **{name: _plain(value) for name, value in values.items()},
        }

    def to_bytes(self) -> bytes:
        return canonical.to_json({**self._content(), "checksum": self.checksum})


def _plain(value: Any) -> Any:
    """Return the JSON form of a field. Most fields are plain JSON already, and a long list must not be copied."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return [item.model_dump() for item in value]
    return value


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
                _check_numbers(name, values, len(self.skills), least=1)
        if (self.unit == "blocks") != (self.blocks is not None):
            raise ValueError(f"the unit is {self.unit}, and blocks is {self.blocks}")
        return self

    @model_validator(mode="after")
    def _continues(self) -> "RunRecord":
        _check_numbers("num_shards", self.num_shards, len(self.skills), least=1)
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
        return -(-(draw - self.first_draw) // self.round_draws)


class ObservationRecord(LedgerRecord):
    """An observation: losses of a model that has seen `draw` samples of the stream."""

    schema_version: Literal["skillshard/observation/3"] = Field("skillshard/observation/3", alias="schema")
    step: int = Field(ge=0, description="optimizer steps taken")
    draw: int = Field(ge=0, description="number of samples of the mixed stream that the model has seen")
    losses: dict[str, float | None] = Field(
        description="evaluation skill -> nats per token; null if not a finite number"
    )
    loss: LossKind = Field(description="reduction and mask of the losses")
    measured_on: MeasuredOn = Field(
        description="samples of the losses: held-out samples, or the batches of the training"
    )
    num_samples: dict[str, int] | None = Field(
        description="evaluation skill -> number of measured samples, 0 for a loss of the observation before; null if the report gave no numbers"
    )
    standard_errors: dict[str, float | None] | None = Field(
        description="evaluation skill -> standard error in nats per token, null if unknown; null if the report gave no errors"
    )
    left_out: bool = Field(
        description="whether the policy does not see the losses, because a loss is not a finite number"
    )
    previous: str = Field(description="checksum of the observation before, or of run.json for the first observation")

    @model_validator(mode="after")
    def _fits(self) -> "ObservationRecord":
        bad = [name for name, loss in self.losses.items() if loss is not None and not 0 <= loss < float("inf")]
        if bad or (not self.left_out and None in self.losses.values()):
            raise ValueError(f"losses must be finite numbers >= 0: {self.losses}")
        for name, numbers in (("num_samples", self.num_samples), ("standard_errors", self.standard_errors)):
            if numbers is not None and (
                set(numbers) != set(self.losses)
                or any(number is not None and number < 0 for number in numbers.values())
            ):
                raise ValueError(f"{name} must be numbers >= 0 of the same skills as losses: {numbers}")
        return self


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
        _check_numbers("drawn", self.drawn, len(self.skills), least=0)
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


def cuts_of(record: RunRecord | HandoverRecord) -> dict[str, int]:
    """Return the label of each skill with a cut sample -> number of tokens of the sample that no block has."""
    if not isinstance(record, (BlocksRunRecord, BlocksHandoverRecord)):
        return {}
    return {cut.label: cut.left for cut in record.cuts}


class RoundRecord(LedgerRecord):
    """A round: a stretch of the stream with a single weight vector."""

    schema_version: Literal["skillshard/round/2"] = Field("skillshard/round/2", alias="schema")
    round: int = Field(ge=0)
    first_draw: int = Field(ge=0)
    weights: list[float] = Field(description="weights of the policy, in the run's unit; sum 1")
    num_draws: int = Field(
        ge=0, description="number of draws of this round; the stream ends with a round of fewer than round_draws"
    )
    counts: list[int] = Field(description="number of draws of each skill in this round")
    epochs: list[float] = Field(description="number of epochs of each skill after this round, fractions included")
    drawn_before: list[int] = Field(description="number of draws of each skill in all rounds before")
    carry: list[int] = Field(description="draws owed to each skill after this round, in units of 2**-40")
    observed_to: int = Field(ge=-1, description="draw up to which observations have been used; -1 for no observation")
    num_observed: int = Field(ge=0, description="number of observations used so far")
    observations: list[int] = Field(description="draws of the observations that this round uses for the first time")
    last_observation: str | None = Field(description="checksum of the last observation used; null for no observation")
    policy_state: dict[str, Any]
    previous: str = Field(description="checksum of the round before, or of run.json for round 0")

    @model_validator(mode="after")
    def _fits(self) -> "RoundRecord":
        num = len(self.weights)
        _check_numbers("weights", self.weights, num, least=0)
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights sum to {sum(self.weights):.9g}, not to 1")
        _check_numbers("counts", self.counts, num, least=0)
        _check_numbers("drawn_before", self.drawn_before, num, least=0)
        _check_numbers("epochs", self.epochs, num, least=0)
        if len(self.carry) != num:
            raise ValueError(f"carry has {len(self.carry):,} numbers for {num:,} skills")
        if self.num_draws > sum(self.counts):
            raise ValueError(f"num_draws is {self.num_draws:,}, and the counts sum to {sum(self.counts):,}")
        return self


class SteeredRoundRecord(RoundRecord):
    """A round of a run that was steered before. A run without steering has no such round."""

    schema_version: Literal["skillshard/round/3"] = Field("skillshard/round/3", alias="schema")  # type: ignore[assignment]
    steer: int = Field(ge=0, description="number of the steering that acts in this round")
    steer_checksum: str = Field(description="checksum of the record of this steering")


class PackedBeginRecord(LedgerRecord):
    """The record packed.json: the beginning of the packed stream of a run that continues another run."""

    schema_version: Literal["skillshard/packed-begin/1"] = Field("skillshard/packed-begin/1", alias="schema")
    run: str = Field(description="checksum of run.json")
    block: int = Field(ge=0, description="number of the first block of the run")
    left: int = Field(
        ge=0, description="number of tokens at the end of the last draw before the run that no earlier block has"
    )


class SteerRecord(LedgerRecord):
    """A steering: from a round on, the weights are given by hand, stay as they are, or come from the policy again."""

    schema_version: Literal["skillshard/steer/1"] = Field("skillshard/steer/1", alias="schema")
    first_round: int = Field(
        ge=0, description="first round in which the steering may act, undecided when it was recorded"
    )
    action: Literal["weights", "freeze", "resume"]
    weights: list[float] | None = Field(
        description="weights of the skills in the run's unit; null unless action is weights"
    )
    why: str = Field(min_length=1, description="reason in the words of the user")
    previous: str = Field(description="checksum of the steering before, or of run.json for steering 0")

    @model_validator(mode="after")
    def _fits(self) -> "SteerRecord":
        if (self.weights is not None) != (self.action == "weights"):
            raise ValueError(f"action {self.action} with the weights {self.weights}")
        if self.weights is not None:
            _check_numbers("weights", self.weights, len(self.weights), least=0)
            if abs(sum(self.weights) - 1) > 1e-6:
                raise ValueError(f"weights sum to {sum(self.weights):.9g}, not to 1")
        return self


class Segment(BaseModel):
    """The generation that wrote the records from certain numbers on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    generation: int = Field(ge=0)
    first_round: int = Field(ge=0)
    first_observation: int = Field(ge=0)


class GenerationRecord(LedgerRecord):
    """A resume: generation G continues from a draw and keeps the records of earlier generations up to the draw."""

    schema_version: Literal["skillshard/generation/1"] = Field("skillshard/generation/1", alias="schema")
    generation: int = Field(ge=1)
    job: str | None = Field(description="name of the job that began the generation; null for a single process")
    draw: int = Field(ge=0, description="draws consumed at the beginning of the generation")
    num_rounds: int = Field(ge=0, description="number of rounds kept from earlier generations")
    last_round: str = Field(description="checksum of the last round kept, or of run.json if no round is kept")
    num_observations: int = Field(ge=0, description="number of observations kept from earlier generations")
    last_observation: str = Field(
        description="checksum of the last observation kept, or of run.json if no observation is kept"
    )
    segments: list[Segment] = Field(
        description="writer of the records from certain numbers on; if several segments fit a number, the last segment counts"
    )
    previous: str = Field(description="checksum of the generation before, or of run.json for generation 1")

    @model_validator(mode="after")
    def _fits(self) -> "GenerationRecord":
        expected = Segment(
            generation=self.generation, first_round=self.num_rounds, first_observation=self.num_observations
        )
        if self.segments[-1:] != [expected]:
            raise ValueError(f"the last of segments is not {expected}")
        writers = [segment.generation for segment in self.segments]
        if writers != sorted(set(writers)):
            raise ValueError(f"the generations of segments do not rise: {writers}")
        if min(segment.first_round for segment in self.segments) or min(
            segment.first_observation for segment in self.segments
        ):
            raise ValueError("no segment begins with round 0, or none with observation 0")
        return self


def _check_numbers(name: str, values: "list[int] | list[float]", num: int, *, least: int) -> None:
    """Raise ValueError unless a list has a plausible number for each skill."""
    if len(values) != num:
        raise ValueError(f"{name} has {len(values):,} numbers for {num:,} skills")
    bad = [value for value in values if not least <= value < 2**62]
    if bad:
        raise ValueError(f"{name} holds {bad[0]}: expected numbers from {least} to 2**62")


@runtime_checkable
class Ledger(Protocol):
    """Named byte strings that are written once. Names are paths with `/`."""

    def put(self, name: str, data: bytes) -> bool:
        """Write unless the name is taken. Return whether this call wrote the bytes."""

    def get(self, name: str) -> bytes | None:
        """Return the bytes that were put, or None."""

    def flush(self) -> None:
        """Return when all records put by this process will survive a power failure."""

    def names(self, folder: str) -> list[str]:
        """Return the names of the records in a folder, sorted."""


class _Locks:
    """The locks of all ledgers of this process. The locks are no part of a ledger, because a ledger is sent to workers."""

    def __init__(self) -> None:
        self.marks, self.flush = threading.Lock(), threading.Lock()

    def after_fork(self) -> None:
        self.marks, self.flush = (
            threading.Lock(),
            threading.Lock(),
        )  # another thread of the parent may have held the old locks


_locks = _Locks()
os.register_at_fork(after_in_child=_locks.after_fork)


class DirectoryLedger:
    """A ledger in a directory, local or shared (NFS). Any number of threads may use the ledger."""

    def __init__(self, place: str | os.PathLike[str]) -> None:
        if not os.fspath(place) or "\0" in os.fspath(place):
            raise LedgerError(f"the ledger's place is {os.fspath(place)!r}: give the path of a directory.")
        self.root = places.local_path(place)
        # Folder -> its first record that may be lost in a power failure. A single name per folder is enough, because the names
        # of later records sort after this name. Syncing every put would cost a disk access per round.
        self._first_unsynced: dict[str, str] = {}

    def __str__(self) -> str:
        return str(self.root)

    def put(self, name: str, data: bytes) -> bool:
        path = f"{self.root}/{name}"
        if name == RUN:
            self._refuse_other_artefact()
        try:
            # Only the first record of a folder needs the folder to be created, so a put does not look for the folder first.
            try:
                was_put = storage.put_if_absent(path, data)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                was_put = storage.put_if_absent(path, data)
        except StorageError as error:
            raise LedgerError(str(error)) from error
        except OSError as error:
            raise LedgerError(_refused(path, error)) from error
        if was_put:
            self._mark(name.rpartition("/")[0], name)
        return was_put

    def _mark(self, folder: str, name: str) -> None:
        """Note that a record may be lost in a power failure."""
        with _locks.marks:
            # The least name, because another thread may have put a later record and noted this record first.
            self._first_unsynced[folder] = min(name, self._first_unsynced.get(folder, name))

    def _refuse_other_artefact(self) -> None:
        """Raise LedgerError in a directory of tags or shards: commands that take a directory tell its kind by the manifest."""
        for manifest, kind in artefact.MANIFESTS.items():
            if manifest != RUN and (self.root / manifest).exists():
                raise LedgerError(
                    f"{self.root} holds {kind} ({manifest}), and a run's ledger needs its own directory. Give another directory."
                )

    def get(self, name: str) -> bytes | None:
        path = f"{self.root}/{name}"
        try:
            with open(path, "rb", buffering=0) as file:
                return file.readall()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(_unreadable(path, error)) from error

    def flush(self) -> None:
        # One thread at a time: a thread with nothing left to sync must not return while another thread is still syncing.
        with _locks.flush:
            with _locks.marks:
                unsynced = dict(self._first_unsynced)
            for folder, first in unsynced.items():
                with _locks.marks:
                    # The mark goes before the names are listed, so that a record of another thread, put during the syncs, has a new mark.
                    del self._first_unsynced[folder]
                try:
                    for name in self.names(folder):
                        if name >= first:
                            self._sync(name)
                except BaseException:
                    self._mark(folder, first)
                    raise

    def _sync(self, name: str) -> None:
        try:
            storage.sync(self.root / name)
        except OSError as error:
            raise LedgerError(
                f"{self.root}/{name} may not be on the disk: {error.strerror}. A checkpoint that is written now could name records that the "
                "ledger has lost. Mend the cause, then write the checkpoint again."
            ) from error

    def names(self, folder: str) -> list[str]:
        try:
            names = os.listdir(self.root / folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LedgerError(_unreadable(f"{self.root}/{folder}", error)) from error
        prefix = f"{folder}/" if folder else ""
        return sorted(f"{prefix}{name}" for name in names if name.endswith(".json") and name[0] != ".")


def opened_ledger(ledger: Any) -> Ledger:
    """Return the ledger in a directory, or a ledger itself.

    Raises:
        LedgerError: The value is no path of a directory and no ledger.
    """
    if isinstance(ledger, (str, os.PathLike)):
        return DirectoryLedger(ledger)
    if not isinstance(ledger, Ledger):
        raise LedgerError(f"ledger is {ledger!r}: give the directory of the run's record.")
    return ledger


_REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some of the quota",
    errno.EROFS: "Make the file system writable, or give a ledger directory elsewhere",
    errno.EACCES: "Give this user the permission to write there",
    errno.EPERM: "Give this user the permission to write there",
    errno.ENOTDIR: "A part of the path is a file: give another ledger directory",
    errno.EEXIST: "A part of the path is a file: give another ledger directory",
}


def _refused(path: str, error: OSError) -> str:
    remedy = _REMEDIES.get(error.errno or 0, "Mend the cause")
    return (
        f"{path} cannot be written: {error.strerror}. {remedy}, then run the same command again. Every record written before is "
        "whole, and nothing was written under this name."
    )


def _unreadable(path: str, error: OSError) -> str:
    return f"{path} cannot be read: {error.strerror}. Restore the file and its permissions, then run the same command again."


def record_name(generation: int, kind: str, number: int) -> str:
    """Return the name of a round or an observation that a generation writes."""
    return f"{folder_of(generation, kind)}/{number:08d}.json"


def folder_of(generation: int, kind: str) -> str:
    """Return the folder of a generation's rounds or observations."""
    return f"generations/{generation:08d}/{kind}"


def generation_name(generation: int) -> str:
    return f"generations/{generation:08d}.json"


def numbers_in(ledger: Ledger, folder: str) -> list[int]:
    """List the numbers of the records in a folder, rising. A file with another name is no record, and is passed over."""
    # The last condition refuses names such as 7.json: two names of the same number would be two records of this number.
    stems = [name[len(folder) + 1 : -len(".json")] for name in ledger.names(folder)]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit() and f"{int(stem):08d}" == stem)


def read_record(ledger: Ledger, name: str, kind: type[RecordType], *, remedy: str = REMEDY) -> RecordType | None:
    """Read and check a record.

    Args:
        ledger: Ledger of the record.
        name: Name of the record.
        kind: Type of the record.
        remedy: Sentence that says how to mend a damaged record.

    Returns:
        The record, or None if no record has this name.

    Raises:
        LedgerError: The bytes are no record of this kind, or differ from the bytes that were put.
    """
    data = ledger.get(name)
    if data is None:
        return None
    try:
        value = canonical.from_json(data, name)
        if kind is RunRecord and isinstance(value, dict) and value.get("schema") in OLDER_RUNS:
            raise LedgerError(
                f"{ledger} was written by an older version of skillshard (schema {value['schema']}), and this version cannot continue the "
                "run. Give a new ledger directory, or continue with the version that began the run."
            )
        own: type[Any] = kind
        if isinstance(value, dict):
            own = _EXTENDED.get(kind, {}).get(value.get("schema"), kind)
        record: RecordType = own.model_validate(value)
        # A record without a checksum would pass, because a new record computes its checksum.
        if not isinstance(value, dict) or "checksum" not in value:
            raise StorageError(f"{name} has no checksum.")
    except ValidationError as error:
        raise _damaged(ledger, name, canonical.first_fault(error), remedy) from error
    except StorageError as error:
        raise _damaged(ledger, name, str(error), remedy) from error
    return record


_EXTENDED: dict[type[LedgerRecord], dict[Any, type[LedgerRecord]]] = {
    HandoverRecord: {
        "skillshard/handover/2": SkippingHandoverRecord,
        "skillshard/handover/3": AheadHandoverRecord,
        "skillshard/handover/4": BlocksHandoverRecord,
        "skillshard/handover/5": BlockSkipsHandoverRecord,
    },
    RoundRecord: {"skillshard/round/3": SteeredRoundRecord},
    RunRecord: {
        "skillshard/run/6": SkippingRunRecord,
        "skillshard/run/7": AheadRunRecord,
        "skillshard/run/8": BlocksRunRecord,
        "skillshard/run/9": BlockSkipsRunRecord,
        "skillshard/run/10": BlockSkipsBlocksRunRecord,
    },
}
"""Kind of record -> schema -> kind with more fields, which a run has only if it uses them. All other runs keep their bytes."""


def _damaged(ledger: Ledger, name: str, fault: str, remedy: str) -> LedgerError:
    return LedgerError(f"{ledger}/{name} is damaged: {fault.rstrip('.')}. {remedy}")
