"""A rank of a loop that collects the losses of its batches: SHARDS FOLDER. Rank 0 writes the losses of all ranks."""

import json
import os
import sys
from dataclasses import astuple
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from skillshard.batch_losses import BatchLosses
from skillshard.hf import causal_lm_collator
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.torch import MixedDataset
from tests.adapters.hf_trainer import byte_tokenizer, tiny

STEP_DRAWS, STEPS, ACCUMULATED = 16, 3, 2


def run(arguments: list[str]) -> None:
    shards, folder = ShardSet.open(arguments[0]), Path(arguments[1])
    torch.distributed.init_process_group("gloo")
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    ledger = folder / f"run-{world_size}"
    mixer = Mixer(shards, stratified(), ledger=ledger, round_draws=64, step_draws=STEP_DRAWS, measured_on="training")
    model, tokenizer = tiny().eval(), byte_tokenizer()
    collected = BatchLosses(mixer)
    collate = causal_lm_collator(tokenizer, max_tokens=32)
    loader = DataLoader(MixedDataset(mixer), batch_size=STEP_DRAWS // world_size // ACCUMULATED, collate_fn=collate)
    with torch.no_grad():
        for number, batch in enumerate(loader, start=1):
            skill = batch.pop("skill")
            collected.add(skill, batch["labels"], logits=model(**batch).logits)
            if number == STEPS * ACCUMULATED:
                break
    losses = collected.take()
    if rank == 0:
        mixer.report(STEPS, losses)
        (folder / f"losses-{world_size}.json").write_text(
            json.dumps({name: astuple(losses[name]) for name in mixer.skills})
        )
    torch.distributed.barrier()
    os._exit(0)  # as in hf_trainer.py


if __name__ == "__main__":
    run(sys.argv[1:])
