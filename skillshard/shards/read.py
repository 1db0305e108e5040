"""Read shards: by position for the mixer, in stored order for everybody else.

A shard is opened when it is first needed: its size is compared with the manifest, its index is checked against its digest,
and both are memory-mapped. At most `MAX_OPEN` shards stay open. Texts are cut out of the mapped file by the index; the tar
format is not parsed.
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import orjson
from jaxtyping import Int
from pydantic import ValidationError

from skillshard import storage
from skillshard.corpus import Sample
from skillshard.errors import ShardError, did_you_mean, name_some
from skillshard.shards.manifest import (
    INDEX_DTYPE,
    MANIFEST,
    SPLITS,
    TAR_BLOCK,
    Manifest,
    ManifestSkill,
    ShardColumns,
    Split,
    index_name,
    shard_name,
)
from skillshard.shards.tar import END_OF_ARCHIVE, member_sizes

MAX_OPEN = 4
"""Shards of one skill and split that stay mapped: the order reads one after the other."""
_ANEW = "Write the shards anew in another directory with 'skillshard shard', or copy this file again."


@dataclass(frozen=True)
class OpenShard:
    """One shard in memory maps."""

    data: mmap.mmap
    index: np.ndarray

    def text(self, row: int) -> str:
        start, text_bytes, _ = self.index[row].tolist()
        return self.data[start : start + text_bytes].decode()

    def member(self, row: int) -> bytes:
        """The JSON member of a row."""
        start, text_bytes, json_bytes = self.index[row].tolist()
        begin = start + -(-text_bytes // TAR_BLOCK) * TAR_BLOCK + TAR_BLOCK
        return self.data[begin : begin + json_bytes]

    def sample(self, row: int) -> Sample:
        member = orjson.loads(self.member(row))
        return Sample(member["id"], self.text(row), member["meta"])


@dataclass(frozen=True)
class SkillShards:
    """The shards of one skill and split.

    Attributes:
        root: the shard set's directory.
        skill: its name.
    """

    root: Path
    skill: str
    split: Split
    folder: str
    columns: ShardColumns
    _open: "OrderedDict[int, OpenShard]" = field(default_factory=OrderedDict, repr=False, compare=False)
    _checked: set[int] = field(default_factory=set, repr=False, compare=False)

    @cached_property
    def shard_rows(self) -> Int[np.ndarray, " shard"]:
        """Number of samples of each shard."""
        return np.array(self.columns.num_samples, np.int64)

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.shard_rows.sum())

    def __iter__(self) -> Iterator[Sample]:
        """The samples in stored order."""
        for shard in range(len(self.shard_rows)):
            opened = self.open_shard(shard)
            for row in range(int(self.shard_rows[shard])):
                yield opened.sample(row)

    def name(self, shard: int) -> str:
        """Path of a shard's tar inside the shard set."""
        return shard_name(self.split, self.folder, self.columns.number[shard])

    def open_shard(self, shard: int) -> OpenShard:
        """The shard at a position of the manifest's columns, kept open; ShardError if it is not as the manifest says."""
        opened = self._open.get(shard)
        if opened is None:
            opened = self._open[shard] = self._open_checked(shard)
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        return opened

    def _open_checked(self, shard: int) -> OpenShard:
        """Open and compare with the manifest: the size always, the digests of all bytes the first time in this process."""
        name, columns, again = self.name(shard), self.columns, shard in self._checked
        data = _mapped(self.root, name, None if again else columns.digest[shard], columns.num_bytes[shard])
        index = _mapped(self.root, index_name(name), None if again else columns.index_digest[shard])
        self._checked.add(shard)
        first = len(index) - columns.num_samples[shard] * INDEX_DTYPE.itemsize
        return OpenShard(data, np.frombuffer(index, INDEX_DTYPE, offset=first))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict(), "_checked": set()}

    def verify(self) -> list[str]:
        """Every fault found by reading all bytes: one sentence each."""
        faults = []
        self._checked.clear()
        for shard in range(len(self.shard_rows)):
            try:
                opened = self._open_checked(shard)
            except ShardError as error:
                faults.append(str(error))
                continue
            if opened.data[-len(END_OF_ARCHIVE) :] != END_OF_ARCHIVE:
                faults.append(f"{self.name(shard)} does not end as a tar does. {_ANEW}")
            elif (row := disagreement(opened)) is not None:
                faults.append(f"{self.name(shard)} has no sample where its index says row {row:,} is. {_ANEW}")
        return faults


def disagreement(opened: OpenShard) -> int | None:
    """The first row whose headers in the tar have not the sizes that the index says; None if all have."""
    blocks = np.frombuffer(opened.data, np.uint8).reshape(-1, TAR_BLOCK)
    index = opened.index
    text_blocks = (index["text_start"] // TAR_BLOCK).astype(np.int64)
    json_headers = text_blocks + -(-index["text_bytes"].astype(np.int64) // TAR_BLOCK)
    inside = (json_headers < len(blocks)) & (index["text_start"] % TAR_BLOCK == 0)
    for headers, sizes in ((text_blocks - 1, index["text_bytes"]), (json_headers, index["json_bytes"])):
        inside = inside & (member_sizes(blocks[np.where(inside, headers, 0)]) == sizes)
    wrong = np.flatnonzero(~inside)
    return int(wrong[0]) if len(wrong) else None


def _mapped(root: Path, name: str, digest: str | None, num_bytes: int | None = None) -> mmap.mmap:
    """A file of the shard set in a memory map, once its size and digest, if given, are found to be right."""
    try:
        with open(root / name, "rb") as file:
            got = os.fstat(file.fileno()).st_size
            if got == 0 or got != (num_bytes or got):
                raise ShardError(
                    f"{name} is {got:,} bytes but the manifest says {num_bytes or 'more'}: truncated copy or edited file. {_ANEW}"
                )
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ShardError(f"{error.filename} is missing, but the manifest names it. {_ANEW}") from error
    if digest is None:
        return data
    with memoryview(data) as view:
        found = storage.digest(view)
    if found != digest:
        raise ShardError(f"{name} has digest {found} but the manifest says {digest}: damaged or edited file. {_ANEW}")
    return data


@dataclass(frozen=True)
class ShardSet:
    """A finished shard set.

    Attributes:
        root: its directory.
        manifest: what is in it.
        digest: digest of manifest.json, and so of everything.
    """

    root: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> "ShardSet":
        """Open shards by their directory; ShardError if they are not finished or not shards."""
        root = storage.local_path(place)
        if not (root / MANIFEST).exists():
            raise ShardError(
                f"{root} holds no finished shards: {MANIFEST} is not there. Run 'skillshard shard' to its end."
            )
        raw = (root / MANIFEST).read_bytes()
        try:
            manifest = Manifest.model_validate(storage.from_json(raw, root / MANIFEST))
        except ValidationError as error:
            raise ShardError(
                f"{root / MANIFEST} does not fit schemas/manifest-1.json: {storage.first_fault(error)}: damaged or edited, or "
                f"of another version. {_ANEW}"
            ) from error
        return cls(root, manifest, storage.digest(raw))

    @cached_property
    def train(self) -> Mapping[str, SkillShards]:
        """The training shards of each skill that has any, in the order of their names."""
        return self._split("train")

    @cached_property
    def holdout(self) -> Mapping[str, SkillShards]:
        """The held-out shards of each skill that has any: what losses are measured on."""
        return self._split("holdout")

    def __getstate__(self) -> dict[str, object]:
        """Without the cached splits, which cannot be pickled; loader workers that are spawned need this."""
        return {"root": self.root, "manifest": self.manifest, "digest": self.digest}

    @property
    def skills(self) -> tuple[str, ...]:
        """The skills that can be trained on."""
        return tuple(self.train)

    def shards_of(self, split: Split, skill: str) -> SkillShards:
        """One skill's shards; ShardError if there are none."""
        found = self.train if split == "train" else self.holdout
        if skill not in found:
            raise ShardError(
                f"{self.root} has no {split} shards of skill {skill!r}{did_you_mean(skill, found)}; it has "
                f"{name_some(found)}."
            )
        return found[skill]

    def verify(self) -> list[str]:
        """Every fault found by reading all bytes: one sentence each, nothing if all is well."""
        found = [shards for split in SPLITS for shards in self._split(split).values()]
        faults = [fault for shards in found for fault in shards.verify()]
        aside = sum(file.read_bytes().count(b"\n") for file in (self.root / "rejected").glob("*.jsonl"))
        if aside != (expected := sum(self.manifest.set_aside.values())):
            faults.append(
                f"rejected/ holds {aside:,} rows, manifest.json says {expected:,}: missing, damaged or edited file. {_ANEW}"
            )
        counts = {"num_train": sum(map(len, self.train.values())), "num_holdout": sum(map(len, self.holdout.values()))}
        counts["num_rows"] = sum(counts.values()) + sum(self.manifest.set_aside.values())
        for name, got in counts.items():
            if got != (expected := getattr(self.manifest, name)):
                faults.append(
                    f"manifest.json says {name} is {expected:,}, its shards make {got:,}: damaged or edited. {_ANEW}"
                )
        return faults

    def _split(self, split: Split) -> Mapping[str, SkillShards]:
        def shards(skill: ManifestSkill) -> SkillShards:
            return SkillShards(self.root, skill.name, split, skill.folder, getattr(skill, split))

        return MappingProxyType(
            {skill.name: shards(skill) for skill in self.manifest.skills if getattr(skill, split).number}
        )
