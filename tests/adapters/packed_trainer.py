"""A rank of a DistributedDataParallel training on blocks of tokens: SHARDS COUNTS FOLDER STEPS WORKERS."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo  # DistributedDataParallel imports the module at its creation, and here the import precedes the fork of the ranks
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from skillshard.canonical import to_json
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.shards.token_set import TokenSet
from skillshard.storage import read_json, write_bytes
from skillshard.torch import PackedDataset, collate_blocks, restart, resume
from tests.adapters.trainers import live_mixer, losses_at
from tests.tokenizers_trained import EOS

STEP_BLOCKS = 12


def live_packed(
    shards: str,
    counts: str,
    ledger: Path,
    *,
    step_blocks: int = STEP_BLOCKS,
    packing: str = "concat",
    **arguments: Any,
) -> PackedTokens:
    """Make a packed stream with rounds of five draws for each block of a step, which is about 9 steps of concatenated draws."""
    opened, blocks = TokenSet.open(counts), {"block_tokens": 6, "separator": EOS}
    unit: dict[str, Any] = {"unit": "blocks", **blocks} if packing == "skill" else {"unit": "tokens"}
    mixer = live_mixer(shards, ledger, step_draws=step_blocks, tokens=opened, **unit, **arguments)
    return PackedTokens(mixer, opened, step_blocks=step_blocks, packing=packing, **blocks)


class Source(NamedTuple):
    """Shards to train on, sample by sample, or as blocks if the shards have token counts."""

    shards: str
    counts: str = ""

    def stream(self, ledger: Path, *, step_items: int, **arguments: Any) -> Mixer | PackedTokens:
        if self.counts:
            return live_packed(self.shards, self.counts, ledger, step_blocks=step_items, **arguments)
        return live_mixer(self.shards, ledger, step_draws=step_items, **arguments)


def main(shards: str, counts: str, folder: Path, steps: int, workers: int) -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(torch.nn.Linear(6, 1))
    packed = live_packed(shards, counts, folder / "run")
    saved, step = folder / "checkpoint.json", 0
    if saved.exists():
        resume(packed, read_json(saved))
        step = read_json(saved)["step"]
        dist.barrier()  # no rank overwrites the file before every rank has read the file
    else:
        restart(packed)
        if rank == 0:
            packed.report(0, losses_at(0))
    log = (folder / f"rank-{rank}.jsonl").open("a")
    size = STEP_BLOCKS // world_size
    batches = iter(DataLoader(PackedDataset(packed), batch_size=size, num_workers=workers, collate_fn=collate_blocks))
    while step < steps:
        batch = next(batches)
        model(batch["input_ids"].float()).sum().backward()
        step += 1
        line = {"step": step, "blocks": batch["block"].tolist(), "tokens": batch["input_ids"].tolist()}
        log.write(json.dumps(line) + "\n")
        log.flush()
        if rank == 0 and step % 3 == 0:
            packed.report(step, losses_at(step))
        if rank == 0 and step % 7 == 0:
            write_bytes(saved, to_json(packed.state_dict(step=step)))
    del batches
    dist.destroy_process_group()


def run(arguments: list[str]) -> None:
    shards, counts, folder, steps, workers = arguments
    main(shards, counts, Path(folder), int(steps), int(workers))


if __name__ == "__main__":
    run(sys.argv[1:])
