"""The default ceiling of bad rows, and the ceiling that a sentence proposes."""

DEFAULT_SHARE = 0.01
"""Share of the rows that may be bad by default. A corpus with more bad rows is usually read with a wrong field, or is damaged."""
_PROPOSED = (0.02, 0.05, 0.1, 0.2, 0.5)


def proposed_share(num_bad: int, num_rows: int) -> float:
    """Return a round share of the rows that allows the bad rows, with some room for rows that are not read yet.

    >>> proposed_share(3, 100), proposed_share(2, 3)
    (0.05, 1.0)
    """
    return next((share for share in _PROPOSED if num_bad <= share * num_rows), 1.0)
