"""The mixed stream as a pipeline of the package `webdataset`: sample dictionaries, as if the package read the shards itself.

    samples = MixedSamples(mixer, batch_size=32).decode(partial=True).map(prepare).batched(32)
    loader = webdataset.WebLoader(samples, batch_size=None, num_workers=4)

A sample has `__key__`, `__url__`, "txt" and "json" as `webdataset.WebDataset` reads them from the shard, and also "draw" and "skill".
The order and the weights come from the mixer. Worker w of N prepares the batches w, w + N, ... of the rank, and the loader takes the
workers in turn. The batches are therefore the same for any number of workers.
"""

from skillshard.extras import needed

needed("webdataset", what="skillshard.webdataset")  # before the imports that fail without the extra

import copy
import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import webdataset
from jaxtyping import Int
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.fetch import _IterableDatasetFetcher
from webdataset import filters

from skillshard.errors import LengthError, PolicyError
from skillshard.mixing.mixer import Mixer
from skillshard.refusals import refuse_waiting
from skillshard.torch import StreamShare, frame_of

_NAME = "MixedSamples"
_SHUFFLE = filters.shuffle.f
_LEAVE_OUT = {filters.select.f: "select", filters.rsample.f: "rsample"}
_UNBATCHED = (filters.unbatched.f, filters.unlisted.f)
_SHARES = {webdataset.split_by_node, webdataset.split_by_worker, webdataset.single_node_only}


def _arguments(stage: Any) -> str:
    """Return the arguments of a stage as text."""
    values = [
        *map(str, getattr(stage, "args", ())),
        *(f"{name}={value}" for name, value in getattr(stage, "kw", {}).items()),
    ]
    return f"({', '.join(values)})"


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

    # `compose` and every method that adds a stage call this method.
    def append(self, f: Any) -> None:
        """Add a stage to this pipeline, as in `webdataset`.

        Raises:
            PolicyError: The stage shuffles the samples or leaves samples out, so a resume would lose or repeat samples. Or the stage makes batches of
                another size than `batch_size`, so the batches of several workers would be out of order.
        """
        function = getattr(f, "f", f)  # a stage of `webdataset` with arguments holds its function
        if function is _SHUFFLE or isinstance(f, filters.detshuffle):
            raise PolicyError(
                f"{_NAME}.shuffle{_arguments(f)}: the stream is shuffled already, and a resume would lose the samples in the buffer. Leave the shuffle out."
            )
        if function in _SHARES:
            raise PolicyError(
                f"{_NAME} with {function.__name__}: each rank and each worker reads its share of the stream already, and a second division would lose samples. "
                f"Leave {function.__name__} out."
            )
        if function in _LEAVE_OUT or (function is itertools.islice and f.args[:-1] not in {(), (0,), (None,)}):
            raise PolicyError(
                f"{_NAME}.{_LEAVE_OUT.get(function, 'slice')}() leaves samples out, and the mixer counts {self.batch_size} draws for each batch: a resume would "
                "go on at a wrong draw. Leave such samples out of the shards, at 'skillshard tag', or mask their loss."
            )
        if function is filters.batched.f:
            default = inspect.signature(function).parameters["batchsize"].default
            self._check_size(f.args[0] if f.args else f.kw.get("batchsize", default))
        super().append(f)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the outputs of the last stage, as `webdataset` does.

        Raises:
            PolicyError: A stage leaves samples out, collects samples or makes several outputs of a sample.
        """
        source = copy.copy(self.pipeline[0])
        counted = copy.copy(self)
        counted.pipeline = [source, *self.pipeline[1:]]
        functions = [getattr(stage, "f", stage) for stage in self.pipeline]
        depths = list(itertools.accumulate((f is filters.batched.f) - (f in _UNBATCHED) for f in functions))
        samples_per_output, at_once = (self.batch_size ** max(0, depth) for depth in (depths[-1], max(depths)))
        # `batched` reads one element ahead. Behind another `batched`, the element belongs to the next batch.
        num_batched = functions.count(filters.batched.f)
        ahead = 1 + (num_batched - 1) * at_once if num_batched else 0
        source.most = at_once + ahead
        for number, output in enumerate(super(MixedSamples, counted).__iter__()):
            if number == 0:
                self._check_fetch(samples_per_output)
            if number * samples_per_output >= source.num_read:
                raise PolicyError(source.other_number("makes several outputs of a sample"))
            source.most = ((number + 1) * samples_per_output // at_once + 1) * at_once + ahead
            yield output

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

    def _check_fetch(self, samples_per_output: int) -> None:
        """Refuse a loader whose workers do not fetch whole batches. The number of outputs of a fetch is known to the calling function alone."""
        worker, fetch = get_worker_info(), frame_of(_IterableDatasetFetcher.fetch)
        # A dataset of the user around this pipeline may collect the outputs to batches of its own.
        if worker is None or worker.num_workers == 1 or fetch is None or fetch.f_locals["self"].dataset is not self:
            return
        indices = fetch.f_locals["possibly_batched_index"]
        num = (1 if indices is None else len(indices)) * samples_per_output
        if num != self.batch_size:
            raise PolicyError(
                f"the loader takes {num:,} samples of a worker in turn, and each of the {worker.num_workers} workers reads whole batches of "
                f"{_NAME}(batch_size={self.batch_size}): the samples would come in another order than the draws, and a resume would lose samples. Make the "
                f"batches in the pipeline, {_NAME}(...).batched({self.batch_size}), and give WebLoader(batch_size=None), or give both the same batch_size."
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
        self.num_read = 0
        self.most: int | None = None
        """Largest number of samples that the stages need for their next output. None: not counted."""

    def other_number(self, what: str) -> str:
        return (
            f"a stage behind {_NAME} {what}: the stages have read {self.num_read:,} samples, and the outputs do not have as many. The mixer counts "
            f"{self.batch_size} draws for each batch, and a resume would go on at a wrong draw. A stage must give one output for each sample: a map that "
            "returns None or a handler that ignores an error leaves a sample out. Leave such samples out of the shards, at 'skillshard tag', or mask their loss."
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # A worker would otherwise wait `wait_s` for losses that nobody reports. The losses of draw 0 come before the loader starts.
        self.share.stream.check_start(rank=self.share.rank)
        for batch in itertools.count(first, turns):
            indices = range(batch * self.batch_size, (batch + 1) * self.batch_size)
            try:
                samples = self.share.read(indices, name=_NAME)
            except StopIteration:  # the stream has ended; inside a generator Python would make a RuntimeError of it
                return
            for sample in samples:
                if self.num_read == self.most:
                    raise PolicyError(self.other_number("leaves samples out, or collects samples"))
                self.num_read += 1
                yield sample
