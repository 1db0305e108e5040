"""Turn loss trajectories into points for k-means. All functions are pure.

The losses of a sample become a point in one of two ways:

whole   Log losses of the unchanged text, side by side over checkpoints and trials. Samples of a skill are learnt at the same time.
        The weakness is luck: with few answers (a bit, a digit) a sample is often right under a wrong rule.
parts   Losses after the last step with one part of the text left out (see `skillshard.proxy.segments`), averaged over trials and
        sorted. Without a part that the answer needs, the model guesses. Without another part, the loss stays low. So samples that
        need equally many parts come together. Luck has little effect, because the model is not wrong but unsure. Earlier
        checkpoints do not help (docs/LOG.md), and each checkpoint would cost as many forward passes again.

Both kinds of points are standardised by the mean and the deviation of the fitting samples. Features without deviation are left out.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Measure = Literal["whole", "parts"]
LEAST_LOSS = 1e-4
"""Smallest loss in nats. A smaller loss consists of rounding errors, and its logarithm would be noise."""
# Features are logarithms or nats of the order of 1, so a smaller deviation is rounding.
_LEAST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Scale:
    """The mean and the deviation of features over the fitting samples, which standardise the features."""

    mean: Float[np.ndarray, " feature"]
    deviation: Float[np.ndarray, " feature"]

    def apply(self, features: Float[np.ndarray, "sample feature"]) -> Float[np.ndarray, "sample kept"]:
        """Subtract the mean, divide by the deviation, and leave features without deviation out. The result is float32."""
        varied = self.varied
        return ((features[:, varied] - self.mean[varied]) / self.deviation[varied]).astype(np.float32)

    @property
    def varied(self) -> Bool[np.ndarray, " feature"]:
        """Whether each feature has a deviation."""
        return self.deviation > _LEAST_DEVIATION


def scale_of(features: Float[np.ndarray, "sample feature"], *, measure: Measure) -> Scale:
    """Compute the scale of the fitting samples.

    For `whole` each feature has its own deviation. For `parts` all features have the same unit, and share a deviation.

    >>> scale = scale_of(np.array([[0.0, 1.0], [2.0, 1.0]]), measure="whole")
    >>> scale.apply(np.array([[1.0, 7.0], [3.0, 7.0]])).tolist()
    [[0.0], [2.0]]
    """
    deviation = features.std(axis=0)
    if measure == "parts":
        deviation = np.where(deviation > _LEAST_DEVIATION, features.std(), 0.0)
    return Scale(features.mean(axis=0), deviation)


def whole_features(losses: Float[np.ndarray, "trial checkpoint sample"]) -> Float[np.ndarray, "sample feature"]:
    """Put the log losses of trials and checkpoints side by side.

    >>> whole_features(np.array([[[1.0, np.e], [0.0, 1.0]]])).round(2).tolist()
    [[0.0, -9.21], [1.0, 0.0]]
    """
    logs = np.log(np.maximum(losses, LEAST_LOSS))
    return np.moveaxis(logs, 2, 0).reshape(losses.shape[2], -1)


def parts_features(
    losses: Float[np.ndarray, "trial sample part"], *, guess_loss: float
) -> Float[np.ndarray, "sample part"]:
    """Limit losses with one part left out to `guess_loss`, average over trials, and sort the parts of each sample.

    Args:
        losses: Losses in nats.
        guess_loss: Loss in nats of an answer that is guessed by frequency alone (see the function `guess_loss`). A model with a larger
            loss is wrong and not unsure, and the amount is luck.

    >>> parts_features(np.array([[[0.7, 3.0, 0.1]]]), guess_loss=0.7).round(2).tolist()
    [[0.1, 0.7, 0.7]]
    """
    # The parts are sorted, because only the number of needed parts counts. The order of the parts differs from text to text.
    return np.sort(np.minimum(losses, guess_loss).mean(axis=0), axis=1)


def guess_loss(answers: "np.ndarray") -> float:
    """Compute the entropy of answers in nats: the mean loss of a model that knows only the frequency of each answer.

    >>> round(guess_loss(np.array([0, 1, 1, 0])), 4)
    0.6931
    """
    _, counts = np.unique(answers, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
