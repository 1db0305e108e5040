"""The fields that the facts of all kinds of artefacts share."""

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from skillshard import canonical, places
from skillshard.printable import printable


class ArtefactFacts(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/inspect/2"] = Field("skillshard/inspect/2", alias="schema")
    place: str = Field(description="path or URI of the artefact, without the keys and signatures of a URI")

    def to_json(self) -> bytes:
        """Return the facts as one JSON object."""
        return canonical.to_json(self.model_dump(by_alias=True))


class SkillFacts(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str


def shown(place: str | os.PathLike[str]) -> str:
    """Return a place for JSON. Bytes of a path that are not UTF-8 are escaped."""
    return printable(places.public(place))
