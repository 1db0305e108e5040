"""The page of examples/paper runs in miniature, and its script refuses other experiments."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from skillshard.graph.skill_graph import SkillGraph
from skillshard.shards.read import ShardSet
from tests.conftest import REPOSITORY
from tests.documents import run_document

FOLDER = REPOSITORY / "examples" / "paper"
TARGET = "Question Generation/Spanish/Spanish"


@pytest.mark.long
def test_the_page_runs_in_miniature_up_to_a_verdict(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "examples" / "paper")
    run_document(FOLDER / "README.md", tmp_path)
    assert len(ShardSet.open(tmp_path / "out" / "shards").skills) == 6
    place = tmp_path / "out" / "spanish-qg" / "graph.json"
    graph = SkillGraph.open(place)
    assert list(graph.eval_skills) == [TARGET] and len(graph.train_skills) == 4
    assert json.loads(place.read_text())["learned"]["method"] == "brute-force"
    compared = json.loads((tmp_path / "out" / "spanish-qg" / "compared" / "compare.json").read_text())
    assert [policy["name"] for policy in compared["policies"]] == [
        "fixed:alone.json",
        "stratified",
        "skill_stratified:graph.json",
        "skill_it:graph.json,eta=0.8,window=3,reduce=mean",
    ]
    assert (tmp_path / "out" / "spanish-qg" / "compared" / "report.html").exists()


def test_the_script_refuses_an_unknown_experiment_and_shows_its_commands(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    for words, sentence in (
        (["tasks", "tasks", "out", "french-qg"], "french-qg is no experiment: give spanish-qg or stance-detection."),
        ([], "examples/paper/experiment.sh TASKS MODEL OUT stance-detection"),
    ):
        ended = subprocess.run(
            [str(FOLDER / "experiment.sh"), *words], cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        assert ended.returncode == 2 and sentence in ended.stderr
