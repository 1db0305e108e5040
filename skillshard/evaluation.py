"""The loss of every skill on its held-out samples: what a trainer reports to the mixer.

It costs one forward pass over `max_samples` samples of each skill. Samples of like length share a batch, whatever their
skill, so that little is padded. Nothing is random: every rank measures the same samples, and so does every report.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.corpus import Sample
from skillshard.errors import ObservationError, did_you_mean, name_some

ModelLoss = Callable[[list[str]], tuple[Any, Any]]
"""Texts -> the summed loss (nats) and the number of predicted tokens of each: two tensors, arrays or lists."""


@dataclass(frozen=True)
class Loss:
    """A skill's loss; `float(loss)` is its mean, so that `mixer.report` takes it as it is.

    Attributes:
        mean: nats per token, over all tokens of the samples.
        standard_error: of the mean, nats per token, over samples of the skill (a ratio estimate: long samples weigh
            more); infinite for a single sample.
        num_samples: samples measured.
        num_tokens: tokens predicted.
    """

    mean: float
    standard_error: float
    num_samples: int
    num_tokens: int

    def __float__(self) -> float:
        return self.mean


def losses_per_skill(
    model_loss: ModelLoss,
    holdout: Mapping[str, Iterable[Sample]],
    *,
    max_samples: int,
    batch_size: int,
    skills: Sequence[str] | None = None,
) -> dict[str, Loss]:
    """The loss of each skill on its first `max_samples` held-out samples.

    Shards store samples in an order shuffled by hash, so the first ones are a random sample of the skill, and the same
    one everywhere and every time.

    Args:
        model_loss: texts -> (nats, tokens) of each text; see `skillshard.hf.causal_lm_loss` for one. Turning
            gradients off is its business.
        holdout: skill -> held-out samples: `shards.holdout`.
        max_samples: of each skill, at least 1.
        batch_size: texts per call, at least 1.
        skills: which to measure; None: all of `holdout`.

    Returns:
        Skill -> loss, in the order of `skills`.

    Raises:
        ObservationError: a skill has no held-out samples or no tokens, or a loss is not a finite number >= 0; names the skill.

    Example:
        >>> samples = {"add": [Sample("a", "1+1=2", {}), Sample("b", "2+2=4.", {})]}
        >>> bits = lambda texts: ([len(text) * math.log(2) for text in texts], [len(text) for text in texts])
        >>> losses_per_skill(bits, samples, max_samples=10, batch_size=2)["add"].num_tokens
        11
    """
    for name, value in {"max_samples": max_samples, "batch_size": batch_size}.items():
        if value < 1:
            raise ObservationError(f"{name} is {value}: give at least 1.")
    wanted = tuple(holdout if skills is None else skills)
    texts = [(skill, sample.text) for skill in wanted for sample in _first(holdout, skill, max_samples)]
    by_length = sorted(range(len(texts)), key=lambda at: len(texts[at][1]))
    nats, tokens = np.zeros(len(texts)), np.zeros(len(texts))
    for start in range(0, len(texts), batch_size):
        at = by_length[start : start + batch_size]
        nats[at], tokens[at] = _measured(model_loss([texts[number][1] for number in at]), len(at))
    owner = np.array([skill for skill, _ in texts])
    return {skill: _loss(skill, nats[owner == skill], tokens[owner == skill]) for skill in wanted}


def _first(holdout: Mapping[str, Iterable[Sample]], skill: str, max_samples: int) -> list[Sample]:
    found = list(islice(holdout.get(skill, ()), max_samples))
    if not found:
        raise ObservationError(
            f"skill {skill!r}{did_you_mean(skill, [name for name in holdout if name != skill])} has no held-out samples; there are "
            f"some of {name_some(holdout)}. Shard with a larger --holdout, or leave it out of the policy's evaluation skills."
        )
    return found


def _measured(measured: tuple[Any, Any], num: int) -> tuple[Float[np.ndarray, " sample"], Float[np.ndarray, " sample"]]:
    nats, tokens = (
        np.array(values.tolist() if hasattr(values, "tolist") else values, np.float64) for values in measured
    )
    if nats.shape != (num,) or tokens.shape != (num,):
        raise ObservationError(
            f"the model's loss gave nats of shape {nats.shape} and tokens of shape {tokens.shape} for {num} texts: give the sum of "
            f"nats and the number of predicted tokens of each text, both of shape ({num},)."
        )
    return nats, tokens


def _loss(skill: str, nats: Float[np.ndarray, " sample"], tokens: Float[np.ndarray, " sample"]) -> Loss:
    """Mean and standard error of a ratio of sums (Cochran, Sampling Techniques, 1977, section 2.11)."""
    bad = np.flatnonzero(~(np.isfinite(nats) & (nats >= 0) & np.isfinite(tokens) & (tokens >= 0)))
    if len(bad):
        at = int(bad[0])
        raise ObservationError(
            f"skill {skill!r}: held-out sample {at} has {nats[at]} nats over {tokens[at]} tokens; both must be finite and >= 0. "
            "A NaN or infinite loss usually means a diverged model, or an overflow in half precision."
        )
    num_samples, num_tokens = len(nats), int(tokens.sum())
    if num_tokens == 0:
        raise ObservationError(
            f"skill {skill!r}: its {num_samples} held-out samples have no token to predict: texts of a single token, or a tokenizer "
            "that gives none. Raise max_samples or max_tokens."
        )
    mean = float(nats.sum() / tokens.sum())
    spread = float(np.sum((nats - mean * tokens) ** 2))
    error = math.sqrt(spread * num_samples / (num_samples - 1)) / num_tokens if num_samples > 1 else math.inf
    return Loss(mean, error, num_samples, num_tokens)
