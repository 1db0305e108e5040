"""The only source of randomness: 64-bit words that are a pure function of labels.

Each use names its labels, such as ("batch", seed, step). Random numbers can therefore be drawn anywhere and in any order, and no
draw changes another draw. The words come from Philox, a counter-based generator, with a hash of the labels as the key. NumPy keeps
the raw words stable over versions and platforms, but not the methods of `Generator`. Records that are named by a digest must not
depend on these methods, so this module makes integers, floats, permutations and samples from the words.
"""

import hashlib
import threading

import numpy as np
import orjson
from jaxtyping import Bool, Int, UInt64

Label = str | int


def keyed_words(num: int, *labels: Label) -> UInt64[np.ndarray, " num"]:
    """Return `num` random 64-bit words, a pure function of the labels. A smaller `num` gives the beginning of the same words."""
    key = np.frombuffer(hashlib.blake2b(orjson.dumps(labels), digest_size=16).digest(), "<u8").astype(np.uint64)
    _THREAD.words.state = {
        "bit_generator": "Philox",
        "state": {"counter": _ZEROS, "key": key},
        "buffer": _ZEROS,
        "buffer_pos": len(_ZEROS),
        "has_uint32": 0,
        "uinteger": 0,
    }
    return _THREAD.words.random_raw(num)


class _Thread(threading.local):
    """A generator for each thread. A new key for an old generator costs less than half of a new generator."""

    def __init__(self) -> None:
        self.words = np.random.Philox(key=0)


_THREAD = _Thread()
_ZEROS = np.zeros(4, np.uint64)


def keyed_seed(*labels: Label) -> int:
    """Return a seed for another generator, such as torch's. The seed has 53 bits, so that JSON holds the number exactly.

    >>> keyed_seed("run", 0) != keyed_seed("run", 1)
    True
    """
    return int(keyed_words(1, *labels)[0] >> np.uint64(11))


def permutation(num: int, *labels: Label) -> Int[np.ndarray, " num"]:
    """Return a permutation of 0..num-1, a pure function of the labels.

    The index stands in the low bits of each random word, so the words are distinct and any sorting algorithm gives
    the same result.

    >>> permutation(5, "shards", 0).tolist()
    [3, 2, 1, 0, 4]
    """
    mask = np.uint64((1 << max(1, (num - 1).bit_length())) - 1)
    words = (keyed_words(num, *labels) & ~mask) | np.arange(num, dtype=np.uint64)
    words.sort()
    return (words & mask).astype(np.int64)


def integers(num: int, below: int, *labels: Label) -> Int[np.ndarray, " num"]:
    """Draw `num` integers of 0..below-1 with replacement.

    A word modulo `below` favours small numbers by at most `below` / 2**64, which is too little to matter here.

    >>> integers(6, 3, "throws").tolist()
    [1, 0, 2, 0, 1, 1]
    """
    return (keyed_words(num, *labels) % np.uint64(below)).astype(np.int64)


def chances(num: int, share: float, *labels: Label) -> Bool[np.ndarray, " num"]:
    """Draw `num` truth values, each true with probability `share`.

    >>> chances(1000, 0.25, "coins").sum().item() in range(210, 290)
    True
    """
    # A float has 53 bits, so the upper 53 bits of a word become a float exactly.
    return (keyed_words(num, *labels) >> np.uint64(11)).astype(np.float64) < share * 2.0**53


def distinct(num: int, below: int, *labels: Label) -> Int[np.ndarray, " num"]:
    """Draw `num` different integers of 0..below-1, in rising order. If `below` is not more than `num`, return all integers.

    The first different integers of a longer draw are taken, so memory grows with `num` and not with `below`.

    >>> distinct(3, 1000, "rows").tolist(), distinct(5, 3, "rows").tolist()
    ([115, 503, 513], [0, 1, 2])
    """
    if num >= below:
        return np.arange(below)
    if num > below // 2:  # drawing with replacement would need ever more draws for the last integers
        return np.sort(permutation(below, *labels)[:num])
    # With num at most below / 2, this many draws nearly always hold num different integers. Otherwise the loop draws twice as many.
    drawn = 2 * num + 64
    while True:
        values, first = np.unique(integers(drawn, below, *labels), return_index=True)
        if len(values) >= num:
            return np.sort(values[np.argsort(first, kind="stable")[:num]])
        drawn *= 2
