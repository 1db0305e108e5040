"""A small cache for values that are costly to make and soon needed again.

`functools.lru_cache` on a method would make a cycle of references. Here a dropped object returns its memory maps at once.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def memoized(memo: dict[Key, Value], key: Key, make: Callable[[Key], Value], *, most: int) -> Value:
    """Return the value of a key in `memo`, and make the value if it is missing. Above `most` values, the oldest values are dropped.

    >>> squares = {1: 1, 2: 4}
    >>> memoized(squares, 3, lambda number: number**2, most=2), squares
    (9, {2: 4, 3: 9})
    """
    value = memo.get(key)
    if value is None:
        value = memo[key] = make(key)
        for old in list(memo)[:-most]:
            memo.pop(old, None)  # another thread may have removed the key in the meantime
    return value
