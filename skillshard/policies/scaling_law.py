"""The scaling law of a skill: its loss as a power of the number of samples seen. ADO refits the laws during the training."""

import itertools
import math
from typing import Any

import numpy as np
from jaxtyping import Float

STARTS = 4
"""Number of fits, from the best points of the authors' grid of 512 points. The authors start a fit at every point."""
MOST_LOG_LOSS = 20.0
"""Upper bound of epsilon, as in the authors' code."""
HUBER_DELTA = 1e-3
"""Error of the log loss from which on errors count linearly, as in the authors' code and in Chinchilla."""


def fit_scaling_law(
    draws: Float[np.ndarray, " observation"],
    losses: Float[np.ndarray, " observation"],
    *,
    least_log_loss: float = 0.5,
) -> tuple[float, float, float] | None:
    r"""Fit :math:`L(n) = e^{\epsilon} + e^{\beta} n^{-\alpha}` by the Huber loss of log L.

    Args:
        draws: Numbers n of samples seen, > 0.
        losses: Losses L in nats per token, > 0.
        least_log_loss: Lower bound of epsilon, the logarithm of the remaining loss. ADO's code uses 0.5 (1.65 nats) for text.

    Returns:
        (beta, epsilon, alpha), within ADO's bounds: beta from -20 to 6.5, alpha from 0.001 to 0.8. None if no fit gives finite numbers.

    Example:
        >>> draws = np.linspace(1e3, 1e5, 40)
        >>> beta, epsilon, alpha = fit_scaling_law(draws, math.exp(0.7) + math.exp(3.0) * draws**-0.3)
        >>> round(beta, 2), round(epsilon, 2), round(alpha, 2)
        (3.0, 0.7, 0.3)

    Reference:
        Jiang et al., "Adaptive Data Optimization", ICLR 2025, arXiv:2410.11820. In contrast to the code, bounds replace penalties, and
        L-BFGS-B from the best grid points replaces L-BFGS from all 512 points.
    """
    from scipy.optimize import minimize

    log_draws, target = np.log(draws), np.log(np.maximum(losses, 1e-12))  # a loss of 0 has no logarithm
    low, high = (-20.0, least_log_loss, 0.001), (6.5, MOST_LOG_LOSS, 0.8)
    grid = np.array(list(itertools.product(np.arange(-2, 6, 1), np.arange(-2, 2, 0.5), np.arange(0, 0.8, 0.1))))
    grid = np.unique(np.clip(grid, low, high), axis=0)
    # The whole grid is evaluated in a single array expression, because a fit from every point would take seconds.
    at_grid = np.logaddexp(grid[:, :1] - grid[:, 2:] * log_draws, grid[:, 1:2])
    best = np.argsort(_huber(at_grid - target).sum(axis=1), kind="stable")[:STARTS]
    fits = [
        minimize(_error, start, (log_draws, target), "L-BFGS-B", jac=True, bounds=list(zip(low, high, strict=True)))
        for start in grid[best]
    ]
    finite = [fit for fit in fits if math.isfinite(fit.fun) and np.all(np.isfinite(fit.x))]
    if not finite:
        return None
    beta, epsilon, alpha = min(finite, key=lambda fit: float(fit.fun)).x.tolist()
    return beta, epsilon, alpha


def _huber(off: Any) -> Any:
    """Compute the Huber loss in units of its delta, so that the tolerances of the optimizer fit."""
    size = np.abs(off)
    return np.where(size > HUBER_DELTA, size - 0.5 * HUBER_DELTA, 0.5 * off**2 / HUBER_DELTA)


def _error(law: Any, log_draws: Any, target: Any) -> Any:
    """Compute the error of a law and the gradient of the error."""
    # The exact gradient needs a single evaluation, where finite differences would need four.
    beta, epsilon, alpha = law
    falling = beta - alpha * log_draws
    predicted = np.logaddexp(falling, epsilon)
    off = predicted - target
    slope = np.clip(off / HUBER_DELTA, -1, 1)
    share = np.exp(falling - predicted)
    gradient = np.array([(slope * share).sum(), (slope * (1 - share)).sum(), -(slope * share * log_draws).sum()])
    return _huber(off).sum(), gradient
