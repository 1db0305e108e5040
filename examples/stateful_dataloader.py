"""Read with torchdata's StatefulDataLoader: python examples/stateful_dataloader.py --shards S --run-dir runs/stateful --steps 100.

The state of the loader resumes at any draw in the same time. Run the command again with more steps, and the stream continues. The
weights are fixed here, so the example needs no model and measures no losses.
"""

import skillshard as ss

ss.needed("torchdata", what="examples/stateful_dataloader.py")

import argparse
import os
from pathlib import Path

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from skillshard.torch import InOrder, MixedDataset, collate

BATCH = 32


def main(shards_at: Path, run: Path, steps: int) -> None:
    shards = ss.ShardSet.open(shards_at)
    mixer = ss.Mixer(shards, ss.policies.stratified(), ledger=run, round_draws=10 * BATCH, step_draws=BATCH)
    dataset = MixedDataset(mixer)
    loader = StatefulDataLoader(dataset, sampler=InOrder(dataset), batch_size=BATCH, num_workers=2, collate_fn=collate)
    checkpoint, step = run / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        mixer.load_state_dict(saved["mixer"])
        loader.load_state_dict(saved["loader"])
        step = saved["mixer"]["step"]
        print(f"goes on after step {step}")
    if step >= steps:
        return
    for batch in loader:
        step += 1  # train here
        if step % 10 == 0:
            print(step, "next draw", int(batch["draw"][-1]) + 1)
            unfinished = checkpoint.with_suffix(
                ".tmp"
            )  # a process killed during the write leaves the previous checkpoint
            torch.save({"mixer": mixer.state_dict(step=step), "loader": loader.state_dict()}, unfinished)
            os.replace(unfinished, checkpoint)
        if step >= steps:
            break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps)
