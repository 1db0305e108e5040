"""The numbers of a run for loggers, and the alarms in the log of Python."""

import logging
from pathlib import Path

import pytest

from skillshard.errors import PolicyError, RoundError
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.report.run_facts import run_facts
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from tests.adapters.trainers import live_mixer, losses_at
from tests.tokenizers_trained import counted, uneven_shards

STEP_DRAWS = 8
pytestmark = [
    pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning"),
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec"),
]


def reported_mixer(shards: ShardSet, folder: Path) -> Mixer:
    """Return a mixer after 10 steps with reports at steps 0, 5 and 10."""
    mixer = live_mixer(shards, folder, step_draws=STEP_DRAWS)
    for step in (0, 5, 10):
        mixer.report(step, losses_at(step))
        mixer.batch(step * STEP_DRAWS, STEP_DRAWS)
    return mixer


def test_metrics_are_the_numbers_of_the_ledger(shards: ShardSet, tmp_path: Path) -> None:
    mixer = reported_mixer(shards, tmp_path)
    metrics = mixer.metrics()
    record = mixer.round((10 * STEP_DRAWS - 1) // mixer.round_draws)
    assert metrics["skillshard/draw"] == 10 * STEP_DRAWS
    assert metrics["skillshard/round"] == record.round
    batch = mixer.batch(0, 10 * STEP_DRAWS)
    for number, skill in enumerate(mixer.skills):
        assert metrics[f"skillshard/weight/{skill}"] == record.weights[number]
        assert metrics[f"skillshard/share/{skill}"] == batch.skill.count(skill) / len(batch)
        assert metrics[f"skillshard/loss/{skill}"] == losses_at(10)[skill]
        assert metrics[f"skillshard/epochs/{skill}"] * len(shards.train[skill]) == pytest.approx(
            batch.skill.count(skill)
        )
    assert mixer.metrics(step=10) == mixer.metrics(draw=10 * STEP_DRAWS) == metrics
    assert not any("/tokens/" in name for name in metrics)


def test_before_the_first_draw_only_the_losses_are_known(shards: ShardSet, tmp_path: Path) -> None:
    mixer = live_mixer(shards, tmp_path, step_draws=STEP_DRAWS)
    assert mixer.metrics() == {"skillshard/draw": 0.0}
    mixer.report(0, losses_at(0))
    assert mixer.metrics() == {
        "skillshard/draw": 0.0,
        **{f"skillshard/loss/{skill}": loss for skill, loss in losses_at(0).items()},
    }
    assert mixer.num_rounds == 0


def test_metrics_decide_nothing(shards: ShardSet, tmp_path: Path) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path, round_draws=64)
    with pytest.raises(RoundError, match="Metrics read decided rounds only"):
        mixer.metrics(draw=65)
    assert mixer.num_rounds == 0
    mixer.batch(0, 64)
    assert mixer.metrics(draw=64)["skillshard/round"] == 0
    with pytest.raises(RoundError, match="has decided 1 round, up to draw 64"):
        mixer.metrics(draw=65)
    with pytest.raises(PolicyError, match="most_skills is -1"):
        mixer.metrics(draw=1, most_skills=-1)
    with pytest.raises(PolicyError, match="give one of them"):
        mixer.metrics(draw=1, step=1)


def test_a_stream_that_ended_has_the_metrics_of_its_last_draw(shards: ShardSet, tmp_path: Path) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path, round_draws=64, repeat="drop")
    total = sum(len(mixer.batch(first, 64)) for first in range(0, mixer.length() or 0, 64))
    metrics = mixer.metrics(draw=total + 1000)
    assert metrics["skillshard/draw"] == total
    assert {metrics[f"skillshard/epochs/{skill}"] for skill in shards.skills} == {1.0}


def test_the_largest_skills_are_metrics_and_the_table_has_all(shards: ShardSet, tmp_path: Path) -> None:
    mixer = reported_mixer(shards, tmp_path)
    largest = max(mixer.skills, key=lambda skill: len(shards.train[skill]))
    metrics = mixer.metrics(most_skills=1)
    assert {name.split("/")[2] for name in metrics if name.count("/") == 2} == {largest}
    table = mixer.metrics_table()
    assert [row["skill"] for row in table] == list(mixer.skills)
    assert list(table[0]) == ["skill", "weight", "share", "epochs", "tokens", "loss"]
    assert sum(float(row["share"] or 0) for row in table) == pytest.approx(1)


def test_metrics_count_tokens_where_weights_count_tokens(tmp_path: Path) -> None:
    shards = uneven_shards(tmp_path)
    tokens: TokenSet = counted(shards, tmp_path / "T")
    mixer = Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=64, unit="tokens", tokens=tokens)
    mixer.batch(0, 128)
    table, facts = mixer.metrics_table(draw=128), run_facts(DirectoryLedger(tmp_path / "run"))
    assert [row["tokens"] for row in table] == [skill.num_tokens for skill in facts.skills]
    assert mixer.metrics(draw=128)[f"skillshard/tokens/{shards.skills[0]}"] == table[0]["tokens"]


def test_an_alarm_is_logged_once_when_it_begins(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixer = live_mixer(shards, tmp_path, step_draws=STEP_DRAWS, lag="live", initial_losses=False)
    every = mixer.round_draws // STEP_DRAWS
    caplog.set_level(logging.WARNING, "skillshard")

    def report(number: int) -> None:
        mixer.report(number * every, losses_at(number))

    for number in range(1, 3):
        mixer.round(number - 1)
        report(number)
    assert not [record for record in caplog.records if record.name == "skillshard"]
    for number in range(2, 9):  # six rounds without a report
        mixer.round(number)
    mixer.state_dict(step=8 * every)
    mixer.state_dict(step=8 * every)
    report(9)
    silent = [record for record in caplog.records if getattr(record, "alarm", None) == "silent"]
    assert len(silent) == 1
    assert "no losses were reported for 7 rounds" in silent[0].getMessage()
    assert not [record for record in caplog.records if getattr(record, "alarm", None) == "repeated"]


def test_a_process_that_does_not_report_logs_no_alarm(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, other = (live_mixer(shards, tmp_path, step_draws=STEP_DRAWS, lag="live", initial_losses=False) for _ in "ab")
    first.round(0)
    first.report(1, losses_at(1))
    other.round(8)
    other.state_dict(step=4)
    assert [alarm.kind for alarm in run_facts(DirectoryLedger(tmp_path)).alarms].count("silent") == 1
    assert not [record for record in caplog.records if record.name == "skillshard"]
