"""Temperature sampling: weights between proportional and stratified."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skillshard.errors import PolicyError
from skillshard.number_checks import is_finite
from skillshard.policies.policy import Policy, Static, sizes, softmax


@dataclass(frozen=True)
class Temperature(Static):
    """See `temperature`."""

    tau: float
    name: str = "temperature"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"tau": self.tau}

    def constant_weights(self, skills: Sequence[str], num_samples: Sequence[int] | None) -> list[float]:
        counts = sizes(self.name, num_samples)
        # By logarithms, because the power of a large number with a small tau overflows. An empty skill has no logarithm, so it
        # counts as 1 sample and then gets the share 0.
        shares = softmax(np.log(np.maximum(counts, 1)) / self.tau) * (counts > 0)
        return (shares / shares.sum()).tolist()


def temperature(tau: float) -> Policy:
    r"""Compute weights proportional to a root of the skills' sizes.

    .. math:: p_i \propto n_i^{1 / \tau}

    Args:
        tau: Temperature > 0, without unit. 1 is proportional, and a larger tau is nearer to stratified. mBERT used 1.43, XLM 2, XLM-R and
            mT5 3.33 (UniMax paper, Section 2). The argument is required, because no value fits all sizes. A skill without samples has
            the weight 0.

    Raises:
        PolicyError: tau is no finite number > 0. Later, the sizes are unknown.

    Example:
        >>> policy = temperature(2.0)
        >>> policy.weights(policy.init(("add", "carry"), (900, 100))).round(6).tolist()
        [0.75, 0.25]

    Reference:
        Chung et al., "UniMax", ICLR 2023, arXiv:2304.09151, Section 2. Sizes are samples, and not characters as in the paper.
    """
    if not (is_finite(tau) and tau > 0):
        raise PolicyError(
            f"tau is {tau!r}: give a finite number > 0. With 1 the weights are proportional, with a large tau stratified."
        )
    return Temperature(tau)
