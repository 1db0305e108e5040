"""Trials of the proxy that a graph is learned from: each a task, with the losses it measured as its record.

    RUNS/data-DIGEST.npz     the texts that trials draw and are measured on, encoded (`trial_data`)
    RUNS/warm-KEY.npz        a shared warm start: model and optimizer, for one seed; kept
    RUNS/records/KEY.json    losses of one trial; KEY is the digest of everything that determines them

So a trial that is asked for again, by a repeated command, for more seeds or for another method, is not trained again. On a CPU
a run ends in the same bytes wherever it ran.
"""

from skillshard.extras import needed

needed("proxy", what="Training small models")  # before the imports that fail without the extra

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from skillshard import progress
from skillshard.execution import Record
from skillshard.graph.plan import Trial
from skillshard.graph.trial_data import DrawnTexts, TrialData, load_data
from skillshard.loss import Reduction
from skillshard.proxy.device import one_thread
from skillshard.proxy.train import TokenBatch, adamw, evaluate, train
from skillshard.proxy.trial import Recipe, computing, estimate_s, load_state, new_model, random_batches, save_state

SETTLED_POINTS = 4
"""Evaluations in a row that must agree before a trial counts as settled."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate from the first step of the warm start to the last step of the trial.

    Attributes:
        lr_warmup: number of steps over which the rate rises to the recipe's rate.
        steps: number of steps after which the rate has fallen to 0; infinite: the rate does not fall.
    """

    lr_warmup: int
    steps: float


def timing_task(data: str, recipe: Recipe, trial: Trial) -> Record:
    """Seconds of one step of a trial and of one evaluation, measured where the trial runs."""
    found = load_data(data, trial.trained_on)
    with one_thread():
        first = found.train[trial.trained_on[0]].batch
        step_s = estimate_s(first, recipe, size=trial.batch_size) / recipe.steps
        started = time.perf_counter()
        evaluate(computing(new_model(recipe, seed=0), recipe), _measured(found))
    return {"step_s": step_s, "eval_s": time.perf_counter() - started}


def warm_task(data: str, recipe: Recipe, trial: Trial, schedule: Schedule, place: str) -> Record:
    """The shared warm start: train on all skills alike, keep model and optimizer."""
    with one_thread():
        model = new_model(recipe, seed=trial.seed)
        optimizer = adamw(model)
        _train(
            model, optimizer, load_data(data, trial.trained_on), recipe, trial, 0, recipe.steps, schedule, first_step=0
        )
        save_state(model, optimizer, place)
    return {"steps_taken": recipe.steps}


def trial_task(
    data: str,
    recipe: Recipe,
    trial: Trial,
    warm: str | None,
    warmup_steps: int,
    eval_every: int,
    schedule: Schedule,
    settle: float | None,
    reduction: Reduction,
) -> Record:
    """One trial from the warm start (None: from the beginning); losses at its step 0, `eval_every`, ..., and its last.

    Args:
        data: of `save_data`.
        recipe: its `steps` are those of the trial.
        trial: what it trains on.
        warm: of `warm_task`, of the same seed.
        warmup_steps: of the warm start; samples and learning rate go on from there.
        eval_every: steps.
        schedule: of the learning rate, warm start included.
        settle: nats; the trial ends once no loss has moved by more over the latest `SETTLED_POINTS` evaluations. None: never.
        reduction: which mean over its samples a skill's loss is.
    """
    with one_thread():
        found = load_data(data, trial.trained_on)
        model = new_model(recipe, seed=trial.seed)
        optimizer = adamw(model)
        if warm is not None:
            load_state(model, optimizer, warm)
        points, losses, taken = eval_steps(recipe.steps, eval_every), [_losses(model, recipe, found, reduction)], 0
        for done, until in itertools.pairwise(points):
            if settle is None or not is_settled(losses, settle):
                _train(
                    model,
                    optimizer,
                    found,
                    recipe,
                    trial,
                    warmup_steps + done,
                    warmup_steps + until,
                    schedule,
                    first_step=warmup_steps,
                )
                losses.append(_losses(model, recipe, found, reduction))
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


def mixed_batches(train: Mapping[str, DrawnTexts], trial: Trial, *, first_step: int) -> Iterator[TokenBatch]:
    """The batches of a trial from a step on: of each skill its own samples, whatever the other skills are."""
    streams = [
        _drawn(train[skill], trial.seed, skill, first_step=first_step, size=trial.samples_per_skill)
        for skill in trial.trained_on
    ]
    for parts in zip(*streams, strict=True):
        yield TokenBatch(
            np.concatenate([part.tokens for part in parts]), np.concatenate([part.targets for part in parts])
        )


def drawn_rows(
    skill: str, num_texts: int, trials: Sequence[Trial], *, first_step: int, last_step: int
) -> Int[np.ndarray, " text"]:
    """The numbers of a skill's texts that trials draw at some steps, rising.

    Args:
        skill: its name.
        num_texts: number of texts that are drawn from.
        trials: of any seeds; trials that are not trained on the skill draw none.
        first_step, last_step: of the draws, both counted from 1.

    Example:
        >>> drawn_rows("a", 1000, [Trial(("a",), 2, 0), Trial(("b",), 9, 0)], first_step=1, last_step=3).shape
        (6,)
    """
    numbers = TokenBatch(np.arange(num_texts)[:, None, None], np.zeros((num_texts, 1), np.int64))
    drawn = np.zeros(num_texts, bool)
    for seed, size in sorted({(trial.seed, trial.samples_per_skill) for trial in trials if skill in trial.trained_on}):
        batches = _drawn(numbers, seed, skill, first_step=first_step, size=size)
        for batch in itertools.islice(batches, last_step - first_step + 1):
            drawn[batch.tokens[:, 0, 0]] = True
    return np.flatnonzero(drawn)


def _drawn(
    texts: DrawnTexts | TokenBatch, seed: int, skill: str, *, first_step: int, size: int
) -> Iterator[TokenBatch]:
    return random_batches(texts, key=(seed, skill), first_step=first_step, drop_share=0.0, size=size)


def _measured(data: TrialData) -> dict[str, TokenBatch]:
    return {skill: texts.batch for skill, texts in data.evaluation.items()}


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: TrialData,
    recipe: Recipe,
    trial: Trial,
    done: int,
    until: int,
    schedule: Schedule,
    *,
    first_step: int,
) -> None:
    """Train from step `done` to step `until`; `first_step` is the step at which the task began, for its progress."""
    train(
        computing(model, recipe),
        mixed_batches(data.train, trial, first_step=done + 1),
        steps=until,
        lr=recipe.lr,
        optimizer=optimizer,
        steps_done=done,
        warmup=schedule.lr_warmup,
        schedule_steps=schedule.steps,
        eval_every=1,
        on_eval=lambda step: progress.advance(step - first_step, recipe.steps),
    )


def _losses(model: nn.Module, recipe: Recipe, data: TrialData, reduction: Reduction) -> list[float]:
    measured = evaluate(computing(model, recipe), _measured(data), reduction=reduction)
    return [skill.loss for skill in measured.values()]
