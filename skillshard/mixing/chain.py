"""The chain of a run: the run, and the runs that the run continues, each up to the draw at which the next run begins.

    RUN/beside/before.json     the place of the ledger of the run before

The note is no record, so a run whose note is missing or wrong is still whole.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from skillshard import canonical
from skillshard.mixing.ledger import RUN, DirectoryLedger, Ledger, read_record
from skillshard.mixing.records import Records, open_records
from skillshard.mixing.round_records import ObservationRecord, RoundRecord
from skillshard.mixing.run_records import RunRecord

BEFORE_NOTE = "beside/before.json"
"""Name of the note on the place of the ledger of the run before, beside the records of a run."""


class EarlierRun(NamedTuple):
    """A run that another run has continued.

    Attributes:
        place: Place of its ledger. None: unknown.
        run: Checksum of its run.json.
        first_draw: First draw of the run. None: its ledger is not at the place.
        end_draw: Draw from which the next run continues.
        step: Number of optimizer steps taken at this draw. None: unknown.
        policy: Policy of the run. None: its ledger is not at the place.
    """

    place: str | None
    run: str
    first_draw: int | None
    end_draw: int
    step: int | None
    policy: str | None


def note_before(ledger: Ledger, old_ledger: Ledger) -> None:
    """Note the place of the ledger of the run before, for commands that look at the run later. The note is no record."""
    if isinstance(ledger, DirectoryLedger) and isinstance(old_ledger, DirectoryLedger):
        # A relative place, so that a directory of runs may move as a whole.
        place = os.path.relpath(Path(old_ledger.root).absolute(), Path(ledger.root).absolute())
        ledger.put(BEFORE_NOTE, canonical.to_json({"place": place}))


def place_before(ledger: DirectoryLedger) -> str | None:
    """Return the noted place of the ledger of the run before, or None without a note."""
    note = ledger.get(BEFORE_NOTE)
    return None if note is None else os.path.normpath(os.path.join(ledger.root, str(json.loads(note)["place"])))


def begins_after(ledger: Ledger, run: RunRecord, earlier: str, draw: int) -> bool:
    """Return whether a run begins where an earlier run of its chain was left: the runs between have given no draw.

    Args:
        ledger: Ledger of the run.
        run: Record of the run.
        earlier: Checksum of the run.json of the earlier run.
        draw: Draw at which the earlier run was left. For the run directly before, any draw fits.

    Raises:
        LedgerError: The record of a run between is damaged.
    """
    if run.continues is None:
        return False
    if run.continues.run == earlier:
        return True
    place = place_before(ledger) if run.first_draw == draw and isinstance(ledger, DirectoryLedger) else None
    if place is None:
        return False
    before = DirectoryLedger(place)
    record = read_record(before, RUN, RunRecord)
    # Runs between that have given a draw begin at an earlier draw, and end the search.
    return (
        record is not None
        and record.checksum == run.continues.run
        and record.first_draw == draw
        and begins_after(before, record, earlier, draw)
    )


def earlier_runs(ledger: DirectoryLedger) -> list[EarlierRun]:
    """List the runs that a run continues, the oldest first. The list begins with a run whose ledger is not at the noted place, if any.

    Raises:
        LedgerError: A ledger holds no run, or its record is damaged.
    """
    earlier: list[EarlierRun] = []
    run = open_records(ledger).run
    while run.continues is not None:
        begun = run.continues
        place = place_before(ledger)
        before = None if place is None else read_record(DirectoryLedger(place), RUN, RunRecord)
        if before is None or before.checksum != begun.run:
            earlier.insert(0, EarlierRun(place, begun.run, None, begun.draw, begun.step, None))
            break
        earlier.insert(0, EarlierRun(place, begun.run, before.first_draw, begun.draw, begun.step, before.policy))
        ledger, run = DirectoryLedger(place or ""), before
    return earlier


class Segment(NamedTuple):
    """A run of a chain.

    Attributes:
        records: Records of the run.
        end: Draw at which the next run of the chain continues. None for the last run.
        end_step: Number of optimizer steps taken at this draw. None for the last run, and if the number is unknown.
    """

    records: Records
    end: int | None
    end_step: int | None = None

    @property
    def run(self) -> RunRecord:
        """Record of the run."""
        return self.records.run

    @property
    def name(self) -> str:
        """Directory of the run's ledger."""
        return str(self.records.ledger)

    def rounds(self) -> Iterator[RoundRecord]:
        """Iterate over the rounds that begin before the next run."""
        for record in self.records.rounds:
            if self.end is not None and record.first_draw >= self.end:
                return
            yield record

    def end_of(self, record: RoundRecord) -> int:
        """Return the draw after the last draw of a round. The next run may continue inside the round."""
        end = record.first_draw + record.num_draws
        return end if self.end is None else min(end, self.end)

    def reports(self) -> Iterator[ObservationRecord]:
        """Iterate over the reports up to the beginning of the next run, with the report that was copied from the run before."""
        for record in self.records.observations:
            if self.end is not None and record.draw > self.end:
                return
            yield record


@dataclass(frozen=True)
class Chain:
    """A run with the runs that the run continues, as far as their ledgers are at the noted places.

    Attributes:
        segments: Runs, the oldest first. The last run is the run itself.
        missing: Run before the first of `segments` whose ledger is not at its noted place. None if `segments` begins with draw 0.
    """

    segments: list[Segment]
    missing: EarlierRun | None

    @classmethod
    def of(cls, records: Records) -> "Chain":
        """Follow the notes on the places of the ledgers from a run to the runs before.

        Raises:
            LedgerError: A record is damaged.
        """
        earlier = earlier_runs(records.ledger) if isinstance(records.ledger, DirectoryLedger) else []
        missing = earlier[0] if earlier and earlier[0].first_draw is None else None
        opened = [
            Segment(open_records(DirectoryLedger(run.place or "")), run.end_draw, run.step)
            for run in earlier
            if run.first_draw is not None
        ]
        return cls([*opened, Segment(records, None)], missing)

    @property
    def first_draw(self) -> int:
        """First draw of the oldest run."""
        return self.segments[0].run.first_draw

    @property
    def why_missing(self) -> str:
        """Sentence about the run that is missing, with the remedy. Only for a chain with a missing run."""
        assert self.missing is not None
        begins = f"{self.segments[0].name} continues another run from draw {self.missing.end_draw:,}"
        if self.missing.place is None:
            return f"{begins}, and the place of the ledger of that run is not noted. Give the ledger of that run by itself."
        return f"{begins}, and the ledger of that run is not in {self.missing.place}. Put the ledger there again, or make a link there to its new place."
