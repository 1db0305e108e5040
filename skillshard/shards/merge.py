"""Read ranges of many sorted files of samples, and merge the ranges into one sorted file.

The order is (skill, side, hash of the id, file of the corpus, row of the file). No two samples are equal in this order, so the bytes do not
depend on the chunks or on the merge levels. At level 0 (sort.py) the side is the side of the cut. At the first reading, each text that is an
exception to the cut goes to its other side, and marked copies are dropped. In merged files the side is the split of the sample.

A task first searches the index of each input for all of its ranges. Then the task reads the ranges batch by batch, so the memory does not
grow with the size of a range. Hashes are uniform, so a range of hashes that is too large for a batch is cut into equal ranges.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from skillshard import places, progress, storage
from skillshard.errors import ShardError
from skillshard.execution import Record
from skillshard.hash_ranges import rows_between
from skillshard.shards.contents import array_of, gathered, memory_of
from skillshard.shards.manifest import SPLITS
from skillshard.shards.plan import ShardPlan
from skillshard.shards.sort import ENTRY_DTYPE, starts_of
from skillshard.shards.split import HOLDOUT, TRAIN
from skillshard.shards.texts import hashes_of

# As many bytes of text and JSON as a chunk has, and as the shards of one task have in usual corpora.
BATCH_BYTES = 128 << 20
"""Memory of the samples that a task reads together, in bytes."""
# Two copies of the entry, and the arrays of positions.
_OVERHEAD_BYTES = 200


class Piece(NamedTuple):
    """Range of hashes in one skill and split.

    Attributes:
        skill: Index of the skill.
        side: Index of the split.
        low: First hash of the range.
        high: End of the range, exclusive.
    """

    skill: int
    side: int
    low: int
    high: int


def pieces_of(shards: Sequence[ShardPlan]) -> list[Piece]:
    """Return the ranges of neighbouring shards. Ranges that meet are joined."""
    pieces: list[Piece] = []
    for shard in shards:
        piece = Piece(shard.skill, SPLITS.index(shard.split), shard.low, shard.high)
        if pieces and pieces[-1][:2] == piece[:2] and pieces[-1].high == piece.low:
            pieces[-1] = pieces[-1]._replace(high=piece.high)
        else:
            pieces.append(piece)
    return pieces


@dataclass(frozen=True)
class Batch:
    """Samples of neighbouring pieces, in order.

    Attributes:
        entries: Entries of the samples, dtype `ENTRY_DTYPE`. `start` has no meaning here.
        contents: Text and JSON of each sample, two values for each sample, in the order of the reading.
        order: Position of each entry in the order of the reading.
        parts: Index of a requested piece, and the number of its samples in the batch, in order.
    """

    entries: np.ndarray
    contents: pa.LargeBinaryArray
    order: Int[np.ndarray, " sample"]
    parts: list[tuple[int, int]]


@dataclass(frozen=True)
class SampleReader:
    """Reader of ranges of sorted files.

    Attributes:
        inputs: Places of the files, without suffixes.
        is_merged: Whether the files come from a merge. Otherwise the files are chunks of the sorting.
        exceptions: Skill -> hashes of its texts that are on the other side of the cut. Only chunks need the exceptions.
        drop: Whether copies are dropped. CHUNK.copies.npy then marks the copies. Merged files have no copies.
    """

    inputs: Sequence[str]
    is_merged: bool
    exceptions: Mapping[int, Sequence[str]]
    drop: bool

    def batches(self, pieces: Sequence[Piece]) -> tuple[int, Iterator[Batch]]:
        """Return the number of samples of some pieces, and their batches, in the order of the samples."""
        numbered = list(enumerate(pieces))
        located = self._locate(pieces)
        if any(size > BATCH_BYTES for size in located.num_bytes.tolist()):
            numbered = [
                (number, cut)
                for (number, piece), size in zip(numbered, located.num_bytes.tolist(), strict=True)
                for cut in _cuts(piece, size)
            ]
            located = self._locate([cut for _, cut in numbered])
        return int(located.num_samples.sum()), self._read_all(numbered, located)

    def _read_all(self, numbered: Sequence[tuple[int, Piece]], located: "_Located") -> Iterator[Batch]:
        begin, num_bytes = 0, 0
        # The last size, which belongs to no piece, ends the last batch.
        for position, size in enumerate([*located.num_bytes.tolist(), BATCH_BYTES + 1]):
            if position > begin and num_bytes + size > BATCH_BYTES:
                if num_bytes:
                    yield self._read(numbered, range(begin, position), located)
                progress.advance(position, len(numbered))
                begin, num_bytes = position, 0
            num_bytes += size

    def _locate(self, pieces: Sequence[Piece]) -> "_Located":
        moved = {skill: hashes_of(texts) for skill, texts in self.exceptions.items()}
        num_samples, num_bytes = np.zeros(len(pieces), np.int64), np.zeros(len(pieces), np.int64)
        spans = []
        for place in self.inputs:
            index = storage.load_array(places.with_suffix(place, ".npy"))
            copies = (
                storage.load_array(places.with_suffix(place, ".copies.npy"))
                if self.drop and not self.is_merged
                else None
            )
            spans_of_file = []
            for position, piece in enumerate(pieces):
                spans_of_piece = self._spans(index, copies, piece, moved.get(piece.skill))
                for first, last in spans_of_piece:
                    num_samples[position] += last - first
                    num_bytes[position] += _end(index[last - 1]) - int(index["start"][first])
                spans_of_file.append(spans_of_piece)
            spans.append(spans_of_file)
        return _Located(num_samples, num_bytes + _OVERHEAD_BYTES * num_samples, spans)

    def _spans(
        self, index: np.ndarray, copies: np.ndarray | None, piece: Piece, moved: np.ndarray | None
    ) -> list[tuple[int, int]]:
        """Return the stretches of a piece in an index."""
        if self.is_merged or (copies is None and moved is None):
            first, last = _stretch(index, piece, piece.side)
            return [(first, last)] if last > first else []
        rows = _places_of(index, piece, moved)
        if copies is not None:
            rows = rows[~copies[rows]]
        if not len(rows):
            return []
        # Neighbouring entries lie together in the file, so one read fetches all of them.
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        firsts, lasts = rows[np.append(0, cuts)], rows[np.append(cuts - 1, len(rows) - 1)] + 1
        return list(zip(firsts.tolist(), lasts.tolist(), strict=True))

    def _read(self, numbered: Sequence[tuple[int, Piece]], chosen: range, located: "_Located") -> Batch:
        num_samples = int(located.num_samples[chosen.start : chosen.stop].sum())
        num_bytes = int(located.num_bytes[chosen.start : chosen.stop].sum()) - _OVERHEAD_BYTES * num_samples
        entries, data = np.empty(num_samples, ENTRY_DTYPE), memory_of(num_bytes).data
        row = position = 0
        for place, spans in zip(self.inputs, located.spans, strict=True):
            if not any(spans[piece] for piece in chosen):
                continue
            index = storage.load_array(places.with_suffix(place, ".npy"))
            with storage.open_at(places.with_suffix(place, ".data")) as file:
                for position_of_piece in chosen:
                    piece = numbered[position_of_piece][1]
                    for first, last in spans[position_of_piece]:
                        stretch = entries[row : row + last - first]
                        stretch[:] = index[first:last]
                        start = int(stretch["start"][0])
                        size = _end(stretch[-1]) - start
                        _read_into(file, places.with_suffix(place, ".data"), start, data[position : position + size])
                        # The side is the split from here on. The piece knows the split, whatever the cut says.
                        stretch["skill_side"] = len(SPLITS) * piece.skill + piece.side
                        row, position = row + last - first, position + size
        sizes = np.column_stack((entries["text_bytes"], entries["json_bytes"])).astype(np.int64)
        order = _order(entries)
        # The pieces are disjoint ranges in the order of the sort, so the samples of a piece stay together.
        counts = located.num_samples[chosen.start : chosen.stop].tolist()
        parts = [(numbered[piece][0], count) for piece, count in zip(chosen, counts, strict=True) if count]
        return Batch(entries[order], array_of(data, sizes.ravel()), order, parts)


@dataclass(frozen=True)
class _Located:
    """Places of pieces in the inputs.

    Attributes:
        num_samples: Number of samples of each piece.
        num_bytes: Memory of the samples of each piece, in bytes.
        spans: For each input and piece, the stretches of the index.
    """

    num_samples: Int[np.ndarray, " piece"]
    num_bytes: Int[np.ndarray, " piece"]
    spans: list[list[list[tuple[int, int]]]]


def merge_samples(
    inputs: list[str],
    out: str,
    pieces: list[Piece],
    is_merged: bool,
    exceptions: Mapping[int, Sequence[str]],
    drop: bool,
) -> Record:
    """Write one sorted file with the samples of some pieces from all inputs.

    Args:
        inputs, is_merged, exceptions, drop: As in `SampleReader`.
        out: Place of the file to write, without suffixes.
        pieces: Pieces in order.

    Returns:
        Number of samples.
    """
    num_samples, batches = SampleReader(inputs, is_merged, exceptions, drop).batches(pieces)
    start = 0
    with (
        storage.writing(places.with_suffix(out, ".npy")) as index_part,
        index_part.open("wb") as index_file,
        storage.writing(places.with_suffix(out, ".data")) as data_part,
        data_part.open("wb") as data_file,
    ):
        header = {"descr": np.lib.format.dtype_to_descr(ENTRY_DTYPE), "fortran_order": False, "shape": (num_samples,)}
        np.lib.format.write_array_header_1_0(index_file, header)
        for batch in batches:
            text_positions = 2 * batch.order
            data_file.writelines(
                gathered(batch.contents, np.column_stack((text_positions, text_positions + 1)).ravel())
            )
            entries = batch.entries
            entries["start"] = starts_of(entries) + np.uint64(start)
            start = _end(entries[-1])
            index_file.write(entries.tobytes())
    return {"samples": num_samples}


def _cuts(piece: Piece, num_bytes: int) -> Iterator[Piece]:
    """Cut a piece into equal ranges of hashes, each small enough for a batch."""
    width = piece.high - piece.low
    num_cuts = min(width, -(-num_bytes // BATCH_BYTES) or 1)
    bounds = [piece.low + width * number // num_cuts for number in range(num_cuts + 1)]
    return (piece._replace(low=low, high=high) for low, high in pairwise(bounds))


def _read_into(file: FileIO | pa.NativeFile, place: str, start: int, target: memoryview) -> None:
    """Fill the target with the bytes of a file from a position on."""
    file.seek(start)
    while target:
        num_read = file.readinto(target)  # a read may return fewer bytes than requested
        if not num_read:
            raise ShardError(
                f"the scratch file {places.public(place)} ends {len(target):,} bytes too early: damaged or edited. Remove the "
                "unfinished output directory and run the command again."
            )
        target = target[num_read:]


def _end(entry: np.void) -> int:
    return int(entry["start"]) + int(entry["text_bytes"]) + int(entry["json_bytes"])


def _order(entries: np.ndarray) -> Int[np.ndarray, " sample"]:
    """Return the positions of the entries in the order of the samples."""
    order = np.lexsort((entries["hash"], entries["skill_side"]))
    hashes, skill_sides = entries["hash"][order], entries["skill_side"][order]
    if not ((hashes[1:] == hashes[:-1]) & (skill_sides[1:] == skill_sides[:-1])).any():
        return order
    # Two ids of the same hash: rare among billions of samples, and impossible to see in a file that is read alone.
    return np.lexsort((entries["row"], entries["file"], entries["hash"], entries["skill_side"]))


def _stretch(index: np.ndarray, piece: Piece, side: int) -> tuple[int, int]:
    """Return the first and the end position of the entries of a skill and side in a range of hashes."""
    key = len(SPLITS) * piece.skill + side
    # Keys of the dtype of the column: NumPy would convert the whole memory-mapped column to search for another dtype.
    first, last = np.searchsorted(index["skill_side"], np.array([key, key + 1], np.uint32)).tolist()
    within = rows_between(index["hash"][first:last], piece.low, piece.high)
    return first + within.start, first + within.stop


def _places_of(index: np.ndarray, piece: Piece, moved: np.ndarray | None) -> Int[np.ndarray, " sample"]:
    """Return the positions in a chunk's index of the samples of a piece, rising within each side of the cut.

    The samples are the samples on the piece's side of the cut without the exceptions, and the exceptions of the other side.
    """
    stretches = []
    for side in (TRAIN, HOLDOUT):
        if side != piece.side and moved is None:
            continue
        first, last = _stretch(index, piece, side)
        positions = np.arange(first, last)
        if moved is not None:
            positions = positions[np.isin(index["text"][first:last], moved) == (side != piece.side)]
        stretches.append(positions)
    return np.concatenate(stretches)
