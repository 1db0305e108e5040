"""Dotted paths into JSON values, and the parts of a file's name under paths that begin with "file.".

A path is a list of steps between dots. A step is a key of an object, or an index of an array. All parts of skillshard that take the
path of a field use this module, so a path has one meaning.

- A key may contain dots. Where several keys fit, the longest key is tried first: the path "a.b.c" tries the key "a.b.c", then the key
  "a.b" with the rest "c", then the key "a" with the rest "b.c".
- A step of digits is an index of an array, from 0.
- An array of one element counts as the element itself. Data sets often wrap single values in arrays.
- A path that goes on at a string reads the string as JSON, if the string holds an object or an array. Tables often hold JSON in strings.
"""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import unquote

from skillshard.corpus.by_columns import table_by_columns
from skillshard.corpus.formats import delimiter_of, stem_of
from skillshard.corpus.json_values import opened
from skillshard.errors import did_you_mean, name_some

Step = str | int
"""Key of an object, or index of an array."""
# An array cannot have more elements, and Python refuses to parse thousands of digits.
_MAX_DIGITS = 12
_PREFIX = "meta."
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"  # Hive's folder name for a null
_FILE_PARTS = ("name", "stem", "folder", "parts")


class _Missing:
    """Type of `MISSING`, a false value distinct from a null in the data."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""Value of a field that a row does not have."""


def locate(value: Any, path: str) -> tuple[Step, ...] | None:
    """Return the steps from a JSON value to the value at a dotted path, or None if the path leads nowhere.

    The steps name every array on the way, also an array of one element that the path passes without an index. JSON in a string has no step
    of its own.

    >>> locate({"a.b": {"c": 1}}, "a.b.c"), locate({"a": [{"b": 2}]}, "a.b"), locate({"a": [3, 4]}, "a.1")
    (('a.b', 'c'), ('a', 0, 'b'), ('a', 1))
    >>> locate({"a": [3, 4]}, "a.b") is None, locate({"a": '{"b": 5}'}, "a.b")
    (True, ('a', 'b'))
    """
    value = opened(value)
    if type(value) is dict:
        if path in value:
            return (path,)
        end = path.rfind(".")
        while end >= 0:
            if path[:end] in value and (rest := locate(value[path[:end]], path[end + 1 :])) is not None:
                return (path[:end], *rest)
            end = path.rfind(".", 0, end) if end else -1
    elif type(value) is list:
        first, dot, rest_path = path.partition(".")
        if (index := _index(first)) is not None and index < len(value):
            rest = locate(value[index], rest_path) if dot else ()
            if rest is not None:
                return (index, *rest)
        if len(value) == 1 and (rest := locate(value[0], path)) is not None:
            return (0, *rest)
    return None


def _index(step: str) -> int | None:
    return int(step) if step.isascii() and step.isdigit() and len(step) <= _MAX_DIGITS else None


def at(value: Any, steps: Sequence[Step]) -> Any:
    """Return the value at the end of steps from `locate`.

    >>> at({"a": '{"b": 5}'}, ("a", "b"))
    5
    """
    for step in steps:
        value = opened(value)[step]
    return value


def follow(value: Any, path: str) -> Any:
    """Return the value at a dotted path, or `MISSING`.

    >>> follow({"task": {"Categories": ["QA"]}}, "task.Categories"), follow({"task": None}, "task.size")
    (['QA'], MISSING)
    """
    if type(value) is dict and path in value:  # the usual case, without steps
        return value[path]
    steps = locate(value, path)
    return MISSING if steps is None else at(value, steps)


def in_meta(meta: Any, path: str) -> Any:
    """Return the value at a path into the metadata of a sample, with or without "meta." before the path, or `MISSING`.

    >>> in_meta({"n": 1}, "meta.n"), in_meta({"meta": {"n": 2}, "n": 1}, "meta.n")
    (1, 2)
    """
    if not path.startswith(_PREFIX):
        return follow(meta, path)
    # Usually the metadata has no key "meta", and each row would pay for a search that leads nowhere.
    plain = path[len(_PREFIX) :]
    if plain in meta and "." not in plain and "meta" not in meta and path not in meta:
        return meta[plain]
    value = follow(meta, path)
    return follow(meta, plain) if value is MISSING else value


def single(value: Any) -> Any:
    """Return the element of an array of one element, at any depth, and every other value unchanged.

    >>> single(["QA"]), single([["QA"]]), single(["a", "b"]), single([])
    ('QA', 'QA', ['a', 'b'], [])
    """
    while type(value) is list and len(value) == 1:
        value = value[0]
    return value


def without(value: Any, steps: Sequence[Step]) -> Any:
    """Return a JSON value without the value at the end of steps. The containers on the way are copied, so `value` does not change.

    JSON in a string on the way becomes an object or an array.

    >>> row = {"data": {"text": "hi", "lang": "en"}}
    >>> without(row, ("data", "text")), row
    ({'data': {'lang': 'en'}}, {'data': {'text': 'hi', 'lang': 'en'}})
    """
    first, *rest = steps
    copy = opened(value).copy()
    if rest:
        copy[first] = without(value[first], rest)
    else:
        del copy[first]
    return copy


def replaced(value: Any, steps: Sequence[Step], new: Any) -> Any:
    """Return a JSON value with another value at the end of steps. The containers on the way are copied, as in `without`.

    >>> replaced({"a": [1, 2], "b": 3}, ("a", 0), 5)
    {'a': [5, 2], 'b': 3}
    """
    first, *rest = steps
    copy = opened(value).copy()
    copy[first] = replaced(copy[first], rest, new) if rest else new
    return copy


def only(value: dict[str, Any], paths: Sequence[tuple[Step, ...]]) -> dict[str, Any]:
    """Return the part of an object at the ends of steps, in the order of the object. An array on the way stays whole.

    >>> only({"a": '{"b": 1, "c": 2}', "d": [3, 4], "e": 5}, [("d", 0), ("a", "b")])
    {'a': {'b': 1}, 'd': [3, 4]}
    """
    rests: dict[Step, list[tuple[Step, ...]]] = {}
    for first, *rest in paths:
        rests.setdefault(first, []).append(tuple(rest))
    part: dict[str, Any] = {}
    for key, item in value.items():
        if key in rests:
            item = opened(item) if all(rests[key]) else item
            part[key] = only(item, rests[key]) if type(item) is dict and all(rests[key]) else item
    return part


def of_file(name: str, path: str) -> Any:
    """Return the part of a file's name at a path that begins with "file.", or `MISSING` for every other path.

    Args:
        name: Name of the file in the corpus, with "/" between folders. An empty name has no parts.
        path: "file.name" is the whole name, "file.stem" the last part without the suffix of the format, "file.folder" the part before
            the last "/", and "file.parts" the list of all parts.

    >>> [of_file("web/en/a.v1.jsonl.gz", path) for path in ("file.stem", "file.folder", "file.parts.0", "file.size")]
    ['a.v1', 'web/en', 'web', MISSING]
    """
    if not name or not path.startswith("file."):
        return MISSING
    folder, _, base = name.rpartition("/")
    parts = {"name": name, "stem": stem_of(base), "folder": folder, "parts": name.split("/")}
    return follow(parts, path.removeprefix("file."))


def is_of_file(path: str) -> bool:
    """Return whether a path names a part of the file's name.

    >>> is_of_file("file.stem"), is_of_file("file.parts.0"), is_of_file("file.size")
    (True, True, False)
    """
    first, _, rest = path.partition(".")
    return first == "file" and rest.partition(".")[0] in _FILE_PARTS


def hive_fields(name: str) -> dict[str, str | None]:
    """Return the fields in the names of folders such as `year=2024/`, which Hive, Spark and Arrow write.

    >>> hive_fields("lang=en/topic=a%2Fb/part-0.parquet"), hive_fields("a=b.jsonl")
    ({'lang': 'en', 'topic': 'a/b'}, {})
    """
    pairs = [part.split("=", 1) for part in name.split("/")[:-1] if "=" in part]
    return {unquote(key): None if value == _HIVE_NULL else unquote(value) for key, value in pairs if key}


def unknown(path: str, value: Any) -> str:
    """Return the words behind an unknown path in a sentence: the most similar path, and the paths that exist.

    >>> unknown("meta.categry", {"id": 1, "meta": {"category": "law"}})
    " (did you mean 'meta.category'?); the row has id, meta.category"
    """
    if (table := table_by_columns(value)) is not None:  # the names of the rows would fill a page
        return f"; the row holds {table}"
    names = list(value) if type(value) is dict else []
    if len(names) == 1 and (delimiter := delimiter_of(names[0])) is not None:
        return f"; the row has the single field {names[0]!r}, which looks like several names. Give `delimiter={delimiter!r}`"
    paths = _paths(value, "", path)
    return f"{did_you_mean(path, paths)}; the row has {name_some(paths, 12) or 'no other field'}"


def _paths(value: Any, before: str, wanted: str) -> list[str]:
    """List the paths of the fields of an object. The elements of a longer array have no names of their own, and are left out.

    JSON in a string is opened where the wanted path leads into the string.
    """
    value = single(opened(value) if before and wanted.startswith(before) else value)
    if type(value) is not dict:
        return [before.removesuffix(".")] if before else []
    return [path for key, item in value.items() for path in _paths(item, f"{before}{key}.", wanted)] or (
        [before.removesuffix(".")] if before else []
    )
