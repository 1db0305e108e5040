"""Measure the loss of every skill on its held-out samples, for a trainer's report to the mixer.

Two arguments limit the cost. With `rank` and `world_size` the ranks share the batches. An `EvalBudget` in place of a number of samples limits
the share of the time. The speed of the machine then decides how many samples and skills are measured. The speed does not decide the stream: the stream
follows the recorded losses, and the ledger records the number of samples and the standard error of each loss.

A measurement costs one forward pass over `max_samples` samples of each skill. Samples of similar length share a batch, whatever their
skill, so that batches need little padding. Nothing is random: every rank and every report measures the same samples.

If both mask the same part of a text, these losses are of the same kind as the losses of a graph from `skillshard graph`. All
measurements use the formula, and the rule for the end of a prompt, of `skillshard.loss`.
"""

import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.answers import AnswerRule
from skillshard.collective import gathered
from skillshard.corpus import Sample
from skillshard.corpus.template import Span
from skillshard.errors import ObservationError, PolicyError, did_you_mean, name_some
from skillshard.loss import Loss, Losses, LossKind, Reduction, reduced
from skillshard.shards.split import HOW_TO_HOLD_OUT

FIRST_SAMPLES, LEAST_SAMPLES = 8, 2
"""Samples of each skill in the first evaluation of a budget, and in any evaluation: a standard error needs two samples."""
ModelLoss = Callable[..., tuple[Any, Any]]
"""A function of texts that gives the summed loss (nats) and the number of predicted tokens of each text: two tensors, arrays or lists.

If prompts are masked, the function gets a second argument: for each text, the list of the answers, which alone are predicted. An answer is
a pair: the first character, and the character after the last one."""


def losses_per_skill(
    model_loss: ModelLoss,
    holdout: Mapping[str, Iterable[Sample]],
    *,
    max_samples: "int | EvalBudget",
    batch_size: int,
    skills: Sequence[str] | None = None,
    reduction: Reduction = "per_sample",
    answer_after: str | None = None,
    prompt_field: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> Losses:
    """Measure the loss of each skill on its first `max_samples` held-out samples.

    Shards store samples in an order that is shuffled by hash. The first samples are therefore a random selection of the skill, and
    the same selection on every rank and in every report.

    Args:
        model_loss: Function that gives nats and number of tokens of each text, without gradients; see `ModelLoss`.
            `skillshard.hf.causal_lm_loss` makes this function for a causal language model.
        holdout: Held-out samples of each skill: `shards.holdout`.
        max_samples: Number of samples of each skill, at least 1; or an `EvalBudget`, which chooses the number from the measured time.
        batch_size: Number of texts of a call, at least 1.
        skills: Skills to measure. None: all skills of `holdout`.
        reduction: "per_sample": the mean over samples of nats per token, as for learned graphs and as in the authors' code.
            "per_token": all nats over all tokens, so that a long sample weighs more.
        answer_after: Text before the answer. Only the answer is predicted; see `LossKind`. None: the whole text is predicted.
        prompt_field: Metadata field with the length of the prompt, which is not predicted, or with the spans of the answers; see
            `LossKind`. None: the whole text is predicted.
        rank: Number of this process among the ranks that share the batches. Every rank must call this function. None: this process measures
            every batch.
        world_size: Number of ranks. None: this process measures every batch. Each rank makes the same number of calls of `model_loss`, so
            that a model that is sharded over the ranks works, and every rank gets the losses of all samples.

    Returns:
        The loss of each skill, in the order of `skills`, with the `kind` of the losses: give the same kind to `Mixer(loss=...)`.
        A sample without a token to predict (a text of one token) has no loss, and `num_samples` does not count the sample. A skill
        that an `EvalBudget` does not measure this time keeps its last loss, with `num_samples` 0 and an infinite standard error.

    Raises:
        ObservationError: A skill has no held-out samples or no tokens, a text has no answer, or a loss is not a finite number
            >= 0. The message names the skill.
        PolicyError: rank or world_size does not fit, or torch.distributed has another number of ranks.

    Example:
        >>> samples = {"add": [Sample("a", "1+1=2", {}), Sample("b", "2+2=4.", {})]}
        >>> bits = lambda texts: ([len(text) * np.log(2) for text in texts], [len(text) for text in texts])
        >>> losses_per_skill(bits, samples, max_samples=10, batch_size=2)["add"].num_tokens
        11
    """
    kind = LossKind(reduction=reduction, answer_after=answer_after, prompt_field=prompt_field)
    for name, value in {"max_samples": max_samples, "batch_size": batch_size}.items():
        if not isinstance(value, EvalBudget) and value < 1:
            raise ObservationError(f"{name} is {value}: give at least 1.")
    own, num_ranks = _share(rank, world_size)
    wanted = tuple(holdout if skills is None else skills)
    chosen, num = max_samples.begin(wanted, num_ranks) if isinstance(max_samples, EvalBudget) else (wanted, max_samples)
    samples = [(skill, sample) for skill in chosen for sample in _first(holdout, skill, num)]
    if kind.masks:
        _refuse_one_argument(model_loss)
    rule = AnswerRule(kind)
    answers = [_answers(skill, sample, rule) for skill, sample in samples]
    # Sorted by characters, not tokens: the model's loss alone has the tokenizer, and the two lengths are close enough for padding.
    by_length = sorted(range(len(samples)), key=lambda number: len(samples[number][1].text))
    batches = [by_length[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    rows = [np.empty((0, 3))]
    # A rank without a batch of its own measures the first batch again, because a sharded model needs a call of every rank.
    for turn in range(-(-len(batches) // num_ranks)):
        number = turn * num_ranks + own
        batch = batches[number if number < len(batches) else 0]
        texts = [samples[number][1].text for number in batch]
        arguments = (texts, [answers[number] for number in batch]) if kind.masks else (texts,)
        measured = _measured(model_loss(*arguments), len(batch))
        if number < len(batches):
            rows.append(np.stack([np.array(batch, np.float64), *measured], 1))
    numbers, of_nats, of_tokens = gathered(np.concatenate(rows), world_size=num_ranks).T
    nats, tokens = np.empty(len(samples)), np.empty(len(samples))
    nats[numbers.astype(int)], tokens[numbers.astype(int)] = of_nats, of_tokens
    # A batch may mix skills, so the losses are sorted back to the skills only now.
    owner = np.array([skill for skill, _ in samples])
    losses = {skill: _loss(skill, nats[owner == skill], tokens[owner == skill], reduction) for skill in chosen}
    if isinstance(max_samples, EvalBudget):
        losses = max_samples.end(wanted, losses)
    return Losses(losses, kind=kind)


class EvalBudget:
    """A number of held-out samples per skill that keeps evaluations within a share of the time.

    A budget belongs to one training: give the same object to every `losses_per_skill`. The budget measures the time of the last evaluation
    and of the training since. The first evaluation takes 8 samples of each skill, and every later evaluation takes as many samples as fit
    into the share, from 2 to `max_samples`. If 2 samples of each skill do not fit, the skills take turns: an evaluation measures the skills
    that were measured longest ago, at least one of them, and every other skill keeps its last loss. Ranks that share an evaluation agree on the
    smallest number of any rank.

    Args:
        max_eval_share: Largest share of the evaluations in the time of training and evaluations, above 0 and below 1.
        max_samples: Largest number of samples of each skill, at least 2.
        rotate: Whether skills may take turns. False: every evaluation measures every skill, also beyond the share.
        clock: Function that returns the time in seconds.

    Warns:
        UserWarning: Two samples of each skill take more than the share. The warning comes once.

    Raises:
        ObservationError: An argument is out of range.

    Example:
        >>> seconds = iter([0.0, 1.0, 77.0, 80.0])
        >>> budget = EvalBudget(0.05, max_samples=256, clock=lambda: next(seconds))
        >>> skills = ("add", "carry", "count", "negate")
        >>> budget.begin(skills)[1]
        8
        >>> losses = budget.end(skills, dict.fromkeys(skills, Loss(1.0, 0.1, 8, 40)))  # 32 samples take 1 s
        >>> budget.begin(skills)[1]  # after 76 s of training, 4 s are 5 % of the time
        32
    """

    def __init__(
        self,
        max_eval_share: float,
        *,
        max_samples: int,
        rotate: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not 0 < max_eval_share < 1:
            raise ObservationError(
                f"max_eval_share is {max_eval_share}: give a share above 0 and below 1, such as 0.05."
            )
        if max_samples < LEAST_SAMPLES:
            raise ObservationError(
                f"max_samples is {max_samples}: give at least {LEAST_SAMPLES}, because one sample has no standard error."
            )
        self.max_eval_share, self.max_samples, self.rotate = max_eval_share, max_samples, rotate
        self._clock = clock
        self._begun = 0.0
        self._ended: float | None = None
        self._num_measured = 0
        self._seconds_per_sample = 0.0
        self._has_warned = False
        # The last loss of each skill, in the order in which the skills were measured. The skill measured longest ago is the first.
        self._last: dict[str, Loss] = {}

    def begin(self, skills: Sequence[str], num_ranks: int = 1) -> tuple[tuple[str, ...], int]:
        """Begin an evaluation, and return the skills to measure and the number of samples of each of them.

        All ranks of a shared evaluation call the method together.
        """
        self._begun = self._clock()
        affordable = math.inf if self._ended is None else self._affordable()
        affordable = float(gathered(np.array([[affordable]]), world_size=num_ranks).min())
        most = min(FIRST_SAMPLES, self.max_samples) if self._ended is None else self.max_samples
        # The sum of floats may lie a rounding error below a whole number.
        num = math.floor(min(most, affordable / len(skills) + 1e-9))
        chosen = tuple(skills)
        if num < LEAST_SAMPLES:
            num = LEAST_SAMPLES
            if self.rotate:
                chosen = self._longest_ago(skills, max(1, math.floor(affordable / LEAST_SAMPLES + 1e-9)))
            self._warn(len(skills), len(chosen))
        self._num_measured = num * len(chosen)
        return chosen, num

    def end(self, skills: Sequence[str], losses: Mapping[str, Loss]) -> dict[str, Loss]:
        """End the evaluation that `begin` has begun. Return the loss of each skill: the measured loss, or else the last loss.

        Args:
            skills: Skills of the evaluation, as in `begin`.
            losses: Losses of the measured skills.
        """
        for skill, loss in losses.items():
            self._last.pop(skill, None)
            self._last[skill] = loss
        self._ended = self._clock()
        self._seconds_per_sample = (self._ended - self._begun) / max(1, self._num_measured)
        return {skill: losses[skill] if skill in losses else self._last[skill].kept() for skill in skills}

    def _affordable(self) -> float:
        """Return the number of samples that fit into the share, over all skills."""
        seconds = self._training_s * self.max_eval_share / (1 - self.max_eval_share)
        return seconds / self._seconds_per_sample if self._seconds_per_sample > 0 else math.inf

    @property
    def _training_s(self) -> float:
        assert self._ended is not None
        return self._begun - self._ended

    def _longest_ago(self, skills: Sequence[str], num: int) -> tuple[str, ...]:
        """Return the skills that were measured longest ago, and every skill that was never measured, in the order of the skills."""
        turns = {skill: turn for turn, skill in enumerate(self._last)}
        chosen = set(sorted(skills, key=lambda skill: turns.get(skill, -1))[:num])
        return tuple(skill for skill in skills if skill in chosen or skill not in turns)

    def _warn(self, num_skills: int, num_chosen: int) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        cost, training_s = LEAST_SAMPLES * num_skills * self._seconds_per_sample, self._training_s
        share = cost / (cost + training_s) if training_s > 0 else 1.0
        turns = (
            f"this evaluation measures {num_chosen} of the skills, the next evaluation measures the next skills, and the other skills keep their last "
            "losses. To measure every skill each time, "
            if self.rotate
            else ""
        )
        warnings.warn(
            f"an evaluation of {LEAST_SAMPLES} samples of each of {num_skills} skills takes {share:.1%} of the time, more than "
            f"max_eval_share={self.max_eval_share:g}: {turns}report less often, share the evaluation over the ranks (rank=, world_size=), or "
            "take the losses from the training batches (Mixer(measured_on='training')).",
            stacklevel=4,
        )


def _share(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return the place of this process among the ranks that share the batches."""
    if rank is None and world_size is None:
        return 0, 1
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise PolicyError(
            f"rank is {rank} and world_size is {world_size}: give both, and count rank from 0 to world_size - 1, or give neither."
        )
    return rank, world_size


def _refuse_one_argument(model_loss: ModelLoss) -> None:
    """Refuse a function that takes texts alone: the model's loss itself masks the prompts, so the function needs the answers."""
    # The signature is checked before the call: a TypeError of the call may also come from inside the function.
    try:
        inspect.signature(model_loss).bind([], [])
    except TypeError as error:
        raise ObservationError(
            f"prompts are masked, and the model's loss {getattr(model_loss, '__name__', model_loss)!r} takes texts alone: write it as "
            "model_loss(texts, answers), where only the characters start to stop - 1 of text i are predicted, for each (start, stop) in "
            "answers[i], or use skillshard.hf.causal_lm_loss."
        ) from error


def _answers(skill: str, sample: Sample, rule: AnswerRule) -> list[Span]:
    try:
        return rule.read(sample.text, sample.meta)[1]
    except ObservationError as error:
        raise ObservationError(f"skill {skill!r}, held-out sample {sample.id!r}: {error}") from error


def _first(holdout: Mapping[str, Iterable[Sample]], skill: str, max_samples: int) -> list[Sample]:
    samples = list(islice(holdout.get(skill, ()), max_samples))
    if not samples:
        raise ObservationError(
            f"skill {skill!r}{did_you_mean(skill, [name for name in holdout if name != skill])} has no held-out samples. Skills "
            f"with held-out samples: {name_some(holdout) or 'none'}. Either {HOW_TO_HOLD_OUT}; or leave the skill out of the policy's evaluation skills."
        )
    return samples


def _measured(measured: tuple[Any, Any], num: int) -> tuple[Float[np.ndarray, " sample"], Float[np.ndarray, " sample"]]:
    nats, tokens = (
        # `tolist` also takes a tensor off its GPU, and needs no import of torch.
        np.array(values.tolist() if hasattr(values, "tolist") else values, np.float64)
        for values in measured
    )
    if nats.shape != (num,) or tokens.shape != (num,):
        raise ObservationError(
            f"the model's loss gave nats of shape {nats.shape} and tokens of shape {tokens.shape} for {num} texts: give the sum of "
            f"nats and the number of predicted tokens of each text, both of shape ({num},)."
        )
    return nats, tokens


def _loss(
    skill: str, nats: Float[np.ndarray, " sample"], tokens: Float[np.ndarray, " sample"], reduction: Reduction
) -> Loss:
    # Checked sample by sample: in a mean, one NaN would hide the sample that has it.
    bad = np.flatnonzero(~(np.isfinite(nats) & (nats >= 0) & np.isfinite(tokens) & (tokens >= 0)))
    if len(bad):
        number = int(bad[0])
        raise ObservationError(
            f"skill {skill!r}: held-out sample {number} has {nats[number]} nats over {tokens[number]} tokens; both must be finite and >= 0. "
            "A NaN or infinite loss usually means a diverged model, or an overflow in half precision."
        )
    measured = tokens > 0
    if not measured.any():
        raise ObservationError(
            f"skill {skill!r}: its {len(nats)} held-out samples have no token to predict: texts of a single token, or a tokenizer "
            "that gives none. Raise max_samples or max_tokens."
        )
    mean, error = reduced(nats[measured], tokens[measured], reduction)
    return Loss(mean, error, int(measured.sum()), int(tokens.sum()))
