"""The state of a mixer in a checkpoint."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard.canonical import first_fault
from skillshard.errors import LedgerError
from skillshard.mixing.chain import begins_after
from skillshard.mixing.ledger import Ledger
from skillshard.mixing.records import open_records
from skillshard.mixing.run_records import BlockUnit
from skillshard.mixing.seen_draws import ConsumedBlocks, SavedPlace
from skillshard.mixing.stream import LAST_DRAW


class MixerState(BaseModel):
    """The state of a mixer in a checkpoint: the position of the stream and the checksums of the last records before the position."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/mixer/2"] = Field("skillshard/mixer/2", alias="schema")
    draw: int = Field(ge=0, le=LAST_DRAW, description="draws consumed")
    step: int | None = Field(description="optimizer steps taken; null if the trainer gave no step")
    run: str = Field(description="checksum of the ledger's run.json")
    round: str = Field(
        description="checksum of the round of the last draw consumed; checksum of run.json at draw 0; empty if the round is not decided yet"
    )
    num_observations: int = Field(ge=0, description="number of observations up to this draw")
    observation: str | None = Field(
        description="checksum of the last observation up to this draw; null without observations"
    )


def read_state(state: Any) -> MixerState:
    """Read a saved state of a mixer. Raise LedgerError if the value is no such state."""
    try:
        return MixerState.model_validate(state)
    except ValidationError as error:
        raise LedgerError(f"this is no state of a mixer (schemas/mixer-2.json): {first_fault(error)}.") from error


class _BestFitState(BaseModel):
    """The part of the state of a packed stream that names the blocks of its round."""

    round_blocks: int
    tokens: str
    block_tokens: int
    separator: str | None


def place_of_state(ledger: Ledger, state: Any) -> SavedPlace:
    """Return the place of a saved state of a run, for a run that continues this run.

    Args:
        ledger: Ledger of the run.
        state: State of a mixer, or state of a packed stream, which holds the state of its mixer.

    Raises:
        LedgerError: The state is no state, or is a state of another run.
    """
    # A checkpoint holds the state of the stream that the trainer read. Only the state of packed tokens has the key "mixer".
    packed = state.get("mixer") if isinstance(state, Mapping) else None
    saved = read_state({**packed, "step": state.get("step")} if isinstance(packed, Mapping) else state)
    _check_belongs(ledger, saved)
    packing = state.get("packing") if isinstance(packed, Mapping) else None
    consumed = None
    if packing == "best-fit":
        try:
            own = _BestFitState.model_validate(state)
        except ValidationError as error:
            raise LedgerError(
                f"this is no state of packed tokens (schemas/packed-5.json): {first_fault(error)}."
            ) from error
        unit = BlockUnit(tokens=own.tokens, block_tokens=own.block_tokens, separator=own.separator)
        consumed = ConsumedBlocks(own.round_blocks, unit)
    return SavedPlace(saved.draw, saved.step, packing, consumed)


def _check_belongs(ledger: Ledger, saved: MixerState) -> None:
    """Raise LedgerError unless a saved state names the run of a ledger and the round of the state's last draw."""
    records = open_records(ledger)
    run = records.run
    if saved.draw == run.first_draw and begins_after(ledger, run, saved.run, saved.draw):
        return
    if saved.run != run.checksum:
        raise LedgerError(
            f"this state is of run {saved.run}, but {ledger} is run {run.checksum}: give the ledger of the state."
        )
    record = records.rounds.get(run.round_of(saved.draw - 1)) if saved.draw > run.first_draw else None
    if record is not None and saved.round and record.checksum != saved.round:
        raise LedgerError(
            f"round {record.round:,} of {ledger} is not the round that the state at draw {saved.draw:,} names: the run was resumed before this draw "
            "later on. Give a state of the resumed run."
        )
