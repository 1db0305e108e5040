"""The checks of types and shapes in the suite find wrong types and shapes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError

from skillshard import errors
from skillshard.canonical import digest
from skillshard.policies.policy import NextRound, softmax
from tests.checked_types import LOCAL_CHECKS, checked


def test_every_call_of_the_package_is_checked() -> None:
    with pytest.raises(TypeCheckError):
        softmax(np.zeros((2, 2)))
    with pytest.raises(BeartypeCallHintViolation):
        digest("a text")  # type: ignore[arg-type]
    with pytest.raises(BeartypeCallHintViolation):
        NextRound("1", 0, 10)  # type: ignore[call-arg, arg-type]
    assert errors.name_some(["add"]) == "add"


@checked(typechecker=beartype)
def added(first: Float[np.ndarray, " skill"], second: Float[np.ndarray, " skill"]) -> Float[np.ndarray, " skill"]:
    return (first + second)[:2]


def test_an_axis_has_one_size_in_all_arguments_and_in_the_result() -> None:
    assert added(np.ones(2), np.ones(2)).tolist() == [2, 2]
    with pytest.raises(TypeCheckError):
        added(np.ones(2), np.ones(1))
    with pytest.raises(TypeCheckError):
        added(np.ones(3), np.ones(3))


@checked(typechecker=beartype)
@dataclass
class Counts:
    samples: int

    @property
    @checked(typechecker=beartype)
    def named(self) -> str:
        return self.samples  # type: ignore[return-value]  # wrong on purpose

    @staticmethod
    @checked(typechecker=beartype)
    def of(text: str) -> Any:
        return Counts(text)  # type: ignore[arg-type]  # wrong on purpose


def test_dataclasses_properties_and_static_methods_are_checked() -> None:
    for call in (lambda: Counts("3"), lambda: Counts(3).named, lambda: Counts.of("3"), lambda: Counts.of(3)):  # type: ignore[arg-type]
        with pytest.raises(BeartypeCallHintViolation):
            call()


def test_a_function_within_a_function_is_checked_at_first() -> None:
    def checked_function() -> Any:
        @checked(typechecker=beartype)
        def doubled(number: int) -> int:
            return 2 * number

        return doubled

    for _ in range(LOCAL_CHECKS):
        with pytest.raises(BeartypeCallHintViolation):
            checked_function()("text")
    assert checked_function()("text") == "texttext"
