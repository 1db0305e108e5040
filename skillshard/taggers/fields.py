"""Keep metadata with few values beside the tags, row for row, so that clusters can be compared with metadata without the corpus.

TAGS/fields/000000.parquet    a string column for each dotted path, with null in rows without a value
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from skillshard import places, storage
from skillshard.corpus import category_of
from skillshard.corpus.paths import single
from skillshard.errors import TagsError, did_you_mean, name_some

FOLDER = "fields"
MAX_VALUES = 1000
"""Limit on the number of different values in a partition. A field with more values is not a category."""
# A longer value is a text, and texts would make the tags as large as the corpus.
MAX_CHARS = 100


class FieldTable:
    """A table of the categories of the rows of a partition."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._columns: dict[str, dict[str, list[int]]] = {}
        self._dropped: set[str] = set()

    def add(self, meta: Mapping[str, Any]) -> None:
        """Add the metadata of the next row. A row without a sample has an empty mapping."""
        for path, value in _scalars(meta, ""):
            if path not in self._dropped:
                self._put(path, value)
        self._num_rows += 1

    def _put(self, path: str, value: str) -> None:
        # A column maps values to rows, so that a field is dropped as soon as the values are too many.
        column = self._columns.setdefault(path, {})
        column.setdefault(value, []).append(self._num_rows)
        if len(value) > MAX_CHARS or len(column) > MAX_VALUES:
            self._dropped.add(path)
            del self._columns[path]

    def write(self, place: str) -> None:
        columns = {path: self._column(rows) for path, rows in sorted(self._columns.items())}
        fields = [pa.field(path, column.type) for path, column in columns.items()]
        # The names of dropped fields are kept, so that an error can tell a dropped field from a field that no sample has.
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


def has_fields(tags: str | os.PathLike[str], num_parts: int) -> bool:
    """Tell whether metadata lies beside all parts of tags."""
    return all(storage.exists(fields_place(places.join(tags, FOLDER), part)) for part in range(num_parts))


def read_field(tags: str | os.PathLike[str], path: str, num_parts: int) -> Iterator[list[str | None]]:
    """Yield the values of a field, part by part.

    Args:
        tags: Directory of tags.
        path: Dotted path of the field, with or without the prefix "meta.".
        num_parts: Number of parts of the tags.

    Raises:
        TagsError: The tags keep no metadata, or do not keep this field.
    """
    folder = places.join(tags, FOLDER)
    name = path.removeprefix("meta.")
    files = [fields_place(folder, part) for part in range(num_parts)]
    if not has_fields(tags, num_parts):
        raise TagsError(
            f"{places.public(tags)} keeps no metadata beside its tags. Name the corpus with `corpus`, or give other tags to compare with."
        )
    schemas = [pq.read_schema(storage.readable(place)) for place in files]
    dropped = {field for schema in schemas for field in orjson.loads(schema.metadata[b"dropped"])}
    # A field that is dropped in one partition is dropped in all: half a column would give a wrong comparison.
    known = sorted({field for schema in schemas for field in schema.names} - dropped)
    if name not in known:
        why = (
            f"the field has over {MAX_VALUES:,} values, or long values"
            if name in dropped
            else "no sample has this field"
        )
        raise TagsError(
            f"field {path!r} is not kept beside {places.public(tags)}: {why}{did_you_mean(name, known)}. The tags keep these fields: "
            f"{name_some(known) or 'none'}."
        )
    for place, schema in zip(files, schemas, strict=True):
        if name in schema.names:
            yield pq.read_table(storage.readable(place), columns=[name])[name].to_pylist()
        else:
            yield [None] * pq.read_metadata(storage.readable(place)).num_rows


def _scalars(meta: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, values in meta.items():
        value = single(values)
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}.")
        elif isinstance(value, (str, int)):
            yield prefix + key, category_of(value)
