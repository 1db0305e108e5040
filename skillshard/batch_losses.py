"""Training losses per skill from the batches of the training, for reports without an evaluation.

The forward pass of a training step has already computed the logits of its batch. `BatchLosses` collects the loss of every sample of
the batches between two reports and returns the loss of each skill over the batches of all ranks. The formula is the formula of every other
measurement (`skillshard.loss.reduced`).

In the first epoch a batch holds samples that the model has not seen, so the training loss estimates the held-out loss of the model. Three
differences remain. The loss is a mean over the steps between two reports, so the loss belongs to an older model than the report's. Dropout
is active. From the second epoch on, the model has seen the samples.
"""

from skillshard.extras import needed

needed("torch", what="skillshard.batch_losses")  # before the imports that fail without the extra

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from skillshard.collective import gathered
from skillshard.errors import ObservationError, PolicyError, did_you_mean
from skillshard.loss import IGNORE, Loss, Losses, LossKind, reduced

MOST_LOGITS = 1 << 26
"""Number of logits that are converted to float32 at once, 256 MB. A whole batch of a large vocabulary would need gigabytes."""


def token_nats(
    logits: Float[Tensor, "sample token vocab"], labels: Int[Tensor, "sample token"]
) -> Float[Tensor, "sample predicted"]:
    """Compute the loss in nats of the labels 1, 2, ... of each sample: logits at position t predict the label at position t + 1.

    A label of -100 is not predicted and has a loss of 0. The arithmetic is in float32, because in half precision the sum over a long
    text overflows or loses its last digits.
    """
    rows = max(1, MOST_LOGITS // max(1, logits[:1].numel()))
    return torch.cat(
        [
            F.cross_entropy(part[:, :-1].float().transpose(1, 2), wanted[:, 1:], ignore_index=IGNORE, reduction="none")
            for part, wanted in zip(torch.split(logits, rows), torch.split(labels, rows), strict=True)
        ]
    )


@runtime_checkable
class Measured(Protocol):
    """The facts about a run that its training losses need. `Mixer` and `PackedTokens` have them."""

    @property
    def skills(self) -> tuple[str, ...]:
        """Training skills, in the order of the numbers of skills in a batch."""

    @property
    def loss(self) -> LossKind:
        """Kind of the losses."""


class BatchLosses:
    """The losses of the training batches since the last report.

    Every rank adds each of its batches, also the batches of accumulated gradients, and every rank takes the losses at the same steps. The
    collected numbers are three per sample. The numbers stay on the device of the batch until `take`, so that adding waits for no kernel.

    Args:
        stream: Mixer or packed tokens of the training, with `Mixer(measured_on="training")`. The stream gives the names of the skills and
            the kind of the losses.

    Example:
        losses = BatchLosses(mixer)
        for step, batch in enumerate(loader, start=1):
            skill = batch.pop("skill")
            output = model(**batch)
            losses.add(skill, batch["labels"], logits=output.logits)
            ...
            if step % 20 == 0:
                mixer.report(step, losses.take())
    """

    def __init__(self, stream: Measured) -> None:
        if not isinstance(stream, Measured):
            raise PolicyError(f"BatchLosses is of a stream, and not of {stream!r}: give a Mixer or PackedTokens.")
        self.skills, self.kind = tuple(stream.skills), stream.loss
        self._numbers = {name: number for number, name in enumerate(self.skills)}
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(
        self,
        skill: Any,
        labels: Tensor,
        *,
        logits: Tensor | None = None,
        token_losses: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> None:
        """Add a batch. Give either `logits` or `token_losses`.

        Args:
            skill: Skill of each sample, a name or an index into `stream.skills`; or the index for each token of packed blocks, below 0 for
                a filler.
            labels: Token ids of shape (sample, token), -100 where a token is not learned. Mask prompts in the labels as `Mixer(loss=...)`
                says.
            logits: Logits of shape (sample, token, vocab). The logits at position t predict the label at position t + 1, as in the models
                of transformers.
            token_losses: Loss of the labels in nats, of shape (sample, token): the loss at position t is the loss of the label at position t.
            segments: For packed blocks, a number for each token that differs between neighbouring samples of a block. None: a change of the
                skill separates the samples. The part of a sample in a block counts as a sample.

        Raises:
            ObservationError: A shape does not fit, or a skill is unknown.
        """
        if not isinstance(labels, Tensor) or labels.ndim != 2:
            raise ObservationError(
                f"labels of a batch are {_described(labels)}: give a tensor with the axes sample and token."
            )
        if (logits is None) == (token_losses is None):
            raise ObservationError("a batch has either logits or token_losses: give one of the two.")
        of_tokens = labels.shape
        with torch.no_grad():
            if logits is not None:
                if not isinstance(logits, Tensor) or logits.ndim != 3:
                    raise ObservationError(
                        f"logits of a batch are {_described(logits)}: give a tensor with the axes sample, token and vocab."
                    )
                _check_shape("logits", logits.shape[:2], labels.shape)
                nats, labels = token_nats(logits, labels), labels[:, 1:]
            else:
                nats = torch.as_tensor(token_losses)
                _check_shape("token_losses", nats.shape, labels.shape)
            learned = labels != IGNORE
            # In float32, because a GPU of Apple has no float64.
            nats = nats.float().masked_fill(~learned, 0)
            if isinstance(skill, Tensor) and skill.ndim == 2:
                _check_shape("skill", skill.shape, of_tokens)
                if segments is not None:
                    _check_shape("segments", segments.shape, of_tokens)
                self._add_blocks(skill[:, -labels.shape[1] :], nats, learned, segments)
            else:
                self.add_sums(skill, nats.sum(1), learned.sum(1))

    def add_sums(self, skill: Any, nats: Any, tokens: Any) -> None:
        """Add a batch by the summed loss (nats) and the number of predicted tokens of each sample, as `ModelLoss` gives the two.

        Raises:
            ObservationError: The three arguments have different lengths, or a skill is unknown.
        """
        numbers = self._numbers_of(skill)
        of_nats, of_tokens = torch.as_tensor(nats).detach(), torch.as_tensor(tokens).detach()
        _check_shape("nats", of_nats.shape, numbers.shape)
        _check_shape("tokens", of_tokens.shape, numbers.shape)
        self._parts.append((numbers, of_nats, of_tokens))

    def take(self) -> Losses:
        """Return the loss of each skill with a sample in the batches of any rank, and begin anew. Every rank must call this method.

        Raises:
            ObservationError: No batch has a predicted token, or the number of a skill is no index of a skill. A loss that is no finite number is no error
                here: `report` refuses the loss, or leaves it out (`Mixer(on_bad_loss="leave-out")`).
        """
        parts, self._parts = self._parts, []
        rows = np.concatenate([np.empty((0, 3)), *(np.stack([_array(column) for column in part], 1) for part in parts)])
        numbers, nats, tokens = gathered(rows[rows[:, 2] > 0]).T
        # After all ranks have sent their rows: a rank that raised before would leave the other ranks waiting.
        unknown = numbers[(numbers < 0) | (numbers >= len(self.skills))]
        if len(unknown):
            raise ObservationError(
                f"a batch since the last report has a sample of skill number {unknown[0]:.0f}, and the {len(self.skills)} skills of the stream have the numbers "
                f"0 to {len(self.skills) - 1}: give indices into stream.skills, or names."
            )
        losses = {}
        for number in np.unique(numbers).astype(int).tolist():
            own = numbers == number
            mean, error = reduced(nats[own], tokens[own], self.kind.reduction)
            losses[self.skills[number]] = Loss(mean, error, int(own.sum()), int(tokens[own].sum()))
        if not losses:
            raise ObservationError(
                "no training batch since the last report has a predicted token: add every batch, and take the losses after the first batch."
            )
        return Losses(losses, kind=self.kind, measured_on="training")

    def _add_blocks(self, skill: Tensor, nats: Tensor, learned: Tensor, segments: Tensor | None) -> None:
        """Add the parts of samples in packed blocks."""
        inside = skill if segments is None else segments[:, -skill.shape[1] :]
        begins = torch.ones_like(learned)
        begins[:, 1:] = (inside[:, 1:] != inside[:, :-1]) | (skill[:, 1:] != skill[:, :-1])
        part = begins.flatten().cumsum(0) - 1
        first = begins.flatten().nonzero().squeeze(1)
        sums = [
            torch.zeros(len(first), device=nats.device).scatter_add_(0, part, values.flatten().float())
            for values in (nats, learned)
        ]
        numbers = skill.flatten()[first]
        self._parts.append((numbers, sums[0], torch.where(numbers < 0, 0, sums[1])))

    def _numbers_of(self, skill: Any) -> Tensor:
        if isinstance(skill, (Tensor, np.ndarray)) and skill.ndim == 1:
            numbers = torch.as_tensor(skill)
            if not numbers.is_floating_point():
                return numbers
        if not isinstance(skill, Sequence):
            raise ObservationError(
                f"skills of a batch are {_described(skill)}: give the name of the skill of each sample, or an array of whole numbers."
            )
        unknown = [name for name in skill if name not in self._numbers]
        if unknown:
            raise ObservationError(
                f"a batch names the skill {unknown[0]!r}{did_you_mean(str(unknown[0]), self.skills)}, which is no skill of the stream."
            )
        return torch.tensor([self._numbers[name] for name in skill])


def losses_from_batch(
    stream: Measured,
    skill: Any,
    labels: Tensor,
    *,
    logits: Tensor | None = None,
    token_losses: Tensor | None = None,
    segments: Tensor | None = None,
) -> Losses:
    """Return the loss of each skill in one batch, over all ranks. `BatchLosses` collects several batches and describes the arguments.

    Raises:
        ObservationError: The same reasons as for `BatchLosses.add` and `BatchLosses.take`.
    """
    losses = BatchLosses(stream)
    losses.add(skill, labels, logits=logits, token_losses=token_losses, segments=segments)
    return losses.take()


def _check_shape(name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(shape) != tuple(expected):
        raise ObservationError(f"{name} of a batch has the shape {tuple(shape)}, and {tuple(expected)} was expected.")


def _described(value: Any) -> str:
    """Return the type of a value, with the shape and the type of the numbers of an array or a tensor."""
    if not isinstance(value, (Tensor, np.ndarray)):
        return f"of type {type(value).__name__}"
    return f"an array of {value.dtype} with the shape {tuple(value.shape)}"


def _array(values: Tensor) -> Float[np.ndarray, " sample"]:
    return values.detach().cpu().double().numpy()
