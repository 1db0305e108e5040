"""A trial of a comparison: the proxy, or a pretrained model, trained under a policy with a seed."""

from skillshard.extras import needed

needed("proxy", what="Training small models")  # before the imports that fail without the extra

import shutil
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from skillshard import progress
from skillshard.corpus import Sample
from skillshard.corpus.template import Span
from skillshard.errors import ComparisonError, ObservationError, RepetitionWarning
from skillshard.execution import Record
from skillshard.graph.trials import eval_steps
from skillshard.loss import LossKind, answer_spans
from skillshard.mixing.mixer import Mixer
from skillshard.policies import Policy
from skillshard.proxy.device import one_thread
from skillshard.proxy.reading import Reading
from skillshard.proxy.train import TokenBatch, evaluate, train
from skillshard.proxy.trial import Recipe, computing, estimate_s, new_model
from skillshard.shards.read import ShardSet, SkillShards

TIMED_TEXTS = 64
"""Number of texts that timed steps draw from. All texts have the same number of positions."""


@dataclass(frozen=True)
class Training:
    """The settings that all trials of a comparison share.

    Attributes:
        shards: Place of the training shards.
        skills: Training skills.
        eval_shards: Place of the shards whose holdout is measured.
        counted: Skills whose mean loss decides.
        measured: Skills that are measured: the counted skills, and further skills that a policy reads.
        reading: Reading of the texts.
        kind: Kind of the losses.
        recipe: Model, steps, learning rate, device and precision.
        batch_size: Number of samples of a step.
        eval_every: Number of steps between two measurements, which is a round.
        eval_samples: Largest number of held-out samples of a skill.
    """

    shards: str
    skills: tuple[str, ...]
    eval_shards: str
    counted: tuple[str, ...]
    measured: tuple[str, ...]
    reading: Reading
    kind: LossKind
    recipe: Recipe
    batch_size: int
    eval_every: int
    eval_samples: int


def timing_task(training: Training) -> Record:
    """Measure the seconds of a step and of a measurement, in the process that runs a trial."""
    with one_thread():
        shards = ShardSet.open(training.shards)
        few = _encoded(training, shards.train[training.skills[0]], TIMED_TEXTS)
        step_s = estimate_s(few, training.recipe, size=training.batch_size) / training.recipe.steps
        holdout, model = _holdout(training), computing(new_model(training.recipe, seed=0), training.recipe)
        started = time.perf_counter()
        evaluate(model, holdout)
    return {"step_s": step_s, "eval_s": time.perf_counter() - started}


def trial_task(training: Training, policy: Policy, seed: int, ledger: str) -> Record:
    """Train once under a policy, and record the losses of the measured skills from step 0 on.

    Trials of a seed differ in their weights alone: the first model and the order within each skill are the same. A killed trial begins
    again, and leaves the same bytes.
    """
    recipe = training.recipe
    with one_thread(), warnings.catch_warnings():
        # The number of epochs is a result of a policy, and not news for every trial.
        warnings.simplefilter("ignore", RepetitionWarning)
        shutil.rmtree(ledger, ignore_errors=True)
        mixer = Mixer(
            ShardSet.open(training.shards).choose(training.skills),
            policy,
            ledger=Path(ledger),
            round_draws=training.eval_every * training.batch_size,
            seed=seed,
            lag=0,
            step_draws=training.batch_size,
            loss=training.kind,
            held_out=training.measured,
        )
        holdout = _holdout(training)
        model = computing(new_model(recipe, seed=seed), recipe)
        steps = eval_steps(recipe.steps, training.eval_every)
        losses: list[dict[str, float]] = []
        # A run of a policy that reads no losses records all losses.
        read = skills_read(policy, training.skills) or training.measured

        def measure(step: int) -> None:
            progress.advance(step, recipe.steps)
            if step not in steps:
                return
            measured = evaluate(model, holdout, reduction=training.kind.reduction)
            losses.append({skill: value.loss for skill, value in measured.items()})
            mixer.report(step, {skill: losses[-1][skill] for skill in read if skill in measured})

        measure(0)
        train(model, _batches(training, mixer), steps=recipe.steps, lr=recipe.lr, eval_every=1, on_eval=measure)
    means = [statistics.mean(row[skill] for skill in training.counted) for row in losses]
    final = {skill: losses[-1][skill] for skill in training.counted}
    return {"seed": seed, "steps": steps, "mean_losses": means, "final_losses": final}


def skills_read(policy: Policy, skills: Sequence[str]) -> tuple[str, ...]:
    """Return the skills whose losses a policy reads among or beside the training skills."""
    return tuple(policy.eval_skills or skills) if policy.reads_losses else ()


def _batches(training: Training, mixer: Mixer) -> Iterator[TokenBatch]:
    first = 0
    while True:
        places = mixer.find(np.arange(first, first + training.batch_size))
        batch = mixer.cut(places)
        metas = mixer.metas(places) if training.kind.prompt_field is not None else [{}] * len(batch)
        samples = [
            Sample(id=f"draw {draw}", text=text, meta=meta)
            for draw, text, meta in zip(batch.draw.tolist(), batch.text, metas, strict=True)
        ]
        yield _encode(training, samples, "the stream")
        first += training.batch_size


def _holdout(training: Training) -> dict[str, TokenBatch]:
    shards = ShardSet.open(training.eval_shards)
    return {skill: _encoded(training, shards.holdout[skill], training.eval_samples) for skill in training.measured}


def _encoded(training: Training, shards: SkillShards, most: int) -> TokenBatch:
    return _encode(training, list(islice(shards, most)), f"skill {shards.skill!r}")


def _encode(training: Training, samples: Sequence[Sample], where: str) -> TokenBatch:
    answers = [_answers(training, sample, where) for sample in samples]
    # A mark in the text is known to the reading itself. Only answers from the metadata have to be passed on.
    return training.reading.encode(
        [sample.text for sample in samples], None if training.kind.prompt_field is None else answers
    )


def _answers(training: Training, sample: Sample, where: str) -> list[Span]:
    """Return the answers of a sample.

    Raises:
        ComparisonError: The proxy cannot read the sample, or the sample has no answer.
    """
    why = training.reading.refusal(sample.text)
    try:
        if why is None:
            return answer_spans(sample.text, training.kind, sample.meta)
    except ObservationError as error:
        why = str(error).rstrip(".")
    raise ComparisonError(
        f"sample {sample.id!r} of {where} cannot be read: {why} ({sample.text[:60]!r}). Change `answer_after`, `prompt_field` or "
        "`segment_at`, or leave such samples out of the corpus."
    )
