"""Train with Grain's DataLoader, as a JAX loop does: python examples/grain_loader.py --shards S --run-dir runs/grain --steps 100.

The checkpoint holds the state of the mixer and the state of Grain's iterator. Run the command again with more steps, and the training
continues.
"""

import skillshard as ss

ss.needed("grain", what="examples/grain_loader.py")

import argparse
import json
import os
from pathlib import Path

import grain.python as grain
import numpy as np

from skillshard.grain import MixedSource

BATCH, EVERY, MOST_STEPS = 32, 10, 1_000_000


def main(shards_at: Path, run: Path, steps: int) -> None:
    shards = ss.ShardSet.open(shards_at)
    policy = ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2)
    mixer = ss.Mixer(shards, policy, ledger=run, round_draws=EVERY * BATCH, step_draws=BATCH, seed=1)
    counts, checkpoint = np.ones(256), run / "checkpoint.npz"

    def nats_and_tokens(texts: list[str]) -> tuple[list[float], list[int]]:
        """Return the summed loss and the number of tokens of each text, by byte frequencies. Use your own model in its place."""
        encoded = [np.frombuffer(text.encode(), np.uint8) for text in texts]
        nats = -np.log(counts / counts.sum())
        return [float(nats[tokens].sum()) for tokens in encoded], [len(tokens) for tokens in encoded]

    def report(step: int) -> None:
        losses = ss.losses_per_skill(nats_and_tokens, shards.holdout, max_samples=64, batch_size=64)
        mixer.report(step, losses)
        print(step, {skill: round(loss.mean, 3) for skill, loss in losses.items()})

    # The length is a fact of the training, and Grain compares it at a resume. So it is the same at every start.
    source = MixedSource(mixer, num_draws=MOST_STEPS * BATCH, batch_size=BATCH)
    sampler = grain.SequentialSampler(len(source), shard_options=grain.NoSharding())
    batches = iter(grain.DataLoader(data_source=source, sampler=sampler, worker_count=0))
    done = 0
    if checkpoint.exists():
        with np.load(checkpoint) as saved:
            counts, state = saved["counts"], json.loads(str(saved["mixer"]))
            iterator_state = saved["grain"].tobytes()
        mixer.load_state_dict(state)
        batches.set_state(iterator_state)
        done = state["step"]
        print(f"goes on after step {done}")
    else:
        mixer.restart()  # does nothing in a new directory; an attempt that died before its first checkpoint begins again
        report(0)  # before the first step

    for step in range(done + 1, steps + 1):
        for text in next(batches)["text"]:
            counts = counts + np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)
        if step % EVERY == 0:
            report(step)
            unfinished = run / "unfinished.npz"  # a process killed during the write leaves the previous checkpoint
            states = {"mixer": json.dumps(mixer.state_dict(step=step)), "grain": np.bytes_(batches.get_state())}
            np.savez(unfinished, counts=counts, **states)
            os.replace(unfinished, checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps)
