"""Steering by hand: records that give a run other weights from a round on.

A steering lies beside the generations, as steers/N.json. It names the first round that was undecided when it was recorded, and acts from
this round on, until a later steering acts. So a resume before this round keeps the steering, at the same place in the stream.
docs/design/0017-steering.md has the reasons.
"""

from typing import NamedTuple

from skillshard.errors import LedgerError
from skillshard.mixing.ledger import Ledger, read_record
from skillshard.mixing.round_records import RoundRecord, SteeredRoundRecord, SteerRecord
from skillshard.mixing.run_records import RunRecord

FOLDER = "steers"


class Steering(NamedTuple):
    """A steering with its number."""

    number: int
    record: SteerRecord


def steer_name(number: int) -> str:
    """Return the name of the record of a steering."""
    return f"{FOLDER}/{number:08d}.json"


def read_steering(ledger: Ledger, run: RunRecord, number: int, before: SteerRecord | None = None) -> Steering | None:
    """Read a steering, or return None if the number is free.

    Args:
        ledger: Ledger of the run.
        run: Run of the ledger.
        number: Number of the steering.
        before: Steering before, if it was read already.

    Raises:
        LedgerError: The record is damaged, or does not follow from the steering before.
    """
    record = read_record(ledger, steer_name(number), SteerRecord)
    if record is None:
        return None
    # A single link is enough, as for rounds: the process that wrote the steering before has checked the link before that.
    if number and before is None:
        before = read_record(ledger, steer_name(number - 1), SteerRecord)
        if before is None:
            raise LedgerError(f"{ledger}/{steer_name(number - 1)} is missing. Restore the file.")
    if record.previous != (run.checksum if before is None else before.checksum) or (
        record.weights is not None and len(record.weights) != len(run.skills)
    ):
        raise LedgerError(
            f"{ledger}/{steer_name(number)} does not follow from the record before it: one of them was changed. Restore the file."
        )
    return Steering(number, record)


def steerings(ledger: Ledger, run: RunRecord) -> list[Steering]:
    """Read all steerings of a run, in their order. Raise LedgerError if a record is damaged."""
    known: list[Steering] = []
    while (following := read_steering(ledger, run, len(known), known[-1].record if known else None)) is not None:
        known.append(following)
    return known


def acting(ledger: Ledger, run: RunRecord, number: int, previous: RoundRecord | None) -> Steering | None:
    """Return the steering that acts in a round: the last steering whose first round is this round or an earlier round.

    The search begins at the steering of the round before, so a process that decides the next round knows at least this steering.
    """
    steering = None if previous is None else named_by(ledger, run, previous)
    candidate = 0 if steering is None else steering.number + 1
    before = None if steering is None else steering.record
    # The search goes on after a steering of a later round, because the record after it may act earlier: a resume goes back in the stream.
    while (following := read_steering(ledger, run, candidate, before)) is not None:
        if following.record.first_round <= number:
            steering = following
        candidate, before = candidate + 1, following.record
    return steering


def named_by(ledger: Ledger, run: RunRecord, record: RoundRecord) -> Steering | None:
    """Return the steering that a round names, or None for a round before any steering.

    Raises:
        LedgerError: The steering is missing or was changed.
    """
    if not isinstance(record, SteeredRoundRecord):
        return None
    steering = read_steering(ledger, run, record.steer)
    if steering is None or steering.record.checksum != record.steer_checksum:
        what = "is missing" if steering is None else "is another record than the round names: it was changed"
        raise LedgerError(
            f"{ledger}/{steer_name(record.steer)} {what}. Round {record.round} was decided with it. Restore the file."
        )
    return steering


def weights_by_hand(run: RunRecord, steer: SteerRecord, previous: RoundRecord | None) -> list[float] | None:
    """Return the weights of a steered round, or None if the policy decides."""
    if steer.action == "weights":
        return steer.weights
    if steer.action == "resume":
        return None
    before = None if run.continues is None else run.continues.weights_before
    weights = before if previous is None else previous.weights
    if weights is None:
        raise LedgerError(
            "the weights are frozen before the first round, and no round has weights to keep: steer the run by other weights."
        )
    return weights


def steer_fault(ledger: Ledger, run: RunRecord, record: RoundRecord, before: RoundRecord | None) -> str | None:
    """Find the fault of the steering of a round. Return the rest of a sentence, or None for a correct record."""
    try:
        steering = named_by(ledger, run, record)
        if steering is None:
            return None
        if steering.record.first_round > record.round:
            return f"was steered by steering {steering.number}, which acts from round {steering.record.first_round} on: it was changed."
        by_hand = weights_by_hand(run, steering.record, before)
    except LedgerError as error:
        return f"names a steering that cannot be used: {error}"
    if by_hand is not None and by_hand != record.weights:
        return f"has weights that steering {steering.number} does not give: it was changed."
    return None


def faults_of_steers(ledger: Ledger, run: RunRecord) -> list[str]:
    """List the fault of the first damaged steering, if any."""
    try:
        steerings(ledger, run)
    except LedgerError as error:
        return [str(error)]
    return []
