"""The records of a run as a generation sees them, and the beginning of the next generation by a resume.

A generation is the part of a run between two resumes. The number of the generation is a part of every record's name. A process that
should be dead knows an older number, so the process writes under names that nobody reads. The protocol needs no lock, no clock and
no atomic comparison on a network file system. A resume puts a single record, `generations/G.json`. The record holds the numbers of
rounds and observations kept from earlier generations, and the checksums of the last records kept. Nothing is moved or deleted.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Generic

import numpy as np

from skillshard.artefact import NOT_BEGUN
from skillshard.errors import LedgerError
from skillshard.memo import memoized
from skillshard.mixing.block_counts import faults_of_blocks
from skillshard.mixing.counts import drawn_at, round_counts
from skillshard.mixing.ledger import (
    HANDOVER,
    PACKED,
    REMEDY,
    RUN,
    GenerationRecord,
    HandoverRecord,
    Ledger,
    ObservationRecord,
    PackedBeginRecord,
    RecordType,
    RoundRecord,
    RunRecord,
    Segment,
    SteeredRoundRecord,
    ahead_of,
    folder_of,
    generation_name,
    numbers_in,
    open_skips_of,
    read_record,
    record_name,
    skipped_by,
)
from skillshard.mixing.positions import ahead_in, grown_ahead, skips_in, standings_after
from skillshard.mixing.steering import faults_of_steers, steer_fault
from skillshard.progress import advance

RECORDS_KEPT = 4
"""Number of rounds and of observations kept in memory.

A reader moves from a round to the next round. With lag=1 a round uses the observation before the newest observation. So 4 records
cover both with a margin.
"""
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
        # The segments rise, so the search from the end gives every number to the newest generation that may have written it.
        owner = next(segment for segment in reversed(self._view.segments) if self.first_of(segment) <= number)
        return record_name(owner.generation, self._kind, number)

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
    return Records(ledger, _run(ledger))


def _run(ledger: Ledger) -> RunRecord:
    run = read_record(ledger, RUN, RunRecord)
    if run is None and ledger.get(HANDOVER) is not None:
        raise LedgerError(f"{ledger} {NOT_BEGUN}")
    if run is None:
        raise LedgerError(f"{ledger} holds no run: {RUN} is missing. Give the ledger's directory.")
    return run


def round_fault(run: RunRecord, record: RoundRecord, number: int, before: RoundRecord | None) -> str | None:
    """Find the fault of a round. Return the rest of a sentence about the record, or None for a correct record.

    Args:
        run: Run of the ledger.
        record: Round that was read.
        number: Number in the record's name.
        before: Round before, or None for round 0.
    """
    # A checksum alone does not protect against a record that was edited with a new checksum. So the counts and the epochs are
    # computed again from the weights, which are the only free choice of a round.
    if record.round != number or record.first_draw != run.first_draw_of(number):
        return f"is round {record.round:,} from draw {record.first_draw:,} on, but its name says otherwise: it was changed."
    num_skills = len(run.skills)
    if len(record.weights) != num_skills:
        return f"has {len(record.weights):,} weights for {num_skills:,} skills: it was changed."
    if record.previous != (run.checksum if before is None else before.checksum):
        return "does not follow from the record before it: one of them was changed."
    drawn, carry, num_observed = np.array(run.drawn_before), np.zeros(num_skills, np.int64), run.num_copied
    if before is not None:
        drawn, carry = np.array(before.drawn_before) + np.array(before.counts), np.array(before.carry)
        num_observed = before.num_observed
    counts, new_carry = round_counts(run, np.array(record.weights), carry, drawn)
    if (counts.tolist(), new_carry.tolist(), drawn.tolist()) != (record.counts, record.carry, record.drawn_before):
        return "has counts that its weights do not give: it was changed."
    if record.epochs != ((drawn + counts) / np.array(run.num_samples)).tolist():
        return "has epochs that its counts do not give: it was changed."
    if run.repeat != "stop" and record.num_draws != sum(record.counts):
        return f"has {record.num_draws:,} draws and counts that sum to {sum(record.counts):,}: it was changed."
    if isinstance(before, SteeredRoundRecord) and (
        not isinstance(record, SteeredRoundRecord) or record.steer < before.steer
    ):
        return f"does not know steering {before.steer}, which acted in the round before it: it was changed."
    if record.num_observed != num_observed + len(record.observations) or (
        before is not None and record.observed_to < before.observed_to
    ):
        return "has a number of observations that does not follow from the round before it: it was changed."
    return None


def observation_fault(
    run: RunRecord, record: ObservationRecord, number: int, before: ObservationRecord | None
) -> str | None:
    """Find the fault of an observation. Return the rest of a sentence, or None, as `round_fault` does."""
    if record.previous != (run.checksum if before is None else before.checksum):
        return "does not follow from the record before it: one of them was changed."
    if before is not None and record.draw <= before.draw:
        return f"is of draw {record.draw:,}, which is not after draw {before.draw:,} of the record before it: it was changed."
    if record.loss != run.loss:
        return f"holds {record.loss.sentence}, and the run's losses are {run.loss.sentence}: it was changed."
    if record.measured_on != run.measured_on:
        return f"holds losses of {record.measured_on} samples, and the run's losses are of {run.measured_on} samples: it was changed."
    return None


def resumes(records: Records) -> list[GenerationRecord]:
    """Read the record of each resume, rising. A damaged or missing record is left out, as `verify_ledger` names it."""
    begun = []
    for generation in range(1, records.generation + 1):
        with contextlib.suppress(LedgerError):
            begun.append(_generation(records.ledger, generation))
    return begun


def verify_ledger(ledger: Ledger) -> list[str]:
    """List every fault of a ledger: missing records, changed records, and counts that do not follow from the weights.

    The records of the newest generation are checked as a chain. A record that a resume has cut off is checked by itself.
    """
    try:
        records, _ = newest_intact(ledger, _run(ledger))
        faults = [
            *_faults_of_handover(ledger, records.run),
            *_faults_of_packed(ledger, records.run),
            *_faults_of_generations(records),
        ]
        used: dict[int, str] = {}
        for number, observation in _all(records.observations, faults):
            used[number + 1] = observation.checksum
        faults += faults_of_steers(ledger, records.run)
        before: RoundRecord | None = None
        checksums: dict[int, str] = {}
        for number, record in _all(records.rounds, faults):
            checksums[number] = record.checksum
            if before is None or before.round == number - 1:
                fault = steer_fault(ledger, records.run, record, before)
                faults += [] if fault is None else [f"{ledger}/{records.rounds.name(number)} {fault} {REMEDY}"]
            before = record
            if record.num_observed and record.last_observation != used.get(record.num_observed):
                faults.append(f"{ledger}/{records.rounds.name(number)} {DECIDED_WITH_ANOTHER}")
        faults += faults_of_blocks(ledger, checksums)
    except LedgerError as error:
        return [str(error)]
    return list(dict.fromkeys(faults))


def _all(numbered: Numbered[RecordType], faults: list[str]) -> Iterator[tuple[int, RecordType]]:
    """Yield every readable record with its number. The faults of the other records are added to `faults`."""
    try:
        num = numbered.num()
    except LedgerError as error:
        faults.append(str(error))
        return
    for number in range(num):
        advance(number, num)
        try:
            record = numbered.get(number)
        except LedgerError as error:
            faults.append(str(error))
            continue
        if record is not None:
            yield number, record


def _faults_of_handover(ledger: Ledger, run: RunRecord) -> list[str]:
    """List the faults of the handover of a run that continues another run, and of its skipped draws."""
    if run.continues is None:
        return []
    try:
        handover = read_record(ledger, HANDOVER, HandoverRecord)
    except LedgerError as error:
        return [str(error)]
    if handover is None:
        return [f"{ledger}/{HANDOVER} is missing. {REMEDY}"]
    ahead = grown_ahead(ahead_of(handover), [*run.continues.skills, *run.continues.absent])
    if handover.checksum != run.continues.handover or (skipped_by(handover), open_skips_of(handover), ahead) != (
        skipped_by(run),
        open_skips_of(run),
        ahead_of(run),
    ):
        return [f"{ledger}/{HANDOVER} is not the handover that {RUN} names: one of them was changed. {REMEDY}"]
    return _faults_of_skips(ledger, handover)


def _faults_of_skips(ledger: Ledger, handover: HandoverRecord) -> list[str]:
    part = skipped_by(handover)
    if part is None:
        return []
    after = standings_after(part)
    places = [standing.place for standing in after], skips_in(after, part.earlier), ahead_in(after)
    if places == (handover.skills, open_skips_of(handover), ahead_of(handover)):
        return []
    return [f"{ledger}/{HANDOVER} has places that do not follow from its skipped draws: it was changed. {REMEDY}"]


def verify_beginning(ledger: Ledger) -> tuple[list[str], HandoverRecord | None]:
    """Check the ledger of a run that continues another run and has not begun.

    Returns:
        Every fault, and the handover. The handover is None if the handover itself has a fault.
    """
    try:
        handover = read_record(ledger, HANDOVER, HandoverRecord)
    except LedgerError as error:
        return [str(error)], None
    if handover is None:
        return [f"{ledger}/{HANDOVER} is missing. {REMEDY}"], None
    # Steerings and records of rounds come after run.json.
    begun = has_records(ledger, 0) or generations(ledger) or numbers_in(ledger, "steers")
    missing = [f"{ledger}/{RUN} is missing, and the run has begun. {REMEDY}"] if begun else []
    return [*missing, *_faults_of_skips(ledger, handover)], handover


def packed_begin(ledger: Ledger, run: RunRecord) -> PackedBeginRecord | None:
    """Read the beginning of the packed stream of a run that continues another run. None: no packed stream has begun.

    Raises:
        LedgerError: The record is damaged, or belongs to another run.
    """
    record = read_record(ledger, PACKED, PackedBeginRecord)
    if record is not None and record.run != run.checksum:
        raise LedgerError(f"{ledger}/{PACKED} is of another run than {RUN}: one of them was changed. {REMEDY}")
    return record


def _faults_of_packed(ledger: Ledger, run: RunRecord) -> list[str]:
    try:
        packed_begin(ledger, run)
    except LedgerError as error:
        return [str(error)]
    return []


def _faults_of_generations(records: Records) -> list[str]:
    """List the faults of the generations' own records, of the last records kept, and of the records cut off."""
    ledger, run, faults = records.ledger, records.run, list[str]()
    numbers = [0, *generations(ledger)]
    for number, following in pairwise(numbers):
        if following != number + 1:
            faults.append(f"{ledger}/{generation_name(number + 1)} is missing. {REMEDY}")
    previous = run.checksum
    for generation in numbers:
        seen = Records(ledger, run, generation)
        try:
            begun = seen.begun
            if begun is not None:
                if begun.previous != previous:
                    faults.append(
                        f"{ledger}/{generation_name(generation)} does not follow from the record before it: one of them was changed."
                    )
                previous = begun.checksum
                seen.rounds.get(begun.num_rounds - 1) if begun.num_rounds else None
                seen.observations.get(begun.num_observations - 1) if begun.num_observations else None
        except LedgerError as error:
            faults.append(str(error))
        faults += [*records.rounds.faults_of_cut_off(generation), *records.observations.faults_of_cut_off(generation)]
    return faults
