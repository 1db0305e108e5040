"""Import graphs of other programs: matrices in .npy, .csv and JSON, with names for both axes."""

import csv
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from skillshard import canonical, storage
from skillshard.corpus.formats import delimiter_of
from skillshard.errors import GraphError, name_some
from skillshard.graph.skill_graph import GraphFile, SkillGraph
from skillshard.loss import LossKind


class _Matrix(NamedTuple):
    """The content of a file.

    Attributes:
        rows, columns: Names of the axes. Empty: the file has no names.
        cells: Numbers, row by row.
        loss: Kind of losses of a graph of skillshard. None: unknown.
    """

    rows: list[str]
    columns: list[str]
    cells: Any
    loss: LossKind | None = None


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
    readers: dict[str, Callable[[bytes], _Matrix]] = {".npy": _read_npy, ".csv": _read_csv, ".json": _read_json}
    kind = Path(os.fspath(place)).suffix.lower()
    if kind not in readers:
        raise GraphError(f"{os.fspath(place)}: a matrix is read from {', '.join(readers)}. Save it as one of these.")
    data = storage.read_bytes(place)
    try:
        matrix = readers[kind](data)
    except ValidationError as error:
        raise GraphError(
            f"{os.fspath(place)} has the key 'schema' and is no graph of skillshard (schemas/graph-2.json): {canonical.first_fault(error)}."
        ) from error
    except RecursionError as error:
        raise GraphError(f"{os.fspath(place)} holds no matrix of numbers: its lists are nested too deeply.") from error
    # NumPy and csv raise these classes for files that are not matrices; an .npz under the name .npy is a zip archive.
    except (ValueError, OverflowError, EOFError, csv.Error, zipfile.BadZipFile) as error:
        raise GraphError(f"{os.fspath(place)} holds no matrix of numbers: {error}.") from error
    train = _names(train_skills, matrix.rows, os.fspath(place))
    evals = list(eval_skills) or matrix.columns or train
    if (matrix.rows and matrix.rows != train) or (matrix.columns and matrix.columns != evals):
        raise GraphError(
            f"{os.fspath(place)} names its own rows and columns, and other names were given. Leave them out."
        )
    return SkillGraph(train, evals, matrix.cells, loss=matrix.loss)


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


def _read_npy(data: bytes) -> _Matrix:
    cells = np.load(io.BytesIO(data), allow_pickle=False)  # a pickle from elsewhere could run any code
    if not isinstance(cells, np.ndarray):
        raise ValueError("it is an archive of several arrays")
    return _Matrix([], [], cells)


def _read_csv(data: bytes) -> _Matrix:
    """Read a matrix with names on both axes, with names of the rows only, or without names. Numbers are never names.

    >>> matrix = _read_csv(b"a,1,0\\nb,0,1\\n")
    >>> matrix.rows, matrix.columns, matrix.cells
    (['a', 'b'], [], [[1.0, 0.0], [0.0, 1.0]])
    """
    # Without newline="", a line that ends with a carriage return alone would be an error of the module csv.
    table = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    lines = [[cell.strip() for cell in line] for line in table if line]
    if not lines:
        raise ValueError("it is empty")
    if any(len(line) != len(lines[0]) for line in lines):
        raise ValueError("every line must have as many cells as the first one")
    # A line without a comma is one cell, and without a further cell the name of a row has no number.
    if len(lines[0]) == 1 and (mark := delimiter_of(lines[0][0])) is not None:
        raise ValueError(
            f"its cells are separated by {mark!r}: separate the cells by commas, and write decimals as 0.5"
        )
    has_corner = not lines[0][0]  # the corner above the names of the rows is empty, even if the names are numbers
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
    rows = [line[0] for line in body] if has_row_names else []
    cells = [line[1:] if has_row_names else line for line in body]
    numbers = [[_number(cell, row) for cell in line] for row, line in enumerate(cells, start=1 + has_header)]
    return _Matrix(rows, header[1:], numbers)


def _is_number(cell: str) -> bool:
    # Python reads 1_0 as 10, and no program writes numbers in this way.
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _number(cell: str, line: int) -> float:
    if not _is_number(cell):
        raise ValueError(f"line {line} has {cell!r} where a number is expected")
    return float(cell)


def _read_json(data: bytes) -> _Matrix:
    content = json.loads(data, object_pairs_hook=_without_doubles)
    if isinstance(content, list):
        return _Matrix([], [], [_row_of_json(row, f"row {number}") for number, row in enumerate(content)])
    if not isinstance(content, dict):
        raise ValueError(f"a list of rows or an object is expected, got {str(content)[:40]!r}")
    # A skill may be called "schema" or "edges", and its edges are then an object.
    if isinstance(content.get("schema"), str):
        graph = GraphFile.model_validate(content)
        return _Matrix(graph.train_skills, graph.eval_skills, graph.edges, graph.loss)
    if isinstance(content.get("edges"), list):
        rows, columns = (_names_of_axis(content, name) for name in ("train_skills", "eval_skills"))
        return _Matrix(rows, columns, content["edges"])
    if not content:
        raise ValueError("it has no rows")
    if not all(isinstance(row, dict) for row in content.values()):
        raise ValueError(
            'an object must be like {"row": {"column": edge}}, or have train_skills, eval_skills and edges'
        )
    columns = list(next(iter(content.values())))
    if any(sorted(row) != sorted(columns) for row in content.values()):
        raise ValueError("every row must name the same columns")
    cells = [_row_of_json([row[column] for column in columns], f"row {name!r}") for name, row in content.items()]
    return _Matrix(list(content), columns, cells)


def _names_of_axis(content: dict[str, Any], axis: str) -> list[str]:
    names = content.get(axis)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{axis!r} must be a list of names beside 'edges'")
    return names


def _row_of_json(row: Any, what: str) -> list[float]:
    """Return the numbers of a row. A text is no row, although its digits are numbers."""
    if not isinstance(row, list) or not all(isinstance(cell, int | float) for cell in row):
        raise ValueError(f"{what} is no list of numbers: {str(row)[:40]!r}")
    return list(map(float, row))


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse two equal names. `json.loads` would keep the last of two equal names, and lose the first row."""
    if twice := [name for name, num in Counter(name for name, _ in pairs).items() if num > 1]:
        raise ValueError(f"the name {twice[0]!r} stands twice")
    return dict(pairs)
