"""The records of a run from the view of a generation, and the beginning of the next generation by a resume.

A generation is the part of a run between two resumes. The number of the generation is a part of every record's name. A process that
should be dead knows an older number, so the process writes under names that nobody reads. The protocol needs no lock, no clock and
no atomic comparison on a network file system. A resume puts a single record, `generations/G.json`. The record holds the numbers of
rounds and observations kept from earlier generations, and the checksums of the last records kept. Nothing is moved or deleted.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Generic

from skillshard.artefact import NOT_BEGUN
from skillshard.errors import LedgerError
from skillshard.memo import memoized
from skillshard.mixing.counts import drawn_at
from skillshard.mixing.ledger import (
    HANDOVER,
    PACKED,
    REMEDY,
    RUN,
    Ledger,
    folder_of,
    generation_name,
    numbers_in,
    read_record,
    record_name,
)
from skillshard.mixing.ledger_record import RecordType
from skillshard.mixing.record_faults import observation_fault, round_fault
from skillshard.mixing.round_records import (
    GenerationRecord,
    ObservationRecord,
    PackedBeginRecord,
    RoundRecord,
    Segment,
    WaitRecord,
)
from skillshard.mixing.run_records import RunRecord

RECORDS_KEPT = 4
"""Number of rounds and of observations kept in memory.

A reader moves from a round to the next round. With lag=1 a round uses the observation before the newest observation. So 4 records
cover both with a margin.
"""
WAITS = "waits"
"""Folder of a generation's long waits."""
WAIT_REMEDY = "The stream does not depend on the record: restore the file, or delete it."
DECIDED_WITH_ANOTHER = "was decided with another observation than the ledger holds now: one of the two was changed."


class Numbered(Generic[RecordType]):
    """The rounds or the observations that a generation sees: 0, 1, 2, ...

    Every read checks the record. The checksum must fit the content, the record must follow from the record before, and the record must
    be the record that a resume has kept.

    Args:
        view: Generation that sees the records.
        kind: Name of the folder of the records, "rounds" or "observations".
        model: Type of the records.
        fault: Function that finds the fault of a record from the run, the record, the number in its name and the record before. The
            function returns the rest of a sentence, or None for a correct record.
    """

    def __init__(
        self,
        view: "Records",
        kind: str,
        model: type[RecordType],
        fault: Callable[[RunRecord, RecordType, int, RecordType | None], str | None],
    ) -> None:
        self._view, self._kind, self._model, self._fault = view, kind, model, fault
        self._in_memory: dict[int, RecordType] = {}

    def first_of(self, segment: Segment) -> int:
        """Return the number of the first record in a segment."""
        return segment.first_round if self._kind == "rounds" else segment.first_observation

    def name(self, number: int) -> str:
        """Return the name of a record. If several generations wrote a record of this number, the last generation counts."""
        return record_name(self.generation_of(number), self._kind, number)

    def generation_of(self, number: int) -> int:
        """Return the number of the generation that writes a record."""
        # The segments rise, so the search from the end gives every number to the newest generation that may have written it.
        return next(segment.generation for segment in reversed(self._view.segments) if self.first_of(segment) <= number)

    def get(self, number: int) -> RecordType | None:
        """Read a record. Return None if no record has this number yet.

        Raises:
            LedgerError: The record is damaged, does not follow from the record before, or the record before is missing.
        """
        record = self._in_memory.get(number)
        if record is None:
            name = self.name(number)
            record = read_record(self._view.ledger, name, self._model)
            if record is not None:
                fault = self._fault(self._view.run, record, number, self._before(number)) or self._fault_of_cut(
                    number, record
                )
                if fault:
                    raise LedgerError(f"{self._view.ledger}/{name} {fault} {REMEDY}")
                self.keep(number, record)
        return record

    def existing(self, number: int) -> RecordType:
        """Read a record. Raise LedgerError if the record is missing, or as `get` does."""
        record = self.get(number)
        if record is None:
            raise self.missing(number)
        return record

    def keep(self, number: int, record: RecordType) -> None:
        """Store in memory a record that this process has written or checked."""
        memoized(self._in_memory, number, lambda _: record, most=RECORDS_KEPT)

    @property
    def newest_in_memory(self) -> int:
        """Number of the newest record in memory, or -1 without records in memory."""
        return max(self._in_memory, default=-1)

    def numbers(self) -> list[int]:
        """List the numbers of the records, rising, from the names in the folders."""
        numbers: list[int] = []
        end = float("inf")  # later generations wrote the records from this number on
        for segment in reversed(self._view.segments):
            listed = numbers_in(self._view.ledger, folder_of(segment.generation, self._kind))
            numbers += [number for number in listed if self.first_of(segment) <= number < end]
            end = min(end, self.first_of(segment))
        return sorted(numbers)

    def num(self) -> int:
        """Count the records. Raise LedgerError if a record is missing."""
        listed = self.numbers()
        num = max(listed[-1] + 1 if listed else 0, self.first_of(self._view.segments[-1]))
        if len(listed) < num:
            for number in sorted(set(range(num)).difference(listed)):
                # A listing may miss a record that was put while the directory was read, so a read of the name decides.
                if self._view.ledger.get(self.name(number)) is None:
                    raise self.missing(number)
        return num

    def __iter__(self) -> Iterator[RecordType]:
        """Iterate over the records in order."""
        for number in range(self.num()):
            record = self.get(number)
            assert record is not None
            yield record

    def missing(self, number: int) -> LedgerError:
        return LedgerError(f"{self._view.ledger}/{self.name(number)} is missing. {REMEDY}")

    def faults_of_cut_off(self, generation: int) -> Iterator[str]:
        """Describe the damaged records of a generation that a later generation has cut off. Each record is checked by itself."""
        # Not as a chain: the record before may be cut off too, or may belong to another generation.
        for number in numbers_in(self._view.ledger, folder_of(generation, self._kind)):
            name = record_name(generation, self._kind, number)
            if self.name(number) != name:
                try:
                    read_record(self._view.ledger, name, self._model)
                except LedgerError as error:
                    yield str(error)

    def _before(self, number: int) -> RecordType | None:
        if number == 0:
            return None
        name = self.name(number - 1)
        # Not by `get`, which would read the whole chain down to record 0. A single link is enough, because the process that
        # wrote the record before has checked the link before that.
        before = self._in_memory.get(number - 1) or read_record(self._view.ledger, name, self._model)
        if before is None:
            raise self.missing(number - 1)
        return before

    def _fault_of_cut(self, number: int, record: RecordType) -> str | None:
        """Compare the last record that the generation has kept with the checksum in the generation's record. Return the fault or None."""
        begun = self._view.begun
        if begun is None:
            return None
        num, checksum = (
            (begun.num_rounds, begun.last_round)
            if self._kind == "rounds"
            else (begun.num_observations, begun.last_observation)
        )
        if number != num - 1 or record.checksum == checksum:
            return None
        return f"is another record than generation {begun.generation} has kept: it was changed."


class Records:
    """The run, the rounds and the observations that a generation sees.

    The constructor reads only names. A damaged record is an error when the record is used, so that a resume from an earlier checkpoint
    can leave the damaged record behind.

    Args:
        ledger: Ledger with a run.json.
        run: Content of run.json.
        generation: Number of the generation that sees the records. None: the newest generation.
        next_generation: Number of the generation that the next resume begins. None: `generation` + 1.
    """

    def __init__(
        self, ledger: Ledger, run: RunRecord, generation: int | None = None, *, next_generation: int | None = None
    ) -> None:
        self.ledger, self.run = ledger, run
        self.generation = newest_generation(ledger) if generation is None else generation
        self._next_generation = self.generation + 1 if next_generation is None else next_generation
        self.rounds = Numbered(self, "rounds", RoundRecord, round_fault)
        self.observations = Numbered(self, "observations", ObservationRecord, observation_fault)

    @cached_property
    def begun(self) -> GenerationRecord | None:
        """Record that began the generation, or None for generation 0.

        Raises:
            LedgerError: The generation does not exist, or its record is damaged.
        """
        return _generation(self.ledger, self.generation) if self.generation else None

    @cached_property
    def segments(self) -> list[Segment]:
        """Writers of the records from certain numbers on. If several segments fit a number, the last segment counts."""
        if self.begun is None:
            return [Segment(generation=0, first_round=0, first_observation=0)]
        return self.begun.segments

    def wait_name(self, number: int) -> str:
        """Return the name of the record of a long wait for the report of a round."""
        return record_name(self.rounds.generation_of(number), WAITS, number)

    def wait(self, number: int) -> WaitRecord | None:
        """Read the record of a long wait for the report of a round. Return None if no process has waited long.

        Raises:
            LedgerError: The record is damaged, or belongs to another run or another round.
        """
        return read_wait(self.ledger, self.run, self.wait_name(number), number)

    def refuse_superseded(self) -> None:
        """Raise LedgerError if the run was resumed elsewhere, because a process of this generation would work in vain.

        The names alone keep the records of generations apart, so the check need not be atomic with a write.
        """
        newer = read_record(self.ledger, generation_name(self.generation + 1), GenerationRecord)
        if newer is not None:
            by = "another process" if newer.job is None else f"job {newer.job!r}"
            raise LedgerError(
                f"this run was resumed elsewhere: {by} began generation {newer.generation} of {self.ledger} at draw {newer.draw:,}, and this "
                f"process is of generation {self.generation}, so it stops. If both are ranks of the same job, give all ranks the same "
                "Mixer(job=NAME), or resume by skillshard.torch.resume under torch.distributed."
            )

    def is_untouched(self) -> bool:
        """Return whether the ledger holds no report of this run, no round and no resume."""
        if self.generation or numbers_in(self.ledger, folder_of(0, "rounds")):
            return False
        return len(numbers_in(self.ledger, folder_of(0, "observations"))) == self.run.num_copied

    def begin_next(self, draw: int, job: str | None, *, anew: bool = False) -> GenerationRecord:
        """Make the record that would begin the next generation at a draw and keep the rounds and observations up to the draw.

        With `anew`, at the first draw, no record is kept: the losses of the model before the first step are measured again. A copied
        observation of the run before is kept.

        Raises:
            LedgerError: A record to keep is damaged or missing.
        """
        # The round of the last draw is kept whole, because the stream has begun to obey it.
        num_rounds = self.run.num_rounds_to(draw)
        last_round = self.rounds.get(num_rounds - 1) if num_rounds else None
        if num_rounds and last_round is None:  # the state was saved at a draw whose round was not decided yet
            num_rounds = min(num_rounds, self.rounds.num())
            last_round = self.rounds.get(num_rounds - 1) if num_rounds else None
        # The observations that a kept round has used are kept too, even observations of draws beyond the draw of the resume.
        # Otherwise the record of the round would count observations that the new generation does not see.
        until = draw if last_round is None else max(draw, last_round.observed_to)
        if anew:
            until = self.run.copied_draw
        num_observations, last_observation = (0, None) if until < 0 else self._observed_up_to(until)
        if last_round is not None and num_observations < last_round.num_observed:
            raise self.observations.missing(num_observations)
        inherited = [
            segment
            for segment in self.segments
            if segment.first_round < num_rounds or segment.first_observation < num_observations
        ]
        number = self._next_generation
        began = Segment(generation=number, first_round=num_rounds, first_observation=num_observations)
        return GenerationRecord(
            generation=number,
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
        """Count the observations up to a draw. Return the number and the last observation counted.

        The search goes back from the newest observation, so that a damaged record after the draw does not matter.
        """
        newest = max([*self.observations.numbers(), self.segments[-1].first_observation - 1])
        for number in range(newest, -1, -1):
            try:
                record = self.observations.get(number)
            except LedgerError:
                # The resume leaves a damaged record after the draw behind. A damaged record up to the draw is noticed elsewhere:
                # the state names the checksum of its last observation, and the last round counts the observations it has used.
                continue
            if record is not None and record.draw <= draw:
                return number + 1, record
        return 0, None


def counted_at(records: Records, draw: int, newest: RoundRecord | None) -> tuple[list[int], int]:
    """Count the draws of each skill before a draw. Only the draws of the rounds up to `newest` are counted.

    Returns:
        The counts, and the number of the round of the last draw, counted over all runs. The number is -1 before the first round.
    """
    run = records.run
    number = -1 if newest is None else min(run.round_of(draw - 1), newest.round)
    if number < 0:
        return run.drawn_before, run.num_rounds_before - 1
    decided = records.rounds.get(number)
    assert decided is not None
    return drawn_at(run, decided, draw), run.num_rounds_before + number


def round_up_to(records: Records, draw: int, *, what: str, remedy: str) -> RoundRecord | None:
    """Return the round of the last draw before a draw. None at the first draw of the run.

    Args:
        records: Records of the run.
        draw: Draw, from the first draw of the run on.
        what: Meaning of the draw, as the beginning of the sentence of an error.
        remedy: End of this sentence.

    Raises:
        LedgerError: The run has not decided the draws before, or its stream ends earlier.
    """
    run, ledger = records.run, records.ledger
    if draw == run.first_draw:
        return None
    record = records.rounds.get(run.round_of(draw - 1))
    if record is None:
        decided = run.first_draw_of(records.rounds.num())
        raise LedgerError(f"{what}, and {ledger} has been decided up to draw {decided:,}: {remedy}")
    end = record.first_draw + record.num_draws
    if draw > end:
        raise LedgerError(f"{what}, and the stream of {ledger} ends at draw {end:,}: {remedy}")
    return record


def has_records(ledger: Ledger, generation: int) -> bool:
    """Return whether a generation wrote a round or an observation."""
    return any(numbers_in(ledger, folder_of(generation, kind)) for kind in ("rounds", "observations"))


def generations(ledger: Ledger) -> list[int]:
    """List the numbers of the generations after generation 0, rising. The list is empty if the run was never resumed.

    A generation without a record counts if its folder holds rounds or observations, because a new generation of the same number would
    read these records.
    """
    numbers = numbers_in(ledger, "generations")
    number = (numbers[-1] if numbers else 0) + 1
    while has_records(ledger, number):
        numbers.append(number)
        number += 1
    return numbers


def newest_generation(ledger: Ledger) -> int:
    """Return the number of the newest generation, or 0 if the run was never resumed."""
    return max(generations(ledger), default=0)


def newest_intact(ledger: Ledger, run: RunRecord) -> tuple[Records, list[str]]:
    """Find the newest generation with an undamaged record. Return its records and the faults of the generations after it."""
    numbers = generations(ledger)
    next_generation = max(numbers, default=0) + 1
    faults: list[str] = []
    for generation in reversed(numbers):
        records = Records(ledger, run, generation, next_generation=next_generation)
        try:
            records.begun  # noqa: B018  # reads and checks the record
        except LedgerError as error:
            faults.append(str(error))
        else:
            return records, faults
    return Records(ledger, run, 0, next_generation=next_generation), faults


def records_to_resume(ledger: Ledger, run: RunRecord) -> Records:
    """Return the records of the newest generation with an undamaged record, with a warning about later generations."""
    records, faults = newest_intact(ledger, run)
    for fault in faults:
        warnings.warn(f"{fault} This resume leaves that generation behind.", stacklevel=2)
    return records


def _generation(ledger: Ledger, generation: int) -> GenerationRecord:
    name = generation_name(generation)
    record = read_record(ledger, name, GenerationRecord)
    if record is None and generation > newest_generation(ledger):
        raise LedgerError(
            f"{ledger} has no generation {generation}: the newest generation is {newest_generation(ledger)}. Give every rank the generation "
            "that rank 0 began, and the same ledger."
        )
    if record is None:
        raise LedgerError(f"{ledger}/{name} is missing. {REMEDY}")
    if record.generation != generation:
        raise LedgerError(
            f"{ledger}/{name} is of generation {record.generation:,}, but its name says otherwise: it was changed. {REMEDY}"
        )
    return record


def open_records(ledger: Ledger) -> Records:
    """Open the records of a run as the newest generation sees them. Raise LedgerError if the ledger holds no run."""
    return Records(ledger, read_run(ledger))


def read_run(ledger: Ledger) -> RunRecord:
    """Read run.json. Raise LedgerError if the ledger holds no run, or a run that has not begun."""
    run = read_record(ledger, RUN, RunRecord)
    if run is None and ledger.get(HANDOVER) is not None:
        raise LedgerError(f"{ledger} {NOT_BEGUN}")
    if run is None:
        raise LedgerError(f"{ledger} holds no run: {RUN} is missing. Give the ledger's directory.")
    return run


def resumes(records: Records) -> list[GenerationRecord]:
    """Read the record of each resume, rising. A damaged or missing record is left out, as `verify_ledger` names it."""
    begun = []
    for generation in range(1, records.generation + 1):
        with contextlib.suppress(LedgerError):
            begun.append(_generation(records.ledger, generation))
    return begun


def read_wait(ledger: Ledger, run: RunRecord, name: str, number: int) -> WaitRecord | None:
    """Read the record of a long wait for the report of round `number`. Return None and raise as in `Records.wait`."""
    record = read_record(ledger, name, WaitRecord, remedy=WAIT_REMEDY)
    if record is not None and (record.run, record.round) != (run.checksum, number):
        raise LedgerError(f"{ledger}/{name} is of another run or another round: it was changed. {WAIT_REMEDY}")
    return record


def packed_begin(ledger: Ledger, run: RunRecord) -> PackedBeginRecord | None:
    """Read the beginning of the packed stream of a run that continues another run. None: no packed stream has begun.

    Raises:
        LedgerError: The record is damaged, or belongs to another run.
    """
    record = read_record(ledger, PACKED, PackedBeginRecord)
    if record is not None and record.run != run.checksum:
        raise LedgerError(f"{ledger}/{PACKED} is of another run than {RUN}: one of them was changed. {REMEDY}")
    return record
