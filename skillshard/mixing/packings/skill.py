"""`packing="skill"`: a block has tokens of one skill, and the draws of the mixer are the blocks (`mixing/skill_blocks.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skillshard.mixing.ledger import BlockUnit
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.round_plan import order_round
from skillshard.mixing.skill_blocks import SkillRound
from skillshard.shards.token_set import SkillTokens


@dataclass(frozen=True)
class Skill:
    """The packing `skill`.

    Attributes:
        mixer: Mixer whose draws are blocks.
        tokens: Tokens of each skill of the mix.
        unit: Blocks of the run.
        is_dense: As in `Packing`. The blocks at the end of a stream are full too.
    """

    mixer: Mixer
    tokens: Sequence[SkillTokens]
    unit: BlockUnit
    is_dense: bool = True

    def packed(self, number: int, first: int | None) -> SkillRound | None:
        """Return a round as places, as `Packing.packed` says."""
        record = self.mixer.begun(number)
        if record is None:
            return None
        skill, slot = order_round(record, seed=self.mixer.seed)
        first_slot = np.cumsum(record.counts) - record.counts
        numbers = np.array(record.drawn_before)[skill] + slot - first_slot[skill]
        return SkillRound(record.first_draw, skill, numbers, self.mixer.orders, self.tokens, self.unit)

    def places_before(self, number: int) -> int:
        """Return the number of places before a decided round."""
        return sum(self.mixer.round(number).drawn_before) * self.unit.block_tokens

    def places_to(self, number: int) -> int:
        """Return the number of places up to the end of a decided round."""
        return self.places_before(number) + sum(self.mixer.round(number).counts) * self.unit.block_tokens

    def num_places(self) -> int | None:
        """Return the number of places of the whole stream, or None under the conditions of `Mixer.length`."""
        length = self.mixer.length()
        return None if length is None else length * self.unit.block_tokens

    def cut_draw(self) -> None:
        """Return None: no block cuts a draw that another run goes on with."""

    def draws_per_block(self) -> float:
        """Return the number of draws of a block: 1."""
        return 1.0
