"""Decisions of rounds: from the observations of a ledger to the weights and counts of each round of the stream.

The first process that needs a round decides the round and puts the record into the ledger. The first put wins, and every process
reads this record. A round is a pure function of the run, the round before and the observations, so all processes decide the same
round. The exception is `lag="live"`, where the record names the observations that were present.
"""

import math
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from skillshard import artefact
from skillshard.errors import LedgerError, ObservationError, RepetitionWarning, RoundError, name_some
from skillshard.loss import Loss, LossKind, MeasuredOn
from skillshard.mixing.alarms import MANY_EPOCHS, log_wait
from skillshard.mixing.decision import decide, needed_draw
from skillshard.mixing.first_record import open_run
from skillshard.mixing.interpreter_end import interpreter_ends
from skillshard.mixing.ledger import (
    REMEDY,
    Ledger,
    folder_of,
    generation_name,
    numbers_in,
)
from skillshard.mixing.records import DECIDED_WITH_ANOTHER, Records, records_to_resume
from skillshard.mixing.round_records import ObservationRecord, RoundRecord, WaitRecord
from skillshard.mixing.run_records import RunRecord
from skillshard.mixing.steering import acting
from skillshard.mixing.waiting import parent_is_gone, process_and_thread, wait_for
from skillshard.number_checks import is_whole
from skillshard.policies.policy import Policy, Probing, check_losses, overflows
from skillshard.printable import counted

ON_BAD_LOSS = ("stop", "leave-out")
LONG_WAIT = 0.5
"""Share of the maximal waiting time after which a wait for losses is an alarm."""


class EndOfStream(RoundError):
    """The requested round lies beyond the end of the stream."""


class Rounds:
    """The rounds of a run, as seen by the generation of this process.

    Args:
        ledger: Ledger of the run. An empty ledger begins with `run`, and another ledger must hold an equal run.
        policy: Policy that decides the weights.
        run: Facts that determine the stream together with the observations.
        wait_s: Maximal waiting time of a round for its losses, in seconds.
        job: Name of the job of this rank. None: a single process.
        on_bad_loss: Effect of a report with a NaN or an infinite loss, "stop" or "leave-out".
        held_out: Evaluation skills with held-out samples elsewhere. None: the skills of the run.

    Raises:
        PolicyError: The policy does not fit the skills.
        LedgerError: The ledger belongs to another run.
    """

    def __init__(
        self,
        ledger: Ledger,
        policy: Policy,
        run: RunRecord,
        *,
        wait_s: float,
        job: str | None = None,
        on_bad_loss: str = "stop",
        held_out: Collection[str] | None = None,
    ) -> None:
        self.ledger, self.policy, self.wait_s = ledger, policy, wait_s
        self.job, self.on_bad_loss = job, on_bad_loss
        measured = run.skills if held_out is None or policy.reads_losses else held_out
        self.eval_skills = policy.eval_skills or tuple(measured)
        initial_state = policy.init(tuple(run.skills), run.num_tokens or run.num_samples)
        self._initial_state = run.continues.policy_state if run.continues else initial_state
        self.run, self.began = open_run(ledger, run)
        run = self.run
        self.records = Records(ledger, run)
        self._num_observations: int | None = None
        self._checked = False
        self._warned: set[str] = set()
        self._reporter: tuple[int, int] | None = None
        self._parent = (0, 0)
        self.follows = False
        """Whether this process is a rank that leaves the reports to another rank."""

    @property
    def digest(self) -> str:
        """Checksum of run.json."""
        return self.run.checksum

    # --- generations -------------------------------------------------------------------------------------------------

    def resume(self, draw: int, generation: int | None, *, anew: bool = False) -> str | None:
        """Continue from a draw in a new generation, or join the generation that another rank has begun.

        Args:
            draw: Number of draws consumed.
            generation: Number of the generation to join. None: begin a generation, or join the generation of the same job.
            anew: Begin again at draw 0, without the losses that were reported at draw 0.

        Returns:
            The records that the new generation leaves behind, as a part of a sentence. None if no record is left behind.

        Raises:
            LedgerError: The generation does not exist or begins at another draw, or a record before the draw is damaged.
        """
        begun = self.look(draw, generation)
        if begun:
            return None
        before = self.records
        record = before.begin_next(draw, self.job, anew=anew)
        if not self.ledger.put(generation_name(record.generation), record.to_bytes()):
            # Another process was faster. If the other process is a rank of the same job, the second look joins its generation.
            return self.resume(draw, generation, anew=anew)
        # Synced before anything is written in the new generation. If a power failure lost this record and left later records,
        # the later records would stand in a generation whose predecessor is unknown.
        self.ledger.flush()
        self._see(Records(self.ledger, self.run, record.generation))
        return self._cut_off(before, record.num_rounds, record.num_observations)

    def look(self, draw: int, generation: int | None) -> bool:
        """Read through a generation, or through the newest generation. Return whether this process joins the generation.

        Raises:
            LedgerError: The generation is no number, does not exist, or begins at another draw.
        """
        if generation is not None and not is_whole(generation, 0):
            raise LedgerError(
                f"generation is {generation!r}: give the number of the generation that rank 0 began, or None."
            )
        records = (
            records_to_resume(self.ledger, self.run)
            if generation is None
            else Records(self.ledger, self.run, generation)
        )
        begun = records.begun
        joins = generation is not None or (self.job is not None and begun is not None and begun.job == self.job)
        if joins and (begun is None or begun.draw != draw):
            where = "the run's beginning" if begun is None else f"draw {begun.draw:,}"
            raise LedgerError(
                f"generation {records.generation} of {self.ledger} begins at {where}, and this process resumes at draw {draw:,}. All ranks "
                "resume from one checkpoint. A job that is started again takes another name: Mixer(job=...), such as the job's number and "
                "the number of its restart."
            )
        self._see(records)
        return joins

    def _see(self, records: Records) -> None:
        self.records = records
        self._num_observations = None
        self._checked = False

    def _cut_off(self, before: Records, num_rounds: int, num_observations: int) -> str | None:
        """Describe the losses and rounds that a new generation leaves behind, or return None. The result is a part of a sentence."""
        folder = f"generations/{before.generation:08d}"
        of_rounds, of_observations = (folder_of(before.generation, kind) for kind in ("rounds", "observations"))
        rounds = [number for number in numbers_in(self.ledger, of_rounds) if number >= num_rounds]
        reports = [number for number in numbers_in(self.ledger, of_observations) if number >= num_observations]
        if not reports and (self.run.lag != "live" or not rounds):
            return None  # a loader decided these rounds ahead, and without later losses they are decided again with equal content
        return f"later losses ({len(reports):,}) and rounds ({len(rounds):,}) are left behind in {self.ledger}/{folder}"

    # --- losses in ---------------------------------------------------------------------------------------------------

    def report(self, step: int, draw: int, losses: Mapping[str, Any], loss: LossKind, measured_on: MeasuredOn) -> None:
        """Record an observation. Raise ObservationError as in `Mixer.report`."""
        if loss != self.run.loss:
            raise ObservationError(
                f"losses at step {step} are {loss.sentence}, and this run's losses are {self.run.loss.sentence}: give Mixer(loss=...) and the losses "
                "the same reduction and the same masking."
            )
        if measured_on != self.run.measured_on:
            raise ObservationError(
                f"losses at step {step} are of {measured_on} samples, and this run's losses are of {self.run.measured_on} samples: give "
                f"Mixer(measured_on={measured_on!r}), or report losses of {self.run.measured_on} samples. Nothing was recorded."
            )
        if measured_on == "training":
            losses = self._with_losses_before(step, draw, losses)
        elif isinstance(self.policy, Probing):
            _refuse_kept(step, losses, self.policy.name)
        # All checks come before the put, because a put cannot be taken back.
        values, left_out = self._values(step, losses, self.eval_skills)
        self.records.refuse_superseded()
        self._refuse_far(step, draw)
        self._put_observation(step, draw, values, left_out, *_measurements(losses, values))
        # A wait for losses in the thread that reports would never end. `_horizon` uses the mark to fail at once.
        self._reporter = process_and_thread()

    def _values(
        self, step: int, losses: Mapping[str, Any], named: tuple[str, ...]
    ) -> tuple[Mapping[str, float | None], bool]:
        """Check the losses. Return the losses as numbers, and whether they are hidden from the policy."""
        may_overflow = self.on_bad_loss == "leave-out"
        may_miss = self.policy.may_miss_losses
        values = check_losses(losses, named, step=step, may_miss=may_miss, may_overflow=may_overflow)
        left_out = any(map(overflows, values.values()))
        return {name: None if overflows(value) else value for name, value in values.items()}, left_out

    def _with_losses_before(self, step: int, draw: int, losses: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the training losses of the evaluation skills. A skill without a sample keeps the loss of the observation before.

        The loss before comes from the ledger and not from memory, so that a resumed run reports the same losses.
        """
        unknown = {name: loss for name, loss in losses.items() if name not in self.run.skills}
        own = {name: losses[name] for name in self.eval_skills if name in losses} | unknown
        missing = [name for name in self.eval_skills if name not in own]
        if not missing or self.policy.may_miss_losses:
            return own
        number = self._newest_number()
        while number >= 0 and self._observation(number).draw >= draw:
            number -= 1
        before = self._observation(number).losses if number >= 0 else {}
        unseen = [name for name in missing if before.get(name) is None]
        if unseen:
            raise ObservationError(
                f"training losses at step {step}: no batch had a sample of {name_some(map(repr, unseen))} since the last report, and no "
                f"earlier report has a loss. Policy {self.run.policy} needs the loss of every skill: raise the weight with "
                "policies.floor(...), report less often, or use a policy that may miss losses (odm, exp3, ado). Nothing was recorded."
            )
        return own | {name: Loss(float(before[name] or 0.0), math.inf, 0, 0) for name in missing}

    def _refuse_far(self, step: int, draw: int) -> None:
        """Raise ObservationError for a draw that no model can have seen yet."""
        round_draws = self.run.round_draws
        if draw < self.run.first_draw:
            raise ObservationError(
                f"losses of step {step} are of draw {draw:,}, and this run continues another run from draw {self.run.first_draw:,}. `step` counts the "
                "optimizer steps of all runs, and step_draws the samples of one step: check both. Nothing was recorded."
            )
        if draw <= self.run.first_draw_of(self.records.rounds.newest_in_memory + 2):
            return
        num_rounds = self.records.rounds.num()  # other processes may have decided rounds that this process has not read
        if draw > self.run.first_draw_of(num_rounds + 1):
            raise ObservationError(
                f"losses of step {step} are of draw {draw:,}, but the stream has been decided up to draw {self.run.first_draw_of(num_rounds):,} only, so "
                f"no model can have seen more than a round of {round_draws:,} draws beyond it. `step` counts optimizer steps, and step_draws the "
                "samples of one step: check both. Nothing was recorded."
            )

    def _put_observation(
        self,
        step: int,
        draw: int,
        losses: Mapping[str, float | None],
        left_out: bool,
        num_samples: dict[str, int] | None,
        standard_errors: dict[str, float | None] | None,
    ) -> None:
        # Two reporters may race for a number. The put of the slower reporter fails, and the loop compares its draw with the
        # observation of the faster reporter. So the draws of the observations rise without a lock.
        while True:
            number = self._newest_number() + 1
            last = self._observation(number - 1) if number else None
            if last is not None and draw <= last.draw:
                self._refuse_earlier(step, draw, losses)
                return
            if last is None and self.run.initial_losses and draw > self.run.first_draw:
                # A round that waits for draw 0 would accept a later report in its place, in silence.
                raise ObservationError(
                    f"the first losses of this run are of step {step} (draw {draw:,}), but policy {self.run.policy} begins with the losses of the "
                    f"model before the first step. Evaluate the model before the first step and {self._first_report()}, or give "
                    "Mixer(initial_losses=False)."
                )
            record = ObservationRecord(
                step=step,
                draw=draw,
                losses=dict(losses),
                loss=self.run.loss,
                measured_on=self.run.measured_on,
                num_samples=num_samples,
                standard_errors=standard_errors,
                left_out=left_out,
                previous=self.run.checksum if last is None else last.checksum,
            )
            if self.ledger.put(self.records.observations.name(number), record.to_bytes()):
                self.records.observations.keep(number, record)
                self._num_observations = number + 1
                return

    def _refuse_earlier(self, step: int, draw: int, losses: Mapping[str, float | None]) -> None:
        """Raise ObservationError unless the ledger holds the same losses at this draw."""
        record = self._observation_at(draw)
        if record is None:
            raise ObservationError(
                f"losses of step {step} (draw {draw:,}) come too late: {self.ledger} already holds losses of draw "
                f"{self.last_draw():,}. Report in the order of steps. A run that continues from a checkpoint calls "
                "mixer.load_state_dict() first, and a run that starts again from its beginning calls mixer.restart()."
            )
        changed = artefact.differences(
            {"step": record.step, "losses": record.losses}, {"step": step, "losses": dict(losses)}
        )
        if changed:
            begun = self.records.begun
            where = f"{self.ledger} already holds other losses for step {record.step}, draw {record.draw:,}: {'; '.join(changed[:3])}. "
            if draw == (self.run.copied_draw if begun is None else begun.draw):
                raise ObservationError(
                    f"{where}The run goes on from this draw, and its losses were measured before. Report again after the next steps, and not at the "
                    f"checkpoint.{self._other_job()}"
                )
            raise ObservationError(
                f"{where}A run that continues from a checkpoint calls mixer.load_state_dict(), a run that starts again from its beginning calls "
                f"mixer.restart(), and a new run needs a new ledger directory.{self._other_job()}"
            )

    def _other_job(self) -> str:
        """Return the advice for a job that was started again under its old name: the job has joined the generation of the dead job."""
        if self.job is None:
            return ""
        return f" If job {self.job!r} was started again, give it another name: Mixer(job=...), such as the job's number and the number of its restart."

    @property
    def has_reported(self) -> bool:
        """Whether this process has reported losses."""
        return self._reporter is not None and self._reporter[0] == os.getpid()

    def step_reported_at(self, draw: int) -> int | None:
        """Return the step of the newest observation if the observation is of this draw, else None."""
        number = self._newest_number()
        newest = self._observation(number) if number >= 0 else None
        return newest.step if newest is not None and newest.draw == draw else None

    # --- observations of this generation -----------------------------------------------------------------------------

    def _newest_number(self) -> int:
        """Return the number of the newest observation, or -1 without observations."""
        # The folder is listed once. From then on a read of the next name tells whether another process has reported, because
        # the numbers have no gaps.
        # Several threads of a reader may look at once. Each thread counts in a variable of its own: of two threads that both counted
        # up the shared number for one observation, the second would count an observation that does not exist.
        records = self.records
        number = self._num_observations
        if number is None:
            number = records.observations.num()
        while records.observations.get(number) is not None:
            number += 1
        if records is self.records:  # another thread may have resumed the run
            self._num_observations = number
        return number - 1

    def _observation(self, number: int) -> ObservationRecord:
        record = self.records.observations.get(number)
        if record is None:
            raise self.records.observations.missing(number)
        return record

    def last_draw(self) -> int:
        """Return the draw of the newest observation, or -1 without observations."""
        number = self._newest_number()
        return self._observation(number).draw if number >= 0 else -1

    def _reaches(self, draw: int) -> bool:
        """Return whether an observation of this draw or a later draw exists. A known observation spares the look into the ledger."""
        known = self._num_observations
        return bool(known and self._observation(known - 1).draw >= draw) or self.last_draw() >= draw

    def _observation_at(self, draw: int) -> ObservationRecord | None:
        low, high = 0, self._newest_number()
        while low <= high:
            middle = (low + high) // 2
            record = self._observation(middle)
            if record.draw == draw:
                return record
            low, high = (middle + 1, high) if record.draw < draw else (low, middle - 1)
        return None

    def num_observed(self, draw: int) -> tuple[int, str | None]:
        """Count the observations up to a draw. Return the number and the checksum of the last observation counted."""
        # From the newest observation backwards, because a state is usually saved near the newest observation.
        number = self._newest_number()
        while number >= 0 and self._observation(number).draw > draw:
            number -= 1
        return number + 1, self._observation(number).checksum if number >= 0 else None

    def observed_at(self, draw: int) -> ObservationRecord | None:
        """Return the newest observation up to a draw, or None."""
        number, _ = self.num_observed(draw)
        return self._observation(number - 1) if number else None

    # --- rounds ------------------------------------------------------------------------------------------------------

    def round(self, number: int) -> RoundRecord:
        """Return a round of the ledger. Decide an undecided round.

        Raises:
            EndOfStream: The stream ends before the round.
            RoundError: The losses for the round did not arrive within `wait_s`.
            LedgerError: A record is damaged or missing, or the run was resumed elsewhere.
        """
        self._remember_parent()
        record = self.records.rounds.get(number)
        if record is None:
            record = self._decide_up_to(number)
        self._warn_of_repetition(record)
        return record

    def decided(self, number: int) -> RoundRecord | None:
        """Return a round of the ledger, or None for an undecided round."""
        return self.records.rounds.get(number)

    def decided_at(self, draw: int) -> RoundRecord:
        """Return the round of the last draw before a draw, or the last round of a stream that ended before. Nothing is decided.

        Raises:
            RoundError: The round is not decided yet.
        """
        record = self.records.rounds.get(self.run.round_of(draw - 1))
        if record is not None and record.num_draws:
            return record
        num = self.records.rounds.num()
        newest = self.records.rounds.existing(num - 1) if num else None
        if newest is None or newest.num_draws == self.run.round_draws:
            raise RoundError(
                f"draw {draw:,} is in round {self.run.round_of(draw - 1):,}, and {self.ledger} has decided {counted(num, 'round')}, up to draw "
                f"{self.run.first_draw_of(num):,}. Metrics read decided rounds only: give a step or a draw that the model has seen."
            )
        return newest if newest.num_draws else self.records.rounds.existing(num - 2)

    def _decide_up_to(self, number: int) -> RoundRecord:
        # Rounds are decided in order, because each round continues from the record before: drawn samples, carry, policy's state.
        first = self._first_undecided(number)
        record = self.records.rounds.get(first - 1) if first else None
        for missing in range(first, number + 1):
            if record is not None and record.num_draws < self.run.round_draws:
                raise EndOfStream(
                    f"the stream ends in round {record.round}, before round {number}: with repeat={self.run.repeat!r} no more "
                    "samples are left."
                )
            record = self._put(self._decide(missing, record))
        assert record is not None
        return record

    def _first_undecided(self, number: int) -> int:
        """Find the first undecided round up to round `number`, which was undecided at the last look."""
        # The first call lists the folder, which finds a missing round between other rounds. While a loader reads on, two reads
        # replace the listing: the round before exists and the round after does not, so only round `number` is undecided.
        follows = number == 0 or self.records.rounds.get(number - 1) is not None
        if self._checked and follows and self.ledger.get(self.records.rounds.name(number + 1)) is None:
            return number
        self._checked = True
        return min(self.records.rounds.num(), number)  # LedgerError where a round is missing between others

    def last_round(self) -> RoundRecord:
        """Compute the last round of a stream that ends. The policy must read no losses. Nothing is written."""
        for record in self.to_end():
            last = record
        return last

    def to_end(self) -> Iterator[RoundRecord]:
        """Compute every round of a stream that ends. The policy must read no losses. Nothing is written."""
        record: RoundRecord | None = None
        number = 0
        while record is None or record.num_draws == self.run.round_draws:
            record = self._decide(number, record)
            yield record
            number += 1

    def _put(self, record: RoundRecord) -> RoundRecord:
        """Put a round, or read the round that another process put first."""
        # This check only stops a stale process early. The generation in the name keeps a stale process away from the records
        # that the living processes read, even if the run is resumed between the check and the put.
        self.records.refuse_superseded()
        if self.ledger.put(self.records.rounds.name(record.round), record.to_bytes()):
            self.records.rounds.keep(record.round, record)
            return record
        known = self.records.rounds.get(record.round)
        if known is None:
            raise LedgerError(
                f"{self.ledger}/{self.records.rounds.name(record.round)} vanished after another process put the record. {REMEDY}"
            )
        return known

    def _remember_parent(self) -> None:
        """Store the id of the parent process while the parent process still runs."""
        # Not at construction: a mixer is built in the main process, and a worker begins with a copy.
        if self._parent[0] != os.getpid():
            self._parent = os.getpid(), os.getppid()

    def _wait_for(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Poll until `ready` returns True or the time is over. Raise at once if the run was resumed elsewhere or the trainer is gone."""

        def is_ready() -> bool:
            if ready():
                return True
            self.records.refuse_superseded()
            if parent_is_gone(self._parent[1]):
                raise RoundError(
                    "the process that started this loader worker is gone, so no losses will come: the worker stops."
                )
            if threading.current_thread() is not threading.main_thread() and interpreter_ends():
                raise RoundError("the program ends, so no losses will come: the thread that reads ahead stops.")
            return False

        return wait_for(is_ready, timeout_s)

    # --- one round ---------------------------------------------------------------------------------------------------

    def _decide(self, number: int, previous: RoundRecord | None) -> RoundRecord:
        """Compute a round from the run, the round before and the observations. Wait for the observations if necessary."""
        observed_to = self.run.copied_draw if previous is None else previous.observed_to
        # The horizon never goes back, so an observation that an earlier round has used stays used.
        horizon = max(observed_to, self._horizon(number))
        num_observed = self.run.num_copied if previous is None else previous.num_observed
        observations = self._observed(num_observed, horizon) if self.policy.reads_losses else []
        # The round before names the checksum of its last observation. A changed observation breaks the chain, and is refused
        # before a decision rests on it.
        if previous is not None and observations and previous.last_observation not in (None, observations[0].previous):
            raise LedgerError(
                f"{self.ledger}/{self.records.rounds.name(previous.round)} {DECIDED_WITH_ANOTHER} {REMEDY}"
            )
        return decide(
            self.records,
            self.policy,
            number,
            previous,
            first_state=self._initial_state,
            horizon=horizon,
            observations=observations,
            newest=previous,
            steering=acting(self.ledger, self.run, number, previous),
        )

    def _observed(self, first: int, to_draw: int) -> list[ObservationRecord]:
        """Read the observations from number `first` on, up to a draw."""
        self._newest_number()  # LedgerError if an observation is missing between other observations
        records: list[ObservationRecord] = []
        while (record := self.records.observations.get(first + len(records))) is not None and record.draw <= to_draw:
            records.append(record)
        return records

    def _horizon(self, number: int) -> int:
        """Return the draw up to which round `number` uses observations. Wait until all observations up to the draw must exist.

        An observation at the draw or later ends the wait. Draws of observations rise, so from then on no new observation can come
        before the draw, and every process that decides the round sees the same observations.
        """
        if not self.policy.reads_losses:
            return -1
        lag, initial = self.run.lag, self.run.needs_first_losses
        if lag == "live":
            if not initial:
                return self.last_draw()
            needed = self.run.first_draw
        else:
            of_lag = needed_draw(self.run, number, initial=initial)
            if of_lag is None:
                return -1
            needed = of_lag
        if needed == self.run.first_draw and self.last_draw() < 0 and self._is_alone():
            raise RoundError(self._unmeasured())
        would_wait_for_itself = self._reporter == process_and_thread()
        if not self._wait_for_report(number, needed, 0.0 if would_wait_for_itself else self.wait_s):
            raise RoundError(self._stall(number, needed, would_wait_for_itself))
        return self.last_draw() if lag == "live" else needed

    def _wait_for_report(self, number: int, needed: int, timeout_s: float) -> bool:
        """Wait for a report of a draw or a later draw. Record and log half of a wait, so that a silent trainer shows before the error."""
        first_part_s = timeout_s * LONG_WAIT
        if self._wait_for(lambda: self._reaches(needed), first_part_s):
            return True
        if not first_part_s:
            return False
        last = self.last_draw()
        wait = WaitRecord(
            run=self.run.checksum,
            round=number,
            needed_draw=needed,
            last_draw=None if last < 0 else last,
            waited_s=first_part_s,
        )
        # Every loader worker of every rank waits, and only the process that writes the record logs the alarm.
        if self.ledger.put(self.records.wait_name(number), wait.to_bytes()):
            log_wait(self.records, wait)
        return self._wait_for(lambda: self._reaches(needed), timeout_s - first_part_s)

    def _is_alone(self) -> bool:
        """Return whether only this process can report: this process is no loader worker and no rank of a named job."""
        return self.job is None and multiprocessing.parent_process() is None and not self.follows

    def _unmeasured(self) -> str:
        return (
            f"policy {self.run.policy} begins with the losses of the model before the first step, and no losses were reported yet. Evaluate the "
            f"model before the first step and {self._first_report()}, or give Mixer(initial_losses=False)."
        )

    def _first_report(self) -> str:
        """Return the advice to report the losses at the beginning of the run."""
        if self.run.continues is None:
            return "call mixer.report(0, losses)"
        step = "STEP" if self.run.continues.step is None else self.run.continues.step
        return f"call mixer.report({step}, losses, draw={self.run.first_draw})"

    def refuse_unmeasured(self) -> None:
        """Raise RoundError if the losses of the first draw are required and missing."""
        if self.run.needs_first_losses and self.last_draw() < 0:
            raise RoundError(self._unmeasured())

    def refuse_begun(self) -> None:
        """Raise LedgerError if a process begins at the first draw and the ledger holds losses of an earlier attempt."""
        first = self.run.first_draw
        if self._reporter is None and self.last_draw() > first:
            raise LedgerError(
                f"{self.ledger} holds losses of an earlier attempt, up to draw {self.last_draw():,}, and this process begins at draw {first:,}. Call "
                "mixer.load_state_dict(state) to continue from a checkpoint, or mixer.restart() to begin again (the earlier records stay in the "
                "ledger), or give a new ledger directory. To read decided draws, use mixer.batch(first, num)."
            )

    def _stall(self, number: int, needed: int, would_wait_for_itself: bool) -> str:
        last, round_draws = self.last_draw(), self.run.round_draws
        seen = f"the last observation is of draw {last:,}" if last >= 0 else "no losses were reported yet"
        hint = (
            " With lag=1 the loader would not wait here."
            if self.run.lag == 0 and max(last, 0) >= needed - round_draws
            else " A loader that reads far ahead needs a larger lag."
        )
        if would_wait_for_itself:
            return (
                f"round {number} needs losses at draw {needed:,} or later, and {seen}. The thread that reports also asks for this round, so the "
                f"thread would wait for itself. Report losses of draw {needed:,} or a later draw before the thread reads on. Reports at the end of each round "
                f"of {round_draws:,} draws are enough.{hint}"
            )
        return (
            f"waited {self.wait_s:g} s for round {number}: {seen}, and round {number} needs an observation at {needed:,} or later. Is the trainer "
            f"still calling report() once per round?{hint}"
        )

    def _warn_of_repetition(self, record: RoundRecord) -> None:
        epochs = zip(self.run.skills, record.epochs, strict=True)
        many = [skill for skill, passed in epochs if passed > MANY_EPOCHS and skill not in self._warned]
        if many:
            self._warned.update(many)
            warn_of_repetition(many, f"in round {record.round}", stacklevel=6)


def warn_of_repetition(skills: Sequence[str], where: str, *, stacklevel: int = 2) -> None:
    """Issue a single warning about all skills that pass `MANY_EPOCHS` epochs."""
    is_single = len(skills) == 1
    warnings.warn(
        f"skill{'' if is_single else 's'} {name_some(map(repr, skills))} pass{'es' if is_single else ''} {MANY_EPOCHS} epochs {where}: repeated so "
        f"often, data is worth much less. Lower {'its weight' if is_single else 'their weights'}, or end the repetition by `repeat='cap:4'`.",
        RepetitionWarning,
        stacklevel=stacklevel,
    )


def _measurements(
    losses: Mapping[str, Any], values: Mapping[str, float | None]
) -> tuple[dict[str, int] | None, dict[str, float | None] | None]:
    """Return the numbers of samples and the standard errors of reported losses. Return None twice for plain numbers."""
    measured = {name: losses[name] for name in values}
    if not all(isinstance(loss, Loss) for loss in measured.values()):
        return None, None
    errors = {name: loss.standard_error for name, loss in measured.items()}
    return (
        {name: loss.num_samples for name, loss in measured.items()},
        {name: error if math.isfinite(error) else None for name, error in errors.items()},
    )


def _refuse_kept(step: int, losses: Mapping[str, Any], policy: str) -> None:
    """Raise ObservationError for losses of earlier reports: a probe would read them as skills that learn nothing."""
    unmeasured = [name for name, loss in losses.items() if isinstance(loss, Loss) and loss.num_samples == 0]
    if unmeasured:
        raise ObservationError(
            f"losses at step {step}: {name_some(map(repr, unmeasured))} keep the loss of an earlier evaluation, and policy {policy} compares the losses at the "
            "two ends of a probe round: measure every skill each time, with EvalBudget(rotate=False) or a number of samples. Nothing was recorded."
        )
