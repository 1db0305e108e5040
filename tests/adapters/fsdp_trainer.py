"""A rank of a training of a model that `fully_shard` divides over the ranks: SHARDS FOLDER. A single rank has the whole model.

Each rank measures held-out samples, trains with accumulated gradients and a learning rate of 0, and measures again.
"""

import json
import os
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from skillshard.batch_losses import BatchLosses
from skillshard.evaluation import losses_per_skill
from skillshard.hf import causal_lm_collator, causal_lm_loss
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.torch import MixedDataset
from tests.adapters.hf_trainer import byte_tokenizer, tiny

STEP_DRAWS, STEPS, ACCUMULATED = 16, 3, 2


def run(arguments: list[str]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    shards, folder = ShardSet.open(arguments[0]), Path(arguments[1])
    torch.distributed.init_process_group("gloo")
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    ledger = folder / f"run-{world_size}"
    mixer = Mixer(shards, stratified(), ledger=ledger, round_draws=64, step_draws=STEP_DRAWS, measured_on="training")
    model, tokenizer = tiny().eval(), byte_tokenizer()  # without dropout, which differs between ranks
    if world_size > 1:
        mesh = init_device_mesh("cpu", (world_size,))
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer, collected = torch.optim.SGD(model.parameters(), lr=0.0), BatchLosses(mixer)

    def measure() -> dict[str, Any]:
        held_out = losses_per_skill(
            causal_lm_loss(model, tokenizer, max_tokens=32),
            shards.holdout,
            max_samples=6,
            batch_size=5,
            rank=rank,
            world_size=world_size,
        )
        return {skill: astuple(loss) for skill, loss in held_out.items()}

    batch_size = STEP_DRAWS // world_size // ACCUMULATED
    loader = DataLoader(
        MixedDataset(mixer), batch_size=batch_size, collate_fn=causal_lm_collator(tokenizer, max_tokens=32)
    )
    before = measure()
    for number, batch in enumerate(loader, start=1):
        skill = batch.pop("skill")
        output = model(**batch)
        collected.add(skill, batch["labels"], logits=output.logits)
        (output.loss / ACCUMULATED).backward()
        if number % ACCUMULATED == 0:
            optimizer.step()
            optimizer.zero_grad()
        if number == STEPS * ACCUMULATED:
            break
    losses = collected.take()
    record = {"batches": {skill: astuple(loss) for skill, loss in losses.items()}, "before": before, "after": measure()}
    (folder / f"fsdp-{world_size}-{rank}.json").write_text(json.dumps(record))
    torch.distributed.barrier()
    os._exit(0)  # as in hf_trainer.py


if __name__ == "__main__":
    run(sys.argv[1:])
