"""Read shards: by position for the mixer, in stored order for everybody else.

An index is opened when a place in its shard is first asked for, and checked against its digest. A shard is opened when a text of it is first
read: its size is compared with the manifest, its bytes with their digest, its headers with the index. Both are memory-mapped (of a remote
shard, what cache.py brought here). At most `MAX_OPEN` shards of a skill stay
mapped, and those that a round's plan names. Texts are cut out of the mapped file by the index; the tar format is not parsed.

A map needs no open file, so the number of skills and shards is not bounded by `ulimit -n` (often 1,024). Only a shard out
of a cache stays open, because that keeps its lock; the limit is raised as far as it may be before it is reached.
"""

import errno
import itertools
import mmap
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import orjson
import pyarrow as pa
from jaxtyping import Int
from pydantic import ValidationError

from skillshard import canonical, places, storage, web
from skillshard.corpus import Sample
from skillshard.errors import ShardError, StorageError, choose_names
from skillshard.kept import kept
from skillshard.printable import counted
from skillshard.progress import advance
from skillshard.shards.cache import Cache
from skillshard.shards.files import Files, LocalFiles, RemoteFiles, Wanted
from skillshard.shards.manifest import (
    INDEX_DTYPE,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SPLITS,
    TAR_BLOCK,
    Manifest,
    Manifest1,
    ManifestSkill,
    ManifestSkill1,
    ShardColumns,
    Split,
    SplitRule,
    index_name,
    shard_name,
    whole_blocks,
)
from skillshard.shards.tar import END_OF_ARCHIVE, member_sizes
from skillshard.shards.texts import hash_of, hashes_of, text_hashes

MAX_OPEN = 4
"""Shards of one skill and split that stay mapped: the order reads one after the other."""
ROWS_AT_ONCE = 4096
"""Texts that `verify` takes into memory together."""
_ANEW = "Write the shards anew in another directory with 'skillshard shard', or copy this file again."


@dataclass(frozen=True)
class OpenShard:
    """One shard in memory maps."""

    data: mmap.mmap | memoryview
    index: np.ndarray

    def text(self, row: int) -> str:
        start, text_bytes, _ = self.index[row].tolist()
        return str(self.data[start : start + text_bytes], "utf-8")

    def member(self, row: int) -> bytes | memoryview:
        """The JSON member of a row."""
        start, text_bytes, json_bytes = self.index[row].tolist()
        begin = start + whole_blocks(text_bytes) + TAR_BLOCK
        return self.data[begin : begin + json_bytes]

    def sample(self, row: int) -> Sample:
        member = orjson.loads(self.member(row))
        return Sample(member["id"], self.text(row), member["meta"])


@dataclass(frozen=True)
class SkillShards:
    """The shards of one skill and split.

    Attributes:
        files: where they are.
        skill: its name.
    """

    files: Files
    skill: str
    split: Split
    folder: str
    columns: ShardColumns
    _open: dict[int, OpenShard] = field(default_factory=dict, init=False, repr=False, compare=False)
    _indexes: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    _checked: set[int] = field(default_factory=set, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        """One line: the skill, the split and their numbers. A traceback or a notebook must not print the whole manifest."""
        shards, samples = counted(len(self.columns.number), "shard"), counted(sum(self.columns.num_samples), "sample")
        return f"SkillShards({self.skill!r} of {places.public(self.files.root)!r}: {self.split}, {samples} in {shards})"

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
            if shard + 1 < len(self.shard_rows):
                self.prefetch(shard + 1)
            for row in range(int(self.shard_rows[shard])):
                yield opened.sample(row)

    def name(self, shard: int) -> str:
        """Path of a shard's tar inside the shard set."""
        return shard_name(self.split, self.folder, self.columns.number[shard])

    def open_shard(self, shard: int) -> OpenShard:
        """The shard at a position of the manifest's columns, kept open; ShardError if it is not as the manifest says."""
        return kept(self._open, shard, self._open_checked, most=MAX_OPEN)

    def index(self, shard: int) -> np.ndarray:
        """Where the texts of a shard lie, kept open; its tar is not looked at, so whoever reads it opens the shard too."""
        return kept(self._indexes, shard, self._checked_index, most=MAX_OPEN)

    def prefetch(self, shard: int) -> None:
        """Say that a shard will be opened soon: a remote one is fetched into the cache in the background."""
        if shard not in self._open:
            for wanted in self._wanted(shard):
                self.files.prefetch(wanted)

    def _wanted(self, shard: int) -> tuple[Wanted, Wanted]:
        """A shard's tar and index."""
        name, columns = self.name(shard), self.columns
        return (
            Wanted(name, columns.digest[shard], columns.num_bytes[shard]),
            Wanted(index_name(name), columns.index_digest[shard]),
        )

    def _open_checked(self, shard: int) -> OpenShard:
        """Open and compare with the manifest: the size always; the first time in this process the digest of all bytes,
        and each row of the index with the headers in the tar."""
        check = shard not in self._checked
        tar, _ = self._wanted(shard)
        data = _mapped(self.files, tar, check_digest=check, keep_open=self.files.are_locked)
        opened = OpenShard(data, self.index(shard))
        if check and (found := disagreement(opened)) is not None:
            raise ShardError(f"{tar.name} {found}. {_ANEW}")
        self._checked.add(shard)
        return opened

    def _checked_index(self, shard: int) -> np.ndarray:
        _, beside = self._wanted(shard)
        index = _mapped(self.files, beside, check_digest=True, keep_open=False)
        first = len(index) - self.columns.num_samples[shard] * INDEX_DTYPE.itemsize
        if first < 0:
            raise ShardError(
                f"{beside.name} is {len(index):,} bytes, too few for the {self.columns.num_samples[shard]:,} samples that the manifest "
                f"says. {_ANEW}"
            )
        return np.frombuffer(index, INDEX_DTYPE, offset=first)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}, "_indexes": {}, "_checked": set()}

    def verify(self, rule: SplitRule | None = None, on_shard: Callable[[], None] = lambda: None) -> list[str]:
        """Every fault found by reading all bytes: one sentence each.

        Args:
            rule: what decides which texts are held out; None: that is not checked.
            on_shard: called before each shard.
        """
        faults = []
        self._checked.clear()
        self._indexes.clear()
        for shard in range(len(self.shard_rows)):
            on_shard()
            try:
                opened = self._open_checked(shard)
            except ShardError as error:
                faults.append(str(error))
                continue
            if opened.data[-len(END_OF_ARCHIVE) :] != END_OF_ARCHIVE:
                faults.append(f"{self.name(shard)} does not end as a tar does. {_ANEW}")
            if rule is not None and (row := _wrong_side(opened, self.split, rule)) is not None:
                faults.append(
                    f"{self.name(shard)}: by the hash of its text, row {row:,} belongs to {_other(self.split)}, so the text may stand in "
                    f"train and in holdout. {_ANEW}"
                )
        return faults


def _other(split: Split) -> Split:
    return SPLITS[1 - SPLITS.index(split)]


def _wrong_side(opened: OpenShard, split: Split, rule: SplitRule) -> int | None:
    """The first row whose text belongs to the other split; None if there is none."""
    cut, exceptions = hash_of(rule.cut), hashes_of([*rule.also_held_out, *rule.kept_in_train])
    for begin in range(0, len(opened.index), ROWS_AT_ONCE):
        spans = opened.index[begin : begin + ROWS_AT_ONCE]
        texts = text_hashes([bytes(opened.data[start : start + size]) for start, size, _ in spans.tolist()])
        is_held_out = (texts < cut) ^ np.isin(texts, exceptions)
        wrong = np.flatnonzero(is_held_out != (split == "holdout")).tolist()
        if wrong:
            return begin + int(wrong[0])
    return None


def disagreement(opened: OpenShard) -> str | None:
    """What the tar says against the first wrong row of its index; None if all headers have the sizes that the index says."""
    if len(opened.data) % TAR_BLOCK:
        return f"is {len(opened.data):,} bytes, which is no whole number of blocks of {TAR_BLOCK}"
    blocks = np.frombuffer(opened.data, np.uint8).reshape(-1, TAR_BLOCK)
    index = opened.index
    text_blocks = (index["text_start"] // TAR_BLOCK).astype(np.int64)
    json_headers = text_blocks + whole_blocks(index["text_bytes"].astype(np.int64)) // TAR_BLOCK
    inside = (json_headers < len(blocks)) & (index["text_start"] % TAR_BLOCK == 0)
    found = []
    for headers, sizes in ((text_blocks - 1, index["text_bytes"]), (json_headers, index["json_bytes"])):
        found.append(np.where(inside, member_sizes(blocks[np.where(inside, headers, 0)]), -1))
        inside = inside & (found[-1] == sizes)
    wrong = np.flatnonzero(~inside)
    if not len(wrong):
        return None
    row = int(wrong[0])
    start, *expected = index[row].tolist()
    got = [f"{sizes[row]:,}" if sizes[row] >= 0 else "none" for sizes in found]
    return (
        f"has no sample where its index says row {row:,} is: expected a text of {expected[0]:,} bytes at byte {start:,} and then "
        f"a JSON of {expected[1]:,}, got members of {got[0]} and {got[1]}"
    )


def _mapped(files: Files, wanted: Wanted, *, check_digest: bool, keep_open: bool) -> mmap.mmap | memoryview:
    """A file of the shard set in a memory map, once its size and, if asked, its digest are found to be right.

    Args:
        keep_open: whether the file stays open, with its lock, as long as the map is there.
    """
    name, digest, num_bytes = wanted
    try:
        with files.open(wanted) as file:
            got = os.fstat(file.fileno()).st_size
            if got == 0 or got != (num_bytes or got):
                raise ShardError(
                    f"{name} is {got:,} bytes but the manifest says {f'{num_bytes:,}' if num_bytes else 'more'}: truncated copy or edited file. {_ANEW}"
                )
            data = _map_kept_open(file.fileno()) if keep_open else _map(file.fileno())
    except StorageError as error:
        if files.is_remote:
            raise
        raise ShardError(f"{name} is no file that can be read: {error} {_ANEW}") from error
    except FileNotFoundError as error:
        raise ShardError(f"{error.filename} is missing, but the manifest names it. {_ANEW}") from error
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise ShardError(
            f"{name} cannot be opened: this process has as many files open as it may, "
            f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}. Allow more with 'ulimit -n' before it starts, or mix fewer skills."
        ) from error
    if check_digest and (found := canonical.digest(data)) != digest:
        raise ShardError(f"{name} has digest {found} but the manifest says {digest}: damaged or edited file. {_ANEW}")
    return data


def _map_kept_open(descriptor: int) -> mmap.mmap:
    """A file in memory, and its own descriptor of it: Python's mmap keeps one."""
    _raise_limit_in_time(descriptor)
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def _map(descriptor: int) -> mmap.mmap | memoryview:
    """A file in memory. Python's map is a little faster to cut; Arrow's takes no descriptor, for when few are left."""
    if 2 * _newest(descriptor) < resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    with pa.memory_map(f"/dev/fd/{descriptor}") as file:
        return memoryview(file.read_buffer())


def _raise_limit_in_time(descriptor: int) -> None:
    """Let this process have four times as many open files, or what its hard limit allows, once half of them are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and soft != resource.RLIM_INFINITY and _newest(descriptor) > soft // 2:
        more = 4 * soft if hard == resource.RLIM_INFINITY else min(4 * soft, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))


def _newest(descriptor: int) -> int:
    """The number of a new descriptor: the lowest that is free, so it says how many there are."""
    newest = os.dup(descriptor)
    os.close(newest)
    return newest


def _manifest_of(raw: bytes, shown: str) -> Manifest | Manifest1:
    """A manifest of version 2, or of version 1 if it says so."""
    value = canonical.from_json(raw, shown)
    is_old = isinstance(value, dict) and value.get("schema") == "skillshard/manifest/1"
    try:
        return Manifest1.model_validate(value) if is_old else Manifest.model_validate(value)
    except ValidationError as fault:
        raise ShardError(
            f"{shown} does not fit schemas/manifest-{1 if is_old else 2}.json: {canonical.first_fault(fault)}: damaged or edited, or of "
            f"another version. {_ANEW}"
        ) from fault


def _num_lines(folder: str) -> int:
    """Lines of all the JSONL files in a directory."""
    return sum(storage.num_lines(file.place) for file in storage.list_files(folder, "*.jsonl"))


@dataclass(frozen=True)
class ShardSet:
    """A finished shard set.

    Attributes:
        files: where it is.
        manifest: what is in it, whether chosen or not.
        whole_digest: digest of manifest.json, and so of everything.
        chosen: the skills that `choose` has left, in the order of their names. None: all.
    """

    files: Files
    manifest: Manifest | Manifest1
    whole_digest: str
    chosen: tuple[str, ...] | None = None

    @classmethod
    def open(
        cls,
        place: str | os.PathLike[str],
        *,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
    ) -> "ShardSet":
        """Open shards by their directory or URI (`s3://`, `gs://`, `abfs://`, `hf://`, `http://`, `https://`).

        Args:
            cache: a directory on this machine for what arrives from a remote place, shared by any number of processes and
                shard sets; unused where the shards are on this machine. None: every process fetches every shard anew
                whenever it opens it.
            cache_bytes: limit of what is kept there; what is open stays, whatever the limit. None: as much as the disk holds.

        Raises:
            ShardError: they are not finished, or not shards.
            StorageError: the place cannot be read.
        """
        files: Files
        if places.is_remote(place):
            copies = None if cache is None else Cache(cache, cache_bytes)
            files, manifest_at = RemoteFiles(os.fspath(place), copies), places.join(place, MANIFEST)
        else:
            files = LocalFiles(places.local_path(place))
            manifest_at = os.fspath(files.root / MANIFEST)
        shown = places.public(manifest_at)
        if not storage.exists(manifest_at):
            raise ShardError(
                f"{places.public(place)} holds no finished shards: {MANIFEST} is not there. Run 'skillshard shard' to its end."
            )
        if not places.is_remote(place):
            storage.refuse_special(manifest_at)
        num_bytes = storage.stat(manifest_at).num_bytes
        if num_bytes > MAX_MANIFEST_BYTES:
            raise ShardError(
                f"{shown} is {num_bytes:,} bytes, and at most {MAX_MANIFEST_BYTES:,} are read: damaged or edited, or of too many shards. "
                "Write the shards anew in another directory with larger shards: "
                "'skillshard shard CORPUS --tags T --shard-size 1GB --out S'."
            )
        raw = storage.read_bytes(manifest_at)
        return cls(files, _manifest_of(raw, shown), canonical.digest(raw))

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("files", "manifest", "whole_digest", "chosen")}

    def __repr__(self) -> str:
        """One line: the place and the numbers of skills, samples and shards."""
        skills = self.manifest_skills
        train = sum(sum(skill.train.num_samples) for skill in skills)
        holdout = sum(sum(skill.holdout.num_samples) for skill in skills)
        shards = sum(len(skill.train.number) + len(skill.holdout.number) for skill in skills)
        of_all = "" if self.chosen is None else f" of {len(self.manifest.skills):,}"
        return (
            f"ShardSet({places.public(self.root)!r}: {counted(len(skills), 'skill')}{of_all}, {train:,} train + {holdout:,} holdout samples, "
            f"{counted(shards, 'shard')})"
        )

    def choose(self, names: Sequence[str]) -> "ShardSet":
        """The same shard set with some of its skills only, for training and for measuring losses.

        No shard of another skill is opened. The samples of a chosen skill come in the order that they have in a mix of the whole
        set with the same seed. Token counts of the whole set serve its chosen sets.

        Args:
            names: skills of this set, in any order. The chosen set keeps the order of the set.

        Raises:
            ShardError: a name is no skill of this set or is there twice, or no name is given.

        Example:
            shards = ShardSet.open("shards").choose(["Stance Detection", "Text Matching"])
        """
        known = tuple(skill.name for skill in self.manifest_skills)
        what = f"skills of {places.public(self.root)}"
        chosen = choose_names(names, known, what=what, error=ShardError)
        if len(chosen) == len(known):
            return self
        return ShardSet(self.files, self.manifest, self.whole_digest, tuple(name for name in known if name in chosen))

    @property
    def digest(self) -> str:
        """Digest of everything that a run may depend on: that of the whole set or, of a chosen set, that of the whole set and the names."""
        if self.chosen is None:
            return self.whole_digest
        return canonical.digest(canonical.to_json({"shards": self.whole_digest, "skills": self.chosen}))

    @property
    def manifest_skills(self) -> Sequence[ManifestSkill | ManifestSkill1]:
        """What the manifest says of the skills of this set, held-out ones too, in the order of their names."""
        chosen = None if self.chosen is None else set(self.chosen)
        return [skill for skill in self.manifest.skills if chosen is None or skill.name in chosen]

    @property
    def root(self) -> Path | str:
        """Its directory or URI."""
        return self.files.root

    @cached_property
    def train(self) -> Mapping[str, SkillShards]:
        """The training shards of each skill that has any, in the order of their names."""
        return self._split("train", self.files)

    @cached_property
    def holdout(self) -> Mapping[str, SkillShards]:
        """The held-out shards of each skill that has any: what losses are measured on."""
        return self._split("holdout", self.files)

    @property
    def skills(self) -> tuple[str, ...]:
        """The skills that can be trained on."""
        return tuple(self.train)

    def verify(self) -> list[str]:
        """Every fault found by reading all bytes: one sentence each, nothing if all is well.

        Of a chosen set the shards of its skills are read. Remote bytes are read anew, whatever the cache holds. Over http rejected/ cannot be listed, and is not read.
        """
        files = RemoteFiles(self.files.root, None) if isinstance(self.files, RemoteFiles) else self.files
        found = [shards for split in SPLITS for shards in self._split(split, files).values()]
        rule = self.manifest.split if isinstance(self.manifest, Manifest) else None
        begun = itertools.count()
        num_shards = sum(len(shards.shard_rows) for shards in found)
        faults = [fault for shards in found for fault in shards.verify(rule, lambda: advance(next(begun), num_shards))]
        aside = None if web.is_web(str(self.root)) else _num_lines(places.join(self.root, "rejected"))
        if aside is not None and aside != (
            expected := sum((*self.manifest.set_aside.values(), *self.manifest.unread.values()))
        ):
            faults.append(
                f"rejected/ holds {aside:,} rows, manifest.json says {expected:,}: missing, damaged or edited file. {_ANEW}"
            )
        return faults

    def _split(self, split: Split, files: Files) -> Mapping[str, SkillShards]:
        def shards(skill: ManifestSkill | ManifestSkill1) -> SkillShards:
            return SkillShards(files, skill.name, split, skill.folder, getattr(skill, split))

        return MappingProxyType(
            {skill.name: shards(skill) for skill in self.manifest_skills if getattr(skill, split).number}
        )
