"""UniMax: as uniform as it can be without repeating any skill more than a few times."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.policies.policy import Policy, Static, sizes


def unimax_shares(
    num_samples: Float[np.ndarray, " train_skill"], *, draws: float, epochs: float
) -> Float[np.ndarray, " train_skill"]:
    """The draws that each skill gets of `draws`, smallest skill first: an equal part of what is left, or all its epochs.

    >>> unimax_shares(np.array([1000.0, 50.0]), draws=400.0, epochs=1.0).tolist()
    [350.0, 50.0]
    """
    shares, left = np.zeros(len(num_samples)), draws
    for done, at in enumerate(np.argsort(num_samples, kind="stable")):
        shares[at] = min(left / (len(num_samples) - done), epochs * num_samples[at])
        left -= shares[at]
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

    def made(self, skills: Sequence[str], num_samples: Sequence[int] | None) -> list[float]:
        shares = unimax_shares(sizes(self.name, num_samples), draws=float(self.draws), epochs=float(self.epochs))
        return (shares / shares.sum()).tolist()


def unimax(*, draws: int, epochs: float) -> Policy:
    r"""Equal weights, except that no skill is drawn more than `epochs` times over the run; the rest is shared alike.

    .. math:: U_i = \min\Big(\frac{B}{L - i}, N n_i\Big), \quad B \leftarrow B - U_i, \quad p_i = U_i / \sum_j U_j

    for the skills in the order of their size, smallest first; B begins as `draws`, L is the number of skills.

    Args:
        draws: samples that the whole run takes, >= 1; tokens where the mixer's unit is tokens.
        epochs: N, most passes over one skill, > 0; the method's only knob.

    Where all skills together hold fewer than `draws` / `epochs` samples, every skill passes N epochs and the weights are
    proportional; the transform `repetition_limit` refuses that instead.

    Raises:
        PolicyError: draws or epochs are out of range; later, the sizes are not known.

    Example:
        >>> policy = unimax(draws=400, epochs=1.0)
        >>> policy.weights(policy.init(("add", "carry"), (1000, 50))).tolist()
        [0.875, 0.125]

    Reference:
        Chung et al., "UniMax", ICLR 2023, arXiv:2304.09151, Algorithm 1. Differs from it: sizes and the budget are samples, not
        characters.
    """
    if draws < 1:
        raise PolicyError(f"draws is {draws:,}: give the number of samples that the whole run takes, at least 1.")
    if not 0 < epochs < math.inf:
        raise PolicyError(f"epochs is {epochs}: give the most passes over one skill, a finite number > 0.")
    return UniMax(draws, epochs)
