"""SKILL-IT's weights equal those of the authors' code for the losses of the authors' scripts."""

from typing import Any

import numpy as np

from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies import Observation, skill_it
from tests.golden.published import golden


def weights_after(graph: list[list[float]], seen: list[list[float]] | None, **arguments: Any) -> np.ndarray:
    """Return the weights of the policy after the observations `seen`, oldest first."""
    rows = tuple(f"train-{number}" for number in range(len(graph)))
    columns = tuple(f"eval-{number}" for number in range(len(graph[0])))
    policy = skill_it(SkillGraph(rows, columns, graph), **arguments)
    state = policy.init(rows)
    for step, losses in enumerate(seen or []):
        state = policy.observe(state, Observation(step, dict(zip(columns, losses, strict=True))))
    return policy.weights(state)


def test_the_official_scripts_weights_are_matched() -> None:
    golden_file = golden("skillit_official_scripts.json")
    num_compared = 0
    for case in golden_file["cases"]:
        for row in case["rounds"]:
            window = row["window_losses"]
            if window is not None and "target_idxs" in case:
                window = [[losses[index] for index in case["target_idxs"]] for losses in window]
            ours = weights_after(
                case["graph_effective"], window, eta=case["eta"], window=case["window"], reduce=case["window_reduce"]
            )
            np.testing.assert_allclose(ours, row["weights"], rtol=0, atol=1e-9, err_msg=f"{case['name']} {row}")
            num_compared += 1
    assert num_compared >= 6


def test_the_real_losses_of_the_lego_run_give_its_weights() -> None:
    case = golden("skillit_lego_real_losses.json")
    losses = {int(step): values for step, values in case["losses"].items()}
    for step, expected in case["weights_official_code"].items():
        before = [losses[earlier] for earlier in sorted(losses) if earlier < int(step)]
        ours = weights_after(
            case["graph_effective"], before, eta=case["eta"], window=case["window"], reduce=case["window_reduce"]
        )
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9, err_msg=f"step {step}")


def test_the_golden_rule_by_hand() -> None:
    graph = [[1.0, 0.5], [0.0, 1.0]]
    scores = 0.5 * np.array(graph) @ np.array([0.2 + 0.3, 0.9 + 0.4])
    expected = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(
        weights_after(graph, [[5.0, 5.0], [0.2, 0.9], [0.3, 0.4]], eta=0.5, window=2), expected, atol=1e-12
    )


def test_relative_losses_are_the_authors_once_their_base_is_the_first_loss() -> None:
    """The authors' code replaces the base, the evaluation at step 0, by the evaluation at step 50, so the run begins there."""
    golden_file = golden("skillit_official_flags.json")
    case = next(case for case in golden_file["cases"] if case["name"] == "normalize_loss")
    num_compared = 0
    for row in case["rounds"]:
        seen = [
            evaluation["losses"] for evaluation in case["evals"] if 0 < evaluation["counter"] < row["starts_at_step"]
        ]
        if len(seen) < case["args"]["mw_window"]:
            continue  # the authors' window reaches back to step 0
        ours = weights_after(
            golden_file["effective_graph"],
            seen,
            eta=case["args"]["eta"],
            window=case["args"]["mw_window"],
            normalize_losses=True,
        )
        np.testing.assert_allclose(ours, row["weights"], rtol=0, atol=1e-9, err_msg=str(row))
        num_compared += 1
    assert num_compared == 3
