"""Find the files of a corpus at the given places. The same files give the same corpus, in whatever order they are given."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pyarrow.fs as pafs

from skillshard import artefact, places, storage
from skillshard.corpus.corpus_list import is_corpus_file, read_corpus_list
from skillshard.corpus.formats import (
    DEFAULT_LAYOUT,
    WITHOUT_SUFFIX,
    CorpusFile,
    FileLayout,
    compression_of,
    format_of,
    known_suffixes,
)
from skillshard.corpus.hub import hub_files, is_hub_address
from skillshard.corpus.listing import Entry, list_directory, list_glob, shown_place, special_kind, without_query
from skillshard.corpus.mapping import DEFAULT_MAX_SAMPLE_BYTES, CorpusReading, FieldMapping, in_keys
from skillshard.corpus.partitions import DEFAULT_PACKING, DEFAULT_PARTITION_BYTES, Packing, Partition, cut
from skillshard.corpus.reader import count_rows, read_partition
from skillshard.corpus.sample import Sample
from skillshard.corpus.selection import describe_left_out, refuse_undecodable, select, special_sentence
from skillshard.errors import CorpusError, name_some
from skillshard.printable import counted, printable

# Words of file names in usual data sets, and the split of each word.
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
}
_NOT_A_LETTER = re.compile(r"[^a-z]+")


LINK = "links to other files of the corpus"
"""Kind of a left-out file: its content is read under another name."""
FIRST_ROWS = 1000
"""Number of rows that `Corpus.absent_columns` reads of each corpus."""


@dataclass(frozen=True)
class Corpus:
    """Ordered list of files, sorted by name.

    Attributes:
        files: Files of the corpus.
        left_out: Kind -> number of files in the given directories that are not read.
        mappings: Prefix -> fields of the id, the text and the metadata. None: the caller gave no fields.
        layout: Layout of the files.
        layouts: Prefix -> layout of the files, for the corpora of a corpus file.
    """

    files: tuple[CorpusFile, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    mappings: Mapping[str, FieldMapping] | None = None
    layout: FileLayout = DEFAULT_LAYOUT
    layouts: Mapping[str, FileLayout] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        places: Sequence[str | Path] | str | Path,
        *,
        fields: FieldMapping | None = None,
        layout: FileLayout = DEFAULT_LAYOUT,
    ) -> "Corpus":
        """Find the files of a corpus. No rows are read.

        Args:
            places: Directories, globs (`*`, `?`, `[...]`, `**`) or single files, as local paths or URIs, in any order. A directory
                is searched recursively for known suffixes. All other files are left out and counted. An address `hf:NAME/CONFIG:SPLIT`
                names a data set of the Hugging Face Hub (`skillshard.corpus.hub`). Or a corpus file (`.yaml`), which names several corpora
                with their fields and layouts (`skillshard.corpus.corpus_list`).
            fields: Fields of the id, the text and the metadata. With None, tagging uses the fields "id" and "text", and sharding uses the
                fields of the tags.
            layout: Facts about the files that the names do not show, such as the place of the rows in JSON documents.

        Raises:
            CorpusError: No file is found, a given file has an unknown suffix, a file is given twice, two files have the same name,
                a file cannot be read, the selection of files in a directory would be a guess, or a corpus file is not valid.
        """
        # A value that is no list, such as None, is taken for a place, so that its check names the value.
        is_list = isinstance(places, Iterable) and not isinstance(places, (str, bytes))
        listed = list(cast(Sequence[str | Path], places)) if is_list else [cast(str, places)]
        if not listed:
            raise CorpusError("No corpus given: name at least one directory, glob or file.")
        if any(map(is_corpus_file, listed)):
            if fields is not None or layout != DEFAULT_LAYOUT:
                raise CorpusError(
                    f"{printable(str(listed[0]))} is a corpus file, which names the fields and the layout of each corpus. Name the fields in the "
                    "corpus file, or name the directories of the corpora in place of the corpus file."
                )
            return _of_corpus_file(listed)
        files: list[CorpusFile] = []
        left_out: Counter[str] = Counter()
        # A place of a store costs several requests.
        for place_files, others in storage.at_once(lambda place: _files_at(_absolute(place), layout), listed):
            files += place_files
            left_out += others
        _refuse_doubles(files)
        mappings = None if fields is None else {"": fields}
        return cls(tuple(sorted(files, key=lambda file: file.name)), dict(sorted(left_out.items())), mappings, layout)

    def __repr__(self) -> str:
        """Return one line with the number of files, their bytes and the first file."""
        num_bytes = sum(file.num_bytes for file in self.files)
        first = f", from {places.public(self.files[0].place)!r} on" if self.files else ""
        return f"Corpus({counted(len(self.files), 'file')}, {num_bytes:,} bytes{first})"

    @property
    def layout_record(self) -> dict[str, Any]:
        """The layouts that differ from the default, for the record of an artefact. The record of most corpora is empty."""
        of_all = self.layout.to_json()
        each = {prefix: changed for prefix, layout in self.layouts.items() if (changed := layout.to_json())}
        return ({"layout": of_all} if of_all else {}) | ({"layouts": each} if each else {})

    @property
    def inputs(self) -> list[list[str | int]]:
        """Name and size in bytes of each file, for the record of an artefact."""
        return [[file.name, file.num_bytes] for file in self.files]

    @property
    def mtimes_ns(self) -> dict[str, int]:
        """Place -> modification time of each file, in nanoseconds."""
        return {file.place: file.mtime_ns for file in self.files}

    def partitions(
        self, *, partition_bytes: int = DEFAULT_PARTITION_BYTES, packing: Packing | None = DEFAULT_PACKING
    ) -> list[Partition]:
        """Divide the files into partitions of about `partition_bytes` bytes on disk.

        Args:
            partition_bytes: Size of a partition.
            packing: Rule for packing small files into one partition. None: each file has its own partition.

        Raises:
            CorpusError: `partition_bytes` is less than 1.
        """
        return list(self._cut(partition_bytes, packing))

    def first_partitions(
        self,
        limit: int,
        *,
        partition_bytes: int = DEFAULT_PARTITION_BYTES,
        packing: Packing | None = DEFAULT_PACKING,
        max_sample_bytes: int = DEFAULT_MAX_SAMPLE_BYTES,
    ) -> list[Partition]:
        """Return the partitions with the first `limit` rows of the corpus, in the order of the corpus.

        The file with the last of the rows is read up to this row (`Stretch.num_rows`), also if the file ends there. A corpus with fewer rows
        gives all its partitions. The rows are counted by reading the corpus from its beginning, without further files.

        Args:
            limit: Number of rows. Rejected rows count, and so does the unreadable rest of a file, as one row.
            partition_bytes: As in `partitions`.
            packing: As in `partitions`.
            max_sample_bytes: Limit of the size of a sample, on which the count of very long lines depends.

        Raises:
            CorpusError: `limit` or `partition_bytes` is less than 1.
        """
        if limit < 1:
            raise CorpusError(f"`{limit=}`: give the number of rows to read, at least 1.")
        first: list[Partition] = []
        reading = self.reading(max_sample_bytes)
        for partition in self._cut(partition_bytes, packing):
            for number, stretch in enumerate(partition.stretches):
                num_rows = count_rows(stretch, reading, most=limit)
                if num_rows == limit:
                    return [*first, partition.up_to(number, limit)]
                limit -= num_rows
            first.append(partition)
        return first

    def partitions_again(
        self,
        num_rows: Sequence[Sequence[int]],
        limit: int | None,
        *,
        partition_bytes: int = DEFAULT_PARTITION_BYTES,
        packing: Packing | None = DEFAULT_PACKING,
    ) -> list[Partition]:
        """Return the partitions that were read earlier, by the record of their rows.

        Args:
            num_rows: Number of rows of each stretch of each partition at the earlier reading.
            limit: Limit of the earlier reading, as in `first_partitions`. None: the whole corpus was read.
            partition_bytes: As in `partitions`.
            packing: As in `partitions`.
        """
        if limit is None:
            return self.partitions(partition_bytes=partition_bytes, packing=packing)
        partitions = list(islice(self._cut(partition_bytes, packing), len(num_rows)))
        if partitions and sum(map(sum, num_rows)) == limit:
            partitions[-1] = partitions[-1].up_to(len(num_rows[-1]) - 1, num_rows[-1][-1])
        return partitions

    def _cut(self, partition_bytes: int, packing: Packing | None) -> Iterator[Partition]:
        if partition_bytes < 1:
            raise CorpusError(f"partition_bytes must be at least 1, got {partition_bytes}.")
        return cut(self.files, partition_bytes, packing=packing)

    def reading(self, max_sample_bytes: int = DEFAULT_MAX_SAMPLE_BYTES) -> CorpusReading:
        """Return the way in which the rows become samples, with the fields "id" and "text" where no fields were given."""
        mappings = {"": FieldMapping()} if self.mappings is None else self.mappings
        return CorpusReading(mappings, max_sample_bytes)

    def refuse_other_mappings(self, recorded: Mapping[str, Any], tags: str | os.PathLike[str]) -> None:
        """Compare the fields of the corpus with the fields that tags were made with. A corpus without fields takes the fields of the tags.

        Args:
            recorded: Reading in the record of the tags.
            tags: Directory of the tags, for the message.

        Raises:
            CorpusError: The fields differ.
        """
        if self.mappings is None:
            return
        now = self.reading(recorded["max_sample_bytes"]).to_json()
        if changed := artefact.differences(dict(recorded), now):
            raise CorpusError(
                f"{os.fspath(tags)} was made with other fields of the corpus ({name_some(changed, 3)}). Read the corpus with the fields of the "
                "tags, or tag the corpus into another directory."
            )

    def absent_columns(self) -> list[str]:
        """Return a sentence for each path of `columns` and `drop` that the first samples of its corpus do not have.

        A field may begin later in the corpus, so an absent path is no error. Most absent paths are misspelled. Only a corpus with `columns` or
        `drop` is read, up to `FIRST_ROWS` rows of its first file.
        """
        reading = self.reading()
        sentences: list[str] = []
        for prefix, mapping in reading.mappings.items():
            named = [file for file in self.files if reading.prefix_of(file.name) == prefix]
            if not named or (mapping.columns is None and not mapping.drop):
                continue
            partition = next(cut(named[:1], DEFAULT_PARTITION_BYTES))
            rows = islice(read_partition(partition, reading), FIRST_ROWS)
            metas = [row.meta for row in rows if isinstance(row, Sample)]
            where = f"the first {counted(len(metas), 'sample')} of {partition.name}"
            absent_fields = [f"no {absent} in {where}." for absent in mapping.absent(metas) if metas]
            sentences += map(in_keys, absent_fields) if prefix else absent_fields
        return sentences

    def notes(self) -> list[str]:
        """Return sentences for the user before the reading: the left-out files, and several splits that are read as one corpus."""
        notes = []
        if self.left_out:
            notes.append(f"left out of the corpus: {describe_left_out(self.left_out)}.")
        splits = Counter(split for file in self.files if (split := _split_of(file.name)))
        if len(splits) > 1:
            counts = ", ".join(f"{split} {count:,}" for split, count in sorted(splits.items()))
            notes.append(
                f"the names of the files show several splits ({counts}), and all splits are read as one corpus. To read one split, name "
                "its files with a glob in quotes, such as '*train*'."
            )
        return notes


def _of_corpus_file(listed: Sequence[str | Path]) -> Corpus:
    """Open the corpora of a corpus file as one corpus. The name of a file begins with the prefix of its corpus."""
    corpora = read_corpus_list(listed)
    files: list[CorpusFile] = []
    left_out: Counter[str] = Counter()
    for corpus in corpora:
        try:
            opened = Corpus.open(corpus.places, fields=corpus.fields, layout=corpus.layout)
        except CorpusError as error:
            raise CorpusError(f"corpus {corpus.prefix!r}: {in_keys(str(error))}") from error
        files += [replace(file, name=f"{corpus.prefix}/{file.name}") for file in opened.files]
        left_out.update(opened.left_out)
    _refuse_doubles(files)
    return Corpus(
        tuple(sorted(files, key=lambda file: file.name)),
        dict(sorted(left_out.items())),
        {corpus.prefix: corpus.fields for corpus in corpora},
        layouts={corpus.prefix: corpus.layout for corpus in corpora},
    )


def _split_of(name: str) -> str | None:
    """Return the split in the name of a file, or None.

    >>> [_split_of(name) for name in ("data/train-00000-of-2.parquet", "test.jsonl", "attest.jsonl")]
    ['train', 'test', None]
    """
    return next((_SPLITS[word] for word in _NOT_A_LETTER.split(name.lower()) if word in _SPLITS), None)


def _absolute(place: str | Path) -> str:
    text = os.fspath(place)
    if is_hub_address(text):
        return text
    return text.rstrip("/") if places.is_remote(text) else os.path.abspath(text.removeprefix("file://"))


def _files_at(place: str, layout: FileLayout) -> tuple[list[CorpusFile], Counter[str]]:
    if is_hub_address(place):
        return hub_files(place, layout), Counter()
    kind = _remote_kind(place) if places.is_remote(place) else special_kind(place)
    if kind == "":
        return [_named_file(place, layout)], Counter()
    if kind == "a directory":
        entries = list_directory(place)
        return _not_empty(*_without_links(*select(entries, place, layout), entries, place), place)
    if kind is not None:
        raise CorpusError(special_sentence(place, kind))
    pattern = without_query(place)
    if glob.has_magic(pattern):
        base, entries = list_glob(place)
        named = "".join(mark for mark in "._" if f"/{mark}" in pattern[len(without_query(base)) :])
        selected = select(entries, base, layout, named=named, with_text=format_of(pattern) == "text")
        return _not_empty(*_without_links(*selected, entries, base), place)
    raise CorpusError(
        f"{shown_place(place)}: no such file or directory. Give a directory, a glob in quotes, or a file."
    )


def _remote_kind(place: str) -> str | None:
    if "?" in without_query(place):  # a wildcard, which pyarrow would take for the beginning of a query
        return None
    kinds = {pafs.FileType.File: "", pafs.FileType.Directory: "a directory"}
    return kinds.get(storage.info(place).type)


def _named_file(place: str, layout: FileLayout) -> CorpusFile:
    refuse_undecodable(place)
    stat = storage.stat(place)
    name = places.relative(without_query(place), places.parent(without_query(place)))
    form = format_of(name) or layout.bare_files or (None if layout.text_files == "named" else "text")
    if form is None:
        raise CorpusError(
            f"{shown_place(place)}: unknown suffix. The known suffixes of data are {known_suffixes()}. Rename or convert the file. To read "
            "the file as text, give `text_files='whole'` or `text_files='lines'`. To read the file as lines of JSON, give `bare_files='jsonl'`."
        )
    return CorpusFile(place, name, form, stat.num_bytes, stat.mtime_ns, compression_of(name, layout.bare_files), layout)


def _without_links(
    files: list[CorpusFile], left_out: Counter[str], entries: Sequence[Entry], base: str
) -> tuple[list[CorpusFile], Counter[str]]:
    """Leave out the links to files inside the listed directory that are read under another name.

    Links to files elsewhere stay. Two links to one such file are refused later, because no name of the file is the true one.
    """
    linked = {entry.name for entry in entries if entry.is_linked}
    if not linked:
        return files, left_out
    root = os.path.realpath(base)
    # Places of files that are read. Of several links to a file that is not read itself, the link with the fewest folders is read.
    seen = {os.path.join(root, file.name) for file in files if file.name not in linked}
    files_read = []
    for file in sorted(files, key=lambda file: (file.name.count("/"), file.name)):
        target = os.path.realpath(file.place) if file.name in linked else ""
        if target in seen:
            left_out[LINK] += 1
            continue
        files_read.append(file)
        if target.startswith(f"{root}/"):
            seen.add(target)
    return files_read, left_out


def _not_empty(files: list[CorpusFile], left_out: Counter[str], place: str) -> tuple[list[CorpusFile], Counter[str]]:
    if files:
        return files, left_out
    others = f". Left out: {describe_left_out(left_out)}" if left_out else ""
    without_suffix = (
        " Files without a suffix are read with their format, such as `bare_files='jsonl'` or `bare_files='text'`."
        if WITHOUT_SUFFIX in left_out
        else ""
    )
    raise CorpusError(
        f"{shown_place(place)}: no corpus files found. Names must end in {known_suffixes()}, and hidden files are left "
        f"out{others}. Check the path, or convert the files to one of these formats. To read files of text or code, give "
        f"`text_files='whole'` or `text_files='lines'`.{without_suffix}"
    )


def _refuse_doubles(files: list[CorpusFile]) -> None:
    real_paths = [file.place if places.is_remote(file.place) else os.path.realpath(file.place) for file in files]
    if twice := _repeated(real_paths):
        ways = [file.place for file, place in zip(files, real_paths, strict=True) if place == twice[0]]
        if len(set(ways)) == 1:
            raise CorpusError(
                f"Given twice: {name_some(twice, are_paths=True)}. Name each file once, or only the directory of the files."
            )
        more = f" (and {counted(len(twice) - 1, 'other file')})" if len(twice) > 1 else ""
        raise CorpusError(
            f"One file would be read more than once, because of links: {name_some(ways, 3, are_paths=True)}{more}. Name each file or "
            "directory once, or remove the links."
        )
    if same := _repeated(file.name for file in files):
        where = name_some((file.place for file in files if file.name == same[0]), are_paths=True)
        raise CorpusError(
            f"Two files have the name {same[0]!r} in the corpus: {where}. "
            "Name the directory above both, so that the names in the corpus differ, or rename one file."
        )


def _repeated(values: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    twice = {value for value in values if value in seen or seen.add(value)}  # type: ignore[func-returns-value]
    return sorted(twice)
