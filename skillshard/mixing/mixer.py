"""The mixer: the endless, resumable stream of samples that obeys the ledger.

Draw d is determined by the shards, the seed and the rounds of the ledger, and by nothing else. `Mixer.batch` gives any
draws, in any process, in any order; iterating is a convenience on top. State is one integer.
"""

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard.errors import LedgerError, ObservationError, PolicyError, ShardError, TokensError, name_some
from skillshard.kept import kept
from skillshard.mixing.ledger import DirectoryLedger, Lag, Ledger, RoundRecord, RunRecord
from skillshard.mixing.order import MAX_ROUND_DRAWS, ORDER_VERSION, SkillOrder
from skillshard.mixing.round_plan import Maps, Places, RoundPlan, joined, plan_round
from skillshard.mixing.rounds import ROUNDS_KEPT, EndOfStream, Rounds
from skillshard.policies.policy import Policy, check_is_policy
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import TokenCounts

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

    Warns:
        UserWarning: a skill passes 4 epochs, from where on repeated data is worth much less (Muennighoff et al. 2023,
            arXiv:2305.16264).

    Raises:
        PolicyError: the policy lacks something or does not fit the skills, or an argument is out of range.
        LedgerError: the ledger is of another run.
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
    ) -> None:
        check_is_policy(policy)
        if not 1 <= round_draws <= MAX_ROUND_DRAWS:
            raise PolicyError(f"round_draws is {round_draws:,}: give 1 to {MAX_ROUND_DRAWS:,} draws.")
        if lag != "live" and lag < 0:
            raise PolicyError(f"lag is {lag}: give 0 (strict), 1 (default), more, or 'live'.")
        if not re.fullmatch(r"epochs|stop|drop|cap:[1-9]\d*", repeat):
            raise PolicyError(
                f"repeat is {repeat!r}: give 'epochs' (default), 'stop', 'drop' or 'cap:N', such as 'cap:4'."
            )
        if not shards.skills:
            raise ShardError(f"{shards.root} has no training shards: every sample is held out or set aside.")
        self.shards, self.policy, self.lag, self.seed = shards, policy, lag, seed
        self.round_draws, self.step_draws, self.wait_s = round_draws, step_draws, wait_s
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
            policy_arguments=policy.arguments,
        )
        self._rounds = Rounds(self.ledger, policy, run, wait_s=wait_s)
        self._draw = 0
        self._resumed = (0, 0)
        self._plans: dict[int, RoundPlan] = {}
        self._maps: dict[bytes, Maps] = {}

    # --- the stream --------------------------------------------------------------------------------------------------

    def at(self, draws: Int[np.ndarray, " sample"]) -> Batch:
        """Any draws, in any order, wherever the stream stands; those beyond its end are left out."""
        return self.cut(self.find(draws))

    def find(self, draws: Int[np.ndarray, " sample"]) -> Places:
        """Where the texts of some draws lie; those beyond the end of the stream are left out."""
        found = [plan.places(some, within) for plan, some, within in self._plans_of(draws)]
        return found[0] if len(found) == 1 else joined(found)

    def cut(self, places: Places) -> Batch:
        """The texts of what another process of this machine found: their shards need not be checked again."""
        maps = kept(self._maps, places.shards.tobytes(), self._maps_of, most=ROUNDS_KEPT)
        texts = maps.texts(maps.views(places.segment, places.start, places.end))
        return Batch(places.draws, places.shards[places.segment, 0], self.skills, texts)

    def batch(self, first: int, num: int) -> Batch:
        """The draws first .. first + num - 1, or up to the end of the stream."""
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
        rounds, within = np.divmod(draws, self.round_draws)
        edges = [0, *(np.flatnonzero(rounds[1:] != rounds[:-1]) + 1).tolist(), len(draws)] if len(draws) else []
        for begin, end in pairwise(edges):
            plan = self.plan(int(rounds[begin]))
            if plan is not None:
                there = within[begin:end] < len(plan.skill)
                yield plan, draws[begin:end][there], within[begin:end][there]

    def plan(self, number: int) -> RoundPlan | None:
        """Where the samples of a round lie, or None beyond the end of the stream."""
        try:
            return kept(self._plans, number, self._plan_of, most=ROUNDS_KEPT)
        except EndOfStream:
            return None

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The stream from where it stands, in batches; each moves `draw` on when it is handed out.

        Endless, unless `repeat` ends it; then the last batch may be short.
        """
        while len(batch := self.batch(self._draw, batch_size)):
            self._draw += len(batch)
            yield batch

    def __iter__(self) -> Iterator[MixedSample]:
        """The stream from where it stands, sample by sample."""
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

    # --- losses in, weights out --------------------------------------------------------------------------------------

    def report(self, step: int, losses: Mapping[str, Any], *, draw: int | None = None) -> None:
        """Record the losses measured after `step` optimizer steps.

        Args:
            step: optimizer steps taken.
            losses: nats per token of the policy's evaluation skills (the training skills if it names none): of all of them, or,
                where the policy's `may_miss_losses` says so, of at least one (static policies, `odm`, `exp3`, `ado`).
            draw: samples seen when they were measured; `step * step_draws` if the mixer knows `step_draws` (counted
                from the last resume, so that it may change between runs).

        Raises:
            ObservationError: unknown or missing skills, no losses at all, values that are not finite numbers >= 0, other losses at this
                draw already, or losses of a later draw.
        """
        self._rounds.report(step, self._draw_of(step) if draw is None else draw, losses)

    def round(self, number: int) -> RoundRecord:
        """A round of the ledger; decided now if nobody has yet.

        Raises:
            RoundError: the losses that it needs did not come within `wait_s`, or the stream ends before it.
            LedgerError: the ledger's rounds do not follow from one another.
        """
        return self._rounds.round(number)

    def _draw_of(self, step: int) -> int:
        if self.step_draws is None:
            raise ObservationError(
                f"step {step} cannot be translated into draws: give Mixer(..., step_draws=samples per optimizer step over all "
                "ranks), or report(..., draw=...)."
            )
        at_step, at_draw = self._resumed
        return at_draw + (step - at_step) * self.step_draws

    def _maps_of(self, shards: bytes) -> Maps:
        """The shards of some `Places` in memory."""
        pairs = np.frombuffer(shards, np.int64).reshape(-1, 2).tolist()
        return Maps([self._train[skill].open_shard(shard).data for skill, shard in pairs])

    def _plan_of(self, number: int) -> RoundPlan:
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

    def state_dict(self, *, step: int | None = None) -> dict[str, Any]:
        """Where the stream stands: a few numbers of JSON, whatever the number of skills, samples and rounds.

        What this process wrote to the ledger is on the disk when this returns.

        Args:
            step: optimizer steps taken, for a trainer whose loader reads ahead (`step_draws` must be known). None: the
                draws handed out by iterating this mixer.
        """
        draw = self._draw if step is None else self._draw_of(step)
        self.ledger.flush()
        return MixerState(draw=draw, step=step, run=self._rounds.digest).model_dump(by_alias=True)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a saved draw. What the ledger learnt after it is set aside, with a warning that says where.

        Raises:
            LedgerError: the state is of another run.
        """
        try:
            saved = MixerState.model_validate(state)
        except ValidationError as error:
            raise LedgerError(f"this is no state of a mixer (schemas/mixer-1.json): {error}") from error
        if saved.run != self._rounds.digest:
            raise LedgerError(
                f"this state is of run {saved.run}, but {self.ledger} is run {self._rounds.digest}: shards, seed, round_draws, lag and "
                "policy must be the same."
            )
        self._draw = saved.draw
        self._resumed = (0, 0) if saved.step is None else (saved.step, saved.draw)
        aside = self._rounds.rewind(self._draw)
        self._plans.clear()
        if aside is not None:
            warnings.warn(
                f"resumed at draw {self._draw:,}: later losses and rounds are set aside in {aside}.", stacklevel=2
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_maps": {}}


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
