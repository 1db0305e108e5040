"""The faults of a record that its own checksum does not show: pure functions of the run, the record and the record before."""

import numpy as np

from skillshard.mixing.counts import round_counts
from skillshard.mixing.round_records import ObservationRecord, RoundRecord, SteeredRoundRecord
from skillshard.mixing.run_records import RunRecord


def round_fault(run: RunRecord, record: RoundRecord, number: int, before: RoundRecord | None) -> str | None:
    """Find the fault of a round. Return the rest of a sentence about the record, or None for a correct record.

    Args:
        run: Run of the ledger.
        record: Round that was read.
        number: Number in the record's name.
        before: Round before, or None for round 0.
    """
    # A checksum alone does not protect against a record that was edited with a new checksum. So the counts and the epochs are
    # computed again from the weights, which are the only free choice of a round.
    if record.round != number or record.first_draw != run.first_draw_of(number):
        return f"is round {record.round:,} from draw {record.first_draw:,} on, but its name says otherwise: it was changed."
    num_skills = len(run.skills)
    if len(record.weights) != num_skills:
        return f"has {len(record.weights):,} weights for {num_skills:,} skills: it was changed."
    if record.previous != (run.checksum if before is None else before.checksum):
        return "does not follow from the record before it: one of them was changed."
    drawn, carry, num_observed = np.array(run.drawn_before), np.zeros(num_skills, np.int64), run.num_copied
    if before is not None:
        drawn, carry = np.array(before.drawn_before) + np.array(before.counts), np.array(before.carry)
        num_observed = before.num_observed
    counts, new_carry = round_counts(run, np.array(record.weights), carry, drawn)
    if (counts.tolist(), new_carry.tolist(), drawn.tolist()) != (record.counts, record.carry, record.drawn_before):
        return "has counts that its weights do not give: it was changed."
    if record.epochs != ((drawn + counts) / np.array(run.num_samples)).tolist():
        return "has epochs that its counts do not give: it was changed."
    if run.repeat != "stop" and record.num_draws != sum(record.counts):
        return f"has {record.num_draws:,} draws and counts that sum to {sum(record.counts):,}: it was changed."
    if isinstance(before, SteeredRoundRecord) and (
        not isinstance(record, SteeredRoundRecord) or record.steer < before.steer
    ):
        return f"does not know steering {before.steer}, which acted in the round before it: it was changed."
    if record.num_observed != num_observed + len(record.observations) or (
        before is not None and record.observed_to < before.observed_to
    ):
        return "has a number of observations that does not follow from the round before it: it was changed."
    return None


def observation_fault(
    run: RunRecord, record: ObservationRecord, number: int, before: ObservationRecord | None
) -> str | None:
    """Find the fault of an observation. Return the rest of a sentence, or None, as `round_fault` does."""
    if record.previous != (run.checksum if before is None else before.checksum):
        return "does not follow from the record before it: one of them was changed."
    if before is not None and record.draw <= before.draw:
        return f"is of draw {record.draw:,}, which is not after draw {before.draw:,} of the record before it: it was changed."
    if record.loss != run.loss:
        return f"holds {record.loss.sentence}, and the run's losses are {run.loss.sentence}: it was changed."
    if record.measured_on != run.measured_on:
        return f"holds losses of {record.measured_on} samples, and the run's losses are of {run.measured_on} samples: it was changed."
    return None
