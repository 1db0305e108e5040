"""The questions that every packing answers, and the draws that the packings of samples share.

All packings count in places: block b has the places bL .. (b+1)L - 1 of the stream. With `concat` and `skill` every place holds a token.
With `one` and `best-fit` a block may end with places without a token, which the reader fills up (`mixing/block_reader.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packed_begin import PackedBegin
from skillshard.mixing.round_ids import IdTable, counts_of
from skillshard.mixing.round_plan import RoundPlan, plan_round, read_ahead
from skillshard.mixing.round_records import RoundRecord
from skillshard.shards.token_set import SkillTokens


@runtime_checkable
class TokenRound(Protocol):
    """A round as places of the packed stream."""

    @property
    def first_draw(self) -> int:
        """First draw of the round."""
        ...

    @property
    def first(self) -> int:
        """Number of places of the stream before the round."""
        ...

    @property
    def end(self) -> int:
        """Number of places of the stream before the next round."""
        ...

    def table_at(self, place: int) -> IdTable:
        """Return the table of segments that holds a place of the stream."""
        ...

    def draws_to(self, place: int) -> int:
        """Return the number of draws of the stream with a token at this place or before.

        The number rises with the place, and reaches the end of the round at its last place.
        """
        ...


@runtime_checkable
class Packing(Protocol):
    """A way from the draws of a mixer to blocks of L tokens."""

    @property
    def is_dense(self) -> bool:
        """Whether every place of the stream holds a token, except in the last block of the stream."""
        ...

    def packed(self, number: int, first: int | None) -> TokenRound | None:
        """Return a round as places. Decide the round if nobody has. Return None beyond the end of the stream.

        Args:
            number: Number of the round.
            first: Number of places before the round. None: unknown.
        """
        ...

    def places_before(self, number: int) -> int:
        """Return the number of places before a decided round."""
        ...

    def places_to(self, number: int) -> int:
        """Return the number of places up to the end of a decided round."""
        ...

    def num_places(self) -> int | None:
        """Return the number of places of the whole stream, or None under the conditions of `Mixer.length`."""
        ...

    def cut_draw(self) -> TokenRound | None:
        """Return the last draw before the run as a round, if its tokens go on in the first block of the run."""
        ...

    def draws_per_block(self) -> float:
        """Return the expected number of draws of a block under the weights of round 0."""
        ...


@dataclass(frozen=True)
class Draws:
    """The draws of a mixer with their numbers of tokens. `plan`, `plan_of` and `counts` need a mixer whose draws are samples.

    Attributes:
        mixer: Mixer of the stream.
        tokens: Tokens of each skill of the mix.
        block_tokens: Number of tokens of a block, L.
        has_separator: Whether a separator follows each sample.
        begin: Beginning of the stream.
    """

    mixer: Mixer
    tokens: Sequence[SkillTokens]
    block_tokens: int
    has_separator: bool
    begin: PackedBegin

    def plan(self, number: int) -> RoundPlan | None:
        """Find the rows of a round, and begin to fetch their tokens from a store. Return None beyond the end of the stream."""
        plan = self.mixer.rows_of(number)
        if plan is not None and self.tokens[0].files.is_remote:
            read_ahead(self.mixer.round(number), self.mixer.orders, [tokens.prefetch for tokens in self.tokens])
        return plan

    def plan_of(self, record: RoundRecord) -> RoundPlan:
        """Find the rows of a round with at least one draw. Nothing is decided and nothing is fetched ahead."""
        train = [self.mixer.shards.train[skill] for skill in self.mixer.skills]
        return plan_round(record, train, self.mixer.orders, seed=self.mixer.seed)

    def counts(self, plan: RoundPlan) -> Int[np.ndarray, " draw"]:
        """Return the number of tokens of each draw of a round, without separators."""
        return counts_of(plan, self.tokens)

    def first_draw(self, number: int) -> int:
        """Return the first draw of a round."""
        return self.mixer.first_draw + number * self.mixer.round_draws

    def drawn_after(self, record: RoundRecord) -> list[int]:
        """Return the number of draws of each skill up to the end of a round."""
        return [before + count for before, count in zip(record.drawn_before, record.counts, strict=True)]

    def blocks_after(self, drawn: Sequence[int]) -> int:
        """Return the number of blocks after the first `drawn[i]` draws of each skill i, over all runs, if each draw is one block."""
        return self.begin.block + sum(drawn) - sum(self.mixer.run.drawn_before)


@dataclass(frozen=True)
class InOrder(ABC):
    """A packing whose blocks follow the order of the draws, so that the places before a round follow from the numbers of draws.

    Attributes:
        draws: Draws of the mixer.
    """

    draws: Draws

    @abstractmethod
    def place_after(self, drawn: Sequence[int]) -> int:
        """Return the place of the stream after the first `drawn[i]` draws of each skill i, over all runs."""

    def places_before(self, number: int) -> int:
        """Return the number of places before a decided round."""
        return self.place_after(self.draws.mixer.round(number).drawn_before)

    def places_to(self, number: int) -> int:
        """Return the number of places up to the end of a decided round."""
        return self.place_after(self.draws.drawn_after(self.draws.mixer.round(number)))

    def num_places(self) -> int | None:
        """Return the number of places of the whole stream, or None under the conditions of `Mixer.length`."""
        drawn = self.draws.mixer.num_drawn()
        return None if drawn is None else self.place_after(drawn)

    def cut_draw(self) -> TokenRound | None:
        """Return the last draw before the run as a round. None: no block cuts a draw that the next block goes on with."""
        return None
