"""Token counts: the number of tokens of each sample of a shard set, by one tokenizer. The shards stay unchanged.

    T/train/SKILL/000000.tokens.npy   number of tokens of each row of train/SKILL/000000.tar, uint32
    T/holdout/SKILL/...               the same for the held-out samples
    T/tokenizer.json                  the tokenizer, as written by Hugging Face's `tokenizers`
    T/tokens.json                     written last (schemas/tokens-1.json)

With token counts the mixer can weigh tokens instead of samples. `mixing/packing.py` can find any block of the packed stream
without tokenizing the samples before the block. One task counts one shard. The files take 4 bytes per sample, about 0.4 % of the
size of texts of 1 kB. Counting costs one tokenization of all texts.

Truncation and padding of the tokenizer are turned off, so every token counts. A tokenizer with random merges (dropout) is refused.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, model_validator

from skillshard import artefact, canonical, places, storage
from skillshard.errors import TokensError, did_you_mean, name_some
from skillshard.execution import Backend, OnStage, Record, keyed, run, shown
from skillshard.extras import needed
from skillshard.memo import memoized
from skillshard.printable import counted
from skillshard.progress import advance
from skillshard.shards.manifest import SPLITS, Split, check_lengths, gathered
from skillshard.shards.read import MAX_OPEN, ShardSet, SkillShards

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MANIFEST = "tokens.json"
TOKENIZER = "tokenizer.json"
STAGES = ("count",)
"""The stage of tasks."""
# About a quarter of a megabyte of texts: enough that the cost of a call does not count, and little memory.
TEXTS_AT_ONCE = 256
"""Number of texts that the tokenizer gets in one call."""
_ANEW = "Count anew in another directory with 'skillshard tokens'."


class TokenColumns(BaseModel):
    """Counts of one skill and split, one list for each property, with the shards in the order of the shard set's manifest."""

    model_config = ConfigDict(extra="forbid")

    number: list[int] = Field(description="Number in the file name of the shard.")
    num_samples: list[int]
    num_tokens: list[int]
    digest: list[str] = Field(description="xxh3 (128 bits) of the file of counts.")

    @model_validator(mode="after")
    def _same_length(self) -> "TokenColumns":
        check_lengths(self, "counts")
        return self


class TokensSkill(BaseModel):
    """Skill with its token counts."""

    model_config = ConfigDict(extra="forbid")

    name: str
    folder: str = Field(pattern=r"^[a-z0-9-]+$", description="Directory name under train/ and holdout/.")
    num_train: int = Field(ge=0, description="Number of tokens of the training samples.")
    num_holdout: int = Field(ge=0, description="Number of tokens of the held-out samples.")
    train: TokenColumns
    holdout: TokenColumns


class TokensManifest(BaseModel):
    """tokens.json."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/tokens/1"] = Field("skillshard/tokens/1", alias="schema")
    made_from: dict[str, Any] = Field(description="Command, arguments and digests of the inputs.")
    shards: str = Field(description="Digest of the shard set's manifest.")
    tokenizer: str = Field(description="Digest of tokenizer.json.")
    special_tokens: bool = Field(
        description="Whether the tokenizer's special tokens are added to each sample and counted."
    )
    skills: list[TokensSkill] = Field(description="Skills in the order of their names.")
    num_train: int = Field(ge=0, description="Number of tokens of all training samples.")
    num_holdout: int = Field(ge=0, description="Number of tokens of all held-out samples.")


# --- the tokenizer -----------------------------------------------------------------------------------------------------


def open_tokenizer(source: "str | os.PathLike[str] | Tokenizer") -> "Tokenizer":
    """Open a tokenizer from its file, or copy a tokenizer, and turn truncation and padding off.

    Args:
        source: Path or URI of a tokenizer.json, or a `tokenizers.Tokenizer`, which stays unchanged.

    Raises:
        TokensError: The file is not a tokenizer, or the tokenizer merges at random.
        ExtraError: The package `tokenizers` is not installed.
        StorageError: The file cannot be read.
    """
    needed("tokens", what="A tokenizer")
    from tokenizers import Tokenizer

    name = "the tokenizer" if isinstance(source, Tokenizer) else places.public(source)
    text = source.to_str() if isinstance(source, Tokenizer) else _tokenizer_text(source)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing narrower
        raise TokensError(
            f"{name} is no tokenizer of Hugging Face's tokenizers: {error}. Give a tokenizer.json that tokenizer.save() or "
            "save_pretrained() of a fast tokenizer wrote."
        ) from error
    if getattr(tokenizer.model, "dropout", None):
        raise TokensError(
            f"{name} merges at random (dropout {tokenizer.model.dropout}), so a text has no fixed number of tokens. Set "
            "model.dropout to null in a copy of the file."
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _tokenizer_text(place: str | os.PathLike[str]) -> str:
    if os.path.isdir(place):
        raise TokensError(f"{places.public(place)} is a directory. Give the tokenizer.json in this directory.")
    try:
        return storage.read_bytes(place).decode()
    except UnicodeDecodeError as error:
        raise TokensError(f"{places.public(place)} is not text, and so no tokenizer.json: {error}.") from error


def encode(
    tokenizer: "Tokenizer",
    texts: Sequence[str],
    *,
    special_tokens: bool,
    name_of: Callable[[int], str] = lambda index: f"text {index}",
) -> list[list[int]]:
    """Return the token ids of each text.

    Args:
        tokenizer: Tokenizer from `open_tokenizer`.
        texts: Texts to encode.
        special_tokens: Whether the tokenizer adds its special tokens to each text.
        name_of: Function that names the text with a given index in an error.

    Raises:
        TokensError: The tokenizer has no token for a part of a text, and no unknown token.

    The function runs in one thread unless the environment sets TOKENIZERS_PARALLELISM. The workers of a job or a loader already run
    in parallel, and threads from before a fork would be missing in the child.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ids = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = list(texts[start : start + TEXTS_AT_ONCE])
        try:
            # The fast variant does not compute offsets, which only `encode_with_offsets` needs.
            ids += [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=special_tokens)]
        except Exception as error:  # the package raises nothing narrower
            raise TokensError(_untokenized(tokenizer, batch, start, name_of, str(error))) from error
    return ids


def _untokenized(
    tokenizer: "Tokenizer", texts: Sequence[str], start: int, name_of: Callable[[int], str], reason: str
) -> str:
    """Return the error for the first text of a batch that the tokenizer cannot encode.

    Args:
        tokenizer: Tokenizer that failed on the batch.
        texts: Texts of the batch.
        start: Index of the first text of the batch.
        name_of: Function that names the text with a given index.
        reason: Reason of the failure on the batch, used if each text alone can be encoded.
    """
    # An error on a batch does not say which text is at fault, so each text is tried by itself.
    name = "a text"
    for index, text in enumerate(texts, start=start):
        try:
            tokenizer.encode(text)
        except Exception as error:  # the package raises nothing narrower
            name, reason = name_of(index), str(error)
            break
    return (
        f"{name} cannot be encoded by the tokenizer: {reason.rstrip('.')}. Give a tokenizer with an unknown token, or a tokenizer that "
        "falls back to bytes."
    )


def encode_with_offsets(
    tokenizer: "Tokenizer", texts: Sequence[str], *, special_tokens: bool
) -> "list[tuple[list[int], Int[np.ndarray, 'token 2']]]":
    """Return the token ids of each text, and the characters of the text at which each token starts and ends.

    A special token starts and ends at 0. Arguments and errors are as in `encode`.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    encoded = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = list(texts[start : start + TEXTS_AT_ONCE])
        try:
            encodings = tokenizer.encode_batch(batch, add_special_tokens=special_tokens)
        except Exception as error:  # the package raises nothing narrower
            raise TokensError(
                _untokenized(tokenizer, batch, start, lambda index: f"text {index}", str(error))
            ) from error
        for encoding in encodings:
            encoded.append((encoding.ids, np.array(encoding.offsets, np.int64).reshape(-1, 2)))
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
    """Count the tokens of every sample.

    An interrupted run is continued. Finished counts are only opened.

    Args:
        shards: Shard set, local or remote.
        tokenizer: Path or URI of a tokenizer.json, or a `tokenizers.Tokenizer`.
        out: Directory for the counts, local or in a store.
        special_tokens: Whether the tokenizer adds its special tokens, such as [CLS] and [SEP], to each sample. The packed stream
            then has the special tokens too.
        backend: Local pool of processes or Ray. The bytes are the same.
        on_stage: Function that is called with the name of a stage and the number of its tasks. The returned function is called
            for each finished task. With None, progress bars appear in a terminal or a notebook.
        progress: Whether progress bars are shown.

    Returns:
        The finished token counts, opened.

    Raises:
        TokensError: The tokenizer cannot be used.
        ShardError: A shard differs from its entry in the manifest.
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
        artefact.make(
            out,
            MANIFEST,
            made_from,
            lambda work: _count(shards, content, work, made_from, backend, stages),
            keep_unfinished_files=backend.array_part is not None,
        )
    return TokenCounts.open(out)


def _count(
    shards: ShardSet,
    tokenizer: bytes,
    work: artefact.Work,
    made_from: dict[str, Any],
    backend: Backend,
    on_stage: OnStage,
) -> None:
    storage.write_bytes(work.place(TOKENIZER), tokenizer)  # before the tasks, which read the tokenizer from this file
    parts = list(_parts(shards))
    tasks = keyed(
        (
            {
                "shards": part,
                "tokenizer": work.place(TOKENIZER),
                "tokenizer_digest": made_from["tokenizer"],
                "special_tokens": made_from["arguments"]["special_tokens"],
                "place": work.place(counts_name(part.split, part.folder, part.columns.number[0])),
            }
            for part in parts
        ),
        about=(part.name(0) for part in parts),
    )
    records = run(
        count_shard, tasks, backend=backend, records=work.records("count"), on_done=on_stage("counting", len(tasks))
    )
    work.finish(_manifest(shards, made_from, parts, records).model_dump(by_alias=True))


def _parts(shards: ShardSet) -> Iterator[SkillShards]:
    """Yield each shard of each skill by itself."""
    for split in SPLITS:
        for skill_shards in (shards.train if split == "train" else shards.holdout).values():
            yield from skill_shards.each()


def count_shard(shards: SkillShards, tokenizer: str, tokenizer_digest: str, special_tokens: bool, place: str) -> Record:
    """Count the tokens of one shard's samples.

    Args:
        shards: Shards of a skill, with a single shard.
        tokenizer: File of the tokenizer.
        tokenizer_digest: Digest of the file. Another tokenizer makes another task, so records are not reused for it.
        special_tokens: Whether the tokenizer adds its special tokens.
        place: File for the counts.
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
            name_of=lambda index, start=start: f"{shards.name(0)}: sample {opened.sample(start + index).id!r}",  # type: ignore[misc]
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
    """Return the tokenizer of a job, read once per process. The digest is the key, because a file can change."""
    return open_tokenizer(place)


def counts_name(split: Split, folder: str, number: int) -> str:
    """Return the path of a shard's counts inside the directory of the counts.

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
    """Token counts of one skill and split.

    Attributes:
        root: Directory of the counts.
        skill: Name of the skill.
        split: "train" or "holdout".
        folder: Name of the skill's directory.
        columns: Counts as in tokens.json.
    """

    root: str
    skill: str
    split: Split
    folder: str
    columns: TokenColumns
    _open: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        """Return one line with the skill, the split and the numbers."""
        tokens, samples = counted(sum(self.columns.num_tokens), "token"), counted(self.num_samples, "sample")
        return f"SkillTokens({self.skill!r} of {places.public(self.root)!r}: {self.split}, {tokens} in {samples})"

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
        """Return the number of tokens of each row of a shard, uint32, memory-mapped.

        Raises:
            TokensError: The file differs from its entry in tokens.json.
        """
        return memoized(self._open, shard, self._open_checked, most=MAX_OPEN)

    def _open_checked(self, shard: int) -> np.ndarray:
        place = places.join(self.root, counts_name(self.split, self.folder, self.columns.number[shard]))
        shown = places.public(place)
        if not storage.exists(place):
            raise TokensError(f"{shown} is missing, but {MANIFEST} names it. {_ANEW}")
        digest, expected_digest = storage.file_digest(place), self.columns.digest[shard]
        if digest != expected_digest:
            raise TokensError(
                f"{shown} has digest {digest} but {MANIFEST} says {expected_digest}: damaged or edited. {_ANEW}"
            )
        counts: np.ndarray = storage.load_array(place)
        # The digest says that the file is whole. tokens.json itself may be edited, so its numbers are compared too.
        got = [len(counts), int(counts.sum(dtype=np.int64))]
        if got != (expected := [self.columns.num_samples[shard], self.columns.num_tokens[shard]]):
            raise TokensError(
                f"{shown} counts {got[1]:,} tokens in {got[0]:,} samples but {MANIFEST} says {expected[1]:,} in {expected[0]:,}: damaged "
                f"or edited. {_ANEW}"
            )
        return counts

    def __getstate__(self) -> dict[str, object]:
        # Memory maps cannot be pickled. Another process maps and checks the files itself.
        return {**self.__dict__, "_open": {}}

    def verify(self) -> list[str]:
        """Read all counts and return one sentence for each fault."""
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
        root: Directory or URI of the counts.
        manifest: Content of tokens.json.
        digest: Digest of tokens.json. tokens.json has the digests of all files, so this digest stands for all bytes.
    """

    root: str
    manifest: TokensManifest
    digest: str

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> "TokenCounts":
        """Open token counts by their directory or URI.

        Raises:
            TokensError: The counts are not finished, or the directory holds no token counts.
        """
        root = os.fspath(place) if places.is_remote(place) else str(places.local_path(place))
        manifest_place = places.join(root, MANIFEST)
        if not storage.exists(manifest_place):
            raise TokensError(
                f"{places.public(root)} holds no finished token counts: {MANIFEST} is not there. Run 'skillshard tokens' to its end."
            )
        if not places.is_remote(root):
            storage.refuse_special(manifest_place)
        raw = storage.read_bytes(manifest_place)
        manifest = artefact.parse_manifest(
            raw,
            TokensManifest,
            place=places.public(manifest_place),
            schema="tokens-1.json",
            error=TokensError,
            anew=_ANEW,
        )
        return cls(root, manifest, canonical.digest(raw))

    @cached_property
    def train(self) -> dict[str, SkillTokens]:
        """Counts of each skill with training shards, in the order of the names."""
        return self._split("train")

    @cached_property
    def holdout(self) -> dict[str, SkillTokens]:
        """Counts of each skill with held-out shards."""
        return self._split("holdout")

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """Tokenizer of the counts.

        Raises:
            TokensError: The file is missing, or holds another tokenizer than the tokenizer of the counts.
        """
        place = places.join(self.root, TOKENIZER)
        if not storage.exists(place):
            raise TokensError(f"{places.public(place)} is missing. {_ANEW}")
        if (digest := storage.file_digest(place)) != self.manifest.tokenizer:
            raise TokensError(
                f"{places.public(place)} has digest {digest} but {MANIFEST} says {self.manifest.tokenizer}: not the tokenizer of the counts. {_ANEW}"
            )
        return open_tokenizer(place)

    def token_id(self, token: str) -> int:
        """Return the id of a token by its text.

        Raises:
            TokensError: The tokenizer has no token with this text.
        """
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            special = [added.content for added in self.tokenizer.get_added_tokens_decoder().values()]
            raise TokensError(
                f"the tokenizer of {places.public(self.root)} has no token {token!r}{did_you_mean(token, special)}; its special tokens are "
                f"{name_some(special) or 'none'}."
            )
        return token_id

    def refuse_other_shards(self, shards: ShardSet) -> None:
        """Raise TokensError unless the counts belong to a shard set, or to the whole set behind a chosen set."""
        if self.manifest.shards not in (shards.digest, shards.whole_digest):
            raise TokensError(
                f"{places.public(self.root)} counts the tokens of shards {self.manifest.shards}, but {places.public(shards.root)} is {shards.digest}. "
                "Count the tokens of these shards with 'skillshard tokens'."
            )

    def __getstate__(self) -> dict[str, object]:
        # Without the cached counts and tokenizer: another process opens its own.
        return {"root": self.root, "manifest": self.manifest, "digest": self.digest}

    def __repr__(self) -> str:
        """Return one line with the place and the numbers of skills and tokens."""
        manifest = self.manifest
        return (
            f"TokenCounts({places.public(self.root)!r}: {counted(len(manifest.skills), 'skill')}, {manifest.num_train:,} train + "
            f"{manifest.num_holdout:,} holdout tokens)"
        )

    def verify(self) -> list[str]:
        """Read all counts and return one sentence for each fault, or an empty list."""
        parts = [*self.train.values(), *self.holdout.values()]
        faults = []
        for number, part in enumerate(parts):
            advance(number, len(parts))
            faults += part.verify()
        totals = {"num_train": 0, "num_holdout": 0}
        for skill in self.manifest.skills:
            for split in SPLITS:
                got, expected = sum(getattr(skill, split).num_tokens), getattr(skill, f"num_{split}")
                totals[f"num_{split}"] += got
                if got != expected:
                    faults.append(
                        f"{MANIFEST} says skill {skill.name!r} has {expected:,} {split} tokens, but its shards have {got:,}: damaged or "
                        f"edited. {_ANEW}"
                    )
        for name, got in totals.items():
            if got != (expected := getattr(self.manifest, name)):
                faults.append(
                    f"{MANIFEST} says {name} is {expected:,}, but its skills have {got:,}: damaged or edited. {_ANEW}"
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
