"""The mixed stream as a pipeline of the package `webdataset`: sample dictionaries, as if the package read the shards itself.

    samples = MixedSamples(mixer, batch_size=32).decode(partial=True).map(prepare).batched(32)
    loader = webdataset.WebLoader(samples, batch_size=None, num_workers=4)

A sample has `__key__`, `__url__`, "txt" and "json" as `webdataset.WebDataset` reads them from the shard, and also "draw" and "skill".
The order and the weights come from the mixer. Worker w of N prepares the batches w, w + N, ... of the rank, and the loader takes the
workers in turn. The batches are therefore the same for any number of workers.
"""

from skillshard.extras import needed

needed("webdataset", what="skillshard.webdataset")  # before the imports that fail without the extra

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, NoReturn

import numpy as np
import webdataset
from jaxtyping import Int
from torch.utils.data import IterableDataset, get_worker_info

from skillshard.errors import LengthError, PolicyError
from skillshard.mixing.mixer import Mixer
from skillshard.refusals import refuse_waiting
from skillshard.torch import StreamShare

_NAME = "MixedSamples"


class MixedSamples(webdataset.DataPipeline, webdataset.FluidInterface):  # type: ignore[misc]
    """A rank's share of a mixer's stream as a pipeline of `webdataset`, from the mixer's position on.

    The methods of `webdataset.WebDataset` prepare the samples: `decode(partial=True)`, `map`, `map_dict`, `to_tuple` and
    `batched`. Methods that take samples out of the stream or shuffle the samples are refused, because the position of the stream would
    then not be the number of trained samples. The pipeline reads a sample ahead, so lag=0 is refused.

    Call `mixer.load_state_dict` or `mixer.restart`, and report the losses of draw 0, before the loader starts. Save
    `mixer.state_dict(step=...)`, and iterate a loader once, as with `skillshard.torch.MixedDataset`.

    Args:
        mixer: Mixer with the same arguments on every rank.
        batch_size: Number of samples of a batch of this rank: the number that `batched` and the loader take.
        rank: Number of this process among the ranks. None: the rank of torch.distributed, or 0 without torch.distributed.
        world_size: Number of ranks. None: the number of torch.distributed, or 1 without torch.distributed.

    Raises:
        PolicyError: The mixer has lag=0, `batch_size` is below 1, or rank and world size do not fit. While reading: the
            stream would begin again.
        LedgerError: The stream begins at draw 0, and the ledger holds losses of an earlier attempt.

    Example:
        samples = MixedSamples(mixer, batch_size=32).map(prepare).batched(32)
    """

    def __init__(
        self, mixer: Mixer, *, batch_size: int, rank: int | None = None, world_size: int | None = None
    ) -> None:
        refuse_waiting(mixer, "a pipeline of webdataset")
        if batch_size < 1:
            raise PolicyError(f"batch_size is {batch_size}: give the number of samples of a batch, at least 1.")
        # The loader of an iterable dataset calls nothing of the dataset in its own process, and a worker cannot tell a report of
        # this attempt from a report of an earlier attempt. So the start is checked here.
        mixer.check_begin(mixer.position)
        super().__init__(_Draws(_TarShare(mixer, rank=rank, world_size=world_size), batch_size))
        self.batch_size = batch_size

    def batched(
        self,
        batchsize: int,
        collation_fn: Callable[[Any], Any] | None = webdataset.filters.default_collation_fn,
        partial: bool = True,
    ) -> "MixedSamples":
        """Make batches, as in `webdataset`.

        Raises:
            PolicyError: The batches have another size than `batch_size`, so the batches of several workers would be out of order.
        """
        self._check_size(batchsize)
        batches: MixedSamples = super().batched(batchsize, collation_fn=collation_fn, partial=partial)
        return batches

    def listed(self, batchsize: int, partial: bool = True) -> "MixedSamples":
        """Make lists of samples, as in `webdataset`. Raise PolicyError as in `batched`."""
        self._check_size(batchsize)
        lists: MixedSamples = super().listed(batchsize, partial=partial)
        return lists

    def shuffle(self, size: int, **_: Any) -> NoReturn:
        """Raise PolicyError: the stream is shuffled already, and the samples in the buffer would be lost at a resume."""
        raise PolicyError(
            f"{_NAME}.shuffle({size}): the stream is shuffled already, and a resume would lose the samples in the buffer. Leave the shuffle out."
        )

    def __len__(self) -> NoReturn:
        """Raise LengthError: the stream has no length in batches, and a loader would warn about or cut at any other number."""
        raise LengthError(
            f"{_NAME} has no length: count optimizer steps instead, with a scheduler's total_steps=... or a loop that stops at a step. The loader ends by "
            "itself if the stream ends (repeat=)."
        )

    def __bool__(self) -> bool:
        return True  # without this method, `if samples:` would ask for the length

    def mcached(self) -> NoReturn:
        """Raise PolicyError: the cache would hold an endless stream in memory, and would give the first samples again."""
        self._refuse_cache("mcached")

    def lmdb_cached(self, *_: Any, **__: Any) -> NoReturn:
        """Raise PolicyError, as `mcached` does."""
        self._refuse_cache("lmdb_cached")

    def _refuse_cache(self, method: str) -> NoReturn:
        raise PolicyError(
            f"{_NAME}.{method}() keeps an endless stream and gives its first samples again: leave the cache out. The shards are on the disk already, and "
            "ShardSet.open(..., cache=) keeps remote shards."
        )

    def select(self, predicate: Callable[[Any], bool], **_: Any) -> NoReturn:
        """Raise PolicyError: with samples left out, the position of the stream would not be the number of trained samples."""
        self._refuse_leaving_out("select")

    def rsample(self, p: float = 0.5) -> NoReturn:
        """Raise PolicyError, as `select` does."""
        self._refuse_leaving_out("rsample")

    def _refuse_leaving_out(self, method: str) -> NoReturn:
        raise PolicyError(
            f"{_NAME}.{method}() leaves samples out, and the mixer counts {self.batch_size} draws for each batch: a resume would go on at a wrong draw. "
            "Leave such samples out of the shards, at 'skillshard tag', or mask their loss."
        )

    def _check_size(self, batchsize: int) -> None:
        if batchsize != self.batch_size:
            raise PolicyError(
                f"batches of {batchsize} samples, and {_NAME}(batch_size={self.batch_size}): each worker reads the draws of whole batches, so give "
                "both the same number."
            )


class _TarShare(StreamShare[dict[str, Any]]):
    """A rank's share of a mixer's stream, as sample dictionaries."""

    def __init__(self, mixer: Mixer, *, rank: int | None, world_size: int | None) -> None:
        self.mixer = mixer
        super().__init__(mixer, Mixer, rank=rank, world_size=world_size)

    def _read(self, positions: Int[np.ndarray, " position"]) -> Sequence[dict[str, Any]]:
        return self.mixer.samples.tar_samples(self.mixer.find(positions))


class _Draws(IterableDataset[dict[str, Any]]):
    """The source of the pipeline: the draws of every N-th batch of a share, in worker w of N."""

    def __init__(self, share: _TarShare, batch_size: int) -> None:
        self.share, self.batch_size = share, batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # A worker would otherwise wait `wait_s` for losses that nobody reports. The losses of draw 0 come before the loader starts.
        self.share.stream.check_start(rank=self.share.rank)
        for batch in count(first, turns):
            indices = range(batch * self.batch_size, (batch + 1) * self.batch_size)
            try:
                samples = self.share.read(indices, name=_NAME)
            except StopIteration:  # the stream has ended; inside a generator Python would make a RuntimeError of it
                return
            yield from samples
