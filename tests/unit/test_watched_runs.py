"""`inspect` of a run answers: is the run alive, and does it do something sensible?"""

import csv
import io
import json
import math
import os
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest

from skillshard import policies
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.alarms import PINNED_ROUNDS, alarms
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import open_records
from skillshard.policies import Policy
from skillshard.report.run_facts import RunFacts, run_facts
from skillshard.report.text import sparkline
from skillshard.shards.read import ShardSet
from tests.commands import fails, finish, skillshard, start, works
from tests.conftest import samples, tag_and_shard, write_corpus

STEP_DRAWS = 10


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Skills so large that the runs below do not repeat them."""
    folder = tmp_path_factory.mktemp("large")
    return tag_and_shard(write_corpus(folder / "corpus", samples(add=900, carry=900, negate=600)), folder)


def trained(
    shards: ShardSet, ledger: Path, policy: Policy, losses: list[dict[str, float]], *, num_steps: int = 60
) -> Mixer:
    """Run a training that reports at steps 0, 5, 10, ... as long as there are losses."""
    mixer = Mixer(shards, policy, ledger=ledger, round_draws=50, step_draws=STEP_DRAWS, lag="live")
    for step in range(num_steps):
        if step % 5 == 0 and step // 5 < len(losses):
            mixer.report(step, losses[step // 5])
        mixer.batch(step * STEP_DRAWS, STEP_DRAWS)
    return mixer


def skill_it(shards: ShardSet) -> Policy:
    return policies.skill_it(SkillGraph.identity(shards.skills), eta=0.3)


def falling(shards: ShardSet, num: int) -> list[dict[str, float]]:
    return [
        {skill: 3 - report / 10 - number / 7 for number, skill in enumerate(shards.skills)} for report in range(num)
    ]


def kinds(facts: RunFacts) -> list[tuple[str, str | None]]:
    return [(alarm.kind, alarm.skill) for alarm in facts.alarms]


def test_inspect_shows_weights_draws_losses_and_the_last_report(shards: ShardSet, tmp_path: Path) -> None:
    mixer = trained(shards, tmp_path / "run", skill_it(shards), falling(shards, 12))
    facts = run_facts(DirectoryLedger(tmp_path / "run"))
    rounds = [mixer.round(number) for number in range(12)]
    for number, skill in enumerate(facts.skills):
        assert skill.weights == [record.weights[number] for record in rounds]
        assert abs(skill.intended - skill.num_drawn) < 1
        assert skill.num_drawn == sum(record.counts[number] for record in rounds)
    assert sum(skill.intended for skill in facts.skills) == pytest.approx(facts.num_draws)
    assert [(skill.first, skill.last) for skill in facts.losses] == [
        (pytest.approx(3 - number / 7), pytest.approx(1.9 - number / 7)) for number in range(len(shards.skills))
    ]
    assert facts.last_report is not None
    assert (facts.last_report.step, facts.last_report.draw) == (55, 550)
    assert abs(datetime.fromisoformat(facts.last_report.time).timestamp() - time.time()) < 600
    old = time.time() - 7200
    newest = tmp_path / "run" / "generations" / "00000000" / "observations" / "00000011.json"
    os.utime(newest, (old, old))
    shown = works("inspect", tmp_path / "run")
    assert "last report: step 55, draw 550, 2 h 00 min ago" in shown and "alarm" not in shown
    assert all(f"{skill.weight:.4f}" in shown and f"{skill.epochs:.2f}" in shown for skill in facts.skills)


def test_a_long_run_is_shown_by_a_sample_of_its_rounds(shards: ShardSet, tmp_path: Path) -> None:
    mixer = Mixer(shards, policies.stratified(), ledger=tmp_path / "run", round_draws=2, repeat="epochs")
    for number in range(400):
        mixer.round(number)
    facts = run_facts(DirectoryLedger(tmp_path / "run"))
    assert len(facts.shown_rounds) == 40 and facts.shown_rounds[0] == 0 and facts.shown_rounds[-1] == 399
    assert facts.losses == [] and facts.last_report is None and facts.waits_for is None


def test_inspect_says_which_report_the_loader_waits_for(shards: ShardSet, tmp_path: Path) -> None:
    mixer = Mixer(shards, skill_it(shards), ledger=tmp_path / "run", round_draws=50, step_draws=10)
    assert "the next round waits for the losses of draw 0, before the first step" in works("inspect", tmp_path / "run")
    mixer.report(0, falling(shards, 1)[0])
    assert "waits for" not in works("inspect", tmp_path / "run")
    mixer.batch(0, 100)  # rounds 0 and 1
    assert "the next round waits for a report of draw 50 or later" in works("inspect", tmp_path / "run")
    mixer.report(5, falling(shards, 2)[1])
    assert "waits for" not in works("inspect", tmp_path / "run")


def test_inspect_names_the_resumes(shards: ShardSet, tmp_path: Path) -> None:
    mixer = Mixer(shards, policies.stratified(), ledger=tmp_path / "run", round_draws=50, step_draws=10)
    mixer.batch(0, 100)
    for draw in (50, 70):
        again = Mixer(shards, policies.stratified(), ledger=tmp_path / "run", round_draws=50, job=f"job-{draw}")
        again.load_state_dict(mixer.state_at(draw).model_dump(by_alias=True))
        mixer = again
    assert "resumed at draw 50 (job job-50), draw 70 (job job-70)" in works("inspect", tmp_path / "run")


def test_a_run_without_trouble_has_no_alarm(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "a", skill_it(shards), falling(shards, 12))
    trained(shards, tmp_path / "b", policies.stratified(), [])
    assert kinds(run_facts(DirectoryLedger(tmp_path / "a"))) == kinds(run_facts(DirectoryLedger(tmp_path / "b"))) == []


def test_a_skill_that_passes_four_epochs_is_an_alarm(shards: ShardSet, tmp_path: Path) -> None:
    smallest = min(shards.skills, key=lambda skill: len(shards.train[skill]))
    with pytest.warns(UserWarning, match="passes 4 epochs"):
        weights = {skill: 0.9 if skill == smallest else 0.1 / (len(shards.skills) - 1) for skill in shards.skills}
        num_steps = math.ceil(4.2 * len(shards.train[smallest]) / 0.9 / STEP_DRAWS)
        trained(shards, tmp_path / "run", policies.fixed(weights), [], num_steps=num_steps)
    assert kinds(run_facts(DirectoryLedger(tmp_path / "run"))) == [("repeated", smallest)]


def test_a_loss_that_rises_while_its_weight_grows_is_an_alarm(shards: ShardSet, tmp_path: Path) -> None:
    bad = shards.skills[-1]
    losses = [{**row, bad: 3 + position / 10} for position, row in enumerate(falling(shards, 12))]
    trained(shards, tmp_path / "run", skill_it(shards), losses)
    facts = run_facts(DirectoryLedger(tmp_path / "run"))
    assert ("rising-loss", bad) in kinds(facts) and {skill for _, skill in kinds(facts)} == {bad}
    # The weight of the same losses does not grow under a policy with fixed weights.
    trained(shards, tmp_path / "fixed", policies.stratified(), losses)
    assert kinds(run_facts(DirectoryLedger(tmp_path / "fixed"))) == []


def test_a_weight_that_has_reached_1_grows_no_more(shards: ShardSet, tmp_path: Path) -> None:
    bad = shards.skills[-1]
    losses = [{**row, bad: 3 + position} for position, row in enumerate(falling(shards, 12))]
    trained(shards, tmp_path / "run", policies.loss_order(eta=3.0), losses)
    records = open_records(DirectoryLedger(tmp_path / "run"))
    weights = [records.rounds.existing(number).weights[-1] for number in range(records.rounds.num())]
    assert 0.9999 < weights[-4] < weights[-1], weights
    assert ("rising-loss", bad) not in kinds(run_facts(DirectoryLedger(tmp_path / "run")))


def test_a_weight_at_a_limit_is_an_alarm(shards: ShardSet, tmp_path: Path) -> None:
    low = shards.skills[0]
    losses = [
        {skill: 0.0 if skill == low else 3 + number * position / 20 for number, skill in enumerate(shards.skills)}
        for position in range(16)
    ]
    policy = policies.chain(skill_it(shards), policies.cap(0.5))
    trained(shards, tmp_path / "cap", policy, losses, num_steps=80)
    assert ("pinned", shards.skills[-1]) in kinds(run_facts(DirectoryLedger(tmp_path / "cap")))
    records = open_records(DirectoryLedger(tmp_path / "cap"))
    fewer = [*records.rounds][-PINNED_ROUNDS + 1 :]
    assert [alarm for alarm in alarms(records.run, fewer, []) if alarm.kind == "pinned"] == []


@pytest.mark.parametrize(("step", "expected"), [(0.002, []), (0.01, ["pinned"])])
def test_a_weight_that_stays_is_an_alarm_only_where_another_weight_moves_much(
    shards: ShardSet, tmp_path: Path, step: float, expected: list[str]
) -> None:
    """The largest weight stays at 0.4, and the two others move by 4 % or by 19 %. A small step size moves all weights a little."""
    trained(shards, tmp_path / "run", policies.stratified(), [], num_steps=80)
    records = open_records(DirectoryLedger(tmp_path / "run"))
    first, *_ = rounds = [*records.rounds][:PINNED_ROUNDS]
    moving = [
        record.model_copy(update={"weights": [0.4, 0.3 + step * number, 0.3 - step * number]})
        for number, record in enumerate(rounds)
    ]
    assert [alarm.kind for alarm in alarms(records.run, moving, [], first=first) if alarm.kind == "pinned"] == expected


def test_weights_by_hand_that_do_not_fit_the_run_are_refused_with_what_helps(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "run", skill_it(shards), falling(shards, 3), num_steps=10)
    first, *others = shards.skills

    def refused(weights: dict[str, float], why: str = "a test") -> str:
        return fails("steer", tmp_path / "run", "--weights", json.dumps(weights), "--why", why)

    few = refused({first: 1.0})
    assert f"the weights lack {', '.join(others)}. Give each of the {len(shards.skills)} skills" in few
    assert "ShardSet.choose" not in few and "new=" not in few
    unknown = refused(dict.fromkeys([*shards.skills, f"{first}x"], 0.25))
    assert (
        f"does not have: '{first}x' (did you mean '{first}'?). The run has the skills {', '.join(shards.skills)}."
        in unknown
    )
    assert "give --why, a text on one line" in refused(dict.fromkeys(shards.skills, 1.0), why="two\nlines")
    assert not [*(tmp_path / "run").glob("steers/*")]


def test_the_table_of_a_run_has_every_number_of_its_ledger(shards: ShardSet, tmp_path: Path) -> None:
    mixer = trained(shards, tmp_path / "run", skill_it(shards), falling(shards, 12))
    rows = list(csv.DictReader(io.StringIO(works("inspect", tmp_path / "run", "--csv"))))
    weights = {(int(row["draw"]), row["skill"]): float(row["value"]) for row in rows if row["quantity"] == "weight"}
    assert weights == {
        (record.first_draw, skill): record.weights[number]
        for record in map(mixer.round, range(12))
        for number, skill in enumerate(shards.skills)
    }
    losses = [(row["step"], row["skill"], float(row["value"])) for row in rows if row["quantity"] == "loss"]
    assert losses == [
        (str(5 * number), skill, loss)
        for number, row in enumerate(falling(shards, 12))
        for skill, loss in sorted(row.items())
    ]
    assert len(rows) == (3 * 12 + 12) * len(shards.skills)


def test_follow_shows_the_run_again_until_it_is_stopped(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "run", policies.stratified(), [], num_steps=5)
    process = start("inspect", tmp_path / "run", "--follow", "--every", "0.2")
    assert process.stdout is not None
    shown = 0
    while shown < 2:
        line = process.stdout.readline()
        assert line, "the command ended by itself"
        shown += "policy stratified" in line
    process.send_signal(signal.SIGINT)
    assert finish(process).code == 130


def test_follow_waits_for_the_beginning_of_a_continued_run(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "run", policies.stratified(), [], num_steps=5)
    works("continue", tmp_path / "run", "--draw", 0, "--out", tmp_path / "next")
    process = start("inspect", tmp_path / "next", "--follow", "--every", "0.2")
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any("no round is decided yet" in line for line in lines), "the command ended by itself"
    mixer = Mixer.continue_from(
        tmp_path / "run", draw=0, shards=shards, policy=policies.proportional(), ledger=tmp_path / "next"
    )
    mixer.batch(0, 8)
    assert any("policy proportional" in line for line in lines), "the command ended by itself"
    process.send_signal(signal.SIGINT)
    assert finish(process).code == 130


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--csv", "--json"), "--json does not go with --csv"),
        (("--follow", "--csv"), "--follow does not go with --csv"),
        (("--every", "1"), "--every belongs to --follow"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_a_usage_error(
    options: tuple[str, ...], sentence: str, shards: ShardSet, tmp_path: Path
) -> None:
    trained(shards, tmp_path / "run", policies.stratified(), [], num_steps=5)
    outcome = skillshard("inspect", tmp_path / "run", *options)
    assert outcome.code == 2 and sentence in " ".join(outcome.err.replace("│", " ").split())
    outcome = skillshard("inspect", shards.root, "--csv")
    assert outcome.code == 2 and "holds shards, and --csv shows a run's ledger" in " ".join(
        outcome.err.replace("│", " ").split()
    )


def test_a_sparkline_ends_with_the_newest_value_and_has_a_limited_width() -> None:
    assert sparkline([float(number) for number in range(1000)], 0.0, 999.0)[-1] == "█"
    assert len(sparkline([0.0] * 1000, 0.0, 1.0)) <= 20
    assert sparkline([], 0.0, 1.0) == ""


@pytest.mark.parametrize("columns", [75, 80, 90, 120])
def test_a_sparkline_stands_on_one_line_in_any_terminal(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    trained(shards, tmp_path / "run", policies.loss_order(eta=0.5), falling(shards, 24), num_steps=120)
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = [line for line in works("inspect", tmp_path / "run").splitlines() if set(line) & set("▁▂▃▄▅▆▇█")]
    # A line of each skill in each of the two tables.
    assert [line.split()[0] for line in lines] == [*shards.skills, *shards.skills]
