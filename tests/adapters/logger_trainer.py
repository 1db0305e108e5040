"""A process that logs by every logger from a plain loop, the Hugging Face Trainer and Lightning, and reads the files back: SHARDS MANY FOLDER.

The loggers keep threads, a service and global settings in their process, so the processes of pytest do not import the loggers. SHARDS are
shards of three skills, MANY shards of many skills, FOLDER gets all files, and `test_logger_files.py` sets the environment. The result, FOLDER/read.json, has "expected" (the metrics and the rows that
the loop logged), "points" (trainer -> logger -> points), "tables" (logger -> rows that the loop logged), "addresses" (internet addresses that the process used) and "log_history" (of the Hugging Face Trainer).
"""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import mlflow
import trackio
import wandb
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch.utils.tensorboard import SummaryWriter
from transformers import Trainer, TrainingArguments

from skillshard import lightning
from skillshard.hf import MixerCallback, WholeStream, causal_lm_collator
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from tests.adapters.hf_trainer import byte_tokenizer, tiny
from tests.adapters.logger_files import of_mlflow, of_tensorboard, of_trackio, of_wandb
from tests.adapters.test_lightning import Module
from tests.adapters.trainers import live_mixer, losses_at

SHARDS, MANY, FOLDER = (Path(argument) for argument in sys.argv[1:4])
LOGGERS = ("tensorboard", "wandb", "mlflow", "trackio")
EVERY, STEPS = 5, 11
X_OF_WANDB = {"loop": "skillshard/draw", "hf": "train/global_step", "lightning": "trainer/global_step"}
"""Trainer -> metric that is the x-axis of its metrics in W&B."""


ADDRESSES: list[str] = []


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """Note the internet addresses to which the process connects, or on which it listens."""
    if event in ("socket.connect", "socket.bind") and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        ADDRESSES.append(str(arguments[1][0]))


def folder_of(trainer: str, logger: str) -> Path:
    return FOLDER / trainer / logger


def log_from_a_loop() -> dict[str, Any]:
    """Log as docs/howto/loggers.md says, and return the metrics and the rows that were logged."""
    mixer = Mixer(ShardSet.open(MANY), stratified(), ledger=FOLDER / "loop" / "run", round_draws=32, step_draws=8)
    expected: dict[str, list[tuple[float, float]]] = {}
    mlflow.set_tracking_uri(folder_of("loop", "mlflow").as_uri())
    trackio.init(project="loop", embed=False)
    with (
        SummaryWriter(str(folder_of("loop", "tensorboard"))) as writer,
        wandb.init(project="loop", dir=str(folder_of("loop", "wandb"))) as run,
        mlflow.start_run(),
    ):
        run.define_metric("skillshard/*", step_metric="skillshard/draw")
        for step in (4, 8):
            mixer.batch((step - 4) * 8, 32)
            mixer.report(step, {skill: step + number / 1024 for number, skill in enumerate(mixer.skills)})
            metrics, rows = mixer.metrics(step=step), mixer.metrics_table(step=step)
            draw = int(metrics["skillshard/draw"])
            for name, value in metrics.items():
                expected.setdefault(name, []).append((draw, value))
                writer.add_scalar(name, value, draw)
            run.log(metrics)
            mlflow.log_metrics(metrics, step=draw)
            trackio.log(metrics, step=draw)
        columns, data = list(rows[0]), [list(row.values()) for row in rows]
        run.log({"skills": wandb.Table(columns=columns, data=data)})
        mlflow.log_table({name: [row[name] for row in rows] for name in columns}, "skills.json")
        trackio.log({"skills": trackio.Table(columns=columns, data=data)}, step=draw)
    trackio.finish()
    return {"points": expected, "rows": rows}


def log_from_hugging_face() -> list[dict[str, Any]]:
    """Return the Trainer's log history."""
    mlflow.set_tracking_uri(folder_of("hf", "mlflow").as_uri())
    mixer = live_mixer(SHARDS, FOLDER / "hf" / "run", step_draws=4)
    steps = iter(range(0, 100, EVERY))
    callback = MixerCallback(mixer, lambda model: losses_at(next(steps)), every_steps=EVERY)
    trainer = Trainer(
        model=tiny(),
        args=TrainingArguments(
            output_dir=str(FOLDER / "hf" / "out"),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            remove_unused_columns=False,
            save_strategy="no",
            logging_steps=EVERY,
            use_cpu=True,
            disable_tqdm=True,
            report_to=list(LOGGERS),
            project="hf",
        ),
        train_dataset=WholeStream(mixer),
        data_collator=causal_lm_collator(byte_tokenizer(), max_tokens=64),
        callbacks=[callback],
    )
    callback.log_to(trainer, skills=2)
    trainer.train()
    wandb.finish()
    return trainer.state.log_history


class TrackioLogger(Logger):
    """The logger of docs/howto/loggers.md. Lightning has no logger of trackio."""

    name, version = "trackio", None

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        trackio.log(dict(metrics), step=step)

    def log_hyperparams(self, params: Any, *arguments: Any) -> None:
        pass


def log_from_lightning() -> None:
    mixer = live_mixer(SHARDS, FOLDER / "lightning" / "run", step_draws=4)
    callback = lightning.MixerCallback(
        mixer, lambda module: losses_at(module.global_step), every_steps=EVERY, log_skills=2
    )
    trackio.init(project="lightning", embed=False)
    LightningTrainer(
        accelerator="cpu",
        max_steps=STEPS,
        callbacks=[callback],
        logger=[
            TensorBoardLogger(folder_of("lightning", "tensorboard")),
            WandbLogger(save_dir=folder_of("lightning", "wandb"), offline=True),
            MLFlowLogger(tracking_uri=folder_of("lightning", "mlflow").as_uri()),
            TrackioLogger(),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(Module(), datamodule=lightning.MixedData(mixer, batch_size=4))
    trackio.finish()
    wandb.finish()


def main() -> None:
    sys.addaudithook(note)
    for trainer in X_OF_WANDB:
        folder_of(trainer, "wandb").mkdir(parents=True)  # W&B writes elsewhere if its directory does not exist
    expected = log_from_a_loop()
    log_history = log_from_hugging_face()
    log_from_lightning()
    points: dict[str, dict[str, Any]] = {}
    tables: dict[str, Any] = {}
    for name, x in X_OF_WANDB.items():
        read = {
            "tensorboard": (of_tensorboard(folder_of(name, "tensorboard")), []),
            "wandb": of_wandb(folder_of(name, "wandb"), x),
            "mlflow": of_mlflow(folder_of(name, "mlflow")),
            "trackio": of_trackio(name),
        }
        points[name] = {logger: kept for logger, (kept, _) in read.items()}
        if name == "loop":
            tables = {logger: table for logger, (_, table) in read.items()}
    result = {
        "expected": expected,
        "points": points,
        "tables": tables,
        "addresses": ADDRESSES,
        "log_history": log_history,
    }
    (FOLDER / "read.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
