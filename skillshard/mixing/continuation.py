"""A run that continues another run: the place of a run in its stream, and the beginning of the new run from this place.

    old ledger, by `hand_over` -> handover.json, by `continued_by` -> the field `continues` of the new run.json

`hand_over` reads the old ledger. The handover holds everything that the new run needs, so the old ledger may be removed later. The shards,
the policy and all other arguments of the new run may differ. `continued_by` is a pure function of the handover and these arguments, so
every process that opens the new ledger computes the same run.json.

A skill is recognized by its content: the keys of its training shards, which do not depend on the name of the skill. docs/design/0016 has
the reasons.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from skillshard import canonical, places
from skillshard.errors import LedgerError, ObservationError, PolicyError, ShardError, TokensError, name_some
from skillshard.loss import LossKind, MeasuredOn
from skillshard.mixing.counts import drawn_at, in_unit_of
from skillshard.mixing.ledger import (
    HANDOVER,
    RUN,
    AheadHandoverRecord,
    AheadRunRecord,
    BlocksHandoverRecord,
    BlocksRunRecord,
    BlockUnit,
    DirectoryLedger,
    HandoverRecord,
    Ledger,
    ObservationRecord,
    RoundRecord,
    RunRecord,
    SkippingHandoverRecord,
    SkippingRunRecord,
    ahead_of,
    cuts_of,
    open_skips_of,
    read_record,
    skipped_by,
)
from skillshard.mixing.order import interleave
from skillshard.mixing.place_records import (
    AheadEpoch,
    AheadSkippedPart,
    Continued,
    CopiedObservation,
    CutSample,
    SeenObservation,
    SkillPosition,
)
from skillshard.mixing.positions import (
    advanced,
    after_skip,
    ahead_in,
    beginnings,
    grown,
    grown_ahead,
    skips_in,
    standings_after,
    untouched,
)
from skillshard.mixing.records import Records, counted_at, open_records, round_up_to
from skillshard.mixing.seen_draws import SavedPlace, refuse_inside_blocks, refuse_other_tokens, seen_draws
from skillshard.mixing.skill_blocks import blocks_of_run
from skillshard.mixing.skipping import Stretch, given_stretches, skipped_part
from skillshard.mixing.steps import Steps
from skillshard.policies.policy import Observation, Policy, RunFacts, State, check_losses, in_draws
from skillshard.printable import counted
from skillshard.shards.manifest import ShardColumns, ShardColumns2
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import SkillTokens, TokenSet

BEFORE_NOTE = "beside/before.json"
"""Name of the note on the place of the ledger of the run before, beside the records of a run."""
Change = Literal["continues", "grew", "came back", "is new", "begins again"]


# --- the content of a skill --------------------------------------------------------------------------------------------


def content_of(columns: ShardColumns2, num_shards: int | None = None) -> str:
    """Compute the digest of the first training shards of a skill. The digest does not depend on the name of the skill.

    Args:
        columns: Training shards of the skill.
        num_shards: Number of shards. None: all shards.
    """
    # The JSON member of a sample holds the name of its skill, and the keys do not. Older shards have no keys.
    digests = columns.keys_digest if isinstance(columns, ShardColumns) else columns.digest
    return canonical.digest(canonical.to_json([columns.num_samples[:num_shards], digests[:num_shards]]))


# --- what a run leaves -------------------------------------------------------------------------------------------------


def hand_over(
    ledger: Ledger,
    *,
    draw: int,
    step: int | None = None,
    restart: Collection[str] = (),
    skip: Sequence[Stretch] = (),
    records: Records | None = None,
    saved: SavedPlace | None = None,
    tokens: TokenSet | None = None,
) -> HandoverRecord:
    """Collect everything that a run leaves at a draw to the run that continues it.

    Args:
        ledger: Ledger of the run. Nothing is written.
        draw: Number of draws consumed, over all runs.
        step: Number of optimizer steps taken, over all runs. None: the number follows from the reports, or is unknown.
        restart: Skills that begin again although their samples may have been drawn.
        skip: Stretches of the run's draws that the new run skips, as for `skillshard.mixing.skipping.skipped_part`.
        records: Records of the generation that counts. None: the newest generation.
        saved: Place of the saved state that gave the draw. None: the draw was given as a number.
        tokens: Tokens of the run, for a saved state inside a round that was packed by best-fit.

    Raises:
        LedgerError: The ledger holds no run, a record is damaged, the run has not decided the draw or a skipped stretch, or a stretch begins
            before the draw. Another cause is a draw inside a round that was packed by best-fit, without a saved state.
        TokensError: The tokens are required and missing, or are other tokens.
        PolicyError: A stretch is no first draw, number of draws and reason, or two stretches overlap.
    """
    records = open_records(ledger) if records is None else records
    run = records.run
    if run.blocks is not None and skip:
        raise LedgerError(
            f"skip names draws whose samples count as seen, and the draws of the run of {ledger} are blocks of tokens (unit 'blocks'): leave out `skip`."
        )
    newest = _last_round_begun(records, draw)
    drawn = run.drawn_before if newest is None else drawn_at(run, newest, draw)
    starts = beginnings(run)
    observations, num_unread = _last_observations(records, draw, newest)
    state = None if run.continues is None else run.continues.policy_state
    weights = None if run.continues is None else run.continues.weights_before
    consumed, first_skipped, cuts = None, draw, cuts_of(run)
    if run.blocks is None and newest is not None and draw < newest.first_draw + newest.num_draws:
        consumed = None if saved is None else saved.consumed
        refuse_inside_blocks(ledger, newest, draw, saved)
    if newest is not None and consumed is not None:
        parts = seen_draws(run, newest, draw, consumed, tokens)
        begun = [advanced(start, num, run.seed) for start, num in zip(starts, newest.drawn_before, strict=False)]
        after = [after_skip(start, own, run.seed) for start, own in zip(begun, parts, strict=True)]
        first_skipped = newest.first_draw + newest.num_draws
    elif run.blocks is not None:
        after = []
        for own, num in zip(blocks_of_run(run, _tokens_of(run, run.blocks, tokens)), drawn, strict=True):
            standing, left = own.after(num)
            after.append(standing)
            cuts[standing.place.label] = left
    else:
        after = [advanced(start, num, run.seed) for start, num in zip(starts, drawn, strict=False)]
    after += starts[len(drawn) :]  # absent skills follow the skills of the run, and no draw moves them
    open_skips, skipped = skips_in(after, open_skips_of(run)), None
    if skip:
        skipped = skipped_part(records, skip, draw=first_skipped, before=after, earlier=open_skips)
        after = standings_after(skipped)
        open_skips = skips_in(after, open_skips)
    ahead = ahead_in(after)
    handover = HandoverRecord(
        run=run.checksum,
        draw=draw,
        step=_step_after(records, draw) if step is None else step,
        num_rounds=run.num_rounds_before + (0 if newest is None else newest.round + 1),
        skills=[standing.place for standing in after],
        present=run.skills,
        weights=weights if newest is None else newest.weights,
        unit=run.unit,
        sizes=run.num_tokens or run.num_samples,
        policy=run.policy,
        policy_arguments=run.policy_arguments,
        policy_state=state if newest is None else newest.policy_state,
        loss=run.loss,
        measured_on=run.measured_on,
        observations=observations,
        num_unread=num_unread,
        last_skill=None
        if consumed is not None or run.blocks is not None
        else _last_skill(records, newest, draw, [start.place.label for start in starts]),
        restart=sorted(restart),
    )
    fields = _fields_of(handover)
    if run.blocks is not None and tokens is not None:
        return BlocksHandoverRecord(
            **fields,
            skipped=None,
            open_skips=open_skips,
            ahead=ahead,
            encoding=tokens.encoding,
            separator=run.blocks.separator,
            cuts=[CutSample(label=label, left=left) for label, left in sorted(cuts.items()) if left],
        )
    if ahead:
        if skipped is not None and not isinstance(skipped, AheadSkippedPart):
            skipped = AheadSkippedPart(**dict(skipped), ahead=[])
        return AheadHandoverRecord(**fields, skipped=skipped, open_skips=open_skips, ahead=ahead)
    if not open_skips and skipped is None:
        return handover
    return SkippingHandoverRecord(**fields, skipped=skipped, open_skips=open_skips)


def _tokens_of(run: RunRecord, unit: BlockUnit, tokens: TokenSet | None) -> list[SkillTokens]:
    """Return the tokens of each skill of a run of blocks. Raise TokensError if the tokens are missing or are other tokens."""
    if tokens is None:
        raise TokensError(
            "the draws of the run are blocks of tokens (unit 'blocks'), and the tokens say which samples the blocks have. Give `old_tokens`, the tokens "
            "of the run that is continued."
        )
    refuse_other_tokens(tokens, unit)
    return [tokens.train[skill] for skill in run.skills]


def with_skips(run: RunRecord, handover: HandoverRecord | None, tokens: TokenSet | None = None) -> RunRecord:
    """Return the record of a run that continues another run, with the skips and the cut samples of the handover.

    Without skips and blocks the record stays as it is.

    Args:
        run: Record without skips.
        handover: Everything that the other run leaves. None: the run continues no run.
        tokens: Tokens of the run, if its draws are blocks.

    Raises:
        PolicyError: The rule of `repeat` ends a skill before a later epoch with skipped samples.
    """
    if handover is None or run.continues is None:
        return run
    fields = _fields_of(run) | {"skipped": skipped_by(handover), "open_skips": open_skips_of(handover)}
    ahead = grown_ahead(ahead_of(handover), [*run.continues.skills, *run.continues.absent])
    _refuse_end_before(run, run.continues, ahead)
    if run.blocks is not None and tokens is not None:
        if fields["skipped"] is not None:
            fields["skipped"] = AheadSkippedPart(**({"ahead": []} | dict(fields["skipped"])))
        goes_on = isinstance(handover, BlocksHandoverRecord) and (handover.encoding, handover.separator) == (
            tokens.encoding,
            run.blocks.separator,
        )
        known = {place.label for place in (*run.continues.skills, *run.continues.absent)}
        cuts = [cut for cut in handover.cuts if cut.label in known] if goes_on else []  # type: ignore[attr-defined]
        fields |= {"ahead": ahead, "cuts": cuts}
        begun = BlocksRunRecord(**fields, drawn=[0] * len(run.skills))
        own = blocks_of_run(begun, [tokens.train[skill] for skill in run.skills])
        return BlocksRunRecord(**fields, drawn=[skill.drawn for skill in own])
    if ahead:
        return AheadRunRecord(**fields, ahead=ahead)
    if fields["open_skips"] or fields["skipped"] is not None:
        return SkippingRunRecord(**fields)
    return run


def _refuse_end_before(run: RunRecord, continues: Continued, ahead: Sequence[AheadEpoch]) -> None:
    """Raise PolicyError if a skill ends between its open epoch and a later epoch with skipped samples, which count as drawn already."""
    if run.repeat == "epochs":
        return
    most = 1 if run.repeat in ("stop", "drop") else int(run.repeat.removeprefix("cap:"))
    for place in continues.skills:
        last = max((own.epoch for own in ahead if own.label == place.label), default=place.epoch)
        if place.epoch < most <= last:
            raise PolicyError(
                f"repeat={run.repeat!r} ends skill {place.skill!r} after {counted(most, 'epoch')}, and skipped samples of its epoch number {last + 1} "
                f"count as drawn: the last {counted(most, 'epoch')} would end too early. Give at least repeat='cap:{last + 1}', or skip other draws."
            )


def _fields_of(record: HandoverRecord | RunRecord) -> dict[str, Any]:
    names = set(type(record).model_fields) - {"schema_version", "checksum"}
    return {name: getattr(record, name) for name in names}


def draw_after(records: Records, step: int, step_draws: int | None) -> int:
    """Return the draw at the end of an optimizer step.

    Args:
        records: Records of the run.
        step: Number of optimizer steps taken, over all runs.
        step_draws: Number of samples of an optimizer step. None: the number follows from the reports.

    Raises:
        LedgerError: The run begins after the step, or the draws of the step are not known.
    """
    begun = records.run.continues
    first = 0 if begun is None else begun.step
    if first is not None and step <= first:
        if step < first:
            raise LedgerError(
                f"{records.ledger} begins at step {first:,}, and step {step:,} lies before: continue the run before it."
            )
        return records.run.first_draw
    return Steps(records, step_draws).draws_of(step).stop


def _step_after(records: Records, draw: int) -> int | None:
    """Return the number of optimizer steps taken at a draw, or None if the reports do not tell the number."""
    begun = records.run.continues
    if draw == records.run.first_draw:
        return 0 if begun is None else begun.step
    steps = Steps(records)
    step = steps.step_of(draw - 1)
    return step if step is not None and steps.draws_of(step).stop == draw else None


def put_handover(ledger: Ledger, handover: HandoverRecord) -> None:
    """Write the handover into the ledger of the new run, or join a run that continues the same run from the same draw.

    Raises:
        LedgerError: The ledger holds another run.
    """
    if ledger.get(HANDOVER) is None and ledger.get(RUN) is not None:
        raise LedgerError(f"{ledger} holds a run that continues no other run: give a new ledger directory.")
    ledger.put(HANDOVER, handover.to_bytes())
    handed_over = read_record(ledger, HANDOVER, HandoverRecord)
    assert handed_over is not None
    known, own = (
        (
            record.run,
            record.draw,
            f"step {record.step}, restart {record.restart}, skip {given_stretches(record)}",
        )
        for record in (handed_over, handover)
    )
    if known != own:
        raise LedgerError(
            f"{ledger} continues run {known[0]} from draw {known[1]:,} ({known[2]}), and this call continues run {own[0]} from draw {own[1]:,} "
            f"({own[2]}): give a new ledger directory."
        )


# --- the chain of runs -------------------------------------------------------------------------------------------------


class EarlierRun(NamedTuple):
    """A run that another run has continued.

    Attributes:
        place: Place of its ledger. None: unknown.
        run: Checksum of its run.json.
        first_draw: First draw of the run. None: its ledger is not at the place.
        end_draw: Draw from which the next run continues.
        step: Number of optimizer steps taken at this draw. None: unknown.
        policy: Policy of the run. None: its ledger is not at the place.
    """

    place: str | None
    run: str
    first_draw: int | None
    end_draw: int
    step: int | None
    policy: str | None


def note_before(ledger: Ledger, old_ledger: Ledger) -> None:
    """Note the place of the ledger of the run before, for commands that look at the run later. The note is no record."""
    if isinstance(ledger, DirectoryLedger) and isinstance(old_ledger, DirectoryLedger):
        # A relative place, so that a directory of runs may move as a whole.
        place = os.path.relpath(Path(old_ledger.root).absolute(), Path(ledger.root).absolute())
        ledger.put(BEFORE_NOTE, canonical.to_json({"place": place}))


def earlier_runs(ledger: DirectoryLedger) -> list[EarlierRun]:
    """List the runs that a run continues, the oldest first. The list begins with a run whose ledger is not at the noted place, if any.

    Raises:
        LedgerError: A ledger holds no run, or its record is damaged.
    """
    earlier: list[EarlierRun] = []
    run = open_records(ledger).run
    while run.continues is not None:
        begun = run.continues
        note = ledger.get(BEFORE_NOTE)
        place = None
        if note is not None:
            place = os.path.normpath(os.path.join(ledger.root, str(json.loads(note)["place"])))
        before = None if place is None else read_record(DirectoryLedger(place), RUN, RunRecord)
        if before is None or before.checksum != begun.run:
            earlier.insert(0, EarlierRun(place, begun.run, None, begun.draw, begun.step, None))
            break
        earlier.insert(0, EarlierRun(place, begun.run, before.first_draw, begun.draw, begun.step, before.policy))
        ledger, run = DirectoryLedger(place or ""), before
    return earlier


def _last_round_begun(records: Records, draw: int) -> RoundRecord | None:
    """Return the round of the last draw before a draw. None at the first draw of the run."""
    run, ledger = records.run, records.ledger
    if draw < run.first_draw:
        raise LedgerError(
            f"{ledger} begins at draw {run.first_draw:,}, and draw {draw:,} lies before: continue the run before it."
        )
    return round_up_to(
        records,
        draw,
        what=f"the new run would begin at draw {draw:,}",
        remedy="no model has seen these draws. Give the draw of a checkpoint.",
    )


def _last_observations(records: Records, draw: int, newest: RoundRecord | None) -> tuple[list[SeenObservation], int]:
    """Return the observations up to a draw that the last round begun has not used, or the last observation, and the number of unread ones."""
    run = records.run
    num_read = run.num_copied if newest is None else newest.num_observed
    # A policy that reads no losses leaves all observations unread for ever. Its rounds say so: none has used a later report.
    if newest is not None and newest.observed_to <= run.copied_draw and (run.lag == "live" or newest.round > run.lag):
        num_read = records.observations.num()
    seen: list[ObservationRecord] = []
    for number in reversed(records.observations.numbers()):
        observation = records.observations.get(number)
        if observation is None or observation.draw > draw:
            continue
        if number < num_read and seen:
            break
        seen.insert(0, observation)
        if number <= num_read - 1:
            return [_seen(records, observation, newest)], 0
    return [_seen(records, observation, newest) for observation in seen], len(seen)


def _seen(records: Records, observation: ObservationRecord, newest: RoundRecord | None) -> SeenObservation:
    drawn, number = counted_at(records, observation.draw, newest)
    return SeenObservation(
        step=observation.step,
        draw=observation.draw,
        losses=observation.losses,
        left_out=observation.left_out,
        drawn=drawn,
        round=number,
    )


def _last_skill(records: Records, newest: RoundRecord | None, draw: int, labels: Sequence[str]) -> str | None:
    """Return the label of the skill of the last draw before a draw."""
    run = records.run
    if newest is None:
        # The last draw belongs to an earlier run. After a skip, the place of its skill no longer follows the last draw.
        before = read_record(records.ledger, HANDOVER, HandoverRecord) if run.continues else None
        return before.last_skill if before is not None and skipped_by(run) is None else None
    skill, _ = interleave(np.array(newest.counts), "round", run.seed, newest.round)
    return labels[int(skill[draw - 1 - newest.first_draw])]


# --- how the new run begins --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matched:
    """The skills of the new run, recognized in the handover.

    Attributes:
        skills: Place in the order of each skill of the new run.
        absent: Known skills that the new run does not have.
        changes: What happens to each skill.
        old_names: Present name -> name in the run before, for the skills of the run before.
        num_repeated: Upper limit of the number of samples that come twice in the open epochs.
    """

    skills: list[SkillPosition]
    absent: list[SkillPosition]
    changes: dict[str, Change]
    old_names: dict[str, str]
    num_repeated: int


def matched(handover: HandoverRecord, shards: ShardSet, *, seed: int) -> Matched:
    """Recognize the skills of a shard set in a handover.

    Raises:
        ShardError: A skill holds other samples than before, or may hold drawn samples of a skill that is gone, and is not named in
            `restart`. Another cause is a name in `restart` that does not need it.
    """
    known = list(handover.skills)
    present = set(handover.present)
    columns = {skill: of_skill.columns for skill, of_skill in shards.train.items()}
    recognized = _recognized(columns, known)
    left = sorted(set(range(len(known))) - set(recognized.values()))
    new = [skill for skill in columns if skill not in recognized]
    removed = [known[number] for number in left if known[number].position and not _is_in(known[number], shards)]
    num_repeated = min(
        sum(position.position for position in removed), sum(sum(columns[skill].num_samples) for skill in new)
    )
    suspects = new if num_repeated else []
    _check_restart(handover, shards, suspects, removed, num_repeated)
    labels = {position.label for position in known}
    skills, changes = [], dict[str, Change]()
    for skill, own in columns.items():
        common: dict[str, Any] = {
            "skill": skill,
            "seed": seed,
            "content": content_of(own),
            "shard_rows": own.num_samples,
        }
        if skill in recognized:
            before = known[recognized[skill]]
            skills.append(grown(before, **common))
            has_grown = len(own.num_samples) > before.num_shards
            change = "continues" if recognized[skill] < len(handover.present) else "came back"
            changes[skill] = "grew" if has_grown else change  # type: ignore[assignment]  # both are members of Change
        else:
            label = skill
            while label in labels:
                label += "'"
            labels.add(label)
            skills.append(untouched(label=label, **common))
            changes[skill] = "begins again" if skill in suspects else "is new"
    old_names = {skill: known[number].skill for skill, number in recognized.items() if known[number].skill in present}
    return Matched(skills, [known[number] for number in left], changes, old_names, num_repeated)


def _recognized(columns: Mapping[str, ShardColumns2], known: Sequence[SkillPosition]) -> dict[str, int]:
    """Return skill -> number of the known skill with the same content. A skill of the same name comes before a renamed skill."""
    by_name = {position.skill: number for number, position in enumerate(known)}
    recognized = {
        skill: by_name[skill]
        for skill, own in columns.items()
        if skill in by_name and _begins_with(own, known[by_name[skill]])
    }
    left = [number for number in range(len(known)) if number not in recognized.values()]
    for skill, own in columns.items():
        if skill not in recognized:
            number = next((number for number in left if _begins_with(own, known[number])), None)
            if number is not None:
                recognized[skill] = number
                left.remove(number)
    return recognized


def continued_by(
    handover: HandoverRecord,
    skills: Matched,
    *,
    unit: str,
    num_tokens: Sequence[int] | None,
    policy: Policy,
    loss: LossKind,
    measured_on: MeasuredOn,
    num_draws: Sequence[int] | None = None,
) -> Continued:
    """Return the beginning of the run that continues the run of a handover.

    The policy keeps its state if its name, its arguments and the state at its beginning are the same. Otherwise the policy begins with the last
    observation, if the observation has the losses that the policy reads.
    """
    names = [position.skill for position in skills.skills]
    sizes = list(num_draws or [position.num_samples for position in skills.skills])
    state = policy.init(tuple(names), num_tokens or sizes)
    is_same_kind = (unit == "blocks") == (handover.unit == "blocks")
    observations = [_present(seen, handover, skills, num_tokens, sizes, is_same_kind) for seen in handover.observations]
    last = handover.observations[-1] if handover.observations else None
    copied = None
    fits = loss == handover.loss and measured_on == handover.measured_on
    if fits and _is_same_policy(handover, policy, names, unit, state):
        state = handover.policy_state or state
        unread = observations[len(observations) - handover.num_unread :]
        left_out = [seen.left_out for seen in handover.observations[len(observations) - handover.num_unread :]]
        if policy.reads_losses:
            for observation, is_hidden in zip(unread, left_out, strict=True):
                state = state if is_hidden else policy.observe(state, observation)
        if last is not None:
            copied = CopiedObservation(step=last.step, draw=last.draw, losses=last.losses, left_out=last.left_out)
    elif last is not None and not last.left_out and fits:
        fitting = _fitting(observations[-1], policy, names)
        if fitting is not None:
            state = policy.observe(state, fitting) if policy.reads_losses else state
            copied = CopiedObservation(step=last.step, draw=last.draw, losses=dict(fitting.losses), left_out=False)
    return Continued(
        run=handover.run,
        handover=handover.checksum,
        draw=handover.draw,
        step=handover.step,
        num_rounds=handover.num_rounds,
        skills=skills.skills,
        absent=skills.absent,
        weights_before=_weights_before(handover, skills, unit),
        policy_state=state,
        observation=copied,
    )


def beginning_of(
    policy: Policy, handover: HandoverRecord, skills: Matched, run: RunRecord, *, step_draws: int | None
) -> tuple[Policy, str]:
    """Check that a policy fits the run that continues another run, as the mixer of the new run would.

    Args:
        policy: Policy of the new run.
        handover: Everything that the other run leaves.
        skills: Places of the skills of the new run.
        run: Record of the other run.
        step_draws: Number of draws of an optimizer step. None: unknown.

    Returns:
        The policy with its ends in draws, and the state with which the policy begins, in words.

    Raises:
        PolicyError: The policy does not fit the skills, or the weights of the run count tokens.
    """
    if run.unit != "samples":
        raise PolicyError(
            f"the weights of the run count {run.unit}, and this check knows only samples: leave out `policy`. The mixer of the new run makes the check."
        )
    names = tuple(place.skill for place in skills.skills)
    sizes = tuple(place.num_samples for place in skills.skills)
    policy = in_draws(policy, RunFacts(names, sizes, None, step_draws, handover.step, handover.draw))
    begun = continued_by(
        handover,
        skills,
        unit=run.unit,
        num_tokens=None,
        policy=policy,
        loss=run.loss,
        measured_on=run.measured_on,
    )
    if _is_same_policy(handover, policy, list(names), run.unit, policy.init(names, sizes)):
        return policy, "is the policy of the run, and keeps its state"
    if begun.observation is not None and policy.reads_losses:
        return policy, f"begins with the losses of step {begun.observation.step:,}"
    return policy, "begins with a state of its own"


def _begins_with(columns: ShardColumns2, position: SkillPosition) -> bool:
    num_shards = position.num_shards
    return (
        len(columns.number) >= num_shards
        and sum(columns.num_samples[:num_shards]) == position.num_samples
        and content_of(columns, num_shards) == position.content
    )


def _is_in(position: SkillPosition, shards: ShardSet) -> bool:
    """Return whether a skill of the whole shard set, chosen or not, has the content. A sample has a single skill."""
    return any(_begins_with(skill.train, position) for skill in shards.manifest.skills)


def _check_restart(
    handover: HandoverRecord, shards: ShardSet, suspects: list[str], removed: list[SkillPosition], num_repeated: int
) -> None:
    """Raise ShardError unless exactly the skills that must begin again are named in `restart`."""
    needless = [skill for skill in handover.restart if skill not in suspects]
    if needless:
        raise ShardError(
            f"restart names {name_some(map(repr, needless))}, and {'this skill' if len(needless) == 1 else 'these skills'} of "
            f"{places.public(shards.root)} need{'s' if len(needless) == 1 else ''} no restart: every skill with known samples continues, and a skill "
            "with new samples begins by itself. Leave the name out."
        )
    missing = [skill for skill in suspects if skill not in handover.restart]
    if missing:
        raise ShardError(
            f"{name_some(map(repr, missing))} in {places.public(shards.root)} may hold samples of {name_some(repr(position.skill) for position in removed)}, "
            f"which the run has begun to draw and which {'is' if len(removed) == 1 else 'are'} gone: the skills were split, merged or tagged anew. Up to "
            f"{counted(num_repeated, 'sample')} would come twice in an epoch. To begin these skills again in spite of that, give "
            f"restart={missing!r}. To add samples to a skill, use 'skillshard shard --append'."
        )


def _present(
    seen: SeenObservation,
    handover: HandoverRecord,
    skills: Matched,
    num_tokens: Sequence[int] | None,
    sizes: Sequence[int],
    is_same_kind: bool,
) -> Observation:
    """Return an observation of the run before in the names, sizes and unit of the new run."""
    before = {position.skill: position.num_samples for position in handover.skills[: len(handover.present)]}
    if handover.unit == "blocks":
        before = dict(zip(handover.present, handover.sizes, strict=True))
    drawn_of = dict(zip(handover.present, seen.drawn, strict=True))
    drawn = []
    for position, size in zip(skills.skills, sizes, strict=True):
        old_name = skills.old_names.get(position.skill)
        num = 0
        if old_name is not None:
            num_before, num_drawn = before[old_name], drawn_of[old_name]
            epoch = (num_drawn - 1) // num_before if num_drawn else 0
            in_epoch = num_drawn - epoch * num_before
            # From samples to blocks or back: the same share of the epoch.
            num = epoch * size + (in_epoch if is_same_kind else in_epoch * size // num_before)
        drawn.append(num)
    in_units = in_unit_of(drawn, sizes, num_tokens)
    new_names = {old: new for new, old in skills.old_names.items()}
    losses = {new_names.get(name, name): loss for name, loss in seen.losses.items() if loss is not None}
    names = [position.skill for position in skills.skills]
    return Observation(seen.step, losses, seen.draw, dict(zip(names, in_units, strict=True)), seen.round)


def _is_same_policy(handover: HandoverRecord, policy: Policy, names: Sequence[str], unit: str, state: State) -> bool:
    if (handover.policy, handover.policy_arguments, handover.unit, handover.present) != (
        policy.name,
        canonical.from_json(canonical.to_json(policy.arguments), "arguments"),
        unit,
        list(names),
    ):
        return False
    # A state may hold sizes, such as the weights of `proportional`.
    try:
        return policy.init(tuple(names), handover.sizes) == state
    except PolicyError:
        return False


def _fitting(observation: Observation, policy: Policy, skills: Sequence[str]) -> Observation | None:
    """Return the part of an observation that the policy reads, or None if losses are missing."""
    named = policy.eval_skills or tuple(skills)
    losses = {name: loss for name, loss in observation.losses.items() if name in set(named)}
    try:
        read: Mapping[str, float] = check_losses(
            losses, named, step=observation.step, may_miss=policy.may_miss_losses and policy.reads_losses
        )
    except ObservationError:
        return None
    return Observation(observation.step, read, observation.draw, observation.drawn, observation.round)


def _weights_before(handover: HandoverRecord, skills: Matched, unit: str) -> list[float] | None:
    if handover.weights is None or handover.unit != unit:
        return None
    weight_of = dict(zip(handover.present, handover.weights, strict=True))
    names = [skills.old_names.get(position.skill) for position in skills.skills]
    if names == handover.present:
        return handover.weights
    weights = [0.0 if name is None else weight_of[name] for name in names]
    total = sum(weights)
    return [weight / total for weight in weights] if total > 0 else None
