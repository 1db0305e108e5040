"""Loss trajectories as points that k-means can tell apart. Pure.

Two ways to make points of a sample's losses:

whole   log losses of the text as it is, side by side over checkpoints and trials. Samples of one skill are learnt at the same
        time. The weakness: where answers are few (a bit, a digit) a sample is often right by luck under a wrong rule, and
        luck differs from sample to sample.
parts   losses after the last step with one part of the text left out (see `skillshard.proxy.segments`), averaged over trials,
        sorted. A part that the answer needs leaves the model guessing, any other leaves the loss low; so samples that need
        equally much come together. Luck plays little part, for the model is not wrong but unsure. Earlier checkpoints add
        nothing (docs/LOG.md), and each would cost as many forward passes again.

Both are standardised by the fitting samples' mean and deviation, features of no deviation left out.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Measure = Literal["whole", "parts"]
LEAST_LOSS = 1e-4
"""Nats; below it a loss is rounding, and its logarithm noise."""


@dataclass(frozen=True)
class Scale:
    """What standardises features: their mean and deviation over the fitting samples."""

    mean: Float[np.ndarray, " feature"]
    deviation: Float[np.ndarray, " feature"]

    def apply(self, features: Float[np.ndarray, "sample feature"]) -> Float[np.ndarray, "sample kept"]:
        """Centred features over their deviation, as float32; those without deviation are left out."""
        varied = self.varied
        return ((features[:, varied] - self.mean[varied]) / self.deviation[varied]).astype(np.float32)

    @property
    def varied(self) -> Bool[np.ndarray, " feature"]:
        return self.deviation > 1e-6


def scale_of(features: Float[np.ndarray, "sample feature"], *, measure: Measure) -> Scale:
    """The scale of the fitting samples: of each feature for `whole`, one for all of them for `parts`, whose unit they share.

    >>> scale = scale_of(np.array([[0.0, 1.0], [2.0, 1.0]]), measure="whole")
    >>> scale.apply(np.array([[1.0, 7.0], [3.0, 7.0]])).tolist()
    [[0.0], [2.0]]
    """
    deviation = features.std(axis=0)
    if measure == "parts":
        deviation = np.where(deviation > 1e-6, features.std(), 0.0)
    return Scale(features.mean(axis=0), deviation)


def whole_features(losses: Float[np.ndarray, "trial checkpoint sample"]) -> Float[np.ndarray, "sample feature"]:
    """Log losses, side by side over trials and checkpoints.

    >>> whole_features(np.array([[[1.0, np.e], [0.0, 1.0]]])).round(2).tolist()
    [[0.0, -9.21], [1.0, 0.0]]
    """
    logs = np.log(np.maximum(losses, LEAST_LOSS))
    return np.moveaxis(logs, 2, 0).reshape(losses.shape[2], -1)


def parts_features(
    losses: Float[np.ndarray, "trial sample part"], *, guess_loss: float
) -> Float[np.ndarray, "sample part"]:
    """Losses with one part left out, at most `guess_loss`, averaged over trials, sorted within the sample.

    Args:
        losses: nats.
        guess_loss: nats of an answer that is guessed by frequency alone, see `guess_loss`; above it a model is wrong, not
            unsure, and by how much is luck.

    >>> parts_features(np.array([[[0.7, 3.0, 0.1]]]), guess_loss=0.7).round(2).tolist()
    [[0.1, 0.7, 0.7]]
    """
    return np.sort(np.minimum(losses, guess_loss).mean(axis=0), axis=1)


def guess_loss(answers: "np.ndarray") -> float:
    """Entropy of answers, nats: the mean loss of who knows only how frequent each is.

    >>> round(guess_loss(np.array([0, 1, 1, 0])), 4)
    0.6931
    """
    _, counts = np.unique(answers, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
