"""Trainings that are killed after a checkpoint and continued, beside trainings without a kill."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import checked, kill_when, timed


def whole_and_killed(words: Callable[[Path, int], list[str]], folder: Path, steps: int) -> dict[str, Any]:
    """Run a training to its end, and a second training that is killed after a checkpoint and continued.

    Args:
        words: Function of the directory of a run and of the number of steps, which returns the command.
        folder: Directory of the two runs.
        steps: Optimizer steps of the training.
    """
    from skillshard.mixing.ledger import DirectoryLedger
    from skillshard.mixing.ledger_faults import verify_ledger
    from skillshard.mixing.records import open_records

    whole, seconds = timed(lambda: checked(words(folder / "whole", steps)))
    killed = folder / "killed"
    was_running = kill_when(
        words(killed, 100_000), lambda: any(killed.glob("checkpoint.pt")) or any(killed.glob("checkpoints/*"))
    )
    done = steps_of(open_records(DirectoryLedger(killed)).observations)
    continued = checked(words(killed, max(steps, done + steps // 2)))
    records = open_records(DirectoryLedger(killed))
    losses = losses_by_draw(records.observations)
    return {
        "seconds": seconds,
        "devices of the checkpoint": devices_of(folder / "whole"),
        "losses": losses_by_draw(open_records(DirectoryLedger(folder / "whole")).observations),
        "killed while running": was_running,
        "killed after the report of step": done,
        "generation after the kill": records.generation,
        "gaps between reports after the kill": sorted(set(np.diff(sorted(losses)).tolist())),
        "first and last losses after the kill": {draw: losses[draw] for draw in (min(losses), max(losses))},
        "faults of the ledgers": [
            fault for run in ("killed", "whole") for fault in verify_ledger(DirectoryLedger(folder / run))
        ],
        "last lines": [ended.stdout.strip().splitlines()[-1:] for ended in (whole, continued)],
        "warnings": sorted({line for line in whole.stderr.splitlines() if "Warning" in line})[:5],
    }


def losses_by_draw(observations: Any) -> dict[int, dict[str, float]]:
    """Return the mean losses of a ledger, by the draw of their measurement."""
    read = (observations.get(number) for number in range(observations.num()))
    return {
        observation.draw: {skill: round(float(loss), 4) for skill, loss in observation.losses.items()}
        for observation in read
        if observation is not None
    }


def steps_of(observations: Any) -> int:
    """Return the last reported step of a run."""
    records = [observations.get(number) for number in range(observations.num())]
    return max((observation.step or 0 for observation in records if observation is not None), default=0)


def devices_of(run: Path) -> list[str]:
    """Return the devices of the tensors in the newest checkpoint of a run. PyTorch saves the device with a tensor."""
    import torch

    places = [
        place
        for pattern in ("*.pt", "checkpoints/last.ckpt", "checkpoints/*/optimizer.pt")
        for place in run.glob(pattern)
    ]
    saved = torch.load(max(places, key=lambda place: place.stat().st_mtime), weights_only=False)
    return sorted({str(tensor.device) for tensor in tensors_of(saved)})


def tensors_of(value: Any) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        if value.dim():  # a counter may lie on the CPU
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)
