"""The mixer: the endless, resumable stream of samples that obeys the ledger.

Draw d is determined by the shards, the seed and the rounds of the ledger, and by nothing else. `Mixer.batch` returns any
draws, in any process and in any order. Iterating is a convenience on top of `batch`. The state is one integer, the number of
draws consumed.
"""

import multiprocessing
import operator
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count, pairwise, repeat
from typing import Any, SupportsIndex, cast

import numpy as np
from jaxtyping import Int

from skillshard import places
from skillshard.errors import LedgerError, PolicyError, ShardError
from skillshard.loss import Losses, LossKind, MeasuredOn
from skillshard.memo import memoized
from skillshard.mixing.ahead import MOST_ROUNDS, refuse_far, rounds_ahead
from skillshard.mixing.alarms import Watch
from skillshard.mixing.arguments import (
    check_arguments,
    refuse_training_losses,
    refuse_unmeasurable,
    tokens_of_skills,
)
from skillshard.mixing.batch import NO_FIELDS, Batch, MixedSample
from skillshard.mixing.chain import begins_after, note_before
from skillshard.mixing.counts import drawn_at
from skillshard.mixing.fields import check_fields, rows_of
from skillshard.mixing.handover import hand_over, needed_tokens, put_handover
from skillshard.mixing.ledger import HANDOVER, Ledger, opened_ledger, read_record
from skillshard.mixing.matched_skills import matched
from skillshard.mixing.members import MEMBERS_AHEAD, check_members
from skillshard.mixing.metrics import MOST_SKILLS, Row, scalars, table
from skillshard.mixing.new_run import new_run, policy_in_draws
from skillshard.mixing.noted_places import SHARDS_NOTE, TOKENS_NOTE, note_place
from skillshard.mixing.place_records import Continued
from skillshard.mixing.positions import last_sample, orders_of
from skillshard.mixing.records import RECORDS_KEPT, open_records
from skillshard.mixing.replay import refuse_other_loss
from skillshard.mixing.round_plan import Places, RoundPlan, joined, plan_round, read_ahead
from skillshard.mixing.round_records import RoundRecord
from skillshard.mixing.rounds import EndOfStream, Rounds
from skillshard.mixing.run_records import HandoverRecord, Lag, RunRecord
from skillshard.mixing.samples import Samples
from skillshard.mixing.skill_blocks import block_unit
from skillshard.mixing.skipping import Stretch
from skillshard.mixing.state import MixerState, place_of_state, read_state
from skillshard.mixing.stream import DRAWS, LAST_DRAW, Clock, whole_number
from skillshard.number_checks import is_whole
from skillshard.policies.policy import Policy, check_is_policy
from skillshard.printable import counted
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet

SAMPLES_AHEAD = 256
"""Number of texts that iterating cuts out of the shards at once."""
MOST_AT_ONCE = 1 << 31
"""Largest number of draws of a batch. A larger number is a mistake: the positions alone would take 16 GiB."""


class Mixer:
    """A mixed stream over the training shards of a shard set.

    Args:
        shards: Opened shard set.
        policy: Policy that decides the weights of every round.
        ledger: Directory of the run's record, created if missing, or another `Ledger`.
        round_draws: Number of draws of a round, 1 to 2**22. The loader looks for new losses once per round.
        seed: Seed of the order.
        lag: Number of rounds that a decision lags behind the losses. Round r uses the observations made up to the end of round
            r-1-lag. With 0 (strict) the loader waits at the end of each round for the losses. With 1 reading and training overlap, which
            trainers that prefetch need. With "live" a round uses the newest observation and does not wait.
        step_draws: Number of samples of an optimizer step, over all ranks and gradient accumulation. `report` and `state_dict` use
            the number to translate steps into draws.
        wait_s: Maximal waiting time of a round for its losses, in seconds. After half of this time, the wait is an alarm of the run.
        repeat: Rule for a skill without unread samples. "epochs": the next epoch of the skill begins, in another order. "stop": the
            stream ends before the first repeated sample. "drop": the skill gives no more samples, the other skills share its
            weight, and the stream ends when every skill is empty. "cap:N": the rule of "drop" after N epochs.
        unit: Unit of the policy's weights, "samples", "tokens" or "blocks". With "tokens" a skill of long samples gets fewer draws, so that the
            weights are shares of tokens: exactly over whole epochs, and in expectation within a round. `proportional` then follows
            the tokens of the skills. Rounds, draws and epochs still count samples. A policy gets the sizes of the skills and the
            amounts drawn in tokens.
            With "blocks" a draw is a block of tokens of one skill, and rounds, draws, epochs and weights count blocks. Read the blocks by
            `PackedTokens(..., packing="skill")`. `step_draws` is then the number of blocks of an optimizer step.
        tokens: Tokens of the shards, required for unit="tokens" and unit="blocks".
        block_tokens: Number of tokens of a block, only for unit="blocks".
        separator: Text of the token after each sample, as for `PackedTokens`, only for unit="blocks".
        loss: Kind of the reported losses. The graph of a policy must be measured with the same kind.
        measured_on: Samples of the reported losses. "holdout": held-out samples, which the trainer measures. "training": the batches of
            the training, which cost no evaluation (`skillshard.batch_losses`). The first report then follows the first batches, and the
            policy must read the losses of training skills and must not probe.
        initial_losses: Whether the first report is of draw 0, the model before the first step. With lag=1 round 1 uses these losses, as
            in Algorithm 1 of SKILL-IT. None: the default of the policy (True for `skill_it` except mode="static", `loss_order`,
            `softmax_loss` and `graph_refresh`), and False with training losses.
        job: Name of the job of this rank. The first rank of a job that resumes or restarts begins a new generation of
            the ledger, and ranks with the same name join the generation. A job that is started again needs another name. None: this
            process is the only process, or the ranks resume by `skillshard.torch.resume`.
        on_bad_loss: Effect of a report with a NaN or an infinite loss. "stop": ObservationError, and nothing is recorded. "leave-out":
            the report is recorded and satisfies the waiting round, and the policy does not see the report.
        held_out: Evaluation skills with held-out samples elsewhere, such as the skills of another shard set. None: the skills with
            held-out samples in `shards`. A run whose policy reads no losses records the losses of these skills, so that the run is
            comparable with the run of a policy that reads losses.
        fields: Fields of the metadata that come with each sample: dotted paths, such as "meta.image", and "id" for the id of the sample.
            The paths are the keys in a batch. The order of the samples and the ledger do not depend on the fields, so a resumed run may
            have other fields.
        members: Members that come with each sample as bytes: suffixes that 'skillshard shard --members' kept, such as "jpg". The suffixes are the keys
            in a batch. As for fields, a resumed run may have other members.
        field_defaults: Path or suffix -> value for the samples without this field or member. By default, a sample without a field or a member is an
            error.

    Warns:
        RepetitionWarning: Skills pass 4 epochs. From 4 epochs on, repeated data is worth much less (Muennighoff et al. 2023,
            arXiv:2305.16264).

    Raises:
        PolicyError: The policy lacks an attribute or does not fit the skills, an argument is out of range, the policy reads the loss
            of a skill without held-out samples, or the policy's graph was measured with another kind of losses.
        LedgerError: The ledger belongs to another run, or cannot be written.
        TokensError: The token counts belong to other shards, or a skill has no tokens.
        FieldError: A field is no path, is given twice, or is a key of every batch. While reading: a sample lacks a field.

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
        tokens: TokenSet | None = None,
        block_tokens: int | None = None,
        separator: str | None = None,
        loss: LossKind = LossKind(),
        measured_on: str = "holdout",
        initial_losses: bool | None = None,
        job: str | None = None,
        on_bad_loss: str = "stop",
        held_out: Collection[str] | None = None,
        fields: Collection[str] = (),
        members: Collection[str] = (),
        field_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        check_is_policy(policy)
        check_arguments(
            shards=shards,
            tokens=tokens,
            round_draws=round_draws,
            seed=seed,
            lag=lag,
            step_draws=step_draws,
            wait_s=wait_s,
            repeat=repeat,
            loss=loss,
            measured_on=measured_on,
            initial_losses=initial_losses,
            job=job,
            on_bad_loss=on_bad_loss,
            held_out=held_out,
        )
        if not shards.skills:
            raise ShardError(f"{shards.root} has no training shards: every sample is held out or set aside.")
        self.shards, self.lag, self.seed = shards, lag, seed
        self.round_draws, self.wait_s = round_draws, wait_s
        self.repeat = repeat
        self.ledger = opened_ledger(ledger)
        self.fields = check_fields(fields, field_defaults, members=members)
        self.members = check_members(members, self.fields, field_defaults, shards)
        self.skills = shards.skills
        self._train = [shards.train[skill] for skill in self.skills]
        self.samples = Samples(self.skills, self._train, self.fields, self.members)
        num_tokens = tokens_of_skills(shards, unit, tokens)
        self.blocks = block_unit(tokens, block_tokens, separator) if unit == "blocks" else None
        if self.blocks is None and (block_tokens is not None or separator is not None):
            raise PolicyError(
                f"block_tokens and separator need unit='blocks', and unit is {unit!r}: omit them, or give unit='blocks'."
            )
        if self.blocks is not None and (self.fields or self.members):
            raise PolicyError(
                "a block holds many samples, so unit='blocks' has no fields and no members of samples: omit fields and members."
            )
        handover = read_record(self.ledger, HANDOVER, HandoverRecord)
        policy = policy_in_draws(policy, self._train, num_tokens, step_draws=step_draws, handover=handover)
        self.policy = policy
        run = new_run(
            shards,
            policy,
            handover=handover,
            unit=unit,
            tokens=tokens,
            num_tokens=num_tokens,
            blocks=self.blocks,
            seed=seed,
            round_draws=round_draws,
            lag=lag,
            repeat=repeat,
            loss=loss,
            measured_on=cast(MeasuredOn, measured_on),
            initial_losses=initial_losses,
        )
        self.orders = orders_of(run, self._train)
        refuse_other_loss(policy, loss)
        if measured_on == "training":
            if held_out is not None:
                raise PolicyError(
                    "held_out names held-out samples, and measured_on='training' measures none: omit held_out."
                )
            refuse_training_losses(policy, shards)
            held_out = shards.skills
        else:
            refuse_unmeasurable(policy, shards, held_out)
        self._rounds = Rounds(
            self.ledger, policy, run, wait_s=wait_s, job=job, on_bad_loss=on_bad_loss, held_out=held_out
        )
        if self._rounds.began:
            note_place(self.ledger, SHARDS_NOTE, shards.root)
            if self.blocks is not None and tokens is not None:
                note_place(self.ledger, TOKENS_NOTE, tokens.root)
        self._draw = run.first_draw
        self.clock = Clock(DRAWS, None if step_draws is None else operator.index(step_draws))
        if run.continues is not None:
            self.clock = self.clock.resumed(run.continues.step, run.continues.draw)
        self._resumed_here = False
        self._watch = Watch()
        self._last: dict[int, RoundRecord] = {}
        self._plans: dict[int, RoundPlan] = {}

    @classmethod
    def continue_from(
        cls,
        old_ledger: str | os.PathLike[str] | Ledger,
        *,
        shards: ShardSet,
        policy: Policy,
        ledger: str | os.PathLike[str] | Ledger,
        state: Mapping[str, Any] | None = None,
        draw: int | None = None,
        step: int | None = None,
        restart: Collection[str] = (),
        skip: Sequence[Stretch] = (),
        round_draws: int | None = None,
        seed: int | None = None,
        lag: Lag | None = None,
        step_draws: int | None = None,
        wait_s: float = 600.0,
        repeat: str | None = None,
        unit: str | None = None,
        tokens: TokenSet | None = None,
        old_tokens: TokenSet | None = None,
        block_tokens: int | None = None,
        separator: str | None = None,
        loss: LossKind | None = None,
        measured_on: str | None = None,
        initial_losses: bool | None = None,
        job: str | None = None,
        on_bad_loss: str = "stop",
        held_out: Collection[str] | None = None,
        fields: Collection[str] = (),
        members: Collection[str] = (),
        field_defaults: Mapping[str, Any] | None = None,
    ) -> "Mixer":
        """Begin a new run that continues another run from a draw, with anything changed.

        Draws and steps go on counting. Within an epoch no sample comes twice and none is lost, also if skills are added, removed or
        renamed, and if files were appended to the shards: the open epoch of a skill then ends as the rest of its order, merged evenly
        with the appended samples. Another seed begins with the next epoch of each skill. The carry begins at 0. The policy keeps its state
        if its name and arguments are the same, and otherwise begins with the last observation of the other run.

        The new ledger holds everything that the new run needs. From then on `Mixer(..., ledger=ledger)` opens the run like any run, and
        `load_state_dict` also takes the state of the other run at the draw. A repeated call joins the run.

        Args:
            old_ledger: Ledger of the other run. Nothing is written into it.
            shards: Shards of the new run.
            policy: Policy of the new run.
            ledger: New directory of the new run's record.
            state: State of the other run in a checkpoint, which gives the draw and the step. The state of a packed stream fits too. Then load the
                state into the packed stream of the new run, so that its blocks go on where the blocks of the other run end.
            draw: Number of draws that the model has seen, in place of a state. A ledger does not know this number.
            step: Number of optimizer steps taken at the draw. None: the step of the state, or the step by the reports of the other run.
            restart: Skills that begin again although their samples may have come in the open epoch, after the skills were split, merged
                or tagged anew.
            skip: Stretches of draws to skip, for a bad stretch after which the loss rose: (first, num, why) with the first draw in the stream
                of the other run, the number of draws, and the reason. The samples that the other run gave at these draws, or would have given,
                count as seen: the positions and passes of their skills move on, and the new run does not give the samples in these
                epochs. The record of the new run lists the stretches.
            round_draws: As for `Mixer`. None: the value of the other run. The same holds for `seed`, `lag`, `repeat`, `unit` and `loss`.
            old_tokens: Tokens of the other run, if its draws are blocks (unit="blocks"), or for a state inside a round that was packed by best-fit.
                None: `tokens`, or for a run with other tokens the tokens at the place that the other run has noted.
            block_tokens: As for `Mixer`, for unit="blocks". None: the value of the other run, and also its separator.
            separator: As for `Mixer`, for unit="blocks", together with `block_tokens`.
            step_draws: As for `Mixer`, and so are all further arguments.

        Raises:
            LedgerError: The other run has not decided the draw or a stretch to skip, the draw lies inside a round that was packed by best-fit, the state is of another run, or the new ledger holds
                another run.
            ShardError: A skill was split, merged or tagged anew and is not named in `restart`.
            PolicyError, TokensError, FieldError: As for `Mixer`.

        Example:
            mixer = Mixer.continue_from("runs/1", draw=12_800, shards=shards, policy=policy, ledger="runs/2", step_draws=32)
        """
        before, own = opened_ledger(old_ledger), opened_ledger(ledger)
        run = open_records(before).run
        if (state is None) == (draw is None):
            raise PolicyError("continue_from needs the place in the stream: give either state=STATE or draw=DRAW.")
        saved = None
        if state is not None:
            saved = place_of_state(before, state)
            draw, step = saved.draw, saved.step if step is None else step
        assert draw is not None
        whole_number("draw", draw)
        if step is not None:
            whole_number("step", step)
        handover = hand_over(
            before,
            draw=operator.index(draw),
            step=step,
            restart=restart,
            skip=skip,
            saved=saved,
            tokens=_old_tokens(needed_tokens(run, saved), tokens, old_tokens),
        )
        if isinstance(shards, ShardSet):  # the constructor refuses anything else
            # A refusal must come before the ledger has the handover. A call with a mended `restart` would be refused otherwise.
            matched(handover, shards, seed=run.seed)
        put_handover(own, handover)
        unit = run.unit if unit is None else unit
        if unit == "blocks" and run.blocks is not None and block_tokens is None:
            block_tokens, separator = run.blocks.block_tokens, run.blocks.separator
        note_before(own, before)
        return cls(
            shards,
            policy,
            ledger=own,
            round_draws=run.round_draws if round_draws is None else round_draws,
            seed=run.seed if seed is None else seed,
            lag=run.lag if lag is None else lag,
            step_draws=step_draws,
            wait_s=wait_s,
            repeat=run.repeat if repeat is None else repeat,
            unit=unit,
            tokens=tokens,
            block_tokens=block_tokens,
            separator=separator,
            loss=run.loss if loss is None else loss,
            measured_on=run.measured_on if measured_on is None else measured_on,
            initial_losses=initial_losses,
            job=job,
            on_bad_loss=on_bad_loss,
            held_out=held_out,
            fields=fields,
            members=members,
            field_defaults=field_defaults,
        )

    def __repr__(self) -> str:
        """Return a line with the shards, the policy, the ledger and the position of the stream."""
        return (
            f"Mixer({places.public(self.shards.root)!r}, policy {self.policy.name}, ledger {str(self.ledger)!r}: "
            f"{counted(len(self.skills), 'skill')}, {self.round_draws:,} draws a round, at draw {self._draw:,})"
        )

    # --- the stream --------------------------------------------------------------------------------------------------

    def at(self, draws: Int[np.ndarray, " sample"]) -> Batch:
        """Read draws in any order, independent of the position of the stream. Draws beyond the end of the stream are left out.

        Raises:
            PolicyError: A draw is below 0 or beyond 2**62, or lies so far beyond the newest decided round that the mixer would
                decide thousands of rounds.
        """
        return self.samples.cut(self.find(np.asarray(draws)))

    def find(self, draws: Int[np.ndarray, " sample"]) -> Places:
        """Find the places of the texts of draws. Draws beyond the end of the stream are left out."""
        parts = [plan.places(in_round, within) for plan, in_round, within in self._plans_of(draws)]
        return parts[0] if len(parts) == 1 else joined(parts)

    def batch(self, first: int, num: int) -> Batch:
        """Read the draws first .. first + num - 1, or the draws up to the end of the stream. Raise PolicyError as in `at`."""
        _check_stretch(first, num)
        number = self.run.round_of(first)
        start = first - self.run.first_draw_of(number)
        plan = self.plan(number) if number >= 0 else None
        # A batch inside a single round, the usual case, is a slice of the plan. A slice copies no places.
        if plan is None or start + num > len(plan.skill):
            return self.at(np.arange(first, first + num))
        within = slice(start, start + num)
        fields = self.samples.columns(plan, within)
        return Batch(np.arange(first, first + num), plan.skill[within], self.skills, plan.texts(within), fields)

    def ids(self, first: int, num: int) -> list[str]:
        """Read the ids of the draws first .. first + num - 1. Raise PolicyError as in `at`."""
        _check_stretch(first, num)
        plans = self._plans_of(np.arange(first, first + num))
        return [identity for plan, _, within in plans for identity in plan.ids(within)]

    def _plans_of(
        self, draws: Int[np.ndarray, " sample"]
    ) -> Iterator[tuple[RoundPlan, Int[np.ndarray, " some"], Int[np.ndarray, " some"]]]:
        """Split draws at the ends of rounds. Yield the round's plan, the draws, and the positions of the draws in the round."""
        if draws.ndim != 1 or (draws.dtype.kind not in "iu" and len(draws)):
            raise PolicyError(
                f"draws are an array of {draws.dtype} with the shape {draws.shape}: give an array of whole numbers with one axis."
            )
        begin = self.run.first_draw
        if len(draws) and 0 <= draws.min() < begin:
            raise PolicyError(
                f"draws from {draws.min():,} on were asked for, and this run begins at draw {begin:,}: earlier draws are in the ledger of the run that it "
                "continues."
            )
        if len(draws) and not (draws.min() >= 0 and draws.max() < LAST_DRAW):
            raise PolicyError(
                f"draws from {draws.min():,} to {draws.max():,} were asked for: a stream's draws are 0, 1, 2, ... below 2**62. A sampler that "
                "draws at random does not fit a mixed stream."
            )
        rounds, within = np.divmod(draws - begin, self.round_draws)
        edges = [0, *(np.flatnonzero(rounds[1:] != rounds[:-1]) + 1).tolist(), len(draws)] if len(draws) else []
        for begin, end in pairwise(edges):
            plan = self.plan(int(rounds[begin]))
            if plan is not None:
                # The last round of a stream that ends has fewer draws than `round_draws`.
                exists = within[begin:end] < len(plan.skill)
                yield plan, draws[begin:end][exists], within[begin:end][exists]

    def plan(self, number: int) -> RoundPlan | None:
        """Find the samples of a round. Return None beyond the end of the stream. Raise PolicyError for a round far beyond the newest."""
        try:
            return memoized(self._plans, number, self._plan_of, most=RECORDS_KEPT)
        except EndOfStream:
            return None

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Iterate over the stream in batches from its position. Each yielded batch advances `draw`.

        The stream is endless, unless `repeat` ends the stream. The last batch of a stream that ends may be short.

        Raises:
            PolicyError: `batch_size` is no whole number of at least 1.
        """
        # A batch of 0 samples would end the loop, as the end of the stream does.
        if not is_whole(batch_size, 1, MOST_AT_ONCE):
            raise PolicyError(f"batch_size is {batch_size!r}: give the number of samples of a batch, at least 1.")
        self.check_begin(self._draw)
        while len(batch := self.batch(self._draw, batch_size)):
            self._draw += len(batch)
            yield batch

    def __iter__(self) -> Iterator[MixedSample]:
        """Iterate over the stream sample by sample from its position."""
        self.check_begin(self._draw)
        while True:
            first = self._draw
            number = self.run.round_of(first)
            start = first - self.run.first_draw_of(number)
            plan = self.plan(number)
            if plan is None or start >= len(plan.skill):
                return
            within = slice(start, start + (MEMBERS_AHEAD if self.members else SAMPLES_AHEAD))
            texts, skills = plan.texts(within), plan.skill[within].tolist()
            rows = rows_of(self.samples.columns(plan, within)) if self.fields or self.members else repeat(NO_FIELDS)
            for draw, skill, text, fields in zip(count(first), skills, texts, rows, strict=False):
                # The position advances before the sample leaves, so that a state saved in the loop's body counts the sample.
                self._draw = draw + 1
                yield MixedSample(draw, self.skills[skill], text, fields)
                if self._draw != draw + 1:
                    break  # load_state_dict moved the stream

    @property
    def draw(self) -> int:
        """Number of draws yielded by iterating, or set by `load_state_dict`."""
        return self._draw

    @property
    def position(self) -> int:
        """Position of the stream, equal to `draw`. All streams share the name `position` (`skillshard.mixing.stream`)."""
        return self._draw

    @property
    def step_draws(self) -> int | None:
        """Number of samples of an optimizer step, over all ranks and gradient accumulation. None if unknown."""
        return self.clock.step_size

    # --- losses in, weights out --------------------------------------------------------------------------------------

    @property
    def run(self) -> RunRecord:
        """Record of the run."""
        return self._rounds.run

    @property
    def first_draw(self) -> int:
        """First draw of the run: 0, or the draw from which the run continues another run."""
        return self.run.first_draw

    def report(self, step: SupportsIndex, losses: Mapping[str, Any], *, draw: SupportsIndex | None = None) -> None:
        """Record the losses measured after `step` optimizer steps.

        Args:
            step: Number of optimizer steps taken, 0 before the first step.
            losses: Evaluation skill -> loss in nats per token. A policy without evaluation skills reads the training skills. Every skill
                is required, unless the policy has `may_miss_losses` (static policies, `odm`, `exp3`, `ado`). Then a single skill is
                enough. Of training losses (`measured_on="training"`), a skill without a sample since the last report keeps the loss
                of the observation before. The result of `losses_per_skill` must be of the run's kind of losses. The kind of plain numbers is not checked.
            draw: Number of samples that the model has seen. The default is `step * step_draws`, counted from the last resume, so that
                `step_draws` may change between runs.

        Raises:
            ObservationError: Skills are unknown or missing, the report is empty, or a value is not a finite number >= 0. Another cause is
                the draw: the ledger already holds other losses of this draw or losses of a later draw, the draw is more than a round
                beyond the newest decided round, or a run with initial losses begins with another draw than 0. The last cause is another
                kind of losses.
            LedgerError: The ledger cannot be written, or the run was resumed elsewhere.
        """
        number = whole_number("step", step)
        at_draw = self.clock.position_at(number) if draw is None else whole_number("draw", draw)
        run = self._rounds.run
        # Also before the report: the report ends a silence.
        self._watch.look(self._rounds.records)
        kind, measured_on = (
            (losses.kind, losses.measured_on) if isinstance(losses, Losses) else (run.loss, run.measured_on)
        )
        self._rounds.report(number, at_draw, losses, kind, measured_on)
        self._watch.look(self._rounds.records)

    def metrics(
        self,
        *,
        step: SupportsIndex | None = None,
        draw: SupportsIndex | None = None,
        most_skills: int = MOST_SKILLS,
    ) -> dict[str, float]:
        """Return the numbers of the run at a draw for a logger. Nothing is decided, and the stream does not move.

        TensorBoard, Weights & Biases, MLflow and trackio accept the names: "skillshard/draw", "skillshard/round", and for each skill
        "skillshard/weight/SKILL", "skillshard/share/SKILL", "skillshard/epochs/SKILL", "skillshard/tokens/SKILL" (where weights count
        tokens) and "skillshard/loss/SKILL". `skillshard.mixing.metrics` describes the numbers and the writing of skills.

        Args:
            step: Number of optimizer steps taken, which gives the draw.
            draw: Number of draws that the model has seen, in place of a step. None without a step: the later draw of the mixer's position
                and the newest report.
            most_skills: Number of skills with metrics of their own: the skills with the most training samples. `metrics_table` has
                all skills.

        Raises:
            RoundError: The round of the draw is not decided yet.
            LedgerError: A record is damaged or missing.
            PolicyError: `most_skills` is no whole number from 0, or step and draw are both given.
        """
        if not is_whole(most_skills, 0, LAST_DRAW):
            raise PolicyError(f"most_skills is {most_skills!r}: give a number of skills, 0 or more.")
        at_draw, record, rows = self._metrics_at(step, draw)
        return scalars(self.run, record, at_draw, rows, most_skills=most_skills)

    def metrics_table(
        self, *, step: SupportsIndex | None = None, draw: SupportsIndex | None = None
    ) -> list[dict[str, str | float | None]]:
        """Return the numbers of every skill at a draw as rows with the columns skill, weight, share, epochs, tokens and loss.

        Arguments and errors are those of `metrics`. An unknown number is None.
        """
        return self._metrics_at(step, draw)[2]

    def _metrics_at(
        self, step: SupportsIndex | None, draw: SupportsIndex | None
    ) -> tuple[int, RoundRecord | None, list[Row]]:
        """Return the draw, the round of the last draw, and the metrics of every skill."""
        if step is not None and draw is not None:
            raise PolicyError(f"metrics got step={step!r} and draw={draw!r}: give one of them, or neither.")
        if step is not None:
            at_draw = self.clock.position_at(step)
        elif draw is not None:
            at_draw = whole_number("draw", draw)
        else:
            at_draw = max(self._draw, self._rounds.last_draw())
        run, record = self.run, None
        if at_draw > run.first_draw:
            record = self._rounds.decided_at(at_draw)
            at_draw = min(at_draw, record.first_draw + record.num_draws)
        observation = self._rounds.observed_at(at_draw)
        return at_draw, record, table(run, record, observation, at_draw, self._rounds.eval_skills)

    def step_reported_at(self, draw: int) -> int | None:
        """Return the step of the newest report if the report is of this draw, else None."""
        return self._rounds.step_reported_at(draw)

    def round(self, number: int) -> RoundRecord:
        """Return a round of the ledger. If the round is undecided, decide all rounds up to the round.

        Raises:
            RoundError: The losses for the round did not arrive within `wait_s`, or the stream ends before the round.
            LedgerError: A record is damaged or missing, or the run was resumed elsewhere.
            PolicyError: The number is below 0, or more than a million rounds beyond the newest round.
        """
        self._check_number(number)
        refuse_far(self._rounds, number, MOST_ROUNDS)
        return self._rounds.round(number)

    @property
    def num_rounds(self) -> int:
        """Number of decided rounds."""
        return self._rounds.records.rounds.num()

    @property
    def num_observations(self) -> int:
        """Number of recorded observations."""
        return self._rounds.records.observations.num()

    @property
    def generation(self) -> int:
        """Number of resumes and restarts of the run before this process joined."""
        return self._rounds.records.generation

    @property
    def run_digest(self) -> str:
        """Checksum of run.json, which determines the stream together with the losses."""
        return self._rounds.digest

    @property
    def initial_losses(self) -> bool:
        """Whether the first report is of the first draw, the model before the first step.

        A run that continues another run begins with the last losses of the other run, if these losses fit.
        """
        return self.run.needs_first_losses

    @property
    def lacks_first_losses(self) -> bool:
        """Whether the stream stands at the first draw of the run, and the run begins with the losses of this draw."""
        return self.initial_losses and self._draw == self.first_draw

    @property
    def loss(self) -> LossKind:
        """Kind of the reported losses."""
        return self._rounds.run.loss

    @property
    def measured_on(self) -> MeasuredOn:
        """Samples of the reported losses, "holdout" or "training"."""
        return self._rounds.run.measured_on

    @property
    def reads_losses(self) -> bool:
        """Whether the policy reads losses, so that a round may have to wait for a report."""
        return self.policy.reads_losses

    @property
    def identity(self) -> dict[str, Any]:
        """Facts that determine the stream together with the losses, as JSON."""
        return {"run": self.run_digest}

    @property
    def round_size(self) -> float:
        """Number of draws of a round."""
        return float(self.round_draws)

    @property
    def draws_per_position(self) -> float:
        """Number of draws of a position: 1, because a position of this stream is a draw."""
        return 1.0

    def holds(self, draw: int) -> bool:
        """Return whether the stream reaches a draw."""
        return len(self.find(np.array([draw]))) == 1

    def length(self) -> int | None:
        """Return the number of draws of the stream, or None if the stream is endless or its end depends on losses.

        The cost is the arithmetic of every round, about 0.1 ms per round. Nothing is written.
        """
        last = self._last_round()
        return None if last is None else last.first_draw + last.num_draws

    def num_drawn(self) -> list[int] | None:
        """Return the number of draws of each skill in the whole stream, or None under the conditions of `length`."""
        last = self._last_round()
        return None if last is None else drawn_at(self._rounds.run, last, last.first_draw + last.num_draws)

    def rounds_to_end(self) -> Iterator[RoundRecord] | None:
        """Compute every round of the whole stream, or return None under the conditions of `length`. Nothing is written."""
        return None if self.repeat == "epochs" or self.policy.reads_losses else self._rounds.to_end()

    def _last_round(self) -> RoundRecord | None:
        if self.rounds_to_end() is None:
            return None
        return memoized(self._last, 0, lambda _: self._rounds.last_round(), most=1)

    def check_start(self, *, rank: int = 0) -> None:
        """Refuse a wrong start in the main process, before hours of training. Adapters call `check_start` before the first batch.

        Args:
            rank: Rank of this process. Ranks above 0 leave the reports to rank 0.

        Raises:
            RoundError: The run begins with the losses of draw 0, and rank 0 has not reported these losses.
            LedgerError: The stream begins at draw 0, and the ledger holds later losses of an earlier attempt.
        """
        self._rounds.follows = rank > 0
        if rank == 0:
            self.check_begin(self._draw)
            if self._draw == self.first_draw and self._rounds.job is None:
                self._rounds.refuse_unmeasured()

    def check_begin(self, position: int) -> None:
        """Raise LedgerError if the main process begins at the first draw and the ledger holds losses of an earlier attempt.

        Args:
            position: Position of the mixer in draws.
        """
        # A loader worker may begin at position 0 after the main process has reported. So a worker cannot tell a report of this
        # attempt from a report of an earlier attempt, and only the main process is checked.
        if position == self.first_draw and not self._resumed_here and multiprocessing.parent_process() is None:
            self._rounds.refuse_begun()

    def refuse_far(self, number: int, *, place: str | None = None) -> None:
        """Refuse a round that lies so far ahead that no reader of the stream in order needs the round.

        Args:
            number: Number of the round.
            place: Subject of the sentence, such as the requested draw. None: the first draw of the round.

        Raises:
            PolicyError: The round lies too far beyond the newest decided round. No round is decided.
        """
        is_live = self.lag == "live" and self.reads_losses
        most = rounds_ahead(self.round_draws, is_live=is_live, step_draws=self.clock.step_size)
        refuse_far(self._rounds, number, most, place)

    def rows_of(self, number: int) -> RoundPlan | None:
        """Find the rows of a round without the texts. No file of a shard is read. Return None and raise as in `plan`."""
        try:
            return self._rows_of(number)
        except EndOfStream:
            return None

    def _rows_of(self, number: int) -> RoundPlan:
        if self.blocks is not None:
            raise PolicyError(
                "the draws of this mixer are blocks of tokens (unit='blocks') and not samples: read the blocks with PackedTokens(..., packing='skill')."
            )
        return plan_round(self._begun(number), self._train, self.orders, seed=self.seed)

    def plan_before(self) -> RoundPlan | None:
        """Find the sample of the last draw before a run that continues another run, as a round of one draw.

        Returns:
            The round, or None if the run has no draw before it, or no longer has the skill of the draw.
        """
        handover = read_record(self.ledger, HANDOVER, HandoverRecord)
        before = None if handover is None else last_sample(self.run, handover, self._train)
        if before is None:
            return None
        number, shard, rows = before
        return RoundPlan(self._train, [(number, shard)], [rows], np.array([number]), np.zeros(1, np.int64))

    def begun(self, number: int) -> RoundRecord | None:
        """Decide a round that a reader needs. Return None beyond the end of the stream. Raise PolicyError as in `plan`."""
        try:
            return self._begun(number)
        except EndOfStream:
            return None

    def _check_number(self, number: object) -> None:
        """Raise PolicyError unless a value can be the number of a round."""
        if not is_whole(number, 0, LAST_DRAW // self.round_draws - 1):
            raise PolicyError(f"round {number!r} was asked for: rounds are numbered 0, 1, 2, ...")

    def _begun(self, number: int) -> RoundRecord:
        self._check_number(number)
        self.refuse_far(number)
        record = self._rounds.round(number)
        if not record.num_draws:
            raise EndOfStream(f"the stream ends before round {number}.")
        return record

    def _plan_of(self, number: int) -> RoundPlan:
        plan = self._rows_of(number)
        if self.shards.files.is_remote:
            read_ahead(self._rounds.round(number), self.orders, [shards.prefetch for shards in self._train])
            plan.opened  # noqa: B018  # an open shard stays in the cache until its texts are read
        return plan

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self, *, step: SupportsIndex | None = None) -> dict[str, Any]:
        """Return the position of the stream as JSON. The size does not depend on the number of skills, samples and rounds.

        The records that this process wrote to the ledger are on the disk when the function returns.

        Args:
            step: Number of optimizer steps taken, for a trainer whose loader reads ahead. `step_draws` must be known. None: the
                number of draws yielded by iterating this mixer.

        Raises:
            LedgerError: The run was resumed elsewhere.
        """
        number = None if step is None else whole_number("step", step)
        return self.state_at(self._draw if number is None else self.clock.position_at(number), number).model_dump(
            by_alias=True
        )

    def state_at(self, draw: int, step: int | None = None) -> MixerState:
        """Return the state of a stream after `draw` consumed draws. Raise LedgerError as in `state_dict`."""
        # A stale process must not overwrite the checkpoint of the process that resumed the run elsewhere.
        self._rounds.records.refuse_superseded()
        if self._rounds.has_reported:
            self._watch.look(self._rounds.records)  # a trainer that no longer reports still saves checkpoints
        num_observations, observation = self._rounds.num_observed(draw)
        state = MixerState(
            draw=draw,
            step=step,
            run=self._rounds.digest,
            round=self._round_digest(draw),
            num_observations=num_observations,
            observation=observation,
        )
        # Ledger first, checkpoint second: after a power failure a checkpoint must never name records that the disk has lost.
        self.ledger.flush()
        return state

    def load_state_dict(self, state: Mapping[str, Any], *, generation: int | None = None) -> None:
        """Continue at a saved draw, in a new generation of the ledger. A process of an older generation stops at its next record.

        The ledger's records after the draw stay in the older generation. A warning names their folder.

        Args:
            state: Result of `state_dict`.
            generation: Number of the generation that rank 0 has begun for all ranks. None: this process begins a generation, or joins
                the generation of its `job`.

        Raises:
            LedgerError: The state belongs to another run or to another ledger of this run, or a record before the draw is damaged.
        """
        saved = read_state(state)
        before = self.run.continues
        if before is not None and self.begins_after(saved):
            self._refuse_other_place(saved, before)
            self._resume(before.draw, saved.step if before.step is None else before.step, generation, anew=True)
            return
        if saved.run != self._rounds.digest:
            raise LedgerError(
                f"this state is of run {saved.run}, but {self.ledger} is run {self._rounds.digest}: shards, seed, round_draws, lag and "
                "policy must be the same. To change them, let a new run continue the run of the state: Mixer.continue_from(...)."
            )
        # The check of the past comes before the new generation: a refused state must not end the processes of the living run.
        self._rounds.look(saved.draw, generation)
        self._check_past(saved)
        self._resume(saved.draw, saved.step, generation)

    def begins_after(self, saved: MixerState) -> bool:
        """Return whether a saved state is of the run before, or of an earlier run if the runs between have given no draw."""
        return begins_after(self.ledger, self.run, saved.run, saved.draw)

    def restart(self, *, generation: int | None = None) -> None:
        """Begin the run again from its first draw, for a run that ended before its first checkpoint.

        The records of the earlier attempt stay in the ledger, in their generation. On an untouched ledger without `job` and
        `generation`, nothing happens.

        Raises:
            LedgerError: The generation does not exist, or does not begin at draw 0.
        """
        if generation is None and self._rounds.job is None and self._rounds.records.is_untouched():
            self._resumed_here = True
            return
        before = self.run.continues
        self._resume(self.first_draw, None if before is None else before.step, generation, anew=True)

    def _refuse_other_place(self, saved: MixerState, before: Continued) -> None:
        """Raise LedgerError if a state of the run before is of another draw than the first draw of this run."""
        if saved.draw != before.draw:
            raise LedgerError(
                f"{self.ledger} continues run {before.run} from draw {before.draw:,}, and this state of that run is of draw {saved.draw:,}. Load the "
                f"checkpoint of draw {before.draw:,}, or continue the run from draw {saved.draw:,} in a new ledger directory."
            )

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
        """Return the checksum of the round of the last draw before a position, or of run.json at position 0."""
        if draw == self.first_draw:
            return self._rounds.digest
        number = self.run.round_of(draw - 1)
        record = self._rounds.decided(number)
        if record is None:
            if self.policy.reads_losses:
                return ""
            # A policy that reads no losses decides the same rounds in any ledger. So a checkpoint of this policy also resumes
            # beside an empty ledger, and the checksum proves that the rounds are equal.
            refuse_far(self._rounds, number, MOST_ROUNDS)
            record = self._rounds.round(number)
        return record.checksum

    def _check_past(self, saved: MixerState) -> None:
        """Raise LedgerError unless this ledger holds the records named by a saved state."""
        elsewhere = (
            f"The checkpoint at draw {saved.draw:,} was made beside another ledger, or records were lost: give ledger=the directory of "
            "that run, or copy the directory here."
        )
        if saved.round and self._round_digest(saved.draw) != saved.round:
            raise LedgerError(
                f"round {self.run.round_of(saved.draw - 1):,} of {self.ledger} is not the round that the checkpoint names. {elsewhere}"
            )
        if saved.num_observations and self.policy.reads_losses:
            record = self._rounds.records.observations.get(saved.num_observations - 1)
            if record is None or record.checksum != saved.observation:
                raise LedgerError(
                    f"observation {saved.num_observations - 1:,} of {self.ledger} is {'missing' if record is None else 'not the observation that the checkpoint names'}. "
                    f"{elsewhere}"
                )

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps cannot be pickled. A worker that gets a copy of the mixer maps the shards itself.
        return {**self.__dict__, "_plans": {}, "_watch": Watch()}


def _check_stretch(first: object, num: object) -> None:
    """Raise PolicyError unless a stretch of draws has a whole first draw, and a whole number of draws from 0."""
    # A negative number of draws would be the end of a slice, counted from the end of a round.
    if not is_whole(first, -LAST_DRAW, LAST_DRAW) or not is_whole(num, 0, MOST_AT_ONCE):
        raise PolicyError(
            f"{num!r} draws from draw {first!r} on were asked for: give whole numbers, and from 0 to {MOST_AT_ONCE:,} draws."
        )


def _old_tokens(needed: str | None, tokens: TokenSet | None, old_tokens: TokenSet | None) -> TokenSet | None:
    """Return the tokens of the run that is continued, or None if only the noted place of the tokens may lead to them."""
    if old_tokens is not None or tokens is None:
        return old_tokens
    return tokens if tokens.digest == needed else None
