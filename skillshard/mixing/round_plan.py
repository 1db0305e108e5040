"""Where the samples of one round lie: from its counts to bytes of shards, for all its draws at once."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from jaxtyping import Int

from skillshard.errors import ShardError
from skillshard.mixing.ledger import RoundRecord
from skillshard.mixing.order import SkillOrder, interleave
from skillshard.shards.manifest import INDEX_DTYPE, TAR_BLOCK, whole_blocks
from skillshard.shards.read import OpenShard, SkillShards
from skillshard.shards.tar import member_sizes


@dataclass(frozen=True)
class Places:
    """Where the texts of some draws lie: small, so that it goes between processes in their stead.

    Attributes:
        draw: position in the stream of each text.
        segment: the stretch of rows of one shard in which each is.
        shards: skill number and shard of each segment.
        start, end: first byte and end of each text in its shard.
    """

    draw: Int[np.ndarray, " sample"]
    segment: Int[np.ndarray, " sample"]
    shards: Int[np.ndarray, "segment 2"]
    start: Int[np.ndarray, " sample"]
    end: Int[np.ndarray, " sample"]

    def __len__(self) -> int:
        return len(self.draw)


INLINE_BYTES = 12
WINDOW_BYTES = 1 << 30
VIEW = np.dtype(
    {
        "names": ["num_bytes", "inline", "window", "start"],
        "formats": ["i4", f"S{INLINE_BYTES}", "i4", "i4"],
        "offsets": [0, 4, 8, 12],
    }
)
"""How Arrow notes where a text lies: a buffer, and the first byte in it; instead of both, up to 12 bytes of text themselves.

Between `num_bytes` and `window` are a text's first four bytes, for comparing; nothing is compared here, and they stay 0.
"""


class Maps:
    """Files in memory, and texts cut out of them by Arrow: a loop in Python takes a quarter longer (docs/LOG.md).

    Arrow counts the bytes of a buffer in 32 bits, so a buffer begins every `WINDOW_BYTES` of a file.
    """

    def __init__(self, maps: Sequence[mmap.mmap | memoryview]) -> None:
        self._maps = maps
        begins = [range(0, len(data), WINDOW_BYTES) for data in maps]
        self._first_window = np.cumsum([0, *map(len, begins)])
        self._windows = [
            pa.py_buffer(data).slice(begin) for data, some in zip(maps, begins, strict=True) for begin in some
        ]

    def views(
        self, which: Int[np.ndarray, " sample"], start: Int[np.ndarray, " sample"], end: Int[np.ndarray, " sample"]
    ) -> np.ndarray:
        """For each sample the `VIEW` of the text from `start` to `end` of the file `which`."""
        num_bytes = end - start
        if len(num_bytes) and int(num_bytes.max()) >= 1 << 31:
            raise ShardError(
                f"a text is {int(num_bytes.max()):,} bytes, and a mixer reads less than {1 << 31:,}: split it, and write the shards anew "
                "in another directory with 'skillshard shard'."
            )
        found = np.zeros(len(which), VIEW)
        found["num_bytes"] = num_bytes
        found["window"] = self._first_window[which] + start // WINDOW_BYTES
        found["start"] = start % WINDOW_BYTES
        short = np.flatnonzero(num_bytes <= INLINE_BYTES)
        if len(short):
            spans = zip(which[short].tolist(), start[short].tolist(), end[short].tolist(), strict=True)
            found["inline"][short] = [bytes(self._maps[file][first:last]) for file, first, last in spans]
        return found

    def texts(self, views: np.ndarray) -> list[str]:
        """The text of each view."""
        buffers = [None, pa.py_buffer(views), *self._windows]
        found = pa.Array.from_buffers(pa.string_view(), len(views), buffers)
        texts: list[str] = found.to_numpy(zero_copy_only=False).tolist()
        return texts

    def metas(self, which: Int[np.ndarray, " sample"], end: Int[np.ndarray, " sample"]) -> list[dict[str, Any]]:
        """For each sample of the file `which` whose text ends there its metadata: the JSON member follows the text."""
        found = []
        for data, header in zip(map(self._maps.__getitem__, which.tolist()), whole_blocks(end).tolist(), strict=True):
            block = np.frombuffer(data, np.uint8, TAR_BLOCK, header).reshape(1, TAR_BLOCK)
            begin = header + TAR_BLOCK
            found.append(orjson.loads(data[begin : begin + int(member_sizes(block)[0])])["meta"])
        return found


def joined(parts: Sequence[Places]) -> Places:
    """Places of several rounds as one; of none, no place."""
    none = np.empty(0, np.int64)
    parts = [Places(none, none, none.reshape(0, 2), none, none), *parts]
    before = accumulate((len(part.shards) for part in parts), initial=0)
    return Places(
        np.concatenate([part.draw for part in parts]),
        np.concatenate([part.segment + first for part, first in zip(parts, before, strict=False)]),
        np.concatenate([part.shards for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
    )


@dataclass(frozen=True)
class RoundPlan:
    """Where the samples of one round lie.

    Attributes:
        train: the shards of each skill of the mix.
        segments: skill number and shard of each stretch of neighbouring rows, as they were found.
        skill: the skill number of each draw.
        segment, row: where each draw is, an index into `segments` and the row of that shard.
        start, end: first byte and end of each draw's text in the shard.
    """

    train: Sequence[SkillShards]
    segments: list[tuple[int, int]]
    skill: Int[np.ndarray, " draw"]
    segment: Int[np.ndarray, " draw"]
    row: Int[np.ndarray, " draw"]
    start: Int[np.ndarray, " draw"]
    end: Int[np.ndarray, " draw"]

    @cached_property
    def opened(self) -> list[OpenShard]:
        """The shard of each segment; opened, and checked, when the first text of the round is read."""
        return [self.train[skill].open_shard(shard) for skill, shard in self.segments]

    @cached_property
    def maps(self) -> Maps:
        """The bytes of each segment's shard."""
        return Maps([opened.data for opened in self.opened])

    @cached_property
    def views(self) -> np.ndarray:
        """The `VIEW` of each draw's text in `maps`."""
        return self.maps.views(self.segment, self.start, self.end)

    @cached_property
    def shards(self) -> Int[np.ndarray, "segment 2"]:
        """Skill number and shard of each segment."""
        return np.array(self.segments, np.int64)

    def places(self, draws: Int[np.ndarray, " sample"], within: Int[np.ndarray, " sample"]) -> Places:
        """The places of some draws of the stream, which are those `within` the round."""
        return Places(draws, self.segment[within], self.shards, self.start[within], self.end[within])

    def ids(self, draws: slice | Int[np.ndarray, " sample"]) -> list[str]:
        """The ids of some draws of the round."""
        places = zip(self.segment[draws].tolist(), self.row[draws].tolist(), strict=True)
        return [orjson.loads(self.opened[segment].member(row))["id"] for segment, row in places]

    def metas(self, draws: slice | Int[np.ndarray, " sample"]) -> list[dict[str, Any]]:
        """The metadata of some draws of the round."""
        return self.maps.metas(self.segment[draws], self.end[draws])

    def texts(self, draws: slice | Int[np.ndarray, " sample"]) -> list[str]:
        """The texts of some draws of the round."""
        return self.maps.texts(self.views[draws])


def plan_round(
    record: RoundRecord, train: Sequence[SkillShards], orders: Sequence[SkillOrder], *, seed: int
) -> RoundPlan:
    """Find the samples of a round by the indexes of its shards.

    Args:
        record: the round; at least one draw.
        train, orders: the shards of each skill of the mix, and the order in which they are drawn.
        seed: the run's.
    """
    skill, slot = (
        found[: record.num_draws] for found in interleave(np.array(record.counts), "round", seed, record.round)
    )
    segments: list[tuple[int, int]] = []
    rows_of: list[np.ndarray] = []
    for at, (before, taken) in enumerate(zip(record.drawn_before, record.counts, strict=True)):
        for shard, rows in orders[at].segments(before, before + taken):
            segments.append((at, shard))
            rows_of.append(rows)
    num_rows = [len(rows) for rows in rows_of]
    entries = np.empty(sum(num_rows), INDEX_DTYPE)
    for (at, shard), rows, end in zip(segments, rows_of, accumulate(num_rows), strict=True):
        train[at].index(shard).take(rows, out=entries[end - len(rows) : end], mode="clip")
    entry = entries.take(slot)
    start = entry["text_start"].astype(np.int64)
    segment = np.repeat(np.arange(len(segments)), num_rows).take(slot)
    row = np.concatenate(rows_of).take(slot)
    return RoundPlan(train, segments, skill, segment, row, start, start + entry["text_bytes"])
