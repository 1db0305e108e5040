"""Finished runs out of their ledgers, for the offline fitters: what each was trained on, and the losses it ended with.

A run with weights that changed counts as its mean mixture: the share of each skill among the draws up to its last losses. A mixing
law is of mixtures that stay, so such runs say less than ones with fixed weights.
"""

import warnings
from collections.abc import Sequence

from skillshard import storage
from skillshard.errors import FitError, name_some
from skillshard.fitting.runs import FILES, FinishedRun, Runs, files_of_runs, make_runs, read_finished
from skillshard.mixing.counts import drawn_at, in_unit
from skillshard.mixing.ledger import DirectoryLedger, Ledger, ObservationRecord, RunRecord
from skillshard.mixing.records import Records, open_records
from skillshard.printable import counted


def gather_runs(places: Sequence[str]) -> Runs:
    """Runs from ledgers' directories, from JSON and CSV files (as `read_runs`) and from directories of both, together.

    A directory's runs without losses, such as one under way, are left out with a warning.

    Raises:
        FitError: a place holds no run; a run is not what it should be, names place and run; the ledgers' last losses are of
            different draws, or their weights count different things.
    """
    parts = [part for place in places for part in _parts(place)]
    ledgers = {part: DirectoryLedger(part) for part in parts if not part.endswith(FILES)}
    _refuse_unlike({part: _ending(open_records(ledger)) for part, ledger in ledgers.items()})
    found = [
        named
        for part in parts
        for named in ([(part, finished_run(ledgers[part]))] if part in ledgers else read_finished(part))
    ]
    return make_runs([run.weights for _, run in found], [run.losses for _, run in found], [name for name, _ in found])


def finished_run(ledger: Ledger) -> FinishedRun:
    """What a run was trained on up to its last losses, in the unit of its weights, and these losses.

    Raises:
        FitError: there are no losses, or none of a model that had seen a sample.
        LedgerError: a record is damaged.
    """
    records = open_records(ledger)
    run, last = _ending(records)
    number = (last.draw - 1) // run.round_draws
    record = records.rounds.get(number)
    if record is None:
        raise FitError(
            f"{ledger} has losses of draw {last.draw:,} and no round {number} with that draw, so what the model had seen is not known. "
            "Leave this run out."
        )
    drawn = in_unit(run, drawn_at(run, record, last.draw))
    losses = {name: loss for name, loss in last.losses.items() if loss is not None}
    return FinishedRun(weights=dict(zip(run.skills, map(float, drawn), strict=True)), losses=losses)


def _parts(place: str) -> list[str]:
    """The ledgers and the files of runs in a place; a file of finished runs may be called run.json, too."""
    if place.endswith(FILES):
        return [place]
    begun = [file.place for file in storage.list_files(place, "run.json") if _is_of_a_ledger(file.place)]
    ledgers = [file.removesuffix("/run.json") for file in begun]
    files = [file for file in files_of_runs(place) if not any(file.startswith(f"{ledger}/") for ledger in ledgers)]
    if not ledgers and not files:
        raise FitError(
            f"{place} holds no runs: give the ledgers of runs, .json or .csv files of finished runs, or a directory of them."
        )
    if ledgers == [place.rstrip("/")]:
        return ledgers + files
    without = [ledger for ledger in ledgers if _last_losses(open_records(DirectoryLedger(ledger))) is None]
    if without and (files or len(without) < len(ledgers)):
        warnings.warn(f"{counted(len(without), 'run')} without losses left out: {name_some(without)}.", stacklevel=2)
        ledgers = [ledger for ledger in ledgers if ledger not in without]
    return ledgers + files


def _is_of_a_ledger(file: str) -> bool:
    found = storage.read_json(file)
    return isinstance(found, dict) and str(found.get("schema")).startswith("skillshard/run/")


def _ending(records: Records) -> tuple[RunRecord, ObservationRecord]:
    """A run, and its last losses that are all numbers."""
    last = _last_losses(records)
    if last is None:
        raise FitError(
            f"{records.ledger} holds {'losses of draw 0 only' if records.observations.num() else 'no losses'}, so how its mixture ended is not "
            "known. Report losses at the end of a run, or leave this one out."
        )
    return records.run, last


def _last_losses(records: Records) -> ObservationRecord | None:
    """The last losses of a model that had seen a sample, all of them numbers; None if there are none."""
    for number in range(records.observations.num() - 1, -1, -1):
        last = records.observations.get(number)
        if last is not None and last.draw and not last.left_out:
            return last
    return None


def _refuse_unlike(told: dict[str, tuple[RunRecord, ObservationRecord]]) -> None:
    """FitError where the runs of ledgers cannot be compared: a loss falls with the length of a run, whatever its mixture."""
    for what, of in (
        ("last losses at draw", {place: f"{last.draw:,}" for place, (_, last) in told.items()}),
        ("weights that count", {place: run.unit for place, (run, _) in told.items()}),
    ):
        place, other = min(of, key=of.__getitem__, default=""), max(of, key=of.__getitem__, default="")
        if of and of[place] != of[other]:
            raise FitError(
                f"{place} has {what} {of[place]}, {other} has {of[other]}: only runs that are alike in this tell what a mixture does. Leave "
                "out the others."
            )
