"""Train with Grain's DataLoader, as a JAX loop does: python examples/grain_loader.py --shards S --run-dir runs/grain --steps 100.

The state of the mixer continues on any number of processes, because Grain's iterator begins at the batch of the state. Run the command again
with more steps, also with another number of `--processes` that divides 32, and the training continues.
"""

import skillshard as ss

ss.needed("grain", what="examples/grain_loader.py")

import argparse
import json
import os
from pathlib import Path

import grain.python as grain
import numpy as np
from plain_numpy import Processes, count_bytes  # the script beside this one

from skillshard.grain import MixedSource

BATCH, EVERY, MOST_STEPS = 32, 10, 1_000_000


def train(processes: Processes, shards_at: Path, run: Path, steps: int, generation: int | None = None) -> None:
    """Train in one of the processes. Rank 0 reports and saves, and begins the generation of the ledger that the others join."""
    shards, is_first = ss.ShardSet.open(shards_at), processes.rank == 0
    policy = ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2)
    mixer = ss.Mixer(shards, policy, ledger=run, round_draws=EVERY * BATCH, step_draws=BATCH, seed=1)
    counts, checkpoint, done = np.ones(256), run / "checkpoint.npz", 0

    def nats_and_tokens(texts: list[str]) -> tuple[list[float], list[int]]:
        """Return the summed loss and the number of tokens of each text, by byte frequencies. Use your own model in its place."""
        nats = -np.log(counts / counts.sum())
        return [float(count_bytes([text]) @ nats) for text in texts], [len(text.encode()) for text in texts]

    def report(step: int) -> None:
        losses = ss.losses_per_skill(nats_and_tokens, shards.holdout, max_samples=64, batch_size=64)
        mixer.report(step, losses)
        print(step, {skill: round(loss.mean, 3) for skill, loss in losses.items()})

    if checkpoint.exists():
        with np.load(checkpoint) as saved:
            counts, state = saved["counts"], json.loads(str(saved["mixer"]))
        mixer.load_state_dict(state, generation=generation)
        done = state["step"]
        if is_first:
            print(f"goes on after step {done}")
    elif is_first:
        mixer.restart()  # does nothing in a new directory; an attempt that died before its first checkpoint begins again
        report(0)  # before the first step
    elif generation:
        mixer.restart(generation=generation)
    if is_first:
        processes.start(train, shards_at, run, steps, mixer.generation)

    # A record is a batch of one process, and the processes take the records in turn. The length counts from the first step.
    part = BATCH // processes.num
    source = MixedSource(mixer, num_draws=MOST_STEPS * BATCH, batch_size=part, rank=processes.rank)
    records = grain.MapDataset.source(source)[done * processes.num + processes.rank :: processes.num]
    batches = iter(records.to_iter_dataset())
    for step in range(done + 1, steps + 1):
        counts = counts + processes.sum(count_bytes(next(batches)["text"]))
        if step % EVERY == 0 and is_first:
            report(step)
            unfinished = run / "unfinished.npz"  # a process killed during the write leaves the previous checkpoint
            np.savez(unfinished, counts=counts, mixer=json.dumps(mixer.state_dict(step=step)))
            os.replace(unfinished, checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    parser.add_argument("--processes", type=int, default=1, help="Number of processes, which divides 32.")
    arguments = parser.parse_args()
    if BATCH % arguments.processes:
        raise SystemExit(f"{BATCH} samples a step do not divide over {arguments.processes} processes.")
    train(Processes(0, arguments.processes), arguments.shards, arguments.run_dir, arguments.steps)
