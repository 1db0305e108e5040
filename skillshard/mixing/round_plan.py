"""The places of the samples of a round: from the counts of the round to bytes of shards, for all draws of the round at once."""

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int, UInt32

from skillshard.errors import ShardError
from skillshard.mixing.fields import ID, Fields, metas_of
from skillshard.mixing.order import round_order
from skillshard.mixing.round_records import RoundRecord
from skillshard.mixing.skill_order import SkillOrder
from skillshard.shards.layouts import LAYOUTS, TarLayout
from skillshard.shards.open_shard import OpenShard
from skillshard.shards.skill_shards import SkillShards


@dataclass(frozen=True)
class Places:
    """The places of the texts of draws. A worker sends places to the main process in place of the texts, which are larger.

    Attributes:
        draw: Position of each text in the stream.
        segment: Segment of each text: a stretch of rows of a shard.
        shards: Skill number and shard of each segment.
        start, end: First byte and end of each text in its shard.
        json_start, json_bytes: First byte of the JSON of each text in the shard, and its bytes.
    """

    draw: Int[np.ndarray, " sample"]
    segment: Int[np.ndarray, " sample"]
    shards: Int[np.ndarray, "segment 2"]
    start: Int[np.ndarray, " sample"]
    end: Int[np.ndarray, " sample"]
    json_start: Int[np.ndarray, " sample"]
    json_bytes: UInt32[np.ndarray, " sample"]

    def __len__(self) -> int:
        return len(self.draw)


# The layout of Arrow's string views fixes the 12 bytes: a view is 16 bytes long, and a text of up to 12 bytes stands in the view.
INLINE_BYTES = 12
# A view holds the first byte of its text in a signed integer of 32 bits, so a window must be shorter than 2**31 bytes.
WINDOW_BYTES = 1 << 30
VIEW = np.dtype(
    {
        "names": ["num_bytes", "inline", "window", "start"],
        "formats": ["i4", f"S{INLINE_BYTES}", "i4", "i4"],
        "offsets": [0, 4, 8, 12],
    }
)
"""Arrow's view of a text: the number of bytes, a buffer and the first byte in the buffer. A text of up to 12 bytes stands in the view.

The four bytes between `num_bytes` and `window` hold the beginning of the text for comparisons. No view is compared, so the four bytes
stay 0.
"""


# Made once: the options take as long as the call.
_TO_BYTES = pc.CastOptions.safe(pa.large_binary())


class Maps:
    """Files mapped into memory, from which Arrow cuts texts. A loop in Python takes a quarter longer (docs/LOG.md).

    A buffer of Arrow begins every `WINDOW_BYTES` of a file, because a view counts the bytes of a buffer in 32 bits.
    """

    def __init__(self, maps: Sequence[mmap.mmap | memoryview]) -> None:
        self._maps = maps
        begins = [range(0, len(data), WINDOW_BYTES) for data in maps]
        self._first_window = np.cumsum([0, *map(len, begins)])
        # Every window reaches to the end of its file, so that a text may cross the beginning of the next window.
        self._windows = [
            pa.py_buffer(data).slice(begin) for data, starts in zip(maps, begins, strict=True) for begin in starts
        ]

    def data(self, which: int) -> mmap.mmap | memoryview:
        """Return the bytes of a file."""
        return self._maps[which]

    def views(
        self, which: Int[np.ndarray, " sample"], start: Int[np.ndarray, " sample"], end: Int[np.ndarray, " sample"]
    ) -> np.ndarray:
        """Make the `VIEW` of each sample's text, which stands from byte `start` to byte `end` of the file `which`."""
        num_bytes = end - start
        if len(num_bytes) and int(num_bytes.max()) >= 1 << 31:
            raise ShardError(
                f"a text is {int(num_bytes.max()):,} bytes, and a mixer reads texts of less than {1 << 31:,} bytes: split the text, and write the "
                "shards anew in another directory with 'skillshard shard'."
            )
        views = np.zeros(len(which), VIEW)
        views["num_bytes"] = num_bytes
        views["window"] = self._first_window[which] + start // WINDOW_BYTES
        views["start"] = start % WINDOW_BYTES
        short = np.flatnonzero(num_bytes <= INLINE_BYTES)
        if len(short):
            # The inline text overwrites `window` and `start`, which a short text does not use.
            spans = zip(which[short].tolist(), start[short].tolist(), end[short].tolist(), strict=True)
            views["inline"][short] = [bytes(self._maps[file][first:last]) for file, first, last in spans]
        return views

    def joined(self, views: np.ndarray) -> memoryview:
        """Copy the bytes of all views, one after the other."""
        return joined_bytes(self.array(views))

    def array(self, views: np.ndarray) -> pa.Array:
        """Return the bytes of the views as an array of Arrow, without a copy."""
        return pa.Array.from_buffers(pa.binary_view(), len(views), [None, pa.py_buffer(views), *self._windows])

    def texts(self, views: np.ndarray) -> list[str]:
        """Cut the text of each view."""
        buffers = [None, pa.py_buffer(views), *self._windows]
        array = pa.Array.from_buffers(pa.string_view(), len(views), buffers)
        # By way of NumPy, because Arrow's own `to_pylist` makes an Arrow scalar of each text first.
        texts: list[str] = array.to_numpy(zero_copy_only=False).tolist()
        return texts

    def members(
        self,
        which: Int[np.ndarray, " sample"],
        json_start: Int[np.ndarray, " sample"],
        json_bytes: UInt32[np.ndarray, " sample"],
    ) -> list[bytes | memoryview]:
        """Cut the JSON of each sample of the file `which`."""
        return self.slices(which, json_start, json_start + json_bytes)

    def slices(
        self, which: Int[np.ndarray, " sample"], start: Int[np.ndarray, " sample"], end: Int[np.ndarray, " sample"]
    ) -> list[bytes | memoryview]:
        """Cut the bytes from `start` to `end` of the file `which` for each sample."""
        spans = zip(which.tolist(), start.tolist(), end.tolist(), strict=True)
        maps = self._maps
        return [maps[file][first:last] for file, first, last in spans]


def joined_bytes(array: pa.Array) -> memoryview:
    """Copy the bytes of an array of `Maps`, one entry after the other. The copy runs in Arrow, without a step in Python for each entry."""
    return memoryview(pc.call_function("cast", [array], _TO_BYTES).buffers()[2] or b"")


def joined(parts: Sequence[Places]) -> Places:
    """Join the places of several rounds. Without rounds the result has no place."""
    none = np.empty(0, np.int64)
    parts = [Places(none, none, none.reshape(0, 2), none, none, none, none.astype(np.uint32)), *parts]
    before = accumulate((len(part.shards) for part in parts), initial=0)
    return Places(
        np.concatenate([part.draw for part in parts]),
        np.concatenate([part.segment + first for part, first in zip(parts, before, strict=False)]),
        np.concatenate([part.shards for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
        np.concatenate([part.json_start for part in parts]),
        np.concatenate([part.json_bytes for part in parts]),
    )


@dataclass(frozen=True)
class RoundPlan:
    """The places of the samples of a round. The indexes of the shards are read when the first place of a text is asked for.

    Attributes:
        train: Shards of each skill of the mix.
        segments: Skill number and shard of each segment, skill by skill in the order of reading.
        rows: Rows of each segment in its shard, in the order of reading. The rows of a segment lie in one stripe.
        skill: Skill number of each draw.
        slot: Position of each draw in the rows of all segments, one segment after the other.
    """

    train: Sequence[SkillShards]
    segments: list[tuple[int, int]]
    rows: list[Int[np.ndarray, " _"]]
    skill: Int[np.ndarray, " draw"]
    slot: Int[np.ndarray, " draw"]

    @cached_property
    def segment(self) -> Int[np.ndarray, " draw"]:
        """Index of each draw's segment in `segments`."""
        return np.repeat(np.arange(len(self.segments)), [len(rows) for rows in self.rows]).take(self.slot)

    @cached_property
    def row(self) -> Int[np.ndarray, " draw"]:
        """Row of each draw in the shard of its segment."""
        return np.concatenate(self.rows).take(self.slot)

    @property
    def _layout(self) -> TarLayout:
        return LAYOUTS[self.train[0].layout]  # all skills of a set have one layout

    @cached_property
    def _entries(self) -> np.ndarray:
        """Entry of each draw in the index of its shard."""
        # The segments are read one after the other. Then one `take` by slot brings the entries into the order of the draws, so that no
        # step runs in Python for each draw.
        ends = list(accumulate(map(len, self.rows)))
        entries = np.empty(ends[-1], self._layout.DTYPE)
        for (skill, shard), rows, end in zip(self.segments, self.rows, ends, strict=True):
            # mode="clip" writes into `out` without a buffer. The rows are below the length of the index, so nothing is clipped.
            self.train[skill].index(shard).take(rows, out=entries[end - len(rows) : end], mode="clip")
        return entries.take(self.slot)

    @cached_property
    def start(self) -> Int[np.ndarray, " draw"]:
        """First byte of each draw's text in the shard."""
        return self._entries["text_start"].astype(np.int64)

    @cached_property
    def end(self) -> Int[np.ndarray, " draw"]:
        """End of each draw's text in the shard."""
        return self.start + self._entries["text_bytes"]

    @cached_property
    def json_start(self) -> Int[np.ndarray, " draw"]:
        """First byte of each draw's JSON in the shard."""
        return self._layout.json_starts(self._entries)

    @property
    def json_bytes(self) -> UInt32[np.ndarray, " draw"]:
        """Bytes of each draw's JSON."""
        return self._entries["json_bytes"]

    @cached_property
    def opened(self) -> list[OpenShard]:
        """Shard of each segment. The shards are opened and checked when the first text of the round is read."""
        return [self.train[skill].open_shard(shard) for skill, shard in self.segments]

    @cached_property
    def maps(self) -> Maps:
        """Bytes of each segment's shard."""
        return Maps([opened.data for opened in self.opened])

    @cached_property
    def views(self) -> np.ndarray:
        """`VIEW` of each draw's text in `maps`."""
        return self.maps.views(self.segment, self.start, self.end)

    @cached_property
    def shards(self) -> Int[np.ndarray, "segment 2"]:
        """Skill number and shard of each segment."""
        return np.array(self.segments, np.int64)

    def places(self, draws: Int[np.ndarray, " sample"], within: Int[np.ndarray, " sample"]) -> Places:
        """Return the places of draws of the stream, whose positions in the round are `within`."""
        return Places(
            draws,
            self.segment[within],
            self.shards,
            self.start[within],
            self.end[within],
            self.json_start[within],
            self.json_bytes[within],
        )

    def fields(self, fields: Fields, draws: slice | Int[np.ndarray, " sample"]) -> dict[str, list[Any]]:
        """Read fields of draws of the round, as `Fields.read` does."""
        return fields.read(self._members(draws)) if fields else {}

    def ids(self, draws: slice | Int[np.ndarray, " sample"]) -> list[str]:
        """Read the ids of draws of the round."""
        return self.fields(ID, draws)["id"]

    def metas(self, draws: slice | Int[np.ndarray, " sample"]) -> list[dict[str, Any]]:
        """Read the metadata of draws of the round."""
        return metas_of(self._members(draws))

    def _members(self, draws: slice | Int[np.ndarray, " sample"]) -> list[bytes | memoryview]:
        return self.maps.members(self.segment[draws], self.json_start[draws], self.json_bytes[draws])

    def texts(self, draws: slice | Int[np.ndarray, " sample"]) -> list[str]:
        """Read the texts of draws of the round."""
        return self.maps.texts(self.views[draws])


def order_round(record: RoundRecord, *, seed: int) -> tuple[Int[np.ndarray, " draw"], Int[np.ndarray, " draw"]]:
    """Return the skill and the slot of each draw of a round, as `round_order` does."""
    skill, slot = round_order(record.counts, seed=seed, number=record.round)
    # With repeat="stop" the last round has fewer draws than its counts, so the order is cut. The arrays are copies: the skills of a
    # batch are a part of them, and a trainer may write into its batch.
    return skill[: record.num_draws].copy(), slot[: record.num_draws].copy()


def number_round(record: RoundRecord, *, seed: int) -> tuple[Int[np.ndarray, " draw"], Int[np.ndarray, " draw"]]:
    """Return the skill of each draw of a round, and the number of each draw among the draws of its skill, over all rounds and runs."""
    skill, slot = order_round(record, seed=seed)
    first_slot = np.cumsum(record.counts) - record.counts
    return skill, np.array(record.drawn_before)[skill] + slot - first_slot[skill]


def plan_round(
    record: RoundRecord, train: Sequence[SkillShards], orders: Sequence[SkillOrder], *, seed: int
) -> RoundPlan:
    """Find the samples of a round: their shards, and their rows in the shards.

    Args:
        record: Round with at least one draw.
        train, orders: Shards of each skill of the mix, and the order of the samples of each skill.
        seed: Seed of the run.
    """
    skill, slot = order_round(record, seed=seed)
    segments: list[tuple[int, int]] = []
    rows_of: list[np.ndarray] = []
    num_read = 0
    for number, (before, taken) in enumerate(zip(record.drawn_before, record.counts, strict=True)):
        stretch = orders[number].read(before, before + taken)
        segments += [(number, shard) for shard, _ in stretch.segments]
        rows_of += [rows for _, rows in stretch.segments]
        if stretch.place is not None:
            # Appended samples are read after the samples between which they are drawn.
            is_own = (slot >= num_read) & (slot < num_read + taken)
            slot = np.where(is_own, num_read + stretch.place.take(slot - num_read, mode="clip"), slot)
        num_read += taken
    return RoundPlan(train, segments, rows_of, skill, slot)


def read_ahead(record: RoundRecord, orders: Sequence[SkillOrder], prefetch: Sequence[Callable[[int], None]]) -> None:
    """Fetch the files of a round side by side, and fetch the next files while the round is read.

    Args:
        record: Round.
        orders: Order of the samples of each skill.
        prefetch: Function of each skill that starts to fetch the files of a shard.
    """
    drawn = list(zip(prefetch, orders, record.drawn_before, record.counts, strict=True))
    for fetch, order, before, taken in drawn:
        for shard in order.shards(before, before + taken):
            fetch(shard)
    # This round is read first, so the requests for later shards come after all requests for this round. Each skill looks
    # ahead by at least the length of a shard, so that a skill with few draws per round also has its next shard in time.
    for fetch, order, before, taken in drawn:
        ahead = max(taken, int(order.shard_rows.max())) if taken else 0
        for shard in order.shards(before + taken, before + taken + ahead):
            fetch(shard)
