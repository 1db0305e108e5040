"""The skills graph as a value: digests that never change, the identity without a matrix, and a part of a graph."""

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.errors import GraphError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies import Observation, Policy, skill_it, skill_stratified

ODD = ("add", "carry", 'é漢"x\n')
DIGESTS = {
    "identity of 1": (lambda: SkillGraph.identity(("a",)), "1a216918bb078bf7e07a23a9243aa5d3"),
    "identity of 3": (lambda: SkillGraph.identity(ODD), "f599b5a86fd04ec97fe7543320ada957"),
    "identity of 300": (
        lambda: SkillGraph.identity([f"skill {number}" for number in range(300)]),
        "63f63aca983172efe43ad37212c6e35f",
    ),
    "chain of 5": (lambda: SkillGraph.chain(("a", "b", "c", "d", "e")), "07ebbc6470150506a6f5f85a8b803fe2"),
    "rectangle": (
        lambda: SkillGraph(("add", "carry"), ("carry",), [[1.0], [0.0]]),
        "2cd2e994ca4b9940d09f50e75a55c44f",
    ),
    "odd numbers": (
        lambda: SkillGraph(ODD, ("x", "y"), [[1e-300, -0.0], [1 / 3, 1e22], [-2.5e-7, 123456789.125]]),
        "48c403df1fc40b99190fed2326aeeb72",
    ),
    "one row": (lambda: SkillGraph(("a",), ODD, [[0.1, 0.2, -0.3]]), "f3a0bae418388e0b609b86ebd2edb3a7"),
    "zeros": (lambda: SkillGraph(("a", "b"), ("c", "d"), np.zeros((2, 2))), "bb65589351e4855dee467ff539762f45"),
}
names = st.lists(st.sampled_from(("add", "carry", "negate", "copy", "exam")), min_size=1, unique=True)


def with_matrix(graph: SkillGraph) -> SkillGraph:
    """Return the same graph as a matrix."""
    return SkillGraph(graph.train_skills, graph.eval_skills, graph.edges)


@pytest.mark.parametrize("name", DIGESTS)
def test_the_digest_of_a_graph_is_the_one_that_runs_have_recorded(name: str) -> None:
    build, expected = DIGESTS[name]
    assert build().digest == expected, "runs on disk name this digest: it must never change"


@given(rows=names, columns=names, seed=st.integers(0, 2**32 - 1))
def test_the_identity_as_a_flag_is_in_all_things_the_identity_as_a_matrix(
    rows: list[str], columns: list[str], seed: int
) -> None:
    whole = sorted({*rows, *columns})
    flag = SkillGraph.identity(whole).choose(rows=rows, columns=columns)
    matrix = with_matrix(flag)
    assert flag.is_identity and not matrix.is_identity
    assert flag.edges.tolist() == [[float(row == column) for column in flag.eval_skills] for row in flag.train_skills]
    assert (flag.digest, flag.to_bytes(), flag.density) == (matrix.digest, matrix.to_bytes(), matrix.density)
    losses = np.random.default_rng(seed).exponential(size=len(columns))
    for graph in (flag, matrix):
        again = pickle.loads(pickle.dumps(graph))
        assert again.digest == flag.digest and again.edges.tolist() == flag.edges.tolist()
    for positive_only in (False, True):
        scores = [
            graph.scores(rows, losses, scale=0.3, positive_only=positive_only).tolist() for graph in (flag, matrix)
        ]
        assert scores[0] == scores[1]


@given(
    skills=st.permutations(("add", "carry", "negate", "copy")),
    losses=st.lists(st.lists(st.floats(0, 100), min_size=4, max_size=4), max_size=4),
    eta=st.sampled_from((0.0, 0.2, 3.0)),
    mode=st.sampled_from(("official", "paper", "static")),
)
def test_policies_weigh_by_the_flag_exactly_as_by_the_matrix(
    skills: list[str], losses: list[list[float]], eta: float, mode: str
) -> None:
    flag = SkillGraph.identity(("add", "carry", "negate", "copy"))

    def weights(policy: Policy) -> list[float]:
        state = policy.init(skills, (1, 2, 3, 4))
        for step, values in enumerate(losses):
            state = policy.observe(state, Observation(step, dict(zip(flag.eval_skills, values, strict=True))))
        return policy.weights(state).tolist()

    graphs = (flag, with_matrix(flag))
    by_flag, by_matrix = (weights(skill_it(graph, eta=eta, mode=mode)) for graph in graphs)  # type: ignore[arg-type]
    assert by_flag == by_matrix
    by_flag, by_matrix = (weights(skill_stratified(graph)) for graph in graphs)
    assert by_flag == by_matrix == [0.25] * 4


def test_an_identity_of_many_skills_makes_no_matrix() -> None:
    skills = [f"skill {number}" for number in range(3000)]  # a matrix would be 72 MB, and its file 99 MB
    tracemalloc.start()
    policy = skill_it(SkillGraph.identity(skills), eta=0.5)
    state = policy.observe(policy.init(skills), Observation(1, dict.fromkeys(skills, 2.0)))
    assert policy.weights(state).tolist() == [1 / 3000] * 3000
    assert policy.arguments["graph"] == "75b6269aaa67e36db70e63e51ffb1504"
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 20_000_000


def test_a_saved_identity_comes_back_as_the_same_graph(tmp_path: Path) -> None:
    graph = SkillGraph.identity(ODD)
    graph.save(tmp_path / "graph.json")
    again = SkillGraph.open(tmp_path / "graph.json")
    assert again.digest == graph.digest and again.edges.tolist() == graph.edges.tolist()


def test_the_edges_cannot_be_changed_after_the_digest_was_taken() -> None:
    given_edges = np.eye(2)
    graph = SkillGraph(("a", "b"), ("a", "b"), given_edges)
    before = graph.digest
    given_edges[0, 1] = 7.0
    assert graph.edges.tolist() == [[1.0, 0.0], [0.0, 1.0]] and graph.digest == before
    for edges in (graph.edges, SkillGraph.identity(("a", "b")).edges):
        with pytest.raises(ValueError, match="read-only"):
            edges[0, 1] = 7.0


@given(rows=names, columns=names)
def test_a_chosen_part_keeps_the_edges_and_the_order_of_the_graph(rows: list[str], columns: list[str]) -> None:
    skills = ("add", "carry", "negate", "copy", "exam")
    whole = SkillGraph(skills, skills, np.arange(25.0).reshape(5, 5) - 7)
    part = whole.choose(rows, columns)
    assert part.train_skills == tuple(skill for skill in skills if skill in rows)
    assert part.eval_skills == tuple(skill for skill in skills if skill in columns)
    for row, train in enumerate(part.train_skills):
        for column, measured in enumerate(part.eval_skills):
            assert part.edges[row, column] == whole.edges[skills.index(train), skills.index(measured)]
    assert whole.choose().digest == whole.digest
    assert whole.choose(rows=rows).choose(columns=columns).digest == part.digest


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (
            {"rows": ["carri"]},
            r"'carri' \(did you mean 'carry'\?\) is not among the 2 training skills of the graph: 'add', 'carry'",
        ),
        (
            {"columns": ["exam", "zebra"]},
            "'exam', 'zebra' are not among the 2 evaluation skills of the graph: 'add', 'carry'",
        ),
        (
            {"rows": []},
            "no name is chosen from the 2 training skills of the graph: give at least one of 'add', 'carry'",
        ),
        ({"rows": ["add", "add"]}, "'add' is chosen twice or more"),
        ({"columns": "add"}, r"the chosen skills are the text 'add': give a list of names, such as \['add'\]"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused_in_one_sentence(choice: dict[str, list[str]], sentence: str) -> None:
    with pytest.raises(GraphError, match=sentence):
        SkillGraph.identity(("add", "carry")).choose(**choice)


@pytest.mark.parametrize(
    "edges",
    [
        "abc",
        [["a", "b"], ["c", "d"]],
        [["1", "2"], ["3", "4"]],
        [[1.0], [1.0, 2.0]],
        None,
        [[{}, 1], [1, 1]],
        [[1j, 1], [1, 1]],
        np.full((2, 2), 1 + 1j),
        [[10**400, 1], [1, 1]],
    ],
)
def test_edges_that_are_no_matrix_of_numbers_are_refused_in_one_sentence(edges: object) -> None:
    with pytest.raises(GraphError, match=r"the graph's (edges are no matrix of numbers|matrix has shape|edge )"):
        SkillGraph(("a", "b"), ("a", "b"), edges)


def test_an_identity_needs_a_skill() -> None:
    with pytest.raises(GraphError, match="the identity graph needs at least one skill"):
        SkillGraph.identity(())
