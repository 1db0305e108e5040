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

`export_rows.py` yields the rows of a part, `export_files.py` writes the file of a part, and `export_manifest.py` has the manifest.

A row of files for Megatron-LM has token ids alone, copied from a token set of the shards.
"""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from skillshard import artefact, megatron, places, storage
from skillshard.errors import PolicyError, ShardError, TokensError, did_you_mean, name_some
from skillshard.execution import Backend, OnStage, Task, run, shown
from skillshard.export_files import (
    FORMATS,
    MEGATRON,
    WITH_MEMBERS,
    Ids,
    dataset_files,
    index_name,
    named,
    schema_of,
    write_pair,
    write_part,
)
from skillshard.export_manifest import (
    MANIFEST,
    ExportedFile,
    ExportManifest,
)
from skillshard.export_rows import MIXERS, Part, draws_of_mix, stretches
from skillshard.mixing.fields import is_list_of_texts
from skillshard.mixing.listing import open_stream
from skillshard.mixing.mixer import Mixer
from skillshard.number_checks import is_whole
from skillshard.opened import refuse_unopened
from skillshard.policies import Policy
from skillshard.policies.policy import check_is_policy
from skillshard.shards.dataset import refuse_taken_column
from skillshard.shards.manifest import SPLITS
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards
from skillshard.shards.token_set import TokenSet

FILE_BYTES = 256_000_000
"""Default of the bytes of tars whose rows one file holds."""


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
    refuse_unopened(shards, ShardSet, "shards", "shard set", ShardError)
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
                parts = named(format, [*draws_of_mix(mixer, draws, most)], "mix")
            elif ids is None:
                parts = named(format, [*stretches(_of_split(shards, split).values(), most, suffixes)], split)
            else:
                for own in _of_split(shards, split).values():
                    parts |= named(format, [*stretches([own], most)], own.folder)
            schema = schema_of(mixer is not None, suffixes)
            _export(unfinished, parts, format, ids, schema, made_from, Backend(workers), stages)

        artefact.make(out, MANIFEST, made_from, work)
    return ExportManifest.open(out)


def _of_split(shards: ShardSet, split: str) -> Mapping[str, SkillShards]:
    return shards.train if split == "train" else shards.holdout


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
    refuse_unopened(tokens, TokenSet, "tokens", "token set", TokensError)
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
    if format not in (*WITH_MEMBERS, MEGATRON) and (members or (members is None and shards.members)):
        raise ShardError(
            f"{format} has no form for bytes, and {root} has the members {name_some(shards.members)}: give `format='parquet'` or "
            "`format='datasets'`, or write texts and metadata alone with `members=[]`."
        )
    if format not in WITH_MEMBERS:
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
    stack.callback(MIXERS.clear)
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
            else {"ids": ids, "index_place": work.place(index_name(name))}
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
        for name, data in dataset_files([*parts], schema, made_from).items():
            storage.write_bytes(work.place(name), data)
    skills = Counter[str]()
    for record in records:
        skills.update(record["skills"])
    files = []
    for name, record in zip(parts, records, strict=True):
        own = {column: record[column] for column in ("num_rows", "num_bytes", "digest")}
        files.append(ExportedFile(name=name, **own))
        if ids is not None:
            files.append(ExportedFile(name=index_name(name), num_rows=0, **record["index"]))
    manifest = ExportManifest(
        made_from=made_from,
        columns=schema.names if ids is None else ["tokens"],
        num_rows=sum(file.num_rows for file in files),
        skills=dict(sorted(skills.items())),
        files=files,
    )
    work.finish(manifest.model_dump(by_alias=True))
