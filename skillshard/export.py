"""Write shards, or a materialised mix, as files for trainers that keep their own loader.

    E/000000.jsonl.zst             rows of a part; also .jsonl, .jsonl.gz, .parquet
    E/data-00000-of-00003.arrow    rows of a part of a directory for `datasets.load_from_disk`
    E/SKILL.bin, E/SKILL.idx       token ids of the samples of a skill, for Megatron-LM (`megatron.py` has the layout)
    E/mix.bin, E/mix.idx           token ids of the draws of a mix
    E/.export.json                 written last (schemas/export-1.json)

The name of the manifest is hidden, so that readers of a whole directory (`datasets.load_dataset`, pyarrow, Spark) take only the files with
rows. A row has the id, the skill, the text and the metadata of a sample. A row of a mix begins with its draw. One task writes one part. A plain
export divides the shards into parts by their bytes, in stored order. A mix divides the draws into parts of equal length.

The members of a sample, such as an image, are columns of bytes in Parquet and Arrow files, with null where a sample lacks the member. JSONL
has no form for bytes, so an export of members as JSONL is refused.

In JSONL the metadata is an object. In Parquet and Arrow files the metadata is its JSON text, because a column has a single type: the
metadata of two samples may have values of different types under one name, and a struct would add the names of all samples to each.

A row of files for Megatron-LM has token ids alone, copied from a token set of the shards.
"""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field

from skillshard import artefact, canonical, megatron, places, storage
from skillshard.errors import PolicyError, ShardError, TokensError, did_you_mean, name_some
from skillshard.execution import Backend, OnStage, Record, Task, run, shown
from skillshard.megatron import Documents
from skillshard.memo import memoized
from skillshard.mixing.fields import is_list_of_texts
from skillshard.mixing.listing import decide, num_drawn, open_stream, warn_of_repeated
from skillshard.mixing.members import MEMBERS_AHEAD
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.round_ids import CheckedMaps, RoundIds, counts_of
from skillshard.number_checks import is_whole
from skillshard.policies import Policy
from skillshard.policies.policy import check_is_policy
from skillshard.printable import counted
from skillshard.progress import advance
from skillshard.shards.dataset import refuse_taken_column
from skillshard.shards.manifest import SPLITS
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards
from skillshard.shards.token_manifest import id_dtype
from skillshard.shards.token_set import TokenSet

MANIFEST = ".export.json"
FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "datasets")
"""Formats with rows of texts."""
MEGATRON = "megatron"
"""Format of token ids."""
FILE_BYTES = 256_000_000
"""Default of the bytes of tars whose rows one file holds."""
_WITH_MEMBERS = ("parquet", "datasets")
"""Formats with columns of bytes."""
_COMPRESSIONS = {"jsonl.gz": "gzip", "jsonl.zst": "zstd"}
# A row group is the least that a reader of Parquet decodes, and the most that a writer here holds in memory.
GROUP_BYTES = 16 << 20
"""Bytes of text, metadata and members, or of token ids, at which a group of rows ends."""
GROUP_ROWS = 8192
"""Number of rows at which a group of rows ends."""
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
        members: Suffixes of the members that the rows have.
    """

    shard: SkillShards
    begin: int
    end: int
    members: tuple[str, ...] = ()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of an export."""
        opened = replace(self.shard).open_shard(0)  # a copy, so that the shard is closed at the end of the stretch
        for row in range(self.begin, self.end):
            sample = opened.sample(row)
            members = opened.members(row, self.members) if self.members else {}
            own = {suffix: members.get(suffix) for suffix in self.members}
            yield {"id": sample.id, "skill": self.shard.skill, "text": sample.text, "meta": sample.meta, **own}

    def documents(self, tokens: TokenSet, *, has_separator: bool) -> Iterator[Documents]:
        """Yield the token ids of the rows, with a place for a separator after each row if `has_separator`."""
        own = (tokens.train if self.shard.split == "train" else tokens.holdout)[self.shard.skill]
        assert own.kept is not None
        shard = own.columns.number.index(self.shard.columns.number[0])
        maps, dtype = CheckedMaps([own.ids(shard).ids]), id_dtype(own.kept.type)
        for begin in range(self.begin, self.end, GROUP_ROWS):
            rows = np.arange(begin, min(begin + GROUP_ROWS, self.end))
            starts, sizes = own.starts(shard, rows), own.rows(shard)[rows].astype(np.int64) + has_separator
            for chosen in _bounded(sizes * dtype.itemsize):
                which = np.zeros(len(sizes[chosen]), np.int64)
                ids = maps.copied(which, starts[chosen], sizes[chosen], dtype)
                yield Documents(Counter({self.shard.skill: len(which)}), sizes[chosen], ids)


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
        mixer = self._kept_mixer
        for start in range(self.first, self.first + self.num, GROUP_ROWS):
            draws = np.arange(start, min(start + GROUP_ROWS, self.first + self.num))
            places_of_draws = mixer.find(draws)
            num_bytes = (places_of_draws.end - places_of_draws.start).astype(np.int64)
            # Texts are read in groups of bounded size, because some texts have megabytes. The bytes of members are unknown before they are read.
            for chosen in _bounded(num_bytes) if not mixer.members else _few(len(num_bytes)):
                own = mixer.find(draws[chosen])
                batch, metas = mixer.samples.cut(own), mixer.samples.metas(own)
                members = [batch.fields[suffix] for suffix in mixer.members.suffixes]
                rows = zip(own.draw.tolist(), batch.fields["id"], batch.skill, batch.text, metas, *members, strict=True)
                names = ("draw", "id", "skill", "text", "meta", *mixer.members.suffixes)
                for row in rows:
                    yield dict(zip(names, row, strict=True))

    def documents(self, tokens: TokenSet, *, has_separator: bool) -> Iterator[Documents]:
        """Yield the token ids of the draws, with a place for a separator after each draw if `has_separator`."""
        mixer, end = self._kept_mixer, self.first + self.num
        own = [tokens.train[skill] for skill in mixer.skills]
        for number in range(self.first // mixer.round_draws, -(-end // mixer.round_draws)):
            plan = mixer.rows_of(number)
            assert plan is not None
            first = number * mixer.round_draws
            draws = np.arange(max(self.first, first), min(end, first + mixer.round_draws)) - first
            sizes = counts_of(plan, own)[draws] + has_separator
            round_ids = RoundIds(plan, own)
            for chosen in _bounded(sizes * round_ids.files.dtype.itemsize):
                skills = Counter([mixer.skills[skill] for skill in plan.skill[draws[chosen]].tolist()])
                yield Documents(skills, sizes[chosen], round_ids.copied(draws[chosen], sizes[chosen]))

    @property
    def _kept_mixer(self) -> Mixer:
        # Each task of a worker gets a copy of the mixer. The first copy stays, so that the bytes of a shard are checked once.
        return memoized(_MIXERS, str(self.mixer.ledger), lambda _: self.mixer, most=1)


def _bounded(num_bytes: Int[np.ndarray, " row"]) -> Iterator[slice]:
    """Divide neighbouring rows into groups of about `GROUP_BYTES`, given the bytes of each row."""
    group = np.cumsum(num_bytes) // GROUP_BYTES
    edges = [0, *(np.flatnonzero(group[1:] != group[:-1]) + 1).tolist(), len(group)]
    yield from (slice(begin, end) for begin, end in pairwise(edges) if begin < end)


def _few(num_rows: int) -> Iterator[slice]:
    """Divide neighbouring rows with members into groups of `MEMBERS_AHEAD` rows."""
    yield from (slice(begin, begin + MEMBERS_AHEAD) for begin in range(0, num_rows, MEMBERS_AHEAD))


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
    step_draws: int | None = None,
    file_bytes: int | None = None,
    tokens: TokenSet | None = None,
    separator: str | None = None,
    members: Sequence[str] | None = None,
    workers: int | None = None,
    on_stage: OnStage | None = None,
    progress: bool = True,
) -> ExportManifest:
    """Write every sample of a split once, or the draws of a mix, as JSONL, Parquet, a directory of `datasets`, or files for Megatron-LM.

    An interrupted export is continued. A finished export is only opened.

    Args:
        shards: Shard set, local or remote.
        out: Directory to write, local or in a store.
        format: Format of the files: "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "datasets" for `datasets.load_from_disk`, or "megatron" for
            the token ids of each skill, or of the mix, as a .bin and an .idx of Megatron-LM.
        split: Split of a plain export, "train" or "holdout". The samples come in stored order.
        policy: Policy of a mix, which reads no losses. None: every sample is written once.
        draws: Number of draws of the mix. A stream that ends before gives fewer rows.
        seed: Seed of the order of the mix.
        round_draws: Number of draws of a round.
        repeat: Rule for a skill without unread samples, as for `Mixer`.
        step_draws: Number of draws of an optimizer step, for stages that end at steps. None: unknown.
        file_bytes: Approximate bytes of the tars whose rows one file holds. A file of short texts is several times smaller, because a
            tar has 2 kB for each sample at least. None: 256 MB. With "megatron", None: one pair of files for each skill, or for the mix.
        tokens: Tokens of the shards with their ids, for "megatron".
        separator: Text of the token after each sample, such as "<|endoftext|>", for "megatron". None: no separator.
        members: Suffixes of the members, such as images, that the rows have as bytes, in "parquet" and "datasets". An empty list leaves members
            out. None: all members of the shards, and an error for JSONL, which has no form for bytes. Files for Megatron-LM never have members.
        workers: Number of processes. None: all CPUs.
        on_stage: Function that is called with the name of a stage and the number of its tasks. The returned function is called
            for each finished task. With None, progress bars appear in a terminal or a notebook.
        progress: Whether progress bars are shown.

    Returns:
        The manifest of the export.

    Raises:
        ShardError: The split has no samples, a shard differs from its entry in the manifest, or the format cannot hold the members.
        PolicyError: The policy or the number of draws is missing, or the policy reads losses.
        TokensError: The tokens are missing, belong to other shards, have no ids, or have a mask, or the separator is no token.
        StorageError: `out` holds something else.
    """
    formats = (*FORMATS, MEGATRON)
    if not isinstance(shards, ShardSet):
        raise ShardError(f"`shards={shards!r}`: give an opened shard set, such as ShardSet.open('shards').")
    if format not in formats:
        raise ShardError(f"`format={format!r}`{did_you_mean(str(format), formats)}: give {', '.join(formats)}.")
    if split not in SPLITS:
        raise ShardError(f"`split={split!r}`: give 'train' or 'holdout'.")
    if file_bytes is not None and not is_whole(file_bytes, 1):
        raise ShardError(f"`file_bytes={file_bytes!r}`: give 1 or more bytes.")
    ids = _ids_of(shards, format, tokens, separator)
    suffixes = _members_of(shards, format, members)
    if ids is None and file_bytes is None:
        file_bytes = FILE_BYTES
    with ExitStack() as stack:
        mixer = None
        if policy is None and draws is None:
            if not _of_split(shards, split):
                raise ShardError(
                    f"{places.public(shards.root)} has no {split} samples to export. Choose the other `split`."
                )
            arguments: dict[str, Any] = {"split": split}
        else:
            mixer = _open_mix(stack, shards, policy, draws, split, seed, round_draws, repeat, step_draws, suffixes)
            # The run's digest stands for all arguments. The others are there for the message about a difference.
            arguments = {
                "draws": draws,
                "policy": mixer.policy.name,
                "seed": seed,
                "round_draws": round_draws,
                "repeat": repeat,
                **mixer.identity,
            }
        if ids is not None:
            arguments["separator"] = separator
        if shards.members:
            arguments["members"] = list(suffixes)
        made_from = {
            "command": "export",
            "arguments": {"format": format, "file_bytes": file_bytes, **arguments},
            "shards": shards.digest,
            **({} if ids is None else {"tokens": ids.tokens.digest}),
        }
        stages = stack.enter_context(shown(on_stage, progress))

        def work(unfinished: artefact.Work) -> None:
            most = sys.maxsize if file_bytes is None else file_bytes
            parts: dict[str, Part] = {}
            if mixer is not None:
                assert draws is not None
                parts = _named(format, [*_draws(mixer, draws, most)], "mix")
            elif ids is None:
                parts = _named(format, [*_stretches(_of_split(shards, split).values(), most, suffixes)], split)
            else:
                for own in _of_split(shards, split).values():
                    parts |= _named(format, [*_stretches([own], most)], own.folder)
            schema = _schema(mixer is not None, suffixes)
            _export(unfinished, parts, format, ids, schema, made_from, Backend(workers), stages)

        artefact.make(out, MANIFEST, made_from, work)
    return ExportManifest.open(out)


def _of_split(shards: ShardSet, split: str) -> Mapping[str, SkillShards]:
    return shards.train if split == "train" else shards.holdout


@dataclass(frozen=True)
class Ids:
    """Tokens whose ids are exported, and the id of the separator, or None."""

    tokens: TokenSet
    separator: int | None


def _ids_of(shards: ShardSet, format: str, tokens: TokenSet | None, separator: str | None) -> Ids | None:
    """Return the tokens of an export, or None for a format with rows of texts.

    Raises:
        TokensError: An argument is missing, or belongs to another format, or the tokens do not fit.
    """
    if format != MEGATRON:
        for name, value in {"tokens": tokens, "separator": separator}.items():
            if value is not None:
                raise TokensError(
                    f"`{name}` belongs to `format='{MEGATRON}'`, and {format} has texts: leave out `{name}`."
                )
        return None
    if tokens is None:
        raise TokensError(
            f"`format='{MEGATRON}'` has token ids in place of texts: give `tokens` too, the tokens of these shards by 'skillshard tokens'."
        )
    if not isinstance(tokens, TokenSet):
        raise TokensError(f"`tokens={tokens!r}`: give an opened token set, such as TokenSet.open('tokens').")
    tokens.refuse_other_shards(shards)
    tokens.refuse_counts_alone()
    if tokens.answers is not None:
        anew = (
            "Tag and shard the corpus of ids anew without `token_labels` and `token_mask`, and then keep its ids"
            if tokens.manifest.tokenizer is None
            else "Write tokens without a mask in another directory with 'skillshard tokens'"
        )
        raise TokensError(
            f"{places.public(tokens.root)} has a mask, by which a trainer learns {tokens.answers.mask_in_words} alone. Files of Megatron-LM have no masks, "
            f"so the prompts would be learned too. {anew}."
        )
    megatron.refuse_many_ids(tokens)
    return Ids(tokens, None if separator is None else tokens.token_id(separator))


def _members_of(shards: ShardSet, format: str, members: Sequence[str] | None) -> tuple[str, ...]:
    """Return the members that the rows of an export have, by rising suffix.

    Raises:
        ShardError: The shards have no such member, or the format has no place for members.
    """
    root = places.public(shards.root)
    if members is not None and not is_list_of_texts(members):
        raise ShardError(f"`members={members!r}`: give a list of suffixes, such as ['jpg'].")
    for suffix in members or ():
        if suffix not in shards.members:
            raise ShardError(
                f"the export has no member {suffix!r}{did_you_mean(suffix, shards.members)}: the members of {root} are "
                f"{name_some(shards.members) or 'none'}. Name another member in `members`, or leave `members` out."
            )
    if format == MEGATRON and members:
        raise ShardError(
            f"files of Megatron-LM have token ids alone, and no place for the members {name_some(members)}: leave out `members`."
        )
    if format not in (*_WITH_MEMBERS, MEGATRON) and (members or (members is None and shards.members)):
        raise ShardError(
            f"{format} has no form for bytes, and {root} has the members {name_some(shards.members)}: give `format='parquet'` or "
            "`format='datasets'`, or write texts and metadata alone with `members=[]`."
        )
    if format not in _WITH_MEMBERS:
        return ()
    suffixes = shards.members if members is None else tuple(sorted({*members}))
    refuse_taken_column(shards.root, suffixes)
    return suffixes


def _open_mix(
    stack: ExitStack,
    shards: ShardSet,
    policy: Policy | None,
    draws: int | None,
    split: str,
    seed: int,
    round_draws: int,
    repeat: str,
    step_draws: int | None,
    members: tuple[str, ...],
) -> Mixer:
    """Open the stream of a mix, with a ledger that lasts as long as `stack`.

    Raises:
        PolicyError: Arguments of a mix are missing, or do not go together.
    """
    if policy is None or draws is None:
        missing = "policy" if policy is None else "draws"
        raise PolicyError(f"an export of a mix needs `{missing}`: give it too, or leave out `policy` and `draws`.")
    check_is_policy(policy)
    if not is_whole(draws, 1):
        raise PolicyError(f"`draws={draws!r}`: give 1 or more.")
    if split != "train":
        raise PolicyError("a mix is made of training samples: leave out `split`, or leave out `policy` and `draws`.")
    if policy.reads_losses:
        raise PolicyError(
            f"policy {policy.name} reads losses, which an export does not have. Give a policy that reads no losses."
        )
    ledger = stack.enter_context(tempfile.TemporaryDirectory())
    stack.callback(_MIXERS.clear)
    return open_stream(
        shards,
        policy=policy,
        seed=seed,
        round_draws=round_draws,
        repeat=repeat,
        step_draws=step_draws,
        ledger=ledger,
        fields=("id",),
        members=members,
        field_defaults=dict.fromkeys(members) if members else None,
    )


# --- the plan ----------------------------------------------------------------------------------------------------------


def _stretches(
    skills: Iterable[SkillShards], file_bytes: int, members: tuple[str, ...] = ()
) -> Iterator[list[Stretch]]:
    """Divide the shards of skills into parts of about `file_bytes` bytes of tars, in stored order."""
    part: list[Stretch] = []
    num_bytes = 0.0
    for skill_shards in skills:
        for shard in skill_shards.each():
            num_rows, shard_bytes = len(shard), shard.columns.num_bytes[0]
            num_pieces = min(num_rows, -(-shard_bytes // file_bytes))
            edges = [num_rows * piece // num_pieces for piece in range(num_pieces + 1)]
            for begin, end in pairwise(edges):
                if part and num_bytes + shard_bytes / num_pieces > file_bytes:
                    yield part
                    part, num_bytes = [], 0.0
                part.append(Stretch(shard, begin, end, members))
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
    parts: Mapping[str, Part],
    format: str,
    ids: Ids | None,
    schema: pa.Schema,
    made_from: dict[str, Any],
    backend: Backend,
    on_stage: OnStage,
) -> None:
    tasks = []
    for number, (name, part) in enumerate(parts.items()):
        arguments: dict[str, Any] = {"part": part, "place": work.place(name)}
        arguments |= (
            {"format": format, "schema": schema}
            if ids is None
            else {"ids": ids, "index_place": work.place(_index_name(name))}
        )
        tasks.append(Task(f"{number:06d}", arguments, name))
    records = run(
        write_part if ids is None else write_pair,
        tasks,
        backend=backend,
        records=work.records("export"),
        on_done=on_stage("exporting", len(tasks)),
    )
    if format == "datasets":
        for name, data in _dataset_files([*parts], schema, made_from).items():
            storage.write_bytes(work.place(name), data)
    skills = Counter[str]()
    for record in records:
        skills.update(record["skills"])
    files = []
    for name, record in zip(parts, records, strict=True):
        own = {column: record[column] for column in ("num_rows", "num_bytes", "digest")}
        files.append(ExportedFile(name=name, **own))
        if ids is not None:
            files.append(ExportedFile(name=_index_name(name), num_rows=0, **record["index"]))
    manifest = ExportManifest(
        made_from=made_from,
        columns=schema.names if ids is None else ["tokens"],
        num_rows=sum(file.num_rows for file in files),
        skills=dict(sorted(skills.items())),
        files=files,
    )
    work.finish(manifest.model_dump(by_alias=True))


def _named(format: str, parts: Sequence[Part], stem: str) -> dict[str, Part]:
    """Return the name of the file of each part. `stem` is the skill's directory, or "mix", for files without rows of texts.

    >>> [*_named("jsonl.gz", [[], []], "train")], [*_named("datasets", [[], []], "train")]
    (['000000.jsonl.gz', '000001.jsonl.gz'], ['data-00000-of-00002.arrow', 'data-00001-of-00002.arrow'])
    >>> [*_named("megatron", [[]], "carry")], [*_named("megatron", [[], []], "carry")]
    (['carry.bin'], ['carry.00000-of-00002.bin', 'carry.00001-of-00002.bin'])
    """

    def name(number: int) -> str:
        of_all = f"{number:05d}-of-{len(parts):05d}"
        if format == MEGATRON:
            # The directory of a skill has no dot, so no two skills have files of one name.
            return f"{stem}.bin" if len(parts) == 1 else f"{stem}.{of_all}.bin"
        return f"data-{of_all}.arrow" if format == "datasets" else f"{number:06d}.{format}"

    return {name(number): part for number, part in enumerate(parts)}


def _index_name(name: str) -> str:
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


def _schema(is_mix: bool, members: Sequence[str]) -> pa.Schema:
    """Return the columns of the rows: the draw of a mix, the texts, and the bytes of each member."""
    columns = [(name, pa.string()) for name in ("id", "skill", "text", "meta")]
    columns += [(suffix, pa.binary()) for suffix in members]
    return pa.schema([("draw", pa.int64()), *columns] if is_mix else columns)


def _dataset_files(names: Sequence[str], schema: pa.Schema, made_from: dict[str, Any]) -> dict[str, bytes]:
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
