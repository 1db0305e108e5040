"""Read YAML that people write by hand: a fault is a sentence with its line, and a key that stands twice is a fault."""

import os
from typing import Any

import yaml

from skillshard.errors import SkillshardError


class _Loader(yaml.SafeLoader):
    """YAML's plain types. YAML itself keeps the last value of a key that stands twice, and loses the others."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def from_yaml(data: bytes, place: str | os.PathLike[str], *, error: type[SkillshardError]) -> Any:
    """Read the value of a YAML document.

    Args:
        data: Bytes of the document.
        place: Place of the document, for messages.
        error: Class of the error that is raised if the bytes are no YAML.

    >>> from_yaml(b"shard: {holdout: 0.05}", "pipeline.yaml", error=SkillshardError)
    {'shard': {'holdout': 0.05}}
    >>> from_yaml(b"out: a\\nout: b", "pipeline.yaml", error=SkillshardError)
    Traceback (most recent call last):
    skillshard.errors.SkillshardError: pipeline.yaml line 2: the key 'out' stands twice.
    """
    try:
        return yaml.load(data, _Loader)
    except yaml.MarkedYAMLError as fault:
        line = f" line {fault.problem_mark.line + 1}" if fault.problem_mark is not None else ""
        raise error(f"{os.fspath(place)}{line}: {fault.problem or 'not valid YAML'}.") from fault
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise error(f"{os.fspath(place)}: not valid YAML ({str(fault).splitlines()[0]}).") from fault
