"""The file of a comparison, compare.json (schemas/compare-1.json)."""

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from skillshard import canonical, storage
from skillshard.comparison.verdict import ComparedRun, Cost, Verdict


class ComparedPolicy(BaseModel):
    """A policy of a comparison with its trainings."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="text of a policy, or name of the policy of finished runs")
    runs: list[ComparedRun]
    cost: Cost
    verdict: Verdict | None = Field(description="null for the baseline")


class CompareFile(BaseModel):
    """Policies compared by the loss at the end of trainings that are paired by seed."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/compare/1"] = Field("skillshard/compare/1", alias="schema")
    made_from: dict[str, Any] = Field(description="settings of the trainings, or the compared runs")
    skills: list[str] = Field(description="skills whose mean loss decides")
    baseline: str
    policies: list[ComparedPolicy]

    def save(self, place: str | os.PathLike[str]) -> None:
        """Write the file."""
        storage.write_bytes(place, canonical.to_json(self.model_dump(mode="json", by_alias=True)))
