"""Worker processes on the local machine. A worker does a single task at a time and never outlives the parent process.

`concurrent.futures.ProcessPoolExecutor` hands a worker the next task before the worker is idle, and cannot take the task back: after
Ctrl-C another training would begin. Here a worker gets a task only when idle, and no task begins after Ctrl-C. The pool also knows the
task of a dead worker.

A terminal sends Ctrl-C to all processes of a command at once. Workers ignore the signal, and the parent decides. The parent ends the
workers with SIGTERM, leaves `GRACE_S` seconds for the removal of temporary files, and then sends SIGKILL.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection as connections
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, ClassVar, Literal

from skillshard import progress

GRACE_S = 3.0
"""Seconds between SIGTERM and SIGKILL, for the removal of temporary files."""


@dataclass(frozen=True)
class Event:
    """An event of a task.

    Attributes:
        key: Key of the task.
        kind: Kind of event. "part": `value` is the finished share. "done": `value` is the result. "failed": `value` is the
            exception. "died": the worker is gone, and `value` is None or the exception that describes the death. "lost": the
            worker is gone through no fault of the task, and `value` is as for "died". The local pool has no such case.
        value: Share, result or exception.
    """

    key: str
    kind: Literal["part", "done", "failed", "died", "lost"]
    value: Any


class _Worker:
    """A worker process, with the parent's end of the pipe."""

    def __init__(self) -> None:
        self.connection, other_end = multiprocessing.Pipe()
        # Not "fork": a child that is forked while pyarrow's threads run may inherit their locks in a locked state.
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(target=_serve, args=(other_end,))
        with contextlib.closing(other_end), _without_interrupts(), _without_missing_script():
            self.process.start()

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Yield the messages of the worker, and at last "died" if the worker is gone."""
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except (EOFError, ConnectionResetError):
            yield "died", None


@contextlib.contextmanager
def _without_missing_script() -> Iterator[None]:
    """Hide the name of a script that is no file, such as "<stdin>". multiprocessing would look for the file in each worker."""
    main = sys.modules["__main__"]
    name = getattr(main, "__file__", None)
    if name is None or os.path.exists(name):
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = name


class _Kept:
    """Workers that wait for the next stage of a command, and the number of blocks that keep workers."""

    num_blocks = 0
    idle: ClassVar[list[_Worker]] = []


@contextlib.contextmanager
def kept_workers() -> Iterator[None]:
    """Keep the idle workers of every pool in the block for the next pool, until the end of the outermost block.

    A new worker imports the packages, which takes about half a second of CPU time. A command has several stages.
    """
    _Kept.num_blocks += 1
    try:
        yield
    finally:
        _Kept.num_blocks -= 1
        if not _Kept.num_blocks:
            with held_signals():
                workers, _Kept.idle = _Kept.idle, []
                _end(workers, gently=True)


def _kept_or_new() -> _Worker:
    while True:
        try:
            worker = _Kept.idle.pop()
        except IndexError:
            return _Worker()
        if worker.process.exitcode is None:
            return worker
        _end([worker], gently=False)  # killed while idle, which is no failure of the next task


class WorkerPool:
    """A pool of at most `size` workers, started on demand. The end of the `with` block ends every worker, unless `kept_workers` keeps idle workers.

    Args:
        size: Largest number of workers.
        is_reused: Whether the workers may come from an earlier pool, and may be kept for a later pool. A worker that has loaded a model takes
            memory as long as it lives.
    """

    def __init__(self, size: int, *, is_reused: bool = True) -> None:
        self._size = size
        self._is_reused = is_reused
        self._idle: list[_Worker] = []
        self._busy: dict[str, _Worker] = {}

    @property
    def running(self) -> tuple[str, ...]:
        """Keys of the running tasks."""
        return tuple(self._busy)

    @property
    def has_room(self) -> bool:
        return len(self._busy) < self._size

    def begin(self, key: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin `function(*arguments)` in an idle worker. `has_room` must be true."""
        task = pickle.dumps((function, arguments))
        with held_signals():
            worker = self._idle.pop() if self._idle else _kept_or_new() if self._is_reused else _Worker()
            self._busy[key] = worker
            with contextlib.suppress(BrokenPipeError):  # the worker is gone, and `wait` will report "died"
                worker.connection.send_bytes(task)

    def wait(self, timeout_s: float) -> Iterator[Event]:
        """Wait for events of the running tasks, at most `timeout_s` seconds, and yield the events."""
        ready = connections.wait([worker.connection for worker in self._busy.values()], timeout_s)
        for key, worker in list(self._busy.items()):
            if worker.connection not in ready:
                continue
            for kind, value in worker.messages():
                if kind == "died":
                    del self._busy[key]
                    _end([worker], gently=False)
                elif kind != "part":
                    self._idle.append(self._busy.pop(key))
                yield Event(key, kind, value)  # type: ignore[arg-type]  # one of the four

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with held_signals():
            if kind is None and self._is_reused and _Kept.num_blocks:
                _Kept.idle += self._idle
                self._idle = []
            workers = [*self._idle, *self._busy.values()]
            self._idle, self._busy = [], {}
            _end(workers, gently=True)


def _end(workers: list[_Worker], *, gently: bool) -> None:
    for worker in workers:
        worker.process.terminate() if gently else worker.process.kill()
    until_s = time.monotonic() + GRACE_S
    for worker in workers:
        worker.process.join(max(0.0, until_s - time.monotonic()))
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        worker.connection.close()
        worker.process.close()


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread only
        return
    # An exception between the start of a process and its entry in the pool would leave a process that nobody ends.
    held: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: held.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number_held in held:
            signal.raise_signal(number_held)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block SIGINT for processes started in the block. Otherwise every process would print a traceback after Ctrl-C."""
    resource_tracker.ensure_running()  # first, because the start of the tracker would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection) -> None:
    """Do the tasks from the pipe, until the pipe is closed or SIGTERM comes. A worker runs nothing else."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    sys.unraisablehook = _leave_all_the_same
    _end_with_parent()
    while True:
        try:
            task = connection.recv_bytes()
        except EOFError:
            return
        with contextlib.suppress(BrokenPipeError):  # the parent is gone, and this process ends as well
            with progress.sent_to(lambda share: connection.send(("part", share))):
                message = _outcome(task)
            connection.send(message)


def _outcome(task: bytes) -> tuple[str, Any]:
    try:
        function, arguments = pickle.loads(task)
        return "done", function(*arguments)
    except Exception as error:  # of any class: the parent decides about another try
        # Pickling loses the traceback, so its text travels as a note.
        error.add_note(traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an exception class with arguments of its own
            return "failed", RuntimeError(repr(error))
        return "failed", error


def _leave(number: int, frame: object) -> None:
    """End the worker on SIGTERM by an exception, so that `finally` blocks delete unfinished files."""
    raise SystemExit(128 + number)


def _leave_all_the_same(unraisable: "sys.UnraisableHookArgs") -> None:
    """End the worker even if SIGTERM came inside a destructor or a callback of a library, where Python only prints a `SystemExit`."""
    if isinstance(unraisable.exc_value, SystemExit):
        # Python is inside the destructor, so no exception can end the process. A killed worker loses nothing that is finished.
        os._exit(int(unraisable.exc_value.code or 0))
    sys.__unraisablehook__(unraisable)


def _end_with_parent() -> None:
    """End the worker when the parent process is gone, even after a kill of the parent."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
