"""The mixed stream as a source of random access, for Grain and for trainers that read through Grain, such as torchtitan.

    source = MixedSource(mixer, num_draws=1_000_000, batch_size=32)
    loader = grain.DataLoader(data_source=source, sampler=SequentialSampler(len(source), shard_options=...), worker_count=4)

Record i is a function of i alone, counted from draw 0: it does not depend on the position of the mixer, on threads or on processes. A
checkpoint of Grain keeps the indices, and `mixer.state_dict(step=...)` keeps the generation of the ledger. Save and load both.

The module does not import Grain. `MixedSource` has the methods that Grain asks of a source, and any reader may call these methods.
"""

import operator
from collections.abc import Sequence
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from skillshard.errors import PolicyError
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.stream import LAST_DRAW, is_whole
from skillshard.refusals import refuse_waiting


class MixedSource:
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
        refuse_waiting(mixer, "Grain")
        if mixer.lag == "live" and mixer.reads_losses:
            raise PolicyError(
                "Mixer(lag='live') decides a round with the losses at hand, and Grain reads hundreds of samples ahead: a round would be decided long "
                "before its newest losses. Use lag=1 (default) or more."
            )
        length = mixer.length()
        if length is None and mixer.repeat != "epochs":
            raise PolicyError(
                f"the losses decide where a stream with repeat={mixer.repeat!r} ends, and a source has one length from the beginning. Use "
                "repeat='epochs', or a policy that reads no losses."
            )
        num = length if num_draws is None else num_draws
        if num is None:
            raise PolicyError(
                "the stream is endless, and a source has a length: give MixedSource(num_draws=...), the steps of the training x the samples of "
                "a step."
            )
        if not is_whole(num, 1, LAST_DRAW):
            raise PolicyError(f"num_draws is {num!r}: give the number of draws of the training, at least 1.")
        if length is not None and operator.index(num) > length:
            raise PolicyError(
                f"num_draws is {num:,}, and with repeat={mixer.repeat!r} the stream ends after {length:,} draws: give at most {length:,}, "
                "or no number."
            )
        if batch_size is not None and not is_whole(batch_size, 1, operator.index(num)):
            raise PolicyError(f"batch_size is {batch_size!r}: give a number from 1 to {num:,}, or None for samples.")
        self.mixer, self.num_draws, self.batch_size, self.rank = mixer, operator.index(num), batch_size, rank
        # A shuffled reader or one that was not resumed is refused in each process once it has another position or generation.
        self._checked: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Number of records. A last batch that would be short is left out."""
        return self.num_draws // (self.batch_size or 1)

    def __repr__(self) -> str:
        """Return a line that is the same in every process and after a resume. Grain compares the line with the line of a checkpoint."""
        return f"MixedSource(run={self.mixer.run_digest!r}, num_draws={self.num_draws}, batch_size={self.batch_size})"

    def __iter__(self) -> NoReturn:
        raise PolicyError(
            "MixedSource is read by its indices, and not item by item: a walk over the stream would not end, or would wait for losses. To look at the "
            "stream, call mixer.batch(first, num)."
        )

    def __getitem__(self, index: SupportsIndex) -> Any:
        """Read a record: a dictionary with "draw", "skill", "text" and the fields and members of the mixer, of a sample or of a batch.

        Raises:
            IndexError: The index is negative or not below the length.
            PolicyError: The record lies far beyond the newest decided round, as a shuffled reader asks, or lies before the position
                of the mixer, as a reader asks that was not resumed.
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
        batch = self.mixer.at((numbers[:, None] * size + np.arange(size)).reshape(-1))
        columns = batch.columns()
        if self.batch_size is None:
            rows = zip(*(columns[name] for name in columns), strict=True)
            return [{**dict(zip(columns, row, strict=True)), "draw": int(row[0])} for row in rows]
        spans = [slice(first, first + size) for first in range(0, len(batch), size)]
        return [{name: values[span] for name, values in columns.items()} for span in spans]

    _getitems = __getitems__
    """The name of the method in Grain. PyTorch calls `__getitems__`."""

    def _check_place(self, draws: np.ndarray) -> None:
        mixer = self.mixer
        place = mixer.position, mixer.generation
        if self._checked != place:
            mixer.check_start(rank=self.rank)
            self._checked = place
        # The workers of a loader of samples read different draws of one batch, so after a batch the read draws are no beginning of
        # the stream. Draws of the round before the position are therefore allowed there.
        allowed = mixer.position - (mixer.round_draws if self.batch_size is None else 0)
        if len(draws) and int(draws.min()) < allowed:
            raise PolicyError(
                f"a loader asks MixedSource for draw {int(draws.min()):,}, and the mixer was resumed at draw {mixer.position:,}: the samples would be "
                "repeated. Give the loader its own state too: Grain's iterator.set_state(), or the sampler's first index."
            )
