"""What the trainers' adapters refuse: settings that would stall a training, or lose or repeat samples in silence."""

import sys
from typing import Any

from torch.utils.data import BatchSampler, Dataset, Sampler, SequentialSampler

from skillshard.errors import PolicyError
from skillshard.mixing.mixer import Mixer

FRAMES_SEARCHED = 6
"""Callers looked at to find who asks for a length; type checkers may stand between."""


def refuse_samplers(dataset: Dataset[Any], instead: str) -> None:
    """Stop a shuffling or splitting sampler where it is made, which is where it asks for the length.

    Later it would only say that it cannot allocate a permutation of 2**62 numbers.
    """
    frame = sys._getframe(1)
    for _ in range(FRAMES_SEARCHED):
        asker = frame.f_locals.get("self")
        if isinstance(asker, (SequentialSampler, BatchSampler)):
            return
        if isinstance(asker, Sampler):
            raise PolicyError(
                f"{type(dataset).__name__} cannot be read through a {type(asker).__name__}: the stream is endless, shuffled already "
                f"and shared out over ranks. {instead}"
            )
        if frame.f_back is None:
            return
        frame = frame.f_back


def refuse_for_trainer(mixer: Mixer, trainer: str) -> None:
    """PolicyError for a strict mixer in a trainer that fetches a batch before the report that this batch waits for.

    And for a stream that ends, in a trainer that would begin it again as its next epoch.
    """
    if mixer.repeat != "epochs":
        raise PolicyError(
            f"Mixer(repeat={mixer.repeat!r}) may end the stream, but {trainer} trains for max_steps and would begin it again as its "
            "next epoch. Use repeat='epochs', or a loop of your own over skillshard.torch.MixedDataset."
        )
    if mixer.lag == 0 and mixer.policy.reads_losses:
        raise PolicyError(
            f"Mixer(lag=0) waits at each round's start for the losses at its end, but {trainer} reads a batch ahead of the step "
            "that would report them: training would stall. Use lag=1 (default) or 'live'."
        )


def refuse_rare_reports(mixer: Mixer, every_steps: int) -> None:
    """PolicyError if there would be rounds without a report, for which the loader would wait."""
    if mixer.step_draws is None or not mixer.policy.reads_losses or mixer.lag == "live":
        return
    between, most = every_steps * mixer.step_draws, mixer.round_draws // mixer.step_draws
    if every_steps < 1 or between > mixer.round_draws:
        advice = f"Give every_steps from 1 to {most}" if most else f"Give round_draws of at least {mixer.step_draws:,}"
        raise PolicyError(
            f"every_steps={every_steps} reports every {between:,} draws, and a round is {mixer.round_draws:,}: the loader would wait for "
            f"a report. {advice}."
        )
