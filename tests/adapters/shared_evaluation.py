"""A rank that shares an evaluation: SHARDS FOLDER. Each rank writes its losses and the number of its calls of the model."""

import json
import os
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch

from skillshard.evaluation import EvalBudget, losses_per_skill
from skillshard.hf import causal_lm_loss
from skillshard.shards.read import ShardSet
from tests.adapters.hf_trainer import byte_tokenizer, tiny


def run(arguments: list[str]) -> None:
    shards, folder = ShardSet.open(arguments[0]), Path(arguments[1])
    torch.distributed.init_process_group("gloo")
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    measure = causal_lm_loss(tiny(), byte_tokenizer(), max_tokens=32)
    calls = 0

    def counted(texts: list[str]) -> Any:
        nonlocal calls
        calls += 1
        return measure(texts)

    share: Any = {"batch_size": 5, "rank": rank, "world_size": world_size}
    losses = losses_per_skill(counted, shards.holdout, max_samples=6, **share)
    num_calls = calls
    budget = EvalBudget(0.5, max_samples=9)
    budgeted = [losses_per_skill(counted, shards.holdout, max_samples=budget, **share) for _ in range(2)]
    record = {
        "losses": {skill: astuple(loss) for skill, loss in losses.items()},
        "calls": num_calls,
        "budgeted": [{skill: astuple(loss) for skill, loss in each.items()} for each in budgeted],
    }
    (folder / f"{world_size}-{rank}.json").write_text(json.dumps(record))
    torch.distributed.barrier()
    os._exit(0)  # as in hf_trainer.py


if __name__ == "__main__":
    run(sys.argv[1:])
