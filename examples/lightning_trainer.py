"""Train with Lightning's Trainer: python examples/lightning_trainer.py --shards S --run-dir runs/lightning --steps 100.

With two processes: torchrun --nproc-per-node 2 examples/lightning_trainer.py --shards S --run-dir runs/lightning2 --steps 100.
Run the command again with more steps, and the training continues. The number of processes must divide 32.
"""

import skillshard as ss

ss.needed("lightning", what="examples/lightning_trainer.py")

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F

from skillshard.lightning import MixedData, MixerCallback

BATCH, EVERY = 32, 10


class Bigram(LightningModule):
    """A bigram model over bytes. Use your own model in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(256, 256)

    def nats_and_tokens(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss and the number of tokens of each text."""
        tokens = [torch.tensor([0, *text.encode()[:500]]) for text in texts]
        padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=-1).to(self.device)
        targets = padded[:, 1:]
        logits = self.table(padded[:, :-1].clamp(min=0)).transpose(1, 2)
        return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none").sum(1), (targets >= 0).sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        nats, tokens = self.nats_and_tokens(batch["text"])
        return nats.sum() / tokens.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def main(shards_at: Path, run: Path, steps: int) -> None:
    shards = ss.ShardSet.open(shards_at)
    policy = ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if BATCH % world_size:
        raise SystemExit(f"{BATCH} samples a step do not divide over {world_size} processes.")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_gpus = torch.cuda.device_count() >= processes  # a GPU for each process, or CPUs for all processes
    mixer = ss.Mixer(shards, policy, ledger=run, round_draws=EVERY * BATCH, step_draws=BATCH)

    def losses(module: Any) -> Any:
        with torch.no_grad():
            measured = ss.losses_per_skill(module.nats_and_tokens, shards.holdout, max_samples=64, batch_size=32)
        if module.trainer.is_global_zero:  # every rank measures, and rank 0 reports
            print(module.trainer.global_step, {skill: round(loss.mean, 3) for skill, loss in measured.items()})
        return measured

    keep = ModelCheckpoint(
        run / "checkpoints", every_n_train_steps=EVERY, save_last=True, save_on_train_epoch_end=False
    )
    trainer = Trainer(
        accelerator="gpu" if on_gpus else "cpu",
        precision="bf16-mixed" if on_gpus else "32-true",
        devices=processes,
        num_nodes=world_size // processes,
        max_steps=steps,
        use_distributed_sampler=False,  # the mixer already gives each rank its own samples
        callbacks=[MixerCallback(mixer, losses, every_steps=EVERY), keep],
        logger=False,
        enable_progress_bar=False,
    )
    last = run / "checkpoints" / "last.ckpt"
    trainer.fit(
        Bigram(),
        datamodule=MixedData(mixer, batch_size=BATCH // world_size),
        ckpt_path=str(last) if last.exists() else None,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps)
