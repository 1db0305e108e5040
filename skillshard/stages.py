"""Run the stages of a shuffle: merges of sorted files, level by level, and the deletion of inputs that no task reads any more."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skillshard import artefact, places, storage
from skillshard.execution import Backend, OnStage, Record, Task, Watcher, keyed, run, silent
from skillshard.merge_levels import Merge, SortedFile, plan_merges


@dataclass(frozen=True)
class Stages:
    """Runner of the stages of one artefact.

    Attributes:
        work: Work on the artefact.
        backend: Local pool or Ray.
        on_stage: Function that is called at the beginning of a stage.
    """

    work: artefact.Work
    backend: Backend
    on_stage: OnStage

    def run(
        self,
        records: str,
        title: str | None,
        function: Callable[..., Record],
        tasks: Sequence[Mapping[str, Any]],
        inputs: Sequence[Sequence[str]] | None = None,
        suffixes: Sequence[str] = ("",),
        *,
        stage: str = "",
        about: Iterable[str] = (),
    ) -> list[Record]:
        """Run the tasks of a stage.

        Args:
            records: Name of the folder of records.
            title: Name of the stage for the user, or None for a short stage that is not shown.
            function: Function of a task.
            tasks: Arguments of each task.
            inputs: Scratch files of each task, without suffixes, to be deleted once the tasks with these files have their records. Tasks
                with the same files follow one another. With None, nothing is deleted.
            suffixes: Suffixes of the scratch files.
            stage: Name of the stage for job arrays and messages. Empty: the name of the folder of records.
            about: Input of each task for messages.
        """
        numbered = keyed(tasks, about)
        on_done = self.on_stage(title, len(numbered)) if title else silent("", len(numbered))
        return run(
            function,
            numbered,
            backend=self.backend,
            records=self.work.records(records),
            on_done=on_done if inputs is None else _Deleting(on_done, numbered, inputs, suffixes),
            stage=stage,
        )

    def merged(
        self,
        name: str,
        function: Callable[..., Record],
        files: Sequence[str],
        suffixes: Sequence[str],
        num_readers: int,
        num_bytes: int,
        arguments: Callable[[Merge, list[str], str], Mapping[str, Any]],
    ) -> tuple[int, list[tuple[list[str], range]]]:
        """Merge sorted files where that is cheaper. Return the number of levels, and the files of each column of the last level with its readers.

        Args:
            name: Name of the merged files, for records and scratch files.
            function: Function that merges.
            files: Places of the files of level 0, without suffixes.
            suffixes: Suffixes of the files. Inputs of merges are deleted under all suffixes.
            num_readers: Number of the tasks that read the files, in the order of their ranges of keys.
            num_bytes: Bytes of all files.
            arguments: Function that returns the arguments of a merge, from the places of its inputs and of its output.
        """

        def place(file: SortedFile) -> str:
            return places.with_suffix(self.work.scratch(name, file.name), ending) if file.level else files[file.row]

        plan = plan_merges(len(files), num_readers, num_bytes)
        ending = "" if suffixes != ("",) else ".npy"
        for level in range(1, len(plan.fan_ins) + 1):
            tasks, cells = [], []
            last: tuple[tuple[SortedFile, ...], list[str]] = ((), [])
            for merge in plan.merges(level):
                # Merges of the same inputs share one list, because the lists of all merges would take much memory.
                if merge.inputs != last[0]:
                    last = (merge.inputs, [place(file) for file in merge.inputs])
                tasks.append(arguments(merge, last[1], place(merge.output)))
                cells.append(last[1])
            # The fan-in belongs to the name: records of another plan say nothing about these merges.
            records = f"merge-{name}-{plan.fan_ins[0]}-{level}"
            title = f"merging {name} ({level}/{len(plan.fan_ins)})"
            self.run(records, title, function, tasks, cells, suffixes, stage=f"merge-{name}-{level}")
        return len(plan.fan_ins), [([place(file) for file in inputs], readers) for inputs, readers in plan.columns()]


class _Deleting:
    """Watcher that deletes scratch files after the last task that reads the files.

    A task is counted when its record is on the disk. So a killed command finds, for each task, the record or all inputs.

    Args:
        on_done: Function or watcher that receives the news too.
        tasks: Tasks of the stage.
        inputs: Scratch files of each task, without suffixes.
        suffixes: Suffixes of the scratch files.
    """

    def __init__(
        self,
        on_done: Callable[[Task, Record], None],
        tasks: Sequence[Task],
        inputs: Sequence[Sequence[str]],
        suffixes: Sequence[str],
    ) -> None:
        self._on_done = on_done
        self._suffixes = suffixes
        self._files = {task.key: files for task, files in zip(tasks, inputs, strict=True)}
        self._num_left = Counter(map(id, inputs))  # tasks with the same files have the same list

    def __call__(self, task: Task, record: Record) -> None:
        self._on_done(task, record)
        self._count(task)

    def found_done(self, task: Task, record: Record) -> None:
        (self._on_done.found_done if isinstance(self._on_done, Watcher) else self._on_done)(task, record)
        self._count(task)

    def part(self, task: Task, share: float) -> None:
        if isinstance(self._on_done, Watcher):
            self._on_done.part(task, share)

    def _count(self, task: Task) -> None:
        files = self._files[task.key]
        self._num_left[id(files)] -= 1
        if not self._num_left[id(files)]:
            for place in self._deleted(files):
                storage.remove(place)

    def _deleted(self, files: Sequence[str]) -> Iterator[str]:
        return (places.with_suffix(place, suffix) for place in files for suffix in self._suffixes)
