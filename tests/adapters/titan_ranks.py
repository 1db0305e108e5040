"""A rank that reads blocks by the loader of examples/torchtitan_loader.py, saves it as torchtitan does, and writes down every block.

    torchrun ... titan_ranks.py SHARDS TOKENS RUN STEPS KILLED_AFTER

A rank kills itself after the step KILLED_AFTER, which is beyond the last checkpoint. 0: the rank ends after STEPS.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

SEQ_LEN, EVERY, WORKERS = 24, 4, 1


def main(shards: str, tokens: str, run: Path, steps: int, killed_after: int) -> None:
    from torchtitan_loader import (
        BLOCKS,
        SkillLoader,
    )  # of the folder of examples, which only the ranks have on their path

    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    config = SkillLoader.Config(shards=shards, tokens=tokens, ledger=str(run / "ledger"), num_workers=WORKERS)
    loader = config.build(
        dp_world_size=world_size,
        dp_rank=rank,
        tokenizer=None,
        seq_len=SEQ_LEN,
        local_batch_size=BLOCKS // world_size // 2,  # two batches for each step, as with gradient accumulation
        snapshot_every_n_steps=2 * EVERY,
    )
    step, newest = 0, run / "newest"
    if newest.exists():
        dcp.load({"dataloader": loader}, checkpoint_id=run / newest.read_text())
        step = int(newest.read_text())
    batches = iter(loader)
    while step < steps:
        pairs = [next(batches) for _ in range(2)]
        step += 1
        rows = [
            [*row[:1], *label]
            for inputs, labels in pairs
            for row, label in zip(inputs["input"].tolist(), labels.tolist(), strict=True)
        ]
        with (run / f"rank-{rank}-of-{world_size}.jsonl").open("a") as file:
            print(json.dumps({"step": step, "rows": rows}), file=file)
        if step % EVERY == 0:
            dcp.save({"dataloader": loader}, checkpoint_id=run / str(step))
            if rank == 0:
                newest.write_text(str(step))
            dist.barrier()
        if step == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
