"""Read a block of ordinary JSON lines as columns: the ids, the sizes of the texts and the values of one field. No sample is made.

The first lines show the shape of the objects: the keys, and the kinds of the values. The parser then reads the objects as instances of one
type, and checks every value, key and string on the way. A block with a line of another shape is left to quick_lines.py, and the shape is
extended by the lines of the block.

JSON lets a key stand twice, and the parser would keep the last value. So the block must have as many colons behind strings as the objects
have keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from skillshard.corpus.columns import META, MetaField, SampleColumns
from skillshard.corpus.quick_lines import parsed_objects, strings
from skillshard.repeated_keys import COLON, may_have_more_keys

_SCALARS = frozenset((str, int, float, bool, type(None)))
_Scalar = str | int | float | bool | None
_Name = str | int  # the parser takes no boolean as an integer
_NEWLINE, _BEGIN, _END, _RETURN = b"\n{}\r"
# The bits that a newline and a colon share. One pass finds both, with a few other characters that are sorted out later.
_SHARED_BITS = ~(_NEWLINE ^ COLON) & 0xFF
# Learning a block costs more than reading it. Lines of ever new shapes are left to the reading as samples.
_MAX_LEARNINGS = 6
_MAX_KEYS = 256  # a type with more fields takes long to make, and the keys are probably data
_MAX_DEPTH = 8  # deeper objects are probably data too


class LineColumns:
    """Reader of blocks of JSON lines as columns.

    Args:
        id_field, text_field: Two different keys.
        wanted: Field of the metadata.
    """

    def __init__(self, id_field: str, text_field: str, wanted: MetaField) -> None:
        self._names = (id_field, text_field, wanted)
        self._shape = _Shape()
        self._form: _Form | None = None
        self._num_learnings = self._num_read = self._num_failed = 0

    def read(self, data: bytes) -> SampleColumns | None:
        """Return the columns of whole lines, or None if a line has another shape or needs a closer look."""
        columns = None if self._form is None else self._form.read(data)
        if columns is None and self._num_learnings < _MAX_LEARNINGS:
            self._num_learnings += 1
            columns = self._learned(data)
        if columns is not None:
            self._num_read += 1
        elif self._form is not None:
            self._num_failed += 1
            if self._num_failed > _MAX_LEARNINGS + self._num_read:
                self._form = None  # a block that fails is parsed twice, so frequent failures cost more than they save
        return columns

    def _learned(self, data: bytes) -> SampleColumns | None:
        """Extend the shape by the lines of a block, and return the columns of the block."""
        records = parsed_objects(data)
        if records is None:
            return None
        if not all(map(self._shape.add, records)):
            self._num_learnings = _MAX_LEARNINGS  # the form that was learned before stays in use
            return None
        self._form = _form(self._shape, *self._names)
        return None if self._form is None else self._form.read(data)


# ------------------------------------------------------------------------------------------------------------- the shape


@dataclass
class _Shape:
    """Shape of the objects at one place.

    Attributes:
        num_objects: Number of objects.
        counts: Key -> number of the objects with the key.
        scalars, lists: Keys with scalars as values, and with lists of scalars.
        objects: Key -> shape of the objects that are values of the key.
    """

    num_objects: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    scalars: set[str] = field(default_factory=set)
    lists: set[str] = field(default_factory=set)
    objects: dict[str, "_Shape"] = field(default_factory=dict)

    def add(self, value: dict[str, Any], depth: int = 0) -> bool:
        """Add an object. The result is False if the shape has no room for the object."""
        self.num_objects += 1
        for key, item in value.items():
            self.counts[key] = self.counts.get(key, 0) + 1
            kind = type(item)
            if kind in _SCALARS:
                self.scalars.add(key)
            elif kind is dict:
                if depth == _MAX_DEPTH or not self.objects.setdefault(key, _Shape()).add(item, depth + 1):
                    return False
            elif _SCALARS.issuperset(map(type, item)):
                self.lists.add(key)
            else:
                return False
        return len(self.counts) <= _MAX_KEYS


@dataclass(frozen=True)
class _Type:
    """Type of the objects of a shape, for the parser.

    Attributes:
        type: Type whose instances are the objects.
        num_fixed: Number of keys that every object has, with the keys of the objects in the object that every object has.
        optional: Attributes for keys that an object may lack.
        inner: Attributes that may be objects with another number of keys, and the types of the objects.
    """

    type: type[msgspec.Struct]
    num_fixed: int
    optional: tuple[str, ...]
    inner: tuple[tuple[str, "_Type"], ...]

    def num_keys(self, objects: Sequence[Any]) -> int:
        """Count the keys of all objects."""
        num = self.num_fixed * len(objects)
        for attribute in self.optional:
            num += sum(getattr(value, attribute) is not msgspec.UNSET for value in objects)
        for attribute, kind in self.inner:
            values = [getattr(value, attribute) for value in objects]
            num += kind.num_keys([value for value in values if type(value) is kind.type])
        return num


def _type_of(shape: _Shape, named: dict[str, tuple[str, Any]]) -> _Type:
    """Return the type of the objects of a shape.

    Args:
        shape: Shape of the objects.
        named: Key -> attribute and type of a required key. A `_Type` stands for required objects. Other keys get attributes of their own.

    Raises:
        ValueError: The parser knows no keys with quotation marks, backslashes or control characters.
    """
    num_fixed = 0
    optional, inner = [], []
    members = []
    for number, (key, count) in enumerate(shape.counts.items()):
        attribute, kind = named.get(key, (f"_{number}", None))
        is_required = key in named or count == shape.num_objects
        inner_type = kind if isinstance(kind, _Type) else None
        if kind is None:
            inner_type = _type_of(shape.objects[key], {}) if key in shape.objects else None
            kind = _union(shape, key, inner_type)
        elif inner_type is not None:
            kind = inner_type.type
        if (
            inner_type is not None
            and is_required
            and kind is inner_type.type
            and not (inner_type.optional or inner_type.inner)
        ):
            num_fixed += inner_type.num_fixed
        elif inner_type is not None:
            inner.append((attribute, inner_type))
        if is_required:
            num_fixed += 1
            members.append((attribute, kind, msgspec.field(name=key)))
        else:
            optional.append(attribute)
            members.append((attribute, kind | msgspec.UnsetType, msgspec.field(name=key, default=msgspec.UNSET)))
    object_type = msgspec.defstruct("Object", members, forbid_unknown_fields=True, kw_only=True, gc=False)
    return _Type(object_type, num_fixed, tuple(optional), tuple(inner))


def _union(shape: _Shape, key: str, inner: _Type | None) -> Any:
    """Return the type of all values that a key may have."""
    kinds: list[Any] = [] if inner is None else [inner.type]
    if key in shape.lists:
        kinds.append(list[_Scalar])
    if key in shape.scalars:
        kinds.append(_Scalar)
    union = kinds[0]
    for kind in kinds[1:]:
        union = union | kind
    return union


# -------------------------------------------------------------------------------------------------------------- the rows


def _form(shape: _Shape, id_field: str, text_field: str, wanted: MetaField) -> "_Form | None":
    """Return the reader of rows of a shape, or None if the rows have no such columns."""
    others = shape.counts.keys() - {id_field, text_field}
    value = {wanted.key: ("value", _Name)}
    named: dict[str, tuple[str, Any]] = {id_field: ("id", _Name), text_field: ("text", str)}
    try:
        if wanted.key in others:
            keys, is_inner = others, False
            named |= value
        elif others == {META} and META in shape.objects and wanted.key in shape.objects[META].counts:
            keys, is_inner = set(shape.objects[META].counts), True
            named[META] = ("meta", _type_of(shape.objects[META], value))
        else:
            return None
        if not wanted.is_certain(keys) or not named.keys() <= shape.counts.keys():
            return None
        return _Form(_type_of(shape, named), is_inner=is_inner)
    except ValueError:
        return None


class _Form:
    """Reader of rows of one type, which has the attributes "id", "text", and "value" or "meta.value"."""

    def __init__(self, kind: _Type, *, is_inner: bool) -> None:
        self._kind, self._is_inner = kind, is_inner
        self._decoder = msgspec.json.Decoder(kind.type)

    def read(self, data: bytes) -> SampleColumns | None:
        try:
            rows: list[Any] = self._decoder.decode_lines(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        characters = np.frombuffer(data, np.uint8)
        places = np.flatnonzero((characters & _SHARED_BITS) == (_NEWLINE & COLON))
        marks = characters[places]
        if not _are_lines(data, places[marks == _NEWLINE], len(rows)):
            return None
        if may_have_more_keys(data, places[marks == COLON], self._kind.num_keys(rows)):
            return None
        ids = strings([row.id for row in rows])
        values = strings([row.meta.value for row in rows] if self._is_inner else [row.value for row in rows])
        texts = [row.text for row in rows]
        if ids is None or values is None or not all(texts) or any(map(str.isspace, (*texts, *values))):
            return None
        is_ascii = all(map(str.isascii, texts))
        return SampleColumns(ids, list(map(len, texts if is_ascii else map(str.encode, texts))), values)


def _are_lines(data: bytes, newlines: np.ndarray, num_values: int) -> bool:
    """Return whether each line has exactly one object.

    Args:
        data: JSON values one after the other.
        newlines: Places of the newlines.
        num_values: Number of values.
    """
    # Within a value, a comma stands between two objects. So a newline between "}" and "{" stands between two values, and each line has a value.
    inner = newlines[:-1] if data.endswith(b"\n") else newlines
    if len(inner) + 1 != num_values:
        return False
    characters = np.frombuffer(data, np.uint8)
    before = characters[newlines - 1]
    if not (before == _END).all():
        before = np.where(before == _RETURN, characters[newlines - 2], before)
    return bool((before == _END).all() and (characters[inner + 1] == _BEGIN).all())
