"""The alarm of a run without reports: rounds that go on without a report, and a loader that waits for a report."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from skillshard import policies
from skillshard.errors import RoundError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.alarms import SILENT_ROUNDS
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.run_records import Lag
from skillshard.policies import Policy
from skillshard.report.history import report_facts
from skillshard.report.page import page_of
from skillshard.report.run_facts import run_facts
from skillshard.shards.read import ShardSet
from tests.commands import fails, works

ROUND_DRAWS = 20


def mixer_of(shards: ShardSet, ledger: Path, policy: Policy, lag: Lag, **arguments: Any) -> Mixer:
    return Mixer(shards, policy, ledger=ledger, round_draws=ROUND_DRAWS, step_draws=1, lag=lag, **arguments)


def skill_it(shards: ShardSet) -> Policy:
    return policies.skill_it(SkillGraph.identity(shards.skills), eta=0.3)


def losses(shards: ShardSet, draw: int) -> dict[str, float]:
    return {skill: 3 / (1 + (number + 1) * draw / 100) for number, skill in enumerate(shards.skills)}


def trained(
    shards: ShardSet, ledger: Path, policy: Policy, lag: Lag, *, num_rounds: int, reported: list[int], **arguments: Any
) -> Mixer:
    """Read whole rounds. Report at the beginning of the rounds in `reported`."""
    mixer = mixer_of(shards, ledger, policy, lag, **arguments)
    for number in range(num_rounds):
        if number in reported:
            mixer.report(number * ROUND_DRAWS, losses(shards, number))
        mixer.batch(number * ROUND_DRAWS, ROUND_DRAWS)
    return mixer


def silent(ledger: Path) -> list[str]:
    return [alarm.sentence for alarm in run_facts(DirectoryLedger(ledger)).alarms if alarm.kind == "silent"]


@pytest.mark.parametrize(
    ("policy", "lag"),
    [
        (policies.proportional(), 0),
        (policies.proportional(), 1),
        (policies.proportional(), "live"),
        (policies.loss_order(eta=0.5), "live"),
    ],
    ids=["static-0", "static-1", "static-live", "reading-live"],
)
def test_a_run_that_has_reported_and_falls_silent_has_the_alarm(
    shards: ShardSet, tmp_path: Path, policy: Policy, lag: Lag
) -> None:
    trained(shards, tmp_path / "sound", policy, lag, num_rounds=SILENT_ROUNDS + 1, reported=[0, 1, 2])
    assert silent(tmp_path / "sound") == []
    trained(shards, tmp_path / "silent", policy, lag, num_rounds=11, reported=[0, 1, 2])
    (sentence,) = silent(tmp_path / "silent")
    assert "no losses were reported for 9 rounds: the last report is of draw 40, and the rounds are decided" in sentence
    assert "alarm: no losses were reported" in works("inspect", tmp_path / "silent")


def test_a_run_that_never_reports_and_reads_no_losses_has_no_alarm(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "run", policies.proportional(), 1, num_rounds=15, reported=[])
    assert silent(tmp_path / "run") == []
    # The run before has reported, and its last report is copied.
    first = trained(shards, tmp_path / "a", policies.proportional(), 1, num_rounds=2, reported=[0, 1])
    Mixer.continue_from(
        tmp_path / "a", draw=40, shards=shards, policy=first.policy, ledger=tmp_path / "b", step_draws=1
    ).batch(40, 15 * ROUND_DRAWS)
    assert silent(tmp_path / "b") == []


def test_the_usual_pause_between_reports_is_no_alarm(shards: ShardSet, tmp_path: Path) -> None:
    rare = [4, 8, 12]
    trained(shards, tmp_path / "run", policies.proportional(), 1, num_rounds=18, reported=rare)
    assert silent(tmp_path / "run") == []
    events = [event for run in report_facts([tmp_path / "run"]).runs for event in run.events]
    assert [event.sentence for event in events if event.kind == "alarm"] == []
    trained(shards, tmp_path / "silent", policies.proportional(), 1, num_rounds=24, reported=rare)
    assert "no losses were reported for 12 rounds" in silent(tmp_path / "silent")[0]


def test_one_long_pause_does_not_hide_the_next_silence(shards: ShardSet, tmp_path: Path) -> None:
    reported = [0, 1, 2, 12, 13]
    trained(shards, tmp_path / "run", policies.proportional(), 1, num_rounds=16, reported=reported)
    assert "no losses were reported for 3 rounds" in silent(tmp_path / "run")[0]


def test_a_loader_that_reads_ahead_as_far_as_its_lag_allows_is_no_alarm(shards: ShardSet, tmp_path: Path) -> None:
    mixer = mixer_of(shards, tmp_path / "run", skill_it(shards), 3)
    mixer.report(0, losses(shards, 0))
    mixer.batch(0, 4 * ROUND_DRAWS)  # rounds 0 to 3, and round 4 would wait for the report at draw 20
    assert mixer.num_rounds == 4 and silent(tmp_path / "run") == []


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_loader_that_waits_long_for_a_report_is_an_alarm_in_every_view(
    shards: ShardSet, tmp_path: Path, lag: int, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    trainer, loader = (mixer_of(shards, run, skill_it(shards), lag, wait_s=0.2) for _ in "ab")
    for number in range(3):
        trainer.report(number * ROUND_DRAWS, losses(shards, number * ROUND_DRAWS))
        loader.batch(number * ROUND_DRAWS, ROUND_DRAWS)
    for _ in "twice":
        with pytest.raises(RoundError, match=r"waited 0\.2 s"):
            loader.batch(0, 10 * ROUND_DRAWS)
    decided = (3 + lag) * ROUND_DRAWS
    expected = (
        f"a loader has waited 0.1 s for a report of draw 60 or later: the last report is of draw 40, and the rounds are decided up to draw {decided}. "
        "Does the trainer still call report?"
    )
    assert silent(run) == [expected]
    logged = [record for record in caplog.records if getattr(record, "alarm", None) == "silent"]
    assert [record.getMessage() for record in logged] == [f"{run}: {expected}"]
    assert f"alarm: {expected}" in " ".join(works("inspect", run).split())
    assert expected in json.loads(works("inspect", run, "--json"))["alarms"][0]["sentence"]
    facts = report_facts([run])
    events = [(event.draw, event.sentence) for event in facts.runs[0].events if event.kind == "alarm"]
    assert events == [(decided - ROUND_DRAWS, expected)]
    assert "Alarms at the newest round" in page_of(facts, num_lines=8)
    # The record determines nothing.
    assert verify_ledger(DirectoryLedger(run)) == []
    works("replay", run, "--policy", "skill_it:graph=identity,eta=0.3")
    # The report ends the alarm. The history keeps the mark.
    trainer.report(60, losses(shards, 60))
    assert silent(run) == []
    loader.batch(0, (4 + lag) * ROUND_DRAWS)
    events = [(event.draw, event.sentence) for event in report_facts([run]).runs[0].events if event.kind == "alarm"]
    assert events == [(decided - ROUND_DRAWS, expected)]


def test_a_loader_that_waits_for_the_first_losses_is_an_alarm(shards: ShardSet, tmp_path: Path) -> None:
    loader = mixer_of(shards, tmp_path / "run", skill_it(shards), 1, wait_s=0.2, job="a job of several ranks")
    with pytest.raises(RoundError):
        loader.batch(0, 2 * ROUND_DRAWS)
    sentence = "a loader has waited 0.1 s for the losses of draw 0, before the first step: no losses were reported yet"
    assert sentence in silent(tmp_path / "run")[0]
    assert sentence in " ".join(works("inspect", tmp_path / "run").split())


def test_a_report_within_the_first_half_of_the_waiting_time_is_no_alarm(shards: ShardSet, tmp_path: Path) -> None:
    trainer, loader = (mixer_of(shards, tmp_path / "run", skill_it(shards), 0, wait_s=600.0) for _ in "ab")
    trainer.report(0, losses(shards, 0))
    loader.batch(0, ROUND_DRAWS)
    timer = threading.Timer(0.1, trainer.report, (ROUND_DRAWS, losses(shards, ROUND_DRAWS)))
    timer.start()
    loader.batch(ROUND_DRAWS, ROUND_DRAWS)
    timer.join()
    assert not [*(tmp_path / "run").glob("**/waits/*")]


def test_a_resume_leaves_the_wait_behind(shards: ShardSet, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer, loader = (mixer_of(shards, run, skill_it(shards), 0, wait_s=0.2) for _ in "ab")
    trainer.report(0, losses(shards, 0))
    with pytest.raises(RoundError):
        loader.batch(0, 2 * ROUND_DRAWS)
    assert len(silent(run)) == 1
    again = mixer_of(shards, run, skill_it(shards), 0)
    again.load_state_dict(trainer.state_at(ROUND_DRAWS).model_dump(by_alias=True))
    assert silent(run) == []


def test_a_changed_record_of_a_wait_is_found(shards: ShardSet, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer, loader = (mixer_of(shards, run, skill_it(shards), 0, wait_s=0.2) for _ in "ab")
    trainer.report(0, losses(shards, 0))
    with pytest.raises(RoundError):
        loader.batch(0, 2 * ROUND_DRAWS)
    (record,) = run.glob("generations/*/waits/*.json")
    copy = record.with_name("00000005.json")
    copy.write_bytes(record.read_bytes())
    assert "of another run or another round" in fails("verify", run)
    copy.unlink()
    record.write_bytes(record.read_bytes().replace(b'"needed_draw": 20', b'"needed_draw": 21'))
    remedy = "The stream does not depend on the record: restore the file, or delete it."
    assert remedy in " ".join(fails("verify", run).split())
    assert remedy in " ".join(fails("inspect", run).split())
    record.unlink()
    works("verify", run)
