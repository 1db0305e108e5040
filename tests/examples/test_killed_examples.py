"""Every script is killed by SIGKILL, and the same command continues the run on another number of processes."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.records import open_records
from skillshard.mixing.round_records import ObservationRecord
from skillshard.shards.read import ShardSet
from tests.adapters.test_torchtitan import TWIN
from tests.conftest import REPOSITORY
from tests.examples.test_examples import ELSEWHERE, EXAMPLES, ON_RAY, OWN_CORPUS, QUIET, processes_with

pytestmark = pytest.mark.long
LIMIT_S = 300


class Script(NamedTuple):
    """A script whose run is killed and continued.

    Attributes:
        name: File in examples.
        every: Number of steps between two reports.
        before: Words of the command that is killed, in place of "python" and after the script.
        after: The same words of the command that continues.
        step_draws: Number of draws of a step. None: the steps of the script count blocks.
        begins: Whether the script reports losses before its first step.
        looks: Whether the trainer reads a sample before the run restarts, so that the start begins a generation.
    """

    name: str
    every: int
    before: tuple[str, str] = ("", "")
    after: tuple[str, str] = ("", "")
    step_draws: int | None = 32
    begins: bool = True
    looks: bool = False


TORCHRUN_1, TORCHRUN_2 = ("torchrun 1", ""), ("torchrun 2", "")
SCRIPTS = [
    Script("ddp.py", 10, TORCHRUN_2, TORCHRUN_1),
    Script("get_batch.py", 5, TORCHRUN_2, step_draws=None, begins=False),
    Script("grain_loader.py", 10),
    Script("huggingface_trainer.py", 5, TORCHRUN_2, step_draws=8),
    Script("huggingface_trainer.py", 5, after=TORCHRUN_2, step_draws=8),
    Script("lightning_trainer.py", 10, TORCHRUN_2),
    Script("packed_tokens.py", 5, step_draws=None),
    Script("plain_numpy.py", 10),
    Script("pytorch.py", 10),
    Script("torchtitan_loader.py", 10, TORCHRUN_2, TORCHRUN_1, step_draws=None, begins=False),
    Script("training_losses.py", 10, TORCHRUN_2, step_draws=8, begins=False),
    Script("trl_sft.py", 5, TORCHRUN_2, step_draws=8, looks=True),
    Script("webdataset_loader.py", 10, ("", "--workers 2"), ("", "--workers 0")),
]


def command_of(name: str, shards: ShardSet, run_dir: Path, steps: int, around: tuple[str, str]) -> list[str]:
    launcher, further = around
    words = [sys.executable]
    if launcher:
        words += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", launcher.split()[1]]
    options = ["--shards", shards.root, "--run-dir", run_dir, "--steps", steps, *further.split()]
    return [*words, str(REPOSITORY / "examples" / name), *map(str, options)]


def environment_of(name: str) -> dict[str, str]:
    # The class of torchtitan has a stand-in, because torchtitan needs an environment of its own.
    paths = [str(REPOSITORY), *([str(TWIN)] if name in ELSEWHERE else [])]
    return {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(paths)}


def ledger_of(name: str, run_dir: Path) -> DirectoryLedger:
    return DirectoryLedger(run_dir / "ledger" if name in ELSEWHERE else run_dir)


def observations(name: str, run_dir: Path) -> list[ObservationRecord]:
    ledger = ledger_of(name, run_dir)
    if not (ledger.root / "run.json").exists():
        return []
    return [record for record in open_records(ledger).observations if record is not None]


def has_checkpoint(run_dir: Path) -> bool:
    places = (
        "checkpoint.pt",
        "checkpoint.npz",
        "checkpoint/newest",
        "checkpoints/last.ckpt",
        "checkpoints/*/mixer.json",
    )
    return any(any(run_dir.glob(place)) for place in places)


def kill_after_a_checkpoint(words: list[str], environment: dict[str, str], name: str, run_dir: Path) -> None:
    """Start a command, and kill all its processes at a report after its first checkpoint."""
    with (run_dir.parent / "killed.log").open("w") as log:
        process = subprocess.Popen(
            words, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    end, reports = time.monotonic() + LIMIT_S, None
    while reports is None or len(observations(name, run_dir)) <= reports:
        assert process.poll() is None and time.monotonic() < end, (run_dir.parent / "killed.log").read_text()[-3000:]
        if reports is None and has_checkpoint(run_dir):
            reports = len(observations(name, run_dir))
        time.sleep(0.01)
    # torchrun gives its processes sessions of their own, so a signal to the group would not reach the processes.
    while pids := processes_with(str(run_dir)):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()  # a dead child stays in the list of processes until its parent asks for the outcome
        time.sleep(0.01)
    process.wait()


def test_every_script_with_losses_is_killed() -> None:
    elsewhere = {
        *OWN_CORPUS,
        "stateful_dataloader.py",
    }  # test_examples.py kills the former, and the latter reports no losses
    assert {script.name for script in SCRIPTS} == {*EXAMPLES, *ELSEWHERE} - elsewhere
    assert {"ray_train.py"} == ON_RAY  # tests/cluster/test_ray_train.py kills workers and the driver


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: f"{script.name}-{script.before[0] or 'python'}")
def test_a_killed_script_continues_on_another_number_of_processes(
    shards: ShardSet, tmp_path: Path, script: Script
) -> None:
    name, every, step_draws = script.name, script.every, script.step_draws
    if name == "trl_sft.py":
        pytest.importorskip(
            "trl", reason="TRL needs newer releases of its requirements than the lowest ones of skillshard"
        )
    run_dir, environment = tmp_path / "run", environment_of(name)
    kill_after_a_checkpoint(command_of(name, shards, run_dir, 100_000, script.before), environment, name, run_dir)
    done = (len(observations(name, run_dir)) - script.begins) * every
    steps = done + 4 * every
    again = subprocess.run(
        command_of(name, shards, run_dir, steps, script.after),
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert verify_ledger(ledger_of(name, run_dir)) == []
    records = observations(name, run_dir)
    assert len(records) == script.begins + steps // every
    if step_draws is not None:
        first = 0 if script.begins else every
        assert [record.draw for record in records] == [step * step_draws for step in range(first, steps + 1, every)]
    assert all(set(record.losses) == set(shards.skills) for record in records)
    # The losses of every skill fall from the first report to the last report. The run has learned over the kill, and not begun again.
    assert all((records[-1].losses[skill] or 0.0) < (records[0].losses[skill] or 0.0) for skill in shards.skills)
    # The second command reports the steps after its checkpoint alone.
    assert 4 <= again.stdout.count("'add': ") < len(records)
    assert open_records(ledger_of(name, run_dir)).generation == 1 + script.looks
