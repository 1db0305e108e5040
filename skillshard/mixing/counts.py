"""The arithmetic of a run: from weights to draws, and from a position in the stream to the draws of each skill.

All functions are pure functions of run.json and the rounds of a ledger.
"""

import operator
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from skillshard.mixing.order import ENDLESS, SCALE_BITS, draw_weights, fixed_point, limited_quotas, round_order
from skillshard.mixing.round_records import RoundRecord
from skillshard.mixing.run_records import RunRecord


def available_draws(
    repeat: str, num_samples: Int[np.ndarray, " skill"], drawn: Int[np.ndarray, " skill"]
) -> Int[np.ndarray, " skill"]:
    """Compute the number of draws that each skill may still give. With endless epochs the number is `ENDLESS`.

    >>> available_draws("cap:2", np.array([10, 3]), np.array([15, 6])).tolist()
    [5, 0]
    """
    # A run that continues another run under another rule may have passed the limit already.
    # With "stop" the counts are not limited either: the stream ends inside a round, before the first repeated sample.
    if repeat in ("epochs", "stop"):
        return np.full(len(num_samples), ENDLESS)
    most = 1 if repeat == "drop" else int(repeat.removeprefix("cap:"))
    return np.maximum(most * num_samples - drawn, 0)


def round_counts(
    run: RunRecord,
    weights: Float[np.ndarray, " skill"],
    carry: Int[np.ndarray, " skill"],
    drawn: Int[np.ndarray, " skill"],
) -> tuple[Int[np.ndarray, " skill"], Int[np.ndarray, " skill"]]:
    """Compute the draws of each skill in a round, and the new carry, from the policy's weights.

    Args:
        run: Run of the ledger.
        weights: Weights of the policy, in the run's unit.
        carry: Draws owed to each skill by earlier rounds, in units of 2**-40.
        drawn: Number of draws of each skill in all rounds before.
    """
    num_samples = np.array(run.num_samples)
    over_draws = weights if run.num_tokens is None else draw_weights(weights, num_samples, np.array(run.num_tokens))
    available = available_draws(run.repeat, num_samples, drawn)
    return limited_quotas(fixed_point(over_draws), carry, run.round_draws, available)


def drawn_at(run: RunRecord, record: RoundRecord, draw: int) -> list[int]:
    """Count the draws of each skill among the first `draw` draws of the stream. The last of these draws lies in this round or later."""
    seen, counts = min(draw - record.first_draw, record.num_draws), record.counts
    if seen < sum(counts):
        skill, _ = round_order(counts, seed=run.seed, number=record.round)
        counts = np.bincount(skill[:seen], minlength=len(counts)).tolist()
    return list(map(operator.add, record.drawn_before, counts))


def intended_at(run: RunRecord, record: RoundRecord, previous: RoundRecord | None, draw: int) -> list[float]:
    """Compute the draws of each skill that the weights ask for among the first `draw` draws of the stream.

    Args:
        run: Run of the ledger.
        record: Round of the last of these draws, or an earlier round.
        previous: Round before. None for round 0.
        draw: Number of draws.
    """
    # A run begins without debts, also if it continues another run.
    owed_before = np.zeros(len(run.skills)) if previous is None else np.array(previous.carry) / (1 << SCALE_BITS)
    owed = np.array(record.carry) / (1 << SCALE_BITS)
    due_in_round = np.array(record.counts) + owed - owed_before
    num_draws = min(draw - record.first_draw, record.num_draws)
    share_of_round = num_draws / max(1, sum(record.counts))  # below 1 where the stream ends or another run continues
    intended: list[float] = (np.array(record.drawn_before) + owed_before + due_in_round * share_of_round).tolist()
    return intended


def in_unit(run: RunRecord, drawn: Sequence[int]) -> Sequence[int]:
    """Convert draws of each skill to the unit of the run's weights: samples, or the average tokens of so many samples, rounded down.

    The number of tokens is exact over whole epochs, and an expectation within an epoch.
    """
    return in_unit_of(drawn, run.num_samples, run.num_tokens)


def in_unit_of(drawn: Sequence[int], num_samples: Sequence[int], num_tokens: Sequence[int] | None) -> Sequence[int]:
    """Convert draws of skills of these sizes as `in_unit` does. Without numbers of tokens the unit is samples."""
    # Integer arithmetic, so that the policy of every rank and every replay sees the same number.
    if num_tokens is None:
        return drawn
    sizes = zip(drawn, num_samples, num_tokens, strict=True)
    return [draws * tokens // samples for draws, samples, tokens in sizes]


def surplus_draws(runs: Sequence[RunRecord]) -> list[list[int]]:
    """Count the draws that positions count and that no run has made, for each run of a chain and each skill of the run.

    A position counts the draws of a skill as if the skill had always had its present samples (`SkillPosition.drawn`). A skill that grew between
    two runs has had fewer draws in its earlier epochs.

    Args:
        runs: Runs of a chain, the oldest first. Growth before the first of these runs is not known.
    """
    surplus: dict[str, int] = {}
    num_samples: dict[str, int] = {}
    counted: list[list[int]] = []
    before: RunRecord | None = None
    for run in runs:
        labels = list(run.skills)
        if run.continues is not None:
            labels = [place.label for place in run.continues.skills]
            for place in run.continues.skills:
                earlier = num_samples.get(place.label, place.num_samples)
                # A skill that begins again has no earlier epochs. An epoch of blocks has another number of draws for other reasons too.
                if place.epoch == 0 or run.blocks is not None or (before is not None and before.blocks is not None):
                    surplus[place.label] = 0
                else:
                    grown = place.epoch * (place.num_samples - earlier)
                    surplus[place.label] = surplus.get(place.label, 0) + grown
        num_samples.update(zip(labels, run.num_samples, strict=True))
        counted.append([surplus.get(label, 0) for label in labels])
        before = run
    return counted
