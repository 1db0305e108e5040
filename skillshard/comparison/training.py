"""Train the proxy, or a pretrained model, under a policy with a seed. Comparisons and the benchmark of methods share this training."""

from skillshard.extras import needed

needed("proxy", what="Training small models")  # before the imports that fail without the extra

import contextlib
import itertools
import logging
import secrets
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from skillshard import progress
from skillshard.answers import AnswerRule
from skillshard.corpus import Sample
from skillshard.corpus.chat import Chat
from skillshard.errors import ComparisonError, RepetitionWarning
from skillshard.execution import Record
from skillshard.graph.trials import eval_steps
from skillshard.loss import LossKind
from skillshard.mixing.alarms import LOGGER
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.run_records import Lag
from skillshard.policies import Policy
from skillshard.proxy.device import one_thread
from skillshard.proxy.reading import Reading
from skillshard.proxy.samples import CORRECTION, ReadableText, encode, readable
from skillshard.proxy.train import TokenBatch, evaluate, train
from skillshard.proxy.trial import Recipe, computing, estimate_s, new_model
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards

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
        train_chat: Way to render the conversations of the training shards, or None for texts.
        eval_chat: The same for the measured shards, whose messages may stand in another field.
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
    train_chat: Chat | None = None
    eval_chat: Chat | None = None

    @property
    def train_rule(self) -> AnswerRule:
        """Rule for the texts and the answers of the training samples."""
        return AnswerRule(self.kind, self.train_chat)

    @property
    def eval_rule(self) -> AnswerRule:
        """Rule for the texts and the answers of the measured samples."""
        return AnswerRule(self.kind, self.eval_chat)


@dataclass(frozen=True)
class Pace:
    """The steps of a training at which losses are measured, losses are reported, and weights change.

    Attributes:
        round_steps: Number of steps between two decisions.
        measured_at: Steps whose losses are results, in rising order from 0 on.
        reported_at: Steps whose losses the policy gets.
        lag: Rounds by which a decision lags behind the losses, as in `Mixer`.
        initial_losses: Whether the first decision uses the losses before the first step, as in `Mixer`.
    """

    round_steps: int
    measured_at: tuple[int, ...]
    reported_at: tuple[int, ...]
    lag: Lag = 0
    initial_losses: bool | None = None

    @classmethod
    def of(cls, training: Training) -> "Pace":
        """Return the pace of a comparison: every measurement is reported, and the weights may change after each."""
        steps = tuple(eval_steps(training.recipe.steps, training.eval_every))
        return cls(training.eval_every, steps, steps)


@dataclass(frozen=True)
class Trained:
    """The results of a training.

    Attributes:
        steps: Steps at which losses were measured.
        losses: Losses of the measured skills at each of these steps, in nats per token.
        accuracies: Accuracy of each measured skill at the last measurement.
        weights: Weights of each round.
        cpu_s: CPU seconds of the training with its measurements.
        evaluation_cpu_s: CPU seconds of the measurements.
    """

    steps: list[int]
    losses: list[dict[str, float]]
    accuracies: dict[str, float]
    weights: list[list[float]]
    cpu_s: float
    evaluation_cpu_s: float


def timing_task(training: Training) -> Record:
    """Measure the seconds of a step and of a measurement, in the process that runs a trial."""
    with one_thread():
        shards = ShardSet.open(training.shards)
        first = shards.train[training.skills[0]]
        started = time.perf_counter()
        few = _encoded(training, training.train_rule, first, TIMED_TEXTS)
        read_s = (time.perf_counter() - started) / len(few) * training.batch_size
        step_s = estimate_s(few, training.recipe, size=training.batch_size) / training.recipe.steps
        holdout, model = holdout_of(training), computing(new_model(training.recipe, seed=0), training.recipe)
        # A GPU loads its kernels at the first measurement, which is several times as long as the later measurements.
        evaluate(model, dict(itertools.islice(holdout.items(), 1)))
        started = time.perf_counter()
        evaluate(model, holdout)
    return {"step_s": step_s + read_s, "eval_s": time.perf_counter() - started}


def trial_task(training: Training, policy: Policy, seed: int, ledger: str) -> Record:
    """Train once under a policy, and record the losses of the measured skills from step 0 on.

    Trials of a seed differ in their weights alone: the first model and the order within each skill are the same. A killed trial begins
    again, and leaves the same bytes.
    """
    # The ledger gets its name when the training ends. Two processes that train the same trial, because a command was started twice or
    # its worker outlived it, do not meet in one directory.
    part = Path(ledger).with_name(f".{Path(ledger).name}.{secrets.token_hex(4)}")
    trained = train_under(policy, training, Pace.of(training), seed=seed, ledger=part)
    shutil.rmtree(ledger, ignore_errors=True)
    part.rename(ledger)
    means = [statistics.mean(row[skill] for skill in training.counted) for row in trained.losses]
    final = {skill: trained.losses[-1][skill] for skill in training.counted}
    return {"seed": seed, "steps": trained.steps, "mean_losses": means, "final_losses": final}


def train_under(
    policy: Policy,
    training: Training,
    pace: Pace,
    *,
    seed: int,
    ledger: Path,
    is_done: Callable[[Sequence[Mapping[str, float]]], bool] = lambda losses: False,
) -> Trained:
    """Train a model on the stream of a policy.

    Args:
        policy: Policy of the weights.
        training: Settings of the training.
        pace: Steps of the measurements and of the decisions.
        seed: Seed for the first model and for the order of the samples.
        ledger: Directory of the run's ledger. A former ledger is replaced.
        is_done: Function of the losses so far, which is called after each measurement and may end the training. The schedule of the
            learning rate stays the schedule of the whole training.

    Raises:
        ComparisonError: A sample cannot be read.
        ProxyError: The training diverges.
    """
    recipe = training.recipe
    with one_thread(), _without_alarms(), warnings.catch_warnings():
        # The number of epochs is a result of a policy, and not news for every trial.
        warnings.simplefilter("ignore", RepetitionWarning)
        mixer = _mixer(policy, training, pace, seed=seed, ledger=ledger)
        holdout = holdout_of(training)
        model = computing(new_model(recipe, seed=seed), recipe)
        # A run of a policy that reads no losses records all losses, so that runs are comparable.
        read = skills_read(policy, training.skills) or training.measured
        steps: list[int] = []
        losses: list[dict[str, float]] = []
        accuracies: dict[str, float] = {}
        began_s, evaluating_s = time.process_time(), 0.0

        def measure(step: int) -> None:
            nonlocal evaluating_s, accuracies
            progress.advance(step, recipe.steps)
            if step not in pace.measured_at and step not in pace.reported_at:
                return
            before_s = time.process_time()
            measured = evaluate(model, holdout, reduction=training.kind.reduction)
            evaluating_s += time.process_time() - before_s
            row = {skill: value.loss for skill, value in measured.items()}
            if step in pace.reported_at:
                mixer.report(step, {skill: row[skill] for skill in read if skill in row})
            if step not in pace.measured_at:
                return
            steps.append(step)
            losses.append(row)
            accuracies = {skill: value.accuracy for skill, value in measured.items()}
            if is_done(losses):
                raise _Done

        measure(0)
        batches = _batches(training, mixer)
        with contextlib.suppress(_Done):
            train(model, batches, steps=recipe.steps, lr=recipe.lr, eval_every=1, on_eval=measure)
        num_rounds = -(-steps[-1] // pace.round_steps)
        weights = [mixer.round(number).weights for number in range(num_rounds)]
    return Trained(steps, losses, accuracies, weights, time.process_time() - began_s, evaluating_s)


@contextlib.contextmanager
def _without_alarms() -> Iterator[None]:
    """Keep alarms out of the log. Every view of the ledger shows the alarms of a trial."""

    def refuse(record: logging.LogRecord) -> bool:
        return False

    LOGGER.addFilter(refuse)
    try:
        yield
    finally:
        LOGGER.removeFilter(refuse)


class _Done(Exception):
    """The training ends before its last step."""


def _mixer(policy: Policy, training: Training, pace: Pace, *, seed: int, ledger: Path) -> Mixer:
    shutil.rmtree(ledger, ignore_errors=True)
    return Mixer(
        ShardSet.open(training.shards).choose(training.skills),
        policy,
        ledger=ledger,
        round_draws=pace.round_steps * training.batch_size,
        seed=seed,
        lag=pace.lag,
        step_draws=training.batch_size,
        initial_losses=pace.initial_losses,
        loss=training.kind,
        held_out=training.measured,
    )


def skills_read(policy: Policy, skills: Sequence[str]) -> tuple[str, ...]:
    """Return the skills whose losses a policy reads among or beside the training skills."""
    return tuple(policy.eval_skills or skills) if policy.reads_losses else ()


def num_evaluated(training: Training, measured_on: ShardSet, skill: str) -> int:
    """Return the number of held-out samples of a skill that a measurement reads."""
    return min(training.eval_samples, len(measured_on.holdout[skill]))


def _batches(training: Training, mixer: Mixer) -> Iterator[TokenBatch]:
    first, rule = 0, training.train_rule
    while True:
        places = mixer.find(np.arange(first, first + training.batch_size))
        batch = mixer.samples.cut(places)
        metas = mixer.samples.metas(places) if rule.needs_meta else [{}] * len(batch)
        samples = [
            Sample(id=f"draw {draw}", text=text, meta=meta)
            for draw, text, meta in zip(batch.draw.tolist(), batch.text, metas, strict=True)
        ]
        yield _encode(training, rule, samples, "the stream")
        first += training.batch_size


def holdout_of(training: Training) -> dict[str, TokenBatch]:
    """Return the held-out samples that a measurement reads, by skill."""
    shards = ShardSet.open(training.eval_shards)
    rule, most = training.eval_rule, training.eval_samples
    return {skill: _encoded(training, rule, shards.holdout[skill], most) for skill in training.measured}


def _encoded(training: Training, rule: AnswerRule, shards: SkillShards, most: int) -> TokenBatch:
    return _encode(training, rule, list(islice(shards, most)), f"skill {shards.skill!r}")


def _encode(training: Training, rule: AnswerRule, samples: Sequence[Sample], where: str) -> TokenBatch:
    return encode(training.reading, [_checked(training, rule, sample, where) for sample in samples])


def _checked(training: Training, rule: AnswerRule, sample: Sample, where: str) -> ReadableText:
    """Return the text and the answers of a sample.

    Raises:
        ComparisonError: The proxy cannot read the sample, or the sample has no answer.
    """
    text = readable(sample, training.reading.refusal, rule)
    if isinstance(text, ReadableText):
        return text
    raise ComparisonError(
        f"sample {sample.id!r} of {where} cannot be read: {text} ({sample.text[:60]!r}). {CORRECTION}"
    )
