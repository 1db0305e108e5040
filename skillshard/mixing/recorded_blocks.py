"""The past of a run whose draws are blocks of one skill: the samples of blocks, and the blocks of a sample.

The blocks follow from the rounds of the ledger, from the shards and from the token counts. The token ids are not read.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from skillshard.errors import LedgerError
from skillshard.memo import memoized
from skillshard.mixing.ledger import Ledger
from skillshard.mixing.noted_places import noted_tokens
from skillshard.mixing.recorded_rounds import RecordedRounds, SeenAt, StoredSample
from skillshard.mixing.round_plan import RoundPlan, number_round
from skillshard.mixing.skill_blocks import SkillBlocks, blocks_of_run, refuse_other_tokens
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet


class BlockPart(NamedTuple):
    """The tokens of a sample that stand in a block.

    Attributes:
        id: Id of the sample.
        file, row: Corpus file of the sample, and its row there, counted from 1. The keys beside the shards have both. None for shards without keys.
        first_token: Number of tokens of the sample before these tokens.
        num_tokens: Number of these tokens, the separator included.
        sample_tokens: Number of tokens of the whole sample, the separator included.
        text: Text of the whole sample.
        meta: Metadata of the sample.
    """

    id: str
    file: str | None
    row: int | None
    first_token: int
    num_tokens: int
    sample_tokens: int
    text: str
    meta: dict[str, Any]

    @property
    def is_cut(self) -> bool:
        """Whether the beginning or the end of the block cuts the sample."""
        return self.num_tokens < self.sample_tokens


class RecordedBlock(NamedTuple):
    """A draw of a run of blocks.

    Attributes:
        draw: Position in the stream.
        round: Number of the round that decided the draw.
        skill: Name of the skill.
        epoch: Pass over the skill that the block belongs to. The first pass is 0.
        parts: Samples with a token in the block, in the order of the tokens.
    """

    draw: int
    round: int
    skill: str
    epoch: int
    parts: list[BlockPart]


class RecordedBlocks(RecordedRounds):
    """The blocks of the rounds that a run has decided.

    Args:
        ledger: Ledger of the run.
        shards: Shards of the run. None: the shards at the place that the run has noted.
        tokens: Tokens of the run. Token counts are enough. None: the tokens at the place that the run has noted.

    Raises:
        LedgerError: The ledger holds no run, a run over other shards, a run of samples, or no note of its shards or tokens. Another cause is files
            that are not where the run has noted them.
        TokensError: The tokens are not the tokens of the run.
    """

    def __init__(self, ledger: Ledger, shards: ShardSet | None = None, tokens: TokenSet | None = None) -> None:
        super().__init__(ledger, shards)
        if self.run.blocks is None:
            raise LedgerError(
                f"the draws of the run of {ledger} are samples and not blocks: open the run with `open_recorded`."
            )
        tokens = noted_tokens(ledger) if tokens is None else tokens
        refuse_other_tokens(tokens, self.run.blocks, f"the run of {ledger}")
        self.tokens = tokens
        self._blocks = blocks_of_run(self.run, [tokens.train[skill] for skill in self.run.skills])
        self._numbers: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def blocks(self, draws: Sequence[int] | Int[np.ndarray, " sample"]) -> Iterator[RecordedBlock]:
        """Read the samples of blocks, in the order given.

        Raises:
            LedgerError: A draw is not decided yet, or lies beyond the end of the stream.
        """
        numbers = np.asarray(draws, np.int64)
        self.refuse_undecided(numbers)
        for draw in numbers.tolist():
            number = self.run.round_of(draw)
            record = self.records.rounds.existing(number)
            skills, blocks = memoized(self._numbers, number, self._numbered, most=1)
            within = draw - record.first_draw
            yield self._block(draw, number, int(skills[within]), int(blocks[within]))

    def draws_of(self, sample: StoredSample) -> Iterator[SeenAt]:
        """Find the blocks with a token of a training sample, in the order of the stream, among the decided rounds."""
        if sample.split != "train":
            return
        skill = self.run.skills.index(sample.skill)
        own = self._blocks[skill]
        drawn = range(own.drawn, self.num_drawn(skill))
        if not drawn:
            return
        for epoch in range(own.place_of(drawn.start)[0], own.place_of(drawn.stop - 1)[0] + 1):
            for block in own.blocks_with(epoch, sample.shard, sample.row):
                place = self.place_in_stream(skill, block) if block in drawn else None
                if place is not None:
                    yield SeenAt(*place, epoch)

    def _numbered(self, number: int) -> tuple[Int[np.ndarray, " draw"], Int[np.ndarray, " draw"]]:
        return number_round(self.records.rounds.existing(number), seed=self.run.seed)

    def _block(self, draw: int, number: int, skill: int, block: int) -> RecordedBlock:
        own = self._blocks[skill]
        epoch, place = own.place_of(block)
        begin = own.first_token(epoch, place)
        parts = list(self._parts(skill, own, epoch, begin, begin + own.unit.block_tokens))
        return RecordedBlock(draw, number, self.run.skills[skill], epoch, parts)

    def _parts(self, skill: int, own: SkillBlocks, epoch: int, begin: int, end: int) -> Iterator[BlockPart]:
        (segments, place), begins = own.samples(epoch, *own.positions(epoch, begin, end))
        num = len(begins) - 1
        plan = RoundPlan(
            self.train,
            [(skill, shard) for shard, _ in segments],
            [rows for _, rows in segments],
            np.full(num, skill),
            np.arange(num) if place is None else place,
        )
        # A sample without tokens and without a separator stands in no block.
        (within,) = np.nonzero(np.diff(begins))
        columns = zip(within.tolist(), plan.ids(within), plan.texts(within), plan.metas(within), strict=True)
        for position, sample_id, text, meta in columns:
            first, last = int(begins[position]), int(begins[position + 1])
            file, row = self.source_of(
                self.train[skill], segments[int(plan.segment[position])][0], int(plan.row[position])
            )
            start, stop = max(first, begin), min(last, end)
            yield BlockPart(sample_id, file, row, start - first, stop - start, last - first, text, meta)
