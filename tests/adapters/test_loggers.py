"""The numbers of a run in the loggers of trainers, read back from real files."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.loggers import TensorBoardLogger
from transformers import Trainer, TrainingArguments

from skillshard import lightning
from skillshard.errors import PolicyError, RoundError
from skillshard.hf import MixerCallback, WholeStream, causal_lm_collator
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import open_records
from skillshard.policies import stratified
from skillshard.report.facts import run_facts
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from tests.adapters.hf_trainer import byte_tokenizer, tiny
from tests.adapters.test_lightning import Module
from tests.adapters.trainers import live_mixer, losses_at
from tests.conftest import samples, tag_and_shard, write_corpus
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


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the scalars of the event files in a folder: tag -> (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


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


def written_by_torch(mixer: Mixer, folder: Path) -> dict[str, Any]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, value in mixer.metrics().items():
            writer.add_scalar(name, value, mixer.metrics()["skillshard/draw"])
    return {tag: values[-1][1] for tag, values in scalars(folder).items()}


def written_by_wandb(mixer: Mixer, folder: Path) -> dict[str, Any]:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    run = wandb.init(mode="offline", project="p", dir=str(folder), settings=wandb.Settings(silent=True, console="off"))
    run.define_metric("skillshard/*", step_metric="skillshard/draw")
    run.log(mixer.metrics())
    rows = mixer.metrics_table()
    run.log({"skillshard/table": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})
    summary = dict(run.summary)
    run.finish()
    assert list(folder.rglob("run-*.wandb"))
    return {name: value for name, value in summary.items() if name in mixer.metrics()}


def written_by_mlflow(mixer: Mixer, folder: Path) -> dict[str, Any]:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    mlflow.set_tracking_uri(folder.as_uri())
    mlflow.set_experiment("e")
    with mlflow.start_run() as run:
        mlflow.log_metrics(mixer.metrics(), step=int(mixer.metrics()["skillshard/draw"]))
        rows = mixer.metrics_table()
        mlflow.log_table({name: [row[name] for row in rows] for name in rows[0]}, "skills.json")
    return dict(mlflow.get_run(run.info.run_id).data.metrics)


def written_by_trackio(mixer: Mixer, folder: Path) -> dict[str, Any]:
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    run = trackio.init(project="p", name="r", embed=False)
    trackio.log(mixer.metrics(), step=int(mixer.metrics()["skillshard/draw"]))
    trackio.finish()
    (logged,) = SQLiteStorage.get_logs("p", run.name)
    return {name: value for name, value in logged.items() if name in mixer.metrics()}


@pytest.fixture(scope="module")
def odd_shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Write shards of skills whose names no logger takes as they are."""
    folder = tmp_path_factory.mktemp("odd")
    names = ["wiki", "wiki/math", "C++ & C#", "a.b", "../up", "数学", "x" * 300]
    return tag_and_shard(write_corpus(folder / "corpus", samples(**dict.fromkeys(names, 12))), folder)


@pytest.fixture
def odd_mixer(odd_shards: ShardSet, tmp_path: Path) -> Mixer:
    mixer = Mixer(odd_shards, stratified(), ledger=tmp_path / "run", round_draws=32, step_draws=8)
    mixer.batch(0, 32)
    mixer.report(4, {skill: 1.0 + number for number, skill in enumerate(mixer.skills)})
    return mixer


@pytest.fixture
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let each logger write below the folder of the test, and never to a network."""
    for name, value in {
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "WANDB_MODE": "offline",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "WANDB_DATA_DIR": str(tmp_path),
        "WANDB_CACHE_DIR": str(tmp_path),
        "WANDB_CONFIG_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    yield


@pytest.mark.filterwarnings("default")  # the loggers' own warnings are not ours
@pytest.mark.parametrize("written", [written_by_torch, written_by_wandb, written_by_mlflow, written_by_trackio])
def test_a_logger_keeps_every_metric_under_its_name(
    written: Any, own_places: None, odd_mixer: Mixer, tmp_path: Path
) -> None:
    metrics = odd_mixer.metrics()
    kept = written(odd_mixer, tmp_path)
    assert kept.keys() == metrics.keys()
    assert {name: pytest.approx(value) for name, value in metrics.items()} == kept


def test_lightning_logs_the_metrics_of_each_report(shards: ShardSet, tmp_path: Path) -> None:
    mixer = live_mixer(shards, tmp_path / "run", step_draws=4)
    callback = lightning.MixerCallback(mixer, lambda module: losses_at(module.global_step), every_steps=5, log_skills=2)
    trainer = LightningTrainer(
        accelerator="cpu",
        max_steps=11,
        callbacks=[callback],
        logger=TensorBoardLogger(tmp_path, name="events"),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Module(), datamodule=lightning.MixedData(mixer, batch_size=4))
    check_events(scalars(tmp_path / "events"), mixer, prefix="")


@pytest.mark.filterwarnings("ignore:.*logging_dir.*")
def test_the_hugging_face_trainer_logs_the_metrics_of_each_report(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    mixer = live_mixer(shards, tmp_path / "run", step_draws=4)
    steps = iter(range(0, 100, 5))
    callback = MixerCallback(mixer, lambda model: losses_at(next(steps)), every_steps=5)
    trainer = Trainer(
        model=tiny(),
        args=TrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=11,
            per_device_train_batch_size=4,
            remove_unused_columns=False,
            save_strategy="no",
            logging_steps=5,
            use_cpu=True,
            disable_tqdm=True,
            report_to="tensorboard",
        ),
        train_dataset=WholeStream(mixer),
        data_collator=causal_lm_collator(byte_tokenizer(), max_tokens=64),
        callbacks=[callback],
    )
    callback.log_to(trainer, skills=2)
    trainer.train()
    events = scalars(tmp_path / "events")
    check_events(events, mixer, prefix="train/")
    assert [step for step, _ in events["train/loss"]] == [5, 10]
    assert not any("skillshard" in name for logs in trainer.state.log_history for name in logs)
    with pytest.raises(PolicyError, match="without this callback"):
        MixerCallback(mixer, losses_at, every_steps=5).log_to(trainer)


def check_events(events: dict[str, list[tuple[int, float]]], mixer: Mixer, *, prefix: str) -> None:
    """Compare logged metrics at the steps 0, 5 and 10 with the ledger."""
    assert events[f"{prefix}skillshard/draw"] == [(0, 0), (5, 20), (10, 40)]
    records = open_records(mixer.ledger)
    skills = {name.split("/")[-1] for name in events if "skillshard/weight/" in name}
    assert len(skills) == 2
    for skill in skills:
        number = mixer.skills.index(skill)
        weights = [records.rounds.existing((draw - 1) // mixer.round_draws).weights[number] for draw in (20, 40)]
        assert [value for _, value in events[f"{prefix}skillshard/weight/{skill}"]] == pytest.approx(weights)
        losses = [losses_at(step)[skill] for step in (0, 5, 10)]
        assert [value for _, value in events[f"{prefix}skillshard/loss/{skill}"]] == pytest.approx(losses)
    assert all(math.isfinite(value) for values in events.values() for _, value in values)


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
