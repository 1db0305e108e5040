"""The common part of the streams of a run: the words for positions, the clock that turns steps into positions, and `Stream`.

A stream counts draws (`Mixer`) or blocks (`PackedTokens`). A trainer counts optimizer steps. Reports, states and adapters all use the
translation of this module. An adapter of a trainer sees only a `Stream`, so an adapter never distinguishes the two kinds.
"""

import operator
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from skillshard.errors import ObservationError
from skillshard.loss import LossKind, MeasuredOn
from skillshard.mixing.metrics import MOST_SKILLS
from skillshard.mixing.run_records import Lag

LAST_DRAW = 2**62
"""Upper limit of the positions of a stream.

Positions are signed integers of 64 bits. The limit leaves a bit free, so that the sum of two positions does not overflow.
"""


@dataclass(frozen=True)
class StreamWords:
    """The words by which error messages name a stream.

    Attributes:
        position: Word for a position, such as "draw".
        items: Word for the contents of a batch, such as "samples".
        maker: Class that makes the stream.
        step_argument: Argument of `maker` with the size of an optimizer step.
        variable: Name of a stream of this kind in examples.
        dataset: Class of `skillshard.torch` that reads the stream.
        round: Round to which `Stream.round_size` applies.
    """

    position: str
    items: str
    maker: str
    step_argument: str
    variable: str
    dataset: str
    round: str


DRAWS = StreamWords("draw", "samples", "Mixer", "step_draws", "mixer", "MixedDataset", "a round")
BLOCKS = StreamWords("block", "blocks", "PackedTokens", "step_blocks", "packed", "PackedDataset", "the first round")


@dataclass(frozen=True)
class Clock:
    """The translation of optimizer steps into positions of a stream.

    Steps are counted from the last resume, so that the size of a step may change at a resume.

    Attributes:
        words: Words for the positions of the stream.
        step_size: Number of draws or blocks of an optimizer step, over all ranks and gradient accumulation. None if unknown.
        step, position: A step of the trainer, and the position of the stream at this step. (0, 0) without a resume.

    Example:
        >>> clock = Clock(DRAWS, 32)
        >>> clock.position_at(10)
        320
        >>> Clock(DRAWS, 8).resumed(10, 320).position_at(12)
        336
    """

    words: StreamWords
    step_size: int | None
    step: int = 0
    position: int = 0

    def position_at(self, step: SupportsIndex) -> int:
        """Return the position of the stream after `step` optimizer steps.

        Raises:
            ObservationError: The step is no whole number from 0, the size of a step is unknown, or the position lies before the
                beginning of the stream or beyond 2**62.
        """
        number = whole_number("step", step)
        # The step of the last resume has a known position even if the size of a step is unknown.
        if number == self.step:
            return self.position
        name = self.words.position
        if self.step_size is None:
            raise ObservationError(
                f"step {number} cannot be translated into {name}s: give {self.words.maker}(..., {self.words.step_argument}="
                f"{self.words.items} per optimizer step over all ranks), or report(..., {name}=...)."
            )
        position = self.position + (number - self.step) * self.step_size
        if not 0 <= position <= LAST_DRAW:
            raise ObservationError(
                f"step {number} would be of {name} {position:,}: a {name} is between 0 and 2**62. Steps of {self.step_size:,} "
                f"{self.words.items} are counted from step {self.step:,}, {name} {self.position:,}. Nothing was recorded."
            )
        return position

    def resumed(self, step: int | None, position: int) -> "Clock":
        """Return the clock after a resume at a position."""
        # Without a step in the saved state, the trainer's own count of steps is unknown. Then steps count from the beginning.
        return replace(self, step=0, position=0) if step is None else replace(self, step=step, position=position)


@runtime_checkable
class Stream(Protocol):
    """A stream of positions 0, 1, 2, ... that obeys the ledger of a run. `Mixer` and `PackedTokens` are streams.

    A position is a draw or a block, as `clock.words` says. The docstrings of the two classes describe the arguments and batches in which
    the classes differ.
    """

    clock: Clock

    @property
    def position(self) -> int:
        """Number of positions yielded by iterating, or set by `load_state_dict`."""
        ...

    @property
    def repeat(self) -> str:
        """Rule for a skill without unread samples, as in `Mixer`. "epochs" makes the stream endless."""
        ...

    @property
    def lag(self) -> Lag:
        """Number of rounds that a decision lags behind the losses, as in `Mixer`."""
        ...

    @property
    def reads_losses(self) -> bool:
        """Whether the policy reads losses, so that a round may have to wait for a report."""
        ...

    @property
    def initial_losses(self) -> bool:
        """Whether the first report is of position 0, the model before the first step."""
        ...

    @property
    def lacks_first_losses(self) -> bool:
        """Whether the stream stands at the first position of the run, and the run begins with the losses of this position."""
        ...

    @property
    def skills(self) -> tuple[str, ...]:
        """Training skills, in the order of the numbers of skills in a batch."""
        ...

    @property
    def loss(self) -> LossKind:
        """Kind of the reported losses, as in `Mixer`."""
        ...

    @property
    def measured_on(self) -> MeasuredOn:
        """Samples of the reported losses, as in `Mixer`."""
        ...

    @property
    def generation(self) -> int:
        """Number of resumes and restarts of the run before this process joined."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """Facts that determine the stream together with the losses, as JSON.

        Two streams with equal identities and the same ledger are the same stream.
        """
        ...

    @property
    def round_size(self) -> float:
        """Number of positions of a round, or of the first round if rounds differ (`StreamWords.round`)."""
        ...

    @property
    def draws_per_position(self) -> float:
        """Expected number of draws of a position under the weights of the first round."""
        ...

    def batch(self, first: int, num: int) -> Sized:
        """Read the positions first .. first + num - 1, or up to the end of the stream. The position of the stream does not change."""
        ...

    def batches(self, batch_size: int) -> Iterator[Sized]:
        """Iterate over the stream in batches from its position."""
        ...

    def holds(self, position: int) -> bool:
        """Return whether the stream reaches a position."""
        ...

    def length(self) -> int | None:
        """Return the number of positions of the stream, or None if the stream is endless or its end depends on losses."""
        ...

    def report(self, step: SupportsIndex, losses: Mapping[str, Any]) -> None:
        """Record the losses measured after `step` optimizer steps."""
        ...

    def metrics(self, *, step: SupportsIndex | None = None, most_skills: int = MOST_SKILLS) -> dict[str, float]:
        """Return the numbers of the run at a step for a logger, as `Mixer.metrics` does."""
        ...

    def metrics_table(self, *, step: SupportsIndex | None = None) -> list[dict[str, str | float | None]]:
        """Return the numbers of every skill at a step as rows, as `Mixer.metrics_table` does."""
        ...

    def state_dict(self, *, step: SupportsIndex | None = None) -> dict[str, Any]:
        """Return the position of the stream as JSON, under the name `clock.words.position`."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], *, generation: int | None = None) -> None:
        """Continue at a saved position, in a new generation of the ledger."""
        ...

    def restart(self, *, generation: int | None = None) -> None:
        """Begin the run again from position 0."""
        ...

    def check_start(self, *, rank: int = 0) -> None:
        """Refuse a wrong start in the main process, before hours of training."""
        ...


def whole_number(name: str, value: object) -> int:
    """Convert a number of steps or draws to an int. Raise ObservationError for a value that is no whole number from 0 to 2**62."""
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, SupportsIndex)):
        raise ObservationError(f"{name} is {value!r}: give a whole number >= 0. Nothing was recorded.")
    number = operator.index(value)
    if not 0 <= number <= LAST_DRAW:
        raise ObservationError(f"{name} is {number:,}: give a whole number from 0 to 2**62. Nothing was recorded.")
    return number
