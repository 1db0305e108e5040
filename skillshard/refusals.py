"""Refusals of the adapters for trainers: a refused setting would stall a training, or lose or repeat samples in silence."""

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

from skillshard.errors import PolicyError
from skillshard.mixing.stream import Stream


def refuse_for_trainer(stream: Stream, trainer: str) -> None:
    """Refuse a stream that does not fit a trainer, because the trainer reads ahead and restarts finished data.

    Raises:
        PolicyError: With lag=0, an early fetched batch would wait for the report of a later step. A finite stream would be
            restarted as the next epoch.
    """
    # Both are refused before training begins: afterwards they would show as a stall or as repeated samples.
    if stream.repeat != "epochs":
        raise PolicyError(
            f"Mixer(repeat={stream.repeat!r}) may end the stream, but {trainer} trains for max_steps and would begin it again as its "
            f"next epoch. Use repeat='epochs', or a loop of your own over skillshard.torch.{stream.clock.words.dataset}."
        )
    refuse_waiting(stream, trainer)


def refuse_other_measurement(stream: Stream, losses: Callable[[Any], Mapping[str, Any]] | None) -> None:
    """Refuse a callback that measures other samples than the samples of the run's losses.

    Raises:
        PolicyError: A run with training losses has a function that measures, or a run with held-out losses has none.
    """
    if stream.measured_on == "training" and losses is not None:
        raise PolicyError(
            "Mixer(measured_on='training') takes the losses from the batches of the training: leave losses out of MixerCallback, or give "
            "Mixer(measured_on='holdout')."
        )
    if stream.measured_on == "holdout" and losses is None:
        raise PolicyError(
            "MixerCallback has no losses: give a function that measures held-out samples (skillshard.losses_per_skill), or take the losses from "
            "the batches of the training with Mixer(measured_on='training')."
        )


def refuse_waiting(stream: Stream, reader: str) -> None:
    """Refuse a stream with lag=0 for a reader that reads ahead.

    Raises:
        PolicyError: The first sample of a round would wait for a report that the trainer makes only after the sample arrived.
    """
    if stream.lag == 0 and stream.reads_losses:
        raise PolicyError(
            f"Mixer(lag=0) waits at each round's start for the losses at its end, but {reader} reads a batch ahead of the step "
            "that would report them: training would stall. Use lag=1 (default) or 'live'."
        )


def refuse_other_step(stream: Stream, *, batch_size: int, processes: int, accumulated: int) -> None:
    """Refuse a stream whose step size is not the number of draws (blocks) of an optimizer step.

    Args:
        stream: Mixer or packed tokens.
        batch_size: Number of samples (blocks) of a batch of one process.
        processes: Number of processes.
        accumulated: Number of batches of a process per optimizer step.

    Raises:
        PolicyError: The step size differs, and the steps of reports would be translated to wrong draws.
    """
    words, expected = stream.clock.words, batch_size * processes * accumulated
    argument = f"{words.maker}({words.step_argument}"
    if stream.clock.step_size != expected:
        raise PolicyError(
            f"{argument}={stream.clock.step_size}), but an optimizer step takes {batch_size} {words.items} x {processes} processes x "
            f"{accumulated} accumulated = {expected} {words.position}s: give {argument}={expected})."
        )


def refuse_rare_reports(stream: Stream, every_steps: int) -> None:
    """Refuse rare reports. In a round without a report the loader would wait for ever.

    Rounds of a packed stream have different numbers of blocks. The check uses the first round, because its weights are known.

    Raises:
        PolicyError: `every_steps` is too large for the rounds, or below 1.
    """
    if every_steps < 1:
        raise PolicyError(
            f"every_steps={every_steps}: give the number of steps from one report to the next, at least 1."
        )
    step_size = stream.clock.step_size
    # A live round takes the observations at hand and waits for none.
    if step_size is None or not stream.reads_losses or stream.lag == "live":
        return
    words, between, size = stream.clock.words, every_steps * step_size, stream.round_size
    if between > size:
        most, least = int(size // step_size), ceil(step_size * stream.draws_per_position)
        advice = f"Give every_steps from 1 to {most}" if most else f"Give round_draws of at least {least:,}"
        raise PolicyError(
            f"every_steps={every_steps} reports every {between:,} {words.position}s, and {words.round} is {int(size):,}: the loader would "
            f"wait for a report. {advice}."
        )
