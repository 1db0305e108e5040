"""The mixed stream in a PyTorch `DataLoader`, and in torchdata's `StatefulDataLoader`: as texts, or as blocks of tokens.

The dataset is map-style over an endless range: index i of a rank is draw (or block) first + i x world_size + rank of the global stream.
A `DataLoader` without a sampler asks for the indices 0, 1, 2, ... in batches and hands the batches out in that order. The batches are
therefore the same for any number of workers, and each worker fetches, collates and sends a whole batch at once.

A reader that shuffles, splits, skips or restarts the stream would lose or repeat samples. The dataset recognizes this reader by the
requested indices, and refuses. An endless stream has no length, and a schedule computed from a length would be wrong. `len(dataset)`
and `len(loader)` therefore raise a `LengthError`, which is a `TypeError`.
"""

from skillshard.extras import needed

needed("torch", what="skillshard.torch")  # before the imports that fail without the extra

import operator
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from types import FrameType
from typing import Any, NoReturn, SupportsIndex, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import Dataset, Sampler, SequentialSampler, get_worker_info
from torch.utils.data._utils.fetch import _MapDatasetFetcher

from skillshard.errors import LedgerError, LengthError, PolicyError
from skillshard.index_order import Fault, Reader, RequestedBatch, next_request
from skillshard.loader_items import (
    Blocks,
    Item,
    Items,
    MixedBatch,
    PackedItem,
    PackedTensors,
    block_collator,
    collate,
    collate_blocks,
)
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packed_batch import BLOCK_COLUMNS
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.stream import BLOCKS, DRAWS, Stream, StreamWords
from skillshard.number_checks import is_whole
from skillshard.ranks import process_rank, rank_and_size, restart, resume, world_size
from skillshard.sent_batches import register

__all__ = [
    "BLOCK_COLUMNS",
    "Blocks",
    "InOrder",
    "InOrderIterator",
    "Item",
    "Items",
    "MixedBatch",
    "MixedDataset",
    "PackedDataset",
    "PackedItem",
    "PackedTensors",
    "StreamShare",
    "block_collator",
    "collate",
    "collate_blocks",
    "dataset_of",
    "endless",
    "frame_of",
    "one_index",
    "process_rank",
    "refuse_walk",
    "restart",
    "resume",
    "world_size",
]
ENDLESS = 1 << 62
"""Number of indices after which a sequential sampler of an endless stream stops: above any training, within 64 bits."""
FRAMES_SEARCHED = 10
"""Number of calling functions that are searched for the sampler that asks for a length, or for the loader that fetches a batch. Wrappers of type
checkers and datasets of the user may lie between."""
T = TypeVar("T")


class StreamShare(Dataset[T], ABC):
    """A rank's share of a global stream, from the stream's position on: the common part of `MixedDataset` and `PackedDataset`.

    Args:
        stream: Global stream that all ranks share.
        kind: Class of the streams that the dataset reads.
        rank: Number of this process among the ranks. None: the rank of torch.distributed, or 0 without torch.distributed.
        world_size: Number of ranks. None: the number of torch.distributed, or 1 without torch.distributed.
    """

    collate: Callable[[Any], Any]
    """Function that makes a batch without a step per item."""

    def __init__(self, stream: Stream, kind: type, *, rank: int | None, world_size: int | None) -> None:
        # A packed stream in a `MixedDataset` would fail in a worker, at its first batch.
        if not isinstance(stream, kind):
            raise PolicyError(
                f"{type(self).__name__} reads a {kind.__name__}, and not {stream!r}: give a {kind.__name__}."
            )
        self.stream, self._words, self._ends = stream, stream.clock.words, stream.repeat != "epochs"
        self.rank, self.world_size = rank_and_size(rank, world_size)
        self._loaded: tuple[int, int] | None = None
        self._last: RequestedBatch | None = None
        self._requested: Sequence[int] | int | None = None
        self._last_place = (0, 0)
        # Position, generation and loop of the latest first batch. The memory is shared, because every loop over the loader starts
        # workers with fresh copies of this dataset, and a copy has to see that an earlier loop read the same stretch.
        self._begun = torch.full((3,), -1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @abstractmethod
    def _read(self, positions: Int[np.ndarray, " position"]) -> Sequence[T]:
        """Read the positions of the stream. Positions beyond the end of the stream are left out."""

    def __len__(self) -> int:
        """Return the number of samples (blocks) of this rank's share, from the stream's position on.

        Raises:
            LengthError: The stream is endless, or future losses decide where the stream ends.
            PolicyError: The whole stream has fewer samples (blocks) than ranks, so that every loop would end before its first batch.
            RoundError, LedgerError: A loader starts, and the stream cannot start, as `Mixer.check_start` describes.
        """
        num = self.stream.length()
        if num is not None:
            if num < self.world_size:
                raise PolicyError(self._too_short(num))
            return max(0, num - self._first) // self.world_size
        length = endless(type(self).__name__, losses_decide=self._ends)
        # A sequential sampler asks for the length in the loader's process, before the workers read. An error of the start is raised
        # here, because an error of a worker would reach the user wrapped in the worker's traceback.
        self.stream.check_start(rank=self.rank)
        return length

    def __bool__(self) -> bool:
        return True  # without this method, `if dataset:` would ask for the length

    # Python would make an iterator of `__getitem__`, and a loop over the dataset would take samples in silence.
    def __iter__(self) -> NoReturn:
        refuse_walk(type(self).__name__, self._words.variable)

    def __getitem__(self, index: SupportsIndex) -> T:
        """Read one sample or block to look at. The position of the loader does not matter, and the stream does not move.

        Raises:
            PolicyError: A loader reads the sample through another dataset around this dataset, in an order that would lose or repeat samples.
        """
        return self.look(index)

    # PyTorch's fetcher calls `__getitems__`, if a dataset has the method, with the indices of a whole batch.
    def __getitems__(self, indices: Sequence[int]) -> Sequence[T]:
        return self.read(indices)

    def read(
        self, indices: Sequence[int], *, processes: int = 1, rank: int | None = None, name: str | None = None
    ) -> Sequence[T]:
        """Read the next batch of a loader, after a check of the order of its indices.

        Args:
            indices: Indices of the batch.
            processes: Number of processes that take turns with the batches. 1: each process has a share of its own.
            rank: Number of this process among the processes. None: the rank of the share.
            name: Name of the dataset that the loader reads, for errors.

        Raises:
            PolicyError: The order of the indices would lose or repeat samples.
            RoundError, LedgerError: The stream cannot start, as `Mixer.check_start` describes.
        """
        positions = np.asarray(indices, np.int64)
        self._check_request(positions, processes, rank, name or type(self).__name__)
        return self.at(positions)

    def look(self, index: SupportsIndex, *, processes: int = 1, rank: int | None = None, name: str | None = None) -> T:
        """Read one sample or block, as `__getitem__` does. The arguments and the errors are those of `read`."""
        position = one_index(index, name or type(self).__name__)
        requested = requested_batch()
        # A dataset around this dataset may read one sample several times. The batch is checked once, at its first index.
        if requested is not None and requested is not self._requested:
            indices = np.atleast_1d(np.asarray(requested, np.int64))
            if indices[0] == position[0]:
                self._requested = requested
                self._check_request(indices, processes, rank, name or type(self).__name__)
        return self.at(position)[0]

    def _check_request(
        self, positions: Int[np.ndarray, " position"], processes: int, rank: int | None, name: str
    ) -> None:
        if not len(positions):
            raise PolicyError(
                f"a loader asks {name} for a batch without indices: give the DataLoader no batch_sampler."
            )
        if get_worker_info() is not None:
            # The threads of the package tokenizers do not survive a fork. With TOKENIZERS_PARALLELISM=true, a forked worker would
            # wait for these threads for ever, in this module and in a collate_fn of the user.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        # Without workers, the start is checked once for each position and generation, and not for every batch.
        if get_worker_info() is None and (self._last is None or self._place() != self._last_place):
            self.stream.check_start(rank=self.rank if rank is None else rank)
        place = Reader(processes=processes, rank=rank or 0) if processes > 1 else Reader()
        self._check_order(positions, place, name)

    def at(self, indices: Int[np.ndarray, " position"]) -> Sequence[T]:
        """Read samples or blocks in any order.

        At the end of a stream, each rank gets as many samples or blocks as the last rank. Up to `world_size - 1` draws or blocks are
        left over.

        Raises:
            StopIteration: The stream has ended. The loop over the loader ends.
        """
        positions = self._first + indices * self.world_size
        last_rank = positions + self.world_size - 1
        # A batch is cut where the last rank has no more samples, not where this rank has none: a rank with one batch more than the
        # others would wait for them in the next all-reduce.
        if self.world_size > 1 and self._ends and not self.stream.holds(int(last_rank[-1])):
            positions = positions[[self.stream.holds(position) for position in last_rank.tolist()]]
        items = self._read(positions + self.rank) if len(positions) else ()
        if not len(items):
            # The length of this stream is unknown, so the loader could not be refused before its first batch.
            if self._first == 0 and not self.stream.holds(self.world_size - 1):
                raise PolicyError(self._too_short(None))
            raise StopIteration
        return items

    def _too_short(self, num: int | None) -> str:
        length = (
            f"ends after {num:,} {self._words.position}s" if num is not None else f"has fewer {self._words.position}s"
        )
        return (
            f"the stream {length}, and world_size is {self.world_size:,}: each rank gets an equal share, so no rank would get a batch. Give fewer "
            f"ranks, or Mixer(repeat='epochs')."
        )

    @property
    def _first(self) -> int:
        """The stream's position of index 0 on rank 0. For a loader that was loaded from a state, the position is part of the state."""
        position = self.stream.position
        return self._loaded[1] if self._loaded is not None and self._loaded[0] == position else position

    def _place(self) -> tuple[int, int]:
        """Return the stream's position of index 0, and the generation of the ledger."""
        return self._first, self.stream.generation

    def _check_order(self, indices: Int[np.ndarray, " position"], process: Reader, name: str) -> None:
        worker = get_worker_info()
        reader = process if worker is None else replace(process, worker=worker.id, num_workers=worker.num_workers)
        # A DataLoader draws one base seed for each loop and gives worker i the seed base + i. The base is therefore one number for all
        # workers of a loop, and another number in the next loop: it tells the second worker of a loop apart from a second loop.
        loop = 0 if worker is None else worker.seed - worker.id
        begun, place = self._begun.numpy(), self._place()
        *place_begun, loop_begun = begun.tolist()
        last, resumed = self._last, self._loaded is not None and self._loaded[0] == self.stream.position
        if last is not None and place != self._last_place:
            # The stream was moved since the last batch. A new iterator begins at index 0; an old iterator counts on.
            if isinstance(next_request(indices, None, reader), str):
                raise PolicyError(self._moved(place[0]))
            last = None
        outcome = next_request(indices, last, reader, resumed=resumed)
        if last is None and not isinstance(outcome, str) and (*place_begun,) == place and loop_begun != loop:
            outcome = "begun again"
        if isinstance(outcome, str):
            raise PolicyError(self._refusal(outcome, indices, reader, name))
        if last is None:
            begun[:] = *place, loop
        self._last, self._last_place = outcome, place

    def _moved(self, first: int) -> str:
        return (
            f"{self._words.variable} stands at {self._words.position} {first:,}, and stood at {self._last_place[0]:,} when this iterator was begun: it would "
            "go on somewhere else. Make a new iterator, iter(loader), after load_state_dict() and restart(), and do not iterate the same "
            f"{self._words.variable} beside a loader."
        )

    def _refusal(self, fault: Fault, indices: Int[np.ndarray, " position"], reader: Reader, name: str) -> str:
        if fault == "begun again":
            return (
                f"the stream from {self._words.position} {self._first:,} was read through this dataset already, and would begin again: keep one "
                f"iterator for the whole run. To go on where training stands, call {self._words.variable}.load_state_dict("
                f"{self._words.variable}.state_dict(step=...)) first; to read the same again, make a new {name}."
            )
        asks = f"a loader asks {name} for indices {int(indices[0]):,} to {int(indices[-1]):,}"
        if fault == "skipped":
            return (
                f"{asks} first, and the stream begins at index 0: the loader skips batches, or shares out what {name} has already shared "
                f"out, and samples would be lost. {self._words.variable}.load_state_dict() alone moves the stream to where training stands: leave "
                "accelerate.skip_first_batches away, set TrainingArguments(ignore_data_skip=True), and resume a StatefulDataLoader "
                f"with its whole state.{_WHOLE_STREAM if reader.processes == 1 else ''}"
            )
        if fault == "strided":
            return (
                f"{asks} in steps of {int(indices[1] - indices[0]):,}: a DistributedSampler shares out again what {name} has already shared "
                "out, and samples would be lost. Lightning's Trainer and Fabric.setup_dataloaders add this sampler: give them "
                "use_distributed_sampler=False. Ray Train's prepare_data_loader takes add_dist_sampler=False. Elsewhere, give the DataLoader no sampler."
            )
        if fault == "shuffled":
            return (
                f"{asks}, not one after the other: it shuffles the stream, which is shuffled already, and samples would be lost. Give "
                "the DataLoader no shuffle and no sampler, and do not take a part of the dataset by random_split or Subset."
            )
        assert self._last is not None
        before = f"{self._last.start:,} to {self._last.start + self._last.num - 1:,}"
        return (
            f"{asks} after {before}: it leaves out batches, or shares out again what {name} has already shared out, and samples would be "
            f"lost. Give the DataLoader no sampler and in_order=True.{_WHOLE_STREAM if reader.processes == 1 else ''}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the dataset for a `StatefulDataLoader`: the position from which the loader counts its indices."""
        return {"first": self._first, "rank": self.rank, "world_size": self.world_size, **self.stream.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state. A `StatefulDataLoader` calls this method in each worker.

        Raises:
            LedgerError: The state is no state of a dataset, or is of another run, rank or world size.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping) or state.keys() != own.keys() or not is_whole(state["first"], 0):
            raise LedgerError(
                f"this is no state of a {type(self).__name__}: the state of a StatefulDataLoader holds {', '.join(own)} of its dataset. Give the state "
                "that loader.state_dict() returned."
            )
        # `first` differs by design: the state was saved in the middle of the run.
        for name, now in own.items():
            if name != "first" and state[name] != now:
                raise LedgerError(
                    f"this loader's state is of {name} {state[name]}, and here {name} is {now}. A StatefulDataLoader goes on with the "
                    f"run, rank and world size that it had; to change them, resume by {self._words.variable}.load_state_dict() alone."
                )
        # The present position is kept beside the loaded one: once the stream is moved, the loaded position is no longer valid.
        self._loaded = self.stream.position, operator.index(state["first"])
        self._last = None
        self._begun.fill_(-1)


_WHOLE_STREAM = " Under accelerate use skillshard.hf.WholeStream, which takes no rank."


def endless(name: str, *, losses_decide: bool = False) -> int:
    """Return `ENDLESS` as the length of a stream whose length is not known, to a sequential sampler alone.

    `DataLoader(dataset)` makes a `SequentialSampler`, whose iterator is `range(len(dataset))`. Any other caller would use the same
    length for a schedule, a progress bar or a random index. Only the caller tells the two cases apart, so this function and
    `requested_batch` look at the calling functions.

    Raises:
        LengthError: The caller is not a sequential sampler.
    """
    if frame_of(SequentialSampler.__iter__) is not None:
        return ENDLESS
    why = "the losses decide where its stream ends" if losses_decide else "its stream is endless"
    raise LengthError(
        f"{name} has no length, since {why}: count optimizer steps instead, with Trainer(max_steps=...), a scheduler's "
        "total_steps=... or a loop that stops at a step. Leave shuffle and sampler away, and do not join or split the dataset; Lightning's "
        "Trainer and Fabric.setup_dataloaders take use_distributed_sampler=False, and Ray Train's prepare_data_loader add_dist_sampler=False."
    )


def requested_batch() -> Sequence[int] | int | None:
    """Return the indices of the batch that a loader is fetching, or the index if the loader makes no batches. None: no loader is near.

    A dataset of the user around a stream's dataset asks for single samples, and the indices of the batch show the order of the loader.
    """
    frame = frame_of(_MapDatasetFetcher.fetch)
    return None if frame is None else frame.f_locals["possibly_batched_index"]


def frame_of(function: Callable[..., Any]) -> FrameType | None:
    """Return the frame of a function among the nearest calling functions. None: the function is not among them."""
    # The code object is compared and not a name, so that another function of this name does not pass.
    frame = sys._getframe(1)
    for _ in range(FRAMES_SEARCHED):
        if frame.f_code is function.__code__:
            return frame
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def refuse_walk(name: str, owner: str) -> NoReturn:
    """Raise a LengthError for the loop `for item in dataset`, by which some samplers measure all samples."""
    raise LengthError(
        f"{name} is read through a DataLoader without a sampler, and not item by item: a walk over the stream would not end, or would "
        f"take its samples from the training. To look at the stream, call {owner}.batch(first, num)."
    )


def one_index(index: Any, name: str) -> Int[np.ndarray, " position"]:
    """Return an index as an array of one position.

    Raises:
        PolicyError: The index is a slice, a negative number or no whole number. An endless stream has no end to count from.
    """
    try:
        number = operator.index(index)
    except TypeError:
        number = -1
    if not 0 <= number < ENDLESS:
        raise PolicyError(
            f"{name}[{index!r}]: an index is a whole number from 0, counted from where the stream stands."
        )
    return np.array([number], np.int64)


class MixedDataset(StreamShare[Item]):
    """A rank's share of a mixer's stream, from the mixer's position on.

    Make the iterator (`iter(loader)`) after `mixer.load_state_dict`, because the workers copy the mixer at that moment. Do not shuffle:
    the stream is shuffled already. The loader reads ahead, so save `mixer.state_dict(step=...)`, which counts trained steps and
    not fetched batches.

    A loader is iterated once. A second `for batch in loader` would start again at the first draw, because the loader reads ahead and
    does not know the number of used batches. The second loop is refused: call `mixer.load_state_dict` first, or keep the iterator.

    If the stream ends (`repeat`), the loader ends after a last batch, which may be short. Each rank gets the same number of samples,
    so up to `world_size - 1` draws at the end are left over. `len(loader)` is known if the policy is static.

    A `StatefulDataLoader` has a state of its own. Give the loader `sampler=InOrder(dataset)`, so that resuming does not count through
    the consumed draws. Load the mixer's state too: the mixer then ignores records of the ledger that are newer than the checkpoint.
    The loader's state fits a single rank and number of workers. The mixer's state fits any number of ranks and workers.

    A run that begins at draw 0 is checked in the main process when the loader starts. The losses of draw 0 must be reported if the
    policy needs these losses, and the ledger must hold no losses of an earlier attempt (otherwise call `restart`).

    Args:
        mixer: Mixer with the same arguments on every rank.
        rank: Number of this process among the ranks. None: the rank of torch.distributed, or 0 without torch.distributed.
        world_size: Number of ranks. None: the number of torch.distributed, or 1 without torch.distributed.

    Raises:
        PolicyError: Rank and world size do not fit, or the environment names several processes but torch.distributed is
            not initialised. While reading: the indices are shuffled, split or begun again.

    Example:
        loader = DataLoader(MixedDataset(mixer), batch_size=32, num_workers=4, collate_fn=collate)
    """

    collate = staticmethod(collate)

    def __init__(self, mixer: Mixer, *, rank: int | None = None, world_size: int | None = None) -> None:
        self.mixer = mixer
        super().__init__(mixer, Mixer, rank=rank, world_size=world_size)
        self._key = register(mixer)  # here, in the loader's process, which has to know the key of its workers' batches

    def _read(self, positions: Int[np.ndarray, " position"]) -> Items:
        return Items(self.mixer, self.mixer.find(positions), key=self._key)


class PackedDataset(StreamShare[PackedItem]):
    """A rank's share of a packed stream, from the stream's position on. The workers pack.

    The rules of `MixedDataset` hold for blocks in place of draws, and for `packed` in place of `mixer`. Save
    `packed.state_dict(step=...)`, report by `packed.report`, and resume by `packed.load_state_dict`. On several ranks, resume by
    `resume(packed, state)`.

    Args:
        packed: Packed tokens with the same arguments on every rank.
        rank: Number of this process among the ranks, as for `MixedDataset`.
        world_size: Number of ranks, as for `MixedDataset`.

    Raises:
        PolicyError: The same reasons as for `MixedDataset`.

    Example:
        loader = DataLoader(PackedDataset(packed), batch_size=8, num_workers=4, collate_fn=collate_blocks)
    """

    collate = staticmethod(collate_blocks)

    def __init__(self, packed: PackedTokens, *, rank: int | None = None, world_size: int | None = None) -> None:
        self.packed = packed
        super().__init__(packed, PackedTokens, rank=rank, world_size=world_size)

    def _read(self, positions: Int[np.ndarray, " position"]) -> Blocks:
        return Blocks(self.packed.at(positions), measured_on=self.packed.measured_on)


_DATASETS: "dict[StreamWords, Callable[..., StreamShare[Any]]]" = {DRAWS: MixedDataset, BLOCKS: PackedDataset}


def dataset_of(stream: Stream, *, rank: int | None = None, world_size: int | None = None) -> StreamShare[Any]:
    """Make the dataset of a stream: a `MixedDataset` for a mixer, a `PackedDataset` for packed tokens."""
    return _DATASETS[stream.clock.words](stream, rank=rank, world_size=world_size)


class InOrder(Sampler[int]):
    """A sampler that counts 0, 1, 2, ... without end and has a state.

    With this sampler a `StatefulDataLoader` needs the same time to resume at any draw. The dataset ends the loop at the end of its stream.

    Args:
        dataset: Dataset of the loader. If the stream ends, the dataset gives the loader a length. The start of the stream is
            checked when the loader starts.

    Example:
        dataset = MixedDataset(mixer)
        loader = StatefulDataLoader(dataset, sampler=InOrder(dataset), batch_size=32, collate_fn=collate)
    """

    def __init__(self, dataset: Sized | None = None) -> None:
        self.dataset = dataset

    def __iter__(self) -> "InOrderIterator":
        if isinstance(self.dataset, StreamShare):
            self.dataset.stream.check_start(rank=self.dataset.rank)
        return InOrderIterator()

    def __len__(self) -> int:
        if self.dataset is None:
            raise LengthError(
                "InOrder() counts without end and has no length: give InOrder(dataset) for a stream that ends, and count "
                "optimizer steps (max_steps, total_steps) otherwise. Lightning's Trainer and Fabric.setup_dataloaders take "
                "use_distributed_sampler=False."
            )
        return len(self.dataset)

    def __bool__(self) -> bool:
        return True


class InOrderIterator(Iterator[int]):
    """The iterator of `InOrder`. Its state is the next number."""

    def __init__(self) -> None:
        self._next = 0

    def __next__(self) -> int:
        self._next += 1
        return self._next - 1

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over a state.

        Raises:
            LedgerError: The value is no state of this iterator.
        """
        if not isinstance(state, Mapping) or not is_whole(state.get("next"), 0):
            raise LedgerError(f"{state!r} is no state of a sampler InOrder: give the state that state_dict() returned.")
        self._next = operator.index(state["next"])
