"""The notes on the places of the shards and the tokens of a run, for commands that look at the run later.

    RUN/beside/shards.json     the place of the shards
    RUN/beside/tokens.json     the place of the tokens, if the draws are blocks, or if blocks were packed by best-fit

The notes are no records: nothing in the stream depends on a place, and the files may move.
"""

import json
import os
from pathlib import Path

from skillshard import canonical, places
from skillshard.errors import LedgerError, ShardError, StorageError, TokensError
from skillshard.mixing.ledger import Ledger
from skillshard.mixing.run_records import RunRecord
from skillshard.opened import refuse_unopened
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet

SHARDS_NOTE = "beside/shards.json"
"""Name of the note on the place of the shards, beside the records of a run."""
TOKENS_NOTE = "beside/tokens.json"
"""Name of the note on the place of the tokens, beside the records of a run."""


def note_place(ledger: Ledger, name: str, root: str | os.PathLike[str]) -> None:
    """Note the place of the shards or the tokens of a run.

    Args:
        ledger: Ledger of the run.
        name: `SHARDS_NOTE` or `TOKENS_NOTE`.
        root: Directory or URI.
    """
    place = places.public(root) if places.is_remote(root) else str(Path(root).absolute())
    ledger.put(name, canonical.to_json({"place": place}))


def noted_shards(ledger: Ledger) -> ShardSet:
    """Open the shards at the place that a run has noted.

    Raises:
        LedgerError: The run has no note of its shards, or the shards cannot be opened.
    """
    place = _noted(ledger, SHARDS_NOTE)
    if place is None:
        raise LedgerError(f"{ledger} has no note of the place of its shards. Give `shards`, the shards of the run.")
    try:
        return ShardSet.open(place)
    except (ShardError, StorageError) as error:
        raise LedgerError(
            f"the run {ledger} has read the shards at {place}, which cannot be opened: {error} If the shards were moved, give "
            "`shards`, their new place."
        ) from error


def noted_tokens(ledger: Ledger) -> TokenSet:
    """Open the tokens at the place that a run of blocks has noted.

    Raises:
        LedgerError: The run has no note of its tokens, or the tokens cannot be opened.
    """
    place = _noted(ledger, TOKENS_NOTE)
    if place is None:
        raise LedgerError(
            f"the draws of the run of {ledger} are blocks of tokens (unit 'blocks'), and {ledger} has no note of the place of the tokens. Give `tokens`, "
            "the tokens of the run."
        )
    try:
        return TokenSet.open(place)
    except (TokensError, StorageError) as error:
        raise LedgerError(
            f"the run {ledger} has read the tokens at {place}, which cannot be opened: {error} If the tokens were moved, give `tokens`, their new place."
        ) from error


def known_tokens(ledger: Ledger, digest: str | None) -> TokenSet | None:
    """Open the tokens that a run has read at the noted place of the run, if the tokens were not moved.

    Args:
        ledger: Ledger of the run.
        digest: Digest of the tokens. None: no tokens are needed.

    Returns:
        The tokens. None: no tokens are needed, or the tokens are not at the noted place.
    """
    if digest is None or ledger.get(TOKENS_NOTE) is None:
        return None
    try:
        tokens = noted_tokens(ledger)
    except LedgerError:  # the caller says which tokens to give
        return None
    return tokens if tokens.digest == digest else None


def _noted(ledger: Ledger, name: str) -> str | None:
    note = ledger.get(name)
    return None if note is None else str(json.loads(note)["place"])


def fits_run(shards: ShardSet, run: RunRecord) -> bool:
    """Return whether a run has read a shard set, or some of its skills."""
    return _chosen_for_run(shards, run) is not None


def shards_of_run(ledger: Ledger, run: RunRecord, shards: ShardSet | None = None) -> ShardSet:
    """Return the shards of a run, reduced to the skills of the run.

    Args:
        ledger: Ledger of the run.
        run: Record of the run.
        shards: Shards that may be the shards of the run. None: the shards at the place that the run has noted.

    Raises:
        LedgerError: As in `noted_shards`, or the run has read other shards.
        ShardError: `shards` is no opened shard set.
    """
    candidate = noted_shards(ledger) if shards is None else shards
    refuse_unopened(candidate, ShardSet, "shards", "shard set", ShardError)
    chosen = _chosen_for_run(candidate, run)
    if chosen is None:
        raise LedgerError(
            f"{ledger} is a run over the shards {run.shards}, and {places.public(candidate.root)} holds the shards {candidate.digest}. Give the "
            "shards of the run."
        )
    return chosen


def _chosen_for_run(shards: ShardSet, run: RunRecord) -> ShardSet | None:
    """Return the shards of a run, which may have chosen some skills of a larger set. None: the run has read other shards."""
    if shards.digest == run.shards:
        return shards
    try:
        chosen = shards.choose(run.skills)
    except ShardError:
        return None
    return chosen if chosen.digest == run.shards else None
