"""The end of a worker is charged to the task in the worker, and to no task if the node is lost or the task has not begun."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skillshard import execution
from skillshard.errors import ExecutionError
from skillshard.execution import MAX_LOSSES, MAX_TRIES, Backend, Record, keyed, run
from skillshard.pool import Event
from skillshard.ray_pool import Needs, RayPool


def square(number: int) -> Record:
    return {"square": number * number}


class Losing:
    """A pool on machines that are taken away. The first tries of a task end with the given events."""

    def __init__(self, ends: dict[str, list[str]]) -> None:
        self._ends, self._running = ends, dict[str, Callable[[], Any]]()

    @property
    def running(self) -> tuple[str, ...]:
        return tuple(self._running)

    @property
    def has_room(self) -> bool:
        return len(self._running) < 2

    def begin(self, key: str, function: Callable[..., Any], *arguments: Any) -> None:
        self._running[key] = lambda: function(*arguments)

    def wait(self, timeout_s: float) -> Iterator[Event]:
        key, work = next(iter(self._running.items()))
        del self._running[key]
        ends = self._ends.get(key, [])
        kind = ends.pop(0) if ends else "done"
        yield Event(key, kind, work() if kind == "done" else ChildProcessError("gone"))  # type: ignore[arg-type]

    def __enter__(self) -> "Losing":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def run_losing(ends: dict[str, list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    monkeypatch.setattr(execution, "WorkerPool", lambda size, **_: Losing(ends))
    tasks = keyed(({"number": number} for number in range(4)), about=(f"{name}.jsonl" for name in "abcd"))
    return run(square, tasks, backend=Backend(workers=2), records=str(folder / "sort"))


def test_lost_nodes_are_no_failures_of_their_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {"000001": ["lost"] * (MAX_LOSSES - 1) + ["died"] * (MAX_TRIES - 1), "000003": ["lost"] * (MAX_TRIES + 1)}
    records = run_losing(ends, tmp_path, monkeypatch)
    assert [record["square"] for record in records] == [0, 1, 4, 9]
    assert ends == {"000001": [], "000003": []}


def test_a_task_that_loses_every_worker_ends_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ExecutionError,
        match=rf"^task 000002 \(c.jsonl\) of the stage sort lost its worker {MAX_LOSSES} times, the last time because: gone\. What is done is kept",
    ):
        run_losing({"000002": ["lost"] * 99}, tmp_path, monkeypatch)


def test_a_task_that_kills_every_worker_ends_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExecutionError, match=rf"task 000002 \(c.jsonl\) of the stage sort failed {MAX_TRIES} times"):
        run_losing({"000002": ["died"] * 99}, tmp_path, monkeypatch)


def test_an_error_of_the_system_names_the_input_and_the_stage_in_one_process_too(tmp_path: Path) -> None:
    tasks = keyed([{"folder": str(tmp_path / "tries")}], about=["a.jsonl"])
    with pytest.raises(ExecutionError, match=r"task 000000 \(a.jsonl\) of the stage sort failed 3 times.*Errno 5"):
        run(fail, tasks, backend=Backend(workers=1), records=str(tmp_path / "sort"))
    assert (tmp_path / "tries").read_text() == "." * MAX_TRIES


def test_a_file_that_a_machine_does_not_see_names_the_remedy(tmp_path: Path) -> None:
    """With a scratch directory of each node, a task finds no file of a task on another node."""
    tasks = keyed([{"place": str(tmp_path / "of-another-node.npy")}])
    with pytest.raises(
        ExecutionError,
        match=r"of-another-node.npy.*`scratch`.* all machines share, or in a store\. What is done is kept",
    ):
        run(read, tasks, backend=Backend(workers=1), records=str(tmp_path / "write"))


def read(place: str) -> Record:
    return {"bytes": len(Path(place).read_bytes())}


def fail(folder: str) -> Record:
    with Path(folder).open("a") as file:
        file.write(".")
    raise OSError(5, "Input/output error")


class Growing(RayPool):
    """A Ray pool whose cluster has a given number of CPUs at each look, and whose tasks never end."""

    def __init__(self, cpus: list[dict[str, int]], *, keeps_model: bool = False, needs: Needs = Needs()) -> None:
        super().__init__("auto", num_local_cpus=1, needs=needs, keeps_model=keeps_model, shares="shares")
        self._looks = cpus

    def _look_at_nodes(self) -> None:
        self._nodes = {name: {"CPU": float(num)} for name, num in self._looks.pop(0).items()}

    def fill(self) -> int:
        """Begin tasks while the pool has room, and return the number of running tasks."""
        while self.has_room_now():
            self._running[object()] = "task"
        return len(self._running)

    def has_room_now(self) -> bool:
        self._looks.insert(0, self._looks[0])
        return self.has_room


@pytest.mark.parametrize(("keeps_model", "per_slot"), [(False, 2), (True, 1)])
def test_tasks_in_flight_follow_the_cluster_as_it_grows_and_shrinks(keeps_model: bool, per_slot: int) -> None:
    """A head without CPUs gets one task, which makes an autoscaler add a node."""
    pool = Growing(
        [{"head": 0}, {"head": 0, "a": 4}, {"head": 0, "a": 4, "b": 4}, {"head": 0, "b": 4}], keeps_model=keeps_model
    )
    in_flight = []
    for _ in range(3):
        in_flight.append(pool.fill())
        pool._looks.pop(0)
    assert in_flight == [1, 4 * per_slot, 8 * per_slot]
    assert not pool.has_room_now(), "the cluster has shrunk, and too many tasks run already"


def test_a_task_of_several_cpus_takes_several_cpus_of_one_node() -> None:
    pool = Growing([{"a": 3, "b": 3}], keeps_model=True, needs=Needs(num_cpus=2))
    assert pool.fill() == 2, "the third CPU of each node does not make a slot together"
