"""Formats and compressions of corpus files, by the suffix of the name."""

import codecs
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from skillshard.errors import CorpusError

Format = Literal["jsonl", "csv", "tsv", "text", "wet", "parquet", "arrow", "arrow-stream", "tar"]
Compression = Literal["gzip", "zstd", "bz2", "xz"]
# Formats that are bytes of text. These formats can be compressed. The other formats have compressions of their own.
TEXT_FORMATS: tuple[Format, ...] = ("jsonl", "csv", "tsv", "text", "wet")
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""Suffix -> compression of text formats."""
DATA_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".wet": "wet",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".tar": "tar",
}
"""Suffix -> format of files that are read in every directory. A file ".json" may hold lines or documents, and the content decides."""
# Text, markup and source code. Files beside the data often have these suffixes too, so a directory's text files are read on request.
_TEXT_SUFFIXES = (
    ".txt .text .md .markdown .rst .adoc .org .tex .html .htm .xml .srt "
    ".py .pyi .ipynb .c .h .cc .cpp .cxx .hh .hpp .cu .cs .java .kt .scala .go .rs .swift .m .js .jsx .ts .tsx .vue .css "
    ".php .rb .pl .pm .lua .r .jl .hs .ml .ex .exs .erl .clj .lisp .el .f90 .f .pas .asm .s .v .vhd .sol .dart "
    ".sh .bash .ps1 .sql .yaml .yml .toml .ini .cmake .proto .lean .thy"
)
SUFFIXES: dict[str, Format] = {**DATA_SUFFIXES, **dict.fromkeys(_TEXT_SUFFIXES.split(), "text")}
"""Suffix -> format, without the suffixes of compressions."""
# Suffixes that compression programs add. A file of a known format under such a suffix is an error, not a file to leave out.
_OTHER_COMPRESSIONS = [
    ".bgz",
    ".zstd",
    ".lzma",
    ".lz",
    ".lz4",
    ".lzo",
    ".br",
    ".sz",
    ".snappy",
    ".deflate",
    ".z",
    ".zip",
    ".7z",
    ".rar",
]
_COMPRESSED_TARS = (".tgz", ".tbz", ".tbz2", ".txz", ".tlz", ".tzst")
WITHOUT_SUFFIX = "without a suffix"
"""Kind of a file without a suffix, for counting."""
# A longer suffix is rather a part of the name, and would give many kinds with one file each.
_PLAIN_SUFFIX = re.compile(r"(\.[a-z0-9_~-]{1,12}){1,2}")


TextFiles = Literal["named", "whole", "lines"]
"""Choice of the text files that are read, and of their samples."""
BareFormat = Literal["jsonl", "csv", "tsv", "text"]
"""Format of files without a suffix."""


@dataclass(frozen=True)
class FileLayout:
    """Facts about files that the names do not show. The defaults fit most corpora.

    Args:
        rows: Dotted path of the array of rows in JSON documents, such as "Instances". The other fields of the object become fields of
            each row. The path may lead through arrays of objects: "data.paragraphs.qas" joins the rows of all paragraphs. The step "*" stands for each field of an object: "*" reads
            each value of the object as a row, with its name as the field "key". None stands for lines of JSON, an array, or objects one after the other.
        text_files: "named" reads a file of text or code only if its name or its suffix is given, and the file is a sample. "whole" also
            reads the text files of directories. With "lines", each line of these files is a sample.
        header: Names of the columns of CSV and TSV files without a header line.
        delimiter: Character between the fields of a CSV file. None stands for a comma in .csv and a tab in .tsv.
        quote: Character around fields of CSV and TSV that hold delimiters. "" stands for files without quoting.
        encoding: Encoding of CSV, TSV and text files, as Python names it. JSON is always UTF-8.
        bare_files: Format of files without a suffix, such as wiki_00 and RC_2019-01.zst, and of a named file with an unknown suffix. None:
            such files are left out.

    Raises:
        CorpusError: A value is impossible.

    >>> FileLayout(encoding="utf8000")
    Traceback (most recent call last):
        ...
    skillshard.errors.CorpusError: `encoding` 'utf8000' is not known. Give a name of Python's codecs, such as utf-8, utf-16 or cp1252.
    """

    rows: str | None = None
    text_files: TextFiles = "named"
    header: tuple[str, ...] | None = None
    delimiter: str | None = None
    quote: str = '"'
    encoding: str = "utf-8"
    bare_files: BareFormat | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and not all(self.rows.split(".")):
            raise CorpusError(f"`rows` must be a dotted path such as Instances or data.rows, got {self.rows!r}.")
        if self.text_files not in ("named", "whole", "lines"):
            raise CorpusError(f"`text_files` must be 'named', 'whole' or 'lines', got {self.text_files!r}.")
        if self.bare_files not in (None, "jsonl", "csv", "tsv", "text"):
            raise CorpusError(f"`bare_files` must be 'jsonl', 'csv', 'tsv' or 'text', got {self.bare_files!r}.")
        if self.header is not None and (not all(self.header) or len(set(self.header)) < len(self.header)):
            raise CorpusError(f"`header` must be different names of columns, got {', '.join(map(repr, self.header))}.")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in "\r\n"):
            raise CorpusError(f"`delimiter` must be one character, got {self.delimiter!r}.")
        if len(self.quote) > 1 or self.quote in ("\r", "\n", self.delimiter):
            raise CorpusError(
                f"`quote` must be one character other than the delimiter, or nothing, got {self.quote!r}."
            )
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError) as error:
            raise CorpusError(
                f"`encoding` {self.encoding!r} is not known. Give a name of Python's codecs, such as utf-8, utf-16 or cp1252."
            ) from error

    @property
    def is_utf8(self) -> bool:
        """Whether text files are in UTF-8."""
        return codecs.lookup(self.encoding).name == "utf-8"

    def to_json(self) -> dict[str, Any]:
        """Return the values that differ from the defaults, as plain values.

        >>> FileLayout(rows="Instances").to_json()
        {'rows': 'Instances'}
        """
        defaults = asdict(DEFAULT_LAYOUT)
        changed = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        return changed | ({"header": list(self.header)} if self.header is not None else {})

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "FileLayout":
        """Return the layout with the values of `to_json`.

        Raises:
            CorpusError: The values are no layout.

        >>> FileLayout.from_json({"header": ["text", "label"]}).header
        ('text', 'label')
        """
        header = value.get("header")
        texts = [
            *(header if type(header) is list else [header] * ("header" in value)),
            *{**value, "header": ""}.values(),
        ]
        if set(value) - {field.name for field in fields(cls)} or not {str}.issuperset(map(type, texts)):
            raise CorpusError(
                f"not the layout of a corpus: {value}. Another version of skillshard recorded the layout: tag the corpus again."
            )
        return cls(**{**value, "header": None if header is None else tuple(header)})


DEFAULT_LAYOUT = FileLayout()
"""Layout of most corpora."""


@dataclass(frozen=True)
class CorpusFile:
    """File of a corpus.

    Attributes:
        place: Absolute path or URI.
        name: Name in the corpus, relative and with "/".
        format: Format by the name.
        num_bytes: Size.
        mtime_ns: Modification time, in nanoseconds.
        compression: Compression by the name, or None.
        layout: Facts about the file that the name does not show.
    """

    place: str
    name: str
    format: Format
    num_bytes: int
    mtime_ns: int
    compression: Compression | None = None
    layout: FileLayout = DEFAULT_LAYOUT


def format_of(name: str, bare: BareFormat | None = None) -> Format | None:
    """Return the format by the name of a file, or None.

    Args:
        name: Name.
        bare: Format of a file without a suffix.

    >>> format_of("AA/wiki_00", "jsonl"), format_of("RC_2019.zst", "jsonl"), format_of("eng.train", "jsonl")
    ('jsonl', 'jsonl', None)
    >>> [format_of(name) for name in ("a/b.v1.jsonl.gz", "CORPUS.md", "X.PARQUET", "a.parquet.gz", "model.pt")]
    ['jsonl', 'text', 'parquet', None, None]
    """
    base = name.rsplit("/", 1)[-1].lower()
    stem = _without_compression(base)
    form = SUFFIXES.get(_last_suffix(stem)) if "." in stem else bare
    return form if stem == base or form in TEXT_FORMATS else None


def compression_of(name: str, bare: BareFormat | None = None) -> Compression | None:
    """Return the compression of a text format by the name of a file, or None.

    >>> compression_of("a.jsonl.xz"), compression_of("a.jsonl"), compression_of("a.tar.gz")
    ('xz', None, None)
    """
    return COMPRESSIONS.get(_last_suffix(name.lower())) if format_of(name, bare) in TEXT_FORMATS else None


def base_suffix(name: str) -> str:
    """Return the suffix that names the format, in lower case and without a compression.

    >>> base_suffix("a/b.JSON.gz")
    '.json'
    """
    return _last_suffix(_without_compression(name.rsplit("/", 1)[-1].lower()))


def known_suffixes() -> str:
    """Return the suffixes of data for a message, such as in "Names must end in ..."."""
    plain = [suffix for suffix, form in DATA_SUFFIXES.items() if form not in TEXT_FORMATS]
    text = [suffix for suffix, form in DATA_SUFFIXES.items() if form in TEXT_FORMATS]
    return f"{' '.join(text)} (also with {' '.join(COMPRESSIONS)}) {' '.join(plain)}"


def stem_of(base: str) -> str:
    """Return the last part of a file's name without the suffix of the format.

    >>> stem_of("train-00001.v2.jsonl.zst"), stem_of("A.PARQUET"), stem_of("notes")
    ('train-00001.v2', 'A', 'notes')
    """
    stem = base[: len(_without_compression(base.lower()))]
    suffix = _last_suffix(stem.lower())
    return stem[: -len(suffix)] if suffix in SUFFIXES else base


def is_compressed_otherwise(name: str) -> bool:
    """Return whether a name shows a known format of data in a compression that is not read.

    >>> [is_compressed_otherwise(name) for name in ("a.jsonl.lz4", "a.tar.gz", "a.tgz", "a.jsonl.gz", "a.txt.lz4")]
    [True, True, True, False, False]
    """
    base = name.rsplit("/", 1)[-1].lower()
    if format_of(base) is not None:
        return False
    if base.endswith(_COMPRESSED_TARS):
        return True
    ends = (*COMPRESSIONS, *_OTHER_COMPRESSIONS)
    return any(base.endswith(end) and _last_suffix(base.removesuffix(end)) in DATA_SUFFIXES for end in ends)


def suffix_of(name: str) -> str:
    """Return the suffix of a file that is not read, for counting. After a known suffix, the suffix has two parts.

    >>> [suffix_of(name) for name in ("a/notes.DOC", "a.doc.gz", "a.jsonl.bak", "Makefile", "model.0 (copy)")]
    ['.doc', '.doc.gz', '.jsonl.bak', 'without a suffix', 'other names']
    """
    base = name.rsplit("/", 1)[-1].lower().lstrip("._")
    stem, dot, last = base.rpartition(".")
    if not dot:
        return WITHOUT_SUFFIX
    is_second = f".{last}" in (*COMPRESSIONS, *_OTHER_COMPRESSIONS) or format_of(stem) is not None
    first = stem.rpartition(".")[2] if is_second and "." in stem else ""
    suffix = f".{first}.{last}" if first else f".{last}"
    return suffix if _PLAIN_SUFFIX.fullmatch(suffix) else "other names"


def _without_compression(base: str) -> str:
    return next((base.removesuffix(end) for end in COMPRESSIONS if base.endswith(end)), base)


def _last_suffix(base: str) -> str:
    _, dot, last = base.rpartition(".")
    return dot + last


def delimiter_of(header: str) -> str | None:
    """Return the delimiter in the first line of a CSV file without a comma, or None.

    >>> delimiter_of("text;topic"), delimiter_of("text,topic;kind"), delimiter_of("text")
    (';', None, None)
    """
    if "," in header:
        return None
    return max((mark for mark in (";", "\t", "|") if mark in header), key=header.count, default=None)
