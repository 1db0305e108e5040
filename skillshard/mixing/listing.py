"""The mixed stream as lines of text: what `skillshard mix` writes."""

import os
import tempfile

import orjson

from skillshard.errors import PolicyError, did_you_mean
from skillshard.mixing.mixer import Mixer
from skillshard.policies import Policy, chain, proportional, stratified
from skillshard.policies import floor as floored
from skillshard.shards.read import ShardSet

POLICIES = {"stratified": stratified, "proportional": proportional}


def list_draws(
    shards: str | os.PathLike[str],
    *,
    policy: str,
    floor: float,
    first: int,
    num: int,
    seed: int,
    round_draws: int,
    ledger: str | os.PathLike[str] | None,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int | None = None,
) -> bytes:
    """One JSON line per draw: draw, skill, id.

    Args:
        policy: one that needs no losses: "stratified" or "proportional".
        floor: least weight of any skill; 0 for none.
        first, num: which draws.
        ledger: where to keep the run's record; None: nowhere.
        cache, cache_bytes: for remote shards, as in `ShardSet.open`.
    """
    with tempfile.TemporaryDirectory() as folder:
        mixer = Mixer(
            ShardSet.open(shards, cache=cache, cache_bytes=cache_bytes),
            _policy(policy, floor),
            ledger=ledger or folder,
            round_draws=round_draws,
            seed=seed,
        )
        skills = mixer.batch(first, num).skills
        rows = zip(range(first, first + num), skills, mixer.ids(first, num), strict=True)
        return b"".join(
            orjson.dumps({"draw": draw, "skill": skill, "id": identity}, option=orjson.OPT_APPEND_NEWLINE)
            for draw, skill, identity in rows
        )


def _policy(name: str, floor: float) -> Policy:
    if name not in POLICIES:
        raise PolicyError(
            f"policy {name!r}{did_you_mean(name, POLICIES)}: 'skillshard mix' draws without a trainer, so it takes a policy that needs "
            f"no losses: {', '.join(POLICIES)}."
        )
    return chain(POLICIES[name](), floored(floor)) if floor else POLICIES[name]()
