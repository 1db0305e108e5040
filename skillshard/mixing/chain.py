"""The chain of a run: the run, and the runs that the run continues, each up to the draw at which the next run begins."""

from dataclasses import dataclass
from typing import NamedTuple

from skillshard.mixing.continuation import EarlierRun, earlier_runs
from skillshard.mixing.ledger import DirectoryLedger, RunRecord
from skillshard.mixing.records import Records, open_records


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
        """Sentence about the run that is missing, with the remedy."""
        assert self.missing is not None
        begins = f"{self.segments[0].name} continues another run from draw {self.missing.end_draw:,}"
        if self.missing.place is None:
            return f"{begins}, and the place of the ledger of that run is not noted. Give the ledger of that run by itself."
        return f"{begins}, and the ledger of that run is not in {self.missing.place}. Put the ledger there again, or make a link there to its new place."
