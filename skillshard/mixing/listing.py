"""The mixed stream as lines of text: what `skillshard mix` writes."""

import os
import tempfile

import orjson

from skillshard.errors import PolicyError, did_you_mean
from skillshard.mixing.mixer import Mixer
from skillshard.policies import Policy, chain, fixed, proportional, stratified, temperature, unimax
from skillshard.policies import floor as floored
from skillshard.shards.read import ShardSet
from skillshard.storage import read_json

POLICIES = ("stratified", "proportional", "temperature", "unimax", "fixed")


def static_policy(
    name: str, *, draws: int, tau: float | None = None, epochs: float | None = None, weights: str | None = None
) -> Policy:
    """A policy that needs no trainer, by its name on the command line.

    Args:
        name: one of POLICIES.
        draws: length of the run, for "unimax".
        tau: for "temperature".
        epochs: most passes over one skill, for "unimax".
        weights: JSON file for "fixed": a proposal of `skillshard fit`, or skill -> weight.
    """
    if name == "temperature" and tau is not None:
        return temperature(tau)
    if name == "unimax" and epochs is not None:
        return unimax(draws=draws, epochs=epochs)
    if name == "fixed" and weights is not None:
        found = read_json(weights)
        return fixed({skill: float(weight) for skill, weight in found.get("weights", found).items()})
    if name in ("stratified", "proportional"):
        return stratified() if name == "stratified" else proportional()
    needed = {"temperature": "--tau", "unimax": "--epochs", "fixed": "--weights"}
    if name in needed:
        raise PolicyError(f"policy {name} needs {needed[name]}: 'skillshard mix --help' says what it is.")
    raise PolicyError(
        f"policy {name!r}{did_you_mean(name, POLICIES)}: 'skillshard mix' draws without a trainer, so it takes a policy that needs "
        f"no losses: {', '.join(POLICIES)}."
    )


def list_draws(
    shards: str | os.PathLike[str],
    *,
    policy: Policy,
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
        policy: one that needs no losses.
        floor: least weight of any skill; 0 for none.
        first, num: which draws.
        ledger: where to keep the run's record; None: nowhere.
        cache, cache_bytes: for remote shards, as in `ShardSet.open`.
    """
    with tempfile.TemporaryDirectory() as folder:
        mixer = Mixer(
            ShardSet.open(shards, cache=cache, cache_bytes=cache_bytes),
            chain(policy, floored(floor)) if floor else policy,
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
