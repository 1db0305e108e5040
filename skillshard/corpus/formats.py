"""Formats of corpus files, by the suffix of the name."""

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
# Suffixes that compression programs add. A file of a known format under such a suffix is an error, not a file to leave out.
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
# A longer suffix is rather a part of the name, and would give many kinds with one file each.
_PLAIN_SUFFIX = re.compile(r"(\.[a-z0-9_~-]{1,12}){1,2}")


@dataclass(frozen=True)
class CorpusFile:
    """File of a corpus.

    Attributes:
        place: Absolute path or URI.
        name: Name in the corpus, relative and with "/".
        format: Format by the name.
        num_bytes: Size.
        mtime_ns: Modification time, in nanoseconds.
    """

    place: str
    name: str
    format: Format
    num_bytes: int
    mtime_ns: int


def format_of(name: str) -> Format | None:
    """Return the format by the name of a file, or None.

    >>> format_of("a/b.v1.jsonl.gz"), format_of("CORPUS.md"), format_of("X.PARQUET")
    ('jsonl.gz', None, 'parquet')
    """
    base = name.rsplit("/", 1)[-1].lower()
    return next((form for suffix, form in SUFFIXES.items() if base.endswith(suffix)), None)


def stem_of(base: str) -> str:
    """Return the last part of a file's name without the suffix of the format.

    >>> stem_of("train-00001.v2.jsonl.zst"), stem_of("A.PARQUET"), stem_of("notes")
    ('train-00001.v2', 'A', 'notes')
    """
    suffixes = [suffix for suffix in SUFFIXES if base.lower().endswith(suffix)]
    return base[: len(base) - len(max(suffixes, key=len, default=""))]


def is_compressed_otherwise(name: str) -> bool:
    """Return whether a name shows a known format in a compression that is not read.

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
    """Return the suffix of a file that is not read, for counting. After a known suffix, the suffix has two parts.

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
