"""The mixed stream in a PyTorch `DataLoader`, and in torchdata's `StatefulDataLoader`: as texts, or as blocks of tokens.

The dataset is map-style over an endless range: index i of a rank is draw (or block) first + i x world_size + rank of the global stream.
A `DataLoader` without a sampler asks for 0, 1, 2, ... in batches and hands them out in that order, so the batches are the same
for any number of workers, and each worker fetches, collates and sends a whole batch at once.

A stream cannot be shuffled, split, skipped or begun anew without losing or repeating samples. The dataset notices such a reader
from the indices that it asks for, and refuses. An endless stream has no length: `len(dataset)` and `len(loader)` raise a
`LengthError`, which is a `TypeError`, because a schedule computed from a length would be wrong.
"""

from skillshard.extras import needed

needed("torch", what="skillshard.torch")  # before the imports that fail without the extra

import operator
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from functools import cached_property
from typing import Any, NoReturn, SupportsIndex, TypedDict, TypeVar, overload

import numpy as np
import torch
import torch.distributed
from jaxtyping import Int
from torch.utils.data import Dataset, Sampler, SequentialSampler, get_worker_info

from skillshard.errors import LedgerError, LengthError, PolicyError, SkillshardError
from skillshard.index_order import Asked, Asker, Fault, next_asked
from skillshard.mixing.mixer import Batch, Mixer
from skillshard.mixing.packing import PackedBatch, PackedTokens
from skillshard.mixing.round_plan import Places
from skillshard.mixing.stream import BLOCKS, DRAWS, Stream, StreamWords
from skillshard.sent_batches import SentBatch, register

ENDLESS = 1 << 62
"""Where a sequential sampler stops counting the indices of an endless stream."""
FRAMES_SEARCHED = 6
"""Callers looked at to find out who asks for a length; wrappers of type checkers may stand between."""
T = TypeVar("T")


class Item(TypedDict):
    """One sample."""

    draw: int
    skill: str
    text: str


class MixedBatch(TypedDict):
    """A batch as `collate` makes it."""

    draw: Int[np.ndarray, " sample"]
    skill: list[str]
    text: list[str]


class Items(Sequence[Item]):
    """The samples of one batch; texts are read, and made into `Item`s, only when asked for."""

    def __init__(self, mixer: Mixer, places: Places, *, key: str | None = None) -> None:
        self.mixer, self.places, self.key = mixer, places, key

    @cached_property
    def batch(self) -> Batch:
        """The samples as one."""
        return self.mixer.cut(self.places)

    @property
    def metas(self) -> list[dict[str, Any]]:
        """The metadata of each sample."""
        return self.mixer.metas(self.places)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> Item: ...

    @overload
    def __getitem__(self, at: slice) -> list[Item]: ...

    def __getitem__(self, at: int | slice) -> Item | list[Item]:
        if isinstance(at, slice):
            return [self[number] for number in range(len(self))[at]]
        return Item(draw=int(self.batch.draw[at]), skill=self.batch.skill[at], text=self.batch.text[at])


def collate(items: Items) -> Mapping[str, Any]:
    """A `MixedBatch`, without a step per sample: `DataLoader(..., collate_fn=collate)`.

    Draws are a NumPy array, where PyTorch's default collation makes a tensor: a worker's tensor goes through a file of its own.
    Workers send only the places of the texts, and the loader's process cuts the texts out of the same shards (`skillshard.sent_batches`).
    A `collate_fn` of your own gets the same `Items`, a sequence of `Item` whose arrays are in `items.batch`. What it returns is sent as
    it is.
    """
    if items.key is None or get_worker_info() is None:
        return _mixed_batch(items.batch)
    names = tuple(MixedBatch.__annotations__)
    return SentBatch(items.mixer, items.key, items.places, values=_mixed_batch, names=names)


def _mixed_batch(batch: Batch) -> MixedBatch:
    return MixedBatch(draw=batch.draw, skill=batch.skill, text=batch.text)


class PackedItem(TypedDict):
    """One block."""

    block: int
    input_ids: torch.Tensor
    draw: torch.Tensor
    skill_tokens: torch.Tensor


class PackedTensors(TypedDict):
    """A batch as `collate_blocks` and PyTorch's default collation make it."""

    block: torch.Tensor
    input_ids: torch.Tensor
    draw: torch.Tensor
    skill_tokens: torch.Tensor


class Blocks(Sequence[PackedItem]):
    """The blocks of one batch; each is made into a `PackedItem` only when asked for."""

    def __init__(self, batch: PackedBatch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch)

    @overload
    def __getitem__(self, at: int) -> PackedItem: ...

    @overload
    def __getitem__(self, at: slice) -> list[PackedItem]: ...

    def __getitem__(self, at: int | slice) -> PackedItem | list[PackedItem]:
        if isinstance(at, slice):
            return [self[number] for number in range(len(self))[at]]
        return PackedItem(
            block=int(self.batch.block[at]),
            input_ids=torch.from_numpy(self.batch.input_ids[at]),
            draw=torch.from_numpy(self.batch.draw[at]),
            skill_tokens=torch.from_numpy(self.batch.skill_tokens[at]),
        )


def collate_blocks(blocks: Blocks) -> PackedTensors:
    """What PyTorch's default collation gives, without a step per block: `DataLoader(..., collate_fn=collate_blocks)`.

    `input_ids` and `draw` are (block, token), `skill_tokens` is (block, skill), `block` their positions in the packed stream.
    Tokens with draw -1 are filled up beyond the end of the stream: leave them out of the loss. Your own `collate_fn` gets the
    same: a sequence of `PackedItem`, or its `batch` as one, which also knows `position_ids`, and which tokens are `learned` where
    prompts are masked.
    """
    batch = blocks.batch
    return PackedTensors(
        block=torch.from_numpy(batch.block),
        input_ids=torch.from_numpy(batch.input_ids),
        draw=torch.from_numpy(batch.draw),
        skill_tokens=torch.from_numpy(batch.skill_tokens),
    )


class StreamShare(Dataset[T], ABC):
    """A rank's share of a global stream, from where the stream stands; what `MixedDataset` and `PackedDataset` have in common.

    Args:
        stream: the global stream that all ranks share.
        rank: Number of this process among the ranks. None: the rank of torch.distributed, or 0 without torch.distributed.
        world_size: Number of ranks. None: the number of torch.distributed, or 1 without torch.distributed.
    """

    collate: Callable[[Any], Any]
    """The function of this module that makes a batch without a step per item."""

    def __init__(self, stream: Stream, *, rank: int | None, world_size: int | None) -> None:
        self.stream, self._words, self._ends = stream, stream.clock.words, stream.repeat != "epochs"
        self.rank, self.world_size = _place(rank, world_size)
        self._loaded: tuple[int, int] | None = None
        self._last: Asked | None = None
        self._last_place = (0, 0)
        self._begun = torch.full((3,), -1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @abstractmethod
    def _read(self, positions: Int[np.ndarray, " position"]) -> Sequence[T]:
        """What is there; positions beyond the end are left out."""

    def __len__(self) -> int:
        """Samples (blocks) of this rank's share from where the stream stands.

        Raises:
            LengthError: the stream is endless, or the losses to come decide where it ends.
            RoundError, LedgerError: a loader begins, and the stream cannot begin, as `Mixer.check_start` says.
        """
        num = self.stream.length()
        if num is not None:
            return max(0, num - self._first) // self.world_size
        length = endless(type(self).__name__, losses_decide=self._ends)
        self.stream.check_start(
            rank=self.rank
        )  # a sequential sampler asks in the loader's process, before its workers read
        return length

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> NoReturn:
        refuse_walk(type(self).__name__, self._words.variable)

    def __getitem__(self, index: SupportsIndex) -> T:
        """One sample or block, to look at: wherever the loader stands, and without moving the stream."""
        return self.at(one_index(index, type(self).__name__))[0]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[T]:
        return self.read(indices)

    def read(
        self, indices: Sequence[int], *, processes: int = 1, rank: int | None = None, name: str | None = None
    ) -> Sequence[T]:
        """The next batch that a loader asks for.

        Args:
            indices: of the batch.
            processes: processes that take turns in the batches; 1 where each has a share of its own.
            rank: of this process among them; None: that of the share.
            name: the dataset that the loader was given, for errors.

        Raises:
            PolicyError: the order of the indices would lose or repeat samples.
            RoundError, LedgerError: the stream cannot begin, as `Mixer.check_start` says.
        """
        asked = np.asarray(indices, np.int64)
        if get_worker_info() is None and (self._last is None or self._place() != self._last_place):
            self.stream.check_start(rank=self.rank if rank is None else rank)
        self._check_order(asked, processes, name or type(self).__name__)
        return self.at(asked)

    def at(self, indices: Int[np.ndarray, " position"]) -> Sequence[T]:
        """The samples or blocks, asked for in any order; StopIteration, which ends the loop over the loader, where the stream has ended.

        At the end of a stream, each rank gets as many as the last rank: up to `world_size - 1` draws or blocks are left over.
        """
        positions = self._first + indices * self.world_size
        last_rank = positions + self.world_size - 1
        if self.world_size > 1 and self._ends and not self.stream.holds(int(last_rank[-1])):
            positions = positions[[self.stream.holds(position) for position in last_rank.tolist()]]
        found = self._read(positions + self.rank) if len(positions) else ()
        if not len(found):
            raise StopIteration
        return found

    @property
    def _first(self) -> int:
        """The position of index 0 on rank 0: where the stream stands, or stood when a loaded loader was begun."""
        stands = self.stream.position
        return self._loaded[1] if self._loaded is not None and self._loaded[0] == stands else stands

    def _place(self) -> tuple[int, int]:
        """Where index 0 is, and the generation of the ledger that is read."""
        return self._first, self.stream.generation

    def _check_order(self, indices: Int[np.ndarray, " position"], processes: int, name: str) -> None:
        worker = get_worker_info()
        asker = Asker(processes=processes) if worker is None else Asker(worker.id, worker.num_workers, processes)
        loop = 0 if worker is None else worker.seed - worker.id  # one number for all workers of a loop over the loader
        begun, place = self._begun.numpy(), self._place()
        *place_begun, loop_begun = begun.tolist()
        last, resumed = self._last, self._loaded is not None and self._loaded[0] == self.stream.position
        if last is not None and place != self._last_place:
            if isinstance(next_asked(indices, None, asker), str):
                raise PolicyError(self._moved(place[0]))
            last = None
        asked = next_asked(indices, last, asker, resumed=resumed)
        if last is None and not isinstance(asked, str) and (*place_begun,) == place and loop_begun != loop:
            asked = "begun again"
        if isinstance(asked, str):
            raise PolicyError(self._refusal(asked, indices, asker, name))
        if last is None:
            begun[:] = *place, loop
        self._last, self._last_place = asked, place

    def _moved(self, first: int) -> str:
        return (
            f"{self._words.variable} stands at {self._words.position} {first:,}, and stood at {self._last_place[0]:,} when this iterator was begun: it would "
            "go on somewhere else. Make a new iterator, iter(loader), after load_state_dict() and restart(), and do not iterate the same "
            f"{self._words.variable} beside a loader."
        )

    def _refusal(self, fault: Fault, indices: Int[np.ndarray, " position"], asker: Asker, name: str) -> str:
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
                f"with its whole state.{_WHOLE_STREAM if asker.processes == 1 else ''}"
            )
        if fault == "strided":
            return (
                f"{asks} in steps of {int(indices[1] - indices[0]):,}: a DistributedSampler shares out again what {name} has already shared "
                "out, and samples would be lost. Lightning's Trainer and Fabric.setup_dataloaders add this sampler: give them "
                "use_distributed_sampler=False. Elsewhere, give the DataLoader no sampler."
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
            f"lost. Give the DataLoader no sampler and in_order=True.{_WHOLE_STREAM if asker.processes == 1 else ''}"
        )

    def state_dict(self) -> dict[str, Any]:
        """What a `StatefulDataLoader` keeps of the dataset: from where it counts its indices."""
        return {"first": self._first, "rank": self.rank, "world_size": self.world_size, **self.stream.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Called by a `StatefulDataLoader`, in each of its workers; LedgerError if the state is of another run or rank."""
        for name, now in self.state_dict().items():
            if name != "first" and state[name] != now:
                raise LedgerError(
                    f"this loader's state is of {name} {state[name]}, and here {name} is {now}. A StatefulDataLoader goes on with the "
                    f"run, rank and world size that it had; to change them, resume by {self._words.variable}.load_state_dict() alone."
                )
        self._loaded = self.stream.position, int(state["first"])
        self._last = None
        self._begun.fill_(-1)


_WHOLE_STREAM = " Under accelerate use skillshard.hf.WholeStream, which takes no rank."


def endless(name: str, *, losses_decide: bool = False) -> int:
    """The length of a stream whose length is not known: `ENDLESS` for a sampler that counts through it, else LengthError.

    `DataLoader(dataset)` makes a `SequentialSampler`, whose iterator is `range(len(dataset))`. The same length, asked for by
    anyone else, ends in a schedule, a progress bar or a random index. Only the caller tells the two apart, so this is the one
    place that looks at it.
    """
    frame = sys._getframe(1)
    for _ in range(FRAMES_SEARCHED):
        if frame.f_code is SequentialSampler.__iter__.__code__:
            return ENDLESS
        if frame.f_back is None:
            break
        frame = frame.f_back
    why = "the losses decide where its stream ends" if losses_decide else "its stream is endless"
    raise LengthError(
        f"{name} has no length, since {why}: count optimizer steps instead, with Trainer(max_steps=...), a scheduler's "
        "total_steps=... or a loop that stops at a step. Leave shuffle and sampler away, and do not join or split the dataset; Lightning's "
        "Trainer and Fabric.setup_dataloaders take use_distributed_sampler=False."
    )


def refuse_walk(name: str, owner: str) -> NoReturn:
    """LengthError for `for item in dataset`, which some samplers do to look at all lengths."""
    raise LengthError(
        f"{name} is read through a DataLoader without a sampler, and not item by item: a walk over the stream would not end, or would "
        f"take its samples from the training. To look at the stream, call {owner}.batch(first, num)."
    )


def one_index(index: Any, name: str) -> Int[np.ndarray, " position"]:
    """An index as an array; PolicyError for a slice, a negative number and whatever else counts from an end that is not there."""
    try:
        number = operator.index(index)
    except TypeError:
        number = -1
    if not 0 <= number < ENDLESS:
        raise PolicyError(
            f"{name}[{index!r}]: an index is a whole number from 0, counted from where the stream stands."
        )
    return np.array([number], np.int64)


def process_rank() -> int:
    """Rank of this process: torch.distributed's, or the one of the environment, or 0; PolicyError if RANK is no number."""
    return torch.distributed.get_rank() if _several() else _of_environment("RANK", "0")


def world_size() -> int:
    """Number of processes of the training: torch.distributed's, or the one of the environment, or 1.

    Raises:
        PolicyError: WORLD_SIZE is no number.
    """
    return torch.distributed.get_world_size() if _several() else _of_environment("WORLD_SIZE", "1")


def _of_environment(name: str, default: str) -> int:
    number = os.environ.get(name, default)
    if not re.fullmatch(r"\d+", number):
        raise PolicyError(f"the environment says {name}={number!r}: it must be a whole number, as torchrun sets it.")
    return int(number)


class MixedDataset(StreamShare[Item]):
    """A rank's share of a mixer's stream, from where the mixer stands.

    Make the iterator (`iter(loader)`) after `mixer.load_state_dict`: workers copy the mixer then. Do not shuffle: the
    stream is shuffled. Since the loader reads ahead, save `mixer.state_dict(step=...)`, not what was fetched.

    A loader is iterated once: a second `for batch in loader` would begin again at the first draw, because a loader that
    reads ahead cannot say where the first one stopped. It is refused; go on by `mixer.load_state_dict`, or keep the iterator.

    A stream that ends (`repeat`) ends the loader after its last, perhaps short batch. Each rank gets as many samples as the
    others, so up to `world_size - 1` draws at the end are left over. `len(loader)` is known where the policy is static.

    In a `StatefulDataLoader` the state of the middle of the run is the loader's; give it `sampler=InOrder(dataset)`, so that it
    resumes without counting through the draws consumed. Load the mixer's state too: it leaves behind what the ledger learnt
    later. The loader's state is of one rank and number of workers; the mixer's is not.

    A run that begins at draw 0 is checked where the loader begins, in the main process: the losses of draw 0 must have been
    reported, where the policy needs them, and the ledger must hold no losses of an earlier attempt (call `restart` for these).

    Args:
        mixer: built alike on every rank.
        rank: Number of this process among the ranks. None: the rank of torch.distributed, or 0 without torch.distributed.
        world_size: Number of ranks. None: the number of torch.distributed, or 1 without torch.distributed.

    Raises:
        PolicyError: rank and world size do not fit, or the environment names several processes but torch.distributed is
            not initialised; when read: indices that were shuffled, split or begun anew.

    Example:
        loader = DataLoader(MixedDataset(mixer), batch_size=32, num_workers=4, collate_fn=collate)
    """

    collate = staticmethod(collate)

    def __init__(self, mixer: Mixer, *, rank: int | None = None, world_size: int | None = None) -> None:
        self.mixer = mixer
        super().__init__(mixer, rank=rank, world_size=world_size)
        self._key = register(mixer)

    def _read(self, positions: Int[np.ndarray, " position"]) -> Items:
        return Items(self.mixer, self.mixer.find(positions), key=self._key)


class PackedDataset(StreamShare[PackedItem]):
    """A rank's share of a packed stream, from where it stands; the workers tokenize and pack.

    All that `MixedDataset` says holds, with blocks for draws and `packed` for `mixer`: save `packed.state_dict(step=...)`, report by
    `packed.report`, resume by `packed.load_state_dict` (on several ranks `resume(packed, state)`).

    Args:
        packed: built alike on every rank.
        rank: Number of this process among the ranks, as for `MixedDataset`.
        world_size: Number of ranks, as for `MixedDataset`.

    Raises:
        PolicyError: as for `MixedDataset`.

    Example:
        loader = DataLoader(PackedDataset(packed), batch_size=8, num_workers=4, collate_fn=collate_blocks)
    """

    collate = staticmethod(collate_blocks)

    def __init__(self, packed: PackedTokens, *, rank: int | None = None, world_size: int | None = None) -> None:
        self.packed = packed
        super().__init__(packed, rank=rank, world_size=world_size)

    def _read(self, positions: Int[np.ndarray, " position"]) -> Blocks:
        return Blocks(self.packed.at(positions))


_DATASETS: "dict[StreamWords, Callable[..., StreamShare[Any]]]" = {DRAWS: MixedDataset, BLOCKS: PackedDataset}
"""The dataset of each kind of stream."""


def dataset_of(stream: Stream, *, rank: int | None = None, world_size: int | None = None) -> StreamShare[Any]:
    """A rank's share of a mixer's stream or of a packed one."""
    return _DATASETS[stream.clock.words](stream, rank=rank, world_size=world_size)


class InOrder(Sampler[int]):
    """0, 1, 2, ... without end, with a state: a `StatefulDataLoader` then resumes in the same time at any draw.

    The dataset ends the loop where its stream ends.

    Args:
        dataset: the loader's. It gives the loader its length, where the stream ends, and is checked where the loader begins.

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
    """Its state is the next number."""

    def __init__(self) -> None:
        self._next = 0

    def __next__(self) -> int:
        self._next += 1
        return self._next - 1

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._next = state["next"]


def resume(stream: Stream, state: Mapping[str, Any]) -> None:
    """`load_state_dict` of a mixer or a packed stream on every rank: rank 0 begins a generation of the ledger, and the others join it.

    Raises:
        LedgerError: on every rank, if the state is of another run or of another ledger.
    """
    _on_every_rank(stream, lambda generation: stream.load_state_dict(state, generation=generation), "resume")


def restart(stream: Stream) -> None:
    """`restart` of a mixer or a packed stream on every rank: for a run that ended before its first checkpoint.

    Raises:
        LedgerError: on every rank, if the ledger cannot be written.
    """
    _on_every_rank(stream, lambda generation: stream.restart(generation=generation), "restart")


def _on_every_rank(stream: Stream, go_on: Callable[[int | None], None], verb: str) -> None:
    """Let rank 0 begin a generation, then let the others join the generation in which rank 0 is."""
    if not _several():
        go_on(None)
        return
    outcome: list[tuple[str | None, int]] = [(None, 0)]
    failed: SkillshardError | None = None
    is_first = torch.distributed.get_rank() == 0
    if is_first:
        try:
            go_on(None)
            outcome = [(None, stream.generation)]
        except SkillshardError as error:
            outcome, failed = [(str(error), 0)], error
    torch.distributed.broadcast_object_list(outcome, src=0)
    if failed is not None:
        raise failed
    fault, generation = outcome[0]
    if fault is not None:
        raise LedgerError(f"rank 0 could not {verb}: {fault}")
    if not is_first and generation:
        go_on(generation)


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise PolicyError(f"rank is {rank} and world_size is {world_size}: give both, or neither.")
    if rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise PolicyError(f"rank is {rank} of world_size {world_size}: rank counts from 0 to world_size - 1.")
        return rank, world_size
    if _several():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise PolicyError(
            f"the environment says WORLD_SIZE={os.environ['WORLD_SIZE']}, but torch.distributed is not initialised: call "
            "init_process_group() first, or give rank and world_size."
        )
    return 0, 1
