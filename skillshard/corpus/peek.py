"""Look at the first megabytes of a corpus before any work: files, fields, bad rows, and the command to use next.

At most `MAX_FILES` files are read: the first file of every suffix, and other files at equal distances. Of each file at most `FILE_BYTES` bytes and
`FILE_ROWS` rows are read. A JSON document that is one object is always read whole, because its rows may stand anywhere inside.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from skillshard import canonical, places
from skillshard.corpus.bad_rows import DEFAULT_SHARE, proposed_share
from skillshard.corpus.by_columns import table_by_columns
from skillshard.corpus.contents import is_utf16, open_text
from skillshard.corpus.corpus_list import is_corpus_file
from skillshard.corpus.files import Corpus
from skillshard.corpus.formats import (
    DEFAULT_LAYOUT,
    CorpusFile,
    FileLayout,
    base_suffix,
    delimiter_of,
    format_of,
    suffix_of,
)
from skillshard.corpus.guess import (
    WESTERN,
    Guess,
    Row,
    fields_of,
    guess,
    has_no_text,
    is_western,
    lacks_header,
    options_of,
    path_of_rows,
    shell_line,
)
from skillshard.corpus.mapping import CorpusReading
from skillshard.corpus.partitions import Partition
from skillshard.corpus.reader import read_partition
from skillshard.corpus.sample import Rejection, Sample
from skillshard.corpus.stretches import Stretch, stretches_of
from skillshard.errors import CorpusError, name_some
from skillshard.printable import printable

MAX_FILES = 8
"""Largest number of files that are read."""
FILE_BYTES = 4 << 20
"""Bytes read of a file: of the file itself for lines, of the rows as JSON for other formats."""
FILE_ROWS = 2000
"""Largest number of rows read of a file."""
MAX_PROBLEMS = 100
"""Largest number of bad rows that are described."""
_HEADER_BYTES = 64 << 10  # longer than the names of a thousand columns
_MANY_LINES = 20  # a file of so many lines may rather hold a sample in each line


class PeekField(BaseModel):
    """A field of the rows read."""

    model_config = ConfigDict(extra="forbid")

    path: str
    types: list[str] = Field(description="the most frequent type first")
    num_rows: int = Field(description="rows that have the field")
    num_values: int = Field(description="different values")
    example: str = Field(description="first value that is not empty, shortened, with escaped control characters")


class PeekProblem(BaseModel):
    """A row without a usable sample."""

    model_config = ConfigDict(extra="forbid")

    file: str = Field(description="name of the file in the corpus")
    line: int | None = Field(description="1-based line or row; null for the whole file")
    reason: str
    detail: str


class PeekFacts(BaseModel):
    """The facts of `skillshard peek`."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/peek/1"] = Field("skillshard/peek/1", alias="schema")
    num_files: int
    num_bytes: int = Field(description="size of all files")
    suffixes: dict[str, int] = Field(description="suffix -> number of files")
    left_out: dict[str, int] = Field(description="kind -> number of files that are not read")
    read: list[str] = Field(description="names of the files of which the first rows were read")
    num_rows: int = Field(description="rows read")
    fields: list[PeekField] = Field(description="in the order of their first occurrence")
    id: str = Field(description="proposed id, with the reason")
    text: str = Field(description="proposed text, with the reason")
    skill: str = Field(description="proposed skill, with the reason")
    num_problems: int = Field(description="bad rows among the rows read, with the proposed fields")
    problems: list[PeekProblem] = Field(description=f"the first {MAX_PROBLEMS} bad rows")
    command: str = Field(description="command line to use next, quoted for bash")

    def to_json(self) -> bytes:
        """Return the facts as one JSON object."""
        return canonical.to_json(self.model_dump(by_alias=True))


@dataclass
class _Look:
    """The first rows of some files.

    Attributes:
        rows: Rows whose JSON or table could be parsed.
        read: Files that were read.
        whole: Names of the files that were read to the end.
        num_bad: Number of rows that could not be parsed.
    """

    rows: list[Row]
    read: list[CorpusFile]
    whole: set[str]
    num_bad: int = 0


def peek(listed: Sequence[str], *, layout: FileLayout = DEFAULT_LAYOUT) -> PeekFacts:
    """Read the first megabytes of a corpus, and propose the fields and the next command.

    Args:
        listed: Directories, globs or files, as in `Corpus.open`, or a corpus file.
        layout: Known facts about the files. Unknown facts (`rows`, `text_files`) are proposed.

    Raises:
        CorpusError: The files of the corpus cannot be listed, or a file is a table by columns.
        StorageError: A file cannot be read.
    """
    corpus, layout = _opened(listed, layout)
    look = _look(corpus.files, corpus.reading())
    _refuse_tables(look)
    # Only a file in the right encoding and with the right delimiter and quotes shows whether the first line is a header.
    for propose in (_proposed_encoding, _proposed_layout, _proposed_quote, _proposed_header):
        changed = propose(look, corpus, layout)
        if changed != layout:
            layout = changed
            corpus = Corpus.open(listed, layout=layout)
            look = _look(corpus.files, corpus.reading())
    guessed = _guess(look, corpus)
    reading = corpus.reading() if corpus.mappings is not None else CorpusReading({"": guessed.fields})
    problems, num_good = _problems(look.read, reading)
    return PeekFacts(
        schema="skillshard/peek/1",
        num_files=len(corpus.files),
        num_bytes=_num_bytes(corpus),
        suffixes=dict(Counter(suffix_of(file.name) for file in corpus.files).most_common()),
        left_out=dict(corpus.left_out),
        read=[file.name for file in look.read],
        num_rows=len(look.rows),
        fields=[
            PeekField(
                path=facts.path,
                types=list(facts.types),
                num_rows=facts.num_rows,
                num_values=facts.num_values,
                example=facts.example,
            )
            for facts in fields_of(look.rows)
        ],
        id=_described(guessed.fields.id_field or "none", guessed.id_reason),
        text=_described(_text_name(guessed), f"{guessed.text_reason}{_remark(look, corpus, layout)}"),
        skill=_described(guessed.skill or "none", guessed.skill_reason),
        num_problems=len(problems),
        problems=[
            PeekProblem(file=bad.file, line=bad.line, reason=bad.reason, detail=bad.detail)
            for bad in problems[:MAX_PROBLEMS]
        ],
        command=_command(
            listed,
            layout,
            guessed,
            has_fields=corpus.mappings is None,
            num_bad=len(problems),
            num_good=num_good,
        ),
    )


def _opened(listed: Sequence[str], layout: FileLayout) -> tuple[Corpus, FileLayout]:
    """Open the corpus. A directory that holds text files alone is opened as texts, unless larger files without a suffix are the data."""
    try:
        return Corpus.open(listed, layout=layout), layout
    except CorpusError:
        if layout.text_files != "named" or any(map(is_corpus_file, listed)):
            raise
        as_texts = replace(layout, text_files="whole")
        try:
            corpus = Corpus.open(listed, layout=as_texts)
            if any(format_of(file.name) for file in corpus.files):
                opened = _opened_bare(listed, layout)
                is_description = opened is not None and 2 * _num_bytes(corpus) < _num_bytes(opened[0])
                return opened if opened is not None and is_description else (corpus, as_texts)
        except CorpusError:
            pass  # the first error names the cause without the change of the layout
        if (opened := _opened_bare(listed, layout)) is not None:
            return opened
        raise


def _opened_bare(listed: Sequence[str], layout: FileLayout) -> tuple[Corpus, FileLayout] | None:
    """Open files without a suffix as lines of JSON or as texts, by the beginning of the largest file. None: no such files exist."""
    as_texts = replace(layout, text_files="whole", bare_files="text")
    try:
        corpus = Corpus.open(listed, layout=as_texts)
        bare = [file for file in corpus.files if format_of(file.name) is None]
        if not bare:
            return None
        if not _head(max(bare, key=lambda file: file.num_bytes)).lstrip().startswith(b"{"):
            return corpus, as_texts
        as_rows = replace(layout, bare_files="jsonl")
        return Corpus.open(listed, layout=as_rows), as_rows
    except CorpusError:
        return None


def _num_bytes(corpus: Corpus) -> int:
    return sum(file.num_bytes for file in corpus.files)


def chosen_files(files: Sequence[CorpusFile]) -> list[CorpusFile]:
    """Return at most `MAX_FILES` files: the first file of every suffix, and other files at equal distances, in the order of the corpus."""
    firsts: dict[str, int] = {}
    for index, file in enumerate(files):
        firsts.setdefault(suffix_of(file.name), index)
    spread = (index * len(files) // MAX_FILES for index in range(MAX_FILES))
    indexes = list(dict.fromkeys((*firsts.values(), *spread)))[:MAX_FILES] if files else []
    return [files[index] for index in sorted(indexes)]


def _first_part(file: CorpusFile) -> Stretch:
    return stretches_of(file, FILE_BYTES)[0]


def _first_rows(stretch: Stretch, reading: CorpusReading) -> Iterator[Sample | Rejection]:
    """Yield the first rows of a file, up to `FILE_ROWS` rows or about `FILE_BYTES` bytes."""
    num_bytes = 0
    for row in islice(read_partition(Partition(0, (stretch,)), reading), FILE_ROWS):
        yield row
        if isinstance(row, Sample):
            num_bytes += len(row.text) + len(orjson.dumps(row.meta, default=repr))
        if num_bytes > FILE_BYTES:
            return


def _look(files: Sequence[CorpusFile], reading: CorpusReading) -> _Look:
    reading = CorpusReading(reading.mappings, whole_rows=True)
    look = _Look([], [], set())
    for file in chosen_files(files):
        stretch = _first_part(file)
        look.read.append(file)
        num_rows = 0
        for row in _first_rows(stretch, reading):
            num_rows += 1
            if isinstance(row, Sample):
                look.rows.append(Row(file.name, stretch.format, row.meta))
            else:
                look.num_bad += 1
        if num_rows < FILE_ROWS:
            look.whole.add(file.name)
    return look


def _refuse_tables(look: _Look) -> None:
    """Raise CorpusError if a JSON file is a single object that holds a table by columns, because no proposal could read its rows."""
    for row in look.rows:
        if base_suffix(row.file) == ".json" and (table := table_by_columns(row.values)) is not None:
            raise CorpusError(f"{printable(row.file)} holds {table}.")


def _proposed_encoding(look: _Look, corpus: Corpus, layout: FileLayout) -> FileLayout:
    """Return the layout with another encoding, if a file of text begins with the mark of UTF-16 or has letters of Western Windows."""
    texts = [file for file in look.read if file.format in ("csv", "tsv", "text")]
    if corpus.mappings is not None or not layout.is_utf8 or not texts:
        return layout
    if any(is_utf16(_first_part(file)) for file in texts):
        return replace(layout, encoding="utf-16")
    # The encoding holds for all files. So a few Western files among files in UTF-8 are rather set aside.
    heads = [head for head in map(_head, texts) if not head.isascii()]
    is_usual = 2 * len(heads) >= len(texts) and all(map(is_western, heads))
    return replace(layout, encoding=WESTERN) if look.num_bad and heads and is_usual else layout


def _head(file: CorpusFile) -> bytes:
    """Return the first bytes of a file of text, without its compression. A file that is not as named has none."""
    source = open_text(_first_part(file), expected="text")
    return b"" if isinstance(source, Rejection) else source.read(_HEADER_BYTES)


def _proposed_quote(look: _Look, corpus: Corpus, layout: FileLayout) -> FileLayout:
    """Return the layout without quotes, if only then every row of the tables can be read."""
    has_tables = any(file.format in ("csv", "tsv") for file in look.read)
    if corpus.mappings is not None or not layout.quote or not has_tables or not look.num_bad:
        return layout
    plain = replace(layout, quote="")
    unquoted = _look([replace(file, layout=plain) for file in look.read], corpus.reading())
    return plain if unquoted.rows and not unquoted.num_bad else layout


def _proposed_header(look: _Look, corpus: Corpus, layout: FileLayout) -> FileLayout:
    """Return the layout with names for the columns, if the first line of every table that was read is rather a row."""
    tables = [file.name for file in look.read if file.format in ("csv", "tsv")]
    if corpus.mappings is not None or layout.header is not None or not tables:
        return layout
    num_columns = set()
    for name in tables:
        rows = [row.values for row in look.rows if row.file == name]
        # A row has no field for a cell that is missing, and the longest row has all names.
        names = max(map(list, rows), key=len, default=[])
        if not lacks_header(names, rows):
            return layout
        num_columns.add(len(names))
    if len(num_columns) > 1:
        return layout
    return replace(layout, header=tuple(f"column_{number}" for number in range(1, num_columns.pop() + 1)))


def _proposed_layout(look: _Look, corpus: Corpus, layout: FileLayout) -> FileLayout:
    """Return the layout with the path of the rows and the delimiter, where the first rows show them."""
    if corpus.mappings is not None:  # a corpus file names the layouts
        return layout
    tables = [file for file in look.read if file.format == "csv"]
    if tables and layout.delimiter is None and layout.header is None:
        layout = replace(layout, delimiter=delimiter_of(_first_line(tables[0])))
    if layout.rows is None and (path := _path_of_rows(look)) is not None:
        layout = replace(layout, rows=path)
    return layout


def _first_line(file: CorpusFile) -> str:
    return _head(file).partition(b"\n")[0].decode(errors="replace")


def _path_of_rows(look: _Look) -> str | None:
    """Return the path of the rows, if every file that was read is one JSON object with an array of objects inside, otherwise None."""
    counts = Counter(row.file for row in look.rows)
    is_single = all(
        base_suffix(file.name) == ".json" and counts[file.name] == 1 and file.name in look.whole for file in look.read
    )
    # An object with a text is rather a sample itself. The whole object may stand on one line, like a line of JSON.
    if not is_single or any("text" in row.values for row in look.rows):
        return None
    paths = {path_of_rows(row.values) for row in look.rows}
    return paths.pop() if len(paths) == 1 else None


def _guess(look: _Look, corpus: Corpus) -> Guess:
    names = [file.name for file in corpus.files]
    if corpus.mappings is None:
        return guess(look.rows, names)
    known = next(iter(corpus.mappings.values()))
    return guess(look.rows, names, known)


def _problems(files: Sequence[CorpusFile], reading: CorpusReading) -> tuple[list[Rejection], int]:
    """Return the bad rows with the proposed fields, and the number of good rows."""
    rows = [row for file in files for row in _first_rows(_first_part(file), reading)]
    problems = [row for row in rows if isinstance(row, Rejection)]
    return problems, len(rows) - len(problems)


def _remark(look: _Look, corpus: Corpus, layout: FileLayout) -> str:
    """Return the end of the sentence about the text: a fact about the files that the user should check."""
    if layout.encoding == WESTERN:
        return (
            f"; the files are not in UTF-8, and {WESTERN} is the usual encoding then: check the letters of the examples"
        )
    has_lines = any(str(row.values.get("text", "")).count("\n") >= _MANY_LINES for row in look.rows)
    if layout.text_files == "whole" and len(corpus.files) <= MAX_FILES and has_lines:
        return "; each file is one sample, and --text-files lines makes each line a sample"
    if corpus.mappings is not None or not has_no_text(look.rows):
        return ""
    by_file = {file.name: [row for row in look.rows if row.file == file.name] for file in look.read}
    with_text = [name for name, rows in by_file.items() if rows and not has_no_text(rows)]
    if len(with_text) == len(by_file):
        return "; or the files have different fields, and a corpus file (.yaml) names the fields of each file"
    if with_text:
        return f"; the files have different fields, so give a file with a text in place of the directory: {name_some(with_text, 3, are_paths=True)}"
    return ""


def _text_name(guessed: Guess) -> str:
    fields = guessed.fields
    return fields.token_ids or fields.messages or fields.text or ", ".join(fields.text_field or ())


def _described(name: str, reason: str) -> str:
    return f"{printable(name)} ({reason})"


def _command(
    listed: Sequence[str], layout: FileLayout, guessed: Guess, *, has_fields: bool, num_bad: int, num_good: int
) -> str:
    way = ["metadata"] if guessed.skill is not None else ["embedding"]
    words = ["skillshard", "tag", *way, *map(_shown_place, listed), *_layout_options(layout)]
    if has_fields:
        words += options_of(guessed.fields)
    words += ["--skills", "auto"] if guessed.skill is None else ["--field", guessed.skill]
    # Without a good row, setting all rows aside would leave nothing, and the fault needs another remedy.
    if num_bad and num_good:
        words += ["--on-bad-sample", "set-aside"]
        num_rows = num_bad + num_good
        if num_bad > DEFAULT_SHARE * num_rows:
            words += ["--max-set-aside", f"{proposed_share(num_bad, num_rows):g}"]
    return shell_line([*words, "--out", "tags"])


def _shown_place(place: str) -> str:
    """Return a place as a word of the command: without secrets, and never like an option."""
    return f"./{place}" if place.startswith("-") else places.public(place)


def _layout_options(layout: FileLayout) -> list[str]:
    """Return the options of the command line that differ from the default layout."""
    options: list[str] = []
    values: Mapping[str, object] = layout.to_json()
    for name, value in values.items():
        assert isinstance(value, str | list)
        options += [f"--{name.replace('_', '-')}", value if isinstance(value, str) else ",".join(value)]
    return options
