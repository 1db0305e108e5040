"""Show the progress of a command or call: bars in a terminal and in a notebook.

Without a terminal or notebook, a command writes a plain line every few seconds, and a call from Python is silent.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from skillshard.progress import sent_to

SECONDS_BETWEEN_LINES = 5.0
"""Seconds between two lines without a terminal: short enough to see that a command is alive, long enough for a log."""


class Stopped(BaseException):
    """Ctrl-C or SIGTERM stopped a command. The message names the stage and the directory with the finished work.

    The class is no `Exception`, like `KeyboardInterrupt`, so that no code on the way treats the stop as a failure.
    """


@dataclass
class Stage:
    """A stage of a command with its progress. Any thread may report progress to the stage.

    Attributes:
        name: Name of the stage, as shown.
        num: Number of tasks. 0: the stage is one piece of work of this process.
        num_done: Number of finished tasks, including tasks that an earlier command finished.
        num_found: Number of tasks that an earlier command finished.
        shares: Finished share of each running task, by key.
        started_s: Time of the start, by `time.monotonic`.
        ended_s: Time of the end, by `time.monotonic`. None: the stage runs.
        first_part: Time of the first progress, and number of tasks done at that time. Earlier seconds belong to the start of
            processes, which is slow if the processes load a model, and are left out of the estimate.
    """

    name: str
    num: int
    num_done: int = 0
    num_found: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    started_s: float = field(default_factory=time.monotonic)
    ended_s: float | None = None
    first_part: tuple[float, float] | None = None

    def __call__(self, task: Any, record: Any) -> None:
        self.shares.pop(getattr(task, "key", ""), None)
        self.num_done += 1
        if self.num_done >= self.num:
            self.ended_s = time.monotonic()

    def found_done(self, task: Any, record: Any) -> None:
        self.num_found += 1
        self(task, record)

    def part(self, task: Any, share: float) -> None:
        self.shares[task.key] = share
        self.first_part = self.first_part or (time.monotonic(), self.done)

    def advanced(self, share: float) -> None:
        """Note the finished share of a stage without tasks."""
        self.shares[""] = share
        self.first_part = self.first_part or (time.monotonic(), share)

    @property
    def done(self) -> float:
        """Number of finished tasks, plus the finished shares of running tasks."""
        # A copy of the values, because another thread may add a share in the meantime.
        return float(min(self.num_done + sum(list(self.shares.values())), self.num or 1))

    @property
    def elapsed_s(self) -> float:
        return (self.ended_s or time.monotonic()) - self.started_s

    @property
    def left_s(self) -> float | None:
        """Estimate of the remaining seconds. None: nothing is done yet, or the stage has ended.

        >>> stage = Stage("training", 4, num_done=2, num_found=1, started_s=0.0, ended_s=60.0)
        >>> stage.left_s
        120.0
        """
        # Tasks of an earlier command took no time in this command, so they do not count for the speed.
        since_s, done_then = self.first_part or (self.started_s, float(self.num_found))
        done_since = self.done - done_then
        if self.num_done >= (self.num or 1) or done_since <= 0:
            return None
        return ((self.ended_s or time.monotonic()) - since_s) * ((self.num or 1) - self.done) / done_since

    def sentence(self) -> str:
        """Describe the progress in one line.

        >>> Stage("training", 4, num_done=2, started_s=0.0, ended_s=60.0).sentence()
        'training: 2 of 4 (50 %) in 1 min 00 s, about 1 min 00 s left'
        >>> Stage("reading texts", 0, started_s=0.0, ended_s=5.0).sentence()
        'reading texts: 5 s'
        >>> Stage("verifying", 0, started_s=0.0, ended_s=60.0, shares={"": 0.5}, first_part=(0.0, 0.0)).sentence()
        'verifying: 50 % in 1 min 00 s, about 1 min 00 s left'
        """
        left = "" if self.left_s is None else f", about {duration(self.left_s)} left"
        if not self.num:
            share = f"{100 * self.done:.0f} % in " if self.shares else ""
            return f"{self.name}: {share}{duration(self.elapsed_s)}{left}"
        share = "" if self.num_done >= self.num else f" ({100 * self.done / self.num:.0f} %)"
        return f"{self.name}: {self.num_done:,} of {self.num:,}{share} in {duration(self.elapsed_s)}{left}"


def duration(seconds: float) -> str:
    """Write a duration with its two largest units.

    >>> duration(7.4), duration(83.0), duration(5000.0)
    ('7 s', '1 min 23 s', '1 h 23 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


class Bars:
    """A display of progress on standard error, one stage after another.

    Args:
        kept_in: Directory or URI with the finished work of a stopped command, for the message.
        of_command: Whether a command shows the bars. A command writes lines if it has no terminal, and Ctrl-C raises `Stopped`.
    """

    def __init__(self, kept_in: str | os.PathLike[str] | None = None, *, of_command: bool = True) -> None:
        self._kept_in, self._of_command = kept_in, of_command
        self._stages: list[Stage] = []
        self._screen: Callable[[], None] = self._show_lines
        self._next_line_s = time.monotonic() + SECONDS_BETWEEN_LINES
        self._num_ended = 0
        self._ended = threading.Event()
        # A thread, so that the bars move while a library works for minutes. A daemon, so that it never keeps a process alive.
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._live: Any = None

    def __enter__(self) -> "Bars":
        if _is_terminal():
            self._live = _live()
            self._live.start()
            tasks: list[Any] = []
            self._screen = lambda: _show_bars(self._live, tasks, self._stages)
        elif (display := _notebook_display()) is not None:
            self._screen = _Notebook(display, self._stages).show
        elif not self._of_command:
            self._screen = lambda: None
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._screen()
        if self._live is not None:
            self._live.stop()
        if self._of_command and kind is not None and issubclass(kind, KeyboardInterrupt):
            raise Stopped(self._where_stopped()) from None  # the traceback of Ctrl-C says nothing to a user

    def stage(self, name: str, num: int) -> Stage:
        """Begin a stage. The returned `skillshard.execution.Watcher` receives the news of the stage's tasks."""
        stage = Stage(name, num)
        if not num:
            stage.ended_s = stage.started_s
        self._stages.append(stage)
        return stage

    @contextmanager
    def working(self, name: str) -> Iterator[None]:
        """Show a stage in which this process does a single piece of work. The work reports its progress by `progress.advance`."""
        stage = Stage(name, 0)
        self._stages.append(stage)
        with sent_to(stage.advanced):
            yield
        stage.shares.clear()
        stage.ended_s = time.monotonic()

    def say(self, sentence: str) -> None:
        """Write a line above the bars."""
        if self._live is not None:
            self._live.console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        else:
            _write_line(sentence)

    def _watch(self) -> None:
        while not self._ended.wait(0.25):  # four times a second is smooth to the eye and costs next to nothing
            self._screen()

    def _show_lines(self) -> None:
        """Write a line for each stage that ended, and every few seconds a line for the running stage."""
        while self._num_ended < len(self._stages) and self._stages[self._num_ended].ended_s is not None:
            stage = self._stages[self._num_ended]
            if stage.num or stage.elapsed_s >= SECONDS_BETWEEN_LINES:
                _write_line(stage.sentence())
            self._num_ended += 1
            self._next_line_s = time.monotonic() + SECONDS_BETWEEN_LINES
        if self._num_ended < len(self._stages) and time.monotonic() >= self._next_line_s and not self._ended.is_set():
            _write_line(self._stages[-1].sentence())
            self._next_line_s = time.monotonic() + SECONDS_BETWEEN_LINES

    def _where_stopped(self) -> str:
        under_way = [stage for stage in self._stages if stage.ended_s is None]
        where = f" in the stage '{under_way[-1].name}'" if under_way else ""
        if under_way and under_way[-1].num:
            where += f", {under_way[-1].num_done:,} of {under_way[-1].num:,} done"
        if self._kept_in is None:
            return where
        from skillshard import places  # brings pyarrow, which the help of a command does not need

        work = f". What is finished is kept in {places.public(self._kept_in)}"
        return where + work


def can_be_shown() -> bool:
    """Whether this process has a terminal, or is the kernel of a notebook."""
    return _is_terminal() or _notebook_display() is not None


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # a program without a console has no standard error


def _write_line(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def _notebook_display() -> Any:
    """Return the module IPython.display if this process is the kernel of a notebook, else None. The check does not import IPython."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return None if getattr(shell, "kernel", None) is None else import_module("IPython.display")


class _Notebook:
    """Bars as text in one output of a cell, which can be updated without widgets.

    Args:
        display: The module IPython.display.
        stages: Stages to show. The list may grow.
    """

    def __init__(self, display: Any, stages: list[Stage]) -> None:
        self._display, self._stages = display, stages
        self._text = ""
        self._output: Any = None

    def show(self) -> None:
        text = "\n".join(f"{_bar(stage)} {stage.sentence()}" for stage in list(self._stages))
        if text in ("", self._text):
            return
        self._text = text
        content = {"text/plain": text}
        if self._output is None:
            self._output = self._display.display(content, raw=True, display_id=True)
        else:
            self._output.update(content, raw=True)


def _bar(stage: Stage, width: int = 20) -> str:
    """Draw a bar of `width` characters.

    >>> _bar(Stage("training", 4, num_done=1), width=8), _bar(Stage("fitting", 0, ended_s=1.0), width=8)
    ('━━──────', '━━━━━━━━')
    """
    share = 1.0 if stage.ended_s is not None else stage.done / (stage.num or 1)
    return "━" * int(width * share) + "─" * (width - int(width * share))


def _live() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description:>9}"), BarColumn(), TextColumn("{task.fields[progress]}"))
    return Progress(*columns, console=Console(stderr=True), auto_refresh=False)


def _show_bars(live: Any, tasks: list[Any], stages: list[Stage]) -> None:
    for stage in stages[len(tasks) :]:
        tasks.append(live.add_task(stage.name, total=stage.num or None, progress=""))
    for task, stage in zip(tasks, list(stages), strict=False):
        progress = stage.sentence().partition(": ")[2]
        has_ended = stage.ended_s is not None
        # A bar without a total is drawn as a moving stripe. A stage of one piece of work gets a total once its share is known.
        known = {"total": 1} if not stage.num and (has_ended or stage.shares) else {}
        ended = {"completed": 1} if not stage.num and has_ended else {}
        live.update(task, **{"completed": stage.done, "progress": progress, **known, **ended})
    live.refresh()
