"""The rounds and the reports of a run as one long table, for `skillshard inspect RUN --csv`."""

import csv
import io
from collections.abc import Iterator

from skillshard.mixing.counts import drawn_at
from skillshard.mixing.ledger import Ledger, SteeredRoundRecord
from skillshard.mixing.records import open_records

HEADER = ("draw", "step", "quantity", "skill", "value")


def run_table(ledger: Ledger) -> Iterator[str]:
    """Yield the lines of a CSV file with the header `HEADER`, a line for each number.

    The quantities of a round are "weight", "drawn" (draws of the round) and "epochs" (after the round), at the first draw of the round and
    without a step. A round after a steering by hand has the quantity "steering", the number of the steering. The quantity of a report is "loss", at the draw and the step of the report. A loss that is not a finite number is empty.

    Raises:
        LedgerError: The ledger holds no run, or a record is damaged.
    """
    records = open_records(ledger)
    yield _line(HEADER)
    for record in records.rounds:
        drawn = drawn_at(records.run, record, record.first_draw + record.num_draws)
        for number, skill in enumerate(records.run.skills):
            quantities = (
                ("weight", record.weights[number]),
                ("drawn", drawn[number] - record.drawn_before[number]),
                ("epochs", drawn[number] / records.run.num_samples[number]),
            )
            for quantity, value in quantities:
                yield _line((record.first_draw, None, quantity, skill, value))
        if isinstance(record, SteeredRoundRecord):
            yield _line((record.first_draw, None, "steering", None, record.steer))
    for report in records.observations:
        for skill, loss in report.losses.items():
            yield _line((report.draw, report.step, "loss", skill, loss))


def _line(values: tuple[object, ...]) -> str:
    """Write a line of CSV. A name with a comma or a quote is quoted.

    >>> _line((0, None, "loss", 'a "b", c', 0.5))
    '0,,loss,"a ""b"", c",0.5\\n'
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
