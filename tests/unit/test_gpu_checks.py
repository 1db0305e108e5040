"""The checks of a GPU work on a machine without a GPU: kills, corpora and comparisons. The GPU itself is `python -m benchmarks.gpu`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import CHECKS, EXAMPLES, agreement_of_skills
from benchmarks.gpu_corpora import samples_of, write_topics
from benchmarks.killed_trainings import devices_of
from benchmarks.processes import kill_when
from tests.conftest import REPOSITORY

STARTS_A_SESSION = """
import os, subprocess, sys, time
if sys.argv[2:]:
    os.setsid()
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(600)
subprocess.run([sys.executable, sys.argv[0], sys.argv[1], "child"])
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] != "Z"  # a dead process whose parent has not waited yet


def test_a_kill_reaches_children_in_sessions_of_their_own(tmp_path: Path) -> None:
    """The processes of torchrun are in sessions of their own, and an orphan would train on."""
    script, written = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(STARTS_A_SESSION)
    command = [sys.executable, str(script), str(written)]
    assert kill_when(command, lambda: written.exists() and written.read_text() != "")
    end = time.monotonic() + 120
    while is_alive(int(written.read_text())) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(int(written.read_text()))


def test_a_command_that_ends_before_its_kill_is_reported() -> None:
    assert not kill_when([sys.executable, "-c", "pass"], lambda: False)


def test_topics_are_written_equally_and_their_files_are_read_in_turn(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_topics(tmp_path / name, 3)
    samples = list(samples_of(tmp_path / "one"))
    assert samples == list(samples_of(tmp_path / "two"))
    assert [sample["id"] for sample in samples[:9]] == [*(f"{topic}-0" for topic in range(8)), "0-1"]
    assert len({sample["meta"]["topic"] for sample in samples}) == 8 and len(samples) == 24
    assert all(500 < len(sample["text"]) < 2000 for sample in samples)


def test_taggings_are_compared_on_the_samples_of_the_second() -> None:
    first = {"a": "x", "b": "x", "c": "y"}
    assert agreement_of_skills(first, {"a": "1", "c": "2"}) == {"accuracy": 1.0, "ari": 1.0}
    with pytest.raises(SystemExit, match="1 ids have no tag, such as 'd'"):
        agreement_of_skills(first, {"d": "1"})


def test_the_device_of_a_checkpoint_is_read_from_its_newest_file(tmp_path: Path) -> None:
    import torch

    torch.save(
        {"model": {"weights": torch.zeros(2, device="meta")}, "step": torch.tensor(3.0)}, tmp_path / "checkpoint.pt"
    )
    assert devices_of(tmp_path) == ["meta"]


def test_every_example_that_trains_is_checked_and_an_unknown_check_is_refused() -> None:
    trained = {words[-1] for words in EXAMPLES.values()}
    all_examples = {f"examples/{path.name}" for path in (REPOSITORY / "examples").glob("*.py")}
    # These examples have no model of PyTorch, start a Ray, train on a corpus of their own, or need an environment of their own.
    names = (
        "plain_numpy",
        "stateful_dataloader",
        "grain_loader",
        "ray_train",
        "image_captions",
        "token_ids",
        "torchtitan_loader",
    )
    without = {f"examples/{name}.py" for name in names}
    assert trained == all_examples - without
    command = [sys.executable, "-m", "benchmarks.gpu", "--work", "W", "--checks", "graphs"]
    refused = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert refused.returncode == 2 and "invalid choice: 'graphs'" in refused.stderr
    assert set(CHECKS) >= {"encoder", "loss", "graph", "throughput"}


def test_the_kept_results_name_their_card_and_the_page_has_their_numbers() -> None:
    results = REPOSITORY / "benchmarks" / "results"
    calls = json.loads((results / "gpu-h200.json").read_text())["calls"]
    assert {call["machine"]["gpu"] for call in calls} == {"NVIDIA H200"}
    page = (REPOSITORY / "docs" / "evidence" / "on-a-gpu.md").read_text()
    methods = json.loads((results / "skillit-125m-h200.json").read_text())["settings"]["shuffled LEGO k=3"]["methods"]
    for method in methods.values():
        areas = [row["area"] for row in method["by_seed"]]
        assert len(areas) == 10 and f"| {sum(areas) / 10:.3f} ± " in page
    (rows,) = (call["checks"]["throughput"]["rows"] for call in calls if "throughput" in call["checks"])
    for row in rows.values():
        assert row["wait_s"] < row["step_s"] + 1e-5
    assert f"{1000 * rows['one batch again and again']['step_s']:.1f} ms" in page
