"""Signs of trouble in a run, found in the records of its ledger alone: every view of the run shows the same alarms."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from skillshard.mixing.ledger import ObservationRecord, RoundRecord, RunRecord
from skillshard.mixing.rounds import MANY_EPOCHS
from skillshard.printable import counted

SILENT_ROUNDS = 3
"""Number of rounds without a report after which an alarm says so."""
RISING_REPORTS = 3
"""Number of reports in a row with a rising loss after which an alarm says so, if the weight of the skill has grown meanwhile."""
PINNED_ROUNDS = 8
"""Number of rounds in a row in which the smallest or the largest weight stays the same after which an alarm says so."""

PINNED_WITHIN = 0.01
"""Largest relative change of a weight that stays. `floor` mixes with equal weights, so a weight at the floor still changes a little."""

Kind = Literal["repeated", "silent", "rising-loss", "pinned"]


class Alarm(NamedTuple):
    """A sign of trouble.

    Attributes:
        kind: "repeated": a skill passes 4 epochs (Muennighoff et al. 2023, arXiv:2305.16264, for a single corpus of text). "silent": no report for
            some rounds. "rising-loss": the loss of a skill rises while its weight grows. "pinned": a weight that changed earlier stays
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
) -> list[Alarm]:
    """Find the alarms of a run at its newest round.

    Args:
        run: Run of the ledger.
        rounds: Newest rounds, rising. `PINNED_ROUNDS` rounds suffice for all alarms.
        observations: Newest observations, rising. `RISING_REPORTS` + 1 observations suffice.
        first: Round 0. Weights that equal the weights of round 0 are no alarm: the weights of a static policy never change.
    """
    if not rounds:
        return []
    return [
        *_repeated(run, rounds[-1]),
        *_silent(run, rounds[-1], observations),
        *_rising(run, rounds, observations),
        *_pinned(run, rounds, first),
    ]


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


def _silent(run: RunRecord, newest: RoundRecord, observations: Sequence[ObservationRecord]) -> Iterator[Alarm]:
    if not reads_losses(run, newest):
        return
    last = max(observations[-1].draw if observations else 0, run.first_draw)
    num_rounds = (newest.first_draw + newest.num_draws - last) // run.round_draws
    if num_rounds >= SILENT_ROUNDS:
        yield Alarm(
            "silent",
            None,
            f"no losses were reported for {counted(num_rounds, 'round')}: the last report is of draw {last:,}, and the rounds are decided up to "
            f"draw {newest.first_draw + newest.num_draws:,}. Does the trainer still call report?",
        )


def _rising(
    run: RunRecord, rounds: Sequence[RoundRecord], observations: Sequence[ObservationRecord]
) -> Iterator[Alarm]:
    window = [observation for observation in observations if not observation.left_out][-RISING_REPORTS - 1 :]
    if len(window) <= RISING_REPORTS:
        return
    for number, skill in enumerate(run.skills):
        losses = [observation.losses.get(skill) for observation in window]
        rises = all(a is not None and b is not None and b > a for a, b in pairwise(losses))
        before = next((record for record in rounds if record.first_draw + record.num_draws > window[0].draw), rounds[0])
        weight_before, weight = before.weights[number], rounds[-1].weights[number]
        if rises and weight > weight_before:
            yield Alarm(
                "rising-loss",
                skill,
                f"the loss of {skill} has risen in {RISING_REPORTS} reports in a row, from {losses[0]:.3f} to {losses[-1]:.3f}, while its weight grew "
                f"from {weight_before:.3f} to {weight:.3f}. Is its data sound?",
            )


def _pinned(run: RunRecord, rounds: Sequence[RoundRecord], first: RoundRecord | None) -> Iterator[Alarm]:
    window = rounds[-PINNED_ROUNDS:]
    if len(window) < PINNED_ROUNDS or len(run.skills) < 3:  # of two weights one is always the smallest
        return
    columns = list(zip(*(record.weights for record in window), strict=True))
    if all(map(_stays, columns)):
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


def _stays(weights: Sequence[float]) -> bool:
    """Return whether weights differ by less than `PINNED_WITHIN` of the largest weight.

    >>> _stays((0.2, 0.2001, 0.2)), _stays((0.2, 0.21))
    (True, False)
    """
    return max(weights) - min(weights) <= PINNED_WITHIN * max(weights)
