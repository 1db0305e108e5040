"""The decision of a round: a pure function of the run, the round before, and the observations that the round uses.

A mixer decides a round once. A replay decides the round again, by the same function, from the records of the ledger.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from skillshard.errors import PolicyError
from skillshard.mixing.counts import in_unit, round_counts
from skillshard.mixing.order import round_order
from skillshard.mixing.records import Records, counted_at
from skillshard.mixing.round_records import ObservationRecord, RoundRecord, SteeredRoundRecord
from skillshard.mixing.run_records import RunRecord
from skillshard.mixing.steering import Steering, weights_by_hand
from skillshard.policies.policy import NextRound, Observation, Policy, State
from skillshard.printable import shortened


def decide(
    records: Records,
    policy: Policy,
    number: int,
    previous: RoundRecord | None,
    *,
    first_state: State,
    horizon: int,
    observations: Sequence[ObservationRecord],
    newest: RoundRecord | None,
    steering: Steering | None = None,
) -> RoundRecord:
    """Compute a round.

    Args:
        records: Records of the run.
        policy: Policy that decides the weights.
        number: Number of the round.
        previous: Round before. None for round 0.
        first_state: State of the policy before round 0.
        horizon: Draw up to which the round uses observations. -1 for no observation.
        observations: Observations that the round uses for the first time.
        newest: Newest round of the ledger whose draws count as seen. The draws behind an observation are the draws of the ledger.
        steering: Steering that acts in the round. None if the run was never steered.

    Raises:
        PolicyError: The policy gave no weights.
    """
    # The policy's state, the carry and the drawn samples come from the record of the round before, not from this process.
    # So every process computes the same record, and a process that joins late needs no history.
    run = records.run
    state = first_state if previous is None else previous.policy_state
    num_observed = run.num_copied if previous is None else previous.num_observed
    for record in observations:
        if not record.left_out:
            state = policy.observe(state, counted_observation(records, record, newest))
    drawn = np.array(run.drawn_before)
    carry = np.zeros(len(run.skills), np.int64)
    if previous is None:
        last_observation = records.observations.existing(0).checksum if run.num_copied else None
    else:
        drawn = np.array(previous.drawn_before) + np.array(previous.counts)
        carry = np.array(previous.carry)
        last_observation = previous.last_observation
    by_hand = None if steering is None else weights_by_hand(run, steering.record, previous)
    if by_hand is None:
        weights = _weights(policy, run, state, next_round(run, number, drawn, previous))
    else:
        weights = np.array(by_hand)
    num_samples = np.array(run.num_samples)
    counts, carry = round_counts(run, weights, carry, drawn)
    fields: dict[str, Any] = {
        "round": number,
        "first_draw": run.first_draw_of(number),
        "weights": weights.tolist(),
        "num_draws": _num_draws(run, number, counts, num_samples - drawn),
        "counts": counts.tolist(),
        "epochs": ((drawn + counts) / num_samples).tolist(),
        "drawn_before": drawn.tolist(),
        "carry": carry.tolist(),
        "observed_to": horizon,
        "num_observed": num_observed + len(observations),
        "observations": [record.draw for record in observations],
        "last_observation": observations[-1].checksum if observations else last_observation,
        "policy_state": state,
        "previous": run.checksum if previous is None else previous.checksum,
    }
    if steering is None:
        return RoundRecord(**fields)
    return SteeredRoundRecord(**fields, steer=steering.number, steer_checksum=steering.record.checksum)


def next_round(
    run: RunRecord, number: int, drawn: Int[np.ndarray, " skill"], previous: RoundRecord | None
) -> NextRound:
    """Return the facts of a round that are known before its decision."""
    before = None if run.continues is None else run.continues.weights_before
    if previous is not None:
        before = previous.weights
    return NextRound(
        # The policy counts the rounds of all runs, because its state may hold numbers of earlier rounds.
        number=run.num_rounds_before + number,
        first_draw=run.first_draw_of(number),
        num_draws=run.round_draws,
        num_samples=tuple(run.num_tokens or run.num_samples),
        drawn=tuple(in_unit(run, drawn.tolist())),
        weights_before=None if before is None else tuple(before),
    )


def counted_observation(records: Records, record: ObservationRecord, newest: RoundRecord | None) -> Observation:
    """Complete an observation with the draws of each skill up to the observation and the round of its last draw.

    Only the draws of the rounds up to `newest` are counted.
    """
    losses = {name: loss for name, loss in record.losses.items() if loss is not None}
    drawn, number = counted_at(records, record.draw, newest)
    in_units = in_unit(records.run, drawn)
    return Observation(record.step, losses, record.draw, dict(zip(records.run.skills, in_units, strict=True)), number)


def needed_draw(run: RunRecord, number: int, *, initial: bool) -> int | None:
    """Return the draw whose losses a round needs in a run with a fixed lag. None for a round that is decided without losses.

    Args:
        run: Run of the ledger. Its lag is a number.
        number: Number of the round.
        initial: Whether the first losses are of the first draw.
    """
    assert run.lag != "live"
    if number < run.lag or (number == run.lag and not initial):
        return None
    return run.first_draw_of(number - run.lag)


def _weights(policy: Policy, run: RunRecord, state: State, upcoming: NextRound) -> Float[np.ndarray, " skill"]:
    raw_weights = np.asarray(policy.weights(state, upcoming))
    num_skills = len(run.skills)
    # The record holds the weights as float64, and every reader computes the counts from the record. So the first counts come from
    # float64 too: the arithmetic of float32 weights would give other counts, and readers would take the record for changed.
    weights = raw_weights.astype(np.float64) if raw_weights.dtype.kind in "fiub" else None
    if (
        weights is None
        or weights.shape != (num_skills,)
        or not (np.all(weights >= 0) and abs(float(weights.sum()) - 1) < 1e-6)
    ):
        raise PolicyError(
            f"policy {policy.name} gave {shortened(str(raw_weights.tolist()), 200)}: weights must be {num_skills} numbers >= 0 that sum to 1."
        )
    return weights


def _num_draws(
    run: RunRecord, number: int, counts: Int[np.ndarray, " skill"], unseen: Int[np.ndarray, " skill"]
) -> int:
    """Count the draws of the round. With repeat="stop" the round ends before the first draw that would repeat a sample."""
    if run.repeat != "stop" or np.all(counts <= unseen):
        return int(counts.sum())
    skill, slot = round_order(counts.tolist(), seed=run.seed, number=number)
    # Slots are numbered skill by skill, so the slot minus the first slot of the skill counts the skill's earlier draws.
    earlier = slot - (np.cumsum(counts) - counts)[skill]
    return int(np.argmax(earlier >= unseen[skill]))
