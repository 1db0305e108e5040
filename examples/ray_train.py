"""Train with Ray Train in two workers: python examples/ray_train.py --shards S --run-dir runs/ray --steps 100.

A worker that dies is replaced, and the training goes on from the last checkpoint. Run the command again with more steps or with
`--workers 4`, and the training continues with the same stream. Set RAY_ADDRESS to use a running cluster. On several nodes, shards and
run directory lie in a file system that all nodes share.
"""

import skillshard as ss

ss.needed("raytrain", what="examples/ray_train.py")

import argparse
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch.nn import functional as F
from torch.utils.data import DataLoader

from skillshard.torch import MixedDataset, collate, restart, resume

GLOBAL_BATCH, EVERY = 32, 10


def nats_and_tokens(model: torch.nn.Module, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss and the number of tokens of each text, by a bigram model over bytes. Use your own model in its place."""
    tokens = [torch.tensor([0, *text.encode()[:500]]) for text in texts]
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=-1).to(get_device())
    targets = padded[:, 1:]
    logits = model(padded[:, :-1].clamp(min=0)).transpose(1, 2)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none").sum(1), (targets >= 0).sum(1)


def train(config: dict[str, Any]) -> None:
    """Train in one worker. Ray Train has joined the workers to a process group of torch.distributed."""
    context = ray.train.get_context()
    world_size, is_first = context.get_world_size(), context.get_world_rank() == 0
    shards = ss.ShardSet.open(config["shards"])
    policy = ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2)
    mixer = ss.Mixer(shards, policy, ledger=config["run"], round_draws=EVERY * GLOBAL_BATCH, step_draws=GLOBAL_BATCH)
    table = torch.nn.Embedding(256, 256)
    model = prepare_model(table)  # on the worker's device, and with several workers in DistributedDataParallel
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def report(step: int) -> dict[str, float]:
        """Measure and report on rank 0. The other workers read the weights from the ledger."""
        if not is_first:
            return {}
        with torch.no_grad():
            losses = ss.losses_per_skill(
                lambda texts: nats_and_tokens(table, texts), shards.holdout, max_samples=64, batch_size=32
            )
        mixer.report(step, losses)
        return {skill: round(loss.mean, 3) for skill, loss in losses.items()}

    checkpoint, step = ray.train.get_checkpoint(), 0
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder, "checkpoint.pt"), map_location=get_device())
        table.load_state_dict(saved["model"])
        resume(mixer, saved["mixer"])  # rank 0 first, then the others
        step = saved["mixer"]["step"]
    else:
        restart(mixer)  # does nothing in a new directory; an attempt that died before its first checkpoint begins again
        report(0)  # before the first step

    # The dataset takes rank and world size from torch.distributed, so the loader needs no `prepare_data_loader`.
    batches = iter(DataLoader(MixedDataset(mixer), batch_size=GLOBAL_BATCH // world_size, collate_fn=collate))
    while step < config["steps"]:
        nats, tokens = nats_and_tokens(model, next(batches)["text"])
        optimizer.zero_grad()
        (nats.sum() / tokens.sum()).backward()
        optimizer.step()
        step += 1
        if step % EVERY == 0:
            metrics = {"step": step, **report(step)}
            with tempfile.TemporaryDirectory() as folder:
                if is_first:
                    state = {"model": table.state_dict(), "mixer": mixer.state_dict(step=step)}
                    torch.save(state, Path(folder, "checkpoint.pt"))
                written = Checkpoint.from_directory(folder) if is_first else None
                ray.train.report(metrics, checkpoint=written)  # every worker calls the function


def main(shards_at: Path, run: Path, steps: int, workers: int) -> None:
    if GLOBAL_BATCH % workers:
        raise SystemExit(f"{GLOBAL_BATCH} samples a step do not divide over {workers} workers.")
    trainer = TorchTrainer(
        train,
        # A worker has another working directory, so the paths are absolute.
        train_loop_config={"shards": str(shards_at.resolve()), "run": str(run.resolve()), "steps": steps},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(
            storage_path=str(run.resolve()),
            name="checkpoints",  # the same name at each start: Ray Train gives the workers the newest checkpoint
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    print(trainer.fit().metrics)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    parser.add_argument("--workers", type=int, default=2, help="Number of workers, which divides 32.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps, arguments.workers)
