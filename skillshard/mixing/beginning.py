"""The beginning of a run that continues another run: places, policy, weights and losses.

The beginning is a pure function of the handover and the arguments of the new run, so every process that opens the new ledger computes the
same run.json.
"""

from collections.abc import Mapping, Sequence

from skillshard import canonical
from skillshard.errors import ObservationError, PolicyError
from skillshard.loss import LossKind, MeasuredOn
from skillshard.mixing.counts import in_unit_of
from skillshard.mixing.handover import fields_of
from skillshard.mixing.matched_skills import Matched
from skillshard.mixing.place_records import (
    AheadEpoch,
    AheadSkippedPart,
    BlocksSkippedPart,
    Continued,
    CopiedObservation,
    SeenObservation,
)
from skillshard.mixing.positions import (
    grown_ahead,
)
from skillshard.mixing.run_records import (
    AheadRunRecord,
    BlocksHandoverRecord,
    BlockSkipsBlocksRunRecord,
    BlockSkipsRunRecord,
    BlocksRunRecord,
    HandoverRecord,
    RunRecord,
    SkippingRunRecord,
    ahead_of,
    open_skips_of,
    skipped_by,
)
from skillshard.mixing.skill_blocks import blocks_of_run
from skillshard.policies.policy import Observation, Policy, RunFacts, State, check_losses, in_draws
from skillshard.printable import counted
from skillshard.shards.token_set import TokenSet


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
    fields = fields_of(run) | {"skipped": skipped_by(handover), "open_skips": open_skips_of(handover)}
    ahead = grown_ahead(ahead_of(handover), [*run.continues.skills, *run.continues.absent])
    _refuse_end_before(run, run.continues, ahead)
    if run.blocks is not None and tokens is not None:
        has_skipped_blocks = isinstance(fields["skipped"], BlocksSkippedPart)
        if fields["skipped"] is not None and not has_skipped_blocks:
            fields["skipped"] = AheadSkippedPart(**({"ahead": []} | dict(fields["skipped"])))
        goes_on = isinstance(handover, BlocksHandoverRecord) and (handover.encoding, handover.separator) == (
            tokens.encoding,
            run.blocks.separator,
        )
        known = {place.label for place in (*run.continues.skills, *run.continues.absent)}
        cuts = [cut for cut in handover.cuts if cut.label in known] if goes_on else []  # type: ignore[attr-defined]
        fields |= {"ahead": ahead, "cuts": cuts}
        begun = BlocksRunRecord(**{**fields, "skipped": None}, drawn=[0] * len(run.skills))
        own = blocks_of_run(begun, [tokens.train[skill] for skill in run.skills])
        model = BlockSkipsBlocksRunRecord if has_skipped_blocks else BlocksRunRecord
        return model(**fields, drawn=[skill.drawn for skill in own])
    if isinstance(fields["skipped"], BlocksSkippedPart):
        return BlockSkipsRunRecord(**fields, ahead=ahead)
    if ahead or isinstance(fields["skipped"], AheadSkippedPart):
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


def policy_at_beginning(
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
