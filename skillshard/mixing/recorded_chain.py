"""The past of a chain of continued runs: the samples of draws, and the draws of a sample, whichever run has drawn them.

Draws and steps go on counting from run to run, so a draw and a step of the chain belong to a single run. Each run of the chain reads its
own shards.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from skillshard.errors import LedgerError, ShardError, TokensError
from skillshard.memo import memoized
from skillshard.mixing.chain import Chain, Segment
from skillshard.mixing.ledger import HANDOVER, DirectoryLedger, read_record
from skillshard.mixing.noted_places import fits_run, shards_of_run
from skillshard.mixing.place_records import SkippedInOrder
from skillshard.mixing.positions import has_drawn, order_of, standings, standings_of
from skillshard.mixing.recorded import RecordedSample, RecordedStream
from skillshard.mixing.recorded_blocks import RecordedBlock, RecordedBlocks
from skillshard.mixing.recorded_rounds import SeenAt, StoredSample
from skillshard.mixing.records import open_records
from skillshard.mixing.run_records import HandoverRecord, ahead_of, open_skips_of, skipped_by
from skillshard.mixing.seen_draws import is_packed_by_best_fit
from skillshard.mixing.skill_blocks import refuse_other_tokens
from skillshard.mixing.steps import Anchor, Steps
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet


class DrawnInRun(NamedTuple):
    """A draw of a certain sample in a run of a chain. In a run of blocks, the draw is a block with a token of the sample.

    Attributes:
        draw: Position in the stream.
        step: Optimizer step that consumed the draw. None: unknown, as in each round that was packed by best-fit.
        round: Number of the round of the run that decided the draw.
        epoch: Pass over the skill, from 0.
        run: Directory of the run's ledger.
    """

    draw: int
    step: int | None
    round: int
    epoch: int
    run: str


class SkippedInRun(NamedTuple):
    """A certain sample in a stretch of a run that the next run has skipped.

    Attributes:
        first, num: First draw and number of draws of the stretch, in the stream of `run`.
        why: Reason for the skip.
        epoch: Pass over the skill in which the sample was skipped, from 0.
        run: Directory of the ledger of the run whose draws were skipped. None: the ledger is not at its noted place.
    """

    first: int
    num: int
    why: str
    epoch: int
    run: str | None


class SkippedBetween(NamedTuple):
    """A stretch of a run that the next run of a chain has skipped.

    Attributes:
        stretch: The draws, with the reason for the skip.
        before: Directory of the ledger of the run whose draws were skipped. None: the ledger is not at its noted place.
        after: Directory of the ledger of the run that continues from a draw before the stretch.
    """

    stretch: SkippedInOrder
    before: str | None
    after: str


class CutRound(NamedTuple):
    """A round that was packed by best-fit and in which another run was continued. The model has seen draws from everywhere in the round.

    Attributes:
        run: Directory of the ledger of the run.
        round: Number of the round.
        first, end: First draw of the round, and the draw after its last draw.
        end_draw: Draw from which the next run continues: the number of draws that the model has seen.
    """

    run: str
    round: int
    first: int
    end: int
    end_draw: int


@dataclass(frozen=True)
class SeenSample:
    """A sample and its draws in a chain of runs.

    Attributes:
        skill: Name of the skill, in the newest run whose shards have the sample.
        split: "train" or "holdout".
        history: Draws and skips of the sample, in the order of the chain.
        faults: Sentence about each run of the chain that could not be searched.
        unfit: Sentence about each run whose reports contradict the given number of draws of a step. The steps of this run follow from its reports.
        num_draws: Number of draws of the runs that were searched.
        num_runs: Number of runs that were searched.
    """

    skill: str
    split: str
    history: list[DrawnInRun | SkippedInRun]
    faults: list[str]
    unfit: list[str]
    num_draws: int
    num_runs: int

    @property
    def num_drawn(self) -> int:
        """Number of draws of the sample."""
        return sum(isinstance(event, DrawnInRun) for event in self.history)


def open_recorded_chain(
    ledger: str | os.PathLike[str], shards: Sequence[ShardSet] = (), tokens: Sequence[TokenSet] = ()
) -> "RecordedChain":
    """Open the past of a run together with the past of the runs that the run continues.

    Args:
        ledger: Directory of the run's ledger.
        shards: Shards of runs of the chain that were moved. A run without its shards in `shards` reads the shards at the place that the run has noted.
        tokens: Tokens of runs of the chain whose draws are blocks (unit="blocks"), if the tokens were moved.

    Raises:
        LedgerError: The ledger holds no run, no run of the chain has read one of `shards`, or the run has no note of its shards. Another cause is
            `tokens` for a chain without runs of blocks.
        TokensError: No run of the chain has read one of `tokens`.
    """
    chain = RecordedChain(ledger, shards, tokens)
    for shard_set in shards:
        if not any(fits_run(shard_set, segment.run) for segment in chain.segments):
            own = chain.segments[-1]
            shards_of_run(own.records.ledger, own.run, shard_set)  # raises with the digests of both
    units = [(segment.name, segment.run.blocks) for segment in chain.segments if segment.run.blocks is not None]
    if tokens and not units:
        raise LedgerError(
            f"no draw of {ledger} is a block of tokens (unit 'blocks'), so no tokens are needed: leave out `tokens`."
        )
    for token_set in tokens:
        if all(unit.tokens != token_set.digest for _, unit in units):
            refuse_other_tokens(token_set, units[-1][1], f"the run of {units[-1][0]}")
    chain.last  # noqa: B018  # a run without its shards is noticed now, and not at the first use
    return chain


class RecordedChain:
    """The draws that a run and the runs before have decided, each up to the draw from which the next run continues.

    Args:
        ledger: Directory of the ledger of the last run.
        shards: As in `open_recorded_chain`.
        tokens: As in `open_recorded_chain`.

    Raises:
        LedgerError: The ledger holds no run.
    """

    def __init__(
        self, ledger: str | os.PathLike[str], shards: Sequence[ShardSet] = (), tokens: Sequence[TokenSet] = ()
    ) -> None:
        self.chain = Chain.of(open_records(DirectoryLedger(ledger)))
        self._shards, self._tokens = list(shards), list(tokens)
        self._streams: dict[int, RecordedStream | RecordedBlocks] = {}

    @property
    def segments(self) -> list[Segment]:
        """Runs of the chain, the oldest first."""
        return self.chain.segments

    @property
    def last(self) -> RecordedStream | RecordedBlocks:
        """Past of the last run alone."""
        return self._stream(len(self.segments) - 1)

    @property
    def first_draw(self) -> int:
        """First draw of the oldest run that can be read."""
        return self.chain.first_draw

    @property
    def num_draws(self) -> int:
        """End of the draws of all decided rounds of the last run."""
        return self.last.num_draws

    @cached_property
    def skips(self) -> list[SkippedBetween]:
        """Stretches that runs of the chain have skipped, in the order of the chain."""
        skips = []
        for number, segment in enumerate(self.segments):
            part = skipped_by(segment.run)
            before = self.segments[number - 1].name if number else None
            skips += [SkippedBetween(stretch, before, segment.name) for stretch in part.stretches] if part else []
        return skips

    def samples(
        self, draws: Sequence[int] | Int[np.ndarray, " sample"]
    ) -> Iterator[tuple[str, RecordedSample | RecordedBlock]]:
        """Read draws in the order given, each with the directory of the ledger of its run. A draw is a sample, or a block of samples.

        Raises:
            LedgerError: A draw is not decided yet, lies beyond the end of the stream, or belongs to a run whose ledger or shards are missing.
        """
        numbers = np.asarray(draws, np.int64)
        if not len(numbers):
            return
        first = int(numbers.min())
        if 0 <= first < self.first_draw:
            raise LedgerError(f"draw {first:,} was asked for. {self.chain.why_missing}")
        starts = [segment.run.first_draw for segment in self.segments]
        owners = np.maximum(np.searchsorted(starts, numbers, side="right") - 1, 0)
        edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(numbers)]
        for begin, end in pairwise(edges):
            number = int(owners[begin])
            stream, own = self._stream(number), numbers[begin:end]
            for draw in stream.blocks(own) if isinstance(stream, RecordedBlocks) else stream.samples(own):
                yield self.segments[number].name, draw

    def draws_of_step(self, step: int, step_draws: int | None = None) -> range:
        """Return the draws that an optimizer step has consumed. The first step is step 1.

        Args:
            step: Number of the step.
            step_draws: Number of draws of the step. None: the number follows from the reports of the run with the step.

        Raises:
            LedgerError: The number of draws of the step is unknown, the step is not decided yet, or the step belongs to a run whose ledger is missing.
        """
        for number in reversed(range(len(self.segments))):
            segment = self.segments[number]
            begun = segment.run.continues
            if begun is not None and begun.step is not None and 1 <= step <= begun.step:
                continue
            steps = self._steps(number, step_draws)
            draws = steps.draws_of(step)
            # A run that begins at an unknown step tells by the draws of the step whether the step is its own.
            if draws.start >= segment.run.first_draw:
                if segment.end is None:
                    draws = self._stream(number).existing_draws(step, steps)
                else:
                    draws = range(draws.start, min(draws.stop, segment.end))
                self._refuse_packed(segment, step, draws)
                return draws
        raise LedgerError(f"step {step:,} was asked for. {self.chain.why_missing}")

    @staticmethod
    def _refuse_packed(segment: Segment, step: int, draws: range) -> None:
        """Raise LedgerError for the draws of a step in a round that was packed by best-fit."""
        for draw in (draws.start, draws.stop - 1):
            record = segment.records.rounds.get(segment.run.round_of(draw))
            if record is not None and is_packed_by_best_fit(segment.records.ledger, record):
                raise LedgerError(
                    f"the draws of step {step:,} are unknown: round {record.round:,} of {segment.name} was packed by best-fit, and its blocks have samples "
                    f"from everywhere in the round. The draws of the round are {record.first_draw:,} to {record.first_draw + record.num_draws - 1:,}: give "
                    "`draw` and `num`."
                )

    def cut_rounds(self) -> list[CutRound]:
        """List the rounds that were packed by best-fit and in which another run was continued, in the order of the chain."""
        cut = []
        for segment in self.segments[:-1]:
            assert segment.end is not None
            if segment.end == segment.run.first_draw:
                continue  # the run gave no draw
            record = segment.records.rounds.get(segment.run.round_of(segment.end - 1))
            if (
                record is not None
                and segment.end < record.first_draw + record.num_draws
                and is_packed_by_best_fit(segment.records.ledger, record)
            ):
                end = record.first_draw + record.num_draws
                cut.append(CutRound(segment.name, record.round, record.first_draw, end, segment.end))
        return cut

    def seen(self, sample_id: str, *, step_draws: int | None = None) -> SeenSample:
        """Find the draws of a sample in all runs of the chain, and the skipped stretches with the sample.

        A run whose ledger, shards or tokens are missing is named in `SeenSample.faults`.

        Args:
            sample_id: Id of the sample.
            step_draws: Number of draws of an optimizer step. None: the number follows from the reports. The reports of a run count more than
                this number, and a run whose reports contradict the number is named in `SeenSample.unfit`.

        Raises:
            LedgerError: No shards of the chain have the sample, or the shards or the tokens of the last run are missing.
            ShardError: The shards of the last run have no keys.
        """
        faults = [] if self.chain.missing is None else [self.chain.why_missing]
        history: list[DrawnInRun | SkippedInRun] = []
        newest: StoredSample | None = None
        samples_of: dict[str, list[StoredSample]] = {}
        searched: list[int] = []
        unfit: list[str] = []
        for number, segment in enumerate(self.segments):
            try:
                past = self._stream(number)
                digest = past.shards.digest
                if digest not in samples_of:
                    samples_of[digest] = past.find(sample_id)
            except (LedgerError, ShardError, TokensError) as error:
                if segment.end is None:
                    raise
                faults.append(str(error))
                continue
            searched.append((past.num_draws if segment.end is None else segment.end) - segment.run.first_draw)
            history += self._skips(number, sample_id, samples_of)
            for sample in samples_of[digest]:
                newest = sample
                draws = [draw for draw in past.draws_of(sample) if self._is_given(number, sample, draw)]
                history += self._with_steps(number, draws, step_draws, unfit)
        if newest is None:
            where = "the run's shards" if len(self.segments) == 1 else "the shards of these runs"
            raise LedgerError(" ".join([f"no sample of {where} has the id {sample_id!r}.", *faults]))
        return SeenSample(newest.skill, newest.split, history, faults, unfit, sum(searched), len(searched))

    def _skips(self, number: int, sample_id: str, samples_of: dict[str, list[StoredSample]]) -> list[SkippedInRun]:
        """Find the stretches with a sample that a run has skipped. `samples_of` has the places of the sample in known shards."""
        part = skipped_by(self.segments[number].run)
        if part is None:
            return []
        # The run may lack the skill of a skipped sample, and the run before has the skill.
        before = self._streams.get(number - 1)
        of_run = self.segments[number - 1].name if number else None
        past = self._stream(number) if before is None else before
        samples = samples_of.get(past.shards.digest) or past.find(sample_id)
        return [SkippedInRun(*skip, of_run) for sample in samples for skip in past.skips_of(sample, part)]

    def _is_given(self, number: int, sample: StoredSample, draw: SeenAt) -> bool:
        """Return whether a run gave a decided draw before the next run began."""
        segment = self.segments[number]
        if segment.end is None:
            return True
        record = segment.records.rounds.existing(draw.round)
        is_cut = record.first_draw < segment.end < record.first_draw + record.num_draws
        if not is_cut or not is_packed_by_best_fit(segment.records.ledger, record):
            return draw.draw < segment.end
        # The consumed blocks have draws from everywhere in the round. The next run knows which samples count as drawn.
        handover = read_record(self.segments[number + 1].records.ledger, HANDOVER, HandoverRecord)
        assert handover is not None
        part, past = skipped_by(handover), self._stream(number)
        places = (
            standings(handover.skills, open_skips_of(handover), ahead_of(handover))
            if part is None
            else standings_of(part)
        )
        label = past.label_of(sample.skill)
        standing = next(own for own in places if own.place.label == label)
        rows = past.train[segment.run.skills.index(sample.skill)].shard_rows
        order = order_of(standing, rows, segment.run.seed)
        return has_drawn(standing, draw.epoch, order.offset(draw.epoch, sample.shard, sample.row))

    def _with_steps(
        self, number: int, draws: Sequence[SeenAt], step_draws: int | None, unfit: list[str]
    ) -> list[DrawnInRun]:
        """Add the steps to draws of a run. If the reports of the run contradict `step_draws`, the reports count, and `unfit` gets a sentence."""
        run = self.segments[number].name
        try:
            steps = self._steps(number, step_draws)
            numbers = [self._step_of(steps, number, draw) for draw in draws]
        except LedgerError as error:
            if step_draws is None or step_draws < 1:
                raise
            unfit.append(str(error))
            steps = self._steps(number, None)
            numbers = [self._step_of(steps, number, draw) for draw in draws]
        return [
            DrawnInRun(draw.draw, step, draw.round, draw.epoch, run) for draw, step in zip(draws, numbers, strict=True)
        ]

    def _step_of(self, steps: Steps, number: int, draw: SeenAt) -> int | None:
        """Return the step of a draw. None for a round that was packed by best-fit, whose draws come in the order of its blocks."""
        records = self.segments[number].records
        return (
            None
            if is_packed_by_best_fit(records.ledger, records.rounds.existing(draw.round))
            else steps.step_of(draw.draw)
        )

    def _stream(self, number: int) -> RecordedStream | RecordedBlocks:
        return memoized(self._streams, number, self._opened, most=len(self.segments))

    def _opened(self, number: int) -> RecordedStream | RecordedBlocks:
        """Open the past of a run of the chain. Runs over the same shards share the opened shards."""
        segment = self.segments[number]
        candidates = [*self._shards, *(stream.shards for stream in self._streams.values())]
        shards = next((own for own in candidates if fits_run(own, segment.run)), None)
        unit = segment.run.blocks
        if unit is None:
            return RecordedStream(segment.records.ledger, shards)
        opened = [stream.tokens for stream in self._streams.values() if isinstance(stream, RecordedBlocks)]
        tokens = next((own for own in [*self._tokens, *opened] if own.digest == unit.tokens), None)
        return RecordedBlocks(segment.records.ledger, shards, tokens)

    def _steps(self, number: int, step_draws: int | None) -> Steps:
        segment = self.segments[number]
        end_step = segment.end_step
        if segment.end is not None and end_step is None:
            # The next run was continued by a draw alone. Its first report, if it is of this draw, knows the step.
            first = self.segments[number + 1].records.observations.get(0)
            end_step = first.step if first is not None and first.draw == segment.end else None
        end = None if segment.end is None or end_step is None else Anchor(end_step, segment.end)
        return Steps(segment.records, step_draws, end=end)
