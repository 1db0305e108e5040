"""Import graphs of other programs: matrices in .npy, .csv and JSON, with names for both axes."""

import csv
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skillshard import storage
from skillshard.errors import GraphError, name_some
from skillshard.graph.skill_graph import SkillGraph

_KINDS = (".npy", ".csv", ".json")


def import_graph(
    place: str | os.PathLike[str], *, train_skills: Sequence[str] = (), eval_skills: Sequence[str] = ()
) -> SkillGraph:
    """Read a matrix. Its rows are training skills, and its columns are evaluation skills.

    - .npy: the names must be given.
    - .csv: the first line names the columns (its first cell is not read), and the first cell of each other line names the row. If the
      file has no names of columns, or no names at all, the missing names must be given.
    - .json: a graph of skillshard, {"row": {"column": edge}}, or a list of lists. For a list, the names must be given.

    Args:
        place: Place of the file.
        train_skills: Names of the rows. Empty: the names of the file.
        eval_skills: Names of the columns. Empty: the names of the file, or else the names of the rows.

    Raises:
        GraphError: The file holds no matrix, or no names, or other names than the given names.
    """
    kind = Path(os.fspath(place)).suffix.lower()
    if kind not in _KINDS:
        raise GraphError(f"{os.fspath(place)}: a matrix is read from {', '.join(_KINDS)}. Save it as one of these.")
    data = storage.read_bytes(place)
    try:
        rows, columns, matrix = {".npy": _read_npy, ".csv": _read_csv, ".json": _read_json}[kind](data)
    # NumPy and JSON raise these classes for files that are not matrices; an .npz under the name .npy is a zip archive.
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise GraphError(f"{os.fspath(place)} holds no matrix of numbers: {error}.") from error
    train = _names(train_skills, rows, os.fspath(place))
    evals = list(eval_skills) or columns or train
    if (rows and list(rows) != list(train)) or (columns and list(columns) != list(evals)):
        raise GraphError(
            f"{os.fspath(place)} names its own rows and columns, and other names were given. Leave them out."
        )
    return SkillGraph(train, evals, matrix)


def read_names(place: str | os.PathLike[str]) -> list[str]:
    """Read names from a text file with one name per line.

    Raises:
        GraphError: The file is not UTF-8.
    """
    try:
        text = storage.read_bytes(place).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GraphError(
            f"{os.fspath(place)} is no text in UTF-8: {error}. Give a text file with one skill a line."
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _names(arguments: Sequence[str], of_file: Sequence[str], place: str) -> list[str]:
    if not arguments and not of_file:
        raise GraphError(f"{place} does not name its rows: name them with `train_skills`, in their order.")
    return list(arguments or of_file)


def _read_npy(data: bytes) -> tuple[list[str], list[str], Any]:
    return [], [], np.load(io.BytesIO(data), allow_pickle=False)  # a pickle from elsewhere could run any code


def _read_csv(data: bytes) -> tuple[list[str], list[str], Any]:
    """Read a matrix with names on both axes, with names of the rows only, or without names. Numbers are never names.

    >>> _read_csv(b"a,1,0\\nb,0,1\\n")
    (['a', 'b'], [], [[1.0, 0.0], [0.0, 1.0]])
    """
    lines = [[cell.strip() for cell in line] for line in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if line]
    if not lines or any(len(line) != len(lines[0]) for line in lines):
        raise ValueError("every line must have as many cells as the first one")
    has_corner = not lines[0][
        0
    ]  # an empty first cell stands above the names of the rows, even if the names are numbers
    has_header = has_corner or (len(lines[0]) > 1 and not all(map(_is_number, lines[0][1:])))
    header, body = (lines[0], lines[1:]) if has_header else ([], lines)
    if not body:
        raise ValueError("there is a line of names, and no line of numbers")
    has_row_names = bool(header) or not all(_is_number(line[0]) for line in body)
    # Without a corner, numbers among the names mean a matrix whose first row has a stray word, and not columns named by numbers.
    numeric = [name for name in header[1:] if _is_number(name)]
    if numeric and not has_corner:
        raise ValueError(
            f"its first line mixes names and numbers ({name_some(numeric)}): it must name each column, or none"
        )
    if header and not has_corner and all(_is_number(line[0]) for line in body):
        raise ValueError(
            f"its lines begin with numbers under the name {header[0]!r}: begin each line with the name of its row, or leave the first cell "
            "empty if the rows have numbers as names"
        )
    columns = header[1:]
    rows = [line[0] for line in body] if has_row_names else []
    cells = [line[1:] if has_row_names else line for line in body]
    return (
        rows,
        columns,
        [[_number(cell, row) for cell in line] for row, line in enumerate(cells, start=1 + has_header)],
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, line: int) -> float:
    if not _is_number(cell):
        raise ValueError(f"line {line} has {cell!r} where a number is expected")
    return float(cell)


def _read_json(data: bytes) -> tuple[list[str], list[str], Any]:
    content = json.loads(data, object_pairs_hook=_without_doubles)
    if isinstance(content, list):
        return [], [], [[float(cell) for cell in row] for row in content]
    if "edges" in content:
        return list(content["train_skills"]), list(content["eval_skills"]), content["edges"]
    if not content:
        raise ValueError("it has no rows")
    columns = list(next(iter(content.values())))
    if any(sorted(row) != sorted(columns) for row in content.values()):
        raise ValueError("every row must name the same columns")
    return list(content), columns, [[float(row[column]) for column in columns] for row in content.values()]


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse two equal names. `json.loads` would keep the last of two equal names, and lose the first row."""
    if twice := [name for name, num in Counter(name for name, _ in pairs).items() if num > 1]:
        raise ValueError(f"the name {twice[0]!r} stands twice")
    return dict(pairs)
