"""Skipped draws: stretches of the stream of a run whose samples the run that continues it does not give.

A stretch is a part of the stream of the run before, and begins at the draw from which the new run continues, or later. The samples
that the run before gave at these draws count as seen. docs/design/0019 has the rules. `skipped_blocks.py` has the stretches of a run whose draws
are blocks.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from skillshard.errors import LedgerError, PolicyError
from skillshard.mixing.counts import drawn_at
from skillshard.mixing.place_records import AheadSkippedPart, SkipInEpoch, SkippedDraws, SkippedPart, SkippedStretch
from skillshard.mixing.positions import Standing, ahead_in
from skillshard.mixing.records import Records, round_up_to
from skillshard.mixing.run_records import HandoverRecord, RunRecord, skipped_by
from skillshard.mixing.stream import LAST_DRAW
from skillshard.number_checks import is_whole

Stretch = tuple[int, int, str]
"""First draw, number of draws, and the reason for the skip."""


class DecidedStretch(NamedTuple):
    """A stretch of decided draws.

    Attributes:
        first, num, why: As in `Stretch`.
        starts, stops: Number of draws of each skill of the run before the stretch and up to its end, over all runs.
    """

    first: int
    num: int
    why: str
    starts: list[int]
    stops: list[int]


def skipped_part(
    records: Records,
    skip: Sequence[Stretch],
    *,
    draw: int,
    before: Sequence[Standing],
    earlier: Sequence[SkipInEpoch],
) -> SkippedPart:
    """Find the draws of each skill in stretches of a run that the new run skips.

    Args:
        records: Records of the run before.
        skip: Stretches of the stream of the run before, at least one.
        draw: Draw up to which the model has seen draws.
        before: Where each skill stands at this draw.
        earlier: Skips of earlier runs in the open epochs, the oldest first.

    Raises:
        PolicyError: A stretch is no first draw, number of draws and reason, or two stretches overlap.
        LedgerError: A stretch begins before the draw or is not decided.
    """
    stretches = [
        SkippedStretch(
            first=own.first,
            num=own.num,
            why=own.why,
            skills=[
                SkippedDraws(label=standing.place.label, first=start, num=stop - start)
                # Absent skills follow the skills of the run.
                for standing, start, stop in zip(before, own.starts, own.stops, strict=False)
                if stop > start
            ],
        )
        for own in decided_stretches(records, skip, draw=draw)
    ]
    seed, places, ahead = records.run.seed, [standing.place for standing in before], ahead_in(before)
    if ahead:
        return AheadSkippedPart(seed=seed, places=places, earlier=list(earlier), stretches=stretches, ahead=ahead)
    return SkippedPart(seed=seed, places=places, earlier=list(earlier), stretches=stretches)


def decided_stretches(records: Records, skip: Sequence[Stretch], *, draw: int) -> list[DecidedStretch]:
    """Count the draws of each skill before and after each skipped stretch, rising.

    Raises:
        PolicyError, LedgerError: As in `skipped_part`.
    """
    stretches = []
    for first, num, why in checked_stretches(skip):
        if first < draw:
            raise LedgerError(
                f"the skipped stretch from draw {first:,} on begins before draw {draw:,}, up to which the model has seen draws: give a stretch from draw "
                f"{draw:,} on, or continue from an earlier checkpoint."
            )
        starts, stops = (_drawn_before(records, end) for end in (first, first + num))
        stretches.append(DecidedStretch(first, num, why, starts, stops))
    return stretches


def given_stretches(record: HandoverRecord | RunRecord) -> list[Stretch]:
    """Return the skipped stretches of a record as the user gave them, rising."""
    part = skipped_by(record)
    return [] if part is None else [(own.first, own.num, own.why) for own in part.stretches]


def checked_stretches(skip: Sequence[Any]) -> list[Stretch]:
    """Return the stretches, rising. Raise PolicyError as in `skipped_part`."""
    for stretch in skip:
        if not (isinstance(stretch, (tuple, list)) and len(stretch) == 3):
            raise PolicyError(
                f"skip has {stretch!r}: give stretches (first, num, why), such as skip=[(12_800, 640, 'the loss rose')]."
            )
        first, num, why = stretch
        if not is_whole(first, 0, LAST_DRAW) or not is_whole(num, 1, LAST_DRAW):
            raise PolicyError(
                f"skip has the first draw {first!r} and {num!r} draws: give a first draw of at least 0 and at least 1 draw."
            )
        if not (isinstance(why, str) and why.strip() and why.isprintable()):
            raise PolicyError(
                f"skip has the reason {why!r} for draw {first:,}: give a reason, a line of printable text."
            )
    rising = sorted((int(first), int(num), why) for first, num, why in skip)
    for (first, num, _), (following, _, _) in pairwise(rising):
        if first + num > following:
            raise PolicyError(
                f"the skipped stretches from draw {first:,} and from draw {following:,} on overlap: the first stretch ends at draw {first + num:,}. Give "
                "stretches without common draws."
            )
    return rising


def _drawn_before(records: Records, draw: int) -> list[int]:
    """Count the draws of each skill before a draw. Raise LedgerError if the run has not decided the draws."""
    record = round_up_to(
        records,
        draw,
        what=f"the skipped draws end at draw {draw:,}",
        remedy="only the samples of decided draws are known. Skip decided draws.",
    )
    return records.run.drawn_before if record is None else drawn_at(records.run, record, draw)
