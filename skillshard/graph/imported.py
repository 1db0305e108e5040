"""Graphs made elsewhere: matrices in .npy, .csv and JSON, with names for both axes."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skillshard import storage
from skillshard.errors import GraphError
from skillshard.graph.skill_graph import SkillGraph

_KINDS = (".npy", ".csv", ".json")


def import_graph(
    place: str | os.PathLike[str], *, train_skills: Sequence[str] = (), eval_skills: Sequence[str] = ()
) -> SkillGraph:
    """Read a matrix: rows are trained on, columns are measured.

    - .npy: the names must be given.
    - .csv: the first line names the columns (its first cell is not read), the first cell of each other line its row.
    - .json: a graph of ours, {"row": {"column": edge}}, or a list of lists, whose names must be given.

    Args:
        place: the file.
        train_skills: names of the rows; empty: as in the file.
        eval_skills: names of the columns; empty: as in the file, else those of the rows.

    Raises:
        GraphError: it is no matrix, or has no names, or other ones.
    """
    kind = Path(os.fspath(place)).suffix.lower()
    if kind not in _KINDS:
        raise GraphError(f"{os.fspath(place)}: a matrix is read from {', '.join(_KINDS)}. Save it as one of these.")
    data = storage.read_bytes(place)
    try:
        rows, columns, matrix = {".npy": _read_npy, ".csv": _read_csv, ".json": _read_json}[kind](data)
    except (ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise GraphError(f"{os.fspath(place)} holds no matrix of numbers: {error}.") from error
    train = _names(train_skills, rows, os.fspath(place))
    evals = list(eval_skills) or columns or train
    if (rows and list(rows) != list(train)) or (columns and list(columns) != list(evals)):
        raise GraphError(
            f"{os.fspath(place)} names its own rows and columns, and other names were given. Leave them out."
        )
    return SkillGraph(train, evals, matrix)


def read_names(place: str | os.PathLike[str]) -> list[str]:
    """Names from a text file, one a line."""
    return [line.strip() for line in storage.read_bytes(place).decode().splitlines() if line.strip()]


def _names(given: Sequence[str], found: Sequence[str], place: str) -> list[str]:
    if not given and not found:
        raise GraphError(
            f"{place} does not name its rows: give --names FILE, a text file with one skill a line, in their order."
        )
    return list(given or found)


def _read_npy(data: bytes) -> tuple[list[str], list[str], Any]:
    return [], [], np.load(io.BytesIO(data), allow_pickle=False)


def _read_csv(data: bytes) -> tuple[list[str], list[str], Any]:
    lines = [line for line in csv.reader(io.StringIO(data.decode())) if line]
    header, body = (lines or [[]])[0], lines[1:]
    if not body or any(len(line) != len(header) for line in body):
        raise ValueError("every line must have as many cells as the first one")
    return [line[0] for line in body], header[1:], [[float(cell) for cell in line[1:]] for line in body]


def _read_json(data: bytes) -> tuple[list[str], list[str], Any]:
    found = json.loads(data)
    if isinstance(found, list):
        return [], [], [[float(cell) for cell in row] for row in found]
    if "edges" in found:
        return list(found["train_skills"]), list(found["eval_skills"]), found["edges"]
    columns = list(next(iter(found.values())))
    if any(sorted(row) != sorted(columns) for row in found.values()):
        raise ValueError("every row must name the same columns")
    return list(found), columns, [[float(row[column]) for column in columns] for row in found.values()]
