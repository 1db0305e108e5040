"""`--json`: the facts of every kind of artefact as one JSON object, the same as in the tables, with a schema."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import skillshard as ss
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.report.facts import facts_at, shards_facts
from skillshard.report.run_facts import run_facts
from skillshard.report.text import BARS
from skillshard.shards.files import RemoteFiles
from tests.commands import fails, finish, skillshard, start, works
from tests.conftest import HERE, REPOSITORY, samples, write_corpus
from tests.tokenizers_trained import byte_tokenizer
from tests.unit.test_graph_files import VERSION_1

SCHEMA = json.loads((REPOSITORY / "schemas" / "inspect-2.json").read_text())
VERBS = {name: ("inspect", name) for name in ("tags", "clusters", "shards", "tokens", "run")} | {
    "graph": ("graph", "show", "graph.json")
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an artefact of each kind, the tags with rows that were set aside."""
    folder = tmp_path_factory.mktemp("facts")
    write_corpus(folder / "C", samples(add=60, carry=40))
    (folder / "C" / "bad.jsonl").write_bytes(b'{"id": "x", "text": ""}\n')
    corpus = ss.Corpus.open(folder / "C")
    by_field = ss.taggers.metadata("skill")
    tags = ss.tag_corpus(corpus, by_field, folder / "tags", on_bad_sample="set-aside", max_set_aside=1.0, backend=HERE)
    encoder = ss.taggers.lexical()
    by_cluster = ss.taggers.embedding(encoder, skills=2)
    ss.tag_corpus(corpus, by_cluster, folder / "clusters", on_bad_sample="set-aside", max_set_aside=1.0, backend=HERE)
    shards = ss.write_shards(corpus, tags, folder / "shards", holdout=0.1, backend=HERE)
    ss.write_tokens(shards, byte_tokenizer(["add carry"]), folder / "tokens", backend=HERE)
    mixer = ss.Mixer(shards, ss.policies.stratified(), ledger=folder / "run", round_draws=50, step_draws=10)
    mixer.report(0, {"add": 2.0, "carry": 3.0})
    mixer.round(1)
    ss.SkillGraph.chain(("add", "carry")).save(folder / "graph.json")
    return folder


def shown(root: Path, name: str, *options: str) -> str:
    *verb, place = VERBS[name]
    return works(*verb, root / place, *options)


def test_a_run_that_has_not_begun_has_facts_too(root: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    works("continue", root / "run", "--draw", 50, "--skip", "60:5:a bad file", "--out", new)
    facts = json.loads(works("inspect", new, "--json"))
    jsonschema.validate(facts, json.loads((REPOSITORY / "schemas" / "inspect-waiting-1.json").read_text()))
    table = works("inspect", new)
    assert [(own["name"], own["is_present"], own["weight"]) for own in facts["skills"]] == [
        ("add", True, 0.5),
        ("carry", True, 0.5),
    ]
    assert sum(own["position"] for own in facts["skills"]) == 55
    for own in facts["skills"]:
        assert re.search(rf"{own['name']} +{own['epoch']} +{own['position']} of {own['num_samples']}", table)
    assert facts["skipped"] == [{"first": 60, "num": 5, "why": "a bad file"}]
    assert (facts["draw"], facts["step"], facts["place_before"]) == (50, None, str(root / "run"))
    (new / "handover.json").write_text("{}")
    assert "handover.json is damaged" in fails("inspect", new, "--json")


@pytest.mark.parametrize("name", VERBS)
def test_standard_output_is_one_json_object_that_fits_the_schema(name: str, root: Path) -> None:
    facts = json.loads(shown(root, name, "--json"))
    jsonschema.validate(facts, SCHEMA)
    kind = "tags" if name == "clusters" else name
    assert (facts["kind"], facts["schema"]) == (kind, "skillshard/inspect/2")
    assert facts["place"] == str(root / VERBS[name][-1])


def numbers_in(table: str, skill: str) -> list[str]:
    """Return the cells of the row of a skill in the first table, without the bars of a sparkline."""
    row = next(line for line in table.splitlines() if line.split()[:1] == [skill])
    row = re.sub(f"[{BARS}]+", "", row)
    return re.split(r"\s{2,}", row.strip())[1:]


ROWS: dict[str, Callable[[dict[str, Any], dict[str, Any]], list[str]]] = {
    "tags": lambda skill, whole: [
        str(skill["num_samples"]),
        f"{100 * skill['num_samples'] / whole['num_tagged']:.1f} %",
    ],
    "shards": lambda skill, whole: [
        str(skill[name]) for name in ("num_train", "num_holdout", "num_copies", "num_shards")
    ],
    "tokens": lambda skill, whole: [
        f"{skill['num_train']:,}",
        f"{100 * skill['num_train'] / whole['num_train']:.1f} %",
        f"{skill['num_train'] / skill['num_train_samples']:.1f}",
        f"{skill['num_holdout']:,}",
    ],
    "run": lambda skill, whole: [
        f"{skill['weight']:.4f}",
        str(skill["num_drawn"]),
        f"{100 * skill['num_drawn'] / whole['num_draws']:.1f} %",
        f"{skill['intended']:.1f}",
        f"{skill['epochs']:.2f}",
    ],
}


@pytest.mark.parametrize("name", ROWS)
def test_the_facts_are_those_of_the_table(name: str, root: Path) -> None:
    table, facts = shown(root, name), json.loads(shown(root, name, "--json"))
    assert [skill["name"] for skill in facts["skills"]] == ["add", "carry"]
    for skill in facts["skills"]:
        expected = ROWS[name](skill, facts)
        assert numbers_in(table, skill["name"])[: len(expected)] == expected


def test_the_facts_of_a_graph_are_those_that_the_verb_prints(root: Path) -> None:
    text, facts = shown(root, "graph"), json.loads(shown(root, "graph", "--json"))
    assert facts["edges"] == [[1.0, 0.5], [0.0, 1.0]] and facts["method"] is facts["loss"] is None
    assert f"density {100 * facts['density']:.1f} %" in text and facts["conclusion"] in text
    assert (facts["num_positive"], facts["num_zero"], facts["helped_by_nobody"]) == (3, 1, ["add"])


def test_clusters_come_with_their_terms_and_their_encoder(root: Path) -> None:
    text, facts = shown(root, "clusters"), json.loads(shown(root, "clusters", "--json"))
    clusters = facts["clusters"]["clusters"]
    assert len(clusters) == 2 and sum(cluster["num_samples"] for cluster in clusters) == facts["num_tagged"]
    for cluster in clusters:
        assert f"{cluster['name']}: fitted on {cluster['num_samples']:,} samples" in text
    assert f"encoder {facts['clusters']['encoder']['name']} " in text
    assert json.loads(shown(root, "tags", "--json"))["clusters"] is None


def test_rows_that_were_set_aside_are_counted_by_reason(root: Path) -> None:
    for name in ("tags", "shards"):
        facts = json.loads(shown(root, name, "--json"))
        assert facts["set_aside"] == {"empty-text": 1} and facts["num_rows"] == 101
    by_file = json.loads(shown(root, "tags", "--json"))["set_aside_by"]
    assert by_file == [{"file": "bad.jsonl", "reason": "empty-text", "field": "text", "num_rows": 1}]


def test_a_run_before_its_first_round_has_no_weights(root: Path, tmp_path: Path) -> None:
    shards = ss.ShardSet.open(root / "shards")
    mixer = ss.Mixer(shards, ss.policies.stratified(), ledger=tmp_path / "run", round_draws=50, step_draws=10)
    mixer.report(0, {"add": 2.0, "carry": 3.0})
    facts = run_facts(DirectoryLedger(tmp_path / "run"))
    assert (facts.round, facts.skills, facts.num_rounds, facts.num_observations) == (None, [], 0, 1)
    jsonschema.validate(json.loads(facts.to_json()), SCHEMA)


@pytest.mark.parametrize("name", VERBS)
def test_nothing_but_json_is_on_standard_output_also_where_colours_are_forced(name: str, root: Path) -> None:
    *verb, place = VERBS[name]
    ended = finish(start(*verb, root / place, "--json", env_changes={"FORCE_COLOR": "1", "COLUMNS": "20"}))
    assert ended.code == 0 and "\x1b" not in ended.out
    assert json.loads(ended.out) == json.loads(shown(root, name, "--json"))


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("inspect", "tags", "--pictures", "P"), "--pictures"),
        (("inspect", "tags", "--against", "meta.skill"), "--against"),
        (("graph", "show", "graph.json", "--pictures", "P"), "--pictures"),
    ],
)
def test_an_option_without_a_json_form_is_refused_and_draws_nothing(
    arguments: tuple[str, ...], option: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    outcome = skillshard(*arguments, "--json")
    assert outcome.code == 2 and outcome.out == ""
    assert f"{option} has no JSON form" in " ".join(outcome.err.split()) and not (root / "P").exists()


def test_an_error_leaves_standard_output_empty(root: Path) -> None:
    outcome = skillshard("inspect", root / "C", "--json")
    assert outcome.code == 1 and outcome.out == "" and "holds no artefact" in outcome.sentence


def test_the_place_is_without_keys_and_can_be_written_whatever_its_bytes(root: Path, tmp_path: Path) -> None:
    shards = ss.ShardSet.open(root / "shards")
    remote = replace(shards, files=RemoteFiles("https://user:SECRET@host/S?sig=SECRET", None))
    assert shards_facts(remote).place == "https://host/S"
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    ss.Mixer(shards, ss.policies.stratified(), ledger=odd, round_draws=50).round(0)
    assert json.loads(run_facts(DirectoryLedger(odd)).to_json())["place"] == f"{tmp_path}/caf\\xe9"


def test_the_schema_tells_the_kinds_apart(root: Path) -> None:
    facts = json.loads(facts_at(root / "tags").to_json())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**facts, "kind": "shards"}, SCHEMA)
    assert sorted(SCHEMA["discriminator"]["mapping"]) == ["export", "graph", "run", "shards", "tags", "tokens"]


def test_a_learned_graph_says_how_it_was_learned_and_what_it_cost(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(json.dumps(VERSION_1))
    facts = json.loads(works("graph", "show", tmp_path / "graph.json", "--json"))
    jsonschema.validate(facts, SCHEMA)
    text = works("graph", "show", tmp_path / "graph.json")
    assert (facts["method"], facts["rule"], facts["seeds"]) == ("linear", "threshold-own:1.6", [0, 1])
    assert f"Cost: {facts['num_steps']:,} steps, {facts['num_samples']:,} samples." in text
    assert facts["not_improved"] == ["b"] and facts["loss"]["answer_after"] == "= " and facts["conclusion"] in text
