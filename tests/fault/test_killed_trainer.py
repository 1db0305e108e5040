"""A trainer with loader workers that is killed by SIGKILL again and again sees the stream of an undisturbed trainer."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.shards.read import ShardSet
from tests.commands import marked
from tests.conftest import REPOSITORY

STEPS = 90
TRAINER = """
import json, os, sys, time, warnings
from pathlib import Path
from torch.utils.data import DataLoader
import skillshard as ss
from skillshard.torch import MixedDataset

shards_at, folder, workers, pause = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
shards = ss.ShardSet.open(shards_at)
policy = ss.policies.skill_it(ss.SkillGraph.chain(shards.skills), eta=1.0, window=2)
mixer = ss.Mixer(shards, policy, ledger=folder / "run", round_draws=40, step_draws=8, lag=1, wait_s=30)
saved = folder / "checkpoint.json"
step = 0
warnings.simplefilter("ignore")
if saved.exists():
    state = json.loads(saved.read_text())
    mixer.load_state_dict(state)
    step = state["step"]
else:
    mixer.restart()
if step == 0:
    mixer.report(0, {skill: 3.0 + at for at, skill in enumerate(shards.skills)})
log = (folder / "log.jsonl").open("a")
for batch in DataLoader(MixedDataset(mixer), batch_size=8, num_workers=workers):
    step += 1
    log.write(json.dumps({"step": step, "draws": batch["draw"].tolist(), "texts": batch["text"]}) + "\\n")
    log.flush()
    if step % 5 == 0:
        mixer.report(step, {skill: 3.0 / (1 + step * (at + 1)) for at, skill in enumerate(shards.skills)})
    if step % 7 == 0:
        part = folder / "part"
        part.write_text(json.dumps(mixer.state_dict(step=step)))
        os.replace(part, saved)
    time.sleep(pause)
    if step == int(sys.argv[5]):
        break
"""


def start(shards: ShardSet, folder: Path, *, workers: int, pause: float, marker: str = "") -> "subprocess.Popen[str]":
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        TRAINER,
        str(shards.root),
        str(folder),
        str(workers),
        str(pause),
        str(STEPS),
    ]
    return subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stderr=subprocess.PIPE, env={**os.environ, "SKILLSHARD_TEST": marker}
    )


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def stream(folder: Path) -> list[tuple[list[int], list[str]]]:
    """Return draws and texts of every step. A step that is repeated after a kill must have the same draws and texts."""
    steps: dict[int, tuple[list[int], list[str]]] = {}
    for line in (folder / "log.jsonl").read_text().splitlines():
        if not line.endswith("}"):
            continue  # the kill cut the line
        record = json.loads(line)
        seen = (record["draws"], record["texts"])
        assert steps.setdefault(record["step"], seen) == seen
    assert sorted(steps) == list(range(1, STEPS + 1))
    return [steps[step] for step in sorted(steps)]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_trainer_killed_many_times_sees_the_same_stream(shards: ShardSet, tmp_path: Path, workers: int) -> None:
    with start(shards, tmp_path / "whole", workers=0, pause=0) as process:
        assert process.wait(120) == 0, process.stderr and process.stderr.read()
    rng, marker, kills, code = random.Random(workers), uuid.uuid4().hex, 0, -1
    log = tmp_path / "killed" / "log.jsonl"
    while code != 0:
        begun = num_lines(log)
        more = rng.randrange(1, 30)
        with start(shards, tmp_path / "killed", workers=workers, pause=0.02, marker=marker) as process:
            while process.poll() is None and kills < 5:
                if num_lines(log) >= begun + more:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.01)
            code = process.wait(120)
            assert code in (0, -signal.SIGKILL), process.stderr and process.stderr.read()
    assert kills >= 3
    assert stream(tmp_path / "killed") == stream(tmp_path / "whole")
    assert verify_ledger(DirectoryLedger(tmp_path / "killed" / "run")) == []
    end = time.monotonic() + 120
    while marked(marker):
        assert time.monotonic() < end, "loader workers outlive their trainer"
        time.sleep(0.1)
