"""What a tagger is: one that looks at samples, or one that looks at the whole corpus first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from skillshard.artefact import Work
from skillshard.corpus import Partition, Reason, Sample
from skillshard.execution import Backend, OnStage, Record, Task, run

SAMPLES_AT_ONCE = 1024
"""Rows that a tagger is given together; their samples make one call of `Tagger.tag` or `RowTagger.tag_rows`."""

OnBadSample = Literal["stop", "set-aside"]


@dataclass(frozen=True, slots=True)
class Tag:
    """A sample's skill, and a score: 1 where the tagger does not guess, of a cluster the distance to its centroid."""

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


@dataclass(frozen=True)
class Search:
    """What a tagger is given that looks at the whole corpus first.

    Attributes:
        work: tasks' records and scratch files; what lies in `work.scratch("kept")` becomes part of the finished tags.
    """

    partitions: Sequence[Partition]
    reading: Mapping[str, Any]
    on_bad_sample: OnBadSample
    work: Work
    backend: Backend
    on_stage: OnStage

    def run(
        self,
        function: Callable[..., Record],
        tasks: Sequence[Task],
        *,
        stage: str,
        title: str,
        keeps_model: bool = False,
        num_gpus: float = 0.0,
    ) -> list[Record]:
        """`execution.run` of one stage: its records are kept under `stage`, and `title` is shown to who waits."""
        return run(
            function,
            tasks,
            backend=self.backend,
            records=self.work.records(stage),
            on_done=self.on_stage(title, len(tasks)),
            keeps_model=keeps_model,
            num_gpus=num_gpus,
        )


@runtime_checkable
class RowTagger(Protocol):
    """Knows the skills already, by the rows of the partitions. Picklable."""

    def tag_rows(self, partition: int, rows: Sequence[int]) -> Sequence[Tag | Untagged]:
        """The outcomes of some rows of a partition (0 is its first; set-aside ones count) that hold samples."""


@runtime_checkable
class Finder(Protocol):
    """Finds the skills in the corpus itself, in stages of tasks, and then tags by rows."""

    @property
    def name(self) -> str:
        """The method's name."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was built with, as JSON."""

    def find(self, search: Search) -> Tagger | RowTagger:
        """Look at the corpus; the same bytes however often it is killed and called again."""
