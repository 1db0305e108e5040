"""Parquet and Arrow: one row a sample, its columns the fields.

Values become plain JSON values, as they would be in JSONL: times their ISO text, NaN null. What has no JSON form
(bytes, decimals) is refused. Memory is bounded by a few MiB of rows (Parquet) or one record batch (Arrow,
memory-mapped).
"""

from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from skillshard import storage
from skillshard.corpus.partitions import Partition, storage_damage
from skillshard.corpus.sample import BadRecord, Rejection, Sample, check_size, sample_of

_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1024
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_WRITTEN_BY: dict[str, tuple[bytes, str]] = {"parquet": (b"PAR1", "Parquet"), "arrow": (b"ARROW1", "Arrow")}


class _Cut(Exception):
    """The rest of the table cannot be read."""


def read_table(
    partition: Partition, *, id_field: str | None, text_field: str, max_sample_bytes: int, hasher: xxhash.xxh3_128
) -> Iterator[Sample | Rejection]:
    """The rows of a Parquet or Arrow partition; `hasher` takes in each row as JSON."""
    name = partition.name
    try:
        row, batches = _opened(partition)
    except _Cut as error:
        yield _unreadable(partition, str(error))
        return
    try:
        for batch in batches:
            for i, record in enumerate(_records(_with_times_as_text(batch))):
                row += 1
                try:
                    if isinstance(record, BadRecord):
                        raise record
                    sample = _plain(sample_of(record, id_field, text_field, name, row))
                    check_size(sample, max_sample_bytes)
                except BadRecord as error:
                    hasher.update(orjson.dumps([error.reason, error.detail, error.id]))
                    yield Rejection(name, row, error.reason, error.detail, error.id, _shown(batch, i))
                else:
                    hasher.update(orjson.dumps([sample.id, sample.text, sample.meta]))
                    yield sample
    except _Cut as error:
        yield Rejection(name, row + 1, "truncated", f"from here on the file is cut off or damaged ({error})")


def rows_before(partition: Partition) -> int:
    """How many rows of the file come before the partition."""
    return _opened(partition)[0]


def _opened(partition: Partition) -> tuple[int, Iterator[pa.RecordBatch]]:
    """How many rows come before the partition, and its batches."""
    if partition.file_bytes == 0:
        raise _Cut("the file is empty, 0 bytes")
    source = storage.open_random(partition.place)
    try:
        if partition.format == "parquet":
            before, schema, batches = _open_parquet(source, partition)
        elif partition.format == "arrow":
            before, schema, batches = _open_arrow_file(source, partition)
        else:
            before, schema, batches = _open_arrow_stream(source, partition)
        names = schema.names
    except storage_damage(partition.place) as error:
        raise _Cut(_one_line(error)) from error
    if len(set(names)) < len(names):
        raise _Cut(f"two columns of one name among {', '.join(names)}")
    return before, _cutting(batches, partition.place)


def _open_parquet(source: pa.NativeFile, partition: Partition) -> tuple[int, pa.Schema, Iterator[pa.RecordBatch]]:
    file = pq.ParquetFile(source, page_checksum_verification=True)
    groups = range(partition.start, partition.stop)
    before = sum(file.metadata.row_group(i).num_rows for i in range(partition.start))
    num_rows = sum(file.metadata.row_group(i).num_rows for i in groups)
    num_bytes = sum(file.metadata.row_group(i).total_byte_size for i in groups)
    batch_rows = max(1, min(_BATCH_ROWS, num_rows * _BATCH_BYTES // max(num_bytes, 1)))
    batches = file.iter_batches(batch_size=batch_rows, row_groups=list(groups), use_threads=False)
    return before, file.schema_arrow, batches


def _open_arrow_file(source: pa.NativeFile, partition: Partition) -> tuple[int, pa.Schema, Iterator[pa.RecordBatch]]:
    reader = pa.ipc.open_file(source)
    before = sum(reader.get_batch(i).num_rows for i in range(partition.start))
    return before, reader.schema, (_sound(reader.get_batch(i)) for i in range(partition.start, partition.stop))


def _open_arrow_stream(source: pa.NativeFile, partition: Partition) -> tuple[int, pa.Schema, Iterator[pa.RecordBatch]]:
    reader = pa.ipc.open_stream(source)
    return 0, reader.schema, _stream_batches(reader, source, partition)


def _stream_batches(reader: Any, source: pa.NativeFile, partition: Partition) -> Iterator[pa.RecordBatch]:
    """pyarrow takes a stream cut between two batches for a whole one, so the mark at its end is looked for here."""
    for batch in reader:
        yield _sound(batch)
    source.seek(max(0, partition.file_bytes - len(_STREAM_END)))
    if source.read() != _STREAM_END:
        raise _Cut("no end-of-stream mark")


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Offsets of a damaged file could point anywhere, and pyarrow would follow them and crash; so they are checked."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                raise
            # Text that is not UTF-8 is left for each row to say; as bytes, only the offsets count.
            column.view(pa.binary() if pa.types.is_string(column.type) else pa.large_binary()).validate(full=True)
    return batch


def _cutting(batches: Iterator[pa.RecordBatch], place: str) -> Iterator[pa.RecordBatch]:
    damage = storage_damage(place)
    while True:
        try:
            batch = next(batches, None)
        except damage as error:
            raise _Cut(_one_line(error)) from error
        if batch is None:
            return
        yield batch


def _with_times_as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Times as ISO text by pyarrow: Python has no nanoseconds, and the answer must not depend on pandas being there."""
    columns = [c.cast(pa.string()) if pa.types.is_temporal(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _records(batch: pa.RecordBatch) -> list[dict[str, Any] | BadRecord]:
    try:
        return list(batch.to_pylist())
    except ValueError:  # of one row or more: text that is not UTF-8, a time that Python cannot hold
        return [_record(batch, i) for i in range(batch.num_rows)]


def _record(batch: pa.RecordBatch, row: int) -> dict[str, Any] | BadRecord:
    record = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            record[name] = column[row].as_py()
        except UnicodeDecodeError as error:
            return BadRecord("invalid-utf8", f"not valid UTF-8 (byte {error.start + 1} of column {name!r})")
        except ValueError as error:
            return BadRecord("wrong-type", f"column {name!r} of type {column.type} has no JSON form ({error})")
    return record


def _plain(sample: Sample) -> Sample:
    try:
        meta = orjson.dumps(sample.meta)
    except orjson.JSONEncodeError as error:
        raise BadRecord("wrong-type", f"a field has no JSON form ({error})", sample.id) from error
    return Sample(sample.id, sample.text, orjson.loads(meta))


def _shown(batch: pa.RecordBatch, row: int) -> str | None:
    """The row as JSON, for a person; read again, because sample_of has taken it apart."""
    record = _record(batch, row)
    return None if isinstance(record, BadRecord) else orjson.dumps(record, default=repr).decode()


def _unreadable(partition: Partition, damage: str) -> Rejection:
    magic, kind = _WRITTEN_BY.get(partition.format, (b"", "Arrow"))
    with storage.open_stream(partition.place) as stream:
        head = bytes(stream.read(4096))
    begins_well = head.startswith(magic) if magic else head.startswith(_STREAM_END[:4])
    if begins_well or not head:
        return Rejection(partition.name, 1, "truncated", f"from here on the file is cut off or damaged ({damage})")
    detail = f"not what its name says (expected {kind} data, got {head[:4]!r})"
    return Rejection(partition.name, None, "not-the-named-format", detail)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
