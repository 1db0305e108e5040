"""Samples, rejected rows, and the checks that decide between the two.

The checks raise `BadRecord`, so a good row does not pay for the parts of a rejection. The rows of every format go through
`RowFields.sample` (mapping.py), so the same rules hold for all formats.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from skillshard.corpus.bad_record import BadRecord, Reason
from skillshard.corpus.by_columns import table_by_columns
from skillshard.corpus.formats import format_of
from skillshard.corpus.members import Members
from skillshard.corpus.paths import MISSING, in_meta, of_file, single, unknown

_SET_ASIDE = "set such samples aside with `on_bad_sample='set-aside'`"
# The argument that names the text has a place in the remedies: {text}.
_REMEDIES: dict[Reason, str] = {
    "missing-field": f"Mend the row, name another field with `fields`, `id_field` or `{{text}}`, or {_SET_ASIDE}.",
    "wrong-type": f"Mend the row, name another field with `fields`, `id_field` or `{{text}}`, or {_SET_ASIDE}.",
    "too-large": f"Split the sample, raise `max_sample_bytes`, or {_SET_ASIDE}.",
    "truncated": "Fetch or write the file again, or set the rest of it aside with `on_bad_sample='set-aside'`.",
    "unsupported": "Or set the rest of the file aside with `on_bad_sample='set-aside'`.",
    "unclear-members": f"Rename or repack the members, or {_SET_ASIDE}.",
    "duplicate-id": f"Give it another id, or {_SET_ASIDE}.",
    "no-label": f"Give the sample a skill, or {_SET_ASIDE}.",
    "not-the-named-format": "Rename or rewrite the file, or set it aside with `on_bad_sample='set-aside'`.",
}
_JSON_TYPES = {
    "NoneType": "null",
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
    "str": "a string",
    "list": "an array",
    "dict": "an object",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Text of a corpus with its id and metadata.

    Attributes:
        id: Id as in the corpus. An integer becomes its digits, and "00123" stays "00123".
        text: Text, valid as UTF-8, not empty and not only white space.
        meta: Plain JSON values of the row, without the id and the text. If "meta" is the only other field, its values.
        file: Name of the file in the corpus. Empty for a sample that was not read from a corpus.
        members: Suffix and bytes of each kept member, such as an image, by rising suffix. Empty unless the reading keeps members.
    """

    id: str
    text: str
    meta: dict[str, Any]
    file: str = field(default="", compare=False, repr=False)
    members: Members = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Row without a usable sample, or the unreadable rest of a file.

    Attributes:
        file: Name of the file in the corpus.
        line: 1-based line of a text file (of the decompressed text), or 1-based row of a table or tar. None stands for the whole
            file.
        reason: Stable category, for counting.
        detail: Description of the fault, as the middle of a sentence.
        id: Id of the sample, if known.
        raw: Text of the row, with invalid UTF-8 as `\\xff`. None without a single row to show.
        field: Path of the field with the fault. None if the fault is of the whole row.
    """

    file: str
    line: int | None
    reason: Reason
    detail: str
    id: str | None = None
    raw: str | None = None
    field: str | None = None

    def to_json(self) -> dict[str, str | int | None]:
        """Return plain values for a line of rejected/."""
        return asdict(self)

    def sentence(self, text_argument: str = "text_field") -> str:
        """Return the error for this row: the place, the fault and the remedy.

        Args:
            text_argument: Argument of the field mapping that names the text, such as "messages" for conversations.

        >>> print(Rejection(file="a.jsonl", line=17, reason="malformed-json", detail="not valid JSON").sentence())
        a.jsonl line 17: not valid JSON. Mend the line, or set such samples aside with `on_bad_sample='set-aside'`.
        """
        unit = unit_of(self.file)
        where = self.file if self.line is None else f"{self.file} {unit} {self.line}"
        remedy = _REMEDIES.get(self.reason, f"Mend the {unit}, or {_SET_ASIDE}.").replace("{text}", text_argument)
        return f"{where}: {self.detail}. {remedy}"


@dataclass(frozen=True)
class PassedOver:
    """Data of a partition that is left out without a rejection: kind -> number.

    Attributes:
        members: Members of a tar, records of a WET file and blank text files that are no samples.
        columns: Values of a table without a JSON form.
    """

    members: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)


def lookup(sample: Sample, path: str) -> Any:
    """Return the value at a dotted path, or `MISSING`. An array of one element counts as the element itself.

    "id" and "text" name the sample's own fields, and "file.name", "file.stem", "file.folder" and "file.parts" the file of the sample.
    Every other path is looked up in the metadata, with or without "meta." before the path. `skillshard.corpus.paths` has the rules.

    >>> sample = Sample("7", "1 + 1 = 2", {"task": {"name": "add"}, "a.b": 3, "id": "inner", "kinds": ["sum"]}, "web/a.jsonl")
    >>> [lookup(sample, path) for path in ("task.name", "meta.task.name", "a.b", "task.size", "kinds", "kinds.0")]
    ['add', 'add', 3, MISSING, 'sum', 'sum']
    >>> lookup(sample, "id"), lookup(sample, "meta.id"), lookup(sample, "file.folder")
    ('7', 'inner', 'web')
    """
    if path == "id":
        return sample.id
    if path == "text":
        return sample.text
    value = of_file(sample.file, path)
    return single(in_meta(sample.meta, path) if value is MISSING else value)


def category_of(value: str | int | float) -> str:
    """Return a metadata value as the name of a category: a string unchanged, any other value as JSON.

    >>> [category_of(value) for value in ("law", 3, True)]
    ['law', '3', 'true']
    """
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def id_of(value: Any, path: str, row: Any) -> str:
    """Return the id of a row.

    Args:
        value: Value of the id's field.
        path: Path of the field.
        row: Row, for the names of its fields.

    Raises:
        BadRecord: The value is no id.
    """
    value = single(value)
    if type(value) is str and value:
        return value
    if type(value) is int:
        return str(value)
    if value is MISSING:
        raise BadRecord(
            "missing-field",
            f"no field {path!r} for the id{unknown(path, row)}. Where rows have no ids, `id_field=None` makes ids of the file and the row",
            field=path,
        )
    if value == "":
        raise BadRecord("missing-field", f"the id in {path!r} is empty", field=path)
    raise BadRecord(
        "wrong-type",
        f"the id in {path!r} must be a string or an integer, got {json_type(value)}{_of_table(path, value, row)}",
        field=path,
    )


def text_of(value: Any, path: str, sample_id: str, row: Any) -> str:
    """Return the text of a row. The arguments are as in `id_of`, with the id of the sample for errors.

    Raises:
        BadRecord: The value is no text.
    """
    value = single(value)
    if type(value) is str and value and not value.isspace():
        return value
    if value is MISSING:
        raise BadRecord("missing-field", f"no field {path!r} for the text{unknown(path, row)}", sample_id, path)
    if not isinstance(value, str):
        detail = f"the text in {path!r} must be a string, got {json_type(value)}{_of_table(path, value, row)}"
        raise BadRecord("wrong-type", detail, sample_id, path)
    raise BadRecord("empty-text", f"the text in {path!r} is empty or only white space", sample_id, path)


def _of_table(path: str, value: Any, row: Any) -> str:
    """Return the words about a value that is the column of a table. The row may lack the value."""
    table = table_by_columns({**row, path: value})
    return "" if table is None else f"; the row holds {table}"


def rest_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a row without its id and text: the row, or the values of "meta" if no other field is left."""
    if len(record) == 1 and type(inner := record.get("meta")) is dict:
        return inner
    return record


def json_type(value: Any) -> str:
    """Return the type of a JSON value with its article, and the value of a number or a boolean."""
    name = type(value).__name__
    return _JSON_TYPES.get(name, name) + (f" ({value!r})" if isinstance(value, (bool, int, float)) else "")


def check_size(sample: Sample, kept_meta: dict[str, Any], max_sample_bytes: int) -> None:
    """Raise BadRecord if the text and the kept metadata (as compact JSON) together exceed the limit, in bytes of UTF-8."""
    size = len(sample.text.encode()) + len(orjson.dumps(kept_meta))
    if size > max_sample_bytes:
        detail = f"the sample is {size:,} bytes of text and meta, and at most {max_sample_bytes:,} are allowed"
        raise BadRecord("too-large", detail, sample.id)


def unit_of(name: str) -> str:
    """Return the unit of the places in a file: "line" for text, "row" for tables and tars.

    >>> unit_of("a.json.gz"), unit_of("a.parquet")
    ('line', 'row')
    """
    return "row" if format_of(name) in ("parquet", "arrow", "tar", "wet") else "line"
