"""Guess the fields of a corpus from its first rows: the id, the text and the skill.

A guess is a proposal for the user, who sees the reason of each choice and changes the command. No other part of skillshard guesses. All
functions are pure functions of rows and names.
"""

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skillshard.corpus.formats import Format, stem_of
from skillshard.corpus.json_values import opened
from skillshard.corpus.mapping import FieldMapping
from skillshard.corpus.messages import is_answering, is_message, with_roles
from skillshard.corpus.paths import is_of_file, single
from skillshard.corpus.sample import category_of
from skillshard.errors import name_some
from skillshard.printable import counted, printable, shortened

_MAX_DEPTH = 3  # deeper fields are usually bookkeeping
_MAX_SKILLS = 200  # a field with more values is seldom a useful set of skills
_MAX_SKILL_CHARS = 80
WESTERN = "cp1252"
"""Encoding of Western Windows. Latin-1 files are read in the same way."""
# In a word of a Western language at most every fourth letter has an accent.
_MAX_WESTERN_SHARE = 0.25
_MAX_ID_CHARS = 200
_USUAL_SHARE = (
    0.9  # a field of a usual name is the text even if some rows lack a text, such as rows whose bytes are not UTF-8
)
_WITH_IDS: frozenset[Format] = frozenset(("tar", "text", "wet"))
"""Formats whose readers give each row an id of its own under the field "id"."""
_ID_NAMES = ("id", "uuid", "guid", "key", "ref", "qid", "pid", "uid", "sid", "docid", "rowid")
_TEXT_NAMES = ("text", "content", "contents", "body", "raw_content", "document", "article", "passage", "code", "story")
_PROMPT_NAMES = (
    "definition",
    "system",
    "instruction",
    "context",
    "input",
    "question",
    "stem",
    "prompt",
    "query",
    "problem",
)
_TURN_NAMES = (
    "data",
    "conversation",
    "conversations",
    "dialog",
    "dialogue",
    "dialogues",
    "turns",
    "messages",
    "utterances",
)
"""Names of arrays of strings that are the turns of a conversation. An array of another name may also hold candidates or sentences."""
_TOKEN_NAMES = ("input_ids", "token_ids", "tokens", "ids")
_TOKEN_LABEL_NAMES = ("labels", "label_ids", "target_ids")
_TOKEN_MASK_NAMES = ("loss_mask", "completion_mask", "assistant_masks", "assistant_mask", "answer_mask")
_TOKENIZED_NAMES = (*_TOKEN_NAMES, *_TOKEN_LABEL_NAMES, *_TOKEN_MASK_NAMES, "attention_mask")
_TOKEN_EXTRAS = ("token_type_ids", "special_tokens_mask", "position_ids")
"""Arrays that tokenizers write beside the ids, and that follow from the ids."""
_ANSWER_NAMES = (
    "output",
    "answer",
    "answers",
    "long_answer",
    "response",
    "completion",
    "target",
    "solution",
    "canonical_solution",
    "chosen",
)
_PYTHON_BEGINNINGS = ("{'", "['", "[{'")
_NEVER_TEXTS = ("rejected", "neg", "negative", "negatives", "url")
# The most telling names come first.
_SKILL_NAMES = (
    *(
        "skill",
        "topic",
        "category",
        "categories",
        "domain",
        "domains",
        "subject",
        "intent",
        "task",
        "source",
        "dataset",
    ),
    *("subreddit", "section", "genre"),
    *("subset", "dump", "label", "class", "kind", "type", "language", "lang"),
)
_NEVER_SKILLS = (
    *("time", "timestamp", "date", "created", "added", "url", "version", "license", "year"),
    *("author", "username", "user"),
    *("answer", "answers", "response", "gold", "target", "correct"),
)
_SPLIT_WORDS = re.compile(r"(train|training|test|testing|validation|valid|val|dev|eval|part|of|shard|data|[^a-z])+")
_NUMBER = re.compile(r"\s*([-+]?[\d.,]+([eE][-+]?\d+)?)?\s*")
"""A number as a table of strings shows it, or nothing."""
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}\b")
_DIGITS = re.compile(r"\d+")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
"""Words of a name, also inside a name such as "answerKey"."""


@dataclass(frozen=True)
class Row:
    """First values of a corpus: a row before any field has a meaning.

    Attributes:
        file: Name of the file in the corpus.
        format: Format of the file.
        values: Parsed row.
    """

    file: str
    format: Format
    values: Mapping[str, Any]


@dataclass(frozen=True)
class FieldFacts:
    """A field of the rows.

    Attributes:
        path: Path of the field.
        types: Names of the types, the most frequent type first.
        num_rows: Number of rows that have the field.
        num_values: Number of different values.
        example: First value that is not empty, shortened, with escaped control characters.
    """

    path: str
    types: tuple[str, ...]
    num_rows: int
    num_values: int
    example: str


@dataclass(frozen=True)
class Guess:
    """Proposed fields of a corpus, each with the reason.

    Attributes:
        fields: Fields of the id and the text.
        skill: Path of the field that names the skill. None: no field looks like a skill.
        id_reason: Reason of the id.
        text_reason: Reason of the text.
        skill_reason: Reason of the skill.
    """

    fields: FieldMapping
    skill: str | None
    id_reason: str
    text_reason: str
    skill_reason: str


def fields_of(rows: Sequence[Row]) -> list[FieldFacts]:
    """Return the fields of rows in the order of their first occurrence.

    >>> for facts in fields_of([Row("a.jsonl", "jsonl", {"id": 1, "meta": {"tags": ["x"]}}), Row("a.jsonl", "jsonl", {"id": 2})]):
    ...     print(facts.path, facts.types, facts.num_rows, facts.num_values, facts.example)
    id ('integer',) 2 2 1
    meta.tags ('array of strings',) 1 1 ["x"]
    """
    return [_facts(path, values) for path, values in _by_path(rows).items()]


def guess(rows: Sequence[Row], files: Sequence[str], mapping: FieldMapping | None = None) -> Guess:
    """Guess the fields of a corpus.

    Args:
        rows: First rows of some files.
        files: Names of all files of the corpus.
        mapping: Fields that are known, for example of a corpus file. Only the skill is then guessed.
    """
    columns = _by_path(rows)
    if mapping is None:
        id_field, id_reason = _guess_id(rows, columns)
        mapping, text_reason = _guess_text(columns, len(rows), id_field)
    else:
        id_reason = text_reason = "given"
    of_tokens = () if mapping.tokens is None else mapping.tokens.paths
    taken = {mapping.id_field, mapping.messages, *(mapping.text_field or ()), *of_tokens}
    skill, skill_reason = _guess_skill(columns, len(rows), files, taken) if rows else (None, "no row could be read")
    if skill is None and mapping.tokens is not None:
        skill = "file.stem"
        skill_reason = (
            "no field looks like a skill, and token ids have no clusters of texts, so that each file is a skill"
        )
    return Guess(mapping, skill, id_reason, text_reason, skill_reason)


def options_of(mapping: FieldMapping) -> list[str]:
    """Return the options of the command line that name the fields of a mapping.

    >>> options_of(FieldMapping(id_field=None, text_field=("question", "answer"), answer="answer"))
    ['--id-from-row', '--text-field', 'question', '--text-field', 'answer', '--answer', 'answer']
    >>> options_of(FieldMapping(token_ids="input_ids", token_labels="labels", drop=("token_type_ids",)))
    ['--token-ids', 'input_ids', '--token-labels', 'labels', '--drop', 'token_type_ids']
    """
    options = ["--id-from-row"] if mapping.id_field is None else []
    if mapping.id_field not in (None, "id"):
        options += ["--id-field", str(mapping.id_field)]
    if mapping.messages is not None:
        options += ["--messages", mapping.messages]
    elif mapping.tokens is not None:
        for name in ("token_ids", "token_labels", "token_mask", "attention_mask"):
            path = getattr(mapping.tokens, name)
            options += [] if path is None else [f"--{name.replace('_', '-')}", path]
    elif mapping.text_field not in (None, ("text",)):
        options += [word for path in mapping.text_field or () for word in ("--text-field", path)]
    options += [word for path in mapping.answer for word in ("--answer", path)]
    return options + [word for path in mapping.drop for word in ("--drop", path)]


def shell_line(words: Sequence[str]) -> str:
    r"""Return words as a line for a shell. A word with control characters is quoted as bash reads the word.

    >>> print(shell_line(["tag", "a b", "red\x1b[31m"]))
    tag 'a b' $'red\x1b[31m'
    """
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if printable(word) == word:
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(escaped)}'"


# ------------------------------------------------------------------------------------------------------------- fields


def _by_path(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return path -> values of the rows that have the field."""
    columns: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        for path, value in _paths(row.values, "", 1):
            columns[path].append(value)
    return _with_opened(columns)


def _with_opened(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Replace columns of strings that hold JSON by the fields inside, under the paths that read the fields."""
    result: dict[str, list[Any]] = {}
    for path, values in columns.items():
        parsed = None if path == "text" else _parsed_column(_last(path), values)
        if parsed is None:
            result[path] = values
        elif type(parsed[0]) is list:
            result[path] = parsed
        else:
            for value in parsed:
                for inner, item in _paths(value, f"{path}.", 2):
                    result.setdefault(inner, []).append(item)
    return result


def _parsed_column(name: str, values: Sequence[Any]) -> list[Any] | None:
    """Return the objects or the arrays in a column of strings, or None for other columns.

    Arrays of strings and of numbers stay strings, but for conversations and token ids: as a skill or a text, a string is taken as it is.

    >>> _parsed_column("payload", ['{"a": 1}', '{"a": 2}']), _parsed_column("payload", ['{"a": 1}', "[sic]"])
    ([{'a': 1}, {'a': 2}], None)
    """
    if not values or not all(type(value) is str for value in values):
        return None
    parsed = list(map(opened, values))
    kinds = set(map(type, parsed))
    if kinds == {dict}:
        return parsed if set.intersection(*map(set, parsed)) else None
    if kinds != {list} or not any(parsed):
        return None
    of_objects = all(type(item) is dict for value in parsed for item in value)
    return parsed if of_objects or name in (*_TURN_NAMES, *_TOKENIZED_NAMES) else None


def _paths(values: Mapping[str, Any], before: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{before}{key}"
        if type(value) is dict and value and depth < _MAX_DEPTH:
            yield from _paths(value, f"{path}.", depth + 1)
        elif path and not is_of_file(path):  # a path such as "file.stem" names the file, and not the field
            yield path, value


def _facts(path: str, values: Sequence[Any]) -> FieldFacts:
    counts: dict[str, int] = defaultdict(int)
    for value in values:
        counts[_type_of(value)] += 1
    different = {category_of(value) if isinstance(value, str | int | float) else repr(value) for value in values}
    example = next((value for value in values if value not in (None, "", [], {})), values[0])
    shown = example if isinstance(example, str) else _as_json(example)
    return FieldFacts(
        path,
        tuple(sorted(counts, key=lambda kind: -counts[kind])),
        len(values),
        len(different),
        shortened(shown, most=48),
    )


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _type_of(value: Any) -> str:
    if is_messages(value):
        return "messages"
    if type(value) is list:
        kinds = {_type_of(item) for item in value}
        return f"array of {_plural(kinds.pop())}" if len(kinds) == 1 else "array"
    names = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _plural(kind: str) -> str:
    """Return the name of a type for several values.

    >>> _plural("string"), _plural("array of strings"), _plural("messages"), _plural("null")
    ('strings', 'arrays of strings', 'messages', 'nulls')
    """
    first, of, items = kind.partition(" of ")
    return f"{first if first.endswith('s') else first + 's'}{of}{items}"


def is_messages(value: Any) -> bool:
    """Return whether a value is a conversation: a list of objects with a role and a content, or with the keys of ShareGPT.

    >>> is_messages([{"role": "user", "content": "1+1?"}]), is_messages([{"from": "human", "value": "1+1?"}])
    (True, True)
    """
    return type(value) is list and bool(value) and all(map(is_message, value))


def path_of_rows(values: Mapping[str, Any]) -> str | None:
    """Return the path of the array of objects in a JSON document that may hold the rows, or None.

    The longest array is chosen. If the objects of the array have no id, and every object has an array of objects of the same name, that array
    is a part of the path too.

    An object that holds objects with the same fields under each name, such as ids, has the path "*".

    >>> path_of_rows({"id1": {"question": "1+1?", "answer": "2"}, "id2": {"question": "2+2?", "answer": "4"}})
    '*'
    >>> path_of_rows({"Examples": [{"a": 1}], "Instances": [{"a": 1}, {"a": 2}], "Domains": ["web"]})
    'Instances'
    >>> path_of_rows({"data": [{"title": "Ada", "paragraphs": [{"context": "Ada wrote.", "qas": [{"id": 1, "answers": [{"text": "Ada"}]}]}]}]})
    'data.paragraphs.qas'
    """
    longest = _longest_array(values)
    if longest is not None:
        path, elements = longest, values[longest]
    elif _are_alike(list(values.values())):
        path, elements = "*", list(values.values())
    else:
        return None
    # A name with a dot would be read as two names.
    while not any(map(_is_id_name, set().union(*elements))):
        names = {_longest_array(element) for element in elements}
        name = names.pop() if len(names) == 1 else None
        if name is None or "." in name:
            break
        path, elements = f"{path}.{name}", [inner for element in elements for inner in element[name]]
    return path


def _are_alike(values: Sequence[Any]) -> bool:
    """Return whether values are objects with the same fields. Fields of numbers are rather the rows of a column, as pandas writes them."""
    if len(values) < 2 or not all(type(value) is dict and value for value in values):
        return False
    return len(set(map(frozenset, values))) == 1 and not all(map(str.isdigit, values[0]))


def _longest_array(values: Mapping[str, Any]) -> str | None:
    """Return the name of the longest array of objects in an object, or None. A conversation is no such array."""
    arrays = {
        name: len(value)
        for name, value in values.items()
        if type(value) is list and value and not is_messages(value) and all(type(item) is dict for item in value)
    }
    return max(arrays, key=lambda name: arrays[name]) if arrays else None


def lacks_header(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the first line of a table is rather a row: one of its values stands in the same column again.

    Numbers that count the columns are names, as pandas writes them.

    >>> lacks_header(["What is 1+1?", "B"], [{"What is 1+1?": "What is 1+2?", "B": "A"}, {"What is 1+1?": "2+2?", "B": "B"}])
    True
    >>> lacks_header(["0", "label"], [{"0": "0", "label": "x"}])
    False
    """
    return any(
        name and name != str(number) and any(row.get(name) == name for row in rows) for number, name in enumerate(names)
    )


def is_western(data: bytes) -> bool:
    """Return whether bytes are rather text of Western Windows than UTF-8: some letters are no ASCII, and none of these letters is UTF-8.

    Texts in other scripts have too many such bytes, and their encoding cannot be told from a few bytes.

    >>> is_western("caf\xe9".encode("cp1252")), is_western("caf\xe9".encode()), is_western("\u0448\u0443\u043c".encode("cp1251"))
    (True, False, False)
    """
    num_others = sum(byte > 0x7F for byte in data)
    if not 0 < num_others <= _MAX_WESTERN_SHARE * len(data) or not data.decode(errors="ignore").isascii():
        return False
    try:
        data.decode(WESTERN)
    except UnicodeDecodeError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------------------- id


def _guess_id(rows: Sequence[Row], columns: Mapping[str, Sequence[Any]]) -> tuple[str | None, str]:
    names = sorted(
        (path for path in columns if _is_id_name(path)),
        key=lambda path: (path != "id", path.count("."), _last(path) not in _ID_NAMES),
    )
    repeated = None
    for path in names:
        values = [single(value) for value in columns[path]]
        is_id = all(type(value) in (str, int) and 0 < len(str(value)) <= _MAX_ID_CHARS for value in values)
        if not is_id or len(values) < len(rows):
            continue
        if len(set(map(str, values))) == len(values):
            return path, f"in every row read, and no value stands twice ({counted(len(rows), 'row')})"
        repeated = repeated or path
    if rows and all(row.format in _WITH_IDS for row in rows):
        return "id", "made by the reader, of the name of the file or the key of the sample"
    why = (
        "no field of every row looks like an id" if repeated is None else f"values of {printable(repeated)} stand twice"
    )
    if not rows:
        return None, "no row could be read"
    return None, f"made of the file and the place in the file, because {why}"


def _is_id_name(path: str) -> bool:
    return _last(path) in _ID_NAMES or re.search(r"([^a-zA-Z]|^)id$|[a-z](Id|ID)$", path) is not None


def _last(path: str) -> str:
    return path.rpartition(".")[2].lower()


# --------------------------------------------------------------------------------------------------------------- text


def _guess_text(columns: Mapping[str, Sequence[Any]], num_rows: int, id_field: str | None) -> tuple[FieldMapping, str]:
    if (of_ids := _guess_tokens(columns, num_rows, id_field)) is not None:
        has_text = "text" in _texts(columns, num_rows, id_field)
        reason = "arrays of token ids, so that the rows are tokenized already"
        return of_ids, f"{reason}; for the texts give --text-field text" if has_text else reason
    talks = [path for path, values in columns.items() if _are_conversations(values, num_rows)]
    if talks:
        path = min(talks, key=lambda path: (path.count("."), _last(path) != "messages"))
        return FieldMapping(id_field, messages=path), "lists of messages"
    turns = [path for path, values in columns.items() if _are_turns(path, values, num_rows)]
    if turns and "text" not in columns:
        return FieldMapping(
            id_field, messages=turns[0]
        ), "lists of strings, which are read as turns of user and assistant"
    texts = _texts(columns, num_rows, id_field)
    if "text" in texts:
        return FieldMapping(id_field), "the usual name"
    pair, prompts = _prompt_and_answer(texts)
    if pair:
        answer = pair[-1]
        answers = (answer,) if all(not value.isspace() and value for value in texts[answer]) else ()
        reason = f"{name_some(prompts)} {'is' if len(prompts) == 1 else 'are'} the prompt, and {answer} is the answer"
        return FieldMapping(id_field, text_field=pair, answer=answers), reason
    for usual_texts in (texts, _texts(columns, num_rows, id_field, _USUAL_SHARE)):
        for name in _TEXT_NAMES:
            # A string of an array has the name of the array, which says little about a single string.
            paths = (path for path in usual_texts if _last(path) == name and path in columns)
            usual = next((path for path in paths if _are_plain(columns[path])), None)
            if usual is not None:
                return FieldMapping(id_field, text_field=usual), "the usual name" if usual == "text" else "a usual name"
    if not num_rows:
        return FieldMapping(id_field), "no row could be read"
    if len(prompts) > 1:
        return FieldMapping(id_field, text_field=prompts), f"{name_some(prompts)} are usual names of a prompt"
    unnamed = [
        path for path, values in texts.items() if not _is_id_name(path) and not all(map(_NUMBER.fullmatch, values))
    ]
    if not unnamed:
        return FieldMapping(id_field), "no field is a string in every row: name the field with --text-field"
    wanted = [path for path in unnamed if _name_of(path) not in _NEVER_TEXTS] or unnamed
    longest = max(wanted, key=lambda path: sum(map(len, texts[path])))
    reason = "the longest strings" if longest in columns else "the first string of each array"
    if all(value.startswith(_PYTHON_BEGINNINGS) for value in texts[longest]):
        reason += "; the strings are lists or dictionaries as Python shows them, whose parts are not read: write the column anew as JSON"
    elif all(value.startswith(("{", "[")) for value in texts[longest]):
        reason += "; the strings look like JSON, and no part of them looks like a text: name a path into the JSON with --text-field"
    return FieldMapping(id_field, text_field=longest), reason


def has_no_text(rows: Sequence[Row]) -> bool:
    """Return whether rows have values, and no text can be guessed from the values."""
    return (
        bool(rows)
        and _guess_text(_by_path(rows), len(rows), None)[0] == FieldMapping(None)
        and sum("text" in row.values for row in rows) < _USUAL_SHARE * len(rows)
    )


def _are_plain(values: Sequence[Any]) -> bool:
    return not any(type(value) is list for value in values)


def _guess_tokens(columns: Mapping[str, Sequence[Any]], num_rows: int, id_field: str | None) -> FieldMapping | None:
    """Return the fields of token ids, or None if no field of a usual name has arrays of integers in every row."""
    arrays = {path: values for path, values in columns.items() if len(values) == num_rows and _are_integers(values)}

    def first(names: Sequence[str], like: str | None = None) -> str | None:
        """Return the first array of a name, in the same object as another array."""
        folder = None if like is None else like.rpartition(".")[0]
        fitting = (path for name in names for path in arrays if _last(path) == name)
        return next((path for path in fitting if folder is None or path.rpartition(".")[0] == folder), None)

    ids = first(_TOKEN_NAMES)
    if ids is None or min(map(min, filter(None, arrays[ids])), default=0) < 0:
        return None
    labels = first(_TOKEN_LABEL_NAMES, ids)
    return FieldMapping(
        id_field,
        token_ids=ids,
        token_labels=labels,
        token_mask=None if labels is not None else first(_TOKEN_MASK_NAMES, ids),
        attention_mask=first(("attention_mask",), ids),
        drop=[path for name in _TOKEN_EXTRAS if (path := first((name,), ids)) is not None],
    )


def _are_integers(values: Sequence[Any]) -> bool:
    """Return whether all values are arrays of integers, and an array is not empty."""
    return any(values) and all(type(value) is list and {int}.issuperset(map(type, value)) for value in values)


def _are_conversations(values: Sequence[Any], num_rows: int) -> bool:
    if len(values) < num_rows or not all(map(is_messages, values)):
        return False
    return _are_answered(values)


def _are_turns(path: str, values: Sequence[Any], num_rows: int) -> bool:
    """Return whether values of a usual name are lists of strings, which are the turns of a conversation."""
    if len(values) < num_rows or _last(path) not in _TURN_NAMES:
        return False
    are_lists = all(type(value) is list and {str}.issuperset(map(type, value)) for value in values)
    return are_lists and _are_answered([with_roles(value) for value in values])


def _are_answered(conversations: Sequence[Any]) -> bool:
    """Return whether most conversations have an answer."""
    return 2 * sum(any(map(is_answering, messages)) for messages in conversations) > len(conversations)


def _texts(
    columns: Mapping[str, Sequence[Any]], num_rows: int, id_field: str | None, share: float = 1.0
) -> dict[str, list[str]]:
    """Return path -> strings, for the fields that at least this share of the rows has, as a string or null."""
    texts = {}
    for path, values in columns.items():
        if path == id_field or len(values) < share * num_rows:
            continue
        if any(type(value) is list and len(value) > 1 for value in values) or _have_texts(values):
            if any(value == [] for value in values):
                continue  # a row without a first string has no such field
            # Several answers of an array: the first answer is the text.
            path, values = f"{path}.0", [value[0] if type(value) is list and value else None for value in values]
        if any(type(value) is dict for value in values):
            path, values = f"{path}.text", [value.get("text") if type(value) is dict else value for value in values]
        strings = [single(value) for value in values]
        if all(type(value) is str or value in (None, []) for value in strings):
            plain = [value if type(value) is str else "" for value in strings]
            if any(plain):
                texts[path] = plain
    return texts


def _have_texts(values: Sequence[Any]) -> bool:
    """Return whether values are arrays of objects with a text, such as the answers of SQuAD."""
    lists = [value for value in values if type(value) is list and value]
    return bool(lists) and all(type(value[0]) is dict and type(value[0].get("text")) is str for value in lists)


def _prompt_and_answer(texts: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paths of the prompt and then of the answer, or nothing, and the paths of the prompt alone."""
    names = {_name_of(path): path for path in reversed(list(texts))}
    answer = next((names[name] for name in _ANSWER_NAMES if name in names), None)
    prompts = tuple(names[name] for name in _PROMPT_NAMES if name in names)
    return (*prompts, answer) if answer is not None and prompts else (), prompts


def _name_of(path: str) -> str:
    """Return the last name of a path that says what the string is.

    >>> _name_of("output.0"), _name_of("answers.text.0"), _name_of("answers.0.text"), _name_of("meta.text")
    ('output', 'answers', 'answers', 'text')
    """
    path = path.replace(".0", "")
    above = _last(path.rpartition(".")[0])
    return above if _last(path) == "text" and above in _ANSWER_NAMES else _last(path)


# -------------------------------------------------------------------------------------------------------------- skill


def _guess_skill(
    columns: Mapping[str, Sequence[Any]], num_rows: int, files: Sequence[str], taken: set[str | None]
) -> tuple[str | None, str]:
    labels = {
        path: len(set(names))
        for path, values in columns.items()
        if path not in taken
        and not _is_id_name(path)
        and len(values) == num_rows
        and (names := _labels(values)) is not None
        and 2 <= len(set(names)) <= min(_MAX_SKILLS, num_rows // 2)
    }
    named = [path for path in labels if _skill_rank(path) < len(_SKILL_NAMES)]
    if named:
        path = min(named, key=lambda path: (_skill_rank(path), path.count(".")))
        return path, f"{labels[path]:,} values in the rows read"
    of_file = _skill_of_files(files)
    if of_file is not None:
        return of_file
    strings = [
        path
        for path in labels
        if all(type(single(value)) is str and not _DATE.match(single(value)) for value in columns[path])
    ]
    usual = [path for path in strings if not set(_words_of(path)) & set(_NEVER_SKILLS)]
    if usual:
        path = min(usual, key=lambda path: (labels[path], path.count(".")))
        return path, f"{labels[path]:,} values in the rows read"
    return None, "no field looks like a skill, so that clusters of the texts become the skills"


def _labels(values: Sequence[Any]) -> list[str] | None:
    """Return the values as names of skills, or None if a value cannot be a skill."""
    names = []
    for value in map(single, values):
        if type(value) not in (str, int, bool) or (type(value) is str and not value.strip()):
            return None
        name = category_of(value)
        if len(name) > _MAX_SKILL_CHARS or "\n" in name:
            return None
        names.append(name)
    return names


def _skill_rank(path: str) -> int:
    words = _words_of(path.rpartition(".")[2])
    return _SKILL_NAMES.index(words[-1]) if words and words[-1] in _SKILL_NAMES else len(_SKILL_NAMES)


def _words_of(path: str) -> list[str]:
    """Return the words of the names in a path, in small letters.

    >>> _words_of("meta.answerKey"), _words_of("pile_set_name"), _words_of("WARC-Identified-Content-Language")
    (['meta', 'answer', 'key'], ['pile', 'set', 'name'], ['warc', 'identified', 'content', 'language'])
    """
    return [word.lower() for word in _WORDS.findall(path)]


def _skill_of_files(files: Sequence[str]) -> tuple[str, str] | None:
    """Return the part of the files' names that differs between files, and the reason, or None."""
    folders = [file.split("/")[0] for file in files if "/" in file]
    if len(folders) == len(files) and 2 <= len(set(folders)) <= _MAX_SKILLS:
        return "file.parts.0", f"{len(set(folders)):,} folders: {name_some(sorted(set(folders)), 4)}"
    deepest = {file.rpartition("/")[0] for file in files}
    if "" not in deepest and 2 <= len(deepest) <= _MAX_SKILLS:
        return "file.folder", f"{len(deepest):,} folders"
    stems = {stem_of(file.rpartition("/")[2]) for file in files}
    kinds = {_DIGITS.sub("", stem) for stem in stems}
    # Names that differ by a number are pieces of one data set, and names of splits are no skills.
    are_skills = len(kinds) == len(stems) and not any(_SPLIT_WORDS.fullmatch(stem.lower()) for stem in stems)
    if are_skills and 2 <= len(stems) <= _MAX_SKILLS:
        return "file.stem", f"{len(stems):,} names of files"
    return None
