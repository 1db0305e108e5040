"""The token ids of the samples of a round: from the rows of the round to a table of stretches in the files of ids.

The table of a window of a round is made at once, before the first of its blocks is read. A batch is then a part of the table, and one call
of Arrow copies the tokens of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, Integer

from skillshard.mixing.round_plan import Maps, RoundPlan, joined_bytes
from skillshard.shards.token_manifest import id_dtype
from skillshard.shards.token_set import CHECK_BYTES, CheckedBytes, SkillTokens

# Two windows hold a block that reaches over the end of a window.
TABLES_KEPT = 2
"""Number of windows of a round whose tables stay in memory."""
# A round of the usual size is one window. The table of a window takes about 100 bytes per draw.
WINDOW_DRAWS = 4096
"""Number of neighbouring draws of a round whose table is made at once."""


class CheckedMaps:
    """Files in memory whose stretches are copied after a check of their digests.

    Args:
        files: Files, each at most once.
    """

    def __init__(self, files: Sequence[CheckedBytes]) -> None:
        self._files, self._maps = files, Maps([file.data for file in files])
        self._first_part = np.cumsum([0, *(len(file.is_checked) for file in files)])

    def views(
        self, which: Int[np.ndarray, " segment"], start: Int[np.ndarray, " segment"], end: Int[np.ndarray, " segment"]
    ) -> np.ndarray:
        """Check stretches of the files, and return the view of each stretch.

        Args:
            which, start, end: File of each stretch, its first byte, and the byte after its last. No stretch is empty.

        Raises:
            TokensError: A MiB of a file with a part of a stretch differs from its digest.
        """
        is_checked = np.concatenate([file.is_checked for file in self._files])
        if not is_checked.all() and len(which):
            # Entry i is the number of unchecked parts before part i of all files, so one subtraction shows whether a stretch is checked.
            unchecked = np.concatenate([[0], np.cumsum(~is_checked)])
            first_part = self._first_part[which]
            first, last = first_part + start // CHECK_BYTES, first_part + (end - 1) // CHECK_BYTES
            stale = unchecked[last + 1] > unchecked[first]
            for begin, stop in np.unique(np.stack([first[stale], last[stale]]), axis=1).T.tolist():
                number = int(np.searchsorted(self._first_part, begin, side="right")) - 1
                for part in range(begin - int(self._first_part[number]), stop - int(self._first_part[number]) + 1):
                    if not self._files[number].is_checked[part]:
                        self._files[number].check(part)
        return self._maps.views(which, start, end)

    def joined(self, views: np.ndarray) -> memoryview:
        """Copy the bytes of all views, one after the other."""
        return self._maps.joined(views)

    def array(self, views: np.ndarray) -> pa.Array:
        """Return the bytes of the views as an array of Arrow, without a copy."""
        return self._maps.array(views)

    def copied(
        self,
        which: Int[np.ndarray, " sample"],
        start: Int[np.ndarray, " sample"],
        size: Int[np.ndarray, " sample"],
        dtype: np.dtype,
    ) -> Integer[np.ndarray, " token"]:
        """Copy the ids of whole samples, one sample after the other.

        Args:
            which, start, size: File of each sample, its first id in the file, and its number of ids.
            dtype: Type of the ids.

        Raises:
            TokensError: As in `views`.
        """
        has_ids = size > 0
        first, last = start[has_ids], (start + size)[has_ids]
        return np.frombuffer(
            self.joined(self.views(which[has_ids], first * dtype.itemsize, last * dtype.itemsize)), dtype
        )


def counts_of(plan: RoundPlan, tokens: Sequence[SkillTokens]) -> Int[np.ndarray, " draw"]:
    """Return the number of tokens of each draw of a round, without separators.

    Args:
        plan: Rows of the samples of the round.
        tokens: Tokens of each skill of the mix.
    """
    counts = [
        tokens[skill].rows(shard).take(rows) for (skill, shard), rows in zip(plan.segments, plan.rows, strict=True)
    ]
    return np.concatenate(counts).take(plan.slot).astype(np.int64)


@dataclass(frozen=True)
class IdTable:
    """The segments of a window of a round: the tokens of each draw, cut at the ends of blocks.

    Attributes:
        start, stop: First place of each segment, and the place after its last, counted from the first place of the stream.
        end: Place after the last place of the window, counted in the same way.
        draw: Draw of each segment, counted from the beginning of the stream.
        skill: Skill of each segment.
        is_last: Whether the segment ends with its draw. With a separator, the separator is its last token.
        views: Place of the ids of each segment.
        answer_views: Place of the mask of each segment, or None without answers.
    """

    start: Int[np.ndarray, " segment"]
    stop: Int[np.ndarray, " segment"]
    end: int
    draw: Int[np.ndarray, " segment"]
    skill: Int[np.ndarray, " segment"]
    is_last: Bool[np.ndarray, " segment"]
    views: np.ndarray
    answer_views: np.ndarray | None
    files: "IdFiles"

    @cached_property
    def last_tokens(self) -> Int[np.ndarray, " draw"]:
        """Last token of each draw that ends in the window, counted from the first token of the stream. With a separator: the separators."""
        return self.stop[self.is_last] - 1

    def copy(self, segments: slice | Int[np.ndarray, " some"]) -> tuple[np.ndarray, np.ndarray | None]:
        """Copy the tokens of segments, one after the other.

        Returns:
            The ids in their type on disk, and the mask of answers (uint8) or None. The id in the place of a separator has no meaning.
        """
        ids = np.frombuffer(_copied(self.files.ids, self.views, self._id_bytes, segments), self.files.dtype)
        if self.files.answers is None or self.answer_views is None:
            return ids, None
        answers = _copied(self.files.answers, self.answer_views, self._answer_bytes, segments)
        return ids, np.frombuffer(answers, np.uint8)

    @cached_property
    def _id_bytes(self) -> pa.Array:
        """Bytes of the ids of each segment, not copied yet. The table is made once, and each batch takes a part."""
        return self.files.ids.array(self.views)

    @cached_property
    def _answer_bytes(self) -> pa.Array | None:
        """Bytes of the mask of each segment, or None without answers."""
        if self.files.answers is None or self.answer_views is None:
            return None
        return self.files.answers.array(self.answer_views)


def _copied(
    maps: CheckedMaps, views: np.ndarray, array: pa.Array, segments: slice | Int[np.ndarray, " some"]
) -> memoryview:
    """Copy the bytes of some segments, one after the other. `array` has the bytes of all views."""
    if isinstance(segments, slice):
        return joined_bytes(array.slice(segments.start, segments.stop - segments.start))
    return maps.joined(views[segments])


class IdFiles:
    """The opened files of ids of some shards.

    Args:
        shards: Skill number and shard of each file, each at most once.
        tokens: Tokens of each skill of the mix.
    """

    def __init__(self, shards: Sequence[tuple[int, int]], tokens: Sequence[SkillTokens]) -> None:
        self._opened = [tokens[skill].ids(shard) for skill, shard in shards]
        ids = tokens[0].kept
        assert ids is not None
        self.dtype = id_dtype(ids.type)

    @cached_property
    def ids(self) -> CheckedMaps:
        """The files of ids."""
        return CheckedMaps([shard.ids for shard in self._opened])

    @cached_property
    def answers(self) -> CheckedMaps | None:
        """The files of masks, or None."""
        files = [shard.answers for shard in self._opened if shard.answers is not None]
        return CheckedMaps(files) if files else None

    def views(
        self, which: Int[np.ndarray, " segment"], first: Int[np.ndarray, " segment"], stop: Int[np.ndarray, " segment"]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the views of the ids and of the masks of segments.

        Args:
            which, first, stop: File of each segment, the number of its first id in the file, and the number after its last.
        """
        size = self.dtype.itemsize
        answers = None if self.answers is None else self.answers.views(which, first, stop)
        return self.ids.views(which, first * size, stop * size), answers


class RoundIds:
    """The files of ids of a round, and the place of each draw in the files.

    Args:
        plan: Rows of the samples of the round.
        tokens: Tokens of each skill of the mix.
    """

    def __init__(self, plan: RoundPlan, tokens: Sequence[SkillTokens]) -> None:
        shards = list(dict.fromkeys(plan.segments))
        number_of = {shard: number for number, shard in enumerate(shards)}
        self.files = IdFiles(shards, tokens)
        num_rows = [len(rows) for rows in plan.rows]
        files = np.repeat([number_of[segment] for segment in plan.segments], num_rows)
        starts = [
            tokens[skill].starts(shard, rows) for (skill, shard), rows in zip(plan.segments, plan.rows, strict=True)
        ]
        self._file, self._start = files.take(plan.slot), np.concatenate(starts).take(plan.slot)
        self._skill = plan.skill

    def copied(self, draws: Int[np.ndarray, " draw"], sizes: Int[np.ndarray, " draw"]) -> Integer[np.ndarray, " token"]:
        """Copy the ids of draws of the round, one draw after the other. `sizes` may count a place for a separator after each draw."""
        return self.files.ids.copied(self._file[draws], self._start[draws], sizes, self.files.dtype)

    def table(
        self,
        start: Int[np.ndarray, " segment"],
        stop: Int[np.ndarray, " segment"],
        end: int,
        draw: Int[np.ndarray, " segment"],
        begin: Int[np.ndarray, " segment"],
        is_last: Bool[np.ndarray, " segment"],
        *,
        first: int,
        first_draw: int,
    ) -> IdTable:
        """Find the ids of the segments of a window. Places and draws are counted from the beginning of the round.

        Args:
            start, stop: First place of each segment, and the place after its last.
            end: Place after the last place of the window.
            draw: Draw of each segment.
            begin: Place at which the draw of each segment would begin, if its tokens before the segment stood before the segment.
            is_last: Whether the segment ends with its draw, the separator included.
            first, first_draw: Number of places and of draws of the stream before the round.
        """
        before = self._start.take(draw) - begin
        views, answer_views = self.files.views(self._file.take(draw), start + before, stop + before)
        return IdTable(
            start + first,
            stop + first,
            end + first,
            draw + first_draw,
            self._skill.take(draw),
            is_last,
            views,
            answer_views,
            self.files,
        )
