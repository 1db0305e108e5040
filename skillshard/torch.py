"""The mixed stream in a PyTorch `DataLoader`, and in torchdata's `StatefulDataLoader`: as texts, or as blocks of tokens.

The dataset is map-style over an endless range: index i of a rank is draw (or block) first + i x world_size + rank of the global stream.
A `DataLoader` without a sampler asks for 0, 1, 2, ... in batches and hands them out in that order, so the batches are the same
for any number of workers, and each worker fetches, collates and sends a whole batch at once.

An endless range cannot be shuffled, split or begun anew without losing or repeating samples. The dataset notices all three
from the indices it is asked for, and refuses.
"""

from skillshard.extras import needed

needed("torch", what="skillshard.torch")  # before the imports that fail without the extra

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from typing import Any, TypedDict, TypeVar, overload
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.distributed
from jaxtyping import Int
from torch.utils.data import Dataset, Sampler, get_worker_info

from skillshard.errors import LedgerError, PolicyError, SkillshardError
from skillshard.mixing.mixer import Batch, Mixer
from skillshard.mixing.packing import PackedBatch, PackedTokens
from skillshard.mixing.round_plan import Places
from skillshard.refusals import refuse_samplers

ENDLESS = 1 << 62
_KEYS = count()
_DATASETS: "WeakValueDictionary[int, MixedDataset]" = WeakValueDictionary()
"""The datasets that this process made, by a number that their workers know too."""
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

    def __init__(self, mixer: Mixer, places: Places, *, key: int | None = None) -> None:
        self.mixer, self.places, self.key = mixer, places, key

    @cached_property
    def batch(self) -> Batch:
        """The samples as one."""
        return self.mixer.cut(self.places)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> Item: ...

    @overload
    def __getitem__(self, at: slice) -> list[Item]: ...

    def __getitem__(self, at: int | slice) -> Item | list[Item]:
        if isinstance(at, slice):
            return [self[number] for number in range(len(self))[at]]
        return Item(draw=int(self.batch.draws[at]), skill=self.batch.skills[at], text=self.batch.texts[at])


def collate(items: Items) -> Mapping[str, Any]:
    """A `MixedBatch`, without a step per sample: `DataLoader(..., collate_fn=collate)`.

    Draws are a NumPy array, where PyTorch's default collation makes a tensor: a worker's tensor goes through a file of its own.
    What a worker sends is where the texts lie; the loader's process, which maps the same shards, cuts them out. Your own
    `collate_fn` gets the same: a sequence of `Item`, or its `batch` as one, and what it makes of them is what is sent.
    """
    if items.key is None or get_worker_info() is None:
        return _mixed_batch(items.batch)
    return SentBatch(items)


def _mixed_batch(batch: Batch) -> MixedBatch:
    return MixedBatch(draw=batch.draws, skill=batch.skills, text=batch.texts)


class SentBatch(Mapping[str, Any]):
    """A `MixedBatch` in a worker: its texts are read only if they are asked for there."""

    def __init__(self, items: Items) -> None:
        self._items = items

    @cached_property
    def _batch(self) -> MixedBatch:
        return _mixed_batch(self._items.batch)

    def __getitem__(self, name: str) -> Any:
        return self._batch[name]  # type: ignore[literal-required]  # as any dictionary

    def __iter__(self) -> Iterator[str]:
        return iter(MixedBatch.__annotations__)

    def __len__(self) -> int:
        return len(MixedBatch.__annotations__)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self._items.key, self._items.places)


def _received(key: int, places: Places) -> MixedBatch:
    """In the loader's process: the batch that a worker found."""
    return _mixed_batch(_DATASETS[key].mixer.cut(places))


class PackedItem(TypedDict):
    """One block."""

    block: int
    input_ids: torch.Tensor
    draws: torch.Tensor
    skill_tokens: torch.Tensor


class PackedTensors(TypedDict):
    """A batch as `collate_blocks` and PyTorch's default collation make it."""

    block: torch.Tensor
    input_ids: torch.Tensor
    draws: torch.Tensor
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
            block=int(self.batch.blocks[at]),
            input_ids=torch.from_numpy(self.batch.tokens[at]),
            draws=torch.from_numpy(self.batch.draws[at]),
            skill_tokens=torch.from_numpy(self.batch.skill_tokens[at]),
        )


def collate_blocks(blocks: Blocks) -> PackedTensors:
    """What PyTorch's default collation gives, without a step per block: `DataLoader(..., collate_fn=collate_blocks)`.

    `input_ids` and `draws` are (block, token), `skill_tokens` is (block, skill), `block` their positions in the packed stream.
    Tokens with draw -1 are filled up beyond the end of the stream: leave them out of the loss. Your own `collate_fn` gets the
    same: a sequence of `PackedItem`, or its `batch` as one, which also knows `positions`.
    """
    batch = blocks.batch
    return PackedTensors(
        block=torch.from_numpy(batch.blocks),
        input_ids=torch.from_numpy(batch.tokens),
        draws=torch.from_numpy(batch.draws),
        skill_tokens=torch.from_numpy(batch.skill_tokens),
    )


class StreamShare(Dataset[T], ABC):
    """A rank's share of a global stream, from where the stream stands; what `MixedDataset` and `PackedDataset` have in common.

    Args:
        ends: whether the stream may end.
        of: what the stream is of, as JSON: a loader's state of another one is refused.
        rank, world_size: this process's share; None: torch.distributed's, or 0 of 1 where there is none.
    """

    owner: str
    """Whose `load_state_dict` moves the stream: "mixer" or "packed"."""
    position: str
    """What the stream counts: "draw" or "block"."""

    def __init__(self, *, ends: bool, of: Mapping[str, Any], rank: int | None, world_size: int | None) -> None:
        self.rank, self.world_size = _place(rank, world_size)
        self._ends, self._of = ends, dict(of)
        self._loaded: tuple[int, int] | None = None
        self._last: tuple[int, int] | None = None
        self._begun = torch.full((2,), -1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @abstractmethod
    def _stands(self) -> int:
        """Where the stream stands."""

    @abstractmethod
    def _read(self, positions: Int[np.ndarray, " position"]) -> Sequence[T]:
        """What is there; positions beyond the end are left out."""

    @abstractmethod
    def _holds(self, position: int) -> bool:
        """Whether the stream has not ended before a position."""

    def __len__(self) -> int:
        name = type(self).__name__
        refuse_samplers(self, f"Leave shuffle and sampler away: DataLoader({name}({self.owner}), batch_size=...).")
        return ENDLESS

    def __getitem__(self, index: int) -> T:
        return self.at(np.array([index], np.int64))[0]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[T]:
        asked = np.asarray(indices, np.int64)
        self._check_order(asked)
        return self.at(asked)

    def at(self, indices: Int[np.ndarray, " position"]) -> Sequence[T]:
        """The samples or blocks, asked for in any order; StopIteration, which ends the loop over the loader, where the stream has ended."""
        positions = self._first + indices * self.world_size
        found = self._read(positions + self.rank)
        if len(found) < len(positions) and (not len(found) or self.world_size > 1):
            raise StopIteration
        if self.world_size > 1 and self._ends and not self._holds(int(positions[-1]) + self.world_size - 1):
            raise StopIteration  # the last rank has no full batch: no rank takes this step
        return found

    @property
    def _first(self) -> int:
        """The position of index 0 on rank 0: where the stream stands, or stood when a loaded loader was begun."""
        stands = self._stands()
        return self._loaded[1] if self._loaded is not None and self._loaded[0] == stands else stands

    def _check_order(self, indices: Int[np.ndarray, " position"]) -> None:
        worker = get_worker_info()
        stride = 1 if worker is None else worker.num_workers
        start, num = int(indices[0]), len(indices)
        loop = 0 if worker is None else worker.seed - worker.id  # one number for all workers of a loop over the loader
        begun = self._begun.numpy()
        first_begun, loop_begun = begun.tolist()
        if start == 0 and first_begun == self._first and (loop_begun != loop or self._last is not None):
            raise PolicyError(
                f"the stream from {self.position} {self._first:,} was read through this dataset already, and would begin again: keep one "
                f"iterator for the whole run. To go on where training stands, call {self.owner}.load_state_dict("
                f"{self.owner}.state_dict(step=...)) first; to read the same again, make a new {type(self).__name__}."
            )
        if start == 0 or start >= stride * num:
            begun[:] = self._first, loop
        expected = start
        if start and self._last is not None and (stride == 1 or num == self._last[1]):
            expected = self._last[0] + stride * self._last[1]
        self._last = start, num
        if start != expected or (indices != np.arange(start, start + num)).any():
            raise PolicyError(
                f"a loader asks for indices {start:,} to {int(indices[-1]):,} where {expected:,} to {expected + num - 1:,} come next: "
                f"it shuffles the stream, or shares out again what {type(self).__name__} has already shared out by rank, and "
                "samples would be lost. Give the DataLoader no sampler and in_order=True; under accelerate use "
                "skillshard.hf.WholeStream, which takes no rank."
            )

    def state_dict(self) -> dict[str, Any]:
        """What a `StatefulDataLoader` keeps of the dataset: from where it counts its indices."""
        return {"first": self._first, "rank": self.rank, "world_size": self.world_size, **self._of}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Called by a `StatefulDataLoader`, in each of its workers; LedgerError if the state is of another run or rank."""
        for name, now in self.state_dict().items():
            if name != "first" and state[name] != now:
                raise LedgerError(
                    f"this loader's state is of {name} {state[name]}, and here {name} is {now}. A StatefulDataLoader goes on with the "
                    f"run, rank and world size that it had; to change them, resume by {self.owner}.load_state_dict() alone."
                )
        self._loaded = self._stands(), int(state["first"])


class MixedDataset(StreamShare[Item]):
    """A rank's share of a mixer's stream, from where the mixer stands.

    Make the iterator (`iter(loader)`) after `mixer.load_state_dict`: workers copy the mixer then. Do not shuffle: the
    stream is shuffled. Since the loader reads ahead, save `mixer.state_dict(step=...)`, not what was fetched.

    A loader is iterated once: a second `for batch in loader` would begin again at the first draw, because a loader that
    reads ahead cannot say where the first one stopped. It is refused; go on by `mixer.load_state_dict`, or keep the iterator.

    A stream that ends (`repeat`) ends the loader after its last, perhaps short batch; with several ranks, after the last
    batch that is full on every rank, so that all take the same number of steps.

    In a `StatefulDataLoader` the state of the middle of the run is the loader's; give it `sampler=InOrder()`, so that it
    resumes without counting through the draws consumed. Load the mixer's state too: it sets aside what the ledger learnt
    later. The loader's state is of one rank and number of workers; the mixer's is not.

    Args:
        mixer: built alike on every rank.
        rank, world_size: this process's share; None: torch.distributed's, or 0 of 1 where there is none.

    Raises:
        PolicyError: rank and world size do not fit, or the environment names several processes but torch.distributed is
            not initialised; when read: indices that were shuffled, split or begun anew.

    Example:
        loader = DataLoader(MixedDataset(mixer), batch_size=32, num_workers=4, collate_fn=collate)
    """

    owner, position = "mixer", "draw"

    def __init__(self, mixer: Mixer, *, rank: int | None = None, world_size: int | None = None) -> None:
        self.mixer = mixer
        of = {"run": mixer.state_dict()["run"]}
        super().__init__(ends=mixer.repeat != "epochs", of=of, rank=rank, world_size=world_size)
        self._key = next(_KEYS)
        _DATASETS[self._key] = self

    def _stands(self) -> int:
        return self.mixer.draw

    def _read(self, positions: Int[np.ndarray, " position"]) -> Items:
        return Items(self.mixer, self.mixer.find(positions), key=self._key)

    def _holds(self, position: int) -> bool:
        return len(self.mixer.find(np.array([position]))) == 1


class PackedDataset(StreamShare[PackedItem]):
    """A rank's share of a packed stream, from where it stands; the workers tokenize and pack.

    All that `MixedDataset` says holds, with blocks for draws and `packed` for `mixer`: save `packed.state_dict(step=...)`, report by
    `packed.report`, resume by `packed.load_state_dict` (on several ranks `resume(packed, state)`).

    Args:
        packed: built alike on every rank.
        rank, world_size: as for `MixedDataset`.

    Raises:
        PolicyError: as for `MixedDataset`.

    Example:
        loader = DataLoader(PackedDataset(packed), batch_size=8, num_workers=4, collate_fn=collate_blocks)
    """

    owner, position = "packed", "block"

    def __init__(self, packed: PackedTokens, *, rank: int | None = None, world_size: int | None = None) -> None:
        self.packed = packed
        of = {name: value for name, value in packed.state_dict().items() if name not in ("schema", "block", "step")}
        super().__init__(ends=packed.mixer.repeat != "epochs", of=of, rank=rank, world_size=world_size)

    def _stands(self) -> int:
        return self.packed.block

    def _read(self, positions: Int[np.ndarray, " position"]) -> Blocks:
        return Blocks(self.packed.at(positions))

    def _holds(self, position: int) -> bool:
        return self.packed.holds(position)


def dataset_of(
    mixer: Mixer | PackedTokens, *, rank: int | None = None, world_size: int | None = None
) -> MixedDataset | PackedDataset:
    """A rank's share of a mixer's stream or of a packed one."""
    if isinstance(mixer, PackedTokens):
        return PackedDataset(mixer, rank=rank, world_size=world_size)
    return MixedDataset(mixer, rank=rank, world_size=world_size)


class InOrder(Sampler[int]):
    """0, 1, 2, ... without end, with a state: a `StatefulDataLoader` then resumes in the same time at any draw.

    Example:
        loader = StatefulDataLoader(MixedDataset(mixer), sampler=InOrder(), batch_size=32, collate_fn=collate)
    """

    def __iter__(self) -> "InOrderIterator":
        return InOrderIterator()


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


def resume(mixer: Mixer | PackedTokens, state: Mapping[str, Any]) -> None:
    """`load_state_dict` of a mixer or a packed stream on every rank: rank 0 sets aside what the ledger learnt later, then the others follow.

    Raises:
        LedgerError: on every rank, if the state is of another run.
    """
    if not _several():
        mixer.load_state_dict(state)
        return
    outcome: list[str | None] = [None]
    failed: SkillshardError | None = None
    if torch.distributed.get_rank() == 0:
        try:
            mixer.load_state_dict(state)
        except SkillshardError as error:
            outcome, failed = [str(error)], error
    torch.distributed.broadcast_object_list(outcome, src=0)
    if failed is not None:
        raise failed
    if outcome[0] is not None:
        raise LedgerError(f"rank 0 could not resume: {outcome[0]}")
    if torch.distributed.get_rank() != 0:
        mixer.load_state_dict(state)


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
