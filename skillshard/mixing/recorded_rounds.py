"""The decided rounds of a run with the shards of the run: the part that the pasts of samples and of blocks share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from skillshard.errors import LedgerError
from skillshard.hash_ranges import id_hash
from skillshard.memo import memoized
from skillshard.mixing.ledger import Ledger
from skillshard.mixing.noted_places import shards_of_run
from skillshard.mixing.place_records import SkippedPart
from skillshard.mixing.positions import order_of, standings_of
from skillshard.mixing.records import Records, open_records
from skillshard.mixing.round_plan import number_round
from skillshard.mixing.round_records import RoundRecord
from skillshard.mixing.run_records import skipped_by
from skillshard.mixing.skill_order import SkillOrder
from skillshard.mixing.steps import Steps
from skillshard.printable import counted
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards

KEYS_KEPT = 4096
"""Number of memory-mapped files of keys that stay open."""


class SeenAt(NamedTuple):
    """A draw of a certain sample.

    Attributes:
        draw: Position in the stream.
        round: Number of the round that decided the draw.
        epoch: Pass over the skill, from 0.
    """

    draw: int
    round: int
    epoch: int


class SkippedAt(NamedTuple):
    """A certain sample in a skipped stretch.

    Attributes:
        first, num: First draw and number of draws of the stretch, in the stream of the run before.
        why: Reason for the skip.
        epoch: Pass over the skill in which the sample was skipped, from 0.
    """

    first: int
    num: int
    why: str
    epoch: int


@dataclass(frozen=True)
class StoredSample:
    """The place of a sample in the shards.

    Attributes:
        skill: Name of the skill.
        split: "train" or "holdout".
        shard: Index of the shard among the shards of the skill and the split.
        row: Row in the shard.
    """

    skill: str
    split: str
    shard: int
    row: int


class RecordedRounds:
    """The rounds that a run has decided.

    Args:
        ledger: Ledger of the run.
        shards: Shards of the run. None: the shards at the place that the run has noted.

    Raises:
        LedgerError: The ledger holds no run, a run over other shards, or no note of its shards. Another cause is shards that are not where the run
            has noted them.
    """

    def __init__(self, ledger: Ledger, shards: ShardSet | None) -> None:
        self.records: Records = open_records(ledger)
        self.run = self.records.run
        self.shards = shards_of_run(ledger, self.run, shards)
        self.train: list[SkillShards] = [self.shards.train[skill] for skill in self.run.skills]
        self.num_rounds = self.records.rounds.num()
        self._keys: dict[tuple[str, int], np.ndarray] = {}

    @property
    def num_draws(self) -> int:
        """End of the draws of all decided rounds. A trainer may have consumed fewer draws."""
        if not self.num_rounds:
            return self.run.first_draw
        newest = self.records.rounds.existing(self.num_rounds - 1)
        return newest.first_draw + newest.num_draws

    @property
    def has_ended(self) -> bool:
        """Whether the stream has an end, and the end is decided."""
        return self.num_draws < self.run.first_draw_of(self.num_rounds)

    def num_drawn(self, skill: int) -> int:
        """Count the draws of a skill in all decided rounds, over all runs."""
        if not self.num_rounds:
            return self.run.drawn_before[skill]
        newest = self.records.rounds.existing(self.num_rounds - 1)
        return newest.drawn_before[skill] + newest.counts[skill]

    def place_in_stream(self, skill: int, number: int) -> tuple[int, int] | None:
        """Find a draw of a skill in the stream.

        Args:
            skill: Number of the skill.
            number: Number of the draw among the draws of the skill, over all runs. The round of the draw is decided.

        Returns:
            The draw of the stream and the number of its round, or None for a draw that the last round of a stream has left out.
        """
        record = self._round_of(skill, number)
        skills, numbers = number_round(record, seed=self.run.seed)
        (within,) = np.nonzero((skills == skill) & (numbers == number))
        return (record.first_draw + int(within[0]), record.round) if len(within) else None

    def find(self, sample_id: str) -> list[StoredSample]:
        """Find a sample by its id, by binary search in the keys beside each shard.

        Raises:
            ShardError: The shards have no keys.
        """
        return [
            StoredSample(skill, split, shard, row)
            for split, skills in (("train", self.shards.train), ("holdout", self.shards.holdout))
            for skill, skill_shards in skills.items()
            for shard in range(len(skill_shards.columns.number))
            for row in _rows_of_id(skill_shards, shard, sample_id)
        ]

    def label_of(self, skill: str) -> str:
        """Return the name of a skill of the run in the key of its order."""
        begun = self.run.continues
        return skill if begun is None else begun.skills[self.run.skills.index(skill)].label

    def skips_of(self, sample: StoredSample, part: SkippedPart | None = None) -> Iterator[SkippedAt]:
        """Find the skipped stretches with a training sample, in the order of the stream of the run before.

        Args:
            sample: Sample of this run.
            part: Skipped part of the run that continues this run. None: the skipped part of this run.
        """
        part = skipped_by(self.run) if part is None else part
        if sample.split != "train" or part is None:
            return
        label = self.label_of(sample.skill)
        before = next((standing for standing in standings_of(part) if standing.place.label == label), None)
        if before is None or sample.shard >= before.place.num_shards:
            return  # the run before did not have the sample
        rows = self.train[self.run.skills.index(sample.skill)].shard_rows[: before.place.num_shards]
        order = order_of(before, rows, part.seed)
        for stretch in part.stretches:
            for draws in stretch.skills:
                if draws.label != label:
                    continue
                end = draws.first + draws.num
                for epoch in epochs_between(order, draws.first, end):
                    position = order.draw_of(epoch, order.offset(epoch, sample.shard, sample.row))
                    if position is not None and draws.first <= position < end:
                        yield SkippedAt(stretch.first, stretch.num, stretch.why, epoch)

    def source_of(self, skill_shards: SkillShards, shard: int, row: int) -> tuple[str | None, int | None]:
        """Return the corpus file of a sample and its row there, from 1 as in ids and in errors. The stored keys count from 0."""
        if not self.shards.has_keys:
            return None, None
        # Opening a file of keys compares its digest, so the opened keys are kept.
        keys = memoized(self._keys, (skill_shards.skill, shard), lambda _: skill_shards.keys(shard), most=KEYS_KEPT)
        key = keys[row]
        return self.shards.source_file(int(key["file"]), skill_shards.editions[shard]), int(key["row"]) + 1

    def _round_of(self, skill: int, position: int) -> RoundRecord:
        """Find the round of a skill's draw by binary search, which reads a few records of a long run."""
        first, last = 0, self.num_rounds - 1
        while first < last:
            middle = (first + last) // 2
            record = self.records.rounds.existing(middle)
            if record.drawn_before[skill] + record.counts[skill] > position:
                last = middle
            else:
                first = middle + 1
        return self.records.rounds.existing(first)

    def refuse_undecided(self, draws: Int[np.ndarray, " sample"]) -> None:
        if not len(draws):
            return
        if int(draws.min()) < 0:
            raise LedgerError(f"draw {int(draws.min())} was asked for: draws are 0, 1, 2, ...")
        if int(draws.min()) < self.run.first_draw:
            raise LedgerError(
                f"draw {int(draws.min()):,} was asked for, and {self.records.ledger} continues another run from draw {self.run.first_draw:,}: look into "
                "the ledger of that run, or open both runs with `open_recorded_chain`."
            )
        if (last := int(draws.max())) >= self.num_draws:
            raise LedgerError(f"draw {last:,} does not exist: {self._extent}. Give a smaller draw.")

    def existing_draws(self, step: int, steps: Steps) -> range:
        """Return the draws of an optimizer step. The last step of a stream that has ended may have fewer draws.

        Raises:
            LedgerError: A draw of the step is not decided yet, or lies beyond the end of the stream.
        """
        draws = steps.draws_of(step)
        if draws.stop <= self.num_draws:
            return draws
        if self.has_ended and draws.start < self.num_draws:
            return range(draws.start, self.num_draws)
        last = steps.step_of(self.num_draws - 1) if self.has_ended else (steps.step_of(self.num_draws) or 1) - 1
        remedy = f" Give a step up to {last:,}." if last else ""
        raise LedgerError(
            f"step {step:,} does not exist: its draws are {draws.start:,} to {draws.stop - 1:,}, and {self._extent}.{remedy}"
        )

    @property
    def _extent(self) -> str:
        """Extent of the stream, as a part of a sentence."""
        if self.has_ended:
            return f"the stream ended after {self.num_draws:,} draws"
        decided = (
            f"the draws {self.run.first_draw:,} to {self.num_draws - 1:,}"
            if 0 < self.run.first_draw < self.num_draws
            else f"{self.num_draws - self.run.first_draw:,} draws"
        )
        return f"{self.records.ledger} has decided {decided}, in {counted(self.num_rounds, 'round')}"


def epochs_between(order: SkillOrder, first: int, end: int) -> range:
    """Return the epochs of the draws first .. end - 1 of a skill."""
    return range(order.place_of(first)[0], order.place_of(end - 1)[0] + 1) if first < end else range(0)


def _rows_of_id(skill_shards: SkillShards, shard: int, sample_id: str) -> list[int]:
    # The hashes of the ids rise in a shard. Two ids may share a hash, so the id itself decides.
    hashes, wanted = skill_shards.keys(shard)["id"], np.uint64(id_hash(sample_id))
    first, end = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
    if first == end:
        return []
    opened = skill_shards.open_shard(shard)
    return [row for row in range(int(first), int(end)) if opened.sample(row).id == sample_id]
