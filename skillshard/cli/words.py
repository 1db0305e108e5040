"""Translate the arguments that a sentence of the library names into options of the running verb.

The library names an argument in backticks, as Python writes the argument: `holdout`, or with a value
`on_bad_sample='set-aside'`. A Python user reads the sentence unchanged.
"""

import ast
import re
import shlex
from collections.abc import Iterable
from typing import Any, ClassVar

_ARGUMENT = r"""`([a-z]\w*)(?:=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^`]+))?`"""
"""An argument in backticks, alone or with a value. The value is a Python string, or text without a backtick."""

_OTHER_NAMES = {"model": "encoder", "kept_embeddings": "kept"}
"""Argument of the library -> parameter of a verb with another name."""
_EXPRESSIONS = {"`id_field=None`": "id_from_row", "`ordered=False`": "unordered", "`ShardSet.choose(names)`": "skills"}
"""Python expression in backticks -> parameter of a verb with the same effect."""
_NAMED = re.compile(f"{'|'.join(map(re.escape, _EXPRESSIONS))}|{_ARGUMENT}")


class Running:
    """The parameters of the running verb, by name, as click describes them."""

    parameters: ClassVar[dict[str, Any]] = {}
    is_job: ClassVar[bool] = False
    """Whether the program runs as a job of Ray, in a working directory that is a copy on some node."""

    @classmethod
    def begin(cls, parameters: Iterable[Any]) -> None:
        """Remember the parameters of a verb that begins to run."""
        cls.parameters = {parameter.name: parameter for parameter in parameters}


def in_options(sentence: str) -> str:
    """Replace each argument in backticks by the option of the running verb.

    Other words in backticks do not change.

    >>> import click
    >>> Running.begin([click.Option(["--on-bad-sample"]), click.Option(["--clamp/--keep-negative"], default=True)])
    >>> in_options("Give `on_bad_sample='set-aside'`, or `clamp=False`, or `another`.")
    'Give --on-bad-sample set-aside, or --keep-negative, or `another`.'
    >>> Running.begin([click.Option(["--restart"], multiple=True)])
    >>> in_options("Give `restart=['add', 'two words']`."), in_options("Give `restart=[]`.")
    ("Give --restart add --restart 'two words'.", 'Give --restart none.')
    >>> Running.begin([])
    """
    return _NAMED.sub(_in_options, sentence)


def _in_options(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    if match[0] in _EXPRESSIONS:
        option = Running.parameters.get(_EXPRESSIONS[match[0]])
        return match[0] if option is None else _word(option)
    parameter = Running.parameters.get(name) or Running.parameters.get(_OTHER_NAMES.get(name, ""))
    if parameter is None:
        return match[0]
    if value == "False" and parameter.secondary_opts:
        return str(parameter.secondary_opts[0])
    word = _word(parameter)
    if value is None or getattr(parameter, "is_flag", False):
        return word
    if value.startswith("[") and value != "[]" and getattr(parameter, "multiple", False):
        return " ".join(f"{word} {_shell(repr(item))}" for item in ast.literal_eval(value))
    return f"{word} {_shell(value)}"


def _word(parameter: Any) -> str:
    """Return an option as a user types the option, or the word of an argument in the help."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper()).removesuffix("...")
    return str(parameter.opts[0])


def _shell(value: str) -> str:
    """Return a value as a user types the value. A string is quoted for the shell, and an empty list is the word none.

    >>> _shell("'= '"), _shell("'set-aside'"), _shell("0.5"), _shell("[]")
    ("'= '", 'set-aside', '0.5', 'none')
    """
    if value == "[]":
        return "none"
    if value[0] not in "'\"":
        return value
    text = ast.literal_eval(value)
    return shlex.quote(text) if any(map(str.isalnum, text)) else f"'{text}'" if "'" not in text else shlex.quote(text)
