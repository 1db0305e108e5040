"""Checks of the arguments of a mixer, before anything is read or written."""

import math
import re
from collections.abc import Collection
from typing import Any

from skillshard import canonical, places
from skillshard.errors import PolicyError, ShardError, TokensError, name_some
from skillshard.loss import LossKind
from skillshard.mixing.fields import is_list_of_texts
from skillshard.mixing.order import MAX_ROUND_DRAWS
from skillshard.mixing.rounds import ON_BAD_LOSS
from skillshard.mixing.stream import LAST_DRAW
from skillshard.number_checks import is_finite, is_whole
from skillshard.opened import refuse_unopened
from skillshard.policies.policy import Policy, Probing
from skillshard.shards.read import ShardSet
from skillshard.shards.split import HOW_TO_HOLD_OUT
from skillshard.shards.token_set import TokenSet

MOST_EPOCHS = 1 << 20
"""Largest N of repeat="cap:N". The product with the number of samples of a skill, below 2**42, stays a number of 64 bits."""


def check_arguments(
    *,
    shards: Any,
    tokens: Any,
    round_draws: Any,
    seed: Any,
    lag: Any,
    step_draws: Any,
    wait_s: Any,
    repeat: Any,
    loss: Any,
    measured_on: Any,
    initial_losses: Any,
    job: Any,
    on_bad_loss: Any,
    held_out: Any,
) -> None:
    """Check the arguments of `Mixer` that are no policy, no ledger and no field.

    Raises:
        ShardError: `shards` is no opened shard set.
        TokensError: `tokens` is no opened token set.
        PolicyError: Another argument is out of range or of another type.
    """
    refuse_unopened(shards, ShardSet, "shards", "shard set", ShardError)
    if tokens is not None:
        refuse_unopened(tokens, TokenSet, "tokens", "token set", TokensError)
    if not is_whole(round_draws, 1, MAX_ROUND_DRAWS):
        raise PolicyError(f"round_draws is {round_draws!r}: give 1 to {MAX_ROUND_DRAWS:,} draws.")
    if lag != "live" and not is_whole(lag, 0, LAST_DRAW):
        raise PolicyError(f"lag is {lag!r}: give 0 (strict), 1 (default), more, or 'live'.")
    if not is_whole(seed, -(2**63), 2**63 - 1):
        raise PolicyError(f"seed is {seed!r}: give a whole number of 64 bits.")
    if step_draws is not None and not is_whole(step_draws, 1, LAST_DRAW):
        raise PolicyError(f"step_draws is {step_draws!r}: give the samples of one optimizer step, at least 1, or None.")
    if not (wait_s == math.inf or (is_finite(wait_s) and wait_s >= 0)):
        raise PolicyError(f"wait_s is {wait_s!r}: give seconds, a number >= 0.")
    if not isinstance(loss, LossKind):
        raise PolicyError(f"loss is {loss!r}: give a kind of losses, such as LossKind(reduction='per_token').")
    if measured_on not in ("holdout", "training"):
        raise PolicyError(f"measured_on is {measured_on!r}: give 'holdout' (default) or 'training'.")
    # A text is a collection of characters, so it would pass for a list of names.
    if isinstance(held_out, str):
        raise PolicyError(f"held_out is the text {held_out!r}: give a list of names, such as [{held_out!r}].")
    if held_out is not None and not is_list_of_texts(held_out):
        raise PolicyError(f"held_out is {held_out!r}: give a list of names of skills, or None.")
    if initial_losses is not None and not isinstance(initial_losses, bool):
        raise PolicyError(
            f"initial_losses is {initial_losses!r}: give True, False, or None for the default of the policy."
        )
    rule = re.fullmatch(r"epochs|stop|drop|cap:([1-9][0-9]*)", repeat) if isinstance(repeat, str) else None
    if rule is None:
        raise PolicyError(f"repeat is {repeat!r}: give 'epochs' (default), 'stop', 'drop' or 'cap:N', such as 'cap:4'.")
    if rule[1] and int(rule[1]) > MOST_EPOCHS:
        raise PolicyError(
            f"repeat is {repeat!r}: give at most {MOST_EPOCHS:,} epochs, or 'epochs' for a stream without an end."
        )
    if on_bad_loss not in ON_BAD_LOSS:
        raise PolicyError(f"on_bad_loss is {on_bad_loss!r}: give 'stop' (default) or 'leave-out'.")
    if job is not None and not (isinstance(job, str) and job and job.isprintable()):
        raise PolicyError(f"job is {job!r}: give the job's name, a printable text, or None for a single process.")


def recorded_arguments(policy: Policy) -> dict[str, Any]:
    """Return the policy's arguments for run.json. Raise PolicyError if the arguments have no JSON form."""
    try:
        canonical.to_json(policy.arguments)
    except TypeError as error:
        raise PolicyError(
            f"the arguments of policy {policy.name} have no JSON form ({error}), so a run cannot record them. `arguments` of a policy are names, "
            "numbers, truth values, and lists and mappings of these."
        ) from error
    return policy.arguments


def begins_with_losses(policy: Policy, initial_losses: bool | None, measured_on: str) -> bool:
    """Return whether a run begins with the losses before the first step."""
    if measured_on == "training":
        if initial_losses:
            raise PolicyError(
                "initial_losses=True with measured_on='training': no batch exists before the first step. Omit initial_losses, or measure "
                "held-out samples."
            )
        return False
    if initial_losses and not policy.reads_losses:
        raise PolicyError(f"initial_losses=True, but policy {policy.name} reads no losses: omit initial_losses.")
    return bool(getattr(policy, "initial_losses", False)) if initial_losses is None else initial_losses


def refuse_training_losses(policy: Policy, shards: ShardSet) -> None:
    """Raise PolicyError if a policy cannot use the losses of the training batches."""
    if not policy.reads_losses:
        return
    elsewhere = [name for name in policy.eval_skills or () if name not in shards.train]
    if elsewhere:
        raise PolicyError(
            f"policy {policy.name} reads the losses of {name_some(map(repr, elsewhere))}, and no batch of the training has these skills: "
            "measure held-out samples (measured_on='holdout')."
        )
    # The mean over the batches of a stretch is the loss in the middle of the stretch, and not the loss at the end of a probe.
    if isinstance(policy, Probing):
        raise PolicyError(
            f"policy {policy.name} compares the losses at the two ends of a probe round, and training losses are means over the batches "
            "between two reports: measure held-out samples (measured_on='holdout')."
        )


def refuse_unmeasurable(policy: Policy, shards: ShardSet, held_out: Collection[str] | None) -> None:
    """Raise PolicyError if a policy needs the loss of a training skill that has no held-out sample."""
    if not policy.reads_losses or policy.may_miss_losses:
        return
    measured = shards.holdout if held_out is None else set(held_out)
    missing = [name for name in policy.eval_skills or shards.skills if name in shards.train and name not in measured]
    if missing:
        raise PolicyError(
            f"policy {policy.name} reads the losses of {name_some(map(repr, missing))}, which {'has' if len(missing) == 1 else 'have'} no held-out "
            f"sample in {places.public(shards.root)}. Either {HOW_TO_HOLD_OUT}; or, if the losses are measured on other samples, name the skills "
            "of these samples in Mixer(held_out=...)."
        )


def tokens_of_skills(shards: ShardSet, unit: str, tokens: TokenSet | None) -> list[int] | None:
    """Return the number of training tokens of each skill if weights count tokens, else None."""
    if unit not in ("samples", "tokens", "blocks"):
        raise PolicyError(f"unit is {unit!r}: give 'samples' (default), 'tokens' or 'blocks'.")
    if unit == "blocks":
        if tokens is not None:
            tokens.refuse_other_shards(shards)
        return None
    if (unit == "tokens") != (tokens is not None):
        raise PolicyError(
            "unit='tokens' needs the token counts of these shards: Mixer(..., unit='tokens', tokens=TokenSet.open(DIRECTORY)), made by "
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
