"""Write shards, or a materialised mix, as files for trainers that keep their own loader.

    E/000000.jsonl.zst             rows of a part; also .jsonl, .jsonl.gz, .parquet
    E/data-00000-of-00003.arrow    rows of a part of a directory for `datasets.load_from_disk`
    E/.export.json                 written last (schemas/export-1.json)

The name of the manifest is hidden, so that readers of a whole directory (`datasets.load_dataset`, pyarrow, Spark) take only the files with
rows. A row has the id, the skill, the text and the metadata of a sample. A row of a mix begins with its draw. One task writes one part. A plain
export divides the shards into parts by their bytes, in stored order. A mix divides the draws into parts of equal length.

In JSONL the metadata is an object. In Parquet and Arrow files the metadata is its JSON text, because a column has a single type: the
metadata of two samples may have values of different types under one name, and a struct would add the names of all samples to each.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from skillshard import artefact, canonical, places, storage
from skillshard.errors import PolicyError, ShardError, did_you_mean
from skillshard.execution import Backend, OnStage, Record, Task, run, shown
from skillshard.memo import memoized
from skillshard.mixing.listing import decide, num_drawn, open_stream, warn_of_repeated
from skillshard.mixing.mixer import Mixer
from skillshard.policies import Policy
from skillshard.printable import counted
from skillshard.progress import advance
from skillshard.shards.manifest import SPLITS
from skillshard.shards.read import ShardSet, SkillShards

MANIFEST = ".export.json"
FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "datasets")
_COMPRESSIONS = {"jsonl.gz": "gzip", "jsonl.zst": "zstd"}
# A row group is the least that a reader of Parquet decodes, and the most that a writer here holds in memory.
GROUP_BYTES = 16 << 20
"""Bytes of text and metadata at which a row group ends."""
GROUP_ROWS = 8192
"""Number of rows at which a row group ends."""
_ANEW = "Export anew into another directory with 'skillshard export'."


class ExportedFile(BaseModel):
    """File of an export."""

    model_config = ConfigDict(extra="forbid")

    name: str
    num_rows: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    digest: str = Field(description="xxh3 (128 bits) of the file.")


class ExportManifest(BaseModel):
    """Content of .export.json."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/export/1"] = Field("skillshard/export/1", alias="schema")
    made_from: dict[str, Any] = Field(description="Command, arguments and digests of the inputs.")
    columns: list[str] = Field(description="Columns of each row.")
    num_rows: int = Field(ge=0, description="Number of rows of all files.")
    skills: dict[str, int] = Field(description="Skill -> number of rows.")
    files: list[ExportedFile] = Field(description="Files in the order of the rows.")

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> "ExportManifest":
        """Read the manifest of a finished export.

        Raises:
            ShardError: The manifest is damaged.
            StorageError: The place holds no finished export.
        """
        file = places.join(place, MANIFEST)
        return artefact.parse_manifest(
            storage.read_bytes(file), cls, place=file, schema="export-1.json", error=ShardError, anew=_ANEW
        )


def verify_export(place: str | os.PathLike[str]) -> list[str]:
    """Read every file of an export, and return one sentence for each file that differs from the manifest.

    Raises:
        ShardError: The manifest is damaged.
        StorageError: The place holds no finished export.
    """
    manifest = ExportManifest.open(place)
    faults = []
    for number, file in enumerate(manifest.files):
        advance(number, len(manifest.files))
        path = places.join(place, file.name)
        if not storage.exists(path):
            faults.append(f"{places.public(path)} is missing. {_ANEW}")
            continue
        if (num_bytes := storage.stat(path).num_bytes) != file.num_bytes:
            faults.append(
                f"{places.public(path)} has {counted(num_bytes, 'byte')}, expected {file.num_bytes:,}: damaged or edited. {_ANEW}"
            )
        elif (digest := storage.file_digest(path)) != file.digest:
            faults.append(
                f"{places.public(path)} has the digest {digest}, expected {file.digest}: damaged or edited. {_ANEW}"
            )
    totals = {"files": sum(file.num_rows for file in manifest.files), "skills": sum(manifest.skills.values())}
    faults += [
        f"{MANIFEST} says num_rows is {manifest.num_rows:,}, but its {name} have {total:,}: damaged or edited. {_ANEW}"
        for name, total in totals.items()
        if total != manifest.num_rows
    ]
    return faults


@dataclass(frozen=True)
class Stretch:
    """Rows of a shard.

    Attributes:
        shard: Shards of a skill, with a single shard.
        begin, end: First row, and the row after the last row.
    """

    shard: SkillShards
    begin: int
    end: int

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of an export."""
        opened = replace(self.shard).open_shard(0)  # a copy, so that the shard is closed at the end of the stretch
        for row in range(self.begin, self.end):
            sample = opened.sample(row)
            yield {"id": sample.id, "skill": self.shard.skill, "text": sample.text, "meta": sample.meta}


_MIXERS: dict[str, Mixer] = {}
"""The mixer of the running export, by the name of its ledger."""


@dataclass(frozen=True)
class Draws:
    """Draws first .. first + num - 1 of a mix whose rounds are decided."""

    mixer: Mixer
    first: int
    num: int

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of an export."""
        # Each task of a worker gets a copy of the mixer. The first copy stays, so that the bytes of a shard are checked once.
        mixer = memoized(_MIXERS, str(self.mixer.ledger), lambda _: self.mixer, most=1)
        for start in range(self.first, self.first + self.num, GROUP_ROWS):
            draws = np.arange(start, min(start + GROUP_ROWS, self.first + self.num))
            places_of_draws = mixer.find(draws)
            # Texts are read in groups of bounded size, because some texts have megabytes.
            sizes = (places_of_draws.end - places_of_draws.start).astype(np.int64)
            group = np.cumsum(sizes) // GROUP_BYTES
            for number in np.unique(group).tolist():
                own = mixer.find(draws[group == number])
                batch, metas = mixer.cut(own), mixer.metas(own)
                rows = zip(own.draw.tolist(), batch.fields["id"], batch.skill, batch.text, metas, strict=True)
                for draw, identity, skill, text, meta in rows:
                    yield {"draw": draw, "id": identity, "skill": skill, "text": text, "meta": meta}


Part = Sequence[Stretch] | Sequence[Draws]


def export_shards(
    shards: ShardSet,
    out: str | os.PathLike[str],
    *,
    format: str,
    split: str = "train",
    policy: Policy | None = None,
    draws: int | None = None,
    seed: int = 0,
    round_draws: int = 4096,
    repeat: str = "epochs",
    file_bytes: int = 256_000_000,
    workers: int | None = None,
    on_stage: OnStage | None = None,
    progress: bool = True,
) -> ExportManifest:
    """Write every sample of a split once, or the draws of a mix, as JSONL, Parquet or a directory of `datasets`.

    An interrupted export is continued. A finished export is only opened.

    Args:
        shards: Shard set, local or remote.
        out: Directory to write, local or in a store.
        format: str of the files: "jsonl", "jsonl.gz", "jsonl.zst", "parquet", or "datasets" for `datasets.load_from_disk`.
        split: str of a plain export, "train" or "holdout". The samples come in stored order.
        policy: Policy of a mix, which reads no losses. None: every sample is written once.
        draws: Number of draws of the mix. A stream that ends before gives fewer rows.
        seed: Seed of the order of the mix.
        round_draws: Number of draws of a round.
        repeat: Rule for a skill without unread samples, as for `Mixer`.
        file_bytes: Approximate bytes of the tars whose rows one file holds. A file of short texts is several times smaller, because a
            tar has 2 kB for each sample at least.
        workers: Number of processes. None: all CPUs.
        on_stage: Function that is called with the name of a stage and the number of its tasks. The returned function is called
            for each finished task. With None, progress bars appear in a terminal or a notebook.
        progress: Whether progress bars are shown.

    Returns:
        The manifest of the export.

    Raises:
        ShardError: The split has no samples, or a shard differs from its entry in the manifest.
        PolicyError: The policy or the number of draws is missing, or the policy reads losses.
        StorageError: `out` holds something else.
    """
    if format not in FORMATS:
        raise ShardError(f"`format={format!r}`{did_you_mean(format, FORMATS)}: give {', '.join(FORMATS)}.")
    if split not in SPLITS:
        raise ShardError(f"`split={split!r}`: give 'train' or 'holdout'.")
    if file_bytes < 1:
        raise ShardError(f"`file_bytes={file_bytes}`: give 1 or more bytes.")
    with ExitStack() as stack:
        mixer = None
        if policy is None and draws is None:
            if not (shards.train if split == "train" else shards.holdout):
                raise ShardError(
                    f"{places.public(shards.root)} has no {split} samples to export. Choose the other `split`."
                )
            arguments: dict[str, Any] = {"split": split}
        else:
            mixer = _open_mix(stack, shards, policy, draws, split, seed, round_draws, repeat)
            # The run's digest stands for all arguments. The others are there for the message about a difference.
            arguments = {
                "draws": draws,
                "policy": mixer.policy.name,
                "seed": seed,
                "round_draws": round_draws,
                "repeat": repeat,
                **mixer.identity,
            }
        made_from = {
            "command": "export",
            "arguments": {"format": format, "file_bytes": file_bytes, **arguments},
            "shards": shards.digest,
        }
        stages = stack.enter_context(shown(on_stage, progress))

        def work(unfinished: artefact.Work) -> None:
            if mixer is None:
                parts: list[Part] = [*_stretches(shards, split, file_bytes)]
            else:
                assert draws is not None
                parts = [*_draws(mixer, draws, file_bytes)]
            _export(unfinished, parts, format, made_from, Backend(workers), stages)

        artefact.make(out, MANIFEST, made_from, work)
    return ExportManifest.open(out)


def _open_mix(
    stack: ExitStack,
    shards: ShardSet,
    policy: Policy | None,
    draws: int | None,
    split: str,
    seed: int,
    round_draws: int,
    repeat: str,
) -> Mixer:
    """Open the stream of a mix, with a ledger that lasts as long as `stack`.

    Raises:
        PolicyError: Arguments of a mix are missing, or do not go together.
    """
    if policy is None or draws is None:
        missing = "policy" if policy is None else "draws"
        raise PolicyError(f"an export of a mix needs `{missing}`: give it too, or leave out `policy` and `draws`.")
    if draws < 1:
        raise PolicyError(f"`draws={draws}`: give 1 or more.")
    if split != "train":
        raise PolicyError("a mix is made of training samples: leave out `split`, or leave out `policy` and `draws`.")
    if policy.reads_losses:
        raise PolicyError(
            f"policy {policy.name} reads losses, which an export does not have. Give a policy that reads no losses."
        )
    ledger = stack.enter_context(tempfile.TemporaryDirectory())
    stack.callback(_MIXERS.clear)
    return open_stream(
        shards, policy=policy, seed=seed, round_draws=round_draws, repeat=repeat, ledger=ledger, fields=("id",)
    )


# --- the plan ----------------------------------------------------------------------------------------------------------


def _stretches(shards: ShardSet, split: str, file_bytes: int) -> Iterator[list[Stretch]]:
    """Divide the shards of a split into parts of about `file_bytes` bytes of tars, in stored order."""
    part: list[Stretch] = []
    num_bytes = 0.0
    for skill_shards in (shards.train if split == "train" else shards.holdout).values():
        for shard in skill_shards.each():
            num_rows, shard_bytes = len(shard), shard.columns.num_bytes[0]
            num_pieces = min(num_rows, -(-shard_bytes // file_bytes))
            edges = [num_rows * piece // num_pieces for piece in range(num_pieces + 1)]
            for begin, end in pairwise(edges):
                if part and num_bytes + shard_bytes / num_pieces > file_bytes:
                    yield part
                    part, num_bytes = [], 0.0
                part.append(Stretch(shard, begin, end))
                num_bytes += shard_bytes / num_pieces
    yield part


def _draws(mixer: Mixer, num_draws: int, file_bytes: int) -> Iterator[list[Draws]]:
    """Decide the rounds of a mix, and divide the draws into parts of about `file_bytes` bytes of tars on average."""
    length = mixer.length()
    num_draws = num_draws if length is None else min(num_draws, length)
    decide(mixer, num_draws)
    drawn = num_drawn(mixer, num_draws)
    warn_of_repeated(mixer, num_draws)
    columns = [mixer.shards.train[skill].columns for skill in mixer.skills]
    mean_bytes = np.array([sum(column.num_bytes) / sum(column.num_samples) for column in columns])
    draws_of_file = max(1, int(file_bytes * num_draws / float(drawn @ mean_bytes)))
    for first in range(0, num_draws, draws_of_file):
        yield [Draws(mixer, first, min(draws_of_file, num_draws - first))]


# --- the files ---------------------------------------------------------------------------------------------------------


def _export(
    work: artefact.Work,
    parts: Sequence[Part],
    format: str,
    made_from: dict[str, Any],
    backend: Backend,
    on_stage: OnStage,
) -> None:
    names = [_name(format, number, len(parts)) for number in range(len(parts))]
    is_mix = isinstance(parts[0][0], Draws)
    tasks = [
        Task(f"{number:06d}", {"part": part, "format": format, "place": work.place(name)}, name)
        for number, (part, name) in enumerate(zip(parts, names, strict=True))
    ]
    records = run(
        write_part,
        tasks,
        backend=backend,
        records=work.records("export"),
        on_done=on_stage("exporting", len(tasks)),
    )
    if format == "datasets":
        for name, data in _dataset_files(names, is_mix, made_from).items():
            storage.write_bytes(work.place(name), data)
    skills = Counter[str]()
    for record in records:
        skills.update(record["skills"])
    files = [
        ExportedFile(name=name, num_rows=record["num_rows"], num_bytes=record["num_bytes"], digest=record["digest"])
        for name, record in zip(names, records, strict=True)
    ]
    manifest = ExportManifest(
        made_from=made_from,
        columns=_schema(is_mix).names,
        num_rows=sum(file.num_rows for file in files),
        skills=dict(sorted(skills.items())),
        files=files,
    )
    work.finish(manifest.model_dump(by_alias=True))


def _name(format: str, number: int, num_parts: int) -> str:
    """Return the name of the file of a part.

    >>> _name("jsonl.gz", 3, 12), _name("datasets", 3, 12)
    ('000003.jsonl.gz', 'data-00003-of-00012.arrow')
    """
    return f"data-{number:05d}-of-{num_parts:05d}.arrow" if format == "datasets" else f"{number:06d}.{format}"


def write_part(part: Part, format: str, place: str) -> Record:
    """Write the file of a part.

    Args:
        part: Rows of shards, or draws of a mix.
        format: str of the file.
        place: Place of the file.
    """
    skills = Counter[str]()
    with storage.writing(place) as path:
        with ExitStack() as stack:
            write = _writer(stack, path, format, is_mix=isinstance(part[0], Draws))
            for rows in _groups(part):
                skills.update(row["skill"] for row in rows)
                write(rows)
        digest, num_bytes = storage.file_digest(path), path.stat().st_size
    return {"num_rows": skills.total(), "num_bytes": num_bytes, "digest": digest, "skills": dict(skills)}


def _groups(part: Part) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a part in groups of bounded size. The metadata is JSON, for a writer to use as text or as a part of a line."""
    group: list[dict[str, Any]] = []
    num_bytes = 0
    for piece in part:
        for row in piece.rows():
            meta = orjson.dumps(row["meta"])
            group.append({**row, "meta": meta})
            num_bytes += len(row["text"]) + len(meta)
            if num_bytes >= GROUP_BYTES or len(group) == GROUP_ROWS:
                yield group
                group, num_bytes = [], 0
    if group:
        yield group


def _writer(stack: ExitStack, path: Path, format: str, *, is_mix: bool) -> Callable[[list[dict[str, Any]]], None]:
    """Open a file of a format. Return the function that writes a group of rows, until `stack` closes the file."""
    if format == "parquet":
        parquet = stack.enter_context(pq.ParquetWriter(path, _schema(is_mix), compression="zstd"))
        return lambda rows: parquet.write_table(_table(rows, is_mix), row_group_size=len(rows))
    file = stack.enter_context(pa.OSFile(str(path), "wb"))
    if format == "datasets":
        # `datasets` maps files of Arrow's stream format into memory.
        stream = stack.enter_context(pa.ipc.new_stream(file, _schema(is_mix)))
        return lambda rows: stream.write_table(_table(rows, is_mix))
    if format in _COMPRESSIONS:
        file = stack.enter_context(pa.CompressedOutputStream(file, _COMPRESSIONS[format]))
    return lambda rows: file.write(b"".join(map(_line, rows)))


def _line(row: dict[str, Any]) -> bytes:
    return orjson.dumps({**row, "meta": orjson.Fragment(row["meta"])}, option=orjson.OPT_APPEND_NEWLINE)


def _table(rows: list[dict[str, Any]], is_mix: bool) -> pa.Table:
    schema = _schema(is_mix)
    columns = {name: [row[name] for row in rows] for name in schema.names}
    return pa.table({**columns, "meta": [meta.decode() for meta in columns["meta"]]}, schema=schema)


def _schema(is_mix: bool) -> pa.Schema:
    """Return the columns of the rows."""
    texts = [(name, pa.string()) for name in ("id", "skill", "text", "meta")]
    return pa.schema([("draw", pa.int64()), *texts] if is_mix else texts)


def _dataset_files(names: Sequence[str], is_mix: bool, made_from: dict[str, Any]) -> dict[str, bytes]:
    """Return the two files by which `datasets.load_from_disk` finds the Arrow files and their columns.

    `Dataset.save_to_disk` would copy all rows through a cache. The two files have kept their form since version 2 of `datasets`, and a
    test opens the directory with the library.
    """
    features = {field.name: {"dtype": str(field.type), "_type": "Value"} for field in _schema(is_mix)}
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": canonical.digest(canonical.to_json(made_from))[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None if is_mix else made_from["arguments"]["split"],
    }
    return {"dataset_info.json": canonical.to_json({"features": features}), "state.json": canonical.to_json(state)}
