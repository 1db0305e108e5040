"""A rank of a training that collects the losses of its batches: the parts of batch_losses_trainer.py and fsdp_trainer.py."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from skillshard.hf import causal_lm_collator
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.torch import MixedDataset
from tests.adapters.hf_trainer import byte_tokenizer, tiny

STEP_DRAWS, STEPS, ACCUMULATED, MAX_TOKENS = 16, 3, 2, 32


@dataclass(frozen=True)
class BatchLossRank:
    """A process of a training, with the same model and the same run as the other ranks."""

    shards: ShardSet
    folder: Path
    rank: int
    world_size: int
    mixer: Mixer
    model: nn.Module
    tokenizer: Any

    @classmethod
    def begin(cls, arguments: list[str]) -> "BatchLossRank":
        """Join the other ranks. The arguments are SHARDS FOLDER."""
        shards, folder = ShardSet.open(arguments[0]), Path(arguments[1])
        torch.distributed.init_process_group("gloo")
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        ledger = folder / f"run-{world_size}"
        mixer = Mixer(
            shards, stratified(), ledger=ledger, round_draws=64, step_draws=STEP_DRAWS, measured_on="training"
        )
        # `eval` turns off the dropout, which differs between ranks.
        return cls(shards, folder, rank, world_size, mixer, tiny().eval(), byte_tokenizer())

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Return the batches of all steps of this rank."""
        collate = causal_lm_collator(self.tokenizer, max_tokens=MAX_TOKENS)
        batch_size = STEP_DRAWS // self.world_size // ACCUMULATED
        return islice(
            DataLoader(MixedDataset(self.mixer), batch_size=batch_size, collate_fn=collate), STEPS * ACCUMULATED
        )

    def end(self) -> None:
        """Wait for the other ranks, and end the process."""
        torch.distributed.barrier()
        os._exit(0)  # as in hf_trainer.py
