"""The whole history of runs as numbers: the facts of `skillshard inspect RUN`, and the course over the draws.

`skillshard report` writes the facts as JSON (schemas/report-1.json), or as a page for a browser (`skillshard.report.page`). A run that
continues other runs has one history with these runs, as far as their ledgers are at the noted places. Every round and every report is
read and checked. A long history is thinned to rounds at equal distances.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from skillshard import canonical
from skillshard.errors import GraphError, LedgerError, name_some
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.alarms import PINNED_ROUNDS, RISING_REPORTS, Alarm, alarms
from skillshard.mixing.chain import Chain, Segment
from skillshard.mixing.counts import drawn_at, intended_at, surplus_draws
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.noted_places import shards_of_run
from skillshard.mixing.records import Records, open_records
from skillshard.mixing.round_records import ObservationRecord, RoundRecord, SteeredRoundRecord
from skillshard.mixing.run_changes import changes_between
from skillshard.report.facts import ShardsFacts, shards_facts
from skillshard.report.graph_facts import GraphFacts, graph_facts
from skillshard.report.run_facts import RunFacts, run_facts, run_skips

POINTS = 400
"""Number of rounds, and of reports, that a report of one run lists: more points than a chart has pixels would not show."""
LEAST_POINTS = 60
"""Number of rounds of each run that a report of many runs lists."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ShownRound(_Part):
    """A round of a history. All lists of the history's skills have an entry for each shown round."""

    round: int = Field(description="number of the round, over all runs of the history")
    first_draw: int
    end_draw: int = Field(
        description="first draw after the round, or the draw at which another run continues inside the round"
    )
    new_reports: list[int] = Field(description="draws of the reports that the round is the first to use")
    observed_to: int = Field(description="draw of the newest report that the round uses; -1 without reports")


class SkillCourse(_Part):
    """The course of a training skill. A value is null in rounds of earlier runs without the skill."""

    name: str
    weights: list[float | None] = Field(description="weight in each shown round, in the unit of the run's weights")
    epochs: list[float | None] = Field(description="passes over the skill after each shown round")
    intended: list[float | None] = Field(description="share of the draws up to the round that the weights ask for")
    achieved: list[float | None] = Field(description="share of the draws up to the round that the skill has got")


class LossCourse(_Part):
    """The course of the losses of an evaluation skill."""

    name: str
    losses: list[float | None] = Field(description="loss in each shown report, in nats per token")


class ShownReport(_Part):
    """A report of a history."""

    step: int
    draw: int


class Event(_Part):
    """A mark in a history."""

    draw: int
    kind: Literal["alarm", "resume", "change"]
    sentence: str


class RunHistory(_Part):
    """A run in a report."""

    facts: RunFacts = Field(description="the facts of 'skillshard inspect RUN --json'")
    first_draw: int = Field(description="first draw of the history, which begins with the earliest readable run")
    num_rounds: int = Field(description="number of rounds of the history")
    num_reports: int = Field(description="number of reports of the history")
    rounds: list[ShownRound]
    skills: list[SkillCourse] = Field(description="skills of the run, then skills of earlier runs alone")
    reports: list[ShownReport]
    losses: list[LossCourse]
    events: list[Event] = Field(
        description="alarms at the round that first shows the alarm, resumes, changes of the run"
    )
    settings: dict[str, Any] = Field(description="record run.json without the numbers of each skill")
    shards: ShardsFacts | None = Field(description="facts of the run's shards; null if the shards are not at hand")
    no_shards: str | None = Field(description="reason for the missing facts of the shards")
    graph: GraphFacts | None = Field(description="graph of the policy, if the graph was given")


class ReportFacts(_Part):
    """The facts of a report."""

    schema_version: Literal["skillshard/report/1"] = Field("skillshard/report/1", alias="schema")
    runs: list[RunHistory]

    def to_json(self) -> bytes:
        """Return the facts as one JSON object."""
        return canonical.to_json(self.model_dump(by_alias=True))


def report_facts(
    runs: Sequence[str | os.PathLike[str]],
    *,
    graphs: Sequence[str | os.PathLike[str]] = (),
    beside: str | os.PathLike[str] | None = None,
) -> ReportFacts:
    """Collect the facts of a report.

    Args:
        runs: Directories of the ledgers, at least one.
        graphs: Files of the graphs that policies of the runs use. A ledger holds the digest of a graph alone.
        beside: Directory of the report. The places of runs inside the directory are written relative to the directory, so that a copy
            of the directory has the same report.

    Raises:
        LedgerError: A place holds no run, a run has no rounds, or a record is damaged.
        GraphError: A file is no graph, or no run uses the graph.
    """
    points = max(LEAST_POINTS, POINTS // len(runs))
    known = {SkillGraph.open(place).digest: place for place in graphs}
    ledgers = [DirectoryLedger(run) for run in runs]
    used = {word for ledger in ledgers for word in _words_of_policies(Chain.of(open_records(ledger)).segments)}
    histories = [_run_history(ledger, points, known) for ledger in ledgers]
    if unused := [os.fspath(place) for digest, place in known.items() if digest not in used]:
        raise GraphError(
            f"no policy of these runs uses the graph {name_some(unused)}: the policies name other digests. Give the file that the run was started with."
        )
    return ReportFacts(runs=[_placed(history, beside) for history in histories])


def _placed(history: RunHistory, beside: str | os.PathLike[str] | None) -> RunHistory:
    if beside is None or not PurePath(history.facts.place).is_relative_to(beside):
        return history
    place = str(PurePath(history.facts.place).relative_to(beside))
    return history.model_copy(update={"facts": history.facts.model_copy(update={"place": place})})


def _run_history(ledger: DirectoryLedger, points: int, graphs: dict[str, str | os.PathLike[str]]) -> RunHistory:
    facts, records = run_facts(ledger), open_records(ledger)
    run = records.run
    if not facts.num_rounds:
        raise LedgerError(
            f"{ledger} has decided no round yet, so a report has nothing to show. 'skillshard inspect {ledger}' shows what the run waits for."
        )
    segments = Chain.of(records).segments
    rounds, events = _rounds_and_events(segments)
    shown_rounds = [rounds[number] for number in _evenly(len(rounds), points)]
    reports = {record.draw: record for segment in segments for record in segment.reports()}
    draws = sorted(reports)
    # The newest report of each shown round is shown too, so that a page can name the losses behind its weights.
    wanted = {draws[number] for number in _evenly(len(draws), points)} | {row.shown.observed_to for row in shown_rounds}
    shown_reports = [reports[draw] for draw in draws if draw in wanted]
    names = list(dict.fromkeys([*run.skills, *(name for row in reversed(shown_rounds) for name in row.numbers)]))
    shards, no_shards = _shards_facts(ledger)
    settings = run.model_dump(
        by_alias=True,
        exclude={
            "skills",
            "num_samples",
            "num_tokens",
            "num_shards",
            "contents",
            "continues",
            "skipped",
            "open_skips",
            "ahead",
            "cuts",
            "drawn",
            "checksum",
        },
    )
    return RunHistory(
        facts=facts,
        first_draw=rounds[0].shown.first_draw,
        num_rounds=len(rounds),
        num_reports=len(draws),
        rounds=[row.shown for row in shown_rounds],
        skills=[_skill_course(name, shown_rounds) for name in names],
        reports=[ShownReport(step=record.step, draw=record.draw) for record in shown_reports],
        losses=[
            LossCourse(name=name, losses=[record.losses.get(name) for record in shown_reports])
            for name in sorted({name for record in shown_reports for name in record.losses})
        ],
        events=sorted(events, key=lambda event: event.draw),
        settings=settings,
        shards=shards,
        no_shards=no_shards,
        graph=next((graph_facts(graphs[word]) for word in _words_of_policies(segments) if word in graphs), None),
    )


class _Numbers(NamedTuple):
    weight: float
    epochs: float
    intended: float
    achieved: float


class _Row(NamedTuple):
    shown: ShownRound
    numbers: dict[str, _Numbers]


def _skill_course(name: str, rows: Sequence[_Row]) -> SkillCourse:
    numbers_of_rounds = [row.numbers.get(name) for row in rows]
    columns: list[list[float | None]] = [
        [None if numbers is None else numbers[field] for numbers in numbers_of_rounds]
        for field in range(len(_Numbers._fields))
    ]
    return SkillCourse(name=name, weights=columns[0], epochs=columns[1], intended=columns[2], achieved=columns[3])


def _rounds_and_events(segments: Sequence[Segment]) -> tuple[list[_Row], list[Event]]:
    rows: list[_Row] = []
    events: list[Event] = []
    surplus = surplus_draws([segment.run for segment in segments])
    for number, segment in enumerate(segments):
        run = segment.run
        if number or run.continues is not None:
            events.append(Event(draw=run.first_draw, kind="change", sentence=_change(segments, number)))
        events += [Event(draw=run.first_draw, kind="change", sentence=skip.sentence) for skip in run_skips(run)]
        facts = run_facts(DirectoryLedger(segment.name))
        events += [
            Event(
                draw=resume.draw,
                kind="resume",
                sentence=f"resumed as generation {resume.generation}" + (f" (job {resume.job})" if resume.job else ""),
            )
            for resume in facts.resumes
            if segment.end is None or resume.draw < segment.end
        ]
        watch = _Watch(segment.records, list(segment.reports()))
        steer, previous = None, None
        for record in segment.rounds():
            if isinstance(record, SteeredRoundRecord) and record.steer != steer:
                steer = record.steer
                events.append(Event(draw=record.first_draw, kind="change", sentence=facts.steerings[steer].reason))
            rows.append(_row(segment, record, previous, surplus[number]))
            events += watch.begun_alarms(record)
            previous = record
    return rows, events


def _row(segment: Segment, record: RoundRecord, previous: RoundRecord | None, surplus: Sequence[int]) -> _Row:
    run, end_draw = segment.run, segment.end_of(record)
    positions = np.array(drawn_at(run, record, end_draw))
    epochs = positions / np.array(run.num_samples)
    drawn = positions - np.array(surplus)
    total = max(int(drawn.sum()), 1)
    intended = (np.array(intended_at(run, record, previous, end_draw)) - np.array(surplus)) / total
    columns = zip(record.weights, epochs.tolist(), intended.tolist(), (drawn / total).tolist(), strict=True)
    shown = ShownRound(
        round=run.num_rounds_before + record.round,
        first_draw=record.first_draw,
        end_draw=end_draw,
        new_reports=record.observations,
        observed_to=record.observed_to,
    )
    return _Row(shown, {name: _Numbers(*column) for name, column in zip(run.skills, columns, strict=True)})


class _Watch:
    """The alarms of a run as each round would have shown them. `alarms` has the rules."""

    def __init__(self, records: Records, reports: list[ObservationRecord]) -> None:
        self._records, self._reports, self._num_reports = records, reports, 0
        self._rounds: deque[RoundRecord] = deque(maxlen=PINNED_ROUNDS)
        self._first: RoundRecord | None = None
        self._active: set[tuple[str, str | None]] = set()

    def begun_alarms(self, record: RoundRecord) -> Iterator[Event]:
        """Yield the alarms that the round shows and the round before did not show."""
        if not self._rounds:
            yield from self._begun(record, alarms(self._records.run, [], [], wait=self._records.wait(record.round)))
        self._rounds.append(record)
        self._first = self._first or record
        end = record.first_draw + record.num_draws
        while self._num_reports < len(self._reports) and self._reports[self._num_reports].draw <= end:
            self._num_reports += 1
        newest = self._reports[max(0, self._num_reports - RISING_REPORTS - 1) : self._num_reports]
        # A wait shows also if the report came at last: the history has what happened.
        wait = self._records.wait(record.round + 1)
        yield from self._begun(record, alarms(self._records.run, [*self._rounds], newest, first=self._first, wait=wait))

    def _begun(self, record: RoundRecord, active: Sequence[Alarm]) -> Iterator[Event]:
        for alarm in active:
            if (alarm.kind, alarm.skill) not in self._active:
                yield Event(draw=record.first_draw, kind="alarm", sentence=alarm.sentence)
        self._active = {(alarm.kind, alarm.skill) for alarm in active}


def _change(segments: Sequence[Segment], number: int) -> str:
    """Name the differences between a run and the run before."""
    place, run = segments[number].name, segments[number].run
    if not number:
        return f"{place} continues a run whose ledger is not at its noted place"
    changes = changes_between(segments[number - 1].run, run)
    return f"{place} continues the run: {'; '.join(changes) or 'nothing changes'}"


def _shards_facts(ledger: DirectoryLedger) -> tuple[ShardsFacts | None, str | None]:
    try:
        return shards_facts(shards_of_run(ledger, open_records(ledger).run)), None
    except LedgerError as error:  # the records are intact: only the shards may be elsewhere, and the report says so
        return None, str(error)


def _words_of_policies(segments: Sequence[Segment]) -> Iterator[str]:
    """Yield the texts in the policies of a chain of runs, the last run first: an earlier run may have used another graph."""
    for segment in reversed(segments):
        yield from _words_in(segment.run.policy_arguments)


def _words_in(value: object) -> Iterator[str]:
    """Yield every text inside the record of a policy: the digest of a graph may stand in a chain or a stage.

    >>> [*_words_in({"policy": ["skill_it", {"graph": "0a1b"}], "eta": 0.5})]
    ['skill_it', '0a1b']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _words_in(part)


def _evenly(num: int, most: int) -> list[int]:
    """Choose up to `most` numbers below `num` at equal distances, with the first and the last number.

    >>> _evenly(3, 10), _evenly(101, 3)
    ([0, 1, 2], [0, 50, 100])
    """
    return np.unique(np.linspace(0, num - 1, min(num, most)).round().astype(int)).tolist() if num else []
