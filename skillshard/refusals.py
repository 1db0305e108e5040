"""What the trainers' adapters refuse: settings that would stall a training, or lose or repeat samples in silence."""

from math import ceil
from typing import NamedTuple

from skillshard.errors import PolicyError
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens


class Counted(NamedTuple):
    """A trainer's stream: draws of a mixer, or blocks of a packed one, and the words for them."""

    mixer: Mixer
    dataset: str
    argument: str
    step: int | None
    taken: str
    unit: str


def _counted(mixer: Mixer | PackedTokens) -> Counted:
    if isinstance(mixer, PackedTokens):
        argument = "PackedTokens(step_blocks"
        return Counted(mixer.mixer, "PackedDataset", argument, mixer.step_blocks, "blocks", "blocks")
    return Counted(mixer, "MixedDataset", "Mixer(step_draws", mixer.step_draws, "samples", "draws")


def refuse_for_trainer(mixer: Mixer | PackedTokens, trainer: str) -> None:
    """PolicyError for a strict mixer in a trainer that fetches a batch before the report that this batch waits for.

    And for a stream that ends, in a trainer that would begin it again as its next epoch.
    """
    stream = _counted(mixer)
    if stream.mixer.repeat != "epochs":
        raise PolicyError(
            f"Mixer(repeat={stream.mixer.repeat!r}) may end the stream, but {trainer} trains for max_steps and would begin it again as its "
            f"next epoch. Use repeat='epochs', or a loop of your own over skillshard.torch.{stream.dataset}."
        )
    if stream.mixer.lag == 0 and stream.mixer.policy.reads_losses:
        raise PolicyError(
            f"Mixer(lag=0) waits at each round's start for the losses at its end, but {trainer} reads a batch ahead of the step "
            "that would report them: training would stall. Use lag=1 (default) or 'live'."
        )


def refuse_other_step(mixer: Mixer | PackedTokens, *, batch_size: int, processes: int, accumulated: int) -> None:
    """PolicyError if an optimizer step takes more or less of the stream than its maker was told."""
    stream, expected = _counted(mixer), batch_size * processes * accumulated
    if stream.step != expected:
        raise PolicyError(
            f"{stream.argument}={stream.step}), but an optimizer step takes {batch_size} {stream.taken} x {processes} processes x "
            f"{accumulated} accumulated = {expected} {stream.unit}: give {stream.argument}={expected})."
        )


def refuse_rare_reports(mixer: Mixer | PackedTokens, every_steps: int) -> None:
    """PolicyError if there would be rounds without a report, for which the loader would wait.

    Of blocks, rounds have different numbers: the first round is looked at, whose weights are known.
    """
    stream = _counted(mixer)
    if stream.step is None or not stream.mixer.policy.reads_losses or stream.mixer.lag == "live":
        return
    between, draws = every_steps * stream.step, stream.mixer.round_draws
    which, size, draws_of_step = "a round", float(draws), float(stream.step)
    if isinstance(mixer, PackedTokens):
        which, size = "the first round", max(1, mixer.first_round_tokens) / mixer.block_tokens
        draws_of_step *= mixer.block_tokens / mixer.mean_draw_tokens
    if every_steps < 1 or between > size:
        most, least = int(size // stream.step), ceil(draws_of_step)
        advice = f"Give every_steps from 1 to {most}" if most else f"Give round_draws of at least {least:,}"
        raise PolicyError(
            f"every_steps={every_steps} reports every {between:,} {stream.unit}, and {which} is {int(size):,}: the loader would wait for a "
            f"report. {advice}."
        )
