"""Encode texts by their words: TF-IDF, reduced to few dimensions. Nothing must be downloaded.

A term is the beginning of a word, without English stop words. In scripts without spaces, such as Chinese, a term is a pair of neighbouring
characters (`skillshard.taggers.clusters.words`). Punctuation is no term: with punctuation, habits of writing decide the clusters of most
corpora (docs/LOG.md).

The fitted encoder has three files: `lexical.columns.npy` (hashes of the terms, uint32), `lexical.idf.npy` (float32) and
`lexical.components.npy` (float16, term x dim), about 14 MB at most. The encoder knows which words a text has, but not their meaning.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from skillshard import places, storage
from skillshard.errors import TagsError
from skillshard.extras import needed
from skillshard.taggers.clusters.encoder import Encoder, VectorsOf
from skillshard.taggers.clusters.words import words_in

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# The number of hashes is four times the number of terms, so that few terms share a hash.
NUM_HASHES = 1 << 18
# With 100 dimensions the components of so many terms take 13 MB as float16.
MAX_TERMS = 1 << 16
MIN_SAMPLES = 2
"""Smallest number of texts that hold a term. A term in a single text makes no two texts similar."""
MAX_CHARS = 16_384
"""Number of characters at the beginning of a text that the encoder reads."""
# The limit bounds the memory of the sparse counts and of the dense block of vectors.
TEXTS_AT_ONCE = 1024
# More directions than the texts support are noise that k-means would follow (docs/LOG.md).
TEXTS_PER_DIM = 16
MIN_DIM = 8
FILES = ("lexical.columns.npy", "lexical.idf.npy", "lexical.components.npy")
PREFIX_CHARS = 6
"""Number of characters of a word that make the term. The forms of a word mostly share them, in any language with suffixes (docs/LOG.md)."""
MAX_DIM = 100
VERSION = 2
"""Version of the way in which texts become terms and vectors. Increase the version whenever a change alters the vectors, so that clusters of
older versions are not reused."""


@dataclass(frozen=True)
class Lexical:
    """The unfitted encoder that `lexical` makes."""

    max_dim: int = MAX_DIM
    sample_size: int = 20_000

    @property
    def name(self) -> str:
        return "lexical"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"version": VERSION, "max_dim": self.max_dim, "sample_size": self.sample_size}

    def fit(self, texts: Sequence[str], folder: str, *, seed: int) -> Encoder:
        """Weight terms by their rarity, and find the directions in which the texts differ most.

        Raises:
            TagsError: The texts have fewer than two terms in common.

        Reference:
            Deerwester et al., "Indexing by latent semantic analysis", JASIS 41, 1990; randomised: Halko, Martinsson and Tropp,
            SIAM Review 53, 2011. A direction keeps its scale: divided by the root of the singular value, directions of few texts would
            weigh more, and clusters agree less with the topics of four corpora (docs/LOG.md).
        """
        from sklearn.preprocessing import normalize
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        counts = _stacked(texts)
        num_texts = np.bincount(counts.indices, minlength=NUM_HASHES)
        columns = _telling(num_texts)
        if len(columns) < 2:
            raise TagsError(
                f"the lexical encoder cannot compare the texts: {len(columns):,} of their words stand in two texts or more, and 2 are needed. "
                "Stop words, single letters and punctuation do not count. Give more texts, or a sentence-transformers model for the language "
                "of the texts as the `encoder`, such as all-MiniLM-L6-v2 for English."
            )
        idf = np.log((1 + len(texts)) / (1 + num_texts[columns])) + 1
        weighted = normalize(counts[:, columns].multiply(idf).tocsr())
        with threadpool_limits(1):
            dim = min(self.max_dim, max(MIN_DIM, len(texts) // TEXTS_PER_DIM), *weighted.shape)
            _, _, directions = randomized_svd(weighted, dim, n_iter=4, random_state=seed % 2**32)
        values = (columns.astype(np.uint32), idf.astype(np.float32), directions.T.astype(np.float16))
        for name, value in zip(FILES, values, strict=True):
            storage.write_array(places.join(folder, name), np.ascontiguousarray(value))
        return open_lexical(folder)


@dataclass(frozen=True)
class FittedLexical:
    """The fitted encoder, by the directory and the digests of its files."""

    folder: str
    dim: int
    digests: tuple[str, ...]

    @property
    def name(self) -> str:
        return "lexical"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"version": VERSION, "digests": list(self.digests)}

    @property
    def num_gpus(self) -> float:
        return 0.0

    def encode(self, texts: Sequence[str]) -> VectorsOf:
        columns, idf, components = _loaded(self.folder, self.digests)
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for first, counts in _counted(texts):
            block = counts[:, columns].multiply(idf).tocsr().astype(np.float32) @ components
            lengths = np.linalg.norm(block, axis=1, keepdims=True)
            vectors[first : first + len(block)] = block / np.where(lengths > 0, lengths, 1)
        return vectors


def lexical(*, max_dim: int = MAX_DIM, sample_size: int = 20_000) -> Lexical:
    """Make the built-in encoder: hashed beginnings of words, TF-IDF, truncated SVD, vectors of length 1.

    Args:
        max_dim: Largest number of dimensions. A small sample gets a dimension for each 16 texts, but at least 8.
        sample_size: Number of texts of the corpus that the encoder is fitted on.

    Raises:
        ExtraError: scikit-learn, SciPy or threadpoolctl is not installed.
    """
    needed("cluster", what="The encoder 'lexical'")
    return Lexical(max_dim, sample_size)


def open_lexical(folder: str) -> FittedLexical:
    """Open a fitted encoder.

    Raises:
        ExtraError: scikit-learn, SciPy or threadpoolctl is not installed.
    """
    needed("cluster", what="The encoder 'lexical'")
    digests = tuple(storage.file_digest(places.join(folder, name)) for name in FILES)
    return FittedLexical(folder, int(_loaded(folder, digests)[2].shape[1]), digests)


@lru_cache(maxsize=2)
def _loaded(folder: str, digests: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, "term dim"]]:
    """Load the three arrays, and keep them for the next call in this process."""
    # The digests are part of the key of the cache, so that changed files are loaded again.
    columns, idf, components = (storage.load_array(places.join(folder, name)) for name in FILES)
    return columns.astype(np.int64), idf, components.astype(np.float32)


def _counted(texts: Sequence[str]) -> Iterator[tuple[int, "csr_matrix"]]:
    """Yield the damped counts of hashed terms in chunks of texts, each with the number of the first text."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        n_features=NUM_HASHES, analyzer=terms_of, alternate_sign=False, norm=None, dtype=np.float32
    )
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        counts = vectorizer.transform(texts[first : first + TEXTS_AT_ONCE])
        # The tenth occurrence of a word says less than the first.
        counts.data = 1 + np.log(counts.data)
        yield first, counts


def terms_of(text: str) -> list[str]:
    """Return the terms of a text, in their order.

    >>> terms_of("The astronomers saw 12 comets, and comets again.")
    ['astron', 'saw', '12', 'comets', 'comets']
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return [word[:PREFIX_CHARS] for word in words_in(text[:MAX_CHARS]) if word not in ENGLISH_STOP_WORDS]


def _stacked(texts: Sequence[str]) -> "csr_matrix":
    from scipy.sparse import vstack

    return vstack([counts for _, counts in _counted(texts)], format="csr")


def _telling(num_texts: np.ndarray) -> np.ndarray:
    """Choose the terms that enough texts hold: the `MAX_TERMS` most frequent terms."""
    enough = np.flatnonzero(num_texts >= MIN_SAMPLES)
    frequent = np.argsort(-num_texts[enough], kind="stable")[:MAX_TERMS]
    return np.sort(enough[frequent])
