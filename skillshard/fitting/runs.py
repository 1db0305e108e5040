"""Finished runs as pairs of a mixture and its losses, the input of the fitters.

    RUNS.json   schemas/runs-1.json: {"schema": "skillshard/runs/1", "runs": [{"weights": {...}, "losses": {...}}, ...]}
    RUNS.csv    one run per row, with columns weights/SKILL and losses/SKILL. Other columns are ignored
    RUNS/       a directory with *.json and *.csv files, read in the order of the names

Weights are scaled to sum to 1. A skill that a run does not name has weight 0. Losses are in nats per token, and every run names the
same evaluation skills.
"""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard import canonical, storage
from skillshard.errors import FitError, name_some
from skillshard.printable import counted

FILES = (".json", ".csv")


class FinishedRun(BaseModel):
    """A finished run with its mixture and its final losses."""

    model_config = ConfigDict(extra="forbid")

    weights: dict[str, float] = Field(description="training skill -> weight over the whole run, scaled to sum to 1")
    losses: dict[str, float] = Field(description="evaluation skill -> final loss in nats per token")
    name: str = ""


class RunsFile(BaseModel):
    """Finished runs on disk."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/runs/1"] = Field(alias="schema")
    runs: list[FinishedRun]


@dataclass(frozen=True)
class Runs:
    """Finished runs as arrays with named axes.

    Attributes:
        train_skills, eval_skills: names of the columns, sorted.
        weights: one row per run, non-negative, sum 1.
        losses: one row per run, nats per token.
    """

    train_skills: tuple[str, ...]
    eval_skills: tuple[str, ...]
    weights: Float[np.ndarray, "run train_skill"]
    losses: Float[np.ndarray, "run eval_skill"]

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def num_mixtures(self) -> int:
        """Number of different mixtures. Runs of one mixture, such as runs with other seeds, count once."""
        return len(np.unique(self.weights, axis=0))

    def some(self, rows: Sequence[int]) -> "Runs":
        """Select runs by their rows."""
        return Runs(self.train_skills, self.eval_skills, self.weights[list(rows)], self.losses[list(rows)])


def read_runs(place: str | os.PathLike[str]) -> Runs:
    """Read runs from a JSON or CSV file, or from a directory of these files.

    Raises:
        FitError: the place holds no run, or a run is invalid. The message names file and run.
    """
    runs = read_finished(os.fspath(place))
    return make_runs([run.weights for _, run in runs], [run.losses for _, run in runs], [name for name, _ in runs])


def read_finished(place: str) -> list[tuple[str, FinishedRun]]:
    """Read the runs of a file or a directory, each with the words that name the run in an error."""
    files = [place] if place.endswith(FILES) else files_of_runs(place)
    named = [(f"{file}, run {number}", run) for file in files for number, run in enumerate(_read(file))]
    if not named:
        raise FitError(f"{place} holds no runs: give a .json or .csv file of finished runs, or a directory of them.")
    return named


def make_runs(
    weights: Sequence[Mapping[str, float]], losses: Sequence[Mapping[str, float]], places: Sequence[str] | None = None
) -> Runs:
    """Make runs from the weights and losses of each run, by name of the skill. `places` name the runs in errors.

    >>> runs = make_runs([{"add": 3.0, "carry": 1.0}, {"add": 1.0}], [{"exam": 1.5}, {"exam": 1.0}])
    >>> runs.weights.tolist(), runs.losses.tolist()
    ([[0.75, 0.25], [1.0, 0.0]], [[1.5], [1.0]])
    """
    names = places or [f"run {number}" for number in range(len(weights))]
    train, evals = sorted({name for run in weights for name in run}), sorted({name for run in losses for name in run})
    for place, run_weights, run_losses in zip(names, weights, losses, strict=True):
        _check_run(place, run_weights, run_losses, evals)
    rows = [[run.get(skill, 0.0) / sum(run.values()) for skill in train] for run in weights]
    losses_by_run = [[run[skill] for skill in evals] for run in losses]
    return Runs(tuple(train), tuple(evals), np.array(rows, dtype=np.float64), np.array(losses_by_run, dtype=np.float64))


def _check_run(place: str, weights: Mapping[str, float], losses: Mapping[str, float], evals: Sequence[str]) -> None:
    bad = [f"{name} is {weight}" for name, weight in weights.items() if not 0 <= weight < math.inf]
    total = sum(weights.values())
    if bad or not 0 < total < math.inf:
        fault = name_some(bad) or f"their sum is {total}"
        raise FitError(f"{place}: weights must be finite numbers >= 0, and their sum a finite number > 0; {fault}.")
    bad = [f"{name} is {loss}" for name, loss in losses.items() if not 0 < loss < math.inf]
    missing = [name for name in evals if name not in losses]
    if bad or missing:
        raise FitError(
            f"{place}: losses must be finite numbers > 0 for each of {name_some(evals)}; {name_some(bad) or 'none is bad'}, missing: "
            f"{name_some(missing) or 'none'}. Leave the run out."
        )


def files_of_runs(folder: str) -> list[str]:
    """List the files of a directory that may hold runs. Hidden files are left out."""
    return [file.place for file in storage.list_files(folder) if file.place.endswith(FILES)]


def _read(place: str) -> list[FinishedRun]:
    if place.endswith(".csv"):
        return _read_csv(place)
    try:
        return RunsFile.model_validate(storage.read_json(place)).runs
    except ValidationError as error:
        raise FitError(f"{place} holds no runs (schemas/runs-1.json): {canonical.first_fault(error)}.") from error


def _read_csv(place: str) -> list[FinishedRun]:
    try:
        # Without newline="", a line that ends with a carriage return alone would be an error of the module csv.
        text = io.StringIO(storage.read_bytes(place).decode("utf-8-sig"), newline="")
        names, *lines = [line for line in csv.reader(text) if line] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FitError(f"{place} is no table of text in UTF-8: {error}. Give a .csv file of finished runs.") from error
    columns = {kind: [name for name in names if name.startswith(f"{kind}/")] for kind in ("weights", "losses")}
    if not all(columns.values()):
        raise FitError(
            f"{place} needs columns weights/SKILL and losses/SKILL, separated by commas, one row for each run; it has "
            f"{name_some(names) or 'none'}."
        )
    if twice := sorted(name for name, num in Counter(chain.from_iterable(columns.values())).items() if num > 1):
        raise FitError(f"{place} has the column {twice[0]} twice: remove one of the two columns.")
    for number, line in enumerate(lines):
        if len(line) != len(names):
            raise FitError(
                f"{place}, run {number}: the row has {counted(len(line), 'cell')}, and the first line names {counted(len(names), 'column')}. "
                "Add or remove cells."
            )
    rows = [dict(zip(names, line, strict=True)) for line in lines]
    return [
        FinishedRun(
            weights={
                name.removeprefix("weights/"): _number(place, number, name, row[name]) for name in columns["weights"]
            },
            losses={
                name.removeprefix("losses/"): _number(place, number, name, row[name]) for name in columns["losses"]
            },
        )
        for number, row in enumerate(rows)
    ]


def _number(place: str, row: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise FitError(f"{place}, run {row}: {column} is {text!r}, not a number.") from None
