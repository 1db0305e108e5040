"""The stages of a command share their workers, and no worker outlives the command."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skillshard.errors import TagsError
from skillshard.execution import Backend, Record, keyed, run, shown
from skillshard.pool import Event, WorkerPool, kept_workers

NUM_WORKERS = 2


def process_of(folder: str, number: int) -> Record:
    """Return the process of a task, after the other task has begun, so that each task has a worker of its own."""
    Path(folder, str(number)).touch()
    while len(os.listdir(folder)) < NUM_WORKERS:
        time.sleep(0.01)
    return {"process": os.getpid()}


def fail() -> Record:
    raise TagsError("a wrong sample stays wrong.")


def processes_of_stage(folder: Path, *, keeps_model: bool = False) -> set[int]:
    (folder / "begun").mkdir(parents=True)
    tasks = keyed({"folder": str(folder / "begun"), "number": number} for number in range(NUM_WORKERS))
    records = run(
        process_of,
        tasks,
        backend=Backend(workers=NUM_WORKERS),
        records=str(folder / "records"),
        keeps_model=keeps_model,
    )
    return {record["process"] for record in records}


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def ends(process: int) -> bool:
    """Whether a process ends. The process that starts the workers buries a worker a little later than the pool sees its end."""
    until_s = time.monotonic() + 10
    while is_running(process) and time.monotonic() < until_s:
        time.sleep(0.01)
    return not is_running(process)


def test_the_stages_of_a_call_run_in_the_same_workers_which_end_with_the_call(tmp_path: Path) -> None:
    with shown(None, progress=False):
        first = processes_of_stage(tmp_path / "1")
        with shown(None, progress=False):
            second = processes_of_stage(tmp_path / "2")
        third = processes_of_stage(tmp_path / "3")
        assert len(first) == NUM_WORKERS and first == second == third
        assert all(map(is_running, first))
    assert all(map(ends, first))


def test_without_a_call_around_it_a_stage_ends_its_workers(tmp_path: Path) -> None:
    assert all(map(ends, processes_of_stage(tmp_path)))


def test_a_worker_with_a_model_ends_with_its_stage(tmp_path: Path) -> None:
    with shown(None, progress=False):
        before = processes_of_stage(tmp_path / "1")
        with_model = processes_of_stage(tmp_path / "2", keeps_model=True)
        assert not before & with_model
        assert all(map(ends, with_model)) and all(map(is_running, before))
    assert all(map(ends, before))


def test_workers_end_with_a_call_that_fails(tmp_path: Path) -> None:
    processes: set[int] = set()
    with pytest.raises(TagsError, match=r"^a wrong sample stays wrong\."), shown(None, progress=False):
        processes = processes_of_stage(tmp_path / "1")
        run(fail, keyed([{}, {}]), backend=Backend(workers=NUM_WORKERS), records=str(tmp_path / "2"))
    assert len(processes) == NUM_WORKERS and all(map(ends, processes))


def test_the_death_of_a_waiting_worker_is_no_failure_of_the_next_task() -> None:
    def event_of(pool: WorkerPool, function: Callable[[], object]) -> Event:
        pool.begin("task", function)
        while True:
            for event in pool.wait(1.0):
                return event

    with kept_workers():
        with WorkerPool(1) as pool:
            process = event_of(pool, os.getpid).value
        os.kill(process, signal.SIGKILL)
        assert ends(process)
        with WorkerPool(1) as pool:
            event = event_of(pool, os.getpid)
        assert event.kind == "done" and event.value != process
