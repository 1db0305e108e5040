"""TensorBoard, W&B, MLflow and trackio keep the metrics of a run: written by trainers, and read back from the files of each logger."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skillshard.errors import PolicyError
from skillshard.hf import MixerCallback
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.metrics import KINDS, MOST_SKILLS
from skillshard.mixing.records import open_records
from skillshard.shards.read import ShardSet
from tests.adapters.hf_trainer import tiny
from tests.adapters.trainers import live_mixer, losses_at
from tests.conftest import REPOSITORY, samples, tag_and_shard, write_corpus

LOGGERS = ("tensorboard", "wandb", "mlflow", "trackio")
NUM_SKILLS = 500
ODD_NAMES = ("wiki", "wiki/math", "C++ & C#", "a.b", "../up", "数学", "x" * 300)
"""Names of skills that no logger takes as they are."""


def environment(folder: Path) -> dict[str, str]:
    """Return the settings of the loggers: no network, and all files below a folder."""
    return {
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TENSORBOARD_LOGGING_DIR": str(folder / "hf" / "tensorboard"),
        "TRACKIO_DIR": str(folder / "trackio"),
        "WANDB_CACHE_DIR": str(folder / "wandb-cache"),
        "WANDB_CONFIG_DIR": str(folder / "wandb-config"),
        "WANDB_DATA_DIR": str(folder / "wandb-data"),
        "WANDB_DIR": str(folder / "hf" / "wandb"),  # the other trainers name their directories
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
    }


@pytest.fixture(scope="module")
def logged(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run `logger_trainer.py`, and return its result with the folder and with the processes that outlive it."""
    folder = tmp_path_factory.mktemp("loggers")
    # The odd names have the most samples, so that these names have metrics of their own.
    num_of = dict.fromkeys(ODD_NAMES, 12) | {f"skill-{number}": 2 for number in range(NUM_SKILLS - len(ODD_NAMES))}
    many = tag_and_shard(write_corpus(folder / "corpus", samples(**num_of)), folder)
    command = [sys.executable, "-m", "tests.adapters.logger_trainer", str(shards.root), str(many.root), str(folder)]
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **environment(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    result = json.loads((folder / "read.json").read_text())
    return {**result, "folder": folder, "outliving": processes_of_session(process.pid)}


def processes_of_session(session: int) -> list[str]:
    """Return the command lines of the living processes of a session."""
    lines = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                lines.append((status.parent / "cmdline").read_text())
        except (FileNotFoundError, ProcessLookupError):  # the process ended in the meantime
            continue
    return lines


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_logger_keeps_every_metric_of_a_loop_under_its_name_by_draws(logged: dict[str, Any], logger: str) -> None:
    kept = {name: points for name, points in logged["points"]["loop"][logger].items() if "skillshard/" in name}
    expected = logged["expected"]["points"]
    assert kept.keys() == expected.keys()
    for name, points in expected.items():
        assert [x for x, _ in kept[name]] == [32, 64]
        assert kept[name] == [[draw, pytest.approx(value)] for draw, value in points]


def test_of_500_skills_20_are_metrics_and_the_table_of_a_logger_has_all(logged: dict[str, Any]) -> None:
    names = logged["expected"]["points"]
    assert {name.split("/")[1] for name in names if name.count("/") == 2} == {*KINDS} - {"tokens"}
    assert sum(name.startswith("skillshard/weight/") for name in names) == MOST_SKILLS
    assert sum(name.startswith("skillshard/loss/") for name in names) == MOST_SKILLS
    rows = logged["expected"]["rows"]
    assert len(rows) == NUM_SKILLS
    assert {row["skill"] for row in rows} > {*ODD_NAMES}
    assert logged["tables"]["tensorboard"] == []
    for logger in ("wandb", "mlflow", "trackio"):
        table = logged["tables"][logger]
        assert [row["skill"] for row in table] == [row["skill"] for row in rows]
        for kind in KINDS:
            assert [row[kind] for row in table] == [row[kind] and pytest.approx(row[kind]) for row in rows]


# trackio counts the rows of the Hugging Face Trainer: a row for step 0, and a report and a log of the Trainer at steps 5 and 10.
STEPS, ROWS = (0, 5, 10), (0, 1, 3)


@pytest.mark.parametrize(
    ("trainer", "logger", "prefix", "xs"),
    [
        ("hf", "tensorboard", "train/", STEPS),
        ("hf", "wandb", "train/", STEPS),
        ("hf", "mlflow", "", STEPS),
        ("hf", "trackio", "train/", ROWS),
        *(("lightning", logger, "", STEPS) for logger in LOGGERS),
    ],
)
def test_a_trainer_logs_the_metrics_of_each_report(
    logged: dict[str, Any], trainer: str, logger: str, prefix: str, xs: tuple[int, ...]
) -> None:
    points = logged["points"][trainer][logger]
    assert points[f"{prefix}skillshard/draw"] == [[x, draw] for x, draw in zip(xs, (0, 20, 40), strict=True)]
    records = open_records(DirectoryLedger(logged["folder"] / trainer / "run"))
    skills = [name.split("/")[-1] for name in points if f"{prefix}skillshard/weight/" in name]
    assert len(skills) == 2
    for skill in skills:
        number = records.run.skills.index(skill)
        rounds = [records.rounds.existing((draw - 1) // records.run.round_draws) for draw in (20, 40)]
        weights = [[x, pytest.approx(record.weights[number])] for x, record in zip(xs[1:], rounds, strict=True)]
        assert points[f"{prefix}skillshard/weight/{skill}"] == weights
        losses = [[x, pytest.approx(losses_at(step)[skill])] for x, step in zip(xs, STEPS, strict=True)]
        assert points[f"{prefix}skillshard/loss/{skill}"] == losses


def test_the_hugging_face_trainer_keeps_its_own_log(logged: dict[str, Any]) -> None:
    assert [step for step, _ in logged["points"]["hf"]["tensorboard"]["train/loss"]] == [5, 10]
    assert [logs["step"] for logs in logged["log_history"] if "loss" in logs] == [5, 10]
    assert not any("skillshard" in name for logs in logged["log_history"] for name in logs)


def test_the_loggers_use_no_network_and_leave_no_process(logged: dict[str, Any]) -> None:
    assert {*logged["addresses"]} <= {"127.0.0.1", "::1", "localhost"}
    assert logged["outliving"] == []


def test_log_to_refuses_a_trainer_without_the_callback(shards: ShardSet, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    callback = MixerCallback(live_mixer(shards, tmp_path, step_draws=4), lambda model: {}, every_steps=5)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(PolicyError, match="without this callback"):
        callback.log_to(Trainer(model=tiny(), args=arguments))
