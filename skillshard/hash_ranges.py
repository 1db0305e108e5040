"""Equal ranges of 64-bit hashes, which divide ids and texts between tasks and between shards."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import xxhash
from jaxtyping import UInt64

HASH_SPACE = 1 << 64


def id_hash(sample_id: str) -> int:
    """Return the xxh3 hash (64 bits) of an id in UTF-8.

    >>> id_hash("q00000") == id_hash("q00000") != id_hash("q00001")
    True
    """
    return xxhash.xxh3_64_intdigest(sample_id.encode())


def id_hashes(sample_ids: Iterable[str] | pa.StringArray) -> Iterator[int]:
    """Yield the `id_hash` of each id, without a call of a Python function for each.

    >>> list(id_hashes(["a", "b"])) == list(id_hashes(pa.array(["a", "b"]))) == [id_hash("a"), id_hash("b")]
    True
    """
    if isinstance(sample_ids, pa.StringArray):
        return map(xxhash.xxh3_64_intdigest, sample_ids.cast(pa.binary()).to_pylist())
    return map(xxhash.xxh3_64_intdigest, map(str.encode, sample_ids))


def hash_bounds(num_ranges: int) -> list[int]:
    """Return the bounds of ranges of equal width. The last bound is `HASH_SPACE`, the largest hash plus 1.

    >>> hash_bounds(2) == [0, 1 << 63, HASH_SPACE]
    True
    """
    # In Python's integers, because the product does not fit into 64 bits.
    return [HASH_SPACE * number // num_ranges for number in range(num_ranges + 1)]


def rows_between(hashes: UInt64[np.ndarray, " row"], low: int, high: int) -> slice:
    """Find the rows of sorted hashes in [low, high).

    `high` may be `HASH_SPACE`, which does not fit into an unsigned 64-bit number and is therefore handled apart.

    >>> rows_between(np.array([1, 5, (1 << 64) - 1], np.uint64), 5, HASH_SPACE)
    slice(1, 3, None)
    """
    begin = int(np.searchsorted(hashes, np.uint64(low)))
    return slice(begin, len(hashes) if high == HASH_SPACE else int(np.searchsorted(hashes, np.uint64(high))))
