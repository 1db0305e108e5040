"""The benchmark of methods: every method of every setting can be built, a short run leaves a table, and the comparison is right."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import measures, methods, training
from benchmarks.evidence.pictures import draw_setting
from benchmarks.evidence.settings import ROUNDS, SETTINGS
from benchmarks.evidence.training import run_all
from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies import NextRound
from tests.conftest import REPOSITORY

NAME = "ordered LEGO k=5"
GIVEN = [
    (name, method)
    for name, setting in SETTINGS.items()
    for method in setting.methods
    if methods.graph_of(method) is None and not setting.is_text
]


@pytest.mark.parametrize(("name", "method"), GIVEN)
def test_every_method_that_learns_no_graph_gives_weights_to_the_skills_trained_on(
    name: str, method: str, tmp_path: Path
) -> None:
    setting = SETTINGS[name]
    skills = methods.names_of(setting, setting.trained)
    policy = methods.policy_of(setting, method, skills, tmp_path)
    k = len(skills)
    upcoming = NextRound(0, 0, 100, (1000,) * k, (0,) * k)
    weights = policy.weights(policy.init(skills, [1000] * k), upcoming)
    assert weights.shape == (k,) and weights.min() >= 0 and math.isclose(weights.sum(), 1.0)


def test_a_fine_tuning_target_is_learned_from_itself_alone_or_with_what_comes_before_it(tmp_path: Path) -> None:
    setting = SETTINGS["fine-tuning: shuffled LEGO, skill 3"]
    skills = methods.names_of(setting, setting.trained)
    built = {
        method: methods.policy_of(setting, method, skills, tmp_path)
        for method in ("target-only", "skill-stratified", "prerequisites")
    }
    weights = {method: policy.weights(policy.init(skills)) for method, policy in built.items()}
    assert weights["target-only"].tolist() == [0, 0, 1]
    assert weights["skill-stratified"].tolist() == [1 / 3] * 3
    digits = SETTINGS["fine-tuning: addition, skill 1"]
    skills = methods.names_of(digits, digits.trained)
    policy = methods.policy_of(digits, "skill-stratified", skills, tmp_path)
    assert policy.weights(policy.init(skills)).tolist() == [0.5, 0.5]
    assert weights["prerequisites"][0] == weights["prerequisites"][1] < weights["prerequisites"][2]


@pytest.mark.long
def test_a_short_run_trains_every_kind_of_method_and_leaves_a_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    methods = ["stratified", "chain", "leave-one-out", "refresh"]
    run_all([NAME], [0], methods, tmp_path, workers=2, device="cpu", changes={"steps": 36})
    summary = measures.summary(NAME, [0, 1], tmp_path, {"steps": 36})
    assert summary["seeds"] == summary["methods"]["chain"]["seeds"] == [0] and list(summary["methods"]) == [
        "stratified",
        "chain",
        "leave-one-out",
        "refresh",
    ]
    rows = {method: entry["by_seed"][0] for method, entry in summary["methods"].items()}
    assert (
        rows["stratified"]["overhead_steps"]
        == 0
        < rows["chain"]["overhead_steps"]
        < rows["leave-one-out"]["overhead_steps"]
    )
    assert all(0.3 < row["area"] < 4 for row in rows.values())
    measures.print_setting(NAME, summary)
    assert "| leave-one-out | 1 | never; never to never; 1 |" in capsys.readouterr().out
    drawn = draw_setting(NAME, 0, tmp_path, tmp_path, {"steps": 36})
    assert drawn is not None and drawn.stat().st_size > 10_000


def test_a_training_ends_when_its_loss_has_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SETTLED_LOSS", 100.0)
    name = "fine-tuning: ordered LEGO, skill 3"
    run_all([name], [0], ["target-only"], tmp_path, workers=1, device="cpu", changes={"steps": 36})
    record = json.loads(
        (tmp_path / "records" / f"{training.task_key('train', name, 0, 'target-only')}.json").read_text()
    )
    assert len(record["losses"]) == training.SETTLED_EVALUATIONS
    assert len(record["weights"]) == 3  # three of six rounds, of six steps each
    figures = measures.summary(name, [0], tmp_path, {"steps": 36})["methods"]["target-only"]["by_seed"][0]
    assert figures["num_steps"] == 18


def _record(work: Path, seed: int, method: str, loss: float) -> None:
    record = {
        "losses": [{"a": loss}] * 61,
        "accuracy": {"a": 1.0},
        "mean_accuracy": 1.0,
        "reads_losses": False,
        "cpu_s": 0.0,
    }
    (work / "records").mkdir(parents=True, exist_ok=True)
    (work / "records" / f"train-ordered-LEGO-k5-{seed}-{method}.json").write_text(json.dumps(record))


def test_a_table_goes_on_from_a_former_one_whose_records_are_gone(tmp_path: Path) -> None:
    old, new, whole = tmp_path / "old", tmp_path / "new", tmp_path / "whole"
    for seed, stratified, odm in ((0, 0.3, 0.2), (1, 0.4, 0.5)):
        for work in (old, whole):
            _record(work, seed, "stratified", stratified)
        for work in (new, whole):
            _record(work, seed, "odm", odm)
    former = json.loads(json.dumps(measures.summary(NAME, [0, 1], old, {})))
    summary = measures.summary(NAME, [0, 1], new, {}, former)
    assert summary == measures.summary(NAME, [0, 1], whole, {})
    assert summary["methods"]["odm"]["against_baseline"]["area"]["lower"] == 1
    assert measures.summary(NAME, [1], new, {}, former)["methods"]["stratified"]["seeds"] == [1]
    _record(new, 0, "stratified", 0.1)  # the method was trained again, and the new record counts
    assert measures.summary(NAME, [0, 1], new, {}, former)["methods"]["stratified"]["by_seed"][0]["area"] == 0.1
    assert draw_setting(NAME, 1, new, tmp_path, {}) is None
    with pytest.raises(ValueError, match="ordered LEGO k=5: the former table has another lr;"):
        measures.summary(NAME, [0], new, {"lr": 0.5}, former)


def test_a_graph_of_several_seeds_is_the_mean_of_their_effects_and_all_of_them_are_paid_for() -> None:
    skills = ("a", "b", "c")
    first = SkillGraph(skills, skills, [[0.4, 0.4, 0.1], [-0.3, 0.2, 0.1], [0.0, 0.0, 0.3]])
    second = SkillGraph(skills, skills, [[0.2, 0.0, 0.1], [0.1, 0.2, 0.1], [0.0, 0.0, 0.1]])
    assert methods.mean_graph([first]).edges.tolist() == [[1, 0.5, 0.125], [0, 1, 0.125], [0, 0, 1]]
    assert methods.mean_graph([first, second]).edges.tolist() == [[1, 0.5, 0.25], [0, 1, 0.25], [0, 0, 1]]
    record = {
        "losses": [{"a": 1.0}] * 61,
        "accuracy": {"a": 1.0},
        "mean_accuracy": 1.0,
        "reads_losses": False,
        "cpu_s": 0.0,
    }
    cost = {"num_samples": 640, "num_evaluations": 0}
    rows = [measures.measures(SETTINGS[NAME], "linear", record, [cost] * number) for number in (0, 1, 5)]
    assert [row["overhead_steps"] for row in rows] == [0, 10, 50]


def test_the_comparison_counts_pairs_and_takes_never_as_longer_than_any_number_of_steps() -> None:
    def rows(areas: list[float], steps: list[int | None]) -> list[dict[str, float | None]]:
        return [
            {"area": area, "final_loss": 0.0, "steps_to_target": reached}
            for area, reached in zip(areas, steps, strict=True)
        ]

    theirs = rows([0.3, 0.3, 0.3, 0.3, 0.3, 0.3], [100, 100, None, None, 100, 100])
    ours = rows([0.2, 0.21, 0.22, 0.23, 0.24, 0.25], [50, 75, 100, None, None, 75])
    comparisons = measures.compared(ours, theirs)
    assert comparisons["area"] == {"mean_difference": -0.075, "lower": 6, "higher": 0, "p": 0.03125}  # 2 / 2**6
    assert comparisons["final_loss"] == {"mean_difference": 0.0, "lower": 0, "higher": 0, "p": None}
    assert (comparisons["steps_to_target"]["lower"], comparisons["steps_to_target"]["higher"]) == (4, 1)
    assert comparisons["steps_to_target"]["mean_difference"] is None


def test_settings_are_put_together_by_relative_differences_where_all_skills_are_trained_and_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def summary_of(name: str, **areas: list[float]) -> dict[str, object]:
        rows = {method: [{"area": area} for area in of_seed] for method, of_seed in areas.items()}
        methods = {method: {"seeds": list(range(len(of_seed))), "by_seed": of_seed} for method, of_seed in rows.items()}
        return {"setting": vars(SETTINGS[name]), "methods": methods}

    settings = {
        "easy": summary_of("shuffled LEGO k=3", stratified=[0.2, 0.4, 0.4], chain=[0.1, 0.2]),
        "hard": summary_of("ordered LEGO k=5", stratified=[4.0, 4.0, 4.0, 4.0], chain=[3.0, 3.0, 2.0, 6.0], odm=[5.0]),
        "other": summary_of("fine-tuning: ordered LEGO, skill 3", stratified=[1.0], chain=[9.0]),
        "far": summary_of("out of domain: chains of 3 from chains of 5", stratified=[1.0], chain=[9.0]),
        "text": summary_of("real text: sources", stratified=[1.0], identity=[9.0]),
    }
    together = measures.pooled(settings)
    chain = together.pop("chain")
    assert chain.pop("p_holm") == chain["p"]  # no correction, because only one method is tested
    assert chain.pop("p") == pytest.approx(0.19, abs=0.06)
    # A half twice, then -1/4, -1/4, -1/2 and +1/2.
    assert chain == {"num_pairs": 6, "num_settings": 2, "mean_difference": -0.25, "lower": 5}
    assert together == {
        "odm": {"num_pairs": 1, "num_settings": 1, "mean_difference": 0.25, "lower": 0, "p": None, "p_holm": None}
    }
    measures.print_pooled(together)
    assert "| odm | 1 | 1 | +25.0 % | 0 |  |  |" in capsys.readouterr().out


def test_p_values_are_corrected_for_the_number_of_methods() -> None:
    setting = vars(SETTINGS["ordered LEGO k=5"])
    areas = {
        "stratified": [1.0] * 8,
        "better": [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.85, 0.75],  # lower on all: p = 2 / 2**8, times 3
        "worse": [1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 0.9, 1.8],  # one rank of 36 against: p = 4 / 2**8, times 2
        "alike": [1.1, 0.88, 1.3, 0.69, 1.5, 0.51, 1.7, 0.31],
    }
    rows = {
        method: {"seeds": list(range(8)), "by_seed": [{"area": area} for area in of_seeds]}
        for method, of_seeds in areas.items()
    }
    figures = measures.pooled({"one": {"setting": setting, "methods": rows}})
    assert [figures["better"][p] for p in ("p", "p_holm")] == pytest.approx([2 / 256, 6 / 256], abs=1e-4)
    assert [figures["worse"][p] for p in ("p", "p_holm")] == pytest.approx([4 / 256, 8 / 256], abs=1e-4)
    assert figures["alike"]["p_holm"] == figures["alike"]["p"] > 0.5


def test_edges_along_the_chain_are_the_forward_share_of_the_positive_ones() -> None:
    assert measures.forward_share(np.array([[1.0, 0.3, -1.0], [0.1, 1.0, 0.2], [0.0, -0.5, 1.0]])) == pytest.approx(
        0.833
    )
    assert measures.forward_share(np.eye(3)) is None


def test_a_setting_of_real_text_asks_for_the_folder_of_the_corpora(tmp_path: Path) -> None:
    text = next(name for name, setting in SETTINGS.items() if setting.is_text)
    command = [sys.executable, "-m", "benchmarks.skillit", "run", "--work", str(tmp_path), "--settings", text]
    refused = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert refused.returncode == 2
    sentence = f"the setting {text!r} reads real text from a folder {SETTINGS[text].corpus!r}, and no --corpora was given. Give "
    assert sentence in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", ["-1", "0", str(ROUNDS - 1)])
def test_fewer_steps_than_rounds_are_refused_in_a_sentence(tmp_path: Path, steps: str) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.skillit",
        "run",
        "--work",
        str(tmp_path),
        "--settings",
        NAME,
        "--steps",
        steps,
    ]
    refused = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].endswith(
        f"--steps {steps}: give {ROUNDS} or more, because a training has {ROUNDS} rounds of at least a step."
    )
    assert not list(tmp_path.iterdir())
