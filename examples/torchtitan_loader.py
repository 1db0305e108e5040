"""The data loader of torchtitan, with the stream of skillshard: a class for the `dataloader` of torchtitan's configuration.

    torchrun --nproc-per-node 2 examples/torchtitan_loader.py --shards S --run-dir runs/torchtitan --steps 100

`SkillLoader` is a `ParallelAwareDataloader` of torchtitan. torchtitan makes the loader from `SkillLoader.Config`, reads pairs of inputs and
labels, and keeps the loader's `state_dict()` in its checkpoints. The script below makes the loader as torchtitan's `Trainer` does, saves the
loader by `torch.distributed.checkpoint` in the same form, and trains a bigram model on the CPU. Run the command again with more steps, and the
training continues. The number of processes may change, and must divide the blocks of a step. The script reports the losses of held-out samples
to `loader.packed`. The weights are fixed here: give another policy in `SkillLoader`, and the losses set the weights.

torchtitan needs another release of `datasets` than other extras of skillshard, so install both in an environment of their own:
pip install torchtitan 'skillshard[tokens]'. docs/howto/grain.md has the lines for torchtitan's configuration.
"""

import skillshard as ss

ss.needed("tokens", "torch", what="examples/torchtitan_loader.py")

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from packed_tokens import EOS, byte_pairs, nats_per_token  # the script beside this one
from torch.nn import functional as F
from torchtitan.components.dataloader import ParallelAwareDataloader

from skillshard.torch import InOrder, PackedDataset, block_collator, restart, resume

BLOCKS, BLOCK_TOKENS, EVERY = 8, 64, 10
to_tensors = block_collator("input_ids", "labels", "position_ids")


def titan_batch(items: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Make torchtitan's pair of a batch. The labels of torchtitan are shifted, so a block has one token more than a sequence."""
    batch = to_tensors(items)
    inputs = {"input": batch["input_ids"][:, :-1], "positions": batch["position_ids"][:, :-1]}
    return inputs, batch["labels"][:, 1:]


class SkillLoader(ParallelAwareDataloader):
    """Blocks of tokens from a `PackedTokens`, in the order and with the weights of its mixer.

    The state is the state of the stream, and is equal on all ranks. So a checkpoint continues on another number of ranks.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ParallelAwareDataloader.Config):
        shards: str = ""
        """Directory of shards."""

        tokens: str = ""
        """Directory of tokens of the shards, by 'skillshard tokens'."""

        ledger: str = ""
        """Directory of the ledger of the run."""

        separator: str | None = None
        """Token between samples."""

        step_blocks: int = BLOCKS
        """Number of sequences of an optimizer step: torchtitan's global batch size."""

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        tokenizer: Any,
        seq_len: int,
        local_batch_size: int,
        snapshot_every_n_steps: int | None = 1,
    ) -> None:
        shards, tokens = ss.ShardSet.open(config.shards), ss.TokenSet.open(config.tokens)
        mixer = ss.Mixer(
            shards, ss.policies.stratified(), ledger=config.ledger, round_draws=400, unit="tokens", tokens=tokens
        )
        self.packed = ss.PackedTokens(
            mixer, tokens, block_tokens=seq_len + 1, separator=config.separator, step_blocks=config.step_blocks
        )
        dataset = PackedDataset(self.packed, rank=dp_rank, world_size=dp_world_size)
        self._batches_of_step = config.step_blocks // (local_batch_size * dp_world_size)
        self._first_step, self._num_batches, self._is_resumed = 0, 0, False
        super().__init__(
            dataset,
            dp_rank,
            dp_world_size,
            batch_size=local_batch_size,
            sampler=InOrder(dataset),
            collate_fn=titan_batch,
            num_workers=config.num_workers,
            persistent_workers=config.persistent_workers,
            prefetch_factor=config.prefetch_factor,
            pin_memory=config.pin_memory,
            snapshot_every_n_steps=snapshot_every_n_steps,
        )

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        if not self._is_resumed:
            restart(
                self.packed
            )  # does nothing in a new directory; an attempt that died before its first checkpoint begins again
        for batch in super().__iter__():
            self._num_batches += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the batches that the trainer has taken, which must be whole optimizer steps."""
        step = self._first_step + self._num_batches // self._batches_of_step
        return {"skillshard": json.dumps(self.packed.state_dict(step=step))}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue at a state. torchtitan calls this method on every rank before it reads the first batch."""
        if not state_dict:
            return
        state = json.loads(state_dict["skillshard"])
        resume(self.packed, state)
        self._first_step, self._num_batches, self._is_resumed = state["step"], 0, True


class TrainState:
    """Model, optimizer and step in one checkpoint with the loader, as torchtitan's checkpointer has them."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer, self.step = model, optimizer, 0

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.step = state["step"]


def main(shards_at: Path, run: Path, steps: int) -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    shards = ss.ShardSet.open(shards_at)
    if rank == 0:
        ss.write_tokens(shards, byte_pairs(shards), run / "tokens", progress=False)  # or 'skillshard tokens' beforehand
    dist.barrier()
    config = SkillLoader.Config(
        shards=str(shards_at), tokens=str(run / "tokens"), ledger=str(run / "ledger"), separator=EOS
    )
    loader = config.build(
        dp_world_size=world_size,
        dp_rank=rank,
        tokenizer=None,
        seq_len=BLOCK_TOKENS,
        local_batch_size=BLOCKS // world_size,
        snapshot_every_n_steps=EVERY,
    )
    torch.manual_seed(0)
    model = torch.nn.Embedding(300, 300)  # a bigram model; torchtitan has your model
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=10.0))
    checkpoint = run / "checkpoint"
    if (checkpoint / "newest").exists():
        newest = checkpoint / (checkpoint / "newest").read_text()
        dcp.load({"dataloader": loader, "train_state": state}, checkpoint_id=newest)
        if rank == 0:
            print(f"goes on after step {state.step}")

    def nats_and_tokens(texts: list[str]) -> tuple[list[float], list[int]]:
        """Return the summed loss and the number of tokens of each text."""
        encoded = [torch.tensor([loader.packed.tokens.tokenizer.encode(text).ids]) for text in texts]
        return [float(nats_per_token(model, ids).sum()) for ids in encoded], [ids.shape[1] - 1 for ids in encoded]

    def report() -> None:
        """Measure and report on rank 0."""
        with torch.no_grad():
            losses = ss.losses_per_skill(nats_and_tokens, shards.holdout, max_samples=32, batch_size=32)
        loader.packed.report(state.step, losses)
        print(state.step, {skill: round(loss.mean, 3) for skill, loss in losses.items()}, flush=True)

    batches = iter(loader)
    while state.step < steps:
        inputs, labels = next(batches)
        loss = F.cross_entropy(model(inputs["input"]).transpose(1, 2), labels)
        state.optimizer.zero_grad()
        loss.backward()
        dist.all_reduce(model.weight.grad)
        model.weight.grad /= world_size
        state.optimizer.step()
        state.step += 1
        if state.step % EVERY == 0:
            dcp.save({"dataloader": loader, "train_state": state}, checkpoint_id=checkpoint / f"step-{state.step}")
            if rank == 0:
                report()
                (checkpoint / "newest.tmp").write_text(f"step-{state.step}")
                os.replace(checkpoint / "newest.tmp", checkpoint / "newest")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of tokens, ledger and checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps)
