"""Train without a framework, like a JAX loop: python examples/plain_numpy.py --shards S --run-dir runs/numpy --steps 100.

The position in the stream is one integer, the draw. Run the command again with more steps, also with another number of `--processes` that
divides 32, and the training continues.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import skillshard as ss

BATCH, EVERY = 32, 10


class Processes:
    """The processes that train together. JAX has process_index(), process_count() and psum() in place of this class."""

    def __init__(self, rank: int, num: int) -> None:
        self.rank, self.num = rank, num
        self._links: list[Connection] = []  # of rank 0 to every other process, or of a process to rank 0

    def start(self, train: Callable[..., None], *arguments: Any) -> None:
        """Start the other processes: train(processes, *arguments) in each. Rank 0 calls this method."""
        context = multiprocessing.get_context("spawn")
        for rank in range(1, self.num):
            here, beyond = context.Pipe()
            other = Processes(rank, self.num)
            other._links = [beyond]
            context.Process(target=train, args=(other, *arguments), daemon=True).start()
            beyond.close()  # the end of a process then closes its pipe, and no process waits for a dead process
            self._links.append(here)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of the arrays of all processes. Every process calls this method."""
        if self.rank > 0:
            self._links[0].send(values)
            return self._links[0].recv()
        total = values + sum(link.recv() for link in self._links)
        for link in self._links:
            link.send(total)
        return total


def count_bytes(texts: list[str]) -> np.ndarray:
    return np.bincount(np.frombuffer("".join(texts).encode(), np.uint8), minlength=256)


def train(processes: Processes, shards_at: Path, run: Path, steps: int, generation: int | None = None) -> None:
    """Train in one of the processes. Rank 0 reports and saves, and begins the generation of the ledger that the others join."""
    shards, is_first = ss.ShardSet.open(shards_at), processes.rank == 0
    policy = ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2)
    mixer = ss.Mixer(shards, policy, ledger=run, round_draws=EVERY * BATCH, step_draws=BATCH)
    counts, checkpoint, done = np.ones(256), run / "checkpoint.npz", 0

    def nats_and_tokens(texts: list[str]) -> tuple[list[float], list[int]]:
        """Return the summed loss and the number of tokens of each text, by byte frequencies. Use your own model in its place."""
        nats = -np.log(counts / counts.sum())
        return [float(count_bytes([text]) @ nats) for text in texts], [len(text.encode()) for text in texts]

    def report(step: int) -> None:
        losses = ss.losses_per_skill(nats_and_tokens, shards.holdout, max_samples=64, batch_size=64)
        mixer.report(step, losses)
        print(step, step * BATCH, {skill: round(loss.mean, 3) for skill, loss in losses.items()})

    if checkpoint.exists():
        with np.load(checkpoint) as saved:
            counts, state = saved["counts"], json.loads(str(saved["mixer"]))
        mixer.load_state_dict(state, generation=generation)
        done = state["step"]
        if is_first:
            print(f"goes on at draw {mixer.draw}")
    elif is_first:
        mixer.restart()  # does nothing in a new directory; an attempt that died before its first checkpoint begins again
        report(0)  # before the first step
    elif generation:
        mixer.restart(generation=generation)
    if is_first:
        processes.start(train, shards_at, run, steps, mixer.generation)

    part = BATCH // processes.num  # of each batch, every process reads the draws of its part
    for step in range(done + 1, steps + 1):
        batch = mixer.batch((step - 1) * BATCH + processes.rank * part, part)
        counts = counts + processes.sum(count_bytes(batch.text))
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
