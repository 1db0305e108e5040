"""RegMix: predict the loss of a mixture with trees, and take the mean of the best random mixtures (extra `regmix`)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.extras import needed
from skillshard.fitting.runs import Runs

CANDIDATES = 100_000
"""Number of random mixtures, as in the paper."""
BEST = 128
"""Number of best mixtures whose mean is proposed, as in the paper."""
STRENGTHS = (0.1, 5.0)
"""Range of the factor on the prior in the Dirichlet distribution of a mixture, as in the paper."""


def fit_trees(runs: Runs, stop: Runs) -> list[Any]:
    """Fit a LightGBM booster with the paper's settings for each evaluation skill.

    Args:
        runs: runs that the trees learn from.
        stop: runs that decide when to stop. Growing stops when three trees in a row do not lower their error.

    Raises:
        ExtraError: LightGBM is not installed.

    Reference:
        Liu et al., "RegMix", ICLR 2025, arXiv:2407.01492: at most 1,000 trees, learning rate 0.01. The authors stop on the
        runs whose correlations they report. `propose_weights` uses other runs for the correlations.
    """
    needed("regmix", what="RegMix")
    import lightgbm

    # One thread and `deterministic`, so that the same runs give the same proposal on every machine. 42 is the seed of the authors.
    settings = {
        "objective": "regression",
        "metric": ["l2", "l1"],
        "learning_rate": 0.01,
        "seed": 42,
        "num_threads": 1,
        "deterministic": True,
        "verbosity": -1,
    }
    trees = []
    for losses, stop_losses in zip(runs.losses.T, stop.losses.T, strict=True):
        learned = lightgbm.Dataset(runs.weights, losses)
        watched = lightgbm.Dataset(stop.weights, stop_losses, reference=learned)
        stopping = lightgbm.early_stopping(3, verbose=False)
        # Not LGBMRegressor, because the class needs scikit-learn, and its arguments changed in LightGBM 4.7.
        trees.append(lightgbm.train(settings, learned, 1000, valid_sets=[watched], callbacks=[stopping]))
    return trees


def predict(trees: Sequence[Any], weights: Float[np.ndarray, "run train_skill"]) -> Float[np.ndarray, "run eval_skill"]:
    """Predict the losses of mixtures."""
    return np.column_stack([booster.predict(weights) for booster in trees])


def candidates(
    prior: Float[np.ndarray, " train_skill"], most: Float[np.ndarray, " train_skill"], seed: int
) -> Float[np.ndarray, "candidate train_skill"]:
    """Draw random mixtures around a prior. No weight is above `most`."""
    random = np.random.default_rng(seed)
    strengths = np.exp(random.uniform(math.log(STRENGTHS[0]), math.log(STRENGTHS[1]), CANDIDATES))
    # Gamma variables divided by their sum are a Dirichlet draw. A shape of 0 would always give 0, hence 1e-6.
    drawn = random.standard_gamma(np.maximum(strengths[:, None] * prior, 1e-6))
    totals = drawn.sum(axis=1)
    drawn = drawn[totals > 0] / totals[totals > 0, None]
    return drawn[(drawn <= most + 1e-12).all(axis=1)]
