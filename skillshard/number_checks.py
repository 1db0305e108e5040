"""Questions about numbers that a caller or a file gives. True and False are no numbers, although Python computes with them.

The questions raise no error. The caller asks, and the caller's message names the wrong argument and the accepted values.
"""

import math
import operator
from typing import SupportsFloat, SupportsIndex


def is_whole(value: object, least: int, most: int = 2**62) -> bool:
    """Return whether a value is a whole number from `least` to `most`. A float such as 8.0 is no whole number.

    The default of `most` is the limit of all counts of draws, steps and rounds.

    >>> [is_whole(value, 1, 8) for value in (1, 8, 9, 0, 8.0, True, "8", None)]
    [True, True, False, False, False, False, False, False]
    """
    if type(value) is int:  # the usual case: a look at the protocol takes ten times as long
        return least <= value <= most
    return not isinstance(value, bool) and isinstance(value, SupportsIndex) and least <= operator.index(value) <= most


def is_finite(value: object) -> bool:
    """Return whether a value is a number other than NaN and infinity.

    >>> [is_finite(value) for value in (2, -0.5, math.inf, math.nan, True, "0.5", None, [1.0], 1j)]
    [True, True, False, False, False, False, False, False, False]
    """
    # An array converts to a float if it has one element, but an array is no number.
    if isinstance(value, bool) or not isinstance(value, SupportsFloat) or hasattr(value, "__len__"):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
