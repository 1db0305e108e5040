"""Check the records of tags and shards about the reading of a corpus, before anything looks up a value."""

from collections.abc import Callable, Sequence
from typing import Any

from skillshard.corpus.formats import FileLayout
from skillshard.corpus.mapping import CorpusReading
from skillshard.corpus.partitions import Packing
from skillshard.errors import CorpusError


def _packing(value: dict[str, Any]) -> Packing:
    if not all(type(number) is int and number > 0 for number in value.values()):
        raise ValueError("a number of a packing is not positive")
    return Packing(**value)


_PARSERS: dict[str, Callable[[Any], object]] = {
    "reading": CorpusReading.from_json,
    "layout": FileLayout.from_json,
    "packing": _packing,
}
_OF_TAGS = ("reading", "layout", "packing")
# The argument "layout" of shards is the layout of the tars, and not of the corpus.
_OF_SHARDS = ("reading",)


def check_tags(made_from: dict[str, Any]) -> dict[str, Any]:
    """Return the record of tags if a reader can look up its values. An argument that is missing was not recorded by an earlier version.

    Args:
        made_from: Facts that determine the bytes of tags.

    Raises:
        ValueError: A value is missing, or is not what this project records.
    """
    for name in ("arguments", "inputs"):
        if name not in made_from:
            raise ValueError(f"{name} is missing")
    arguments = _checked(made_from, _OF_TAGS)
    for name in ("reading", "partition_bytes"):
        if name not in arguments:
            raise ValueError(f"arguments.{name} is missing")
    for name in ("partition_bytes", "limit"):
        value = arguments.get(name)
        if (value is not None or name == "partition_bytes") and (type(value) is not int or value < 1):
            raise ValueError(f"arguments.{name} is no positive number: {_shown(value)}")
    return made_from


def check_shards(made_from: dict[str, Any]) -> dict[str, Any]:
    """Return the record of shards if a reader can look up its values. An argument that is missing was not recorded by an earlier version.

    Args:
        made_from: Facts that determine the bytes of shards.

    Raises:
        ValueError: A value is not what this project records.

    >>> check_shards({"arguments": {"reading": ["text"]}})
    Traceback (most recent call last):
        ...
    ValueError: arguments.reading is no object: ['text']
    """
    members = _checked(made_from, _OF_SHARDS).get("members", [])
    if type(members) is not list:
        raise ValueError(f"arguments.members is no list: {_shown(members)}")
    if not all(isinstance(name, str) for name in members):
        raise ValueError("arguments.members is no list of names")
    return made_from


def _checked(made_from: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a record, after a check of its inputs and of the named arguments."""
    arguments = made_from.get("arguments", {})
    if type(arguments) is not dict:
        raise ValueError(f"arguments is no object: {_shown(arguments)}")
    for name in names:
        value = arguments.get(name)
        if name not in arguments or (value is None and name == "packing"):  # null stands for no rule
            continue
        if type(value) is not dict:
            raise ValueError(f"arguments.{name} is no object: {_shown(value)}")
        try:
            _PARSERS[name](value)
        except (CorpusError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"arguments.{name} is {_shown(value)}, and no such record of this version") from error
    inputs = made_from.get("inputs", [])
    if type(inputs) is not list or not all(map(_is_input, inputs)):
        raise ValueError("inputs is no list of pairs of a name and a size")
    return arguments


def _is_input(value: Any) -> bool:
    return type(value) is list and list(map(type, value)) == [str, int]


def _shown(value: Any) -> str:
    return str(value)[:60]
