"""Cut a text into words, in any script.

A word has letters, digits and combining marks. The marks matter, because Python's `\\w` has none, and a word of Hindi or Tamil would be cut
at each vowel sign. Scripts without spaces between words give pairs of neighbouring characters in place of words.
"""

import re
import unicodedata
from functools import lru_cache
from itertools import pairwise

# Thai, Lao, Myanmar, Khmer, Japanese and Han put no spaces between words. Korean has spaces, but its words carry particles, so that pairs of
# syllables match more often than words. The ranges are those of the Unicode blocks.
_WITHOUT_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
_ASCII_WORD = re.compile(r"[a-z0-9]{2,}")
MIN_CHARS = 2
"""Smallest number of characters of a word. A single letter is mostly a variable, or a part of an abbreviation."""


def words_in(text: str) -> list[str]:
    """Return the words of a text in their order, in lower case.

    A run of a script without spaces gives each pair of neighbouring characters. A run of one character gives the character.

    >>> words_in("The grinder's espresso_beans, 12 g")
    ['the', 'grinder', 'espresso', 'beans', '12']
    >>> words_in("我喜欢咖啡 latte")
    ['我喜', '喜欢', '欢咖', '咖啡', 'latte']
    """
    lowered = text.lower()
    if lowered.isascii():
        return _ASCII_WORD.findall(lowered)
    words: list[str] = []
    for run, word in _pattern().findall(unicodedata.normalize("NFC", lowered)):
        if run:
            words += [first + second for first, second in pairwise(run)] if len(run) > 1 else [run]
        elif len(word) >= MIN_CHARS:
            words.append(word)
    return words


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    """Compile the pattern of a run without spaces, or of a word. The list of marks takes a moment, and most corpora do not need it."""
    # `re` searches a class of the basic plane by a table. With a mark beyond the plane, the search is ten times as slow.
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
    letter = rf"[^\W_{_WITHOUT_SPACES}]"
    return re.compile(rf"([{_WITHOUT_SPACES}]+)|({letter}+(?:[{marks}]+{letter}*)*)")
