"""LEGO, the paper's corpus of reasoning chains, generated.

A sample is a chain of k variables, which are distinct letters: the first is given (`r = val 1`), each next one copies
(`val`) or negates (`not`) the one before it, and the clauses stand in random order. Skill i asks for the value of the
i-th variable of the chain, so it needs the skills before it:

    Input: b = not y, r = val 1, m = val b, q = val m, y = not r. Output: b = 1.

Every text of one k is as long as every other, so all is done on one matrix of bytes: 200,000 samples take about one second
to make and write, and equal arguments give equal bytes on every platform (only raw 64-bit draws are used).

Reference: Zhang et al., "Unveiling Transformers with LEGO", arXiv:2206.04301; Chen et al., "Skill-it!", NeurIPS 2023,
arXiv:2307.14430, section 2. Texts are drawn independently, so duplicates can occur; they are common for k below 3.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from skillshard.errors import CorpusError
from skillshard.synthetic.draws import mixed_skills, raw_draws, write_samples

MAX_K = 26
PREFIX, CLAUSE, SEPARATOR, SUFFIX = "Input: ", "_ = ___ _", ", ", ". Output: _ = _."
_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
_OPERATORS = np.frombuffer(b"valnot", dtype=np.uint8).reshape(2, 3)
_BLOCK = 50_000  # samples made at once; part of what the bytes depend on, so it never changes


def natural_proportions(k: int) -> tuple[int, ...]:
    """How often each skill occurs in the paper's corpus: 1, 1, ..., 3, 5 for skills 1 to k.

    >>> natural_proportions(5), natural_proportions(3), natural_proportions(2)
    ((1, 1, 1, 3, 5), (1, 3, 5), (3, 5))

    Reference: Chen et al. 2023, appendix C.1 (k = 5). Other k are ours.
    """
    check_k(k)
    return (*[1] * (k - 2), 3, 5)[-k:]


def skill_names(k: int) -> tuple[str, ...]:
    """The names of the k skills, first variable first, of one width so that they sort in this order.

    >>> skill_names(3), skill_names(12)[:2]
    (('skill-1', 'skill-2', 'skill-3'), ('skill-01', 'skill-02'))
    """
    check_k(k)
    return tuple(f"skill-{number:0{len(str(k))}d}" for number in range(1, k + 1))


def lego_samples(
    *, k: int, num_samples: int, seed: int, order: str = "shuffled", proportions: str | Sequence[int] = "natural"
) -> Iterator[dict[str, Any]]:
    """The samples of a LEGO corpus, its skills mixed at random.

    Args:
        k: number of variables in a chain and of skills, 1 to 26.
        num_samples: at least k.
        seed: not negative. Another seed gives other texts under the same ids.
        order: "shuffled" is the paper's; "chain" keeps the clauses in the order of the chain, an easier task that is
            always to be called ordered LEGO.
        proportions: "natural" (the paper's, see `natural_proportions`), "uniform", or k whole numbers. The counts
            follow them to within one sample.

    Returns:
        Records with a unique `id`, a `text` and a `meta` that names the `skill`, `k` and `order`.

    Raises:
        CorpusError: an argument is out of range.

    Example:
        >>> sample = next(lego_samples(k=3, num_samples=9, seed=0))
        >>> sample["id"], sample["text"]
        ('lego-3-000000', 'Input: s = val k, h = val 0, k = val h. Output: k = 0.')
        >>> sample["meta"]
        {'skill': 'skill-2', 'k': 3, 'order': 'shuffled'}
    """
    natural = natural_proportions(k)
    check_order(order)
    return _samples(k, mixed_skills(proportions, num_samples, natural=natural, seed=seed), seed, order)


def write_lego(
    out_dir: str | os.PathLike[str],
    *,
    k: int,
    num_samples: int,
    seed: int,
    order: str = "shuffled",
    proportions: str | Sequence[int] = "natural",
    samples_per_file: int = 50_000,
) -> list[str]:
    """Write the samples of `lego_samples` as `lego-00000.jsonl`, `lego-00001.jsonl`, ...

    Args:
        out_dir: directory or URI; files of the same names are replaced.
        k, num_samples, seed, order, proportions: as for `lego_samples`.
        samples_per_file: at least 1; the last file may hold fewer.

    Returns:
        The places written, in order. Equal arguments give equal bytes.

    Raises:
        CorpusError: an argument is out of range; nothing is written then.
    """
    samples = lego_samples(k=k, num_samples=num_samples, seed=seed, order=order, proportions=proportions)
    return write_samples(out_dir, "lego", samples, num_samples=num_samples, samples_per_file=samples_per_file)


def check_k(k: int) -> None:
    """An error unless a chain can have k variables."""
    if not 1 <= k <= MAX_K:
        raise CorpusError(
            f"k={k}: a LEGO chain has 1 to {MAX_K} variables, one letter each. Give k between 1 and {MAX_K}."
        )


def check_order(order: str) -> None:
    """An error unless clauses can stand in this order."""
    if order not in ("shuffled", "chain"):
        raise CorpusError(f'order={order!r}: clauses stand "shuffled" (as in the paper) or in "chain" order.')


def template(k: int) -> tuple[UInt8[np.ndarray, " width"], Int[np.ndarray, " k"]]:
    """The characters that all texts of one k share, "_" where they differ, and where each clause starts.

    >>> template(1)[0].tobytes(), template(2)[1].tolist()
    (b'Input: _ = ___ _. Output: _ = _.', [7, 18])
    """
    text = PREFIX + SEPARATOR.join([CLAUSE] * k) + SUFFIX
    starts = len(PREFIX) + np.arange(k) * len(CLAUSE + SEPARATOR)
    return np.frombuffer(text.encode(), dtype=np.uint8), starts


def _samples(k: int, skills: Int[np.ndarray, " batch"], seed: int, order: str) -> Iterator[dict[str, Any]]:
    names = skill_names(k)
    for first in range(0, len(skills), _BLOCK):
        block = skills[first : first + _BLOCK]
        texts = _texts(block, k=k, seed=seed, block=1 + first // _BLOCK, order=order)
        for index, (skill, text) in enumerate(zip(block.tolist(), texts, strict=True), start=first):
            meta = {"skill": names[skill], "k": k, "order": order}
            yield {"id": f"lego-{k}-{index:06d}", "text": text, "meta": meta}


def _texts(skills: Int[np.ndarray, " batch"], *, k: int, seed: int, block: int, order: str) -> list[str]:
    """One text per asked skill (0 is the first variable), made of raw draws in three equal parts per sample."""
    rows = np.arange(len(skills))
    draws = raw_draws(seed, block, len(rows) * (MAX_K + 2 * k)).reshape(len(rows), -1)
    letters = _LETTERS[np.argsort(draws[:, :MAX_K], axis=1, kind="stable")[:, :k]]
    bits = (draws[:, MAX_K : MAX_K + k] >> np.uint64(63)).astype(np.uint8)
    values = np.bitwise_xor.accumulate(bits, axis=1) + ord("0")
    clauses = _clauses(letters, bits)
    if order == "shuffled":
        places = np.argsort(draws[:, MAX_K + k :], axis=1, kind="stable")
        clauses = np.take_along_axis(clauses, places[:, :, None], axis=1)
    shared, starts = template(k)
    text = np.tile(shared, (len(rows), 1))
    text[:, starts[:, None] + np.arange(len(CLAUSE))] = clauses
    text[:, -6] = letters[rows, skills]
    text[:, -2] = values[rows, skills]
    return [line.decode() for line in text.view(f"S{text.shape[1]}")[:, 0].tolist()]


def _clauses(
    letters: UInt8[np.ndarray, "batch k"], bits: UInt8[np.ndarray, "batch k"]
) -> UInt8[np.ndarray, "batch k width"]:
    """The characters of each clause in chain order; the first bit is the given value, the others mean `not`."""
    clauses = np.tile(np.frombuffer(CLAUSE.encode(), dtype=np.uint8), (*letters.shape, 1))
    clauses[:, :, 0] = letters
    clauses[:, 0, 4:7] = _OPERATORS[0]
    clauses[:, 1:, 4:7] = _OPERATORS[bits[:, 1:]]
    clauses[:, 0, 8] = bits[:, 0] + ord("0")
    clauses[:, 1:, 8] = letters[:, :-1]
    return clauses
