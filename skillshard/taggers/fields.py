"""Metadata of few values, kept beside tags, row for row: what clusters can be compared with later, without the corpus.

TAGS/fields/000000.parquet    a string column for each dotted path, null where a row has none
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from skillshard import places, storage
from skillshard.corpus import category_of
from skillshard.errors import TagsError, did_you_mean, name_some

FOLDER = "fields"
MAX_VALUES = 1000
"""A field with more different values in one partition is no category."""
MAX_CHARS = 100


class FieldTable:
    """Collects the categories of one partition's rows."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._columns: dict[str, dict[str, list[int]]] = {}
        self._dropped: set[str] = set()

    def add(self, meta: Mapping[str, Any]) -> None:
        """One row's metadata; rows without a sample have none."""
        for path, value in _scalars(meta, ""):
            if path not in self._dropped:
                self._put(path, value)
        self._num_rows += 1

    def _put(self, path: str, value: str) -> None:
        column = self._columns.setdefault(path, {})
        column.setdefault(value, []).append(self._num_rows)
        if len(value) > MAX_CHARS or len(column) > MAX_VALUES:
            self._dropped.add(path)
            del self._columns[path]

    def write(self, place: str) -> None:
        columns = {path: self._column(rows) for path, rows in sorted(self._columns.items())}
        fields = [pa.field(path, column.type) for path, column in columns.items()]
        schema = pa.schema(fields, metadata={"dropped": orjson.dumps(sorted(self._dropped))})
        with storage.writing(place) as part:
            pq.write_table(pa.table(list(columns.values()), schema=schema), part, compression="zstd")

    def _column(self, rows_of: Mapping[str, list[int]]) -> pa.Array:
        values: list[str | None] = [None] * self._num_rows
        for value, rows in rows_of.items():
            for row in rows:
                values[row] = value
        return pa.array(values, pa.string())


def fields_place(folder: str | os.PathLike[str], part: int) -> str:
    return places.join(folder, f"{part:06d}.parquet")


def read_field(tags: str | os.PathLike[str], path: str, num_parts: int) -> Iterator[list[str | None]]:
    """The values of one field, part by part.

    Raises:
        TagsError: no such field is kept.
    """
    folder = places.join(tags, FOLDER)
    name = path.removeprefix("meta.")
    files = [fields_place(folder, part) for part in range(num_parts)]
    if not all(map(storage.exists, files)):
        raise TagsError(
            f"{os.fspath(tags)} keeps no metadata beside its tags: name the corpus with `corpus`, or give other tags to compare with."
        )
    schemas = [pq.read_schema(place) for place in files]
    dropped = {found for schema in schemas for found in orjson.loads(schema.metadata[b"dropped"])}
    known = sorted({found for schema in schemas for found in schema.names} - dropped)
    if name not in known:
        why = f"it has over {MAX_VALUES:,} values, or long ones" if name in dropped else "no sample has it"
        raise TagsError(
            f"field {path!r} is not kept beside {os.fspath(tags)}: {why}{did_you_mean(name, known)}. Kept are {name_some(known) or 'none'}."
        )
    for place, schema in zip(files, schemas, strict=True):
        if name in schema.names:
            yield pq.read_table(place, columns=[name])[name].to_pylist()
        else:
            yield [None] * pq.read_metadata(place).num_rows


def _scalars(meta: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in meta.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}.")
        elif isinstance(value, (str, int)):
            yield prefix + key, category_of(value)
