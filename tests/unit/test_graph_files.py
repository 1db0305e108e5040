"""Graph files: version 1 is read with an unknown kind of losses, files keep the kind of losses, and digests stay the same."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillshard.errors import GraphError
from skillshard.graph.derive import own_gains, rule_in
from skillshard.graph.skill_graph import GraphFile, SkillGraph, read_graph, write_graph
from skillshard.loss import LossKind
from skillshard.report.graph_facts import statistics_of
from tests.commands import skillshard

LEARNED: dict[str, Any] = {
    "method": "linear",
    "made_from": {"shards": "d", "answer_after": "= ", "batch_size": 4, "for_steps": None},
    "seeds": [0, 1],
    "warmup_steps": 0,
    "warmup_batch_size": 4,
    "eval_steps": [0, 5],
    "runs": [
        {"trained_on": [name], "samples_per_skill": 4, "seed": seed, "steps_taken": 5, "losses": [[2.0, 2.0], end]}
        for seed in (0, 1)
        for name, end in (("a", [1.0 + seed / 10, 1.5]), ("b", [1.9, 2.1 + seed / 10]))
    ],
    "edges": "threshold:1.6",
    "average": "end",
    "off_diagonal": None,
    "clamp": True,
    "drop_uncertain": False,
}
VERSION_1: dict[str, Any] = {
    "schema": "skillshard/graph/1",
    "train_skills": ["a", "b"],
    "eval_skills": ["a", "b"],
    "edges": [[1.0, 1.0], [0.0, 1.0]],
    "standard_errors": [[0.0, 0.0], [0.0, 0.0]],
    "learned": LEARNED,
}


def written(folder: Path, content: dict[str, Any]) -> Path:
    place = folder / "graph.json"
    place.write_text(json.dumps(content))
    return place


def test_a_learned_graph_of_version_1_is_per_sample_with_its_mask_and_its_own_rule_of_thresholds(
    tmp_path: Path,
) -> None:
    place = written(tmp_path, VERSION_1)
    graph = read_graph(place)
    assert graph.loss == LossKind(answer_after="= ")
    assert graph.learned is not None and rule_in(graph.learned).unit == "threshold-own"
    assert SkillGraph.open(place).loss == graph.loss
    write_graph(graph, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["schema"] == "skillshard/graph/2"
    assert read_graph(tmp_path / "again.json") == graph


def test_a_given_graph_of_version_1_is_of_no_known_kind(tmp_path: Path) -> None:
    fields = {name: VERSION_1[name] for name in ("schema", "train_skills", "eval_skills", "edges")}
    assert SkillGraph.open(written(tmp_path, fields)).loss is None
    with pytest.raises(GraphError, match=r"is not a skills graph \(schemas/graph-2.json\)"):
        read_graph(written(tmp_path, {**fields, "schema": "skillshard/graph/3"}))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("edges",), [[1.0], [1.0, 2.0]], "row 0 of edges has 1 number, and 2 are expected"),
        (("edges",), [[1.0, 2.0]], "edges has 1 row, and 2 are expected"),
        (("standard_errors",), [[0.1]], "standard_errors has 1 row, and 2 are expected"),
        (("standard_errors",), [[0.1, 0.1], [0.1]], "row 1 of standard_errors has 1 number, and 2 are expected"),
        (("learned", "runs"), [], "learned.runs has no trial"),
        (("learned", "runs", 0, "losses"), [], "learned.runs.0.losses has 0 rows, and 2 are expected"),
        (("learned", "runs", 1, "losses"), [[1.0, 2.0]], "learned.runs.1.losses has 1 row, and 2 are expected"),
        (("learned", "runs", 3, "losses", 1), [1.0], "row 1 of learned.runs.3.losses has 1 number, and 2 are expected"),
    ],
)
def test_lists_that_do_not_fit_the_names_of_a_file_get_one_clear_sentence(
    path: tuple[str | int, ...], value: Any, sentence: str, tmp_path: Path
) -> None:
    content: Any = copy.deepcopy(VERSION_1)
    *parents, last = path
    target = content
    for step in parents:
        target = target[step]
    target[last] = value
    with pytest.raises(
        GraphError, match=re.escape(f"is not a skills graph (schemas/graph-2.json): {sentence}. A matrix")
    ):
        SkillGraph.open(written(tmp_path, content))
    for verb in ("show", "derive"):
        out = ("--out", tmp_path / "other.json") if verb == "derive" else ()
        ran = skillshard("graph", verb, tmp_path / "graph.json", *out)
        assert ran.code == 1 and sentence in ran.sentence


def test_the_digest_is_of_names_and_edges_alone_and_stays_what_it_was(tmp_path: Path) -> None:
    edges = [[1.0, 0.5], [0.0, 1.0]]
    digests = {
        SkillGraph("ab", "ab", edges, loss=kind).digest for kind in (None, LossKind(), LossKind(answer_after="="))
    }
    assert digests == {"0414d825dfb73af2896db031b89cb931"}, "the digest that version 0.1.0 gave"
    graph = SkillGraph("ab", "ab", edges, loss=LossKind(reduction="per_token"))
    graph.save(tmp_path / "graph.json")
    assert SkillGraph.open(tmp_path / "graph.json").loss == graph.loss
    assert GraphFile.model_validate(json.loads(graph.to_bytes())).loss == graph.loss


def test_skills_that_do_not_improve_on_themselves_are_named_with_their_numbers(tmp_path: Path) -> None:
    graph = read_graph(written(tmp_path, VERSION_1))
    assert graph.learned is not None
    gains = {gain.skill: gain for gain in own_gains(graph.train_skills, graph.eval_skills, graph.learned)}
    assert gains["a"].nats == pytest.approx(0.95) and gains["b"].nats == pytest.approx(-0.15)
    assert gains["b"].standard_error == pytest.approx(0.05)
    assert statistics_of(graph).not_improved == ("b",)
    out = skillshard("graph", "show", tmp_path / "graph.json").out
    assert (
        "No skill by Definition 2.1, since training on the skill does not lower its own loss: b (-0.15 nats ± 0.05)."
        in out
    )


def test_no_verdict_says_that_everything_helps_everything_over_a_negative_diagonal(tmp_path: Path) -> None:
    edges = np.full((4, 4), 0.5) - 0.6 * np.eye(4)
    SkillGraph("abcd", "abcd", edges).save(tmp_path / "graph.json")
    out = skillshard("graph", "show", tmp_path / "graph.json").out
    assert "everything helps everything" not in out
    assert (
        "Nearly complete (100 % of the edges between skills are positive), but training on a, b, c, d does not" in out
    )
    assert (
        "No skill by Definition 2.1, since training on the skill does not lower its own loss: a (-0.1), b (-0.1)" in out
    )


def test_a_clamped_or_set_diagonal_hides_nothing(tmp_path: Path) -> None:
    learned = {**LEARNED, "edges": "absolute", "off_diagonal": 0.5}
    place = written(tmp_path, {**VERSION_1, "edges": [[1.0, 0.5], [0.5, 1.0]], "learned": learned})
    assert statistics_of(read_graph(place)).not_improved == ("b",)
    again = skillshard("graph", "derive", place, "--edges", "relative", "--out", tmp_path / "again.json")
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "again.json").read_text())["not_improved"] == ["b"]


def test_a_threshold_that_every_run_begins_below_tells_nothing_and_says_so(tmp_path: Path) -> None:
    place = written(tmp_path, VERSION_1)
    out = skillshard("graph", "derive", place, "--edges", "threshold:2.5", "--out", tmp_path / "low.json").out
    assert "Every trial begins at a loss of at most 2.5 nats (the highest is 2.000), so these edges mean nothing" in out
    assert "everything helps everything" not in out


@pytest.mark.parametrize(
    "option", [["--average", "curve"], ["--keep-negative"], ["--drop-uncertain"]], ids=lambda option: option[0]
)
def test_options_that_have_no_effect_on_a_threshold_are_refused(tmp_path: Path, option: list[str]) -> None:
    place = written(tmp_path, VERSION_1)
    refused = skillshard("graph", "derive", place, "--edges", "threshold:1.6", *option, "--out", tmp_path / "x.json")
    assert refused.code == 1 and f"so {option[0]} has no effect. Leave it out." in refused.sentence
    assert not (tmp_path / "x.json").exists()


def test_a_graph_says_which_losses_it_was_learned_from(tmp_path: Path) -> None:
    out = skillshard("graph", "show", written(tmp_path, VERSION_1)).out
    assert "Losses: the mean over samples of nats per token, of what follows the last '= '." in out
