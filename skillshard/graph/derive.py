"""Derive the edges of a learned graph by another rule. The graph's file keeps the losses, so nothing is trained."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skillshard.errors import GraphError
from skillshard.graph.edges import EdgeRule, LossCurve, derive_edges, parse_edges
from skillshard.graph.skill_graph import GraphFile, Learned
from skillshard.graph.statistics import Gain, gains_of


def derived(train_skills: Sequence[str], eval_skills: Sequence[str], learned: Learned, *, rule: EdgeRule) -> GraphFile:
    """Derive a graph from the losses of its trials by a rule."""
    result = derive_edges(learned.method, train_skills, eval_skills, _curves(learned), rule=rule)
    return GraphFile(
        train_skills=list(train_skills),
        eval_skills=list(eval_skills),
        edges=result.edges.tolist(),
        standard_errors=None if result.standard_errors is None else result.standard_errors.tolist(),
        # From the losses and not from the new edges, so that the list is the same for every rule.
        not_improved=[gain.skill for gain in own_gains(train_skills, eval_skills, learned) if gain.nats <= 0],
        loss=learned.loss_kind,
        learned=learned.model_copy(update=rule_of(rule)),
    )


def derive_again(graph: GraphFile, *, rule: EdgeRule, name: str) -> GraphFile:
    """Derive the edges of a graph's file again by another rule.

    Args:
        graph: Content of the file.
        rule: Definition of an edge.
        name: Name of the file, for the error.

    Raises:
        GraphError: The graph was imported and not learned, so the file has no losses.
    """
    if graph.learned is None:
        raise GraphError(
            f"{name} was imported, not learned: the file has no losses from which other edges could be derived. Learn a graph: 'skillshard graph learn SHARDS'."
        )
    return derived(graph.train_skills, graph.eval_skills, graph.learned, rule=rule)


def own_gains(train_skills: Sequence[str], eval_skills: Sequence[str], learned: Learned) -> list[Gain]:
    """Compute the gain of each skill from the losses of the trials, independent of the rule for the edges.

    Definition 2.1 of Chen et al. 2023: a set of samples is a skill only if training on samples of the set lowers the loss of other
    samples of the set.
    """
    # A rule of its own: clamping and `off_diagonal` would hide a negative diagonal.
    rule = EdgeRule("absolute", None, learned.average, clamp=False, off_diagonal=None, drop_uncertain=False)
    effects = derive_edges(learned.method, train_skills, eval_skills, _curves(learned), rule=rule)
    return gains_of(
        train_skills,
        eval_skills,
        effects.edges,
        standard_errors=effects.standard_errors,
        num_seeds=len(learned.seeds),
    )


def _curves(learned: Learned) -> list[LossCurve]:
    return [LossCurve(tuple(trial.trained_on), trial.seed, np.array(trial.losses)) for trial in learned.runs]


def rule_of(rule: EdgeRule) -> dict[str, Any]:
    """Return a rule as the fields of a graph's file.

    >>> rule_of(EdgeRule("threshold", 0.01, "end", clamp=True, off_diagonal=0.5, drop_uncertain=False))["edges"]
    'threshold:0.01'
    """
    return {
        "edges": rule.unit if rule.threshold is None else f"{rule.unit}:{rule.threshold:g}",
        "average": rule.average,
        "clamp": rule.clamp,
        "off_diagonal": rule.off_diagonal,
        "drop_uncertain": rule.drop_uncertain,
        "direct": rule.direct,
    }


def rule_in(learned: Learned) -> EdgeRule:
    """Read the rule from the fields of a graph's file: the inverse of `rule_of`."""
    unit, threshold = parse_edges(learned.edges)
    return EdgeRule(
        unit,
        threshold,
        learned.average,
        clamp=learned.clamp,
        off_diagonal=learned.off_diagonal,
        drop_uncertain=learned.drop_uncertain,
        direct=learned.direct,
    )
