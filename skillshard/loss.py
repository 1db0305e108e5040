"""The definition of a loss in nats per predicted token. Every measurement, record and comparison of losses uses this module.

A model gives each text two numbers: the summed nats of the predicted tokens, and the number of predicted tokens. The loss of a skill
is one of two means of these numbers (`reduced`). `LossKind` records the mean, and the part of a text that is predicted. Losses of
different kinds are different quantities of the same model and must not be mixed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard.corpus.paths import MISSING, in_meta, single
from skillshard.corpus.template import Span, pairs_of
from skillshard.corpus.token_ids import NOT_LEARNED
from skillshard.errors import ObservationError, did_you_mean

Reduction = Literal["per_sample", "per_token"]
MeasuredOn = Literal["holdout", "training"]
"""The samples of a loss: held-out samples, or the batches of the training itself."""
IGNORE = NOT_LEARNED
"""The target of a position where nothing is predicted. PyTorch's cross entropy and the models of transformers ignore this value."""


class LossKind(BaseModel):
    """The way to measure losses. A graph, a run and its observations record the kind, so that only losses of one kind are compared.

    Attributes:
        reduction: "per_sample": the mean over samples of each sample's nats per predicted token, as in the authors' code.
            "per_token": all nats over all predicted tokens, so that a long sample weighs more.
        answer_after: Text before the answer. Only the text after its last occurrence is predicted. None: no mark.
        prompt_field: Metadata field that tells the prompt from the answers. The field holds the number of characters of the prompt, which
            is not predicted, or a list of spans [first character, character after the last one], which alone are predicted. Tagging writes
            the spans of answers to "answer_spans". Dots reach into nested fields. None: no field.

    Raises:
        ObservationError: An argument is unknown or out of range, or `answer_after` and `prompt_field` are both given.

    Example:
        >>> LossKind(answer_after="Output: ").sentence
        "the mean over samples of nats per token, of what follows the last 'Output: '"
        >>> LossKind() == LossKind(reduction="per_token")
        False
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reduction: Reduction = Field("per_sample", description="mean over samples of nats per token, or over all tokens")
    answer_after: str | None = Field(
        None, min_length=1, description="only what follows its last occurrence in a text is predicted"
    )
    prompt_field: str | None = Field(
        None,
        min_length=1,
        description="metadata field with the number of characters that are not predicted, or with the spans of the answers",
    )

    # Pydantic's error is translated here: its several lines and its link mean nothing to a user.
    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            name = ".".join(map(str, fault["loc"])) or "its fields"
            raise ObservationError(
                f"LossKind: {name}: {fault['msg']}, got {fault['input']!r}. Give reduction='per_sample' or 'per_token', and at most "
                "one of answer_after and prompt_field, each a text of at least one character."
            ) from error
        # Not a validator of pydantic, whose errors would not be errors of skillshard.
        if self.answer_after is not None and self.prompt_field is not None:
            raise ObservationError(
                f"answer_after={self.answer_after!r} and prompt_field={self.prompt_field!r} both say where the prompt ends: give one of the two."
            )

    @property
    def masks(self) -> bool:
        """Whether a part of each text, the prompt, is not predicted."""
        return self.answer_after is not None or self.prompt_field is not None

    @property
    def sentence(self) -> str:
        """Return the kind in words, for messages."""
        mean = {
            "per_sample": "the mean over samples of nats per token",
            "per_token": "nats per token over all tokens",
        }[self.reduction]
        return f"{mean}, of {self.mask_in_words}"

    @property
    def mask_in_words(self) -> str:
        """Return the predicted part of a text in words."""
        if self.answer_after is not None:
            return f"what follows the last {self.answer_after!r}"
        if self.prompt_field is not None:
            return f"the answers (metadata field {self.prompt_field!r})"
        return "whole texts"


@dataclass(frozen=True)
class Loss:
    """A skill's loss with its standard error. `float(loss)` is the mean, so that `mixer.report` takes a `Loss` for a number.

    Attributes:
        mean: Loss in nats per token, by the reduction of the `Losses` that the loss belongs to.
        standard_error: Standard error of the mean over samples of the skill, in nats per token. Infinite for a single sample.
        num_samples: Number of measured samples. 0: the loss of an earlier report.
        num_tokens: Number of predicted tokens.
    """

    mean: float
    standard_error: float
    num_samples: int
    num_tokens: int

    def __float__(self) -> float:
        return self.mean

    def kept(self) -> "Loss":
        """Return this loss as the loss of a later report that did not measure the skill: no sample, and an infinite standard error."""
        return Loss(self.mean, math.inf, 0, 0)


class Losses(dict[str, Loss]):
    """The loss of each skill, with the measured kind of loss and the measured samples. `mixer.report` compares both with the run.

    Example:
        >>> losses = Losses({"add": Loss(1.5, 0.1, 10, 40)}, kind=LossKind())
        >>> float(losses["add"]), losses.kind.reduction
        (1.5, 'per_sample')
    """

    def __init__(self, losses: Mapping[str, Loss], *, kind: LossKind, measured_on: MeasuredOn = "holdout") -> None:
        super().__init__(losses)
        self.kind, self.measured_on = kind, measured_on


def parse_reduction(word: str) -> Reduction:
    """Return the reduction that a word names.

    >>> parse_reduction("per_token")
    'per_token'
    """
    for reduction in get_args(Reduction):
        if reduction == word:
            return cast(Reduction, reduction)
    raise ObservationError(
        f"reduction {word!r}{did_you_mean(word, get_args(Reduction))}: give per_sample or per_token."
    )


def reduced(
    nats: Float[np.ndarray, " sample"], tokens: Float[np.ndarray, " sample"], reduction: Reduction
) -> tuple[float, float]:
    """Compute the loss of samples and its standard error over the samples, both in nats per token.

    Args:
        nats: Sum of nats over the predicted tokens of each sample.
        tokens: Number of predicted tokens of each sample. Each number for per_sample, and the sum for per_token, is above 0.
        reduction: Mean to compute.

    Returns:
        Mean and standard error. The error is infinite for a single sample.

    Example:
        >>> nats, tokens = np.array([2.0, 0.9]), np.array([1.0, 9.0])
        >>> [round(reduced(nats, tokens, word)[0], 3) for word in ("per_sample", "per_token")]
        [1.05, 0.29]

    Reference:
        The standard error of per_token is that of a ratio of sums: Cochran, Sampling Techniques, 1977, section 2.11.
    """
    num = len(nats)
    if reduction == "per_sample":
        each = nats / tokens
        return float(each.mean()), float(each.std(ddof=1) / math.sqrt(num)) if num > 1 else math.inf
    mean, total = float(nats.sum() / tokens.sum()), float(tokens.sum())
    # The residuals nats - mean x tokens, not the per-sample losses: numerator and denominator of the ratio both vary with the samples.
    spread = float(np.sum((nats - mean * tokens) ** 2))
    return mean, math.sqrt(spread * num / (num - 1)) / total if num > 1 else math.inf


def answer_spans(text: str, kind: LossKind, meta: Mapping[str, Any] | None = None) -> list[Span]:
    """Return the stretches of a text that are predicted, in characters. Without a mask, the stretch is the whole text.

    Args:
        text: Text of a sample.
        kind: Kind of loss, which determines the answers.
        meta: Metadata of the sample, for `prompt_field`.

    Returns:
        The first character of each stretch, and the character after the last one, in rising order. At least one stretch.

    Raises:
        ObservationError: The text has no prompt, no mark or no answer, or the metadata does not give the answers.

    Example:
        >>> answer_spans("1 = 1. 1+1 = 2", LossKind(answer_after="= "))
        [(13, 14)]
        >>> answer_spans("add 1+1: 2", LossKind(prompt_field="meta.prompt.chars"), {"prompt": {"chars": 9}})
        [(9, 10)]
        >>> answer_spans("1? 2. 3? 4.", LossKind(prompt_field="answer_spans"), {"answer_spans": [[3, 5], [9, 11]]})
        [(3, 5), (9, 11)]
    """
    if kind.answer_after is not None:
        if (fault := no_answer(text, kind.answer_after)) is not None:
            raise ObservationError(f"the text {text[:100]!r}: {fault}. Leave such texts out, or give another mark.")
        # The last occurrence: worked examples in a prompt have the mark too.
        return [(text.rindex(kind.answer_after) + len(kind.answer_after), len(text))]
    if kind.prompt_field is None:
        return [(0, len(text))]
    value = in_meta(dict(meta or {}), kind.prompt_field)
    spans = _spans_of(value, len(text))
    if spans is None:
        raise ObservationError(
            f"the text {text[:100]!r} of {len(text):,} characters: its metadata field {kind.prompt_field!r} is "
            f"{'missing' if value is MISSING else _short(value)}, expected the number of characters of the prompt, from 0 to {len(text) - 1:,}, or the "
            f"spans of the answers, such as [[{len(text) - 1:,}, {len(text):,}]], in rising order within the text. Name another field, or leave such "
            "samples out."
        )
    return spans


def _spans_of(value: Any, num_chars: int) -> list[Span] | None:
    """Return the answers by the value of a prompt field: a number of characters, or a list of spans. None: the value is neither."""
    if isinstance(value, list) and value and all(isinstance(span, list) for span in value):
        bounds = [bound for span in value for bound in span]
        are_pairs = all(len(span) == 2 and span[0] != span[1] for span in value)
        # In Python True is an integer, and a boolean is no number of characters.
        if not are_pairs or not all(type(bound) is int for bound in bounds) or bounds != sorted(bounds):
            return None
        return pairs_of(value) if bounds[0] >= 0 and bounds[-1] <= num_chars else None
    value = single(value)
    return [(value, num_chars)] if type(value) is int and 0 <= value < num_chars else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def no_answer(text: str, mark: str) -> str | None:
    """Return the reason why a text has no answer after a mark, as the middle of a sentence. None: the text has an answer.

    >>> no_answer("1+1", "=")
    "there is nothing behind '=', where the answer should be"
    """
    prompt, separator, answer = text.rpartition(mark)
    if separator and (prompt + separator).strip() and answer.strip():
        return None
    return f"there is nothing behind {mark!r}, where the answer should be"


def answer_tokens(offsets: Int[np.ndarray, "token 2"], spans: Sequence[Span]) -> Bool[np.ndarray, " token"]:
    """Mark the tokens of a text that reach into an answer. A token that reaches over the border of an answer is marked.

    Args:
        offsets: Characters of the text at which each token starts and ends. Both are 0 for special tokens, which stand for no character.
        spans: Answers (`answer_spans`). Special tokens before the text are marked if the first answer starts with the text. Special tokens
            behind the text, such as the end of a text, are marked if the last answer ends with the text: a model learns to end its answer.

    Example:
        >>> offsets = np.array([[0, 0], [0, 3], [3, 5], [5, 8]])
        >>> answer_tokens(offsets, [(4, 8)]).tolist(), answer_tokens(offsets, [(0, 8)]).tolist()
        ([False, False, True, True], [True, True, True, True])
        >>> answer_tokens(offsets, [(0, 2), (6, 8)]).tolist()
        [True, True, False, True]
        >>> answer_tokens(np.array([[0, 0], [0, 3], [3, 5], [0, 0]]), [(3, 5)]).tolist()
        [False, False, True, True]
    """
    bounds = np.array(spans, np.int64).reshape(-1, 2)
    ends = np.asarray(offsets)[:, 1]
    # A token without characters belongs to the character before it.
    starts = np.minimum(np.asarray(offsets)[:, 0], ends - 1)
    following = np.searchsorted(
        bounds[:, 1], starts, side="right"
    )  # the first answer that ends behind the token's start
    begins = np.append(bounds[:, 0], np.iinfo(np.int64).max)[following]
    special, numbers = ends == 0, np.arange(len(ends))
    after_text = special & (numbers > np.flatnonzero(~special)[-1:].sum()) & ~special.all()
    ends_with_text = bounds[-1, 1] >= ends.max(initial=0)
    return (begins < ends) | np.where(after_text, ends_with_text, special & (bounds[0, 0] == 0))


def predicted_tokens(offsets: Int[np.ndarray, "token 2"], spans: Sequence[Span]) -> Bool[np.ndarray, " token"]:
    """Mark the predicted tokens of a text that stands alone: `answer_tokens` without the first token, which nothing predicts.

    Example:
        >>> offsets = np.array([[0, 0], [0, 3], [3, 5]])
        >>> predicted_tokens(offsets, [(4, 5)]).tolist(), predicted_tokens(offsets, [(0, 5)]).tolist()
        ([False, False, True], [False, True, True])
    """
    # `[:1]`, which also works for a text without tokens.
    predicted = answer_tokens(offsets, spans)
    predicted[:1] = False
    return predicted
