"""The ledger: the append-only record of a run, and the channel over which its processes agree.

    RUN/run.json                            what the run is: shards, skills, seed, round_draws, lag, policy
    RUN/observations/00000000.json          losses reported, numbered in their order; their draws rise
    RUN/rounds/00000001.json                a round decided: weights, counts, what was used, the policy's state
    RUN/aside/0001/...                      records that a resume from an earlier draw has set aside

One primitive carries everything: *put if absent*. Whoever needs a round computes it and puts it; the first put wins, and
everyone reads that one. A dead process leaves nothing half-done. Each round holds the digest of the one before it, so
a changed or missing record is noticed.
"""

import bisect
import contextlib
import operator
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard import artefact, storage
from skillshard.errors import LedgerError, ObservationError, StorageError
from skillshard.mixing.order import ENDLESS, draw_weights, fixed_point, interleave, limited_quotas
from skillshard.policies.policy import Observation

Lag = int | Literal["live"]
OBSERVATIONS_KEPT = 4
"""Observations kept in memory: with lag=1 a round uses the newest but one."""
RecordType = TypeVar("RecordType", bound="LedgerRecord")


class LedgerRecord(BaseModel):
    """Anything in a ledger: immutable, no unknown fields, one JSON form."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_bytes(self) -> bytes:
        values = {**self.__dict__}  # all are plain JSON already
        return storage.to_json({"schema": values.pop("schema_version"), **values})


class RunRecord(LedgerRecord):
    """run.json: what determines the stream, beside the observations."""

    schema_version: Literal["skillshard/run/1"] = Field("skillshard/run/1", alias="schema")
    shards: str = Field(description="digest of the shard set's manifest")
    skills: list[str] = Field(description="training skills; the order of every list of numbers")
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


class ObservationRecord(LedgerRecord):
    """One observation: losses in nats per token, measured when the model had seen `draw` samples of the stream."""

    schema_version: Literal["skillshard/observation/1"] = Field("skillshard/observation/1", alias="schema")
    step: int = Field(ge=0, description="optimizer steps taken")
    draw: int = Field(ge=0, description="samples of the mixed stream seen")
    losses: dict[str, float] = Field(description="evaluation skill -> nats per token")


class RoundRecord(LedgerRecord):
    """One round: a stretch of the stream with one weight vector."""

    schema_version: Literal["skillshard/round/1"] = Field("skillshard/round/1", alias="schema")
    round: int = Field(ge=0)
    first_draw: int = Field(ge=0)
    weights: list[float] = Field(description="as the policy gave them, in the run's unit; sum 1")
    num_draws: int = Field(ge=0, description="draws in this round; fewer than round_draws: the stream ends with it")
    counts: list[int] = Field(description="draws of each skill in this round")
    epochs: list[float] = Field(description="how often each skill has been drawn whole, after this round")
    drawn_before: list[int] = Field(description="draws of each skill in all rounds before")
    carry: list[int] = Field(description="draws owed after this round, in units of 2**-40")
    observed_to: int = Field(description="observations up to this draw have been used; -1: none")
    num_observed: int = Field(ge=0, description="observations used so far: those numbered below this")
    observations: list[int] = Field(description="draws of the observations used for the first time")
    policy_state: dict[str, Any]
    previous: str = Field(description="digest of the round before; of run.json for round 0")


@runtime_checkable
class Ledger(Protocol):
    """Named byte strings that are written once. Names are paths with `/`."""

    def put(self, name: str, data: bytes) -> bool:
        """Write unless the name is taken; whether it was written."""

    def get(self, name: str) -> bytes | None:
        """What was put, or None."""

    def flush(self) -> None:
        """Return when what this process put will survive a failure of power."""

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted."""

    def set_aside(self, names: list[str]) -> str:
        """Take names out of the ledger but keep them; where they are now.

        The last goes first, so that a process that is killed leaves a ledger without holes.
        """


class DirectoryLedger:
    """A ledger in a directory: local, or shared (NFS)."""

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self.root = storage.local_path(place)
        self._first_unsynced: dict[str, str] = {}

    def __str__(self) -> str:
        return str(self.root)

    def put(self, name: str, data: bytes) -> bool:
        path = f"{self.root}/{name}"
        try:
            was_put = storage.put_if_absent(path, data)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            was_put = storage.put_if_absent(path, data)
        if was_put:
            self._first_unsynced.setdefault(name.rpartition("/")[0], name)
        return was_put

    def get(self, name: str) -> bytes | None:
        try:
            with open(f"{self.root}/{name}", "rb", buffering=0) as file:
                return file.readall()
        except FileNotFoundError:
            return None

    def flush(self) -> None:
        for folder, first in self._first_unsynced.items():
            for name in self.names(folder):
                if name >= first:
                    storage.sync(self.root / name)
        self._first_unsynced.clear()

    def names(self, folder: str) -> list[str]:
        try:
            there = os.listdir(self.root / folder)
        except FileNotFoundError:
            return []
        prefix = f"{folder}/" if folder else ""
        return sorted(f"{prefix}{name}" for name in there if name.endswith(".json") and name[0] != ".")

    def set_aside(self, names: list[str]) -> str:
        aside = self.root / "aside"
        aside.mkdir(exist_ok=True)
        target = aside / f"{len(list(aside.iterdir())) + 1:04d}"
        for name in reversed(names):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another rank has just set it aside
                os.replace(self.root / name, target / name)
        return str(target)


def round_name(number: int) -> str:
    return f"rounds/{number:08d}.json"


def observation_name(number: int) -> str:
    return f"observations/{number:08d}.json"


def number_of(name: str) -> int:
    """The number in a record's name.

    >>> number_of(round_name(7)), number_of(observation_name(4096))
    (7, 4096)
    """
    return int(Path(name).stem)


def read_record(ledger: Ledger, name: str, kind: type[RecordType]) -> RecordType | None:
    """A record, or None if it is not there; LedgerError if it is not what its name says."""
    data = ledger.get(name)
    if data is None:
        return None
    try:
        return kind.model_validate(storage.from_json(data, name))
    except (ValidationError, StorageError) as error:
        raise LedgerError(f"{ledger}/{name} is damaged: {error} Restore it, or start a new ledger.") from error


def open_run(ledger: Ledger, run: RunRecord) -> str:
    """Begin the run, or join it; the digest of run.json.

    Raises:
        LedgerError: the ledger is of another run; names what differs.
    """
    ledger.put("run.json", run.to_bytes())
    begun = read_record(ledger, "run.json", RunRecord)
    assert begun is not None
    changed = artefact.differences(begun.model_dump(by_alias=True), run.model_dump(by_alias=True))
    if changed:
        raise LedgerError(
            f"{ledger} is the ledger of another run: {'; '.join(changed[:4])}. A run's stream is fixed by these; go on with "
            "the same, or give a new ledger directory."
        )
    return storage.digest(run.to_bytes())


class ObservationLog:
    """The observations of a ledger, numbered 0, 1, 2, ... in the rising order of their draws.

    Reading on costs one look per new observation, however many there are; the newest few are kept in memory.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._num = len(ledger.names("observations"))
        self._kept: dict[int, ObservationRecord] = {}
        if self._num:
            self._kept[self._num - 1] = self._at(self._num - 1)

    def last_draw(self) -> int:
        """The draw of the newest observation; -1 if there is none."""
        self._catch_up()
        return self._last_known()

    def reaches(self, draw: int) -> bool:
        """Whether an observation of this draw or a later one is there; no look into the ledger if one is known."""
        return self._last_known() >= draw or self.last_draw() >= draw

    def put(self, observation: ObservationRecord) -> None:
        """Record losses; the same ones again have no effect.

        Raises:
            ObservationError: other losses stand at this draw already, or there are later ones and none at this draw.
        """
        while observation.draw > self._last_known():
            if self._ledger.put(observation_name(self._num), observation.to_bytes()):
                self._keep(observation)
                return
            self._catch_up()
        there = self._find(observation.draw)
        if there is None:
            raise ObservationError(
                f"losses of step {observation.step} (draw {observation.draw:,}) come too late: {self._ledger} holds those of draw "
                f"{self.last_draw():,}. Report in the order of steps; a run that goes on from a checkpoint calls "
                "mixer.load_state_dict() first."
            )
        changed = artefact.differences(there.model_dump(by_alias=True), observation.model_dump(by_alias=True))
        if changed:
            raise ObservationError(
                f"{self._ledger} already holds other losses for step {there.step}, draw {there.draw:,}: {'; '.join(changed[:3])}. "
                "A run that goes on from a checkpoint calls mixer.load_state_dict(); a new run takes a new ledger directory."
            )

    def read(self, first: int, to_draw: int) -> list[Observation]:
        """The observations numbered `first` or higher, up to a draw; those after it need not be known yet."""
        if to_draw > self._last_known():
            self._catch_up()
        records = (self._at(number) for number in range(first, self._num))
        return [
            Observation(record.step, record.losses, record.draw)
            for record in takewhile(lambda record: record.draw <= to_draw, records)
        ]

    def _last_known(self) -> int:
        """The draw of the newest observation that was read or put here; -1 if there is none."""
        return self._kept[self._num - 1].draw if self._num else -1

    def _keep(self, newest: ObservationRecord) -> None:
        self._kept[self._num] = newest
        self._kept.pop(self._num - OBSERVATIONS_KEPT, None)
        self._num += 1

    def _find(self, draw: int) -> ObservationRecord | None:
        number = bisect.bisect_left(range(self._num), draw, key=lambda number: self._at(number).draw)
        record = self._at(number)
        return record if record.draw == draw else None

    def _at(self, number: int) -> ObservationRecord:
        record = self._kept.get(number) or read_record(self._ledger, observation_name(number), ObservationRecord)
        if record is None:
            raise LedgerError(
                f"{self._ledger}/{observation_name(number)} is missing. Restore it, or start a new ledger."
            )
        return record

    def _catch_up(self) -> None:
        while (record := read_record(self._ledger, observation_name(self._num), ObservationRecord)) is not None:
            self._keep(record)


def wait_for(ready: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until ready or time is up, less and less often (1 ms to 0.1 s); whether it is ready."""
    end, pause = time.monotonic() + timeout_s, 0.001
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    return True


def rewind(ledger: Ledger, draw: int) -> str | None:
    """Set aside what a run knew only after `draw`: later observations, and rounds decided with them.

    Several ranks may do so at once: all that is later is gone when any of these calls returns.

    Returns:
        Where they are now; None if there was nothing.
    """
    observations = _newest(ledger, "observations", lambda name: _draw_of(ledger, name) > draw)
    later = observations + _newest(ledger, "rounds", lambda name: _observed_to(ledger, name) > draw)
    return ledger.set_aside(later) if later else None


def _newest(ledger: Ledger, folder: str, is_later: Callable[[str], bool]) -> list[str]:
    """The newest names of a folder, back to the first that is not later."""
    names = ledger.names(folder)
    first = len(names)
    while first and is_later(names[first - 1]):
        first -= 1
    return names[first:]


def _draw_of(ledger: Ledger, name: str) -> int:
    """The draw of an observation; beyond all for one that another rank has just set aside."""
    record = read_record(ledger, name, ObservationRecord)
    return sys.maxsize if record is None else record.draw


def _observed_to(ledger: Ledger, name: str) -> int:
    """The draw up to which a round knew losses; beyond all for one just set aside, or cut by a failure of power."""
    try:
        record = read_record(ledger, name, RoundRecord)
    except LedgerError:
        return sys.maxsize
    return sys.maxsize if record is None else record.observed_to


def available_draws(
    repeat: str, num_samples: Int[np.ndarray, " skill"], drawn: Int[np.ndarray, " skill"]
) -> Int[np.ndarray, " skill"]:
    """How many more draws each skill may give; practically endless where epochs follow one another.

    >>> available_draws("cap:2", np.array([10, 3]), np.array([15, 6])).tolist()
    [5, 0]
    """
    if repeat in ("epochs", "stop"):
        return np.full(len(num_samples), ENDLESS)
    most = 1 if repeat == "drop" else int(repeat.removeprefix("cap:"))
    return most * num_samples - drawn


def round_counts(
    run: RunRecord,
    weights: Float[np.ndarray, " skill"],
    carry: Int[np.ndarray, " skill"],
    drawn: Int[np.ndarray, " skill"],
) -> tuple[Int[np.ndarray, " skill"], Int[np.ndarray, " skill"]]:
    """Draws of each skill in a round, and the new carry, from the policy's weights.

    Args:
        carry: draws owed by earlier rounds, in units of 2**-40.
        drawn: draws of each skill in all rounds before.
    """
    num_samples = np.array(run.num_samples)
    over_draws = weights if run.num_tokens is None else draw_weights(weights, num_samples, np.array(run.num_tokens))
    available = available_draws(run.repeat, num_samples, drawn)
    return limited_quotas(fixed_point(over_draws), carry, run.round_draws, available)


def drawn_at(run: RunRecord, record: RoundRecord, draw: int) -> list[int]:
    """Draws of each skill among the first `draw` of the stream, whose last is in this round, or after it."""
    seen, counts = min(draw - record.first_draw, record.num_draws), record.counts
    if seen < sum(counts):
        skill, _ = interleave(np.array(counts), "round", run.seed, record.round)
        counts = np.bincount(skill[:seen], minlength=len(counts)).tolist()
    return list(map(operator.add, record.drawn_before, counts))


def in_unit(run: RunRecord, drawn: Sequence[int]) -> Sequence[int]:
    """Draws of each skill in the unit of the run's weights: as they are, or as the tokens they have on average, rounded down.

    Whole epochs have exactly so many tokens; a part of one has them in expectation.
    """
    if run.num_tokens is None:
        return drawn
    sizes = zip(drawn, run.num_samples, run.num_tokens, strict=True)
    return [draws * num_tokens // num_samples for draws, num_samples, num_tokens in sizes]


def verify_ledger(ledger: Ledger) -> list[str]:
    """Every fault of a ledger: rounds missing, changed, or with counts that their weights do not give."""
    run = read_record(ledger, "run.json", RunRecord)
    if run is None:
        return [f"{ledger} has no run.json."]
    faults: list[str] = []
    previous, before, carry = (
        storage.digest(run.to_bytes()),
        np.zeros(len(run.skills), np.int64),
        np.zeros(len(run.skills), np.int64),
    )
    for number, name in enumerate(ledger.names("rounds")):
        record = read_record(ledger, name, RoundRecord)
        if record is None or record.round != number:
            return [*faults, f"{ledger}/{round_name(number)} is missing."]
        if record.previous != previous:
            faults.append(f"{ledger}/{name} does not follow from the record before it: one of them was changed.")
        counts, carry = round_counts(run, np.array(record.weights), carry, before)
        if (counts.tolist(), carry.tolist(), before.tolist()) != (record.counts, record.carry, record.drawn_before):
            faults.append(f"{ledger}/{name} has counts that its weights do not give: it was changed.")
        previous, before, carry = storage.digest(record.to_bytes()), before + counts, np.array(record.carry)
    return faults
