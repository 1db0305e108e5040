"""Name clusters by the terms that distinguish a cluster from the others, for example `espresso-grind-roast`.

A cluster whose terms are rare in the cluster itself has no topic, and its name says so.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from skillshard.taggers.clusters.words import words_in

NUM_TERMS = 10
# A name is a folder of shards and a column of every table, so three words must do.
TERMS_IN_NAME = 3
# Longer words are mostly identifiers and encoded data.
MAX_TERM_CHARS = 24
MIN_SHARE = 0.02
"""Smallest share of the samples of a cluster that hold a term. A rarer term does not describe the cluster."""
# Auxiliary verbs that the list of stop words leaves out.
_AUXILIARIES = frozenset(("did", "does", "doing", "having"))
# "didn't" would give the term "didn". The list of stop words has "not", but no contractions.
_CONTRACTION = re.compile(r"\b\w+n['\u2019]t\b|['\u2019](?:ll|ve|re|d|m|s)\b", re.IGNORECASE)
NAME_SHARE = 0.05
"""Smallest share of the samples of a cluster that hold a term of the name. The score prefers rare terms that no other cluster has, and a term in
one sample of fifty names a single story (docs/LOG.md)."""
TOPIC_SHARE = 0.1
"""Smallest share of the samples of a cluster that hold the most frequent of the first terms. Below this share the cluster has no topic."""
WITHOUT_TOPIC = "no-topic"
"""Name of a cluster without a topic."""


@dataclass(frozen=True)
class Named:
    """The name of a cluster, with the distinguishing terms, best first, each with the share of the samples that hold the term."""

    name: str
    terms: tuple[tuple[str, float], ...]
    has_topic: bool


def terms_in(text: str) -> set[str]:
    """Return the words of a text that may name a cluster, in lower case, letters only, without English stop words.

    >>> sorted(terms_in("The grinder didn't grind 12 espresso_beans."))
    ['beans', 'espresso', 'grind', 'grinder']
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = set(words_in(_CONTRACTION.sub(" ", text))) - ENGLISH_STOP_WORDS - _AUXILIARIES
    # A number, and a word with a digit, is mostly an amount, a version or a code.
    return {word for word in words if len(word) <= MAX_TERM_CHARS and not any(map(str.isdigit, word))}


def count_terms(texts: Iterable[str]) -> Counter[str]:
    """Count the texts that hold each term."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(terms_in(text))
    return counts


def name_clusters(counts: Sequence[Mapping[str, int]], num_samples: Sequence[int]) -> list[Named]:
    """Name clusters by class-based TF-IDF. All names differ. A cluster without a topic is called `no-topic`.

    Args:
        counts: Term -> number of samples with the term, for each cluster.
        num_samples: Number of samples that were counted, for each cluster.

    Example:
        >>> counts = [{"roast": 9, "grind": 8, "cup": 9}, {"law": 9, "court": 8, "cup": 9}]
        >>> [named.name for named in name_clusters(counts, [9, 9])]
        ['roast-grind-cup', 'law-court-cup']

    Reference:
        Grootendorst, "BERTopic", arXiv:2203.05794, equation 2: tf x log(1 + A / f). Differs: tf is the share of the samples of a cluster
        that hold the term, f is the sum of these shares over the clusters, and A is 1. So long samples and large clusters do not weigh
        more. Of terms with a common stem only the best term is kept. A name has only terms that `NAME_SHARE` of the samples hold.
    """
    vocabulary = sorted({term for counts_of_cluster in counts for term in counts_of_cluster})
    column = {term: index for index, term in enumerate(vocabulary)}
    shares = np.zeros((len(counts), len(vocabulary)))
    for row, (counts_of_cluster, num) in enumerate(zip(counts, num_samples, strict=True)):
        for term, count in counts_of_cluster.items():
            shares[row, column[term]] = count / max(num, 1)
    terms = [_best_terms(scores, vocabulary) for scores in class_tfidf(shares)]
    share_of = [{term: float(row[column[term]]) for term in best} for row, best in zip(shares, terms, strict=True)]
    with_topic = [
        max([of[term] for term in best[:TERMS_IN_NAME]], default=0) >= TOPIC_SHARE
        for of, best in zip(share_of, terms, strict=True)
    ]
    for_names = [
        _terms_of_name(best, of) if has_topic else ([WITHOUT_TOPIC], [])
        for best, of, has_topic in zip(terms, share_of, with_topic, strict=True)
    ]
    names = _unique_names(for_names)
    return [
        Named(name, tuple((term, round(of[term], 4)) for term in best[:NUM_TERMS]), has_topic)
        for name, best, of, has_topic in zip(names, terms, share_of, with_topic, strict=True)
    ]


def class_tfidf(shares: Float[np.ndarray, "cluster term"]) -> Float[np.ndarray, "cluster term"]:
    """Compute share x log(1 + 1 / sum of shares over the clusters). The score of a share below `MIN_SHARE` is 0."""
    weights = np.log1p(1 / np.maximum(shares.sum(axis=0), 1e-12))
    return np.where(shares >= MIN_SHARE, shares * weights, 0.0)


def _best_terms(scores: Float[np.ndarray, " term"], vocabulary: Sequence[str]) -> list[str]:
    best: list[str] = []
    # Ten times the number of terms leaves enough after the words with a common stem are dropped.
    for term in np.argsort(-scores, kind="stable")[: 10 * NUM_TERMS]:
        if scores[term] > 0 and not any(_same_stem(vocabulary[term], other) for other in best):
            best.append(vocabulary[term])
    return best


def _same_stem(first: str, second: str) -> bool:
    """Guess whether two words have a common stem, by their first letters.

    >>> _same_stem("theorem", "theorems"), _same_stem("let", "letter"), _same_stem("categories", "category")
    (True, False, True)
    """
    short = min(len(first), len(second))
    stem = max(4, short - 2)
    return short >= 4 and first[:stem] == second[:stem] and abs(len(first) - len(second)) <= 3


def _terms_of_name(best: Sequence[str], share_of: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """Choose the terms of a name from the terms that are shown with the cluster. Return the terms, and all other terms, best first."""
    name = [term for term in best[:NUM_TERMS] if share_of[term] >= NAME_SHARE][:TERMS_IN_NAME]
    return name, [term for term in best if term not in name]


def _unique_names(terms: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[str]:
    """Join the terms of each name, with some of the other terms if the name is taken, and with a number if no terms are left."""
    names: list[str] = []
    for cluster, (of_name, others) in enumerate(terms):
        longer = ("-".join([*of_name, *others[:num]]) for num in range(len(others) + 1))
        free = (name for name in longer if name not in names)
        first = "-".join(of_name)
        numbered = f"{first}-{cluster + 1}"
        # A name by terms may end like a number.
        while numbered in names:
            numbered += "-x"
        names.append(next(free, numbered))
    return names
