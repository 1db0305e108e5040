"""Read finished runs from ledgers, for the fitters: the mixture that each run was trained on, and the final losses.

A run whose weights changed counts as its mean mixture: the share of each skill among the draws before the last losses. A mixing law
describes constant mixtures, so runs with changing weights tell less than runs with constant weights.
"""

import warnings
from collections.abc import Sequence

from skillshard import storage
from skillshard.errors import FitError, name_some
from skillshard.fitting.runs import FILES, FinishedRun, Runs, files_of_runs, make_runs, read_finished
from skillshard.mixing.counts import drawn_at, in_unit
from skillshard.mixing.ledger import DirectoryLedger, Ledger
from skillshard.mixing.records import Records, open_records
from skillshard.mixing.round_records import ObservationRecord
from skillshard.mixing.run_records import RunRecord
from skillshard.printable import counted


def gather_runs(places: Sequence[str]) -> Runs:
    """Gather the runs of ledgers, of JSON and CSV files (as `read_runs` does), and of directories with both.

    A run without losses in a directory, such as a run under way, is left out with a warning.

    Raises:
        FitError: a place holds no run, or a run is invalid (the message names place and run), or the last losses of the ledgers are of
            different draws, or the weights of the ledgers count different units.
    """
    parts = [part for place in places for part in _parts(place)]
    ledgers = {part: DirectoryLedger(part) for part in parts if not part.endswith(FILES)}
    _refuse_unlike({part: _ending(open_records(ledger)) for part, ledger in ledgers.items()})
    runs = [
        named
        for part in parts
        for named in ([(part, finished_run(ledgers[part]))] if part in ledgers else read_finished(part))
    ]
    return make_runs([run.weights for _, run in runs], [run.losses for _, run in runs], [name for name, _ in runs])


def finished_run(ledger: Ledger) -> FinishedRun:
    """Return the mixture of a run before the last losses, in the unit of the weights, and the last losses.

    Raises:
        FitError: the ledger has no losses, or only losses of an untrained model.
        LedgerError: a record is damaged.
    """
    records = open_records(ledger)
    run, last = _ending(records)
    if run.continues is not None:
        raise FitError(
            f"{ledger} continues another run from draw {run.first_draw:,}, so the losses at its end are not of its mixture alone. Leave the run out."
        )
    number = run.round_of(last.draw - 1)
    record = records.rounds.get(number)
    if record is None:
        raise FitError(
            f"{ledger} has losses of draw {last.draw:,} and no round {number} with that draw, so the samples of the model before these losses are not "
            "known. Leave the run out."
        )
    drawn = in_unit(run, drawn_at(run, record, last.draw))
    losses = {name: loss for name, loss in last.losses.items() if loss is not None}
    return FinishedRun(weights=dict(zip(run.skills, map(float, drawn), strict=True)), losses=losses)


def _parts(place: str) -> list[str]:
    """List the ledgers and the files of runs in a place."""
    if place.endswith(FILES):
        return [place]
    # A file of finished runs may also be called run.json, so the content decides.
    records = [file.place for file in storage.list_files(place, "run.json") if _is_of_a_ledger(file.place)]
    ledgers = [file.removesuffix("/run.json") for file in records]
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
    record = storage.read_json(file)
    return isinstance(record, dict) and str(record.get("schema")).startswith("skillshard/run/")


def _ending(records: Records) -> tuple[RunRecord, ObservationRecord]:
    """Return the record of a run, and the last observation in which every loss is a number."""
    last = _last_losses(records)
    if last is None:
        raise FitError(
            f"{records.ledger} holds {'losses of draw 0 only' if records.observations.num() else 'no losses'}, so the final losses are not "
            "known. Report losses at the end of a run, or leave the run out."
        )
    return records.run, last


def _last_losses(records: Records) -> ObservationRecord | None:
    """Return the last observation of a trained model in which every loss is a number, or None."""
    for number in range(records.observations.num() - 1, -1, -1):
        last = records.observations.get(number)
        if last is not None and last.draw > records.run.first_draw and not last.left_out:
            return last
    return None


def _refuse_unlike(endings: dict[str, tuple[RunRecord, ObservationRecord]]) -> None:
    """Raise FitError if the runs of ledgers differ in length or unit. Every loss falls with the length, whatever the mixture."""
    for property_name, value_of in (
        ("last losses at draw", {place: f"{last.draw:,}" for place, (_, last) in endings.items()}),
        ("weights that count", {place: run.unit for place, (run, _) in endings.items()}),
    ):
        place = min(value_of, key=value_of.__getitem__, default="")
        other = max(value_of, key=value_of.__getitem__, default="")
        if value_of and value_of[place] != value_of[other]:
            raise FitError(
                f"{place} has {property_name} {value_of[place]}, {other} has {value_of[other]}: the effect of a mixture shows only among runs "
                "that are equal here. Leave out the others."
            )
