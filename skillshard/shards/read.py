"""Read shards: by position for the mixer, in stored order for every other reader.

An index is opened at the first request for a position in its shard, and compared with its digest. A tar is opened when its first
text is read. The size is compared with the manifest, the bytes with their digest, and the headers with the index. Tar and index
are memory-mapped. For a remote shard, cache.py fetches both files first. At most `MAX_OPEN` shards of a skill stay mapped,
besides the shards in the plan of a round. The index says where a text lies in the mapped file, so the tar is not parsed.
"""

import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from jaxtyping import Int

from skillshard import canonical, places, storage, web
from skillshard.corpus import CorpusReading, Sample
from skillshard.corpus.members import parse_members
from skillshard.corpus.token_ids import TokenForm
from skillshard.errors import ShardError, choose_names, name_some
from skillshard.extras import needed
from skillshard.hash_ranges import id_hash
from skillshard.memo import memoized
from skillshard.printable import counted
from skillshard.progress import advance
from skillshard.shards.cache import Cache
from skillshard.shards.files import EditionFiles, Files, LocalFiles, RemoteFiles, Wanted
from skillshard.shards.layouts import LAYOUTS
from skillshard.shards.manifest import (
    ANEW,
    KEYS_DTYPE,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SPLITS,
    TAR_BLOCK,
    AnyManifest,
    Layout,
    Manifest,
    Manifest1,
    Manifest4,
    ManifestSkill1,
    ManifestSkill2,
    ShardColumns,
    ShardColumns2,
    ShardColumns4,
    Split,
    SplitRule,
    index_name,
    keys_name,
    manifest_of,
    shard_name,
)
from skillshard.shards.mapped import MAX_OPEN, FileWords, Mapped, mapped
from skillshard.shards.members import read_members, totals_of
from skillshard.shards.tar import END_OF_ARCHIVE
from skillshard.shards.texts import hash_of, hashes_of, text_hashes

if TYPE_CHECKING:
    from datasets import IterableDataset

# Texts of 1 kB then take 4 MB, and the cost of a call spreads over thousands of texts.
ROWS_AT_ONCE = 4096
"""Number of texts that `verify` hashes together."""
_SHARD_FILE = FileWords(ShardError, "the manifest", ANEW)


@dataclass(frozen=True)
class OpenShard:
    """Shard in memory maps: the bytes of the tar, and the index with the dtype of the layout."""

    data: Mapped
    index: np.ndarray
    layout: Layout

    def text(self, row: int) -> str:
        start, text_bytes = self.index[row].tolist()[:2]
        return str(self.data[start : start + text_bytes], "utf-8")

    def member(self, row: int) -> bytes | memoryview:
        """Return the bytes of a row's JSON."""
        begin = int(LAYOUTS[self.layout].json_starts(self.index[row : row + 1])[0])
        return self.data[begin : begin + int(self.index["json_bytes"][row])]

    def sample(self, row: int) -> Sample:
        """Return a row's sample, without further members."""
        member = orjson.loads(self.member(row))
        return Sample(member["id"], self.text(row), member["meta"])

    def members(self, row: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """Return the bytes of a row's further members, such as images, by suffix. None: all members."""
        if self.layout != "pairs":
            return {}
        json_start = int(LAYOUTS[self.layout].json_starts(self.index[row : row + 1])[0])
        return read_members(self.data, json_start, int(self.index["json_bytes"][row]), wanted)


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
        return memoized(self._open, shard, self._open_checked, most=MAX_OPEN)

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

    def _open_checked(self, shard: int) -> OpenShard:
        """Open a shard and compare the shard with the manifest.

        The size is always compared. The first opening in this process also compares the digest of all bytes, and each row of the
        index with the headers in the tar.
        """
        # A mixer opens a shard again in every epoch. Only the first opening pays for a pass over all bytes.
        check = shard not in self._checked
        tar, _ = self._wanted(shard)
        data = mapped(self.files, tar, check_digest=check, keep_open=self.files.are_locked, words=_SHARD_FILE)
        opened = OpenShard(data, self.index(shard), self.layout)
        if check and (difference := _disagreement(opened)) is not None:
            raise ShardError(f"{tar.name} {difference}. {ANEW}")
        self._checked.add(shard)
        return opened

    def _checked_index(self, shard: int) -> np.ndarray:
        _, wanted = self._wanted(shard)
        index = mapped(self.files, wanted, check_digest=True, keep_open=False, words=_SHARD_FILE)
        return _entries(index, LAYOUTS[self.layout].DTYPE, self.columns.num_samples[shard], wanted.name)

    def _checked_texts(self, shard: int, opened: OpenShard) -> tuple[np.ndarray | None, list[str]]:
        """Compare the keys of a shard with the ids and texts. Return the hashes of the texts if the keys are right, and the faults."""
        try:
            keys = self.keys(shard)
        except ShardError as error:
            return None, [str(error)]
        if (row := _other_keys(opened, keys)) is None:
            return keys["text"], []
        name = keys_name(self.name(shard))
        return None, [
            f"{name}: row {row:,} has other hashes than the id and the text of that sample in the tar. {ANEW}"
        ]

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
        return _entries(data, KEYS_DTYPE, self.columns.num_samples[shard], wanted.name)

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

    def verify(
        self,
        rule: SplitRule | None = None,
        members: Collection[str] = (),
        on_shard: Callable[[], None] = lambda: None,
    ) -> list[str]:
        """Read all bytes and return one sentence for each fault.

        Args:
            rule: Rule of the split. With None, the sides of the texts are not checked.
            members: Suffixes of the members that samples may have.
            on_shard: Function that is called before each shard.
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
                faults.append(f"{self.name(shard)} does not end with the end mark of a tar. {ANEW}")
            if self.layout == "pairs" and (difference := _other_members(opened, members)) is not None:
                faults.append(f"{self.name(shard)} {difference}. {ANEW}")
            texts = None
            if isinstance(self.columns, ShardColumns):
                texts, fault = self._checked_texts(shard, opened)
                faults += fault
            if rule is not None and (row := _wrong_side(opened, self.split, rule, texts)) is not None:
                faults.append(
                    f"{self.name(shard)}: by the hash of its text, row {row:,} belongs to {_other(self.split)}, so the text may stand in "
                    f"both train and holdout. {ANEW}"
                )
        return faults


def _other_members(opened: OpenShard, members: Collection[str]) -> str | None:
    """Describe a fault of the members of a shard as the rest of a sentence that begins with the name of the tar, or return None."""
    totals = totals_of(opened.data, opened.index)
    if totals.fault is not None:
        return totals.fault
    others = sorted({*totals.num_samples} - {*members})
    if not others:
        return None
    return (
        f"has a member {others[0]!r} in {counted(totals.num_samples[others[0]], 'sample')}, but the members of the manifest are {name_some(sorted(members)) or 'none'}: "
        "damaged or edited file"
    )


def _other_keys(opened: OpenShard, keys: np.ndarray) -> int | None:
    """Return the first row whose id or text has another hash than the keys say, or None."""
    for begin in range(0, len(keys), ROWS_AT_ONCE):
        rows = range(begin, min(begin + ROWS_AT_ONCE, len(keys)))
        texts = _texts_of(opened, rows)
        ids = np.array([id_hash(orjson.loads(opened.member(row))["id"]) for row in rows], np.uint64)
        wrong = np.flatnonzero(
            (keys["id"][rows.start : rows.stop] != ids) | (keys["text"][rows.start : rows.stop] != texts)
        )
        if len(wrong):
            return begin + int(wrong[0])
    return None


def _entries(data: Mapped, dtype: np.dtype, num_samples: int, name: str) -> np.ndarray:
    """Return the entries of a mapped .npy file with one entry for each sample."""
    # The entries are the end of the .npy file, so their number gives the length of the header before them.
    first = len(data) - num_samples * dtype.itemsize
    if first < 0:
        raise ShardError(
            f"{name} is {len(data):,} bytes, too few for the {num_samples:,} samples of the manifest. {ANEW}"
        )
    return np.frombuffer(data, dtype, offset=first)


def _other(split: Split) -> Split:
    return SPLITS[1 - SPLITS.index(split)]


def _wrong_side(opened: OpenShard, split: Split, rule: SplitRule, texts: np.ndarray | None) -> int | None:
    """Return the first row whose text belongs to the other split, or None.

    Args:
        opened: Shard.
        split: Split of the shard.
        rule: Rule of the split.
        texts: Hashes of the texts, or None if the hashes are not known.
    """
    cut, exceptions = hash_of(rule.cut), hashes_of([*rule.also_held_out, *rule.kept_in_train])
    for begin in range(0, len(opened.index), ROWS_AT_ONCE):
        rows = range(begin, min(begin + ROWS_AT_ONCE, len(opened.index)))
        hashes = _texts_of(opened, rows) if texts is None else texts[rows.start : rows.stop]
        is_held_out = (hashes < cut) ^ np.isin(hashes, exceptions)  # an exception is on the other side of the cut
        wrong = np.flatnonzero(is_held_out != (split == "holdout")).tolist()
        if wrong:
            return begin + int(wrong[0])
    return None


def _texts_of(opened: OpenShard, rows: range) -> np.ndarray:
    """Return the hashes of the texts of some rows."""
    spans = opened.index[["text_start", "text_bytes"]][rows.start : rows.stop].tolist()
    return text_hashes(bytes(opened.data[start : start + size]) for start, size in spans)


def _disagreement(opened: OpenShard) -> str | None:
    """Describe the first row of the index that the headers of the tar contradict, or return None.

    The description is the rest of a sentence that begins with the name of the tar.
    """
    if len(opened.data) % TAR_BLOCK:
        return f"is {len(opened.data):,} bytes, not a whole number of blocks of {TAR_BLOCK}"
    return LAYOUTS[opened.layout].disagreement(memoryview(opened.data), opened.index)


def _num_lines(folder: str) -> int:
    """Count the lines of all JSONL files in a directory."""
    return sum(storage.num_lines(file.place) for file in storage.list_files(folder, "*.jsonl"))


def _files_of(place: str, cache: Cache | None) -> LocalFiles | RemoteFiles:
    return RemoteFiles(place, cache) if places.is_remote(place) else LocalFiles(places.local_path(place))


def _uncached(files: Files) -> Files:
    """Return the same files without the cache, so that remote bytes are fetched anew."""
    if isinstance(files, EditionFiles):
        return EditionFiles(tuple(_files_of(os.fspath(edition.root), None) for edition in files.editions))
    return _files_of(os.fspath(files.root), None)


@dataclass(frozen=True)
class ShardSet:
    """Finished shard set.

    Attributes:
        files: Source of the files.
        manifest: Manifest of the whole set, also where the set is a chosen set.
        whole_digest: Digest of manifest.json. The manifest has the digests of all shards, so this digest stands for all bytes.
        chosen: Skills of a chosen set, in the order of their names. None stands for all skills.
    """

    files: Files
    manifest: AnyManifest
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
        """Open a shard set by its directory or URI (`s3://`, `gs://`, `abfs://`, `hf://`, `http://`, `https://`).

        Args:
            place: Directory or URI of the shard set.
            cache: Directory on this machine for files from a remote place, shared by any number of processes and shard sets. Local
                shards do not use the cache. With None, a process fetches a remote shard anew at every opening.
            cache_bytes: Limit of the size of the cache, in bytes. Open files stay, whatever the limit. With None, the disk is the
                limit.

        Raises:
            ShardError: The shard set is not finished, or is not a shard set.
            StorageError: The place cannot be read.
        """
        copies = Cache(cache, cache_bytes) if cache is not None and places.is_remote(place) else None
        own = _files_of(os.fspath(place), copies)
        manifest_at = os.fspath(own.root / MANIFEST) if isinstance(own, LocalFiles) else places.join(own.root, MANIFEST)
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
                f"{shown} is {num_bytes:,} bytes, and at most {MAX_MANIFEST_BYTES:,} are read: damaged or edited, or too many shards. "
                "Write the shards anew in another directory with larger shards: "
                "'skillshard shard CORPUS --tags T --shard-size 1GB --out S'."
            )
        raw = storage.read_bytes(manifest_at)
        manifest = manifest_of(raw, shown)
        files: Files = own
        if isinstance(manifest, Manifest4) and manifest.earlier:
            earlier = [places.resolve(edition.place, own.root) for edition in manifest.earlier]
            if copies is None and cache is not None and any(map(places.is_remote, earlier)):
                copies = Cache(cache, cache_bytes)
            for before in earlier:
                if not places.is_remote(before) and not os.path.isdir(before):
                    raise ShardError(
                        f"{places.public(place)} continues the shards in {before}, and this directory is not there. Move or copy both directories "
                        "together."
                    )
            files = EditionFiles((*(_files_of(before, copies) for before in earlier), own))
        return cls(files, manifest, canonical.digest(raw))

    def __getstate__(self) -> dict[str, object]:
        # Without the cached `train` and `holdout`: a worker makes its own, with its own memory maps.
        return {name: getattr(self, name) for name in ("files", "manifest", "whole_digest", "chosen")}

    def __repr__(self) -> str:
        """Return one line with the place and the numbers of skills, samples and shards."""
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
        """Return the shard set reduced to some of its skills, for training and for measuring losses.

        No shard of another skill is opened. With the same seed, the samples of a chosen skill come in the same order as in a mix of
        the whole set. Token counts of the whole set also serve its chosen sets.

        Args:
            names: Skills of this set, in any order. The chosen set keeps the order of the set.

        Raises:
            ShardError: No name is given, a name is given twice, or a name is not a skill of this set.

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
        """Digest of everything on which a run depends. A chosen set has a digest of the whole set's digest and the names."""
        if self.chosen is None:
            return self.whole_digest
        return canonical.digest(canonical.to_json({"shards": self.whole_digest, "skills": self.chosen}))

    @property
    def manifest_skills(self) -> Sequence[ManifestSkill2 | ManifestSkill1]:
        """Entries of the manifest for the skills of this set, also for skills with only held-out samples, sorted by name."""
        chosen = None if self.chosen is None else set(self.chosen)
        return [skill for skill in self.manifest.skills if chosen is None or skill.name in chosen]

    @property
    def root(self) -> Path | str:
        """Directory or URI of the shard set."""
        return self.files.root

    @property
    def roots(self) -> list[Path | str]:
        """Directory or URI of each edition, the oldest first, and of this set."""
        return (
            [edition.root for edition in self.files.editions] if isinstance(self.files, EditionFiles) else [self.root]
        )

    @cached_property
    def token_form(self) -> TokenForm | None:
        """Form of the samples if their texts are token ids, otherwise None. Appended shards have the form of the whole set."""
        # The manifest of a corpus of plain texts records no reading.
        recorded = self.manifest.made_from.get("arguments", {}).get("reading")
        return None if recorded is None else CorpusReading.from_json(recorded).token_form

    def refuse_token_ids(self, what: str) -> None:
        """Raise ShardError if the texts are token ids.

        Args:
            what: Subject of the error, which needs texts, such as "The proxy of a graph".
        """
        if self.token_form is not None:
            raise ShardError(
                f"{what} needs texts, and the samples of {places.public(self.root)} are token ids. Shard the texts of the same samples, "
                "where the texts are known."
            )

    @property
    def layout(self) -> Layout:
        """Layout of the members in the tars."""
        return self.manifest.layout if isinstance(self.manifest, Manifest4) else "pairs"

    @property
    def members(self) -> tuple[str, ...]:
        """Suffixes of the members that samples may have beside text and JSON, such as images, in rising order."""
        return tuple(self.kept_members)

    @property
    def kept_members(self) -> dict[str, str]:
        """Suffix -> source in the corpus of each member that samples may have."""
        return parse_members(self.manifest.made_from.get("arguments", {}).get("members", ()))

    @property
    def messages_field(self) -> str | None:
        """Metadata field of the messages, if the corpus was tagged as conversations (`FieldMapping.messages`), or None.

        Raises:
            ShardError: The corpora of the set have conversations under several names, or only some of them have conversations.
        """
        reading = self.manifest.made_from.get("arguments", {}).get("reading", {})
        fields = {mapping.get("messages") for mapping in reading.get("corpora", {"": reading}).values()}
        if len(fields) > 1:
            raise ShardError(
                f"the corpora of {places.public(self.root)} have conversations in different fields: {name_some(sorted(map(str, fields)))}. Give each "
                "corpus the same `messages`, and tag and shard them again."
            )
        return next(iter(fields))

    @cached_property
    def train(self) -> Mapping[str, SkillShards]:
        """Training shards of each skill with training samples, in the order of the names."""
        return self._split("train", self.files)

    @cached_property
    def holdout(self) -> Mapping[str, SkillShards]:
        """Held-out shards of each skill with held-out samples, for measuring losses."""
        return self._split("holdout", self.files)

    @property
    def skills(self) -> tuple[str, ...]:
        """Skills with training samples."""
        return tuple(self.train)

    @property
    def has_keys(self) -> bool:
        """Whether keys lie beside the shards: hashes, corpus file and row of each sample."""
        return isinstance(self.manifest, Manifest | Manifest4)

    def source_file(self, number: int, edition: int = 0) -> str:
        """Return the name of a corpus file.

        Args:
            number: Number of the file in the keys beside a shard.
            edition: Edition of the shard (`SkillShards.editions`). An earlier set has the files of its own edition in its manifest.
        """
        if edition not in self._inputs:
            earlier = self.manifest.earlier if isinstance(self.manifest, Manifest4) else []
            self._inputs[edition] = (
                ShardSet.open(places.resolve(earlier[edition].place, self.root)).manifest.made_from["inputs"]
                if edition < len(earlier)
                else self.manifest.made_from["inputs"]
            )
        name, _ = self._inputs[edition][number]
        return str(name)

    @cached_property
    def _inputs(self) -> dict[int, list[Any]]:
        return {}

    def to_datasets(self, split: str = "train") -> "IterableDataset":
        """Return the samples of a split as a `datasets.IterableDataset`, in stored order.

        The columns are "id", "skill", "text" and "meta", and a column of bytes for each member of the set, with None where a sample lacks the member.
        "meta" is the JSON text of the metadata, because a column has a single type. Nothing is copied to a cache, and the memory does not grow with the shards. Workers of a DataLoader divide the shards.

        Args:
            split: "train" or "holdout".

        Raises:
            ExtraError: The library `datasets` is not installed.
            ShardError: The split has no samples, or is unknown.

        Example:
            for row in ShardSet.open("shards").to_datasets().shuffle(seed=0, buffer_size=1000):
                train_on(row["text"])
        """
        if split not in SPLITS:
            raise ShardError(f"`split={split!r}`: give 'train' or 'holdout'.")
        shards_of = self.train if split == "train" else self.holdout
        if not shards_of:
            raise ShardError(f"{places.public(self.root)} has no {split} samples. Choose the other `split`.")
        refuse_taken_column(self, self.members)
        needed("datasets", what="`ShardSet.to_datasets`")
        from datasets import Features, IterableDataset, Value

        parts = [(skill, shard) for skill, shards in shards_of.items() for shard in range(len(shards.shard_rows))]
        return IterableDataset.from_generator(
            _rows,
            features=Features(
                {name: Value("string") for name in ("id", "skill", "text", "meta")}
                | {suffix: Value("binary") for suffix in self.members}
            ),
            # `datasets` divides the only list among the workers.
            gen_kwargs={"shards": self, "split": split, "parts": parts},
        )

    def verify(self) -> list[str]:
        """Read all bytes and return one sentence for each fault, or an empty list.

        A chosen set reads only the shards of its skills. Remote bytes are fetched anew, whatever the cache holds. A web server
        cannot list rejected/, so over http the rejected rows are not read.
        """
        files = _uncached(self.files)
        all_shards = [shards for split in SPLITS for shards in self._split(split, files).values()]
        # Version 1 splits by the hash of the id, so no rule for texts exists.
        rule = None if isinstance(self.manifest, Manifest1) else self.manifest.split
        begun = itertools.count()
        num_shards = sum(len(shards.shard_rows) for shards in all_shards)
        faults = [
            fault
            for shards in all_shards
            for fault in shards.verify(rule, self.members, lambda: advance(next(begun), num_shards))
        ]
        roots = self.roots
        faults += self._other_parents(roots)
        num_rejected = None
        if not any(web.is_web(str(root)) for root in roots):
            num_rejected = sum(_num_lines(places.join(root, "rejected")) for root in roots)
        if num_rejected is not None and num_rejected != (
            expected := sum((*self.manifest.set_aside.values(), *self.manifest.unread.values()))
        ):
            faults.append(
                f"rejected/ holds {num_rejected:,} rows but manifest.json says {expected:,}: missing, damaged or edited file. {ANEW}"
            )
        return faults

    def _other_parents(self, roots: Sequence[Path | str]) -> list[str]:
        """Return a sentence for each earlier set whose manifest is not the manifest that this set continues."""
        faults = []
        for edition, root in zip(
            self.manifest.earlier if isinstance(self.manifest, Manifest4) else [], roots, strict=False
        ):
            manifest_at = places.join(root, MANIFEST)
            if not storage.exists(manifest_at):
                faults.append(
                    f"{places.public(manifest_at)} is missing, but {places.public(self.root)} continues this set."
                )
            elif (digest := canonical.digest(storage.read_bytes(manifest_at))) != edition.digest:
                faults.append(
                    f"{places.public(manifest_at)} has digest {digest}, but {places.public(self.root)} continues a set with the digest "
                    f"{edition.digest}: another shard set lies there now."
                )
        return faults

    def _split(self, split: Split, files: Files) -> Mapping[str, SkillShards]:
        def shards(skill: ManifestSkill2 | ManifestSkill1) -> SkillShards:
            return SkillShards(files, skill.name, split, skill.folder, getattr(skill, split), self.layout)

        return MappingProxyType(
            {skill.name: shards(skill) for skill in self.manifest_skills if getattr(skill, split).number}
        )


def refuse_taken_column(shards: ShardSet, members: Collection[str]) -> None:
    """Raise ShardError if a member has the name of the column of the metadata. `parse_members` refuses the names of the other columns."""
    if "meta" in members:
        raise ShardError(
            f"{places.public(shards.root)} has members with the suffix 'meta', and rows have their metadata in a column 'meta'. Shard the corpus anew "
            "with another suffix: 'skillshard shard --members bytes=meta'."
        )


def _rows(shards: ShardSet, split: str, parts: list[tuple[str, int]]) -> Iterator[dict[str, str | bytes | None]]:
    """Yield the rows of `ShardSet.to_datasets` from shards, each a skill and a position in the columns of the manifest."""
    for skill, shard in parts:
        skill_shards = (shards.train if split == "train" else shards.holdout)[skill]
        opened = skill_shards.open_shard(shard)
        for row in range(int(skill_shards.shard_rows[shard])):
            sample = opened.sample(row)
            members = opened.members(row) if shards.members else {}
            yield {
                "id": sample.id,
                "skill": skill,
                "text": sample.text,
                "meta": orjson.dumps(sample.meta).decode(),
                **{suffix: members.get(suffix) for suffix in shards.members},
            }
