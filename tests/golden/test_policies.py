"""The other policies against the code and the papers of their authors, and each policy against numbers by hand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.optimize

from skillshard.errors import ObservationError, PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies import (
    NextRound,
    Observation,
    Policy,
    ado,
    aioli,
    doremi,
    exp3,
    odm,
    skill_it,
    temperature,
    unimax,
)
from skillshard.policies.aioli import Aioli
from skillshard.policies.scaling_law import fit_scaling_law
from tests.golden.published import golden
from tests.golden.test_skill_it import weights_after

CLOSE = {"rtol": 0, "atol": 1e-9}


def trace(policy: Policy, skills: Sequence[str], losses: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Return the weights after each observation."""
    state, weights = policy.init(skills), []
    for step, values in enumerate(losses, start=1):
        state = policy.observe(state, Observation(step, values))
        weights.append(policy.weights(state).tolist())
    return weights


# --- SKILL-IT's modes -------------------------------------------------------------------------------------------------


def named(graph: Sequence[Sequence[float]]) -> SkillGraph:
    names = [f"skill-{number}" for number in range(len(graph))]
    return SkillGraph(names, names, graph)


def test_the_aioli_authors_skill_it_is_matched_on_their_graphs() -> None:
    num_compared = 0
    for case in golden("skillit_aioli_reimpl.json")["cases"]:
        for row in case["rounds"]:
            ours = weights_after(
                case["graph"],
                row["window_losses"],
                eta=case["eta"],
                window=case["window"],
                reduce=case["window_reduce"],
            )
            np.testing.assert_allclose(ours, row["weights"], **CLOSE)
            num_compared += 1
    assert num_compared >= 40


def test_static_skill_it_is_the_published_pre_training_mixture() -> None:
    case = golden("skillit_static_ni_pt.json")
    edges = np.array(case["graph_raw"])
    np.fill_diagonal(edges, 1.0)  # the authors' static path sets the diagonal, and skillshard uses a graph unchanged
    for graph, mode, published in (
        (edges, "static", case["weights"]),
        (np.maximum(edges, 0), "static", case["weights_if_negatives_clamped_to_0"]),
        (edges, "paper", case["weights_if_negatives_clamped_to_0"]),
    ):
        policy = skill_it(SkillGraph(case["skills"], case["skills"], graph), eta=case["eta"], mode=mode)
        weights = policy.weights(policy.init(case["skills"]))
        np.testing.assert_allclose(weights, [published[skill] for skill in case["skills"]], **CLOSE)


def test_paper_mode_is_algorithm_1_as_printed_on_the_real_losses_of_lego() -> None:
    case = golden("skillit_lego_real_losses.json")
    graph, published = (
        named(case["graph_effective"]),
        case["alternatives"]["paper_Alg1_literal_round_start_losses_sum_w3"],
    )
    policy = skill_it(graph, eta=case["eta"], mode="paper")
    state = policy.init(graph.train_skills)
    for step in range(0, 6000, 50):
        if step % 1000 == 0 and str(step) in published:
            four_digits = {"rtol": 0, "atol": 5.1e-5}
            np.testing.assert_allclose(policy.weights(state), published[str(step)], **four_digits)
        round_of_last_sample = (step - 1) // 1000 if step else -1
        if step % 1000 == 0:  # the model at the start of a round, which the next round uses, as with lag=1
            losses = dict(zip(graph.eval_skills, case["losses"][str(step)], strict=True))
            state = policy.observe(state, Observation(step, losses, round=round_of_last_sample))


def flags() -> dict[str, Any]:
    cases = golden("skillit_official_flags.json")
    return {case["name"]: case for case in cases["cases"]} | {"graph": cases["effective_graph"]}


def official_window(case: dict[str, Any], before: int, window: int) -> list[list[float]] | None:
    seen = [row["losses"] for row in case["evals"] if row["counter"] < before]
    return seen[-window:] if before else None


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "window_1",
        "window_2",
        "window_100",
        "identity_graph",
        "no_graph",
        "complete_graph",
        "eta_0",
        "eta_100",
        "zero_losses",
    ],
)
def test_each_option_of_the_official_code_that_we_have_is_matched(name: str) -> None:
    cases = flags()
    case = cases[name]
    graph = np.array(cases["graph"])
    if name in ("identity_graph", "no_graph"):
        graph = np.eye(5)
    if name == "complete_graph":
        graph = np.full((5, 5), 0.5) + 0.5 * np.eye(5)  # the official code turns off-diagonal ones into halves
    window = case["args"]["mw_window"]
    for row in case["rounds"]:
        seen = official_window(case, row["starts_at_step"], window)
        ours = weights_after(graph.tolist(), seen, eta=case["args"]["eta"], window=window)
        np.testing.assert_allclose(ours, row["weights"], **CLOSE, err_msg=f"{name} {row}")


def test_the_documented_bugs_of_the_official_code_are_not_copied() -> None:
    cases = flags()
    graph = named(cases["graph"])
    # A window of 0 gives the official code a k x k array of weights. skillshard refuses the window.
    assert np.array(cases["window_0"]["rounds"][1]["weights"]).shape == (5, 5)
    with pytest.raises(PolicyError, match="window is 0"):
        skill_it(graph, eta=0.5, window=0)
    # Lone nodes crash the option for lone nodes. Here a lone node keeps the weight of exp(0).
    assert "IndexError" in cases["ignore_lone_nodes"]["official_error"]
    lonely = np.array(cases["graph"]) * np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    weights = weights_after(lonely.tolist(), [[1.0] * 5], eta=0.5)
    np.testing.assert_allclose(weights[4] / weights[0], math.exp(-0.5), rtol=1e-12)
    # An eta of 1000 overflows to NaN. Here the weights are the limit.
    assert "nan" in cases["eta_1000"]["rounds"][0]["weights"]
    np.testing.assert_allclose(weights_after(cases["graph"], None, eta=1000.0), [0, 1, 0, 0, 0], atol=1e-12)
    # A NaN counts as a loss of 0, so the broken skill seems learned and loses weight. skillshard refuses a NaN.
    case = cases["nan_loss_once"]
    plain, broken = (cases[name]["rounds"][2]["weights"] for name in ("plain", "nan_loss_once"))
    assert not np.allclose(plain, broken)
    seen = [[0.0 if value is None or value != value else value for value in row] for row in official_losses(case)]
    np.testing.assert_allclose(weights_after(cases["graph"], seen, eta=0.5), broken, **CLOSE)
    with pytest.raises(ObservationError, match="skill-3 is nan"):
        policy = skill_it(graph, eta=0.5)
        policy.observe(
            policy.init(graph.train_skills),
            Observation(150, dict.fromkeys(graph.eval_skills, 1.0) | {"skill-3": math.nan}),
        )


def official_losses(case: dict[str, Any]) -> list[list[Any]]:
    """Return the last three evaluations before step 200. The file has NaN as text."""
    rows = [row["losses"] for row in case["evals"] if row["counter"] < 200][-3:]
    return [[math.nan if value == "nan" else value for value in row] for row in rows]


def test_skill_it_modes_by_hand() -> None:
    graph = SkillGraph(("add", "carry"), ("add", "carry"), [[1.0, -0.5], [0.0, 1.0]])
    log_ratios = {}
    for mode in ("official", "paper", "static"):
        policy = skill_it(graph, eta=1.0, window=2, mode=mode)
        state = policy.init(("add", "carry"))
        for number, (add, carry) in ((0, (9.0, 9.0)), (0, (0.3, 0.4)), (1, (0.1, 0.2))):
            state = policy.observe(state, Observation(number, {"add": add, "carry": carry}, round=number))
        log_ratios[mode] = math.log(policy.weights(state)[0] / policy.weights(state)[1])
    # The last two observations count, and the negative edge counts.
    assert log_ratios["official"] == pytest.approx((0.4 - 0.5 * 0.6) - 0.6)
    # The last observation of each round counts, and the negative edge is 0.
    assert log_ratios["paper"] == pytest.approx(0.4 - 0.6)
    assert log_ratios["static"] == pytest.approx(0.5 - 1.0)  # every loss is 1


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_temperature_and_unimax_are_those_of_the_paper() -> None:
    golden_cases = golden("transcribed_formulas.json")
    counts = [int(size) for size in golden_cases["temperature"].pop("sizes")]
    skills = [f"skill-{number}" for number in range(len(counts))]
    for name, weights in golden_cases["temperature"].items():
        policy = temperature(float(name.removeprefix("tau_")))
        np.testing.assert_allclose(policy.weights(policy.init(skills, counts)), weights, **CLOSE)
    for case in golden_cases["unimax"]:
        policy = unimax(draws=case["budget"], epochs=float(case["max_epochs"]))
        ours = policy.weights(policy.init(skills, [int(size) for size in case["sizes"]]))
        np.testing.assert_allclose(ours, case["weights"], **CLOSE)


def test_temperature_and_unimax_by_hand() -> None:
    policy = temperature(2.0)
    np.testing.assert_allclose(policy.weights(policy.init(("a", "b", "c"), (1600, 400, 0))), [2 / 3, 1 / 3, 0])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        counts = np.array([1000, 200, 50, 5])[order]
        policy = unimax(draws=800, epochs=4.0)
        ours = policy.weights(policy.init([str(number) for number in order], counts.tolist()))
        np.testing.assert_allclose(ours, np.array([290, 290, 200, 20])[order] / 800, atol=1e-12)


# --- bandits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_authors_bandits_are_matched_over_forty_steps(number: int) -> None:
    case = golden("odm_official.json")["cases"][number]
    prior = dict(zip(case["names"], case["init_weights"], strict=True))
    if case["cls"] == "SmoothedMeanWeightUpdater":
        policy = odm(smoothing=case["params"]["smoothing_factor"], warmup_steps=0, prior=prior)
    else:
        policy = exp3(prior=prior)
    ours = trace(policy, case["names"], [row["losses"] for row in case["steps"]])
    np.testing.assert_allclose(ours, [row["weights"] for row in case["steps"]], **CLOSE)
    assert any(len(row["losses"]) < len(case["names"]) for row in case["steps"])  # some batches lack a skill


def test_odm_by_hand() -> None:
    losses = [{"add": 1.0, "carry": 2.0}] * 4 + [{"carry": 0.5}]
    ours = trace(odm(smoothing=0.5, warmup_steps=0), ("add", "carry"), losses)
    add, carry = 0.0, 0.0
    for values in losses:
        add = 0.5 * add + 0.5 * math.exp(values["add"]) if "add" in values else add
        carry = 0.5 * carry + 0.5 * math.exp(values["carry"])
    least = math.sqrt(math.log(2) / (2 * 5))
    np.testing.assert_allclose(ours[-1][0], (1 - 2 * least) * add / (add + carry) + least, rtol=1e-12)


def test_odm_keeps_the_prior_in_the_warm_up_and_no_loss_overflows_it() -> None:
    policy = odm(warmup_steps=100, prior={"add": 3.0, "carry": 1.0})
    state = policy.observe(policy.init(("add", "carry")), Observation(100, {"add": 900.0, "carry": 1.0}))
    assert policy.weights(state).tolist() == [0.75, 0.25]
    for step in range(101, 130):
        state = policy.observe(state, Observation(step, {"add": 900.0, "carry": 899.0}))
    least = math.sqrt(math.log(2) / (2 * 30))
    np.testing.assert_allclose(policy.weights(state)[0], (1 - 2 * least) * math.e / (1 + math.e) + least, rtol=1e-9)


def test_exp3_by_hand() -> None:
    ours = trace(exp3(scale=1.0), ("add", "carry"), [{"add": 1.0, "carry": 3.0}, {"add": 1.0}])
    assert ours[0] == pytest.approx([0.5, 0.5])  # at turn 1 the exploration is complete
    add, carry, rate = 1 / 0.5 + 1 / 0.5, 3 / 0.5, 0.5
    least = math.sqrt(math.log(2) / 4)
    share = math.exp(rate * add) / (math.exp(rate * add) + math.exp(rate * carry))
    np.testing.assert_allclose(ours[1][0], (1 - 2 * least) * share + least, rtol=1e-12)


# --- DoReMi -----------------------------------------------------------------------------------------------------------


def test_the_doremi_update_is_matched() -> None:
    skills = ("web", "code", "books", "arxiv")
    case = golden("transcribed_formulas.json")["doremi_v1"]
    losses = [dict(zip(skills, np.array(row["excess"]) + 1.0, strict=True)) for row in case["steps"]]
    for use, key in (("latest", "alpha"), ("average", "running_average")):
        ours = trace(doremi(dict.fromkeys(skills, 1.0), use=use), skills, losses)
        np.testing.assert_allclose(ours, [row[key] for row in case["steps"]], **CLOSE)


def test_the_doremi_update_by_hand() -> None:
    policy = doremi({"add": 1.0, "carry": 2.0}, eta=2.0, smoothing=0.1)
    ours = trace(policy, ("add", "carry"), [{"add": 1.5, "carry": 0.5}, {"add": 1.0, "carry": 2.25}])
    first = 0.9 * math.e / (math.e + 1) + 0.05
    second = 0.9 * first / (first + (1 - first) * math.exp(0.5)) + 0.05
    np.testing.assert_allclose([row[0] for row in ours], [first, second], rtol=1e-12)


# --- ADO --------------------------------------------------------------------------------------------------------------


def observed_by_ado(
    policy: Policy, state: dict[str, Any], steps: Sequence[Any], counts: np.ndarray
) -> list[dict[str, Any]]:
    """Return the states after each step of 64 samples."""
    drawn, states = np.zeros(len(counts), int), []
    for step, batch in enumerate(steps, start=1):
        drawn = drawn + np.array(batch)
        seen = dict(zip(state["skills"], drawn.tolist(), strict=True))
        losses = dict.fromkeys(state["skills"], 3.0)
        state = policy.observe(state, Observation(step, losses, int(drawn.sum()), seen, step - 1))
        states.append(state)
    return states


def test_the_authors_ado_is_matched_over_thirty_steps() -> None:
    case = golden("ado_official.json")
    skills = [f"skill-{number}" for number in range(4)]
    policy = ado(warmup_steps=case["start_step"], refit_steps=10**9)
    state = policy.init(skills, [int(count) for count in case["token_counts"]])
    state |= {"laws": case["params_log_beta_log_eps_alpha"], "fitted_step": 0}
    states = observed_by_ado(policy, state, [row["batch_counts"] for row in case["steps"]], np.zeros(4))
    for ours, row in zip(states, case["steps"], strict=True):
        np.testing.assert_allclose(ours["recent"], row["p_history"], **CLOSE)
        np.testing.assert_allclose(ours["average"], row["p_avg"], **CLOSE)
        if row["weights"] is not None:
            np.testing.assert_allclose(policy.weights(ours), row["weights"], **CLOSE)


def test_ado_by_hand() -> None:
    policy = ado(warmup_steps=0, refit_steps=10**9)
    state = policy.init(("add", "carry"), (300, 100)) | {"laws": [[3.0, 0.5, 0.3], [2.0, 0.5, 0.1]], "fitted_step": 0}
    (state,) = observed_by_ado(policy, state, [[4, 4]], np.zeros(2))
    recent = np.array([0.9 * 0.75 + 0.1 * 0.5, 0.9 * 0.25 + 0.1 * 0.5])
    law = np.array([0.3 * math.exp(3) / 8**0.3, 0.1 * math.exp(2) / 8**0.1]) / 8
    rho = np.array([0.75, 0.25]) * np.sqrt(recent) * law
    rho /= rho.sum()
    np.testing.assert_allclose(policy.weights(state), 0.1 * rho + 0.9 * np.array([0.75, 0.25]), rtol=1e-12)
    np.testing.assert_allclose(state["average"], (np.array([0.75, 0.25]) + rho) / 2, rtol=1e-12)


def test_a_scaling_law_is_fitted_from_the_best_points_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted law is a point of the grid, so the planted law is the first start."""
    starts: list[list[float]] = []
    unhindered = scipy.optimize.minimize

    def noted(function: Any, start: np.ndarray, *arguments: Any, **named: Any) -> Any:
        starts.append(start.tolist())
        return unhindered(function, start, *arguments, **named)

    monkeypatch.setattr(scipy.optimize, "minimize", noted)
    draws = np.linspace(1e3, 1e5, 40)
    fit_scaling_law(draws, math.exp(0.5) + math.exp(3.0) * draws**-0.3)
    assert len(starts) == 4
    np.testing.assert_allclose(starts[0], [3.0, 0.5, 0.3])


def test_ado_finds_the_skill_that_is_still_learning() -> None:
    """The laws must be fitted: one loss has nearly stopped, and the other loss falls."""
    policy = ado(warmup_steps=10, refit_steps=20)
    state = policy.init(("falls", "stopped"), (100, 100))
    for step in range(1, 201):
        n = 64 * step
        losses = {"falls": math.exp(0.7) + math.exp(3.5) * n**-0.3, "stopped": math.exp(0.7) + math.exp(-2) * n**-0.1}
        state = policy.observe(state, Observation(step, losses, n, {"falls": n // 2, "stopped": n // 2}, step - 1))
    np.testing.assert_allclose(state["laws"][0], [3.5, 0.7, 0.3], atol=1e-2)
    assert len(state["curve"]["draws"]) <= 128
    assert policy.weights(state)[0] > 0.8


# --- Aioli ------------------------------------------------------------------------------------------------------------

PROBE_DRAWS = 16


class Feed:
    """A reporter of a case: one observation after each round of 16 draws, of which the probes have 10, 3 and 3."""

    def __init__(self, policy: Policy, skills: Sequence[str]) -> None:
        self.policy, self.skills = policy, list(skills)
        self.state = policy.init(self.skills)
        self.drawn, self.round = np.zeros(len(self.skills)), -1

    def upcoming(self, number: int) -> NextRound:
        k = len(self.skills)
        return NextRound(number, number * PROBE_DRAWS, PROBE_DRAWS, (1000,) * k, tuple(int(n) for n in self.drawn))

    def report(self, losses: Sequence[float], mixture: Sequence[float] | None) -> None:
        if mixture is not None:
            self.drawn = self.drawn + PROBE_DRAWS * np.array(mixture)
            self.round += 1
        drawn = dict(zip(self.skills, (int(n) for n in self.drawn), strict=True))
        values = dict(zip(self.skills, losses, strict=True))
        observation = Observation(self.round, values, int(self.drawn.sum()), drawn, self.round)
        self.state = self.policy.observe(self.state, observation)


@pytest.mark.parametrize("name", ["ema_None", "ema_0.1", "diagonal", "no_normalise", "one_hot_1"])
def test_the_authors_aioli_is_matched_in_every_round(name: str) -> None:
    (case,) = (case for case in golden("aioli_official.json")["cases"] if case["name"] == name)
    arguments = case["args"]
    policy = aioli(
        eta=arguments["eta"],
        period_rounds=13,
        sweeps=arguments["lp_rounds"],
        one_hot=arguments["one_hot_factor"],
        ema=arguments["ema"],
        normalize=arguments["aioli_normalize_A"],
        diagonal=arguments["aioli_diagonal"],
    )
    feed = Feed(policy, ("arxiv", "book", "code"))
    weights = np.full(3, 1 / 3)
    for number, row in enumerate(case["rounds"]):
        feed.report(row["loss_0"], None if number == 0 else [0.5, 0.25, 0.25])
        for onehot, losses in zip(row["learnparams_order"], row["losses_after_each"], strict=True):
            other = (1 - arguments["one_hot_factor"]) / 2
            mixture = [arguments["one_hot_factor"] if skill == onehot else other for skill in range(3)]
            np.testing.assert_allclose(feed.policy.weights(feed.state, feed.upcoming(13 * number + 12)), weights)
            feed.report(losses, mixture)
        weights = policy.weights(feed.state, feed.upcoming(13 * number + 12))
        np.testing.assert_allclose(weights, row["weights_out"], **CLOSE)


def test_aioli_recovers_a_linear_world_by_hand() -> None:
    """Losses fall by p A in every round. Late reports do not keep the policy from recovering A, and the weights step along the rows of A."""
    effect = np.array([[0.4, 0.1], [-0.2, 0.3]])  # rows are trained skills
    policy = aioli(eta=1.0, period_rounds=10, sweeps=2, one_hot=0.75, normalize=False)
    assert isinstance(policy, Aioli)
    skills, losses, drawn = ("add", "carry"), np.array([9.0, 9.0]), np.zeros(2)
    state = policy.observe(policy.init(skills), Observation(0, dict(zip(skills, losses, strict=True))))
    orders = set()
    for number in range(9):
        upcoming = NextRound(number, 16 * number, 16, (100, 100), (0, 0))
        weights = policy.weights(state, upcoming)
        orders.add(tuple(weights)) if number < 4 else None
        assert (policy.probe(upcoming, skills) is not None) == (number < 4)
        losses, drawn = losses - weights @ effect, drawn + 16 * weights
        if number != 1:  # a report is missing
            seen = dict(zip(skills, (round(n) for n in drawn), strict=True))
            state = policy.observe(
                state, Observation(number, dict(zip(skills, losses, strict=True)), int(drawn.sum()), seen, number)
            )
    assert orders == {(0.75, 0.25), (0.25, 0.75)}


def test_aioli_learns_nothing_in_its_warm_up() -> None:
    """Three rounds of warm-up stand in the place of the probes of a first period."""
    policy = aioli(eta=1.0, period_rounds=3, sweeps=1, one_hot=0.75, warmup_rounds=3)
    skills = ("add", "carry")
    state = policy.observe(policy.init(skills), Observation(0, {"add": 9.0, "carry": 9.0}))
    for number, (add, carry) in enumerate([(12, 4), (16, 16), (28, 20)]):
        losses = {"add": 8.0 - number, "carry": 8.9 - 0.1 * number}
        state = policy.observe(state, Observation(number, losses, add + carry, {"add": add, "carry": carry}, number))
    upcoming = NextRound(2, 32, 16, (100, 100), (16, 16))
    assert policy.weights(state, upcoming).tolist() == [0.5, 0.5]


def test_aioli_steps_along_the_sums_of_its_rows() -> None:
    effect = np.array([[0.4, 0.1], [-0.2, 0.3]])
    policy = aioli(eta=1.0, period_rounds=3, sweeps=1, one_hot=0.75, normalize=False)
    skills, losses, drawn = ("add", "carry"), np.array([9.0, 9.0]), np.zeros(2)
    state = policy.observe(policy.init(skills), Observation(0, dict(zip(skills, losses, strict=True))))
    log_ratios = []
    for number in range(9):
        weights = policy.weights(state, NextRound(number, 16 * number, 16, (100, 100), (0, 0)))
        if number % 3 == 2:
            log_ratios.append(math.log(weights[0] / weights[1]))
        shares = np.round(16 * weights) / 16
        losses, drawn = losses - shares @ effect, drawn + 16 * shares
        seen = dict(zip(skills, (int(n) for n in drawn), strict=True))
        state = policy.observe(
            state, Observation(number, dict(zip(skills, losses, strict=True)), 16 * number + 16, seen, number)
        )
    np.testing.assert_allclose(log_ratios, [0.4, 0.8, 1.2], atol=1e-9)  # eta x (0.5 - 0.1), once a period
