"""One stage of a command, divided among the processes of a job array, such as an array of Slurm.

A process does its part of one stage and ends. No process waits for another process: the scheduler orders the stages. Every process
derives the tasks of its stage from the records of the earlier stages, and the last call writes the manifest. The bytes are those of a
single command.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from skillshard.errors import ExecutionError, did_you_mean
from skillshard.printable import counted

T = TypeVar("T")

FINISH = "finish"
"""The last call of a command in stages: no task is left, and the manifest is written."""


class StageEnded(Exception):
    """The part of a stage is done. The message is the result of the call, so the class is no error of skillshard."""


@dataclass(frozen=True)
class ArrayPart:
    """The tasks that one process of a job array does: every `num_parts`-th task of a stage.

    Attributes:
        stage: Name of the stage, or `FINISH`.
        stages: All stages of the command, in their order.
        number: Number of the part, from 1.
        num_parts: Number of parts of the stage.

    Raises:
        ExecutionError: The command has no such stage, or the number is out of range.
    """

    stage: str
    stages: tuple[str, ...]
    number: int = 1
    num_parts: int = 1

    def __post_init__(self) -> None:
        if self.stage not in (*self.stages, FINISH):
            raise ExecutionError(
                f"`stage={self.stage!r}` is no stage of this command{did_you_mean(self.stage, self.stages)}. The stages, in their order: "
                f"{', '.join(self.stages)}."
            )
        if not 1 <= self.number <= self.num_parts:
            raise ExecutionError(
                f"`tasks` {self.number}/{self.num_parts}: the first number is the part, from 1 to the number of parts. Let the array of the "
                f"scheduler count from 1, as --array=1-{max(1, self.num_parts)} does for Slurm."
            )

    def order(self, stage: str) -> int:
        """Compare a stage with the stage of the part: below 0 for an earlier stage, 0 for the same stage, above 0 for a later stage.

        A stage may have steps, each of which needs the whole step before. A step has the name of the stage and a suffix after a dash.

        >>> part = ArrayPart("merge-texts", ("sort", "merge-texts", "write"))
        >>> part.order("sort"), part.order("merge-texts-64-1"), part.order("write")
        (-1, 0, 1)
        """
        places = [*self.stages, FINISH]
        return places.index(self._name(stage)) - places.index(self.stage)

    def is_step(self, stage: str) -> bool:
        """Whether a stage is one of the steps of a stage. After a whole step the same call goes on to the next step."""
        return stage not in self.stages

    def choose(self, tasks: Sequence[T]) -> list[T]:
        """Return the tasks of the part.

        >>> ArrayPart("sort", ("sort",), 2, 3).choose(range(7))
        [1, 4]
        """
        return list(tasks[self.number - 1 :: self.num_parts])

    def ended(self, num_done: int, num_found: int) -> StageEnded:
        """Return the result of a call.

        Args:
            num_done: Number of tasks of the part that this call did.
            num_found: Number of tasks of the part that an earlier call did.
        """
        earlier = f", {num_found:,} more by an earlier call" if num_found else ""
        return StageEnded(
            f"stage {self.stage}, part {self.number} of {self.num_parts}: {counted(num_done, 'task')} done{earlier}. When all parts are done: "
            f"{self._next_option()}"
        )

    def passed(self) -> StageEnded:
        """Return the result of a call after whose steps the stage has no task left, or whose stage has no tasks at all."""
        return StageEnded(f"stage {self.stage}: all tasks are done. Next: {self._next_option()}")

    def _next_option(self) -> str:
        following = (*self.stages, FINISH)[self.stages.index(self.stage) + 1]
        return "--finish" if following == FINISH else f"--stage {following}"

    def _name(self, stage: str) -> str:
        for name in self.stages:
            if stage == name or stage.startswith(f"{name}-"):
                return name
        raise ExecutionError(
            f"the stage {stage!r} cannot be divided among the processes of a job array. Run the command whole, in one process of the array."
        )


def parse_part(text: str) -> tuple[int, int]:
    """Parse the number of a part and the number of parts.

    >>> parse_part("3/8")
    (3, 8)

    Raises:
        ExecutionError: The text has another form.
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if match is None:
        raise ExecutionError(
            f"`tasks={text!r}`: give the number of the part and the number of parts, such as 3/8 for the third of eight."
        )
    return int(match[1]), int(match[2])
