"""What is costly to make and soon asked for again: the newest few are kept.

Unlike `functools.lru_cache` on a method, no cycle of references: who is dropped gives its memory maps back at once.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")


def kept(made: dict[Key, Made], key: Key, make: Callable[[Key], Made], *, most: int) -> Made:
    """What was made of a key, or is made now; those made first go when there are more than `most`.

    >>> squares = {1: 1, 2: 4}
    >>> kept(squares, 3, lambda number: number**2, most=2), squares
    (9, {2: 4, 3: 9})
    """
    found = made.get(key)
    if found is None:
        found = made[key] = make(key)
        for old in list(made)[:-most]:
            made.pop(old, None)  # another thread may have taken it out
    return found
