"""The command of a user to a running run: other weights from the next undecided round on."""

import os
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from skillshard.errors import LedgerError, PolicyError, did_you_mean, name_some, with_suggestions
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.records import open_records
from skillshard.mixing.round_records import SteerRecord
from skillshard.mixing.steering import Steering, steer_name, steerings
from skillshard.mixing.weights_file import read_weights
from skillshard.policies import fixed

Action = Literal["weights", "freeze", "resume"]


def steer(
    ledger: str | os.PathLike[str],
    action: Action,
    *,
    why: str,
    weights: Mapping[str, float] | str | os.PathLike[str] | None = None,
) -> Steering:
    """Record that a run takes other weights from the next undecided round on.

    Args:
        ledger: Directory of the run's ledger. The run may be training.
        action: "weights": the given weights. "freeze": the weights of the last decided round. "resume": the policy decides again. The policy has
            observed all losses meanwhile.
        why: Reason, for readers of the record.
        weights: Skill -> weight in the run's unit, or a source of weights as for `read_weights`, for "weights". A skill without a weight is
            refused.

    Returns:
        The steering with its number.

    Raises:
        LedgerError: The ledger holds no run, no round has weights to freeze, or the run has a fixed end.
        PolicyError: The action is unknown, the weights do not name the skills of the run or are given for another action, or the reason is missing.
    """
    own = DirectoryLedger(ledger)
    records = open_records(own)
    run = records.run
    if action not in get_args(Action):
        raise PolicyError(
            f"action is {action!r}{did_you_mean(str(action), get_args(Action))}: give 'weights', 'freeze' or 'resume'."
        )
    if (weights is not None) != (action == "weights"):
        raise PolicyError(
            f"the action is {action!r}, and weights are {weights!r}: give weights for the action 'weights' alone."
        )
    if not isinstance(why, str) or not why.strip() or not why.isprintable():
        raise PolicyError("a steering needs a reason: give `why`, a text on one line without control characters.")
    if run.repeat == "stop":
        raise LedgerError(
            f"{own} ends before the first repeated sample (repeat='stop'), and the trainer may know the length of the stream, which other weights "
            "would change. Continue the run with other weights in a new ledger ('skillshard continue')."
        )
    num_rounds = records.rounds.num()
    if action == "freeze" and not num_rounds and not (run.continues and run.continues.weights_before):
        raise LedgerError(
            f"{own} has decided no round, so no weights can be frozen: give weights, or wait for the first round."
        )
    values = None
    if isinstance(weights, str | os.PathLike):
        weights = read_weights(weights, unit=run.unit)
    if weights is not None:
        _refuse_other_skills(own, weights, run.skills)
        values = fixed(weights).init(run.skills)["weights"]
    known = steerings(own, run)
    while True:
        record = SteerRecord(
            first_round=num_rounds,
            action=action,
            weights=values,
            why=why,
            previous=known[-1].record.checksum if known else run.checksum,
        )
        if own.put(steer_name(len(known)), record.to_bytes()):
            own.flush()
            return Steering(len(known), record)
        known = steerings(own, run)  # another steering was recorded meanwhile, and the later steering counts


def _refuse_other_skills(ledger: DirectoryLedger, weights: Mapping[str, float], skills: Sequence[str]) -> None:
    """Raise PolicyError if weights name other skills than the run. The skills of a run that trains cannot be chosen anew."""
    unknown = [name for name in weights if name not in skills]
    missing = [name for name in skills if name not in weights]
    if unknown:
        raise PolicyError(
            f"the weights name skills that the run of {ledger} does not have: {name_some(with_suggestions(unknown, skills))}. The run has the skills "
            f"{name_some(skills)}."
        )
    if missing:
        raise PolicyError(
            f"the weights lack {name_some(missing)}. Give each of the {len(skills):,} skills of the run of {ledger} a weight. 0 is a weight too."
        )
