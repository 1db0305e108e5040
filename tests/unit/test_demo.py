"""The demo at a small size: its parts, its outputs, its second run, and the rule that chooses its setting."""

import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.evidence.methods import policy_of
from benchmarks.evidence.methods import true_graph as graph_of_evidence
from benchmarks.evidence.settings import ROUNDS, SETTINGS
from skillshard import demo
from skillshard.cli import app
from skillshard.command import program as program_words
from skillshard.demo import MethodResult, prepare, summary
from skillshard.fitting.finished import gather_runs
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.records import open_records
from skillshard.shards.read import ShardSet
from tests.conftest import REPOSITORY, tree

SMALL = ["--samples", "600", "--steps", "60"]
CHOSEN = "out of domain: chains of 3 from chains of 5"
RESULTS = json.loads((REPOSITORY / "benchmarks" / "results" / "skillit.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run a small demo in a directory with a space in its name, and return the directory and the output."""
    folder = tmp_path_factory.mktemp("a demo")
    command = [sys.executable, "-m", "skillshard", "demo", *SMALL]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stdout


def test_the_demo_trains_three_times_and_keeps_every_decision_and_loss(finished: tuple[Path, str]) -> None:
    folder, output = finished
    out = folder / "skillshard-demo"
    assert (
        output.index("mean loss over the training") < output.index("steps to a mean loss") < output.index("at the end")
    )
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    weights = {}
    for method in demo.METHODS:
        ledger = DirectoryLedger(out / "runs" / method)
        assert verify_ledger(ledger) == []
        records = open_records(ledger)
        assert (records.rounds.num(), records.observations.num()) == (4, 60)
        first, last = records.observations.get(0), records.rounds.get(3)
        assert first is not None and tuple(first.losses) == demo.measured_skills()
        assert last is not None
        weights[method] = last.weights
    assert weights["stratified"] == [0.2] * 5
    assert weights["natural"] == pytest.approx([1 / 11, 1 / 11, 1 / 11, 3 / 11, 5 / 11])
    assert weights["skill-it"][0] > 0.2 > weights["skill-it"][4]
    assert len(gather_runs([str(out / "runs")])) == 3, "the folder holds nothing but ledgers"


def test_a_finished_demo_run_again_changes_nothing_and_prints_the_same_results(finished: tuple[Path, str]) -> None:
    folder, output = finished
    before = tree(folder)
    again = CliRunner().invoke(app, ["demo", "--out", str(folder / "skillshard-demo"), *SMALL])
    assert again.exit_code == 0, again.output
    assert tree(folder) == before
    assert again.stdout.partition("Shown:")[0].split() == output.partition("Shown:")[0].split()


def test_a_demo_in_another_directory_has_the_same_losses_and_weights(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    ended = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "again"), *SMALL])
    assert ended.exit_code == 0, ended.output
    for method in demo.METHODS:
        first, second = (
            json.loads((folder / "results" / f"{method}.json").read_text())
            for folder in (finished[0] / "skillshard-demo", tmp_path / "again")
        )
        assert first.pop("cpu_s") > 0 and second.pop("cpu_s") > 0
        assert first == second
        ledgers = [
            DirectoryLedger(folder / "runs" / method)
            for folder in (finished[0] / "skillshard-demo", tmp_path / "again")
        ]
        rounds = [open_records(ledger).rounds for ledger in ledgers]
        assert [rounds[0].get(number) for number in range(4)] == [rounds[1].get(number) for number in range(4)]


def test_the_commands_that_the_demo_prints_work_as_they_stand_where_it_ran(finished: tuple[Path, str]) -> None:
    folder, output = finished
    commands = [line.strip() for line in output.partition("\nNext:\n")[2].splitlines() if line.startswith("  ")]
    assert len(commands) == 4
    for command in commands:
        ended = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=240)
        assert ended.returncode == 0 and ended.stdout, f"{command}\n{ended.stderr}"


@pytest.mark.parametrize("out", ["my demo", "-demo"])
def test_the_commands_name_a_directory_as_a_shell_needs_it(out: str) -> None:
    commands = demo.next_commands(Path(out), "skillshard")
    assert commands
    for command in commands:
        assert any(word.startswith(f"./{out}/" if out.startswith("-") else f"{out}/") for word in shlex.split(command))


def test_a_printed_command_begins_with_the_words_that_start_this_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "my bin" / "skillshard"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert program_words() == shlex.quote(str(program))
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert program_words() == "skillshard"
    monkeypatch.setattr(sys, "argv", ["/somewhere/skillshard/__main__.py"])
    assert program_words() == f"{shlex.quote(sys.executable)} -m skillshard"


def test_the_smallest_corpus_that_the_demo_takes_keeps_samples_to_train_on_and_to_measure(tmp_path: Path) -> None:
    prepare(tmp_path, num_samples=500, seed=0, on_stage=lambda *_: lambda *_: None)
    shards = ShardSet.open(tmp_path / "shards")
    assert shards.skills == (*demo.measured_skills(), *demo.trained_skills())
    assert all(len(shards.train[skill]) > 50 for skill in demo.trained_skills())
    pages = demo.EVAL_PROBLEMS // demo.PAGE_PROBLEMS
    assert all(len(shards.holdout[skill]) >= pages for skill in demo.measured_skills())


# --- the rule ---------------------------------------------------------------------------------------------------------


def areas(setting: dict[str, Any], method: str) -> dict[int, float]:
    """Return the loss over the whole training, by seed."""
    table = setting["methods"].get(method, {"seeds": [], "by_seed": []})
    return {seed: row["area"] for seed, row in zip(table["seeds"], table["by_seed"], strict=True)}


def gain(setting: dict[str, Any]) -> float:
    """Return the share by which SKILL-IT with the true graph lowers the mean loss over the training against equal weights."""
    equal = areas(setting, "stratified") or areas(setting, "skill-stratified")
    live = areas(setting, "chain") or areas(setting, "prerequisites")
    shared = equal.keys() & live.keys()
    return 1 - statistics.mean(live[seed] for seed in shared) / statistics.mean(equal[seed] for seed in shared)


def test_the_demo_is_the_setting_of_the_evidence_with_the_largest_gain_and_the_first_seed_after_it() -> None:
    gains = {name: gain(setting) for name, setting in RESULTS["settings"].items() if "real text" not in name}
    assert max(gains, key=lambda name: gains[name]) == CHOSEN
    chosen = RESULTS["settings"][CHOSEN]
    equal, live = areas(chosen, "stratified"), areas(chosen, "chain")
    lower = sum(live[seed] < equal[seed] for seed in live)
    assert f"{100 * gains[CHOSEN]:.0f} % on average, on {lower} of {len(live)} seeds" == demo.EVIDENCE
    seeds = {seed for setting in RESULTS["settings"].values() for seed in setting["seeds"]}
    assert max(seeds) + 1 == demo.DEFAULT_SEED


def test_the_numbers_of_the_demo_are_those_of_the_evidence() -> None:
    setting = SETTINGS[CHOSEN]
    assert (setting.k, setting.measured_k, setting.natural) == (5, 3, demo.natural_proportions(demo.TRAINED_K))
    assert (setting.steps, setting.samples) == (demo.DEFAULT_STEPS, demo.DEFAULT_SAMPLES * demo.PAGE_PROBLEMS)
    assert setting.batch_size == demo.BATCH_PAGES * demo.PAGE_PROBLEMS
    assert (setting.lr, setting.eta, setting.target_loss) == (demo.LEARNING_RATE, demo.ETA, demo.TARGET_LOSS)
    assert (setting.eval_every, setting.eval_samples) == (demo.evaluation_interval(setting.steps), demo.EVAL_PROBLEMS)
    assert ROUNDS == demo.ROUNDS
    assert (demo.true_graph().edges == graph_of_evidence(setting, "chain").edges).all()
    ours, theirs = demo.policy_of("skill-it", demo.true_graph()), policy_of(setting, "chain", (), Path())
    names = ("eta", "window", "reduce")
    assert ours.name == theirs.name
    assert [ours.arguments[name] for name in names] == [theirs.arguments[name] for name in names]


# --- what the demo says ------------------------------------------------------------------------------------------------


def result(method: str, *losses: float) -> MethodResult:
    steps = list(range(25, 25 * (len(losses) + 1), 25))
    return MethodResult(method, list(losses), steps, losses={}, accuracies={}, cpu_s=1.0)


@pytest.mark.parametrize(
    ("live", "sentence"),
    [
        (0.30, "25 % lower than the loss of stratified and 50 % lower than the loss of natural proportions."),
        (
            0.40,
            "equal (within 0.5 %) to the loss of stratified and 33 % lower than the loss of natural proportions. On this seed",
        ),
        (
            0.44,
            "10 % higher than the loss of stratified and 27 % lower than the loss of natural proportions. On this seed SKILL-IT",
        ),
    ],
)
def test_the_summary_says_honestly_how_the_losses_compare(tmp_path: Path, live: float, sentence: str) -> None:
    results = [result("natural", 0.7, 0.5), result("stratified", 0.5, 0.3), result("skill-it", live + 0.1, live - 0.1)]
    text = summary(results, tmp_path, seed=10, program="skillshard")
    assert f"the mean loss of SKILL-IT is {sentence}" in text
    assert ("SKILL-IT does not help" in text) == (live >= 0.4)


def test_the_loss_over_the_training_is_the_mean_of_the_evaluations_and_the_target_is_reached_below_it() -> None:
    assert result("natural", 0.3, 0.05, 0.04, 0.06).area == pytest.approx(0.1125)
    assert result("natural", 0.3, 0.05, 0.04, 0.06).steps_to_target == 75
    assert result("natural", 0.3, 0.05).steps_to_target is None


def test_a_demo_with_other_arguments_needs_another_directory(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"num_samples": 600, "steps": 120, "seed": 0}')
    (tmp_path / "corpus").mkdir()
    refused = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), *SMALL, "--seed", "0"])
    assert refused.exit_code == 1
    assert "holds a demo with other arguments (steps: 120 -> 60). Choose another `out`." in str(refused.exception)
