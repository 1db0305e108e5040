"""The items of a `DataLoader`, samples and blocks of tokens, and the functions that make batches of the items.

A dataset returns the items of a batch as one sequence, and an item is made only on access. The functions that make batches read the arrays
of the whole sequence instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict, cast, overload

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import get_worker_info

from skillshard.errors import PolicyError, did_you_mean, name_some
from skillshard.loss import MeasuredOn
from skillshard.mixing.batch import Batch
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packed_batch import BLOCK_COLUMNS, PackedBatch
from skillshard.mixing.round_plan import Places
from skillshard.sent_batches import SentBatch


class Item(TypedDict):
    """A sample with the draw and the skill. Fields and members of the mixer (`Mixer(fields=..., members=...)`) are further keys."""

    draw: int
    skill: str
    text: str


class MixedBatch(TypedDict):
    """A batch of samples, as `collate` makes the batch. Fields and members of the mixer are further keys, each a list of values."""

    draw: Int[np.ndarray, " sample"]
    skill: list[str]
    text: list[str]


class Items(Sequence[Item]):
    """The samples of one batch. A text is read, and an `Item` is built, only on access. The fields of the mixer are read at once."""

    def __init__(self, mixer: Mixer, places: Places, *, key: str | None = None) -> None:
        self.mixer, self.places, self.key = mixer, places, key
        self.fields = mixer.samples.fields_at(places)

    @cached_property
    def batch(self) -> Batch:
        """The samples as one `Batch` of arrays and lists."""
        return self.mixer.samples.cut(self.places, fields=self.fields)

    @property
    def metas(self) -> list[dict[str, Any]]:
        """The metadata of each sample."""
        return self.mixer.samples.metas(self.places)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        item = Item(draw=int(self.batch.draw[index]), skill=self.batch.skill[index], text=self.batch.text[index])
        fields = {name: values[index] for name, values in self.batch.fields.items()}
        return cast(Item, {**item, **fields})


def collate(items: Items) -> Mapping[str, Any]:
    """Make a `MixedBatch` without a step per sample: `DataLoader(..., collate_fn=collate)`.

    The draws are a NumPy array. PyTorch's default collation would make a tensor, which a worker sends through a file of its own.
    Workers send only the places of the texts, and the loader's process cuts the texts out of the same shards (`skillshard.sent_batches`).
    Your own `collate_fn` gets the same `Items`: a sequence of `Item`, with the arrays in `items.batch`. The return value of your
    function is sent unchanged.
    """
    # Without workers nothing is sent, and places would only be a detour.
    if items.key is None or get_worker_info() is None:
        return items.batch.columns()
    return SentBatch(items.mixer, items.key, items.places, items.fields)


class PackedItem(TypedDict):
    """A block of tokens with the label of each token and the number of tokens of each skill."""

    block: int
    input_ids: torch.Tensor
    labels: torch.Tensor
    skill_tokens: torch.Tensor


class PackedTensors(TypedDict, total=False):
    """A batch of blocks, as `block_collator` makes the batch. A batch has the columns that were asked for (`PackedBatch`)."""

    block: torch.Tensor
    input_ids: torch.Tensor
    labels: torch.Tensor
    learned: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    segment_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    draw: torch.Tensor
    skill: torch.Tensor
    skill_tokens: torch.Tensor


class Blocks(Sequence[PackedItem]):
    """The blocks of one batch. A `PackedItem` is built only on access.

    Args:
        batch: Blocks as arrays.
        measured_on: Samples of the run's losses. With "training", a collator of a trainer adds the skill of each token.
    """

    def __init__(self, batch: PackedBatch, *, measured_on: MeasuredOn = "holdout") -> None:
        self.batch, self.measured_on = batch, measured_on

    def __len__(self) -> int:
        return len(self.batch)

    @overload
    def __getitem__(self, index: int) -> PackedItem: ...

    @overload
    def __getitem__(self, index: slice) -> list[PackedItem]: ...

    def __getitem__(self, index: int | slice) -> PackedItem | list[PackedItem]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return PackedItem(
            block=int(self.batch.block[index]),
            input_ids=torch.from_numpy(self.batch.input_ids[index]),
            labels=torch.from_numpy(self.batch.labels[index]),
            skill_tokens=torch.from_numpy(self.batch.skill_tokens[index]),
        )


def block_collator(*columns: str) -> Callable[[Blocks], PackedTensors]:
    """Make a `collate_fn` that makes a batch of blocks with chosen columns: `DataLoader(..., collate_fn=block_collator("input_ids"))`.

    A column that is not asked for is neither made nor sent by a worker. The arrays become tensors without a copy, and no step runs for each
    block. If the mixer has fields, a batch also has `sample_draw`, the draws of the samples in the blocks, and a list of values of these
    samples under the path of each field.

    Args:
        columns: Names of columns. `input_ids`, `labels` (-100 where a token is not learned), `learned`, `attention_mask`, `position_ids`, `segment_ids`, `draw`
            and `skill` have the shape (block, token), `skill_tokens` has the shape (block, skill), and `block` has the positions of the
            blocks in the packed stream. `cu_seqlens` and `max_seqlen` are the bounds of the segments for attention within samples.
            `PackedBatch` describes each column.

    Raises:
        PolicyError: A name is no column.

    Example:
        >>> collate = block_collator("input_ids", "labels", "position_ids")
    """
    known = tuple(PackedTensors.__annotations__)
    for name in columns:
        if name not in known:
            raise PolicyError(
                f"{name!r} is no column of a batch of blocks{did_you_mean(name, known)}: give {name_some(known)}."
            )
    return _BlockCollator(columns)


@dataclass(frozen=True)
class _BlockCollator:
    """The function of `block_collator`. A class, because a spawned worker gets the function by pickle."""

    columns: tuple[str, ...]

    def __call__(self, blocks: Blocks) -> PackedTensors:
        batch = blocks.batch
        values = {name: getattr(batch, name) for name in self.columns}
        tensors = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in values.items()
        }
        if batch.fields:
            tensors |= {"sample_draw": torch.from_numpy(batch.sample_draw), **batch.fields}
        return cast(PackedTensors, tensors)


def collate_blocks(blocks: Blocks) -> PackedTensors:
    """Make a batch of blocks with the columns `BLOCK_COLUMNS`: `DataLoader(..., collate_fn=collate_blocks)`.

    `block_collator` chooses other columns. Your own `collate_fn` gets the same `Blocks`: a sequence of `PackedItem`, with all arrays in
    `blocks.batch`.
    """
    return block_collator(*BLOCK_COLUMNS)(blocks)
