import gc

import pytest


@pytest.fixture(autouse=True)
def loaders_of_earlier_tests_are_gone() -> None:
    """A worker forked now must not inherit them: torch's complain when they are collected there, and pytest's report of that
    can begin in the midst of another parse, which CPython 3.11 up to 3.11.7 answers with a SystemError (gh-106905)."""
    gc.collect()
