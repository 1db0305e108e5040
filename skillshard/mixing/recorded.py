"""The past of a run, from its ledger and its shards: the samples of draws, and the draws of a sample.

The rounds of the ledger decide every draw, so the past needs neither the policy nor the trainer. Nothing is decided and nothing is
written here.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from skillshard import canonical, places
from skillshard.errors import LedgerError, ShardError, StorageError
from skillshard.hash_ranges import id_hash
from skillshard.memo import memoized
from skillshard.mixing.ledger import DirectoryLedger, Ledger, RoundRecord, RunRecord, skipped_by
from skillshard.mixing.order import interleave
from skillshard.mixing.positions import order_of, orders_of, standings_of
from skillshard.mixing.records import Records, open_records
from skillshard.mixing.round_plan import RoundPlan, plan_round
from skillshard.mixing.skill_order import SkillOrder
from skillshard.printable import counted
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards

SHARDS_NOTE = "beside/shards.json"
"""Name of the note on the place of the shards, beside the records of a run."""
PLANS_KEPT = 2
"""Number of plans of rounds kept in memory."""
KEYS_KEPT = 4096
"""Number of memory-mapped files of keys that stay open."""


class RecordedSample(NamedTuple):
    """A draw of a run.

    Attributes:
        draw: Position in the stream.
        round: Number of the round that decided the draw.
        skill: Name of the skill.
        epoch: Pass over the skill that the draw belongs to. The first pass is 0.
        id: Id of the sample.
        file, row: Corpus file and row of the sample, as the keys beside the shards say. None for shards without keys.
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


def note_shards(ledger: Ledger, root: str | os.PathLike[str]) -> None:
    """Note the place of the shards beside the records of a run, for commands that look at the run later.

    The note is no record: nothing in the stream depends on the place, and the shards may move.
    """
    place = places.public(root) if places.is_remote(root) else str(Path(root).absolute())
    ledger.put(SHARDS_NOTE, canonical.to_json({"place": place}))


def open_recorded(ledger: str | os.PathLike[str], shards: ShardSet | None = None) -> "RecordedStream":
    """Open the past of a run.

    Args:
        ledger: Directory of the run's ledger.
        shards: Shards of the run. None: the shards at the place that the run has noted.

    Raises:
        LedgerError: The ledger holds no run, a run over other shards, or no note of its shards.
        ShardError: The shards are not where the run has noted them.
    """
    directory = DirectoryLedger(ledger)
    if shards is None:
        open_records(directory)  # a place without a run gets the sentence about the run
        note = directory.get(SHARDS_NOTE)
        if note is None:
            raise LedgerError(f"{ledger} has no note of the place of its shards. Give `shards`, the shards of the run.")
        place = json.loads(note)["place"]
        try:
            shards = ShardSet.open(place)
        except (ShardError, StorageError) as error:
            raise LedgerError(
                f"the run {ledger} has read the shards at {place}, which cannot be opened: {error} If the shards were moved, give "
                "`shards`, their new place."
            ) from error
    return RecordedStream(directory, shards)


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


class RecordedStream:
    """The draws of the rounds that a run has decided.

    Args:
        ledger: Ledger of the run.
        shards: Shards of the run.

    Raises:
        LedgerError: The ledger holds no run, or a run over other shards.
    """

    def __init__(self, ledger: Ledger, shards: ShardSet) -> None:
        self.records: Records = open_records(ledger)
        self.run = self.records.run
        if self.run.blocks is not None:
            raise LedgerError(
                f"the draws of the run of {ledger} are blocks of tokens (unit 'blocks') and not samples: read the blocks with PackedTokens(..., "
                "packing='skill')."
            )
        chosen = _chosen_for_run(shards, self.run)
        if chosen is None:
            raise LedgerError(
                f"{ledger} is a run over the shards {self.run.shards}, and {places.public(shards.root)} holds the shards {shards.digest}. Give the "
                "shards of the run."
            )
        self.shards = chosen
        self._train: list[SkillShards] = [self.shards.train[skill] for skill in self.run.skills]
        self._orders = orders_of(self.run, self._train)
        self.num_rounds = self.records.rounds.num()
        self._plans: dict[int, RoundPlan] = {}
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

    def samples(self, draws: Sequence[int] | Int[np.ndarray, " sample"]) -> Iterator[RecordedSample]:
        """Read the samples of draws, in the order given.

        Raises:
            LedgerError: A draw is not decided yet, or lies beyond the end of the stream.
        """
        numbers = np.asarray(draws, np.int64)
        self._refuse_undecided(numbers)
        rounds, within = np.divmod(numbers - self.run.first_draw, self.run.round_draws)
        edges = [0, *(np.flatnonzero(np.diff(rounds)) + 1).tolist(), len(numbers)]
        for begin, end in pairwise(edges):
            if begin < end:
                yield from self._samples_of_round(int(rounds[begin]), within[begin:end])

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

    def draws_of(self, sample: StoredSample) -> Iterator[SeenAt]:
        """Find the draws of a training sample, in the order of the stream, among the decided rounds."""
        if sample.split != "train" or not self.num_rounds:
            return
        number = self.run.skills.index(sample.skill)
        order = self._orders[number]
        newest = self.records.rounds.existing(self.num_rounds - 1)
        num_drawn = newest.drawn_before[number] + newest.counts[number]
        # A run that continues another run has no draws before the place at which the run began.
        first = self.run.drawn_before[number]
        for epoch in _epochs(order, first, num_drawn):
            position = order.draw_of(epoch, order.offset(epoch, sample.shard, sample.row))
            if position is None or not first <= position < num_drawn:
                continue
            record = self._round_of(number, position)
            _, slot = interleave(np.array(record.counts), "round", self.run.seed, record.round)
            inside = position - record.drawn_before[number] + sum(record.counts[:number])
            within = int(np.flatnonzero(slot == inside)[0])
            if within < record.num_draws:  # with repeat="stop" the last round has fewer draws than counts
                yield SeenAt(record.first_draw + within, record.round, epoch)

    def skips_of(self, sample: StoredSample) -> Iterator[SkippedAt]:
        """Find the skipped stretches with a training sample, in the order of the stream of the run before."""
        part, begun = skipped_by(self.run), self.run.continues
        if sample.split != "train" or part is None or begun is None:
            return
        label = begun.skills[self.run.skills.index(sample.skill)].label
        before = next((standing for standing in standings_of(part) if standing.place.label == label), None)
        if before is None or sample.shard >= before.place.num_shards:
            return  # the run before did not have the sample
        rows = self._train[self.run.skills.index(sample.skill)].shard_rows[: before.place.num_shards]
        order = order_of(before, rows, part.seed)
        for stretch in part.stretches:
            for draws in stretch.skills:
                if draws.label != label:
                    continue
                end = draws.first + draws.num
                for epoch in _epochs(order, draws.first, end):
                    position = order.draw_of(epoch, order.offset(epoch, sample.shard, sample.row))
                    if position is not None and draws.first <= position < end:
                        yield SkippedAt(stretch.first, stretch.num, stretch.why, epoch)

    def _samples_of_round(self, number: int, within: Int[np.ndarray, " sample"]) -> Iterator[RecordedSample]:
        record = self.records.rounds.existing(number)
        plan = memoized(
            self._plans,
            number,
            lambda _: plan_round(record, self._train, self._orders, seed=self.run.seed),
            most=PLANS_KEPT,
        )
        before = np.array(record.drawn_before)
        rank = _rank_in_skill(plan.skill)
        texts, metas, ids = plan.texts(within), plan.metas(within), plan.ids(within)
        for position, text, meta, sample_id in zip(within.tolist(), texts, metas, ids, strict=True):
            skill = int(plan.skill[position])
            shard = plan.segments[int(plan.segment[position])][1]
            file, row = self._source(self._train[skill], shard, int(plan.row[position]))
            epoch, _ = self._orders[skill].place_of(int(before[skill] + rank[position]))
            yield RecordedSample(
                record.first_draw + position, number, self.run.skills[skill], epoch, sample_id, file, row, text, meta
            )

    def _source(self, skill_shards: SkillShards, shard: int, row: int) -> tuple[str | None, int | None]:
        if not self.shards.has_keys:
            return None, None
        # Opening a file of keys compares its digest, so the opened keys are kept.
        keys = memoized(self._keys, (skill_shards.skill, shard), lambda _: skill_shards.keys(shard), most=KEYS_KEPT)
        key = keys[row]
        return self.shards.source_file(int(key["file"]), skill_shards.editions[shard]), int(key["row"])

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

    def _refuse_undecided(self, draws: Int[np.ndarray, " sample"]) -> None:
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
            decided = (
                f"the draws {self.run.first_draw:,} to {self.num_draws - 1:,}"
                if 0 < self.run.first_draw < self.num_draws
                else f"{self.num_draws - self.run.first_draw:,} draws"
            )
            why = (
                f"the stream ended after {self.num_draws:,} draws"
                if self.has_ended
                else f"{self.records.ledger} has decided {decided}, in {counted(self.num_rounds, 'round')}"
            )
            raise LedgerError(f"draw {last:,} does not exist: {why}. Give a smaller draw.")


def _epochs(order: SkillOrder, first: int, end: int) -> range:
    """Return the epochs of the draws first .. end - 1 of a skill."""
    return range(order.place_of(first)[0], order.place_of(end - 1)[0] + 1) if first < end else range(0)


def _rank_in_skill(skill: Int[np.ndarray, " draw"]) -> Int[np.ndarray, " draw"]:
    """Number the draws of each skill in a round: 0, 1, 2, ...

    >>> _rank_in_skill(np.array([1, 0, 1, 1])).tolist()
    [0, 0, 1, 2]
    """
    by_skill = np.argsort(skill, kind="stable")
    counts = np.bincount(skill)
    rank = np.empty(len(skill), np.int64)
    rank[by_skill] = np.arange(len(skill)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


def _rows_of_id(skill_shards: SkillShards, shard: int, sample_id: str) -> list[int]:
    # The hashes of the ids rise in a shard. Two ids may share a hash, so the id itself decides.
    hashes, wanted = skill_shards.keys(shard)["id"], np.uint64(id_hash(sample_id))
    first, end = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
    if first == end:
        return []
    opened = skill_shards.open_shard(shard)
    return [row for row in range(int(first), int(end)) if opened.sample(row).id == sample_id]


def fits_run(shards: ShardSet, run: RunRecord) -> bool:
    """Return whether a run has read a shard set, or some of its skills."""
    return _chosen_for_run(shards, run) is not None


def _chosen_for_run(shards: ShardSet, run: RunRecord) -> ShardSet | None:
    """Return the shards of a run, which may have chosen some skills of a larger set. None: the run has read other shards."""
    if shards.digest == run.shards:
        return shards
    try:
        chosen = shards.choose(run.skills)
    except ShardError:
        return None
    return chosen if chosen.digest == run.shards else None
