"""A rank of a loop that collects the losses of its batches: SHARDS FOLDER. Rank 0 writes the losses of all ranks."""

import json
import sys
from dataclasses import astuple

import torch

from skillshard.batch_losses import BatchLosses
from tests.adapters.batch_loss_rank import STEPS, BatchLossRank


def run(arguments: list[str]) -> None:
    own = BatchLossRank.begin(arguments)
    collected = BatchLosses(own.mixer)
    with torch.no_grad():
        for batch in own.batches():
            skill = batch.pop("skill")
            collected.add(skill, batch["labels"], logits=own.model(**batch).logits)
    losses = collected.take()
    if own.rank == 0:
        own.mixer.report(STEPS, losses)
        (own.folder / f"losses-{own.world_size}.json").write_text(
            json.dumps({name: astuple(losses[name]) for name in own.mixer.skills})
        )
    own.end()


if __name__ == "__main__":
    run(sys.argv[1:])
