"""The facts of a run that continues another run and has not begun, for 'skillshard inspect --json' and for the tables in the terminal."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from skillshard import canonical, places
from skillshard.errors import LedgerError
from skillshard.mixing.chain import place_before
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_beginning
from skillshard.mixing.run_records import HandoverRecord
from skillshard.mixing.skipping import given_stretches


class WaitingSkill(BaseModel):
    """The place of a run in the order of a skill."""

    model_config = ConfigDict(extra="forbid")

    name: str
    is_present: bool = Field(description="whether the run before has the skill, and not only an earlier run")
    epoch: int = Field(description="number of the open epoch")
    position: int = Field(description="draws of the open epoch, skipped samples included")
    num_samples: int = Field(description="samples of an epoch")
    weight: float | None = Field(description="weight in the last round of the run before; null if unknown")


class WaitingSkip(BaseModel):
    """Draws of the run before that the new run skips."""

    model_config = ConfigDict(extra="forbid")

    first: int
    num: int
    why: str


class WaitingRunFacts(BaseModel):
    """The facts of a run that continues another run and has not begun."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/inspect-waiting/1"] = Field("skillshard/inspect-waiting/1", alias="schema")
    place: str = Field(description="directory of the ledger")
    kind: Literal["waiting run"] = "waiting run"
    skills: list[WaitingSkill] = Field(description="skills of the run before, then skills of earlier runs")
    skipped: list[WaitingSkip] = Field(description="draws that the new run skips, rising")
    unit: str = Field(description="unit of the weights")
    run_before: str = Field(description="checksum of the run.json of the run before")
    place_before: str | None = Field(description="directory of the ledger of the run before; null if unknown")
    policy_before: str = Field(description="policy of the run before")
    draw: int = Field(description="draw from which the new run continues")
    step: int | None = Field(description="optimizer steps taken at the draw; null if unknown")

    def to_json(self) -> bytes:
        """Return the facts as one JSON object."""
        return canonical.to_json(self.model_dump(by_alias=True))


def intact_handover(ledger: DirectoryLedger) -> HandoverRecord:
    """Read the handover of a run that has not begun. Raise LedgerError if the handover is missing or damaged."""
    faults, handover = verify_beginning(ledger)
    if handover is None or faults:
        raise LedgerError(faults[0])
    return handover


def waiting_facts(ledger: DirectoryLedger) -> WaitingRunFacts:
    """Collect the facts of a run that has not begun. Raise LedgerError if the handover is missing or damaged."""
    handover = intact_handover(ledger)
    weights = dict(zip(handover.present, handover.weights or [], strict=False))
    num_present = len(handover.present)
    return WaitingRunFacts(
        place=places.public(ledger.root),
        skills=[
            WaitingSkill(
                name=place.skill,
                is_present=number < num_present,
                epoch=place.epoch,
                position=place.position,
                num_samples=place.num_samples,
                weight=weights.get(place.skill) if number < num_present else None,
            )
            for number, place in enumerate(handover.skills)
        ],
        skipped=[WaitingSkip(first=first, num=num, why=why) for first, num, why in given_stretches(handover)],
        unit=handover.unit,
        run_before=handover.run,
        place_before=place_before(ledger),
        policy_before=handover.policy,
        draw=handover.draw,
        step=handover.step,
    )
