"""The mixer: the endless, resumable stream of samples that obeys the ledger.

Draw d is determined by the shards, the seed and the rounds of the ledger, and by nothing else. `Mixer.batch` gives any
draws, in any process, in any order; iterating is a convenience on top. State is one integer.
"""

import mmap
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard.errors import LedgerError, ObservationError, PolicyError, RoundError, ShardError
from skillshard.mixing.ledger import (
    DirectoryLedger,
    Lag,
    Ledger,
    ObservationLog,
    ObservationRecord,
    RoundRecord,
    RunRecord,
    open_run,
    read_record,
    rewind,
    round_name,
    wait_for,
)
from skillshard.mixing.order import MAX_ROUND_DRAWS, ORDER_VERSION, SkillOrder, fixed_point, interleave, quotas
from skillshard.policies.policy import Policy, State, check_losses
from skillshard.shards.read import OpenShard, ShardSet
from skillshard.storage import digest

ROUNDS_KEPT = 4
"""Rounds whose plan is kept in memory; a reader moves from one to the next."""
SAMPLES_AHEAD = 256
"""Texts that iterating cuts out of the shards at once."""


class MixedSample(NamedTuple):
    """One draw of the stream."""

    draw: int
    skill: str
    text: str


@dataclass(frozen=True)
class Batch:
    """Some draws of the stream.

    Attributes:
        draws: positions in the stream.
        skill_numbers: the skill of each, an index into `skill_names`.
        skill_names: the skills of the mix.
        texts: the text of each.
    """

    draws: Int[np.ndarray, " sample"]
    skill_numbers: Int[np.ndarray, " sample"]
    skill_names: tuple[str, ...]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def skills(self) -> list[str]:
        """The skill of each."""
        return [self.skill_names[number] for number in self.skill_numbers.tolist()]


class MixerState(BaseModel):
    """Where a stream stands: what a checkpoint keeps of its mixer."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/mixer/1"] = Field("skillshard/mixer/1", alias="schema")
    draw: int = Field(ge=0, description="draws consumed")
    step: int | None = Field(description="optimizer steps taken; null where the trainer did not say")
    run: str = Field(description="digest of the ledger's run.json")


@dataclass(frozen=True)
class RoundPlan:
    """Where the samples of one round lie.

    Attributes:
        segments: stretches of neighbouring rows as they were found: skill number, shard, and the shard in memory.
        skill: the skill number of each draw.
        segment, row: where each draw is, an index into `segments` and the row of that shard.
        start, end: first byte and end of each draw's text in the shard.
    """

    segments: list[tuple[int, int, OpenShard]]
    skill: Int[np.ndarray, " draw"]
    segment: Int[np.ndarray, " draw"]
    row: Int[np.ndarray, " draw"]
    start: Int[np.ndarray, " draw"]
    end: Int[np.ndarray, " draw"]

    @cached_property
    def data(self) -> list[mmap.mmap]:
        """The bytes of each segment's shard."""
        return [opened.data for _, _, opened in self.segments]

    def ids(self, draws: slice | Int[np.ndarray, " sample"]) -> list[str]:
        """The ids of some draws of the round."""
        places = zip(self.segment[draws].tolist(), self.row[draws].tolist(), strict=True)
        return [orjson.loads(self.segments[segment][2].member(row))["id"] for segment, row in places]

    def texts(self, draws: slice | Int[np.ndarray, " sample"]) -> list[str]:
        """The texts of some draws of the round; the one loop over samples that is left to Python."""
        data = self.data
        places = zip(self.segment[draws].tolist(), self.start[draws].tolist(), self.end[draws].tolist(), strict=True)
        return [data[segment][start:end].decode() for segment, start, end in places]


class Mixer:
    """A mixed stream over the training shards of a shard set.

    Args:
        shards: an opened shard set.
        policy: decides the weights of every round.
        ledger: directory of this run's record (made if missing), or another `Ledger`.
        round_draws: draws with one weight vector, 1 to 2**22. The loader looks for new losses once a round.
        seed: another seed gives another order.
        lag: round r uses the observations made up to the end of round r-1-lag. 0: strict, the loader waits at the boundary
            until the losses are there. 1: overlaps, for trainers that prefetch. "live": the newest at hand, never waits.
        step_draws: samples that one optimizer step takes from the stream, over all ranks and accumulation; translates
            steps into draws in `report` and `state_dict`.
        wait_s: how long a round may wait for its losses, in seconds.

    Raises:
        PolicyError: the policy does not fit the skills.
        LedgerError: the ledger is of another run.

    Example:
        mixer = Mixer(ShardSet.open("shards"), policies.stratified(), ledger="runs/1", round_draws=4096)
        for sample in mixer: ...
    """

    def __init__(
        self,
        shards: ShardSet,
        policy: Policy,
        *,
        ledger: str | os.PathLike[str] | Ledger,
        round_draws: int,
        seed: int = 0,
        lag: Lag = 1,
        step_draws: int | None = None,
        wait_s: float = 600.0,
    ) -> None:
        if not 1 <= round_draws <= MAX_ROUND_DRAWS:
            raise PolicyError(f"round_draws is {round_draws:,}: give 1 to {MAX_ROUND_DRAWS:,} draws.")
        if lag != "live" and lag < 0:
            raise PolicyError(f"lag is {lag}: give 0 (strict), 1 (default), more, or 'live'.")
        if not shards.skills:
            raise ShardError(f"{shards.root} has no training shards: every sample is held out or set aside.")
        self.shards, self.policy, self.lag, self.seed = shards, policy, lag, seed
        self.round_draws, self.step_draws, self.wait_s = round_draws, step_draws, wait_s
        self.skills = shards.skills
        self.ledger: Ledger = DirectoryLedger(ledger) if isinstance(ledger, (str, os.PathLike)) else ledger
        num_samples = [len(shards.train[skill]) for skill in self.skills]
        self._initial_state = policy.init(self.skills, num_samples)
        self._train = [shards.train[skill] for skill in self.skills]
        self._orders = [SkillOrder(skill_shards.shard_rows, (seed, skill_shards.skill)) for skill_shards in self._train]
        self._run = RunRecord(
            shards=shards.digest,
            skills=list(self.skills),
            num_samples=num_samples,
            seed=seed,
            order=ORDER_VERSION,
            round_draws=round_draws,
            lag=lag,
            policy=policy.name,
            policy_arguments=policy.arguments,
        )
        self._run_digest = open_run(self.ledger, self._run)
        self._observations = ObservationLog(self.ledger)
        self._rounds: dict[int, RoundRecord] = {}
        self._draw = 0
        self._resumed = (0, 0)
        self._reporter: tuple[int, int] | None = None
        self._plan = lru_cache(ROUNDS_KEPT)(self._plan_of)

    # --- the stream --------------------------------------------------------------------------------------------------

    def at(self, draws: Int[np.ndarray, " sample"]) -> Batch:
        """Any draws, in any order, wherever the stream stands."""
        skills: list[Int[np.ndarray, " some"]] = []
        texts: list[str] = []
        for plan, within in self._plans_of(draws):
            skills.append(plan.skill[within])
            texts += plan.texts(within)
        return Batch(draws, np.concatenate(skills) if skills else np.empty(0, np.int64), self.skills, texts)

    def batch(self, first: int, num: int) -> Batch:
        """The draws first .. first + num - 1."""
        number, start = divmod(first, self.round_draws)
        if start + num > self.round_draws:
            return self.at(np.arange(first, first + num))
        plan, within = self._plan(number), slice(start, start + num)
        return Batch(np.arange(first, first + num), plan.skill[within], self.skills, plan.texts(within))

    def ids(self, first: int, num: int) -> list[str]:
        """The ids of the draws first .. first + num - 1."""
        return [found for plan, within in self._plans_of(np.arange(first, first + num)) for found in plan.ids(within)]

    def _plans_of(self, draws: Int[np.ndarray, " sample"]) -> Iterator[tuple[RoundPlan, Int[np.ndarray, " some"]]]:
        """The round's plan and the places in it, for each stretch of draws of one round."""
        rounds, within = np.divmod(draws, self.round_draws)
        edges = [*np.flatnonzero(np.diff(rounds, prepend=-1)).tolist(), len(draws)]
        for begin, end in pairwise(edges):
            yield self._plan(int(rounds[begin])), within[begin:end]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The stream from where it stands, endless, in batches; each moves `draw` on when it is handed out."""
        while True:
            batch = self.batch(self._draw, batch_size)
            self._draw += batch_size
            yield batch

    def __iter__(self) -> Iterator[MixedSample]:
        """The stream from where it stands, endless, sample by sample."""
        while True:
            first = self._draw
            number, start = divmod(first, self.round_draws)
            plan = self._plan(number)
            texts = plan.texts(slice(start, start + SAMPLES_AHEAD))
            skills = plan.skill[start : start + SAMPLES_AHEAD].tolist()
            for draw, skill, text in zip(count(first), skills, texts, strict=False):
                self._draw = draw + 1
                yield MixedSample(draw, self.skills[skill], text)
                if self._draw != draw + 1:
                    break  # load_state_dict moved the stream

    @property
    def draw(self) -> int:
        """Draws handed out by iterating, or set by `load_state_dict`."""
        return self._draw

    # --- losses in, weights out --------------------------------------------------------------------------------------

    def report(self, step: int, losses: Mapping[str, Any], *, draw: int | None = None) -> None:
        """Record the losses measured after `step` optimizer steps.

        Args:
            step: optimizer steps taken.
            losses: nats per token; exactly the policy's evaluation skills (the training skills if it names none).
            draw: samples seen when they were measured; `step * step_draws` if the mixer knows `step_draws` (counted
                from the last resume, so that it may change between runs).

        Raises:
            ObservationError: unknown or missing skills, values that are not finite numbers >= 0, other losses at this
                draw already, or losses of a later draw.
        """
        values = check_losses(losses, self.policy.eval_skills or self.skills, step=step)
        draw = self._draw_of(step) if draw is None else draw
        self._observations.put(ObservationRecord(step=step, draw=draw, losses=values))
        self._reporter = _here()

    def round(self, number: int) -> RoundRecord:
        """A round of the ledger; decided now if nobody has yet.

        Raises:
            RoundError: the losses that it needs did not come within `wait_s`.
            LedgerError: the ledger's rounds do not follow from one another.
        """
        first = number
        while (record := self._known(first)) is None and first:
            first -= 1
        for missing in range(first if record is None else first + 1, number + 1):
            record = self._put(self._decide(missing, record))
        assert record is not None
        return record

    def _known(self, number: int) -> RoundRecord | None:
        """A round that was decided; the last few are kept in memory, since a round never changes."""
        record = self._rounds.get(number) or read_record(self.ledger, round_name(number), RoundRecord)
        if record is not None:
            self._rounds[number] = record
            if len(self._rounds) > ROUNDS_KEPT:
                del self._rounds[min(self._rounds)]
        return record

    def _put(self, record: RoundRecord) -> RoundRecord:
        """Put a round, or read the one that another process put first."""
        if self.ledger.put(round_name(record.round), record.to_bytes()):
            self._rounds[record.round] = record
        known = self._known(record.round)
        if known is None:
            raise LedgerError(f"round {record.round} vanished from {self.ledger} after it was put.")
        return known

    def _decide(self, number: int, previous: RoundRecord | None) -> RoundRecord:
        state = self._initial_state if previous is None else previous.policy_state
        observed_to = -1 if previous is None else previous.observed_to
        horizon = max(observed_to, self._horizon(number))
        num_observed = 0 if previous is None else previous.num_observed
        observations = self._observations.read(num_observed, horizon) if self.policy.reads_losses else []
        for observation in observations:
            state = self.policy.observe(state, observation)
        weights = self._weights(state)
        drawn = np.zeros(len(self.skills), np.int64)
        carry = np.zeros(len(self.skills), np.int64)
        if previous is not None:
            drawn = np.array(previous.drawn_before) + np.array(previous.counts)
            carry = np.array(previous.carry)
        counts, carry = quotas(fixed_point(weights), carry, self.round_draws)
        return RoundRecord(
            round=number,
            first_draw=number * self.round_draws,
            weights=weights.tolist(),
            counts=counts.tolist(),
            drawn_before=drawn.tolist(),
            carry=carry.tolist(),
            observed_to=horizon,
            num_observed=num_observed + len(observations),
            observations=[observation.draw for observation in observations],
            policy_state=state,
            previous=self._run_digest if previous is None else digest(previous.to_bytes()),
        )

    def _horizon(self, number: int) -> int:
        """The draw up to which round `number` uses observations; waits until they must all be there."""
        if not self.policy.reads_losses:
            return -1
        if self.lag == "live":
            return self._observations.last_draw()
        if number <= self.lag:
            return -1
        needed = (number - self.lag) * self.round_draws
        would_wait_for_itself = self._reporter == _here()
        if not wait_for(
            lambda: self._observations.last_draw() >= needed, 0.0 if would_wait_for_itself else self.wait_s
        ):
            raise RoundError(self._stall(number, needed, would_wait_for_itself))
        return needed

    def _stall(self, number: int, needed: int, would_wait_for_itself: bool) -> str:
        last = self._observations.last_draw()
        seen = f"the last observation is of draw {last:,}" if last >= 0 else "nothing was reported yet"
        hint = (
            " With lag=1 the loader would not wait here."
            if self.lag == 0 and last >= needed - self.round_draws
            else " A loader that reads far ahead needs a larger lag."
        )
        if would_wait_for_itself:
            return (
                f"round {number} needs losses at draw {needed:,} or later; {seen}, and the thread that reports is the one that asks for "
                f"this round, so it would wait for itself. Report at least once per round of {self.round_draws:,} draws, before "
                f"drawing on.{hint}"
            )
        return (
            f"waited {self.wait_s:g} s for round {number}; {seen} and round {number} needs one at {needed:,} or later. Is the trainer "
            f"still calling report() once per round?{hint}"
        )

    def _weights(self, state: State) -> np.ndarray:
        weights = self.policy.weights(state)
        if weights.shape != (len(self.skills),) or not (np.all(weights >= 0) and abs(float(weights.sum()) - 1) < 1e-6):
            raise PolicyError(
                f"policy {self.policy.name} gave {weights.tolist()}: weights must be {len(self.skills)} numbers >= 0 that sum to 1."
            )
        return weights

    def _draw_of(self, step: int) -> int:
        if self.step_draws is None:
            raise ObservationError(
                f"step {step} cannot be translated into draws: give Mixer(..., step_draws=samples per optimizer step over all "
                "ranks), or report(..., draw=...)."
            )
        at_step, at_draw = self._resumed
        return at_draw + (step - at_step) * self.step_draws

    def _plan_of(self, number: int) -> RoundPlan:
        record = self.round(number)
        skill, slot = interleave(np.array(record.counts), "round", self.seed, number)
        segments: list[tuple[int, int, OpenShard]] = []
        found_rows, entries = [], []
        for at, (before, taken) in enumerate(zip(record.drawn_before, record.counts, strict=True)):
            for shard, rows in self._orders[at].segments(before, before + taken):
                opened = self._train[at].open_shard(shard)
                segments.append((at, shard, opened))
                found_rows.append(rows)
                entries.append(opened.index[rows])
        segment = np.repeat(np.arange(len(segments)), [len(rows) for rows in found_rows])[slot]
        entry = np.concatenate(entries)[slot]
        start = entry["text_start"].astype(np.int64)
        return RoundPlan(segments, skill, segment, np.concatenate(found_rows)[slot], start, start + entry["text_bytes"])

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self, *, step: int | None = None) -> dict[str, Any]:
        """Where the stream stands: a few numbers of JSON, whatever the number of skills, samples and rounds.

        What this process wrote to the ledger is on the disk when this returns.

        Args:
            step: optimizer steps taken, for a trainer whose loader reads ahead (`step_draws` must be known). None: the
                draws handed out by iterating this mixer.
        """
        draw = self._draw if step is None else self._draw_of(step)
        self.ledger.flush()
        return MixerState(draw=draw, step=step, run=self._run_digest).model_dump(by_alias=True)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a saved draw. What the ledger learnt after it is set aside, with a warning that says where.

        Raises:
            LedgerError: the state is of another run.
        """
        try:
            saved = MixerState.model_validate(state)
        except ValidationError as error:
            raise LedgerError(f"this is no state of a mixer (schemas/mixer-1.json): {error}") from error
        if saved.run != self._run_digest:
            raise LedgerError(
                f"this state is of run {saved.run}, but {self.ledger} is run {self._run_digest}: shards, seed, round_draws, lag and "
                "policy must be the same."
            )
        self._draw = saved.draw
        self._resumed = (0, 0) if saved.step is None else (saved.step, saved.draw)
        aside = rewind(self.ledger, self._draw)
        if aside is not None:
            self._observations = ObservationLog(self.ledger)
            self._rounds.clear()
            self._plan.cache_clear()
            warnings.warn(
                f"resumed at draw {self._draw:,}: later losses and rounds are set aside in {aside}.", stacklevel=2
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._plan = lru_cache(ROUNDS_KEPT)(self._plan_of)


def _here() -> tuple[int, int]:
    """This process and thread."""
    return os.getpid(), threading.get_ident()
