"""Make text from outside (names, ids, file names, metadata) safe to show on a terminal, on a page and in a picture."""

import unicodedata

# Marks that change the direction of the text after them, so that a line can be read as another line.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Unicode categories: control characters, halves of surrogate pairs (bytes that are not UTF-8), line and paragraph ends.
_HIDDEN = frozenset(("Cc", "Cs", "Zl", "Zp"))


def printable(text: str) -> str:
    """Escape the characters that a terminal would obey instead of show: control characters, line ends, marks of direction.

    >>> print(printable("red\\x1b[31m, two\\nlines, \\u202eright to left, caf\\xe9"))
    red\\x1b[31m, two\\nlines, \\u202eright to left, café
    >>> print(printable("caf\\udce9.txt"))
    caf\\xe9.txt
    """
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def shortened(text: str, most: int = 40) -> str:
    """Make a name printable for a table, and replace the middle of a long name by dots.

    >>> shortened("a" * 100, most=20)
    'aaaaaaaaaaaaaa...aaa'
    """
    shown = printable(text)
    if len(shown) <= most:
        return shown
    num_last = most // 6  # names in one table usually differ at the end, so the end is shown as well
    return f"{shown[: most - num_last - 3]}...{shown[-num_last:]}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, in the singular or the plural.

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
