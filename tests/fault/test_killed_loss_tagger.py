"""`tag loss` that is killed in its trials or in its last stage and repeated gives the bytes of an undisturbed run."""

import functools
import signal
from pathlib import Path
from typing import Any

import pytest

from skillshard.taggers.losses import scores
from tests.commands import finish, marked, start, works
from tests.conftest import tree
from tests.fault.test_killed import kill_and_see_all_end, num_files, start_held, wait_until
from tests.unit.test_loss_tagger import small_corpus


@pytest.mark.long
def test_killed_in_the_middle_of_a_run_it_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    corpus, out = small_corpus(tmp_path / "corpus"), tmp_path / "killed"
    options = (
        "--skills",
        2,
        "--trials",
        2,
        "--checkpoints",
        20,
        "--steps",
        80,
        "--fitting-samples",
        100,
        "--lr",
        0.003,
    )
    options += ("--segment-at", ",.", "--answer-after", "= ", "--device", "cpu", "--workers", 1)
    process = start("tag", "loss", corpus, "--out", out, *options, marker=str(tmp_path))
    runs = out / ".work" / "scratch" / "kept" / "model" / "runs"
    wait_until(lambda: num_files(runs) >= 8 or process.poll() is not None, timeout_s=120)
    kill_and_see_all_end(process, str(tmp_path))
    checkpoints = set(runs.rglob("checkpoint-*.npy"))
    assert 1 <= len(checkpoints) < 40, "killed too early or too late to show anything"
    assert not (out / "tags.json").exists()
    last = {
        max(run.glob("checkpoint-*.npy")) for run in runs.iterdir()
    }  # the last checkpoint may lack the state of the optimizer
    before = {path: path.stat().st_mtime_ns for path in checkpoints - last}
    again = start("tag", "loss", corpus, "--out", out, *options, marker=str(tmp_path))
    assert finish(again, timeout_s=240).code == 0
    works("tag", "loss", corpus, "--out", tmp_path / "whole", *options)
    assert tree(out) == tree(tmp_path / "whole")
    assert before == {path: (out / path.relative_to(runs.parents[1])).stat().st_mtime_ns for path in before}, (
        "trained again"
    )
    works("verify", out)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_killed_in_the_last_stage_it_scores_no_finished_rows_again_and_ends_in_the_same_bytes(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = small_corpus(tmp_path / "corpus", num=6000), tmp_path / "killed"
    options = ("--skills", 2, "--trials", 2, "--checkpoints", 4, "--steps", 40, "--fitting-samples", 100, "--lr", 0.003)
    options += ("--segment-at", ",.", "--answer-after", "= ", "--device", "cpu", "--workers", 1)
    works("tag", "loss", corpus, "--out", tmp_path / "whole", *options)

    records = out / ".work" / "records" / "score"
    # Two records, and the third one before it has its name.
    process = start_held("tag", "loss", corpus, "--out", out, *options, folder=records, num=3, marker=str(tmp_path))
    wait_until(lambda: len([*records.glob("*.json")]) >= 2 or process.poll() is not None, timeout_s=120)
    process.send_signal(number)
    stopped = finish(process, timeout_s=240)
    wait_until(lambda: not marked(str(tmp_path)))
    finished = {path.stem for path in records.glob("*.json")}
    assert 2 <= len(finished) < 6, "killed too early or too late to show anything"
    assert not (out / "tags.json").exists()
    if number == signal.SIGTERM:
        assert f"stopped by SIGTERM in the stage 'scoring', {len(finished)} of 6 done" in stopped.err

    scored = []
    score_task = scores.score_task

    @functools.wraps(score_task)
    def counted(**arguments: Any) -> Any:
        scored.append(f"{arguments['partition'].index:06d}-{arguments['number']:06d}")
        return score_task(**arguments)

    monkeypatch.setattr(scores, "score_task", counted)
    works("tag", "loss", corpus, "--out", out, *options)
    assert finished.isdisjoint(scored) and len(finished) + len(scored) == 6
    assert tree(out) == tree(tmp_path / "whole")
