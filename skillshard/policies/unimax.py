"""UniMax: weights as equal as possible without repeating a skill more than a few times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.number_checks import is_finite, is_whole
from skillshard.policies.policy import Policy, Static, sizes


def unimax_shares(
    num_samples: Float[np.ndarray, " train_skill"], *, draws: float, epochs: float
) -> Float[np.ndarray, " train_skill"]:
    """Divide `draws` among the skills, smallest skill first: each skill gets an equal part of the rest, or at most its `epochs`.

    >>> unimax_shares(np.array([1000.0, 50.0]), draws=400.0, epochs=1.0).tolist()
    [350.0, 50.0]
    """
    # The smallest skill first, so that the draws that a small skill cannot take are divided among all larger skills.
    shares, left = np.zeros(len(num_samples)), draws
    for done, skill in enumerate(np.argsort(num_samples, kind="stable")):
        shares[skill] = min(left / (len(num_samples) - done), epochs * num_samples[skill])
        left -= shares[skill]
    return shares


@dataclass(frozen=True)
class UniMax(Static):
    """See `unimax`."""

    draws: int
    epochs: float
    name: str = "unimax"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"draws": self.draws, "epochs": self.epochs}

    def constant_weights(self, skills: Sequence[str], num_samples: Sequence[int] | None) -> list[float]:
        # The paper's budget counts draws. Only the ratios matter here, because every round has the same weights.
        shares = unimax_shares(sizes(self.name, num_samples), draws=float(self.draws), epochs=float(self.epochs))
        return (shares / shares.sum()).tolist()


def unimax(*, draws: int, epochs: float) -> Policy:
    r"""Compute equal weights, but draw no skill more than `epochs` times over the run. The other skills share the rest equally.

    .. math:: U_i = \min\Big(\frac{B}{L - i}, N n_i\Big), \quad B \leftarrow B - U_i, \quad p_i = U_i / \sum_j U_j

    The skills follow in the order of their sizes, smallest skill first. B begins as `draws`, and L is the number of skills. If all
    skills together hold fewer than `draws` / `epochs` samples, every skill passes N epochs and the weights are proportional. The
    transform `repetition_limit` raises an error in this case.

    Args:
        draws: Number of samples of the whole run, >= 1, or number of tokens if the mixer's unit is tokens.
        epochs: Maximal number N of passes over a skill, > 0. The only parameter of the method.

    Raises:
        PolicyError: draws or epochs is out of range. Later, the sizes are unknown.

    Example:
        >>> policy = unimax(draws=400, epochs=1.0)
        >>> policy.weights(policy.init(("add", "carry"), (1000, 50))).tolist()
        [0.875, 0.125]

    Reference:
        Chung et al., "UniMax", ICLR 2023, arXiv:2304.09151, Algorithm 1. Sizes and the budget are samples, and not characters as in the
        paper.
    """
    check_budget(epochs, draws)
    return UniMax(draws, epochs)


def check_budget(epochs: Any, draws: Any) -> None:
    """Raise PolicyError unless a maximal number of passes over a skill is a number > 0, and a number of draws a whole number > 0."""
    if not (is_finite(epochs) and epochs > 0):
        raise PolicyError(f"epochs is {epochs!r}: give the maximal number of passes over a skill, a finite number > 0.")
    if not is_whole(draws, 1):
        raise PolicyError(
            f"draws is {draws!r}: give the number of samples that the whole run takes, a whole number of at least 1."
        )
