"""Measure how well two ways to tag the same samples agree. The memory is a table of counts for each pair of names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from skillshard.errors import TagsError


@dataclass(frozen=True)
class Agreement:
    """A table of counts with measures of agreement. Every measure is 1 if the two taggings differ only in the names.

    Attributes:
        found: Names of the rows, for example clusters.
        true: Names of the columns, for example the values of a metadata field.
        counts: Number of samples of each pair.
        nmi: Mutual information, divided by the mean of both entropies.
        ari: Share of pairs of samples that are together or apart in both taggings, corrected for chance. A value of 0 is chance.
        purity: Share of samples in the most frequent column of their row.
        accuracy: Share of samples on the best one-to-one matching of rows and columns (Hungarian method).
    """

    found: tuple[str, ...]
    true: tuple[str, ...]
    counts: Int[np.ndarray, "found true"]
    nmi: float
    ari: float
    purity: float
    accuracy: float


def agreement(pairs: Iterable[tuple[str, str]]) -> Agreement:
    """Measure the agreement from the pairs (found, true) of all samples.

    Raises:
        TagsError: The iterable has no pair.

    >>> measured = agreement([("a", "x"), ("a", "x"), ("b", "y"), ("b", "x")])
    >>> round(measured.purity, 2), round(measured.accuracy, 2), measured.counts.tolist()
    (0.75, 0.75, [[2, 0], [1, 1]])
    """
    table: dict[tuple[str, str], int] = {}
    for pair in pairs:
        table[pair] = table.get(pair, 0) + 1
    return agreement_of(table)


def agreement_of(table: Mapping[tuple[str, str], int]) -> Agreement:
    """Measure the agreement from the number of samples of each pair (found, true).

    Raises:
        TagsError: The table is empty.
    """
    if not table:
        raise TagsError("no sample has both a skill and a value to compare the skill with.")
    row_names, column_names = (tuple(sorted({pair[side] for pair in table})) for side in (0, 1))
    rows, columns = ({name: index for index, name in enumerate(names)} for names in (row_names, column_names))
    counts = np.zeros((len(row_names), len(column_names)), np.int64)
    for (row, column), num in table.items():
        counts[rows[row], columns[column]] = num
    return Agreement(
        found=row_names,
        true=column_names,
        counts=counts,
        nmi=nmi(counts),
        ari=ari(counts),
        purity=float(counts.max(axis=1).sum() / counts.sum()),
        accuracy=accuracy(counts),
    )


def nmi(counts: Int[np.ndarray, "found true"]) -> float:
    """Compute the normalised mutual information, in [0, 1]. The value is 1 if both sides have a single name.

    Reference:
        Strehl and Ghosh, JMLR 3, 2002; normalised by the arithmetic mean of the entropies, as in scikit-learn.
    """
    shares = counts / counts.sum()
    joint, row_entropy, column_entropy = (
        _entropy(side) for side in (shares.ravel(), shares.sum(axis=1), shares.sum(axis=0))
    )
    total = row_entropy + column_entropy
    # Rounding may give a value just outside [0, 1].
    return 1.0 if total == 0 else float(np.clip(2 * (total - joint) / total, 0, 1))


def ari(counts: Int[np.ndarray, "found true"]) -> float:
    """Compute the adjusted Rand index, in [-0.5, 1].

    Reference:
        Hubert and Arabie, "Comparing partitions", Journal of Classification 2, 1985.
    """
    in_both, in_rows, in_columns = (_pairs(side) for side in (counts, counts.sum(axis=1), counts.sum(axis=0)))
    expected = in_rows * in_columns / max(_pairs(np.atleast_1d(counts.sum())), 1)
    largest = (in_rows + in_columns) / 2
    return 1.0 if largest == expected else (in_both - expected) / (largest - expected)


def accuracy(counts: Int[np.ndarray, "found true"]) -> float:
    """Compute the share of samples on the best one-to-one matching of rows and columns.

    >>> accuracy(np.array([[0, 5], [4, 1]]))
    0.9
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / counts.sum())


def _entropy(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _pairs(counts: np.ndarray) -> float:
    # The square of a count of billions does not fit into 64-bit integers.
    counts_as_floats = np.asarray(counts, np.float64)
    return float((counts_as_floats * (counts_as_floats - 1) / 2).sum())
