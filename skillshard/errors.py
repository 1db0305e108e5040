"""Every error that a user can meet, and the two sentences that many of them share.

An error says what, where, expected against got, and what to do now. Each class also inherits the built-in that a
caller would expect, so that `except ValueError` goes on working.
"""

import difflib
from collections.abc import Collection, Iterable


class SkillshardError(Exception):
    """Anything that skillshard refuses or cannot finish; the command line prints it as one sentence and exits 1."""


class StorageError(SkillshardError, OSError):
    """A file or directory cannot be read or written as asked."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


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


class FitError(SkillshardError, ValueError):
    """Finished runs do not say enough for a fit, or are not what they should be."""


class ProxyError(SkillshardError, ValueError):
    """A proxy model cannot be built or trained as asked."""


class ObservationError(SkillshardError, ValueError):
    """Reported losses do not name the right skills, are not numbers, or contradict the ledger."""


class RoundError(SkillshardError, TimeoutError):
    """A round cannot be decided: the report that it needs did not come in time."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class LedgerError(SkillshardError, ValueError):
    """A ledger belongs to another run, or its records do not follow from one another."""


class ExecutionError(SkillshardError, RuntimeError):
    """A unit of work failed again after it had been retried."""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A suggestion in brackets with a leading space, or nothing.

    >>> did_you_mean("arithmatic", ("arithmetic", "code"))
    " (did you mean 'arithmetic'?)"
    >>> did_you_mean("zebra", ("arithmetic", "code"))
    ''
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def name_some(names: Iterable[str], most: int = 8) -> str:
    """Names for a sentence, cut after `most`.

    >>> name_some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    listed = list(names)
    shown = ", ".join(listed[:most])
    return shown if len(listed) <= most else f"{shown} and {len(listed) - most:,} more"
