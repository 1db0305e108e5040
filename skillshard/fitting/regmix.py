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
    """LightGBM regressors with the paper's settings, one for each evaluation skill.

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

    trees = []
    for at in range(len(runs.eval_skills)):
        model = lightgbm.LGBMRegressor(
            n_estimators=1000, learning_rate=0.01, random_state=42, verbosity=-1, n_jobs=1, deterministic=True
        )
        model.fit(
            runs.weights,
            runs.losses[:, at],
            eval_X=stop.weights,
            eval_y=stop.losses[:, at],
            eval_metric=["l1", "l2"],
            callbacks=[lightgbm.early_stopping(3, verbose=False)],
        )
        trees.append(model)
    return trees


def predict(trees: Sequence[Any], weights: Float[np.ndarray, "run train_skill"]) -> Float[np.ndarray, "run eval_skill"]:
    """The losses that the trees expect of some mixtures."""
    return np.column_stack([model.booster_.predict(weights) for model in trees])


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
