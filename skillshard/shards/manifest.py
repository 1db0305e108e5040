"""What a shard set is on disk.

    S/train/SKILL/000000.tar         members KEY.txt (the text) and KEY.json (id, skill, meta); USTAR, mtime 0
    S/train/SKILL/000000.index.npy   per sample: where its text starts, bytes of text and of JSON
    S/holdout/SKILL/...              the same, for measuring losses
    S/rejected/000000.jsonl          samples that were set aside, with their reason
    S/manifest.json                  last (schemas/manifest-1.json)

Shards are columns in the manifest, one list per property, so that 100,000 of them open in a moment.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

MANIFEST = "manifest.json"
Split = Literal["train", "holdout"]
SPLITS: tuple[Split, Split] = ("train", "holdout")
INDEX_DTYPE = np.dtype([("text_start", "<u8"), ("text_bytes", "<u4"), ("json_bytes", "<u4")])
TAR_BLOCK = 512


class SampleMember(BaseModel):
    """The JSON member of a sample (KEY.json); its text is the member KEY.txt."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="the sample's id, as in the corpus")
    skill: str
    meta: dict[str, Any] = Field(description="whatever else the corpus says of the sample")


class ShardColumns(BaseModel):
    """The shards of one skill and split, one list per property, all of the same length."""

    model_config = ConfigDict(extra="forbid")

    number: list[int] = Field(description="the number in the file name; rising")
    num_samples: list[int]
    num_bytes: list[int] = Field(description="size of the tar")
    digest: list[str] = Field(description="xxh3 (128 bits) of the tar")
    index_digest: list[str] = Field(description="xxh3 (128 bits) of the index file")

    @model_validator(mode="after")
    def _same_length(self) -> "ShardColumns":
        lengths = {name: len(getattr(self, name)) for name in type(self).model_fields}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of shards differ in length: {lengths}")
        return self


class ManifestSkill(BaseModel):
    """One skill and its shards."""

    model_config = ConfigDict(extra="forbid")

    name: str
    folder: str = Field(pattern=r"^[a-z0-9-]+$", description="directory name under train/ and holdout/")
    train: ShardColumns
    holdout: ShardColumns


class Manifest(BaseModel):
    """manifest.json."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/manifest/1"] = Field("skillshard/manifest/1", alias="schema")
    made_from: dict[str, Any] = Field(
        description="command, arguments and inputs (names and sizes) that determine the bytes"
    )
    skills: list[ManifestSkill] = Field(description="in the order of their names")
    num_rows: int = Field(ge=0, description="rows of the corpus = num_train + num_holdout + those set aside")
    num_train: int = Field(ge=0)
    num_holdout: int = Field(ge=0)
    set_aside: dict[str, int] = Field(description="reason -> number of rows")


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


def padded(num_bytes: int) -> int:
    """Bytes that a tar member's content takes: whole blocks of 512.

    >>> padded(1), padded(512), padded(0)
    (512, 512, 0)
    """
    return -(-num_bytes // TAR_BLOCK) * TAR_BLOCK
