"""Train on blocks of tokens, with weights in tokens: python examples/packed_tokens.py --shards S --run-dir runs/packed --steps 100.

Run the command again with more steps, also by `torchrun --nproc-per-node 2`, and the training continues. The number of processes must divide
8. The example trains a tokenizer on a few held-out texts, so that the example downloads nothing. Use your own tokenizer.json in its place.
"""

import skillshard as ss

ss.needed("tokens", "torch", what="examples/packed_tokens.py")

import argparse
import os
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from skillshard.torch import PackedDataset, block_collator, restart, resume

BLOCKS, BLOCK_TOKENS, EVERY, EOS = 8, 64, 5, "<|endoftext|>"
DEVICE = (
    torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")
)


def byte_pairs(shards: ss.ShardSet) -> Tokenizer:
    """Train a small tokenizer. Equal shards give an equal tokenizer."""
    texts = [sample.text for held_out in shards.holdout.values() for sample in islice(held_out, 100)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def nats_per_token(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the loss of each token but the first, by a bigram model. Use your own model in its place."""
    return F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:], reduction="none")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all: a process killed during the write leaves the previous checkpoint."""
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def main(shards_at: Path, run: Path, steps: int) -> None:
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if BLOCKS % world_size:
        raise SystemExit(f"{BLOCKS} blocks a step do not divide over {world_size} processes.")
    if world_size > 1:
        dist.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo")
    shards = ss.ShardSet.open(shards_at)
    if rank == 0:
        ss.write_tokens(shards, byte_pairs(shards), run / "tokens")  # or 'skillshard tokens' before the training
    if world_size > 1:
        dist.barrier()
    tokens = ss.TokenSet.open(run / "tokens")
    policy = ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2)
    mixer = ss.Mixer(shards, policy, ledger=run, round_draws=400, unit="tokens", tokens=tokens)
    packed = ss.PackedTokens(mixer, tokens, block_tokens=BLOCK_TOKENS, separator=EOS, step_blocks=BLOCKS)
    table = torch.nn.Embedding(300, 300, device=DEVICE)
    optimizer = torch.optim.AdamW(table.parameters(), lr=0.1)

    def nats_and_tokens(texts: list[str]) -> tuple[list[float], list[int]]:
        encoded = [torch.tensor([tokens.tokenizer.encode(text).ids], device=DEVICE) for text in texts]
        return [float(nats_per_token(table, ids).sum()) for ids in encoded], [ids.shape[1] - 1 for ids in encoded]

    def report(step: int) -> None:
        """Measure and report on rank 0. The other ranks read the weights from the ledger."""
        if rank > 0:
            return
        with torch.no_grad():
            losses = ss.losses_per_skill(nats_and_tokens, shards.holdout, max_samples=32, batch_size=32)
        packed.report(step, losses)
        print(step, {skill: f"{loss.mean:.3f} ± {loss.standard_error:.3f}" for skill, loss in losses.items()})

    loader = DataLoader(
        PackedDataset(packed),  # rank and world size come from torch.distributed
        batch_size=BLOCKS // world_size,
        num_workers=2,
        collate_fn=block_collator("input_ids", "segment_ids"),
        pin_memory=DEVICE.type == "cuda",  # the copy to a GPU then runs beside the training
    )
    checkpoint, step = run / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=DEVICE)
        table.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        resume(packed, saved["packed"])  # rank 0 first, then the others; this state holds the state of the mixer
        step = saved["packed"]["step"]
        if rank == 0:
            print(f"goes on after step {step}")
    else:
        restart(packed)  # does nothing in a new directory; an attempt without a checkpoint begins again
        report(0)  # before the first step
    model = table if world_size == 1 else DistributedDataParallel(table)

    batches = iter(loader)
    while step < steps:
        batch = {name: tensor.to(DEVICE, non_blocking=True) for name, tensor in next(batches).items()}
        inside = batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1]  # no loss over the end of a sample
        optimizer.zero_grad()
        nats_per_token(model, batch["input_ids"])[inside].mean().backward()
        optimizer.step()
        step += 1
        if step % EVERY == 0:  # several times in a round
            report(step)
            if rank == 0:
                state = {"model": table.state_dict(), "optimizer": optimizer.state_dict()}
                save(checkpoint, {**state, "packed": packed.state_dict(step=step)})
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps)
