"""Runs of the proxy that a graph is learned from: each a unit of work, with the losses it measured as its record.

    RUNS/data-DIGEST.npz     the texts that all runs draw from and are measured on, encoded
    RUNS/warm-KEY.npz        a shared warm start: model and optimizer, for one seed; kept
    RUNS/records/KEY.json    losses of one run; KEY is the digest of everything that determines them

So a run that is asked for again, by a repeated command, for more seeds or for another method, is not trained again. On a CPU
a run ends in the same bytes wherever it ran.
"""

from skillshard.extras import needed

needed("proxy", what="Training small models")  # before the imports that fail without the extra

import hashlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import orjson
import torch
from torch import nn

from skillshard import storage
from skillshard.execution import Record
from skillshard.graph.plan import PlannedRun
from skillshard.proxy.device import one_thread
from skillshard.proxy.run import Recipe, computing, estimate_s, load_state, new_model, random_batches, save_state
from skillshard.proxy.train import TokenBatch, adamw, evaluate, train

SETTLED_POINTS = 4
"""Evaluations in a row that must agree before a run counts as settled."""


@dataclass(frozen=True)
class RunData:
    """Encoded texts of each skill.

    Attributes:
        train: training skill -> what its batches are drawn from.
        evaluation: evaluation skill -> what its loss is measured on.
    """

    train: Mapping[str, TokenBatch]
    evaluation: Mapping[str, TokenBatch]


def save_data(data: RunData, folder: str | Path) -> str:
    """Write the data under a name that is its content's; the place."""
    names = {"train": list(data.train), "evaluation": list(data.evaluation)}
    arrays = {"names": np.frombuffer(orjson.dumps(names), dtype=np.uint8)}
    for split, batches in (("train", data.train), ("evaluation", data.evaluation)):
        for number, batch in enumerate(batches.values()):
            arrays[f"{split}-{number}-tokens"] = batch.tokens.astype(np.int32)
            arrays[f"{split}-{number}-targets"] = batch.targets.astype(np.int32)
    parts = [storage.digest(np.ascontiguousarray(array).tobytes()) + str(array.shape) for array in arrays.values()]
    place = storage.join(folder, f"data-{storage.digest(' '.join(parts).encode())}.npz")
    if not storage.exists(place):
        storage.write_arrays(place, arrays)
    return place


@lru_cache(maxsize=1)
def load_data(place: str) -> RunData:
    """What `save_data` wrote."""
    with np.load(place) as found:
        names = orjson.loads(found["names"].tobytes())
        splits = {
            split: {
                skill: TokenBatch(found[f"{split}-{number}-tokens"], found[f"{split}-{number}-targets"])
                for number, skill in enumerate(skills)
            }
            for split, skills in names.items()
        }
    return RunData(splits["train"], splits["evaluation"])


def timing_unit(data: str, recipe: Recipe, batch_size: int) -> Record:
    """Seconds of one step on the first skill and of one evaluation, measured where it runs."""
    found = load_data(data)
    with one_thread():
        step_s = estimate_s(next(iter(found.train.values())), recipe, size=batch_size) / recipe.steps
        started = time.perf_counter()
        evaluate(computing(new_model(recipe, seed=0), recipe), found.evaluation)
    return {"step_s": step_s, "eval_s": time.perf_counter() - started}


def warm_unit(data: str, recipe: Recipe, run: PlannedRun, schedule_steps: float, place: str) -> Record:
    """The shared warm start: train on all skills alike, keep model and optimizer."""
    with one_thread():
        model = new_model(recipe, seed=run.seed)
        optimizer = adamw(model)
        _train(model, optimizer, load_data(data), recipe, run, 0, recipe.steps, schedule_steps)
        save_state(model, optimizer, place)
    return {"steps_taken": recipe.steps}


def run_unit(
    data: str,
    recipe: Recipe,
    run: PlannedRun,
    warm: str | None,
    warmup_steps: int,
    eval_every: int,
    schedule_steps: float,
    settle: float | None,
) -> Record:
    """One run from the warm start (None: from the beginning); losses at its step 0, `eval_every`, ..., and its last.

    Args:
        data: of `save_data`.
        recipe: its `steps` are those of the run.
        run: what it trains on.
        warm: of `warm_unit`, of the same seed.
        warmup_steps: of the warm start; samples and learning rate go on from there.
        eval_every: steps.
        schedule_steps: length of the learning rate's schedule, warm start included.
        settle: nats; the run ends once no loss has moved by more over the latest `SETTLED_POINTS` evaluations. None: never.
    """
    with one_thread():
        found = load_data(data)
        model = new_model(recipe, seed=run.seed)
        optimizer = adamw(model)
        if warm is not None:
            load_state(model, optimizer, warm)
        points, losses, taken = eval_steps(recipe.steps, eval_every), [_losses(model, recipe, found)], 0
        for done, until in itertools.pairwise(points):
            if settle is None or not is_settled(losses, settle):
                _train(model, optimizer, found, recipe, run, warmup_steps + done, warmup_steps + until, schedule_steps)
                losses.append(_losses(model, recipe, found))
                taken = until
            else:
                losses.append(losses[-1])
    return {"steps_taken": taken, "losses": losses}


def eval_steps(steps: int, eval_every: int) -> list[int]:
    """Steps at which losses are measured.

    >>> eval_steps(10, 4), eval_steps(8, 4)
    ([0, 4, 8, 10], [0, 4, 8])
    """
    return [*range(0, steps, eval_every), steps]


def is_settled(losses: Sequence[Sequence[float]], settle: float) -> bool:
    """Whether no loss has moved by more than `settle` over the latest evaluations.

    >>> is_settled([[2.0], [1.0], [1.0], [1.0]], 0.01), is_settled([[2.0], [1.0], [1.0], [1.0], [1.0]], 0.01)
    (False, True)
    """
    latest = np.array(losses[-SETTLED_POINTS:])
    return len(latest) == SETTLED_POINTS and bool(np.ptp(latest, axis=0).max() <= settle)


def mixed_batches(train: Mapping[str, TokenBatch], run: PlannedRun, *, first_step: int) -> Iterator[TokenBatch]:
    """The batches of a run from a step on: of each skill its own samples, whatever the other skills are."""
    streams = [
        random_batches(
            train[skill],
            seed=_seed_of(run.seed, skill),
            first_step=first_step,
            drop_share=0.0,
            size=run.samples_per_skill,
        )
        for skill in run.trained_on
    ]
    for parts in zip(*streams, strict=True):
        yield TokenBatch(
            np.concatenate([part.tokens for part in parts]), np.concatenate([part.targets for part in parts])
        )


def _seed_of(seed: int, skill: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{skill}".encode()).digest()[:8], "big")


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: RunData,
    recipe: Recipe,
    run: PlannedRun,
    done: int,
    until: int,
    schedule_steps: float,
) -> None:
    train(
        computing(model, recipe),
        mixed_batches(data.train, run, first_step=done + 1),
        steps=until,
        lr=recipe.lr,
        optimizer=optimizer,
        steps_done=done,
        schedule_steps=schedule_steps,
    )


def _losses(model: nn.Module, recipe: Recipe, data: RunData) -> list[float]:
    return [found.loss for found in evaluate(computing(model, recipe), data.evaluation).values()]
