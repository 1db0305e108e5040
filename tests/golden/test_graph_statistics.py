"""The statistics of graphs agree with the statistics of the four published matrices."""

from typing import Any

import numpy as np
import pytest

from skillshard.graph.statistics import Statistics, statistics
from tests.golden.published import golden


def matrix_of(name: str, published: dict[str, Any]) -> np.ndarray:
    """Return the matrix itself, which stands beside its statistics or in the golden case that used the matrix."""
    if published["values"] is not None:
        return np.array(published["values"])
    if name == "top_23_early_decreases":
        return np.array(golden("skillit_static_ni_pt.json")["graph_raw"])
    cases = golden("skillit_official_scripts.json")["cases"]
    return next(matrix for case in cases if (matrix := np.array(case["graph_effective"])).shape == (59, 12))


def statistics_of(matrix: np.ndarray) -> Statistics:
    rows, columns = ([f"s{number}" for number in range(num)] for num in matrix.shape)
    return statistics(
        rows, columns if len(rows) == len(columns) else [f"e{number}" for number in range(len(columns))], matrix
    )


@pytest.mark.parametrize(
    "name", ["top_23_early_decreases", "ni_test_graph", "spanish_qg_normalized", "stance_detection"]
)
def test_the_published_matrices_have_their_published_statistics(name: str) -> None:
    published = golden("skillit_graph_stats.json")["graphs"][name]
    matrix = matrix_of(name, published)
    figures = statistics_of(matrix)
    assert list(matrix.shape) == published["shape"]
    assert (matrix.min(), matrix.max()) == (published["min"], published["max"])
    counts = (figures.num_positive, figures.num_negative, figures.num_zero)
    assert counts == tuple(published[key] for key in ("n_positive", "n_negative", "n_zero"))
    assert figures.density == pytest.approx(published["density_positive_over_all"], abs=1e-12)


def test_the_density_of_natural_instructions_is_the_paper_s_and_neither_complete_nor_empty() -> None:
    published = golden("skillit_graph_stats.json")
    figures = statistics_of(matrix_of("top_23_early_decreases", published["graphs"]["top_23_early_decreases"]))
    assert (
        round(figures.density, 3)
        == published["published"]["NI pre-training graph density (paper Fig. 2 right / Sec 2.1)"]
    )
    assert figures.sentence.startswith("Neither nearly complete nor nearly empty")


@pytest.mark.parametrize(
    ("density", "verdict"),
    [(0.974, "Nearly complete"), (0.427, "Neither"), (0.039, "Nearly empty")],
    ids=["Alpaca", "Natural Instructions", "Pile of Law"],
)
def test_matrices_as_dense_as_the_paper_s_get_the_paper_s_verdict(density: float, verdict: str) -> None:
    """The twin of the test above needs no published numbers except the three densities."""
    cells = np.random.default_rng(0).permutation(900).reshape(30, 30) < round(density * 900)
    edges = np.where(cells, 0.3, -0.1)
    figures = statistics_of(edges)
    assert figures.density == pytest.approx(density, abs=1e-3)
    assert figures.num_positive + figures.num_negative == 900
    assert figures.sentence.startswith(verdict)


def test_doubt_is_said_and_is_not_taken_for_emptiness() -> None:
    edges, errors = np.full((3, 3), 0.2), np.full((3, 3), 0.2)
    figures = statistics("abc", "abc", edges, standard_errors=errors, num_seeds=3)
    assert figures.num_uncertain == 9 and figures.density_certain == 0
    assert figures.sentence.startswith("Undecided (100 % of the edges between skills are positive, 0 % beyond doubt)")
    chain = np.eye(3) + np.eye(3, k=1)
    assert statistics("abc", "abc", chain).sentence.endswith("there may be an order for SKILL-IT to use.")
    assert statistics("abc", "abc", chain, standard_errors=errors / 100, num_seeds=3).sentence.endswith(
        "there is an order for SKILL-IT to use."
    )
    sure = statistics("abc", "abc", edges, standard_errors=errors / 100, num_seeds=3)
    assert sure.num_uncertain == 0 and sure.sentence.startswith("Nearly complete")
    half = np.where(np.arange(9).reshape(3, 3) % 2, errors, errors / 100)
    partly = statistics("abc", "abc", edges, standard_errors=half, num_seeds=3)
    assert partly.density_certain is not None and 0.1 < partly.density_certain < 0.9
    assert partly.sentence.startswith("Undecided (100 %") and "perhaps everything helps everything" in partly.sentence


def test_lone_skills_and_reciprocity_are_found() -> None:
    edges = np.array([[1.0, 0.5, 0.0], [0.4, 1.0, 0.2], [-0.3, 0.0, 1.0]])
    figures = statistics("abc", "abc", edges)
    assert (figures.helps_nobody, figures.helped_by_nobody) == (("c",), ())
    assert figures.reciprocity == pytest.approx(2 / 3)
    assert statistics(("a", "b"), ("exam",), np.array([[0.5], [0.0]])).reciprocity is None
