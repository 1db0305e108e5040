"""Files of weights: the file that `skillshard weights` writes, and all forms of files from which weights are read."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from skillshard import canonical, storage
from skillshard.errors import PolicyError, ShardError, name_some
from skillshard.number_checks import is_whole
from skillshard.policies import Policy
from skillshard.policies.curriculum import Order
from skillshard.policies.inner import policies_within
from skillshard.policies.policy import NextRound, RunFacts, check_is_policy, in_draws
from skillshard.policies.prior import is_weight
from skillshard.policies.transforms import Chain
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet

WEIGHTS_SCHEMA = "skillshard/weights/1"
_WITH_WEIGHTS = (WEIGHTS_SCHEMA, "skillshard/fit/1")
_FORMS = (
    "Give the output of 'skillshard weights --out' or 'skillshard fit --out', or a JSON object of skill names and numbers >= 0, such as "
    '{"add": 0.7, "carry": 0.3}.'
)


class WeightsFile(BaseModel):
    """Static weights of the training skills, with the policy that gave the weights: the file that `skillshard weights` writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal["skillshard/weights/1"] = Field("skillshard/weights/1", alias="schema")
    shards: str = Field(description="digest of the shard set or of the chosen set")
    unit: Literal["samples", "tokens"] = Field(description="unit of the weights")
    policy: str = Field(description="name of the policy that gave the weights, with its transforms")
    arguments: Any = Field(description="arguments of the policy, as in run.json")
    weights: dict[str, float] = Field(description="training skill -> weight; sum 1")

    def to_bytes(self) -> bytes:
        return canonical.to_json(self.model_dump(by_alias=True))


LOOK_BACK = ("max_change", "repetition_limit", "smoothing")
"""Transforms that follow the rounds before, so that their weights need a run."""


def weigh(
    shards: ShardSet,
    policy: Policy,
    *,
    tokens: TokenSet | None = None,
    at: int | None = None,
    step_draws: int | None = None,
) -> WeightsFile:
    """Compute the weights that a policy gives the skills of a shard set before any observation.

    Args:
        shards: Shard set with the skills.
        policy: Policy that reads no losses.
        tokens: Token counts of the shards, for weights as shares of tokens. None: weights as shares of samples.
        at: Draw of a run at which the weights hold. None: the policy has the same weights at each draw.
        step_draws: Number of draws of an optimizer step, for stages that end at steps. None: unknown.

    Raises:
        PolicyError: The policy reads losses, does not fit the skills, or its weights change and `at` is None.
        ShardError: No skill has a training shard.
        TokensError: The token counts belong to other shards.
    """
    check_is_policy(policy)
    if at is not None and not is_whole(at, 0):
        raise PolicyError(f"`at={at!r}`: give the number of a draw, a whole number >= 0.")
    if policy.reads_losses:
        raise PolicyError(
            f"policy {policy.name} reads losses, so its weights change during a run: use the policy in a Mixer, or give a policy that reads no "
            "losses."
        )
    if not shards.skills:
        raise ShardError(
            f"{shards.root} has no training shards of these skills: choose skills that have training samples."
        )
    if tokens is None:
        sizes = [len(shards.train[skill]) for skill in shards.skills]
    else:
        tokens.refuse_other_shards(shards)
        sizes = [tokens.train[skill].num_tokens for skill in shards.skills]
    skills, num_samples = tuple(shards.skills), [len(shards.train[skill]) for skill in shards.skills]
    num_tokens = None if tokens is None else tuple(sizes)
    policy = in_draws(policy, RunFacts(skills, tuple(num_samples), num_tokens, step_draws))
    weights = policy.weights(policy.init(skills, sizes), _round_at(policy, at, sizes))
    return WeightsFile(
        shards=shards.digest,
        unit="samples" if tokens is None else "tokens",
        policy=policy.name,
        arguments=policy.arguments,
        weights=dict(zip(shards.skills, np.asarray(weights).tolist(), strict=True)),
    )


def _round_at(policy: Policy, at: int | None, sizes: Sequence[int]) -> NextRound | None:
    """Return a round of a single draw, or None for a policy with the same weights at each draw.

    Raises:
        PolicyError: The weights change and the draw is unknown, or the weights follow the rounds before.
    """
    within = list(policies_within(policy))
    names = [transform.name for inner in within if isinstance(inner, Chain) for transform in inner.transforms]
    following = [name for name in names if name in LOOK_BACK]
    if following:
        raise PolicyError(
            f"transform {following[0]} follows the rounds before, so its weights need a run: list the draws of a run with 'skillshard mix --ledger', and "
            "look at the weights with 'skillshard inspect'."
        )
    if at is not None:
        return NextRound(0, at, 1, tuple(sizes), (0,) * len(sizes))
    changing = [inner.name for inner in within if inner.name in ("stages", *get_args(Order))]
    if changing:
        raise PolicyError(
            f"the weights of policy {changing[0]} change during a run: give `at`, the draw at which the weights hold."
        )
    return None


def read_weights(source: str | os.PathLike[str], *, unit: str | None = None) -> dict[str, float]:
    """Read weights from a file of weights, a file of a proposal, or a JSON object of skill names and numbers.

    Args:
        source: Path of the file. A text that begins with { is read as JSON in place of a file.
        unit: Unit of the weights where they are used, "samples", "tokens" or "blocks". None: a file of either unit is taken.

    Returns:
        Skill -> weight, not normalized.

    Raises:
        PolicyError: The file holds no weights, a weight is no number >= 0, no weight is above 0, or the file records another unit.
        StorageError: The file cannot be read, or is not JSON.

    >>> read_weights('{"add": 3, "carry": 1}')
    {'add': 3.0, 'carry': 1.0}
    >>> read_weights('{"add": [0.5]}')
    Traceback (most recent call last):
    skillshard.errors.PolicyError: {"add": [0.5]} holds no weights: add is [0.5], not a number from 0 to 1e100. Give the output of 'skillshard weights --out' ...
    """
    text = os.fspath(source)
    is_text = text.lstrip().startswith("{")
    place = text if not is_text or len(text) <= 60 else f"{text[:57]}..."
    value = canonical.from_json(text.encode(), place) if is_text else storage.read_json(source)
    weights = _weights_in(value, place)
    _refuse_other_unit(value, unit, place)
    return weights


def _refuse_other_unit(value: Mapping[str, Any], unit: str | None, place: str) -> None:
    """Raise PolicyError if a file of `skillshard weights` has weights of another unit. Other files record no unit."""
    if unit is None or value.get("schema") != WEIGHTS_SCHEMA:
        return
    # Blocks have equal numbers of tokens, so a share of the blocks is a share of the tokens.
    counted = "samples" if unit == "samples" else "tokens"
    if value.get("unit") != counted:
        remedy = "without `tokens`" if counted == "samples" else "with `tokens`, the token counts of the shards"
        raise PolicyError(
            f"{place} holds weights as shares of {value.get('unit')}, and here a weight is a share of {unit}. Make the file again {remedy} "
            "('skillshard weights'), or give the bare numbers as JSON."
        )


def _weights_in(value: Any, place: str) -> dict[str, float]:
    if not isinstance(value, dict):
        raise PolicyError(f"{place} holds no weights but {_kind(value)}. {_FORMS}")
    schema = value.get("schema")
    if isinstance(schema, str) and schema not in _WITH_WEIGHTS:
        hint = (
            f" Make weights from a graph with 'skillshard weights SHARDS --policy skill_it --graph {place} --eta ETA --out weights.json'."
            if schema.startswith("skillshard/graph/")
            else ""
        )
        raise PolicyError(f"{place} holds no weights: its schema is {schema!r}.{hint} {_FORMS}")
    # Without a schema, "weights" may be the key of the weights or the name of a skill. The type of the value decides.
    weights = value.get("weights") if isinstance(schema, str) or isinstance(value.get("weights"), dict) else value
    if not isinstance(weights, Mapping):
        raise PolicyError(f"{place} holds no weights: 'weights' is {_kind(weights)}. {_FORMS}")
    bad = [f"{name} is {_short(weight)}" for name, weight in weights.items() if not is_weight(weight)]
    if bad:
        raise PolicyError(f"{place} holds no weights: {name_some(bad, 3)}, not a number from 0 to 1e100. {_FORMS}")
    if not sum(weights.values()) > 0:
        fault = "all weights are 0" if weights else "it names no skill"
        raise PolicyError(f"{place} holds no weights above 0: {fault}. {_FORMS}")
    return {name: float(weight) for name, weight in weights.items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _kind(value: Any) -> str:
    """Name the type of a JSON value."""
    names = {list: "a list", str: "a text", bool: "a truth value", type(None): "nothing (null)"}
    return names.get(type(value), "a number")
