"""Fields of the metadata that a mixer delivers with its samples, cut out of the JSON members of the shards.

A member is `{"id": ..., "skill": ..., "meta": {...}}`. The decoder of msgspec skips every part of a member that no path can reach, and
builds no objects for the skipped parts. Parsing whole members with orjson costs about twice as much (docs/LOG.md).

`skillshard.corpus.paths` says what a path means, and finds the value in the parsed part. This module only decides which keys of the
metadata are parsed: every key that is a beginning of a path. A value comes as it is: a list of one element stays a list.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

import msgspec
import orjson

from skillshard.corpus.paths import MISSING, in_meta
from skillshard.errors import FieldError, did_you_mean, name_some

RESERVED = {"draw": "the position in the stream", "skill": "the skill of the sample", "text": "the text of the sample"}
"""Keys of every batch. A field of the metadata with one of these names is asked for under "meta."."""
_PREFIX = "meta."


@dataclass(frozen=True)
class Fields:
    """The fields that a mixer delivers.

    Attributes:
        paths: Dotted path of each field, such as "meta.prompt_chars", and "id" for the id of the sample. The path is also the name of the
            field in a batch.
        defaults: Path -> value for the samples without this field. Without a default, such a sample is an error.

    Example:
        >>> members = [b'{"id":"q1","meta":{"lang":"en"}}', b'{"id":"q2","meta":{"lang":"de","image":"2.png"}}']
        >>> Fields(("id", "meta.lang", "image"), {"image": None}).read(members)
        {'id': ['q1', 'q2'], 'meta.lang': ['en', 'de'], 'image': [None, '2.png']}
    """

    paths: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    # The decoder cannot be pickled. A worker builds a decoder of its own.
    def __reduce__(self) -> tuple[Any, ...]:
        return Fields, (self.paths, self.defaults)

    def __bool__(self) -> bool:
        return bool(self.paths)

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Key of the metadata -> attribute of the decoded metadata."""
        keys = (key for path in self.paths if path != "id" for key in first_keys(path))
        return {key: f"key_{number}" for number, key in enumerate(dict.fromkeys(keys))}

    @cached_property
    def _decoder(self) -> "msgspec.json.Decoder[Any]":
        attributes = [(attribute, Any, MISSING) for attribute in self._keys.values()]
        rename = {attribute: key for key, attribute in self._keys.items()}
        meta = msgspec.defstruct("Meta", attributes, rename=rename, gc=False)
        return msgspec.json.Decoder(msgspec.defstruct("Member", [("id", str), ("meta", meta)]))

    def read(self, members: Sequence[bytes | memoryview]) -> dict[str, list[Any]]:
        """Read the fields of samples.

        Args:
            members: JSON member of each sample.

        Returns:
            Path -> the value of each sample, a JSON value. A null is the value None.

        Raises:
            FieldError: A sample lacks a field without a default.
        """
        if not self.paths:
            return {}
        decoded = list(map(self._decoder.decode, members))
        columns = {path: self._column(path, decoded) for path in self.paths}
        for path, values in columns.items():
            if MISSING in values:
                if path not in self.defaults:
                    raise _no_field(path, members[values.index(MISSING)])
                columns[path] = [self.defaults[path] if value is MISSING else value for value in values]
        return columns

    def _column(self, path: str, decoded: Sequence[Any]) -> list[Any]:
        if path == "id":
            return [member.id for member in decoded]
        metas = [member.meta for member in decoded]
        first, _, rest = path.removeprefix(_PREFIX).partition(".")
        # Usually only the first step of the path is a key of the metadata, and reading an attribute is far faster than
        # `in_meta`.
        others = [attrgetter(self._keys[key]) for key in first_keys(path) if key != first]
        if any(list(map(get, metas)).count(MISSING) < len(metas) for get in others):
            return [in_meta(self._parsed(meta), path) for meta in metas]
        values = list(map(attrgetter(self._keys[first]), metas))
        if not rest:
            return values
        return [
            value[rest] if type(value) is dict and rest in value else in_meta(self._parsed(meta), path)
            for value, meta in zip(values, metas, strict=True)
        ]

    def _parsed(self, meta: Any) -> dict[str, Any]:
        """Return the parsed part of the metadata of a sample."""
        values = ((key, getattr(meta, attribute)) for key, attribute in self._keys.items())
        return {key: value for key, value in values if value is not MISSING}


ID = Fields(("id",))
"""The id of the sample alone."""


def metas_of(members: Sequence[bytes | memoryview]) -> list[dict[str, Any]]:
    """Parse the whole metadata of samples."""
    return [orjson.loads(member)["meta"] for member in members]


def rows_of(columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield the fields of each sample, from the result of `Fields.read`.

    >>> list(rows_of({"id": ["q1", "q2"], "lang": ["en", "de"]}))
    [{'id': 'q1', 'lang': 'en'}, {'id': 'q2', 'lang': 'de'}]
    """
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def first_keys(path: str) -> tuple[str, ...]:
    """Return the keys of the metadata at which a dotted path can begin.

    >>> first_keys("image"), first_keys("meta.image.path")
    (('image',), ('meta', 'meta.image', 'meta.image.path', 'image', 'image.path'))
    """
    return tuple(dict.fromkeys([*_beginnings(path), *_beginnings(path.removeprefix(_PREFIX))]))


def _beginnings(path: str) -> Iterator[str]:
    steps = path.split(".")
    return (".".join(steps[:end]) for end in range(1, len(steps) + 1))


def is_list_of_texts(value: Any) -> bool:
    """Return whether a value is a list, a tuple or another collection of texts. A text alone would be read as a list of its characters.

    >>> is_list_of_texts(("id",)), is_list_of_texts("id"), is_list_of_texts([5]), is_list_of_texts(None)
    (True, False, False, False)
    """
    return isinstance(value, Collection) and not isinstance(value, str) and all(isinstance(text, str) for text in value)


def check_fields(fields: Any, defaults: Any, *, members: Any = ()) -> Fields:
    """Check the arguments `fields` and `field_defaults` of a mixer.

    Args:
        fields: Dotted paths.
        defaults: Values for the samples without a field or a member.
        members: Members of the same mixer, which may have defaults too.

    Raises:
        FieldError: An argument is of another type, a path is no path, is given twice or is a key of every batch, or a default is of no given path.
    """
    if not is_list_of_texts(fields) or "" in fields:
        raise FieldError(f"fields is {fields!r}: give a tuple of dotted paths, such as ('id', 'meta.image').")
    if defaults is not None and not isinstance(defaults, Mapping):
        raise FieldError(f"field_defaults is {defaults!r}: give a mapping, path or suffix -> value.")
    paths = tuple(fields)
    for path in paths:
        if path in RESERVED:
            raise FieldError(
                f"fields has {path!r}, but the key {path!r} of a batch is {RESERVED[path]}: leave it out, or give 'meta.{path}' for a field "
                "of the metadata."
            )
        if paths.count(path) > 1:
            raise FieldError(f"fields has {path!r} twice: give each path once.")
    for path in defaults or {}:
        if path not in paths and path not in members:
            names = [*paths, *members]
            raise FieldError(
                f"field_defaults has {path!r}, which is not in fields{did_you_mean(path, names)}. fields are: {name_some(paths) or 'none'}."
            )
    return Fields(paths, {path: value for path, value in (defaults or {}).items() if path in paths})


def record_of(member: bytes | memoryview) -> dict[str, Any]:
    """Parse a JSON member: id, skill and meta."""
    record: dict[str, Any] = orjson.loads(member)
    return record


def _no_field(path: str, member: bytes | memoryview) -> FieldError:
    record = record_of(member)
    known = [f"{_PREFIX}{key}" for key in record["meta"]]
    return FieldError(
        f"sample {record['id']!r} of skill {record['skill']!r} has no field {path!r}{did_you_mean(path, known)}; its metadata has "
        f"{name_some(known) or 'no field'}. Name another field, or give a value for such samples: "
        f"Mixer(..., field_defaults={{{path!r}: None}})."
    )
