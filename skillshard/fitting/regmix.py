"""RegMix: trees that predict the loss of a mixture, and the mean of the best of many random ones (extra `regmix`)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.extras import needed
from skillshard.fitting.runs import Runs

CANDIDATES = 100_000
"""Random mixtures among which the best are sought; the paper's."""
BEST = 128
"""Best ones of which the mean is proposed; the paper's."""
STRENGTHS = (0.1, 5.0)
"""Least and most of the factor on the prior in a candidate's Dirichlet distribution; the paper's."""


def fit_trees(runs: Runs, stop: Runs) -> list[Any]:
    """LightGBM's boosters with the paper's settings, one for each evaluation skill.

    Args:
        runs: what the trees learn from.
        stop: runs on which the error must fall; growing stops when it has not for three trees.

    Raises:
        ExtraError: LightGBM is not installed.

    Reference:
        Liu et al., "RegMix", ICLR 2025, arXiv:2407.01492: 1,000 trees at most, learning rate 0.01. The authors stop on the runs
        that they report correlations of; `propose_mixture` keeps runs of its own for that.
    """
    needed("regmix", what="RegMix")
    import lightgbm

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
        # not LGBMRegressor, which needs scikit-learn and changed its arguments in LightGBM 4.7
        trees.append(lightgbm.train(settings, learned, 1000, valid_sets=[watched], callbacks=[stopping]))
    return trees


def predict(trees: Sequence[Any], weights: Float[np.ndarray, "run train_skill"]) -> Float[np.ndarray, "run eval_skill"]:
    """The losses that the trees expect of some mixtures."""
    return np.column_stack([booster.predict(weights) for booster in trees])


def candidates(
    prior: Float[np.ndarray, " train_skill"], most: Float[np.ndarray, " train_skill"], seed: int
) -> Float[np.ndarray, "candidate train_skill"]:
    """Random mixtures around a prior, of which none is above `most`."""
    random = np.random.default_rng(seed)
    strengths = np.exp(random.uniform(math.log(STRENGTHS[0]), math.log(STRENGTHS[1]), CANDIDATES))
    drawn = random.standard_gamma(np.maximum(strengths[:, None] * prior, 1e-6))
    totals = drawn.sum(axis=1)
    drawn = drawn[totals > 0] / totals[totals > 0, None]
    return drawn[(drawn <= most + 1e-12).all(axis=1)]
