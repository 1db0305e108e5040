"""A trainer dies, its loader workers wait on, and the run is resumed at once. The workers disturb nothing and end by themselves."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from skillshard.errors import LedgerError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.run_records import Lag
from skillshard.policies import skill_it
from skillshard.shards.read import ShardSet
from tests.commands import marked
from tests.conftest import REPOSITORY

ROUND, STEP = 64, 32
DYING = """
import json, os, sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from skillshard.shards.read import ShardSet
from skillshard.torch import MixedDataset, collate
from tests.fault.test_orphaned_workers import STEP, build, other_losses

shards, folder, lag, workers, signal = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
mixer = build(ShardSet.open(shards), folder / "run", lag, wait_s=600)
mixer.report(0, other_losses(0))
loader = DataLoader(
    MixedDataset(mixer), batch_size=STEP, num_workers=workers, prefetch_factor=6 if workers else None, collate_fn=collate
)
for step, batch in enumerate(loader, start=1):
    if step == 2:
        mixer.report(2, {"add": 1.0, "carry": 1.0, "negate": 1.0})
        (folder / "checkpoint.json").write_text(json.dumps(mixer.state_dict(step=2)))
    elif step == 4:
        mixer.report(4, other_losses(4))
    if step == 5:
        break
time.sleep(1)  # the workers come to wait for losses
os.kill(os.getpid(), signal)
"""


def build(shards: ShardSet, ledger: Path, lag: Lag, **arguments: object) -> Mixer:
    policy = skill_it(SkillGraph.identity(shards.skills), eta=0.5)
    defaults = {"wait_s": 0.0}
    return Mixer(shards, policy, ledger=ledger, round_draws=ROUND, step_draws=STEP, lag=lag, **(defaults | arguments))  # type: ignore[arg-type]


def losses_at(step: int) -> dict[str, float]:
    return {"add": 0.1 + step / 100, "carry": 5.0 - step / 10, "negate": 1.0}


def other_losses(step: int) -> dict[str, float]:
    """Return the losses of the dying trainer. The losses are opposite, so a round that uses these losses turns the weights round."""
    return {"add": 5.0, "carry": 0.1, "negate": 1.0} if step else losses_at(0)


def go_on(mixer: Mixer, first: int, stop: int) -> list[str]:
    """Train with a report after every second step and losses that depend on the step alone, and return the ids."""
    seen: list[str] = []
    for step in range(first, stop):
        seen += mixer.ids(step * STEP, STEP)
        if (step + 1) % 2 == 0:
            mixer.report(step + 1, losses_at(step + 1))
    return seen


@pytest.mark.parametrize(
    ("lag", "workers", "deadly_signal"),
    [
        (1, 2, signal.SIGKILL),
        ("live", 2, signal.SIGTERM),
        pytest.param(1, 2, signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("live", 2, signal.SIGKILL, marks=pytest.mark.long),
        pytest.param(0, 1, signal.SIGKILL, marks=pytest.mark.long),
        pytest.param(1, 3, signal.SIGKILL, marks=pytest.mark.long),
        pytest.param(1, 0, signal.SIGKILL, marks=pytest.mark.long),
    ],
)
def test_workers_of_a_dead_trainer_neither_disturb_the_run_that_took_over_nor_stay(
    shards: ShardSet, tmp_path: Path, lag: Lag, workers: int, deadly_signal: signal.Signals
) -> None:
    marker = uuid.uuid4().hex
    command = [
        *(sys.executable, "-W", "ignore", "-c", DYING),
        *(str(shards.root), str(tmp_path), json.dumps(lag), str(workers), str(int(deadly_signal))),
    ]
    process = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, "SKILLSHARD_TEST": marker}
    )
    assert process.returncode == -deadly_signal, process.stderr
    mixer = build(shards, tmp_path / "run", lag)
    with pytest.warns(UserWarning, match="resumed at draw 64: later losses"):
        mixer.load_state_dict(json.loads((tmp_path / "checkpoint.json").read_text()))
    seen = go_on(mixer, 2, 6)
    end = time.monotonic() + 120
    while marked(marker):  # live workers may write, so the rest of the run comes during and after their lives
        assert time.monotonic() < end, "loader workers outlive their trainer"
        time.sleep(0.1)
    seen += go_on(mixer, 6, 16)
    assert verify_ledger(DirectoryLedger(tmp_path / "run")) == []

    undisturbed = build(shards, tmp_path / "undisturbed", lag)
    undisturbed.report(0, losses_at(0))
    first = undisturbed.ids(0, 2 * STEP)
    undisturbed.report(2, {"add": 1.0, "carry": 1.0, "negate": 1.0})
    assert seen == go_on(undisturbed, 2, 16)
    of_add = [identity for identity in first + seen if identity.startswith("carry")][: len(shards.train["carry"])]
    assert len(set(of_add)) == len(of_add), "no sample comes again before its epoch ends"


def test_a_job_that_still_runs_is_told_that_the_run_was_resumed_elsewhere(shards: ShardSet, tmp_path: Path) -> None:
    old = build(shards, tmp_path / "run", 1)
    old.report(0, losses_at(0))
    go_on(old, 0, 4)
    state = old.state_dict(step=2)
    new = build(shards, tmp_path / "run", 1)
    with pytest.warns(UserWarning, match="resumed at draw 64"):
        new.load_state_dict(state)
    for refused in (lambda: old.report(6, losses_at(6)), lambda: old.round(5)):
        with pytest.raises(LedgerError, match="this run was resumed elsewhere: another process began generation 1"):
            refused()
    go_on(new, 2, 8)
    assert verify_ledger(new.ledger) == []
