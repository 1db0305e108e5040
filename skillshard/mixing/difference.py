"""The first difference between two runs, from their ledgers alone."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from skillshard import canonical
from skillshard.artefact import differences
from skillshard.mixing.ledger import RecordType, RunRecord, SteeredRoundRecord
from skillshard.mixing.order import interleave
from skillshard.mixing.records import Numbered, Records
from skillshard.printable import counted

Kind = Literal["equal", "configuration", "observation", "round", "length"]
SHOWN = 6
"""Number of fields that an answer names."""
# Checksums differ wherever anything before differs, and counts and places of a continued run follow from other fields.
DERIVED = ("checksum", "previous", "last_observation")


class Difference(NamedTuple):
    """The first difference between two runs.

    Attributes:
        kind: Place of the difference. "length": the records of one run go on after the records of the other run.
        draw: Draw of the report, or first draw of the round. None for "equal", "configuration" and "length".
        fields: Fields that differ, as `field: first run -> second run`.
        first_other_sample: First draw at which the runs have other samples, among the draws that both runs have decided. None if all
            samples are the same.
        sentence: The answer.
    """

    kind: Kind
    draw: int | None
    fields: list[str]
    first_other_sample: int | None
    sentence: str


def difference(first: Records, second: Records) -> Difference:
    """Find the first difference between two runs.

    Raises:
        LedgerError: A record is damaged.
    """
    sample = first_other_sample(first, second)
    samples = (
        "All draws that both runs have decided are the same samples."
        if sample is None
        else f"The samples differ from draw {sample:,} on."
    )
    fields = differences(_plain(first.run), _plain(second.run))
    if fields:
        return Difference(
            "configuration", None, fields, sample, f"the configurations differ: {_some(fields)}. {samples}"
        )
    reports, rounds = (_first_other(getattr(first, kind), getattr(second, kind)) for kind in ("observations", "rounds"))
    # A round comes after the reports that it has used.
    if reports is not None and (rounds is None or reports[0] < second.rounds.existing(rounds[0]).num_observed):
        number, fields = reports
        draw = first.observations.existing(number).draw
        return Difference(
            "observation",
            draw,
            fields,
            sample,
            f"report {number:,}, of draw {draw:,}, differs: {_some(fields)}. {samples}",
        )
    if rounds is not None:
        number, fields = rounds
        draw = first.rounds.existing(number).first_draw
        return Difference(
            "round",
            draw,
            fields,
            sample,
            f"round {number:,}, from draw {draw:,} on, differs although the reports before it are equal: "
            f"{_some(_of_round(first, second, number) or fields)}. {samples}",
        )
    lengths = [(own.rounds.num(), own.observations.num()) for own in (first, second)]
    if lengths[0] != lengths[1]:
        of_first, of_second = (
            f"{counted(rounds, 'round')} and {counted(reports, 'report')}" for rounds, reports in lengths
        )
        fields = [
            f"{kind}: {old} -> {new}"
            for kind, old, new in zip(("rounds", "observations"), *lengths, strict=True)
            if old != new
        ]
        return Difference(
            "length",
            None,
            fields,
            sample,
            f"equal as far as both runs go: {of_first} in the first run, {of_second} in the second run.",
        )
    num_rounds, num_reports = lengths[0]
    return Difference(
        "equal",
        None,
        [],
        None,
        f"equal: the configuration, {counted(num_rounds, 'round')} and {counted(num_reports, 'report')}.",
    )


def first_other_sample(first: Records, second: Records) -> int | None:
    """Find the first draw at which two runs have other samples, among the draws that both have decided. None without a difference.

    Two draws are the same sample if all draws before are, and if the skills, their samples and the keys of their orders are equal.
    """
    if first.run.first_draw != second.run.first_draw:
        return min(first.run.first_draw, second.run.first_draw)
    numbers: dict[Any, int] = {}
    streams = [_skills_of_draws(records, numbers) for records in (first, second)]
    waiting = [np.empty(0, np.int64), np.empty(0, np.int64)]
    draw = first.run.first_draw
    while True:
        for index, stream in enumerate(streams):
            if not len(waiting[index]):
                following = next(stream, None)
                if following is None:
                    return None
                waiting[index] = following
        num = min(map(len, waiting))
        other = np.flatnonzero(waiting[0][:num] != waiting[1][:num])
        if len(other):
            return draw + int(other[0])
        draw += num
        waiting = [own[num:] for own in waiting]


def _skills_of_draws(records: Records, numbers: dict[Any, int]) -> Iterator[Int[np.ndarray, " draw"]]:
    """Yield the order of the skill of each draw, round by round, as a number in `numbers`."""
    run = records.run
    own = np.array([numbers.setdefault(key, len(numbers)) for key in _orders(run)], np.int64)
    for record in records.rounds:
        skill, _ = interleave(np.array(record.counts), "round", run.seed, record.round)
        yield own[skill[: record.num_draws]]


def _orders(run: RunRecord) -> list[Any]:
    """Return everything that decides the order of the samples of each skill."""
    if run.continues is None:
        blocks = None if run.blocks is None else run.blocks.model_dump_json()
        return [(run.seed, skill, content, blocks) for skill, content in zip(run.skills, run.contents, strict=True)]
    return [(run.seed, start.model_copy(update={"skill": ""}).model_dump_json()) for start in run.continues.skills]


def _first_other(first: Numbered[RecordType], second: Numbered[RecordType]) -> tuple[int, list[str]] | None:
    """Find the first record that differs among the records of both runs. Return its number and the fields that differ."""
    for number in range(min(first.num(), second.num())):
        fields = differences(_plain(first.existing(number)), _plain(second.existing(number)))
        if fields:
            return number, fields
    return None


def _of_round(first: Records, second: Records, number: int) -> list[str]:
    """List the differences of a round that a reader knows by name: steerings by hand, then weights. The other fields follow from these."""
    own, other = first.rounds.existing(number), second.rounds.existing(number)
    steers = [record.steer if isinstance(record, SteeredRoundRecord) else None for record in (own, other)]
    names = ["none" if steer is None else f"steering {steer:,}" for steer in steers]
    steered = [f"steered by hand: {names[0]} -> {names[1]}"] if steers[0] != steers[1] else []
    weights = zip(first.run.skills, own.weights, other.weights, strict=True)
    return steered + [f"weight of {skill}: {old:.4g} -> {new:.4g}" for skill, old, new in weights if old != new]


def _plain(record: Any) -> dict[str, Any]:
    value: dict[str, Any] = canonical.from_json(record.to_bytes(), "record")
    return {name: content for name, content in value.items() if name not in DERIVED}


def _some(fields: list[str]) -> str:
    more = f", and {counted(len(fields) - SHOWN, 'more field')}" if len(fields) > SHOWN else ""
    return "; ".join(fields[:SHOWN]) + more
