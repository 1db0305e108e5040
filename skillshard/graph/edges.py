"""Compute edges from the losses of trials. All functions are pure, so another definition of an edge costs no training.

The effect of training skill i on evaluation skill j in the trials of one seed (L is a loss after training, see `average`):

    linear           L_j at the start - L_j of the trial on i
    brute-force      L_j of the trial on j - L_j of the trial on i and j;  for i = j:  L_j at the start - L_j of the trial on j
    leave-one-out    L_j of the trial without i - L_j of the trial on all

The edge is the mean of the effect over the seeds, with the standard error of this mean.

An edge by a threshold is 0 or 1, and compares amounts of data, not losses. By Definition 2.2 of the paper, i helps j if j reaches a
loss with no more data in total on i and j together than on j alone. `EdgeRule` describes the two rules.
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
        trained_on: Skills of the trial, in the order of their names.
        seed: Seed of the trial.
        losses: Losses in nats per token. Row 0 is the start, before the first step.
    """

    trained_on: tuple[str, ...]
    seed: int
    losses: Float[np.ndarray, "point eval_skill"]


ByRun = Mapping[tuple[tuple[str, ...], int], Float[np.ndarray, "point eval_skill"]]
"""The losses of each trial, by its skills and its seed."""


@dataclass(frozen=True)
class EdgeRule:
    """The rule that turns losses into edges. `parse_edges` reads `unit` and `threshold` from a word.

    Args:
        unit: Unit of an edge. "absolute": nats. "relative": share of the loss at the start. "threshold": 1 if j reaches the
            loss `threshold` with no more samples in total, including the samples of i, than without i, and else 0 (Definition
            2.2 of the paper). "threshold-own": 1 if j reaches the loss with fewer samples of j itself, and else 0. This rule asks
            whether i can replace scarce samples of j. The rule is much weaker: a skill without effect on j stands exactly on the
            border. Linear trials compare nothing, so both rules give 1 if training on i alone brings j to the loss.
        threshold: Loss in nats. None for the other units.
        average: Part of a loss curve. "end": the loss at the end of the trial. "curve": the mean over all points but the first
            point. The choice has no effect on thresholds.
        clamp: Whether negative edges become 0.
        off_diagonal: Size of the largest edge between skills. All edges between skills are scaled by one factor, and the diagonal
            is set to 1. None: edges as measured.
        drop_uncertain: Whether edges that are not distinguishable from 0 become 0. Needs two seeds or more.
        direct: Share of the largest edge between skills. Only direct edges are kept, see `direct_edges`. None: edges as measured.

    Raises:
        GraphError: A number is out of range.
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
        """Whether an edge compares amounts of data up to a loss, and not losses."""
        return self.unit in ("threshold", "threshold-own")


@dataclass(frozen=True)
class Edges:
    """Edges with their standard errors.

    Attributes:
        edges: Matrix A. Rows are training skills.
        standard_errors: Standard error of each edge over the seeds, scaled like the edge. 0 for an edge that is set and not
            measured. None: one seed only, or a rule whose edges are 0 or 1.
    """

    edges: Float[np.ndarray, "train_skill eval_skill"]
    standard_errors: Float[np.ndarray, "train_skill eval_skill"] | None


def parse_edges(word: str) -> tuple[Unit, float | None]:
    """Read the unit and the threshold of edges from a word.

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
    """Return the default average of a method: the curve for leave-one-out, because ends are noisy, else the end, as in the paper."""
    return "curve" if method == "leave-one-out" else "end"


def derive_edges(
    method: Method,
    train_skills: Sequence[str],
    eval_skills: Sequence[str],
    curves: Sequence[LossCurve],
    *,
    rule: EdgeRule,
) -> Edges:
    """Derive the matrix of edges from losses by a rule.

    Args:
        method: Method of the trials.
        train_skills: Names of the rows.
        eval_skills: Names of the columns.
        curves: Losses of every planned trial, in any order. The columns are the evaluation skills.
        rule: Definition of an edge.

    Raises:
        GraphError: A trial is missing, or the rule needs more seeds.

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
    # The order of the steps matters: uncertain edges are dropped before they can be direct, and scaling comes last, so that the
    # largest edge that is left gets the size `off_diagonal`.
    if rule.counts_data:
        amounts = [_amounts(method, train_skills, eval_skills, by_run, seed, rule) for seed in seeds]
        # The diagonal is 1 by definition: Definition 2.2 compares two skills.
        edges = np.where(same | needs_no_more(np.stack(amounts), strictly=rule.unit == "threshold-own"), 1.0, 0.0)
    else:
        # The mean is taken of effects and not of losses: the trials of one seed share their samples, so much noise cancels.
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
    # The standard errors are scaled with the edges. On the diagonal, 1 is set and not measured, and the error is 0.
    edges, factor = scaled_edges(edges, same, rule.off_diagonal)
    return Edges(edges, None if errors is None else np.where(same, 0.0, errors * factor))


def direct_edges(
    edges: Float[np.ndarray, "train_skill eval_skill"],
    train_skills: Sequence[str],
    eval_skills: Sequence[str],
    share: float,
) -> Float[np.ndarray, "train_skill eval_skill"]:
    """Keep only direct edges, without their sizes: 1 if a skill helps another skill directly, 1 on the diagonal, and 0 elsewhere.

    An edge between skills counts if the edge is positive and at least `share` of the largest edge. An edge is not direct if a path
    through other skills explains the edge: the result is the transitive reduction (Aho, Garey and Ullman 1972). Skills that help each
    other in a cycle of any length have no order. The edges among these skills stay, and a path treats these skills as one skill.

    Example:
        >>> measured = np.array([[0.7, 0.4, 0.2], [-0.1, 0.5, 0.3], [0.01, 0.0, 0.9]])
        >>> direct_edges(measured, ("a", "b", "c"), ("a", "b", "c"), 0.1).tolist()
        [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    """
    same = is_same(train_skills, eval_skills)
    between = np.where(same, 0.0, edges)
    helps = (between > 0) & (between >= share * between.max(initial=0.0))
    # Rows and columns may be different skills, so paths are followed in the square matrix of all skills.
    names = list(dict.fromkeys((*train_skills, *eval_skills)))
    rows, columns = [names.index(name) for name in train_skills], [names.index(name) for name in eval_skills]
    reaches = np.eye(len(names), dtype=bool)
    reaches[np.ix_(rows, columns)] |= helps
    for _ in range(len(names).bit_length()):  # each product doubles the length of the paths
        reaches = reaches @ reaches
    onward = reaches & ~reaches.T  # in one direction only: between skills of a cycle both directions are reached
    explained = (onward @ onward)[np.ix_(rows, columns)]
    return np.where(same | (helps & ~explained), 1.0, 0.0)


def scaled_edges(
    edges: Float[np.ndarray, "train_skill eval_skill"],
    same: Bool[np.ndarray, "train_skill eval_skill"],
    off_diagonal: float,
) -> tuple[Float[np.ndarray, "train_skill eval_skill"], float]:
    """Set the diagonal to 1, and scale all edges between skills so that the largest edge is `off_diagonal`.

    Returns:
        Edges, and the factor of the edges between skills. The factor is 1 if no edge between skills is positive.

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

    With one seed the two amounts are compared directly. With several seeds, the mean difference plus the 95 % bound of Student's t must
    not be above 0. Noise alone therefore makes an edge in at most one case of twenty.

    Args:
        amounts: Amounts of data in any unit, with the other skill and without the other skill. Infinite if the loss is never
            reached. An edge needs a finite amount with the other skill in every seed. `_amounts` counts a trial without the other
            skill that never reaches the loss as one point longer than the trial, which is less than the true amount.
        strictly: Whether equal amounts make no edge. By Definition 2.2 equal amounts make an edge.

    >>> with_it, without = np.array([[[10.0, 12.0, np.inf]]]), np.array([[[10.0, 10.0, np.inf]]])
    >>> needs_no_more(np.stack([with_it, without], axis=1), strictly=False).tolist()
    [[True, False, False]]
    """
    num_seeds = len(amounts)
    # A difference with an infinite amount would be infinite or NaN, so unreached entries are left out of the mean.
    reached = np.isfinite(amounts[:, 0]).all(axis=0)
    differences = np.where(reached, amounts[:, 0], 0.0) - amounts[:, 1]
    bound = differences.mean(axis=0)
    if num_seeds > 1:
        error = differences.std(axis=0, ddof=1) / np.sqrt(num_seeds)
        bound = bound + student_t(CONFIDENCE, num_seeds) * error
    return np.asarray(reached & ((bound < 0) if strictly else (bound <= 0)))


@dataclass(frozen=True)
class _Pair:
    """The two trials that one edge compares: a trial with the training skill, and a trial without the training skill.

    Attributes:
        row, column: Position of the edge.
        with_it: Losses of the evaluation skill in the trial with the training skill.
        without: Losses of the evaluation skill in the trial without the training skill. None: nothing is compared.
        num_with, num_without: Number of skills of the two trials.
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
    """Yield the trials of one seed that each edge compares, row by row."""

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
    """Compute the amounts of data that bring an evaluation skill to the threshold, with and without a training skill.

    The unit is a trial's points times the samples of a step, in multiples of one skill's share. In leave-one-out trials, every skill has
    equally many samples at a step. In brute force, a pair shares the samples of a single skill. If nothing is compared, the amounts are
    0 (the loss is reached) or infinite, against 1.
    """
    amounts = np.zeros((2, len(train_skills), len(eval_skills)))
    for pair in _pairs(method, train_skills, eval_skills, by_run, seed):
        reached = _reached(pair.with_it, rule)
        if pair.without is None:
            amounts[:, pair.row, pair.column] = (0.0 if np.isfinite(reached) else np.inf), 1.0
            continue
        # Samples per step, in the unit above, with and without the training skill.
        per_step = (1.0, 1.0)
        if method == "leave-one-out" and rule.unit == "threshold":
            per_step = (pair.num_with, pair.num_without)
        elif method == "brute-force" and rule.unit == "threshold-own":
            per_step = (0.5, 1.0)
        # A trial without the skill that never reaches the loss would need more than its own length: a finite amount on the safe side.
        without = min(_reached(pair.without, rule), len(pair.without))
        amounts[:, pair.row, pair.column] = per_step[0] * reached, per_step[1] * without
    return amounts


def _effects(
    method: Method, train_skills: Sequence[str], eval_skills: Sequence[str], by_run: ByRun, seed: int, rule: EdgeRule
) -> Float[np.ndarray, "train_skill eval_skill"]:
    """Compute the effect of every training skill on every evaluation skill in the trials of one seed."""
    effects = np.zeros((len(train_skills), len(eval_skills)))
    for pair in _pairs(method, train_skills, eval_skills, by_run, seed):
        start = float(pair.with_it[0]) if pair.without is None else _level(pair.without, rule)
        unit = _unit(pair.with_it if pair.without is None else pair.without, rule)
        effects[pair.row, pair.column] = (start - _level(pair.with_it, rule)) / unit
    return effects


def _level(losses: Float[np.ndarray, " point"], rule: EdgeRule) -> float:
    return float(
        losses[-1] if rule.average == "end" else losses[1:].mean()
    )  # the start is the same in all trials of a seed


def _unit(losses: Float[np.ndarray, " point"], rule: EdgeRule) -> float:
    return float(losses[0]) if rule.unit == "relative" and losses[0] > 0 else 1.0


def _reached(losses: Float[np.ndarray, " point"], rule: EdgeRule) -> float:
    """Return the first point at which the loss is at or below the threshold. Infinite: the loss stays above."""
    assert rule.threshold is not None
    points = np.flatnonzero(losses <= rule.threshold)
    return float(points[0]) if len(points) else np.inf
