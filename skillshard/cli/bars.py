"""Progress bars."""

from collections.abc import Callable
from typing import Any


class Bars:
    """Progress bars on standard error, one per stage."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def stage(self, name: str, num: int) -> Callable[[Any, Any], None]:
        task = self._progress.add_task(name, total=num)
        return lambda unit, record: self._progress.advance(task)

    def steps(self, name: str, num: int) -> Callable[[int], None]:
        task = self._progress.add_task(name, total=num)
        return lambda done: self._progress.update(task, completed=done)
