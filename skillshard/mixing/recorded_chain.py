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

from skillshard.errors import LedgerError, ShardError
from skillshard.memo import memoized
from skillshard.mixing.chain import Chain, Segment
from skillshard.mixing.ledger import DirectoryLedger, skipped_by
from skillshard.mixing.place_records import SkippedStretch
from skillshard.mixing.recorded import RecordedSample, RecordedStream, StoredSample, fits_run, open_recorded
from skillshard.mixing.records import open_records
from skillshard.mixing.steps import Anchor, Steps
from skillshard.shards.read import ShardSet


class DrawnInRun(NamedTuple):
    """A draw of a certain sample in a run of a chain.

    Attributes:
        draw: Position in the stream.
        step: Optimizer step that consumed the draw. None: unknown.
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

    stretch: SkippedStretch
    before: str | None
    after: str


@dataclass(frozen=True)
class SeenSample:
    """A sample and its draws in a chain of runs.

    Attributes:
        skill: Name of the skill, in the newest run whose shards have the sample.
        split: "train" or "holdout".
        history: Draws and skips of the sample, in the order of the chain.
        faults: Sentence about each run of the chain that could not be searched.
        num_draws: Number of draws of the runs that were searched.
        num_runs: Number of runs that were searched.
    """

    skill: str
    split: str
    history: list[DrawnInRun | SkippedInRun]
    faults: list[str]
    num_draws: int
    num_runs: int

    @property
    def num_drawn(self) -> int:
        """Number of draws of the sample."""
        return sum(isinstance(event, DrawnInRun) for event in self.history)


def open_recorded_chain(ledger: str | os.PathLike[str], shards: Sequence[ShardSet] = ()) -> "RecordedChain":
    """Open the past of a run together with the past of the runs that the run continues.

    Args:
        ledger: Directory of the run's ledger.
        shards: Shards of runs of the chain that were moved. A run without its shards in `shards` reads the shards at the place that the run has noted.

    Raises:
        LedgerError: The ledger holds no run, no run of the chain has read one of `shards`, or the run has no note of its shards.
    """
    chain = RecordedChain(ledger, shards)
    for shard_set in shards:
        if not any(fits_run(shard_set, segment.run) for segment in chain.segments):
            open_recorded(ledger, shard_set)  # raises with the digests of both
    chain.last  # noqa: B018  # a run without its shards is noticed now, and not at the first use
    return chain


class RecordedChain:
    """The draws that a run and the runs before have decided, each up to the draw from which the next run continues.

    Args:
        ledger: Directory of the ledger of the last run.
        shards: As in `open_recorded_chain`.

    Raises:
        LedgerError: The ledger holds no run.
    """

    def __init__(self, ledger: str | os.PathLike[str], shards: Sequence[ShardSet] = ()) -> None:
        self.chain = Chain.of(open_records(DirectoryLedger(ledger)))
        self._shards = list(shards)
        self._streams: dict[int, RecordedStream] = {}

    @property
    def segments(self) -> list[Segment]:
        """Runs of the chain, the oldest first."""
        return self.chain.segments

    @property
    def last(self) -> RecordedStream:
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

    def samples(self, draws: Sequence[int] | Int[np.ndarray, " sample"]) -> Iterator[tuple[str, RecordedSample]]:
        """Read the samples of draws, in the order given, each with the directory of the ledger of its run.

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
            for sample in self._stream(number).samples(numbers[begin:end]):
                yield self.segments[number].name, sample

    def draws_of_step(self, step: int, step_draws: int | None = None) -> range:
        """Return the draws that an optimizer step has consumed. The first step is step 1.

        Args:
            step: Number of the step.
            step_draws: Number of draws of the step. None: the number follows from the reports of the run with the step.

        Raises:
            LedgerError: The number of draws of the step is unknown, or the step belongs to a run whose ledger is missing.
        """
        for number in reversed(range(len(self.segments))):
            segment = self.segments[number]
            begun = segment.run.continues
            if begun is not None and begun.step is not None and 1 <= step <= begun.step:
                continue
            draws = self._steps(number, step_draws).draws_of(step)
            # A run that begins at an unknown step tells by the draws of the step whether the step is its own.
            if draws.start >= segment.run.first_draw:
                return draws if segment.end is None else range(draws.start, min(draws.stop, segment.end))
        raise LedgerError(f"step {step:,} was asked for. {self.chain.why_missing}")

    def seen(self, sample_id: str, *, step_draws: int | None = None) -> SeenSample:
        """Find the draws of a sample in all runs of the chain, and the skipped stretches with the sample.

        A run whose ledger or shards are missing is named in `SeenSample.faults`.

        Args:
            sample_id: Id of the sample.
            step_draws: Number of draws of an optimizer step. None: the number follows from the reports.

        Raises:
            LedgerError: No shards of the chain have the sample, or the shards of the last run are missing.
            ShardError: The shards of the last run have no keys.
        """
        faults = [] if self.chain.missing is None else [self.chain.why_missing]
        history: list[DrawnInRun | SkippedInRun] = []
        newest: StoredSample | None = None
        samples_of: dict[str, list[StoredSample]] = {}
        searched = []
        for number, segment in enumerate(self.segments):
            try:
                past = self._stream(number)
                digest = past.shards.digest
                if digest not in samples_of:
                    samples_of[digest] = past.find(sample_id)
            except (LedgerError, ShardError) as error:
                if segment.end is None:
                    raise
                faults.append(str(error))
                continue
            searched.append((past.num_draws if segment.end is None else segment.end) - segment.run.first_draw)
            for sample in samples_of[digest]:
                newest = sample
                history += [
                    SkippedInRun(*skip, self.segments[number - 1].name if number else None)
                    for skip in past.skips_of(sample)
                ]
                steps = self._steps(number, step_draws)
                history += [
                    DrawnInRun(draw.draw, steps.step_of(draw.draw), draw.round, draw.epoch, segment.name)
                    for draw in past.draws_of(sample)
                    if segment.end is None or draw.draw < segment.end
                ]
        if newest is None:
            where = "the run's shards" if len(self.segments) == 1 else "the shards of these runs"
            raise LedgerError(" ".join([f"no sample of {where} has the id {sample_id!r}.", *faults]))
        return SeenSample(newest.skill, newest.split, history, faults, sum(searched), len(searched))

    def _stream(self, number: int) -> RecordedStream:
        return memoized(self._streams, number, self._opened, most=len(self.segments))

    def _opened(self, number: int) -> RecordedStream:
        """Open the past of a run of the chain. Runs over the same shards share the opened shards."""
        segment = self.segments[number]
        candidates = [*self._shards, *(stream.shards for stream in self._streams.values())]
        return open_recorded(segment.name, next((own for own in candidates if fits_run(own, segment.run)), None))

    def _steps(self, number: int, step_draws: int | None) -> Steps:
        segment = self.segments[number]
        end_step = segment.end_step
        if segment.end is not None and end_step is None:
            # The next run was continued by a draw alone. Its first report, if it is of this draw, knows the step.
            first = self.segments[number + 1].records.observations.get(0)
            end_step = first.step if first is not None and first.draw == segment.end else None
        end = None if segment.end is None or end_step is None else Anchor(end_step, segment.end)
        return Steps(segment.records, step_draws, end=end)
