"""Deciding rounds: from the observations of a ledger to the weights and counts of each stretch of the stream.

Whoever needs a round first decides it and puts it into the ledger; the first put wins, and everyone reads that one. A
round is a pure function of the run, the round before it and the observations, so all who decide it decide alike, but
with `lag="live"`, where the record says which observations were at hand.
"""

import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from skillshard.errors import LedgerError, PolicyError, RoundError
from skillshard.mixing.ledger import (
    Ledger,
    ObservationLog,
    ObservationRecord,
    RoundRecord,
    RunRecord,
    drawn_at,
    in_unit,
    open_run,
    read_record,
    rewind,
    round_counts,
    round_name,
    wait_for,
)
from skillshard.mixing.order import interleave
from skillshard.policies.policy import NextRound, Observation, Policy, State, check_losses, weights_of
from skillshard.storage import digest

ROUNDS_KEPT = 4
"""Rounds kept in memory; a reader moves from one to the next."""
MANY_EPOCHS = 4
"""Epochs of one skill after which a warning says so."""


class EndOfStream(RoundError):
    """A round beyond the stream's end was asked for."""


class Rounds:
    """The rounds of one run.

    Args:
        ledger: where they are kept; begun with `run`, or found to be of the same run.
        policy: decides the weights.
        run: what determines the stream beside the observations.
        wait_s: how long a round may wait for its losses, in seconds.

    Raises:
        PolicyError: the policy does not fit the skills.
        LedgerError: the ledger is of another run.
    """

    def __init__(self, ledger: Ledger, policy: Policy, run: RunRecord, *, wait_s: float) -> None:
        self.ledger, self.policy, self.run, self.wait_s = ledger, policy, run, wait_s
        self._initial_state = policy.init(tuple(run.skills), run.num_tokens or run.num_samples)
        self.digest = open_run(ledger, run)
        self._observations = ObservationLog(ledger)
        self._kept: dict[int, RoundRecord] = {}
        self._digest_of_last = (-1, "")
        self._warned: set[str] = set()
        self._reporter: tuple[int, int] | None = None

    def report(self, step: int, draw: int, losses: Mapping[str, Any]) -> None:
        """Record an observation; ObservationError as `Mixer.report`."""
        named = self.policy.eval_skills or tuple(self.run.skills)
        values = check_losses(losses, named, step=step, may_miss=self.policy.may_miss_losses)
        self._observations.put(ObservationRecord(step=step, draw=draw, losses=values))
        self._reporter = _here()

    def rewind(self, draw: int) -> str | None:
        """Set aside what the ledger learnt after a draw; where it is now, None if there was nothing."""
        aside = rewind(self.ledger, draw)
        self._observations = ObservationLog(self.ledger)  # another rank may have set aside what this one had read
        self._kept.clear()
        self._digest_of_last = (-1, "")
        return aside

    def round(self, number: int) -> RoundRecord:
        """A round of the ledger; decided now if nobody has yet.

        Raises:
            EndOfStream: the stream ends before it.
            RoundError: the losses that it needs did not come within `wait_s`.
            LedgerError: the ledger's rounds do not follow from one another.
        """
        first = number
        while (record := self._known(first)) is None and first:
            first -= 1
        for missing in range(first if record is None else first + 1, number + 1):
            if record is not None and record.num_draws < self.run.round_draws:
                raise EndOfStream(
                    f"the stream ends in round {record.round}, before round {number}: with repeat={self.run.repeat!r} no more "
                    "samples are left."
                )
            record = self._put(self._decide(missing, record))
        assert record is not None
        self._warn_of_repetition(record)
        return record

    def _known(self, number: int) -> RoundRecord | None:
        """A round that was decided; the last few are kept in memory, since a round never changes."""
        record = self._kept.get(number) or read_record(self.ledger, round_name(number), RoundRecord)
        if record is not None:
            self._keep(record)
        return record

    def _keep(self, record: RoundRecord) -> None:
        self._kept[record.round] = record
        if len(self._kept) > ROUNDS_KEPT:
            del self._kept[min(self._kept)]

    def _put(self, record: RoundRecord) -> RoundRecord:
        """Put a round, or read the one that another process put first."""
        data = record.to_bytes()
        if self.ledger.put(round_name(record.round), data):
            self._keep(record)
            self._digest_of_last = record.round, digest(data)
            return record
        known = self._known(record.round)
        if known is None:
            raise LedgerError(f"round {record.round} vanished from {self.ledger} after it was put.")
        return known

    # --- one round ---------------------------------------------------------------------------------------------------

    def _decide(self, number: int, previous: RoundRecord | None) -> RoundRecord:
        state = self._initial_state if previous is None else previous.policy_state
        observed_to = -1 if previous is None else previous.observed_to
        horizon = max(observed_to, self._horizon(number))
        num_observed = 0 if previous is None else previous.num_observed
        observations = self._observations.read(num_observed, horizon) if self.policy.reads_losses else []
        for observation in observations:
            state = self.policy.observe(state, self._counted(observation, previous))
        drawn = np.zeros(len(self.run.skills), np.int64)
        carry = np.zeros(len(self.run.skills), np.int64)
        if previous is not None:
            drawn = np.array(previous.drawn_before) + np.array(previous.counts)
            carry = np.array(previous.carry)
        weights = self._weights(state, self._upcoming(number, drawn, previous))
        num_samples = np.array(self.run.num_samples)
        counts, carry = round_counts(self.run, weights, carry, drawn)
        epochs = (drawn + counts) / num_samples
        return RoundRecord(
            round=number,
            first_draw=number * self.run.round_draws,
            weights=weights.tolist(),
            num_draws=self._num_draws(number, counts, num_samples - drawn),
            counts=counts.tolist(),
            epochs=epochs.tolist(),
            drawn_before=drawn.tolist(),
            carry=carry.tolist(),
            observed_to=horizon,
            num_observed=num_observed + len(observations),
            observations=[observation.draw for observation in observations],
            policy_state=state,
            previous=self._digest_of(previous),
        )

    def _digest_of(self, previous: RoundRecord | None) -> str:
        """What a round says of the one before it."""
        if previous is None:
            return self.digest
        number, known = self._digest_of_last
        return known if number == previous.round else digest(previous.to_bytes())

    def _upcoming(self, number: int, drawn: Int[np.ndarray, " skill"], previous: RoundRecord | None) -> NextRound:
        return NextRound(
            number=number,
            first_draw=number * self.run.round_draws,
            num_draws=self.run.round_draws,
            num_samples=tuple(self.run.num_tokens or self.run.num_samples),
            drawn=tuple(in_unit(self.run, drawn.tolist())),
            weights_before=None if previous is None else tuple(previous.weights),
        )

    def _counted(self, observation: Observation, previous: RoundRecord | None) -> Observation:
        """With what was drawn of each skill up to it, and the round of its last draw; those of decided rounds count."""
        number = -1 if previous is None else min((observation.draw - 1) // self.run.round_draws, previous.round)
        if number < 0:
            return replace(observation, drawn=dict.fromkeys(self.run.skills, 0))
        record = self._known(number)
        assert record is not None
        drawn = in_unit(self.run, drawn_at(self.run, record, observation.draw))
        return replace(observation, drawn=dict(zip(self.run.skills, drawn, strict=True)), round=number)

    def _weights(self, state: State, upcoming: NextRound) -> Float[np.ndarray, " skill"]:
        weights = weights_of(self.policy, state, upcoming)
        num_skills = len(self.run.skills)
        if weights.shape != (num_skills,) or not (np.all(weights >= 0) and abs(float(weights.sum()) - 1) < 1e-6):
            raise PolicyError(
                f"policy {self.policy.name} gave {weights.tolist()}: weights must be {num_skills} numbers >= 0 that sum to 1."
            )
        return weights

    def _num_draws(self, number: int, counts: Int[np.ndarray, " skill"], unseen: Int[np.ndarray, " skill"]) -> int:
        """How many draws the round gives: with "stop", those before the first that would repeat a sample."""
        if self.run.repeat != "stop" or np.all(counts <= unseen):
            return int(counts.sum())
        skill, slot = interleave(counts, "round", self.run.seed, number)
        earlier = slot - (np.cumsum(counts) - counts)[skill]
        return int(np.argmax(earlier >= unseen[skill]))

    def _horizon(self, number: int) -> int:
        """The draw up to which round `number` uses observations; waits until they must all be there."""
        if not self.policy.reads_losses:
            return -1
        lag = self.run.lag
        if lag == "live":
            return self._observations.last_draw()
        if number <= lag:
            return -1
        needed = (number - lag) * self.run.round_draws
        would_wait_for_itself = self._reporter == _here()
        if not wait_for(lambda: self._observations.reaches(needed), 0.0 if would_wait_for_itself else self.wait_s):
            raise RoundError(self._stall(number, needed, would_wait_for_itself))
        return needed

    def _stall(self, number: int, needed: int, would_wait_for_itself: bool) -> str:
        last, round_draws = self._observations.last_draw(), self.run.round_draws
        seen = f"the last observation is of draw {last:,}" if last >= 0 else "nothing was reported yet"
        hint = (
            " With lag=1 the loader would not wait here."
            if self.run.lag == 0 and max(last, 0) >= needed - round_draws
            else " A loader that reads far ahead needs a larger lag."
        )
        if would_wait_for_itself:
            return (
                f"round {number} needs losses at draw {needed:,} or later; {seen}, and the thread that reports is the one that asks for "
                f"this round, so it would wait for itself. Report at least once per round of {round_draws:,} draws, before "
                f"drawing on.{hint}"
            )
        return (
            f"waited {self.wait_s:g} s for round {number}; {seen} and round {number} needs one at {needed:,} or later. Is the trainer "
            f"still calling report() once per round?{hint}"
        )

    def _warn_of_repetition(self, record: RoundRecord) -> None:
        for skill, epochs in zip(self.run.skills, record.epochs, strict=True):
            if epochs > MANY_EPOCHS and skill not in self._warned:
                self._warned.add(skill)
                warnings.warn(
                    f"skill {skill!r} passes {MANY_EPOCHS} epochs in round {record.round}: repeated so often, data is worth much "
                    "less. Lower its weight, or give Mixer(..., repeat='cap:4').",
                    stacklevel=5,
                )


def _here() -> tuple[int, int]:
    """This process and thread."""
    return os.getpid(), threading.get_ident()
