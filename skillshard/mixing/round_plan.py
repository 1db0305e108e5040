"""Where the samples of one round lie: from its counts to bytes of shards, for all its draws at once."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import orjson
from jaxtyping import Int

from skillshard.mixing.ledger import RoundRecord
from skillshard.mixing.order import SkillOrder, interleave
from skillshard.shards.manifest import INDEX_DTYPE
from skillshard.shards.read import OpenShard, SkillShards


@dataclass(frozen=True)
class Places:
    """Where the texts of some draws lie: small, so that it goes between processes in their stead.

    Attributes:
        draws: positions in the stream.
        shards: skill number and shard of each.
        start, end: first byte and end of each text in its shard.
    """

    draws: Int[np.ndarray, " sample"]
    shards: Int[np.ndarray, "sample 2"]
    start: Int[np.ndarray, " sample"]
    end: Int[np.ndarray, " sample"]

    def __len__(self) -> int:
        return len(self.draws)


class Maps:
    """Files in memory, and texts cut out of them: the one loop over samples that is left to Python."""

    def __init__(self, maps: Sequence[mmap.mmap | memoryview]) -> None:
        self._maps = np.empty(len(maps), object)
        for at, data in enumerate(maps):  # one by one: NumPy would look into them
            self._maps[at] = data
        self._cut_bytes = all(isinstance(data, mmap.mmap) for data in maps)

    def texts(
        self, which: Int[np.ndarray, " sample"], start: Int[np.ndarray, " sample"], end: Int[np.ndarray, " sample"]
    ) -> list[str]:
        """For each sample the text from `start` to `end` of the file `which`."""
        spans = zip(self._maps[which].tolist(), start.tolist(), end.tolist(), strict=True)
        if self._cut_bytes:
            return [data[first:last].decode() for data, first, last in spans]  # the fastest, see docs/LOG.md
        return [str(data[first:last], "utf-8") for data, first, last in spans]


def joined(parts: Sequence[Places]) -> Places:
    """Places of several rounds as one; of none, no place."""
    none = np.empty(0, np.int64)
    parts = [Places(none, none.reshape(0, 2), none, none), *parts]
    return Places(
        np.concatenate([part.draws for part in parts]),
        np.concatenate([part.shards for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
    )


@dataclass(frozen=True)
class RoundPlan:
    """Where the samples of one round lie.

    Attributes:
        segments: stretches of neighbouring rows as they were found: skill number, shard, and the shard in memory.
        skill: the skill number of each draw.
        segment, row: where each draw is, an index into `segments` and the row of that shard.
        start, end: first byte and end of each draw's text in the shard.
    """

    segments: list[tuple[int, int, OpenShard]]
    skill: Int[np.ndarray, " draw"]
    segment: Int[np.ndarray, " draw"]
    row: Int[np.ndarray, " draw"]
    start: Int[np.ndarray, " draw"]
    end: Int[np.ndarray, " draw"]

    @cached_property
    def maps(self) -> Maps:
        """The bytes of each segment's shard."""
        return Maps([opened.data for _, _, opened in self.segments])

    @cached_property
    def shards(self) -> Int[np.ndarray, "segment 2"]:
        """Skill number and shard of each segment."""
        return np.array([(skill, shard) for skill, shard, _ in self.segments], np.int64)

    def places(self, draws: Int[np.ndarray, " sample"], within: Int[np.ndarray, " sample"]) -> Places:
        """The places of some draws of the stream, which are those `within` the round."""
        return Places(draws, self.shards[self.segment[within]], self.start[within], self.end[within])

    def ids(self, draws: slice | Int[np.ndarray, " sample"]) -> list[str]:
        """The ids of some draws of the round."""
        places = zip(self.segment[draws].tolist(), self.row[draws].tolist(), strict=True)
        return [orjson.loads(self.segments[segment][2].member(row))["id"] for segment, row in places]

    def texts(self, draws: slice | Int[np.ndarray, " sample"]) -> list[str]:
        """The texts of some draws of the round."""
        return self.maps.texts(self.segment[draws], self.start[draws], self.end[draws])


def plan_round(
    record: RoundRecord, train: Sequence[SkillShards], orders: Sequence[SkillOrder], *, seed: int
) -> RoundPlan:
    """Find the samples of a round; opens the shards that it reads.

    Args:
        record: the round; at least one draw.
        train, orders: the shards of each skill of the mix, and the order in which they are drawn.
        seed: the run's.
    """
    skill, slot = (
        found[: record.num_draws] for found in interleave(np.array(record.counts), "round", seed, record.round)
    )
    segments: list[tuple[int, int, OpenShard]] = []
    rows_of: list[np.ndarray] = []
    for at, (before, taken) in enumerate(zip(record.drawn_before, record.counts, strict=True)):
        for shard, rows in orders[at].segments(before, before + taken):
            segments.append((at, shard, train[at].open_shard(shard)))
            rows_of.append(rows)
    num_rows = [len(rows) for rows in rows_of]
    entries = np.empty(sum(num_rows), INDEX_DTYPE)
    for (_, _, opened), rows, end in zip(segments, rows_of, accumulate(num_rows), strict=True):
        opened.index.take(rows, out=entries[end - len(rows) : end], mode="clip")
    entry = entries.take(slot)
    start = entry["text_start"].astype(np.int64)
    segment = np.repeat(np.arange(len(segments)), num_rows).take(slot)
    row = np.concatenate(rows_of).take(slot)
    return RoundPlan(segments, skill, segment, row, start, start + entry["text_bytes"])
