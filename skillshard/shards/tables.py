"""Run the stages that read the tables of texts: count the copies, search for texts, and set the copies aside.

Each chunk of the sorting has a table of its texts (copies.py). The tasks read ranges of hashes of texts. The driver adds up the counts, and
holds no list of texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from skillshard import canonical, places, storage
from skillshard.errors import ShardError
from skillshard.execution import Task
from skillshard.hash_ranges import hash_bounds
from skillshard.merge_levels import Merge
from skillshard.shards.chunks import chunk_number, chunk_place
from skillshard.shards.copies import (
    FIRSTS_DTYPE,
    TABLE_SUFFIXES,
    TEXTS_DTYPE,
    TEXTS_PER_RANGE,
    find_copies,
    find_texts,
    merge_firsts,
    merge_tables,
    set_copies_aside,
)
from skillshard.shards.parent import ParentTables
from skillshard.shards.split import Candidate, Order, Sizes
from skillshard.stages import Stages
from skillshard.tags import Tags, rejected_place

# Most skills need one text or none. A search costs a stage over all tables, and 16 texts make a second search rare.
TEXTS_AT_ONCE = 16
"""Number of texts of a skill that one search for exceptions returns. Any other number leads to the same exceptions."""


@dataclass
class TextTables:
    """Tables of the texts of all chunks, with the stages that read the tables.

    Attributes:
        num_chunks: Number of chunks of each partition.
        num_texts: Number of entries of all tables.
        num_skills: Number of skills.
        drop: Whether copies are dropped.
        stages: Runner of the tasks.
        parent: Tables of the texts of the parent, if shards are appended.
    """

    num_chunks: Sequence[int]
    num_texts: int
    num_skills: int
    drop: bool
    stages: Stages
    parent: ParentTables
    _num_firsts: int = 0

    @cached_property
    def chunks(self) -> list[str]:
        """Places of all chunks, without suffixes, in the order of the corpus."""
        return [
            chunk_place(self._scratch, chunk_number(partition, chunk))
            for partition, num_chunks in enumerate(self.num_chunks)
            for chunk in range(num_chunks)
        ]

    def count(self, cut: str) -> tuple[list[int], Sizes]:
        """Count the copies of each skill, and the texts, samples and bytes that the cut gives to each skill and split."""
        common = {
            "cut": cut,
            "inherited": self.parent.inherited,
            "num_skills": self.num_skills,
            "parent_names": self.parent.names,
        }
        totals_places = [self.stages.work.scratch("totals", f"{number:06d}.npy") for number in range(self._num_ranges)]
        records = self.stages.run(
            "copies",
            "finding copies",
            find_copies,
            [
                {**bounds, **common, "totals": totals_place, "firsts": firsts if self.drop else None}
                for bounds, totals_place, firsts in zip(self._ranges, totals_places, self._firsts, strict=True)
            ],
        )
        self._num_firsts = sum(record["firsts"] for record in records)
        # One range after the other, because the totals of all ranges together may not fit into the memory.
        totals = np.zeros((self.num_skills, 7), np.int64)
        for place in totals_places:
            totals += storage.load_array(place)
        return totals[:, 0].tolist(), totals[:, 1:].reshape(self.num_skills, 2, 3)

    def search(self, beyond: dict[int, str], order: Order) -> dict[int, list[Candidate]]:
        """Return the first texts of some skills in the requested order of their hashes (a `split.Search`)."""
        skills = {str(skill): after for skill, after in beyond.items()}
        arguments = {"beyond": skills, "order": order, "drop": self.drop, "most": TEXTS_AT_ONCE}
        # Searches follow one another with other arguments. A folder of records for each keeps their results apart on a resume.
        search_digest = canonical.digest(canonical.to_json(arguments))
        tasks = [{**bounds, **arguments} for bounds in self._ranges]
        records = self.stages.run(f"texts-{search_digest}", None, find_texts, tasks)
        candidates: dict[int, list[Candidate]] = {skill: [] for skill in beyond}
        # Records are in rising order of hashes, so the search for the highest texts begins with the last range.
        for record in records if order == "lowest" else reversed(records):
            for skill, texts in record["skills"].items():
                # The texts of a range beyond the first ones are unknown, so texts of the next range must not take their places.
                for text, members in texts[: TEXTS_AT_ONCE - len(candidates[int(skill)])]:
                    sizes = {int(member): (num, num_bytes) for member, (num, num_bytes) in members.items()}
                    candidates[int(skill)].append(Candidate(text, sizes))
        return candidates

    def set_aside(
        self, tags: Tags, sort_tasks: Sequence[Task], kept_rejected: Sequence[int | None], num_copies: Sequence[int]
    ) -> None:
        """Mark the copies in the chunks and write the copies to rejected/ of the output.

        Args:
            tags: Tags of the corpus.
            sort_tasks: Tasks of the sorting.
            kept_rejected: Number of rows of each part that the tags set aside and that belong to the shards. None: all such rows.
            num_copies: Number of copies of each skill.
        """

        def merge_arguments(merge: Merge, inputs: list[str], out: str) -> dict[str, Any]:
            low, high = chunk_number(merge.first_reader, 0), chunk_number(merge.last_reader, 0)
            return {"inputs": inputs, "out": out, "low": low, "high": high}

        num_bytes = self._num_firsts * FIRSTS_DTYPE.itemsize
        _, columns = self.stages.merged(
            "firsts", merge_firsts, self._firsts, (".npy", ".data"), len(sort_tasks), num_bytes, merge_arguments
        )
        records = self.stages.run(
            "set-aside",
            "setting copies aside",
            set_copies_aside,
            [
                {
                    "partition": sort_tasks[index].arguments["partition"],
                    "num_chunks": self.num_chunks[index],
                    "scratch": self._scratch,
                    "files": sort_tasks[index].arguments["files"],
                    "first_row": sort_tasks[index].arguments["first_row"],
                    "firsts": firsts,
                    "rejected_before": rejected_place(tags.folder, index)
                    if tags.manifest.parts[index].num_set_aside
                    else None,
                    "num_rejected_before": kept_rejected[index],
                    "rejected": rejected_place(self.stages.work.out, index),
                    "max_sample_bytes": sort_tasks[index].arguments["reading"].max_sample_bytes,
                }
                for firsts, readers in columns
                for index in readers
            ],
            [firsts for firsts, readers in columns for _ in readers],
            (".npy", ".data"),
            about=(task.about for task in sort_tasks),
        )
        if (marked := sum(record["copies"] for record in records)) != sum(num_copies):
            raise ShardError(
                f"{marked:,} copies were set aside, but {sum(num_copies):,} were counted: scratch files are damaged. Remove "
                f"{places.public(self.stages.work.out)} and run the command again."
            )

    def remove(self) -> None:
        """Delete the tables. The records of all tasks that read the tables exist."""
        for place in {table for bounds in self._ranges for table in bounds["tables"]}:
            for suffix in TABLE_SUFFIXES:
                storage.remove(places.with_suffix(place, suffix))

    @cached_property
    def _scratch(self) -> str:
        return self.stages.work.scratch()

    @cached_property
    def _num_ranges(self) -> int:
        return -(-(self.num_texts + self.parent.num_texts) // TEXTS_PER_RANGE) or 1  # rounded up

    @cached_property
    def _ranges(self) -> list[dict[str, Any]]:
        """The tables and the bounds of each range of hashes. Many tables are merged first."""
        # The hash of a text has 128 bits. The ranges cut the upper 64 bits, and the lower 64 bits of a bound are 0.
        bounds = [*(f"{bound:016x}{0:016x}" for bound in hash_bounds(self._num_ranges)[:-1]), None]

        def merge_arguments(merge: Merge, inputs: list[str], out: str) -> dict[str, Any]:
            low, high = bounds[merge.first_reader], bounds[merge.last_reader]
            return {"inputs": inputs, "out": out, "low": low, "high": high}

        tables = [*(places.with_suffix(chunk, ".texts") for chunk in self.chunks), *self.parent.tables]
        num_bytes = (self.num_texts + self.parent.num_texts) * TEXTS_DTYPE.itemsize
        _, columns = self.stages.merged(
            "tables", merge_tables, tables, TABLE_SUFFIXES, self._num_ranges, num_bytes, merge_arguments
        )
        return [
            {"tables": inputs, "low": bounds[number], "high": bounds[number + 1]}
            for inputs, readers in columns
            for number in readers
        ]

    @cached_property
    def _firsts(self) -> list[str]:
        """Places of the first samples of each range, for `find_copies` to write and `set_copies_aside` to read."""
        return [self.stages.work.scratch("firsts", f"{number:06d}") for number in range(self._num_ranges)]
