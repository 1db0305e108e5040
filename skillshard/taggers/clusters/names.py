"""Names for clusters: the terms that tell a cluster from the others, such as `espresso-grind-roast`."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

NUM_TERMS = 10
TERMS_IN_NAME = 3
MAX_TERM_CHARS = 24
MIN_SHARE = 0.02
"""A term that fewer of a cluster's samples hold says nothing of the cluster."""
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class Named:
    """A cluster's name and its distinguishing terms, best first."""

    name: str
    terms: tuple[str, ...]


def terms_in(text: str) -> set[str]:
    """The words of a text that may name a cluster: lower case, letters only, no English stop words.

    >>> sorted(terms_in("The grinder grinds 12 espresso_beans."))
    ['beans', 'espresso', 'grinder', 'grinds']
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = {word.lower() for word in _WORD.findall(text)}
    return {word for word in words if len(word) <= MAX_TERM_CHARS} - ENGLISH_STOP_WORDS


def count_terms(texts: Iterable[str]) -> Counter[str]:
    """How many texts hold each term."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(terms_in(text))
    return counts


def name_clusters(counts: Sequence[Mapping[str, int]], num_samples: Sequence[int]) -> list[Named]:
    """Name clusters by class-based TF-IDF; the names differ from each other.

    Args:
        counts: for each cluster, how many of its samples hold each term.
        num_samples: for each cluster, how many samples were looked at.

    Example:
        >>> counts = [{"roast": 9, "grind": 8, "cup": 9}, {"law": 9, "court": 8, "cup": 9}]
        >>> [named.name for named in name_clusters(counts, [9, 9])]
        ['roast-grind-cup', 'law-court-cup']

    Reference:
        Grootendorst, "BERTopic", arXiv:2203.05794, equation 2: tf x log(1 + A / f). Differs: tf is the share of a cluster's
        samples that hold the term, f the sum of these over the clusters and A = 1, so that long samples and large clusters
        do not weigh more. Of terms with a common stem only the best is kept.
    """
    vocabulary = sorted({term for found in counts for term in found})
    column = {term: at for at, term in enumerate(vocabulary)}
    shares = np.zeros((len(counts), len(vocabulary)))
    for row, (found, num) in enumerate(zip(counts, num_samples, strict=True)):
        for term, count in found.items():
            shares[row, column[term]] = count / max(num, 1)
    terms = [_best_terms(scores, vocabulary) for scores in class_tfidf(shares)]
    return [Named(name, tuple(best[:NUM_TERMS])) for name, best in zip(_unique_names(terms), terms, strict=True)]


def class_tfidf(shares: Float[np.ndarray, "cluster term"]) -> Float[np.ndarray, "cluster term"]:
    """share x log(1 + 1 / sum of shares over the clusters); 0 for shares below `MIN_SHARE`."""
    weights = np.log1p(1 / np.maximum(shares.sum(axis=0), 1e-12))
    return np.where(shares >= MIN_SHARE, shares * weights, 0.0)


def _best_terms(scores: Float[np.ndarray, " term"], vocabulary: Sequence[str]) -> list[str]:
    best: list[str] = []
    for at in np.argsort(-scores, kind="stable")[: 10 * NUM_TERMS]:
        if scores[at] > 0 and not any(_same_stem(vocabulary[at], other) for other in best):
            best.append(vocabulary[at])
    return best


def _same_stem(one: str, other: str) -> bool:
    """
    >>> _same_stem("theorem", "theorems"), _same_stem("let", "letter"), _same_stem("categories", "category")
    (True, False, True)
    """
    short = min(len(one), len(other))
    return short >= 4 and one[: max(4, short - 2)] == other[: max(4, short - 2)] and abs(len(one) - len(other)) <= 3


def _unique_names(terms: Sequence[Sequence[str]]) -> list[str]:
    """The first terms of each, more of them where a name is taken, a number where terms do not do."""
    names: list[str] = []
    for at, best in enumerate(terms):
        longer = ("-".join(best[:num]) for num in range(min(TERMS_IN_NAME, len(best)), len(best) + 1) if best)
        free = (name for name in longer if name not in names)
        first = "-".join(best[:TERMS_IN_NAME]) or "cluster"
        numbered = f"{first}-{at + 1}"
        while numbered in names:
            numbered += "-x"
        names.append(next(free, numbered))
    return names
