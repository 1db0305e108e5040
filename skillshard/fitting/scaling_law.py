"""One skill's scaling law: its loss as a power of the samples seen. What ADO refits as training goes on."""

import itertools
import math

import numpy as np
from jaxtyping import Float

STARTS = 8
"""Fits begun, at the best points of the authors' grid of 512; from there L-BFGS-B finds the same best one as from all."""
HUBER_DELTA = 1e-3
"""Error of log loss from where on it counts linearly; the authors' and Chinchilla's."""


def fit_scaling_law(
    draws: Float[np.ndarray, " observation"],
    losses: Float[np.ndarray, " observation"],
    *,
    least_log_loss: float = 0.5,
) -> tuple[float, float, float] | None:
    r"""Fit :math:`L(n) = e^{\epsilon} + e^{\beta} n^{-\alpha}` by the Huber loss of log L.

    Args:
        draws: n, samples seen, > 0.
        losses: L in nats per token, > 0.
        least_log_loss: bound below for epsilon, the logarithm of the loss that remains; 0.5 (1.65 nats) in ADO's code, for text.

    Returns:
        (beta, epsilon, alpha), within ADO's bounds: beta <= 6.5, alpha from 0.001 to 0.8. None if no start gave finite numbers.

    Example:
        >>> draws = np.linspace(1e3, 1e5, 40)
        >>> beta, epsilon, alpha = fit_scaling_law(draws, math.exp(0.7) + math.exp(3.0) * draws**-0.3)
        >>> round(beta, 2), round(epsilon, 2), round(alpha, 2)
        (3.0, 0.7, 0.3)

    Reference:
        Jiang et al., "Adaptive Data Optimization", ICLR 2025, arXiv:2410.11820. Differs from the code: bounds where it has
        penalties; L-BFGS-B from the best grid points where it has L-BFGS from all 512.
    """
    from scipy.optimize import minimize

    log_draws, target = np.log(draws), np.log(np.maximum(losses, 1e-12))

    def error(law: Float[np.ndarray, " 3"]) -> tuple[float, Float[np.ndarray, " 3"]]:
        beta, epsilon, alpha = law
        falling = beta - alpha * log_draws
        predicted = np.logaddexp(falling, epsilon)
        off = predicted - target
        size = np.abs(off)
        value = np.where(size > HUBER_DELTA, HUBER_DELTA * (size - 0.5 * HUBER_DELTA), 0.5 * off**2).sum()
        slope = np.clip(off, -HUBER_DELTA, HUBER_DELTA)
        share = np.exp(falling - predicted)
        gradient = np.array([(slope * share).sum(), (slope * (1 - share)).sum(), -(slope * share * log_draws).sum()])
        return value / HUBER_DELTA, gradient / HUBER_DELTA

    bounds = [(None, 6.5), (least_log_loss, None), (0.001, 0.8)]
    grid = np.array(list(itertools.product(np.arange(-2, 6, 1), np.arange(-2, 2, 0.5), np.arange(0, 0.8, 0.1))))
    grid = np.unique(np.clip(grid, [-np.inf, least_log_loss, 0.001], [6.5, np.inf, 0.8]), axis=0)
    best = sorted(range(len(grid)), key=lambda at: error(grid[at])[0])[:STARTS]
    found = [
        minimize(error, grid[at], jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500, "ftol": 1e-14})
        for at in best
    ]
    finite = [fit for fit in found if math.isfinite(fit.fun) and np.all(np.isfinite(fit.x))]
    if not finite:
        return None
    beta, epsilon, alpha = min(finite, key=lambda fit: float(fit.fun)).x.tolist()
    return beta, epsilon, alpha
