"""How well two ways to tag the same samples agree, from their table of counts: no more memory than that table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from skillshard.errors import TagsError


@dataclass(frozen=True)
class Agreement:
    """A table of counts and what it says; every measure is 1 where the two are the same but for the names.

    Attributes:
        found: names of the rows, such as clusters.
        true: names of the columns, such as the values of a metadata field.
        counts: samples of each pair.
        nmi: mutual information over the mean of both entropies.
        ari: share of pairs of samples that are together or apart in both, corrected for chance; 0 is chance.
        purity: share of samples that have their row's most frequent column.
        accuracy: share of samples on the best one-to-one matching of rows and columns (Hungarian).
    """

    found: tuple[str, ...]
    true: tuple[str, ...]
    counts: Int[np.ndarray, "found true"]
    nmi: float
    ari: float
    purity: float
    accuracy: float


def agreement(pairs: Iterable[tuple[str, str]]) -> Agreement:
    """Measure (found, true) of every sample.

    Raises:
        TagsError: no pair.

    >>> measured = agreement([("a", "x"), ("a", "x"), ("b", "y"), ("b", "x")])
    >>> round(measured.purity, 2), round(measured.accuracy, 2), measured.counts.tolist()
    (0.75, 0.75, [[2, 0], [1, 1]])
    """
    table: dict[tuple[str, str], int] = {}
    for pair in pairs:
        table[pair] = table.get(pair, 0) + 1
    return agreement_of(table)


def agreement_of(table: Mapping[tuple[str, str], int]) -> Agreement:
    """The same from counts of the pairs."""
    if not table:
        raise TagsError("no sample has both a skill and a value to compare it with.")
    found, true = (tuple(sorted({pair[side] for pair in table})) for side in (0, 1))
    rows, columns = ({name: at for at, name in enumerate(names)} for names in (found, true))
    counts = np.zeros((len(found), len(true)), np.int64)
    for (row, column), num in table.items():
        counts[rows[row], columns[column]] = num
    return Agreement(
        found=found,
        true=true,
        counts=counts,
        nmi=nmi(counts),
        ari=ari(counts),
        purity=float(counts.max(axis=1).sum() / counts.sum()),
        accuracy=accuracy(counts),
    )


def nmi(counts: Int[np.ndarray, "found true"]) -> float:
    """Normalised mutual information, in [0, 1]; 1 if both sides hold one name only.

    Reference:
        Strehl and Ghosh, JMLR 3, 2002; normalised by the arithmetic mean of the entropies, as in scikit-learn.
    """
    shares = counts / counts.sum()
    both, found, true = (_entropy(side) for side in (shares.ravel(), shares.sum(axis=1), shares.sum(axis=0)))
    return 1.0 if found + true == 0 else float(np.clip(2 * (found + true - both) / (found + true), 0, 1))


def ari(counts: Int[np.ndarray, "found true"]) -> float:
    """Adjusted Rand index, in [-0.5, 1].

    Reference:
        Hubert and Arabie, "Comparing partitions", Journal of Classification 2, 1985.
    """
    together, found, true = (_pairs(side) for side in (counts, counts.sum(axis=1), counts.sum(axis=0)))
    expected = found * true / max(_pairs(np.atleast_1d(counts.sum())), 1)
    most = (found + true) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


def accuracy(counts: Int[np.ndarray, "found true"]) -> float:
    """Share of samples on the best one-to-one matching of rows and columns.

    >>> accuracy(np.array([[0, 5], [4, 1]]))
    0.9
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / counts.sum())


def _entropy(shares: np.ndarray) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())


def _pairs(counts: np.ndarray) -> float:
    some = np.asarray(counts, np.float64)
    return float((some * (some - 1) / 2).sum())
