"""The formats of corpus files, told by the suffix of the name."""

import re
from dataclasses import dataclass
from typing import Literal

Format = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow", "arrow-stream", "tar"]
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".ndjson.gz": "jsonl.gz",
    ".json.gz": "jsonl.gz",
    ".jsonl.zst": "jsonl.zst",
    ".ndjson.zst": "jsonl.zst",
    ".json.zst": "jsonl.zst",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".tar": "tar",
}
_COMPRESSIONS = [
    ".gz",
    ".bgz",
    ".zst",
    ".zstd",
    ".bz2",
    ".xz",
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
_PLAIN_SUFFIX = re.compile(r"(\.[a-z0-9_~-]{1,12}){1,2}")


@dataclass(frozen=True)
class CorpusFile:
    """One file: its place, its name in the corpus (relative, with "/"), format by name, size and time of change."""

    place: str
    name: str
    format: Format
    num_bytes: int
    mtime_ns: int


def format_of(name: str) -> Format | None:
    """The format that a file's name promises, or None.

    >>> format_of("a/b.v1.jsonl.gz"), format_of("CORPUS.md"), format_of("X.PARQUET")
    ('jsonl.gz', None, 'parquet')
    """
    base = name.rsplit("/", 1)[-1].lower()
    return next((form for suffix, form in SUFFIXES.items() if base.endswith(suffix)), None)


def is_compressed_otherwise(name: str) -> bool:
    """Whether a name promises a known format in a compression that is not read.

    >>> [is_compressed_otherwise(name) for name in ("a.jsonl.bz2", "a.tar.gz", "a.tgz", "a.jsonl.gz", "a.csv.xz")]
    [True, True, True, False, False]
    """
    base = name.rsplit("/", 1)[-1].lower()
    if format_of(base) is not None:
        return False
    if base.endswith(_COMPRESSED_TARS):
        return True
    return any(base.endswith(end) and format_of(base.removesuffix(end)) for end in _COMPRESSIONS)


def suffix_of(name: str) -> str:
    """The suffix of a name that is no corpus file, for counting: of two parts where a known suffix stands before it.

    >>> [suffix_of(name) for name in ("a/notes.CSV", "a.csv.gz", "a.jsonl.bak", "Makefile", "model.0 (copy)")]
    ['.csv', '.csv.gz', '.jsonl.bak', 'without a suffix', 'other names']
    """
    base = name.rsplit("/", 1)[-1].lower().lstrip("._")
    stem, dot, last = base.rpartition(".")
    if not dot:
        return "without a suffix"
    is_second = f".{last}" in _COMPRESSIONS or format_of(stem) is not None
    first = stem.rpartition(".")[2] if is_second and "." in stem else ""
    suffix = f".{first}.{last}" if first else f".{last}"
    return suffix if _PLAIN_SUFFIX.fullmatch(suffix) else "other names"
