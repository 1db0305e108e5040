"""The mixed stream in a PyTorch `DataLoader`.

The dataset is map-style over an endless range: index i of a rank is draw first + i x world_size + rank of the global stream.
A `DataLoader` without a sampler asks for 0, 1, 2, ... in batches and hands them out in that order, so the batches are the same
for any number of workers, and each worker fetches a whole batch at once.
"""

import os
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
import torch.distributed
from torch.utils.data import Dataset

from skillshard.errors import PolicyError
from skillshard.mixing.mixer import Mixer

ENDLESS = 1 << 62


class Item(TypedDict):
    """One sample; PyTorch's default collation makes a tensor of draws and lists of skills and texts of a batch."""

    draw: int
    skill: str
    text: str


class MixedDataset(Dataset[Item]):
    """A rank's share of a mixer's stream, from where the mixer stands.

    Make the iterator (`iter(loader)`) after `mixer.load_state_dict`: workers copy the mixer then. Do not shuffle: the
    stream is shuffled. Since the loader reads ahead, save `mixer.state_dict(step=...)`, not what was fetched.

    Args:
        mixer: built alike on every rank.
        rank, world_size: this process's share; None: torch.distributed's, or 0 of 1 where there is none.

    Raises:
        PolicyError: rank and world size do not fit, or the environment names several processes but torch.distributed is
            not initialised.

    Example:
        loader = DataLoader(MixedDataset(mixer), batch_size=32, num_workers=4)
    """

    def __init__(self, mixer: Mixer, *, rank: int | None = None, world_size: int | None = None) -> None:
        self.mixer = mixer
        self.rank, self.world_size = _place(rank, world_size)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        draws = self.mixer.draw + np.asarray(indices, np.int64) * self.world_size + self.rank
        batch = self.mixer.at(draws)
        return [
            Item(draw=draw, skill=skill, text=text)
            for draw, skill, text in zip(draws.tolist(), batch.skills, batch.texts, strict=True)
        ]


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise PolicyError(f"rank is {rank} and world_size is {world_size}: give both, or neither.")
    if rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise PolicyError(f"rank is {rank} of world_size {world_size}: rank counts from 0 to world_size - 1.")
        return rank, world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise PolicyError(
            f"the environment says WORLD_SIZE={os.environ['WORLD_SIZE']}, but torch.distributed is not initialised: call "
            "init_process_group() first, or give rank and world_size."
        )
    return 0, 1
