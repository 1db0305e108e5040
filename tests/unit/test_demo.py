"""The demo at a small size: every part of it, its outputs, and its second run."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from skillshard.cli import app
from skillshard.demo import MethodResult, prepare, summary
from skillshard.fitting.finished import gather_runs
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.records import open_records, verify_ledger
from skillshard.shards.read import ShardSet
from tests.conftest import tree

SMALL = ["--k", "2", "--samples", "6000", "--steps", "120"]


def test_the_demo_goes_the_whole_way_and_finds_itself_finished(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    first = CliRunner().invoke(app, ["demo", "--out", str(out), *SMALL])
    assert first.exit_code == 0, first.output
    assert "natural" in first.output and "stratified" in first.output and "skill-it" in first.output
    assert "Not shown: that SKILL-IT beats stratified." in first.output
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    weights = {}
    for method in ("natural", "stratified", "skill-it"):
        ledger = DirectoryLedger(out / "runs" / method)
        assert verify_ledger(ledger) == []
        records = open_records(ledger)
        assert (records.rounds.num(), records.observations.num()) == (6, 60)
        last = records.rounds.get(5)
        assert last is not None
        weights[method] = last.weights
    assert weights["stratified"] == [0.5, 0.5]
    assert abs(weights["natural"][0] - 3 / 8) < 0.02
    assert weights["skill-it"] != weights["stratified"]
    assert len(gather_runs([str(out / "runs")])) == 3, "nothing but ledgers lies there"
    before = tree(out)
    again = CliRunner().invoke(app, ["demo", "--out", str(out), *SMALL])
    assert again.exit_code == 0
    assert tree(out) == before


@pytest.mark.parametrize("k", [2, 8])
def test_the_smallest_corpus_that_the_demo_takes_keeps_samples_to_train_on(tmp_path: Path, k: int) -> None:
    prepare(tmp_path, k=k, num_samples=2000, seed=0, on_stage=lambda *_: lambda *_: None)
    shards = ShardSet.open(tmp_path / "shards")
    assert len(shards.skills) == k
    assert all(len(samples) > 0 for split in (shards.train, shards.holdout) for samples in split.values())


@pytest.mark.parametrize(
    ("live", "fixed", "sentence"),
    [
        (None, None, "Neither SKILL-IT nor stratified got there: give more `steps`."),
        (40, None, "SKILL-IT got there sooner than stratified."),
        (None, 40, "SKILL-IT got there later than stratified."),
        (40, 40, "SKILL-IT got there as soon as stratified."),
    ],
)
def test_the_summary_compares_only_what_was_reached(
    tmp_path: Path, live: int | None, fixed: int | None, sentence: str
) -> None:
    results = [
        MethodResult(method, losses={}, accuracies={}, steps_to_target=steps, cpu_s=1.0)
        for method, steps in (("natural", None), ("stratified", fixed), ("skill-it", live))
    ]
    assert f". {sentence} The weights of SKILL-IT" in summary(results, tmp_path, steps=60)


def test_a_demo_with_other_arguments_needs_another_directory(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"k": 2, "num_samples": 6000, "steps": 120, "seed": 0}')
    (tmp_path / "corpus").mkdir()
    found = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--k", "3", *SMALL[2:]])
    assert found.exit_code == 1
    assert "holds a demo with other arguments (k: 2 -> 3). Choose another `out`." in str(found.exception)
