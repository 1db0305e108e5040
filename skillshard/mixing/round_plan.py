"""Where the samples of one round lie: from its counts to bytes of shards, for all its draws at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import orjson
from jaxtyping import Int

from skillshard.mixing.ledger import RoundRecord
from skillshard.mixing.order import SkillOrder, interleave
from skillshard.shards.read import OpenShard, SkillShards


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
    def data(self) -> list[memoryview]:
        """The bytes of each segment's shard."""
        return [opened.data for _, _, opened in self.segments]

    def ids(self, draws: slice | Int[np.ndarray, " sample"]) -> list[str]:
        """The ids of some draws of the round."""
        places = zip(self.segment[draws].tolist(), self.row[draws].tolist(), strict=True)
        return [orjson.loads(self.segments[segment][2].member(row))["id"] for segment, row in places]

    def texts(self, draws: slice | Int[np.ndarray, " sample"]) -> list[str]:
        """The texts of some draws of the round; the one loop over samples that is left to Python."""
        data = self.data
        places = zip(self.segment[draws].tolist(), self.start[draws].tolist(), self.end[draws].tolist(), strict=True)
        return [str(data[segment][start:end], "utf-8") for segment, start, end in places]


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
    found_rows, entries = [], []
    for at, (before, taken) in enumerate(zip(record.drawn_before, record.counts, strict=True)):
        for shard, rows in orders[at].segments(before, before + taken):
            opened = train[at].open_shard(shard)
            segments.append((at, shard, opened))
            found_rows.append(rows)
            entries.append(opened.index[rows])
    segment = np.repeat(np.arange(len(segments)), [len(rows) for rows in found_rows])[slot]
    entry = np.concatenate(entries)[slot]
    start = entry["text_start"].astype(np.int64)
    return RoundPlan(segments, skill, segment, np.concatenate(found_rows)[slot], start, start + entry["text_bytes"])
