"""Best-fit-decreasing bin packing: the largest piece first, each piece into the fullest bin with room for the piece."""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def best_fit_decreasing(sizes: Int[np.ndarray, " piece"], capacity: int) -> tuple[Int[np.ndarray, " piece"], int]:
    """Pack pieces into bins, and cut no piece.

    The rule is total, so that equal inputs give equal bins. Pieces of the same size keep their order. Of bins that are equally full, the
    bin that became so full last comes first.

    Bins with equal room wait together, and pieces of one size are packed together. So the time is O(n log n) for n pieces, and fewer steps run
    in Python than there are pieces: at most about one for each size and each room.

    Args:
        sizes: Size of each piece, 1 .. `capacity`.
        capacity: Room of an empty bin.

    Returns:
        The bin of each piece, and the number of bins. The bins are numbered in the order in which they are opened.

    >>> bins, num = best_fit_decreasing(np.array([3, 6, 2, 4, 5]), 8)
    >>> bins.tolist(), num
    ([1, 0, 0, 2, 1], 3)

    Reference:
        Ding et al., "Fewer Truncations Improve Language Modeling", ICML 2024, arXiv:2404.10830. Differs from the paper: the search of a bin
        uses a sorted list of the rooms of all bins, and not a segment tree.
    """
    order = np.argsort(-sizes, kind="stable")
    distinct, nums = np.unique(sizes, return_counts=True)
    waiting: dict[int, list[int]] = {}  # room -> bins with this room, the bin that got this room last at the end
    rooms: list[int] = []  # the keys of `waiting`, rising
    filled: list[int] = []  # bins in the order of the pieces
    repeats: list[int] = []  # number of neighbouring pieces of each bin in `filled`
    num_bins = 0

    def wait(bins: Sequence[int], room: int) -> None:
        if not room or not bins:
            return
        if room not in waiting:
            waiting[room] = []
            insort(rooms, room)
        waiting[room] += bins

    for size, num in zip(distinct[::-1].tolist(), nums[::-1].tolist(), strict=True):
        while num:
            place = bisect_left(rooms, size)
            is_new = place == len(rooms)
            room = capacity if is_new else rooms[place]
            # After a piece, its bin is the fullest bin with room for the next piece of this size, until the bin is full for the size.
            per_bin = room // size
            if is_new:
                bins: Sequence[int] = range(num_bins, num_bins - (-num // per_bin))
                num_bins += len(bins)
            else:
                own = waiting[room]
                num_taken = min(len(own), -(-num // per_bin))
                bins = own[: -num_taken - 1 : -1]
                del own[-num_taken:]
                if not own:
                    del waiting[room], rooms[place]
            num_packed = min(num, len(bins) * per_bin)
            num_last = num_packed - (len(bins) - 1) * per_bin  # the last bin may get fewer pieces
            filled += bins
            repeats += [per_bin] * (len(bins) - 1) + [num_last]
            wait(bins[:-1], room - per_bin * size)
            wait(bins[-1:], room - num_last * size)
            num -= num_packed
    bin_of = np.empty(len(sizes), np.int64)
    bin_of[order] = np.repeat(np.array(filled, np.int64), np.array(repeats, np.int64))
    return bin_of, num_bins
