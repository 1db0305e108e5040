"""Generate the paper's corpus of sums (addition).

A sample adds two numbers of k digits and asks for one digit of the sum. Skill i asks for digit i from the right, so the skill may need
the carry of the skills before. The text counts digits from 0:

    Input: A = 1 0 6 + 0 7 1 , A 0 = ? Output: 7

A carry out of the last digit is dropped. Equal arguments give equal bytes on every platform, because only raw 64-bit draws are used.

Reference: Lee et al., "Teaching Arithmetic to Small Transformers", arXiv:2307.03381; Chen et al., "Skill-it!", NeurIPS 2023,
arXiv:2307.14430, section 2.2. Texts are drawn independently, so duplicates can occur. Duplicates are common for k below 3.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from skillshard.errors import CorpusError
from skillshard.synthetic.draws import mixed_skills, raw_draws, write_samples
from skillshard.synthetic.lego import skill_names

MAX_K = 9
# Samples that are made together. The bytes of a corpus depend on the number, so the number never changes.
_BLOCK = 50_000


def natural_proportions(k: int) -> tuple[int, ...]:
    """Return the proportions of the skills: 13:14:18 for k = 3 as in the paper, equal for other k.

    >>> natural_proportions(3), natural_proportions(2)
    ((13, 14, 18), (1, 1))

    Reference: Chen et al. 2023, appendix C.1.
    """
    check_k(k)
    return (13, 14, 18) if k == 3 else (1,) * k


def addition_samples(
    *, k: int, num_samples: int, seed: int, proportions: str | Sequence[int] = "natural"
) -> Iterator[dict[str, Any]]:
    """Generate the samples of an addition corpus. The skills are mixed at random.

    Args:
        k: number of digits and of skills, 1 to 9.
        num_samples: number of samples, at least k.
        seed: seed of the corpus, not negative. Another seed gives other texts under the same ids.
        proportions: "natural" (see `natural_proportions`), "uniform", or k whole numbers. The counts follow the proportions to
            within one sample.

    Returns:
        Records with a unique `id`, a `text` and a `meta` that names the `skill` and `k`.

    Raises:
        CorpusError: an argument is out of range.

    Example:
        >>> sample = next(addition_samples(k=3, num_samples=3, seed=0))
        >>> sample["text"], sample["meta"]
        ('Input: A = 5 6 2 + 3 7 1 , A 2 = ? Output: 9', {'skill': 'skill-3', 'k': 3})
    """
    natural = natural_proportions(k)
    return _samples(k, mixed_skills(proportions, num_samples, natural=natural, seed=seed), seed)


def write_addition(
    out_dir: str | os.PathLike[str],
    *,
    k: int,
    num_samples: int,
    seed: int,
    proportions: str | Sequence[int] = "natural",
    samples_per_file: int = 50_000,
) -> list[str]:
    """Write the samples of `addition_samples` as `addition-00000.jsonl`, ...; with the same arguments.

    Args:
        out_dir: directory or URI. Files with the same names are replaced.
        samples_per_file: number of samples of a file, at least 1. The last file may have fewer.

    Returns:
        The places of the files, in order. Equal arguments give equal bytes.
    """
    samples = addition_samples(k=k, num_samples=num_samples, seed=seed, proportions=proportions)
    return write_samples(out_dir, "addition", samples, num_samples=num_samples, samples_per_file=samples_per_file)


def check_k(k: int) -> None:
    """Raise CorpusError unless k is from 1 to 9."""
    if not 1 <= k <= MAX_K:
        raise CorpusError(f"k={k}: the numbers have 1 to {MAX_K} digits. Give k between 1 and {MAX_K}.")


def _samples(k: int, skills: Int[np.ndarray, " batch"], seed: int) -> Iterator[dict[str, Any]]:
    names = skill_names(k)
    for first in range(0, len(skills), _BLOCK):
        block = skills[first : first + _BLOCK]
        draws = raw_draws(seed, 1 + first // _BLOCK, 2 * len(block)).reshape(-1, 2)
        # The low bits of a draw are the weaker ones, so 11 are dropped before the remainder.
        terms = ((draws >> np.uint64(11)) % np.uint64(10**k)).tolist()
        for index, (skill, (left, right)) in enumerate(zip(block.tolist(), terms, strict=True), start=first):
            meta = {"skill": names[skill], "k": k}
            yield {"id": f"addition-{k}-{index:06d}", "text": _text(left, right, k, skill), "meta": meta}


def _text(left: int, right: int, k: int, place: int) -> str:
    """Write one text.

    >>> _text(606, 879, 3, 2)
    'Input: A = 6 0 6 + 8 7 9 , A 2 = ? Output: 4'
    """
    terms = " + ".join(" ".join(f"{number:0{k}d}") for number in (left, right))
    return f"Input: A = {terms} , A {place} = ? Output: {(left + right) // 10**place % 10}"
