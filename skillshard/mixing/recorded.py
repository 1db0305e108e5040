"""The past of a run, from its ledger and its shards: the samples of draws, and the draws of a sample.

The rounds of the ledger decide every draw, so the past needs neither the policy nor the trainer. Nothing is decided and nothing is
written here. `recorded_blocks.py` has the past of a run whose draws are blocks.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from skillshard.errors import LedgerError
from skillshard.memo import memoized
from skillshard.mixing.ledger import DirectoryLedger, Ledger
from skillshard.mixing.positions import orders_of
from skillshard.mixing.recorded_rounds import RecordedRounds, SeenAt, StoredSample, epochs_between
from skillshard.mixing.round_plan import RoundPlan, number_round, plan_round
from skillshard.shards.read import ShardSet

PLANS_KEPT = 2
"""Number of plans of rounds kept in memory."""


class RecordedSample(NamedTuple):
    """A draw of a run.

    Attributes:
        draw: Position in the stream.
        round: Number of the round that decided the draw.
        skill: Name of the skill.
        epoch: Pass over the skill that the draw belongs to. The first pass is 0.
        id: Id of the sample.
        file, row: Corpus file of the sample, and its row there, counted from 1. The keys beside the shards have both. None for shards without keys.
        text: Text of the sample.
        meta: Metadata of the sample.
    """

    draw: int
    round: int
    skill: str
    epoch: int
    id: str
    file: str | None
    row: int | None
    text: str
    meta: dict[str, Any]


def open_recorded(ledger: str | os.PathLike[str], shards: ShardSet | None = None) -> "RecordedStream":
    """Open the past of a run whose draws are samples.

    Args:
        ledger: Directory of the run's ledger.
        shards: Shards of the run. None: the shards at the place that the run has noted.

    Raises:
        LedgerError: The ledger holds no run, a run over other shards, a run of blocks, or no note of its shards. Another cause is shards that are
            not where the run has noted them.
    """
    return RecordedStream(DirectoryLedger(ledger), shards)


class RecordedStream(RecordedRounds):
    """The samples of the rounds that a run has decided.

    Args:
        ledger: Ledger of the run.
        shards: As for `open_recorded`.

    Raises:
        LedgerError: As in `open_recorded`.
    """

    def __init__(self, ledger: Ledger, shards: ShardSet | None = None) -> None:
        super().__init__(ledger, shards)
        if self.run.blocks is not None:
            raise LedgerError(
                f"the draws of the run of {ledger} are blocks of tokens (unit 'blocks') and not samples: open the run with `open_recorded_chain`."
            )
        self._orders = orders_of(self.run, self.train)
        self._plans: dict[int, RoundPlan] = {}

    def samples(self, draws: Sequence[int] | Int[np.ndarray, " sample"]) -> Iterator[RecordedSample]:
        """Read the samples of draws, in the order given.

        Raises:
            LedgerError: A draw is not decided yet, or lies beyond the end of the stream.
        """
        numbers = np.asarray(draws, np.int64)
        self.refuse_undecided(numbers)
        rounds, within = np.divmod(numbers - self.run.first_draw, self.run.round_draws)
        edges = [0, *(np.flatnonzero(np.diff(rounds)) + 1).tolist(), len(numbers)]
        for begin, end in pairwise(edges):
            if begin < end:
                yield from self._samples_of_round(int(rounds[begin]), within[begin:end])

    def draws_of(self, sample: StoredSample) -> Iterator[SeenAt]:
        """Find the draws of a training sample, in the order of the stream, among the decided rounds."""
        if sample.split != "train":
            return
        number = self.run.skills.index(sample.skill)
        order = self._orders[number]
        # A run that continues another run has no draws before the place at which the run began.
        drawn = range(self.run.drawn_before[number], self.num_drawn(number))
        for epoch in epochs_between(order, drawn.start, drawn.stop):
            position = order.draw_of(epoch, order.offset(epoch, sample.shard, sample.row))
            place = self.place_in_stream(number, position) if position is not None and position in drawn else None
            if place is not None:
                yield SeenAt(*place, epoch)

    def _samples_of_round(self, number: int, within: Int[np.ndarray, " sample"]) -> Iterator[RecordedSample]:
        record = self.records.rounds.existing(number)
        plan = memoized(
            self._plans,
            number,
            lambda _: plan_round(record, self.train, self._orders, seed=self.run.seed),
            most=PLANS_KEPT,
        )
        _, numbers = number_round(record, seed=self.run.seed)
        texts, metas, ids = plan.texts(within), plan.metas(within), plan.ids(within)
        for position, text, meta, sample_id in zip(within.tolist(), texts, metas, ids, strict=True):
            skill = int(plan.skill[position])
            shard = plan.segments[int(plan.segment[position])][1]
            file, row = self.source_of(self.train[skill], shard, int(plan.row[position]))
            epoch, _ = self._orders[skill].place_of(int(numbers[position]))
            yield RecordedSample(
                record.first_draw + position, number, self.run.skills[skill], epoch, sample_id, file, row, text, meta
            )
