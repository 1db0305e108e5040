"""Make text from outside (names, ids, file names, metadata) safe to show, and write numbers, sizes and times in words."""

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


def size_in_words(num_bytes: int) -> str:
    """Write a number of bytes with a decimal unit.

    >>> size_in_words(999), size_in_words(8_000_000)
    ('999 B', '8.0 MB')
    """
    value, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def time_in_words(seconds: float) -> str:
    """Write an estimated time with one unit.

    >>> time_in_words(12.3), time_in_words(125.0), time_in_words(7300.0)
    ('12 s', '2 min', '2.0 h')
    """
    if seconds < 60:
        return f"{max(1, round(seconds))} s"  # never "0 s", which would read as no work
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character in _BIDI or unicodedata.category(character) in _HIDDEN:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character
