"""Text from outside (names, ids, file names, metadata) as it may be shown: on a terminal, on a page, in a picture."""

import unicodedata

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of what follows, so that a line can read as something else."""
_HIDDEN = frozenset(("Cc", "Cs", "Zl", "Zp"))
"""Unicode categories: control characters, halves of surrogate pairs (bytes that are not UTF-8), line and paragraph ends."""


def printable(text: str) -> str:
    """Escape what a terminal would obey instead of show: control characters, line ends, marks of direction.

    >>> print(printable("red\\x1b[31m, two\\nlines, \\u202eright to left, caf\\xe9"))
    red\\x1b[31m, two\\nlines, \\u202eright to left, café
    >>> print(printable("caf\\udce9.txt"))
    caf\\xe9.txt
    """
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def shortened(text: str, most: int = 40) -> str:
    """A name for a table: printable, and of a long one the beginning and the end.

    >>> shortened("a" * 100, most=20)
    'aaaaaaaaaaaaaa...aaa'
    """
    shown = printable(text)
    if len(shown) <= most:
        return shown
    num_last = most // 6
    return f"{shown[: most - num_last - 3]}...{shown[-num_last:]}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number and its noun.

    >>> counted(1, "part"), counted(2000, "part"), counted(2, "copy", "copies")
    ('1 part', '2,000 parts', '2 copies')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character in _BIDI or unicodedata.category(character) in _HIDDEN:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character
