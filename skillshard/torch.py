"""The mixed stream in a PyTorch `DataLoader`, and in torchdata's `StatefulDataLoader`.

The dataset is map-style over an endless range: index i of a rank is draw first + i x world_size + rank of the global stream.
A `DataLoader` without a sampler asks for 0, 1, 2, ... in batches and hands them out in that order, so the batches are the same
for any number of workers, and each worker fetches, collates and sends a whole batch at once.

An endless range cannot be shuffled, split or begun anew without losing or repeating samples. The dataset notices all three
from the indices it is asked for, and refuses.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict, overload

import numpy as np
import torch
import torch.distributed
from jaxtyping import Int
from torch.utils.data import Dataset, Sampler, get_worker_info

from skillshard.errors import LedgerError, PolicyError, SkillshardError
from skillshard.mixing.mixer import Batch, Mixer
from skillshard.refusals import refuse_samplers

ENDLESS = 1 << 62


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
    """The samples of one batch; each is made into an `Item` only when asked for."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch)

    @overload
    def __getitem__(self, at: int) -> Item: ...

    @overload
    def __getitem__(self, at: slice) -> list[Item]: ...

    def __getitem__(self, at: int | slice) -> Item | list[Item]:
        if isinstance(at, slice):
            return [self[number] for number in range(len(self))[at]]
        return Item(draw=int(self.batch.draws[at]), skill=self.batch.skills[at], text=self.batch.texts[at])


def collate(items: Items) -> MixedBatch:
    """A batch without a step per sample: `DataLoader(..., collate_fn=collate)`.

    Draws are a NumPy array, where PyTorch's default collation makes a tensor: a worker's tensor goes through a file of its own,
    which costs more than all the rest of the batch. Your own `collate_fn` gets the same: a sequence of `Item`, or its
    `batch` as one.
    """
    batch = items.batch
    return MixedBatch(draw=batch.draws, skill=batch.skills, text=batch.texts)


class MixedDataset(Dataset[Item]):
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

    def __init__(self, mixer: Mixer, *, rank: int | None = None, world_size: int | None = None) -> None:
        self.mixer = mixer
        self.rank, self.world_size = _place(rank, world_size)
        self._run = mixer.state_dict()["run"]
        self._loaded: tuple[int, int] | None = None
        self._last: tuple[int, int] | None = None
        self._begun = torch.full((1,), -1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        refuse_samplers(self, "Leave shuffle and sampler away: DataLoader(MixedDataset(mixer), batch_size=...).")
        return ENDLESS

    def __getitem__(self, index: int) -> Item:
        return Items(self._batch(np.array([index], np.int64)))[0]

    def __getitems__(self, indices: Sequence[int]) -> Items:
        asked = np.asarray(indices, np.int64)
        self._check_order(asked)
        return Items(self._batch(asked))

    def _batch(self, indices: Int[np.ndarray, " sample"]) -> Batch:
        """The samples; StopIteration, which ends the loop over the loader, where the stream has ended."""
        draws = self._first + indices * self.world_size
        batch = self.mixer.at(draws + self.rank)
        if len(batch) < len(draws) and (not len(batch) or self.world_size > 1):
            raise StopIteration
        if (
            self.world_size > 1
            and self.mixer.repeat != "epochs"
            and not len(self.mixer.at(draws[-1:] + self.world_size - 1))
        ):
            raise StopIteration  # the last rank has no full batch: no rank takes this step
        return batch

    @property
    def _first(self) -> int:
        """The draw of index 0 on rank 0: where the mixer stands, or stood when a loaded loader was begun."""
        if self._loaded is not None and self._loaded[0] == self.mixer.draw:
            return self._loaded[1]
        return self.mixer.draw

    def _check_order(self, indices: Int[np.ndarray, " sample"]) -> None:
        worker = get_worker_info()
        stride = 1 if worker is None else worker.num_workers
        start, num = int(indices[0]), len(indices)
        if start == 0 and int(self._begun[0]) == self._first:
            raise PolicyError(
                f"the stream from draw {self._first:,} was read through this dataset already, and would begin again: keep one "
                "iterator for the whole run. To go on where training stands, call "
                "mixer.load_state_dict(mixer.state_dict(step=...)) first; to read the same again, make a new MixedDataset."
            )
        if start == 0 or start >= stride * num:
            self._begun[0] = self._first
        expected = start
        if start and self._last is not None and (stride == 1 or num == self._last[1]):
            expected = self._last[0] + stride * self._last[1]
        self._last = start, num
        if start != expected or (np.diff(indices) != 1).any():
            raise PolicyError(
                f"a loader asks for indices {start:,} to {int(indices[-1]):,} where {expected:,} to {expected + num - 1:,} come next: "
                "it shuffles the stream, or shares out again what MixedDataset has already shared out by rank, and samples "
                "would be lost. Give the DataLoader no sampler and in_order=True; under accelerate use "
                "skillshard.hf.WholeStream, which takes no rank."
            )

    def state_dict(self) -> dict[str, Any]:
        """What a `StatefulDataLoader` keeps of the dataset: from where it counts its indices."""
        return {
            "first": self._first,
            "rank": self.rank,
            "world_size": self.world_size,
            "run": self._run,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Called by a `StatefulDataLoader`, in each of its workers; LedgerError if the state is of another run or rank."""
        for name, now in self.state_dict().items():
            if name != "first" and state[name] != now:
                raise LedgerError(
                    f"this loader's state is of {name} {state[name]}, and here {name} is {now}. A StatefulDataLoader goes on with the "
                    "run, rank and world size that it had; to change them, resume by mixer.load_state_dict() alone."
                )
        self._loaded = self.mixer.draw, int(state["first"])


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


def resume(mixer: Mixer, state: Mapping[str, Any]) -> None:
    """`mixer.load_state_dict` on every rank: rank 0 sets aside what the ledger learnt later, then the others follow.

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
