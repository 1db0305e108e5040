"""The one source of randomness: 64-bit words that are a pure function of labels.

Each use names its labels, such as ("batch", seed, step), so any number of draws can be made anywhere and in any order, and no
draw moves another. The words are those of Philox, a counter-based generator, keyed by a hash of the labels. NumPy keeps raw words
stable over versions and platforms. NumPy does not keep the methods of `Generator` stable, so no record that is named by a digest may
depend on them: integers, floats, permutations and samples are made of words here.
"""

import hashlib
import threading

import numpy as np
import orjson
from jaxtyping import Bool, Int, UInt64

Label = str | int


def keyed_words(num: int, *labels: Label) -> UInt64[np.ndarray, " num"]:
    """`num` random 64-bit words, a pure function of the labels; fewer words are the beginning of more."""
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
    """A generator for each thread: giving it another key costs less than half of making a new one."""

    def __init__(self) -> None:
        self.words = np.random.Philox(key=0)


_THREAD = _Thread()
_ZEROS = np.zeros(4, np.uint64)


def keyed_seed(*labels: Label) -> int:
    """A seed for another generator, such as torch's: 53 bits, so that JSON holds it exactly.

    >>> keyed_seed("run", 0) != keyed_seed("run", 1)
    True
    """
    return int(keyed_words(1, *labels)[0] >> np.uint64(11))


def permutation(num: int, *labels: Label) -> Int[np.ndarray, " num"]:
    """A permutation of 0..num-1, a pure function of the labels.

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
    """`num` integers of 0..below-1, drawn with replacement.

    A word modulo `below` favours small numbers by at most `below` / 2**64, which no use here can notice.

    >>> integers(6, 3, "throws").tolist()
    [1, 0, 2, 0, 1, 1]
    """
    return (keyed_words(num, *labels) % np.uint64(below)).astype(np.int64)


def chances(num: int, share: float, *labels: Label) -> Bool[np.ndarray, " num"]:
    """`num` truth values, each true with probability `share`.

    >>> chances(1000, 0.25, "coins").sum().item() in range(210, 290)
    True
    """
    return (keyed_words(num, *labels) >> np.uint64(11)).astype(np.float64) < share * 2.0**53


def distinct(num: int, below: int, *labels: Label) -> Int[np.ndarray, " num"]:
    """`num` different integers of 0..below-1 in rising order; all of them where `below` is not more.

    The first different ones among drawn integers are taken, so memory grows with `num` and not with `below`.

    >>> distinct(3, 1000, "rows").tolist(), distinct(5, 3, "rows").tolist()
    ([115, 503, 513], [0, 1, 2])
    """
    if num >= below:
        return np.arange(below)
    if num > below // 2:
        return np.sort(permutation(below, *labels)[:num])
    drawn = 2 * num + 64
    while True:
        values, first = np.unique(integers(drawn, below, *labels), return_index=True)
        if len(values) >= num:
            return np.sort(values[np.argsort(first, kind="stable")[:num]])
        drawn *= 2
