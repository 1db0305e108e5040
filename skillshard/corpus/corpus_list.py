"""Read a corpus file: a YAML file that names several corpora, each with its files and its fields (schemas/corpus-1.json).

    corpora:
      wiki:
        files: wiki/                  # directories, globs or files; relative to the directory of this file
        text: "{title}\\n\\n{body}"
      chat:
        files: [chat/*.jsonl, more/chat.parquet]
        messages: messages
        id_from_row: true
        drop: [raw_html]

The name of a corpus is the prefix of its files and ids, so that equal ids of two corpora differ. The keys are the options of the command
line with underscores.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard import places, storage
from skillshard.corpus.formats import BareFormat, FileLayout, TextFiles
from skillshard.corpus.hub import is_hub_address
from skillshard.corpus.mapping import FieldMapping, in_keys
from skillshard.errors import CorpusError, did_you_mean, name_some
from skillshard.printable import printable
from skillshard.yaml_text import YamlText

SUFFIXES = (".yaml", ".yml")
_MAX_BYTES = 1 << 20  # a list of many thousand files has less
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_Names = str | list[str]


class NamedCorpus(BaseModel):
    """One corpus of a corpus file: its files, and the fields of its rows (`FieldMapping`)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    files: _Names = Field(
        description="directories, globs or files; a relative path begins at the directory of the corpus file"
    )
    id_field: str = Field("id", description="path of the id")
    id_from_row: bool = Field(False, description="make each id of the name of the file and the place in the file")
    text_field: _Names | None = Field(
        None, description="path of the text, or several paths that are joined by an empty line"
    )
    text: str | None = Field(None, description="template of the text, with paths in braces")
    messages: str | None = Field(None, description="path of the messages of a conversation")
    token_ids: str | None = Field(None, description="path of the token ids of samples that are tokenized already")
    token_labels: str | None = Field(None, description="path of the labels of the ids: the id, or -100")
    token_mask: str | None = Field(None, description="path of a mask of the ids: 1 for a token that is learned")
    attention_mask: str | None = Field(None, description="path of a mask of the ids: 0 for padding")
    vocab_size: int | None = Field(None, description="number of ids of the vocabulary")
    answer: _Names = Field([], description="paths of the text that are answers")
    columns: _Names | None = Field(None, description="paths of the metadata that shards keep")
    drop: _Names = Field([], description="paths of the metadata that shards do not keep")
    rows: str | None = Field(None, description="path of the array of rows in JSON documents")
    text_files: TextFiles = Field(
        "named", description="samples of text files: whole files or lines, or only named files"
    )
    header: list[str] | None = Field(None, description="names of the columns of CSV and TSV files")
    delimiter: str | None = Field(None, description="character between the fields of CSV files")
    quote: str = Field('"', description="character around fields of CSV and TSV files that hold delimiters")
    encoding: str = Field("utf-8", description="encoding of CSV, TSV and text files")
    bare_files: BareFormat | None = Field(None, description="format of files without a suffix")


class CorpusList(BaseModel):
    """The content of a corpus file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Literal["skillshard/corpus/1"] = Field("skillshard/corpus/1", alias="schema")
    corpora: dict[str, NamedCorpus] = Field(min_length=1, description="prefix -> corpus")


@dataclass(frozen=True)
class OpenedCorpus:
    """One corpus of a corpus file, ready to be opened.

    Attributes:
        prefix: Prefix of the names of the files, and of the ids.
        places: Absolute paths or URIs.
        fields: Fields of the rows.
        layout: Layout of the files.
    """

    prefix: str
    places: tuple[str, ...]
    fields: FieldMapping
    layout: FileLayout


def is_corpus_file(place: str | os.PathLike[str]) -> bool:
    """Return whether a place is a corpus file, by its suffix.

    >>> is_corpus_file("data/corpus.yaml"), is_corpus_file("data/")
    (True, False)
    """
    text = places.text_of(place)
    return (text.partition("?")[0] if places.is_remote(text) else text).lower().endswith(SUFFIXES)


def given_places(listed: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the directories, globs and files that are read: the given places, or the places in a corpus file.

    Raises:
        CorpusError: A corpus file is not valid, or stands beside other places.
    """
    if not any(map(is_corpus_file, listed)):
        return [os.fspath(place) for place in listed]
    return [place for corpus in read_corpus_list(listed) for place in corpus.places]


def read_corpus_list(listed: Sequence[str | os.PathLike[str]]) -> list[OpenedCorpus]:
    """Read a corpus file, given as the only place.

    Raises:
        CorpusError: The file is not valid. The message names the line.
    """
    file = next(place for place in listed if is_corpus_file(place))
    if len(listed) > 1:
        raise CorpusError(
            f"{printable(places.public(file))} is a corpus file, and {len(listed) - 1} other places stand beside the file. Name the other places in "
            "the corpus file."
        )
    place = os.fspath(file).removeprefix("file://")
    size = storage.stat(place).num_bytes
    if size > _MAX_BYTES:
        raise CorpusError(
            f"{printable(places.public(place))} has {size:,} bytes, and a corpus file has at most {_MAX_BYTES:,}. Name directories or globs."
        )
    text = YamlText(storage.read_bytes(place), place, error=CorpusError)
    if not isinstance(text.value, dict):
        raise CorpusError(
            f"{text.place} is no corpus file: expected the key 'corpora' with a name for each corpus. examples/corpus.yaml shows one."
        )
    try:
        content = CorpusList.model_validate(text.value)
    except ValidationError as error:
        raise _fault(text, error) from error
    return [_opened(text, prefix, corpus, _folder_of(place)) for prefix, corpus in content.corpora.items()]


def _fault(text: YamlText, error: ValidationError) -> CorpusError:
    """Return the sentence for a file that does not fit its schema."""
    faults = error.errors(include_url=False)
    # A mistyped key is often the reason of a missing key, so unknown keys come first.
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    steps = fault["loc"]
    path = ".".join(str(step) for step in steps if step not in ("str", "list[str]"))
    where = f"{text.place} line {text.line(steps)}"
    if fault["type"] == "extra_forbidden":
        model = NamedCorpus if len(steps) > 1 else CorpusList
        known = [info.alias or name for name, info in model.model_fields.items()]
        return CorpusError(
            f"{where}: unknown key {path!r}{did_you_mean(str(steps[-1]), known)}. The keys there are {name_some(known, 12)}."
        )
    if fault["type"] == "missing":
        return CorpusError(
            f"{where}: the key {path!r} is missing. {'Name the files of the corpus.' if len(steps) > 1 else 'Name at least one corpus.'}"
        )
    got = f", got {fault['input']!r}" if isinstance(fault["input"], str | int | float | None) else ""
    return CorpusError(f"{where}: {path}: {fault['msg']}{got}. A string such as 'no' or '1' needs quotes.")


def _opened(text: YamlText, prefix: str, corpus: NamedCorpus, folder: str) -> OpenedCorpus:
    """Return a corpus with absolute places. Relative places begin at the directory of the corpus file."""
    where = f"{text.place} line {text.line(['corpora', prefix])}, corpus {prefix!r}"
    if not _PREFIX.fullmatch(prefix):
        raise CorpusError(
            f"{where}: a name has letters, digits, '.', '_' and '-', because the ids begin with the name. Rename the corpus."
        )
    files = [corpus.files] if isinstance(corpus.files, str) else corpus.files
    if not files or "" in files:
        raise CorpusError(f"{where}: 'files' names no file. Name a directory, a glob or a file.")
    if any(map(is_corpus_file, files)):
        raise CorpusError(
            f"{where}: 'files' names a YAML file, and a corpus file holds no other corpus file. Name the directory of the file."
        )
    if corpus.id_from_row and "id_field" in corpus.model_fields_set:
        raise CorpusError(f"{where}: 'id_field' and 'id_from_row' both make the ids. Give one of the two.")
    try:
        fields = FieldMapping(
            id_field=None if corpus.id_from_row else corpus.id_field,
            text_field=corpus.text_field,
            text=corpus.text,
            messages=corpus.messages,
            token_ids=corpus.token_ids,
            token_labels=corpus.token_labels,
            token_mask=corpus.token_mask,
            attention_mask=corpus.attention_mask,
            vocab_size=corpus.vocab_size,
            answer=corpus.answer,
            columns=corpus.columns,
            drop=corpus.drop,
        )
        layout = FileLayout(
            rows=corpus.rows,
            text_files=corpus.text_files,
            header=None if corpus.header is None else tuple(corpus.header),
            delimiter=corpus.delimiter,
            quote=corpus.quote,
            encoding=corpus.encoding,
            bare_files=corpus.bare_files,
        )
    except CorpusError as error:
        raise CorpusError(f"{where}: {in_keys(str(error))}") from error
    return OpenedCorpus(prefix, tuple(_absolute(file, folder) for file in files), fields, layout)


def _folder_of(place: str) -> str:
    """Return the directory of a file, as an absolute path or as a URI with the query of the file."""
    if not places.is_remote(place):
        return os.path.dirname(os.path.abspath(place))
    path, mark, query = place.partition("?")
    return path.rpartition("/")[0] + mark + query


def _absolute(file: str, folder: str) -> str:
    if places.is_remote(file) or is_hub_address(file) or Path(file).is_absolute():
        return file
    return places.join(folder, file)
