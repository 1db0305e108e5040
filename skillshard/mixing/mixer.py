"""The mixer: the endless, resumable stream of samples that obeys the ledger.

Draw d is determined by the shards, the seed and the rounds of the ledger, and by nothing else. `Mixer.batch` gives any
draws, in any process, in any order; iterating is a convenience on top. State is one integer.
"""

import multiprocessing
import operator
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, Literal, NamedTuple, SupportsFloat, SupportsIndex

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard import canonical, places
from skillshard.canonical import first_fault
from skillshard.errors import LedgerError, PolicyError, ShardError, TokensError, name_some
from skillshard.kept import kept
from skillshard.loss import Losses, LossKind
from skillshard.mixing.counts import drawn_at
from skillshard.mixing.ledger import DirectoryLedger, Lag, Ledger, RoundRecord, RunRecord
from skillshard.mixing.order import MAX_ROUND_DRAWS, ORDER_VERSION, SkillOrder
from skillshard.mixing.records import RECORDS_KEPT
from skillshard.mixing.round_plan import Maps, Places, RoundPlan, joined, plan_round
from skillshard.mixing.rounds import ON_BAD_LOSS, EndOfStream, Rounds
from skillshard.mixing.stream import DRAWS, LAST_DRAW, Clock, is_whole, whole_number
from skillshard.policies.policy import Policy, check_is_policy
from skillshard.printable import counted
from skillshard.shards.read import ShardSet
from skillshard.shards.split import HOW_TO_HOLD_OUT
from skillshard.shards.tokens import TokenCounts

SAMPLES_AHEAD = 256
"""Texts that iterating cuts out of the shards at once."""
DRAWS_AHEAD, ROUNDS_AHEAD = 1 << 16, 8
"""How far a look may go beyond the newest decided round, whichever is more. Loaders read ahead by workers x prefetched
batches, which is less. A look at a far draw would decide all the rounds up to it."""
MOST_ROUNDS = 1 << 20
"""Rounds that `Mixer.round` decides at once at most, so that a wrong number ends in a sentence and not in a loop of hours."""


class MixedSample(NamedTuple):
    """One draw of the stream."""

    draw: int
    skill: str
    text: str


@dataclass(frozen=True)
class Batch:
    """Some draws of the stream.

    Attributes:
        draw: position in the stream of each sample.
        skill_number: number of each sample's skill, an index into `skill_names`.
        skill_names: names of all skills of the mix.
        text: text of each sample.
    """

    draw: Int[np.ndarray, " sample"]
    skill_number: Int[np.ndarray, " sample"]
    skill_names: tuple[str, ...]
    text: list[str]

    def __len__(self) -> int:
        return len(self.text)

    def __repr__(self) -> str:
        """One line without the texts."""
        first = f" from draw {int(self.draw[0]):,} on" if len(self) else ""
        return f"Batch({counted(len(self), 'sample')}{first}, of {counted(len(self.skill_names), 'skill')})"

    @property
    def skill(self) -> list[str]:
        """Name of each sample's skill."""
        return [self.skill_names[number] for number in self.skill_number.tolist()]


class MixerState(BaseModel):
    """Where a stream stands: what a checkpoint keeps of its mixer."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/mixer/2"] = Field("skillshard/mixer/2", alias="schema")
    draw: int = Field(ge=0, le=LAST_DRAW, description="draws consumed")
    step: int | None = Field(description="optimizer steps taken; null where the trainer did not say")
    run: str = Field(description="checksum of the ledger's run.json")
    round: str = Field(
        description="checksum of the round of the last draw consumed; of run.json where there is none; empty: nobody has read so far"
    )
    num_observations: int = Field(ge=0, description="observations of this draw or an earlier one")
    observation: str | None = Field(description="checksum of the last of them; null where there is none")


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
        repeat: what happens when a skill runs out. "epochs": its next epoch begins, in another order. "stop": the stream
            ends before the first sample that would come again. "drop": that skill gives no more, the others share its
            weight, and the stream ends with the last one. "cap:N": the same after N epochs.
        unit: what the policy's weights are shares of. "tokens": a skill of long samples gets fewer draws, so that the shares hold in
            tokens, over whole epochs exactly and within a round in expectation; `proportional` then follows the skills' numbers of
            tokens. Rounds, draws and epochs still count samples; policies are told of sizes and of what was drawn in tokens.
        tokens: token counts of these shards, for unit="tokens".
        loss: the kind of losses that are reported; a policy's graph must have been measured with the same kind.
        initial_losses: whether the first report is of draw 0, the model before the first step; with lag=1 round 1 uses these losses, as
            Algorithm 1 of SKILL-IT does. None: as the policy says (True for `skill_it` but for mode="static", `loss_order`,
            `softmax_loss` and `graph_refresh`).
        job: name of the job that this process is a rank of. The first rank of a job that resumes or restarts begins a new
            generation of the ledger, and ranks with the same name join it. A job that is started again takes another name. None:
            this process is the only one, or its ranks resume by `skillshard.torch.resume`.
        on_bad_loss: what a report with a NaN or an infinite loss does. "stop": ObservationError, nothing is recorded. "leave-out": the
            report is recorded and satisfies the round that waits for it, and the policy does not see it.
        held_out: evaluation skills that are measured elsewhere, such as the skills of another shard set; None: those with
            held-out samples in `shards`. A run whose policy reads no losses records the losses of these skills, so that the run can be
            compared with the run of a policy that reads them.

    Warns:
        RepetitionWarning: skills pass 4 epochs, from where on repeated data is worth much less (Muennighoff et al. 2023,
            arXiv:2305.16264).

    Raises:
        PolicyError: the policy lacks something or does not fit the skills, an argument is out of range, a skill whose loss the
            policy reads has no held-out sample, or its graph was measured with another kind of losses.
        LedgerError: the ledger is of another run, or cannot be written.
        TokensError: the token counts are of other shards, or a skill has no tokens.

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
        repeat: str = "epochs",
        unit: str = "samples",
        tokens: TokenCounts | None = None,
        loss: LossKind = LossKind(),
        initial_losses: bool | None = None,
        job: str | None = None,
        on_bad_loss: str = "stop",
        held_out: Collection[str] | None = None,
    ) -> None:
        check_is_policy(policy)
        if not is_whole(round_draws, 1, MAX_ROUND_DRAWS):
            raise PolicyError(f"round_draws is {round_draws!r}: give 1 to {MAX_ROUND_DRAWS:,} draws.")
        if lag != "live" and not is_whole(lag, 0, LAST_DRAW):
            raise PolicyError(f"lag is {lag!r}: give 0 (strict), 1 (default), more, or 'live'.")
        if not is_whole(seed, -(2**63), 2**63 - 1):
            raise PolicyError(f"seed is {seed!r}: give a whole number of 64 bits.")
        if step_draws is not None and not is_whole(step_draws, 1, LAST_DRAW):
            raise PolicyError(
                f"step_draws is {step_draws!r}: give the samples of one optimizer step, at least 1, or None."
            )
        if not (isinstance(wait_s, SupportsFloat) and wait_s >= 0):
            raise PolicyError(f"wait_s is {wait_s!r}: give seconds, a number >= 0.")
        if not isinstance(loss, LossKind):
            raise PolicyError(f"loss is {loss!r}: give a kind of losses, such as LossKind(reduction='per_token').")
        if isinstance(held_out, str):
            raise PolicyError(f"held_out is the text {held_out!r}: give a list of names, such as [{held_out!r}].")
        if not re.fullmatch(r"epochs|stop|drop|cap:[1-9]\d*", repeat):
            raise PolicyError(
                f"repeat is {repeat!r}: give 'epochs' (default), 'stop', 'drop' or 'cap:N', such as 'cap:4'."
            )
        if on_bad_loss not in ON_BAD_LOSS:
            raise PolicyError(f"on_bad_loss is {on_bad_loss!r}: give 'stop' (default) or 'leave-out'.")
        if job is not None and not (isinstance(job, str) and job and job.isprintable()):
            raise PolicyError(f"job is {job!r}: give the job's name, a printable text, or None for a single process.")
        if not shards.skills:
            raise ShardError(f"{shards.root} has no training shards: every sample is held out or set aside.")
        self.shards, self.policy, self.lag, self.seed = shards, policy, lag, seed
        self.round_draws, self.wait_s = round_draws, wait_s
        self.repeat = repeat
        self.skills = shards.skills
        self.ledger: Ledger = DirectoryLedger(ledger) if isinstance(ledger, (str, os.PathLike)) else ledger
        self._train = [shards.train[skill] for skill in self.skills]
        self.orders = [SkillOrder(skill_shards.shard_rows, (seed, skill_shards.skill)) for skill_shards in self._train]
        run = RunRecord(
            shards=shards.digest,
            skills=list(self.skills),
            num_samples=[len(skill_shards) for skill_shards in self._train],
            unit=unit,
            num_tokens=_num_tokens(shards, unit, tokens),
            seed=seed,
            order=ORDER_VERSION,
            round_draws=round_draws,
            lag=lag,
            repeat=repeat,
            policy=policy.name,
            policy_arguments=_arguments(policy),
            initial_losses=_initial_losses(policy, initial_losses),
            loss=loss,
        )
        _refuse_other_loss(policy, loss)
        _refuse_unmeasurable(policy, shards, held_out)
        self._rounds = Rounds(
            self.ledger, policy, run, wait_s=wait_s, job=job, on_bad_loss=on_bad_loss, held_out=held_out
        )
        self._draw = 0
        self.clock = Clock(DRAWS, None if step_draws is None else operator.index(step_draws))
        self._resumed_here = False
        self._last: dict[int, RoundRecord] = {}
        self._plans: dict[int, RoundPlan] = {}
        self._maps: dict[bytes, Maps] = {}

    def __repr__(self) -> str:
        """One line: the shards, the policy, the ledger, and where the stream stands."""
        return (
            f"Mixer({places.public(self.shards.root)!r}, policy {self.policy.name}, ledger {str(self.ledger)!r}: "
            f"{counted(len(self.skills), 'skill')}, {self.round_draws:,} draws a round, at draw {self._draw:,})"
        )

    # --- the stream --------------------------------------------------------------------------------------------------

    def at(self, draws: Int[np.ndarray, " sample"]) -> Batch:
        """Any draws, in any order, wherever the stream stands; those beyond its end are left out.

        Raises:
            PolicyError: a draw is below 0 or beyond 2**62, or lies so far beyond the newest decided round that thousands of
                rounds would be decided by a look.
        """
        return self.cut(self.find(draws))

    def find(self, draws: Int[np.ndarray, " sample"]) -> Places:
        """Where the texts of some draws lie; those beyond the end of the stream are left out."""
        found = [plan.places(some, within) for plan, some, within in self._plans_of(draws)]
        return found[0] if len(found) == 1 else joined(found)

    def cut(self, places: Places) -> Batch:
        """The texts of what another process of this machine found: their shards need not be checked again."""
        maps = kept(self._maps, places.shards.tobytes(), self._maps_of, most=RECORDS_KEPT)
        texts = maps.texts(maps.views(places.segment, places.start, places.end))
        return Batch(places.draw, places.shards[places.segment, 0], self.skills, texts)

    def metas(self, places: Places) -> list[dict[str, Any]]:
        """The metadata of the samples at some places, which `find` gives."""
        maps = kept(self._maps, places.shards.tobytes(), self._maps_of, most=RECORDS_KEPT)
        return maps.metas(places.segment, places.end)

    def batch(self, first: int, num: int) -> Batch:
        """The draws first .. first + num - 1, or up to the end of the stream; PolicyError as `at`."""
        number, start = divmod(first, self.round_draws)
        plan = self.plan(number)
        if plan is None or start + num > len(plan.skill):
            return self.at(np.arange(first, first + num))
        within = slice(start, start + num)
        return Batch(np.arange(first, first + num), plan.skill[within], self.skills, plan.texts(within))

    def ids(self, first: int, num: int) -> list[str]:
        """The ids of the draws first .. first + num - 1."""
        plans = self._plans_of(np.arange(first, first + num))
        return [found for plan, _, within in plans for found in plan.ids(within)]

    def _plans_of(
        self, draws: Int[np.ndarray, " sample"]
    ) -> Iterator[tuple[RoundPlan, Int[np.ndarray, " some"], Int[np.ndarray, " some"]]]:
        """The round's plan, the draws, and their places in it, for each stretch of draws of one round that has them."""
        if len(draws) and not (draws.min() >= 0 and draws.max() < LAST_DRAW):
            raise PolicyError(
                f"draws from {draws.min():,} to {draws.max():,} were asked for: a stream's draws are 0, 1, 2, ... below 2**62. A sampler that "
                "draws at random does not fit a mixed stream."
            )
        rounds, within = np.divmod(draws, self.round_draws)
        edges = [0, *(np.flatnonzero(rounds[1:] != rounds[:-1]) + 1).tolist(), len(draws)] if len(draws) else []
        for begin, end in pairwise(edges):
            plan = self.plan(int(rounds[begin]))
            if plan is not None:
                there = within[begin:end] < len(plan.skill)
                yield plan, draws[begin:end][there], within[begin:end][there]

    def plan(self, number: int) -> RoundPlan | None:
        """Where the samples of a round lie, or None beyond the end of the stream; PolicyError for a round far beyond the newest."""
        try:
            return kept(self._plans, number, self._plan_of, most=RECORDS_KEPT)
        except EndOfStream:
            return None

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The stream from where it stands, in batches; each moves `draw` on when it is handed out.

        Endless, unless `repeat` ends it; then the last batch may be short.
        """
        self.check_begin(self._draw)
        while len(batch := self.batch(self._draw, batch_size)):
            self._draw += len(batch)
            yield batch

    def __iter__(self) -> Iterator[MixedSample]:
        """The stream from where it stands, sample by sample."""
        self.check_begin(self._draw)
        while True:
            first = self._draw
            number, start = divmod(first, self.round_draws)
            plan = self.plan(number)
            if plan is None or start >= len(plan.skill):
                return
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

    @property
    def position(self) -> int:
        """The draw at which the stream stands, as `draw`: the name that all streams share (`skillshard.mixing.stream`)."""
        return self._draw

    @property
    def step_draws(self) -> int | None:
        """Samples that one optimizer step takes, over all ranks and accumulation; None: unknown."""
        return self.clock.step_size

    # --- losses in, weights out --------------------------------------------------------------------------------------

    def report(self, step: SupportsIndex, losses: Mapping[str, Any], *, draw: SupportsIndex | None = None) -> None:
        """Record the losses measured after `step` optimizer steps.

        Args:
            step: optimizer steps taken; 0: before the first one.
            losses: nats per token of the policy's evaluation skills (the training skills if it names none): of all of them, or,
                where the policy's `may_miss_losses` says so, of at least one (static policies, `odm`, `exp3`, `ado`). `Losses`, as
                `losses_per_skill` gives them, must be of the kind of this run; plain numbers are taken to be.
            draw: samples seen when they were measured; `step * step_draws` if the mixer knows `step_draws` (counted
                from the last resume, so that it may change between runs).

        Raises:
            ObservationError: unknown or missing skills, no losses at all, values that are not finite numbers >= 0, other losses at this
                draw already, losses of a later draw, a draw more than a round beyond the newest decided round, a first report
                that is not of draw 0 where the run begins with initial losses, or losses of another kind.
            LedgerError: the ledger cannot be written, or the run was resumed elsewhere.
        """
        number = whole_number("step", step)
        at_draw = self.clock.position_at(number) if draw is None else whole_number("draw", draw)
        kind = losses.kind if isinstance(losses, Losses) else self._rounds.run.loss
        self._rounds.report(number, at_draw, losses, kind)

    def step_reported_at(self, draw: int) -> int | None:
        """The step of the newest report if that report is of this draw; else None."""
        return self._rounds.step_reported_at(draw)

    def round(self, number: int) -> RoundRecord:
        """A round of the ledger; decided now, with all rounds before it, if nobody has yet.

        Raises:
            RoundError: the losses that it needs did not come within `wait_s`, or the stream ends before it.
            LedgerError: a record is damaged or missing, or the run was resumed elsewhere.
            PolicyError: the number is below 0, or more than a million rounds beyond the newest.
        """
        if not 0 <= number < LAST_DRAW // self.round_draws:
            raise PolicyError(f"round {number:,} was asked for: rounds are numbered 0, 1, 2, ...")
        self._refuse_far(number, MOST_ROUNDS)
        return self._rounds.round(number)

    @property
    def num_rounds(self) -> int:
        """How many rounds have been decided."""
        return self._rounds.records.rounds.num()

    @property
    def num_observations(self) -> int:
        """How many observations have been recorded."""
        return self._rounds.records.observations.num()

    @property
    def generation(self) -> int:
        """How often the run had been resumed or restarted when this process joined it."""
        return self._rounds.records.generation

    @property
    def run_digest(self) -> str:
        """The checksum of run.json: what determines the stream beside the losses."""
        return self._rounds.digest

    @property
    def initial_losses(self) -> bool:
        """Whether the first report is of draw 0, the model before the first step."""
        return self._rounds.run.initial_losses

    @property
    def reads_losses(self) -> bool:
        """Whether the policy reads losses, so that a round may have to wait for a report."""
        return self.policy.reads_losses

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the stream beside the losses, as JSON."""
        return {"run": self.run_digest}

    @property
    def round_size(self) -> float:
        """Draws of a round."""
        return float(self.round_draws)

    @property
    def draws_per_position(self) -> float:
        """Draws of one position of this stream, which is a draw itself."""
        return 1.0

    def holds(self, draw: int) -> bool:
        """Whether the stream has not ended before a draw."""
        return len(self.find(np.array([draw]))) == 1

    def length(self) -> int | None:
        """Number of draws of the whole stream, or None where the stream is endless or its end depends on losses.

        Costs the arithmetic of every round, about 0.1 ms each; nothing is written.
        """
        last = self._last_round()
        return None if last is None else last.first_draw + last.num_draws

    def num_drawn(self) -> list[int] | None:
        """Draws of each skill in the whole stream, or None, as `length`."""
        last = self._last_round()
        return None if last is None else drawn_at(self._rounds.run, last, last.first_draw + last.num_draws)

    def _last_round(self) -> RoundRecord | None:
        if self.repeat == "epochs" or self.policy.reads_losses:
            return None
        return kept(self._last, 0, lambda _: self._rounds.last_round(), most=1)

    def check_start(self, *, rank: int = 0) -> None:
        """Refuse, in the main process, what would otherwise be noticed hours later; adapters call it before the first batch.

        Args:
            rank: of this process; ranks above 0 leave the reports to rank 0.

        Raises:
            RoundError: the run begins with the losses of draw 0, and rank 0 begins without having reported them.
            LedgerError: the stream begins at draw 0 and the ledger holds later losses of an earlier attempt.
        """
        self._rounds.follows = rank > 0
        if rank == 0:
            self.check_begin(self._draw)
            if self._draw == 0 and self._rounds.job is None:
                self._rounds.refuse_unmeasured()

    def check_begin(self, position: int) -> None:
        """LedgerError if the main process begins at the stream's beginning, and an earlier attempt has reported losses already."""
        if position == 0 and not self._resumed_here and multiprocessing.parent_process() is None:
            self._rounds.refuse_begun()

    def _maps_of(self, shards: bytes) -> Maps:
        """The shards of some `Places` in memory."""
        pairs = np.frombuffer(shards, np.int64).reshape(-1, 2).tolist()
        return Maps([self._train[skill].open_shard(shard).data for skill, shard in pairs])

    def _refuse_far(self, number: int, most: int) -> None:
        """PolicyError for a round more than `most` beyond the newest decided one."""
        if self._rounds.records.rounds.newest_in_memory + most >= number:
            return
        num_rounds = self._rounds.records.rounds.num()
        newest = self._rounds.decided(num_rounds - 1) if num_rounds else None
        has_ended = newest is not None and newest.num_draws < self.round_draws
        if number >= num_rounds + most and not has_ended:
            raise PolicyError(
                f"draw {number * self.round_draws:,} is in round {number:,}, and the newest decided round is {num_rounds - 1:,}: a look so far "
                f"ahead would decide {number - num_rounds + 1:,} rounds. Read the stream in order, or decide the rounds by mixer.round(number)."
            )

    def _plan_of(self, number: int) -> RoundPlan:
        self._refuse_far(number, max(ROUNDS_AHEAD, DRAWS_AHEAD // self.round_draws))
        record = self._rounds.round(number)
        if not record.num_draws:
            raise EndOfStream(f"the stream ends before round {number}.")
        if self.shards.files.is_remote:
            self._read_ahead(record)
        plan = plan_round(record, self._train, self.orders, seed=self.seed)
        if self.shards.files.is_remote:
            plan.opened  # noqa: B018  # a shard that is open stays in the cache until its texts are read
        return plan

    def _read_ahead(self, record: RoundRecord) -> None:
        """Fetch the shards of a round side by side, and those that come after them while the round is read."""
        drawn = list(zip(self._train, self.orders, record.drawn_before, record.counts, strict=True))
        for shards, order, before, taken in drawn:
            for shard in order.shards(before, before + taken):
                shards.prefetch(shard)
        for shards, order, before, taken in drawn:
            ahead = max(taken, int(shards.shard_rows.max())) if taken else 0
            for shard in order.shards(before + taken, before + taken + ahead):
                shards.prefetch(shard)

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self, *, step: SupportsIndex | None = None) -> dict[str, Any]:
        """Where the stream stands: a few numbers of JSON, whatever the number of skills, samples and rounds.

        What this process wrote to the ledger is on the disk when this returns.

        Args:
            step: optimizer steps taken, for a trainer whose loader reads ahead (`step_draws` must be known). None: the
                draws handed out by iterating this mixer.

        Raises:
            LedgerError: the run was resumed elsewhere.
        """
        number = None if step is None else whole_number("step", step)
        return self.state_at(self._draw if number is None else self.clock.position_at(number), number).model_dump(
            by_alias=True
        )

    def state_at(self, draw: int, step: int | None = None) -> MixerState:
        """The state of a stream of which `draw` draws were consumed; LedgerError as `state_dict`."""
        self._rounds.records.refuse_superseded()  # a stale process must not write over the checkpoint of the one that took over
        num_observations, observation = self._rounds.num_observed(draw)
        state = MixerState(
            draw=draw,
            step=step,
            run=self._rounds.digest,
            round=self._round_digest(draw),
            num_observations=num_observations,
            observation=observation,
        )
        self.ledger.flush()
        return state

    def load_state_dict(self, state: Mapping[str, Any], *, generation: int | None = None) -> None:
        """Go on at a saved draw, in a new generation of the ledger. A process of an older generation stops at its next record.

        What the ledger learnt after the draw is left behind in the older generation, with a warning that says where.

        Args:
            state: from `state_dict`.
            generation: the generation that rank 0 has begun for all ranks; None: this process begins it, or joins the one of its `job`.

        Raises:
            LedgerError: the state is of another run or of another ledger of this run, or a record before the draw is damaged.
        """
        try:
            saved = MixerState.model_validate(state)
        except ValidationError as error:
            raise LedgerError(f"this is no state of a mixer (schemas/mixer-2.json): {first_fault(error)}.") from error
        if saved.run != self._rounds.digest:
            raise LedgerError(
                f"this state is of run {saved.run}, but {self.ledger} is run {self._rounds.digest}: shards, seed, round_draws, lag and "
                "policy must be the same."
            )
        self._rounds.look(saved.draw, generation)
        self._check_past(saved)
        self._resume(saved.draw, saved.step, generation)

    def restart(self, *, generation: int | None = None) -> None:
        """Begin the run again from draw 0: for a run that ended before its first checkpoint.

        The records of the earlier attempt stay in the ledger, in their generation. On an untouched ledger, and without `job` and
        `generation`, nothing happens.

        Raises:
            LedgerError: the generation is not there, or does not begin at draw 0.
        """
        if generation is None and self._rounds.job is None and self._rounds.records.is_untouched():
            self._resumed_here = True
            return
        self._resume(0, None, generation, anew=True)

    def _resume(self, draw: int, step: int | None, generation: int | None, *, anew: bool = False) -> None:
        left_behind = self._rounds.resume(draw, generation, anew=anew)
        self._draw = draw
        self.clock = self.clock.resumed(step, draw)
        self._resumed_here = True
        self._plans.clear()
        if left_behind is not None:
            alone = (
                ""
                if self._rounds.job or generation is not None
                else " Ranks of one job resume by skillshard.torch.resume, or take Mixer(job=NAME)."
            )
            warnings.warn(f"resumed at draw {draw:,}: {left_behind}.{alone}", stacklevel=3)

    def _round_digest(self, draw: int) -> str:
        """The checksum of the round of the last draw before a position; of run.json at the beginning."""
        if draw == 0:
            return self._rounds.digest
        number = (draw - 1) // self.round_draws
        record = self._rounds.decided(number)
        if record is None:
            if self.policy.reads_losses:
                return ""
            # A policy that reads no losses decides the same rounds in any ledger.
            self._refuse_far(number, MOST_ROUNDS)
            record = self._rounds.round(number)
        return record.checksum

    def _check_past(self, saved: MixerState) -> None:
        """LedgerError unless this ledger holds the past of a saved state."""
        elsewhere = (
            f"The checkpoint at draw {saved.draw:,} was made beside another ledger, or records were lost: give ledger=the directory of "
            "that run, or copy the directory here."
        )
        if saved.round and self._round_digest(saved.draw) != saved.round:
            raise LedgerError(
                f"round {(saved.draw - 1) // self.round_draws:,} of {self.ledger} is another one than the checkpoint names. {elsewhere}"
            )
        if saved.num_observations and self.policy.reads_losses:
            record = self._rounds.records.observations.get(saved.num_observations - 1)
            if record is None or record.checksum != saved.observation:
                raise LedgerError(
                    f"observation {saved.num_observations - 1:,} of {self.ledger} is {'missing' if record is None else 'another one than the checkpoint names'}. "
                    f"{elsewhere}"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_maps": {}}


def _arguments(policy: Policy) -> dict[str, Any]:
    """What run.json records of a policy; PolicyError if that is no JSON."""
    try:
        canonical.to_json(policy.arguments)
    except TypeError as error:
        raise PolicyError(
            f"the arguments of policy {policy.name} have no JSON form ({error}), so a run cannot record them. `arguments` of a policy are names, "
            "numbers, truth values, and lists and mappings of these."
        ) from error
    return policy.arguments


def _initial_losses(policy: Policy, initial_losses: bool | None) -> bool:
    """Whether a run begins with the losses before the first step."""
    if initial_losses and not policy.reads_losses:
        raise PolicyError(f"initial_losses=True, but policy {policy.name} reads no losses: leave initial_losses away.")
    return bool(getattr(policy, "initial_losses", False)) if initial_losses is None else initial_losses


def _refuse_other_loss(policy: Policy, loss: LossKind) -> None:
    """PolicyError if a policy's graph was measured with another kind of losses than the run's."""
    kind = getattr(policy, "loss", None)
    if kind is not None and kind != loss and not getattr(policy, "any_loss", False):
        raise PolicyError(
            f"the graph of policy {policy.name} was measured with {kind.sentence}, and this run's losses are {loss.sentence}: SKILL-IT would "
            f"weigh the one by the other. Give Mixer(loss={kind!r}) and report such losses, or skill_it(..., any_loss=True) to mix them."
        )


def _refuse_unmeasurable(policy: Policy, shards: ShardSet, held_out: Collection[str] | None) -> None:
    """PolicyError if a policy needs the loss of a training skill that has no held-out sample."""
    if not policy.reads_losses or policy.may_miss_losses:
        return
    measured = shards.holdout if held_out is None else set(held_out)
    missing = [name for name in policy.eval_skills or shards.skills if name in shards.train and name not in measured]
    if missing:
        raise PolicyError(
            f"policy {policy.name} reads the losses of {name_some(map(repr, missing))}, which {'has' if len(missing) == 1 else 'have'} no held-out "
            f"sample in {places.public(shards.root)}. Either {HOW_TO_HOLD_OUT}; or, where the losses are measured on other samples, give "
            "Mixer(held_out=their skills)."
        )


def _num_tokens(shards: ShardSet, unit: str, tokens: TokenCounts | None) -> list[int] | None:
    """Training tokens of each skill, where weights count tokens."""
    if unit not in ("samples", "tokens"):
        raise PolicyError(f"unit is {unit!r}: give 'samples' (default) or 'tokens'.")
    if (unit == "tokens") != (tokens is not None):
        raise PolicyError(
            "unit='tokens' needs the token counts of these shards: Mixer(..., unit='tokens', tokens=TokenCounts.open(DIRECTORY)), made by "
            "'skillshard tokens'."
            if tokens is None
            else f"token counts were given, but unit is {unit!r}, so weights count samples: give unit='tokens' too, or no tokens."
        )
    if tokens is None:
        return None
    tokens.refuse_other_shards(shards)
    empty = [skill for skill in shards.skills if not tokens.train[skill].num_tokens]
    if empty:
        raise TokensError(
            f"no training sample of skill {name_some(map(repr, empty))} has a token in {tokens.root}, so no number of draws gives it a share of "
            "the tokens. Tag such samples otherwise and shard again, or use unit='samples'."
        )
    return [tokens.train[skill].num_tokens for skill in shards.skills]
