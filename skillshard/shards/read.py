"""A finished shard set: its manifest, and the shards of each skill and split."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from skillshard import canonical, places, storage, web
from skillshard.corpus import CorpusReading
from skillshard.corpus.members import parse_members
from skillshard.corpus.token_ids import TokenForm
from skillshard.errors import ShardError, choose_names, name_some
from skillshard.printable import counted
from skillshard.progress import advance
from skillshard.shards.cache import Cache
from skillshard.shards.dataset import dataset_of, refuse_taken_column
from skillshard.shards.faults import faults_of
from skillshard.shards.files import EditionFiles, Files, LocalFiles, files_at, uncached
from skillshard.shards.manifest import (
    ANEW,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SPLITS,
    AnyManifest,
    Layout,
    Manifest,
    Manifest1,
    Manifest4,
    ManifestSkill1,
    ManifestSkill2,
    Split,
    manifest_of,
)
from skillshard.shards.skill_shards import SkillShards

if TYPE_CHECKING:
    from datasets import IterableDataset


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
        own = files_at(places.text_of(place), copies)
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
            files = EditionFiles((*(files_at(before, copies) for before in earlier), own))
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

        Raises:
            ShardError: The manifest names no such file.
        """
        if edition not in self._inputs:
            earlier = self.manifest.earlier if isinstance(self.manifest, Manifest4) else []
            self._inputs[edition] = (
                ShardSet.open(places.resolve(earlier[edition].place, self.root)).manifest.made_from.get("inputs", [])
                if edition < len(earlier)
                else self.manifest.made_from.get("inputs", [])
            )
        inputs = self._inputs[edition]
        if number >= len(inputs):
            raise ShardError(
                f"{places.public(self.root)}: the manifest names {counted(len(inputs), 'corpus file')}, and the keys beside a shard name the file "
                f"{number}, counted from 0: damaged or edited. {ANEW}"
            )
        name: str = inputs[number][0]
        return name

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
        refuse_taken_column(self.root, self.members)
        return dataset_of(shards_of, self.members)

    def verify(self) -> list[str]:
        """Read all bytes and return one sentence for each fault, or an empty list.

        A chosen set reads only the shards of its skills. Remote bytes are fetched anew, whatever the cache holds. A web server
        cannot list rejected/, so over http the rejected rows are not read.
        """
        files = uncached(self.files)
        all_shards = [shards for split in SPLITS for shards in self._split(split, files).values()]
        # Version 1 splits by the hash of the id, so no rule for texts exists.
        rule = None if isinstance(self.manifest, Manifest1) else self.manifest.split
        begun = itertools.count()
        num_shards = sum(len(shards.shard_rows) for shards in all_shards)
        faults = [
            fault
            for shards in all_shards
            for fault in faults_of(shards, rule, self.members, lambda: advance(next(begun), num_shards))
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


def _num_lines(folder: str) -> int:
    """Count the lines of all JSONL files in a directory."""
    return sum(storage.num_lines(file.place) for file in storage.list_files(folder, "*.jsonl"))
