"""Check types and array shapes at every call in the suite, without the cost of shapes where no array is.

pytest's option `--jaxtyping-packages` writes `jaxtyping.jaxtyped(typechecker=beartype)` in front of every function of the package. The
wrapper binds the arguments in Python and opens a memory of axis sizes, which only a function with arrays in its annotations
needs. The wrapper took more than half of the suite's time. Every other function gets beartype alone here.
"""

import inspect
import typing
from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import Any

import jaxtyping

LOCAL_CHECKS = 20
"""Number of checks of an inner function. Every call of the outer function would compile the check of the inner function again."""

with_shapes = jaxtyping.jaxtyped
locals_checked: Counter[CodeType] = Counter()


def install() -> None:
    """Replace the decorator that jaxtyping's import hook writes. Call this before the first import of the package."""
    jaxtyping.jaxtyped = checked


def checked(subject: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """Check the calls of a function, of a descriptor's functions or of a dataclass's `__init__`."""
    if subject is None:
        return lambda decorated: checked(decorated, typechecker=typechecker)
    if isinstance(subject, classmethod | staticmethod):
        return type(subject)(checked(subject.__func__, typechecker=typechecker))
    if isinstance(subject, property):
        functions = (subject.fget, subject.fset, subject.fdel)
        return property(*(function and checked(function, typechecker=typechecker) for function in functions))
    if inspect.isclass(subject):
        if "__dataclass_fields__" in vars(subject) and "__init__" in vars(subject):
            subject.__init__ = checked(subject.__init__, typechecker=typechecker)
        return subject
    if "<locals>" in subject.__qualname__:
        locals_checked[subject.__code__] += 1
        if locals_checked[subject.__code__] > LOCAL_CHECKS:
            return subject
    if any(map(holds_arrays, subject.__annotations__.values())):
        return with_shapes(subject, typechecker=typechecker)
    return typechecker(subject)


def holds_arrays(annotation: Any) -> bool:
    """Return whether an annotation may hold an array type of jaxtyping. A text that is resolved later may hold an array type."""
    if isinstance(annotation, str | typing.ForwardRef):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(holds_arrays, typing.get_args(annotation)))
