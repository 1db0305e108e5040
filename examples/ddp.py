"""Train in several processes on a single stream: torchrun --nproc-per-node 2 examples/ddp.py --shards S --run-dir runs/ddp --steps 100.

Stop the training, and run the command again with more steps or with another number of processes that divides 32. The training continues
with the same stream. The option is not called --run, because torchrun has an option --run.
"""

import skillshard as ss

ss.needed("torch", what="examples/ddp.py")

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from skillshard.torch import MixedDataset, collate, restart, resume

GLOBAL_BATCH, EVERY = 32, 10


def nats_and_tokens(model: torch.nn.Module, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss and the number of tokens of each text, by a bigram model over bytes. Use your own model in its place."""
    tokens = [torch.tensor([0, *text.encode()[:500]]) for text in texts]
    device = next(model.parameters()).device
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=-1).to(device)
    targets = padded[:, 1:]
    logits = model(padded[:, :-1].clamp(min=0)).transpose(1, 2)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none").sum(1), (targets >= 0).sum(1)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all: a process killed during the write leaves the previous checkpoint."""
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def main(shards_at: Path, run: Path, steps: int) -> None:
    # A GPU for each process, or CPUs for all processes.
    on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)  # NCCL sends objects through the present device of a process
    dist.init_process_group("nccl" if on_gpus else "gloo", device_id=device if on_gpus else None)
    if GLOBAL_BATCH % dist.get_world_size():
        raise SystemExit(f"{GLOBAL_BATCH} samples a step do not divide over {dist.get_world_size()} processes.")
    shards = ss.ShardSet.open(shards_at)
    policy = ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2)
    mixer = ss.Mixer(shards, policy, ledger=run, round_draws=EVERY * GLOBAL_BATCH, step_draws=GLOBAL_BATCH)
    model = DistributedDataParallel(torch.nn.Embedding(256, 256, device=device))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    is_first = dist.get_rank() == 0

    def report(step: int) -> None:
        """Measure and report on rank 0. The other ranks read the weights from the ledger."""
        if not is_first:
            return
        with torch.no_grad():
            losses = ss.losses_per_skill(
                lambda texts: nats_and_tokens(model.module, texts), shards.holdout, max_samples=64, batch_size=32
            )
        mixer.report(step, losses)
        print(step, {skill: round(loss.mean, 3) for skill, loss in losses.items()})

    checkpoint, step = run / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device)
        model.module.load_state_dict(saved["model"])
        resume(mixer, saved["mixer"])  # rank 0 first, then the others
        step = saved["mixer"]["step"]
        if is_first:
            print(f"goes on after step {step}")
    else:
        restart(mixer)  # does nothing in a new directory; an attempt that died before its first checkpoint begins again
        report(0)  # before the first step

    dataset = MixedDataset(mixer)  # rank and world size come from torch.distributed
    batches = iter(DataLoader(dataset, batch_size=GLOBAL_BATCH // dist.get_world_size(), collate_fn=collate))
    while step < steps:
        nats, tokens = nats_and_tokens(model, next(batches)["text"])
        optimizer.zero_grad()
        (nats.sum() / tokens.sum()).backward()
        optimizer.step()
        step += 1
        if step % EVERY == 0:
            report(step)
            if is_first:
                save(checkpoint, {"model": model.module.state_dict(), "mixer": mixer.state_dict(step=step)})
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps)
