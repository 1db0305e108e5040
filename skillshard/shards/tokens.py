"""Token counts of a shard set: how many tokens each sample has, by one tokenizer. The shards stay as they are.

    T/train/SKILL/000000.tokens.npy   tokens of each row of train/SKILL/000000.tar, uint32
    T/holdout/SKILL/...               the same
    T/tokenizer.json                  the tokenizer, as Hugging Face's `tokenizers` writes it
    T/tokens.json                     last (schemas/tokens-1.json)

With them the mixer can weigh tokens instead of samples, and `mixing/packing.py` finds any block of the packed stream
without tokenizing what comes before it. One shard is one task. The files take 4 bytes per sample, about 0.4 % of texts
of 1 kB; counting costs one tokenization of the whole.

Truncation and padding of the tokenizer are turned off: every token counts. One with random merges (dropout) is refused.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, model_validator

from skillshard import artefact, canonical, places, storage
from skillshard.errors import TokensError, did_you_mean, name_some
from skillshard.execution import Backend, OnStage, Record, keyed, run, shown
from skillshard.extras import needed
from skillshard.kept import kept
from skillshard.printable import counted
from skillshard.progress import advance
from skillshard.shards.manifest import SPLITS, ShardColumns, Split, check_lengths, gathered
from skillshard.shards.read import MAX_OPEN, ShardSet, SkillShards

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MANIFEST = "tokens.json"
TOKENIZER = "tokenizer.json"
TEXTS_AT_ONCE = 256
"""Texts handed to the tokenizer in one call."""
_ANEW = "Count anew in another directory with 'skillshard tokens'."


class TokenColumns(BaseModel):
    """The counts of one skill and split, one list per property, shard for shard as in the shard set's manifest."""

    model_config = ConfigDict(extra="forbid")

    number: list[int] = Field(description="the number in the shard's file name")
    num_samples: list[int]
    num_tokens: list[int]
    digest: list[str] = Field(description="xxh3 (128 bits) of the file of counts")

    @model_validator(mode="after")
    def _same_length(self) -> "TokenColumns":
        check_lengths(self, "counts")
        return self


class TokensSkill(BaseModel):
    """One skill and its tokens."""

    model_config = ConfigDict(extra="forbid")

    name: str
    folder: str = Field(pattern=r"^[a-z0-9-]+$", description="directory name under train/ and holdout/")
    num_train: int = Field(ge=0, description="tokens of its training samples")
    num_holdout: int = Field(ge=0, description="tokens of its held-out samples")
    train: TokenColumns
    holdout: TokenColumns


class TokensManifest(BaseModel):
    """tokens.json."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/tokens/1"] = Field("skillshard/tokens/1", alias="schema")
    made_from: dict[str, Any] = Field(description="command, arguments and digests of the inputs")
    shards: str = Field(description="digest of the shard set's manifest")
    tokenizer: str = Field(description="digest of tokenizer.json")
    special_tokens: bool = Field(
        description="whether the tokenizer's special tokens are added to each sample, and counted"
    )
    skills: list[TokensSkill] = Field(description="in the order of their names")
    num_train: int = Field(ge=0, description="tokens of all training samples")
    num_holdout: int = Field(ge=0, description="tokens of all held-out samples")


# --- the tokenizer -----------------------------------------------------------------------------------------------------


def open_tokenizer(source: "str | os.PathLike[str] | Tokenizer") -> "Tokenizer":
    """A tokenizer from its file, or as it is; truncation and padding are turned off.

    Raises:
        TokensError: the file is no tokenizer, or its merges are random.
        ExtraError: the package `tokenizers` is not installed.
        StorageError: the file cannot be read.
    """
    needed("tokens", what="A tokenizer")
    from tokenizers import Tokenizer

    name = "the tokenizer" if isinstance(source, Tokenizer) else places.public(source)
    text = source.to_str() if isinstance(source, Tokenizer) else _tokenizer_text(source)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing narrower
        raise TokensError(
            f"{name} is no tokenizer of Hugging Face's tokenizers: {error}. Give a tokenizer.json, as tokenizer.save() or "
            "save_pretrained() of a fast tokenizer writes it."
        ) from error
    if getattr(tokenizer.model, "dropout", None):
        raise TokensError(
            f"{name} merges at random (dropout {tokenizer.model.dropout}), so a text has no fixed number of tokens. Set "
            "model.dropout to null in a copy of it."
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _tokenizer_text(place: str | os.PathLike[str]) -> str:
    if os.path.isdir(place):
        raise TokensError(f"{places.public(place)} is a directory. Give the tokenizer.json that lies in it.")
    try:
        return storage.read_bytes(place).decode()
    except UnicodeDecodeError as error:
        raise TokensError(f"{places.public(place)} is not text, and so no tokenizer.json: {error}.") from error


def encode(
    tokenizer: "Tokenizer",
    texts: Sequence[str],
    *,
    special_tokens: bool,
    name_of: Callable[[int], str] = lambda at: f"text {at}",
) -> list[list[int]]:
    """The token ids of some texts.

    Args:
        name_of: names the text of an index in an error.

    Raises:
        TokensError: the tokenizer has no token for a part of a text, and no unknown token either.

    Runs in one thread unless the environment sets TOKENIZERS_PARALLELISM: the parallelism is in the processes (workers of a
    job, of a loader), and threads started before a fork would be lost in the child.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ids = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = list(texts[start : start + TEXTS_AT_ONCE])
        try:
            ids += [encoding.ids for encoding in tokenizer.encode_batch_fast(some, add_special_tokens=special_tokens)]
        except Exception as error:  # the package raises nothing narrower
            raise TokensError(_untokenized(tokenizer, some, start, name_of, str(error))) from error
    return ids


def _untokenized(
    tokenizer: "Tokenizer", texts: Sequence[str], start: int, name_of: Callable[[int], str], reason: str
) -> str:
    """The sentence on the first of some texts that a tokenizer cannot encode; `start` is the index of the first text."""
    name = "a text"
    for at, text in enumerate(texts):
        try:
            tokenizer.encode(text)
        except Exception as error:  # the package raises nothing narrower
            name, reason = name_of(start + at), str(error)
            break
    return (
        f"{name} cannot be encoded by the tokenizer: {reason.rstrip('.')}. Give a tokenizer with an unknown token, or one that falls back "
        "to bytes."
    )


def encode_with_ends(
    tokenizer: "Tokenizer", texts: Sequence[str], *, special_tokens: bool
) -> "list[tuple[list[int], Int[np.ndarray, ' token']]]":
    """As `encode`, with the character of the text at which each token ends; 0 for special tokens."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    encoded = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = list(texts[start : start + TEXTS_AT_ONCE])
        try:
            encodings = tokenizer.encode_batch(some, add_special_tokens=special_tokens)
        except Exception as error:  # the package raises nothing narrower
            raise TokensError(_untokenized(tokenizer, some, start, lambda at: f"text {at}", str(error))) from error
        for encoding in encodings:
            encoded.append((encoding.ids, np.array([end for _, end in encoding.offsets], np.int64)))
    return encoded


# --- counting ----------------------------------------------------------------------------------------------------------


def count_tokens(
    shards: ShardSet,
    tokenizer: "str | os.PathLike[str] | Tokenizer",
    out: str | os.PathLike[str],
    *,
    special_tokens: bool = False,
    backend: Backend = Backend(),
    on_stage: OnStage | None = None,
    progress: bool = True,
) -> "TokenCounts":
    """Count the tokens of every sample; resumes where a killed run stopped, and does nothing if the counts are finished.

    Args:
        shards: local or remote.
        tokenizer: a tokenizer.json, or a `tokenizers.Tokenizer`.
        out: local directory.
        special_tokens: whether the tokenizer adds its special tokens to each sample (such as [CLS] and [SEP]); the packed stream
            then has them too.
        backend: local pool or Ray; the bytes are the same.
        on_stage: called with a stage's name and number of tasks; what it returns is called for each finished task. None: bars where
            there is a terminal or a notebook.
        progress: whether there are bars.

    Raises:
        TokensError: the tokenizer cannot be used.
        ShardError: a shard is not as its manifest says.
        StorageError: `out` holds something else.
    """
    content = open_tokenizer(tokenizer).to_str().encode()
    made_from = {
        "command": "tokens",
        "arguments": {"special_tokens": special_tokens},
        "shards": shards.digest,
        "tokenizer": canonical.digest(content),
    }
    with shown(on_stage, progress) as stages:
        artefact.make(out, MANIFEST, made_from, lambda work: _count(shards, content, work, made_from, backend, stages))
    return TokenCounts.open(out)


def _count(
    shards: ShardSet,
    tokenizer: bytes,
    work: artefact.Work,
    made_from: dict[str, Any],
    backend: Backend,
    on_stage: OnStage,
) -> None:
    storage.write_bytes(work.out / TOKENIZER, tokenizer)
    parts = list(_parts(shards))
    tasks = keyed(
        {
            "shards": part,
            "tokenizer": str(work.out / TOKENIZER),
            "tokenizer_digest": made_from["tokenizer"],
            "special_tokens": made_from["arguments"]["special_tokens"],
            "place": str(work.out / counts_name(part.split, part.folder, part.columns.number[0])),
        }
        for part in parts
    )
    records = run(
        count_shard, tasks, backend=backend, records=work.records("count"), on_done=on_stage("counting", len(tasks))
    )
    work.finish(_manifest(shards, made_from, parts, records).model_dump(by_alias=True))


def _parts(shards: ShardSet) -> Iterator[SkillShards]:
    """Every shard of every skill by itself, so that a task carries no more than it needs."""
    for split in SPLITS:
        for found in (shards.train if split == "train" else shards.holdout).values():
            columns = found.columns.model_dump()
            for at in range(len(found.shard_rows)):
                only = ShardColumns(**{name: [values[at]] for name, values in columns.items()})
                yield replace(found, columns=only)


def count_shard(shards: SkillShards, tokenizer: str, tokenizer_digest: str, special_tokens: bool, place: str) -> Record:
    """Count the tokens of one shard's samples.

    Args:
        shards: of this one shard.
        tokenizer, tokenizer_digest: a file, and what it holds.
    """
    opened, encoder = shards.open_shard(0), _kept_tokenizer(tokenizer, tokenizer_digest)
    num_rows = int(shards.shard_rows[0])
    counts = np.empty(num_rows, "<u4")
    for start in range(0, num_rows, TEXTS_AT_ONCE):
        texts = [opened.text(row) for row in range(start, min(start + TEXTS_AT_ONCE, num_rows))]
        encoded = encode(
            encoder,
            texts,
            special_tokens=special_tokens,
            name_of=lambda at, start=start: f"{shards.name(0)}: sample {opened.sample(start + at).id!r}",  # type: ignore[misc]
        )
        counts[start : start + len(texts)] = [len(ids) for ids in encoded]
        advance(start + len(texts), num_rows)
    storage.write_array(place, counts)
    return {
        "num_samples": num_rows,
        "num_tokens": int(counts.sum(dtype=np.int64)),
        "digest": storage.file_digest(place),
    }


@lru_cache(1)
def _kept_tokenizer(place: str, digest: str) -> "Tokenizer":
    """The tokenizer of a job, read once a process."""
    return open_tokenizer(place)


def counts_name(split: Split, folder: str, number: int) -> str:
    """
    >>> counts_name("train", "carry", 7)
    'train/carry/000007.tokens.npy'
    """
    return f"{split}/{folder}/{number:06d}.tokens.npy"


def _manifest(
    shards: ShardSet, made_from: dict[str, Any], parts: Sequence[SkillShards], records: Sequence[Record]
) -> TokensManifest:
    columns = gathered(
        (
            ((part.skill, part.split), {"number": part.columns.number[0], **record})
            for part, record in zip(parts, records, strict=True)
        ),
        itertools.product((skill.name for skill in shards.manifest_skills), SPLITS),
        TokenColumns,
    )
    skills = [
        TokensSkill(
            name=skill.name,
            folder=skill.folder,
            num_train=sum(columns[skill.name, "train"]["num_tokens"]),
            num_holdout=sum(columns[skill.name, "holdout"]["num_tokens"]),
            train=TokenColumns(**columns[skill.name, "train"]),
            holdout=TokenColumns(**columns[skill.name, "holdout"]),
        )
        for skill in shards.manifest_skills
    ]
    return TokensManifest(
        made_from=made_from,
        shards=made_from["shards"],
        tokenizer=made_from["tokenizer"],
        special_tokens=made_from["arguments"]["special_tokens"],
        skills=skills,
        num_train=sum(skill.num_train for skill in skills),
        num_holdout=sum(skill.num_holdout for skill in skills),
    )


# --- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SkillTokens:
    """The token counts of one skill and split.

    Attributes:
        root: directory of the counts.
        skill: its name.
    """

    root: Path
    skill: str
    split: Split
    folder: str
    columns: TokenColumns
    _open: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        """One line: the skill, the split and their numbers."""
        tokens, samples = counted(sum(self.columns.num_tokens), "token"), counted(self.num_samples, "sample")
        return f"SkillTokens({self.skill!r} of {os.fspath(self.root)!r}: {self.split}, {tokens} in {samples})"

    @cached_property
    def shard_tokens(self) -> Int[np.ndarray, " shard"]:
        """Number of tokens of each shard, in the order of the shard set's manifest."""
        return np.array(self.columns.num_tokens, np.int64)

    @cached_property
    def num_tokens(self) -> int:
        return int(self.shard_tokens.sum())

    @property
    def num_samples(self) -> int:
        return sum(self.columns.num_samples)

    def rows(self, shard: int) -> np.ndarray:
        """Tokens of each row of a shard, uint32, memory-mapped; TokensError if the file is not as tokens.json says."""
        return kept(self._open, shard, self._open_checked, most=MAX_OPEN)

    def _open_checked(self, shard: int) -> np.ndarray:
        place = self.root / counts_name(self.split, self.folder, self.columns.number[shard])
        if not place.exists():
            raise TokensError(f"{place} is missing, but {MANIFEST} names it. {_ANEW}")
        found, expected = storage.file_digest(place), self.columns.digest[shard]
        if found != expected:
            raise TokensError(f"{place} has digest {found} but {MANIFEST} says {expected}: damaged or edited. {_ANEW}")
        counts: np.ndarray = np.load(place, mmap_mode="r")
        got = [len(counts), int(counts.sum(dtype=np.int64))]
        if got != (said := [self.columns.num_samples[shard], self.columns.num_tokens[shard]]):
            raise TokensError(
                f"{place} counts {got[1]:,} tokens in {got[0]:,} samples but {MANIFEST} says {said[1]:,} in {said[0]:,}: damaged or "
                f"edited. {_ANEW}"
            )
        return counts

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def verify(self) -> list[str]:
        """Every fault found by reading all counts: one sentence each."""
        faults = []
        for shard in range(len(self.columns.number)):
            try:
                self._open_checked(shard)
            except TokensError as error:
                faults.append(str(error))
        return faults


@dataclass(frozen=True)
class TokenCounts:
    """Finished token counts of a shard set.

    Attributes:
        root: their directory.
        manifest: what is in it.
        digest: digest of tokens.json, and so of everything.
    """

    root: Path
    manifest: TokensManifest
    digest: str

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> "TokenCounts":
        """Open token counts by their directory; TokensError if they are not finished or not token counts."""
        root = places.local_path(place)
        if not (root / MANIFEST).exists():
            raise TokensError(
                f"{root} holds no finished token counts: {MANIFEST} is not there. Run 'skillshard tokens' to its end."
            )
        storage.refuse_special(root / MANIFEST)
        raw = storage.read_bytes(root / MANIFEST)
        manifest = artefact.parse_manifest(
            raw, TokensManifest, place=root / MANIFEST, schema="tokens-1.json", error=TokensError, anew=_ANEW
        )
        return cls(root, manifest, canonical.digest(raw))

    @cached_property
    def train(self) -> dict[str, SkillTokens]:
        """The counts of each skill that has training shards, in the order of their names."""
        return self._split("train")

    @cached_property
    def holdout(self) -> dict[str, SkillTokens]:
        """The counts of each skill that has held-out shards."""
        return self._split("holdout")

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer that counted; TokensError if its file is not the one that did."""
        place = self.root / TOKENIZER
        if not place.exists():
            raise TokensError(f"{place} is missing. {_ANEW}")
        if (found := storage.file_digest(place)) != self.manifest.tokenizer:
            raise TokensError(
                f"{place} has digest {found} but {MANIFEST} says {self.manifest.tokenizer}: another tokenizer than the one that "
                f"counted. {_ANEW}"
            )
        return open_tokenizer(place)

    def token_id(self, token: str) -> int:
        """The id of a token by its text; TokensError if the tokenizer has none."""
        found = self.tokenizer.token_to_id(token)
        if found is None:
            special = [added.content for added in self.tokenizer.get_added_tokens_decoder().values()]
            raise TokensError(
                f"the tokenizer of {self.root} has no token {token!r}{did_you_mean(token, special)}; its special tokens are "
                f"{name_some(special) or 'none'}."
            )
        return found

    def refuse_other_shards(self, shards: ShardSet) -> None:
        """TokensError unless these are the counts of a shard set, or of the whole set that its skills were chosen from."""
        if self.manifest.shards not in (shards.digest, shards.whole_digest):
            raise TokensError(
                f"{self.root} counts the tokens of shards {self.manifest.shards}, but {places.public(shards.root)} is {shards.digest}. "
                "Count the tokens of these shards with 'skillshard tokens'."
            )

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "manifest": self.manifest, "digest": self.digest}

    def __repr__(self) -> str:
        """One line: the place and the numbers of skills and tokens."""
        manifest = self.manifest
        return (
            f"TokenCounts({os.fspath(self.root)!r}: {counted(len(manifest.skills), 'skill')}, {manifest.num_train:,} train + "
            f"{manifest.num_holdout:,} holdout tokens)"
        )

    def verify(self) -> list[str]:
        """Every fault found by reading all counts: one sentence each, nothing if all is well."""
        parts = [*self.train.values(), *self.holdout.values()]
        faults = []
        for number, part in enumerate(parts):
            advance(number, len(parts))
            faults += part.verify()
        totals = {"num_train": 0, "num_holdout": 0}
        for skill in self.manifest.skills:
            for split in SPLITS:
                got, said = sum(getattr(skill, split).num_tokens), getattr(skill, f"num_{split}")
                totals[f"num_{split}"] += got
                if got != said:
                    faults.append(
                        f"{MANIFEST} says skill {skill.name!r} has {said:,} {split} tokens, its shards make {got:,}: damaged or "
                        f"edited. {_ANEW}"
                    )
        for name, got in totals.items():
            if got != (said := getattr(self.manifest, name)):
                faults.append(
                    f"{MANIFEST} says {name} is {said:,}, its skills make {got:,}: damaged or edited. {_ANEW}"
                )
        try:
            _ = self.tokenizer
        except TokensError as error:
            faults.append(str(error))
        return faults

    def _split(self, split: Split) -> dict[str, SkillTokens]:
        return {
            skill.name: SkillTokens(self.root, skill.name, split, skill.folder, getattr(skill, split))
            for skill in self.manifest.skills
            if getattr(skill, split).number
        }
