"""Run a pure function over tasks: here, in a process pool, or on Ray. The only module that imports ray.

A task is a key and keyword arguments; its function returns a small JSON record. Records are kept as files, written whole
by the worker that did the task, so a job that was killed goes on where it was, and a task that ran twice leaves the
same bytes. What died (a killed worker, a lost node) is tried again, what fails with an error of ours stops the job: a
wrong sample stays wrong. Of several such errors the one of the earliest task is raised, so that the message does not
depend on the number of workers.
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
"""Tasks pass small records only, so a local Ray needs little shared memory."""
CONNECT_TIMEOUT_S = 10

Record = dict[str, Any]

POLL_S = 1.0
"""Time between two looks at how far the running tasks are."""

_DIED = (
    "a worker process died (killed, or out of memory? A script that calls this at its top level is run again by every "
    "worker: put the call under if __name__ == '__main__':)"
)


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        key: names its record: unique among the tasks of a stage, letters, digits, dots and dashes.
        arguments: keyword arguments of the function; picklable.
    """

    key: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Backend:
    """Where tasks run.

    Attributes:
        workers: processes (local), or CPUs of a Ray started here; None: all of this machine's.
        ray_address: None: a local process pool. "local": start a Ray here. "auto" or an address: join that cluster.

    Raises:
        ExtraError: a Ray address is given, and Ray is not installed.
    """

    workers: int | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.ray_address is not None:
            needed("ray", what=f"`ray_address={self.ray_address!r}`")

    def processes(self, num_tasks: int, *, num_gpus: float = 0.0) -> int:
        """How many tasks run at a time in a local pool, one where they take a GPU; for a cluster not joined yet, a guess.

        >>> Backend(workers=4).processes(3), Backend(workers=4).processes(3, num_gpus=1.0)
        (3, 1)
        """
        return 1 if num_gpus else max(1, min(self.workers or num_cpus(), num_tasks))


def num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@runtime_checkable
class Watcher(Protocol):
    """Wants to know more of a stage than which tasks are done."""

    def __call__(self, task: Task, record: Record) -> None:
        """A task is done now."""

    def found_done(self, task: Task, record: Record) -> None:
        """A task was done by an earlier command."""

    def part(self, task: Task, share: float) -> None:
        """A task under way is done to this share, from 0 to 1."""


OnStage = Callable[[str, int], Callable[[Task, Record], None]]
"""Called when a stage begins, with its name and its number of tasks. What it returns is called for each finished task, and may be a
`Watcher`."""


def silent(name: str, num: int) -> Callable[[Task, Record], None]:
    """Show nothing of a stage: an `OnStage`."""
    return lambda task, record: None


@contextlib.contextmanager
def shown(on_stage: OnStage | None, progress: bool) -> Iterator[OnStage]:
    """Show the stages of a call from Python.

    Args:
        on_stage: takes the stages in place of the bars; None: bars where there is a terminal or a notebook.
        progress: whether there are bars.
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
        function: importable by name in a fresh process.
        tasks: in the order in which records are returned.
        backend: local pool or Ray.
        records: directory of the record files, one per task.
        on_done: called in this process for every task, also for those found done; a `Watcher` is told more.
        keeps_model: the function loads something large into its process, and a process should do many tasks: on Ray they
            are actors. A local process does many in any case.
        num_gpus: GPUs that such a process takes on Ray; where it is not 0, a local pool is one process.

    Returns:
        The records, in the order of the tasks.

    Raises:
        SkillshardError: what the function raised, of the earliest task that failed.
        ExecutionError: a task's worker died, or the function failed otherwise, `MAX_TRIES` times.
    """
    found: dict[str, Record] = {}
    watcher = on_done if isinstance(on_done, Watcher) else None
    for task in tasks:
        place = places.join(records, f"{task.key}.json")
        if storage.exists(place):
            found[task.key] = storage.read_json(place)
            (watcher.found_done if watcher else on_done)(task, found[task.key])
    missing = [task for task in tasks if task.key not in found]
    on_part = watcher.part if watcher else lambda task, share: None
    # Closed at once when something goes wrong here: an exception keeps its frames, and with them the workers, alive.
    with contextlib.closing(
        _run_missing(function, missing, backend, records, keeps_model, num_gpus, on_part)
    ) as outcomes:
        for task, record in outcomes:
            found[task.key] = record
            on_done(task, record)
    return [found[task.key] for task in tasks]


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
    """One task, in whatever process: do it, then write its record."""
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
                    waiting.appendleft(task)
    failures.raise_earliest()


class _Failures:
    """Errors of ours, by the place of their task. The earliest is raised, so that it is the same for any number of workers."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._place = {task.key: place for place, task in enumerate(tasks)}
        self._errors: dict[int, SkillshardError] = {}

    def __bool__(self) -> bool:
        return bool(self._errors)

    def add(self, task: Task, error: SkillshardError) -> None:
        self._errors[self._place[task.key]] = error

    def awaits(self, running: Iterable[str]) -> bool:
        """Whether a task under way matters still: any does, or after a failure one that may fail earlier in the order."""
        return any(not self._errors or self._place[key] < min(self._errors) for key in running)

    def raise_earliest(self) -> None:
        if self._errors:
            raise self._errors[min(self._errors)]


def _count_try(tries: Counter[str], task: Task, error: BaseException) -> None:
    """Count a try that failed; ExecutionError if it was the last."""
    tries[task.key] += 1
    if tries[task.key] == MAX_TRIES:
        why = str(error) if isinstance(error, OSError) else repr(error)
        raise ExecutionError(
            f"task {task.key} failed {MAX_TRIES} times, the last time because: {why.rstrip('.')}. What is done is kept: mend "
            "the cause and run the same command again."
        ) from error


def _run_on_ray(
    function: Callable[..., Record],
    tasks: list[Task],
    backend: Backend,
    records: str,
    keeps_model: bool,
    num_gpus: float,
    on_part: OnPart,
) -> Outcomes:
    started = _start_ray(backend)  # before Ray is imported, which reads the environment then
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
    """`_do`, and a file that says how far it is: Ray has no cheap way from a task to its driver, and all nodes see the records."""
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
    except (FileNotFoundError, ValueError):  # not said yet, or being written just now
        return None


def _ray_workers(
    keeps_model: bool, num_gpus: float
) -> tuple[int, Callable[[Callable[..., Record], Task, str], Any], Callable[..., None], Callable[[Any], None]]:
    """How many tasks to have under way on Ray, what begins one, what is told when one ended, and what stops one.

    Tasks, or actors that do one task after another and so keep what they loaded; an actor that died is replaced. Tries are
    counted by the caller, as in the pool.
    """
    import ray

    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_cpus_there = int(there.get("CPU", 1))
    if num_gpus and there.get("GPU", 0) < num_gpus:
        raise ExecutionError(
            f"a GPU was asked for, and the Ray cluster has {there.get('GPU', 0):g}. Give `device='cpu'`, or add a node that has one."
        )
    if not keeps_model:
        task = ray.remote(num_cpus=1, max_retries=0)(_do_on_ray)
        return (
            2 * num_cpus_there,
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

    num_running = max(1, int(there.get("GPU", 0) / num_gpus) if num_gpus else num_cpus_there)
    return num_running, begin, ended, lambda reference: ray.kill(busy[reference])


class _Keeper:
    """A process that does one task after another."""

    def do(self, function: Callable[..., Record], task: Task, records: str) -> Record:
        return _do_on_ray(function, task, records)


def _start_ray(backend: Backend) -> bool:
    """Connect to Ray unless this process is connected; whether it was connected here."""
    with _own_signal_handlers():
        return _connect(backend)


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep the handler of SIGTERM that Ray replaces with its own, which ends the process without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _connect(backend: Backend) -> bool:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
    """Give a Ray started here a token of its own, unless the user chose otherwise.

    Ray listens on more than loopback, and its own default leaves a token in the home directory, which switches
    authentication on for every cluster started later.
    """
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _refuse_silent(address: str) -> None:
    """OSError where nothing answers at HOST:PORT: Ray itself would try for minutes, and then end the process."""
    match = re.fullmatch(r"(?:ray://)?\[?([^\]/]+?)\]?:(\d+)", address)
    if match:
        with socket.create_connection((match[1], int(match[2])), timeout=CONNECT_TIMEOUT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_http2(connection):
                raise ConnectionError(
                    "what listens there is not Ray (the port of a dashboard? It is 6379 unless changed)"
                )


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether the other side answers the opening of HTTP/2, as gRPC does, with its settings.

    A connection alone does not tell: a dashboard accepts one too, and then Ray waits for more than two minutes and speaks of
    a time-out of its own.
    """
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        return connection.recv(9)[3:4] == b"\4"
    except OSError:
        return False


def keyed(tasks: Iterable[Mapping[str, Any]]) -> list[Task]:
    """Tasks with their position as key.

    >>> [task.key for task in keyed([{"a": 1}, {"a": 2}])]
    ['000000', '000001']
    """
    return [Task(f"{at:06d}", arguments) for at, arguments in enumerate(tasks)]
