"""The shards of one skill and split: by position for the mixer, in stored order for every other reader.

An index is opened at the first request for a position in its shard, and compared with its digest. A tar is opened when its first
text is read. The size is compared with the manifest, the bytes with their digest, and the headers with the index. Tar and index
are memory-mapped. For a remote shard, cache.py fetches both files first. At most `MAX_OPEN` shards of a skill stay mapped,
besides the shards in the plan of a round. The index says where a text lies in the mapped file, so the tar is not parsed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int

from skillshard import places
from skillshard.corpus import Sample
from skillshard.errors import ShardError
from skillshard.memo import memoized
from skillshard.printable import counted
from skillshard.shards.files import EditionFiles, Files, Wanted
from skillshard.shards.layouts import LAYOUTS
from skillshard.shards.manifest import (
    ANEW,
    KEYS_DTYPE,
    Layout,
    ShardColumns,
    ShardColumns2,
    ShardColumns4,
    Split,
    index_name,
    keys_name,
    shard_name,
)
from skillshard.shards.mapped import MAX_OPEN, FileWords, Mapped, mapped
from skillshard.shards.open_shard import OpenShard, entries_of

_SHARD_FILE = FileWords(ShardError, "the manifest", ANEW)


@dataclass(frozen=True)
class SkillShards:
    """Shards of one skill and split.

    Attributes:
        files: Source of the files.
        skill: Name of the skill.
        split: "train" or "holdout".
        folder: Name of the skill's directory.
        columns: Shards as in the manifest.
        layout: Layout of the members in the tars.
    """

    files: Files
    skill: str
    split: Split
    folder: str
    columns: ShardColumns2
    layout: Layout
    _open: dict[int, OpenShard] = field(default_factory=dict, init=False, repr=False, compare=False)
    _indexes: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    _checked: set[int] = field(default_factory=set, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        """Return one line with the skill, the split and the numbers. A traceback must not print the whole manifest."""
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
        """Yield the samples in stored order, without further members."""
        for opened, row in self._rows():
            yield opened.sample(row)

    def with_members(self) -> Iterator[Sample]:
        """Yield the samples in stored order, with their members, such as images, as bytes."""
        for opened, row in self._rows():
            yield replace(opened.sample(row), members=tuple(opened.members(row).items()))

    def _rows(self) -> Iterator[tuple[OpenShard, int]]:
        """Yield each row with its shard, and fetch the next shard in the background."""
        for shard in range(len(self.shard_rows)):
            opened = self.open_shard(shard)
            if shard + 1 < len(self.shard_rows):
                self.prefetch(shard + 1)
            for row in range(int(self.shard_rows[shard])):
                yield opened, row

    def each(self) -> "Iterator[SkillShards]":
        """Yield each shard by itself, so that the arguments of a task stay small."""
        columns = self.columns.model_dump()
        for shard in range(len(self.shard_rows)):
            own_columns = type(self.columns)(**{name: [values[shard]] for name, values in columns.items()})
            yield replace(self, columns=own_columns)

    def name(self, shard: int) -> str:
        """Return the path of a shard's tar inside the shard set."""
        return shard_name(self.split, self.folder, self.columns.number[shard])

    @property
    def editions(self) -> Sequence[int]:
        """Number of the edition of each shard, never falling. All 0 unless the set continues another set."""
        return self.columns.edition if isinstance(self.columns, ShardColumns4) else [0] * len(self.columns.number)

    def place(self, shard: int) -> str:
        """Return the path or URI of a shard's tar."""
        files = self.files.editions[self.editions[shard]] if isinstance(self.files, EditionFiles) else self.files
        return places.join(files.root, self.name(shard))

    def open_shard(self, shard: int) -> OpenShard:
        """Open the shard at a position of the manifest's columns and keep the shard open.

        Raises:
            ShardError: The shard differs from its entry in the manifest.
        """
        return memoized(self._open, shard, self.open_checked, most=MAX_OPEN)

    def index(self, shard: int) -> np.ndarray:
        """Open and keep the index of a shard. The tar is not checked, so a reader of texts calls `open_shard` too."""
        return memoized(self._indexes, shard, self._checked_index, most=MAX_OPEN)

    def prefetch(self, shard: int) -> None:
        """Announce that a shard will be opened soon. A remote shard is fetched into the cache in the background."""
        if shard not in self._open:
            for wanted in self._wanted(shard):
                self.files.prefetch(wanted)

    def _wanted(self, shard: int) -> tuple[Wanted, Wanted]:
        """Return the expected tar and index of a shard."""
        name, columns, edition = self.name(shard), self.columns, self.editions[shard]
        return (
            Wanted(name, columns.digest[shard], columns.num_bytes[shard], edition),
            Wanted(index_name(name), columns.index_digest[shard], None, edition),
        )

    def open_checked(self, shard: int) -> OpenShard:
        """Open a shard and compare the shard with the manifest.

        The size is always compared. The first opening in this process also compares the digest of all bytes, and each row of the
        index with the headers in the tar.
        """
        # A mixer opens a shard again in every epoch. Only the first opening pays for a pass over all bytes.
        check = shard not in self._checked
        tar, _ = self._wanted(shard)
        data = mapped(self.files, tar, check_digest=check, keep_open=self.files.are_locked, words=_SHARD_FILE)
        opened = OpenShard(data, self.index(shard), self.layout)
        if check and (difference := opened.disagreement()) is not None:
            raise ShardError(f"{tar.name} {difference}. {ANEW}")
        self._checked.add(shard)
        return opened

    def _checked_index(self, shard: int) -> np.ndarray:
        _, wanted = self._wanted(shard)
        index = mapped(self.files, wanted, check_digest=True, keep_open=False, words=_SHARD_FILE)
        return entries_of(index, LAYOUTS[self.layout].DTYPE, self.columns.num_samples[shard], wanted.name)

    def keys(self, shard: int) -> np.ndarray:
        """Map the keys of a shard into memory, dtype `KEYS_DTYPE`, in the order of the samples.

        Raises:
            ShardError: The shards have no keys, or the file differs from the manifest.
        """
        if not isinstance(self.columns, ShardColumns):
            raise ShardError(
                f"{places.public(self.files.root)} has no keys beside its shards, because an earlier version wrote the shards. Write the shards "
                "anew in another directory with 'skillshard shard'."
            )
        wanted = Wanted(keys_name(self.name(shard)), self.columns.keys_digest[shard], None, self.editions[shard])
        data = mapped(self.files, wanted, check_digest=True, keep_open=False, words=_SHARD_FILE)
        return entries_of(data, KEYS_DTYPE, self.columns.num_samples[shard], wanted.name)

    def forget(self) -> None:
        """Forget which shards were checked, so that each shard is compared with the manifest again."""
        self._checked.clear()
        self._indexes.clear()

    def __getstate__(self) -> dict[str, object]:
        # Memory maps cannot be pickled. Another process maps and checks the files itself.
        return {**self.__dict__, "_open": {}, "_indexes": {}, "_checked": set()}

    def map_tar(self, shard: int) -> Mapped:
        """Map a shard's tar into memory, and compare only its size with the manifest.

        Raises:
            ShardError: The tar is missing, or has another size.
        """
        return mapped(
            self.files, self._wanted(shard)[0], check_digest=False, keep_open=self.files.are_locked, words=_SHARD_FILE
        )
