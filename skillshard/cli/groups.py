"""Groups of options: a verb takes a dataclass, and Typer sees an option for each field of the dataclass."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of each argument that is a group, a dataclass with an option for each field.

    Typer reads the options of a verb from its signature. The signature of the result has the fields in place of the group, and a call
    makes the group from the fields.

    >>> from skillshard.cli.options import Cache
    >>> def shout(words: str, cache: Cache) -> None:
    ...     print(words.upper(), cache)
    >>> list(inspect.signature(grouped(shout)).parameters)
    ['words', 'cache', 'cache_bytes']
    >>> grouped(shout)(words="mix", cache=None, cache_bytes="8GB")
    MIX Cache(cache=None, cache_bytes='8GB')
    """
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for parameter in inspect.signature(verb).parameters.values():
        if parameter.name in groups:
            parameters += _options_of(groups[parameter.name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY))

    @functools.wraps(verb)
    def with_groups(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        verb(**values)

    del with_groups.__wrapped__  # readers of the signature must not look behind this function
    with_groups.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_groups.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_groups


def _options_of(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
