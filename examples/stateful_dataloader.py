"""torchdata's StatefulDataLoader: python examples/stateful_dataloader.py --shards S --run runs/1 --steps 100.

The loader's own state resumes in the middle of a run, in the same time at any draw. Run it again and it goes on.
"""

from skillshard.extras import needed

needed("torchdata", what="examples/stateful_dataloader.py")

import argparse
from pathlib import Path

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

import skillshard as ss
from skillshard.torch import InOrder, MixedDataset, collate

BATCH = 32


def main(shards_at: Path, run: Path, steps: int) -> None:
    shards = ss.ShardSet.open(shards_at)
    mixer = ss.Mixer(shards, ss.policies.stratified(), ledger=run, round_draws=10 * BATCH, step_draws=BATCH)
    loader = StatefulDataLoader(
        MixedDataset(mixer), sampler=InOrder(), batch_size=BATCH, num_workers=2, collate_fn=collate
    )
    checkpoint, step = run / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        mixer.load_state_dict(saved["mixer"])  # sets aside what the ledger learnt later
        loader.load_state_dict(saved["loader"])
        step = saved["mixer"]["step"]
    for batch in loader:
        step += 1  # train here
        if step % 10 == 0:
            print(step, "next draw", int(batch["draw"][-1]) + 1)
            torch.save({"mixer": mixer.state_dict(step=step), "loader": loader.state_dict()}, checkpoint)
        if step >= steps:
            break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run, arguments.steps)
