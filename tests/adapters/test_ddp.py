"""Real gloo groups on loopback: the union of the ranks is the global stream, also after kills and with other world sizes."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.shards.read import ShardSet
from skillshard.storage import read_json
from tests.adapters.ddp_trainer import STEP_DRAWS
from tests.adapters.processes import finish, kill, records, start_ranks
from tests.adapters.trainers import expected_texts, reported

STEPS = 40
pytestmark = pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")


def start(shards: ShardSet, folder: Path, *, world_size: int, workers: int, own_interpreters: bool = False) -> Any:
    folder.mkdir(exist_ok=True)
    arguments = [str(shards.root), str(folder), str(STEPS), str(workers)]
    return start_ranks("ddp_trainer", world_size, arguments, folder, own_interpreters=own_interpreters)


def check_union(shards: ShardSet, folder: Path, reference: Path) -> None:
    """Check every step of all ranks together. A step that is repeated after a kill has the same draws."""
    steps: dict[int, dict[int, str]] = {}
    weights: dict[int, list[float]] = {}
    for path in folder.glob("rank-*.jsonl"):
        for record in records(path):
            drawn = steps.setdefault(record["step"], {})
            for draw, text in zip(record["draws"], record["texts"], strict=True):
                assert drawn.setdefault(draw, text) == text
            assert weights.setdefault(record["step"], record["weights"]) == record["weights"]
    expected = expected_texts(shards, reference, steps=STEPS, step_draws=STEP_DRAWS)
    assert sorted(steps) == list(range(1, STEPS + 1))
    for step, drawn in steps.items():
        assert sorted(drawn) == list(range((step - 1) * STEP_DRAWS, step * STEP_DRAWS))
        assert [drawn[draw] for draw in sorted(drawn)] == expected[step - 1]
    # Round 1 uses the losses before the first step.
    assert len({tuple(of_round) for of_round in weights.values()}) == STEPS // 5
    assert verify_ledger(DirectoryLedger(folder / "run")) == []


@pytest.mark.parametrize(("world_size", "workers", "own_interpreters"), [(2, 2, True), (4, 0, False)])
def test_the_union_of_all_ranks_is_the_global_stream(
    shards: ShardSet, tmp_path: Path, world_size: int, workers: int, own_interpreters: bool
) -> None:
    ranks = start(shards, tmp_path / "ddp", world_size=world_size, workers=workers, own_interpreters=own_interpreters)
    assert finish(ranks) == [0] * world_size
    per_rank = [len(records(tmp_path / "ddp" / f"rank-{rank}.jsonl")[0]["draws"]) for rank in range(world_size)]
    assert per_rank == [STEP_DRAWS // world_size] * world_size
    check_union(shards, tmp_path / "ddp", tmp_path / "reference")
    losses = [read_json(tmp_path / "ddp" / f"losses-{rank}.json") for rank in range(world_size)]
    assert set(losses[0]) == set(shards.skills) and len({loss["mean"] for loss in losses[0].values()}) > 1
    assert losses == [losses[0]] * world_size


def test_killed_and_resumed_with_another_world_size_it_is_the_same_stream(shards: ShardSet, tmp_path: Path) -> None:
    folder = tmp_path / "ddp"
    for world_size, until in [(2, 9), (4, 25)]:
        processes = start(shards, folder, world_size=world_size, workers=0)
        end = time.monotonic() + 100
        while max((record["step"] for record in records(folder / "rank-0.jsonl")), default=0) < until:
            assert all(process.poll() is None for process in processes), finish(processes)
            assert time.monotonic() < end
            time.sleep(0.005)
        kill(processes)
    assert finish(start(shards, folder, world_size=3, workers=1)) == [0] * 3
    check_union(shards, folder, tmp_path / "reference")


def until_step(folder: Path, processes: Any, step: int) -> None:
    """Wait until rank 0 has taken a step."""
    end = time.monotonic() + 100
    while max((record["step"] for record in records(folder / "rank-0.jsonl")), default=0) < step:
        assert all(process.poll() is None for process in processes), finish(processes)
        assert time.monotonic() < end
        time.sleep(0.005)


def test_one_rank_killed_and_the_job_started_again_it_is_the_same_stream(shards: ShardSet, tmp_path: Path) -> None:
    """Rank 1 dies alone. The rest of the job is stopped, as torchrun does, while the loader workers may live on."""
    folder = tmp_path / "ddp"
    processes = start(shards, folder, world_size=2, workers=2)
    until_step(folder, processes, 12)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].wait()
    time.sleep(0.2)
    kill(processes)
    assert finish(start(shards, folder, world_size=2, workers=2)) == [0, 0]
    check_union(shards, folder, tmp_path / "reference")


def test_a_job_that_was_resumed_elsewhere_stops_and_the_new_one_is_not_disturbed(
    shards: ShardSet, tmp_path: Path
) -> None:
    """The job is requeued while the old job is alive, so two jobs write to one ledger."""
    folder = tmp_path / "ddp"
    old = start(shards, folder, world_size=2, workers=0)
    until_step(folder, old, 9)
    for process in old:
        process.send_signal(signal.SIGSTOP)  # a node that no longer answers
    logs = {path: path.read_bytes() for path in folder.glob("rank-*.jsonl")}
    assert finish(start(shards, folder, world_size=2, workers=0)) == [0, 0]
    finished = {path: path.read_bytes() for path in folder.glob("rank-*.jsonl")}
    checkpoint = (folder / "checkpoint.json").read_bytes()
    for process in old:
        process.send_signal(signal.SIGCONT)
    errors = []
    for process in old:
        try:
            errors.append(process.communicate(timeout=120)[1])
        except subprocess.TimeoutExpired:
            process.kill()
            errors.append(process.communicate()[1])
    assert all(process.returncode for process in old)
    assert any("this run was resumed elsewhere" in words for words in errors), errors
    for path, before in finished.items():
        assert before.startswith(logs[path])
        path.write_bytes(before)  # without the steps of the old job after it woke up
    assert (folder / "checkpoint.json").read_bytes() == checkpoint
    check_union(shards, folder, tmp_path / "reference")


def test_a_job_that_died_before_its_first_checkpoint_begins_again_on_all_ranks(
    shards: ShardSet, tmp_path: Path
) -> None:
    folder = tmp_path / "ddp"
    processes = start(shards, folder, world_size=2, workers=0)
    until_step(folder, processes, 6)  # a report at step 5, the first checkpoint at step 7
    kill(processes)
    (folder / "checkpoint.json").unlink(missing_ok=True)
    assert finish(start(shards, folder, world_size=2, workers=0)) == [0, 0]
    check_union(shards, folder, tmp_path / "reference")
    assert [draw for draw, _ in reported(folder / "run")] == [
        5 * STEP_DRAWS * number for number in range(STEPS // 5 + 1)
    ]
