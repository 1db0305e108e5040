"""One sample, one refused row, and the checks that tell them apart.

The checks raise `BadRecord`, so that a good row pays for none of the machinery of a refusal. Every format hands its
rows through `sample_of`, so a sample means the same wherever it came from.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import orjson

Reason = Literal[
    "malformed-json",
    "invalid-utf8",
    "missing-field",
    "wrong-type",
    "empty-text",
    "too-large",
    "truncated",
    "not-the-named-format",
    "duplicate-id",
    "copy",
]
_SET_ASIDE = "set such samples aside with --on-bad-sample set-aside"
_REMEDIES: dict[Reason, str] = {
    "missing-field": f"Mend the row, name another field with --field, --id-field or --text-field, or {_SET_ASIDE}.",
    "wrong-type": f"Mend the row, name another field with --field, --id-field or --text-field, or {_SET_ASIDE}.",
    "too-large": f"Split the sample, raise --max-sample-bytes, or {_SET_ASIDE}.",
    "truncated": "Fetch or write the file again, or set the rest of it aside with --on-bad-sample set-aside.",
    "duplicate-id": f"Give it another id, or {_SET_ASIDE}.",
    "not-the-named-format": "Rename or rewrite the file, or set it aside with --on-bad-sample set-aside.",
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


class _Missing:
    """The type of `MISSING`; false, and distinct from a null that is there."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


@dataclass(frozen=True, slots=True)
class Sample:
    """One text of a corpus.

    Attributes:
        id: as in the corpus (an integer becomes its digits, "00123" stays "00123").
        text: not empty, not only white space, writable as UTF-8.
        meta: plain JSON values: the row without its id and text, or what is under "meta" if that is all the rest.
    """

    id: str
    text: str
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rejection:
    """One row, or the broken rest of a file, that gives no sample.

    Attributes:
        file: name of the file in the corpus.
        line: 1-based line of a JSONL file (of its decompressed text), 1-based row of any other; None: the whole file.
        reason: the stable category, for counting.
        detail: what is wrong, as the middle of a sentence.
        id: the sample's id where it is known.
        raw: the offending line, bytes that are not UTF-8 as `\\xff`; None where there is no one line to show.
    """

    file: str
    line: int | None
    reason: Reason
    detail: str
    id: str | None = None
    raw: str | None = None

    def to_json(self) -> dict[str, str | int | None]:
        """Plain values: one line of rejected/."""
        return asdict(self)

    def sentence(self) -> str:
        """The error for this row: where, what, and what to do now.

        >>> print(Rejection(file="a.jsonl", line=17, reason="malformed-json", detail="not valid JSON").sentence())
        a.jsonl line 17: not valid JSON. Mend the line, or set such samples aside with --on-bad-sample set-aside.
        """
        unit = "line" if _holds_lines(self.file) else "row"
        where = self.file if self.line is None else f"{self.file} {unit} {self.line}"
        return f"{where}: {self.detail}. {_REMEDIES.get(self.reason, f'Mend the {unit}, or {_SET_ASIDE}.')}"


class BadRecord(Exception):
    """A row that is no sample; it stays in the corpus package, and becomes a `Rejection` where its place is known."""

    def __init__(self, reason: Reason, detail: str, id: str | None = None) -> None:
        super().__init__(reason, detail, id)
        self.reason: Reason = reason
        self.detail = detail
        self.id = id


def lookup(sample: Sample, path: str) -> Any:
    """The value at a dotted path, or `MISSING`.

    "id" and "text" are the sample's own; everything else, and whatever starts with "meta.", is looked up in its meta. A
    key that itself holds dots is found too, before its parts.

    >>> sample = Sample("7", "1 + 1 = 2", {"task": {"name": "add"}, "a.b": 3, "id": "inner"})
    >>> [lookup(sample, path) for path in ("task.name", "meta.task.name", "a.b", "task.size")]
    ['add', 'add', 3, MISSING]
    >>> lookup(sample, "id"), lookup(sample, "meta.id")
    ('7', 'inner')
    """
    if path == "id":
        return sample.id
    if path == "text":
        return sample.text
    value = _descend(sample.meta, path)
    if value is MISSING and path.startswith("meta."):
        return _descend(sample.meta, path.removeprefix("meta."))
    return value


def _descend(value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        return MISSING
    if path in value:
        return value[path]
    first, dot, rest = path.partition(".")
    return _descend(value[first], rest) if dot and first in value else MISSING


def sample_of(record: Any, id_field: str | None, text_field: str, name: str, position: int) -> Sample:
    """The sample that a parsed row holds; the row's dict is taken apart and its rest becomes `meta`.

    Positional, because this runs once a row. `position` (byte offset or row) only serves as the id where `id_field` is
    None.

    Raises:
        BadRecord: the row is no sample.

    >>> sample_of({"id": 7, "text": "hi", "meta": {"task": "greet"}}, "id", "text", "a.jsonl", 0)
    Sample(id='7', text='hi', meta={'task': 'greet'})
    >>> sample_of({"text": "hi", "lang": "en"}, None, "text", "a.jsonl", 512)
    Sample(id='a.jsonl@512', text='hi', meta={'lang': 'en'})
    """
    if type(record) is not dict:
        raise BadRecord("malformed-json", f"expected a JSON object, got {_json_type(record)}")
    sample_id = f"{name}@{position}" if id_field is None else record.pop(id_field, MISSING)
    if type(sample_id) is not str or not sample_id:
        sample_id = _checked_id(sample_id, id_field)
    text = record.pop(text_field, MISSING)
    if type(text) is not str or not text or text.isspace():
        raise _bad_text(text, text_field, sample_id)
    if len(record) == 1 and type(inner := record.get("meta")) is dict:
        return Sample(sample_id, text, inner)
    return Sample(sample_id, text, record)


def _checked_id(value: Any, id_field: str | None) -> str:
    if type(value) is int:
        return str(value)
    if value is MISSING:
        raise BadRecord("missing-field", f"no field {id_field!r} for the id")
    if value == "":
        raise BadRecord("missing-field", f"the id in {id_field!r} is empty")
    raise BadRecord("wrong-type", f"the id in {id_field!r} must be a string or an integer, got {_json_type(value)}")


def _bad_text(value: Any, text_field: str, sample_id: str) -> BadRecord:
    if value is MISSING:
        return BadRecord("missing-field", f"no field {text_field!r} for the text", sample_id)
    if not isinstance(value, str):
        detail = f"the text in {text_field!r} must be a string, got {_json_type(value)}"
        return BadRecord("wrong-type", detail, sample_id)
    return BadRecord("empty-text", f"the text in {text_field!r} is empty or only white space", sample_id)


def _json_type(value: Any) -> str:
    name = type(value).__name__
    return _JSON_TYPES.get(name, name) + (f" ({value!r})" if isinstance(value, (bool, int, float)) else "")


def check_size(sample: Sample, max_sample_bytes: int) -> None:
    """Refuse a sample whose text and meta (as compact JSON) together are over the limit, in bytes of UTF-8."""
    size = len(sample.text.encode()) + len(orjson.dumps(sample.meta))
    if size > max_sample_bytes:
        detail = f"the sample is {size:,} bytes of text and meta, and at most {max_sample_bytes:,} are allowed"
        raise BadRecord("too-large", detail, sample.id)


def _holds_lines(name: str) -> bool:
    return name.lower().removesuffix(".gz").removesuffix(".zst").endswith((".jsonl", ".ndjson", ".json"))
