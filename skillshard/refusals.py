"""What the trainers' adapters refuse: settings that would stall a training, or lose or repeat samples in silence."""

from math import ceil

from skillshard.errors import PolicyError
from skillshard.mixing.stream import Stream


def refuse_for_trainer(stream: Stream, trainer: str) -> None:
    """PolicyError for a strict mixer in a trainer that fetches a batch before the report that this batch waits for.

    And for a stream that ends, in a trainer that would begin it again as its next epoch.
    """
    if stream.repeat != "epochs":
        raise PolicyError(
            f"Mixer(repeat={stream.repeat!r}) may end the stream, but {trainer} trains for max_steps and would begin it again as its "
            f"next epoch. Use repeat='epochs', or a loop of your own over skillshard.torch.{stream.clock.words.dataset}."
        )
    if stream.lag == 0 and stream.reads_losses:
        raise PolicyError(
            f"Mixer(lag=0) waits at each round's start for the losses at its end, but {trainer} reads a batch ahead of the step "
            "that would report them: training would stall. Use lag=1 (default) or 'live'."
        )


def refuse_other_step(stream: Stream, *, batch_size: int, processes: int, accumulated: int) -> None:
    """PolicyError if an optimizer step takes more or less of the stream than its maker was told."""
    words, expected = stream.clock.words, batch_size * processes * accumulated
    argument = f"{words.maker}({words.step_argument}"
    if stream.clock.step_size != expected:
        raise PolicyError(
            f"{argument}={stream.clock.step_size}), but an optimizer step takes {batch_size} {words.items} x {processes} processes x "
            f"{accumulated} accumulated = {expected} {words.position}s: give {argument}={expected})."
        )


def refuse_rare_reports(stream: Stream, every_steps: int) -> None:
    """PolicyError if there would be rounds without a report, for which the loader would wait.

    Of blocks, rounds have different numbers: the first round is looked at, whose weights are known.
    """
    step_size = stream.clock.step_size
    if step_size is None or not stream.reads_losses or stream.lag == "live":
        return
    words, between, size = stream.clock.words, every_steps * step_size, stream.round_size
    if every_steps < 1 or between > size:
        most, least = int(size // step_size), ceil(step_size * stream.draws_per_position)
        advice = f"Give every_steps from 1 to {most}" if most else f"Give round_draws of at least {least:,}"
        raise PolicyError(
            f"every_steps={every_steps} reports every {between:,} {words.position}s, and {words.round} is {int(size):,}: the loader would "
            f"wait for a report. {advice}."
        )
