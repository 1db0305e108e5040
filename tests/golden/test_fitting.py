"""The offline fitter on published runs: RegMix's 512 runs, and mixing laws measured by Aioli's authors."""

import csv
from collections.abc import Callable

import numpy as np
import pytest

from skillshard.fitting import regmix
from skillshard.fitting.mixing_law import fit_mixing_law, rank_correlations
from skillshard.fitting.proposal import propose_weights
from skillshard.fitting.runs import Runs
from tests.golden.published import DATA, golden


def published_runs(kind: str) -> Runs:
    tables = []
    for name in (f"{kind}_mixture_1m.csv", f"{kind}_pile_loss_1m.csv"):
        rows = list(csv.reader((DATA / "regmix" / name).read_text().splitlines()))
        tables.append((tuple(rows[0][1:]), np.array(rows[1:], dtype=np.float64)[:, 1:]))
    (train_skills, weights), (eval_skills, losses) = tables
    return Runs(train_skills, eval_skills, weights, losses)


def percent(runs: Runs, predicted: np.ndarray) -> np.ndarray:
    return 100 * np.array(rank_correlations(predicted, runs.losses))


def test_the_trees_give_the_thirteen_published_correlations() -> None:
    published, train, test = golden("regmix_check.json"), published_runs("train"), published_runs("test")
    trees = regmix.fit_trees(train, test)
    assert list(train.eval_skills) == published["targets"]
    np.testing.assert_allclose(
        percent(test, regmix.predict(trees, test.weights)), published["spearman_published"], atol=0.0051
    )


def test_the_log_linear_law_ranks_as_well_as_the_given_one_and_better_than_ridge() -> None:
    published, train, test = golden("regmix_check.json"), published_runs("train"), published_runs("test")
    ours = percent(test, fit_mixing_law(train).predict(test.weights))
    pile_cc = published["targets"].index("metric/the_pile_pile_cc_val_loss")
    assert abs(ours[pile_cc] - published["loglinear_pile_cc_spearman"][0]) < 0.5
    assert np.all(ours > published["ridge_spearman"])


def test_the_proposal_on_the_published_runs_is_mostly_what_regmix_proposes() -> None:
    """Regressor and optimiser differ from RegMix's, and Pile-CC still makes the loss on Pile-CC small."""
    published, train = golden("regmix_check.json"), published_runs("train")
    proposal = propose_weights(train, kl=0.0, targets=["metric/the_pile_pile_cc_val_loss"])
    largest = max(proposal.weights, key=lambda skill: proposal.weights[skill])
    assert largest == max(
        published["optimal_mixture_published"], key=lambda skill: published["optimal_mixture_published"][skill]
    )


LAWS = {
    "arxiv_stackexchange/params_static.pkl": ("5000", 5),
    "arxiv_books_stackexchange/params_static.pkl": ("5000", 5),
    "instruction/params.pkl": ("1000", 4),  # the authors did not publish the fit of the fifth seed
}


def published_law(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Compute the losses of mixtures from published numbers, one row per skill. The last of three or more skills has no slope.

    Two skills: c + exp(b + t p1), as (c, t, b). More: exp(c) + exp(b + t1 p1 + t2 p2 + ...), as (c, b, t1, t2, ...).
    """
    if len(rows) == 2:
        return lambda weights: rows[:, 0] + np.exp(rows[:, 2] + weights * rows[:, 1])
    return lambda weights: np.exp(rows[:, 0]) + np.exp(rows[:, 1] + weights[:, :-1] @ rows[:, 2:].T)


@pytest.mark.parametrize("name", LAWS)
def test_the_published_laws_are_recovered_from_their_losses(name: str) -> None:
    step, num_seeds = LAWS[name]
    laws = golden("aioli_fitted_laws.json")["data"][f"analysis/law_results/{name}"]
    skills = tuple(laws)
    for seed in range(num_seeds):
        losses = published_law(np.array([laws[skill][step][str(seed)] for skill in skills]))
        weights = np.random.default_rng(seed).dirichlet(np.ones(len(skills)), 7 * len(skills))
        runs = Runs(skills, skills, weights, losses(weights))
        unseen = np.random.default_rng(100 + seed).dirichlet(np.ones(len(skills)), 200)
        np.testing.assert_allclose(fit_mixing_law(runs).predict(unseen), losses(unseen), atol=1e-5)
        # By the published law, no random mixture is better than the proposal.
        proposal = propose_weights(runs, kl=0.0)
        ours = losses(np.array([[proposal.weights[skill] for skill in skills]])).mean()
        tried = np.random.default_rng(200 + seed).dirichlet(np.full(len(skills), 0.5), 50_000)
        assert ours <= losses(tried).mean(axis=1).min() + 1e-6
