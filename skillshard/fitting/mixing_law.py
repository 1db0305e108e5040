"""Fit the log-linear mixing law, a constant plus an exponential of the weights for each loss, with SciPy."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from skillshard.errors import FitError
from skillshard.extras import needed
from skillshard.fitting.runs import Runs
from skillshard.printable import counted

CONSTANTS = (0.2, 0.6, 0.9)
"""Starts of the fit of the constant, as shares of the smallest loss. The fit with the smallest error wins."""


@dataclass(frozen=True)
class MixingLaw:
    r""":math:`L_j(p) = c_j + \exp(\sum_i A_{ij} p_i)`, in nats per token.

    Attributes:
        constant: c of each evaluation skill, the part of the loss that no mixture removes.
        slopes: A. The weights sum to 1, so a factor before exp would be redundant.
    """

    constant: Float[np.ndarray, " eval_skill"]
    slopes: Float[np.ndarray, "train_skill eval_skill"]

    def predict(self, weights: Float[np.ndarray, "run train_skill"]) -> Float[np.ndarray, "run eval_skill"]:
        """Predict the losses of mixtures."""
        return self.constant + np.exp(weights @ self.slopes)


def fit_mixing_law(runs: Runs) -> MixingLaw:
    """Fit the law by least squares, for each evaluation skill separately.

    Raises:
        FitError: the mixtures of the runs do not determine the law, see `undetermined`.

    Example:
        >>> from skillshard.fitting.runs import make_runs
        >>> shares = np.linspace(0, 1, 9)
        >>> law = lambda p: {"exam": 1.0 + float(np.exp(0.5 * (1 - p) - 2.0 * p))}
        >>> fitted = fit_mixing_law(make_runs([{"add": p, "carry": 1 - p} for p in shares.tolist()], [law(p) for p in shares]))
        >>> fitted.constant.round(4).tolist(), fitted.slopes.round(4).tolist()
        ([1.0], [[-2.0], [0.5]])

    Reference:
        Ye et al., "Data Mixing Laws", ICLR 2025, arXiv:2403.16952, equation 7. The form without a factor is from Olmix,
        arXiv:2602.12237. Here the fit is by least squares from three starts. Both papers fit a Huber loss from many starts.
    """
    needed("fit", what="A log-linear law")
    if (reason := undetermined(runs)) is not None:
        raise FitError(reason)
    fits = [_fit_one(runs.weights, losses) for losses in runs.losses.T]
    return MixingLaw(np.array([fit[0] for fit in fits]), np.array([fit[1:] for fit in fits]).T)


def undetermined(runs: Runs) -> str | None:
    """Return why runs do not determine a law, or None if the runs determine the law.

    The law of a loss has one number more than training skills, and each of these numbers needs a mixture. The mixtures must also differ in
    every skill: if the weight of a skill never changes, the effect of the skill is unknown.

    >>> from skillshard.fitting.runs import make_runs
    >>> undetermined(make_runs([{"add": 1.0, "carry": 1.0}] * 9, [{"exam": 1.0}] * 9))
    '9 runs with 1 mixture cannot tell 3 numbers of a law over 2 skills: give at least 3 runs of different mixtures; Olmix takes 9.'
    """
    num_skills, num_mixtures = len(runs.train_skills), runs.num_mixtures
    num_numbers = num_skills + 1
    if num_mixtures < num_numbers:
        return (
            f"{counted(len(runs), 'run')} with {counted(num_mixtures, 'mixture')} cannot tell {num_numbers} numbers of a law over "
            f"{counted(num_skills, 'skill')}: give at least {num_numbers} runs of different mixtures; Olmix takes {3 * num_numbers}."
        )
    if np.linalg.matrix_rank(runs.weights) < num_skills:
        return (
            f"the weights of {num_skills} skills always change together in {counted(len(runs), 'run')}, so their effects cannot be told apart: add runs "
            "in which the weight of each skill changes by itself."
        )
    return None


def _fit_one(
    weights: Float[np.ndarray, "run train_skill"], losses: Float[np.ndarray, " run"]
) -> Float[np.ndarray, " number"]:
    """Fit the constant and the slopes of one loss. The constant is at least 0."""
    from scipy.optimize import least_squares

    def residuals(law: np.ndarray) -> np.ndarray:
        # 50 keeps the exponential finite on the way of the optimiser. Losses are far smaller than exp(50).
        return law[0] + np.exp(np.minimum(weights @ law[1:], 50)) - losses

    def slopes(law: np.ndarray) -> np.ndarray:
        powers = np.exp(np.minimum(weights @ law[1:], 50))
        return np.column_stack([np.ones(len(losses)), powers[:, None] * weights])

    low = np.concatenate([[0.0], np.full(weights.shape[1], -np.inf)])
    # Without a good start the fit may end in a law without a constant. So the logarithms are fitted linearly first.
    fits = []
    for share in CONSTANTS:
        start = np.linalg.lstsq(weights, np.log(losses - share * losses.min()), rcond=None)[0]
        first = np.concatenate([[share * losses.min()], start])
        fits.append(least_squares(residuals, first, slopes, bounds=(low, np.inf), xtol=1e-12, ftol=1e-12, gtol=1e-12))
    return min(fits, key=lambda fit: float(fit.cost)).x


def rank_correlations(
    predicted: Float[np.ndarray, "run eval_skill"], true: Float[np.ndarray, "run eval_skill"]
) -> list[float]:
    """Compute Spearman's rank correlation of each evaluation skill, from -1 to 1. A constant column has correlation 0."""
    from scipy.stats import rankdata

    pairs = [(rankdata(mine), rankdata(theirs)) for mine, theirs in zip(predicted.T, true.T, strict=True)]
    return [float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs]
