"""`skillshard weights` and `mix`: the weights of a policy without a trainer in one command, and weights from a file."""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard import canonical, storage
from skillshard.errors import PolicyError, ShardError, SkillshardError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.listing import ARGUMENTS, CONSTANT, static_policy
from skillshard.mixing.policy_file import read_policy
from skillshard.mixing.weights_file import read_weights, weigh
from skillshard.policies import odm, skill_it, unimax
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import write_tokens
from tests.commands import fails, skillshard, works
from tests.conftest import HERE, samples, tag_and_shard, write_corpus
from tests.golden.published import golden
from tests.tokenizers_trained import byte_tokenizer

SKILLS = ("add", "carry", "negate")
EDGES = [[1.0, 0.5, 0.0], [0.0, 1.0, -0.25], [0.0, 0.0, 1.0]]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    SkillGraph(SKILLS, SKILLS, EDGES).save(tmp_path / "graph.json")
    return tmp_path / "graph.json"


def softmax(scores: list[float]) -> dict[str, float]:
    powers = [math.exp(score) for score in scores]
    return {skill: power / sum(powers) for skill, power in zip(SKILLS, powers, strict=True)}


def mixed(*arguments: object) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the draws and the lines on standard error of `mix`."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = skillshard("mix", *arguments, "--out", Path(folder) / "draws.jsonl")
        assert outcome.code == 0, outcome
        lines = (Path(folder) / "draws.jsonl").read_bytes().splitlines()
    notes = [
        line for line in outcome.err.splitlines() if not line.startswith("listing draws: ")
    ]  # progress, which a slow machine shows
    return [json.loads(line) for line in lines], notes


def drawn(*arguments: object) -> list[str]:
    """Return the skills of the draws that `mix` writes."""
    return [line["skill"] for line in mixed(*arguments)[0]]


def written(place: Path) -> dict[str, float]:
    weights: dict[str, float] = json.loads(place.read_text())["weights"]
    return weights


def test_the_static_weights_of_a_graph_are_one_command_and_its_file_is_mixed(
    shards: ShardSet, graph: Path, tmp_path: Path
) -> None:
    out = tmp_path / "weights.json"
    table = works("weights", shards.root, "--policy", "skill_it", "--graph", graph, "--eta", 0.5, "--out", out)
    expected = softmax([0.5 * 1.5, 0.5 * 0.75, 0.5 * 1.0])
    assert written(out) == pytest.approx(expected, rel=1e-12)
    assert [line.split()[0] for line in table.splitlines() if line.split()[:1] and line.split()[0] in SKILLS] == [
        "add",
        "negate",
        "carry",
    ], "the largest weight first"
    assert f"{expected['add']:.6f}" in table
    by_file = mixed(shards.root, "--draws", 300, "--policy", "fixed", "--weights", out)
    assert by_file == mixed(shards.root, "--draws", 300, "--policy", "skill_it", "--graph", graph, "--eta", 0.5)
    num_add = sum(line["skill"] == "add" for line in by_file[0])
    assert abs(num_add - 300 * expected["add"]) < 10
    works("weights", shards.root, "--policy", "skill_it", "--graph", graph, "--eta", 0.5, "--out", out)
    assert "exists and holds something else" in fails(
        "weights", shards.root, "--policy", "skill_it", "--graph", graph, "--eta", 0.2, "--out", out
    )


def test_a_prior_multiplies_and_targets_are_the_columns_that_count(
    shards: ShardSet, graph: Path, tmp_path: Path
) -> None:
    out = tmp_path / "weights.json"
    prior = '{"add": 1, "carry": 2, "negate": 4}'
    options = ("--policy", "skill_it", "--graph", graph, "--eta", 2.0, "--target", "carry", "--prior", prior)
    works("weights", shards.root, *options, "--out", out)
    expected = softmax([2 * 0.5 + math.log(1), 2 * 1.0 + math.log(2), math.log(4)])
    assert written(out) == pytest.approx(expected, rel=1e-12)
    chosen = tmp_path / "chosen.json"
    works("weights", shards.root, *options[:-2], "--skills", "carry,add", "--out", chosen)
    two = softmax([2 * 0.5, 2 * 1.0, -math.inf])
    assert written(chosen) == pytest.approx({"add": two["add"], "carry": two["carry"]}, rel=1e-12)
    assert json.loads(chosen.read_text())["shards"] == shards.choose(["add", "carry"]).digest


def test_the_published_static_weights_of_the_authors_are_met(tmp_path: Path) -> None:
    case = golden("skillit_static_ni_pt.json")
    edges = np.array(case["graph_raw"])
    np.fill_diagonal(edges, 1.0)  # the authors' code overwrites the diagonal
    SkillGraph(case["skills"], case["skills"], edges).save(tmp_path / "graph.json")
    policy = static_policy("skill_it", case["skills"], graph=tmp_path / "graph.json", eta=case["eta"])
    weights = policy.weights(policy.init(case["skills"]))
    np.testing.assert_allclose(weights, [case["weights"][skill] for skill in case["skills"]], atol=1e-12)


def test_skill_stratified_gives_equal_weights_to_targets_and_what_helps_them(
    shards: ShardSet, graph: Path, tmp_path: Path
) -> None:
    out = tmp_path / "weights.json"
    works("weights", shards.root, "--policy", "skill_stratified", "--graph", graph, "--target", "carry", "--out", out)
    assert written(out) == {"add": 0.5, "carry": 0.5, "negate": 0.0}


def test_weights_can_be_shares_of_tokens(shards: ShardSet, tmp_path: Path) -> None:
    counts = write_tokens(shards, byte_tokenizer(["add carry"]), tmp_path / "tokens", backend=HERE)
    out = tmp_path / "weights.json"
    works("weights", shards.root, "--policy", "proportional", "--tokens", tmp_path / "tokens", "--out", out)
    num_tokens = {skill: counts.train[skill].num_tokens for skill in SKILLS}
    assert written(out) == pytest.approx({skill: num / sum(num_tokens.values()) for skill, num in num_tokens.items()})
    assert json.loads(out.read_text())["unit"] == "tokens"


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_policy_that_needs_no_trainer_is_mixed_by_one_command(
    shards: ShardSet, graph: Path, tmp_path: Path, name: str
) -> None:
    values = {
        "--tau": 2.0,
        "--epochs": 1.0,
        "--weights": '{"add": 1, "carry": 2, "negate": 1}',
        "--graph": graph,
        "--eta": 0.2,
        "--losses": '{"add": 1, "carry": 2, "negate": 3}',
    }
    needed = [f"--{argument}" for argument in ARGUMENTS[name][0] if argument != "draws"]
    arguments = [part for option in needed for part in (option, values[option])]
    assert len(drawn(shards.root, "--draws", 40, "--policy", name, *arguments)) == 40
    if name in CONSTANT:
        draws = ("--draws", 40) if name == "unimax" else ()
        works("weights", shards.root, "--policy", name, *arguments, *draws, "--out", tmp_path / "w.json")
        assert sum(written(tmp_path / "w.json").values()) == pytest.approx(1)
    for option in needed:
        rest = [part for other in needed if other != option for part in (other, values[other])]
        assert f"policy {name} needs {option}" in fails("mix", shards.root, "--draws", 4, "--policy", name, *rest)
    if needed:
        sentence = f"policy {name} needs {' and '.join(needed)}: give {'it' if len(needed) == 1 else 'them'} too."
        assert fails("mix", shards.root, "--draws", 4, "--policy", name) == sentence
    for option in set(values) - set(needed):
        sentence = fails("mix", shards.root, "--draws", 4, "--policy", name, *arguments, option, values[option])
        assert f"policy {name} does not take {option}: leave it out" in sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[1, 2]", "holds no weights but a list"),
        ("3", "holds no weights but a number"),
        ("null", "holds no weights but nothing (null)"),
        ('"add"', "holds no weights but a text"),
        ("{}", "holds no weights above 0: it names no skill"),
        ('{"add": 0, "carry": 0}', "holds no weights above 0: all weights are 0"),
        ('{"add": -1}', "add is -1, not a number from 0 to 1e100"),
        ('{"add": "much"}', "add is 'much', not a number from 0 to 1e100"),
        ('{"add": true}', "add is True, not a number from 0 to 1e100"),
        ('{"add": {"weight": 1}}', "add is {'weight': 1}, not a number from 0 to 1e100"),
        ('{"weights": [1]}', "weights is [1], not a number from 0 to 1e100"),
        ('{"schema": "skillshard/weights/1"}', "'weights' is nothing (null)"),
        ('{"schema": "skillshard/weights/1", "weights": [1]}', "'weights' is a list"),
        ('{"schema": "skillshard/tags/1", "skills": []}', "its schema is 'skillshard/tags/1'"),
        ('{"add": NaN}', "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_a_file_that_holds_no_weights_gets_one_sentence(
    shards: ShardSet, tmp_path: Path, content: str, sentence: str
) -> None:
    (tmp_path / "w.json").write_text(content)
    for option, policy in (("--weights", ("fixed",)), ("--losses", ("curriculum",))):
        message = fails("mix", shards.root, "--draws", 4, "--policy", *policy, option, tmp_path / "w.json")
        assert sentence in message and "w.json" in message


def test_a_graph_in_place_of_weights_names_the_command_that_makes_weights_of_it(shards: ShardSet, graph: Path) -> None:
    message = fails("mix", shards.root, "--draws", 4, "--policy", "fixed", "--weights", graph)
    assert "its schema is 'skillshard/graph/2'" in message
    assert f"skillshard weights SHARDS --policy skill_it --graph {graph} --eta ETA --out weights.json" in message


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("weights", "schema", "add", "carry", "x")), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=json_values)
def test_any_json_is_weights_or_is_refused_by_us(tmp_path: Path, value: Any) -> None:
    storage.write_bytes(tmp_path / "w.json", canonical.to_json(value))
    try:
        weights = read_weights(tmp_path / "w.json")
    except SkillshardError as error:
        assert "w.json" in str(error)
        return
    assert all(type(weight) is float and weight >= 0 for weight in weights.values()) and sum(weights.values()) > 0


def test_skills_without_a_weight_are_refused_with_remedies_that_the_command_line_has(shards: ShardSet) -> None:
    fixed = ("--policy", "fixed", "--weights", '{"add": 1, "carry": 1}')
    message = fails("mix", shards.root, "--draws", 4, *fixed)
    assert "without a weight: negate" in message and "--skills" in message and "--new proportional" in message
    assert set(drawn(shards.root, "--draws", 40, *fixed, "--skills", "add,carry")) == {"add", "carry"}
    assert set(drawn(shards.root, "--draws", 200, *fixed, "--new", "proportional")) == set(SKILLS)


@pytest.mark.filterwarnings("always::skillshard.errors.RepetitionWarning")  # the command prints the warnings
def test_repetition_is_judged_by_the_draws_asked_for_and_told_in_one_line(shards: ShardSet) -> None:
    assert mixed(shards.root, "--draws", 20)[1] == [], "the round of 4,096 draws is not what is written"
    _, few = mixed(shards.root, "--draws", 700)
    assert len(few) == 1 and "skill 'negate' passes 4 epochs in the first 700 draws" in few[0]
    _, many = mixed(shards.root, "--draws", 9000, "--policy", "proportional")
    assert len(many) == 1 and "skills 'add', 'carry', 'negate' pass 4 epochs in the first 9,000 draws" in many[0]
    assert "--repeat cap:4" in many[0]


def test_a_stream_that_repeat_ends_is_written_to_its_end_and_that_is_said(shards: ShardSet) -> None:
    lines, notes = mixed(shards.root, "--draws", 9000, "--policy", "proportional", "--repeat", "cap:4")
    total = 4 * sum(len(shards.train[skill]) for skill in SKILLS)
    assert len(lines) == total and notes == [f"note: the stream ends after {total:,} draws (--repeat cap:4)."]
    lines, notes = mixed(shards.root, "--first", 9000, "--draws", 5, "--repeat", "stop")
    assert lines == [] and notes == ["note: the stream ends before draw 9,000 (--repeat stop)."]


@pytest.mark.filterwarnings("ignore::skillshard.errors.RepetitionWarning")
def test_draws_far_along_the_stream_are_written(shards: ShardSet) -> None:
    far, _ = mixed(shards.root, "--first", 300_000, "--draws", 3, "--policy", "proportional")
    assert [line["draw"] for line in far] == [300_000, 300_001, 300_002]


def test_names_that_hold_commas_are_chosen_whole(tmp_path: Path) -> None:
    records = [
        {**sample, "meta": {"skill": {"add": "a,b"}.get(sample["meta"]["skill"], sample["meta"]["skill"])}}
        for sample in samples(add=40, a=40, b=40)
    ]
    shards = tag_and_shard(write_corpus(tmp_path / "c", records), tmp_path)
    for values, expected in (
        (("--skills", "a,b"), {"a,b"}),
        (("--skills", "a", "--skills", "b"), {"a", "b"}),
        (("--skills", "a,b", "--skills", "b, a"), {"a,b", "a", "b"}),
    ):
        assert set(drawn(shards.root, "--draws", 30, *values)) == expected
    assert "'c' is not among the 3 skills of" in fails("mix", shards.root, "--draws", 3, "--skills", "a,c")
    assert "'' is not among the 3 skills of" in fails("mix", shards.root, "--draws", 3, "--skills", "a,")


def test_policies_whose_weights_change_during_a_run_have_no_weights_to_write(shards: ShardSet, graph: Path) -> None:
    with pytest.raises(PolicyError, match="policy odm reads losses"):
        weigh(shards, odm(warmup_steps=0))
    with pytest.raises(PolicyError, match="policy skill_it reads losses"):
        weigh(shards, skill_it(SkillGraph.open(graph), eta=0.5))
    assert "policy 'curriculum'" in fails("weights", shards.root, "--policy", "curriculum")
    assert "did you mean 'skill_it'" in fails("weights", shards.root, "--policy", "skill-it")
    assert weigh(shards, unimax(draws=300, epochs=1.0)).weights["negate"] < 0.1


def test_a_shard_set_without_training_samples_has_no_weights(shards: ShardSet) -> None:
    with pytest.raises(ShardError, match="has no training shards of these skills"):
        weigh(replace(shards, chosen=()), unimax(draws=4, epochs=1.0))


def test_weights_as_shares_of_tokens_are_refused_where_samples_are_counted(shards: ShardSet, tmp_path: Path) -> None:
    """The two files hold other numbers, and a mixture of the wrong unit would train without a word."""
    tokens = write_tokens(shards, byte_tokenizer(["add carry"]), tmp_path / "tokens", backend=HERE)
    of_tokens, of_samples = tmp_path / "tokens.json", tmp_path / "samples.json"
    works("weights", shards.root, "--policy", "proportional", "--tokens", tokens.root, "--out", of_tokens)
    works("weights", shards.root, "--policy", "proportional", "--out", of_samples)
    assert read_weights(of_tokens) == read_weights(of_tokens, unit="tokens") == read_weights(of_tokens, unit="blocks")
    assert read_weights(of_samples) == read_weights(of_samples, unit="samples")
    assert "shares of tokens, and here a weight is a share of samples" in fails(
        "mix", shards.root, "--policy", "fixed", "--weights", of_tokens, "--draws", 10
    )
    assert "Make the file again without `tokens`" in fails(
        "mix", shards.root, "--policy", f"fixed:weights={of_tokens}", "--draws", 10
    )
    assert "shares of samples, and here a weight is a share of tokens" in fails(
        "weights", shards.root, "--policy", "fixed", "--weights", of_samples, "--tokens", tokens.root
    )
    with pytest.raises(PolicyError, match="here a weight is a share of samples"):
        read_policy(f"fixed:weights={of_tokens}", unit="samples")
    works("mix", shards.root, "--draws", 10, "--round-draws", 10, "--ledger", tmp_path / "run")
    sentence = fails("steer", tmp_path / "run", "--weights", of_tokens, "--why", "a test")
    assert "here a weight is a share of samples" in sentence
    works("steer", tmp_path / "run", "--weights", of_samples, "--why", "a test")
