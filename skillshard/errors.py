"""Every error that a user can meet, and the two sentences that many of them share.

An error says what, where, expected against got, and what to do now. Each class also inherits the built-in that a
caller would expect, so that `except ValueError` goes on working.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Iterable

from skillshard.printable import printable, shortened


class SkillshardError(Exception):
    """Anything that skillshard refuses or cannot finish; the command line prints it as one sentence and exits 1.

    Names from outside that a message holds are shown escaped, on a terminal and in a traceback.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class StorageError(SkillshardError, OSError):
    """A file or directory cannot be read or written as asked."""

    def __str__(self) -> str:
        return printable(str(self.args[0])) if self.args else ""


class CorpusError(SkillshardError, ValueError):
    """A corpus, or a sample in it, is not what it should be."""


class TagsError(SkillshardError, ValueError):
    """Tags do not fit their corpus, or cannot be made as asked."""


class ShardError(SkillshardError, ValueError):
    """A shard, its index or its manifest is damaged, or cannot be made as asked."""


class TokensError(SkillshardError, ValueError):
    """Token counts do not fit their shards, or tokens cannot be counted or packed as asked."""


class GraphError(SkillshardError, ValueError):
    """A skills graph has the wrong shape, names or values."""


class PolicyError(SkillshardError, ValueError):
    """A policy cannot be built from these arguments, or does not fit the skills of the mix."""


class LengthError(PolicyError, TypeError):
    """A stream without a known length was asked for it, by `len()`, by a walk, or by a sampler that needs one.

    It is a `TypeError`, so that libraries that ask whether there is a length go on without one.
    """


class FitError(SkillshardError, ValueError):
    """Finished runs do not say enough for a fit, or are not what they should be."""


class ProxyError(SkillshardError, ValueError):
    """A proxy model cannot be built or trained as asked."""


class ObservationError(SkillshardError, ValueError):
    """Reported losses do not name the right skills, are not numbers, or contradict the ledger."""


class RoundError(SkillshardError, TimeoutError):
    """A round cannot be decided: the report that it needs did not come in time."""

    def __str__(self) -> str:
        return printable(str(self.args[0])) if self.args else ""


class LedgerError(SkillshardError, ValueError):
    """A ledger belongs to another run, or its records do not follow from one another."""


class ExtraError(SkillshardError, ImportError):
    """A feature needs an optional package that is not installed."""

    def __str__(self) -> str:
        return printable(str(self.args[0])) if self.args else ""


class ExecutionError(SkillshardError, RuntimeError):
    """A task failed again after it had been retried."""


class RepetitionWarning(UserWarning):
    """Skills are drawn so often that their data is worth much less."""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A suggestion in brackets with a leading space, or nothing.

    >>> did_you_mean("arithmatic", ("arithmetic", "code"))
    " (did you mean 'arithmetic'?)"
    >>> did_you_mean("zebra", ("arithmetic", "code"))
    ''
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def with_suggestions(names: Iterable[str], known: Collection[str], most: int = 8) -> list[str]:
    """Unknown names in quotes, the first `most` with a suggestion each: looking for one among many names takes time.

    >>> with_suggestions(["carri", "zebra"], ("add", "carry"))
    ["'carri' (did you mean 'carry'?)", "'zebra'"]
    """
    return [f"{name!r}{did_you_mean(str(name), known) if place < most else ''}" for place, name in enumerate(names)]


def name_some(names: Iterable[str], most: int = 8, *, are_paths: bool = False) -> str:
    """Names for a sentence, cut after `most`. Long names are shortened, but paths are not, since a reader copies them.

    >>> name_some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    listed = [printable(name) if are_paths else shortened(name, 80) for name in names]
    shown = ", ".join(listed[:most])
    return shown if len(listed) <= most else f"{shown} and {len(listed) - most:,} more"


def choose_names(
    names: Iterable[str], known: Collection[str], *, what: str, error: type[SkillshardError]
) -> frozenset[str]:
    """The chosen names, if each is known, stands in the choice once, and there is at least one.

    Args:
        names: the choice that somebody gave.
        known: names to choose from.
        what: the known names in words, such as "skills of shards/".
        error: raised where the choice does not fit.

    >>> sorted(choose_names(["b", "a"], ("a", "b", "c"), what="skills", error=GraphError))
    ['a', 'b']
    >>> choose_names(["carri"], ("add", "carry"), what="skills of the mix", error=GraphError)
    Traceback (most recent call last):
    skillshard.errors.GraphError: 'carri' (did you mean 'carry'?) is not among the 2 skills of the mix: 'add', 'carry'.
    """
    if isinstance(names, str):
        raise error(f"the chosen skills are the text {names!r}: give a list of names, such as [{names!r}].")
    choice = tuple(names)  # an iterator can be read once only
    if not choice:
        raise error(
            f"no name is chosen from the {len(known):,} {what}: give at least one of {name_some(map(repr, known))}."
        )
    twice = sorted(name for name, num in Counter(choice).items() if num > 1)
    if twice:
        raise error(f"{name_some(map(repr, twice))} is chosen twice or more: name each of the {what} once.")
    available = set(known)
    unknown = [name for name in choice if name not in available]
    if unknown:
        verb = "is" if len(unknown) == 1 else "are"
        raise error(
            f"{name_some(with_suggestions(unknown, known))} {verb} not among the {len(known):,} {what}: "
            f"{name_some(map(repr, known))}."
        )
    return frozenset(choice)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that says something, without its full stop, or the name of its type."""
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


_OURS = frozenset(("beartype", "builtins", "jaxtyping", "skillshard"))


def is_of_a_client(error: BaseException) -> bool:
    """Whether an exception is one of a library that talks to a store, whose names and makers change; mistakes here are built-in ones."""
    return type(error).__module__.partition(".")[0] not in _OURS
