"""The record of a new run: the facts that determine its stream together with the losses."""

import operator
from collections.abc import Sequence

from skillshard.loss import LossKind, MeasuredOn
from skillshard.mixing.arguments import begins_with_losses, recorded_arguments
from skillshard.mixing.beginning import continued_by, with_skips
from skillshard.mixing.matched_skills import content_of, matched
from skillshard.mixing.order import ORDER_VERSION
from skillshard.mixing.run_records import BlockUnit, HandoverRecord, Lag, RunRecord
from skillshard.mixing.skill_blocks import epoch_blocks
from skillshard.policies.policy import Policy, RunFacts, in_draws
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards
from skillshard.shards.token_set import TokenSet


def policy_in_draws(
    policy: Policy,
    train: Sequence[SkillShards],
    num_tokens: Sequence[int] | None,
    *,
    step_draws: int | None,
    handover: HandoverRecord | None,
) -> Policy:
    """Convert the steps and tokens that a policy counts to draws, by the facts of a run.

    Args:
        policy: Policy of the run.
        train: Training shards of each skill.
        num_tokens: Number of tokens of each skill. None: weights do not count tokens.
        step_draws: Number of draws of an optimizer step. None: unknown.
        handover: Handover of the run before. None: the run continues no run.

    Raises:
        PolicyError: The policy counts a unit that the facts do not tell.
    """
    facts = RunFacts(
        skills=tuple(skill_shards.skill for skill_shards in train),
        num_samples=tuple(map(len, train)),
        num_tokens=None if num_tokens is None else tuple(num_tokens),
        step_draws=None if step_draws is None else operator.index(step_draws),
        first_step=0 if handover is None else handover.step,
        first_draw=0 if handover is None else handover.draw,
    )
    return in_draws(policy, facts)


def new_run(
    shards: ShardSet,
    policy: Policy,
    *,
    handover: HandoverRecord | None,
    unit: str,
    tokens: TokenSet | None,
    num_tokens: list[int] | None,
    blocks: BlockUnit | None,
    seed: int,
    round_draws: int,
    lag: Lag,
    repeat: str,
    loss: LossKind,
    measured_on: MeasuredOn,
    initial_losses: bool | None,
) -> RunRecord:
    """Make the record of a run from checked arguments of `Mixer`.

    Args:
        shards: Shards of the run.
        policy: Policy, from `policy_in_draws`.
        handover: Handover of the run before. None: the run continues no run.
        num_tokens: Number of tokens of each skill. None: weights do not count tokens.
        blocks: Unit of the draws, if draws are blocks of tokens.
        unit, tokens, seed, round_draws, lag, repeat, loss, measured_on, initial_losses: As for `Mixer`.

    Raises:
        ShardError: A skill of the run before was split, merged or tagged anew.
        PolicyError: The policy does not fit the run before.
    """
    train = [shards.train[skill] for skill in shards.skills]
    columns = [skill_shards.columns for skill_shards in train]
    num_draws = [
        len(skill_shards) if blocks is None or tokens is None else epoch_blocks(tokens.train[skill], blocks)
        for skill, skill_shards in zip(shards.skills, train, strict=True)
    ]
    continues = None
    if handover is not None:
        continues = continued_by(
            handover,
            matched(handover, shards, seed=seed),
            unit=unit,
            num_tokens=num_tokens,
            policy=policy,
            loss=loss,
            measured_on=measured_on,
            num_draws=num_draws,
        )
    run = RunRecord(
        shards=shards.digest,
        skills=list(shards.skills),
        num_samples=num_draws,
        unit=unit,
        blocks=blocks,
        num_tokens=num_tokens,
        seed=seed,
        order=ORDER_VERSION,
        round_draws=round_draws,
        lag=lag,
        repeat=repeat,
        policy=policy.name,
        policy_arguments=recorded_arguments(policy),
        initial_losses=begins_with_losses(policy, initial_losses, measured_on),
        loss=loss,
        measured_on=measured_on,
        num_shards=[len(own.number) for own in columns],
        contents=[content_of(own) for own in columns],
        continues=continues,
    )
    return with_skips(run, handover, tokens)
