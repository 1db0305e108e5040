"""Read Parquet and Arrow: a row is a sample, and the columns are the fields.

Values become the same plain JSON values as in JSONL (values.py). A metadata value without a JSON form is left out and counted. An id
or a text without a JSON form refuses the row. Columns of bytes that the reading keeps come as members of the sample. Memory is bounded by a few MiB of rows (Parquet) or one record batch (Arrow,
memory-mapped).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from skillshard import storage
from skillshard.corpus.bad_record import BadRecord
from skillshard.corpus.columns import META, MetaField, SampleColumns, SampleLists
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.members import MAX_MEMBER_BYTES, Members, too_large
from skillshard.corpus.sample import PassedOver, Rejection, Sample, check_size
from skillshard.corpus.stretches import Stretch, storage_damage
from skillshard.corpus.table_columns import most_bytes, read_columns
from skillshard.corpus.table_digest import TableDigest
from skillshard.corpus.values import NoForm, is_binary, json_values, label
from skillshard.errors import CorpusError

# Bounds the memory of a batch as Python values, which take several times the bytes of the columns.
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 8192
# Values that are the same after a pass through JSON.
_PLAIN_TYPES = frozenset((str, int, bool, type(None)))
# The format of Arrow streams: a continuation mark, and 0 as the length of the next message.
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
# The mark at the start of a file, and the name of the format. A stream of Arrow has no mark of its own.
_WRITTEN_BY: dict[str, tuple[bytes, str]] = {"parquet": (b"PAR1", "Parquet"), "arrow": (b"ARROW1", "Arrow")}


_OTHER_MAGIC = {
    b"FEA1": "it is a Feather file of version 1. Write it anew as version 2, which is Arrow",
    b"PARE": "it is an encrypted Parquet file. Write it anew without encryption",
}


# Types with values that can be invalid while the offsets are sound, and the types that store the same bytes.
_STORAGE_TYPES: tuple[tuple[Callable[[pa.DataType], bool], pa.DataType], ...] = (
    (pa.types.is_string, pa.binary()),
    (pa.types.is_large_string, pa.large_binary()),
    (pa.types.is_string_view, pa.binary_view()),
    (pa.types.is_time32, pa.int32()),
    (pa.types.is_time64, pa.int64()),
    (pa.types.is_date64, pa.int64()),
)


class _Cut(Exception):
    """Error for the rest of a table that is damaged or beyond a limit of the reader.

    Args:
        detail: Description of the fault, as a part of a sentence.
        reason: "truncated" for damage, "unsupported" for a limit of the reader.
    """

    def __init__(self, detail: str, reason: Literal["truncated", "unsupported"] = "truncated") -> None:
        super().__init__(detail)
        self.reason = reason


def read_table(
    stretch: Stretch,
    *,
    fields: RowFields,
    max_sample_bytes: int,
    hasher: xxhash.xxh3_128,
    passed_over: PassedOver,
    digest: TableDigest | None = None,
    wanted: MetaField | None = None,
) -> Iterator[list[Sample | Rejection] | SampleColumns | SampleLists]:
    """Yield the rows of a stretch of a Parquet or Arrow file, batch by batch.

    Args:
        stretch: Stretch to read.
        fields: Field mapping of the rows.
        max_sample_bytes: Largest size of a sample.
        hasher: Hash that is updated with each row as JSON, unless `digest` is given.
        passed_over: Counter of the values without a JSON form.
        digest: Digest that is updated with each column.
        wanted: Field of the metadata for reading ordinary batches as columns. Needs `digest`. None: all rows are read as samples.
    """
    name, num_left = stretch.name, stretch.num_rows
    try:
        row, batches = _opened(stretch)
    except _Cut as error:
        yield [_unreadable(stretch, error)]
        return
    try:
        for batch in batches:
            if num_left is not None:  # values beyond the last row that is read must not be counted as left out
                batch = batch.slice(0, num_left)
                num_left -= batch.num_rows
            sources = _member_columns(batch, fields.members, name)
            if digest is not None and wanted is not None and not sources:
                of_batch = read_columns(batch, fields, wanted, max_sample_bytes)
                if of_batch is not None:
                    digest.update(batch, dict.fromkeys(batch.schema.names, ()))
                    row += of_batch.num_rows
                    yield of_batch
                    continue
            names, columns = _columns(batch, fields, passed_over)
            if digest is not None:
                digest.update(batch, dict(zip(names, columns, strict=True)))
            of_rows = hasher if digest is None else None
            quick = None if sources else _quick_samples(batch, names, columns, fields, max_sample_bytes, of_rows)
            if quick is not None:
                row += quick.num_rows
                yield quick
                continue
            # Few columns have values without a form, so the loop over rows looks only at these columns.
            gaps = [index for index, values in enumerate(columns) if NoForm in map(type, values)]
            rows: Iterable[tuple[Any, ...]] = zip(*columns, strict=True) if columns else [()] * batch.num_rows
            items: list[Sample | Rejection] = []
            for batch_row, values in enumerate(rows):
                row += 1
                record = dict(zip(names, values, strict=True))
                try:
                    for index in gaps:
                        if isinstance(value := values[index], NoForm):
                            if fields.asks_for(names[index]):
                                raise BadRecord(value.reason, value.detail, field=names[index])
                            del record[names[index]]
                            passed_over.columns[label(names[index], batch.schema.field(names[index]).type)] += 1
                    sample = _plain(fields.sample(record, row))
                    check_size(sample, fields.mapping.kept_meta(sample.meta), max_sample_bytes)
                except BadRecord as error:
                    if of_rows is not None:
                        of_rows.update(orjson.dumps([error.reason, error.detail, error.id]))
                    raw = _shown(names, columns, batch_row)
                    items.append(Rejection(name, row, error.reason, error.detail, error.id, raw, error.field))
                else:
                    if of_rows is not None:
                        of_rows.update(orjson.dumps([sample.id, sample.text, sample.meta]))
                    items.append(sample)
            yield from _with_members(items, sources, name, row - len(items) + 1) if sources else [items]
    except _Cut as error:
        yield [_rest(stretch, row + 1, error)]


def _quick_samples(
    batch: pa.RecordBatch,
    names: Sequence[str],
    columns: Sequence[Sequence[Any]],
    fields: RowFields,
    max_sample_bytes: int,
    hasher: xxhash.xxh3_128 | None,
) -> SampleLists | None:
    """Return the samples of a batch of strings, integers and booleans, or None if a row or a column needs a closer look.

    The hash, if one is given, is updated as by the reading row by row, and only if the samples are returned.
    """
    id_field, text_field = fields.id_field, fields.text_field
    if not fields.is_quick or id_field is None or id_field == text_field or not {id_field, text_field} <= set(names):
        return None
    of_name = dict(zip(names, columns, strict=True))
    ids, texts = of_name.pop(id_field), of_name.pop(text_field)
    if set(of_name) == {META}:
        return None
    if not all(map(_PLAIN_TYPES.issuperset, (map(type, column) for column in of_name.values()))):
        return None
    if not ({str}.issuperset(map(type, ids)) and {str}.issuperset(map(type, texts)) and all(ids)):
        return None
    if not all(texts) or any(map(str.isspace, texts)):
        return None
    if most_bytes(batch) > max_sample_bytes:
        return None
    metas: list[dict[str, Any]] = [{} for _ in ids]
    if of_name:
        metas = [dict(zip(of_name, values, strict=True)) for values in zip(*of_name.values(), strict=True)]
    if hasher is not None:
        # One after the other, because the bytes of orjson keep a buffer of some kilobytes.
        for values in map(orjson.dumps, zip(ids, texts, metas, strict=True)):
            hasher.update(values)
    return SampleLists(list(ids), list(texts), metas, fields.name)


def _columns(batch: pa.RecordBatch, fields: RowFields, passed_over: PassedOver) -> tuple[list[str], list[list[Any]]]:
    """Return the names of the columns and their JSON values. Columns that share a name are left out.

    Raises:
        _Cut: The id or text column shares its name with another column, or a column cannot be read.
    """
    counts = Counter(batch.schema.names)
    names: list[str] = []
    columns: list[list[Any]] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if counts[name] > 1 and fields.asks_for(name):
            raise _Cut(
                f"{counts[name]} columns have the name {name!r}, which is asked for. Rename the columns", "unsupported"
            )
        if counts[name] > 1:
            passed_over.columns[f"{name} (one of {counts[name]} columns of this name)"] += len(column)
            continue
        try:
            values = json_values(column, name, passed_over.columns)
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise _Cut(
                f"column {name!r} of type {column.type} cannot be read ({error}). Write the file anew without it",
                "unsupported",
            ) from error
        names.append(name)
        columns.append(values)
    return names, columns


def _member_columns(batch: pa.RecordBatch, members: Mapping[str, str], name: str) -> dict[str, pa.Array]:
    """Return the column of each kept member that the table has: suffix -> bytes, or structs with the field "bytes".

    Raises:
        CorpusError: The column has another type.
    """
    columns = {}
    for suffix, source in members.items():
        if source not in batch.schema.names:
            continue
        column = batch.column(source)
        column = column.storage if isinstance(column.type, pa.BaseExtensionType) else column
        is_struct = pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
        kind = column.type.field("bytes").type if is_struct else column.type
        if not (is_binary(kind) or pa.types.is_null(kind)):
            raise CorpusError(
                f"{name}: column {source!r} of type {column.type} is no member: expected bytes, or a struct with the field 'bytes' as the images of "
                "`datasets` have it. Name another column, or leave `members` out."
            )
        columns[suffix] = column
    return columns


def _with_members(
    items: Sequence[Sample | Rejection], columns: Mapping[str, pa.Array], name: str, first_row: int
) -> Iterator[list[Sample | Rejection]]:
    """Yield the items of a batch with their members, each in a list of its own, because members may be large.

    Args:
        items: Item of each row of the batch.
        columns: Result of `_member_columns`.
        name, first_row: Name of the file, and 1-based row of the first item.
    """
    for number, item in enumerate(items):
        if isinstance(item, Sample):
            item = replace(item, members=_members_of(columns, number, name, first_row + number))
        yield [item]


def _members_of(columns: Mapping[str, pa.Array], row_of_batch: int, name: str, row: int) -> Members:
    """Return the members of a row. A null is no member.

    Args:
        columns: Result of `_member_columns`.
        row_of_batch: Position of the row in the batch.
        name, row: Name of the file and 1-based row, for errors.

    Raises:
        CorpusError: The members are too large, or stand in a file beside the table.
    """
    members = []
    for suffix, column in columns.items():
        value = column[row_of_batch].as_py()
        if isinstance(value, dict):
            if value["bytes"] is None and value.get("path"):
                raise CorpusError(
                    f"{name} row {row}: the member {suffix!r} names the file {value['path']!r} and has no bytes. Write the table anew with the bytes in it: "
                    "`Dataset.save_to_disk` and `push_to_hub` of `datasets` do so."
                )
            value = value["bytes"]
        if value is not None:
            members.append((suffix, value))
    num_bytes = sum(len(content) for _, content in members)
    if num_bytes > MAX_MEMBER_BYTES:
        raise too_large(f"{name} row {row}", num_bytes)
    return tuple(members)


def rows_before(stretch: Stretch) -> int:
    """Return the number of rows of the file before the stretch."""
    return _opened(stretch)[0]


def _opened(stretch: Stretch) -> tuple[int, Iterator[pa.RecordBatch]]:
    """Return the number of rows before the stretch, and the batches of the stretch."""
    if stretch.file_bytes == 0:
        raise _Cut("the file is empty, 0 bytes")
    source = storage.open_random(stretch.place)
    try:
        if stretch.format == "parquet":
            before, schema, batches = _open_parquet(source, stretch)
        elif stretch.format == "arrow":
            before, schema, batches = _open_arrow_file(source, stretch)
        else:
            before, schema, batches = _open_arrow_stream(source, stretch)
        _ = schema.names  # raises if a name of a damaged file is not UTF-8
    except storage_damage(stretch.place) as error:
        raise _cut_by(error) from error
    return before, _cutting(batches, stretch.place)


def _open_parquet(source: pa.NativeFile, stretch: Stretch) -> tuple[int, pa.Schema, Iterator[pa.RecordBatch]]:
    # Spark's 96-bit times reach from year 1 to 9999, and nanoseconds would silently wrap outside 1677 to 2262.
    file = pq.ParquetFile(source, page_checksum_verification=True, coerce_int96_timestamp_unit="us")
    groups = range(stretch.start, stretch.stop)
    before = sum(file.metadata.row_group(i).num_rows for i in range(stretch.start))
    num_rows = sum(file.metadata.row_group(i).num_rows for i in groups)
    num_bytes = sum(file.metadata.row_group(i).total_byte_size for i in groups)
    batch_rows = max(1, min(_BATCH_ROWS, num_rows * _BATCH_BYTES // max(num_bytes, 1)))
    batches = file.iter_batches(batch_size=batch_rows, row_groups=list(groups), use_threads=False)
    return before, file.schema_arrow, batches


def _open_arrow_file(source: pa.NativeFile, stretch: Stretch) -> tuple[int, pa.Schema, Iterator[pa.RecordBatch]]:
    reader = pa.ipc.open_file(source)
    before = sum(reader.get_batch(i).num_rows for i in range(stretch.start))
    return before, reader.schema, (_sound(reader.get_batch(i)) for i in range(stretch.start, stretch.stop))


def _open_arrow_stream(source: pa.NativeFile, stretch: Stretch) -> tuple[int, pa.Schema, Iterator[pa.RecordBatch]]:
    reader = pa.ipc.open_stream(source)
    return 0, reader.schema, _stream_batches(reader, source, stretch)


def _stream_batches(reader: Any, source: pa.NativeFile, stretch: Stretch) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a stream, and check the mark at the end.

    pyarrow accepts a stream that is cut off between two batches, so the check is needed.
    """
    for batch in reader:
        yield _sound(batch)
    source.seek(max(0, stretch.file_bytes - len(_STREAM_END)))
    if source.read() != _STREAM_END:
        raise _Cut("no end-of-stream mark")


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Check the offsets of a batch. pyarrow would follow the offsets of a damaged file to any address, and crash."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            # Invalid UTF-8 and impossible times are faults of single rows, and are found later. Only wrong offsets raise again.
            storage_type = _storage_type(column.type)
            column.view(storage_type).validate(full=True)
    return batch


def _storage_type(kind: pa.DataType) -> pa.DataType:
    """Return the type with bytes and integers in place of texts and times, at every depth."""
    types = pa.types
    for test, plain in _STORAGE_TYPES:
        if test(kind):
            return plain
    if types.is_decimal(kind):
        return pa.binary(kind.byte_width)
    if types.is_struct(kind):
        return pa.struct([field.with_type(_storage_type(field.type)) for field in kind])
    if types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_storage_type(kind.value_type)))
    if types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_storage_type(kind.value_type)))
    if types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_storage_type(kind.value_type)), kind.list_size)
    if types.is_list_view(kind):
        return pa.list_view(kind.value_field.with_type(_storage_type(kind.value_type)))
    if types.is_large_list_view(kind):
        return pa.large_list_view(kind.value_field.with_type(_storage_type(kind.value_type)))
    if types.is_map(kind):
        return pa.map_(_storage_type(kind.key_type), kind.item_field.with_type(_storage_type(kind.item_type)))
    return kind


def _cutting(batches: Iterator[pa.RecordBatch], place: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches, and turn the errors of pyarrow into `_Cut`."""
    damage = storage_damage(place)
    while True:
        try:
            batch = next(batches, None)
        except damage as error:
            raise _cut_by(error) from error
        if batch is None:
            return
        yield batch


def _plain(sample: Sample) -> Sample:
    """Return the sample with its metadata as after a pass through JSON: pairs become arrays, and NaN becomes null."""
    return Sample(sample.id, sample.text, orjson.loads(orjson.dumps(sample.meta)), sample.file)


def _shown(names: Sequence[str], columns: Sequence[Sequence[Any]], row: int) -> str:
    """Return a row as JSON, for the raw text of a rejection. `RowFields` has taken the first record apart."""
    record = {name: values[row] for name, values in zip(names, columns, strict=True)}
    return orjson.dumps(record, default=repr).decode()


def _cut_by(error: Exception) -> _Cut:
    """Turn an error of pyarrow into a `_Cut`. A limit of the library is not damage."""
    message = " ".join(str(error).split()).rstrip(".")  # pyarrow's messages can have several lines
    if isinstance(error, pa.ArrowNotImplementedError) or "crypt" in message:
        return _Cut(
            f"pyarrow {pa.__version__} cannot read it ({message}). Write it anew with a common codec and without encryption",
            "unsupported",
        )
    return _Cut(message)


def _unreadable(stretch: Stretch, error: _Cut) -> Rejection:
    """Return the rejection of a file without a readable row."""
    magic, kind = _WRITTEN_BY.get(stretch.format, (b"", "Arrow"))
    with storage.open_stream(stretch.place) as stream:
        head = bytes(stream.read(4096))
    for other, detail in _OTHER_MAGIC.items():
        if head.startswith(other):
            return Rejection(stretch.name, None, "unsupported", detail)
    begins_well = head.startswith(magic) if magic else head.startswith(_STREAM_END[:4])
    if begins_well or not head:
        return _rest(stretch, 1, error)
    detail = f"not what its name says (expected {kind} data, got {head[:4]!r})"
    return Rejection(stretch.name, None, "not-the-named-format", detail)


def _rest(stretch: Stretch, row: int, error: _Cut) -> Rejection:
    if error.reason == "unsupported":
        return Rejection(stretch.name, row, "unsupported", f"from here on the file is not read: {error}")
    return Rejection(stretch.name, row, "truncated", f"from here on the file is cut off or damaged ({error})")
