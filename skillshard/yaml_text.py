"""Read YAML that people write by hand: every fault is a sentence with its line, and a key that stands twice is a fault."""

import os
from collections.abc import Sequence
from typing import Any

import yaml

from skillshard import places
from skillshard.errors import SkillshardError
from skillshard.printable import printable

_STRING = "tag:yaml.org,2002:str"


class YamlText:
    """A YAML document with the lines of its keys and values.

    Args:
        data: Bytes of the document.
        place: Place of the document, for messages.
        error: Class of the error that is raised if the bytes are no YAML.

    Attributes:
        place: Place of the document, without secrets and control characters.
        value: Value of the document. None for an empty document.

    >>> text = YamlText(b"corpus: a\\nshard:\\n  holdout: 0.05\\n", "pipeline.yaml", error=SkillshardError)
    >>> text.value, text.line(["shard", "holdout"])
    ({'corpus': 'a', 'shard': {'holdout': 0.05}}, 3)
    """

    def __init__(self, data: bytes, place: str | os.PathLike[str], *, error: type[SkillshardError]) -> None:
        self.place = printable(places.public(place))
        self._error = error
        try:
            text = data.decode()
        except UnicodeDecodeError as fault:
            line = data.count(b"\n", 0, fault.start) + 1
            raise error(f"{self.place} line {line}: not valid UTF-8. Save the file as UTF-8.") from fault
        loader = yaml.SafeLoader(text)
        try:
            self._node = loader.get_single_node()
            self._check_keys(self._node)
            self.value: Any = None if self._node is None else loader.construct_document(self._node)
        except yaml.YAMLError as fault:
            raise self._syntax(fault) from fault
        except RecursionError as fault:
            raise error(f"{self.place} is nested too deeply. Write a few levels of keys and values.") from fault
        finally:
            loader.dispose()

    def _syntax(self, fault: yaml.YAMLError) -> SkillshardError:
        mark = getattr(fault, "problem_mark", None)
        where = "" if mark is None else f" line {mark.line + 1}"
        column = "" if mark is None else f"column {mark.column + 1}: "
        problem = getattr(fault, "problem", None) or getattr(fault, "reason", None) or "unreadable"
        return self._error(
            f"{self.place}{where}: not valid YAML ({column}{problem}). Correct the line. A value with special characters needs quotes."
        )

    def _check_keys(self, node: Any) -> None:
        """Refuse keys that are no strings, and keys that stand twice, of which YAML keeps the last one without a word."""
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._check_keys(item)
        if not isinstance(node, yaml.MappingNode):
            return
        seen: set[str] = set()
        for key, value in node.value:
            where = f"{self.place} line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode) or key.tag != _STRING:
                shown = key.value if isinstance(key, yaml.ScalarNode) else "that is a list or an object"
                raise self._error(f"{where}: the key {shown} is no string. Write the key in quotes.")
            if key.value in seen:
                raise self._error(f"{where}: the key {key.value!r} stands twice. Keep one of the two.")
            seen.add(key.value)
            self._check_keys(value)

    def line(self, steps: Sequence[Any]) -> int:
        """Return the 1-based line of the last of some keys and indices that exists in the document."""
        node = self._node
        line = 0 if node is None else node.start_mark.line
        for step in steps:
            if isinstance(node, yaml.MappingNode):
                pair = next(((key, value) for key, value in node.value if key.value == step), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line, pair[1]
            elif isinstance(node, yaml.SequenceNode) and type(step) is int and step < len(node.value):
                node = node.value[step]
                line = node.start_mark.line
        return int(line) + 1


def from_yaml(data: bytes, place: str | os.PathLike[str], *, error: type[SkillshardError]) -> Any:
    """Return the value of a YAML document. The arguments are as in `YamlText`.

    >>> from_yaml(b"shard: {holdout: 0.05}", "pipeline.yaml", error=SkillshardError)
    {'shard': {'holdout': 0.05}}
    >>> from_yaml(b"out: a\\nout: b", "pipeline.yaml", error=SkillshardError)
    Traceback (most recent call last):
    skillshard.errors.SkillshardError: pipeline.yaml line 2: the key 'out' stands twice. Keep one of the two.
    """
    return YamlText(data, place, error=error).value
