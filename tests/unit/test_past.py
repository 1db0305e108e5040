"""`skillshard at`, `seen` and `mix --ledger`: the past of a run on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from skillshard.errors import LedgerError
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import open_records
from skillshard.mixing.steps import Steps
from skillshard.policies import loss_order, stratified
from skillshard.shards.read import ShardSet
from tests.commands import fails, skillshard, works

STEP_DRAWS = 16


def losses(shards: ShardSet, value: float) -> dict[str, float]:
    return dict.fromkeys(shards.skills, value)


@pytest.fixture
def run(shards: ShardSet, tmp_path: Path) -> Path:
    """A run of a policy that reads losses, with reports at steps 0, 4, 8 and 12."""
    mixer = Mixer(shards, loss_order(eta=0.5), ledger=tmp_path / "run", round_draws=64, step_draws=STEP_DRAWS)
    for step in range(13):
        if step % 4 == 0:
            mixer.report(step, losses(shards, 3.0 - step / 10))
        mixer.batch(step * STEP_DRAWS, STEP_DRAWS)
    return tmp_path / "run"


def stream(run: Path, shards: ShardSet, num: int) -> list[dict[str, Any]]:
    listed = works("mix", shards.root, "--ledger", run, "--draws", num)
    return [json.loads(line) for line in listed.splitlines()]


def test_mix_lists_the_draws_of_a_run_of_any_policy(run: Path, shards: ShardSet) -> None:
    mixer = Mixer(shards, loss_order(eta=0.5), ledger=run, round_draws=64, step_draws=STEP_DRAWS, fields=("id",))
    batch = mixer.batch(0, 200)
    expected = [
        {"draw": draw, "skill": skill, "id": sample_id}
        for draw, skill, sample_id in zip(range(200), batch.skill, batch.fields["id"], strict=True)
    ]
    assert stream(run, shards, 200) == expected
    outcome = skillshard("mix", shards.root, "--ledger", run.parent / "typo", "--draws", 3)
    assert outcome.code == 2 and "holds no run. Give the ledger of a run to list its draws" in " ".join(
        outcome.err.replace("│", "").split()
    )
    assert not (run.parent / "typo").exists()
    outcome = skillshard("mix", shards.root, "--ledger", run, "--draws", 3, "--first", 10_000)
    assert (outcome.code, outcome.out) == (0, "") and "note: the run has decided 256 draws." in outcome.err
    assert "is the ledger of another run" in fails("mix", shards.root, "--ledger", run, "--draws", 3, "--seed", 1)


def test_at_shows_the_samples_of_a_step_and_each_rank_has_its_share(run: Path, shards: ShardSet) -> None:
    listed = stream(run, shards, 12 * STEP_DRAWS)
    whole = [json.loads(line) for line in works("at", run, "--step", 7, "--json").splitlines()]
    assert [(sample["draw"], sample["id"]) for sample in whole] == [
        (sample["draw"], sample["id"]) for sample in listed[96:112]
    ]
    of_ranks = [
        json.loads(line)
        for rank in range(4)
        for line in works("at", run, "--step", 7, "--rank", rank, "--world-size", 4, "--json").splitlines()
    ]
    assert sorted(sample["draw"] for sample in of_ranks) == list(range(96, 112))
    assert [sample["draw"] for sample in of_ranks[:4]] == [96, 100, 104, 108]
    assert works("at", run, "--step", 7, "--batch-size", 4, "--world-size", 4, "--rank", 1).startswith("draw 97,")


def test_at_counts_rows_as_ids_made_of_rows_and_bad_rows_do(tmp_path: Path) -> None:
    rows = [f"sum number {number},{'even' if number % 2 else 'odd'}" for number in range(1, 41)]
    (tmp_path / "sums.csv").write_text("\n".join(["text,kind", *rows]) + "\n")
    tags, folder, ledger = tmp_path / "tags", tmp_path / "shards", tmp_path / "run"
    works("tag", "metadata", tmp_path / "sums.csv", "--id-from-row", "--field", "kind", "--out", tags)
    works("shard", tmp_path / "sums.csv", "--tags", tags, "--out", folder)
    shards = ShardSet.open(folder)
    Mixer(shards, stratified(), ledger=ledger, round_draws=32, step_draws=STEP_DRAWS).batch(0, 32)
    for sample in map(json.loads, works("at", ledger, "--draw", 0, "--num", 32, "--json").splitlines()):
        number = sample["text"].removeprefix("sum number ")
        assert sample["id"] == f"sums.csv@{number}" and str(sample["row"]) == number
        line = works("at", ledger, "--draw", sample["draw"]).splitlines()[0]
        assert line.endswith(f"sums.csv@{number} (sums.csv, row {number})")


def test_seen_finds_what_at_shows(run: Path) -> None:
    (sample,) = [json.loads(line) for line in works("at", run, "--draw", 130, "--json").splitlines()]
    seen = [json.loads(line) for line in works("seen", run, "--id", sample["id"], "--json").splitlines()]
    expected = {"draw": 130, "step": 130 // STEP_DRAWS + 1, "round": 2, "epoch": sample["epoch"], "run": str(run)}
    assert expected in seen and sample["run"] == str(run)
    assert f"{sample['id']} of skill {sample['skill']}: " in works("seen", run, "--id", sample["id"])


def test_seen_says_that_a_sample_is_held_out(run: Path, shards: ShardSet) -> None:
    held_out = next(iter(next(iter(shards.holdout.values())))).id
    assert "is held out, so no training draws it." in works("seen", run, "--id", held_out)
    assert "no sample of the run's shards has the id 'nobody'" in fails("seen", run, "--id", "nobody")


def test_shards_that_were_moved_are_named_by_an_option(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "S").symlink_to(shards.root)
    Mixer(ShardSet.open(tmp_path / "S"), stratified(), ledger=tmp_path / "run", round_draws=16).batch(0, 16)
    (tmp_path / "S").rename(tmp_path / "moved")
    sentence = fails("at", tmp_path / "run", "--draw", 3)
    assert f"has read the shards at {tmp_path}/S, which cannot be opened" in sentence and "give --shards" in sentence
    assert works("at", tmp_path / "run", "--draw", 3, "--shards", tmp_path / "moved").startswith("draw 3,")
    (tmp_path / "run" / "beside" / "shards.json").unlink()
    assert "has no note of the place of its shards. Give --shards" in fails("at", tmp_path / "run", "--draw", 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "give either --draw or --step"),
        (("--draw", 1, "--step", 1), "give either --draw or --step"),
        (("--draw", 1, "--rank", 1, "--world-size", 2), "--rank belongs to --step"),
        (("--step", 1, "--num", 2), "--num belongs to --draw"),
        (("--step", 1, "--rank", 2, "--world-size", 2), "give --world-size too, a number above the rank"),
        (("--step", 1, "--rank", 0, "--world-size", 3), "the step has 16 draws, which 3 ranks cannot share equally"),
        (("--step", 1, "--batch-size", 8, "--step-draws", 16), "leave out one of the two"),
        (("--draw", 1, "--cache", "c"), "--cache needs the address of the shards: give --shards"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_a_usage_error(
    options: tuple[object, ...], sentence: str, run: Path
) -> None:
    outcome = skillshard("at", run, *options)
    assert outcome.code == 2 and sentence in " ".join(outcome.err.replace("│", " ").split())


def test_the_draws_of_a_step_follow_from_the_reports(shards: ShardSet, tmp_path: Path) -> None:
    """The batch grows from 8 to 24 draws after step 10, so reports lie at steps 0, 5, 10, 12 and 20."""
    mixer = Mixer(shards, stratified(), ledger=tmp_path, round_draws=64, seed=1)
    for step, draw in ((0, 0), (5, 40), (10, 80), (12, 128), (20, 320)):
        mixer.batch(0, max(1, draw))
        mixer.report(step, losses(shards, 1.0), draw=draw)
    steps = Steps(open_records(DirectoryLedger(tmp_path)))
    assert [steps.draws_of(step) for step in (1, 10, 11, 12, 13, 20, 21)] == [
        range(8),
        range(72, 80),
        range(80, 104),
        range(104, 128),
        range(128, 152),
        range(296, 320),
        range(320, 344),
    ]
    for step in range(1, 25):
        assert {steps.step_of(draw) for draw in steps.draws_of(step)} == {step}


def test_a_step_beyond_the_run_is_one_sentence_about_steps(run: Path) -> None:
    works("at", run, "--step", 16)
    assert (
        f"step 17 does not exist: its draws are 256 to 271, and {run} has decided 256 draws, in 4 rounds. Give a step up to 16."
        in fails("at", run, "--step", 17, "--rank", 0, "--world-size", 2)
    )
    assert "step 5,000 does not exist: its draws are 79,984 to 79,999" in fails("at", run, "--step", 5000)


def test_the_last_step_of_a_stream_that_ended_has_the_draws_that_are_left(shards: ShardSet, tmp_path: Path) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=64, repeat="drop")
    total = sum(len(mixer.batch(first, 64)) for first in range(0, mixer.length() or 0, 64))
    num_steps, left = divmod(total, STEP_DRAWS)
    assert left
    options = ("--step-draws", STEP_DRAWS, "--json")
    assert len(works("at", tmp_path / "run", "--step", num_steps, *options).splitlines()) == STEP_DRAWS
    assert len(works("at", tmp_path / "run", "--step", num_steps + 1, *options).splitlines()) == left
    sentence = fails("at", tmp_path / "run", "--step", num_steps + 2, *options)
    assert f"the stream ended after {total} draws. Give a step up to {num_steps + 1}." in sentence


def test_a_step_of_unknown_size_is_one_sentence(shards: ShardSet, tmp_path: Path) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path, round_draws=64)
    mixer.batch(0, 64)
    records = open_records(DirectoryLedger(tmp_path))
    with pytest.raises(LedgerError, match=r"the draws of step 2 are unknown, .* Give `step_draws`"):
        Steps(records).draws_of(2)
    assert Steps(records).step_of(9) is None
    assert Steps(records, 8).draws_of(2) == range(8, 16) and Steps(records, 8).step_of(9) == 2
    mixer.report(3, losses(shards, 1.0), draw=50)
    records = open_records(DirectoryLedger(tmp_path))
    assert Steps(records).step_of(9) is None  # 50 draws are no whole number of draws in each of 3 steps
    with pytest.raises(LedgerError, match=r"step 3 at draw 50 and step 0 at draw 0, which does not fit 8 draws a step"):
        Steps(records, 8).draws_of(2)
    with pytest.raises(LedgerError, match="the first optimizer step is step 1"):
        Steps(records).draws_of(0)
    with pytest.raises(LedgerError, match="at least 1"):
        Steps(records, 0)
