"""Another definition of edges for a learned graph: its raw losses are kept, so nothing is trained."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skillshard.errors import GraphError
from skillshard.graph.edges import EdgeRule, LossCurve, derive_edges, parse_edges
from skillshard.graph.skill_graph import GraphFile, Learned


def derived(train_skills: Sequence[str], eval_skills: Sequence[str], learned: Learned, *, rule: EdgeRule) -> GraphFile:
    """The graph that a rule makes of the losses."""
    curves = [LossCurve(tuple(run.trained_on), run.seed, np.array(run.losses)) for run in learned.runs]
    found = derive_edges(learned.method, train_skills, eval_skills, curves, rule=rule)
    return GraphFile(
        train_skills=list(train_skills),
        eval_skills=list(eval_skills),
        edges=found.edges.tolist(),
        standard_errors=None if found.standard_errors is None else found.standard_errors.tolist(),
        learned=learned.model_copy(update=rule_of(rule)),
    )


def derive_again(graph: GraphFile, *, rule: EdgeRule, name: str) -> GraphFile:
    """The same for a graph's file; GraphError if it was not learned, so that there are no losses.

    Args:
        graph: learned here.
        rule: what an edge is.
        name: of the file, for the error.
    """
    if graph.learned is None:
        raise GraphError(
            f"{name} was given, not learned: it holds no losses that other edges could be derived from. Learn one: 'skillshard graph SHARDS'."
        )
    return derived(graph.train_skills, graph.eval_skills, graph.learned, rule=rule)


def rule_of(rule: EdgeRule) -> dict[str, Any]:
    """A rule as a graph's file tells it.

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
    """The inverse of `rule_of`."""
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
