"""`packing="skill"`: a block has tokens of one skill, and the draws of the mixer are the blocks (`mixing/skill_blocks.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from skillshard.mixing.packings.packing import InOrder
from skillshard.mixing.round_plan import number_round
from skillshard.mixing.run_records import BlockUnit
from skillshard.mixing.skill_blocks import SkillBlocks, SkillRound


@dataclass(frozen=True)
class Skill(InOrder):
    """The packing `skill`.

    Attributes:
        draws: As in `InOrder`. The draws of the mixer are blocks.
        blocks: Blocks of each skill.
        unit: Blocks of the run.
        is_dense: As in `Packing`. The blocks at the end of a stream are full too.
    """

    blocks: Sequence[SkillBlocks]
    unit: BlockUnit
    is_dense: bool = True

    def packed(self, number: int, first: int | None) -> SkillRound | None:
        """Return a round as places, as `Packing.packed` says."""
        mixer = self.draws.mixer
        record = mixer.begun(number)
        if record is None:
            return None
        skill, numbers = number_round(record, seed=mixer.seed)
        first = self.places_before(number) if first is None else first
        return SkillRound(record.first_draw, first, skill, numbers, self.blocks, self.unit)

    def place_after(self, drawn: Sequence[int]) -> int:
        """Return the place of the stream after the first `drawn[i]` draws of each skill i, over all runs."""
        return self.draws.blocks_after(drawn) * self.draws.block_tokens

    def draws_per_block(self) -> float:
        """Return the number of draws of a block: 1."""
        return 1.0
