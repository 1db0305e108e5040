"""The facts of a graph, with the conclusion for SKILL-IT."""

import os
from typing import Literal

import numpy as np
from pydantic import Field

from skillshard.graph.derive import own_gains, rule_in
from skillshard.graph.skill_graph import GraphFile, read_graph
from skillshard.graph.statistics import Gain, Statistics, gains_of, statistics
from skillshard.loss import LossKind
from skillshard.report.artefact_facts import ArtefactFacts, shown


class GraphFacts(ArtefactFacts):
    """The facts of a skills graph."""

    kind: Literal["graph"] = "graph"
    train_skills: list[str] = Field(description="names of the rows")
    eval_skills: list[str] = Field(description="names of the columns")
    edges: list[list[float]] = Field(description="edges[i][j]: how much training on row i helps column j")
    standard_errors: list[list[float]] | None = Field(description="standard error of each edge; null if unknown")
    density: float = Field(description="share of positive entries, including the diagonal")
    density_between: float | None = Field(
        description="share of positive entries off the diagonal; null if all entries are on the diagonal"
    )
    density_certain: float | None = Field(
        description="share of entries off the diagonal that are positive beyond chance; null without standard errors"
    )
    reciprocity: float | None = Field(description="share of positive edges whose opposite edge is positive too")
    num_positive: int
    num_negative: int
    num_zero: int
    num_uncertain: int | None = Field(description="entries that could be 0; null without standard errors")
    helps_nobody: list[str] = Field(description="training skills without a positive edge to another skill")
    helped_by_nobody: list[str] = Field(description="evaluation skills without a positive edge from another skill")
    not_improved: list[str] = Field(description="skills without a gain, which are no skills by Definition 2.1")
    hardly_improved: list[str] = Field(description="skills whose gain could be 0")
    conclusion: str = Field(description="sentence on mixing by the graph, from the density")
    method: str | None = Field(description="method of learning; null if the graph was imported")
    rule: str | None = Field(description="definition of the edges; null if the graph was imported")
    seeds: list[int] = Field(description="seeds of the trials; empty if the graph was imported")
    num_steps: int | None = Field(description="optimizer steps of all trials and warm starts")
    num_samples: int | None = Field(description="training samples of all trials and warm starts")
    loss: LossKind | None = Field(description="kind of the losses; null if unknown")


def graph_facts(place: str | os.PathLike[str]) -> GraphFacts:
    """Collect the facts of the graph in a file.

    Raises:
        GraphError: The file is not a graph.
    """
    graph = read_graph(place)
    learned = graph.learned
    numbers = statistics_of(graph)
    return GraphFacts(
        place=shown(place),
        train_skills=graph.train_skills,
        eval_skills=graph.eval_skills,
        edges=graph.edges,
        standard_errors=graph.standard_errors,
        density=numbers.density,
        density_between=numbers.density_between,
        density_certain=numbers.density_certain,
        reciprocity=numbers.reciprocity,
        num_positive=numbers.num_positive,
        num_negative=numbers.num_negative,
        num_zero=numbers.num_zero,
        num_uncertain=numbers.num_uncertain,
        helps_nobody=list(numbers.helps_nobody),
        helped_by_nobody=list(numbers.helped_by_nobody),
        not_improved=list(numbers.not_improved),
        hardly_improved=list(numbers.hardly_improved),
        conclusion=conclusion_of(graph, numbers),
        method=None if learned is None else learned.method,
        rule=None if learned is None else learned.edges,
        seeds=[] if learned is None else learned.seeds,
        num_steps=None if learned is None else learned.num_steps,
        num_samples=None if learned is None else learned.num_samples,
        loss=graph.loss if learned is None else learned.loss_kind,
    )


def statistics_of(graph: GraphFile) -> Statistics:
    """Compute the statistics of a graph's file."""
    return statistics(
        graph.train_skills,
        graph.eval_skills,
        np.array(graph.edges),
        standard_errors=None if graph.standard_errors is None else np.array(graph.standard_errors),
        num_seeds=1 if graph.learned is None else len(graph.learned.seeds),
        gains=gains_in(graph),
    )


def gains_in(graph: GraphFile) -> list[Gain]:
    """Return the gain of each skill, from the losses of a learned graph, or from the diagonal of an imported graph."""
    if graph.learned is not None:
        return own_gains(graph.train_skills, graph.eval_skills, graph.learned)
    errors = None if graph.standard_errors is None else np.array(graph.standard_errors)
    return gains_of(graph.train_skills, graph.eval_skills, np.array(graph.edges), standard_errors=errors, num_seeds=1)


def conclusion_of(graph: GraphFile, numbers: Statistics) -> str:
    """Return the recommendation that follows from the density, or the reason why the edges mean nothing."""
    # A threshold without effect comes first: its graph is all 0 or all 1, and the density would be taken for a result.
    return _out_of_reach(graph) or numbers.sentence


def _out_of_reach(graph: GraphFile) -> str | None:
    """Return the fault of a threshold that no trial reaches, or below which every trial begins. None: no fault, or no threshold."""
    if graph.learned is None or (threshold := rule_in(graph.learned).threshold) is None:
        return None
    # Over all skills and trials: a threshold that is reached somewhere still orders some skills.
    lowest = min(loss for trial in graph.learned.runs for losses in trial.losses for loss in losses)
    highest = max(loss for trial in graph.learned.runs for loss in trial.losses[0])
    if highest <= threshold:
        return (
            f"Every trial begins at a loss of at most {threshold:g} nats (the highest is {highest:.3f}), so these edges mean nothing. Derive other edges "
            "with a smaller LOSS: 'skillshard graph derive FILE --edges threshold:LOSS --out NEW'."
        )
    if lowest <= threshold:
        return None
    return (
        f"No trial brought a loss down to {threshold:g} nats (the lowest is {lowest:.3f}), so these edges mean nothing. Derive other edges with a "
        "larger LOSS: 'skillshard graph derive FILE --edges threshold:LOSS --out NEW'."
    )
