"""Train in the way of nanoGPT, without a DataLoader: python examples/get_batch.py --shards S --run-dir runs/get-batch --steps 100.

The token ids come from memory maps, so `get_batch` needs no worker. Run the command again with more steps, and the training continues.
"""

import skillshard as ss

ss.needed("tokens", "torch", what="examples/get_batch.py")

import argparse
import os
from pathlib import Path

import torch
from packed_tokens import byte_pairs  # the script beside this one
from torch.nn import functional as F

BATCH, BLOCK_TOKENS, EVERY, EOS = 8, 64, 10, "<|endoftext|>"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(shards_at: Path, run: Path, steps: int) -> None:
    shards = ss.ShardSet.open(shards_at)
    tokens = ss.write_tokens(shards, byte_pairs(shards), run / "tokens")  # or open the output of 'skillshard tokens'
    mixer = ss.Mixer(shards, ss.policies.proportional(), ledger=run, round_draws=400, unit="tokens", tokens=tokens)
    packed = ss.PackedTokens(mixer, tokens, block_tokens=BLOCK_TOKENS, separator=EOS, step_blocks=BATCH)

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        batch = next(blocks)
        ids, labels = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
        return ids[:, :-1].to(DEVICE), labels[:, 1:].to(DEVICE)

    assert tokens.manifest.ids is not None
    num_ids = tokens.manifest.ids.num_ids
    model = torch.nn.Embedding(num_ids, num_ids, device=DEVICE)  # a bigram model; use your own model in its place
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    checkpoint, step = run / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=DEVICE)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        packed.load_state_dict(saved["packed"])
        step = saved["packed"]["step"]
        print(f"goes on after step {step}")
    else:
        packed.restart()  # does nothing in a new directory
    blocks = packed.batches(BATCH)
    while step < steps:
        ids, labels = get_batch()
        loss = F.cross_entropy(model(ids).transpose(1, 2), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % EVERY == 0:
            print(f"step {step}: loss {loss.item():.3f}")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "packed": packed.state_dict(step=step)}, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps)
