r"""The order of the mixed stream: pure functions of integers, the same on every platform.

Three steps turn weights into samples.

1. `quotas`: a round of n draws gives skill i either floor(w_i n) or ceil(w_i n) draws. The error carried over from earlier rounds
   decides which skills are rounded up, largest error first. Weights are fixed-point integers (units of 2**-40), so no float decides.
2. `interleave`: inside the round, each of the c_i draws of skill i gets a stratum of width n / c_i and a keyed random place in the
   stratum. So every skill is spread evenly over the round: among the first p draws, the number of draws of skill i differs from
   c_i p / n by less than 1 + k c_i / n, for k skills. docs/design/0002 has the proof.
3. `SkillOrder` (`skill_order.py`): inside a skill, epoch e is a permutation keyed by (seed, skill, e). The permutation has three levels: the shards,
   the stripes of `STRIPE_ROWS` rows in a shard, and the rows of a stripe. So reads stay local, and any position is found without
   walking through the positions before.

Randomness is keyed by labels (`skillshard.keyed_random`), so the order does not depend on the version of NumPy or on the platform.

All functions are NumPy over whole rounds and take about 0.1 microseconds per draw.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from skillshard.keyed_random import keyed_words

SCALE_BITS = 40
"""Number of fractional bits of a weight: weights are integers that sum to 2**40.

The product of a weight and the number of draws of a round, at most 2**62, fits into a signed integer of 64 bits.
"""
MAX_ROUND_DRAWS = 1 << 22
KEPT_DRAWS = 1 << 15
"""Largest number of draws of a round whose order stays in memory. The orders of four such rounds take 2 MB."""
ENDLESS = int(np.iinfo(np.int64).max)
"""A number of draws larger than any stream."""
ORDER_VERSION = "order/1"
"""Version of the order. It changes whenever a function of this module or of `skill_order.py` gives another order. A run refuses another version."""


def fixed_point(weights: Float[np.ndarray, " skill"]) -> Int[np.ndarray, " skill"]:
    """Convert weights to integers that sum to exactly 2**40. Round down, and give the rest to the largest remainders.

    Args:
        weights: Weights, non-negative, with a sum of 1 within 1e-6.

    >>> (fixed_point(np.array([0.25, 0.75])) / 2**40).tolist()
    [0.25, 0.75]
    """
    # Floats end here. Quotas, carry and order are integers from this point on, so that two machines with the same weights never
    # disagree about a draw, and `verify` can compare counts for equality.
    scaled = weights / weights.sum() * (1 << SCALE_BITS)
    fixed = scaled.astype(np.int64)
    # Rounding of the floats can make the sum too large as well as too small, so the correction has a sign. A stable sort breaks
    # ties by the number of the skill.
    missing = (1 << SCALE_BITS) - int(fixed.sum())
    step = 1 if missing >= 0 else -1
    order = (-step * (scaled - fixed)).argsort(kind="stable")
    per_skill, rest = divmod(abs(missing), len(order))
    fixed += step * per_skill
    fixed[order[:rest]] += step
    return fixed


def draw_weights(
    weights: Float[np.ndarray, " skill"], num_samples: Int[np.ndarray, " skill"], num_tokens: Int[np.ndarray, " skill"]
) -> Float[np.ndarray, " skill"]:
    r"""Compute the weights over draws that give each skill its weight in tokens.

    .. math:: p_i \propto w_i / m_i, \quad m_i = \text{tokens of skill } i / \text{samples of skill } i

    Over whole epochs the shares in tokens equal the weights exactly. Within a round the shares equal the weights in expectation,
    because the samples of a round are a random part of the skill.

    Args:
        weights: Shares in tokens, non-negative, sum 1.
        num_samples: Number of training samples of each skill, positive.
        num_tokens: Number of tokens of all training samples of each skill, positive.

    Example:
        Each skill gets half the tokens, and the samples of the second skill are three times as long:

        >>> draw_weights(np.array([0.5, 0.5]), np.array([10, 10]), np.array([100, 300])).tolist()
        [0.75, 0.25]
    """
    per_token = weights * num_samples / num_tokens
    return per_token / per_token.sum()


def quotas(
    fixed: Int[np.ndarray, " skill"], carry: Int[np.ndarray, " skill"], num_draws: int
) -> tuple[Int[np.ndarray, " skill"], Int[np.ndarray, " skill"]]:
    """Divide the draws of a round among the skills, and carry the rounding error over to the next round.

    Args:
        fixed: Weights in units of 2**-40, from `fixed_point`.
        carry: Draws owed to each skill by earlier rounds, in units of 2**-40 draws, with the sum 0.
        num_draws: Number of draws of the round, 1 to 2**22.

    Returns:
        Counts with the sum `num_draws`, and the new carry with the sum 0. Each count differs from weight x num_draws by less than 1.
        So a weight of 0 gets no draw, and an integer quota is met exactly.

    >>> counts, carry = quotas(fixed_point(np.array([0.5, 0.25, 0.25])), np.zeros(3, np.int64), 2)
    >>> counts.tolist(), (carry / 2**40).tolist()
    ([1, 1, 0], [0.0, -0.5, 0.5])
    >>> quotas(fixed_point(np.array([0.5, 0.25, 0.25])), carry, 2)[0].tolist()
    [1, 0, 1]
    """
    target = fixed * num_draws
    counts = target >> SCALE_BITS
    remainder = target - (counts << SCALE_BITS)
    left = num_draws - int(counts.sum())
    # The remaining draws go to the skills with the largest debts, the debts of earlier rounds included. Without the carry, a
    # skill with a weight of 1/3 in rounds of 1 draw might never be drawn. A remainder of 0 sorts last, so that a skill
    # with an integer quota, or with a weight of 0, gets no extra draw whatever the other rounds owe.
    owed = np.where(remainder > 0, -(carry + remainder), ENDLESS)
    counts[owed.argsort(kind="stable")[:left]] += 1
    return counts, carry + target - (counts << SCALE_BITS)


def limited_quotas(
    fixed: Int[np.ndarray, " skill"],
    carry: Int[np.ndarray, " skill"],
    num_draws: int,
    available: Int[np.ndarray, " skill"],
) -> tuple[Int[np.ndarray, " skill"], Int[np.ndarray, " skill"]]:
    """Divide the draws as `quotas` does, but give no skill more than its `available` draws.

    The other skills share the draws that a skill cannot take, in proportion to their weights.

    Args:
        fixed: Weights in units of 2**-40, as for `quotas`.
        carry: Draws owed to each skill by earlier rounds, as for `quotas`.
        num_draws: Number of draws of the round, 1 to 2**22.
        available: Maximal number of draws of each skill.

    Returns:
        Counts with the sum `num_draws`, or with the sum of the available draws if it is smaller, and the new carry.

    >>> counts, _ = limited_quotas(fixed_point(np.array([0.5, 0.25, 0.25])), np.zeros(3, np.int64), 8, np.array([1, 9, 9]))
    >>> counts.tolist()
    [1, 4, 3]
    """
    counts, new_carry = quotas(fixed, carry, num_draws)
    over = counts > available
    if not over.any():
        return counts, new_carry
    # An exhausted skill gets the rest of its samples, and the other skills divide the remaining draws by renormalized weights.
    # The carry begins anew at 0: the debt of an exhausted skill can never be paid, so the debts of the other skills no longer
    # sum to 0, and the bound on the carry rests on the sum 0. The recursion ends, because each level exhausts at least one more
    # skill.
    counts = np.where(over, available, 0)
    left, open_weights = num_draws - int(counts.sum()), np.where(over, 0, fixed)
    carry = np.zeros_like(carry)
    if left and open_weights.any():
        more, carry = limited_quotas(
            fixed_point(open_weights.astype(np.float64)), carry, left, np.where(over, 0, available)
        )
        counts = counts + more
    return counts, carry


def interleave(
    counts: Int[np.ndarray, " skill"], *labels: str | int
) -> tuple[Int[np.ndarray, " draw"], Int[np.ndarray, " draw"]]:
    """Order the draws of a round so that each skill is spread evenly over the round and mixed with the other skills.

    Args:
        counts: Number of draws of each skill, non-negative, with a sum of at least 1.
        labels: Key of the shuffle.

    Returns:
        The skill (an index) and the slot of each draw. Slots number the draws skill by skill, and within a skill in the order in which
        the skill is drawn. So the slot minus the first slot of the skill is the number of the skill's earlier draws in this round.

    >>> skill, slot = interleave(np.array([4, 2]), "round", 0)
    >>> skill.tolist(), slot.tolist()
    ([0, 0, 1, 0, 1, 0], [0, 1, 4, 2, 5, 3])
    """
    num_draws = int(counts.sum())
    slots = np.arange(num_draws, dtype=np.uint64)
    first_slot, num = np.repeat(np.array([counts.cumsum() - counts, counts], np.uint64), counts, axis=1)
    # Draw j of the c draws of a skill gets the place (j + random) / c in [0, 1). One word of 64 bits holds the place and the
    # slot, so that a single sort of plain integers orders the draws and carries the slots along:
    # - 20 bits of randomness, the upper bits of a keyed word, give the place in the stratum: (j << 20 | jitter) < c * 2**20.
    # - Shifted by 20 more bits and divided by c, the place is a fraction of 40 bits. A round has at most 2**22 draws, so the number
    #   before the division has at most 22 + 20 + 20 = 62 bits.
    # - The slot takes the lowest 22 bits, and the place the 40 bits above. Equal places are ordered by their slots, so the keys are
    #   distinct and the order is unique.
    jitter = keyed_words(num_draws, *labels) >> np.uint64(44)
    strata = ((slots - first_slot) << np.uint64(20)) | jitter
    keys = (strata << np.uint64(20)) // num << np.uint64(22) | slots
    # The stable sort finds the rising runs of the skills and merges the runs, three times as fast as the default sort. The keys
    # are distinct, so every sort gives the same order.
    keys.sort(kind="stable")
    slot = (keys & np.uint64((1 << 22) - 1)).astype(np.int64)
    return np.repeat(np.arange(len(counts)), counts).take(slot), slot


def round_order(
    counts: Sequence[int], *, seed: int, number: int
) -> tuple[Int[np.ndarray, " draw"], Int[np.ndarray, " draw"]]:
    """Order the draws of a round of a run, as `interleave` does. The arrays may be read-only, because the last orders stay in memory.

    Args:
        counts: Number of draws of each skill.
        seed: Seed of the run.
        number: Number of the round.
    """
    # The plan of a round and the draws before an observation in the round need the same order, one soon after the other.
    make = _kept_order if sum(counts) <= KEPT_DRAWS else _kept_order.__wrapped__
    return make(tuple(counts), seed, number)


@lru_cache(maxsize=4)
def _kept_order(counts: tuple[int, ...], seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    skill, slot = interleave(np.array(counts), "round", seed, number)
    skill.flags.writeable = slot.flags.writeable = False  # shared by all who ask
    return skill, slot
