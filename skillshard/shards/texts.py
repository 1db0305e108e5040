"""Compare texts by the hash of the folded text.

Two samples are copies if their texts differ only in Unicode composition, case and white space. `folded` is the definition.
`text_hashes` computes the same hashes faster. In most texts only ASCII letters and white space change, and NumPy folds these a
megabyte at a time.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from jaxtyping import Int

from skillshard.shards.contents import stops_of

HASH_BYTES = 16  # with 8 bytes, two of a billion texts would share a hash in 3 % of cases
# The most significant byte comes first, so that NumPy sorts hashes as numbers.
HASH_DTYPE = np.dtype(f"S{HASH_BYTES}")
"""Data type of a hash: the 16 bytes of a text's hash."""
_BYTES_AT_ONCE = (
    1 << 20
)  # long enough that NumPy's cost per call does not count, and small enough for the caches of a CPU
_SPACE = ord(" ")
_IS_SPACE = np.isin(np.arange(_SPACE), list(b"\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f"))
"""Whether each character before the space is white space of `str.split`."""
_WIDE_SPACES = "".join(chr(code) for code in range(128, 0x3001) if chr(code).isspace())  # the last is U+3000
_JAMO = range(0x1100, 0x1200)  # the parts of Korean syllables, which NFC composes
_ASCII = bytes(range(128))


def folded(text: str) -> str:
    r"""Fold a text: NFC, case folding, NFC again, and each run of white space replaced by one space.

    Case folding can take a composed letter apart, so the second NFC is needed. White space is defined as in `str.split`, and is
    removed at the beginning and the end.

    >>> folded("  The Cafe\u0301\n\tis OPEN ")
    'the café is open'
    >>> folded("1 2") == folded("12")
    False
    """
    return " ".join(_composed(text).split())


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def text_hash(text: str) -> str:
    """Return the xxh3 hash (128 bits) of the folded text in UTF-8, as 32 hexadecimal digits.

    >>> text_hash("One  text") == text_hash("one text") != text_hash("onetext")
    True
    """
    return xxhash.xxh3_128_hexdigest(folded(text).encode())


def text_hashes(texts: Iterable[bytes]) -> np.ndarray:
    """Return the hashes of many texts: the bytes of `text_hash`, dtype `HASH_DTYPE`.

    Args:
        texts: Texts in UTF-8. No text is empty or only white space.
    """
    hashes: list[bytes] = []
    for batch in _batches(texts):
        sizes = np.fromiter(map(len, batch), np.int64, len(batch))
        hashes += map(xxhash.xxh3_128_digest, _folded_all(b"".join(batch), sizes))
    return np.array(hashes, HASH_DTYPE)


def ascii_hashes(data: bytes, sizes: Int[np.ndarray, " text"]) -> np.ndarray:
    """Return the hashes of many texts of ASCII letters, as `text_hashes`.

    Args:
        data: Texts, one after the other.
        sizes: Bytes of each text.

    >>> ascii_hashes(b"One  textSecond", np.array([9, 6])).tolist() == text_hashes([b"One  text", b"Second"]).tolist()
    True
    """
    hashes: list[bytes] = []
    first = begin = 0
    for last in stops_of(sizes):
        end = begin + int(sizes[first:last].sum())
        hashes += map(xxhash.xxh3_128_digest, _folded_all(data[begin:end], sizes[first:last]))
        first, begin = last, end
    return np.array(hashes, HASH_DTYPE)


def hex_of(hashes: np.ndarray) -> list[str]:
    """Return hashes as hexadecimal digits, as in records and manifests."""
    # NumPy cuts zero bytes off the end of an S16 value, so the zeros are added again.
    return [value.ljust(HASH_BYTES, b"\0").hex() for value in hashes.tolist()]


def hash_of(digits: str) -> np.ndarray:
    """Return the hash with the given hexadecimal digits, as an array without axes."""
    return np.array(bytes.fromhex(digits), HASH_DTYPE)


def hashes_of(digits: Sequence[str]) -> np.ndarray:
    """Return the hashes with the given hexadecimal digits, sorted."""
    return np.sort(np.array([bytes.fromhex(value) for value in digits], HASH_DTYPE))


def _batches(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    num_bytes = 0
    for text in texts:
        if not text.isascii():
            # The bytes beyond ASCII alone are valid UTF-8, because UTF-8 has no ASCII bytes within a letter.
            beyond = text.translate(None, _ASCII).decode()
            if not all(map(_is_plain, set(beyond))):
                text = _narrow(_composed(text.decode())).encode()
        batch.append(text)
        num_bytes += len(batch[-1])
        if num_bytes >= _BYTES_AT_ONCE:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


@lru_cache(maxsize=65_536)
def _is_plain(letter: str) -> bool:
    """Return whether folding leaves a letter beyond ASCII unchanged, beside any other letter.

    Most quotes, dashes, symbols and small letters are plain. Marks and the letters of `_JAMO` are not plain, because NFC can compose
    them with the letter before. Newer versions of Unicode may add composing letters beyond U+FFFF, so no letter beyond U+FFFF is plain.
    """
    return (
        unicodedata.category(letter)[0] in "LNPS"
        and ord(letter) not in _JAMO
        and ord(letter) <= 0xFFFF
        and folded(letter) == letter
    )


def _narrow(text: str) -> str:
    """Replace white space beyond ASCII by spaces. A search for each of these few letters is faster than splitting the text."""
    for space in _WIDE_SPACES:
        text = text.replace(space, " ")
    return text


def _lowered(data: bytes) -> bytes:
    """Return bytes with the capital letters of ASCII replaced, as `bytes.lower`, by a loop of Arrow that takes a third of the time."""
    bounds = pa.py_buffer(np.array([0, len(data)], np.int64))
    together = pa.LargeStringArray.from_buffers(1, bounds, pa.py_buffer(data))
    return pc.ascii_lower(together).buffers()[2].to_pybytes()


def _folded_all(texts: bytes, sizes: Int[np.ndarray, " text"]) -> Iterator[bytes]:
    """Yield the folded bytes of texts with folded letters beyond ASCII and ASCII white space.

    All bytes of a batch go through each step together. For single texts of some hundred bytes, the NumPy calls would cost more than
    the bytes.

    Args:
        texts: Texts, one after the other.
        sizes: Bytes of each text, at least 1.
    """
    folded_data = _lowered(texts)
    data = np.frombuffer(folded_data, np.uint8)
    controls = np.flatnonzero(data < _SPACE)
    spaces = controls[_IS_SPACE[data[controls]]]
    if len(spaces):
        data = data.copy()
        data[spaces] = _SPACE
    bounds = np.append(0, np.cumsum(sizes))
    # A space is surplus after another space, and at the start of a text. A space of the text before does not count.
    is_space = data == _SPACE
    surplus = np.empty_like(is_space)
    np.logical_and(is_space[1:], is_space[:-1], out=surplus[1:])
    surplus[bounds[:-1]] = is_space[bounds[:-1]]
    places = np.flatnonzero(surplus)
    if len(places):
        bounds -= np.searchsorted(places, bounds)
        data = data[~surplus]
    if len(spaces) or len(places):
        folded_data = data.tobytes()
    # At most one space is left at the end of a text, and is cut off.
    ends = bounds[1:] - (data[bounds[1:] - 1] == _SPACE)
    for begin, end in zip(bounds[:-1].tolist(), ends.tolist(), strict=True):
        yield folded_data[begin:end]
