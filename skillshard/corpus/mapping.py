"""Field mappings: which fields of a row become the id, the text and the metadata of a sample.

A mapping belongs to a corpus, and is recorded in tags.json. Later commands read the rows by the record, so that tags and corpus always
agree on ids and texts.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import starmap
from typing import Any

from skillshard.corpus.bad_record import BadRecord
from skillshard.corpus.formats import FileLayout
from skillshard.corpus.json_values import opened
from skillshard.corpus.messages import ANSWERING_ROLE, render_messages, roles_of
from skillshard.corpus.paths import (
    MISSING,
    Step,
    at,
    follow,
    hive_fields,
    is_of_file,
    locate,
    of_file,
    only,
    replaced,
    single,
    unknown,
    without,
)
from skillshard.corpus.sample import Rejection, Sample, category_of, id_of, json_type, rest_of, text_of
from skillshard.corpus.template import Span, Template
from skillshard.corpus.token_ids import MAX_IDS, TokenFields, TokenForm
from skillshard.errors import CorpusError, did_you_mean, name_some

ANSWER_SPANS = "answer_spans"
"""Metadata field with the spans of the answers in the text: a list of [first character, character after the last one]."""
# About four million tokens, longer than the context of present models. A larger sample is probably a mistake.
DEFAULT_MAX_SAMPLE_BYTES = 16 << 20
"""Default limit of the size of a sample, in bytes of UTF-8."""
_OF_TOKENS = ("token_ids", "token_labels", "token_mask", "attention_mask")
"""Arguments of a field mapping with the paths of token ids, their labels and their masks."""
_ARGUMENT = re.compile(r"`([a-z]\w*)(?:=([^`]*))?`")
_WAYS = ("text_field", "text", "messages", "token_ids")
"""Arguments that make the text of a sample. A mapping has one of them."""


@dataclass(frozen=True)
class FieldMapping:
    """The fields of a row that become the id, the text and the metadata of a sample.

    A path is a key, or several steps with dots between them (`skillshard.corpus.paths`). A path that begins with "file." names a part
    of the name of the row's file. A folder such as `lang=en/` is the field "lang" of each row below, unless the row has this field. Fields of the id and of the text leave the metadata, except the messages and the fields that
    `columns` names.

    Args:
        id_field: Path of the id. With None, the id is the name of the file, "@" and the position: the byte offset for JSONL (in the
            decompressed text), the 1-based row for other formats.
        text_field: Path of the text, or several paths whose texts are joined by an empty line. The default is "text" where neither
            `text` nor `messages` is given. Of several texts, an empty text is left out.
        text: Template of the text (`skillshard.corpus.template`), such as "{question}\\n\\n{answer}".
        messages: Path of the messages of a conversation. The text is a plain rendering, and the assistant's messages are the answers.
        token_ids: Path of the token ids of a sample that is tokenized already. The text is the ids as decimal numbers
            (`skillshard.corpus.token_ids`).
        token_labels: Path of the labels of the ids: for each id the id itself, or -100 for a token that is not learned. The learned tokens are
            the answers.
        token_mask: Path of a mask of the ids, in place of labels: 1 for a token that is learned, 0 for a token of a prompt.
        attention_mask: Path of a mask of the ids: 0 for padding. The text has no padding.
        vocab_size: Number of ids of the vocabulary. A row with an id that is not below the number is bad.
        answer: Paths of the text that are answers. The metadata of a sample gets their spans under `ANSWER_SPANS`.
        columns: Paths of the metadata that shards keep. None: all metadata.
        drop: Paths of the metadata that shards do not keep.

    Raises:
        CorpusError: Two ways to make the text are given, a path is empty, a template is not valid, or an answer is no part of the text.
    """

    id_field: str | None = "id"
    text_field: str | Sequence[str] | None = None
    text: str | None = None
    messages: str | None = None
    token_ids: str | None = None
    token_labels: str | None = None
    token_mask: str | None = None
    attention_mask: str | None = None
    vocab_size: int | None = None
    answer: str | Sequence[str] = ()
    columns: str | Sequence[str] | None = None
    drop: str | Sequence[str] = ()
    template: Template | None = field(init=False, repr=False, compare=False)
    """Template of the text. None for messages and for token ids."""
    tokens: TokenFields | None = field(init=False, repr=False, compare=False)
    """Fields of token ids. None for texts."""

    def __post_init__(self) -> None:
        ways = [name for name in _WAYS if getattr(self, name) is not None]
        if len(ways) > 1:
            raise CorpusError(f"`{ways[0]}` and `{ways[1]}` both make the text of a sample: give one of the two.")
        set_field = object.__setattr__  # the dataclass is frozen
        for name in ("text_field", "answer", "columns", "drop"):
            value = getattr(self, name)
            set_field(self, name, (value,) if isinstance(value, str) else value if value is None else tuple(value))
        if not ways:
            set_field(self, "text_field", ("text",))
        for name in ("id_field", "text_field", "messages", *_OF_TOKENS, "answer", "columns", "drop"):
            value = getattr(self, name)
            paths = (value,) if isinstance(value, str) else value
            if paths is not None and ("" in paths or (not paths and name in ("text_field", "columns"))):
                no_ids = " Where rows have no ids, `id_field=None` makes ids of the file and the row."
                raise CorpusError(
                    f"`{name}` needs the path of a field, such as 'id' or 'meta.source', got {value!r}."
                    f"{no_ids if name == 'id_field' else ''}"
                )
        set_field(self, "template", self._template())
        set_field(self, "tokens", self._tokens())

    def _tokens(self) -> TokenFields | None:
        if self.token_ids is None:
            arguments = [name for name in (*_OF_TOKENS, "vocab_size") if getattr(self, name) is not None]
            if arguments:
                raise CorpusError(
                    f"`{arguments[0]}` belongs to samples that are tokenized already: name the field of the ids with `token_ids`, or leave "
                    f"`{arguments[0]}` out."
                )
            return None
        if self.token_labels is not None and self.token_mask is not None:
            raise CorpusError("`token_labels` and `token_mask` both mark the learned tokens: give one of the two.")
        size = self.vocab_size
        if size is not None and not (type(size) is int and 1 <= size <= MAX_IDS):
            raise CorpusError(
                f"`vocab_size` is {size!r}: give the number of ids of the vocabulary, from 1 to {MAX_IDS:,}."
            )
        return TokenFields(self.token_ids, self.token_labels, self.token_mask, self.attention_mask, size)

    def _template(self) -> Template | None:
        if self.token_ids is not None:
            if self.answer:
                raise CorpusError(
                    "`answer` and `token_ids` do not go together: the labels of token ids mark the answers. Name the field of the labels with "
                    "`token_labels` or `token_mask`, and leave `answer` out."
                )
            return None
        if self.messages is not None:
            if self.answer:
                raise CorpusError(
                    f"`answer` and `messages` do not go together: the answers of a conversation are the messages of the {ANSWERING_ROLE}. "
                    "Leave `answer` out."
                )
            return None
        paths = self.text_field if self.text is None else None
        assert paths is None or isinstance(paths, tuple)
        template = Template.parse(self.text or "") if paths is None else Template.joining(paths)
        for path in self.answer:
            if path not in template.paths:
                raise CorpusError(
                    f"the answer {path!r}{did_you_mean(path, template.paths)} is no field of the text. The fields of the text are "
                    f"{name_some(dict.fromkeys(template.paths))}. Name one of the fields with `answer`, or add the field to the text."
                )
        return template

    @property
    def text_argument(self) -> str:
        """Name of the argument that names the text: one of "text_field", "text", "messages" and "token_ids"."""
        (way,) = [name for name in _WAYS if getattr(self, name) is not None]
        return way

    @property
    def marks_answers(self) -> bool:
        """Whether the metadata of a sample gets the spans of answers."""
        return bool(self.answer or self.messages or self.token_labels or self.token_mask)

    @property
    def is_plain(self) -> bool:
        """Whether the text is the string in one field, and no answer is marked."""
        return len(self.text_field or ()) == 1 and not self.marks_answers

    def kept_meta(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Return the metadata that shards keep: `columns` without `drop`. Messages and spans of answers stay, unless `drop` names them."""
        if self.columns is not None:
            paths = (*self.columns, self.messages or ANSWER_SPANS, ANSWER_SPANS)
            meta = only(meta, [steps for path in paths if (steps := _steps(meta, path)) is not None])
        for path in self.drop:
            steps = _steps(meta, path)
            meta = meta if steps is None else without(meta, steps)
        return meta

    def absent(self, metas: Sequence[dict[str, Any]]) -> list[str]:
        """Return a part of a sentence for each path of `columns` and `drop` that no metadata has.

        >>> FieldMapping(columns=("lang", "sorce")).absent([{"lang": "en", "source": "web"}])
        ["field 'sorce' of `columns` (did you mean 'source'?); the row has lang, source"]
        """
        named = [("columns", path) for path in self.columns or ()] + [("drop", path) for path in self.drop]
        return [
            f"field {path!r} of `{argument}`{unknown(path, metas[0] if metas else {})}"
            for argument, path in named
            if not any(_steps(meta, path) is not None for meta in metas)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the mapping as JSON values, without the arguments that are not given.

        >>> FieldMapping().to_json(), FieldMapping(id_field=None, text="{a}", drop="b").to_json()
        ({'id_field': 'id', 'text_field': 'text'}, {'id_field': None, 'text': '{a}', 'drop': ['b']})
        """
        values: dict[str, Any] = {"id_field": self.id_field}
        for argument in fields(self):
            value = getattr(self, argument.name)
            if argument.init and argument.name != "id_field" and value not in (None, ()):
                values[argument.name] = list(value) if isinstance(value, tuple) else value
        if self.text_field is not None and len(self.text_field) == 1:
            values["text_field"] = self.text_field[0]
        return values


_KEYS = frozenset(argument.name for kind in (FieldMapping, FileLayout) for argument in fields(kind) if argument.init)
"""Keys of a corpus in a corpus file that are arguments of the library too."""


@dataclass(frozen=True)
class CorpusReading:
    """The way in which the rows of a corpus become samples.

    Where one of several mappings marks answers, the whole text of every other corpus is an answer, so that a mask fits all samples.

    Args:
        mappings: Prefix -> field mapping. A corpus without a corpus file has one mapping, under the empty prefix. Otherwise the first
            part of a file's name in the corpus is its prefix.
        max_sample_bytes: Limit of the bytes of text and kept metadata together, in UTF-8. A larger sample is rejected.
        whole_rows: Whether the metadata of a sample is its whole row, and the text is a placeholder. A reader that does not know the fields
            of the corpus yet needs the whole rows. The argument is never recorded.
        members: Suffix -> source of each member that samples keep beside text and metadata (members.py). Tags do not depend on members, so
            `to_json` leaves the argument out, and shards record it themselves.
    """

    mappings: Mapping[str, FieldMapping] = field(default_factory=lambda: {"": FieldMapping()})
    max_sample_bytes: int = DEFAULT_MAX_SAMPLE_BYTES
    whole_rows: bool = False
    members: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        forms = {prefix: mapping.tokens for prefix, mapping in self.mappings.items()}
        of_texts = [prefix for prefix, tokens in forms.items() if tokens is None]
        of_ids = {prefix: tokens.vocab_size for prefix, tokens in forms.items() if tokens is not None}
        if of_texts and of_ids:
            raise CorpusError(
                f"the corpus {of_texts[0]!r} has texts, and the corpus {next(iter(of_ids))!r} has token ids: a mix has samples of one kind. Tokenize "
                "the texts with the same vocabulary, or put the two corpora into two corpus files."
            )
        if len(set(of_ids.values())) > 1:
            shown = ", ".join(
                f"{prefix} {'no size' if size is None else format(size, ',')}" for prefix, size in of_ids.items()
            )
            raise CorpusError(
                f"the corpora differ in 'vocab_size' ({shown}): one vocabulary has one size. Give each corpus the same size."
            )

    @property
    def token_form(self) -> TokenForm | None:
        """Form of the samples if the texts are token ids, otherwise None."""
        tokens = next(iter(self.mappings.values())).tokens
        marks = any(mapping.marks_answers for mapping in self.mappings.values())
        return None if tokens is None else TokenForm(tokens.vocab_size, marks)

    def rows_of(self, name: str) -> "RowFields":
        """Return the mapping of the rows of a file, by the name of the file in the corpus."""
        prefix = self.prefix_of(name)
        others_mark = any(mapping.marks_answers for mapping in self.mappings.values())
        return RowFields(
            self.mappings[prefix], name, prefix, is_answer=others_mark, whole_rows=self.whole_rows, members=self.members
        )

    def kept_meta(self, sample: Sample) -> dict[str, Any]:
        """Return the metadata of a sample that shards keep."""
        return self.mappings[self.prefix_of(sample.file)].kept_meta(sample.meta)

    def prefix_of(self, name: str) -> str:
        """Return the prefix of a file's name, under which its mapping stands."""
        return "" if "" in self.mappings else name.partition("/")[0]

    def sentence_of(self, rejection: Rejection) -> str:
        """Return the error for a bad row. The remedy for a corpus of a corpus file names the keys of the corpus file."""
        sentence = rejection.sentence(self.mappings[self.prefix_of(rejection.file)].text_argument)
        if "" in self.mappings or (changed := in_keys(sentence)) == sentence:
            return sentence
        prefix = self.prefix_of(rejection.file)
        return f"{changed} The keys in quotes stand in the corpus file, under {prefix!r}."

    @property
    def is_plain(self) -> bool:
        """Whether each text is the string in one field, and the shards keep all metadata."""
        return all(
            mapping.is_plain and mapping.columns is None and not mapping.drop for mapping in self.mappings.values()
        )

    def to_json(self) -> dict[str, Any]:
        """Return the reading as JSON values, for the record of an artefact.

        >>> CorpusReading().to_json()
        {'id_field': 'id', 'text_field': 'text', 'max_sample_bytes': 16777216}
        """
        limit = {"max_sample_bytes": self.max_sample_bytes}
        if "" in self.mappings:
            return self.mappings[""].to_json() | limit
        return {"corpora": {prefix: mapping.to_json() for prefix, mapping in self.mappings.items()}} | limit

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "CorpusReading":
        """Return the reading with the values of `to_json`.

        Raises:
            CorpusError: The values are no reading.

        >>> CorpusReading.from_json(CorpusReading().to_json()) == CorpusReading()
        True
        """
        rest = {key: item for key, item in value.items() if key != "max_sample_bytes"}
        known = {argument.name for argument in fields(FieldMapping) if argument.init}
        mappings = rest["corpora"] if set(rest) == {"corpora"} else {"": rest}
        is_known = type(mappings) is dict and all(
            type(mapping) is dict and not set(mapping) - known and all(starmap(_is_recorded, mapping.items()))
            for mapping in mappings.values()
        )
        if not mappings or not is_known or type(value.get("max_sample_bytes")) is not int:
            raise CorpusError(
                f"not the reading of a corpus: {dict(value)}. Another version of skillshard recorded the reading: tag the corpus again."
            )
        return cls({prefix: FieldMapping(**mapping) for prefix, mapping in mappings.items()}, value["max_sample_bytes"])


def _is_recorded(name: str, value: Any) -> bool:
    """Return whether JSON may be the value of an argument of a field mapping."""
    if name == "vocab_size":
        return value is None or type(value) is int
    return value is None or type(value) is str or (type(value) is list and {str}.issuperset(map(type, value)))


def in_keys(sentence: str) -> str:
    """Replace each argument in backticks that is a key of a corpus file by the key. The command line would name an option otherwise.

    >>> in_keys("Give `id_field=None`, `text_field` or `encoding='utf-16'`, or `on_bad_sample='set-aside'`.")
    "Give 'id_from_row: true', 'text_field' or 'encoding: utf-16', or `on_bad_sample='set-aside'`."
    """
    return _ARGUMENT.sub(_as_key, sentence)


def _as_key(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    if name not in _KEYS:
        return match[0]
    if (name, value) == ("id_field", "None"):
        return "'id_from_row: true'"
    if value is None:
        return f"'{name}'"
    plain = value.strip("'\"")
    return f"'{name}: {plain or value}'"


class RowFields:
    """The field mapping of the rows of one file.

    Args:
        mapping: Field mapping of the corpus.
        name: Name of the file in the corpus.
        prefix: Prefix of the ids, or an empty string.
        is_answer: Whether the whole text is an answer if the mapping marks none, and the row has no spans of its own.
        whole_rows: Whether the metadata of a sample is its whole row, as in `CorpusReading`.
        members: Suffix -> source of each member that samples keep, as in `CorpusReading`.

    Attributes:
        own_name: Name of the file without the prefix.
        sample: Function of a parsed row and its position that returns the sample, or raises `BadRecord`.
        is_quick: Whether the mapping only names two keys, which is the usual case. The row is then changed, otherwise not.
        members: Suffix -> source of each member that samples keep.
        id_field, text_field: The two keys, if `is_quick`.
    """

    def __init__(
        self,
        mapping: FieldMapping,
        name: str,
        prefix: str = "",
        *,
        is_answer: bool = False,
        whole_rows: bool = False,
        members: Mapping[str, str] = {},
    ) -> None:
        self.mapping, self.name, self._is_answer, self.members = mapping, name, is_answer, members
        self._before = f"{prefix}/" if prefix else ""
        self.own_name = name.removeprefix(self._before)
        paths = () if mapping.template is None else mapping.template.paths
        token_paths = () if mapping.tokens is None else mapping.tokens.paths
        others = (mapping.id_field, mapping.messages, *token_paths)
        self._paths = (*paths, *(path for path in others if path is not None))
        # Fields of folders such as lang=en/ have the names of keys, so a plain key may name one.
        self._folder_fields = hive_fields(name)
        named = set(mapping.columns or ())
        self._leaving = [
            path for path in dict.fromkeys((*paths, *token_paths)) if path not in named and not is_of_file(path)
        ]
        is_key = not any("." in path or path in self._folder_fields for path in self._paths)
        self.is_quick = mapping.is_plain and not named and not prefix and is_key
        self.sample: Callable[[Any, int], Sample] = self._quick if self.is_quick else self._mapped
        if whole_rows:
            self.is_quick, self.sample = False, self._whole
        self.id_field, self.text_field = mapping.id_field, paths[0] if self.is_quick else ""

    @property
    def text_member(self) -> str:
        """Field that holds the text member of a WebDataset sample."""
        return self.mapping.text_field[0] if self.mapping.is_plain and self.mapping.text_field else "text"

    def asks_for(self, column: str) -> bool:
        """Return whether the id or the text is made of a column of a table."""
        paths = (path for path in self._paths if not is_of_file(path))
        return any(path == column or path.startswith(f"{column}.") for path in paths)

    def _whole(self, record: Any, position: int) -> Sample:
        """Return a sample whose metadata is the row. The text is a placeholder, because the field of the text is not known."""
        if type(record) is not dict:
            raise _no_object(record)
        return Sample(f"{self.name}@{position}", "-", record, self.name)

    def _quick(self, record: Any, position: int) -> Sample:
        """Return the sample of a row for a mapping that only names two keys."""
        if type(record) is not dict:
            raise _no_object(record)
        id_field = self.id_field
        value = f"{self.name}@{position}" if id_field is None else record.pop(id_field, MISSING)
        sample_id = value if type(value) is str and value else id_of(value, str(id_field), record)
        text = record.pop(self.text_field, MISSING)
        if type(text) is not str or not text or text.isspace():
            text = text_of(text, self.text_field, sample_id, record)
        return Sample(sample_id, text, rest_of(record), self.name)

    def _mapped(self, record: Any, position: int) -> Sample:
        """Return the sample of a row for any mapping."""
        if type(record) is not dict:
            raise _no_object(record)
        row, mapping = record, self.mapping
        if mapping.id_field is None:
            sample_id = f"{self.name}@{position}"
        else:
            sample_id = self._before + id_of(self._value(row, mapping.id_field), mapping.id_field, self._named(row))
            if mapping.id_field not in (mapping.columns or ()):
                record = _removed(record, mapping.id_field)
        text, spans = self._text(row, sample_id)
        for path in self._leaving:
            record = _removed(record, path)
        if mapping.messages is not None:  # chat templates read the messages in the metadata
            record = _with_opened(record, mapping.messages)
        meta = rest_of(record)
        if spans is None and self._is_answer and ANSWER_SPANS not in meta:
            spans = [(0, len(text))]
        if spans is not None:
            if ANSWER_SPANS in meta:
                raise BadRecord(
                    "wrong-type",
                    f"the field {ANSWER_SPANS!r} is taken: the spans of the answers stand there. Rename the field",
                    sample_id,
                    ANSWER_SPANS,
                )
            meta = {**meta, ANSWER_SPANS: [list(span) for span in spans]}
        return Sample(sample_id, text, meta, self.name)

    def _value(self, row: dict[str, Any], path: str) -> Any:
        value = of_file(self.name, path)
        if value is MISSING:
            value = follow(row, path)
        return self._folder_fields.get(path, MISSING) if value is MISSING else value

    def _named(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the fields that a path can name, for errors."""
        return {**self._folder_fields, **row} if self._folder_fields else row

    def _text(self, row: dict[str, Any], sample_id: str) -> tuple[str, list[Span] | None]:
        """Return the text of a row, and the spans of its answers. None: the mapping marks no answers."""
        mapping = self.mapping
        if mapping.tokens is not None:
            of_paths = {path: opened(self._value(row, path)) for path in mapping.tokens.paths}
            return mapping.tokens.text(of_paths, self._named(row), sample_id)
        if mapping.messages is not None:
            value = opened(self._value(row, mapping.messages))
            if value is MISSING:
                raise _no_text(mapping.messages, self._named(row), sample_id)
            try:
                text, spans = render_messages(value, mapping.messages)
            except BadRecord as error:
                raise BadRecord(error.reason, error.detail, sample_id, mapping.messages) from error
            if not spans:
                raise BadRecord(
                    "empty-text",
                    f"the messages in {mapping.messages!r} have no answer of the {ANSWERING_ROLE}; the roles are {name_some(roles_of(value)) or 'none, because the array is empty'}",
                    sample_id,
                    mapping.messages,
                )
            return text, spans
        assert mapping.template is not None
        if mapping.is_plain:
            (path,) = mapping.template.paths
            return text_of(self._value(row, path), path, sample_id, self._named(row)), None
        paths = mapping.template.paths
        values = [self._shown(row, path, sample_id) for path in paths]
        text, spans = mapping.template.render(values)
        if not any(value and not value.isspace() for value in values):
            names = name_some(map(repr, dict.fromkeys(paths)))
            raise BadRecord(
                "empty-text", f"the fields of the text, {names}, are empty or only white space", sample_id, paths[0]
            )
        if not mapping.answer:
            return text, None
        answers = [
            span for path, span in zip(paths, spans, strict=True) if path in mapping.answer and span[1] > span[0]
        ]
        if not answers:
            names = name_some(map(repr, mapping.answer))
            raise BadRecord("empty-text", f"the answer in {names} is empty", sample_id, mapping.answer[0])
        return text, answers

    def _shown(self, row: dict[str, Any], path: str, sample_id: str) -> str:
        """Return the value of a field as a part of the text: a string, or a number or a boolean as JSON. Null is empty."""
        value = single(self._value(row, path))
        if value is MISSING:
            raise _no_text(path, self._named(row), sample_id)
        if value is None or value == []:
            return ""
        if isinstance(value, (str, int, float)):
            return category_of(value)
        raise BadRecord(
            "wrong-type",
            f"the field {path!r} of the text must be a string or a number, got {json_type(value)}",
            sample_id,
            path,
        )


def _no_object(record: Any) -> BadRecord:
    names = ". An array has no names of fields: write each row as an object" if type(record) is list else ""
    return BadRecord("malformed-json", f"expected a JSON object, got {json_type(record)}{names}")


def _no_text(path: str, row: dict[str, Any], sample_id: str) -> BadRecord:
    return BadRecord("missing-field", f"no field {path!r} for the text{unknown(path, row)}", sample_id, path)


def _with_opened(record: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a row whose value at a path is no string, if the string holds JSON."""
    steps = locate(record, path)
    if steps is None or type(value := at(record, steps)) is not str:
        return record
    return replaced(record, steps, opened(value))


def _removed(record: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a row without the field at a path. The element of an array of one element leaves with its array."""
    steps = locate(record, path)
    if steps is None:
        return record
    while type(steps[-1]) is int and len(at(record, steps[:-1])) == 1:
        steps = steps[:-1]
    return without(record, steps)


def _steps(meta: dict[str, Any], path: str) -> tuple[Step, ...] | None:
    """Return the steps of a path into the metadata, with or without "meta." before the path."""
    steps = locate(meta, path)
    return locate(meta, path.removeprefix("meta.")) if steps is None else steps
