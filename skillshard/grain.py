"""The mixed stream as a source of random access, for Grain and for trainers that read through Grain, such as torchtitan.

    source = MixedSource(mixer, num_draws=1_000_000, batch_size=32)
    loader = grain.DataLoader(data_source=source, sampler=SequentialSampler(len(source), shard_options=...), worker_count=4)

For packed blocks of tokens, use `PackedSource(packed, num_blocks=...)` in the same way.

Record i is a function of i alone, counted from the beginning of the stream: it does not depend on the position of the stream, on threads or
on processes. A checkpoint of Grain keeps the indices, and `state_dict(step=...)` of the stream keeps the generation of the ledger. Save and
load both.

The module does not import Grain. The sources have the methods that Grain asks of a source, and any reader may call these methods.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NoReturn, SupportsIndex

import numpy as np
from jaxtyping import Int

from skillshard.errors import PolicyError, did_you_mean, name_some
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packed_batch import BLOCK_COLUMNS, COLUMNS, PackedBatch
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.stream import LAST_DRAW, Stream
from skillshard.number_checks import is_whole
from skillshard.refusals import refuse_waiting

OF_A_BATCH = {"cu_seqlens", "max_seqlen"}
"""Columns that describe all blocks of a batch together."""


class StreamSource(ABC):
    """The first positions of a stream as a sequence of records: the common part of `MixedSource` and `PackedSource`.

    Args:
        stream: Mixer or packed tokens.
        num: Number of positions (draws or blocks) of the training. None: the length of the stream.
        batch_size: Number of positions of a record. None: a record is one position.
        rank: Rank of this process.
    """

    def __init__(self, stream: Stream, *, num: int | None, batch_size: int | None, rank: int) -> None:
        refuse_waiting(stream, "Grain")
        if not is_whole(rank, 0):
            raise PolicyError(f"rank is {rank!r}: give the number of this process among the ranks, from 0.")
        self.stream, self.rank = stream, rank
        # The positions "draw" or "block", for errors, and the argument with their number.
        self._position = stream.clock.words.position
        self._argument = f"num_{self._position}s"
        if stream.lag == "live" and stream.reads_losses:
            raise PolicyError(
                "Mixer(lag='live') decides a round with the losses at hand, and Grain reads hundreds of samples ahead: a round would be decided long "
                "before its newest losses. Use lag=1 (default) or more."
            )
        self.num, self.batch_size = self._length(num), batch_size
        if batch_size is not None and not is_whole(batch_size, 1, self.num):
            raise PolicyError(
                f"batch_size is {batch_size!r}: give a number from 1 to {self.num:,}, or None for single {self._position}s."
            )
        # A shuffled reader or one that was not resumed is refused in each process once it has another position or generation.
        self._checked: tuple[int, int] | None = None

    def _length(self, num: int | None) -> int:
        """Return the number of positions of the training. Raise PolicyError for a number that does not fit the stream."""
        length = self.stream.length()
        if length is None and self.stream.repeat != "epochs":
            raise PolicyError(
                f"the losses decide where a stream with repeat={self.stream.repeat!r} ends, and a source has one length from the beginning. Use "
                "repeat='epochs', or a policy that reads no losses."
            )
        chosen = length if num is None else num
        if chosen is None:
            raise PolicyError(
                f"the stream is endless, and a source has a length: give {type(self).__name__}({self._argument}=...), the steps of the training x the "
                f"{self._position}s of a step."
            )
        # A position of tokens, blocks x tokens of a block, must stay a number of 64 bits.
        if not is_whole(chosen, 1, LAST_DRAW >> 16):
            raise PolicyError(
                f"{self._argument} is {chosen!r}: give the number of {self._position}s of the training, at least 1."
            )
        if length is not None and operator.index(chosen) > length:
            raise PolicyError(
                f"{self._argument} is {chosen:,}, and with repeat={self.stream.repeat!r} the stream ends after {length:,} {self._position}s: give at most "
                f"{length:,}, or no number."
            )
        return operator.index(chosen)

    @abstractmethod
    def _records(self, positions: Int[np.ndarray, "record position"]) -> list[Any]:
        """Read records. A row holds the positions of a record."""

    def __len__(self) -> int:
        """Number of records. A last batch that would be short is left out."""
        return self.num // (self.batch_size or 1)

    def __iter__(self) -> NoReturn:
        raise PolicyError(
            f"{type(self).__name__} is read by its indices, and not item by item: a walk over the stream would not end, or would wait for losses. To look at "
            f"the stream, call {self.stream.clock.words.variable}.batch(first, num)."
        )

    def __getitem__(self, index: SupportsIndex) -> Any:
        """Read a record: a dictionary, for a mixer with "draw", "skill", "text" and the fields and members of the mixer.

        Raises:
            IndexError: The index is negative or not below the length.
            PolicyError: The record lies far beyond the newest decided round, as a shuffled reader asks, or lies before the position
                of the stream, as a reader asks that was not resumed.
        """
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Read several records at once. Raise errors as in `__getitem__`."""
        numbers = np.array([operator.index(index) for index in indices], np.int64)
        outside = numbers[(numbers < 0) | (numbers >= len(self))]
        if len(outside):
            raise IndexError(f"record {outside[0]:,} of {self!r}: the records are 0 to {len(self) - 1:,}.")
        size = self.batch_size or 1
        self._check_place(numbers * size)
        return self._records(numbers[:, None] * size + np.arange(size))

    _getitems = __getitems__
    """The name of the method in Grain. PyTorch calls `__getitems__`."""

    def _check_place(self, positions: Int[np.ndarray, " record"]) -> None:
        stream = self.stream
        place = stream.position, stream.generation
        if self._checked != place:
            stream.check_start(rank=self.rank)
            self._checked = place
        if not len(positions) or int(positions.min()) >= stream.position:
            return
        # The workers of a loader of samples read different draws of one batch, so after a batch the read draws are no beginning of
        # the stream. Draws of the round before the position are therefore allowed there.
        allowed = stream.position - (stream.round_size if self.batch_size is None else 0)
        if int(positions.min()) < allowed:
            raise PolicyError(
                f"a loader asks {type(self).__name__} for {self._position} {int(positions.min()):,}, and the stream was resumed at "
                f"{self._position} {stream.position:,}: the samples would be repeated. Give the loader its own state too: Grain's iterator.set_state(), or "
                "the sampler's first index."
            )


class MixedSource(StreamSource):
    """The first draws of a mixer's stream as a sequence of records, for readers with an index of their own.

    The length is given once, and counts from draw 0. The length is not the rest of the stream, so a resumed run has the same source. Reads
    are safe in any number of threads. A copy of the source in another process reads the same records.

    With a batch size, a record is a batch of the whole stream, and a Grain loader gives the batches in the same order for any
    number of workers. The shards of a Grain loader take the batches in turn. Without a batch size a record is a sample, for
    trainers that tokenize and pack the samples themselves. A Grain loader with several workers then mixes the samples of neighbouring
    batches in another way for another number of workers.

    Args:
        mixer: Mixer with the same arguments in every process. `step_draws` is batch_size x number of Grain's shards.
        num_draws: Number of draws of the training. None: the length of the stream, if the stream ends and its policy reads no losses.
        batch_size: Number of samples of a record. None: a record is one sample.
        rank: Rank of this process. Rank 0 reports, and the start of the run is checked on rank 0.

    Raises:
        PolicyError: `num_draws` is missing, or larger than the stream. The mixer has lag=0, because Grain reads ahead of the
            reports, or lag="live", because a round that is read early would be decided without the newest losses. The losses decide the
            end of the stream.
        LedgerError, RoundError: While reading: the stream cannot start, as `Mixer.check_start` describes.

    Example:
        source = MixedSource(mixer, num_draws=steps * 32, batch_size=32)
    """

    def __init__(
        self, mixer: Mixer, *, num_draws: int | None = None, batch_size: int | None = None, rank: int = 0
    ) -> None:
        super().__init__(mixer, num=num_draws, batch_size=batch_size, rank=rank)
        self.mixer = mixer

    @property
    def num_draws(self) -> int:
        """Number of draws of the training."""
        return self.num

    def __repr__(self) -> str:
        """Return a line that is the same in every process and after a resume. Grain compares the line with the line of a checkpoint."""
        return f"MixedSource(run={self.mixer.run_digest!r}, num_draws={self.num_draws}, batch_size={self.batch_size})"

    def _records(self, positions: Int[np.ndarray, "record position"]) -> list[Any]:
        size = positions.shape[1]
        batch = self.mixer.at(positions.reshape(-1))
        columns = batch.columns()
        if self.batch_size is None:
            rows = zip(*(columns[name] for name in columns), strict=True)
            return [{**dict(zip(columns, row, strict=True)), "draw": int(row[0])} for row in rows]
        spans = [slice(first, first + size) for first in range(0, len(batch), size)]
        return [{name: values[span] for name, values in columns.items()} for span in spans]


class PackedSource(StreamSource):
    """The first blocks of a packed stream as a sequence of records, for readers with an index of their own.

    The rules of `MixedSource` hold, for blocks in place of draws. A record has NumPy arrays. The state of the stream stays small, because a
    record is found by its number: save `packed.state_dict(step=...)` and Grain's state.

    Args:
        packed: Packed tokens with the same arguments in every process. `step_blocks` is batch_size x number of Grain's shards.
        num_blocks: Number of blocks of the training. None: the length of the stream, if the stream ends and its policy reads no losses.
        batch_size: Number of blocks of a record. None: a record is one block.
        rank: Rank of this process. Rank 0 reports, and the start of the run is checked on rank 0.
        columns: Names of the columns of a record, which `PackedBatch` describes. The default is `BLOCK_COLUMNS`. `cu_seqlens` and `max_seqlen`
            describe a batch, so these two columns need a batch size. If the mixer has fields, a record also has `sample_draw` and a list of values
            under the path of each field.

    Raises:
        PolicyError: A name is no column, or the stream does not fit, as for `MixedSource`.
        LedgerError, RoundError: While reading: the stream cannot start, as `Mixer.check_start` describes.

    Example:
        source = PackedSource(packed, num_blocks=steps * 32, batch_size=32)
    """

    def __init__(
        self,
        packed: PackedTokens,
        *,
        num_blocks: int | None = None,
        batch_size: int | None = None,
        rank: int = 0,
        columns: Sequence[str] = BLOCK_COLUMNS,
    ) -> None:
        super().__init__(packed, num=num_blocks, batch_size=batch_size, rank=rank)
        for name in columns:
            if name not in COLUMNS:
                raise PolicyError(
                    f"{name!r} is no column of a batch of blocks{did_you_mean(name, COLUMNS)}: give {name_some(COLUMNS)}."
                )
            if batch_size is None and name in OF_A_BATCH:
                raise PolicyError(f"{name!r} describes the blocks of a batch: give PackedSource(batch_size=...) too.")
        self.packed, self.columns = packed, tuple(columns)

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the training."""
        return self.num

    def __repr__(self) -> str:
        """Return a line that is the same in every process and after a resume. Grain compares the line with the line of a checkpoint."""
        packed = self.packed
        return (
            f"PackedSource(run={packed.mixer.run_digest!r}, tokens={packed.tokens.digest!r}, block_tokens={packed.block_tokens}, separator={packed.separator!r}, "
            f"packing={packed.packing!r}, num_blocks={self.num_blocks}, batch_size={self.batch_size}, columns={self.columns})"
        )

    def _records(self, positions: Int[np.ndarray, "record position"]) -> list[Any]:
        return [self._record(self.packed.at(blocks)) for blocks in positions]

    def _record(self, batch: PackedBatch) -> dict[str, Any]:
        values = {name: getattr(batch, name) for name in self.columns}
        if self.batch_size is None:
            values = {name: int(column[0]) if name == "block" else column[0] for name, column in values.items()}
        return {**values, "sample_draw": batch.sample_draw, **batch.fields} if batch.fields else values
