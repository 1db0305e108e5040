"""Train without a framework, like a JAX loop in a single process: python examples/plain_numpy.py --shards S --run-dir runs/numpy --steps 100.

The position in the stream is one integer, the draw. Run the command again with more steps, and the training continues.
"""

import argparse
import json
import os
from itertools import islice
from pathlib import Path

import numpy as np

import skillshard as ss

BATCH, EVERY = 32, 10


def main(shards_at: Path, run: Path, steps: int) -> None:
    shards = ss.ShardSet.open(shards_at)
    policy = ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2)
    mixer = ss.Mixer(shards, policy, ledger=run, round_draws=EVERY * BATCH, step_draws=BATCH)
    counts, checkpoint = np.ones(256), run / "checkpoint.npz"

    def nats_and_tokens(texts: list[str]) -> tuple[list[float], list[int]]:
        """Return the summed loss and the number of tokens of each text, by byte frequencies. Use your own model in its place."""
        encoded = [np.frombuffer(text.encode(), np.uint8) for text in texts]
        nats = -np.log(counts / counts.sum())
        return [float(nats[tokens].sum()) for tokens in encoded], [len(tokens) for tokens in encoded]

    def report(step: int) -> None:
        losses = ss.losses_per_skill(nats_and_tokens, shards.holdout, max_samples=64, batch_size=64)
        mixer.report(step, losses)
        print(step, mixer.draw, {skill: round(loss.mean, 3) for skill, loss in losses.items()})

    if checkpoint.exists():
        with np.load(checkpoint) as saved:
            counts, state = saved["counts"], json.loads(str(saved["mixer"]))
        mixer.load_state_dict(state)
        print(f"goes on at draw {mixer.draw}")
    else:
        mixer.restart()  # does nothing in a new directory; an attempt that died before its first checkpoint begins again
        report(0)  # before the first step

    done = mixer.draw // BATCH
    for step, batch in enumerate(islice(mixer.batches(BATCH), max(0, steps - done)), start=done + 1):
        for text in batch.text:
            counts = counts + np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)
        if step % EVERY == 0:
            report(step)
            unfinished = run / "unfinished.npz"  # a process killed during the write leaves the previous checkpoint
            np.savez(unfinished, counts=counts, mixer=json.dumps(mixer.state_dict()))
            os.replace(unfinished, checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps)
