"""The blocks of a round by best-fit: a pure function of the token counts of the draws, the length of a block and a key.

A draw with at most L tokens is one piece, and a longer draw is cut into full blocks and a rest. The pieces are packed by
best-fit-decreasing (`bins.py`). The blocks come in a keyed random order, because the bins are opened from the longest piece to the shortest
piece. The pieces of a block stand in the order of the draws.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, Int32

from skillshard.keyed_random import permutation
from skillshard.mixing.packings.bins import best_fit_decreasing

# A whole round is packed at once up to this number of draws. The lists of the packing then take about 10 MB, and a larger number saves less
# than a thousandth of the places.
DRAWS_AT_ONCE = 1 << 16
"""Number of draws that are packed together. A longer round is packed in stretches of this number."""


@dataclass(frozen=True)
class Fit:
    """The blocks of a round.

    Attributes:
        draw: Draw of each piece, counted from the beginning of the round. The pieces stand block by block.
        part: Number of the piece in its draw: 0 unless the draw has more than L tokens.
        first_piece: First piece of each block, and the number of all pieces.
    """

    draw: Int32[np.ndarray, " piece"]
    part: Int32[np.ndarray, " piece"]
    first_piece: Int[np.ndarray, " bound"]

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the round."""
        return len(self.first_piece) - 1

    def block_of(self, piece: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
        """Return the block of each piece."""
        return np.searchsorted(self.first_piece, piece, side="right") - 1

    @cached_property
    def num_begun(self) -> Int[np.ndarray, " block"]:
        """Number of draws with a token in the blocks up to each block. Draws without tokens do not count."""
        _, first = np.unique(self.draw, return_index=True)
        return np.cumsum(np.bincount(self.block_of(first), minlength=self.num_blocks))


def has_separator(counts: Int[np.ndarray, " draw"], block_tokens: int) -> Bool[np.ndarray, " draw"]:
    """Return whether the separator of each draw stands in a block.

    A separator that would begin a block is left out, so that a text of exactly L tokens is whole in one block.
    """
    return (counts % block_tokens > 0) | (counts == 0)


def fit(sizes: Int[np.ndarray, " draw"], block_tokens: int, *labels: str | int) -> Fit:
    """Pack the draws of a round into blocks.

    Args:
        sizes: Number of tokens of each draw, with the separators that stand in a block.
        block_tokens: Number of tokens of a block, L.
        labels: Key of the order of the blocks.

    >>> blocks = fit(np.array([3, 6, 2, 11]), 8, "round", 0)
    >>> [blocks.draw[first:stop].tolist() for first, stop in zip(blocks.first_piece, blocks.first_piece[1:])]
    [[3], [0, 2, 3], [1]]
    """
    draws, parts, bounds = [], [], [np.zeros(1, np.int64)]
    num_pieces = 0
    for number, first in enumerate(range(0, len(sizes), DRAWS_AT_ONCE)):
        own = sizes[first : first + DRAWS_AT_ONCE]
        num_parts = -(-own // block_tokens)
        draw = np.repeat(np.arange(len(own)), num_parts)
        part = np.arange(len(draw)) - np.repeat(np.cumsum(num_parts) - num_parts, num_parts)
        bin_of, num = best_fit_decreasing(np.minimum(own[draw] - part * block_tokens, block_tokens), block_tokens)
        block = permutation(num, *labels, number)[bin_of]
        order = np.argsort(block, kind="stable")
        draws.append((draw[order] + first).astype(np.int32))
        parts.append(part[order].astype(np.int32))
        bounds.append(num_pieces + np.cumsum(np.bincount(block, minlength=num)))
        num_pieces += len(draw)
    return Fit(np.concatenate(draws), np.concatenate(parts), np.concatenate(bounds))


def fit_round(
    counts: Int[np.ndarray, " draw"], block_tokens: int, *, separated: bool, seed: int, number: int
) -> tuple[Int[np.ndarray, " draw"], Fit]:
    """Pack the draws of a round of a run into blocks.

    Args:
        counts: Number of tokens of each draw, without separators.
        block_tokens: Number of tokens of a block, L.
        separated: Whether a separator follows each sample.
        seed: Seed of the run.
        number: Number of the round.

    Returns:
        The number of tokens of each draw with the separators that stand in a block, and the blocks.
    """
    sizes = counts + has_separator(counts, block_tokens) if separated else counts
    return sizes, fit(sizes, block_tokens, "best-fit", seed, number)
