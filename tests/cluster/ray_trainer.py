"""A training with Ray Train: SHARDS FOLDER STEPS WORKERS. Each worker writes the samples of its steps to a file."""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEP_S = 0.1
"""Shortest time of a step, so that a test can kill a process between two steps."""


def train(config: dict[str, Any]) -> None:
    import ray.train
    import torch
    from ray.train.torch import prepare_model
    from torch.utils.data import DataLoader

    from skillshard.canonical import to_json
    from skillshard.storage import read_json, write_bytes
    from skillshard.torch import MixedDataset, collate, restart, resume
    from tests.adapters.ddp_trainer import STEP_DRAWS, write_line
    from tests.adapters.trainers import live_mixer, losses_at

    folder = Path(config["folder"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    write_bytes(folder / f"pid-{rank}.json", to_json({"pid": os.getpid(), "world_size": world_size}))
    model = prepare_model(torch.nn.Linear(4, 1))
    mixer = live_mixer(config["shards"], folder / "run", step_draws=STEP_DRAWS)
    checkpoint, step = ray.train.get_checkpoint(), 0
    if checkpoint is None:
        restart(mixer)
        if rank == 0:
            mixer.report(0, losses_at(0))
    else:
        with checkpoint.as_directory() as saved:
            state = read_json(Path(saved, "mixer.json"))
        resume(mixer, state)
        step = state["step"]
    log = (folder / f"rank-{rank}.jsonl").open("a")
    batches = iter(DataLoader(MixedDataset(mixer), batch_size=STEP_DRAWS // world_size, collate_fn=collate))
    while step < config["steps"]:
        batch = next(batches)
        model(torch.from_numpy(batch["draw"][:4]).float()).sum().backward()
        step += 1
        write_line(log, mixer, step, batch)
        time.sleep(STEP_S)
        if rank == 0 and step % 5 == 0:
            mixer.report(step, losses_at(step))
        if step % 7 == 0:
            with tempfile.TemporaryDirectory() as written:
                if rank == 0:
                    write_bytes(Path(written, "mixer.json"), to_json(mixer.state_dict(step=step)))
                ray.train.report(
                    {"step": step}, checkpoint=ray.train.Checkpoint.from_directory(written) if rank == 0 else None
                )


def main(shards: str, folder: str, steps: str, workers: str) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    TorchTrainer(
        train,
        train_loop_config={"shards": shards, "folder": folder, "steps": int(steps)},
        scaling_config=ScalingConfig(num_workers=int(workers)),
        run_config=RunConfig(storage_path=folder, name="checkpoints", failure_config=FailureConfig(max_failures=2)),
    ).fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
