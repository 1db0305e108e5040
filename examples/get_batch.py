"""Train in the way of nanoGPT, without a DataLoader: python examples/get_batch.py --shards S --run-dir runs/get-batch --steps 100.

The token ids come from memory maps, so `get_batch` needs no worker. The losses of the training batches set the weights. Run the command again
with more steps, also by `torchrun --nproc-per-node 2`, and the training continues. The number of processes must divide 8.
"""

import skillshard as ss

ss.needed("tokens", "torch", what="examples/get_batch.py")

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from packed_tokens import byte_pairs  # the script beside this one
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from skillshard.torch import restart, resume

BATCH, BLOCK_TOKENS, EVERY, EOS = 8, 64, 5, "<|endoftext|>"
DEVICE = (
    torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")
)


def main(shards_at: Path, run: Path, steps: int) -> None:
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if BATCH % world_size:
        raise SystemExit(f"{BATCH} blocks a step do not divide over {world_size} processes.")
    if world_size > 1:
        dist.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo")
    shards = ss.ShardSet.open(shards_at)
    if rank == 0:
        ss.write_tokens(shards, byte_pairs(shards), run / "tokens")  # or 'skillshard tokens' before the training
    if world_size > 1:
        dist.barrier()
    tokens = ss.TokenSet.open(run / "tokens")
    policy = ss.policies.chain(
        ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2),
        ss.policies.floor(0.1 / len(shards.skills)),  # every skill stays in the stream, and so in the losses
    )
    mixer = ss.Mixer(shards, policy, ledger=run, round_draws=400, unit="tokens", tokens=tokens, measured_on="training")
    packed = ss.PackedTokens(mixer, tokens, block_tokens=BLOCK_TOKENS, separator=EOS, step_blocks=BATCH)
    losses = ss.BatchLosses(packed)

    def get_batch(step: int) -> tuple[torch.Tensor, ...]:
        """Return ids, labels, skills and segments of this process, in the step after `step` steps."""
        blocks = packed.batch(step * BATCH + rank * (BATCH // world_size), BATCH // world_size)
        ids, labels = blocks.input_ids[:, :-1], blocks.labels[:, 1:]
        columns = (ids, labels, blocks.skill[:, 1:], blocks.segment_ids[:, 1:])
        return tuple(torch.from_numpy(column).to(DEVICE) for column in columns)

    assert tokens.manifest.ids is not None
    num_ids = tokens.manifest.ids.num_ids
    table = torch.nn.Embedding(num_ids, num_ids, device=DEVICE)  # a bigram model; use your own model in its place
    optimizer = torch.optim.AdamW(table.parameters(), lr=0.1)
    checkpoint, step = run / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=DEVICE)
        table.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        resume(packed, saved["packed"])  # rank 0 first, then the others
        step = saved["packed"]["step"]
        if rank == 0:
            print(f"goes on after step {step}")
    else:
        restart(
            packed
        )  # does nothing in a new directory; an attempt that died before its first checkpoint begins again
    model = table if world_size == 1 else DistributedDataParallel(table)
    while step < steps:
        ids, labels, skill, segments = get_batch(step)
        nats = F.cross_entropy(model(ids).transpose(1, 2), labels, reduction="none")
        losses.add(skill, labels, token_losses=nats, segments=segments)
        optimizer.zero_grad()
        (nats.sum() / (labels >= 0).sum()).backward()
        optimizer.step()
        step += 1
        if step % EVERY == 0:  # several times in a round
            measured = losses.take()  # on every process: the losses of all processes are gathered
            if rank == 0:
                packed.report(step, measured)
                print(step, {skill: round(loss.mean, 3) for skill, loss in measured.items()})
                state = {"model": table.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "packed": packed.state_dict(step=step)}, checkpoint.with_suffix(".tmp"))
                os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps)
