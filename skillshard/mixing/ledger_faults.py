"""The check of a whole ledger: every record, the links between the records, and everything that can be computed again."""

from collections.abc import Iterator
from itertools import pairwise

from skillshard.errors import LedgerError
from skillshard.mixing.block_counts import faults_of_blocks
from skillshard.mixing.ledger import (
    HANDOVER,
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
from skillshard.mixing.positions import ahead_in, grown_ahead, skips_in, standings_after
from skillshard.mixing.records import (
    DECIDED_WITH_ANOTHER,
    WAITS,
    Numbered,
    Records,
    generations,
    has_records,
    newest_intact,
    packed_begin,
    read_run,
    read_wait,
)
from skillshard.mixing.round_records import RoundRecord
from skillshard.mixing.run_records import HandoverRecord, RunRecord, ahead_of, last_draw_of, open_skips_of, skipped_by
from skillshard.mixing.steering import faults_of_steers, steer_fault
from skillshard.progress import advance


def verify_ledger(ledger: Ledger) -> list[str]:
    """List every fault of a ledger: missing records, changed records, and counts that do not follow from the weights.

    The records of the newest generation are checked as a chain. A record that a resume has cut off is checked by itself.
    """
    try:
        records, _ = newest_intact(ledger, read_run(ledger))
        faults = [
            *_faults_of_handover(ledger, records.run),
            *_faults_of_packed(ledger, records.run),
            *_faults_of_generations(records),
        ]
        used: dict[int, str] = {}
        for number, observation in _all(records.observations, faults):
            used[number + 1] = observation.checksum
        faults += _faults_of_waits(records)
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
    return [*_faults_of_skips(ledger, handover), *_faults_of_last_draw(ledger, handover)]


def _faults_of_skips(ledger: Ledger, handover: HandoverRecord) -> list[str]:
    part = skipped_by(handover)
    if part is None:
        return []
    after = standings_after(part)
    places = [standing.place for standing in after], skips_in(after, part.earlier), ahead_in(after)
    if places == (handover.skills, open_skips_of(handover), ahead_of(handover)):
        return []
    return [f"{ledger}/{HANDOVER} has places that do not follow from its skipped draws: it was changed. {REMEDY}"]


def _faults_of_last_draw(ledger: Ledger, handover: HandoverRecord) -> list[str]:
    """Compare the place of the last draw with the place at which the run before has begun: no draw lies between them."""
    last, part = last_draw_of(handover), skipped_by(handover)
    if last is None:
        return []
    places = handover.skills if part is None else part.places
    begun = next((place for place in places if place.label == last.place.label), None)
    is_before = (
        begun is not None
        and (last.place.epoch, last.place.position) <= (begun.epoch, begun.position)
        and last.place.num_shards <= begun.num_shards
    )
    if is_before:
        return []
    return [
        f"{ledger}/{HANDOVER} has a last draw that does not come before the places of the skills: it was changed. {REMEDY}"
    ]


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
    return [*missing, *_faults_of_skips(ledger, handover), *_faults_of_last_draw(ledger, handover)], handover


def _faults_of_packed(ledger: Ledger, run: RunRecord) -> list[str]:
    try:
        packed_begin(ledger, run)
    except LedgerError as error:
        return [str(error)]
    return []


def _faults_of_waits(records: Records) -> Iterator[str]:
    for generation in range(records.generation + 1):
        for number in numbers_in(records.ledger, folder_of(generation, WAITS)):
            try:
                read_wait(records.ledger, records.run, record_name(generation, WAITS, number), number)
            except LedgerError as error:
                yield str(error)


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
