"""The trials of the proxy that a graph is learned from. Each trial is a task, and its record has the measured losses.

    RUNS/data-DIGEST.npz     encoded texts that trials draw and measure (`trial_data`)
    RUNS/warm-KEY.npz        model and optimizer after the shared warm start of one seed
    RUNS/records/KEY.json    losses of one trial; KEY is the digest of all inputs that determine the losses

A trial that another command needs again, for more seeds or for another method, is therefore not trained again. On a CPU, a trial gives
the same bytes on every machine.
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
"""Number of evaluations in a row that must agree before a trial counts as settled."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate from the first step of the warm start to the last step of the trial.

    Attributes:
        lr_warmup: Number of steps over which the rate rises to the recipe's rate.
        steps: Number of steps after which the rate has fallen to 0. Infinite: the rate does not fall.
    """

    lr_warmup: int
    steps: float


def timing_task(data: str, recipe: Recipe, trial: Trial) -> Record:
    """Measure the seconds of one step of a trial and of one evaluation, in the process that runs the trial."""
    texts = load_data(data, trial.trained_on)
    with one_thread():
        first = texts.train[trial.trained_on[0]].batch
        step_s = estimate_s(first, recipe, size=trial.batch_size) / recipe.steps
        model, measured = computing(new_model(recipe, seed=0), recipe), _measured(texts)
        # A GPU loads its kernels at the first evaluation, which is several times as long as the later ones.
        evaluate(model, dict(itertools.islice(measured.items(), 1)))
        started = time.perf_counter()
        evaluate(model, measured)
    return {"step_s": step_s, "eval_s": time.perf_counter() - started}


def warm_task(data: str, recipe: Recipe, trial: Trial, schedule: Schedule, place: str) -> Record:
    """Train the shared warm start on all skills, equally often, and save model and optimizer."""
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
    """Train one trial, and measure the losses at step 0, at every `eval_every` steps, and at the last step.

    Args:
        data: Place of the texts, from `save_data`.
        recipe: Model and settings. `steps` is the number of steps of the trial.
        trial: Skills, samples and seed of the trial.
        warm: Place of the warm start of the same seed, from `warm_task`. None: train from the beginning.
        warmup_steps: Number of steps of the warm start. Samples and learning rate continue after these steps.
        eval_every: Number of steps between two measurements.
        schedule: Schedule of the learning rate, including the warm start.
        settle: Largest change in nats of a settled loss. The trial ends when no loss has changed by more over the latest
            `SETTLED_POINTS` evaluations. None: the trial runs to its last step.
        reduction: Mean over the samples of a skill.
    """
    # With one thread the sums of a product have one order, so that the losses are the same to the last bit on every machine of one kind.
    with one_thread():
        texts = load_data(data, trial.trained_on)
        model = new_model(recipe, seed=trial.seed)
        optimizer = adamw(model)
        if warm is not None:
            load_state(model, optimizer, warm)
        points, losses, taken = eval_steps(recipe.steps, eval_every), [_losses(model, recipe, texts, reduction)], 0
        for done, until in itertools.pairwise(points):
            if settle is None or not is_settled(losses, settle):
                _train(
                    model,
                    optimizer,
                    texts,
                    recipe,
                    trial,
                    warmup_steps + done,
                    warmup_steps + until,
                    schedule,
                    first_step=warmup_steps,
                )
                losses.append(_losses(model, recipe, texts, reduction))
                taken = until
            else:  # every trial has equally many points, so that edges can compare the points of two trials
                losses.append(losses[-1])
    return {"steps_taken": taken, "losses": losses}


def eval_steps(steps: int, eval_every: int) -> list[int]:
    """Return the steps at which losses are measured.

    >>> eval_steps(10, 4), eval_steps(8, 4)
    ([0, 4, 8, 10], [0, 4, 8])
    """
    return [*range(0, steps, eval_every), steps]


def is_settled(losses: Sequence[Sequence[float]], settle: float) -> bool:
    """Whether no loss has changed by more than `settle` over the latest evaluations.

    >>> is_settled([[2.0], [1.0], [1.0], [1.0]], 0.01), is_settled([[2.0], [1.0], [1.0], [1.0], [1.0]], 0.01)
    (False, True)
    """
    # The range over all points, and not the last difference: slow falls add up over several evaluations.
    latest = np.array(losses[-SETTLED_POINTS:])
    return len(latest) == SETTLED_POINTS and bool(np.ptp(latest, axis=0).max() <= settle)


def mixed_batches(train: Mapping[str, DrawnTexts], trial: Trial, *, first_step: int) -> Iterator[TokenBatch]:
    """Yield the batches of a trial from a step on. The samples of a skill do not depend on the other skills of the trial."""
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
    """Return the numbers of a skill's texts that trials draw within a range of steps, in rising order.

    Args:
        skill: Name of the skill.
        num_texts: Number of texts to draw from.
        trials: Trials of any seeds. Trials without the skill draw no text.
        first_step, last_step: First and last step of the range, counted from 1.

    Example:
        >>> drawn_rows("a", 1000, [Trial(("a",), 2, 0), Trial(("b",), 9, 0)], first_step=1, last_step=3).shape
        (6,)
    """
    # The numbers of the texts take the place of the texts: the same function that draws a trial's batches then tells its numbers.
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
    # The key holds the skill and not the trial: two trials of a seed then draw the same samples of a common skill.
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
    """Train from step `done` to step `until`. `first_step` is the first step of the task, for its progress."""
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
