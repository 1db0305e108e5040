"""The skills graph as an artefact: a matrix with named axes, one JSON file (`schemas/graph-1.json`)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard import storage
from skillshard.errors import GraphError


class RunLosses(BaseModel):
    """What one run of the graph's learning measured."""

    model_config = ConfigDict(extra="forbid")

    trained_on: list[str] = Field(description="its training skills, in the order of their names")
    samples_per_skill: int = Field(ge=1, description="of each of them, at every step")
    seed: int = Field(ge=0)
    steps_taken: int = Field(ge=1, description="fewer than asked for where its losses had settled")
    losses: list[list[float]] = Field(
        description="losses[t][j]: nats per token of evaluation skill j at evaluation t; a run that settled repeats its last"
    )


class Learned(BaseModel):
    """How a graph was learned, and all that was measured: enough for any other definition of its edges."""

    model_config = ConfigDict(extra="forbid")

    method: Literal["linear", "brute-force", "leave-one-out"]
    made_from: dict[str, Any] = Field(description="shards, proxy and settings that determine the losses")
    seeds: list[int] = Field(min_length=1)
    warmup_steps: int = Field(ge=0, description="stratified steps before every run, taken once for each seed")
    warmup_batch_size: int = Field(ge=1)
    eval_steps: list[int] = Field(description="steps of a run at which losses were measured, from 0")
    runs: list[RunLosses]
    edges: str = Field(description="absolute, relative or threshold:LOSS")
    average: Literal["end", "curve"]
    off_diagonal: float | None
    clamp: bool
    drop_uncertain: bool
    direct: float | None = Field(
        default=None, description="share of the largest edge from which on direct edges are kept"
    )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all runs and warm starts."""
        return len(self.seeds) * self.warmup_steps + sum(run.steps_taken for run in self.runs)

    @property
    def num_samples(self) -> int:
        """Samples that all runs and warm starts trained on."""
        runs = sum(run.steps_taken * len(run.trained_on) * run.samples_per_skill for run in self.runs)
        return len(self.seeds) * self.warmup_steps * self.warmup_batch_size + runs


class GraphFile(BaseModel):
    """What a graph is on disk."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/graph/1"] = Field("skillshard/graph/1", alias="schema")
    train_skills: list[str] = Field(description="names of the rows: skills that can be trained on")
    eval_skills: list[str] = Field(description="names of the columns: skills whose loss is measured")
    edges: list[list[float]] = Field(
        description="edges[i][j]: how much training on row i helps column j; may be negative"
    )
    standard_errors: list[list[float]] | None = Field(
        None, description="of each edge over the seeds; absent where it is not known"
    )
    learned: Learned | None = Field(None, description="absent where the graph was given, not learned")


@dataclass(frozen=True, eq=False)
class SkillGraph:
    """Matrix A: rows are training skills, columns are evaluation skills, A[i, j] says how much i helps j.

    Raises:
        GraphError: the matrix does not fit the names, a name is there twice, or a value is not a finite number.

    Example:
        >>> graph = SkillGraph(("add", "carry"), ("carry",), [[1.0], [0.0]])
        >>> graph.edges.shape, graph.density
        ((2, 1), 0.5)
    """

    train_skills: tuple[str, ...]
    eval_skills: tuple[str, ...]
    edges: Float[np.ndarray, "train_skill eval_skill"]

    def __init__(self, train_skills: Sequence[str], eval_skills: Sequence[str], edges: object) -> None:
        matrix = np.asarray(edges, dtype=np.float64)
        expected = (len(train_skills), len(eval_skills))
        if matrix.shape != expected or 0 in expected:
            raise GraphError(
                f"the graph's matrix has shape {matrix.shape}, its names make {expected} "
                f"({len(train_skills)} training skills x {len(eval_skills)} evaluation skills; at least 1 x 1)."
            )
        for axis, names in (("training", train_skills), ("evaluation", eval_skills)):
            twice = sorted({name for name in names if list(names).count(name) > 1})
            if twice:
                raise GraphError(f"the graph's {axis} skills are not distinct: {', '.join(twice)} twice or more.")
        bad = np.argwhere(~np.isfinite(matrix))
        if len(bad):
            row, column = bad[0]
            raise GraphError(
                f"the graph's edge {train_skills[row]} -> {eval_skills[column]} is {matrix[row, column]}: "
                f"edges must be finite numbers ({len(bad)} are not)."
            )
        object.__setattr__(self, "train_skills", tuple(train_skills))
        object.__setattr__(self, "eval_skills", tuple(eval_skills))
        object.__setattr__(self, "edges", matrix)

    @classmethod
    def identity(cls, skills: Sequence[str]) -> "SkillGraph":
        """Each skill helps itself alone: SKILL-IT with it reweights by loss, without a graph."""
        return cls(skills, skills, np.eye(len(skills)))

    @classmethod
    def chain(cls, skills: Sequence[str], *, edge: float = 0.5) -> "SkillGraph":
        """Each skill helps itself (1) and the next one (`edge`): the LEGO task's definition, in the order of its chain.

        >>> SkillGraph.chain(("a", "b")).edges.tolist()
        [[1.0, 0.5], [0.0, 1.0]]
        """
        return cls(skills, skills, np.eye(len(skills)) + edge * np.eye(len(skills), k=1))

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> "SkillGraph":
        """Read a graph from its JSON file."""
        file = read_graph(place)
        return cls(file.train_skills, file.eval_skills, file.edges)

    def save(self, place: str | os.PathLike[str]) -> None:
        """Write the graph, whole or not at all."""
        storage.write_bytes(place, self.to_bytes())

    def to_bytes(self) -> bytes:
        file = GraphFile(
            train_skills=list(self.train_skills), eval_skills=list(self.eval_skills), edges=self.edges.tolist()
        )
        return storage.to_json(file.model_dump(by_alias=True, exclude_none=True))

    @property
    def digest(self) -> str:
        """Digest of names and edges: what a run records of its graph."""
        return storage.digest(self.to_bytes())

    @property
    def density(self) -> float:
        """Share of all entries, the diagonal included, that are positive (the paper's 42.7 % for its 23 skills)."""
        return float((self.edges > 0).mean())


def read_graph(place: str | os.PathLike[str]) -> GraphFile:
    """A graph's file with all that it tells; GraphError if it is none."""
    try:
        return GraphFile.model_validate(storage.read_json(place))
    except ValidationError as error:
        raise GraphError(
            f"{os.fspath(place)} is not a skills graph (schemas/graph-1.json): {storage.first_fault(error)}. A matrix of another kind "
            "becomes one by 'skillshard graph import'."
        ) from error


def write_graph(file: GraphFile, place: str | os.PathLike[str]) -> None:
    """Write a graph's file, whole or not at all."""
    SkillGraph(file.train_skills, file.eval_skills, file.edges)  # refuses what is no graph
    written = file.model_dump(by_alias=True)
    optional = ("standard_errors", "learned")
    storage.write_bytes(
        place,
        storage.to_json({name: value for name, value in written.items() if value is not None or name not in optional}),
    )
