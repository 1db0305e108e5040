"""Signs of trouble in a run, found in the records of its ledger alone: every view of the run shows the same alarms.

The process that reports also writes each alarm to the logger "skillshard" of Python's `logging` when the alarm begins. A process that
waits long for a report writes this alarm itself, because the process that reports may have ended.
"""

import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from skillshard.mixing.records import Numbered, Records
from skillshard.mixing.round_records import ObservationRecord, RoundRecord, WaitRecord
from skillshard.mixing.run_records import RunRecord
from skillshard.printable import counted

LOGGER = logging.getLogger("skillshard")

MANY_EPOCHS = 4
"""Number of epochs of a skill after which a warning says that the skill is repeated.

Up to 4 epochs, repeated data is worth almost as much as new data (Muennighoff et al. 2023, arXiv:2305.16264).
"""
SILENT_ROUNDS = 3
"""Number of rounds without a report after which an alarm says so. A run with rarer reports has as many of its usual distances instead."""
RISING_REPORTS = 3
"""Number of reports in a row with a rising loss after which an alarm says so, if the weight of the skill has grown meanwhile."""
GROWN_BY = 0.001
"""Smallest relative growth of a weight that counts. A weight that approaches 1 still grows in the last digits."""
PINNED_ROUNDS = 8
"""Number of rounds in a row in which the smallest or the largest weight stays the same after which an alarm says so."""

PINNED_WITHIN = 0.01
"""Largest relative change of a weight that stays. `floor` mixes with equal weights, so a weight at the floor still changes a little."""

CHANGED_BY = 0.1
"""Relative change of another weight from which on a weight that stays is remarkable. With a small step size no weight moves much."""

Kind = Literal["repeated", "silent", "rising-loss", "pinned"]


class Alarm(NamedTuple):
    """A sign of trouble.

    Attributes:
        kind: "repeated": a skill passes 4 epochs (Muennighoff et al. 2023, arXiv:2305.16264, for a single corpus of text). "silent": no report for
            some rounds, or a loader that waits long for a report. "rising-loss": the loss of a skill rises while its weight grows. "pinned": a weight that changed earlier stays
            at the smallest or the largest weight of the round.
        skill: Name of the skill, or None for an alarm about the whole run.
        sentence: Facts and remedy.
    """

    kind: Kind
    skill: str | None
    sentence: str


def alarms(
    run: RunRecord,
    rounds: Sequence[RoundRecord],
    observations: Sequence[ObservationRecord],
    *,
    first: RoundRecord | None = None,
    wait: WaitRecord | None = None,
) -> list[Alarm]:
    """Find the alarms of a run at its newest round.

    Args:
        run: Run of the ledger.
        rounds: Newest rounds, rising. `PINNED_ROUNDS` rounds suffice for all alarms.
        observations: Newest observations, rising. `RISING_REPORTS` + 1 observations suffice.
        first: Round 0. Weights that equal the weights of round 0 are no alarm: the weights of a static policy never change.
        wait: Long wait for the report of the next round.
    """
    if not rounds:
        return [] if wait is None else [_waiting(run, wait)]
    return [
        *_repeated(run, rounds[-1]),
        *(_silent(run, rounds[-1], observations) if wait is None else [_waiting(run, wait)]),
        *_rising(run, rounds, observations),
        *_pinned(run, rounds, first),
    ]


class Watch:
    """The alarms of a run as a process has logged them.

    An alarm is logged once when it begins, and again only if the alarm has ended meanwhile. The first look of a process logs all
    alarms, so a resumed run repeats the alarms that still hold. The alarm "repeated" is not logged: RepetitionWarning says the same
    in the process that reads the stream. A long wait is logged by the process that waits.
    """

    def __init__(self) -> None:
        self._generation = -1
        self._first: RoundRecord | None = None
        self._rounds: dict[int, RoundRecord] = {}
        self._reports: dict[int, ObservationRecord] = {}
        self._known: set[tuple[Kind, str | None]] = set()

    def look(self, records: Records) -> None:
        """Read the records that are new since the last look, and log the alarms that have begun."""
        if records.generation != self._generation:  # a resume has left records behind
            self._generation = records.generation
            self._first = None
            self._rounds.clear()
            self._reports.clear()
        _read_on(self._rounds, records.rounds, PINNED_ROUNDS)
        _read_on(self._reports, records.observations, RISING_REPORTS + 1)
        if self._first is None and self._rounds:
            self._first = records.rounds.existing(0)
        begun = [
            alarm
            for alarm in alarms(records.run, [*self._rounds.values()], [*self._reports.values()], first=self._first)
            if alarm.kind != "repeated"
        ]
        for alarm in begun:
            if (alarm.kind, alarm.skill) not in self._known:
                LOGGER.warning(
                    "%s: %s", records.ledger, alarm.sentence, extra={"alarm": alarm.kind, "skill": alarm.skill}
                )
        self._known = {(alarm.kind, alarm.skill) for alarm in begun}


def _read_on(window: dict[int, Any], records: Numbered[Any], most: int) -> None:
    """Read the records after a window into the window, and keep the newest records."""
    number = max(window) + 1 if window else max(0, records.num() - most)
    while (record := records.get(number)) is not None:
        window[number] = record
        number += 1
    for old in sorted(window)[:-most]:
        del window[old]


def reads_losses(run: RunRecord, newest: RoundRecord) -> bool:
    """Return whether the rounds of a run use reported losses, as far as the records show."""
    return run.initial_losses or newest.observed_to > run.copied_draw


def _repeated(run: RunRecord, newest: RoundRecord) -> Iterator[Alarm]:
    for skill, epochs in zip(run.skills, newest.epochs, strict=True):
        if epochs > MANY_EPOCHS:
            yield Alarm(
                "repeated",
                skill,
                f"{skill} has passed {epochs:.1f} epochs. Beyond {MANY_EPOCHS} epochs data is worth much less (measured for a single corpus of "
                "text). Lower its weight, or end the repetition by a rule of `repeat`.",
            )


def open_wait(records: Records) -> WaitRecord | None:
    """Return the long wait for the report of the next round, or None without a wait, or after the report."""
    wait = records.wait(records.rounds.num())
    num = records.observations.num()
    last_draw = records.observations.existing(num - 1).draw if num else -1
    return wait if wait is not None and last_draw < wait.needed_draw else None


def log_wait(records: Records, wait: WaitRecord) -> None:
    """Log a long wait in the process that waits."""
    alarm = _waiting(records.run, wait)
    LOGGER.warning("%s: %s", records.ledger, alarm.sentence, extra={"alarm": alarm.kind, "skill": alarm.skill})


def _waiting(run: RunRecord, wait: WaitRecord) -> Alarm:
    needed = (
        f"the losses of draw {wait.needed_draw:,}, before the first step"
        if wait.needed_draw == run.first_draw and run.needs_first_losses
        else f"a report of draw {wait.needed_draw:,} or later"
    )
    last = "no losses were reported yet" if wait.last_draw is None else f"the last report is of draw {wait.last_draw:,}"
    decided = f", and the rounds are decided up to draw {run.first_draw_of(wait.round):,}" if wait.round else ""
    return Alarm(
        "silent",
        None,
        f"a loader has waited {wait.waited_s:g} s for {needed}: {last}{decided}. Does the trainer still call report?",
    )


def _silent(run: RunRecord, newest: RoundRecord, observations: Sequence[ObservationRecord]) -> Iterator[Alarm]:
    # An observation that was copied from the run before does not count: the new training may measure no losses any more.
    draws = [observation.draw for observation in observations if observation.draw > run.copied_draw]
    if not draws and not reads_losses(run, newest):
        return
    last = max(draws[-1] if draws else 0, run.first_draw)
    # Rounds and not seconds, so that the alarm is the same in every replay.
    num_rounds = (newest.first_draw + newest.num_draws - last) // run.round_draws
    if num_rounds >= _most_silent(run, draws):
        yield Alarm(
            "silent",
            None,
            f"no losses were reported for {counted(num_rounds, 'round')}: the last report is of draw {last:,}, and the rounds are decided up to "
            f"draw {newest.first_draw + newest.num_draws:,}. Does the trainer still call report?",
        )


def _most_silent(run: RunRecord, draws: Sequence[int]) -> int:
    """Return the number of rounds without a report from which on the silence is an alarm.

    Args:
        run: Run of the ledger.
        draws: Draws of the newest reports, rising.
    """
    # Without a policy that reads losses, a trainer may report every tenth round. Its usual pause is no alarm. The lower median: a
    # single long pause, or the beginning of the run far before the newest reports, changes nothing.
    pauses = [after - before for before, after in pairwise([run.first_draw, *draws]) if after > before]
    usual = statistics.median_low(pauses) / run.round_draws if pauses else 0.0
    # A loader that reads ahead decides lag + 1 rounds beyond the last report, and then waits.
    ahead = 0 if run.lag == "live" else run.lag + 2
    return max(SILENT_ROUNDS, ahead, math.ceil(SILENT_ROUNDS * usual))


def _rising(
    run: RunRecord, rounds: Sequence[RoundRecord], observations: Sequence[ObservationRecord]
) -> Iterator[Alarm]:
    window = [observation for observation in observations if not observation.left_out][-RISING_REPORTS - 1 :]
    if len(window) <= RISING_REPORTS:
        return
    before = next((record for record in rounds if record.first_draw + record.num_draws > window[0].draw), rounds[0])
    for number, skill in enumerate(run.skills):
        losses = [observation.losses.get(skill) for observation in window]
        if not all(a is not None and b is not None and b > a for a, b in pairwise(losses)):
            continue
        weight_before, weight = before.weights[number], rounds[-1].weights[number]
        if weight > (1 + GROWN_BY) * weight_before:
            yield Alarm(
                "rising-loss",
                skill,
                f"the loss of {skill} has risen in {RISING_REPORTS} reports in a row, from {losses[0]:.3f} to {losses[-1]:.3f}, while its weight grew "
                f"from {weight_before:.4g} to {weight:.4g}. Is its data sound?",
            )


def _pinned(run: RunRecord, rounds: Sequence[RoundRecord], first: RoundRecord | None) -> Iterator[Alarm]:
    window = rounds[-PINNED_ROUNDS:]
    if len(window) < PINNED_ROUNDS or len(run.skills) < 3:  # of two weights one is always the smallest
        return
    columns = list(zip(*(record.weights for record in window), strict=True))
    # If all weights stay, the policy has settled, and no limit decides in its place.
    if all(_stays(column, CHANGED_BY) for column in columns):
        return
    for number, (skill, weights) in enumerate(zip(run.skills, columns, strict=True)):
        if not _stays(weights) or (first is not None and _stays((first.weights[number], *weights))):
            continue
        for side, limit in (("smallest", min), ("largest", max)):
            if all(limit(record.weights) == weight for record, weight in zip(window, weights, strict=True)):
                yield Alarm(
                    "pinned",
                    skill,
                    f"the weight of {skill} has stayed at {weights[-1]:.4f}, the {side} weight, for {PINNED_ROUNDS} rounds, while other weights "
                    "changed. A limit such as floor or cap may decide in place of the policy.",
                )


def _stays(weights: Sequence[float], within: float = PINNED_WITHIN) -> bool:
    """Return whether weights differ by at most a share of the largest weight.

    >>> _stays((0.2, 0.2001, 0.2)), _stays((0.2, 0.21))
    (True, False)
    """
    return max(weights) - min(weights) <= within * max(weights)
