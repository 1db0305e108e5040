"""Describe a graph: its density and reciprocity, skills without edges, uncertain edges, and a recommendation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from skillshard.errors import name_some
from skillshard.extras import needed

CONFIDENCE = 0.95
"""Confidence level of the interval around an edge (two-sided, Student's t over the seeds)."""
NEARLY_COMPLETE, NEARLY_EMPTY = 0.9, 0.1
"""Limits of the density. The paper gives no limits: it calls 97.4 % (Alpaca) nearly complete, 3.9 % (Pile of Law) nearly empty, and
42.7 % neither."""


@dataclass(frozen=True)
class Gain:
    """The improvement of a skill by training on the skill itself. A set of samples without a gain is no skill (Definition 2.1).

    Attributes:
        skill: Name of the skill.
        nats: Decrease of the skill's held-out loss in nats per token. For an imported matrix, the entry of the diagonal.
        standard_error: Standard error of `nats` over the seeds. None: one seed only.
        is_uncertain: Whether `nats` is not distinguishable from 0. False without a standard error.
    """

    skill: str
    nats: float
    standard_error: float | None
    is_uncertain: bool


@dataclass(frozen=True)
class Statistics:
    """Statistics of one graph.

    Attributes:
        density: Share of positive entries, including the diagonal, as the paper counts.
        density_between: Share of positive entries off the diagonal. None: all entries are on the diagonal.
        reciprocity: Share of positive edges between skills whose opposite edge is positive too, among the edges whose opposite
            edge exists. None: no positive edge has an opposite edge.
        num_positive, num_negative, num_zero: Numbers of entries.
        helps_nobody: Training skills without a positive edge to another skill.
        helped_by_nobody: Evaluation skills without a positive edge from another skill.
        num_uncertain: Number of entries that are not distinguishable from 0. None: no standard errors.
        density_certain: Like `density_between`, but only edges that are distinguishable from 0 count. None: no standard errors.
        not_improved: Skills without a gain, which are no skills by Definition 2.1.
        hardly_improved: Skills whose gain is not distinguishable from 0. Empty without standard errors.
    """

    density: float
    density_between: float | None
    reciprocity: float | None
    num_positive: int
    num_negative: int
    num_zero: int
    helps_nobody: tuple[str, ...]
    helped_by_nobody: tuple[str, ...]
    num_uncertain: int | None
    density_certain: float | None
    not_improved: tuple[str, ...] = ()
    hardly_improved: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Recommendation that follows from the density."""
        share, certain = self.density_between, self.density_certain
        if share is None:
            return "There are no edges between skills: nothing to mix by."
        density = f"{100 * share:.0f} % of the edges between skills are positive"
        density += "" if certain is None else f", {100 * certain:.0f} % beyond doubt"
        # The order of the cases matters: doubt comes before the verdict that the density alone would give.
        if share <= NEARLY_EMPTY:
            return f"Nearly empty ({density}): skills hardly help one another, and each is learned on its own: weights by loss need no graph."
        if certain is not None and certain <= NEARLY_EMPTY:
            return (
                f"Undecided ({density}): too few edges can be told from 0. More seeds or longer trials would say more."
            )
        if certain is not None and share >= NEARLY_COMPLETE > certain and not self.not_improved:
            return f"Undecided ({density}): perhaps everything helps everything, and stratified sampling is as good. More seeds or longer trials would say more."
        if share >= NEARLY_COMPLETE and self.not_improved:
            return (
                f"Nearly complete ({density}), but training on {name_some(self.not_improved)} does not lower the skill's own loss: edges of a "
                "set of samples that is no skill mean nothing."
            )
        if share >= NEARLY_COMPLETE:
            return f"Nearly complete ({density}): everything helps everything, and stratified sampling is expected to be as good."
        return f"Neither nearly complete nor nearly empty ({density}): there {'may be' if certain is None else 'is'} an order for SKILL-IT to use."


def statistics(
    train_skills: Sequence[str],
    eval_skills: Sequence[str],
    edges: Float[np.ndarray, "train_skill eval_skill"],
    *,
    standard_errors: Float[np.ndarray, "train_skill eval_skill"] | None = None,
    num_seeds: int = 1,
    gains: Sequence[Gain] | None = None,
) -> Statistics:
    """Compute the statistics of a graph.

    Args:
        train_skills, eval_skills: Rows and columns.
        edges: Matrix A.
        standard_errors: Standard errors of the edges over `num_seeds` seeds. None: the errors are not known.
        num_seeds: Number of seeds.
        gains: Gains of the skills that are both rows and columns, measured apart from `edges`, whose diagonal may be set or
            clamped. None: take the gains from the diagonal.

    Example:
        >>> stats = statistics(("a", "b", "c"), ("a", "b", "c"), np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, -1.0, 1.0]]))
        >>> round(stats.density, 3), stats.density_between, stats.reciprocity, stats.helps_nobody, stats.helped_by_nobody
        (0.556, 0.3333333333333333, 1.0, ('c',), ('c',))

    Reference:
        Chen et al., "Skill-it!", NeurIPS 2023, arXiv:2307.14430, section 2.1 (density; complete and empty graphs).
    """
    positive, between = edges > 0, ~is_same(train_skills, eval_skills)
    # A single seed has no standard error. Errors of 0 would make every edge certain.
    uncertain = None if standard_errors is None or num_seeds < 2 else is_uncertain(edges, standard_errors, num_seeds)
    certain = None if uncertain is None else _share(positive & ~uncertain, between)
    if gains is None:
        gains = gains_of(train_skills, eval_skills, edges, standard_errors=standard_errors, num_seeds=num_seeds)
    return Statistics(
        density=float(positive.mean()),
        density_between=_share(positive, between),
        reciprocity=_reciprocity(train_skills, eval_skills, positive & between),
        num_positive=int(positive.sum()),
        num_negative=int((edges < 0).sum()),
        num_zero=int((edges == 0).sum()),
        helps_nobody=_named(train_skills, ~(positive & between).any(axis=1)),
        helped_by_nobody=_named(eval_skills, ~(positive & between).any(axis=0)),
        num_uncertain=None if uncertain is None else int((uncertain & (edges != 0)).sum()),
        density_certain=certain,
        not_improved=tuple(gain.skill for gain in gains if gain.nats <= 0),
        hardly_improved=tuple(gain.skill for gain in gains if gain.nats > 0 and gain.is_uncertain),
    )


def gains_of(
    train_skills: Sequence[str],
    eval_skills: Sequence[str],
    edges: Float[np.ndarray, "train_skill eval_skill"],
    *,
    standard_errors: Float[np.ndarray, "train_skill eval_skill"] | None,
    num_seeds: int,
) -> list[Gain]:
    """Return the gain of each skill that is both a row and a column: the skill's entry of the diagonal.

    >>> gains_of(("a", "b"), ("b",), np.array([[0.5], [-0.1]]), standard_errors=None, num_seeds=1)
    [Gain(skill='b', nats=-0.1, standard_error=None, is_uncertain=False)]
    """
    doubt = None if standard_errors is None or num_seeds < 2 else is_uncertain(edges, standard_errors, num_seeds)
    return [
        Gain(
            train_skills[row],
            float(edges[row, column]),
            None if standard_errors is None else float(standard_errors[row, column]),
            doubt is not None and bool(doubt[row, column]),
        )
        for row, column in np.argwhere(is_same(train_skills, eval_skills))
    ]


def is_uncertain(
    edges: Float[np.ndarray, "train_skill eval_skill"],
    standard_errors: Float[np.ndarray, "train_skill eval_skill"],
    num_seeds: int,
) -> Bool[np.ndarray, "train_skill eval_skill"]:
    """Mark the means within the 95 % interval of Student's t around 0. An edge that was set (error 0) is never marked.

    Each edge is judged alone: of m x k edges that are truly 0, about one in twenty is not marked.

    >>> is_uncertain(np.array([[0.5, 0.1, 1.0]]), np.array([[0.1, 0.1, 0.0]]), 3).tolist()
    [[False, True, False]]
    """
    # Two-sided: an edge may differ from 0 in either direction.
    return np.asarray(np.abs(edges) < student_t((1 + CONFIDENCE) / 2, num_seeds) * standard_errors)


def student_t(share: float, num_seeds: int) -> float:
    """Return the quantile of Student's t for a mean over seeds.

    >>> round(student_t(0.95, 3), 2)
    2.92
    """
    needed("fit", what="A graph with standard errors")
    from scipy.stats import t

    return float(t.ppf(share, num_seeds - 1))  # one degree of freedom is lost to the mean


def is_same(train_skills: Sequence[str], eval_skills: Sequence[str]) -> Bool[np.ndarray, "train_skill eval_skill"]:
    """Mark the entries with the same skill as row and column. The entries are called the diagonal, at any position."""
    return np.array([[row == column for column in eval_skills] for row in train_skills])


def _share(
    marked: Bool[np.ndarray, "train_skill eval_skill"], among: Bool[np.ndarray, "train_skill eval_skill"]
) -> float | None:
    return float(marked[among].mean()) if among.any() else None


def _reciprocity(
    train_skills: Sequence[str], eval_skills: Sequence[str], edge: Bool[np.ndarray, "train_skill eval_skill"]
) -> float | None:
    row_of = {name: row for row, name in enumerate(train_skills)}
    column_of = {name: column for column, name in enumerate(eval_skills)}
    opposite = [
        edge[row_of[eval_skills[column]], column_of[train_skills[row]]]
        for row, column in np.argwhere(edge)
        if eval_skills[column] in row_of and train_skills[row] in column_of
    ]
    return float(np.mean(opposite)) if opposite else None


def _named(names: Sequence[str], chosen: Bool[np.ndarray, " skill"]) -> tuple[str, ...]:
    return tuple(name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen)
