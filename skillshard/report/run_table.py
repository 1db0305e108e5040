"""The rounds and the reports of a run and of the runs before as one long table, for `skillshard inspect RUN --csv`."""

import csv
import io
from collections.abc import Iterator, Sequence

from skillshard.mixing.chain import Segment
from skillshard.mixing.counts import drawn_at
from skillshard.mixing.round_records import RoundRecord, SteeredRoundRecord

HEADER = ("draw", "step", "quantity", "skill", "value")


def run_table(segments: Sequence[Segment]) -> Iterator[str]:
    """Yield the lines of a CSV file with the header `HEADER`, a line for each number.

    The quantities of a round are "weight", "drawn" (draws of the round) and "epochs" (after the round), at the first draw of the round and
    without a step. A round after a steering by hand has the quantity "steering", the number of the steering. The last round of a run ends where
    the next run begins. The quantity of a report is "loss", at the draw and the step of the report. A loss that is not a finite number is empty.

    Args:
        segments: Runs of a chain, the oldest first.

    Raises:
        LedgerError: A record is damaged.
    """
    yield _line(HEADER)
    for segment in segments:
        for record in segment.rounds():
            yield from _round(segment, record)
    # A report that was copied from the run before has the same draw, and the names of the new run.
    reports = {report.draw: report for segment in segments for report in segment.reports()}
    for _, report in sorted(reports.items()):
        for skill, loss in report.losses.items():
            yield _line((report.draw, report.step, "loss", skill, loss))


def _round(segment: Segment, record: RoundRecord) -> Iterator[str]:
    run, drawn = segment.run, drawn_at(segment.run, record, segment.end_of(record))
    for number, skill in enumerate(run.skills):
        quantities = (
            ("weight", record.weights[number]),
            ("drawn", drawn[number] - record.drawn_before[number]),
            ("epochs", drawn[number] / run.num_samples[number]),
        )
        for quantity, value in quantities:
            yield _line((record.first_draw, None, quantity, skill, value))
    if isinstance(record, SteeredRoundRecord):
        yield _line((record.first_draw, None, "steering", None, record.steer))


def _line(values: tuple[object, ...]) -> str:
    """Write a line of CSV. A name with a comma or a quote is quoted.

    >>> _line((0, None, "loss", 'a "b", c', 0.5))
    '0,,loss,"a ""b"", c",0.5\\n'
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
