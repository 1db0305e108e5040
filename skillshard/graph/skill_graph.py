"""The skills graph as an artefact: a matrix with named axes, one JSON file (`schemas/graph-2.json`)."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from skillshard import canonical, storage
from skillshard.errors import GraphError, choose_names, name_some
from skillshard.loss import LossKind
from skillshard.printable import counted

DIGESTED_FORM = "skillshard/graph/1"
"""The schema name in the digested bytes. The name never changes, so that a graph has the same digest in every later version."""


class TrialLosses(BaseModel):
    """The measurements of one trial that a graph was learned from."""

    model_config = ConfigDict(extra="forbid")

    trained_on: list[str] = Field(description="training skills of the trial, in the order of their names")
    samples_per_skill: int = Field(ge=1, description="number of samples of each training skill at every step")
    seed: int = Field(ge=0)
    steps_taken: int = Field(ge=1, description="number of steps; fewer than planned if the losses settled")
    losses: list[list[float]] = Field(
        description="losses[t][j]: nats per token of evaluation skill j at evaluation t; a settled trial repeats its last losses"
    )


class Learned(BaseModel):
    """The method, the settings and all measured losses of a learned graph, from which edges can be derived by any rule."""

    model_config = ConfigDict(extra="forbid")

    method: Literal["linear", "brute-force", "leave-one-out"]
    made_from: dict[str, Any] = Field(description="shards, proxy and settings that determine the losses")
    seeds: list[int] = Field(min_length=1)
    warmup_steps: int = Field(ge=0, description="stratified steps before every trial, taken once for each seed")
    warmup_batch_size: int = Field(ge=1)
    eval_steps: list[int] = Field(description="steps of a trial at which losses were measured, from 0")
    runs: list[TrialLosses]
    edges: str = Field(description="absolute, relative, threshold:LOSS or threshold-own:LOSS")
    average: Literal["end", "curve"]
    off_diagonal: float | None
    clamp: bool
    drop_uncertain: bool
    direct: float | None = Field(
        default=None, description="smallest size of a direct edge, as a share of the largest edge between skills"
    )

    @property
    def loss_kind(self) -> LossKind:
        """Kind of losses of the trials. The trials of graphs of version 1 all measured losses per sample."""
        # Fields that an older file lacks take the default of `LossKind`.
        names = ("reduction", "answer_after", "prompt_field")
        return LossKind(**{name: value for name in names if (value := self.made_from.get(name)) is not None})

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps of all trials and warm starts."""
        return len(self.seeds) * self.warmup_steps + sum(trial.steps_taken for trial in self.runs)

    @property
    def num_samples(self) -> int:
        """Number of samples that all trials and warm starts trained on."""
        in_trials = sum(trial.steps_taken * len(trial.trained_on) * trial.samples_per_skill for trial in self.runs)
        return len(self.seeds) * self.warmup_steps * self.warmup_batch_size + in_trials


class GraphFile(BaseModel):
    """The content of a graph's file."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/graph/2"] = Field("skillshard/graph/2", alias="schema")
    train_skills: list[str] = Field(description="names of the rows: skills that can be trained on")
    eval_skills: list[str] = Field(description="names of the columns: skills whose loss is measured")
    edges: list[list[float]] = Field(
        description="edges[i][j]: how much training on row i helps column j; may be negative"
    )
    standard_errors: list[list[float]] | None = Field(
        None, description="standard error of each edge over the seeds; absent if unknown"
    )
    loss: LossKind | None = Field(
        None, description="kind of losses that the edges were learned from; absent if unknown"
    )
    not_improved: list[str] | None = Field(
        None,
        description="skills without a gain: training on the skill did not lower its own loss; absent if no losses were measured",
    )
    learned: Learned | None = Field(None, description="the learning of the graph; absent if the graph was imported")

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, read: Any) -> Any:
        """Translate a file of version 1, in which the kind of losses is a setting, and "threshold" means today's "threshold-own"."""
        if not isinstance(read, dict) or read.get("schema") != "skillshard/graph/1":
            return read
        learned = read.get("learned")
        if not isinstance(learned, dict) or not isinstance(learned.get("made_from"), dict):
            return {**read, "schema": "skillshard/graph/2"}
        edges = str(learned.get("edges"))
        own = f"threshold-own:{edges.partition(':')[2]}" if edges.startswith("threshold:") else edges
        answer_after = learned["made_from"].get("answer_after")
        loss = {} if answer_after is None else {"answer_after": answer_after}
        return {**read, "schema": "skillshard/graph/2", "loss": loss, "learned": {**learned, "edges": own}}

    @model_validator(mode="after")
    def _sizes_fit(self) -> "GraphFile":
        """Check every list of numbers against the names. An edited file would otherwise fail where the numbers are used."""
        num_rows, num_columns = len(self.train_skills), len(self.eval_skills)
        for field_name, matrix in (("edges", self.edges), ("standard_errors", self.standard_errors)):
            if matrix is not None:
                _check_size(field_name, matrix, num_rows, num_columns)
        if self.learned is not None:
            if not self.learned.runs:
                raise ValueError("learned.runs has no trial")
            num_points = len(self.learned.runs[0].losses)
            for number, trial in enumerate(self.learned.runs):
                # Edges are differences of losses, so that a start and an end are the least.
                _check_size(f"learned.runs.{number}.losses", trial.losses, max(2, num_points), num_columns)
        return self


def _check_size(field_name: str, matrix: list[list[float]], num_rows: int, num_columns: int) -> None:
    """Raise ValueError unless a matrix of a file has the expected size."""
    if len(matrix) != num_rows:
        raise ValueError(f"{field_name} has {counted(len(matrix), 'row')}, and {num_rows:,} are expected")
    other = next((number for number, row in enumerate(matrix) if len(row) != num_columns), None)
    if other is not None:
        raise ValueError(
            f"row {other:,} of {field_name} has {counted(len(matrix[other]), 'number')}, and {num_columns:,} are expected"
        )


@dataclass(frozen=True, eq=False, init=False)
class SkillGraph:
    """Matrix A: rows are training skills, columns are evaluation skills, and A[i, j] is how much i helps j.

    The identity graph (`SkillGraph.identity`) is a flag without a matrix, so that 10,000 skills need almost no memory.

    Attributes:
        train_skills: Names of the rows.
        eval_skills: Names of the columns.
        is_identity: Whether the graph is the identity: an edge is 1 if row and column are the same skill, and 0 elsewhere.
        loss: Kind of losses that the edges were learned from. None: the kind is not known.

    Raises:
        GraphError: The matrix does not fit the names, a name occurs twice, or a value is not a finite number.

    Example:
        >>> graph = SkillGraph(("add", "carry"), ("carry",), [[1.0], [0.0]])
        >>> graph.edges.shape, graph.density
        ((2, 1), 0.5)
    """

    train_skills: tuple[str, ...]
    eval_skills: tuple[str, ...]
    is_identity: bool
    loss: LossKind | None
    _matrix: Float[np.ndarray, "train_skill eval_skill"] | None = field(repr=False)

    def __init__(
        self,
        train_skills: Sequence[str],
        eval_skills: Sequence[str],
        edges: object,
        *,
        loss: LossKind | None = None,
    ) -> None:
        matrix = _matrix_of(edges)
        expected = (len(train_skills), len(eval_skills))
        if matrix.shape != expected or 0 in expected:
            raise GraphError(
                f"the graph's matrix has shape {matrix.shape}, its names make {expected} "
                f"({len(train_skills)} training skills x {len(eval_skills)} evaluation skills; at least 1 x 1)."
            )
        self._set_names(train_skills, eval_skills)
        bad = np.argwhere(~np.isfinite(matrix))
        if len(bad):
            row, column = bad[0]
            raise GraphError(
                f"the graph's edge {train_skills[row]} -> {eval_skills[column]} is {matrix[row, column]}: "
                f"edges must be finite numbers ({len(bad)} are not)."
            )
        matrix.setflags(write=False)  # the digest is computed once, so the edges must not change later
        object.__setattr__(self, "is_identity", False)
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "_matrix", matrix)

    def _set_names(self, train_skills: Sequence[str], eval_skills: Sequence[str]) -> None:
        # `object.__setattr__`, because the class is frozen and has an `__init__` of its own.
        for axis, names in (("training", train_skills), ("evaluation", eval_skills)):
            twice = sorted(name for name, num in Counter(names).items() if num > 1)
            if twice:
                raise GraphError(f"the graph's {axis} skills are not distinct: {name_some(twice)} twice or more.")
        object.__setattr__(self, "train_skills", tuple(train_skills))
        object.__setattr__(self, "eval_skills", tuple(eval_skills))

    @classmethod
    def identity(cls, skills: Sequence[str]) -> "SkillGraph":
        """Make the graph in which each skill helps only itself. SKILL-IT with the identity reweights by losses alone.

        >>> SkillGraph.identity(("add", "carry")).edges.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        """
        if not skills:
            raise GraphError("the identity graph needs at least one skill.")
        return cls._identity(skills, skills, None)

    @classmethod
    def _identity(cls, train_skills: Sequence[str], eval_skills: Sequence[str], loss: LossKind | None) -> "SkillGraph":
        graph = cls.__new__(cls)
        graph._set_names(train_skills, eval_skills)
        object.__setattr__(graph, "is_identity", True)
        object.__setattr__(graph, "loss", loss)
        object.__setattr__(graph, "_matrix", None)
        return graph

    @classmethod
    def chain(cls, skills: Sequence[str], *, edge: float = 0.5) -> "SkillGraph":
        """Make the graph in which each skill helps itself (1) and the next skill (`edge`), as defined for the LEGO task.

        >>> SkillGraph.chain(("a", "b")).edges.tolist()
        [[1.0, 0.5], [0.0, 1.0]]
        """
        return cls(skills, skills, np.eye(len(skills)) + edge * np.eye(len(skills), k=1))

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> "SkillGraph":
        """Read a graph from its JSON file."""
        file = read_graph(place)
        return cls(file.train_skills, file.eval_skills, file.edges, loss=file.loss)

    def choose(self, rows: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> "SkillGraph":
        """Return the part of the graph between chosen training skills and chosen evaluation skills.

        Args:
            rows: Training skills to keep, in any order. None: all training skills.
            columns: Evaluation skills to keep, in any order. None: all evaluation skills.

        Returns:
            A graph with rows and columns in the order of this graph.

        Raises:
            GraphError: A name is not in the graph, is given twice, or no name is given.

        >>> SkillGraph.chain(("a", "b", "c")).choose(rows=("c", "b"), columns=("c",)).edges.tolist()
        [[0.5], [1.0]]
        """
        kept_rows = _chosen("training", self.train_skills, rows)
        kept_columns = _chosen("evaluation", self.eval_skills, columns)
        train, evals = [self.train_skills[row] for row in kept_rows], [self.eval_skills[col] for col in kept_columns]
        if self._matrix is None:
            return self._identity(train, evals, self.loss)
        return SkillGraph(train, evals, self._matrix[np.ix_(kept_rows, kept_columns)], loss=self.loss)

    def scores(
        self,
        skills: Sequence[str],
        losses: Float[np.ndarray, " eval_skill"],
        *,
        scale: float = 1.0,
        positive_only: bool = False,
    ) -> Float[np.ndarray, " skill"]:
        r"""Compute how much each training skill helps to lower the present losses: :math:`s \sum_j A_{ij} L_j`.

        For the identity graph, the score of a skill is its own loss, and no matrix product is needed.

        Args:
            skills: Training skills, in the order of the result. Every skill must be a row of the graph.
            losses: A number for each column.
            scale: Factor s, without unit.
            positive_only: Whether a negative edge counts as 0.

        >>> SkillGraph.chain(("a", "b")).scores(("b", "a"), np.array([2.0, 4.0])).tolist()
        [4.0, 4.0]
        """
        if self._matrix is None:
            own = dict(zip(self.eval_skills, losses.tolist(), strict=True))
            return scale * np.array([own.get(skill, 0.0) for skill in skills])
        edges = self._matrix[[self._rows[skill] for skill in skills]]
        if positive_only:
            edges = np.maximum(edges, 0)
        return scale * edges @ losses

    @cached_property
    def helpful_skills(self) -> frozenset[str]:
        """Training skills with a positive edge to any evaluation skill, including an edge to the skill itself."""
        if self._matrix is None:
            return frozenset(self.train_skills) & frozenset(self.eval_skills)
        return frozenset(self.train_skills[row] for row in np.flatnonzero((self._matrix > 0).any(axis=1)))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {skill: row for row, skill in enumerate(self.train_skills)}

    @property
    def edges(self) -> Float[np.ndarray, "train_skill eval_skill"]:
        """The matrix, read-only. The identity graph builds the matrix on every access, with 8 bytes for each entry."""
        if self._matrix is not None:
            return self._matrix
        matrix = np.zeros((len(self.train_skills), len(self.eval_skills)))
        for row, column in enumerate(self._own_columns()):
            if column is not None:
                matrix[row, column] = 1.0
        matrix.setflags(write=False)
        return matrix

    def _own_columns(self) -> list[int | None]:
        """Return the column of the same skill for each row, or None."""
        column_of = {skill: column for column, skill in enumerate(self.eval_skills)}
        return [column_of.get(skill) for skill in self.train_skills]

    def save(self, place: str | os.PathLike[str]) -> None:
        """Write the graph, whole or not at all."""
        with storage.writing(place) as part, part.open("wb") as file:
            file.writelines(self._pieces(GraphFile.model_fields["schema_version"].default, self.loss))

    def to_bytes(self) -> bytes:
        """Return the bytes of the graph's file."""
        return b"".join(self._pieces(GraphFile.model_fields["schema_version"].default, self.loss))

    @cached_property
    def digest(self) -> str:
        """Digest of names and edges, which a run records to recognize its graph."""
        return canonical.digest_of(self._pieces(DIGESTED_FORM, None))

    def _pieces(self, schema: str, loss: LossKind | None) -> Iterator[bytes | memoryview]:
        """Yield the JSON form of names and edges row by row, so that the whole form is never in memory."""
        # The bytes are those of `canonical.to_json`, since the digest depends on them. Only the list of edges is written apart.
        names = {"train_skills": list(self.train_skills), "eval_skills": list(self.eval_skills)}
        of_losses = {} if loss is None else {"loss": loss.model_dump(exclude_none=True)}
        head, _, tail = canonical.to_json({"schema": schema, **names, "edges": [], **of_losses}).partition(
            b'"edges": []'
        )
        yield head + b'"edges": [\n'
        for row, cells in enumerate(self._rows_as_json()):
            yield b",\n    [\n" if row else b"    [\n"
            yield from cells
            yield b"\n    ]"
        yield b"\n  ]" + tail

    def _rows_as_json(self) -> Iterator[list[bytes | memoryview]]:
        """Yield the numbers of each row, as `canonical.to_json` would write the numbers in the file."""
        if self._matrix is not None:
            for values in self._matrix:
                # Nested twice, so that the numbers get the indent that they have in the file. The brackets are cut off.
                yield [canonical.to_json([[values.tolist()]])[len(b"[\n  [\n    [\n") : -len(b"\n    ]\n  ]\n]\n")]]
            return
        # Every row of the identity is cut from one row of zeros, so that 10,000 x 10,000 edges need the memory of one row.
        edge_0, edge_1, comma = b"      0.0", b"      1.0", b",\n"
        num, step = len(self.eval_skills), len(edge_0 + comma)
        zeros = memoryview((edge_0 + comma) * num)
        for column in self._own_columns():
            if column is None:
                yield [zeros[: step * num - len(comma)]]
            elif column == num - 1:
                yield [zeros[: step * column], edge_1]
            else:
                yield [zeros[: step * column], edge_1, comma, zeros[: step * (num - 1 - column) - len(comma)]]

    def __repr__(self) -> str:
        """Return one line with the numbers of skills and the density."""
        if self.is_identity and self.train_skills == self.eval_skills:
            return f"SkillGraph(identity of {counted(len(self.train_skills), 'skill')})"
        return f"SkillGraph({len(self.train_skills):,} training x {len(self.eval_skills):,} evaluation skills, density {self.density:.3f})"

    @property
    def density(self) -> float:
        """Share of positive entries among all entries, including the diagonal (42.7 % for the 23 skills of the paper)."""
        if self._matrix is None:
            return len(self.helpful_skills) / (len(self.train_skills) * len(self.eval_skills))
        return float((self._matrix > 0).mean())


def _matrix_of(edges: object) -> Float[np.ndarray, "..."]:
    """Copy the edges into an array of numbers.

    Raises:
        GraphError: The edges are no matrix of numbers.
    """
    try:
        matrix = np.asarray(edges)
        # NumPy would drop the imaginary part of complex numbers, and would read texts as numbers.
        if matrix.dtype.kind in "biufO":
            # An array of the caller may change later.
            return matrix.astype(np.float64, copy=not isinstance(edges, list | tuple))
        fault = f"their type is {matrix.dtype}"
    except (TypeError, ValueError, OverflowError) as error:
        fault = str(error)
    raise GraphError(f"the graph's edges are no matrix of numbers: {fault}.")


def _chosen(axis: str, names: Sequence[str], choice: Sequence[str] | None) -> list[int]:
    """Return the positions of the chosen names, in rising order."""
    if choice is None:
        return list(range(len(names)))
    chosen = choose_names(choice, names, what=f"{axis} skills of the graph", error=GraphError)
    return [place for place, name in enumerate(names) if name in chosen]


def read_graph(place: str | os.PathLike[str]) -> GraphFile:
    """Read the whole content of a graph's file.

    Raises:
        GraphError: The file is not a graph.
    """
    try:
        return GraphFile.model_validate(storage.read_json(place))
    except ValidationError as error:
        raise GraphError(
            f"{os.fspath(place)} is not a skills graph (schemas/graph-2.json): {canonical.first_fault(error)}. A matrix of another kind "
            "becomes one by 'skillshard graph import'."
        ) from error


def write_graph(file: GraphFile, place: str | os.PathLike[str]) -> None:
    """Write a graph's file, whole or not at all."""
    SkillGraph(file.train_skills, file.eval_skills, file.edges)  # raises an error for an invalid graph
    written = file.model_dump(by_alias=True)
    # Optional fields are left out and not written as null: files of imported graphs stay as short as by `SkillGraph.save`.
    optional = ("standard_errors", "loss", "not_improved", "learned")
    storage.write_bytes(
        place,
        canonical.to_json(
            {name: value for name, value in written.items() if value is not None or name not in optional}
        ),
    )
