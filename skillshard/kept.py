"""A small cache for values that are costly to make and soon needed again.

`functools.lru_cache` on a method would make a cycle of references. Here a dropped object returns its memory maps at once.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")


def kept(made: dict[Key, Made], key: Key, make: Callable[[Key], Made], *, most: int) -> Made:
    """Return the value of a key, and make the value if the cache has none. Above `most` values, the oldest values are dropped.

    >>> squares = {1: 1, 2: 4}
    >>> kept(squares, 3, lambda number: number**2, most=2), squares
    (9, {2: 4, 3: 9})
    """
    value = made.get(key)
    if value is None:
        value = made[key] = make(key)
        for old in list(made)[:-most]:
            made.pop(old, None)  # another thread may have removed the key in the meantime
    return value
