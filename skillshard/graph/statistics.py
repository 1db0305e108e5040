"""What a graph looks like: how dense, how mutual, what stands alone, what cannot be told from 0, and what follows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from skillshard.errors import name_some
from skillshard.extras import needed

CONFIDENCE = 0.95
NEARLY_COMPLETE, NEARLY_EMPTY = 0.9, 0.1
"""Ours: the paper calls 97.4 % (Alpaca) nearly complete and 3.9 % (Pile of Law) nearly empty, and 42.7 % neither."""


@dataclass(frozen=True)
class Gain:
    """How much training on a skill improves the skill itself: above 0, or it is no skill (Definition 2.1).

    Attributes:
        skill: its name.
        nats: by how much its held-out loss is lower, nats per token; in a given matrix the entry of the diagonal.
        standard_error: of `nats` over the seeds; None for one seed.
        is_uncertain: whether it cannot be told from 0; False where there is no standard error.
    """

    skill: str
    nats: float
    standard_error: float | None
    is_uncertain: bool


@dataclass(frozen=True)
class Statistics:
    """Of one graph.

    Attributes:
        density: share of positive entries, the diagonal included, as the paper counts.
        density_between: share of positive entries off the diagonal; None where there are none.
        reciprocity: of the edges off the diagonal whose opposite exists, the share whose opposite is positive too; None: no such edge.
        num_positive, num_negative, num_zero: entries.
        helps_nobody: training skills without a positive edge to another skill.
        helped_by_nobody: evaluation skills without a positive edge from another skill.
        num_uncertain: entries that are not distinguishable from 0; None where there are no standard errors.
        density_certain: as `density_between`, of the edges that are distinguishable from 0; None as there.
        not_improved: skills that training on themselves does not improve, so that they are no skills (Definition 2.1).
        hardly_improved: skills whose improvement by themselves is not distinguishable from 0; none where there are no standard
            errors.
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
        """What the density says about using the graph."""
        share, certain = self.density_between, self.density_certain
        if share is None:
            return "There are no edges between skills: nothing to mix by."
        told = f"{100 * share:.0f} % of the edges between skills are positive"
        told += "" if certain is None else f", {100 * certain:.0f} % beyond doubt"
        if share <= NEARLY_EMPTY:
            return f"Nearly empty ({told}): skills hardly help one another, and each is learned on its own: weights by loss need no graph."
        if certain is not None and certain <= NEARLY_EMPTY:
            return f"Undecided ({told}): too few edges can be told from 0. More seeds or longer trials would say more."
        if certain is not None and share >= NEARLY_COMPLETE > certain and not self.not_improved:
            return f"Undecided ({told}): perhaps everything helps everything, and stratified sampling is as good. More seeds or longer trials would say more."
        if share >= NEARLY_COMPLETE and self.not_improved:
            return (
                f"Nearly complete ({told}), but training on {name_some(self.not_improved)} does not lower the skill's own loss: nothing follows "
                "from the edges of what is no skill."
            )
        if share >= NEARLY_COMPLETE:
            return f"Nearly complete ({told}): everything helps everything, and stratified sampling is expected to be as good."
        return f"Neither nearly complete nor nearly empty ({told}): there {'may be' if certain is None else 'is'} an order for SKILL-IT to use."


def statistics(
    train_skills: Sequence[str],
    eval_skills: Sequence[str],
    edges: Float[np.ndarray, "train_skill eval_skill"],
    *,
    standard_errors: Float[np.ndarray, "train_skill eval_skill"] | None = None,
    num_seeds: int = 1,
    gains: Sequence[Gain] | None = None,
) -> Statistics:
    """Count a graph's edges.

    Args:
        train_skills, eval_skills: rows and columns.
        edges: A.
        standard_errors: of the edges, over `num_seeds` seeds; None if they are not known.
        num_seeds: see above.
        gains: of each skill that is both trained on and measured, where they were measured apart from `edges`, whose diagonal may
            be set or clamped; None: those of the diagonal.

    Example:
        >>> found = statistics(("a", "b", "c"), ("a", "b", "c"), np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, -1.0, 1.0]]))
        >>> round(found.density, 3), found.density_between, found.reciprocity, found.helps_nobody, found.helped_by_nobody
        (0.556, 0.3333333333333333, 1.0, ('c',), ('c',))

    Reference:
        Chen et al., "Skill-it!", NeurIPS 2023, arXiv:2307.14430, section 2.1 (density; complete and empty graphs).
    """
    positive, between = edges > 0, ~is_same(train_skills, eval_skills)
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
    """The gain of each skill that is both a row and a column: its entry of the diagonal.

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
    """Which means are within the 95 % interval of Student's t around 0; an edge that was set (error 0) never is.

    Each edge is judged alone: of m x k edges that are 0, one in twenty will seem not to be.

    >>> is_uncertain(np.array([[0.5, 0.1, 1.0]]), np.array([[0.1, 0.1, 0.0]]), 3).tolist()
    [[False, True, False]]
    """
    return np.asarray(np.abs(edges) < student_t((1 + CONFIDENCE) / 2, num_seeds) * standard_errors)


def student_t(share: float, num_seeds: int) -> float:
    """The quantile of Student's t for a mean over seeds.

    >>> round(student_t(0.95, 3), 2)
    2.92
    """
    needed("fit", what="A graph with standard errors")
    from scipy.stats import t

    return float(t.ppf(share, num_seeds - 1))


def is_same(train_skills: Sequence[str], eval_skills: Sequence[str]) -> Bool[np.ndarray, "train_skill eval_skill"]:
    """Where row and column are one skill: the diagonal, wherever it lies."""
    return np.array([[row == column for column in eval_skills] for row in train_skills])


def _share(
    found: Bool[np.ndarray, "train_skill eval_skill"], among: Bool[np.ndarray, "train_skill eval_skill"]
) -> float | None:
    return float(found[among].mean()) if among.any() else None


def _reciprocity(
    train_skills: Sequence[str], eval_skills: Sequence[str], edge: Bool[np.ndarray, "train_skill eval_skill"]
) -> float | None:
    row_of = {name: at for at, name in enumerate(train_skills)}
    column_of = {name: at for at, name in enumerate(eval_skills)}
    opposite = [
        edge[row_of[eval_skills[column]], column_of[train_skills[row]]]
        for row, column in np.argwhere(edge)
        if eval_skills[column] in row_of and train_skills[row] in column_of
    ]
    return float(np.mean(opposite)) if opposite else None


def _named(names: Sequence[str], chosen: Bool[np.ndarray, " skill"]) -> tuple[str, ...]:
    return tuple(name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen)
