"""The files of an export: one task writes the rows of one part in one format.

In JSONL the metadata is an object. In Parquet and Arrow files the metadata is its JSON text, because a column has a single type: the
metadata of two samples may have values of different types under one name, and a struct would add the names of all samples to each.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from skillshard import canonical, megatron, storage
from skillshard.execution import Record
from skillshard.export_rows import GROUP_BYTES, GROUP_ROWS, Part
from skillshard.shards.token_set import TokenSet

FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "datasets")
"""Formats with rows of texts."""
MEGATRON = "megatron"
"""Format of token ids."""
WITH_MEMBERS = ("parquet", "datasets")
"""Formats with columns of bytes."""
_COMPRESSIONS = {"jsonl.gz": "gzip", "jsonl.zst": "zstd"}


@dataclass(frozen=True)
class Ids:
    """Tokens whose ids are exported, and the id of the separator, or None."""

    tokens: TokenSet
    separator: int | None


def named(format: str, parts: Sequence[Part], stem: str) -> dict[str, Part]:
    """Return the name of the file of each part. `stem` is the skill's directory, or "mix", for files without rows of texts.

    >>> [*named("jsonl.gz", [[], []], "train")], [*named("datasets", [[], []], "train")]
    (['000000.jsonl.gz', '000001.jsonl.gz'], ['data-00000-of-00002.arrow', 'data-00001-of-00002.arrow'])
    >>> [*named("megatron", [[]], "carry")], [*named("megatron", [[], []], "carry")]
    (['carry.bin'], ['carry.00000-of-00002.bin', 'carry.00001-of-00002.bin'])
    """

    def name(number: int) -> str:
        of_all = f"{number:05d}-of-{len(parts):05d}"
        if format == MEGATRON:
            # The directory of a skill has no dot, so no two skills have files of one name.
            return f"{stem}.bin" if len(parts) == 1 else f"{stem}.{of_all}.bin"
        return f"data-{of_all}.arrow" if format == "datasets" else f"{number:06d}.{format}"

    return {name(number): part for number, part in enumerate(parts)}


def index_name(name: str) -> str:
    """Return the name of the index of a file of token ids."""
    return f"{name.removesuffix('.bin')}.idx"


def write_pair(part: Part, ids: Ids, place: str, index_place: str) -> Record:
    """Write the token ids of a part, and their index.

    Args:
        part: Rows of shards, or draws of a mix.
        ids: Tokens and separator.
        place: Place of the .bin.
        index_place: Place of the .idx.
    """
    ids_on_disk, separator = ids.tokens.manifest.ids, ids.separator
    assert ids_on_disk is not None
    groups = chain.from_iterable(piece.documents(ids.tokens, has_separator=separator is not None) for piece in part)
    with storage.writing(place) as path, storage.writing(index_place) as index:
        skills = megatron.write_documents(path, index, groups, ids_on_disk, separator)
        records: list[Record] = [
            {"num_bytes": file.stat().st_size, "digest": storage.file_digest(file)} for file in (path, index)
        ]
    return {"num_rows": skills.total(), **records[0], "index": records[1], "skills": dict(skills)}


def write_part(part: Part, format: str, schema: pa.Schema, place: str) -> Record:
    """Write the file of a part.

    Args:
        part: Rows of shards, or draws of a mix.
        format: Format of the file.
        schema: Columns of the rows.
        place: Place of the file.
    """
    skills = Counter[str]()
    with storage.writing(place) as path:
        with ExitStack() as stack:
            write = _writer(stack, path, format, schema)
            for rows in _groups(part, schema.names[schema.names.index("meta") + 1 :]):
                skills.update(row["skill"] for row in rows)
                write(rows)
        digest, num_bytes = storage.file_digest(path), path.stat().st_size
    return {"num_rows": skills.total(), "num_bytes": num_bytes, "digest": digest, "skills": dict(skills)}


def _groups(part: Part, members: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a part in groups of bounded size. The metadata is JSON, for a writer to use as text or as a part of a line.

    Args:
        part: Rows of shards, or draws of a mix.
        members: Columns with the bytes of members.
    """
    group: list[dict[str, Any]] = []
    num_bytes = 0
    for piece in part:
        for row in piece.rows():
            meta = orjson.dumps(row["meta"])
            group.append({**row, "meta": meta})
            num_bytes += len(row["text"]) + len(meta) + sum(len(row[suffix] or b"") for suffix in members)
            if num_bytes >= GROUP_BYTES or len(group) == GROUP_ROWS:
                yield group
                group, num_bytes = [], 0
    if group:
        yield group


def _writer(stack: ExitStack, path: Path, format: str, schema: pa.Schema) -> Callable[[list[dict[str, Any]]], None]:
    """Open a file of a format. Return the function that writes a group of rows, until `stack` closes the file."""
    if format == "parquet":
        parquet = stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
        return lambda rows: parquet.write_table(_table(rows, schema), row_group_size=len(rows))
    file = stack.enter_context(pa.OSFile(str(path), "wb"))
    if format == "datasets":
        # `datasets` maps files of Arrow's stream format into memory.
        stream = stack.enter_context(pa.ipc.new_stream(file, schema))
        return lambda rows: stream.write_table(_table(rows, schema))
    if format in _COMPRESSIONS:
        file = stack.enter_context(pa.CompressedOutputStream(file, _COMPRESSIONS[format]))
    return lambda rows: file.write(b"".join(map(_line, rows)))


def _line(row: dict[str, Any]) -> bytes:
    return orjson.dumps({**row, "meta": orjson.Fragment(row["meta"])}, option=orjson.OPT_APPEND_NEWLINE)


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in schema.names}
    return pa.table({**columns, "meta": [meta.decode() for meta in columns["meta"]]}, schema=schema)


def schema_of(is_mix: bool, members: Sequence[str]) -> pa.Schema:
    """Return the columns of the rows: the draw of a mix, the texts, and the bytes of each member."""
    columns = [(name, pa.string()) for name in ("id", "skill", "text", "meta")]
    columns += [(suffix, pa.binary()) for suffix in members]
    return pa.schema([("draw", pa.int64()), *columns] if is_mix else columns)


def dataset_files(names: Sequence[str], schema: pa.Schema, made_from: dict[str, Any]) -> dict[str, bytes]:
    """Return the two files by which `datasets.load_from_disk` finds the Arrow files and their columns.

    `Dataset.save_to_disk` would copy all rows through a cache. The two files have kept their form since version 2 of `datasets`, and a
    test opens the directory with the library.
    """
    features = {field.name: {"dtype": str(field.type), "_type": "Value"} for field in schema}
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": canonical.digest(canonical.to_json(made_from))[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": made_from["arguments"].get("split"),  # a mix has no split
    }
    return {"dataset_info.json": canonical.to_json({"features": features}), "state.json": canonical.to_json(state)}
