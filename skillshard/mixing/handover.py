"""Everything that a run leaves at a draw to the next run.

    old ledger, by `hand_over` -> handover.json of the new ledger, by `beginning.continued_by` -> the field `continues` of the new run.json

The handover holds everything that the new run needs, so the old ledger may be removed later. The shards, the policy and all other arguments
of the new run may differ. docs/design/0016 has the reasons.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from skillshard.errors import LedgerError, TokensError
from skillshard.mixing.counts import drawn_at
from skillshard.mixing.ledger import HANDOVER, RUN, Ledger, read_record
from skillshard.mixing.noted_places import known_tokens
from skillshard.mixing.order import round_order
from skillshard.mixing.place_records import (
    AheadSkippedPart,
    CutSample,
    LastDraw,
    SeenObservation,
    SkipInEpoch,
    SkippedPart,
)
from skillshard.mixing.positions import (
    Standing,
    advanced,
    after_last_draw,
    after_skip,
    ahead_in,
    beginnings,
    skips_in,
    standings_after,
)
from skillshard.mixing.records import Records, counted_at, open_records, round_up_to
from skillshard.mixing.round_records import ObservationRecord, RoundRecord
from skillshard.mixing.run_records import (
    AheadHandoverRecord,
    BlocksHandoverRecord,
    BlockSkipsHandoverRecord,
    BlockUnit,
    HandoverRecord,
    LastDrawHandoverRecord,
    RunRecord,
    SkippingHandoverRecord,
    cuts_of,
    last_draw_of,
    open_skips_of,
    skipped_by,
)
from skillshard.mixing.seen_draws import ConsumedBlocks, SavedPlace, refuse_inside_blocks, seen_draws
from skillshard.mixing.skill_blocks import SkillBlocks, blocks_of_run, refuse_other_tokens
from skillshard.mixing.skipped_blocks import skipped_blocks
from skillshard.mixing.skipping import Stretch, given_stretches, skipped_part
from skillshard.mixing.steps import Steps
from skillshard.shards.token_set import SkillTokens, TokenSet


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
        tokens: Tokens of the run, if its draws are blocks, or for a saved state inside a round that was packed by best-fit. None: the tokens at the
            place that the run has noted.

    Raises:
        LedgerError: The ledger holds no run, a record is damaged, the run has not decided the draw or a skipped stretch, or a stretch begins
            before the draw. Another cause is a draw inside a round that was packed by best-fit, without a saved state.
        TokensError: The tokens are required and missing, or are other tokens.
        PolicyError: A stretch is no first draw, number of draws and reason, or two stretches overlap.
    """
    records = open_records(ledger) if records is None else records
    run = records.run
    newest = _last_round_begun(records, draw, step)
    tokens = known_tokens(ledger, needed_tokens(run, saved)) if tokens is None else tokens
    left = _left_by(records, draw, newest, skip, saved, tokens)
    observations, num_unread = _last_observations(records, draw, newest)
    state = None if run.continues is None else run.continues.policy_state
    weights = None if run.continues is None else run.continues.weights_before
    last_skill, last = _last_draw(records, newest, draw) if left.is_in_order else (None, None)
    handover = HandoverRecord(
        run=run.checksum,
        draw=draw,
        step=_step_after(records, draw) if step is None else step,
        num_rounds=run.num_rounds_before + (0 if newest is None else newest.round + 1),
        skills=[standing.place for standing in left.after],
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
        last_skill=last_skill,
        restart=sorted(restart),
    )
    return _extended(handover, left, last, run, tokens)


def needed_tokens(run: RunRecord, saved: SavedPlace | None) -> str | None:
    """Return the digest of the tokens that say which samples the model has seen at a saved state. None: the draws are samples."""
    if run.blocks is not None:
        return run.blocks.tokens
    return None if saved is None or saved.consumed is None else saved.consumed.unit.tokens


class _Left(NamedTuple):
    """The places that a run leaves.

    Attributes:
        after: Where each skill stands, then where each absent skill stands. Skipped samples count as drawn.
        is_in_order: Whether the draws are samples, and the model has seen them in the order of the stream.
        skipped: Draws that the new run skips, or None.
        earlier: Skips in the open epochs that were known before `skipped`, the oldest first.
        cuts: Label of each skill with a cut sample -> number of tokens of the sample that no block has.
    """

    after: list[Standing]
    is_in_order: bool
    skipped: SkippedPart | None
    earlier: list[SkipInEpoch]
    cuts: dict[str, int]


def _left_by(
    records: Records,
    draw: int,
    newest: RoundRecord | None,
    skip: Sequence[Stretch],
    saved: SavedPlace | None,
    tokens: TokenSet | None,
) -> _Left:
    """Return the places that a run leaves at a draw to a run that skips some stretches. The arguments are those of `hand_over`."""
    run = records.run
    drawn = run.drawn_before if newest is None else drawn_at(run, newest, draw)
    starts = beginnings(run)
    absent = starts[len(drawn) :]  # absent skills follow the skills of the run, and no draw moves them
    cuts, earlier, first_skipped, is_in_order = cuts_of(run), open_skips_of(run), draw, run.blocks is None
    blocks: list[SkillBlocks] = []
    skipped: SkippedPart
    if run.blocks is not None:
        blocks = blocks_of_run(run, _tokens_of(run, run.blocks, tokens))
        places = [own.after(num) for own, num in zip(blocks, drawn, strict=True)]
        after = [standing for standing, _ in places]
        cuts |= {standing.place.label: left for standing, left in places}
    elif newest is not None and (consumed := _consumed(records.ledger, newest, draw, saved)) is not None:
        parts = seen_draws(run, newest, draw, consumed, tokens)
        begun = [advanced(start, num, run.seed) for start, num in zip(starts, newest.drawn_before, strict=False)]
        after = [after_skip(start, own, run.seed) for start, own in zip(begun, parts, strict=True)]
        first_skipped, is_in_order = newest.first_draw + newest.num_draws, False
    else:
        after = [advanced(start, num, run.seed) for start, num in zip(starts, drawn, strict=False)]
    after += absent
    if not skip:
        return _Left(after, is_in_order, None, earlier, cuts)
    open_skips = skips_in(after, earlier)
    if run.blocks is None:
        skipped = skipped_part(records, skip, draw=first_skipped, before=after, earlier=open_skips)
    else:
        skipped, cuts_after = skipped_blocks(
            records, skip, draw=draw, blocks=blocks, drawn=drawn, before=after, earlier=open_skips
        )
        cuts |= cuts_after
    return _Left(standings_after(skipped), is_in_order, skipped, open_skips, cuts)


def _consumed(ledger: Ledger, newest: RoundRecord, draw: int, saved: SavedPlace | None) -> ConsumedBlocks | None:
    """Return the consumed blocks of a round that was packed by best-fit and that the draw cuts, or None for another round."""
    if draw == newest.first_draw + newest.num_draws:
        return None
    refuse_inside_blocks(ledger, newest, draw, saved)
    return None if saved is None else saved.consumed


def _extended(
    handover: HandoverRecord, left: _Left, last: LastDraw | None, run: RunRecord, tokens: TokenSet | None
) -> HandoverRecord:
    """Add the skips, the cut samples and the place of the last draw to a handover. A handover without such parts is returned unchanged."""
    fields, open_skips, ahead = fields_of(handover), skips_in(left.after, left.earlier), ahead_in(left.after)
    skipped = left.skipped
    if run.blocks is not None and tokens is not None:
        model: type[BlocksHandoverRecord] = BlocksHandoverRecord if skipped is None else BlockSkipsHandoverRecord
        fields |= {
            "skipped": skipped,
            "open_skips": open_skips,
            "ahead": ahead,
            "encoding": tokens.encoding,
            "separator": run.blocks.separator,
            "cuts": [CutSample(label=label, left=num) for label, num in sorted(left.cuts.items()) if num],
        }
        return model(**fields)
    # A skip may begin where later epochs have skipped samples, and end where none has.
    if ahead or last is not None or isinstance(skipped, AheadSkippedPart):
        if skipped is not None and not isinstance(skipped, AheadSkippedPart):
            skipped = AheadSkippedPart(**dict(skipped), ahead=[])
        fields |= {"skipped": skipped, "open_skips": open_skips, "ahead": ahead}
        return AheadHandoverRecord(**fields) if last is None else LastDrawHandoverRecord(**fields, last=last)
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
    refuse_other_tokens(tokens, unit, "the run that is continued")
    return [tokens.train[skill] for skill in run.skills]


def fields_of(record: HandoverRecord | RunRecord) -> dict[str, Any]:
    """Return the fields of a record without its schema and its checksum, for a record with more fields."""
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


def _last_round_begun(records: Records, draw: int, step: int | None) -> RoundRecord | None:
    """Return the round of the last draw before a draw, after a step if the step is known. None at the first draw of the run."""
    run, ledger = records.run, records.ledger
    if draw < run.first_draw:
        raise LedgerError(
            f"{ledger} begins at draw {run.first_draw:,}, and draw {draw:,} lies before: continue the run before it."
        )
    return round_up_to(
        records,
        draw,
        what=f"the new run would begin at draw {draw:,}" + ("" if step is None else f" (step {step:,})"),
        remedy="no model has seen these draws. Give the place of a checkpoint.",
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


def _last_draw(records: Records, newest: RoundRecord | None, draw: int) -> tuple[str | None, LastDraw | None]:
    """Return the label of the skill of the last draw before a draw, and the place after the last draw if it needs a record.

    Without a record, the last draw has the last position before the place of its skill.
    """
    run = records.run
    if newest is not None:
        skill, _ = round_order(newest.counts, seed=run.seed, number=newest.round)
        return beginnings(run)[int(skill[draw - 1 - newest.first_draw])].place.label, None
    # The last draw belongs to an earlier run.
    before = read_record(records.ledger, HANDOVER, HandoverRecord) if run.continues else None
    if before is None:
        return None, None
    standing = after_last_draw(run, before)
    if standing is None or (last_draw_of(before) is None and skipped_by(run) is None):
        return before.last_skill, None
    return before.last_skill, LastDraw(place=standing.place, skips=list(standing.skips))


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
