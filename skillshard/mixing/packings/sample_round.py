"""A round of a mixer whose draws are samples, as places of a packed stream: the part that the packings of samples share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from skillshard.memo import memoized
from skillshard.mixing.round_ids import TABLES_KEPT, WINDOW_DRAWS, IdTable, RoundIds
from skillshard.mixing.round_plan import RoundPlan
from skillshard.shards.token_set import SkillTokens


@dataclass(frozen=True)
class SampleRound(ABC):
    """A round of samples.

    Attributes:
        plan: Rows of the samples of the round.
        first_draw: First draw of the round.
        first: Number of places of the stream before the round.
        tokens: Tokens of each skill of the mix.
        block_tokens: Number of tokens of a block.
    """

    plan: RoundPlan
    first_draw: int
    first: int
    tokens: Sequence[SkillTokens]
    block_tokens: int
    _tables: dict[int, IdTable] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def ids(self) -> RoundIds:
        """Ids of the draws. The files are opened when the first block of the round is read."""
        return RoundIds(self.plan, self.tokens)

    def draws_to(self, place: int) -> int:
        """Return the number of draws of the stream with a token at this place or before, if the draws stand in the stream in their order."""
        return self.first_draw + self.number_at(place) + 1

    def table_at(self, place: int) -> IdTable:
        """Return the table of the window that holds a place of the stream."""
        return memoized(self._tables, self.number_at(place) // WINDOW_DRAWS, self.table, most=TABLES_KEPT)

    @abstractmethod
    def number_at(self, place: int) -> int:
        """Return the number of a place of the stream by which the windows are counted: the number of its draw, or of its first piece."""

    @abstractmethod
    def table(self, window: int) -> IdTable:
        """Make the table of a window of `WINDOW_DRAWS` draws or pieces."""
