"""The script `find_skills.sh` finds, clusters again and names the topics of a generated corpus."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from skillshard.tags import Tags
from tests.conftest import REPOSITORY
from tests.topics import WORDS, topic_corpus

pytest.importorskip("sklearn")
SCRIPT = REPOSITORY / "examples" / "find_skills.sh"


def find_skills(*arguments: object) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PATH": path, "RANGE": "2:8"})


def skill_of_each_sample(tags: Tags) -> dict[str, str]:
    return {row.id: str(row.skill) for part in range(len(tags.manifest.parts)) for row in tags.rows(part)}


@pytest.mark.long
def test_the_script_proposes_a_number_clusters_again_with_another_and_names_the_skills(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    corpus, out = topic_corpus(tmp_path / "corpus", 240), tmp_path / "out"
    tried = find_skills(corpus, out)
    assert tried.returncode == 0, tried.stderr
    assert "largest skill" in tried.stdout and (out / "pictures" / "choice.png").exists()

    chosen = find_skills(corpus, out, 5)
    assert chosen.returncode == 0, chosen.stderr
    names = {}
    for name in {*skill_of_each_sample(Tags.open(out / "chosen-5")).values()}:
        assert f"{name}: fitted on" in chosen.stdout
        words = set(name.split("-"))
        names[name] = max(WORDS, key=lambda topic: len(words & set(WORDS[topic].split())))
    assert sorted(names.values()) == sorted(WORDS)

    (tmp_path / "names.json").write_text(json.dumps(names))
    named = find_skills(corpus, out, 5, tmp_path / "names.json")
    assert named.returncode == 0, named.stderr
    skills = skill_of_each_sample(Tags.open(out / "named-5"))
    assert all(identity.startswith(f"{skill}-") for identity, skill in skills.items())


def test_the_script_without_a_corpus_shows_its_commands_and_fails(tmp_path: Path) -> None:
    ended = find_skills()
    assert ended.returncode == 2
    assert "examples/find_skills.sh CORPUS OUT NUMBER NAMES.json" in ended.stderr
