"""Files of weights: the file that `skillshard weights` writes, and every form that weights are read from."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from skillshard import canonical, storage
from skillshard.errors import PolicyError, ShardError, name_some
from skillshard.policies import Policy
from skillshard.policies.prior import is_weight
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import TokenCounts

WEIGHTS_SCHEMA = "skillshard/weights/1"
_WITH_WEIGHTS = (WEIGHTS_SCHEMA, "skillshard/fit/1")
_FORMS = (
    "Give what 'skillshard weights --out' or 'skillshard fit --out' wrote, or a JSON object of skill names and numbers >= 0, such as "
    '{"add": 0.7, "carry": 0.3}.'
)


class WeightsFile(BaseModel):
    """Static weights of the training skills and the policy that they come from: the file that `skillshard weights` writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal["skillshard/weights/1"] = Field("skillshard/weights/1", alias="schema")
    shards: str = Field(description="digest of the shard set, or of the chosen skills of one")
    unit: Literal["samples", "tokens"] = Field(description="what the weights are shares of")
    policy: str = Field(description="name of the policy that gave the weights, with its transforms")
    arguments: Any = Field(description="arguments of the policy, as a run records them")
    weights: dict[str, float] = Field(description="training skill -> weight; all sum to 1")

    def to_bytes(self) -> bytes:
        return canonical.to_json(self.model_dump(by_alias=True))


def weigh(shards: ShardSet, policy: Policy, *, tokens: TokenCounts | None = None) -> WeightsFile:
    """The weights that a policy gives the skills of a shard set before any observation.

    Args:
        shards: whose skills are weighed.
        policy: one that reads no losses and whose weights do not depend on the round.
        tokens: token counts of these shards, where the weights are shares of tokens. None: they are shares of samples.

    Raises:
        PolicyError: the policy reads losses, needs to know the round, or does not fit the skills.
        ShardError: no skill has a training shard.
        TokensError: the token counts are of other shards.
    """
    if policy.reads_losses:
        raise PolicyError(
            f"policy {policy.name} reads losses, so its weights change during a run: use it in a Mixer, or give a policy that needs none."
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
    weights = policy.weights(policy.init(shards.skills, sizes), None)
    return WeightsFile(
        shards=shards.digest,
        unit="samples" if tokens is None else "tokens",
        policy=policy.name,
        arguments=policy.arguments,
        weights=dict(zip(shards.skills, np.asarray(weights).tolist(), strict=True)),
    )


def read_weights(given: str | os.PathLike[str]) -> dict[str, float]:
    """Skill -> weight from a file of weights, of a proposal, or of names and numbers; a text that begins with { is read as it is.

    Raises:
        PolicyError: it holds something else, a weight that is no number >= 0, or none above 0.
        StorageError: it cannot be read, or is not JSON.

    >>> read_weights('{"add": 3, "carry": 1}')
    {'add': 3.0, 'carry': 1.0}
    >>> read_weights('{"add": [0.5]}')
    Traceback (most recent call last):
    skillshard.errors.PolicyError: {"add": [0.5]} holds no weights: add is [0.5], not a number >= 0. Give what 'skillshard weights --out' ...
    """
    text = os.fspath(given)
    is_text = text.lstrip().startswith("{")
    place = text if not is_text or len(text) <= 60 else f"{text[:57]}..."
    value = canonical.from_json(text.encode(), place) if is_text else storage.read_json(given)
    return _weights_in(value, place)


def _weights_in(value: Any, place: str) -> dict[str, float]:
    if not isinstance(value, dict):
        raise PolicyError(f"{place} holds no weights but {_kind(value)}. {_FORMS}")
    schema = value.get("schema")
    if isinstance(schema, str) and schema not in _WITH_WEIGHTS:
        hint = (
            f" Weights by a graph are made by 'skillshard weights SHARDS --policy skill_it --graph {place} --eta ETA --out weights.json'."
            if schema.startswith("skillshard/graph/")
            else ""
        )
        raise PolicyError(f"{place} holds no weights: its schema is {schema!r}.{hint} {_FORMS}")
    weights = value.get("weights") if isinstance(schema, str) or isinstance(value.get("weights"), dict) else value
    if not isinstance(weights, Mapping):
        raise PolicyError(f"{place} holds no weights: 'weights' is {_kind(weights)}. {_FORMS}")
    bad = [f"{name} is {_short(weight)}" for name, weight in weights.items() if not is_weight(weight)]
    if bad:
        raise PolicyError(f"{place} holds no weights: {name_some(bad, 3)}, not a number >= 0. {_FORMS}")
    if not sum(weights.values()) > 0:
        what = "all of them are 0" if weights else "it names no skill"
        raise PolicyError(f"{place} holds no weights above 0: {what}. {_FORMS}")
    return {name: float(weight) for name, weight in weights.items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {list: "a list", str: "a text", bool: "a truth value", type(None): "nothing (null)"}
    return names.get(type(value), "a number")
