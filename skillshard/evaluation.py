"""Measure the loss of every skill on its held-out samples, for a trainer's report to the mixer.

A measurement costs one forward pass over `max_samples` samples of each skill. Samples of similar length share a batch, whatever their
skill, so that batches need little padding. Nothing is random: every rank and every report measures the same samples.

If both mask the same part of a text, these losses are of the same kind as the losses of a graph from `skillshard graph`. All
measurements use the formula, and the rule for the end of a prompt, of `skillshard.loss`.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.corpus import Sample
from skillshard.corpus.template import Span
from skillshard.errors import ObservationError, did_you_mean, name_some
from skillshard.loss import Loss, Losses, LossKind, Reduction, answer_spans, reduced
from skillshard.shards.split import HOW_TO_HOLD_OUT

ModelLoss = Callable[..., tuple[Any, Any]]
"""A function of texts that gives the summed loss (nats) and the number of predicted tokens of each text: two tensors, arrays or lists.

If prompts are masked, the function gets a second argument: for each text, the list of the answers, which alone are predicted. An answer is
a pair: the first character, and the character after the last one."""


def losses_per_skill(
    model_loss: ModelLoss,
    holdout: Mapping[str, Iterable[Sample]],
    *,
    max_samples: int,
    batch_size: int,
    skills: Sequence[str] | None = None,
    reduction: Reduction = "per_sample",
    answer_after: str | None = None,
    prompt_field: str | None = None,
) -> Losses:
    """Measure the loss of each skill on its first `max_samples` held-out samples.

    Shards store samples in an order that is shuffled by hash. The first samples are therefore a random selection of the skill, and
    the same selection on every rank and in every report.

    Args:
        model_loss: Function that gives nats and number of tokens of each text, without gradients; see `ModelLoss`.
            `skillshard.hf.causal_lm_loss` makes this function for a causal language model.
        holdout: Held-out samples of each skill: `shards.holdout`.
        max_samples: Number of samples of each skill, at least 1.
        batch_size: Number of texts of a call, at least 1.
        skills: Skills to measure. None: all skills of `holdout`.
        reduction: "per_sample": the mean over samples of nats per token, as for learned graphs and as in the authors' code.
            "per_token": all nats over all tokens, so that a long sample weighs more.
        answer_after: Text before the answer. Only the answer is predicted; see `LossKind`. None: the whole text is predicted.
        prompt_field: Metadata field with the length of the prompt, which is not predicted, or with the spans of the answers; see
            `LossKind`. None: the whole text is predicted.

    Returns:
        The loss of each skill, in the order of `skills`, with the `kind` of the losses: give the same kind to `Mixer(loss=...)`.
        A sample without a token to predict (a text of one token) has no loss, and `num_samples` does not count the sample.

    Raises:
        ObservationError: A skill has no held-out samples or no tokens, a text has no answer, or a loss is not a finite number
            >= 0. The message names the skill.

    Example:
        >>> samples = {"add": [Sample("a", "1+1=2", {}), Sample("b", "2+2=4.", {})]}
        >>> bits = lambda texts: ([len(text) * np.log(2) for text in texts], [len(text) for text in texts])
        >>> losses_per_skill(bits, samples, max_samples=10, batch_size=2)["add"].num_tokens
        11
    """
    kind = LossKind(reduction=reduction, answer_after=answer_after, prompt_field=prompt_field)
    for name, value in {"max_samples": max_samples, "batch_size": batch_size}.items():
        if value < 1:
            raise ObservationError(f"{name} is {value}: give at least 1.")
    wanted = tuple(holdout if skills is None else skills)
    samples = [(skill, sample) for skill in wanted for sample in _first(holdout, skill, max_samples)]
    if kind.masks:
        _refuse_one_argument(model_loss)
    answers = [_answers(skill, sample, kind) for skill, sample in samples]
    # Sorted by characters, not tokens: the model's loss alone has the tokenizer, and the two lengths are close enough for padding.
    by_length = sorted(range(len(samples)), key=lambda number: len(samples[number][1].text))
    nats, tokens = np.zeros(len(samples)), np.zeros(len(samples))
    for start in range(0, len(samples), batch_size):
        batch = by_length[start : start + batch_size]
        texts = [samples[number][1].text for number in batch]
        arguments = (texts, [answers[number] for number in batch]) if kind.masks else (texts,)
        nats[batch], tokens[batch] = _measured(model_loss(*arguments), len(batch))
    # A batch may mix skills, so the losses are sorted back to the skills only now.
    owner = np.array([skill for skill, _ in samples])
    losses = {skill: _loss(skill, nats[owner == skill], tokens[owner == skill], reduction) for skill in wanted}
    return Losses(losses, kind=kind)


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


def _answers(skill: str, sample: Sample, kind: LossKind) -> list[Span]:
    try:
        return answer_spans(sample.text, kind, sample.meta)
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
