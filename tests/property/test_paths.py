"""Dotted paths: equal to a plain search over all ways to cut the path, and copies that leave the value unchanged."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.corpus import paths
from skillshard.corpus.paths import MISSING, at, follow, locate, of_file, only, single, unknown, without

KEYS = st.sampled_from(["a", "b", "a.b", "b.a", "0", "1", "a.0", ""])
VALUES = st.recursive(
    st.none() | st.integers(0, 3) | st.sampled_from(["x", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
PATHS = st.lists(st.sampled_from(["a", "b", "0", "1", ""]), min_size=1, max_size=4).map(".".join)


def ways(value: Any, steps: list[str]) -> Iterator[tuple[str | int, ...]]:
    """Yield every way along a path, in the order of the documented rules."""
    if not steps:
        yield ()
    elif isinstance(value, dict):
        for num in range(len(steps), 0, -1):
            key = ".".join(steps[:num])
            if key in value:
                yield from ((key, *rest) for rest in ways(value[key], steps[num:]))
    elif isinstance(value, list):
        if steps[0].isdigit() and int(steps[0]) < len(value):
            yield from ((int(steps[0]), *rest) for rest in ways(value[int(steps[0])], steps[1:]))
        if len(value) == 1:
            yield from ((0, *rest) for rest in ways(value[0], steps))


@given(st.dictionaries(KEYS, VALUES, max_size=4), PATHS)
def test_a_path_leads_where_a_search_over_all_cuts_of_the_path_leads(row: dict[str, Any], path: str) -> None:
    expected = next(ways(row, path.split(".")), None)
    assert locate(row, path) == expected
    value = follow(row, path)
    assert value is MISSING if expected is None else value == at(row, expected)


@given(st.dictionaries(KEYS, VALUES, max_size=4), PATHS)
def test_a_value_that_is_taken_out_leaves_the_row_unchanged_and_is_gone_from_the_copy(
    row: dict[str, Any], path: str
) -> None:
    steps = locate(row, path)
    if steps is None:
        return
    before = copy.deepcopy(row)
    rest = without(row, steps)
    assert row == before
    assert rest != row
    copied = only(row, [steps])
    assert row == before
    assert list(copied) == [steps[0]]
    names = steps[: next((place for place, step in enumerate(steps) if isinstance(step, int)), len(steps))]
    assert at(copied, names) == at(row, names)


@given(VALUES)
def test_an_array_of_one_element_is_its_element_at_every_depth(value: Any) -> None:
    result = single([[value]])
    assert result == single(value)
    assert not (isinstance(result, list) and len(result) == 1)


@given(st.dictionaries(st.sampled_from(["a", "b", "c.d", "e"]), VALUES, min_size=1, max_size=4))
def test_an_unknown_path_is_answered_with_paths_that_exist(row: dict[str, Any]) -> None:
    names = paths._paths(row, "", "nowhere")
    assert names
    assert all(follow(row, name) is not MISSING for name in names if all(name.split(".")))
    assert unknown("nowhere", row).endswith(f"the row has {paths.name_some(names, 12)}")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("file.name", "web/en/a.v1.jsonl.gz"),
        ("file.stem", "a.v1"),
        ("file.folder", "web/en"),
        ("file.parts.0", "web"),
        ("file.parts.2", "a.v1.jsonl.gz"),
        ("file.parts.3", MISSING),
        ("file", MISSING),
        ("file.size", MISSING),
    ],
)
def test_the_parts_of_a_files_name_have_paths(path: str, value: Any) -> None:
    assert of_file("web/en/a.v1.jsonl.gz", path) == value


def test_a_path_with_thousands_of_digits_is_a_key_and_no_index() -> None:
    assert follow({"a": [1, 2]}, f"a.{'1' * 5000}") is MISSING
