"""The facts of a run: its skills, its newest rounds and reports, its alarms and its waits."""

from datetime import UTC, datetime
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from skillshard import storage
from skillshard.mixing.alarms import PINNED_ROUNDS, RISING_REPORTS, alarms, open_wait, reads_losses
from skillshard.mixing.chain import Chain, earlier_runs
from skillshard.mixing.counts import drawn_at, in_unit, intended_at, surplus_draws
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.records import Records, open_records, resumes
from skillshard.mixing.round_records import ObservationRecord, RoundRecord
from skillshard.mixing.run_records import Lag, RunRecord, skipped_by
from skillshard.mixing.steering import steerings
from skillshard.report.artefact_facts import ArtefactFacts, SkillFacts, shown


class RunSkill(SkillFacts):
    """A skill of a run."""

    weight: float = Field(description="weight in the newest round")
    weights: list[float] = Field(description="weight in each round of `shown_rounds`")
    num_drawn: int = Field(description="draws of all rounds")
    intended: float = Field(
        description="draws that the weights of all rounds ask for; num_drawn is a whole number beside it"
    )
    epochs: float = Field(description="num_drawn as a multiple of the training samples")
    num_tokens: int | None = Field(
        description="tokens drawn, the average of the skill for each draw; null if the weights count samples"
    )


class RunLoss(SkillFacts):
    """The losses of an evaluation skill."""

    first: float | None = Field(description="loss of the first report")
    last: float | None = Field(description="loss of the newest report")
    losses: list[float | None] = Field(description="loss of each report of `shown_reports`")


class RunReport(BaseModel):
    """The newest report of a run."""

    model_config = ConfigDict(extra="forbid")

    step: int
    draw: int
    time: str = Field(description="time of the report's file, ISO 8601 in UTC; a copy of a ledger may have other times")


class RunResume(BaseModel):
    """A resume of a run."""

    model_config = ConfigDict(extra="forbid")

    generation: int
    draw: int = Field(description="draw at which the run was resumed")
    job: str | None


class RunAlarm(BaseModel):
    """A sign of trouble."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    skill: str | None
    sentence: str


class EarlierRun(BaseModel):
    """A run that another run has continued."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    place: str | None = Field(description="place of its ledger; null if unknown")
    run: str = Field(description="checksum of its run.json")
    first_draw: int | None = Field(description="draw at which it began; null if its ledger is not at the place")
    end_draw: int = Field(description="draw from which the next run continues")
    step: int | None = Field(description="optimizer steps taken at this draw; null if unknown")
    policy: str | None = Field(description="policy of the run; null if its ledger is not at the place")


class RunSkip(BaseModel):
    """Draws of the run before that a run skips."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: int = Field(description="first skipped draw in the stream of the run before")
    num: int = Field(description="number of skipped draws")
    why: str
    skills: dict[str, int] = Field(
        description="number of skipped draws of each skill, under its name in the run before"
    )
    sentence: str


class RunSteering(BaseModel):
    """A steering by hand."""

    model_config = ConfigDict(extra="forbid")

    number: int
    first_round: int = Field(description="first round that was undecided when the steering was recorded")
    action: str = Field(description="weights, freeze or resume")
    why: str

    @property
    def sentence(self) -> str:
        return f"steering {self.number}, from round {self.first_round:,} on: {self.action}, because {self.why}"

    @property
    def reason(self) -> str:
        """The steering without its round: a history counts the rounds over all runs, and the ledger the rounds of its run."""
        return f"steering {self.number}: {self.action}, because {self.why}"


class RunFacts(ArtefactFacts):
    """The facts of the ledger of a run."""

    kind: Literal["run"] = "run"
    skills: list[RunSkill] = Field(description="in the order of the run; empty before the first round")
    losses: list[RunLoss] = Field(description="in the order of the names; empty before the first report")
    shown_rounds: list[int] = Field(description="numbers of the rounds whose weights are listed, at equal distances")
    shown_reports: list[int] = Field(description="draws of the reports whose losses are listed, at equal distances")
    round: int | None = Field(description="number of the newest round; null before the first round")
    num_draws: int = Field(description="draws of all decided rounds")
    num_rounds: int
    num_observations: int
    last_report: RunReport | None
    waits_for: str | None = Field(
        description="report without which the next round is not decided; null if none is needed"
    )
    alarms: list[RunAlarm]
    resumes: list[RunResume]
    steerings: list[RunSteering] = Field(description="steerings by hand, in their order")
    generation: int = Field(description="number of times that the run was resumed")
    policy: str
    unit: str = Field(description="unit of the weights: samples, tokens or blocks")
    seed: int
    round_draws: int
    lag: Lag
    first_draw: int = Field(description="draw at which the run begins; 0 unless the run continues another run")
    earlier: list[EarlierRun] = Field(description="runs that this run continues, the oldest first")
    skipped: list[RunSkip] = Field(description="draws of the run before that this run skips")


SHOWN = 40
"""Number of rounds and of reports whose weights and losses are listed."""


def run_facts(ledger: DirectoryLedger) -> RunFacts:
    records = open_records(ledger)
    run, num_rounds, num_observations = records.run, records.rounds.num(), records.observations.num()
    rounds = {number: records.rounds.existing(number) for number in _spread(num_rounds, PINNED_ROUNDS)}
    reports = {
        number: records.observations.existing(number) for number in _spread(num_observations, RISING_REPORTS + 1)
    }
    newest = rounds.get(num_rounds - 1)
    shown_rounds, shown_reports = _spread(num_rounds, 1), _spread(num_observations, 1)
    last = reports.get(num_observations - 1)
    return RunFacts(
        place=shown(str(ledger)),
        skills=[]
        if newest is None
        else _run_skills(
            run,
            newest,
            rounds.get(num_rounds - 2),
            [rounds[number] for number in shown_rounds],
            surplus_draws([segment.run for segment in Chain.of(records).segments])[-1],
        ),
        losses=_run_losses([reports[number] for number in shown_reports]),
        shown_rounds=shown_rounds,
        shown_reports=[reports[number].draw for number in shown_reports],
        round=None if newest is None else newest.round,
        num_draws=run.first_draw if newest is None else newest.first_draw + newest.num_draws,
        num_rounds=num_rounds,
        num_observations=num_observations,
        last_report=None if last is None else _last_report(records, last, num_observations - 1),
        waits_for=_waits_for(run, newest, last),
        alarms=[
            RunAlarm(**alarm._asdict())
            for alarm in alarms(
                run, [*rounds.values()], [*reports.values()], first=rounds.get(0), wait=open_wait(records)
            )
        ],
        resumes=[RunResume(generation=begun.generation, draw=begun.draw, job=begun.job) for begun in resumes(records)],
        steerings=[
            RunSteering(number=number, first_round=own.first_round, action=own.action, why=own.why)
            for number, own in steerings(ledger, run)
        ],
        generation=records.generation,
        policy=run.policy,
        unit=run.unit,
        seed=run.seed,
        round_draws=run.round_draws,
        lag=run.lag,
        first_draw=run.first_draw,
        earlier=[
            EarlierRun(
                place=None if before.place is None else shown(before.place),
                run=before.run,
                first_draw=before.first_draw,
                end_draw=before.end_draw,
                step=before.step,
                policy=before.policy,
            )
            for before in earlier_runs(ledger)
        ],
        skipped=run_skips(run),
    )


def run_skips(run: RunRecord) -> list[RunSkip]:
    """Return the draws of the run before that a run skips, rising."""
    part = skipped_by(run)
    if part is None:
        return []
    names = {place.label: place.skill for place in part.places}
    return [
        RunSkip(
            first=stretch.first,
            num=stretch.num,
            why=stretch.why,
            skills={names[draws.label]: draws.num for draws in stretch.skills},
            sentence=stretch.sentence,
        )
        for stretch in part.stretches
    ]


def _spread(num: int, newest: int) -> list[int]:
    """Choose up to `SHOWN` numbers below `num` at equal distances, and the newest numbers.

    >>> _spread(3, 1), len(_spread(1000, 1)), _spread(1000, 3)[-3:]
    ([0, 1, 2], 40, [997, 998, 999])
    """
    evenly = np.linspace(0, num - 1, min(num, SHOWN)).round().astype(int).tolist()
    return sorted({*evenly, *range(max(0, num - newest), num)})


def _run_skills(
    run: RunRecord, newest: RoundRecord, previous: RoundRecord | None, shown: list[RoundRecord], surplus: list[int]
) -> list[RunSkill]:
    # The counts of a round may be of more draws than the stream has: with repeat="stop" it ends inside the round.
    end = newest.first_draw + newest.num_draws
    positions, intended = drawn_at(run, newest, end), intended_at(run, newest, previous, end)
    drawn = [position - more for position, more in zip(positions, surplus, strict=True)]
    tokens = in_unit(run, drawn)
    return [
        # The run records the number of samples of each skill at its start, so the shards are not needed.
        RunSkill(
            name=name,
            weight=newest.weights[number],
            weights=[record.weights[number] for record in shown],
            num_drawn=drawn[number],
            intended=intended[number] - surplus[number],
            epochs=positions[number] / run.num_samples[number],
            num_tokens=None if run.num_tokens is None else tokens[number],
        )
        for number, name in enumerate(run.skills)
    ]


def _run_losses(shown: list[ObservationRecord]) -> list[RunLoss]:
    names = sorted({name for record in shown for name in record.losses})
    columns = {name: [record.losses.get(name) for record in shown] for name in names}
    return [RunLoss(name=name, first=losses[0], last=losses[-1], losses=losses) for name, losses in columns.items()]


def _last_report(records: Records, last: ObservationRecord, number: int) -> RunReport:
    # The time of the file is beside the record: nothing that decides the stream depends on a clock.
    written_ns = storage.stat(f"{records.ledger}/{records.observations.name(number)}").mtime_ns
    time = datetime.fromtimestamp(written_ns // 10**9, UTC).isoformat()
    return RunReport(step=last.step, draw=last.draw, time=time)


def _waits_for(run: RunRecord, newest: RoundRecord | None, last: ObservationRecord | None) -> str | None:
    """Describe the report that the next round needs. Return None if the next round needs no report that is missing."""
    if newest is None:
        waits = run.needs_first_losses and last is None
        return f"the losses of draw {run.first_draw:,}, before the first step" if waits else None
    if run.lag == "live" or not reads_losses(run, newest) or newest.num_draws < run.round_draws:
        return None
    number = newest.round + 1
    if number < run.lag or (number == run.lag and not run.needs_first_losses):
        return None  # the first rounds are decided without losses
    needed = run.first_draw_of(number - run.lag)
    return f"a report of draw {needed:,} or later" if (-1 if last is None else last.draw) < needed else None
