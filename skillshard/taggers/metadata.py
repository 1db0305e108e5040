"""Tag by metadata: the skill is the value of a field, or the joined values of several fields."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from skillshard.corpus import MISSING, MetaField, Sample, category_of, lookup
from skillshard.corpus.paths import unknown
from skillshard.corpus.sample import json_type
from skillshard.errors import TagsError
from skillshard.taggers.tagger import Tag, Tagger, Untagged

JOIN = "/"


@dataclass(frozen=True)
class Metadata:
    """The tagger that `metadata` makes."""

    fields: tuple[str, ...]

    is_rowwise: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "metadata"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"fields": list(self.fields)}

    @property
    def wanted(self) -> MetaField | None:
        """The field, if the tagger has a single field that is a key of the metadata."""
        return MetaField.of(self.fields[0]) if len(self.fields) == 1 else None

    def tag(self, samples: Sequence[Sample]) -> list[Tag | Untagged]:
        field = self.wanted
        if field is None:
            return [self._tag_one(sample) for sample in samples]
        # The usual case is a string under a key of the metadata. A lookup by a path costs as much as the parsing of a short row.
        tag_of: dict[str, Tag] = {}
        outcomes: list[Tag | Untagged] = []
        for sample in samples:
            meta = sample.meta
            value = meta.get(field.key)
            if type(value) is not str or not value or value.isspace() or not field.is_certain(meta):
                outcomes.append(self._tag_one(sample))
            else:
                tag = tag_of.get(value)
                if tag is None:
                    tag = tag_of[value] = Tag(value)
                outcomes.append(tag)
        return outcomes

    def _tag_one(self, sample: Sample) -> Tag | Untagged:
        values = []
        for field in self.fields:
            value = lookup(sample, field)
            if value is MISSING:
                return Untagged("missing-field", f"field {field!r} is missing{unknown(field, sample.meta)}", field)
            if value is None:
                return Untagged("missing-field", f"field {field!r} is null", field)
            if isinstance(value, str) and not value.strip():
                kind = "holds white space alone" if value else "is empty"
                return Untagged("missing-field", f"field {field!r} {kind}", field)
            if not isinstance(value, (str, int)):
                return Untagged(
                    "wrong-type",
                    f"field {field!r} is {json_type(value)}, and a skill is a string or an integer. Name an element by its number, such as "
                    f"{field}.0"
                    if isinstance(value, list)
                    else f"field {field!r} is {json_type(value)}, and a skill is a string or an integer",
                    field,
                )
            values.append(category_of(value))
        return Tag(JOIN.join(values))


def metadata(*fields: str) -> Tagger:
    """Tag by metadata.

    Args:
        fields: Dotted paths, such as "meta.category", "meta.kinds.0" or "file.folder" (`skillshard.corpus.paths`). The values of several
            fields are joined by "/". Integers and booleans become their JSON text, so 3 and "3" are the same skill.

    Raises:
        TagsError: No field is given, or a field is not a string.

    Example:
        >>> metadata("meta.source", "lang").tag([Sample("1", "text", {"source": "law", "lang": "en"})])
        [Tag(skill='law/en', score=1.0)]
    """
    if not fields:
        raise TagsError("tagging by metadata needs a field, such as `fields='meta.category'`.")
    # A list in place of several arguments is an easy mistake, and the error of `lookup` would come only at the first sample.
    others = [field for field in fields if not isinstance(field, str)]
    if others:
        raise TagsError(
            f"a field is a dotted path, such as 'meta.category', got {others[0]!r}. Give several fields as metadata('a', 'b')."
        )
    return Metadata(fields)
