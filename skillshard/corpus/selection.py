"""Which of the files in a directory are the corpus, and what is left out of it.

Nothing is left out without being counted. A file is left out by

- its name: hidden names, and names that begin with "_", which Spark, Hive and Arrow keep for what is no data
  (`_temporary/`, `_SUCCESS`, `_delta_log/`);
- a list beside it that says which files count (`state.json` of a saved Hugging Face dataset, the log of a Delta table);
- the artefact that it belongs to (tags, shards or ledgers of this project inside the corpus directory);
- a suffix that is no format of a corpus.

A directory is refused where a choice would have to be guessed: several splits of a saved `DatasetDict`, formats that
are known but compressed in a way that is not read, tables whose log cannot be followed.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson

from skillshard import artefact, places, storage
from skillshard.corpus.formats import CorpusFile, format_of, is_compressed_otherwise, suffix_of
from skillshard.corpus.listing import Entry
from skillshard.errors import CorpusError, name_some
from skillshard.printable import printable

_BOOKKEEPING = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_DELTA_VERSION = re.compile(r"_delta_log/(\d{20})\.json$")
_ICEBERG_METADATA = re.compile(r"(^|/)metadata/[^/]+\.metadata\.json$")
_CACHE = re.compile(r"cache-[0-9a-f]{16}(_\d{5}_of_\d{5})?\.arrow")
_MAX_BOOKKEEPING_BYTES = 256 << 20  # a manifest of 100,000 shards has 15 MB; what is larger is data
_WRITE_ANEW = "Write the rows that you mean to a directory of Parquet files, and give that directory."


def select(entries: Sequence[Entry], base: str, *, named: str = "") -> tuple[list[CorpusFile], Counter[str]]:
    """The files of a corpus among everything that lies under a directory.

    Args:
        entries: names relative to `base`.
        base: the directory, for messages.
        named: "." or "_" or both: beginnings of names that the user's glob asks for.

    Returns:
        The files, and how many others there are of each kind.

    Raises:
        CorpusError: which files count would have to be guessed, or a file cannot be read.
    """
    left_out: Counter[str] = Counter()
    visible = []
    for entry in entries:
        if (label := _set_apart(entry.name, named)) is None:
            visible.append(entry)
        else:
            left_out[label] += 1
    _refuse_several_splits(visible, base)
    _refuse_other_tables(entries, base)
    artefacts = _artefacts(entries, base)
    listed = _saved_datasets(visible, base) | _delta_tables(entries, base)
    described = {entry.name.rpartition("/")[0] for entry in visible if entry.name.endswith("dataset_info.json")}
    files, compressed = [], []
    for entry in visible:
        label = _artefact_of(entry.name, artefacts) or _bookkeeping(entry.name) or _unlisted(entry, listed)
        label = label or _cached(entry.name, described)
        form = format_of(entry.name)
        if label is None and form is not None:
            _refuse_unreadable(entry)
            files.append(CorpusFile(entry.place, entry.name, form, entry.num_bytes, entry.mtime_ns))
        elif label is None and is_compressed_otherwise(entry.name):
            compressed.append(entry)
        else:
            left_out[label or suffix_of(entry.name)] += 1
    _refuse_compressed(compressed, base)
    return files, left_out


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Kinds and numbers of files, the most frequent first.

    >>> describe_left_out({".md": 1, ".csv": 12})
    '13 files (.csv 12, .md 1)'
    """
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{kind} {count:,}" for kind, count in kinds[:12]]
    if len(kinds) > 12:
        shown.append(f"{len(kinds) - 12} other kinds {sum(count for _, count in kinds[12:]):,}")
    total = sum(left_out.values())
    return f"{total:,} {'file' if total == 1 else 'files'} ({', '.join(shown)})"


def _set_apart(name: str, named: str) -> str | None:
    """The kind of a name that is hidden or begins with "_" at any depth."""
    parts = name.split("/")
    for part in parts:
        if part[0] in "._" and part[0] not in named:
            if part is not parts[-1]:
                return f"{printable(part)}/"
            suffix = suffix_of(part)
            return f"{part[0]}*{suffix}" if suffix.startswith(".") else printable(part)
    return None


def _bookkeeping(name: str) -> str | None:
    base = name.rsplit("/", 1)[-1]
    return base if base in _BOOKKEEPING else None


def _cached(name: str, described: Collection[str]) -> str | None:
    """The kind of a file in which Hugging Face's `map` and `filter` keep what they computed from the data beside it."""
    folder, _, base = name.rpartition("/")
    return "cache-*.arrow" if folder in described and _CACHE.fullmatch(base) else None


def _refuse_unreadable(entry: Entry) -> None:
    if entry.special:
        raise CorpusError(special_sentence(entry.place, entry.special))
    refuse_undecodable(entry.place)


def special_sentence(place: str, special: str) -> str:
    """The error for a place that is no file."""
    if special == "a link to nothing":
        return f"{printable(place)} is a link to a file that is not there. Restore the file, or remove the link."
    return (
        f"{printable(place)} is {special}, not a file, and a corpus is read more than once. Write its data to a file, "
        "or move it out of the corpus."
    )


def refuse_undecodable(place: str) -> None:
    """CorpusError if a name is not UTF-8: ids, tags and manifests hold names as text."""
    try:
        place.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{printable(place)}: the name is not valid UTF-8 (shown with \\x for each such byte). Rename it."
        ) from error


def _refuse_compressed(entries: Sequence[Entry], base: str) -> None:
    if entries:
        names = name_some((printable(entry.name) for entry in entries), 3)
        raise CorpusError(
            f"{printable(base)} holds {len(entries):,} of its files in a compression that is not read: {names}. Read are "
            "JSON lines as they are, with .gz or with .zst, and Parquet, Arrow and tar as they are. Decompress these "
            "files, or name the files that are meant with a glob in quotes, such as "
            f"'{printable(base).rstrip('/')}/*.jsonl'."
        )


# ----------------------------------------------------------------------------------------------------- known layouts


def _refuse_several_splits(entries: Sequence[Entry], base: str) -> None:
    """A saved DatasetDict holds one data set for each split, and only the user knows which of them is meant."""
    for entry in entries:
        folder, _, name = entry.name.rpartition("/")
        if name != "dataset_dict.json":
            continue
        splits = _json_object(entry).get("splits")
        above = f"{folder}/" if folder else ""
        known = [split for split in splits if isinstance(split, str)] if isinstance(splits, list) else []
        present = [split for split in known if any(e.name.startswith(f"{above}{split}/") for e in entries)]
        if len(present) > 1:
            place = f"{base.rstrip('/')}/{folder}".rstrip("/")
            raise CorpusError(
                f"{place} is a saved DatasetDict with the splits {name_some(sorted(present))}, and a corpus is one of "
                f"them. Name the directory of the split, such as {place}/{present[0]}."
            )


def _refuse_other_tables(entries: Sequence[Entry], base: str) -> None:
    for entry in entries:
        is_iceberg = _ICEBERG_METADATA.search(entry.name) is not None
        kind = "a Hudi" if "/.hoodie/" in f"/{entry.name}" else "an Iceberg" if is_iceberg else ""
        if kind:
            raise CorpusError(
                f"{printable(base)} holds {kind} table ({printable(entry.name)}), whose metadata says which of its "
                f"files count. {_WRITE_ANEW}"
            )


def _artefacts(entries: Sequence[Entry], base: str) -> dict[str, str]:
    """Directories under the base that hold an artefact of this project, finished or not, and their kind."""
    folders: dict[str, str] = {}
    for entry in entries:
        if f"/{entry.name}".endswith("/.work/job.json"):
            folders[entry.name.removesuffix(".work/job.json").rstrip("/")] = "unfinished work"
        folder, _, name = entry.name.rpartition("/")
        if name in artefact.MANIFESTS and str(_json_object(entry).get("schema", "")).startswith("skillshard/"):
            folders[folder] = artefact.MANIFESTS[name]
    if (kind := folders.get("")) is not None:
        remedy = f"Name {base}/train to read its samples." if kind == "shards" else "Name the directory of the corpus."
        raise CorpusError(f"{base} holds {kind} of skillshard, not a corpus. {remedy}")
    return folders


def _artefact_of(name: str, artefacts: Mapping[str, str]) -> str | None:
    parts = name.split("/")
    for length in range(1, len(parts)):
        folder = "/".join(parts[:length])
        if folder in artefacts:
            return f"{printable(folder)}/, {artefacts[folder]} of skillshard"
    return None


Listed = dict[str, tuple[str, frozenset[str]]]
"""Directory -> what lists its files, and the names of those that count."""


def _unlisted(entry: Entry, listed: Listed) -> str | None:
    """The kind of a file that the list of its directory does not name."""
    parts = entry.name.split("/")
    for length in range(len(parts)):
        folder = "/".join(parts[:length])
        if folder in listed and entry.name not in listed[folder][1]:
            what = listed[folder][0]
            base = parts[-1]
            return base if base == what else f"{suffix_of(base)} not in {what}"
    return None


def _saved_datasets(entries: Sequence[Entry], base: str) -> Listed:
    """What Hugging Face's `save_to_disk` lists: state.json names the only files that count."""
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
                f"{base.rstrip('/')}/{entry.name} lists {name_some(missing, 3, are_paths=True)}, and no such file is there. Fetch the "
                "whole directory again."
            )
        listed[folder] = ("state.json", frozenset(names))
    return listed


def _delta_tables(entries: Sequence[Entry], base: str) -> Listed:
    """The files of each Delta table that its log says are in it: files that were deleted or not committed stay on disk."""
    logs: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        if match := _DELTA_VERSION.search(entry.name):
            logs.setdefault(entry.name[: match.start()].rstrip("/"), {})[int(match[1])] = entry
    present = {entry.name for entry in entries}
    listed: Listed = {}
    for folder, versions in logs.items():
        place = f"{base.rstrip('/')}/{folder}".rstrip("/")
        if sorted(versions) != list(range(len(versions))):
            raise CorpusError(f"{place} is a Delta table whose log does not begin at version 0. {_WRITE_ANEW}")
        above = f"{folder}/" if folder else ""
        live = {above + name for name in _live_in_delta([versions[number] for number in sorted(versions)], place)}
        if missing := sorted(live - present):
            raise CorpusError(
                f"{place} is a Delta table that names {name_some(missing, 3, are_paths=True)}, and no such file is there. {_WRITE_ANEW}"
            )
        listed[folder] = ("the Delta table", frozenset(live))
    return listed


def _live_in_delta(versions: Sequence[Entry], place: str) -> set[str]:
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
    """The JSON object that a small file of bookkeeping holds; empty where the file is something else of that name."""
    if entry.special or entry.num_bytes > _MAX_BOOKKEEPING_BYTES:
        return {}
    return _object(_bytes_of(entry))


def _bytes_of(entry: Entry) -> bytes:
    """The bytes of a file whose name, unlike those that pyarrow opens, need not be UTF-8."""
    return storage.read_bytes(entry.place) if places.is_remote(entry.place) else Path(entry.place).read_bytes()


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
