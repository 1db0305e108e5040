"""The format of a shard set on disk.

    S/train/SKILL/000000.tar         members KEY.txt (the text) and KEY.json (id, skill, meta); USTAR, mtime 0; layouts.py has both layouts
    S/train/SKILL/000000.index.npy   for each sample: start of the text, bytes of the text, bytes of the JSON; compact: start of the JSON
    S/train/SKILL/000000.keys.npy    for each sample: hashes of id and text, file and row in the corpus, dtype `KEYS_DTYPE`
    S/holdout/SKILL/...              the same files for the held-out samples
    S/rejected/000000.jsonl          samples that were set aside, with their reasons
    S/manifest.json                  written last (schemas/manifest-3.json or manifest-4.json)

The manifest lists shards as columns, one list for each property, because 100,000 objects would open slowly. A set that one command wrote
in the layout `pairs` has version 3. A compact set, and a set with appended shards, has version 4. Manifests of versions 1 and 2 are still read. Their shards have no keys. Version 1 splits by the hash of the id, so the same text may stand in both train and
holdout. No mixer reads the keys. The keys tell another command which samples a shard holds, without a parse of the tars.

A reader checks a manifest before use: lengths, signs, sums, repeated names, and numbers that no shard can have.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from skillshard import canonical
from skillshard.corpus.recorded import check_shards
from skillshard.errors import ShardError

MANIFEST = "manifest.json"
ANEW = "Write the shards anew in another directory with 'skillshard shard', or copy this file again."
Split = Literal["train", "holdout"]
SPLITS: tuple[Split, Split] = ("train", "holdout")
Layout = Literal["pairs", "compact"]
"""Layout of the members in the tars of a shard set (layouts.py)."""
INDEX_DTYPE = np.dtype([("text_start", "<u8"), ("text_bytes", "<u4"), ("json_bytes", "<u4")])
# xxh3 (64 bits) of the id, as `hash_ranges.id_hash`, and xxh3 (128 bits) of the folded text, as `texts.text_hash`. The entries have the order of
# the samples, so the hashes of the ids rise. A multiple of 8 bytes keeps the fields aligned in a memory map.
KEYS_DTYPE = np.dtype([("id", "<u8"), ("row", "<u8"), ("file", "<u8"), ("text", "S16")])
"""Keys of a sample: the hash of the id; row of the corpus file, rows that were set aside included; number of the file in `made_from.inputs`;
the hash of the folded text."""
# POSIX: a tar consists of blocks of 512 bytes and ends with two blocks of zeros.
TAR_BLOCK = 512
END_BYTES = 2 * TAR_BLOCK
"""Bytes of the end mark of a tar."""
# Two headers, a text and a JSON of one block each. In the compact layout, a header and a text of one block.
LEAST_SAMPLE_BYTES: dict[Layout, int] = {"pairs": 4 * TAR_BLOCK, "compact": 2 * TAR_BLOCK}
"""Bytes in a tar of the smallest possible sample, by layout."""
# A key in a tar has eight digits for the shard and eight digits for the sample.
MAX_SHARDS = 10**8
"""Limit of the number of shards of a shard set."""
MAX_SHARD_SAMPLES = 10**8
"""Largest number of samples of a shard."""
# Each edition is a place that a reader looks for files in. A daily append for 25 years stays below the limit.
MAX_EDITIONS = 10_000
"""Largest number of editions of a shard set."""
# 64 TiB, more than present file systems allow for one file.
MAX_SHARD_BYTES = 1 << 46
"""Largest size of a shard, in bytes."""
# About 700,000 shards. With 64 MB in each, the shards hold 45 TB.
MAX_MANIFEST_BYTES = 128 << 20
"""Largest size of a manifest, in bytes."""

# Strict: a number as a string, or a field with a spelling mistake, is an error and is not converted or skipped.
Strict = ConfigDict(extra="forbid", strict=True)
# A sum of two counts still fits into a signed 64-bit integer.
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


Size = TypeVar("Size", int, np.ndarray)
Key = TypeVar("Key", bound=Hashable)


def whole_blocks(num_bytes: Size) -> Size:
    """Return the bytes of a tar member without its header: the size, rounded up to whole blocks.

    >>> whole_blocks(1), whole_blocks(np.array([0, 512, 513])).tolist()
    (512, [0, 512, 1024])
    """
    return -(-num_bytes // TAR_BLOCK) * TAR_BLOCK


def check_lengths(columns: BaseModel, what: str) -> None:
    """Raise ValueError unless all columns have the same length."""
    lengths = {name: len(getattr(columns, name)) for name in type(columns).model_fields}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of {what} differ in length: {lengths}")


def gathered(
    records: Iterable[tuple[Key, Mapping[str, Any]]], keys: Iterable[Key], columns: type[BaseModel]
) -> dict[Key, dict[str, list[Any]]]:
    """Turn records into columns: key -> name of a column -> values, in the order of the records.

    Args:
        records: Key and values of each record. Values without a column are ignored.
        keys: All keys. A key without records gets empty columns.
        columns: Model with a field for each column.
    """
    names = list(columns.model_fields)
    table: dict[Key, dict[str, list[Any]]] = {key: {name: [] for name in names} for key in keys}
    for key, record in records:
        for name in names:
            table[key][name].append(record[name])
    return table


class SampleMember(BaseModel):
    """JSON member of a sample (KEY.json). The text is the member KEY.txt."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="Id of the sample, as in the corpus.")
    skill: str
    meta: dict[str, Any] = Field(description="All other values of the sample in the corpus.")


class ShardColumns2(BaseModel):
    """Shards of one skill and split, one list for each property, all of the same length. Versions 1 and 2 have no keys."""

    model_config = Strict
    least_sample_bytes: ClassVar[int] = LEAST_SAMPLE_BYTES["pairs"]

    number: list[Annotated[int, Field(ge=0, lt=MAX_SHARDS)]] = Field(description="Number in the file name, rising.")
    num_samples: list[Annotated[int, Field(ge=1, le=MAX_SHARD_SAMPLES)]]
    num_bytes: list[Annotated[int, Field(ge=1, le=MAX_SHARD_BYTES)]] = Field(description="Size of the tar, in bytes.")
    digest: list[Digest] = Field(description="xxh3 (128 bits) of the tar.")
    index_digest: list[Digest] = Field(description="xxh3 (128 bits) of the index file.")

    @model_validator(mode="after")
    def _agree(self) -> "ShardColumns2":
        check_lengths(self, "shards")
        number, num_samples, num_bytes = (
            np.array(column, np.int64) for column in (self.number, self.num_samples, self.num_bytes)
        )
        if (np.diff(number) <= 0).any():
            raise ValueError("the numbers of the shards do not rise")
        small = np.flatnonzero(num_bytes < num_samples * self.least_sample_bytes + END_BYTES).tolist()
        if small:
            raise ValueError(
                f"shard {self.number[small[0]]} of {self.num_bytes[small[0]]:,} bytes cannot hold {self.num_samples[small[0]]:,} samples"
            )
        return self


class ShardColumns(ShardColumns2):
    """Shards of one skill and split, one list for each property, all of the same length."""

    keys_digest: list[Digest] = Field(description="xxh3 (128 bits) of the file of keys.")


class ShardColumns4(ShardColumns):
    """Shards of one skill and split, one list for each property, all of the same length."""

    least_sample_bytes: ClassVar[int] = LEAST_SAMPLE_BYTES["compact"]
    edition: list[Annotated[int, Field(ge=0, lt=MAX_EDITIONS)]] = Field(
        description="Number of the edition, never falling: the position in `earlier`, or the length of `earlier` for shards of this directory."
    )

    @model_validator(mode="after")
    def _editions_rise(self) -> "ShardColumns4":
        if (np.diff(np.array(self.edition, np.int64)) < 0).any():
            raise ValueError("a shard of an earlier edition stands after a shard of a later edition")
        return self


class ManifestSkill1(BaseModel):
    """Skill with its shards, in a manifest of version 1."""

    model_config = Strict

    name: str = Field(min_length=1)
    folder: str = Field(pattern=r"^[a-z0-9-]+$", description="Directory name under train/ and holdout/.")
    train: ShardColumns2
    holdout: ShardColumns2


class ManifestSkill2(BaseModel):
    """Skill with its shards, in a manifest of version 2."""

    model_config = Strict

    name: str = Field(min_length=1)
    folder: str = Field(pattern=r"^[a-z0-9-]+$", description="Directory name under train/ and holdout/.")
    num_copies: Count = Field(
        description="Number of samples whose folded text stands earlier in the corpus, in any skill, kept or dropped."
    )
    train: ShardColumns2
    holdout: ShardColumns2


class ManifestSkill(ManifestSkill2):
    """Skill with its shards."""

    train: ShardColumns
    holdout: ShardColumns


class ManifestSkill4(ManifestSkill2):
    """Skill with its shards, in a manifest of version 4."""

    train: ShardColumns4
    holdout: ShardColumns4


class Edition(BaseModel):
    """Shard set that a later set continues."""

    model_config = Strict

    place: str = Field(
        min_length=1, description="Directory or URI. A relative path begins in the directory of this manifest."
    )
    digest: Digest = Field(description="xxh3 (128 bits) of the manifest.json of that set.")


class SplitRule(BaseModel):
    """Rule for holding out samples by the hash of the folded text (xxh3, 128 bits)."""

    model_config = Strict

    cut: Digest = Field(
        description="Hash of the cut. Texts with a smaller hash are held out in all skills, apart from the two lists."
    )
    also_held_out: list[Digest] = Field(
        description="Sorted hashes of texts at or above the cut that are held out: the lowest of a skill without another held-out text."
    )
    kept_in_train: list[Digest] = Field(
        description="Sorted hashes of texts below the cut that are in train: the highest of a skill without another text in train."
    )

    @model_validator(mode="after")
    def _are_exceptions(self) -> "SplitRule":
        for name, is_below in (("also_held_out", False), ("kept_in_train", True)):
            texts = getattr(self, name)
            if texts != sorted(set(texts)):
                raise ValueError(f"the hashes of {name} are not sorted, or a hash is listed twice")
            if any((text < self.cut) != is_below for text in texts):
                raise ValueError(
                    f"{name} holds a hash {'above' if is_below else 'below'} the cut, but such a text is no exception"
                )
        return self


SPLIT_BY_ID = (
    "These shards are of version 1: the hash of the id decided the split, so the same text may stand in both train and holdout. "
    "Shard the corpus anew in another directory to split by the text."
)
"""Warning about a manifest of version 1."""


MadeFrom = Annotated[dict[str, Any], AfterValidator(check_shards)]
"""Facts that determine the bytes of an artefact."""


class Manifest1(BaseModel):
    """manifest.json of version 1. The hash of the id decides the split, and copies are not counted."""

    model_config = Strict

    schema_version: Literal["skillshard/manifest/1"] = Field("skillshard/manifest/1", alias="schema")
    made_from: MadeFrom = Field(description="Command, arguments and inputs (names and sizes) that determine the bytes.")
    skills: list[ManifestSkill1] = Field(description="Skills in the order of their names.")
    num_rows: Count = Field(description="Rows of the corpus: num_train + num_holdout + rows set aside.")
    num_train: Count
    num_holdout: Count
    set_aside: dict[str, Count] = Field(description="Reason -> number of rows.")

    @property
    def unread(self) -> dict[str, int]:
        """Empty, because version 1 counted the rest of a file as one row of `set_aside`."""
        return {}

    @model_validator(mode="after")
    def _agree(self) -> "Manifest1":
        totals = {"num_train": self.num_train, "num_holdout": self.num_holdout, "num_rows": self.num_rows}
        _check_totals(self.skills, self.set_aside, totals)
        return self


Skill = TypeVar("Skill", bound=ManifestSkill2)


class _SplitByText(BaseModel, Generic[Skill]):
    """Content of manifest.json since version 2."""

    model_config = Strict

    schema_version: str
    made_from: MadeFrom = Field(description="Command, arguments and inputs (names and sizes) that determine the bytes.")
    split: SplitRule
    skills: list[Skill] = Field(description="Skills in the order of their names.")
    num_rows: Count = Field(description="Rows of the corpus: num_train + num_holdout + rows set aside.")
    num_train: Count
    num_holdout: Count
    set_aside: dict[str, Count] = Field(description="Reason -> number of rows, dropped copies included.")
    unread: dict[str, Count] = Field(
        {},
        description="Reason -> number of files set aside wholly or from some place on. num_rows does not count the unread rows.",
    )

    @model_validator(mode="after")
    def _agree(self) -> "_SplitByText[Skill]":
        totals = {"num_train": self.num_train, "num_holdout": self.num_holdout, "num_rows": self.num_rows}
        _check_totals(self.skills, self.set_aside, totals)
        return self

    @property
    def num_copies(self) -> int:
        """Number of samples whose folded text stands earlier in the corpus, kept or dropped."""
        return sum(skill.num_copies for skill in self.skills)

    @property
    def copies_are_dropped(self) -> bool:
        """Whether the copies are set aside. Otherwise the copies are in the shards."""
        return "copy" in self.set_aside


class Manifest2(_SplitByText[ManifestSkill2]):
    """manifest.json of version 2. The shards have no keys."""

    schema_version: Literal["skillshard/manifest/2"] = Field("skillshard/manifest/2", alias="schema")


class Manifest(_SplitByText[ManifestSkill]):
    """manifest.json."""

    schema_version: Literal["skillshard/manifest/3"] = Field("skillshard/manifest/3", alias="schema")
    made_from: MadeFrom = Field(
        description="Command, arguments and inputs (names and sizes) that determine the bytes. The keys give a file as its position in inputs."
    )


class Manifest4(_SplitByText[ManifestSkill4]):
    """manifest.json of version 4: shards in the compact layout, or shards appended to earlier shards."""

    schema_version: Literal["skillshard/manifest/4"] = Field("skillshard/manifest/4", alias="schema")
    made_from: MadeFrom = Field(
        description="Command, arguments and inputs (names and sizes) that determine the shards of this directory. The keys give a file as its "
        "position in the inputs of the shard's edition."
    )
    layout: Layout = Field(description="Layout of the members in every tar.")
    earlier: list[Edition] = Field(
        max_length=MAX_EDITIONS - 1,
        description="Shard sets that this set continues, the oldest first. The last one is the parent. Counts include their samples.",
    )

    @model_validator(mode="after")
    def _has_editions(self) -> "Manifest4":
        for skill in self.skills:
            for split in SPLITS:
                editions = getattr(skill, split).edition
                if editions and editions[-1] > len(self.earlier):
                    raise ValueError(
                        f"skill {skill.name!r} has a shard of edition {editions[-1]}, but only {len(self.earlier)} sets are earlier"
                    )
        return self


AnyManifest = Manifest4 | Manifest | Manifest2 | Manifest1
"""Manifest of any version that is read."""


def _check_totals(
    skills: Sequence[ManifestSkill1 | ManifestSkill2], set_aside: Mapping[str, int], totals: Mapping[str, int]
) -> None:
    """Raise ValueError if a name or folder is repeated, or if a total differs from the sum over the shards.

    Args:
        skills: Skills of the manifest.
        set_aside: Reason -> number of rows.
        totals: num_train, num_holdout and num_rows of the manifest.
    """
    # Rising names are also distinct. Readers use this order as the axis of skills.
    names = [skill.name for skill in skills]
    for name, following in pairwise(names):
        if name >= following:
            raise ValueError(
                f"skill {following!r} stands twice"
                if name == following
                else f"skill {following!r} stands after {name!r}"
            )
    folders = [skill.folder for skill in skills]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder, count in Counter(folders).items() if count > 1)
        raise ValueError(f"folder {twice!r} belongs to two skills")
    counts = {f"num_{split}": sum(sum(getattr(skill, split).num_samples) for skill in skills) for split in SPLITS}
    counts["num_rows"] = sum(counts.values()) + sum(set_aside.values())
    for count, got in counts.items():
        if got != (expected := totals[count]):
            raise ValueError(f"{count} is {expected:,}, but its parts make {got:,}")


def shard_name(split: Split, folder: str, number: int) -> str:
    """Return the path of a shard's tar inside the shard set.

    >>> shard_name("train", "carry", 7)
    'train/carry/000007.tar'
    """
    return f"{split}/{folder}/{number:06d}.tar"


def index_name(tar_name: str) -> str:
    """Return the path of the index that belongs to a tar.

    >>> index_name("train/carry/000007.tar")
    'train/carry/000007.index.npy'
    """
    return f"{tar_name.removesuffix('.tar')}.index.npy"


def keys_name(tar_name: str) -> str:
    """Return the path of the keys that belong to a tar.

    >>> keys_name("train/carry/000007.tar")
    'train/carry/000007.keys.npy'
    """
    return f"{tar_name.removesuffix('.tar')}.keys.npy"


def folder_names(skills: Sequence[str], before: Mapping[str, str] = {}) -> list[str]:
    """Return a distinct directory name for each skill, of lower-case ASCII letters, digits and dashes.

    Args:
        skills: Names of the skills.
        before: Skill -> name of its directory, for skills that have a directory already.

    >>> folder_names(["a b", "a/b"], {"a/b": "a-b"})
    ['a-b-2', 'a-b']
    >>> folder_names(["Question Answering", "question/answering", "漢字"])
    ['question-answering', 'question-answering-2', 'skill']
    """
    names: list[str] = []
    taken = set(before.values())
    for skill in skills:
        if skill in before:
            names.append(before[skill])
            continue
        # 60 characters leave room for a number within the 255 bytes that file systems allow for a name.
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


def manifest_of(raw: bytes, shown: str) -> AnyManifest:
    """Parse a manifest of version 3, or of another version if its schema says so."""
    value = canonical.from_json(raw, shown)
    schema = value.get("schema") if isinstance(value, dict) else None
    others: dict[str, tuple[int, type[AnyManifest]]] = {
        "skillshard/manifest/1": (1, Manifest1),
        "skillshard/manifest/2": (2, Manifest2),
        "skillshard/manifest/4": (4, Manifest4),
    }
    version, model = others.get(schema if isinstance(schema, str) else "", (3, Manifest))
    try:
        return model.model_validate(value)
    except ValidationError as fault:
        raise ShardError(
            f"{shown} does not fit schemas/manifest-{version}.json: {canonical.first_fault(fault)}: damaged or edited, or of "
            f"another version. {ANEW}"
        ) from fault
