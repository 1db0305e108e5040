"""Run a pure function over tasks: in this process, in a process pool, or on Ray. Only this module imports ray.

A task is a key with keyword arguments. Its function returns a small JSON record. The worker that does a task writes the record as a
whole file. A killed job therefore resumes after its finished tasks, and a task that runs twice leaves the same bytes.

After the death of a worker (a killed process, a lost node) the task is tried again. A `SkillshardError` stops the job, because a wrong
sample stays wrong. If several tasks fail, the error of the earliest task is raised, and the message is the same for any number of workers.
"""

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from skillshard import canonical, places, progress, storage
from skillshard.bars import Bars, can_be_shown
from skillshard.errors import ExecutionError, SkillshardError, first_line
from skillshard.extras import needed
from skillshard.pool import WorkerPool

MAX_TRIES = 3
RAY_OBJECT_STORE_BYTES = 256 << 20
"""Shared memory of a local Ray. Tasks pass only small records and need little memory."""
CONNECT_TIMEOUT_S = 10
"""Seconds to wait for an answer at the address of a Ray cluster. Ray itself would wait for minutes."""

Record = dict[str, Any]

POLL_S = 1.0
"""Seconds between two checks of the progress of the running tasks."""

_DIED = (
    "a worker process died (killed, or out of memory? A script that calls this at its top level is run again by every "
    "worker: put the call under if __name__ == '__main__':)"
)


@dataclass(frozen=True)
class Task:
    """A piece of work of a job.

    Attributes:
        key: Name of the task's record, unique among the tasks of a stage. Letters, digits, dots and dashes are allowed.
        arguments: Keyword arguments of the function, which must be picklable.
    """

    key: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Backend:
    """The place where tasks run: a pool of processes on this machine, or Ray.

    Attributes:
        workers: Number of processes of the pool, or of CPUs of a local Ray. None: all CPUs of the machine.
        ray_address: Address of a Ray cluster to join, or "auto". "local": start a Ray on this machine. None: use a process pool.

    Raises:
        ExtraError: A Ray address is given, and Ray is not installed.
    """

    workers: int | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.ray_address is not None:
            needed("ray", what=f"`ray_address={self.ray_address!r}`")

    def processes(self, num_tasks: int, *, num_gpus: float = 0.0) -> int:
        """Return the number of tasks that run at the same time in a local pool. On a GPU, tasks run in turn.

        For a cluster, the number is a guess.

        >>> Backend(workers=4).processes(3), Backend(workers=4).processes(3, num_gpus=1.0)
        (3, 1)
        """
        return 1 if num_gpus else max(1, min(self.workers or num_cpus(), num_tasks))


def num_cpus() -> int:
    """Return the number of CPUs for the process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@runtime_checkable
class Watcher(Protocol):
    """A receiver of all news of a stage, not only of finished tasks."""

    def __call__(self, task: Task, record: Record) -> None:
        """Receive a finished task."""

    def found_done(self, task: Task, record: Record) -> None:
        """Receive a task from the records of an earlier command."""

    def part(self, task: Task, share: float) -> None:
        """Receive the finished share of a running task, from 0 to 1."""


OnStage = Callable[[str, int], Callable[[Task, Record], None]]
"""A function that is called at the beginning of a stage, with the name and the number of tasks of the stage. It returns a function that is
called for each finished task. The returned function may be a `Watcher`."""


def silent(name: str, num: int) -> Callable[[Task, Record], None]:
    """Show nothing of a stage. The function is an `OnStage`."""
    return lambda task, record: None


@contextlib.contextmanager
def shown(on_stage: OnStage | None, progress: bool) -> Iterator[OnStage]:
    """Show the stages of a call from Python.

    Args:
        on_stage: Function that receives the stages in place of the bars. None: show bars in a terminal or a notebook.
        progress: Whether to show bars.
    """
    if on_stage is not None:
        yield on_stage
    elif progress and can_be_shown():
        with Bars(of_command=False) as shown_bars:
            yield shown_bars.stage
    else:
        yield silent


def run(
    function: Callable[..., Record],
    tasks: Sequence[Task],
    *,
    backend: Backend,
    records: str,
    on_done: Callable[[Task, Record], None] = lambda task, record: None,
    keeps_model: bool = False,
    num_gpus: float = 0.0,
) -> list[Record]:
    """Run `function(**task.arguments)` for every task that has no record yet.

    Args:
        function: Function to run. A fresh process must be able to import the function by name.
        tasks: Tasks, in the order of the returned records.
        backend: Local pool or Ray.
        records: Directory of the record files, one file per task.
        on_done: Function to call for every task, including tasks of earlier commands. A `Watcher` receives more news.
        keeps_model: Whether the function loads something large, and a process should therefore do many tasks. On Ray, the
            processes are actors. A local process does many tasks in any case.
        num_gpus: Number of GPUs of each actor on Ray. Above 0, a local pool has a single process.

    Returns:
        The records, in the order of the tasks.

    Raises:
        SkillshardError: The function raised the error. The earliest failed task decides.
        ExecutionError: The worker of a task died, or the function failed with another error, `MAX_TRIES` times.
    """
    done: dict[str, Record] = {}
    watcher = on_done if isinstance(on_done, Watcher) else None
    for task in tasks:
        place = places.join(records, f"{task.key}.json")
        if storage.exists(place):
            done[task.key] = storage.read_json(place)
            (watcher.found_done if watcher else on_done)(task, done[task.key])
    missing = [task for task in tasks if task.key not in done]
    on_part = watcher.part if watcher else lambda task, share: None
    # The generator is closed at once after an error: the exception keeps its frames alive, and the frames keep the workers alive.
    with contextlib.closing(
        _run_missing(function, missing, backend, records, keeps_model, num_gpus, on_part)
    ) as outcomes:
        for task, record in outcomes:
            done[task.key] = record
            on_done(task, record)
    return [done[task.key] for task in tasks]


OnPart = Callable[[Task, float], None]
Outcomes = Generator[tuple[Task, Record], None, None]


def _run_missing(
    function: Callable[..., Record],
    tasks: list[Task],
    backend: Backend,
    records: str,
    keeps_model: bool,
    num_gpus: float,
    on_part: OnPart,
) -> Outcomes:
    if not tasks:
        return
    if backend.ray_address is not None:
        yield from _run_on_ray(function, tasks, backend, records, keeps_model, num_gpus, on_part)
        return
    workers = backend.processes(len(tasks), num_gpus=num_gpus)
    if workers == 1:
        yield from _run_here(function, tasks, records, on_part)
    else:
        yield from _run_in_pool(function, tasks, workers, records, on_part)


def _do(function: Callable[..., Record], task: Task, records: str) -> Record:
    """Do a task, then write the record."""
    # The worker writes the record, not the parent: a finished task stays finished when the parent is killed at the same moment.
    record = function(**task.arguments)
    storage.write_bytes(places.join(records, f"{task.key}.json"), canonical.to_json(record))
    return record


def _run_here(function: Callable[..., Record], tasks: list[Task], records: str, on_part: OnPart) -> Outcomes:
    for task in tasks:
        with progress.sent_to(lambda share, task=task: on_part(task, share)):  # type: ignore[misc]  # a default, not an argument
            record = _do(function, task, records)
        yield task, record


def _run_in_pool(
    function: Callable[..., Record], tasks: list[Task], workers: int, records: str, on_part: OnPart
) -> Outcomes:
    by_key = {task.key: task for task in tasks}
    waiting, failures, tries = deque(tasks), _Failures(tasks), Counter[str]()
    # After a failure nothing new begins, but earlier tasks that run already are awaited: one may fail too, and its error is the one
    # that a single worker would meet first.
    with WorkerPool(workers) as pool:
        while failures.awaits(pool.running) or (waiting and not failures):
            while waiting and not failures and pool.has_room:
                task = waiting.popleft()
                pool.begin(task.key, _do, function, task, records)
            for event in pool.wait(POLL_S):
                task = by_key[event.key]
                if event.kind == "done":
                    yield task, event.value
                elif event.kind == "part":
                    on_part(task, event.value)
                elif isinstance(event.value, SkillshardError):
                    failures.add(task, event.value)
                else:
                    _count_try(tries, task, event.value or ChildProcessError(_DIED))
                    waiting.appendleft(
                        task
                    )  # first in the line, so that a broken task fails early and not after all others
    failures.raise_earliest()


class _Failures:
    """The `SkillshardError`s of a stage, by the position of their task. The error of the earliest task is raised."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._place = {task.key: place for place, task in enumerate(tasks)}
        self._errors: dict[int, SkillshardError] = {}

    def __bool__(self) -> bool:
        return bool(self._errors)

    def add(self, task: Task, error: SkillshardError) -> None:
        self._errors[self._place[task.key]] = error

    def awaits(self, running: Iterable[str]) -> bool:
        """Whether the stage waits for a running task. After a failure, only earlier tasks count, because an earlier task may fail too."""
        return any(not self._errors or self._place[key] < min(self._errors) for key in running)

    def raise_earliest(self) -> None:
        if self._errors:
            raise self._errors[min(self._errors)]


def _count_try(tries: Counter[str], task: Task, error: BaseException) -> None:
    """Count a failed try of a task.

    Raises:
        ExecutionError: The try was the last try.
    """
    tries[task.key] += 1
    if tries[task.key] == MAX_TRIES:
        raise ExecutionError(
            f"task {task.key} failed {MAX_TRIES} times, the last time because: {_cause(error).rstrip('.')}. What is done is kept: mend "
            "the cause and run the same command again."
        ) from error


def _cause(error: BaseException) -> str:
    """Return the cause of a failed task in one line. Ray puts the whole traceback of a failed import into its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "failed to import on the worker" in str(error) or isinstance(error, ImportError):
        return f"a node cannot import a package that the task needs ({lines[-1]}); install skillshard with the same extras on every node"
    return (
        str(error)
        if isinstance(error, OSError)
        else repr(error)
        if len(lines) < 2
        else f"{type(error).__name__}: {lines[0]}"
    )


def _run_on_ray(
    function: Callable[..., Record],
    tasks: list[Task],
    backend: Backend,
    records: str,
    keeps_model: bool,
    num_gpus: float,
    on_part: OnPart,
) -> Outcomes:
    started = _start_ray(backend)  # before the import, at which Ray reads the environment
    import ray

    running: dict[Any, Task] = {}
    stop: Callable[[Any], None] | None = None
    try:
        num_running, begin, ended, stop = _ray_workers(keeps_model, num_gpus)
        waiting, failures, tries = deque(tasks), _Failures(tasks), Counter[str]()
        while failures.awaits(task.key for task in running.values()) or (waiting and not failures):
            while waiting and not failures and len(running) < num_running:
                task = waiting.popleft()
                running[begin(function, task, records)] = task
            for reference in ray.wait(list(running), num_returns=1, timeout=POLL_S)[0]:
                task = running.pop(reference)
                try:
                    record = ray.get(reference)
                    ended(reference, alive=True)
                except ray.exceptions.RayTaskError as error:
                    ended(reference, alive=True)
                    if isinstance(error.cause, SkillshardError):
                        failures.add(task, error.cause)
                    else:
                        _count_try(tries, task, error.cause)
                        waiting.appendleft(task)
                except ray.exceptions.RayError as error:
                    ended(reference, alive=False)
                    _count_try(tries, task, ChildProcessError(f"its Ray worker died ({first_line(error)})"))
                    waiting.appendleft(task)
                else:
                    yield task, record
            for task in running.values():
                if (share := _read_share(records, task)) is not None:
                    on_part(task, share)
        failures.raise_earliest()
    finally:
        if stop is not None:
            for reference in running:  # only after an error or a signal
                stop(reference)
        if started:
            ray.shutdown()


def _do_on_ray(function: Callable[..., Record], task: Task, records: str) -> Record:
    """Do a task, and write the progress to a file. Ray has no cheap way from a task to the driver, and all nodes share the records."""
    place = _share_place(records, task)

    def write(share: float) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{share:.4f}")

    try:
        with progress.sent_to(write):
            return _do(function, task, records)
    finally:
        place.unlink(missing_ok=True)


def _share_place(records: str, task: Task) -> Path:
    return Path(records) / f".{task.key}.progress"


def _read_share(records: str, task: Task) -> float | None:
    try:
        return float(_share_place(records, task).read_text())
    except (FileNotFoundError, ValueError):  # not written yet, or half written
        return None


def _ray_workers(
    keeps_model: bool, num_gpus: float
) -> tuple[int, Callable[[Callable[..., Record], Task, str], Any], Callable[..., None], Callable[[Any], None]]:
    """Return the number of tasks to run at once on Ray, and three functions, which begin a task, note the end of a task, and stop a task.

    With `keeps_model`, actors do task after task and keep the loaded model. A dead actor is replaced. The caller counts the tries, as
    in the pool.
    """
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_cluster_cpus = int(resources.get("CPU", 1))
    if num_gpus and resources.get("GPU", 0) < num_gpus:
        raise ExecutionError(
            f"a GPU was asked for, and the Ray cluster has {resources.get('GPU', 0):g}. Give `device='cpu'`, or add a node that has one."
        )
    if not keeps_model:
        task = ray.remote(num_cpus=1, max_retries=0)(_do_on_ray)
        return (
            2 * num_cluster_cpus,  # a second task waits for each CPU, so that no CPU waits for this process
            task.remote,
            lambda reference, alive: None,
            lambda reference: ray.cancel(reference, force=True),
        )
    actor: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=0)(_Keeper)
    idle: list[Any] = []
    busy: dict[Any, Any] = {}

    def begin(function: Callable[..., Record], task: Task, records: str) -> Any:
        keeper = idle.pop() if idle else actor.remote()
        reference = keeper.do.remote(function, task, records)
        busy[reference] = keeper
        return reference

    def ended(reference: Any, alive: bool) -> None:
        keeper = busy.pop(reference)
        if alive:
            idle.append(keeper)

    num_running = max(1, int(resources.get("GPU", 0) / num_gpus) if num_gpus else num_cluster_cpus)
    return num_running, begin, ended, lambda reference: ray.kill(busy[reference])


class _Keeper:
    """An actor for many tasks, in turn."""

    def do(self, function: Callable[..., Record], task: Task, records: str) -> Record:
        return _do_on_ray(function, task, records)


def _start_ray(backend: Backend) -> bool:
    """Connect to Ray unless the process is connected already. Return whether the call made the connection."""
    with _own_signal_handlers():
        return _connect(backend)


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block. Ray's handler would end the process without a message."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _connect(backend: Backend) -> bool:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers over the network
    if backend.ray_address == "local":
        _guard_local_ray()
    import ray

    if ray.is_initialized():
        return False
    if backend.ray_address == "local":
        try:
            ray.init(
                address="local",
                num_cpus=backend.workers or num_cpus(),
                object_store_memory=RAY_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise ExecutionError(
                f"no Ray could be started here: {first_line(error).rstrip('.')}. Its logs are under /tmp/ray; without "
                "`ray_address` a local process pool does the same work."
            ) from error
        return True
    try:
        _refuse_silent(backend.ray_address or "")
        ray.init(address=backend.ray_address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ExecutionError(
            f"no Ray cluster at `ray_address={backend.ray_address!r}`: {first_line(error).rstrip('.')}. Start one with 'ray start "
            "--head', give its address, or use `ray_address='local'`, or none for a local process pool."
        ) from error
    return True


def _guard_local_ray() -> None:
    """Give a local Ray a new token, unless the user chose another setting.

    Ray listens on more than loopback. By default, Ray leaves a token in the home directory, and the token switches authentication on for
    every later cluster.
    """
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _refuse_silent(address: str) -> None:
    """Refuse an address HOST:PORT without an answer. Ray itself would try for minutes, and then end the process.

    Raises:
        OSError: Nothing answers, or another program than Ray answers.
    """
    match = re.fullmatch(r"(?:ray://)?\[?([^\]/]+?)\]?:(\d+)", address)
    if match:
        with socket.create_connection((match[1], int(match[2])), timeout=CONNECT_TIMEOUT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_http2(connection):
                raise ConnectionError(
                    "what listens there is not Ray (the port of a dashboard? It is 6379 unless changed)"
                )


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether the other side answers the opening of HTTP/2 with a frame of settings, as gRPC does.

    A connection alone proves nothing. Ray's dashboard accepts a connection too, and then Ray waits for more than two minutes and
    reports a time-out.
    """
    # The client preface of HTTP/2 and an empty SETTINGS frame. Byte 3 of a frame's header of 9 bytes is its type, and 4 is SETTINGS.
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        return connection.recv(9)[3:4] == b"\4"
    except OSError:
        return False


def keyed(tasks: Iterable[Mapping[str, Any]]) -> list[Task]:
    """Make tasks with their positions as keys.

    >>> [task.key for task in keyed([{"a": 1}, {"a": 2}])]
    ['000000', '000001']
    """
    return [Task(f"{position:06d}", arguments) for position, arguments in enumerate(tasks)]
