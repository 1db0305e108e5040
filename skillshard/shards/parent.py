"""The parent of appended shards: a finished shard set that a new set continues.

The shards of the parent stay where they are and as they are. The new set has shards for the new corpus alone, and its manifest lists all
shards (docs/design/0013-append.md). Three things of the parent decide about the new samples:

- the rule of the split: the cut, and the texts on the other side of the cut;
- the texts, from the keys beside the shards. A new sample with a text of the parent is a copy;
- the ids, from the keys. An id of the parent must not stand in the new corpus.

    SCRATCH/parent/000000.texts.npy   distinct texts of some shards, as in copies.py
    SCRATCH/parent/000000.ids.npy     hash of each id of these shards, sorted, with shard and row, dtype `sort.IDS_DTYPE`
    SCRATCH/parent/names.txt          name of each shard

Many files of ids are first merged into fewer files (merge_levels.py), so a task that compares a range of hashes opens a bounded number of files.

Costs: 84 bytes of scratch space for each sample of the parent.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from skillshard import places, storage
from skillshard.errors import ShardError, name_some
from skillshard.execution import Record
from skillshard.hash_ranges import hash_bounds, rows_between
from skillshard.merge_levels import Merge
from skillshard.printable import counted
from skillshard.shards.chunks import chunk_place
from skillshard.shards.copies import PARENT, PARENT_CHUNK, TEXTS_DTYPE, write_table
from skillshard.shards.manifest import SPLITS, Manifest, Manifest4, Split
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards
from skillshard.shards.sort import IDS_DTYPE
from skillshard.shards.split import HOLDOUT, TEXTS, TRAIN, Sizes
from skillshard.shards.tar import KEY_DIGITS
from skillshard.stages import Stages

# About 200 MB of memory: 40 bytes of keys, 64 bytes of the table and the arrays for sorting.
ROWS_PER_TASK = 1_000_000
"""Number of samples of a parent whose keys one task reads, about."""
# About 200 MB of memory for the entries, a sorted copy and the order.
IDS_PER_RANGE = 3_000_000
"""Number of ids that one task compares, about."""
MAX_NAMED = 100
"""Largest number of equal hashes of ids in the record of a task."""
_IDS = ".ids.npy"
"""Suffix of a file of ids."""


@dataclass(frozen=True)
class ParentTables:
    """Scratch files with the texts of a parent. Without a parent, all are empty.

    Attributes:
        tables: Places of tables of texts, without suffixes.
        num_texts: Number of entries of all tables.
        names: File with the names of the shards. None without a parent.
        inherited: Exceptions to the cut.
    """

    tables: Sequence[str] = ()
    num_texts: int = 0
    names: str | None = None
    inherited: Sequence[str] = ()


@dataclass(frozen=True)
class Parent:
    """Shard set that is continued.

    Attributes:
        shards: The whole set.
        manifest: Manifest of the set. Manifests without keys are refused by `parent_of`.
    """

    shards: ShardSet
    manifest: Manifest | Manifest4

    @property
    def inherited(self) -> list[str]:
        """Sorted hashes of the texts on the other side of the cut."""
        return sorted([*self.manifest.split.also_held_out, *self.manifest.split.kept_in_train])

    @property
    def folders(self) -> dict[str, str]:
        """Skill -> name of its directory."""
        return {skill.name: skill.folder for skill in self.manifest.skills}

    @property
    def num_shards(self) -> int:
        return sum(len(getattr(skill, split).number) for skill in self.manifest.skills for split in SPLITS)

    def first_numbers(self, skills: Sequence[str]) -> dict[tuple[int, Split], int]:
        """Return the first free number of a shard for each skill of the parent and split, by the index of the skill in `skills`."""
        indexes = {name: index for index, name in enumerate(skills)}
        return {
            (indexes[skill.name], split): getattr(skill, split).number[-1] + 1
            for skill in self.manifest.skills
            for split in SPLITS
            if getattr(skill, split).number
        }

    def first_position(self) -> int:
        """Return the position in the whole set after the last shard of the parent.

        The positions of an edition rise in the order of the manifest, and each edition begins after the positions of the edition before.
        Planned shards without samples leave gaps, so the position is read from the first key of the last shard.
        """
        last = max(
            (
                (edition, index, side, shards, position)
                for index, skill in enumerate(self.manifest.skills)
                for side, split in enumerate(SPLITS)
                for shards in [self._split(split).get(skill.name)]
                if shards is not None
                for position, edition in enumerate(shards.editions)
            ),
            key=lambda shard: (*shard[:3], shard[4]),
            default=None,
        )
        if last is None:
            return 0
        with storage.open_at(last[3].place(last[4])) as file:
            return int(file.read(KEY_DIGITS)) // 10**8 + 1

    def presence(self, skills: Sequence[str]) -> Sizes:
        """Return sizes with one text for each skill and split in which the parent has samples, by the index of the skill in `skills`.

        A skill with a sample in the parent's holdout needs no other, and a skill with a sample in its train may give away a new text.
        """
        sizes = np.zeros((len(skills), len(SPLITS), 3), np.int64)
        for index, name in enumerate(skills):
            for side, split in ((TRAIN, SPLITS[TRAIN]), (HOLDOUT, SPLITS[HOLDOUT])):
                sizes[index, side, TEXTS] = int(name in self._split(split))
        return sizes

    def read(self, stages: Stages) -> tuple[ParentTables, list[str]]:
        """Write the tables of texts and of ids, and return the tables of texts and the places of the ids, without suffixes."""
        shards, names = list(self._each()), stages.work.scratch("parent", "names.txt")
        storage.write_bytes(names, "".join(f"{shard.name(0)}\n" for shard in shards).encode())
        groups = list(_groups([len(shard) for shard in shards]))
        outs = [stages.work.scratch("parent", f"{number:06d}") for number in range(len(groups))]
        tasks = [
            {"shards": shards[group.start : group.stop], "first_shard": group.start, "out": out}
            for group, out in zip(groups, outs, strict=True)
        ]
        records = stages.run(
            "parent", "reading keys", read_keys, tasks, about=(shards[group.start].name(0) for group in groups)
        )
        texts = [places.with_suffix(out, ".texts") for out in outs]
        return ParentTables(texts, sum(record["texts"] for record in records), names, self.inherited), outs

    def refuse_equal_ids(self, stages: Stages, chunks: Sequence[str], num_new: int, ids: Sequence[str]) -> None:
        """Raise ShardError if the new corpus has an id of the parent. The files of ids are deleted.

        Args:
            stages: Runner of the tasks.
            chunks: Places of the chunks of the new corpus, without suffixes.
            num_new: Number of new samples.
            ids: Places of the ids of the parent, without suffixes.
        """
        num_ids = num_new + self.manifest.num_train + self.manifest.num_holdout
        num_ranges = -(-num_ids // IDS_PER_RANGE) or 1
        bounds = hash_bounds(num_ranges)

        def merge_arguments(merge: Merge, inputs: list[str], out: str) -> dict[str, Any]:
            return {"inputs": inputs, "out": out, "low": bounds[merge.first_reader], "high": bounds[merge.last_reader]}

        num_bytes = num_ids * IDS_DTYPE.itemsize
        _, columns = stages.merged("ids", merge_ids, [*chunks, *ids], (_IDS,), num_ranges, num_bytes, merge_arguments)
        tasks = [
            {"inputs": inputs, "low": bounds[number], "high": bounds[number + 1]}
            for inputs, readers in columns
            for number in readers
        ]
        cells = [inputs for inputs, readers in columns for _ in readers]
        records = stages.run("ids", "comparing ids", find_equal_ids, tasks, cells, (_IDS,))
        shards = list(self._each()) if any(record["matches"] for record in records) else []
        equal = [
            (sample_id, shards[shard].name(0))
            for record in records
            for chunk, place, shard, row in record["matches"]
            for sample_id in [_id_at(chunk_place(stages.work.scratch(), chunk), place)]
            # 64 bits of a hash: among billions of ids, two different ids may have one hash.
            if sample_id == shards[shard].open_shard(0).sample(row).id
        ]
        if equal:
            num = max(len(equal), sum(record["num"] for record in records) if len(equal) >= MAX_NAMED else 0)
            named = name_some([f"{sample_id!r} (in {name})" for sample_id, name in equal], 3)
            raise ShardError(
                f"{counted(num, 'id')} of the new corpus {'stands' if num == 1 else 'stand'} in {places.public(self.shards.root)} already: {named}. Append only new "
                "samples, or give the new samples other ids, for example by a prefix in a corpus.yaml, and tag them again."
            )

    def _each(self) -> Iterator[SkillShards]:
        return (shard for split in SPLITS for shards in self._split(split).values() for shard in shards.each())

    def _split(self, split: Split) -> Mapping[str, SkillShards]:
        return self.shards.train if split == "train" else self.shards.holdout


def parent_of(shards: ShardSet) -> Parent:
    """Return a shard set as the parent of appended shards.

    Raises:
        ShardError: The set is a chosen set, or an earlier version wrote the set without keys.
    """
    shown = places.public(shards.root)
    if shards.chosen is not None:
        raise ShardError(f"{shown} is reduced to some of its skills: append to the whole set.")
    if not isinstance(shards.manifest, Manifest | Manifest4):
        raise ShardError(
            f"{shown} has no keys beside its shards, because an earlier version wrote the shards, so nothing can be appended. Write all shards "
            "anew in another directory with 'skillshard shard'."
        )
    return Parent(shards, shards.manifest)


def _groups(rows: Sequence[int]) -> Iterator[range]:
    """Yield the neighbouring shards of each task."""
    first = num = 0
    for position, num_rows in enumerate(rows):
        if num and num + num_rows > ROWS_PER_TASK:
            yield range(first, position)
            first, num = position, 0
        num += num_rows
    if num:
        yield range(first, len(rows))


def read_keys(shards: list[SkillShards], first_shard: int, out: str) -> Record:
    """Write the tables of the texts and ids of some shards of a parent.

    Args:
        shards: Shards, each by itself.
        first_shard: Number of the first shard in the parent.
        out: Place of the tables, without suffixes.

    Returns:
        Number of entries in the table of texts.
    """
    keys = [shard.keys(0) for shard in shards]
    num_rows = [len(of_shard) for of_shard in keys]
    numbers = np.repeat(np.arange(first_shard, first_shard + len(shards)), num_rows)
    rows = np.concatenate([np.arange(num) for num in num_rows])
    texts, positions = np.unique(np.concatenate([of_shard["text"] for of_shard in keys]), return_index=True)
    table = np.zeros(len(texts), TEXTS_DTYPE)
    table["text"], table["row"], table["num_samples"] = texts, rows[positions], 1
    table["chunk"] = numbers[positions].astype(np.uint64) + np.uint64(PARENT_CHUNK)
    table["skill"] = table["file"] = PARENT
    write_table(places.with_suffix(out, ".texts"), table, ())
    hashes = np.concatenate([of_shard["id"] for of_shard in keys])
    order = np.argsort(hashes, kind="stable")
    ids = np.empty(len(hashes), IDS_DTYPE)
    ids["hash"], ids["row"] = hashes[order], rows[order]
    ids["chunk"] = numbers[order].astype(np.uint64) + np.uint64(PARENT_CHUNK)
    storage.write_array(places.with_suffix(out, _IDS), ids)
    return {"texts": len(table)}


def merge_ids(inputs: list[str], out: str, low: int, high: int) -> Record:
    """Write one file with the ids of a range of hashes from several files.

    Args:
        inputs: Places of files of ids, without suffixes.
        out: Place of the file to write, without suffixes.
        low: First hash of the range.
        high: End of the range, exclusive.
    """
    storage.write_array(places.with_suffix(out, _IDS), _entries(inputs, low, high))
    return {}


def find_equal_ids(inputs: list[str], low: int, high: int) -> Record:
    """Find hashes of ids in [low, high) that stand in the new corpus and in the parent.

    Args:
        inputs: Places of files of ids, without suffixes, in which the range is complete.
        low: First hash of the range.
        high: End of the range, exclusive.

    Returns:
        Number of new samples with such a hash, and about `MAX_NAMED` matches: number of the chunk, entry of the chunk, shard and row.
    """
    entries = _entries(inputs, low, high)
    is_new = entries["chunk"] < PARENT_CHUNK
    new, old = entries[is_new], entries[~is_new]
    firsts, lasts = (np.searchsorted(old["hash"], new["hash"], side=side) for side in ("left", "right"))
    equal = np.flatnonzero(lasts > firsts)
    matches: list[list[int]] = []
    for position in equal[:MAX_NAMED].tolist():
        # Two ids of the parent may have the same hash, among billions of ids.
        for entry in old[firsts[position] : lasts[position]]:
            shard = int(entry["chunk"]) - PARENT_CHUNK
            matches.append([int(new["chunk"][position]), int(new["row"][position]), shard, int(entry["row"])])
    return {"num": len(equal), "matches": matches}


def _entries(inputs: Sequence[str], low: int, high: int) -> np.ndarray:
    """Return the ids of a range of hashes from several files, sorted by hash, chunk and row, dtype `IDS_DTYPE`."""
    stretches = [np.empty(0, IDS_DTYPE)]
    for place in inputs:
        ids = storage.load_array(places.with_suffix(place, _IDS))
        stretches.append(np.array(ids[rows_between(ids["hash"], low, high)]))
    entries = np.concatenate(stretches)
    return entries[np.lexsort((entries["row"], entries["chunk"], entries["hash"]))]


def _id_at(chunk: str, place: int) -> str:
    """Return the id of an entry of a chunk."""
    entry = storage.load_array(places.with_suffix(chunk, ".npy"))[place]
    with storage.open_at(places.with_suffix(chunk, ".data")) as file:
        file.seek(int(entry["start"]) + int(entry["text_bytes"]))
        identity: str = orjson.loads(file.read(int(entry["json_bytes"])))["id"]
    return identity
