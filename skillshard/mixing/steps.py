"""Optimizer steps of a run and draws, by the reports in its ledger."""

from typing import NamedTuple

from skillshard.errors import LedgerError
from skillshard.mixing.records import Records
from skillshard.mixing.round_records import ObservationRecord


class Anchor(NamedTuple):
    """A number of optimizer steps with a known number of draws."""

    step: int
    draw: int


class Steps:
    """The translation between the optimizer steps and the draws of a run.

    Each report of losses holds the number of steps taken and the number of draws consumed. Between two reports every step takes the same
    number of draws. After the last report a step takes as many draws as before the report.

    Args:
        records: Records of the run.
        step_draws: Number of draws of a step, over all ranks and gradient accumulation. None: the number follows from the reports.
        end: Place at which another run continues the run, for a run whose reports do not tell the number. None: unknown.

    Raises:
        LedgerError: `step_draws` is below 1.
    """

    def __init__(self, records: Records, step_draws: int | None = None, *, end: Anchor | None = None) -> None:
        if step_draws is not None and step_draws < 1:
            raise LedgerError(f"`step_draws={step_draws}`: give the number of draws of an optimizer step, at least 1.")
        self._ledger = str(records.ledger)
        self._observations = records.observations
        self._num = records.observations.num()
        begun = records.run.continues
        self._beginning = Anchor(0, 0) if begun is None or begun.step is None else Anchor(begun.step, begun.draw)
        self._step_draws = step_draws
        self._end = end

    def uniform(self) -> int | None:
        """Return the number of draws of a step if all reports give the same number, or None."""
        if not self._num:
            return self._step_draws
        pace = _pace(self._beginning, _anchor(self._observations.existing(self._num - 1)))
        if pace is None:
            return self._step_draws
        begin = self._beginning
        fits = (begin.draw + (report.step - begin.step) * pace == report.draw for report in self._observations)
        return pace if all(fits) else None

    def draws_of(self, step: int) -> range:
        """Return the draws that an optimizer step consumes. The first step is step 1, as trainers count.

        Raises:
            LedgerError: The step is below 1, or the number of draws of the step is unknown.
        """
        if step < 1:
            raise LedgerError(f"`step={step}`: the first optimizer step is step 1.")
        before, after = self._around(step - 1, "step")
        size = self._size(before, after)
        if size is None:
            raise LedgerError(
                f"the draws of step {step:,} are unknown, because {self._ledger} has no two reports that give the number of draws of a step "
                "there. Give `step_draws`, the samples of an optimizer step over all ranks and gradient accumulation."
            )
        first = before.draw + (step - 1 - before.step) * size
        return range(first, first + size)

    def step_of(self, draw: int) -> int | None:
        """Return the optimizer step that consumes a draw, or None if the number of draws of a step is unknown."""
        before, after = self._around(draw, "draw")
        size = self._size(before, after)
        return None if size is None else before.step + (draw - before.draw) // size + 1

    def _around(self, value: int, field: str) -> tuple[Anchor, Anchor | None]:
        """Find the last report whose step or draw is at most a value, and the first report beyond the value."""
        first, end = 0, self._num
        while first < end:
            middle = (first + end) // 2
            if getattr(self._observations.existing(middle), field) <= value:
                first = middle + 1
            else:
                end = middle
        before = _anchor(self._observations.existing(first - 1)) if first else self._beginning
        # The last report of the run before may be of an earlier draw than the beginning of this run.
        if before.draw < self._beginning.draw and getattr(self._beginning, field) <= value:
            before = self._beginning
        return before, _anchor(self._observations.existing(first)) if first < self._num else None

    def _size(self, before: Anchor, after: Anchor | None) -> int | None:
        """Return the number of draws of a step between two reports, or after the last report."""
        if after is None:
            if self._step_draws is not None:
                return self._step_draws
            earlier, _ = self._around(before.draw - 1, "draw") if before.draw else (before, None)
            pace = _pace(earlier, before)
            return _pace(before, self._end) if pace is None and self._end is not None else pace
        pace = _pace(before, after)
        if self._step_draws is not None and pace != self._step_draws:
            raise LedgerError(
                f"the run reported step {after.step:,} at draw {after.draw:,} and step {before.step:,} at draw {before.draw:,}, which does "
                f"not fit {self._step_draws:,} draws a step. Give the number of samples of a step over all ranks and gradient accumulation, "
                "or leave out `step_draws`."
            )
        return pace


def _anchor(record: ObservationRecord) -> Anchor:
    return Anchor(record.step, record.draw)


def _pace(before: Anchor, after: Anchor) -> int | None:
    """Return the number of draws of a step between two reports, or None if no whole number fits.

    >>> _pace(Anchor(0, 0), Anchor(10, 320)), _pace(Anchor(0, 0), Anchor(3, 320)), _pace(Anchor(5, 0), Anchor(5, 320))
    (32, None, None)
    """
    num_steps, num_draws = after.step - before.step, after.draw - before.draw
    return num_draws // num_steps if num_steps > 0 and num_draws > 0 and num_draws % num_steps == 0 else None
