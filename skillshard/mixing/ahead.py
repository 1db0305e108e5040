"""How far ahead of the decided rounds a reader may look. A look at a far draw must not decide the rounds before without their losses."""

from skillshard.errors import PolicyError
from skillshard.mixing.rounds import Rounds

DRAWS_AHEAD, ROUNDS_AHEAD = 1 << 16, 8
"""Largest distance between the newest decided round and a draw that is read, in draws and in rounds. The larger distance counts.

Loaders read ahead by workers x prefetched batches, which is less. To read a draw, the mixer decides all rounds up to the draw.
"""
LIVE_STEPS_AHEAD, LIVE_DRAWS_AHEAD = 64, 1 << 12
"""Largest distance for lag="live" and a policy that reads losses, in optimizer steps, or in draws if `step_draws` is unknown.

A round that is decided early is decided without the losses that are still to come. So a look at a far draw must not decide the rounds before.
Workers x prefetched batches are fewer steps.
"""
MOST_ROUNDS = 1 << 20
"""Maximal number of rounds that `Mixer.round` decides in a call. A mistyped number ends in an error and not in a loop of hours."""


def rounds_ahead(round_draws: int, *, is_live: bool, step_draws: int | None) -> int:
    """Return the largest distance of a look beyond the newest decided round, in rounds.

    Args:
        round_draws: Number of draws of a round.
        is_live: Whether the rounds take the newest losses at hand (lag="live"), of a policy that reads losses.
        step_draws: Number of draws of an optimizer step. None: unknown.

    >>> rounds_ahead(4096, is_live=False, step_draws=None), rounds_ahead(64, is_live=True, step_draws=32)
    (16, 32)
    """
    draws = DRAWS_AHEAD
    if is_live:
        draws = LIVE_DRAWS_AHEAD if step_draws is None else LIVE_STEPS_AHEAD * step_draws
    return max(ROUNDS_AHEAD, draws // round_draws)


def refuse_far(rounds: Rounds, number: int, most: int, place: str | None = None) -> None:
    """Refuse a round more than `most` rounds beyond the newest decided round.

    Args:
        rounds: Rounds of the run.
        number: Number of the round that is asked for.
        most: Largest distance in rounds.
        place: Subject of the sentence, such as the requested draw. None: the first draw of the round.

    Raises:
        PolicyError: The round lies too far ahead. No round is decided.
    """
    # Counting the rounds lists a folder. The rounds in memory spare the listing while a loader reads on.
    if rounds.records.rounds.newest_in_memory + most >= number:
        return
    num_rounds = rounds.records.rounds.num()
    newest = rounds.decided(num_rounds - 1) if num_rounds else None
    has_ended = newest is not None and newest.num_draws < rounds.run.round_draws
    if number >= num_rounds + most and not has_ended:
        draw_or_place = place or f"draw {rounds.run.first_draw_of(number):,}"
        newest_round = f"the newest decided round is {num_rounds - 1:,}" if num_rounds else "no round is decided yet"
        raise PolicyError(
            f"{draw_or_place} is in round {number:,}, and {newest_round}: a look so far "
            f"ahead would decide {number - num_rounds + 1:,} rounds. Read the stream in order, or decide the rounds by mixer.round(number)."
        )
