"""The records of a run as one generation sees them, and how a resume begins the next generation.

A generation is what happens between one resume and the next. Its number is part of every record's name, so a process that
should be dead writes only where nobody reads any more: no lock, no clock, and no step that a network file system would have to
make atomic. A resume puts one record, `generations/G.json`. The record says how many rounds and observations of the generations
before it are kept, with the checksums of the last ones. Nothing is moved and nothing is deleted.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from skillshard.errors import LedgerError
from skillshard.kept import kept
from skillshard.mixing.counts import round_counts
from skillshard.mixing.ledger import (
    RUN,
    GenerationRecord,
    Ledger,
    ObservationRecord,
    RoundRecord,
    RunRecord,
    Segment,
    folder_of,
    generation_name,
    number_of,
    observation_name,
    read_record,
    round_name,
)

RECORDS_KEPT = 4
"""Rounds and observations kept in memory. A reader moves from one round to the next; with lag=1 a round uses the newest
observation but one."""


class Records:
    """The run, the rounds and the observations that one generation sees.

    Every record is checked when it is read: its own checksum, that it follows from its predecessor, and that the counts of a
    round are those of its weights.

    Args:
        ledger: a ledger with a run.json.
        run: what run.json says.
        generation: the generation to see; None: the newest.

    Raises:
        LedgerError: there is no such generation, or its record is damaged.
    """

    def __init__(self, ledger: Ledger, run: RunRecord, generation: int | None = None) -> None:
        self.ledger, self.run = ledger, run
        self.generation = newest_generation(ledger) if generation is None else generation
        self.begun = _generation(ledger, self.generation) if self.generation else None
        self._rounds: dict[int, RoundRecord] = {}
        self._observations: dict[int, ObservationRecord] = {}

    @cached_property
    def segments(self) -> list[Segment]:
        """Which generation wrote the records from some number on; of several that fit, the last one."""
        if self.begun is None:
            return [Segment(generation=0, first_round=0, first_observation=0)]
        return self.begun.segments

    # --- rounds ------------------------------------------------------------------------------------------------------

    def round_name(self, number: int) -> str:
        owner = next(segment for segment in reversed(self.segments) if segment.first_round <= number)
        return round_name(owner.generation, number)

    def round(self, number: int) -> RoundRecord | None:
        """A round that was decided, or None.

        Raises:
            LedgerError: the record is damaged, or does not follow from the round before it.
        """
        record = self._rounds.get(number)
        if record is None:
            record = read_record(self.ledger, self.round_name(number), RoundRecord)
            if record is not None:
                before = self._round_before(number)
                fault = round_fault(self.run, record, number, before)
                if fault:
                    raise LedgerError(f"{self.ledger}/{self.round_name(number)} {fault} {_REMEDY}")
                self.keep_round(record)
        return record

    def keep_round(self, record: RoundRecord) -> None:
        kept(self._rounds, record.round, lambda _: record, most=RECORDS_KEPT)

    def _round_before(self, number: int) -> RoundRecord | None:
        """The round before one that is there."""
        if number == 0:
            return None
        name = self.round_name(number - 1)
        before = self._rounds.get(number - 1) or read_record(self.ledger, name, RoundRecord)
        if before is None:
            raise _missing(self.ledger, name)
        return before

    @property
    def newest_known_round(self) -> int:
        """The newest round in memory; -1 if there is none."""
        return max(self._rounds, default=-1)

    def num_rounds(self) -> int:
        """How many rounds were decided; LedgerError if one of them is missing."""
        return self._num("rounds", [segment.first_round for segment in self.segments], self.round_name)

    # --- observations ------------------------------------------------------------------------------------------------

    def observation_name(self, number: int) -> str:
        owner = next(segment for segment in reversed(self.segments) if segment.first_observation <= number)
        return observation_name(owner.generation, number)

    def observation(self, number: int) -> ObservationRecord | None:
        """An observation, or None if nothing was reported under this number yet.

        Raises:
            LedgerError: the record is damaged, or does not follow from the observation before it.
        """
        record = self._observations.get(number)
        if record is None:
            record = read_record(self.ledger, self.observation_name(number), ObservationRecord)
            if record is not None:
                before = self._observation_before(number)
                fault = observation_fault(self.run, record, before)
                if fault:
                    raise LedgerError(f"{self.ledger}/{self.observation_name(number)} {fault} {_REMEDY}")
                self.keep_observation(number, record)
        return record

    def keep_observation(self, number: int, record: ObservationRecord) -> None:
        kept(self._observations, number, lambda _: record, most=RECORDS_KEPT)

    def _observation_before(self, number: int) -> ObservationRecord | None:
        if number == 0:
            return None
        name = self.observation_name(number - 1)
        before = self._observations.get(number - 1) or read_record(self.ledger, name, ObservationRecord)
        if before is None:
            raise _missing(self.ledger, name)
        return before

    def num_observations(self) -> int:
        """How many observations there are; LedgerError if one of them is missing."""
        starts = [segment.first_observation for segment in self.segments]
        return self._num("observations", starts, self.observation_name)

    # --- all of them -------------------------------------------------------------------------------------------------

    def rounds(self) -> Iterator[RoundRecord]:
        """Every round, in order."""
        for number in range(self.num_rounds()):
            record = self.round(number)
            assert record is not None
            yield record

    def observations(self) -> Iterator[ObservationRecord]:
        """Every observation, in order."""
        for number in range(self.num_observations()):
            record = self.observation(number)
            assert record is not None
            yield record

    def _num(self, kind: str, starts: list[int], name_of: Callable[[int], str]) -> int:
        names = {
            name
            for segment, start in zip(self.segments, starts, strict=True)
            for name in self.ledger.names(folder_of(segment.generation, kind))
            if number_of(name) >= start and name_of(number_of(name)) == name
        }
        num = max(map(number_of, names), default=-1) + 1
        num = max(num, starts[-1])
        for number in range(num):
            # A listing may miss a record that was put while the directory was read, so a look at the name decides.
            if name_of(number) not in names and self.ledger.get(name_of(number)) is None:
                raise _missing(self.ledger, name_of(number))
        return num

    # --- generations -------------------------------------------------------------------------------------------------

    def refuse_superseded(self) -> None:
        """LedgerError if the run was resumed elsewhere: a process of this generation must not go on.

        The names alone keep the records apart. This check stops a process that would go on in vain.
        """
        newer = read_record(self.ledger, generation_name(self.generation + 1), GenerationRecord)
        if newer is not None:
            by = "another process" if newer.job is None else f"job {newer.job!r}"
            raise LedgerError(
                f"this run was resumed elsewhere: {by} began generation {newer.generation} of {self.ledger} at draw {newer.draw:,}, and this "
                f"process is of generation {self.generation}, so it stops. If both are ranks of one job, give all of them the same "
                "Mixer(job=NAME), or resume by skillshard.torch.resume under torch.distributed."
            )

    def is_untouched(self) -> bool:
        """Whether nobody has reported, decided or resumed anything."""
        return not (self.generation or self.ledger.names(folder_of(0, "rounds")) or self._has_observations())

    def _has_observations(self) -> bool:
        return bool(self.ledger.names(folder_of(0, "observations")))

    def next_generation(self, draw: int, job: str | None, *, anew: bool = False) -> GenerationRecord:
        """The record that would begin the next generation at a draw: rounds up to that draw are kept, observations up to it too.

        With `anew`, at draw 0, nothing is kept: the losses of the model before the first step are measured again.

        Raises:
            LedgerError: a record that is kept is damaged or missing.
        """
        num_rounds = -(-draw // self.run.round_draws)
        last_round = self.round(num_rounds - 1) if num_rounds else None
        if num_rounds and last_round is None:  # of a state that was made before anybody read so far
            num_rounds = min(num_rounds, self.num_rounds())
            last_round = self.round(num_rounds - 1) if num_rounds else None
        # What a kept round has used is kept with it, even if it was reported ahead of the draws.
        until = draw if last_round is None else max(draw, last_round.observed_to)
        num_observations, last_observation = (0, None) if anew else self._observed_up_to(until)
        if last_round is not None and num_observations < last_round.num_observed:
            raise _missing(self.ledger, self.observation_name(num_observations))
        inherited = [
            segment
            for segment in self.segments
            if segment.first_round < num_rounds or segment.first_observation < num_observations
        ]
        began = Segment(generation=self.generation + 1, first_round=num_rounds, first_observation=num_observations)
        return GenerationRecord(
            generation=self.generation + 1,
            job=job,
            draw=draw,
            num_rounds=num_rounds,
            last_round=self.run.checksum if last_round is None else last_round.checksum,
            num_observations=num_observations,
            last_observation=self.run.checksum if last_observation is None else last_observation.checksum,
            segments=[*inherited, began],
            previous=self.run.checksum if self.begun is None else self.begun.checksum,
        )

    def _observed_up_to(self, draw: int) -> tuple[int, ObservationRecord | None]:
        """How many observations are of this draw or an earlier one, and the last of them.

        The search goes back from the newest one, so that a damaged record after the draw does not matter.
        """
        starts = [segment.first_observation for segment in self.segments]
        numbers = [
            number_of(name)
            for segment in self.segments
            for name in self.ledger.names(folder_of(segment.generation, "observations"))
            if self.observation_name(number_of(name)) == name
        ]
        for number in range(max([*numbers, starts[-1] - 1]), -1, -1):
            try:
                record = self.observation(number)
            except LedgerError:
                # Only a record of a later draw may be damaged: its neighbour before it, which is read next, is kept.
                continue
            if record is not None and record.draw <= draw:
                return number + 1, record
        return 0, None


_REMEDY = "Restore the file, resume from a checkpoint before it, or start a new ledger."


def newest_generation(ledger: Ledger) -> int:
    """The number of the newest generation; 0 if the run was never resumed."""
    names = ledger.names("generations")
    return number_of(names[-1]) if names else 0


def _generation(ledger: Ledger, generation: int) -> GenerationRecord:
    record = read_record(ledger, generation_name(generation), GenerationRecord)
    if record is None:
        raise LedgerError(
            f"{ledger} has no generation {generation}: the newest one is {newest_generation(ledger)}. Give every rank the generation "
            "that its rank 0 began, and the same ledger."
        )
    return record


def _missing(ledger: Ledger, name: str) -> LedgerError:
    return LedgerError(f"{ledger}/{name} is missing. {_REMEDY}")


def open_records(ledger: Ledger) -> Records:
    """The records of a run as its newest generation sees them; LedgerError if there is no run."""
    run = read_record(ledger, RUN, RunRecord)
    if run is None:
        raise LedgerError(f"{ledger} holds no run: {RUN} is missing. Give the ledger's directory.")
    return Records(ledger, run)


def round_fault(run: RunRecord, record: RoundRecord, number: int, before: RoundRecord | None) -> str | None:
    """What is wrong with a round that was read, as the rest of a sentence; None if nothing is.

    Args:
        number: the number in the record's name.
        before: the round before it; None for round 0.
    """
    if record.round != number or record.first_draw != number * run.round_draws:
        return (
            f"is round {record.round:,} from draw {record.first_draw:,} on, as its name does not say: it was changed."
        )
    num_skills = len(run.skills)
    if len(record.weights) != num_skills:
        return f"has {len(record.weights):,} weights for {num_skills:,} skills: it was changed."
    if record.previous != (run.checksum if before is None else before.checksum):
        return "does not follow from the record before it: one of them was changed."
    drawn, carry = np.zeros(num_skills, np.int64), np.zeros(num_skills, np.int64)
    if before is not None:
        drawn, carry = np.array(before.drawn_before) + np.array(before.counts), np.array(before.carry)
    counts, new_carry = round_counts(run, np.array(record.weights), carry, drawn)
    if (counts.tolist(), new_carry.tolist(), drawn.tolist()) != (record.counts, record.carry, record.drawn_before):
        return "has counts that its weights do not give: it was changed."
    return None


def observation_fault(run: RunRecord, record: ObservationRecord, before: ObservationRecord | None) -> str | None:
    """What is wrong with an observation that was read, as the rest of a sentence; None if nothing is."""
    if record.previous != (run.checksum if before is None else before.checksum):
        return "does not follow from the record before it: one of them was changed."
    if before is not None and record.draw <= before.draw:
        return (
            f"is of draw {record.draw:,}, which is not after draw {before.draw:,} of the one before it: it was changed."
        )
    return None


def verify_ledger(ledger: Ledger) -> list[str]:
    """Every fault of a ledger: records that are missing or changed, or counts that their weights do not give.

    The records of the newest generation are checked as a chain. Those that a resume has cut off are checked one by one.
    """
    try:
        records = open_records(ledger)
        faults = _faults_of_generations(records)
        num_rounds, num_observations = records.num_rounds(), records.num_observations()
    except LedgerError as error:
        return [str(error)]
    used: dict[int, str] = {}
    before: ObservationRecord | None = None
    for number in range(num_observations):
        name = records.observation_name(number)
        observation, fault = _read(ledger, name, ObservationRecord)
        if observation is None:
            return [*faults, fault]
        problem = observation_fault(records.run, observation, before)
        faults += [f"{ledger}/{name} {problem}"] if problem else []
        used[number + 1] = observation.checksum
        before = observation
    last: RoundRecord | None = None
    for number in range(num_rounds):
        name = records.round_name(number)
        record, fault = _read(ledger, name, RoundRecord)
        if record is None:
            return [*faults, fault]
        problem = round_fault(records.run, record, number, last)
        faults += [f"{ledger}/{name} {problem}"] if problem else []
        if record.num_observed and record.last_observation != used.get(record.num_observed):
            faults.append(
                f"{ledger}/{name} was decided with another observation than number {record.num_observed - 1}: one of them was changed."
            )
        last = record
    return faults


def _read(ledger: Ledger, name: str, kind: "type[RoundRecord] | type[ObservationRecord]") -> "tuple[Any, str]":
    try:
        record = read_record(ledger, name, kind)
    except LedgerError as error:
        return None, str(error)
    return record, f"{ledger}/{name} is missing."


def _faults_of_generations(records: Records) -> list[str]:
    """Faults of the generations themselves, and of the records that they have cut off."""
    ledger, faults = records.ledger, []
    previous, before = records.run.checksum, Records(records.ledger, records.run, 0)
    for generation in range(records.generation + 1):
        seen = Records(ledger, records.run, generation)
        if seen.begun is not None:
            if seen.begun.previous != previous:
                faults.append(
                    f"{ledger}/{generation_name(generation)} does not follow from the record before it: one of them was changed."
                )
            faults += _faults_of_cut(seen.begun, before)
            previous, before = seen.begun.checksum, seen
        for kind, model, name_of in (
            ("rounds", RoundRecord, records.round_name),
            ("observations", ObservationRecord, records.observation_name),
        ):
            for name in ledger.names(folder_of(generation, kind)):
                if name_of(number_of(name)) != name:  # a later generation has cut it off
                    record, fault = _read(ledger, name, model)
                    faults += [] if record is not None else [fault]
    return faults


def _faults_of_cut(begun: GenerationRecord, before: Records) -> list[str]:
    """Whether the last records that a generation keeps are the ones that it names."""
    kept_records = (
        (begun.num_rounds, begun.last_round, before.round_name, RoundRecord),
        (begun.num_observations, begun.last_observation, before.observation_name, ObservationRecord),
    )
    faults = []
    for num, checksum, name_of, model in kept_records:
        if num:
            record, _ = _read(before.ledger, name_of(num - 1), model)
            if record is not None and record.checksum != checksum:
                faults.append(
                    f"{before.ledger}/{name_of(num - 1)} is another record than generation {begun.generation} has kept: it was changed."
                )
    return faults
