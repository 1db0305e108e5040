"""The log-linear mixing law: each loss as a constant and an exponential of the weights. Fitted by SciPy."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from skillshard.errors import FitError
from skillshard.extras import needed
from skillshard.fitting.runs import Runs

CONSTANTS = (0.2, 0.6, 0.9)
"""Shares of the least loss from which the constant's fit begins; the best of the three fits is kept."""


@dataclass(frozen=True)
class MixingLaw:
    r""":math:`L_j(p) = c_j + \exp(\sum_i A_{ij} p_i)`, in nats per token.

    Attributes:
        constant: c, of each evaluation skill; what no mixture removes.
        slopes: A, rows `train_skill`, columns `eval_skill`. Since weights sum to 1, a factor before exp would be redundant.
    """

    constant: Float[np.ndarray, " eval_skill"]
    slopes: Float[np.ndarray, "train_skill eval_skill"]

    def predict(self, weights: Float[np.ndarray, "run train_skill"]) -> Float[np.ndarray, "run eval_skill"]:
        """The losses of some mixtures."""
        return self.constant + np.exp(weights @ self.slopes)


def fit_mixing_law(runs: Runs) -> MixingLaw:
    """The law that fits the losses best, by least squares, each evaluation skill on its own.

    Raises:
        FitError: fewer runs than the law has numbers (one more than training skills).

    Example:
        >>> from skillshard.fitting.runs import make_runs
        >>> shares = np.linspace(0, 1, 9)
        >>> law = lambda p: {"exam": 1.0 + float(np.exp(0.5 * (1 - p) - 2.0 * p))}
        >>> found = fit_mixing_law(make_runs([{"add": p, "carry": 1 - p} for p in shares.tolist()], [law(p) for p in shares]))
        >>> found.constant.round(4).tolist(), found.slopes.round(4).tolist()
        ([1.0], [[-2.0], [0.5]])

    Reference:
        Ye et al., "Data Mixing Laws", ICLR 2025, arXiv:2403.16952, equation 7; the form without the factor is Olmix's,
        arXiv:2602.12237. Differs from both: least squares from three starts instead of Huber loss from many.
    """
    needed("fit", what="A log-linear law")
    least_runs = len(runs.train_skills) + 1
    if len(runs) < least_runs:
        raise FitError(
            f"{len(runs)} runs cannot tell {least_runs} numbers of a law over {len(runs.train_skills)} skills: give at least {least_runs} runs of "
            f"different mixtures; Olmix takes {3 * least_runs}."
        )
    fits = [_fit_one(runs.weights, losses) for losses in runs.losses.T]
    return MixingLaw(np.array([fit[0] for fit in fits]), np.array([fit[1:] for fit in fits]).T)


def _fit_one(
    weights: Float[np.ndarray, "run train_skill"], losses: Float[np.ndarray, " run"]
) -> Float[np.ndarray, " number"]:
    """The constant and the slopes of one loss; the constant is from 0 to below every loss at the start, free above."""
    from scipy.optimize import least_squares

    def residuals(law: np.ndarray) -> np.ndarray:
        return law[0] + np.exp(np.minimum(weights @ law[1:], 50)) - losses

    def slopes(law: np.ndarray) -> np.ndarray:
        powers = np.exp(np.minimum(weights @ law[1:], 50))
        return np.column_stack([np.ones(len(losses)), powers[:, None] * weights])

    low = np.concatenate([[0.0], np.full(weights.shape[1], -np.inf)])
    fits = []
    for share in CONSTANTS:
        start = np.linalg.lstsq(weights, np.log(losses - share * losses.min()), rcond=None)[0]
        first = np.concatenate([[share * losses.min()], start])
        fits.append(least_squares(residuals, first, slopes, bounds=(low, np.inf), xtol=1e-12, ftol=1e-12, gtol=1e-12))
    return min(fits, key=lambda fit: float(fit.cost)).x


def rank_correlations(
    found: Float[np.ndarray, "run eval_skill"], true: Float[np.ndarray, "run eval_skill"]
) -> list[float]:
    """Spearman's rank correlation of each evaluation skill, -1 to 1; 0 where one of the two is constant."""
    from scipy.stats import rankdata

    pairs = [(rankdata(mine), rankdata(theirs)) for mine, theirs in zip(found.T, true.T, strict=True)]
    return [float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs]
