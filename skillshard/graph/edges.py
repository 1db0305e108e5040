"""From the losses of trials to edges. Pure: another definition of an edge costs no training.

The effect of training skill i on evaluation skill j, by the trials of one seed (L is a loss after training, see `average`):

    linear           L_j at the start - L_j of the trial on i
    brute-force      L_j of the trial on j - L_j of the trial on i and j;  for i = j:  L_j at the start - L_j of the trial on j
    leave-one-out    L_j of the trial without i - L_j of the trial on all

The edge is the mean over the seeds, its standard error that of this mean.

An edge by a threshold is 0 or 1, and compares amounts of data, not losses. The paper's Definition 2.2: i helps j if j reaches a
loss with no more data in all when the data are of i and j than when they are of j alone. `Thresholds` has the two rules.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from skillshard.errors import GraphError, did_you_mean
from skillshard.graph.plan import Method
from skillshard.graph.statistics import CONFIDENCE, is_same, is_uncertain, student_t

Average = Literal["end", "curve"]
Unit = Literal["absolute", "relative", "threshold", "threshold-own"]
UNITS: tuple[Unit, ...] = get_args(Unit)


@dataclass(frozen=True)
class LossCurve:
    """The losses of one trial.

    Attributes:
        trained_on: its skills, in the order of their names.
        seed: of the trial.
        losses: nats per token; row 0 is the start, before its first step.
    """

    trained_on: tuple[str, ...]
    seed: int
    losses: Float[np.ndarray, "point eval_skill"]


ByRun = Mapping[tuple[tuple[str, ...], int], Float[np.ndarray, "point eval_skill"]]
"""The losses of each trial, by the skills that it was trained on and its seed."""


@dataclass(frozen=True)
class EdgeRule:
    """How losses become edges. `parse_edges` reads the first two from a word.

    Args:
        unit: "absolute": nats. "relative": share of the loss at the start. "threshold": Definition 2.2 of the paper: 1 where j
            reaches a loss with no more samples in all, those of i counted, than without i; else 0. "threshold-own": 1 where j
            reaches the loss with fewer samples of j itself, those of i not counted; else 0. It asks whether i can stand in for
            samples of j that are scarce, which is much weaker: a skill that does nothing for j stands exactly on the border.
            Linear trials compare nothing: both are 1 where i alone brings j to the loss.
        threshold: that loss, in nats; None for the other units.
        average: "end": the loss at a trial's end. "curve": its mean over all points but the first. No effect on thresholds.
        clamp: whether negative edges become 0.
        off_diagonal: None: edges as measured. A number: 1 on the diagonal, and all others scaled so that the largest is this.
        drop_uncertain: whether edges that are not distinguishable from 0 become 0; needs two seeds or more.
        direct: None: edges as measured. A share of the largest edge between skills: the order alone, see `direct_edges`.

    Raises:
        GraphError: a number is out of range.
    """

    unit: Unit
    threshold: float | None
    average: Average
    clamp: bool
    off_diagonal: float | None
    drop_uncertain: bool
    direct: float | None = None

    def __post_init__(self) -> None:
        if self.counts_data != (self.threshold is not None):
            raise GraphError(
                f"edges {self.unit} with threshold {self.threshold}: 'threshold' and 'threshold-own' need one, and no other has one."
            )
        for name, number in (("threshold", self.threshold), ("off-diagonal", self.off_diagonal)):
            if number is not None and not (math.isfinite(number) and number > 0):
                raise GraphError(f"{name} {number}: give a finite number above 0.")
        if self.direct is not None and not 0 <= self.direct <= 1:
            raise GraphError(f"direct {self.direct}: give a share of the largest edge between skills, from 0 to 1.")

    @property
    def counts_data(self) -> bool:
        """Whether an edge compares amounts of data up to a loss, not losses."""
        return self.unit in ("threshold", "threshold-own")


@dataclass(frozen=True)
class Edges:
    """Edges and their uncertainty.

    Attributes:
        edges: A, rows are trained on.
        standard_errors: of each edge over the seeds, scaled with it; None for one seed, and where edges are 0 or 1 by a rule. 0
            where a single edge is set, not measured.
    """

    edges: Float[np.ndarray, "train_skill eval_skill"]
    standard_errors: Float[np.ndarray, "train_skill eval_skill"] | None


def parse_edges(word: str) -> tuple[Unit, float | None]:
    """
    >>> parse_edges("absolute"), parse_edges("threshold:0.01"), parse_edges("threshold-own:0.01")
    (('absolute', None), ('threshold', 0.01), ('threshold-own', 0.01))
    """
    name, mark, number = word.partition(":")
    unit = next((unit for unit in UNITS if unit == name), None)
    if unit in ("absolute", "relative") and not mark:
        return unit, None
    try:
        if unit in ("threshold", "threshold-own"):
            return unit, float(number)
    except ValueError:
        pass
    raise GraphError(
        f"edges {word!r}{did_you_mean(name, UNITS) if unit is None else ''}: give 'absolute', 'relative', 'threshold:LOSS' or "
        "'threshold-own:LOSS', such as threshold:0.01 (nats)."
    )


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
        method: whose trials these are.
        train_skills: Names of the rows.
        eval_skills: Names of the columns.
        curves: the losses of every planned trial, in any order; their columns are the evaluation skills.
        rule: what an edge is.

    Raises:
        GraphError: a trial is missing, or the rule needs more seeds.

    Example:
        >>> rule = EdgeRule("absolute", None, "end", clamp=True, off_diagonal=None, drop_uncertain=False)
        >>> curves = [LossCurve(("a",), 0, np.array([[3.0, 3.0], [1.0, 2.5]])),
        ...           LossCurve(("b",), 0, np.array([[3.0, 3.0], [3.5, 2.0]]))]
        >>> derive_edges("linear", ("a", "b"), ("a", "b"), curves, rule=rule).edges.tolist()
        [[2.0, 0.5], [0.0, 1.0]]
    """
    seeds = sorted({curve.seed for curve in curves})
    by_run = {(curve.trained_on, curve.seed): curve.losses for curve in curves}
    if rule.drop_uncertain and len(seeds) < 2:
        raise GraphError(
            "edges of one seed have no standard errors, so none can be told from 0: learn the graph from 2 seeds or more, "
            "as with 'skillshard graph learn --seeds 2'."
        )
    same = is_same(train_skills, eval_skills)
    errors = None
    if rule.counts_data:
        amounts = [_amounts(method, train_skills, eval_skills, by_run, seed, rule) for seed in seeds]
        edges = np.where(same | needs_no_more(np.stack(amounts), strictly=rule.unit == "threshold-own"), 1.0, 0.0)
    else:
        per_seed = np.stack([_effects(method, train_skills, eval_skills, by_run, seed, rule) for seed in seeds])
        edges = per_seed.mean(axis=0)
        errors = per_seed.std(axis=0, ddof=1) / np.sqrt(len(seeds)) if len(seeds) > 1 else None
        if rule.drop_uncertain and errors is not None:
            edges = np.where(is_uncertain(edges, errors, len(seeds)), 0.0, edges)
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


def needs_no_more(
    amounts: Float[np.ndarray, "seed with_or_without train_skill eval_skill"], *, strictly: bool
) -> Bool[np.ndarray, "train_skill eval_skill"]:
    """Decide where a skill needs no more data to reach a loss with another skill than without the other skill.

    With one seed the two amounts are compared as they are. With several seeds, the mean difference plus the 95 % bound of
    Student's t must not be above 0. So noise alone makes an edge in at most one case of twenty.

    Args:
        amounts: amounts of data in any unit, with the other skill and without the other skill; infinite where the loss is never
            reached. An edge needs a finite amount with the other skill in every seed. `_amounts` counts a trial without the other
            skill that never reaches the loss as one point longer than the trial, which is less than the true amount.
        strictly: whether equal amounts make no edge. By Definition 2.2 equal amounts make an edge.

    >>> with_it, without = np.array([[[10.0, 12.0, np.inf]]]), np.array([[[10.0, 10.0, np.inf]]])
    >>> needs_no_more(np.stack([with_it, without], axis=1), strictly=False).tolist()
    [[True, False, False]]
    """
    num_seeds = len(amounts)
    reached = np.isfinite(amounts[:, 0]).all(axis=0)
    differences = np.where(reached, amounts[:, 0], 0.0) - amounts[:, 1]
    bound = differences.mean(axis=0)
    if num_seeds > 1:
        error = differences.std(axis=0, ddof=1) / np.sqrt(num_seeds)
        bound = bound + student_t(CONFIDENCE, num_seeds) * error
    return np.asarray(reached & ((bound < 0) if strictly else (bound <= 0)))


@dataclass(frozen=True)
class _Pair:
    """What one edge compares: the losses of an evaluation skill in the trial with a training skill, and in the trial without it.

    Attributes:
        row, column: place of the edge.
        with_it: losses of the trial with the training skill.
        without: losses of the trial without the training skill; None where nothing is compared.
        num_with, num_without: number of skills of the two trials.
    """

    row: int
    column: int
    with_it: Float[np.ndarray, " point"]
    without: Float[np.ndarray, " point"] | None
    num_with: int
    num_without: int


def _pairs(
    method: Method, train_skills: Sequence[str], eval_skills: Sequence[str], by_run: ByRun, seed: int
) -> Iterator[_Pair]:
    """The trials of one seed that each edge compares, row by row."""

    def losses(skills: Sequence[str], column: int) -> Float[np.ndarray, " point"]:
        key = tuple(sorted(skills))
        if (key, seed) not in by_run:
            raise GraphError(f"the trial on {' + '.join(key)} of seed {seed} is not there: learn the graph anew.")
        return by_run[key, seed][:, column]

    for row, train in enumerate(train_skills):
        others = [skill for skill in train_skills if skill != train]
        for column, measured in enumerate(eval_skills):
            if method == "leave-one-out":
                with_it, without = list(train_skills), others
            elif method == "linear" or train == measured:
                with_it, without = [train], []
            else:
                with_it, without = [train, measured], [measured]
            before = losses(without, column) if without else None
            yield _Pair(row, column, losses(with_it, column), before, len(with_it), len(without))


def _amounts(
    method: Method, train_skills: Sequence[str], eval_skills: Sequence[str], by_run: ByRun, seed: int, rule: EdgeRule
) -> Float[np.ndarray, "with_or_without train_skill eval_skill"]:
    """How much data brings an evaluation skill to the threshold with a training skill and without it.

    The unit is a trial's points times samples of a step, in multiples of one skill's share: in leave-one-out trials every skill
    has the same samples at a step, in brute force a pair shares the samples of a single skill. Where nothing is compared, no
    data counts as less than some.
    """
    amounts = np.zeros((2, len(train_skills), len(eval_skills)))
    for pair in _pairs(method, train_skills, eval_skills, by_run, seed):
        reached = _reached(pair.with_it, rule)
        if pair.without is None:
            amounts[:, pair.row, pair.column] = (0.0 if np.isfinite(reached) else np.inf), 1.0
            continue
        per_step = (1.0, 1.0)
        if method == "leave-one-out" and rule.unit == "threshold":
            per_step = (pair.num_with, pair.num_without)
        elif method == "brute-force" and rule.unit == "threshold-own":
            per_step = (0.5, 1.0)
        without = min(_reached(pair.without, rule), len(pair.without))
        amounts[:, pair.row, pair.column] = per_step[0] * reached, per_step[1] * without
    return amounts


def _effects(
    method: Method, train_skills: Sequence[str], eval_skills: Sequence[str], by_run: ByRun, seed: int, rule: EdgeRule
) -> Float[np.ndarray, "train_skill eval_skill"]:
    """The effects that the trials of one seed give."""
    effects = np.zeros((len(train_skills), len(eval_skills)))
    for pair in _pairs(method, train_skills, eval_skills, by_run, seed):
        start = float(pair.with_it[0]) if pair.without is None else _level(pair.without, rule)
        unit = _unit(pair.with_it if pair.without is None else pair.without, rule)
        effects[pair.row, pair.column] = (start - _level(pair.with_it, rule)) / unit
    return effects


def _level(losses: Float[np.ndarray, " point"], rule: EdgeRule) -> float:
    return float(losses[-1] if rule.average == "end" else losses[1:].mean())


def _unit(losses: Float[np.ndarray, " point"], rule: EdgeRule) -> float:
    return float(losses[0]) if rule.unit == "relative" and losses[0] > 0 else 1.0


def _reached(losses: Float[np.ndarray, " point"], rule: EdgeRule) -> float:
    """The first point where the loss is at the threshold; infinite where it never is."""
    assert rule.threshold is not None
    points = np.flatnonzero(losses <= rule.threshold)
    return float(points[0]) if len(points) else np.inf
