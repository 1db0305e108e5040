"""A rank of a DistributedDataParallel training: SHARDS FOLDER STEPS WORKERS."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch
import torch._dynamo  # DistributedDataParallel imports the module at its creation, and here the import precedes the fork of the ranks
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from skillshard.canonical import to_json
from skillshard.evaluation import losses_per_skill
from skillshard.mixing.mixer import Mixer
from skillshard.storage import read_json, write_bytes
from skillshard.torch import MixedDataset, collate, restart, resume
from tests.adapters.trainers import live_mixer, losses_at

STEP_DRAWS = 24


def bytes_loss(texts: list[str]) -> tuple[list[float], list[int]]:
    """Return nats and tokens of texts under a model of the frequency of each letter in a text."""
    entropies = [
        -sum(text.count(letter) * math.log(text.count(letter) / len(text)) for letter in sorted(set(text)))
        for text in texts
    ]
    return entropies, [len(text) for text in texts]


def write_line(log: TextIO, mixer: Mixer, step: int, batch: Mapping[str, Any]) -> None:
    """Write the samples and the weights of a step of one rank."""
    weights = mixer.round(int(batch["draw"][0]) // mixer.round_draws).weights
    line = {"step": step, "draws": batch["draw"].tolist(), "texts": batch["text"], "weights": weights}
    log.write(json.dumps(line) + "\n")
    log.flush()


def main(shards: str, folder: Path, steps: int, workers: int) -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    mixer = live_mixer(shards, folder / "run", step_draws=STEP_DRAWS)
    saved, step = folder / "checkpoint.json", 0
    if saved.exists():
        resume(mixer, read_json(saved))
        step = read_json(saved)["step"]
        dist.barrier()  # no rank overwrites the file before every rank has read the file
    else:
        restart(mixer)
        if rank == 0:
            mixer.report(0, losses_at(0))
    log = (folder / f"rank-{rank}.jsonl").open("a")
    batches = iter(
        DataLoader(MixedDataset(mixer), batch_size=STEP_DRAWS // world_size, num_workers=workers, collate_fn=collate)
    )
    while step < steps:
        batch = next(batches)
        model(torch.from_numpy(batch["draw"][:4]).float()).sum().backward()
        step += 1
        write_line(log, mixer, step, batch)
        if rank == 0 and step % 5 == 0:
            mixer.report(step, losses_at(step))
        if rank == 0 and step % 7 == 0:
            write_bytes(saved, to_json(mixer.state_dict(step=step)))
    del batches
    measured = losses_per_skill(bytes_loss, mixer.shards.holdout, max_samples=20, batch_size=8)
    write_bytes(folder / f"losses-{rank}.json", to_json({skill: asdict(loss) for skill, loss in measured.items()}))
    dist.destroy_process_group()


def run(arguments: list[str]) -> None:
    shards, folder, steps, workers = arguments
    main(shards, Path(folder), int(steps), int(workers))


if __name__ == "__main__":
    run(sys.argv[1:])
