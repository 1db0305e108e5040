"""Propose the weights of the next run: fit finished runs, and minimise the mean loss near a prior with limited repetition."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field

from skillshard import canonical, storage
from skillshard.errors import FitError, did_you_mean, name_some
from skillshard.extras import needed
from skillshard.fitting import regmix
from skillshard.fitting.mixing_law import fit_mixing_law, rank_correlations, undetermined
from skillshard.fitting.runs import Runs
from skillshard.progress import advance

Method = Literal["log-linear", "regmix"]
Predict = Callable[[Float[np.ndarray, "run train_skill"]], Float[np.ndarray, "run eval_skill"]]
FOLDS = 5
"""Number of folds of the cross-validation that gives the correlations."""
TREE_RUNS = 50
"""Smallest number of runs for trees. A leaf has at least 20 runs, so fewer runs would give a tree without a split."""
TINY = 1e-12
"""Smallest weight in the divergence, because the logarithm of 0 is not finite."""


class Proposal(BaseModel):
    """The proposal that `skillshard fit` writes, with the figures behind the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal["skillshard/fit/1"] = Field("skillshard/fit/1", alias="schema")
    method: Method
    num_runs: int
    weights: dict[str, float] = Field(description="training skill -> proposed weight; sum 1")
    prior: dict[str, float] = Field(description="training skill -> weight that the proposal is kept near; sum 1")
    most: dict[str, float] = Field(description="training skill -> largest weight within the repetition limit")
    kl: float = Field(description="price of the divergence from the prior, nats per token for each nat")
    targets: list[str] = Field(description="evaluation skills whose mean loss is minimised")
    expected: dict[str, float] = Field(description="evaluation skill -> predicted loss of the weights")
    expected_of_prior: dict[str, float] = Field(description="evaluation skill -> predicted loss of the prior")
    best_run: dict[str, float] = Field(description="training skill -> weight in the run with the smallest mean loss")
    best_run_loss: float = Field(description="measured mean loss of the best run over the targets")
    held_out: dict[str, float] = Field(description="evaluation skill -> rank correlation on runs left out of the fit")
    law: dict[str, Any] | None = Field(description="constant and slopes of the log-linear law; null for regmix")

    def to_bytes(self) -> bytes:
        return canonical.to_json(self.model_dump(by_alias=True))

    def save(self, place: str | os.PathLike[str]) -> None:
        """Write the proposal, whole or not at all."""
        storage.write_bytes(place, self.to_bytes())


def propose_weights(
    runs: Runs,
    *,
    method: Method = "log-linear",
    kl: float = 0.05,
    num_samples: Mapping[str, int] | None = None,
    epochs: float = 4.0,
    draws: int | None = None,
    targets: Sequence[str] | None = None,
    seed: int = 0,
) -> Proposal:
    r"""Fit the losses of finished runs, and propose the weights with the least mean loss.

    .. math:: \min_p \frac{1}{m} \sum_j \hat L_j(p) + \lambda \operatorname{KL}(p \| q)
        \quad \text{with} \quad p_i \le N n_i / R

    Args:
        runs: finished runs. A log-linear law needs more runs than training skills, with different mixtures.
        method: "log-linear" (`fit_mixing_law`, minimised by SLSQP), or "regmix" (LightGBM trees, and the mean of the 128 best of
            100,000 random mixtures around the prior).
        kl: lambda in nats per token for each nat of divergence, >= 0. Olmix uses 0.05.
        num_samples: number of samples of each training skill. The prior q is proportional to the samples. None: equal weights.
        epochs: N, largest number of passes over a skill. 4 is from Muennighoff et al., arXiv:2305.16264. Used if `draws` is given.
        draws: R, number of draws of the next run. None: no limit. Needs `num_samples`.
        targets: evaluation skills whose mean loss counts. None: all.
        seed: seed of the random mixtures of "regmix".

    Raises:
        ExtraError: SciPy, or LightGBM for regmix, is not installed.
        FitError: too few runs or mixtures, unknown names, a number out of range, or too few samples.

    Reference:
        Olmix, arXiv:2602.12237 (objective, prior, limit); RegMix, arXiv:2407.01492.
    """
    _check_arguments(method, kl, epochs, draws)
    needed("regmix" if method == "regmix" else "fit", what=f"`{method=}`")
    chosen = _targets(runs, targets)
    prior = _prior(runs, num_samples)
    most = _most(runs, num_samples, epochs, draws)
    predict, law = _fit(runs, method)
    if method == "log-linear":
        weights = _minimised(law, chosen, prior, most, kl)
    else:
        weights = _best_of_many(predict, chosen, prior, most, kl, seed)
    mean = runs.losses[:, chosen].mean(axis=1)
    best = int(mean.argmin())
    return Proposal(
        method=method,
        num_runs=len(runs),
        weights=_by_name(runs.train_skills, weights),
        prior=_by_name(runs.train_skills, prior),
        most=_by_name(runs.train_skills, most),
        kl=kl,
        targets=[runs.eval_skills[number] for number in chosen],
        expected=_by_name(runs.eval_skills, predict(weights[None])[0]),
        expected_of_prior=_by_name(runs.eval_skills, predict(prior[None])[0]),
        best_run=_by_name(runs.train_skills, runs.weights[best]),
        best_run_loss=float(mean[best]),
        held_out=_by_name(runs.eval_skills, np.array(_held_out(runs, method))),
        law=None if law is None else {"constant": law.constant.tolist(), "slopes": law.slopes.tolist()},
    )


def _check_arguments(method: str, kl: float, epochs: float, draws: int | None) -> None:
    if method not in get_args(Method):
        raise FitError(f"`{method=}`{did_you_mean(method, get_args(Method))}: give {' or '.join(get_args(Method))}.")
    if not 0 <= kl < math.inf:
        raise FitError(f"`{kl=}`: give the price of the divergence from the prior, a finite number >= 0.")
    if not 0 < epochs < math.inf:
        raise FitError(f"`{epochs=}`: give the largest number of passes over a skill, a finite number above 0.")
    if draws is not None and draws < 1:
        raise FitError(f"`{draws=}`: give the number of draws of the next run, at least 1.")


def _by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))


def _targets(runs: Runs, targets: Sequence[str] | None) -> list[int]:
    unknown = [
        f"{name!r}{did_you_mean(name, runs.eval_skills)}" for name in targets or () if name not in runs.eval_skills
    ]
    if unknown:
        raise FitError(
            f"no run has a loss of {name_some(unknown)}. The runs have losses of {name_some(runs.eval_skills)}."
        )
    # A target that is named twice counts once.
    return [runs.eval_skills.index(name) for name in dict.fromkeys(targets or runs.eval_skills)]


def _prior(runs: Runs, num_samples: Mapping[str, int] | None) -> Float[np.ndarray, " train_skill"]:
    if num_samples is None:
        return np.full(len(runs.train_skills), 1 / len(runs.train_skills))
    missing = [name for name in runs.train_skills if not num_samples.get(name, 0) > 0]
    unknown = [name for name in num_samples if name not in runs.train_skills]
    if missing or unknown:
        raise FitError(
            f"the runs were not trained on the skills of the shards: without samples: {name_some(missing) or 'none'}; without a weight "
            f"in any run: {name_some(unknown) or 'none'}. Fit runs on these shards, or leave the shards out."
        )
    counts = np.array([num_samples[name] for name in runs.train_skills], dtype=np.float64)
    return counts / counts.sum()


def _most(
    runs: Runs, num_samples: Mapping[str, int] | None, epochs: float, draws: int | None
) -> Float[np.ndarray, " train_skill"]:
    if draws is None:
        return np.ones(len(runs.train_skills))
    if num_samples is None:
        raise FitError("a repetition limit needs the number of samples of each skill: give the shards as well.")
    most = np.array([epochs * num_samples[name] / draws for name in runs.train_skills])
    if most.sum() < 1:
        raise FitError(
            f"{epochs:g} epochs of all samples are {most.sum() * draws:,.0f} draws, fewer than the {draws:,} of the run: give more epochs, "
            "fewer draws or more samples."
        )
    return np.minimum(most, 1.0)


def _fit(runs: Runs, method: Method) -> tuple[Predict, Any]:
    if method == "log-linear":
        law = fit_mixing_law(runs)
        return law.predict, law
    if len(runs) < TREE_RUNS:
        raise FitError(
            f"{len(runs)} runs are too few for trees: give at least {TREE_RUNS}, or fit a law; the paper takes 512."
        )
    fitted, stop = _split(len(runs), 0)
    trees = regmix.fit_trees(runs.some(fitted), runs.some(stop))
    return lambda weights: regmix.predict(trees, weights), None


def _split(num: int, fold: int) -> tuple[list[int], list[int]]:
    """Split the runs into a training part and every fifth run."""
    return [run for run in range(num) if run % FOLDS != fold], list(range(fold, num, FOLDS))


def _held_out(runs: Runs, method: Method) -> list[float]:
    """Compute rank correlations by cross-validation. Too few runs give 0."""
    predicted = np.zeros_like(runs.losses)
    for fold in range(FOLDS):
        advance(1 + fold, 1 + FOLDS)  # the fit of all runs came first, and takes about as long as a fold
        fitted, left_out = _split(len(runs), fold)
        remaining = runs.some(fitted)
        enough = undetermined(remaining) is None if method == "log-linear" else len(fitted) >= TREE_RUNS
        if not (enough and left_out):
            return [0.0] * len(runs.eval_skills)
        predicted[left_out] = _fit(remaining, method)[0](runs.weights[left_out])
    return rank_correlations(predicted, runs.losses)


def _divergence(weights: np.ndarray, prior: np.ndarray) -> Any:
    """Compute KL(weights || prior) in nats."""
    return (weights * np.log(np.maximum(weights, TINY) / prior)).sum(axis=-1)


def _minimised(
    law: Any,
    chosen: list[int],
    prior: Float[np.ndarray, " train_skill"],
    most: Float[np.ndarray, " train_skill"],
    kl: float,
) -> Float[np.ndarray, " train_skill"]:
    """Find the minimum. The losses and the divergence are convex in the weights, so a local minimum is the global minimum."""
    from scipy.optimize import LinearConstraint, minimize

    slopes = law.slopes[:, chosen]

    def value(weights: np.ndarray) -> Any:
        return np.exp(weights @ slopes).mean() + kl * _divergence(weights, prior)

    def gradient(weights: np.ndarray) -> Any:
        pull = np.log(np.maximum(weights, TINY) / prior) + 1
        return slopes @ np.exp(weights @ slopes) / len(chosen) + kl * pull

    start = np.minimum(prior, most)
    minimum = minimize(
        value,
        start / start.sum(),
        jac=gradient,
        method="SLSQP",
        bounds=[(0.0, limit) for limit in most],
        constraints=[LinearConstraint(np.ones((1, len(prior))), 1.0, 1.0)],
        options={"maxiter": 2000, "ftol": 1e-12},
    )
    if not minimum.success:
        raise FitError(f"no minimum was found: {minimum.message}. Give a larger kl, or fewer skills.")
    weights = np.clip(minimum.x, 0, most)
    return weights / weights.sum()


def _best_of_many(
    predict: Predict,
    chosen: list[int],
    prior: Float[np.ndarray, " train_skill"],
    most: Float[np.ndarray, " train_skill"],
    kl: float,
    seed: int,
) -> Float[np.ndarray, " train_skill"]:
    tried = regmix.candidates(prior, most, seed)
    if len(tried) < regmix.BEST:
        raise FitError(
            f"only {len(tried)} of {regmix.CANDIDATES:,} random mixtures keep the repetition limit: give more epochs, or fit a law "
            "(log-linear)."
        )
    value = predict(tried)[:, chosen].mean(axis=1) + kl * _divergence(tried, prior)
    best = tried[np.argsort(value, kind="stable")[: regmix.BEST]].mean(axis=0)
    return best / best.sum()
