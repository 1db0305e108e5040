"""What a tagger is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from skillshard.corpus import Reason, Sample


@dataclass(frozen=True, slots=True)
class Tag:
    """A sample's skill, and how sure the tagger is (1 where it does not guess)."""

    skill: str
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class Untagged:
    """Why a sample has no skill: a short stable reason, and the sentence's detail."""

    reason: Reason
    detail: str


@runtime_checkable
class Tagger(Protocol):
    """Gives every sample a skill. Picklable; a pure function of the samples that it is given together."""

    @property
    def name(self) -> str:
        """The method's name."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was built with, as JSON."""

    def tag(self, samples: Sequence[Sample]) -> list[Tag | Untagged]:
        """One outcome for each of some neighbouring samples of one partition, in their order."""
