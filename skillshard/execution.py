"""Run a pure function over tasks: in this process, in a process pool, or on Ray.

A task is a key with keyword arguments. Its function returns a small JSON record. The worker that does a task writes the record as a
whole file. A killed job therefore resumes after its finished tasks, and a task that runs twice leaves the same bytes.

After the death of its worker a task is tried again, at most `MAX_TRIES` times. The loss of a node, or of a worker that had not begun the
task, is no fault of the task and is counted apart, up to `MAX_LOSSES`. A `SkillshardError` stops the job, because a wrong sample stays
wrong. If several tasks fail, the error of the earliest task is raised, and the message is the same for any number of workers.
"""

import contextlib
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Protocol, cast, runtime_checkable

from skillshard import canonical, places, progress, storage
from skillshard.bars import Bars, can_be_shown
from skillshard.errors import ExecutionError, MissingTasksError, SkillshardError, StorageError, name_some
from skillshard.extras import needed
from skillshard.job_array import ArrayPart
from skillshard.pool import Event, WorkerPool, kept_workers
from skillshard.ray_connection import one_connection
from skillshard.ray_pool import Needs, RayPool

MAX_TRIES = 3
"""Number of times that a task may fail, or kill its worker."""
MAX_LOSSES = 10
"""Number of times that a task may lose its worker through no fault of the task. On machines that can be taken away at any time, losses are
frequent. The bound ends a job whose cause of losses is wrongly taken for a lost node."""

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
        about: The input of the task for messages, such as the name of a file.
    """

    key: str
    arguments: Mapping[str, Any]
    about: str = ""

    def __str__(self) -> str:
        return f"{self.key} ({self.about})" if self.about else self.key


@dataclass(frozen=True)
class Backend:
    """The place where tasks run: a pool of processes on this machine, or Ray.

    Attributes:
        workers: Number of processes of the pool, or of CPUs of a local Ray. None: all CPUs of the machine.
        ray_address: Address of a Ray cluster to join, or "auto". "local": start a Ray on this machine. None: use a process pool.
        task_cpus: Number of CPUs that a task takes on Ray.
        task_memory: Memory that a task asks of Ray, in bytes. None: a task asks for CPUs alone.
        array_part: Part of a stage for this process, which is one process of a job array. None: all stages.

    Raises:
        ExtraError: A Ray address is given, and Ray is not installed.
        ExecutionError: Resources are out of range or given without Ray, or Ray is given with a job array.
    """

    workers: int | None = None
    ray_address: str | None = None
    task_cpus: int = 1
    task_memory: int | None = None
    array_part: ArrayPart | None = None

    def __post_init__(self) -> None:
        if self.ray_address is not None:
            needed("ray", what=f"`ray_address={self.ray_address!r}`")
        elif self.task_cpus != 1 or self.task_memory is not None:
            raise ExecutionError(
                "`task_cpus` and `task_memory` are requests to Ray: give `ray_address`, or limit the local processes by `workers`."
            )
        if self.task_cpus < 1 or (self.task_memory is not None and self.task_memory < 1):
            raise ExecutionError(f"`task_cpus={self.task_cpus}`, `task_memory={self.task_memory}`: give 1 or more.")
        if self.ray_address is not None and self.array_part is not None:
            raise ExecutionError(
                "a job array needs no Ray, because its processes meet only on the disk: leave out `ray_address`, or leave out `stage`."
            )

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
    """Show the stages of a call from Python, and keep one connection to Ray, or one set of workers, for all stages.

    Args:
        on_stage: Function that receives the stages in place of the bars. None: show bars in a terminal or a notebook.
        progress: Whether to show bars.
    """
    with one_connection(), kept_workers():
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
    stage: str = "",
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
        stage: Name of the stage in messages. Empty: the last part of `records`.

    Returns:
        The records, in the order of the tasks.

    Raises:
        SkillshardError: The function raised the error. The earliest failed task decides.
        ExecutionError: The worker of a task died, or the function failed with another error, `MAX_TRIES` times.
        MissingTasksError: A process of a job array needs a missing record of an earlier stage.
        StageEnded: A process of a job array has done its part of the stage.
    """
    stage = stage or places.name(records)
    part = backend.array_part
    if part is not None and part.order(stage) > 0:
        raise part.passed()
    done: dict[str, Record] = {}
    watcher = on_done if isinstance(on_done, Watcher) else None
    # One listing, because a store answers a question about each record only after a while.
    finished = set(storage.names_in(records))
    for task in tasks:
        if f"{task.key}.json" in finished:
            done[task.key] = storage.read_json(places.join(records, f"{task.key}.json"))
            (watcher.found_done if watcher else on_done)(task, done[task.key])
    missing = [task for task in tasks if task.key not in done]
    if part is not None:
        missing = _missing_of_part(part, stage, tasks, missing)
    on_part = watcher.part if watcher else lambda task, share: None
    # The generator is closed at once after an error: the exception keeps its frames alive, and the frames keep the workers alive.
    with contextlib.closing(
        _run_missing(function, missing, backend, records, keeps_model, num_gpus, on_part, _Tries(stage))
    ) as outcomes:
        for task, record in outcomes:
            done[task.key] = record
            on_done(task, record)
    if part is not None and part.order(stage) == 0 and not (part.is_step(stage) and len(done) == len(tasks)):
        raise part.ended(len(missing), len(part.choose(tasks)) - len(missing))
    return [done[task.key] for task in tasks]


def _missing_of_part(part: ArrayPart, stage: str, tasks: Sequence[Task], missing: Sequence[Task]) -> list[Task]:
    """Return the tasks that a process of a job array must do. For an earlier stage than the stage of the process, all records must exist.

    Raises:
        MissingTasksError: A record of an earlier stage is missing.
    """
    if part.order(stage) < 0:
        if missing:
            raise MissingTasksError(
                f"{len(missing):,} of {len(tasks):,} tasks of the stage {stage} have no record: {name_some(map(str, missing))}. Run that "
                "stage first. The same command does again only what is missing.",
                [task.key for task in missing],
            )
        return []
    of_part = {task.key for task in part.choose(tasks)}
    return [task for task in missing if task.key in of_part]


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
    tries: "_Tries",
) -> Outcomes:
    if not tasks:
        return
    if backend.ray_address is not None:
        yield from _run_in_pool(
            function,
            tasks,
            RayPool(
                backend.ray_address,
                num_local_cpus=backend.workers or num_cpus(),
                needs=Needs(backend.task_cpus, num_gpus, backend.task_memory),
                keeps_model=keeps_model,
                shares=records,
            ),
            records,
            on_part,
            tries,
        )
        return
    workers = backend.processes(len(tasks), num_gpus=num_gpus)
    if workers == 1:
        yield from _run_here(function, tasks, records, on_part, tries)
    else:
        yield from _run_in_pool(
            function, tasks, WorkerPool(workers, is_reused=not keeps_model), records, on_part, tries
        )


def _do(function: Callable[..., Record], task: Task, records: str) -> Record:
    """Do a task, then write the record."""
    place = places.join(records, f"{task.key}.json")
    try:
        record = function(**task.arguments)
    except (FileNotFoundError, StorageError):
        # Inputs are deleted once every task that reads them has a record. So another command, or an earlier try, has done this task.
        if not storage.exists(place):
            raise
        return cast(Record, storage.read_json(place))
    # The worker writes the record, not the parent: a finished task stays finished when the parent is killed at the same moment.
    storage.write_bytes(place, canonical.to_json(record))
    return record


def _run_here(
    function: Callable[..., Record], tasks: list[Task], records: str, on_part: OnPart, tries: "_Tries"
) -> Outcomes:
    waiting = deque(tasks)
    while waiting:
        task = waiting.popleft()
        with progress.sent_to(lambda share, task=task: on_part(task, share)):  # type: ignore[misc]  # a default, not an argument
            try:
                record = _do(function, task, records)
            except SkillshardError:
                raise
            except OSError as error:  # of a disk or a network, which may work at the next try
                tries.count(task, error, is_lost=False)
                waiting.appendleft(task)
                continue
        yield task, record


class _Pool(Protocol):
    """Workers, on this machine or on Ray. A worker does a single task at a time."""

    @property
    def running(self) -> tuple[str, ...]: ...
    @property
    def has_room(self) -> bool: ...
    def begin(self, key: str, function: Callable[..., Any], *arguments: Any) -> None: ...
    def wait(self, timeout_s: float) -> Iterator[Event]: ...


def _run_in_pool(
    function: Callable[..., Record],
    tasks: list[Task],
    workers: contextlib.AbstractContextManager[_Pool],
    records: str,
    on_part: OnPart,
    tries: "_Tries",
) -> Outcomes:
    by_key = {task.key: task for task in tasks}
    waiting, failures = deque(tasks), _Failures(tasks)
    # After a failure nothing new begins, but earlier tasks that run already are awaited: one may fail too, and its error is the one
    # that a single worker would meet first.
    with workers as pool:
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
                    tries.count(task, event.value or ChildProcessError(_DIED), is_lost=event.kind == "lost")
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


class _Tries:
    """The failed tries of the tasks of a stage, and the lost workers."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._failed, self._lost = Counter[str](), Counter[str]()

    def count(self, task: Task, error: BaseException, *, is_lost: bool) -> None:
        """Count a failed try of a task, or a worker that a task lost through no fault of the task.

        Raises:
            ExecutionError: The number reached its limit.
        """
        counter, limit = (self._lost, MAX_LOSSES) if is_lost else (self._failed, MAX_TRIES)
        counter[task.key] += 1
        if counter[task.key] == limit:
            event = "lost its worker" if is_lost else "failed"
            raise ExecutionError(
                f"task {task} of the stage {self._stage} {event} {limit} times, the last time because: {_cause(error).rstrip('.')}. What is "
                "done is kept: mend the cause and run the same command again."
            ) from error


def _cause(error: BaseException) -> str:
    """Return the cause of a failed task in one line. Ray puts the whole traceback of a failed import into its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "failed to import on the worker" in str(error) or isinstance(error, ImportError):
        return f"a node cannot import a package that the task needs ({lines[-1]}); install skillshard with the same extras on every node"
    if isinstance(error, FileNotFoundError):
        # The file of another node looks like a file that is not there.
        return (
            f"{error}, on the machine of the task. On several machines, give a corpus, an output and scratch files (`scratch`) in a directory that "
            "all machines share, or in a store"
        )
    return (
        str(error)
        if isinstance(error, OSError)
        else repr(error)
        if len(lines) < 2
        else f"{type(error).__name__}: {lines[0]}"
    )


def keyed(tasks: Iterable[Mapping[str, Any]], about: Iterable[str] = ()) -> list[Task]:
    """Make tasks with their positions as keys.

    Args:
        tasks: Keyword arguments of each task.
        about: Input of each task for messages, such as the name of a file. Empty: the tasks have no input of their own.

    >>> [str(task) for task in keyed([{"a": 1}, {"a": 2}], ["a.jsonl", "b.jsonl"])]
    ['000000 (a.jsonl)', '000001 (b.jsonl)']
    """
    inputs = chain(about, repeat(""))
    return [Task(f"{position:06d}", arguments, next(inputs)) for position, arguments in enumerate(tasks)]
