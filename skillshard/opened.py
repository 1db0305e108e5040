"""Check arguments that must be opened artefacts. A path in place of an artefact is a common mistake, and would end in an error from inside."""

from skillshard.errors import SkillshardError


def refuse_unopened(value: object, expected: type, name: str, what: str, error: type[SkillshardError]) -> None:
    """Raise an error unless an argument is an opened artefact.

    Args:
        value: Argument.
        expected: Class of the artefact, with a method `open`.
        name: Name of the argument.
        what: Kind of the artefact in words, such as "shard set".
        error: Class of the error.
    """
    if not isinstance(value, expected):
        raise error(f"{name} is {value!r}: give an opened {what}, such as {expected.__name__}.open('{name}').")
