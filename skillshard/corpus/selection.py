"""Select the corpus files of a directory, and count the files that are left out.

Each left-out file is counted under its kind. Reasons to leave a file out:

- The name is hidden or begins with "_". Spark, Hive and Arrow use "_" for files that are not data (`_temporary/`, `_SUCCESS`,
  `_delta_log/`). A file of text or code may begin with "_", such as `__init__.py`, where text files are read.
- A list beside the file does not name the file (`state.json` of a saved Hugging Face dataset, the log of a Delta table).
- The file belongs to an artefact of this project (tags, shards or ledgers inside the corpus directory).
- The suffix is not a format of a corpus.

A directory is refused if a choice would be a guess. Examples are several splits of a saved `DatasetDict`, known formats in an unknown
compression, and tables with a log that cannot be followed.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson

from skillshard import artefact, places, storage
from skillshard.corpus.formats import (
    CorpusFile,
    FileLayout,
    compression_of,
    format_of,
    is_compressed_otherwise,
    suffix_of,
)
from skillshard.corpus.listing import Entry, shown_place
from skillshard.errors import CorpusError, name_some
from skillshard.printable import counted, printable

_BOOKKEEPING = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")  # written by Hugging Face's datasets
_DELTA_VERSION = re.compile(r"_delta_log/(\d{20})\.json$")  # the Delta protocol: a version has 20 digits
_ICEBERG_METADATA = re.compile(r"(^|/)metadata/[^/]+\.metadata\.json$")
_CACHE = re.compile(r"cache-[0-9a-f]{16}(_\d{5}_of_\d{5})?\.arrow")
_MAX_BOOKKEEPING_BYTES = 256 << 20  # a manifest of 100,000 shards has 15 MB, so a larger file is data
_WRITE_ANEW = "Write the rows of your choice to a directory of Parquet files, and give that directory."


def select(
    entries: Sequence[Entry], base: str, layout: FileLayout, *, named: str = "", with_text: bool = False
) -> tuple[list[CorpusFile], Counter[str]]:
    """Select the files of a corpus among all entries of a directory.

    Args:
        entries: Entries with names relative to `base`.
        base: Directory, for messages.
        layout: Layout of the files. Text files are selected if `layout` asks for the text files of directories.
        named: "." or "_" or both: beginnings of names that the user's glob requests.
        with_text: Whether the user's glob ends in a suffix of text files, which requests these files.

    Returns:
        The files, and the number of left-out files of each kind.

    Raises:
        CorpusError: The selection would be a guess, or a file cannot be read.
    """
    left_out: Counter[str] = Counter()
    with_text = with_text or layout.text_files != "named"
    visible = []
    for entry in entries:
        # "_" marks files of tools beside tables, and is usual in the names of source code, such as __init__.py.
        is_text = with_text and format_of(entry.name) == "text"
        if (label := _set_apart(entry.name, named, is_text=is_text)) is None:
            visible.append(entry)
        else:
            left_out[label] += 1
    _refuse_several_splits(visible, base)
    # From here on, hidden entries count too: the logs of tables and the records of artefacts have hidden names.
    _refuse_other_tables(entries, base)
    artefacts = _artefacts(entries, base)
    listed = _saved_datasets(visible, base) | _delta_tables(entries, base)
    described = {entry.name.rpartition("/")[0] for entry in visible if entry.name.endswith("dataset_info.json")}
    files, compressed = [], []
    for entry in visible:
        label = _artefact_of(entry.name, artefacts) or _bookkeeping(entry.name) or _unlisted(entry, listed)
        label = label or _cached(entry.name, described)
        by_suffix = format_of(entry.name)
        form = by_suffix or format_of(entry.name, layout.bare_files)
        if label is None and form is not None and (by_suffix != "text" or with_text):
            _refuse_unreadable(entry)
            compression = compression_of(entry.name, layout.bare_files)
            files.append(
                CorpusFile(entry.place, entry.name, form, entry.num_bytes, entry.mtime_ns, compression, layout)
            )
        elif label is None and is_compressed_otherwise(entry.name):
            compressed.append(entry)
        else:
            left_out[label or suffix_of(entry.name)] += 1
    _refuse_compressed(compressed, base)
    return files, left_out


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Return the kinds and numbers of files for a sentence, the most frequent kind first.

    >>> describe_left_out({".md": 1, ".csv": 12})
    '13 files (.csv 12, .md 1)'
    """
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{kind} {count:,}" for kind, count in kinds[:12]]
    if len(kinds) > 12:
        shown.append(f"{len(kinds) - 12} other kinds {sum(count for _, count in kinds[12:]):,}")
    return f"{counted(sum(left_out.values()), 'file')} ({', '.join(shown)})"


def _shown(base: str, name: str) -> str:
    """Return an entry of a directory for a message."""
    return shown_place(places.join(base, name) if name else base)


def _set_apart(name: str, named: str, *, is_text: bool = False) -> str | None:
    """Return the kind of a name that is hidden or begins with "_" at any depth, or None. The last part of a text file may begin with "_"."""
    parts = name.split("/")
    for number, part in enumerate(parts, start=1):
        is_usual = part[0] == "_" and is_text and number == len(parts)
        if part[0] in "._" and part[0] not in named and not is_usual:
            if part is not parts[-1]:
                return f"{printable(part)}/"
            suffix = suffix_of(part)
            return f"{part[0]}*{suffix}" if suffix.startswith(".") else printable(part)
    return None


def _bookkeeping(name: str) -> str | None:
    base = name.rsplit("/", 1)[-1]
    return base if base in _BOOKKEEPING else None


def _cached(name: str, described: Collection[str]) -> str | None:
    """Return the kind of a cache file, or None. Hugging Face's `map` and `filter` write their results beside the data."""
    folder, _, base = name.rpartition("/")
    return "cache-*.arrow" if folder in described and _CACHE.fullmatch(base) else None


def _refuse_unreadable(entry: Entry) -> None:
    if entry.special:
        raise CorpusError(special_sentence(entry.place, entry.special))
    refuse_undecodable(entry.place)


def special_sentence(place: str, special: str) -> str:
    """Return the error for a place that is not a regular file."""
    if special == "a link to nothing":
        return f"{printable(place)} is a link to a missing file. Restore the file, or remove the link."
    return (
        f"{printable(place)} is {special}, not a file, and a corpus is read more than once. Write the data to a file, "
        "or move the special file out of the corpus."
    )


def refuse_undecodable(place: str) -> None:
    """Raise CorpusError if a name is not UTF-8, because ids, tags and manifests store names as text."""
    try:
        place.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{printable(place)}: the name is not valid UTF-8 (\\x marks each wrong byte). Rename the file."
        ) from error


def _refuse_compressed(entries: Sequence[Entry], base: str) -> None:
    if entries:
        names = name_some((printable(entry.name) for entry in entries), 3)
        raise CorpusError(
            f"{shown_place(base)} holds {counted(len(entries), 'file')} in a compression that is not read: {names}. JSON, CSV and text may be "
            "plain, .gz, .zst, .bz2 or .xz. Parquet, Arrow and tar must be plain. Decompress these files, or choose other files with a glob in quotes, "
            f"such as '{_shown(base, '*.jsonl')}'."
        )


# ----------------------------------------------------------------------------------------------------- known layouts


def _refuse_several_splits(entries: Sequence[Entry], base: str) -> None:
    """Raise CorpusError for a saved DatasetDict with several splits, because only the user can choose a split."""
    for entry in entries:
        folder, _, name = entry.name.rpartition("/")
        if name != "dataset_dict.json":
            continue
        splits = _json_object(entry).get("splits")
        above = f"{folder}/" if folder else ""
        known = [split for split in splits if isinstance(split, str)] if isinstance(splits, list) else []
        present = [split for split in known if any(e.name.startswith(f"{above}{split}/") for e in entries)]
        if len(present) > 1:
            place = _shown(base, folder)
            raise CorpusError(
                f"{place} is a saved DatasetDict with the splits {name_some(sorted(present))}, and a corpus is a single split. "
                f"Name the directory of the split, such as {place}/{present[0]}."
            )


def _refuse_other_tables(entries: Sequence[Entry], base: str) -> None:
    for entry in entries:
        is_iceberg = _ICEBERG_METADATA.search(entry.name) is not None
        kind = "a Hudi" if "/.hoodie/" in f"/{entry.name}" else "an Iceberg" if is_iceberg else ""
        if kind:
            raise CorpusError(
                f"{shown_place(base)} holds {kind} table ({printable(entry.name)}). The metadata of the table chooses the valid files, and "
                f"is not read. {_WRITE_ANEW}"
            )


def _artefacts(entries: Sequence[Entry], base: str) -> dict[str, str]:
    """Return the directories with an artefact of this project, finished or not, and the kind of each artefact."""
    folders: dict[str, str] = {}
    for entry in entries:
        if f"/{entry.name}".endswith("/.work/job.json"):
            folders[entry.name.removesuffix(".work/job.json").rstrip("/")] = "unfinished work"
        folder, _, name = entry.name.rpartition("/")
        is_manifest = name in artefact.MANIFESTS and name != ".export.json"  # exported rows are a corpus too
        if is_manifest and str(_json_object(entry).get("schema", "")).startswith("skillshard/"):
            folders[folder] = artefact.MANIFESTS[name]
    if (kind := folders.get("")) is not None:
        remedy = (
            f"Name {_shown(base, 'train')} to read its samples."
            if kind == "shards"
            else "Name the directory of the corpus."
        )
        raise CorpusError(f"{shown_place(base)} holds {kind} of skillshard, not a corpus. {remedy}")
    return folders


def _artefact_of(name: str, artefacts: Mapping[str, str]) -> str | None:
    parts = name.split("/")
    for length in range(1, len(parts)):
        folder = "/".join(parts[:length])
        if folder in artefacts:
            return f"{printable(folder)}/, {artefacts[folder]} of skillshard"
    return None


Listed = dict[str, tuple[str, frozenset[str]]]
"""Directory -> name of the list of its files, and the names on the list."""


def _unlisted(entry: Entry, listed: Listed) -> str | None:
    """Return the kind of a file that is missing on the list of its directory, or None."""
    parts = entry.name.split("/")
    for length in range(len(parts)):
        folder = "/".join(parts[:length])
        if folder in listed and entry.name not in listed[folder][1]:
            list_name = listed[folder][0]
            base = parts[-1]
            return base if base == list_name else f"{suffix_of(base)} not in {list_name}"
    return None


def _saved_datasets(entries: Sequence[Entry], base: str) -> Listed:
    """Return the lists of Hugging Face's `save_to_disk`. The state.json of a directory names the valid files."""
    present = {entry.name for entry in entries}
    listed: Listed = {}
    for entry in entries:
        folder, _, name = entry.name.rpartition("/")
        if name != "state.json":
            continue
        files = _json_object(entry).get("_data_files")
        if not isinstance(files, list):
            continue
        above = f"{folder}/" if folder else ""
        names = [above + str(file.get("filename")) for file in files if isinstance(file, dict)]
        if missing := [name for name in names if name not in present]:
            raise CorpusError(
                f"{_shown(base, entry.name)} lists {name_some(missing, 3, are_paths=True)}, but these files are missing. Fetch the "
                "whole directory again."
            )
        listed[folder] = ("state.json", frozenset(names))
    return listed


def _delta_tables(entries: Sequence[Entry], base: str) -> Listed:
    """Return the valid files of each Delta table, by its log. Deleted and uncommitted files also lie on the disk."""
    logs: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        if match := _DELTA_VERSION.search(entry.name):
            logs.setdefault(entry.name[: match.start()].rstrip("/"), {})[int(match[1])] = entry
    present = {entry.name for entry in entries}
    listed: Listed = {}
    for folder, versions in logs.items():
        place = _shown(base, folder)
        # A checkpoint replaces old versions of the log by a Parquet file, which is not read.
        if sorted(versions) != list(range(len(versions))):
            raise CorpusError(f"{place} is a Delta table whose log does not begin at version 0. {_WRITE_ANEW}")
        above = f"{folder}/" if folder else ""
        live = {above + name for name in _live_in_delta([versions[number] for number in sorted(versions)], place)}
        if missing := sorted(live - present):
            raise CorpusError(
                f"{place} is a Delta table that lists {name_some(missing, 3, are_paths=True)}, but these files are missing. {_WRITE_ANEW}"
            )
        listed[folder] = ("the Delta table", frozenset(live))
    return listed


def _live_in_delta(versions: Sequence[Entry], place: str) -> set[str]:
    """Replay the log of a Delta table, and return the names of the valid files."""
    live: set[str] = set()
    for version in versions:
        for line in _bytes_of(version).splitlines():
            action = _object(line)
            for kind in ("add", "remove"):
                body = action.get(kind)
                if not isinstance(body, dict):
                    continue
                if kind == "add" and body.get("deletionVector"):
                    raise CorpusError(f"{place} is a Delta table with rows that are marked as deleted. {_WRITE_ANEW}")
                (live.add if kind == "add" else live.discard)(unquote(str(body.get("path"))))
    return live


def _json_object(entry: Entry) -> dict[str, Any]:
    """Return the JSON object of a small file, or an empty object for any other content."""
    if entry.special or entry.num_bytes > _MAX_BOOKKEEPING_BYTES:
        return {}
    return _object(_bytes_of(entry))


def _bytes_of(entry: Entry) -> bytes:
    """Read a file. Python opens local names that are not UTF-8, and pyarrow does not."""
    return storage.read_bytes(entry.place) if places.is_remote(entry.place) else Path(entry.place).read_bytes()


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
