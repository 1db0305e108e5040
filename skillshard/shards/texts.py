"""When two texts are the same: the folded text and its hash.

Two samples are copies if their texts differ only in Unicode composition, in case and in white space. `folded` is the definition.
`text_hashes` gives the same hashes faster: in most texts only ASCII letters and white space change, and these are folded a megabyte at a
time.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import xxhash
from jaxtyping import UInt8

HASH_BYTES = 16
HASH_DTYPE = np.dtype(f"S{HASH_BYTES}")
"""A hash as its bytes, the most significant first, so that NumPy sorts hashes as numbers."""
_BYTES_AT_ONCE = 1 << 20
_SPACE = ord(" ")
_ASCII_SPACES = b"\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f"  # what str.split takes for white space, besides the space itself
_WIDE_SPACES = "".join(chr(code) for code in range(128, 0x3001) if chr(code).isspace())
_JAMO = range(0x1100, 0x1200)
_ASCII = bytes(range(128))
_FOLD_ASCII = bytes(range(256)).lower().translate(bytes.maketrans(_ASCII_SPACES, b" " * len(_ASCII_SPACES)))


def folded(text: str) -> str:
    r"""A text without the differences that do not matter: NFC, case folded, NFC again, each run of white space one space.

    The second NFC is needed because case folding can take a composed letter apart. White space is what `str.split` takes for it.
    White space at the beginning and at the end goes away.

    >>> folded("  The Cafe\u0301\n\tis OPEN ")
    'the café is open'
    >>> folded("1 2") == folded("12")
    False
    """
    return " ".join(_composed(text).split())


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def text_hash(text: str) -> str:
    """The hash that stands for a text: xxh3, 128 bits, of the folded text in UTF-8, as 32 hexadecimal digits.

    >>> text_hash("One  text") == text_hash("one text") != text_hash("onetext")
    True
    """
    return xxhash.xxh3_128_hexdigest(folded(text).encode())


def text_hashes(texts: Sequence[bytes]) -> np.ndarray:
    """The hashes of many texts; bytes of `text_hash`, dtype `HASH_DTYPE`.

    Args:
        texts: in UTF-8, none of them empty or only white space.
    """
    hashes = [xxhash.xxh3_128_digest(text.data) for some in _batches(texts) for text in _folded_all(some)]
    return np.array(hashes, HASH_DTYPE)


def hex_of(hashes: np.ndarray) -> list[str]:
    """Hashes as hexadecimal digits, as they stand in records and manifests."""
    # tolist() cuts zero bytes off the end of an S16.
    return [value.ljust(HASH_BYTES, b"\0").hex() for value in hashes.tolist()]


def hash_of(digits: str) -> np.ndarray:
    """The hash that hexadecimal digits stand for; no axes."""
    return np.array(bytes.fromhex(digits), HASH_DTYPE)


def hashes_of(digits: Sequence[str]) -> np.ndarray:
    """The hashes that hexadecimal digits stand for, sorted."""
    return np.sort(np.array([bytes.fromhex(value) for value in digits], HASH_DTYPE))


def _batches(texts: Sequence[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    num_bytes = 0
    for text in texts:
        beyond = "" if text.isascii() else text.translate(None, _ASCII).decode()
        batch.append(text if all(map(_is_plain, set(beyond))) else _narrow(_composed(text.decode())).encode())
        num_bytes += len(batch[-1])
        if num_bytes >= _BYTES_AT_ONCE:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


@lru_cache(maxsize=65_536)
def _is_plain(letter: str) -> bool:
    """Whether folding leaves a letter beyond ASCII as it is, whatever stands beside it: most quotes, dashes, symbols and small letters.

    Marks, and of the letters those of `_JAMO`, can be composed with what stands before them. Beyond U+FFFF newer versions of Unicode
    may add more of these letters, so nothing there counts as plain.
    """
    return (
        unicodedata.category(letter)[0] in "LNPS"
        and ord(letter) not in _JAMO
        and ord(letter) <= 0xFFFF
        and folded(letter) == letter
    )


def _narrow(text: str) -> str:
    """White space beyond ASCII as spaces. Looking for each of the few such letters is faster than splitting the text."""
    for space in _WIDE_SPACES:
        text = text.replace(space, " ")
    return text


def _folded_all(texts: list[bytes]) -> Iterator[UInt8[np.ndarray, " byte"]]:
    """The folded bytes of texts whose letters beyond ASCII are folded already and whose white space is ASCII.

    All bytes of a batch go through each step together: steps on single texts of some hundred bytes would cost more than the
    bytes.
    """
    data = np.frombuffer(b"".join(texts).translate(_FOLD_ASCII), np.uint8)
    bounds = np.cumsum([0, *map(len, texts)])
    surplus = data == _SPACE
    at_start = surplus[bounds[:-1]]
    surplus[1:] &= surplus[:-1].copy()
    surplus[bounds[:-1]] = at_start
    bounds -= np.searchsorted(np.flatnonzero(surplus), bounds)
    kept = data[~surplus]
    ends = bounds[1:] - (kept[bounds[1:] - 1] == _SPACE)
    for begin, end in zip(bounds[:-1].tolist(), ends.tolist(), strict=True):
        yield kept[begin:end]
