"""Recognize a JSON object that is a whole table by columns. pandas and other writers of tables write such objects by default."""

from collections.abc import Mapping, Sequence
from typing import Any

_REMEDY = "write a row for each sample, with pandas by `to_json(path, orient='records', lines=True)`"


def table_by_columns(row: Any) -> str | None:
    """Return the words about an object that is a table by columns, with the remedy, or None for every other object.

    >>> table_by_columns({"text": {"0": "1+1?", "1": "2+2?"}, "label": {"0": "sum", "1": "sum"}})
    "a table by columns, as pandas writes it by default: write a row for each sample, with pandas by `to_json(path, orient='records', lines=True)`"
    >>> table_by_columns({"text": "1+1?", "label": "sum"}), table_by_columns({"input_ids": [1, 2], "attention_mask": [1, 1]})
    (None, None)
    """
    if type(row) is not dict or not row:
        return None
    values = list(row.values())
    if _are_columns_of_numbered_rows(values):
        shape = "a table by columns, as pandas writes it by default"
    elif _is_split(row):
        shape = "a table with the names beside the rows, as pandas writes it with orient='split'"
    elif _are_lists_of_cells(values):
        shape = "a table by columns"
    else:
        return None
    return f"{shape}: {_REMEDY}"


def _are_columns_of_numbered_rows(values: Sequence[Any]) -> bool:
    """Return whether all values are objects with the same numbers as keys, from 0 on."""
    if not all(type(value) is dict and "0" in value for value in values):
        return False
    names = values[0].keys()
    return all(map(str.isdigit, names)) and all(value.keys() == names for value in values)


def _is_split(row: Mapping[str, Any]) -> bool:
    data = row.get("data")
    is_split = type(row.get("columns")) is list and row.keys() <= {"columns", "index", "data"}
    return is_split and type(data) is list and bool(data) and all(type(cells) is list for cells in data)


def _are_lists_of_cells(values: Sequence[Any]) -> bool:
    """Return whether all values are lists of the same length, and a list holds texts of more than a few words.

    Lists of words and of numbers are rather the tokens and the labels of a single sample.
    """
    if len(values) < 2 or not all(type(value) is list and len(value) > 1 for value in values):
        return False
    has_texts = any(all(type(cell) is str and cell.count(" ") >= 2 for cell in value) for value in values)
    return has_texts and len(set(map(len, values))) == 1
