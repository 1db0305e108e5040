"""An option that does not belong to the command is refused, also with the default as its value."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from inspect import unwrap
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer

from skillshard import cli
from skillshard.cli import app
from skillshard.cli.values import names_on_all_nodes
from tests.commands import skillshard, works, write_artefacts
from tests.conftest import REPOSITORY, tree


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artefacts(tmp_path_factory.mktemp("options"))


METADATA = ("tag", "metadata", "C", "--field", "meta.skill")
EMBEDDING = ("tag", "embedding", "C", "--skills", "2")
LOSS = ("tag", "loss", "C", "--skills", "2")
REGROUP = ("regroup", "T", "--min-share", "0.2")
GRAPH = ("graph", "learn", "S", "--steps", "2")

STRANGERS: list[tuple[tuple[str, ...], str, str]] = [
    (METADATA, "--skills", "2"),
    (METADATA, "--skills-range", "2:64"),  # the default
    (METADATA, "--seed", "0"),  # the default
    (METADATA, "--encoder", "lexical"),
    (METADATA, "--balance", "0.0"),  # the default
    (METADATA, "--graph", "nowhere.json"),
    (METADATA, "--unordered", ""),
    (METADATA, "--map", "m.json"),
    (METADATA, "--clusters", "M"),
    (EMBEDDING, "--skills-range", "50:60"),
    (EMBEDDING, "--graph", "nowhere.json"),
    (EMBEDDING, "--field", "meta.skill"),
    (EMBEDDING, "--lr", "0.001"),
    (EMBEDDING, "--device", "cpu"),  # the lexical encoder has no device
    (EMBEDDING, "--map", "m.json"),
    (LOSS, "--skills-range", "2:64"),
    (LOSS, "--encoder", "lexical"),
    (LOSS, "--balance", "0"),
    (LOSS, "--unordered", ""),
    (LOSS, "--graph", "nowhere.json"),
    ((*LOSS, "--segment-at", ",", "--answer-after", "="), "--window", "128"),
    (("tag", "reuse", "C", "--clusters", "M"), "--seed", "0"),
    (("tag", "reuse", "C", "--clusters", "M"), "--dtype", "float32"),
    (("tag", "reuse", "C", "--clusters", "M"), "--skills-range", "2:64"),
    (REGROUP, "--id-field", "id"),  # the default
    (REGROUP, "--text-field", "nope"),
    (REGROUP, "--partition-size", "1KB"),
    (REGROUP, "--on-bad-sample", "set-aside"),
    (REGROUP, "--skills", "2"),
    ((*REGROUP, "--rest", "other"), "--graph", "g.json"),
    (("regroup", "T", "--map", "m.json"), "--graph", "g.json"),
    (GRAPH, "--unordered", ""),
    ((*GRAPH, "--segment-at", ",", "--answer-after", "="), "--window", "128"),
    (("shard", "C", "--tags", "T", "--ray-address", "127.0.0.1:1"), "--workers", "2"),
    (("tokens", "S", "--tokenizer", "t", "--ray-address", "auto"), "--workers", "2"),
    ((*METADATA, "--ray-address", "auto"), "--workers", "2"),
    (("fit", "runs.json"), "--seed", "0"),  # the default
    (("fit", "runs.json"), "--epochs", "4"),  # the default
    (("mix", "S", "--draws", "4"), "--cache-size", "1GB"),
    (("tokens", "S", "--tokenizer", "t"), "--cache-size", "1GB"),
]


@pytest.mark.parametrize(("command", "option", "value"), STRANGERS, ids=lambda value: str(value))
def test_an_option_that_would_be_ignored_is_refused(
    command: tuple[str, ...], option: str, value: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    before = set(tree(root))
    outcome = skillshard(*command, *([option, value] if value else [option]), "--out", "new")
    assert outcome.code == 2, outcome
    shown = re.sub(r"[\s│]+", " ", outcome.err)
    assert f"Invalid value for {option}" in shown or f"No such option: {option}" in shown, shown
    assert set(tree(root)) == before


def test_options_that_belong_are_taken_with_their_defaults(root: Path, tmp_path: Path) -> None:
    works(
        *("tag", "metadata", root / "C", "--field", "meta.skill", "--id-field", "id"),
        *("--on-bad-sample", "stop", "--out", tmp_path / "T", "--workers", 1),
    )
    works("regroup", root / "T", "--min-share", 0.45, "--rest", "other", "--out", tmp_path / "fewer", "--workers", 1)


def commands(command: Any, *words: str) -> Iterator[tuple[str, Any]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *words, name)
    if not hasattr(command, "commands"):
        yield " ".join(words), command


def verbs(command: Any) -> Iterator[tuple[str, Callable[..., None]]]:
    for name, verb in commands(command):
        yield name, unwrap(verb.callback)


# The paths of `run` stand in the pipeline file. test_pipeline.py checks these paths.
ON_RAY = {
    name: verb
    for name, verb in verbs(typer.main.get_command(app))
    if "ray_address" in get_type_hints(verb) and name != "run"
}


@pytest.mark.parametrize("name", sorted(ON_RAY))
def test_every_path_of_a_verb_that_runs_on_ray_is_checked_in_a_job(name: str) -> None:
    hints = get_type_hints(ON_RAY[name])
    paths = {argument for argument, hint in hints.items() if Path in (hint, *get_args(hint))}
    assert paths | {"out"} <= set(names_on_all_nodes(ON_RAY[name]))


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tag", "metadata corpus --field x --out /out"),
        ("tag", "reuse /corpus --clusters tags --out /out"),
        ("regroup", "/tags --map map.json --out /out"),
        ("graph", "learn /shards --steps 2 --proxy models/gpt2 --out /graph.json"),
    ],
)
def test_a_job_refuses_a_relative_path_before_ray_starts(script: str, arguments: str) -> None:
    command = [sys.executable, REPOSITORY / "jobs" / f"{script}.py", *arguments.split()]
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "is a relative path" in ended.stderr, ended.stderr


@pytest.mark.parametrize("proxy", [(), ("--proxy", "small")])
def test_a_built_in_proxy_is_no_path_to_a_job(
    proxy: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["graph.py", "learn", "/shards", "--steps", "2", "--out", "/graph.json", *proxy])
    begun: list[list[str]] = []
    monkeypatch.setattr(cli, "main", begun.append)
    cli.run_job("graph")
    assert begun and begun[0][:4] == ["graph", "learn", "--ray-address", "auto"], capsys.readouterr().err


def test_the_benchmark_refuses_a_method_that_its_settings_do_not_have(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.skillit", "run", "--work", tmp_path / "W", "--methods", "oddm"]
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert ended.returncode == 2 and "--methods 'oddm' (did you mean 'odm'?)" in ended.stderr, ended.stderr
    assert not (tmp_path / "W").exists()


ALL_VERBS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", sorted(ALL_VERBS))
def test_the_help_of_a_verb_fits_a_screen_and_ends_with_an_example(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    brief, whole = works(*name.split(), "--help"), works(*name.split(), "--help-all")
    assert brief.count("\n") <= 55
    assert brief.rstrip().splitlines()[-1].startswith(f"   skillshard {name} ")
    assert whole.rstrip().splitlines()[-1] == brief.rstrip().splitlines()[-1]
    for parameter in ALL_VERBS[name].params:
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in whole
    assert ("--help-all" in brief) == (len(whole.splitlines()) > len(brief.splitlines()))


PANELS_OF_READING = ["Fields of a row", "Answers and metadata", "How the corpus is read", "Files of the corpus"]


@pytest.mark.parametrize("name", sorted(name for name in ALL_VERBS if name.startswith("tag ")))
def test_the_options_of_every_tagger_stand_in_one_order_and_once(name: str) -> None:
    options = [parameter for parameter in ALL_VERBS[name].params if parameter.param_type_name == "option"]
    words = [word for option in options for word in (*option.opts, *option.secondary_opts)]
    assert len(words) == len(set(words))
    panels = list(dict.fromkeys(getattr(option, "rich_help_panel", None) for option in options))
    assert [panel for panel in panels if panel in PANELS_OF_READING] == PANELS_OF_READING


@pytest.mark.parametrize(
    "words", [("--delimiter", ";"), ("--id-field=ref",), ("--text-files", "whole"), ("--id-from-row",)]
)
def test_shard_says_that_the_tags_record_how_the_corpus_is_read(words: tuple[str, ...]) -> None:
    outcome = skillshard("shard", "C", "--tags", "T", *words, "--out", "S")
    assert outcome.code == 2
    assert "the tags record how the corpus is read" in " ".join(outcome.err.replace("│", "").split())
