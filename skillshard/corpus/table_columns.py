"""Read a batch of an ordinary table as columns: the ids, the sizes of the texts and the values of one field. No sample is made."""

import numpy as np
import pyarrow as pa

from skillshard.corpus.columns import META, MetaField, SampleColumns
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.table_digest import bytes_and_offsets, decoded, kind_of

_SPACE, _DELETE = b" \x7f"
_NUMBER_BYTES = 32  # a number, true, false, null and a time take less as JSON
_MOST_BYTES = (1 << 31) - 1  # offsets of 32 bits reach no further


def read_columns(
    batch: pa.RecordBatch, fields: RowFields, wanted: MetaField, max_sample_bytes: int
) -> SampleColumns | None:
    """Return the columns of a batch, or None if a row or a column needs a closer look.

    Args:
        batch: Rows.
        fields: Field mapping that names two different keys (`RowFields.is_quick`).
        wanted: Field of the metadata.
        max_sample_bytes: Largest size of a sample.
    """
    id_field, text_field = fields.id_field, fields.text_field
    names = batch.schema.names
    others = set(names) - {id_field, text_field}
    if len(others) + 2 != len(names) or not batch.num_rows or wanted.key not in others or not wanted.is_certain(others):
        return None
    if not (_is_text(batch, str(id_field)) and _is_text(batch, text_field) and _is_text(batch, wanted.key)):
        return None
    if others == {META} and pa.types.is_struct(batch.schema.field(META).type):
        return None
    if not all(_has_plain_form(column) for column in batch.columns) or most_bytes(batch) > max_sample_bytes:
        return None
    ids, texts, values = (decoded(batch.column(name)) for name in (str(id_field), text_field, wanted.key))
    if max(ids.nbytes, values.nbytes) > _MOST_BYTES:
        return None
    sizes = np.diff(bytes_and_offsets(texts)[0])
    if not np.diff(bytes_and_offsets(ids)[0]).all() or any(map(_may_be_blank, (texts, values))):
        return None
    return SampleColumns(ids.cast(pa.string()), sizes.astype(np.int64), values.cast(pa.string()))


def most_bytes(batch: pa.RecordBatch) -> int:
    """Return a bound of the size of a row as JSON. The bound of other types than strings and numbers is large."""
    num_bytes = 0
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        kind = kind_of(column.type)
        longest = _NUMBER_BYTES
        if kind == "bytes":
            offsets, _ = bytes_and_offsets(column.dictionary if pa.types.is_dictionary(column.type) else column)
            longest += int(np.diff(offsets).max(initial=0))
        elif kind == "json" and not pa.types.is_temporal(column.type):
            longest += column.nbytes
        # JSON writes at most 6 bytes for a byte of text.
        num_bytes += 6 * (longest + len(name.encode()) + 4)
    return num_bytes


def _is_text(batch: pa.RecordBatch, name: str) -> bool:
    """Return whether a column has strings without nulls."""
    if name not in batch.schema.names:
        return False
    column = batch.column(name)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return bool((pa.types.is_string(kind) or pa.types.is_large_string(kind)) and not decoded(column).null_count)


def _has_plain_form(column: pa.Array) -> bool:
    """Return whether every value of a column has a JSON form."""
    kind = kind_of(column.type)
    if kind == "bytes":
        texts = column.dictionary if pa.types.is_dictionary(column.type) else column
        if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
            return False
        try:
            column.validate(full=True)
            if texts is not column:
                texts.validate(full=True)
        except pa.ArrowInvalid:  # invalid UTF-8
            return False
        return True
    if kind == "float":
        numbers = column.fill_null(0.0) if column.null_count else column
        return bool(np.isfinite(numbers.to_numpy(zero_copy_only=False)).all())
    return kind in ("integer", "boolean", "null")


def _may_be_blank(texts: pa.Array) -> bool:
    """Return whether a text is empty or only white space. The first character of most texts answers the question."""
    offsets, content = bytes_and_offsets(texts)
    if not np.diff(offsets).all():
        return True
    first = content[offsets[:-1]]
    doubtful = np.flatnonzero((first <= _SPACE) | (first >= _DELETE))
    return any(texts[row].as_py().isspace() for row in doubtful.tolist())
