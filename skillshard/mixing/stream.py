"""What the streams of a run have in common: the words for their positions, the clock that turns steps into positions, and `Stream`.

A stream is counted in draws (`Mixer`) or in blocks (`PackedTokens`). A trainer counts optimizer steps. The translation stands here
once, for reports, states and adapters. The adapters of trainers see a `Stream` alone, so that they never ask which of the two it is.
"""

import operator
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from skillshard.errors import ObservationError
from skillshard.mixing.ledger import Lag

LAST_DRAW = 2**62
"""No stream is longer: positions are 64-bit integers, and arithmetic with positions must not overflow."""


@dataclass(frozen=True)
class StreamWords:
    """The words by which errors name a stream.

    Attributes:
        position: what a position is called, such as "draw".
        items: what a batch consists of, such as "samples".
        maker: the class that makes the stream.
        step_argument: the argument of `maker` that gives the size of an optimizer step.
        variable: the name that a stream of this kind has in examples.
        dataset: the class of `skillshard.torch` that reads the stream.
        round: which round `Stream.round_size` is of.
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

    Steps are counted from the last resume, so that the size of a step may change from one run to the next.

    Attributes:
        words: how the stream's positions are called.
        step_size: draws or blocks of one optimizer step, over all ranks and accumulation; None: unknown.
        step, position: a step of the trainer, and the position of the stream at that step; (0, 0) where nothing was resumed.

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
        """The position of the stream after `step` optimizer steps.

        Raises:
            ObservationError: the step is no whole number from 0, the size of a step is unknown, or the position would lie before the
                beginning of the stream or beyond 2**62.
        """
        number = whole_number("step", step)
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
        """The clock after a resume at a position; its steps are counted from the beginning where the saved state has no step."""
        return replace(self, step=0, position=0) if step is None else replace(self, step=step, position=position)


@runtime_checkable
class Stream(Protocol):
    """An endless or ending stream of positions 0, 1, 2, ... that obeys the ledger of a run; `Mixer` and `PackedTokens` are streams.

    A position is a draw or a block, as `clock.words` says. Where the two differ in an argument or in a batch, their own docstrings say it.
    """

    clock: Clock

    @property
    def position(self) -> int:
        """Positions handed out by iterating, or set by `load_state_dict`."""
        ...

    @property
    def repeat(self) -> str:
        """What happens when a skill runs out, as given to `Mixer`; "epochs" is endless."""
        ...

    @property
    def lag(self) -> Lag:
        """How many rounds a decision may lag behind the losses, as given to `Mixer`."""
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
    def generation(self) -> int:
        """How often the run had been resumed or restarted when this process joined it."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the stream beside the losses, as JSON: two streams with one identity and one ledger are the same stream."""
        ...

    @property
    def round_size(self) -> float:
        """Positions of a round, or of the first round where rounds differ (`StreamWords.round`)."""
        ...

    @property
    def draws_per_position(self) -> float:
        """Expected draws of one position by the weights of the first round."""
        ...

    def batch(self, first: int, num: int) -> Sized:
        """The positions first .. first + num - 1, or up to the end of the stream; the stream stays where it stands."""
        ...

    def batches(self, batch_size: int) -> Iterator[Sized]:
        """The stream from where it stands, in batches."""
        ...

    def holds(self, position: int) -> bool:
        """Whether the stream has not ended before a position."""
        ...

    def length(self) -> int | None:
        """Number of positions of the whole stream, or None where the stream is endless or its end depends on losses."""
        ...

    def report(self, step: SupportsIndex, losses: Mapping[str, Any]) -> None:
        """Record the losses measured after `step` optimizer steps."""
        ...

    def state_dict(self, *, step: SupportsIndex | None = None) -> dict[str, Any]:
        """Where the stream stands, as JSON; the position is under the name `clock.words.position`."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], *, generation: int | None = None) -> None:
        """Go on at a saved position, in a new generation of the ledger."""
        ...

    def restart(self, *, generation: int | None = None) -> None:
        """Begin the run again from position 0."""
        ...

    def check_start(self, *, rank: int = 0) -> None:
        """Refuse, in the main process, what would otherwise be noticed hours later."""
        ...


def whole_number(name: str, value: object) -> int:
    """A number of steps or draws as an int; ObservationError for anything else, or below 0."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ObservationError(f"{name} is {value!r}: give a whole number >= 0. Nothing was recorded.")
    number = operator.index(value)
    if not 0 <= number <= LAST_DRAW:
        raise ObservationError(f"{name} is {number:,}: give a whole number from 0 to 2**62. Nothing was recorded.")
    return number


def is_whole(value: object, least: int, most: int) -> bool:
    """Whether a value is a whole number of a range, and not a truth value."""
    return not isinstance(value, bool) and isinstance(value, SupportsIndex) and least <= operator.index(value) <= most
