"""A rank of a training with Lightning or Fabric: SHARDS FOLDER STEPS KIND KILL_AT. Resumes from the last checkpoint.

KIND is "lightning", "fabric", or "lightning-shared" for a Trainer without `use_distributed_sampler=False`.
"""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

import torch
import torch._dynamo  # DistributedDataParallel imports the module at its creation, and here the import precedes the fork of the ranks
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from skillshard.errors import LengthError
from skillshard.lightning import MixedData, MixerCallback
from skillshard.mixing.mixer import Mixer
from skillshard.torch import MixedDataset, collate, restart, resume
from tests.adapters.ddp_trainer import STEP_DRAWS, write_line
from tests.adapters.trainers import live_mixer, losses_at

SAVE_STEPS = 7


class Module(LightningModule):
    """A module that writes the samples of its training, and dies after a step."""

    def __init__(self, mixer: Mixer, log: TextIO, kill_at: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.mixer, self.samples, self.kill_at = mixer, log, kill_at

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.kill_at and self.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        write_line(self.samples, self.mixer, self.global_step + 1, batch)
        return self.layer(torch.as_tensor(batch["draw"][:4]).float()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def train_with_lightning(
    mixer: Mixer, folder: Path, log: TextIO, steps: int, kill_at: int, world_size: int, *, shared: bool
) -> None:
    trainer = Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=world_size,
        max_steps=steps,
        use_distributed_sampler=shared,
        callbacks=[
            MixerCallback(mixer, lambda module: losses_at(module.global_step), every_steps=5),
            ModelCheckpoint(folder / "checkpoints", every_n_train_steps=SAVE_STEPS, save_last=True),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(
        Module(mixer, log, kill_at),
        datamodule=MixedData(mixer, batch_size=STEP_DRAWS // world_size),
        ckpt_path=str(last) if last.exists() else None,
    )


def train_with_fabric(
    mixer: Mixer, folder: Path, log: TextIO, steps: int, kill_at: int, world_size: int, rank: int
) -> None:
    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=world_size)
    fabric.launch()
    model = torch.nn.Linear(4, 1)
    prepared, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1e-6))
    state = {"model": prepared, "optimizer": optimizer, "mixer": {}}
    saved, step = folder / "checkpoint.pt", 0
    if saved.exists():
        fabric.load(saved, state)
        resume(mixer, state["mixer"])
        step = state["mixer"]["step"]
    else:
        restart(mixer)
        if rank == 0:
            mixer.report(0, losses_at(0))
    fabric.barrier()  # no rank overwrites the file before every rank has read the file
    loader = DataLoader(MixedDataset(mixer), batch_size=STEP_DRAWS // world_size, collate_fn=collate)
    try:
        fabric.setup_dataloaders(loader)
    except LengthError as error:
        (folder / f"refused-{rank}.txt").write_text(str(error))
    batches = iter(fabric.setup_dataloaders(loader, use_distributed_sampler=False))
    while step < steps:
        if kill_at and step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        batch = next(batches)
        fabric.backward(prepared(torch.as_tensor(batch["draw"][:4]).float()).sum())
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        write_line(log, mixer, step, batch)
        if rank == 0 and step % 5 == 0:
            mixer.report(step, losses_at(step))
        if step % SAVE_STEPS == 0:
            state["mixer"] = mixer.state_dict(step=step)
            fabric.save(saved, state)
    fabric.barrier()


def run(arguments: list[str]) -> None:
    warnings.simplefilter("ignore")
    shards, folder_name, steps, kind, kill_at = arguments
    folder, rank, world_size = Path(folder_name), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    mixer = live_mixer(shards, folder / "run", step_draws=STEP_DRAWS)
    log = (folder / f"rank-{rank}.jsonl").open("a")
    if kind == "fabric":
        train_with_fabric(mixer, folder, log, int(steps), int(kill_at), world_size, rank)
    else:
        shared = kind == "lightning-shared"
        train_with_lightning(mixer, folder, log, int(steps), int(kill_at), world_size, shared=shared)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run(sys.argv[1:])
