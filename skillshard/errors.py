"""The classes of all errors for users, and functions for the common parts of messages.

A message names the fault and the place, the expected and the actual value, and the remedy. Each class also inherits the built-in class
that a caller would expect: `except ValueError` works.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from skillshard.printable import printable, shortened

WITH_TRACEBACK = "\nOriginal Traceback (most recent call last):\n"
"""Line that PyTorch puts into the message of an error of a DataLoader worker, before the traceback in the worker."""


def _shown(message: str) -> str:
    """Escape the control characters of a message. The lines of a traceback from a DataLoader worker stay lines."""
    if WITH_TRACEBACK in message:
        return "\n".join(map(printable, message.split("\n")))
    return printable(message)


class SkillshardError(Exception):
    """The base class of all errors of skillshard. The command line prints the message and exits with status 1.

    Control characters in a message are shown escaped, because a message can hold names from outside.
    """

    def __str__(self) -> str:
        return _shown(super().__str__())


class StorageError(SkillshardError, OSError):
    """A file or directory cannot be read or written."""

    # OSError has a __str__ of its own. The same holds for the other classes here that define __str__.
    def __str__(self) -> str:
        return _shown(str(self.args[0])) if self.args else ""


class CorpusError(SkillshardError, ValueError):
    """A corpus, or a sample of a corpus, is not valid."""


class TagsError(SkillshardError, ValueError):
    """Tags do not fit their corpus, or cannot be made with the given arguments."""


class ShardError(SkillshardError, ValueError):
    """A shard, an index or a manifest is damaged, or cannot be made with the given arguments."""


class TokensError(SkillshardError, ValueError):
    """Token counts do not fit their shards, or tokens cannot be counted or packed with the given arguments."""


class GraphError(SkillshardError, ValueError):
    """A skills graph has the wrong shape, names or values."""


class PolicyError(SkillshardError, ValueError):
    """A policy cannot be built from these arguments, or does not fit the skills of the mix."""


class FieldError(SkillshardError, ValueError):
    """A sample lacks a field that a mixer delivers, or the names of the fields are not valid."""


class LengthError(PolicyError, TypeError):
    """A caller asked for the length of a stream of unknown length: by `len()`, by iteration, or by a sampler.

    The class is a `TypeError`, because libraries that test for a length then continue without a length.
    """


class FitError(SkillshardError, ValueError):
    """Finished runs are too few or too similar for a fit, or are not valid."""


class ComparisonError(SkillshardError, ValueError):
    """Policies or runs cannot be compared with the given arguments, or a comparison exceeds its budget."""


class ProxyError(SkillshardError, ValueError):
    """A proxy model cannot be built or trained with the given arguments."""


class ObservationError(SkillshardError, ValueError):
    """Reported losses do not name the right skills, are not numbers, or contradict the ledger."""


class RoundError(SkillshardError, TimeoutError):
    """A round cannot be decided, because a required report did not come in time."""

    def __str__(self) -> str:
        return _shown(str(self.args[0])) if self.args else ""


class LedgerError(SkillshardError, ValueError):
    """A ledger belongs to another run, or the records contradict each other."""


class ExtraError(SkillshardError, ImportError):
    """A feature needs an optional package that is not installed."""

    def __str__(self) -> str:
        return _shown(str(self.args[0])) if self.args else ""


class ExecutionError(SkillshardError, RuntimeError):
    """A task failed in every try."""


class MissingTasksError(ExecutionError):
    """A process of a job array needs missing records of an earlier stage. The command line exits with status 3.

    Attributes:
        keys: Keys of the tasks without a record.
    """

    def __init__(self, message: str, keys: Sequence[str]) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


class PipelineError(SkillshardError, ValueError):
    """A pipeline file has an unknown key, a value of a wrong kind, or a stage without its input."""


class RepetitionWarning(UserWarning):
    """A skill is drawn so often that repeated samples are worth much less than new samples."""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return a suggestion in brackets with a leading space, or an empty text if no known name is similar.

    >>> did_you_mean("arithmatic", ("arithmetic", "code"))
    " (did you mean 'arithmetic'?)"
    >>> did_you_mean("zebra", ("arithmetic", "code"))
    ''
    """
    # The default cutoff of 0.6 finds one or two wrong letters in a word, and rarely an unrelated word.
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def with_suggestions(names: Iterable[str], known: Collection[str], most: int = 8) -> list[str]:
    """Quote unknown names, and add a suggestion to the first `most` names. A search among many known names takes time.

    >>> with_suggestions(["carri", "zebra"], ("add", "carry"))
    ["'carri' (did you mean 'carry'?)", "'zebra'"]
    """
    return [f"{name!r}{did_you_mean(str(name), known) if place < most else ''}" for place, name in enumerate(names)]


def name_some(names: Iterable[str], most: int = 8, *, are_paths: bool = False) -> str:
    """List names for a sentence, and cut the list after `most` names. Long names are shortened. Paths are not, since a reader copies paths.

    >>> name_some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    listed = [printable(name) if are_paths else shortened(name, 80) for name in names]
    shown = ", ".join(listed[:most])
    return shown if len(listed) <= most else f"{shown} and {len(listed) - most:,} more"


def choose_names(
    names: Iterable[str], known: Collection[str], *, what: str, error: type[SkillshardError]
) -> frozenset[str]:
    """Check chosen names: at least one name, no name twice, and only known names.

    Args:
        names: Chosen names.
        known: Names to choose from.
        what: The known names in words, such as "skills of shards/".
        error: Class of the error that is raised if the choice is not valid.

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
    """Return the first line of an exception's text that is not empty, without its full stop. An empty text gives the name of the type."""
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


# Modules of exceptions that are mistakes of this code: TypeError and the like, and the checks of shapes in the test suite.
_OURS = frozenset(("beartype", "builtins", "jaxtyping", "skillshard"))


def is_of_a_client(error: BaseException) -> bool:
    """Tell an exception of a store's client library from a mistake in this code.

    The client libraries are many and change their exceptions, so a list of exception classes is not possible.
    """
    return type(error).__module__.partition(".")[0] not in _OURS
