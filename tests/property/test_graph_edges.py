"""Plans and edges for all inputs: names alone decide, and a planted graph is found again."""

import math
import random
from itertools import combinations

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.errors import GraphError
from skillshard.graph.edges import EdgeRule, Edges, LossCurve, derive_edges, direct_edges, parse_edges
from skillshard.graph.plan import METHODS, Method, Trial, parse_method, plan_trials
from skillshard.graph.statistics import is_uncertain

START, POINTS = 3.0, 5
names = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=6, unique=True).map(tuple)
methods = st.sampled_from(METHODS)


def rule(
    word: str = "absolute",
    *,
    average: str = "end",
    clamp: bool = False,
    off_diagonal: float | None = None,
    drop: bool = False,
    direct: float | None = None,
) -> EdgeRule:
    unit, threshold = parse_edges(word)
    return EdgeRule(unit, threshold, average, clamp, off_diagonal, drop, direct)  # type: ignore[arg-type]


def planted(run: Trial, skills: tuple[str, ...], effects: np.ndarray, noise: float = 0.0) -> LossCurve:
    """Make losses that fall in a straight line by the sum of the effects of the trained skills, weighted by the number of samples."""
    total = sum(effects[skills.index(skill)] * run.samples_per_skill for skill in run.trained_on)
    assert isinstance(total, np.ndarray)
    off = np.random.default_rng([run.seed, *map(ord, run.trained_on)]).normal(0, noise, len(skills)) if noise else 0.0
    return LossCurve(run.trained_on, run.seed, START - np.linspace(0, 1, POINTS)[:, None] * (total + off))


def learned(
    method: Method, skills: tuple[str, ...], effects: np.ndarray, how: EdgeRule, *, seeds: int = 1, noise: float = 0.0
) -> Edges:
    runs = plan_trials(method, skills, skills, batch_size=len(skills) * 2, seeds=range(seeds))
    curves = [planted(run, skills, effects, noise) for run in runs]
    random.Random(0).shuffle(curves)
    return derive_edges(method, skills, skills, curves, rule=how)


@given(method=methods, skills=names, seed=st.integers(0, 99))
def test_a_plan_depends_on_names_and_not_on_their_order(method: Method, skills: tuple[str, ...], seed: int) -> None:
    moved = tuple(random.Random(seed).sample(skills, len(skills)))
    plans = [plan_trials(method, order, order, batch_size=64, seeds=[0, 7]) for order in (skills, moved)]
    assert set(plans[0]) == set(plans[1])
    assert len(set(plans[0])) == len(plans[0])
    assert plans[0] == plan_trials(method, skills, skills, batch_size=64, seeds=[0, 7])


@given(skills=names, batch_size=st.integers(1, 200))
def test_plans_are_those_of_the_paper(skills: tuple[str, ...], batch_size: int) -> None:
    trained = {
        method: [set(run.trained_on) for run in plan_trials(method, skills, skills, batch_size=batch_size, seeds=[0])]
        for method in METHODS
    }
    singles = [{skill} for skill in skills]
    assert trained["linear"] == singles
    assert trained["brute-force"] == singles + [set(pair) for pair in combinations(skills, 2)]
    assert trained["leave-one-out"] == [set(skills)] + [set(skills) - {skill} for skill in skills]
    loo = plan_trials("leave-one-out", skills, skills, batch_size=batch_size, seeds=[0])
    assert len({run.samples_per_skill for run in loo}) == 1, (
        "every skill that is left is seen as often as in the full mixture"
    )
    assert batch_size <= loo[0].batch_size < batch_size + len(skills)
    target = plan_trials("brute-force", skills, skills[:1], batch_size=batch_size, seeds=[0])
    assert len(target) == 1 + (len(skills) - 1)


@settings(deadline=None)
@given(
    method=st.sampled_from(("linear", "leave-one-out")),
    skills=names,
    seed=st.integers(0, 99),
    average=st.sampled_from(("end", "curve")),
)
def test_a_planted_graph_is_found_again(method: Method, skills: tuple[str, ...], seed: int, average: str) -> None:
    effects = np.random.default_rng(seed).normal(0, 0.05, (len(skills), len(skills)))
    share = 1.0 if average == "end" else np.linspace(0, 1, POINTS)[1:].mean()
    samples = len(skills) * 2 if method == "linear" else 2
    edges = learned(method, skills, effects, rule(average=average)).edges
    assert np.allclose(edges, effects * samples * share)
    relative = learned(method, skills, effects, rule("relative", average=average)).edges
    assert np.allclose(relative, edges / START)


@settings(deadline=None)
@given(skills=names, seed=st.integers(0, 99))
def test_brute_force_compares_a_half_of_another_skill_with_more_of_the_skill_itself(
    skills: tuple[str, ...], seed: int
) -> None:
    effects = np.random.default_rng(seed).normal(0, 0.05, (len(skills), len(skills)))
    edges = learned("brute-force", skills, effects, rule()).edges
    own = np.diag(effects)
    expected = np.where(
        np.eye(len(skills), dtype=bool), 2 * len(skills) * effects, len(skills) * (effects - own[None, :])
    )
    assert np.allclose(edges, expected)


@settings(deadline=None)
@given(
    method=methods,
    skills=names,
    seed=st.integers(0, 99),
    word=st.sampled_from(("absolute", "relative", "threshold:2.9")),
    off=st.sampled_from((None, 0.5)),
    clamp=st.booleans(),
    direct=st.sampled_from((None, 0.3)),
)
def test_edges_follow_the_names(
    method: Method, skills: tuple[str, ...], seed: int, word: str, off: float | None, clamp: bool, direct: float | None
) -> None:
    effects = np.random.default_rng(seed).normal(0, 0.05, (len(skills), len(skills)))
    order = random.Random(seed).sample(range(len(skills)), len(skills))
    moved = tuple(skills[index] for index in order)
    how = rule(word, clamp=clamp, off_diagonal=off, direct=direct)
    first = learned(method, skills, effects, how, seeds=2).edges
    second = learned(method, moved, effects[np.ix_(order, order)], how, seeds=2).edges
    assert np.allclose(first[np.ix_(order, order)], second)
    between = ~np.eye(len(skills), dtype=bool)
    if clamp:
        assert first.min() >= 0
    if off is not None:
        assert np.all(np.diag(first) == 1)
        assert first[between].max() <= off + 1e-12


digraphs = st.integers(2, 7).flatmap(lambda k: st.lists(st.booleans(), min_size=k * k, max_size=k * k))


@given(digraphs)
def test_direct_edges_are_the_transitive_reduction_of_what_has_an_order(bits: list[bool]) -> None:
    k = math.isqrt(len(bits))
    helps = np.array(bits).reshape(k, k) & ~np.eye(k, dtype=bool)
    skills = [str(number) for number in range(k)]
    whole = networkx.from_numpy_array(helps, create_using=networkx.DiGraph)
    parts = networkx.condensation(whole)
    part_of, reduced = parts.graph["mapping"], networkx.transitive_reduction(parts)
    remaining = [
        (i, j) for i, j in whole.edges if part_of[i] == part_of[j] or (part_of[i], part_of[j]) in reduced.edges
    ]
    expected = np.eye(k)
    expected[tuple(zip(*remaining, strict=True)) if remaining else ([], [])] = 1
    assert direct_edges(0.5 * helps, skills, skills, 0.1).tolist() == expected.tolist()


def test_direct_edges_count_those_that_are_large_enough_and_know_skills_by_name() -> None:
    # c is not measured, and d is not trained. a -> b -> d explains a -> d, but not if b -> d is too small to count.
    edges = np.array([[0.9, 0.5, 0.3], [0.0, 0.9, 0.2], [0.0, 0.1, -0.4]])
    train, measured = ("a", "b", "c"), ("a", "b", "d")
    assert direct_edges(edges, train, measured, 0.3).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert direct_edges(edges, train, measured, 0.5).tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]
    assert direct_edges(edges, train, measured, 0.0).tolist() == [[1, 1, 0], [0, 1, 1], [0, 1, 0]]
    assert direct_edges(-edges, train, measured, 0.0).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_a_planted_chain_is_what_the_direct_edges_of_all_its_prerequisites_are() -> None:
    skills = tuple("abcd")
    effects = 0.1 * np.triu(np.ones((4, 4))) + 0.1 * np.eye(4)
    graph = learned("leave-one-out", skills, effects, rule(off_diagonal=0.5, direct=0.5), seeds=3, noise=0.001)
    assert graph.edges.tolist() == (np.eye(4) + 0.5 * np.eye(4, k=1)).tolist()
    assert graph.standard_errors is None, "the edges are set, not measured"
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(GraphError, match="give a share of the largest edge between skills, from 0 to 1"):
            rule(direct=share)


def test_standard_errors_are_those_of_the_mean_and_tell_edges_from_noise() -> None:
    skills, effects = ("a", "b", "c"), np.array([[0.2, 0.1, 0.0], [0.0, 0.2, 0.1], [0.0, 0.0, 0.2]])
    graph = learned("leave-one-out", skills, effects, rule(), seeds=8, noise=0.02)
    assert graph.standard_errors is not None
    singles = [
        derive_edges(
            "leave-one-out",
            skills,
            skills,
            [
                planted(run, skills, effects, 0.02)
                for run in plan_trials("leave-one-out", skills, skills, batch_size=6, seeds=[seed])
            ],
            rule=rule(),
        ).edges
        for seed in range(8)
    ]
    assert np.allclose(graph.edges, np.mean(singles, axis=0))
    assert np.allclose(graph.standard_errors, np.std(singles, axis=0, ddof=1) / np.sqrt(8))
    certain = ~is_uncertain(graph.edges, graph.standard_errors, 8)
    assert certain[effects > 0].all()
    dropped = learned("leave-one-out", skills, effects, rule(drop=True), seeds=8, noise=0.02).edges
    assert np.array_equal(dropped != 0, certain)


def needing(steps_alone: float, steps_pair: float, *, seed: int = 0, points: int = 400) -> list[LossCurve]:
    """Make brute-force trials on a and b. b reaches a loss of 1 after a number of steps alone, and after another number in the pair."""
    step = np.arange(points)

    def falls(steps: float) -> np.ndarray:
        return np.stack([np.full(points, 3.0), np.where(step >= steps, 0.5, 3.0)], axis=1)

    runs = ((("a",), math.inf), (("b",), steps_alone), (("a", "b"), steps_pair))
    return [LossCurve(key, seed, falls(steps)) for key, steps in runs]


def edge_of(word: str, curves: list[LossCurve]) -> float:
    return float(derive_edges("brute-force", ("a", "b"), ("a", "b"), curves, rule=rule(word)).edges[0, 1])


@pytest.mark.parametrize(
    ("alone", "pair", "by_definition", "own"),
    [
        (10, 8, 1, 1),
        (10, 10, 1, 1),
        (10, 12, 0, 1),
        (10, 15, 0, 1),
        (10, 19, 0, 1),
        (10, 20, 0, 0),
        (10, math.inf, 0, 0),
        (math.inf, 8, 1, 1),
        (math.inf, math.inf, 0, 0),
    ],
)
def test_a_threshold_is_definition_2_2_and_threshold_own_counts_samples_of_the_skill_itself(
    alone: float, pair: float, by_definition: int, own: int
) -> None:
    assert edge_of("threshold:1.0", needing(alone, pair)) == by_definition
    assert edge_of("threshold-own:1.0", needing(alone, pair)) == own


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("num_seeds", [1, 3, 5])
def test_a_skill_that_does_nothing_is_an_edge_rarely(noise: float, num_seeds: int) -> None:
    """Half of the pair's samples are wasted, so the pair needs about twice the steps, within the noise."""
    rng = np.random.default_rng([num_seeds, round(100 * noise)])
    edges = {"threshold:1.0": 0.0, "threshold-own:1.0": 0.0}
    for _ in range(200):
        steps = [(100 * (1 + noise * rng.normal()), 200 * (1 + noise * rng.normal())) for _ in range(num_seeds)]
        curves = [curve for seed, (alone, pair) in enumerate(steps) for curve in needing(alone, pair, seed=seed)]
        for word in edges:
            edges[word] += edge_of(word, curves) / 200
    assert edges["threshold:1.0"] < 0.03
    if num_seeds > 1:
        assert edges["threshold-own:1.0"] < 0.1, "the margin of one in twenty"
    else:
        assert 0.4 < edges["threshold-own:1.0"] < 0.6, "one seed of a skill on the border is a coin"


def test_a_skill_that_helps_is_an_edge_by_both_rules_over_seeds() -> None:
    rng = np.random.default_rng(0)
    curves = [curve for seed in range(3) for curve in needing(100 + rng.normal(0, 5), 70 + rng.normal(0, 5), seed=seed)]
    derived = derive_edges("brute-force", ("a", "b"), ("a", "b"), curves, rule=rule("threshold:1.0"))
    assert derived.edges.tolist() == [[1.0, 1.0], [0.0, 1.0]]
    assert derived.standard_errors is None, "0 or 1 by a rule, not measured"
    assert edge_of("threshold-own:1.0", curves) == 1.0
    unlucky = [*curves, *needing(100, math.inf, seed=3)]
    assert edge_of("threshold:1.0", unlucky) == 0.0, "one seed never came down to the loss"


def test_a_left_out_skill_is_an_edge_where_the_full_mixture_needs_no_more_data_in_all() -> None:
    """The three skills are equal, so the mixture without c has two thirds of the samples at a step."""

    def without_c(steps_all: float, steps_left: float) -> dict[str, float]:
        step = np.arange(50)
        runs = [("a", "b", "c"), ("b", "c"), ("a", "c"), ("a", "b")]
        curves = [
            LossCurve(key, 0, np.where(step >= (steps_left if key == ("a", "b") else steps_all), 0.5, 3.0)[:, None])
            for key in runs
        ]
        words = ("threshold:1.0", "threshold-own:1.0")
        return {
            word: float(derive_edges("leave-one-out", ("a", "b", "c"), ("b",), curves, rule=rule(word)).edges[2, 0])
            for word in words
        }

    assert without_c(20, 30) == {"threshold:1.0": 1.0, "threshold-own:1.0": 1.0}
    assert without_c(20, 29) == {"threshold:1.0": 0.0, "threshold-own:1.0": 1.0}
    assert without_c(20, 20) == {"threshold:1.0": 0.0, "threshold-own:1.0": 0.0}


@pytest.mark.parametrize("word", ["threshold:1.0", "threshold-own:1.0"])
def test_a_linear_threshold_asks_whether_the_skill_alone_brings_another_one_there_in_every_seed(word: str) -> None:
    def curves(last: float) -> list[LossCurve]:
        falls = [np.array([[3.0, 3.0], [0.5, end]]) for end in (0.9, last)]
        return [LossCurve((name,), seed, falls[seed]) for name in "ab" for seed in (0, 1)]

    assert derive_edges("linear", "ab", "ab", curves(0.9), rule=rule(word)).edges.tolist() == [[1, 1], [1, 1]]
    assert derive_edges("linear", "ab", "ab", curves(1.1), rule=rule(word)).edges.tolist() == [[1, 0], [1, 1]]


def test_a_missing_run_and_a_bad_rule_are_refused() -> None:
    with pytest.raises(GraphError, match=r"the trial on b of seed 0 is not there"):
        derive_edges("linear", ("a", "b"), ("a",), [LossCurve(("a",), 0, np.ones((2, 1)))], rule=rule())
    with pytest.raises(
        GraphError, match=r"edges 'treshold' \(did you mean 'threshold'\?\): give 'absolute', 'relative', 'thr"
    ):
        parse_edges("treshold")
    with pytest.raises(GraphError, match=r"edges 'threshold': give 'absolute'.* such as threshold:0.01 \(nats\)"):
        parse_edges("threshold")
    with pytest.raises(GraphError, match=r"threshold -1.0: give a finite number above 0"):
        rule("threshold:-1")
    with pytest.raises(GraphError, match=r"method 'linera' \(did you mean 'linear'\?\)"):
        parse_method("linera")
    with pytest.raises(
        GraphError, match=r"leave-one-out compares mixtures, and there is one training skill, 'a': use linear"
    ):
        plan_trials("leave-one-out", ("a",), ("a",), batch_size=1, seeds=[0])
