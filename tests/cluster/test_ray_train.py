"""Ray Train: a worker and the driver are killed, and the union of the workers is the global stream on any number of workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.records import open_records
from skillshard.shards.read import ShardSet
from skillshard.storage import read_json
from tests.adapters.processes import records
from tests.adapters.test_ddp import STEPS, check_union
from tests.conftest import REPOSITORY
from tests.examples.test_examples import QUIET, check_run, commands, words_of
from tests.ray_cluster import HUNG_S

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning"),
]


def environment(cluster: tuple[str, str]) -> dict[str, str]:
    return {**os.environ, **QUIET, "RAY_ADDRESS": cluster[0]}


def start(cluster: tuple[str, str], shards: ShardSet, folder: Path, *, workers: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "tests/cluster/ray_trainer.py", shards.root, folder, STEPS, workers]
    with (folder / f"driver-{workers}.log").open("wb") as log:
        return subprocess.Popen(
            [*map(str, command)], cwd=REPOSITORY, env=environment(cluster), stdout=log, stderr=subprocess.STDOUT
        )


def until_step(folder: Path, driver: "subprocess.Popen[bytes]", step: int) -> None:
    """Wait until rank 0 has taken a step."""
    end = time.monotonic() + HUNG_S
    while max((record["step"] for record in records(folder / "rank-0.jsonl")), default=0) < step:
        assert driver.poll() is None and time.monotonic() < end, _logs(folder)
        time.sleep(0.02)


def _logs(folder: Path) -> str:
    return "".join(path.read_text()[-6000:] for path in folder.glob("driver-*.log"))


def test_a_killed_worker_is_replaced_and_a_killed_run_goes_on_with_another_number_of_workers(
    cluster: tuple[str, str], shards: ShardSet, tmp_path: Path
) -> None:
    folder = tmp_path / "ray"
    folder.mkdir()
    driver = start(cluster, shards, folder, workers=2)
    until_step(folder, driver, 12)
    assert [read_json(folder / f"pid-{rank}.json")["world_size"] for rank in range(2)] == [2, 2]
    os.kill(read_json(folder / "pid-1.json")["pid"], signal.SIGKILL)  # Ray Train starts both workers again
    until_step(folder, driver, 24)
    driver.kill()
    driver.wait()
    again = start(cluster, shards, folder, workers=1)
    assert again.wait(timeout=HUNG_S) == 0, _logs(folder)
    assert read_json(folder / "pid-0.json")["world_size"] == 1
    check_union(shards, folder, tmp_path / "reference")
    # A generation for the replaced workers, and a generation for the second start.
    assert open_records(DirectoryLedger(folder / "run")).generation == 2


def test_the_example_of_ray_train_runs_as_its_docstring_says_and_goes_on_with_one_worker(
    cluster: tuple[str, str], shards: ShardSet, tmp_path: Path
) -> None:
    (command,) = commands("ray_train.py")
    outcomes: list[Any] = []
    for steps, workers in ((10, ()), (20, ("--workers", "1"))):
        words = [*words_of(command, shards, tmp_path / "run", steps), *workers]
        outcomes.append(
            subprocess.run(
                words, capture_output=True, text=True, cwd=REPOSITORY, env=environment(cluster), timeout=HUNG_S
            )
        )
        check_run(outcomes[-1], "ray_train.py", tmp_path / "run", steps)
    assert "'step': 20" in outcomes[-1].stdout
    assert open_records(DirectoryLedger(tmp_path / "run")).generation == 1
