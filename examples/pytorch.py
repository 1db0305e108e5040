"""Train in a single process with a plain PyTorch loop: python examples/pytorch.py --shards S --run-dir runs/pytorch --steps 100.

Run the command again with more steps, also with another number of `--workers`, and the training continues. examples/ddp.py has several
training processes. With --log-dir the weights, shares, epochs and losses of the skills go to TensorBoard, over the draws:
tensorboard --logdir logs.
"""

import skillshard as ss

ss.needed("torch", what="examples/pytorch.py")

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from skillshard.torch import MixedDataset, collate

BATCH, EVERY = 32, 10
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def nats_and_tokens(model: torch.nn.Embedding, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss and the number of tokens of each text, by a bigram model over bytes. Use your own model in its place."""
    tokens = [torch.tensor([0, *text.encode()[:500]]) for text in texts]
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=-1).to(DEVICE)
    targets = padded[:, 1:]
    logits = model(padded[:, :-1].clamp(min=0)).transpose(1, 2)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none").sum(1), (targets >= 0).sum(1)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all: a process killed during the write leaves the previous checkpoint."""
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def main(shards_at: Path, run: Path, steps: int, workers: int, log_dir: Path | None = None) -> None:
    shards = ss.ShardSet.open(shards_at)
    policy = ss.policies.chain(
        ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2), ss.policies.floor(0.01)
    )
    mixer = ss.Mixer(shards, policy, ledger=run, round_draws=EVERY * BATCH, step_draws=BATCH)
    loader = DataLoader(MixedDataset(mixer), batch_size=BATCH, num_workers=workers, collate_fn=collate)
    model = torch.nn.Embedding(256, 256, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    writer = None
    if log_dir is not None:
        from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard

        writer = SummaryWriter(str(log_dir))

    def report(step: int) -> None:
        with torch.no_grad():
            losses = ss.losses_per_skill(
                lambda texts: nats_and_tokens(model, texts), shards.holdout, max_samples=64, batch_size=32
            )
        mixer.report(step, losses)
        print(step, {skill: f"{loss.mean:.3f} ± {loss.standard_error:.3f}" for skill, loss in losses.items()})
        if writer is not None:
            metrics = mixer.metrics(step=step)
            for name, value in metrics.items():
                writer.add_scalar(name, value, int(metrics["skillshard/draw"]))
            writer.flush()

    checkpoint, step = run / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=DEVICE)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        mixer.load_state_dict(saved["mixer"])
        step = saved["mixer"]["step"]
        print(f"goes on after step {step}")
    else:
        mixer.restart()  # does nothing in a new directory; an attempt that died before its first checkpoint begins again
        report(0)  # before the first step: these losses give the weights of round 1

    batches = iter(loader)
    while step < steps:
        nats, tokens = nats_and_tokens(model, next(batches)["text"])
        optimizer.zero_grad()
        (nats.sum() / tokens.sum()).backward()
        optimizer.step()
        step += 1
        if step % EVERY == 0:  # once per round
            report(step)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save(checkpoint, {**state, "mixer": mixer.state_dict(step=step)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    parser.add_argument("--workers", type=int, default=2, help="Number of loader processes.")
    parser.add_argument("--log-dir", type=Path, help="Directory of the files for TensorBoard. Default: no files.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps, arguments.workers, arguments.log_dir)
