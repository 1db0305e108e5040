"""The state of a mixer in a checkpoint."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard.canonical import first_fault
from skillshard.errors import LedgerError
from skillshard.mixing.ledger import Ledger
from skillshard.mixing.records import open_records
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


def place_of_state(ledger: Ledger, state: Any) -> tuple[int, int | None]:
    """Return the draw and the step of a saved state of a run, for a run that continues this run.

    Args:
        ledger: Ledger of the run.
        state: State of a mixer, or state of a packed stream, which holds the state of its mixer.

    Raises:
        LedgerError: The state is no state, is a state of another run, or is a state of blocks that were packed by best-fit.
    """
    if isinstance(state, Mapping) and state.get("packing") == "best-fit":
        raise LedgerError(
            "this state is of packing 'best-fit', whose blocks have samples from everywhere in their round, so no draw divides the seen samples from "
            "the other samples: begin a new run, or give draw= at the end of a round that the model has seen."
        )
    packed = state.get("mixer") if isinstance(state, Mapping) else None
    saved = read_state({**packed, "step": state.get("step")} if isinstance(packed, Mapping) else state)
    _check_belongs(ledger, saved)
    return saved.draw, saved.step


def _check_belongs(ledger: Ledger, saved: MixerState) -> None:
    """Raise LedgerError unless a saved state names the run of a ledger and the round of the state's last draw."""
    records = open_records(ledger)
    run = records.run
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
