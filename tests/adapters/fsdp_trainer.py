"""A rank of a training of a model that `fully_shard` divides over the ranks: SHARDS FOLDER. A single rank has the whole model.

Each rank measures held-out samples, trains with accumulated gradients and a learning rate of 0, and measures again.
"""

import json
import sys
from dataclasses import astuple
from typing import Any

import torch

from skillshard.batch_losses import BatchLosses
from skillshard.evaluation import losses_per_skill
from skillshard.hf import causal_lm_loss
from tests.adapters.batch_loss_rank import ACCUMULATED, MAX_TOKENS, BatchLossRank


def divide(model: Any, world_size: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world_size,))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def measured(own: BatchLossRank) -> dict[str, Any]:
    held_out = losses_per_skill(
        causal_lm_loss(own.model, own.tokenizer, max_tokens=MAX_TOKENS),
        own.shards.holdout,
        max_samples=6,
        batch_size=5,
        rank=own.rank,
        world_size=own.world_size,
    )
    return {skill: astuple(loss) for skill, loss in held_out.items()}


def run(arguments: list[str]) -> None:
    own = BatchLossRank.begin(arguments)
    if own.world_size > 1:
        divide(own.model, own.world_size)
    optimizer, collected = torch.optim.SGD(own.model.parameters(), lr=0.0), BatchLosses(own.mixer)
    before = measured(own)
    for number, batch in enumerate(own.batches(), start=1):
        skill = batch.pop("skill")
        output = own.model(**batch)
        collected.add(skill, batch["labels"], logits=output.logits)
        (output.loss / ACCUMULATED).backward()
        if number % ACCUMULATED == 0:
            optimizer.step()
            optimizer.zero_grad()
    losses = {skill: astuple(loss) for skill, loss in collected.take().items()}
    record = {"batches": losses, "before": before, "after": measured(own)}
    (own.folder / f"fsdp-{own.world_size}-{own.rank}.json").write_text(json.dumps(record))
    own.end()


if __name__ == "__main__":
    run(sys.argv[1:])
