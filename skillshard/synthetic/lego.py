"""Generate the paper's corpus of reasoning chains (LEGO).

A sample is a chain of k variables, which are distinct letters. The value of the first variable is given (`r = val 1`). Every other
variable copies (`val`) or negates (`not`) the variable before, and the clauses stand in random order. Skill i asks for the value of
variable i of the chain, so the skill needs the skills before:

    Input: b = not y, r = val 1, m = val b, q = val m, y = not r. Output: b = 1.

All texts of one k have the same length, so a matrix of bytes holds many texts: 200,000 samples take about one second. Equal arguments
give equal bytes on every platform, because only raw 64-bit draws are used.

Reference: Zhang et al., "Unveiling Transformers with LEGO", arXiv:2206.04301; Chen et al., "Skill-it!", NeurIPS 2023,
arXiv:2307.14430, section 2. Texts are drawn independently, so duplicates can occur. Duplicates are common for k below 3.
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
# Samples that are made together. The bytes of a corpus depend on the number, so the number never changes.
_BLOCK = 50_000


def natural_proportions(k: int) -> tuple[int, ...]:
    """Return the proportions of the skills in the paper's corpus: 1, 1, ..., 3, 5 for skills 1 to k.

    >>> natural_proportions(5), natural_proportions(3), natural_proportions(2)
    ((1, 1, 1, 3, 5), (1, 3, 5), (3, 5))

    Reference: Chen et al. 2023, appendix C.1 (k = 5). The paper has no proportions for other k.
    """
    check_k(k)
    return (*[1] * (k - 2), 3, 5)[-k:]


def skill_names(k: int) -> tuple[str, ...]:
    """Name the k skills, in the order of the variables. All names have the same width, so that sorted names are in the order of the variables.

    >>> skill_names(3), skill_names(12)[:2]
    (('skill-1', 'skill-2', 'skill-3'), ('skill-01', 'skill-02'))
    """
    check_k(k)
    return tuple(f"skill-{number:0{len(str(k))}d}" for number in range(1, k + 1))


def lego_samples(
    *, k: int, num_samples: int, seed: int, order: str = "shuffled", proportions: str | Sequence[int] = "natural"
) -> Iterator[dict[str, Any]]:
    """Generate the samples of a LEGO corpus. The skills are mixed at random.

    Args:
        k: number of variables in a chain and of skills, 1 to 26.
        num_samples: number of samples, at least k.
        seed: seed of the corpus, not negative. Another seed gives other texts under the same ids.
        order: order of the clauses. "shuffled" is the order of the paper. "chain" is the order of the chain, an easier task that is
            always called ordered LEGO.
        proportions: "natural" (see `natural_proportions`), "uniform", or k whole numbers. The counts follow the proportions to
            within one sample.

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
        out_dir: directory or URI. Files with the same names are replaced.
        k: as for `lego_samples`.
        num_samples: as for `lego_samples`.
        seed: as for `lego_samples`.
        order: as for `lego_samples`.
        proportions: as for `lego_samples`.
        samples_per_file: number of samples of a file, at least 1. The last file may have fewer.

    Returns:
        The places of the files, in order. Equal arguments give equal bytes.

    Raises:
        CorpusError: an argument is out of range. Nothing is written then.
    """
    samples = lego_samples(k=k, num_samples=num_samples, seed=seed, order=order, proportions=proportions)
    return write_samples(out_dir, "lego", samples, num_samples=num_samples, samples_per_file=samples_per_file)


def check_k(k: int) -> None:
    """Raise CorpusError unless k is from 1 to 26."""
    if not 1 <= k <= MAX_K:
        raise CorpusError(
            f"k={k}: a LEGO chain has 1 to {MAX_K} variables, one letter each. Give k between 1 and {MAX_K}."
        )


def check_order(order: str) -> None:
    """Raise CorpusError unless `order` is "shuffled" or "chain"."""
    if order not in ("shuffled", "chain"):
        raise CorpusError(f'order={order!r}: clauses stand "shuffled" (as in the paper) or in "chain" order.')


def template(k: int) -> tuple[UInt8[np.ndarray, " width"], Int[np.ndarray, " k"]]:
    """Return the characters that all texts of one k share, with "_" for the others, and the first position of each clause.

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
    """Make a text for each asked skill (0 is the first variable) from raw draws."""
    rows = np.arange(len(skills))
    draws = raw_draws(seed, block, len(rows) * (MAX_K + 2 * k)).reshape(len(rows), -1)
    # A sample takes 26 draws for the letters, k for the values and k for the order, also if the order is not shuffled.
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
    # The suffix is ". Output: _ = _.": the variable and the value stand at fixed places from the end.
    text[:, -6] = letters[rows, skills]
    text[:, -2] = values[rows, skills]
    return [line.decode() for line in text.view(f"S{text.shape[1]}")[:, 0].tolist()]


def _clauses(
    letters: UInt8[np.ndarray, "batch k"], bits: UInt8[np.ndarray, "batch k"]
) -> UInt8[np.ndarray, "batch k width"]:
    """Write the clauses in the order of the chain. The first bit is the given value, every other bit means `not`."""
    clauses = np.tile(np.frombuffer(CLAUSE.encode(), dtype=np.uint8), (*letters.shape, 1))
    clauses[:, :, 0] = letters
    clauses[:, 0, 4:7] = _OPERATORS[0]
    clauses[:, 1:, 4:7] = _OPERATORS[bits[:, 1:]]
    clauses[:, 0, 8] = bits[:, 0] + ord("0")
    clauses[:, 1:, 8] = letters[:, :-1]
    return clauses
