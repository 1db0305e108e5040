"""The first difference between two runs, from their ledgers alone."""

import itertools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from skillshard import canonical
from skillshard.artefact import differences
from skillshard.mixing.chain import Chain, Segment
from skillshard.mixing.configurations import configuration_changes
from skillshard.mixing.ledger_record import RecordType
from skillshard.mixing.order import round_order
from skillshard.mixing.place_records import AheadEpoch, SkipInEpoch
from skillshard.mixing.records import Numbered, Records
from skillshard.mixing.round_records import SteeredRoundRecord
from skillshard.mixing.run_changes import changes_between
from skillshard.mixing.run_records import RunRecord, ahead_of, cuts_of, open_skips_of, skipped_by
from skillshard.printable import counted

Kind = Literal["equal", "configuration", "continued", "observation", "round", "length"]
SHOWN = 6
"""Number of fields that an answer names."""
# Checksums differ wherever anything before differs, and counts and places of a continued run follow from other fields.
DERIVED = ("checksum", "previous", "last_observation")


class Difference(NamedTuple):
    """The first difference between two runs.

    Attributes:
        kind: Place of the difference. "continued": only one of the two runs is continued by another run at the draw. "length":
            the records of one run go on after the records of the other run.
        draw: Draw of the report, first draw of the round, or first draw of the run that continues. None for "equal", "configuration" and "length".
        fields: Fields that differ, as `field: first run -> second run`. For "continued" the changes from the run to the run that continues it.
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
    """Find the first difference between two runs, each with the runs that the run continues.

    Raises:
        LedgerError: A record is damaged.
    """
    chains = Chain.of(first).segments, Chain.of(second).segments
    begins = [chain[0].records.run.first_draw for chain in chains]
    sample = first_other_sample(first, second)
    samples = (
        "All draws that both runs have decided are the same samples."
        if sample is None
        else f"The samples differ from draw {sample:,} on."
    )
    if begins[0] != begins[1]:
        samples = (
            f"The samples are not compared, because the records of one run begin at draw {begins[0]:,} and of the other run at draw {begins[1]:,}: "
            "the run before is not at its noted place."
        )
    for number, (own, other) in enumerate(zip(*chains, strict=False)):
        ends = [end for end in (own.end, other.end) if end is not None]
        answer = _first_in_runs(own.records, other.records, min(ends, default=None), sample, samples)
        if answer is not None:
            return (
                answer
                if number == 0 or answer.kind in ("equal", "length")
                else answer._replace(sentence=f"run {number + 1} of the chains: {answer.sentence}")
            )
        if own.end != other.end:
            assert ends  # at least one of the two runs is continued
            return _continued(chains, number, min(ends), sample, samples)
    raise AssertionError("the last runs of two chains of equal ends are compared to their ends")


def _continued(
    chains: tuple[list[Segment], list[Segment]], number: int, draw: int, sample: int | None, samples: str
) -> Difference:
    """Describe two chains that are equal up to the draw at which only one of the two is continued by another run."""
    who, chain = ("first", chains[0]) if chains[0][number].end == draw else ("second", chains[1])
    run = chain[number + 1].run
    part = skipped_by(run)
    changes = changes_between(chain[number].run, run) + [
        stretch.sentence for stretch in (part.stretches if part else [])
    ]
    changed = f"which changes {_some(changes)}" if changes else "with the same configuration"
    return Difference(
        "continued",
        draw,
        changes,
        sample,
        f"equal up to draw {draw:,}, where the {who} run is continued by another run, {changed}. {samples}",
    )


def _first_in_runs(
    first: Records, second: Records, end: int | None, sample: int | None, samples: str
) -> Difference | None:
    """Find the first difference between the records of two runs.

    Args:
        first, second: Records of the runs.
        end: Draw up to which the records count, because a run was continued at this draw. None: all records, and equal runs are an answer.
        sample: First draw with another sample.
        samples: Sentence about the samples.
    """
    if first.run.checksum != second.run.checksum:
        # Two records that differ only in what follows from other fields, such as the place of a skill without an open epoch.
        fields = configuration_changes(first.run, second.run) or differences(_plain(first.run), _plain(second.run))
        return Difference(
            "configuration", None, fields, sample, f"the configurations differ: {_some(fields)}. {samples}"
        )
    reports, rounds = (
        _first_other(getattr(first, kind), getattr(second, kind), draw, end)
        for kind, draw in (("observations", "draw"), ("rounds", "first_draw"))
    )
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
    if end is not None:
        return None
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
    chains = Chain.of(first).segments, Chain.of(second).segments
    begins = [chain[0].records.run.first_draw for chain in chains]
    if begins[0] != begins[1]:
        return None
    numbers: dict[Any, int] = {}
    streams = [
        itertools.chain.from_iterable(
            _skills_of_draws(segment, numbers, knows_before=number > 0) for number, segment in enumerate(chain)
        )
        for chain in chains
    ]
    waiting = [np.empty(0, np.int64), np.empty(0, np.int64)]
    draw = begins[0]
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


def _skills_of_draws(
    segment: Segment, numbers: dict[Any, int], *, knows_before: bool
) -> Iterator[Int[np.ndarray, " draw"]]:
    """Yield the order of the skill of each draw, round by round, as a number in `numbers`."""
    run = segment.records.run
    own = np.array([numbers.setdefault(key, len(numbers)) for key in _orders(run, knows_before=knows_before)], np.int64)
    for record in segment.records.rounds:
        num = record.num_draws if segment.end is None else min(record.num_draws, segment.end - record.first_draw)
        if num <= 0:
            return
        skill, _ = round_order(record.counts, seed=run.seed, number=record.round)
        yield own[skill[:num]]


def _orders(run: RunRecord, *, knows_before: bool) -> list[Any]:
    """Return everything that decides the order of the samples of each skill.

    Args:
        run: Run.
        knows_before: Whether the draws before the run were compared, and are equal.
    """
    blocks = None if run.blocks is None else run.blocks.model_dump_json()
    if run.continues is None:
        return [(run.seed, skill, content, blocks) for skill, content in zip(run.skills, run.contents, strict=True)]
    part = skipped_by(run)
    of_skips: list[SkipInEpoch | AheadEpoch] = [*open_skips_of(run), *ahead_of(run)]
    skipped = {own.label for own in of_skips}
    skipped |= {draws.label for stretch in (part.stretches if part else []) for draws in stretch.skills}
    return [
        # The open epoch goes on as in the run before, and so do all later epochs.
        (run.seed, start.label, start.content, blocks)
        if knows_before and start.seed == run.seed and len(start.layers) == 1 and start.label not in skipped
        else (
            run.seed,
            start.model_copy(update={"skill": ""}).model_dump_json(),
            tuple(own.model_dump_json() for own in of_skips if own.label == start.label),
            (blocks, cuts_of(run).get(start.label)),
        )
        for start in run.continues.skills
    ]


def _first_other(
    first: Numbered[RecordType], second: Numbered[RecordType], draw: str, end: int | None
) -> tuple[int, list[str]] | None:
    """Find the first record that differs among the records of both runs. Return the number of the record and the different fields.

    Args:
        first, second: Records of the runs.
        draw: Name of the field with the draw of a record.
        end: Draw from which on the records do not count. None: all records count.
    """
    for number in range(min(first.num(), second.num())):
        own = first.existing(number)
        if end is not None and getattr(own, draw) >= end:
            return None
        fields = differences(_plain(own), _plain(second.existing(number)))
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
