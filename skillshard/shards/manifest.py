"""What a shard set is on disk.

    S/train/SKILL/000000.tar         members KEY.txt (the text) and KEY.json (id, skill, meta); USTAR, mtime 0
    S/train/SKILL/000000.index.npy   per sample: where its text starts, bytes of text and of JSON
    S/holdout/SKILL/...              the same, for measuring losses
    S/rejected/000000.jsonl          samples that were set aside, with their reason
    S/manifest.json                  last (schemas/manifest-2.json)

Shards are columns in the manifest, one list per property, so that 100,000 of them open in a moment. A manifest of version 1 is still
read: its split goes by the hash of the id, so the same text may stand in train and in holdout.

Nothing in a manifest is believed before it is checked: lengths, signs, sums, names that stand twice, numbers that no shard can have.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

MANIFEST = "manifest.json"
Split = Literal["train", "holdout"]
SPLITS: tuple[Split, Split] = ("train", "holdout")
INDEX_DTYPE = np.dtype([("text_start", "<u8"), ("text_bytes", "<u4"), ("json_bytes", "<u4")])
TAR_BLOCK = 512
END_BYTES = 2 * TAR_BLOCK
"""The end of a tar."""
LEAST_SAMPLE_BYTES = 4 * TAR_BLOCK
"""Two headers, a text and a JSON of one block each."""
MAX_SHARDS = 10**8
MAX_SHARD_SAMPLES = 10**8
"""A key in a tar is eight digits for the shard and eight for the sample."""
MAX_SHARD_BYTES = 1 << 46
"""64 TiB, more than any file system of today takes for one file."""
MAX_MANIFEST_BYTES = 128 << 20
"""About 700,000 shards; 64 MB each, they hold 45 TB."""

Strict = ConfigDict(extra="forbid", strict=True)
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


Size = TypeVar("Size", int, np.ndarray)
Key = TypeVar("Key", bound=Hashable)


def whole_blocks(num_bytes: Size) -> Size:
    """Bytes that a member of a tar takes without its header: its size, rounded up to whole blocks.

    >>> whole_blocks(1), whole_blocks(np.array([0, 512, 513])).tolist()
    (512, [0, 512, 1024])
    """
    return -(-num_bytes // TAR_BLOCK) * TAR_BLOCK


def check_lengths(columns: BaseModel, what: str) -> None:
    """ValueError unless all columns have one length."""
    lengths = {name: len(getattr(columns, name)) for name in type(columns).model_fields}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of {what} differ in length: {lengths}")


def gathered(
    records: Iterable[tuple[Key, Mapping[str, Any]]], keys: Iterable[Key], columns: type[BaseModel]
) -> dict[Key, dict[str, list[Any]]]:
    """Records as columns: key -> name of a column -> its values, in the order of the records.

    Args:
        records: the key and the values of each record; other values than those of columns are left out.
        keys: every key; a key without records has empty columns.
        columns: its fields are the columns.
    """
    names = list(columns.model_fields)
    table: dict[Key, dict[str, list[Any]]] = {key: {name: [] for name in names} for key in keys}
    for key, record in records:
        for name in names:
            table[key][name].append(record[name])
    return table


class SampleMember(BaseModel):
    """The JSON member of a sample (KEY.json); its text is the member KEY.txt."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="the sample's id, as in the corpus")
    skill: str
    meta: dict[str, Any] = Field(description="whatever else the corpus says of the sample")


class ShardColumns(BaseModel):
    """The shards of one skill and split, one list per property, all of the same length."""

    model_config = Strict

    number: list[Annotated[int, Field(ge=0, lt=MAX_SHARDS)]] = Field(description="the number in the file name; rising")
    num_samples: list[Annotated[int, Field(ge=1, le=MAX_SHARD_SAMPLES)]]
    num_bytes: list[Annotated[int, Field(ge=1, le=MAX_SHARD_BYTES)]] = Field(description="size of the tar")
    digest: list[Digest] = Field(description="xxh3 (128 bits) of the tar")
    index_digest: list[Digest] = Field(description="xxh3 (128 bits) of the index file")

    @model_validator(mode="after")
    def _agree(self) -> "ShardColumns":
        check_lengths(self, "shards")
        number, num_samples, num_bytes = (
            np.array(column, np.int64) for column in (self.number, self.num_samples, self.num_bytes)
        )
        if (np.diff(number) <= 0).any():
            raise ValueError("the numbers of the shards do not rise")
        small = np.flatnonzero(num_bytes < num_samples * LEAST_SAMPLE_BYTES + END_BYTES).tolist()
        if small:
            raise ValueError(
                f"shard {self.number[small[0]]} of {self.num_bytes[small[0]]:,} bytes cannot hold {self.num_samples[small[0]]:,} samples"
            )
        return self


class ManifestSkill1(BaseModel):
    """One skill and its shards, in a manifest of version 1."""

    model_config = Strict

    name: str = Field(min_length=1)
    folder: str = Field(pattern=r"^[a-z0-9-]+$", description="directory name under train/ and holdout/")
    train: ShardColumns
    holdout: ShardColumns


class ManifestSkill(BaseModel):
    """One skill and its shards."""

    model_config = Strict

    name: str = Field(min_length=1)
    folder: str = Field(pattern=r"^[a-z0-9-]+$", description="directory name under train/ and holdout/")
    num_copies: Count = Field(
        description="its samples whose folded text stands earlier in the corpus, in any skill; whether kept or dropped"
    )
    train: ShardColumns
    holdout: ShardColumns


class SplitRule(BaseModel):
    """What decides whether a sample is held out: the hash of its text (xxh3, 128 bits, of the folded text; texts.py)."""

    model_config = Strict

    cut: Digest = Field(
        description="texts whose hash is below this one are held out, in all skills, but for the exceptions"
    )
    also_held_out: list[Digest] = Field(
        description="hashes of texts that are held out though they are not below the cut: the lowest of a skill that would have none; sorted"
    )
    kept_in_train: list[Digest] = Field(
        description="hashes of texts that are in train though they are below the cut: the highest of a skill that would have none; sorted"
    )

    @model_validator(mode="after")
    def _are_exceptions(self) -> "SplitRule":
        for name, is_below in (("also_held_out", False), ("kept_in_train", True)):
            texts = getattr(self, name)
            if texts != sorted(set(texts)):
                raise ValueError(f"the hashes of {name} are not sorted, or one stands there twice")
            if any((text < self.cut) != is_below for text in texts):
                raise ValueError(
                    f"{name} holds a hash {'above' if is_below else 'below'} the cut, which is no exception"
                )
        return self


SPLIT_BY_ID = (
    "These shards are of version 1: the hash of the id decided what is held out, so the same text may stand in train and in holdout. "
    "Shard the corpus anew in another directory to split it by the text."
)


class Manifest1(BaseModel):
    """manifest.json of version 1: samples are held out by the hash of their id, and copies are not counted."""

    model_config = Strict

    schema_version: Literal["skillshard/manifest/1"] = Field("skillshard/manifest/1", alias="schema")
    made_from: dict[str, Any] = Field(
        description="command, arguments and inputs (names and sizes) that determine the bytes"
    )
    skills: list[ManifestSkill1] = Field(description="in the order of their names")
    num_rows: Count = Field(description="rows of the corpus = num_train + num_holdout + those set aside")
    num_train: Count
    num_holdout: Count
    set_aside: dict[str, Count] = Field(description="reason -> number of rows")

    @property
    def unread(self) -> dict[str, int]:
        """In version 1 the rest of a file counted as one row of `set_aside`."""
        return {}

    @model_validator(mode="after")
    def _agree(self) -> "Manifest1":
        _check_totals(self)
        return self


class Manifest(BaseModel):
    """manifest.json."""

    model_config = Strict

    schema_version: Literal["skillshard/manifest/2"] = Field("skillshard/manifest/2", alias="schema")
    made_from: dict[str, Any] = Field(
        description="command, arguments and inputs (names and sizes) that determine the bytes"
    )
    split: SplitRule
    skills: list[ManifestSkill] = Field(description="in the order of their names")
    num_rows: Count = Field(description="rows of the corpus = num_train + num_holdout + those set aside")
    num_train: Count
    num_holdout: Count
    set_aside: dict[str, Count] = Field(description="reason -> number of rows; copies that were dropped are among them")
    unread: dict[str, Count] = Field(
        {},
        description="reason -> number of files of which the rest, or the whole, was set aside; none of it is in num_rows",
    )

    @model_validator(mode="after")
    def _agree(self) -> "Manifest":
        _check_totals(self)
        return self

    @property
    def num_copies(self) -> int:
        """Samples whose folded text stands earlier in the corpus, kept or dropped."""
        return sum(skill.num_copies for skill in self.skills)

    @property
    def copies_are_dropped(self) -> bool:
        """Whether the copies are set aside; otherwise they are in the shards."""
        return "copy" in self.set_aside


def _check_totals(manifest: Manifest | Manifest1) -> None:
    """ValueError if names or folders stand twice, or the counts are not those of the shards."""
    names = [skill.name for skill in manifest.skills]
    for name, following in pairwise(names):
        if name >= following:
            raise ValueError(
                f"skill {following!r} stands twice"
                if name == following
                else f"skill {following!r} stands after {name!r}"
            )
    folders = [skill.folder for skill in manifest.skills]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder, count in Counter(folders).items() if count > 1)
        raise ValueError(f"folder {twice!r} belongs to two skills")
    counts = {
        f"num_{split}": sum(sum(getattr(skill, split).num_samples) for skill in manifest.skills) for split in SPLITS
    }
    counts["num_rows"] = sum(counts.values()) + sum(manifest.set_aside.values())
    for count, got in counts.items():
        if got != (expected := getattr(manifest, count)):
            raise ValueError(f"{count} is {expected:,}, but its parts make {got:,}")


def shard_name(split: Split, folder: str, number: int) -> str:
    """
    >>> shard_name("train", "carry", 7)
    'train/carry/000007.tar'
    """
    return f"{split}/{folder}/{number:06d}.tar"


def index_name(tar_name: str) -> str:
    """
    >>> index_name("train/carry/000007.tar")
    'train/carry/000007.index.npy'
    """
    return f"{tar_name.removesuffix('.tar')}.index.npy"


def folder_names(skills: Sequence[str]) -> list[str]:
    """A directory name for each skill: lower-case ASCII letters, digits and dashes, distinct.

    >>> folder_names(["Question Answering", "question/answering", "漢字"])
    ['question-answering', 'question-answering-2', 'skill']
    """
    names: list[str] = []
    taken: set[str] = set()
    for skill in skills:
        base = re.sub(r"[^a-z0-9]+", "-", skill.lower()).strip("-")[:60].strip("-") or "skill"
        name = next(name for name in _numbered(base) if name not in taken)
        taken.add(name)
        names.append(name)
    return names


def _numbered(base: str) -> Iterable[str]:
    yield base
    number = 2
    while True:
        yield f"{base}-{number}"
        number += 1
