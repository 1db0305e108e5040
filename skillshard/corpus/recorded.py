"""What the manifests of tags and shards record about the reading of a corpus, checked before anything looks up a value."""

from collections.abc import Callable
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


def check_recorded(made_from: dict[str, Any]) -> dict[str, Any]:
    """Return the record if a reader can look up its values. An argument that is missing was not recorded by an earlier version.

    Args:
        made_from: Facts that determine the bytes of tags or shards.

    Raises:
        ValueError: A value is not what this project records.

    >>> check_recorded({"arguments": {"reading": ["text"]}})
    Traceback (most recent call last):
        ...
    ValueError: arguments.reading is no object: ['text']
    """
    arguments = made_from.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments is no object: {_shown(arguments)}")
    for name, kind, words in (
        ("members", list, "list"),
        ("reading", dict, "object"),
        ("layout", dict, "object"),
        ("packing", dict, "object"),
        ("limit", int, "number"),
        ("partition_bytes", int, "number"),
    ):
        value = arguments.get(name)
        if value is None and name in ("packing", "limit"):
            continue  # null stands for no rule and no limit
        if name in arguments and type(value) is not kind:
            raise ValueError(f"arguments.{name} is no {words}: {_shown(value)}")
        if value is not None and name in _PARSERS:
            try:
                _PARSERS[name](value)
            except (CorpusError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"arguments.{name} is {_shown(value)}, and no such record of this version") from error
    if not all(isinstance(name, str) for name in arguments.get("members", [])):
        raise ValueError("arguments.members is no list of names")
    if arguments.get("partition_bytes", 1) < 1 or (arguments.get("limit") or 1) < 1:
        raise ValueError("arguments.partition_bytes and arguments.limit must be positive")
    inputs = made_from.get("inputs", [])
    if type(inputs) is not list or not all(map(_is_input, inputs)):
        raise ValueError("inputs is no list of pairs of a name and a size")
    return made_from


def _is_input(value: Any) -> bool:
    return type(value) is list and list(map(type, value)) == [str, int]


def _shown(value: Any) -> str:
    return str(value)[:60]
