"""Encode LEGO texts as small integers, with a position for each clause and a position for the question.

A clause is three tokens in three slots (variable, operator, operand). A model that sums the embeddings of the slots reads a clause per
position. The parser works on all texts at once.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8

from skillshard.errors import CorpusError
from skillshard.synthetic.lego import CLAUSE, check_k, template

TOKENS = ("", *"abcdefghijklmnopqrstuvwxyz", "val", "not", "0", "1")
VOCAB = len(TOKENS)
SLOTS = 3
PAD, VAL, NOT, ZERO, ONE = (TOKENS.index(token) for token in ("", "val", "not", "0", "1"))

_OF_BYTE = np.full(256, PAD, dtype=np.int64)
_OF_BYTE[[ord(token) for token in TOKENS if len(token) == 1]] = [i for i, t in enumerate(TOKENS) if len(t) == 1]


def encode_lego(
    texts: Sequence[str], k: int
) -> tuple[Int[np.ndarray, "batch positions slots"], Int[np.ndarray, " batch"]]:
    """Encode LEGO texts into tokens and answers.

    Args:
        texts: texts of `lego_samples`, each with k clauses in any order and an answer.
        k: number of clauses, 1 to 26.

    Returns:
        Tokens `(batch, k + 1, 3)`, indices into `TOKENS`: the clauses in the text's order, then the question, whose
        second and third slot are `PAD`. Answers `(batch,)`: `ZERO` or `ONE`.

    Raises:
        CorpusError: a text is not LEGO with k clauses. The parser does not follow the chain, so wrong answers and undefined variables
            are not noticed.

    Example:
        >>> tokens, answers = encode_lego(["Input: b = not a, a = val 1. Output: b = 0."], k=2)
        >>> [[TOKENS[token] for token in position] for position in tokens[0]], TOKENS[answers[0]]
        ([['b', 'not', 'a'], ['a', 'val', '1'], ['b', '', '']], '0')
    """
    check_k(k)
    text = _characters(texts, k)
    clauses = text[:, template(k)[1][:, None] + np.arange(len(CLAUSE))]
    tokens = np.zeros((len(texts), k + 1, SLOTS), dtype=np.int64)
    tokens[:, :k, 0] = _OF_BYTE[clauses[:, :, 0]]
    tokens[:, :k, 1] = np.where(clauses[:, :, 4] == ord("v"), VAL, NOT)
    tokens[:, :k, 2] = _OF_BYTE[clauses[:, :, 8]]
    tokens[:, k, 0] = _OF_BYTE[text[:, -6]]
    answers = _OF_BYTE[text[:, -2]]
    _refuse(_is_grammatical(clauses, tokens, answers), texts, k)
    return tokens, answers


def _characters(texts: Sequence[str], k: int) -> UInt8[np.ndarray, "batch width"]:
    """Put the texts into a matrix, and check the characters that all texts of one k share."""
    shared = template(k)[0]
    _refuse(np.array([text.isascii() and len(text) == len(shared) for text in texts], dtype=bool), texts, k)
    text = np.frombuffer("".join(texts).encode(), dtype=np.uint8).reshape(-1, len(shared))
    fixed = shared != ord("_")
    _refuse((text[:, fixed] == shared[fixed]).all(axis=1), texts, k)
    return text


def _is_grammatical(
    clauses: UInt8[np.ndarray, "batch k width"],
    tokens: Int[np.ndarray, "batch positions slots"],
    answers: Int[np.ndarray, " batch"],
) -> Bool[np.ndarray, " batch"]:
    """Return whether variables are letters, operators are words, and operands are letters, except a single `val 0` or `val 1`."""
    operators = clauses[:, :, 4:7]
    val, negation = ((operators == np.frombuffer(word, dtype=np.uint8)).all(axis=2) for word in (b"val", b"not"))
    operands = tokens[:, :-1, 2]
    is_value = operands >= ZERO
    variables = (tokens[:, :, 0] != PAD) & (tokens[:, :, 0] < VAL)
    return np.asarray(
        variables.all(axis=1)
        & (val | (negation & ~is_value)).all(axis=1)
        & (operands != PAD).all(axis=1)
        & (is_value.sum(axis=1) == 1)
        & (answers >= ZERO)
    )


def _refuse(good: Bool[np.ndarray, " batch"], texts: Sequence[str], k: int) -> None:
    if good.all():
        return
    index = int(np.argmin(good))
    raise CorpusError(
        f"text {index:,} of {len(texts):,} is not LEGO with k={k}: expected {k} clauses as in 'Input: b = not a, "
        f"a = val 1. Output: b = 0.' (k=2), got {texts[index][:200]!r}. Give LEGO texts of one k, and the same k."
    )
