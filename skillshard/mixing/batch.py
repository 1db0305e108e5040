"""A sample and a batch of samples of the stream."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from skillshard.printable import counted

# Read-only, because all samples without fields share the mapping.
NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


class MixedSample(NamedTuple):
    """A draw of the stream.

    Attributes:
        draw: Position in the stream.
        skill: Skill of the sample.
        text: Text of the sample.
        fields: Path -> value of each field of the mixer (`Mixer(fields=...)`), and suffix -> bytes of each member (`Mixer(members=...)`).
    """

    draw: int
    skill: str
    text: str
    fields: Mapping[str, Any] = NO_FIELDS


@dataclass(frozen=True)
class Batch:
    """A batch of draws of the stream.

    Attributes:
        draw: Position of each sample in the stream.
        skill_number: Skill of each sample, an index into `skill_names`.
        skill_names: Names of all skills of the mix.
        text: Text of each sample.
        fields: Path -> value of each sample, for each field of the mixer (`Mixer(fields=...)`), and suffix -> bytes of each sample, for each member
            (`Mixer(members=...)`).
    """

    draw: Int[np.ndarray, " sample"]
    skill_number: Int[np.ndarray, " sample"]
    skill_names: tuple[str, ...]
    text: list[str]
    fields: Mapping[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    def __repr__(self) -> str:
        """Return a line without the texts."""
        first = f" from draw {int(self.draw[0]):,} on" if len(self) else ""
        return f"Batch({counted(len(self), 'sample')}{first}, of {counted(len(self.skill_names), 'skill')})"

    @property
    def skill(self) -> list[str]:
        """Name of the skill of each sample."""
        return [self.skill_names[number] for number in self.skill_number.tolist()]

    def columns(self) -> dict[str, Any]:
        """Return the batch under the keys that all loaders use: "draw", "skill", "text", and the names of fields and members."""
        return {"draw": self.draw, "skill": self.skill, "text": self.text, **self.fields}
