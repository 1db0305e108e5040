"""Protocols of taggers: a `Tagger` looks at samples, a `Finder` looks at the whole corpus first."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from skillshard.artefact import Work
from skillshard.corpus import CorpusReading, MetaField, Partition, Reason, Rejection, Sample
from skillshard.corpus.token_ids import NEEDS_TEXTS
from skillshard.errors import TagsError
from skillshard.execution import Backend, OnStage, Record, Task, run
from skillshard.taggers.ceiling import Ceiling, CeilingWatch

# The last bits of a loss depend on the samples that a model reads together. A change of this number changes the loss tags.
SAMPLES_AT_ONCE = 1024
"""Largest number of rows of a group. The samples of a group make one call of `Tagger.tag` or `RowTagger.tag_rows`."""

# The metadata and the objects of a sample take memory too, so a group takes a few times as much.
CHARACTERS_AT_ONCE = 32 << 20
"""Number of characters of text and of strings in the metadata after which a group ends before `SAMPLES_AT_ONCE` rows."""

OnBadSample = Literal["stop", "set-aside"]


@dataclass(frozen=True, slots=True)
class Tag:
    """The skill of a sample, with a score.

    Attributes:
        skill: Name of the skill.
        score: Distance to the centroid for taggers by clusters, 1 for taggers that do not guess.
    """

    skill: str
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class Untagged:
    """The reason why a sample has no skill: a short stable word, the details for the sentence, and the path of the field with the fault."""

    reason: Reason
    detail: str
    field: str | None = None


@runtime_checkable
class Tagger(Protocol):
    """A tagger that gives every sample a skill.

    A tagger is picklable. The method `tag` is a pure function of the samples of a call.
    """

    @property
    def name(self) -> str:
        """Name of the method."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that the tagger was built with, as JSON."""

    def tag(self, samples: Sequence[Sample]) -> list[Tag | Untagged]:
        """Tag neighbouring samples of one partition, and return the outcomes in the same order."""


@runtime_checkable
class RowwiseTagger(Tagger, Protocol):
    """A tagger whose outcome for a sample does not depend on the other samples of the call.

    The samples of a call are then the rows that were read together, and not the groups of `groups_of_rows`.
    """

    is_rowwise: ClassVar[bool]


@runtime_checkable
class ColumnTagger(RowwiseTagger, Protocol):
    """A tagger that may only need one field of the metadata.

    The skill of a sample is then the value of the field, where the value is a string that is not empty, or an integer.
    """

    @property
    def wanted(self) -> MetaField | None:
        """The field, or None if the tagger needs samples."""


@runtime_checkable
class TextReader(Protocol):
    """A tagger or finder that looks at the texts, so that samples of token ids have nothing for it to read."""

    reads_texts: ClassVar[bool]


def refuse_token_ids(tagger: "Tagger | Finder", reading: CorpusReading) -> None:
    """Raise TagsError if a tagger reads texts, and the texts of a corpus are token ids."""
    if isinstance(tagger, TextReader) and reading.token_form is not None:
        raise TagsError(
            f"Tagging by {tagger.name} needs texts, and the samples of the corpus are token ids. {NEEDS_TEXTS}"
        )


@dataclass(frozen=True)
class Search:
    """The input of a tagger that looks at the whole corpus first.

    Attributes:
        partitions: Partitions of the corpus.
        reading: Field mappings and limits of the corpus.
        on_bad_sample: Action at a bad sample.
        work: Records and scratch files of the tasks. Files in `work.scratch("kept")` become part of the finished tags.
        backend: Local pool or Ray.
        on_stage: Function that shows the progress of a stage.
        ceiling: Ceiling of the rows that may be set aside.
    """

    partitions: Sequence[Partition]
    reading: CorpusReading
    on_bad_sample: OnBadSample
    work: Work
    backend: Backend
    on_stage: OnStage
    ceiling: Ceiling

    def run(
        self,
        function: Callable[..., Record],
        tasks: Sequence[Task],
        *,
        stage: str,
        title: str,
        keeps_model: bool = False,
        num_gpus: float = 0.0,
        is_watched: bool = False,
    ) -> list[Record]:
        """Run the tasks of one stage by `execution.run`.

        Args:
            function: Function that does a task.
            tasks: Tasks of the stage.
            stage: Name under which the records are kept.
            title: Name that the progress bar shows.
            keeps_model: Whether a process keeps a model between tasks.
            num_gpus: Number of GPUs that a task takes.
            is_watched: Whether the records count the rows that are set aside, so that the stage stops above the ceiling.
        """
        on_done = self.on_stage(title, len(tasks))
        return run(
            function,
            tasks,
            backend=self.backend,
            records=self.work.records(stage),
            on_done=CeilingWatch(on_done, self.ceiling, self.partitions) if is_watched else on_done,
            keeps_model=keeps_model,
            num_gpus=num_gpus,
        )


@runtime_checkable
class RowTagger(Protocol):
    """A tagger that already knows the skill of each row. A row tagger is picklable."""

    def tag_rows(self, partition: int, rows: Sequence[int]) -> Sequence[Tag | Untagged]:
        """Return the outcomes of rows that hold samples.

        Args:
            partition: Index of the partition.
            rows: Numbers of the rows in the partition, from 0. Rows that are set aside have numbers too.
        """


@runtime_checkable
class Finder(Protocol):
    """A tagger that finds the skills in the corpus, in stages of tasks, and then tags."""

    @property
    def name(self) -> str:
        """Name of the method."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that the tagger was built with, as JSON."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages of `find` that the processes of a job array may do in parts. Empty: one process does the whole command."""

    def find(self, search: Search) -> Tagger | RowTagger:
        """Find the skills. The result has the same bytes after any number of kills and new calls."""


def groups_of_rows(rows: Iterable[Sample | Rejection]) -> Iterator[list[Sample | Rejection]]:
    """Yield the rows of a partition in the groups that a tagger gets.

    The groups depend on the rows alone, because float results of a tagger depend on the samples of a group. A group ends after each
    `SAMPLES_AT_ONCE` rows of the partition, bad rows included, and before that after long texts.
    """
    group: list[Sample | Rejection] = []
    num_characters = 0
    for number, row in enumerate(rows, start=1):
        group.append(row)
        if isinstance(row, Sample):
            num_characters += len(row.text) + sum(len(value) for value in row.meta.values() if type(value) is str)
        else:
            num_characters += len(row.raw or "")
        if not number % SAMPLES_AT_ONCE or num_characters >= CHARACTERS_AT_ONCE:
            yield group
            group, num_characters = [], 0
    if group:
        yield group
