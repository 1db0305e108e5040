"""How a sentence names an argument: in backticks, as Python writes it, such as `holdout` or `on_bad_sample='set-aside'`.

Who calls from Python reads this as it stands. A command line, whose users type options, translates it: `worded_by` says how.
"""

import contextlib
from collections.abc import Callable, Iterator


class _Translation:
    """How this process words arguments; None: as Python writes them."""

    translate: Callable[[str], str] | None = None


def worded(sentence: str) -> str:
    """A sentence with its arguments in the words of whoever runs this process; for what is printed rather than raised.

    >>> worded("`pictures` draws it.")
    '`pictures` draws it.'
    >>> with worded_by(lambda sentence: sentence.replace("`pictures`", "--pictures")):
    ...     worded("`pictures` draws it.")
    '--pictures draws it.'
    """
    return sentence if _Translation.translate is None else _Translation.translate(sentence)


@contextlib.contextmanager
def worded_by(translate: Callable[[str], str]) -> Iterator[None]:
    """Translate in the block what `worded` is given."""
    outer = _Translation.translate
    _Translation.translate = translate
    try:
        yield
    finally:
        _Translation.translate = outer
