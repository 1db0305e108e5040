"""The offline fitter on published runs: RegMix's 512, and mixing laws measured by Aioli's authors."""

import csv
from typing import Any

import numpy as np
import pytest

from skillshard.fitting import regmix
from skillshard.fitting.mixing_law import fit_mixing_law, rank_correlations
from skillshard.fitting.proposal import propose_weights
from skillshard.fitting.runs import Runs
from tests.golden.published import GOLDEN, golden


def published_runs(kind: str) -> Runs:
    tables = []
    for name in (f"{kind}_mixture_1m.csv", f"{kind}_pile_loss_1m.csv"):
        place = GOLDEN / "regmix" / name
        if not place.exists():
            pytest.skip(f"{place} is not on this machine; tests/unit/test_fitting.py has the same with planted laws")
        rows = list(csv.reader(place.read_text().splitlines()))
        tables.append((tuple(rows[0][1:]), np.array(rows[1:], dtype=np.float64)[:, 1:]))
    (train_skills, weights), (eval_skills, losses) = tables
    return Runs(train_skills, eval_skills, weights, losses)


def percent(runs: Runs, predicted: np.ndarray) -> np.ndarray:
    return 100 * np.array(rank_correlations(predicted, runs.losses))


def test_the_trees_give_the_thirteen_published_correlations() -> None:
    pytest.importorskip("lightgbm", reason="LightGBM is the extra 'regmix'")
    found, train, test = golden("regmix_check.json"), published_runs("train"), published_runs("test")
    trees = regmix.fit_trees(train, test)
    assert list(train.eval_skills) == found["targets"]
    np.testing.assert_allclose(
        percent(test, regmix.predict(trees, test.weights)), found["spearman_published"], atol=0.0051
    )


def test_the_log_linear_law_ranks_as_well_as_the_given_one_and_better_than_ridge() -> None:
    found, train, test = golden("regmix_check.json"), published_runs("train"), published_runs("test")
    ours = percent(test, fit_mixing_law(train).predict(test.weights))
    pile_cc = found["targets"].index("metric/the_pile_pile_cc_val_loss")
    assert abs(ours[pile_cc] - found["loglinear_pile_cc_spearman_here"][0]) < 0.5
    assert np.all(ours > found["ridge_spearman_here"])


def test_the_proposal_on_the_published_runs_is_mostly_what_regmix_proposes() -> None:
    """Another regressor and another optimiser, and Pile-CC is still what makes the loss on Pile-CC small."""
    found, train = golden("regmix_check.json"), published_runs("train")
    proposal = propose_weights(train, kl=0.0, targets=["metric/the_pile_pile_cc_val_loss"])
    largest = max(proposal.weights, key=lambda skill: proposal.weights[skill])
    assert largest == max(
        found["optimal_mixture_published"], key=lambda skill: found["optimal_mixture_published"][skill]
    )


def published_law(skills: tuple[str, ...], laws: dict[str, Any], seed: str) -> Any:
    """The losses of a mixture by the published laws of three skills: exp(c) + exp(b + t1 p1 + t2 p2)."""
    rows = np.array([laws[skill]["5000"][seed] for skill in skills])

    def losses(weights: np.ndarray) -> np.ndarray:
        return np.exp(rows[:, 0]) + np.exp(rows[:, 1] + weights[:, :2] @ rows[:, 2:].T)

    return losses


@pytest.mark.parametrize("seed", ["0", "1", "2", "3", "4"])
def test_the_published_laws_of_three_skills_are_recovered_from_their_losses(seed: str) -> None:
    name = "analysis/law_results/arxiv_books_stackexchange/params_static.pkl"
    skills, laws = ("arxiv", "book", "stackexchange"), golden("aioli_fitted_laws.json")["data"][name]
    losses = published_law(skills, laws, seed)
    weights = np.random.default_rng(int(seed)).dirichlet(np.ones(3), 20)
    law = fit_mixing_law(Runs(skills, skills, weights, losses(weights)))
    unseen = np.random.default_rng(100 + int(seed)).dirichlet(np.ones(3), 200)
    np.testing.assert_allclose(law.predict(unseen), losses(unseen), atol=1e-5)
    np.testing.assert_allclose(law.constant, [np.exp(laws[skill]["5000"][seed][0]) for skill in skills], atol=1e-4)
    # the proposal is the best of all mixtures on a grid, by the published law
    proposal = propose_weights(Runs(skills, skills, weights, losses(weights)), kl=0.0)
    steps = np.array([(a, b, 200 - a - b) for a in range(201) for b in range(201 - a)]) / 200
    best = losses(steps).mean(axis=1).min()
    ours = losses(np.array([[proposal.weights[skill] for skill in skills]])).mean()
    assert ours <= best + 1e-6
