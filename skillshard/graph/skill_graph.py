"""The skills graph as an artefact: a matrix with named axes, one JSON file (`schemas/graph-1.json`)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field

from skillshard import storage
from skillshard.errors import GraphError


class GraphFile(BaseModel):
    """What a graph is on disk."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/graph/1"] = Field("skillshard/graph/1", alias="schema")
    train_skills: list[str] = Field(description="names of the rows: skills that can be trained on")
    eval_skills: list[str] = Field(description="names of the columns: skills whose loss is measured")
    edges: list[list[float]] = Field(
        description="edges[i][j]: how much training on row i helps column j; may be negative"
    )


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
        try:
            file = GraphFile.model_validate(storage.read_json(place))
        except ValueError as error:
            raise GraphError(f"{os.fspath(place)} is not a skills graph (schemas/graph-1.json): {error}") from error
        return cls(file.train_skills, file.eval_skills, file.edges)

    def save(self, place: str | os.PathLike[str]) -> None:
        """Write the graph, whole or not at all."""
        storage.write_bytes(place, self.to_bytes())

    def to_bytes(self) -> bytes:
        file = GraphFile(
            train_skills=list(self.train_skills), eval_skills=list(self.eval_skills), edges=self.edges.tolist()
        )
        return storage.to_json(file.model_dump(by_alias=True))

    @property
    def digest(self) -> str:
        """Digest of names and edges: what a run records of its graph."""
        return storage.digest(self.to_bytes())

    @property
    def density(self) -> float:
        """Share of all entries, the diagonal included, that are positive (the paper's 42.7 % for its 23 skills)."""
        return float((self.edges > 0).mean())
