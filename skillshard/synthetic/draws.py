"""Shared parts of the generated corpora: raw draws, mixed skills, and files of samples."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from skillshard import places, storage
from skillshard.errors import CorpusError, name_some
from skillshard.progress import advance


def raw_draws(seed: int, block: int, size: int) -> UInt64[np.ndarray, " size"]:
    """Draw raw 64-bit numbers. NumPy promises that raw draws never change, unlike the methods of a Generator."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, block]))
    return np.asarray(bits.random_raw(size), dtype=np.uint64)


def mixed_skills(
    proportions: str | Sequence[int], num_samples: int, *, natural: tuple[int, ...], seed: int
) -> Int[np.ndarray, " num_samples"]:
    """Draw the skill of each sample, 0 to k - 1, in random order. The largest remainders round the counts.

    Args:
        proportions: "natural", "uniform", or a whole number for each skill.
        num_samples: number of samples, at least the number of skills.
        natural: proportions of "natural", a number for each skill.
        seed: seed of the order, not negative.

    Raises:
        CorpusError: an argument is out of range.

    >>> np.bincount(mixed_skills("natural", 10, natural=(1, 3), seed=0)).tolist()
    [3, 7]
    """
    parts = [int(part) for part in _parts(proportions, natural)]
    if num_samples < len(parts):
        raise CorpusError(
            f"num_samples={num_samples}: {len(parts)} skills need at least {len(parts)} samples. Give {len(parts)} or more."
        )
    if seed < 0:
        raise CorpusError(f"seed={seed}: a seed is a whole number from 0. Give another seed.")
    # Integers of Python, because the products of large proportions would overflow 64 bits.
    shares = [divmod(part * num_samples, sum(parts)) for part in parts]
    counts = [count for count, _ in shares]
    by_remainder = sorted(range(len(parts)), key=lambda skill: -shares[skill][1])
    for skill in by_remainder[: num_samples - sum(counts)]:
        counts[skill] += 1
    skills = np.repeat(np.arange(len(parts)), counts)
    return skills[np.argsort(raw_draws(seed, 0, num_samples), kind="stable")]


def write_samples(
    out_dir: str | os.PathLike[str],
    name: str,
    samples: Iterator[Mapping[str, Any]],
    *,
    num_samples: int,
    samples_per_file: int,
) -> list[str]:
    """Write samples as `NAME-00000.jsonl`, `NAME-00001.jsonl`, ..., and return the places in order.

    Raises:
        CorpusError: samples_per_file is below 1, or `out_dir` has files of another corpus with the same name. Nothing is written then.
    """
    if samples_per_file < 1:
        raise CorpusError(f"samples_per_file={samples_per_file}: a file holds at least 1 sample. Give 1 or more.")
    files = [
        places.join(out_dir, f"{name}-{number:05d}.jsonl") for number in range(-(-num_samples // samples_per_file))
    ]
    others = [file.place for file in storage.list_files(out_dir, f"{name}-*.jsonl") if file.place not in files]
    if others:
        raise CorpusError(
            f"{os.fspath(out_dir)} holds files of another corpus, and the two corpora would be mixed: {name_some(others, 3, are_paths=True)}. Choose another "
            "`out`, or remove the files."
        )
    done = itertools.count(1)
    for place in files:
        lines = []
        for sample in islice(samples, samples_per_file):
            lines.append(json.dumps(sample) + "\n")
            advance(next(done), num_samples)
        storage.write_bytes(place, "".join(lines).encode())
    return files


def _parts(proportions: str | Sequence[int], natural: tuple[int, ...]) -> Sequence[int]:
    k = len(natural)
    if isinstance(proportions, str):
        if proportions not in ("natural", "uniform"):
            raise CorpusError(f'proportions={proportions!r}: give "natural", "uniform" or {k} whole numbers.')
        return natural if proportions == "natural" else [1] * k
    whole = all(isinstance(part, int | np.integer) and part >= 0 for part in proportions)
    if len(proportions) != k or not whole or sum(proportions) == 0:
        raise CorpusError(
            f"proportions={tuple(proportions)}: expected {k} whole numbers from 0, not all 0, a number for each skill. "
            f"The paper has {natural}."
        )
    return proportions
