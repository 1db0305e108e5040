"""A batch of blocks of tokens: the ids, and a table of the parts of samples in the blocks.

The table has one entry for each part, about four for a block of 1,024 tokens. Everything that has an entry per token (draws, skills,
positions, masks, labels) is made from the table when a trainer first asks for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32

from skillshard.loss import IGNORE
from skillshard.printable import counted

BLOCK_COLUMNS = ("block", "input_ids", "labels", "skill_tokens")
"""Columns of a batch of blocks if a loader asks for no others."""
COLUMNS = (
    *BLOCK_COLUMNS,
    "learned",
    "attention_mask",
    "position_ids",
    "segment_ids",
    "draw",
    "skill",
    "cu_seqlens",
    "max_seqlen",
)
"""Columns of a batch of blocks that a loader may ask for."""


@dataclass(frozen=True)
class Segments:
    """The parts of samples in a batch of blocks, in the order of the tokens. A part ends with its block at the latest.

    Attributes:
        start: Position of the first token of each segment among all tokens of the batch, the blocks one after the other.
        draw: Draw of each segment. -1 marks the filler beyond the end of the stream.
        skill: Skill of each segment, an index into `PackedBatch.skill_names`. -1 marks the filler.
    """

    start: Int[np.ndarray, " segment"]
    draw: Int[np.ndarray, " segment"]
    skill: Int[np.ndarray, " segment"]

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class PackedBatch:
    """A batch of blocks of tokens.

    Attributes:
        block: Position of each block in the packed stream.
        input_ids: Token ids, under the usual name of language models.
        segments: Parts of samples in the blocks. A separator belongs to the sample before it.
        skill_names: Names of the skills of the mix.
        answer: Mask of the tokens of answers and of the separators, if the token set has answers. None: every token is learned.
        sample_draw: Draws with a token in the batch, ascending, if the mixer has fields. `searchsorted(sample_draw, draw)` leads from
            a token to its sample.
        fields: Path -> value of each sample of `sample_draw`, for each field of the mixer (`Mixer(fields=...)`).
    """

    block: Int[np.ndarray, " block"]
    input_ids: Int[np.ndarray, "block token"]
    segments: Segments
    skill_names: tuple[str, ...]
    answer: Bool[np.ndarray, "block token"] | None = None
    sample_draw: Int[np.ndarray, " sample"] = field(default_factory=lambda: np.empty(0, np.int64))
    fields: Mapping[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.block)

    def __repr__(self) -> str:
        """Return a line without the tokens."""
        first = f" from block {int(self.block[0]):,} on" if len(self) else ""
        return f"PackedBatch({counted(len(self), 'block')} of {counted(self.input_ids.shape[1], 'token')}{first})"

    @cached_property
    def _lengths(self) -> Int[np.ndarray, " segment"]:
        """Number of tokens of each segment."""
        return np.diff(self.segments.start, append=self.input_ids.size)

    @cached_property
    def _rows(self) -> Int[np.ndarray, " segment"]:
        """Row of each segment in the batch."""
        return self.segments.start // max(1, self.input_ids.shape[1])

    def _per_token(self, values: Int[np.ndarray, " segment"]) -> Int[np.ndarray, "block token"]:
        """Repeat a value of each segment for each token of the segment."""
        return np.repeat(values, self._lengths).reshape(self.input_ids.shape)

    @cached_property
    def draw(self) -> Int[np.ndarray, "block token"]:
        """Draw of each token and of each separator. -1 marks a filler beyond the end of the stream."""
        return self._per_token(self.segments.draw)

    @cached_property
    def skill(self) -> Int[np.ndarray, "block token"]:
        """Skill of each token and of each separator, an index into `skill_names`. -1 marks a filler."""
        return self._per_token(self.segments.skill)

    @cached_property
    def position_ids(self) -> Int[np.ndarray, "block token"]:
        """Position of each token in its segment, from 0, for attention within the samples."""
        return np.arange(self.input_ids.size).reshape(self.input_ids.shape) - self._per_token(self.segments.start)

    @cached_property
    def segment_ids(self) -> Int[np.ndarray, "block token"]:
        """Number of each token's segment in its block, from 1, for attention within the samples. 0 marks a filler."""
        first = np.searchsorted(self._rows, np.arange(len(self)))
        number = np.arange(len(self.segments)) - first[self._rows] + 1
        return self._per_token(np.where(self.segments.draw < 0, 0, number))

    @cached_property
    def cu_seqlens(self) -> Int32[np.ndarray, " bound"]:
        """Start of each segment among all tokens of the batch, and the number of all tokens.

        The name and the type (int32) are those of attention for sequences of varying length, which reads the blocks one after the other.
        A filler is a sequence of its own.
        """
        return np.append(self.segments.start, self.input_ids.size).astype(np.int32)

    @property
    def max_seqlen(self) -> int:
        """Number of tokens of the longest segment."""
        return int(self._lengths.max(initial=0))

    @cached_property
    def skill_tokens(self) -> Int[np.ndarray, "block skill"]:
        """Number of tokens of each skill in each block, separators included."""
        # One count over pairs of a block and a skill, numbered row by row, so that no step runs for each block.
        num, inside = len(self.skill_names), self.segments.skill >= 0
        cells = self._rows[inside] * num + self.segments.skill[inside]
        tokens = np.bincount(cells, weights=self._lengths[inside], minlength=len(self) * num)
        return tokens.astype(np.int64).reshape(len(self), num)

    @property
    def learned(self) -> Bool[np.ndarray, "block token"]:
        """Mask of the learned tokens: all tokens except masked prompts and fillers beyond the end. Separators are learned."""
        inside = self.draw >= 0
        return inside if self.answer is None else inside & self.answer

    @property
    def attention_mask(self) -> Int[np.ndarray, "block token"]:
        """1 for each token and each separator, 0 for fillers, as models of transformers expect."""
        return (self.draw >= 0).astype(np.int64)

    @cached_property
    def labels(self) -> Int[np.ndarray, "block token"]:
        """Token ids with -100 in place of each token that is not learned. A model of transformers shifts the labels by itself."""
        if self.answer is None and (self.segments.draw >= 0).all():
            return self.input_ids.copy()  # a trainer may write into its labels
        return np.where(self.learned, self.input_ids, IGNORE)
