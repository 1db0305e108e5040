"""Tag by a function of the user: a Python function that returns the skill of a sample."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from skillshard import storage
from skillshard.corpus import Sample
from skillshard.errors import TagsError, did_you_mean, first_line
from skillshard.taggers.tagger import Tag, Tagger, Untagged


@dataclass(frozen=True)
class Function:
    """The tagger that `function` makes."""

    target: str
    source_digest: str | None

    @property
    def name(self) -> str:
        return "function"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"function": self.target, "source": self.source_digest}

    def tag(self, samples: Sequence[Sample]) -> list[Tag | Untagged]:
        call = _imported(self.target)
        return [self._outcome(call, sample) for sample in samples]

    def _outcome(self, call: Callable[[Sample], Any], sample: Sample) -> Tag | Untagged:
        try:
            value = call(sample)
        except Exception as error:  # the function is the user's, and may raise anything
            raise TagsError(
                f"{self.target} failed for the sample {sample.id!r}: {type(error).__name__}: {first_line(error)}. Mend the function, and run "
                "the command again."
            ) from error
        match value:
            case None:
                return Untagged("no-label", f"{self.target} returned None for the sample {sample.id!r}")
            case str() if value.strip():
                return Tag(value)
            case (str() as skill, (int() | float()) as score) if skill.strip():
                return Tag(skill, float(score))
        raise TagsError(
            f"{self.target} returned {value!r} for the sample {sample.id!r}: return the name of the skill, a pair of name and score, or None "
            "for a sample without a skill."
        )


def function(target: str) -> Tagger:
    """Tag by a Python function.

    The function takes a `skillshard.corpus.Sample` (`id`, `text`, `meta`) and returns the name of the skill, a pair of name and score, or
    None for a sample without a skill. Equal samples must give equal results, in every process.

    Args:
        target: Name of the function, "module:name". Python imports the module from the current directory or from the installed packages.

    Returns:
        A tagger. The tags record the digest of the module's file, so that a changed function is noticed.

    Raises:
        TagsError: The module cannot be imported, or has no such function.

    Example:
        >>> function("builtins:len")  # a function, but no name of a skill
        Function(target='builtins:len', source_digest=None)
    """
    call = _imported(target)
    try:
        place = inspect.getsourcefile(inspect.unwrap(call))
    except TypeError:  # a function of C
        place = None
    return Function(target, None if place is None else storage.file_digest(place))


@lru_cache(maxsize=8)
def _imported(target: str) -> Callable[[Sample], Any]:
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise TagsError(
            f"{target!r} names no function: give MODULE:NAME, such as topics:skill_of for the file topics.py."
        )
    if os.getcwd() not in sys.path:  # a console script does not look into the current directory
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module runs any code at its import
        raise TagsError(
            f"the module {module_name!r} cannot be imported: {type(error).__name__}: {first_line(error)}. The module must be in the current "
            "directory or installed, on every node."
        ) from error
    call = getattr(module, name, None)
    if not callable(call):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise TagsError(f"the module {module_name!r} has no function {name!r}{did_you_mean(name, known)}.")
    skill_of: Callable[[Sample], Any] = call
    return skill_of
