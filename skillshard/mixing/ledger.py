"""The ledger: the append-only record of a run, and the channel over which its processes agree.

    RUN/run.json                                        what the run is: shards, skills, seed, round_draws, lag, policy
    RUN/generations/00000001.json                       a resume: where generation 1 cuts off generation 0, and who began it
    RUN/generations/00000000/observations/00000000.json losses reported, numbered in their order; their draws rise
    RUN/generations/00000000/rounds/00000001.json       a round decided: weights, counts, what was used, the policy's state

One primitive carries everything: *put if absent*. A process that needs a round computes the round and puts it. The first
put wins, and every process reads that one. A dead process leaves nothing half-done.

Every record holds a checksum of its own content and the checksum of its predecessor, so a changed or missing record is
noticed when it is read. `skillshard.mixing.records` reads the records of one generation.
"""

import errno
import os
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from skillshard import artefact, canonical, places, storage
from skillshard.errors import LedgerError, StorageError
from skillshard.loss import LossKind

Lag = int | Literal["live"]
RUN = "run.json"
RecordType = TypeVar("RecordType", bound="LedgerRecord")


def _requires_checksum(schema: dict[str, Any]) -> None:
    """Say in the JSON Schema that a record on disk has its checksum, which a new record computes itself."""
    schema["properties"]["checksum"].pop("default")
    schema["required"].append("checksum")


class LedgerRecord(BaseModel):
    """Anything in a ledger: immutable, no unknown fields, one JSON form, a checksum of its own content."""

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
        values = {**self.__dict__}
        del values["checksum"]
        return {
            "schema": values.pop("schema_version"),
            **{name: _plain(value) for name, value in values.items()},
        }

    def to_bytes(self) -> bytes:
        return canonical.to_json({**self._content(), "checksum": self.checksum})


def _plain(value: Any) -> Any:
    """The JSON form of a field; most are plain JSON already, and long lists must not be copied."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return [item.model_dump() for item in value]
    return value


class RunRecord(LedgerRecord):
    """run.json: what determines the stream, beside the observations."""

    schema_version: Literal["skillshard/run/2"] = Field("skillshard/run/2", alias="schema")
    shards: str = Field(description="digest of the shard set's manifest")
    skills: list[str] = Field(min_length=1, description="training skills; the order of every list of numbers")
    num_samples: list[int] = Field(description="training samples of each skill")
    unit: str = Field(pattern=r"^(samples|tokens)$", description="what the policy's weights are shares of")
    num_tokens: list[int] | None = Field(description="training tokens of each skill; null where the unit is samples")
    seed: int
    order: str = Field(description="version of the order's arithmetic")
    round_draws: int = Field(ge=1)
    lag: Lag
    repeat: str = Field(
        pattern=r"^(epochs|stop|drop|cap:[1-9][0-9]*)$", description="what happens when a skill runs out"
    )
    policy: str
    policy_arguments: dict[str, Any]
    initial_losses: bool = Field(description="whether the first observation is of draw 0, before the first step")
    loss: LossKind = Field(description="how the losses are averaged and what they leave out")

    @model_validator(mode="after")
    def _fits(self) -> "RunRecord":
        for name, values in (("num_samples", self.num_samples), ("num_tokens", self.num_tokens)):
            if values is not None:
                _check_numbers(name, values, len(self.skills), least=1)
        return self


class ObservationRecord(LedgerRecord):
    """One observation: losses measured when the model had seen `draw` samples of the stream."""

    schema_version: Literal["skillshard/observation/2"] = Field("skillshard/observation/2", alias="schema")
    step: int = Field(ge=0, description="optimizer steps taken")
    draw: int = Field(ge=0, description="samples of the mixed stream seen")
    losses: dict[str, float | None] = Field(description="evaluation skill -> nats per token; null: not a finite number")
    loss: LossKind = Field(description="how the losses are averaged and what they leave out")
    left_out: bool = Field(description="whether the policy is not shown these losses, since one is not a finite number")
    previous: str = Field(description="checksum of the observation before; of run.json for the first one")

    @model_validator(mode="after")
    def _fits(self) -> "ObservationRecord":
        bad = [name for name, loss in self.losses.items() if loss is not None and not 0 <= loss < float("inf")]
        if bad or (not self.left_out and None in self.losses.values()):
            raise ValueError(f"losses must be finite numbers >= 0: {self.losses}")
        return self


class RoundRecord(LedgerRecord):
    """One round: a stretch of the stream with one weight vector."""

    schema_version: Literal["skillshard/round/2"] = Field("skillshard/round/2", alias="schema")
    round: int = Field(ge=0)
    first_draw: int = Field(ge=0)
    weights: list[float] = Field(description="as the policy gave them, in the run's unit; sum 1")
    num_draws: int = Field(ge=0, description="draws in this round; fewer than round_draws: the stream ends with it")
    counts: list[int] = Field(description="draws of each skill in this round")
    epochs: list[float] = Field(description="how often each skill has been drawn whole, after this round")
    drawn_before: list[int] = Field(description="draws of each skill in all rounds before")
    carry: list[int] = Field(description="draws owed after this round, in units of 2**-40")
    observed_to: int = Field(ge=-1, description="observations up to this draw have been used; -1: none")
    num_observed: int = Field(ge=0, description="observations used so far: those numbered below this")
    observations: list[int] = Field(description="draws of the observations used for the first time")
    last_observation: str | None = Field(description="checksum of the last observation used; null: none")
    policy_state: dict[str, Any]
    previous: str = Field(description="checksum of the round before; of run.json for round 0")

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


class Segment(BaseModel):
    """Which generation wrote the records from some number on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    generation: int = Field(ge=0)
    first_round: int = Field(ge=0)
    first_observation: int = Field(ge=0)


class GenerationRecord(LedgerRecord):
    """One resume: generation G goes on from a draw, and keeps of the generations before what was known at that draw."""

    schema_version: Literal["skillshard/generation/1"] = Field("skillshard/generation/1", alias="schema")
    generation: int = Field(ge=1)
    job: str | None = Field(description="name of the job that began it; null: a single process")
    draw: int = Field(ge=0, description="draws consumed where it begins")
    num_rounds: int = Field(ge=0, description="rounds kept: those numbered below this")
    last_round: str = Field(description="checksum of the last round kept; of run.json: none is kept")
    num_observations: int = Field(ge=0, description="observations kept: those numbered below this")
    last_observation: str = Field(description="checksum of the last observation kept; of run.json: none is kept")
    segments: list[Segment] = Field(
        description="which generation wrote the records from some number on; of several that fit, the last one"
    )
    previous: str = Field(description="checksum of the generation before; of run.json for generation 1")

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
    """ValueError unless a list has one plausible number for each skill."""
    if len(values) != num:
        raise ValueError(f"{name} has {len(values):,} numbers for {num:,} skills")
    bad = [value for value in values if not least <= value < 2**62]
    if bad:
        raise ValueError(f"{name} holds {bad[0]}: expected numbers from {least} to 2**62")


@runtime_checkable
class Ledger(Protocol):
    """Named byte strings that are written once. Names are paths with `/`."""

    def put(self, name: str, data: bytes) -> bool:
        """Write unless the name is taken; return whether this call wrote the bytes."""

    def get(self, name: str) -> bytes | None:
        """Return the bytes that were put, or None."""

    def flush(self) -> None:
        """Return when what this process put will survive a failure of power."""

    def names(self, folder: str) -> list[str]:
        """Return the names of the records in a folder, sorted."""


class DirectoryLedger:
    """A ledger in a directory: local, or shared (NFS)."""

    def __init__(self, place: str | os.PathLike[str]) -> None:
        if not os.fspath(place) or "\0" in os.fspath(place):
            raise LedgerError(f"the ledger's place is {os.fspath(place)!r}: give the path of a directory.")
        self.root = places.local_path(place)
        self._first_unsynced: dict[str, str] = {}

    def __str__(self) -> str:
        return str(self.root)

    def put(self, name: str, data: bytes) -> bool:
        path = f"{self.root}/{name}"
        if name == RUN:
            self._refuse_other_artefact()
        try:
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
            self._first_unsynced.setdefault(name.rpartition("/")[0], name)
        return was_put

    def _refuse_other_artefact(self) -> None:
        """A run in the directory of tags or shards would hide them, or be hidden by them."""
        for manifest, what in artefact.MANIFESTS.items():
            if manifest != RUN and (self.root / manifest).exists():
                raise LedgerError(
                    f"{self.root} holds {what} ({manifest}), and a run's ledger needs a directory of its own. Give another one."
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
        for folder, first in self._first_unsynced.items():
            for name in self.names(folder):
                if name >= first:
                    self._sync(name)
        self._first_unsynced.clear()

    def _sync(self, name: str) -> None:
        try:
            storage.sync(self.root / name)
        except OSError as error:
            raise LedgerError(
                f"{self.root}/{name} may not be on the disk: {error.strerror}. A checkpoint that is written now could know more than the "
                "ledger. Mend the cause, then write the checkpoint again."
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
    """The name of a round or an observation that one generation writes."""
    return f"{folder_of(generation, kind)}/{number:08d}.json"


def folder_of(generation: int, kind: str) -> str:
    """The folder of one generation's rounds or observations."""
    return f"generations/{generation:08d}/{kind}"


def generation_name(generation: int) -> str:
    return f"generations/{generation:08d}.json"


def numbers_in(ledger: Ledger, folder: str) -> list[int]:
    """The numbers of the records in a folder, rising. A file with another name is no record, and is passed over."""
    stems = [name[len(folder) + 1 : -len(".json")] for name in ledger.names(folder)]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit() and f"{int(stem):08d}" == stem)


def read_record(ledger: Ledger, name: str, kind: type[RecordType]) -> RecordType | None:
    """Read and check a record.

    Returns:
        The record, or None if there is none of this name.

    Raises:
        LedgerError: the bytes are not a record of this kind, or not the ones that were put.
    """
    data = ledger.get(name)
    if data is None:
        return None
    try:
        value = canonical.from_json(data, name)
        if kind is RunRecord and isinstance(value, dict) and value.get("schema") == "skillshard/run/1":
            raise LedgerError(
                f"{ledger} was written by an older version of skillshard (schema skillshard/run/1), which this version cannot go on "
                "with. Give a new ledger directory, or go on with the version that began it."
            )
        record = kind.model_validate(value)
        if not isinstance(value, dict) or "checksum" not in value:
            raise StorageError(f"{name} has no checksum.")
    except ValidationError as error:
        raise _damaged(ledger, name, canonical.first_fault(error)) from error
    except StorageError as error:
        raise _damaged(ledger, name, str(error)) from error
    return record


def _damaged(ledger: Ledger, name: str, fault: str) -> LedgerError:
    return LedgerError(
        f"{ledger}/{name} is damaged: {fault.rstrip('.')}. Restore the file, resume from a checkpoint before it, or start a new ledger."
    )
