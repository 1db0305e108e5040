"""From the losses of runs to edges. Pure: another definition of an edge costs no training.

The effect of training skill i on evaluation skill j, by the runs of one seed (L is a loss after training, see `average`):

    linear           L_j at the start - L_j of the run on i
    brute-force      L_j of the run on j - L_j of the run on i and j;  for i = j:  L_j at the start - L_j of the run on j
    leave-one-out    L_j of the run without i - L_j of the run on all

The edge is the mean over the seeds, its standard error that of this mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from skillshard.errors import GraphError
from skillshard.graph.plan import Method
from skillshard.graph.statistics import is_same, is_uncertain

Average = Literal["end", "curve"]


@dataclass(frozen=True)
class LossCurve:
    """The losses of one run.

    Attributes:
        trained_on: its skills, in the order of their names.
        seed: of the run.
        losses: nats per token; row 0 is the start, before its first step.
    """

    trained_on: tuple[str, ...]
    seed: int
    losses: Float[np.ndarray, "point eval_skill"]


@dataclass(frozen=True)
class EdgeRule:
    """How losses become edges. `parse_edges` reads the first two from a word.

    Args:
        unit: "absolute": nats. "relative": share of the loss at the start. "threshold": 1 where i brings j to a loss sooner, in
            samples of j (linear: where it brings j there at all), else 0.
        threshold: that loss, in nats; None for the other units.
        average: "end": the loss at a run's end. "curve": its mean over all points but the first. No effect on thresholds.
        clamp: whether negative edges become 0.
        off_diagonal: None: edges as measured. A number: 1 on the diagonal, and all others scaled so that the largest is this.
        drop_uncertain: whether edges that are not distinguishable from 0 become 0; needs two seeds or more.
        direct: None: edges as measured. A share of the largest edge between skills: the order alone, see `direct_edges`.

    Raises:
        GraphError: a number is out of range.
    """

    unit: Literal["absolute", "relative", "threshold"]
    threshold: float | None
    average: Average
    clamp: bool
    off_diagonal: float | None
    drop_uncertain: bool
    direct: float | None = None

    def __post_init__(self) -> None:
        if (self.unit == "threshold") != (self.threshold is not None):
            raise GraphError(
                f"edges {self.unit} with threshold {self.threshold}: only 'threshold' has one, and needs it."
            )
        for name, number in (("threshold", self.threshold), ("off-diagonal", self.off_diagonal)):
            if number is not None and not (math.isfinite(number) and number > 0):
                raise GraphError(f"{name} {number}: give a finite number above 0.")
        if self.direct is not None and not 0 <= self.direct <= 1:
            raise GraphError(f"direct {self.direct}: give a share of the largest edge between skills, from 0 to 1.")


@dataclass(frozen=True)
class Edges:
    """Edges and their uncertainty.

    Attributes:
        edges: A, rows are trained on.
        standard_errors: of each edge over the seeds, scaled with it; None for one seed. 0 where an edge is set, not measured.
    """

    edges: Float[np.ndarray, "train_skill eval_skill"]
    standard_errors: Float[np.ndarray, "train_skill eval_skill"] | None


def parse_edges(word: str) -> tuple[Literal["absolute", "relative", "threshold"], float | None]:
    """
    >>> parse_edges("absolute"), parse_edges("threshold:0.01")
    (('absolute', None), ('threshold', 0.01))
    """
    unit, mark, number = word.partition(":")
    if unit in ("absolute", "relative") and not mark:
        return unit, None  # type: ignore[return-value]  # one of the two
    try:
        if unit == "threshold":
            return "threshold", float(number)
    except ValueError:
        pass
    raise GraphError(f"edges {word!r}: give 'absolute', 'relative' or 'threshold:LOSS', such as threshold:0.01 (nats).")


def usual_average(method: Method) -> Average:
    """What a method's edges are made of: the curve for leave-one-out, whose ends are noisy; the end, as in the paper."""
    return "curve" if method == "leave-one-out" else "end"


def derive_edges(
    method: Method,
    train_skills: Sequence[str],
    eval_skills: Sequence[str],
    curves: Sequence[LossCurve],
    *,
    rule: EdgeRule,
) -> Edges:
    """The matrix that losses give by a rule.

    Args:
        method: whose runs these are.
        train_skills, eval_skills: rows and columns.
        curves: the losses of every planned run, in any order; their columns are the evaluation skills.
        rule: what an edge is.

    Raises:
        GraphError: a run is missing, or the rule needs more seeds.

    Example:
        >>> rule = EdgeRule("absolute", None, "end", clamp=True, off_diagonal=None, drop_uncertain=False)
        >>> curves = [LossCurve(("a",), 0, np.array([[3.0, 3.0], [1.0, 2.5]])),
        ...           LossCurve(("b",), 0, np.array([[3.0, 3.0], [3.5, 2.0]]))]
        >>> derive_edges("linear", ("a", "b"), ("a", "b"), curves, rule=rule).edges.tolist()
        [[2.0, 0.5], [0.0, 1.0]]
    """
    seeds = sorted({curve.seed for curve in curves})
    by_run = {(curve.trained_on, curve.seed): curve.losses for curve in curves}
    per_seed = np.stack([_effects(method, train_skills, eval_skills, by_run, seed, rule) for seed in seeds])
    edges, errors = per_seed.mean(axis=0), None
    if len(seeds) > 1:
        errors = per_seed.std(axis=0, ddof=1) / np.sqrt(len(seeds))
    if rule.drop_uncertain:
        if errors is None:
            raise GraphError(
                "edges of one seed have no standard errors, so none can be told from 0: learn with --seeds 2 or more."
            )
        edges = np.where(is_uncertain(edges, errors, len(seeds)), 0.0, edges)
    same = is_same(train_skills, eval_skills)
    if rule.direct is not None:
        edges, errors = direct_edges(edges, train_skills, eval_skills, rule.direct), None
    if rule.clamp:
        edges = np.maximum(edges, 0.0)
    if rule.off_diagonal is None:
        return Edges(edges, errors)
    edges, factor = scaled_edges(edges, same, rule.off_diagonal)
    return Edges(edges, None if errors is None else np.where(same, 0.0, errors * factor))


def direct_edges(
    edges: Float[np.ndarray, "train_skill eval_skill"],
    train_skills: Sequence[str],
    eval_skills: Sequence[str],
    share: float,
) -> Float[np.ndarray, "train_skill eval_skill"]:
    """The order that edges tell, without their sizes: 1 where a skill helps another one directly, and on the diagonal, else 0.

    Edges between skills count that are positive and at least `share` of the largest. Of these, one is not direct that a path
    through other skills explains: the transitive reduction (Aho, Garey and Ullman 1972) of what they tell. Skills that help
    one another, over however many steps, have no order: the edges among them stay, and they count as one in a path.

    Example:
        >>> measured = np.array([[0.7, 0.4, 0.2], [-0.1, 0.5, 0.3], [0.01, 0.0, 0.9]])
        >>> direct_edges(measured, ("a", "b", "c"), ("a", "b", "c"), 0.1).tolist()
        [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    """
    same = is_same(train_skills, eval_skills)
    between = np.where(same, 0.0, edges)
    helps = (between > 0) & (between >= share * between.max(initial=0.0))
    names = list(dict.fromkeys((*train_skills, *eval_skills)))
    rows, columns = [names.index(name) for name in train_skills], [names.index(name) for name in eval_skills]
    reaches = np.eye(len(names), dtype=bool)
    reaches[np.ix_(rows, columns)] |= helps
    for _ in range(len(names).bit_length()):  # each doubles the length of the paths
        reaches = reaches @ reaches
    onward = reaches & ~reaches.T
    explained = (onward @ onward)[np.ix_(rows, columns)]
    return np.where(same | (helps & ~explained), 1.0, 0.0)


def scaled_edges(
    edges: Float[np.ndarray, "train_skill eval_skill"],
    same: Bool[np.ndarray, "train_skill eval_skill"],
    off_diagonal: float,
) -> tuple[Float[np.ndarray, "train_skill eval_skill"], float]:
    """1 where row and column are one skill, and all others scaled so that the largest is `off_diagonal`.

    Returns:
        Edges, and the factor of the others: 1 where none is positive.

    >>> scaled_edges(np.array([[7.0, 4.0], [-1.0, 9.0]]), np.eye(2, dtype=bool), 0.5)[0].tolist()
    [[1.0, 0.5], [-0.125, 1.0]]
    """
    largest = float(np.max(edges, where=~same, initial=0.0))
    factor = off_diagonal / largest if largest > 0 else 1.0
    return np.where(same, 1.0, edges * factor), factor


def _effects(
    method: Method,
    train_skills: Sequence[str],
    eval_skills: Sequence[str],
    by_run: Mapping[tuple[tuple[str, ...], int], Float[np.ndarray, "point eval_skill"]],
    seed: int,
    rule: EdgeRule,
) -> Float[np.ndarray, "train_skill eval_skill"]:
    """The effects that the runs of one seed give."""

    def curve(skills: Sequence[str], column: int) -> Float[np.ndarray, " point"]:
        key = tuple(sorted(skills))
        if (key, seed) not in by_run:
            raise GraphError(f"the run on {' + '.join(key)} of seed {seed} is not there: learn the graph anew.")
        return by_run[key, seed][:, column]

    effects = np.zeros((len(train_skills), len(eval_skills)))
    for row, train in enumerate(train_skills):
        others = [skill for skill in train_skills if skill != train]
        for column, name in enumerate(eval_skills):
            if method == "leave-one-out":
                effects[row, column] = _gain(curve(others, column), curve(train_skills, column), 1.0, rule)
            elif method == "linear" or train == name:
                effects[row, column] = _fall(curve([train], column), rule)
            else:
                effects[row, column] = _gain(curve([name], column), curve([train, name], column), 0.5, rule)
    if rule.unit == "threshold":
        effects[is_same(train_skills, eval_skills)] = 1.0
    return effects


def _fall(losses: Float[np.ndarray, " point"], rule: EdgeRule) -> float:
    """How much a run lowers a loss from its start."""
    if rule.unit == "threshold":
        return float(_reached(losses, rule) < np.inf)
    return (float(losses[0]) - _level(losses, rule)) / _unit(losses, rule)


def _gain(
    without: Float[np.ndarray, " point"], with_it: Float[np.ndarray, " point"], share: float, rule: EdgeRule
) -> float:
    """How much lower a loss is in the second run; `share`: samples of the skill there for one in the first run."""
    if rule.unit == "threshold":
        return float(share * _reached(with_it, rule) < _reached(without, rule))
    return (_level(without, rule) - _level(with_it, rule)) / _unit(without, rule)


def _level(losses: Float[np.ndarray, " point"], rule: EdgeRule) -> float:
    return float(losses[-1] if rule.average == "end" else losses[1:].mean())


def _unit(losses: Float[np.ndarray, " point"], rule: EdgeRule) -> float:
    return float(losses[0]) if rule.unit == "relative" and losses[0] > 0 else 1.0


def _reached(losses: Float[np.ndarray, " point"], rule: EdgeRule) -> float:
    """The first point where the loss is at the threshold; inf: never."""
    assert rule.threshold is not None
    there = np.flatnonzero(losses <= rule.threshold)
    return float(there[0]) if len(there) else np.inf
