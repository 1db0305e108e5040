"""Find copies: samples whose folded text stands earlier in the corpus, in any skill.

Each chunk of sorted samples has a table of its texts, `CHUNK.texts.npy`, with one entry for each text and skill, sorted by hash. A
task reads one range of hashes from the tables, so the task sees all copies of a text together:

- `find_copies` counts the copies. If copies are dropped, the task also names the first sample of each text with copies.
- `find_texts` finds the lowest or highest hashes of some skills, for split.py.
- `set_copies_aside` marks the copies in the chunks of one partition and writes the copies to rejected/.

Many tables are first merged into fewer files (merge_levels.py) by `merge_tables`. The first samples go from ranges of hashes to partitions, and
many ranges are merged by `merge_firsts`.

The tables of a parent, a shard set that is continued, hold the texts of its shards (parent.py). The texts of the parent stand before all new
texts, so a new sample with such a text is a copy.

If copies are dropped, a table also has the ids of its first samples, because rejected/ names the first sample of each copy. The ids lie in the
order of the entries and go through the same merges, so a range of hashes is one stretch of ids in each table.

Costs: 64 bytes of scratch space for each distinct text of a chunk and skill, and 8 bytes and the id if copies are dropped. A task needs about 200 bytes of memory for each of
`TEXTS_PER_RANGE` entries. A text has at most one entry for each chunk and skill, however often the text is repeated. The driver
holds the totals of each skill and split, but no list of copies.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
from jaxtyping import Bool, Int

from skillshard import places, storage
from skillshard.corpus import Partition, Rejection
from skillshard.corpus.reader import line_numbers
from skillshard.errors import ShardError
from skillshard.execution import Record
from skillshard.shards.chunks import chunk_number, chunk_place
from skillshard.shards.contents import array_of, gathered
from skillshard.shards.split import BYTES, HOLDOUT, SAMPLES, TEXTS, TRAIN, Order
from skillshard.shards.tar import Bytes
from skillshard.shards.texts import HASH_DTYPE, hash_of, hashes_of, hex_of
from skillshard.tags import first_rejected

# About 200 MB of memory, with the arrays for sorting.
TEXTS_PER_RANGE = 1_000_000
"""Number of entries that a task reads, about."""
# About 60 MB of memory. Each look-up of line numbers reads the partition once more, so a batch is large.
COPIES_AT_ONCE = 250_000
"""Number of copies whose line numbers are looked up together."""
# No skill and no file has this number, and no chunk of new samples reaches the number of a parent's shard.
PARENT = (1 << 32) - 1
"""Skill and file of a parent's text in a table."""
PARENT_CHUNK = 1 << 63
"""Number that stands for the first shard of a parent in the column of chunks."""
# The 8-byte fields come first, so that each field is aligned.
TEXTS_DTYPE = np.dtype(
    [
        ("text", HASH_DTYPE),
        ("row", "<u8"),  # of the first sample: row in the file
        ("first_bytes", "<u8"),  # of the first sample in a tar
        ("num_bytes", "<u8"),  # of all samples in a tar
        ("chunk", "<u8"),
        ("skill", "<u4"),
        ("file", "<u4"),  # of the first sample
        ("id_bytes", "<u4"),  # of the first sample; 0 unless copies are dropped, and for texts of a parent
        ("num_samples", "<u4"),
    ]
)
TABLE_SUFFIXES = (".npy", ".ids.npy", ".ids.data")
"""Suffixes of a table of texts: the entries, the place of each id, and the ids."""
FIRSTS_DTYPE = np.dtype(
    [
        ("chunk", "<u8"),
        ("text", HASH_DTYPE),
        ("row", "<u8"),  # of the first sample of the corpus: row in the file
        ("start", "<u8"),  # of the id in the data
        ("file", "<u4"),  # of the first sample of the corpus
        ("id_bytes", "<u4"),
    ]
)


def texts_of_chunk(
    texts: np.ndarray,
    skills: np.ndarray,
    files: np.ndarray,
    rows: np.ndarray,
    num_bytes: np.ndarray,
    id_bytes: np.ndarray,
    *,
    chunk: int,
) -> tuple[np.ndarray, Int[np.ndarray, " text"]]:
    """Return the table of a chunk's texts, dtype `TEXTS_DTYPE`, and the position of the first sample of each entry.

    The arrays have one entry for each sample, in the order of the corpus.

    Args:
        texts: Hash of the text.
        skills: Index of the skill.
        files: Number of the file.
        rows: Row in the file, rising in each file.
        num_bytes: Bytes of the sample in a tar.
        id_bytes: Bytes of the id, or 0 if the table has no ids.
        chunk: Number of the chunk.
    """
    # The sort is stable, so the first of equal texts is the first sample in the order of the corpus.
    order = np.lexsort((skills, texts))
    texts, skills = texts[order], skills[order]
    is_first = np.append(True, (texts[1:] != texts[:-1]) | (skills[1:] != skills[:-1]))
    starts = np.flatnonzero(is_first)
    table = np.empty(len(starts), TEXTS_DTYPE)
    table["text"], table["skill"] = texts[starts], skills[starts]
    table["chunk"] = chunk
    firsts = order[starts]
    for name, values in (("file", files), ("row", rows), ("first_bytes", num_bytes), ("id_bytes", id_bytes)):
        table[name] = values[firsts]
    table["num_samples"] = np.diff(np.append(starts, len(order)))
    table["num_bytes"] = np.add.reduceat(num_bytes[order], starts)
    return table, firsts


def write_table(place: str, table: np.ndarray, ids: Iterable[Bytes]) -> None:
    """Write a table of texts, and the ids of its first samples if the table has ids.

    Args:
        place: Place of the files, without suffixes (`TABLE_SUFFIXES`).
        table: Entries, dtype `TEXTS_DTYPE`.
        ids: Ids of all entries in their order, in stretches of any length.
    """
    if table["id_bytes"].any():
        # A task that reads a range of the table finds the ids of the range by the first bound, without reading the table.
        bounds = np.cumsum(table["id_bytes"], dtype=np.uint64) - table["id_bytes"]
        with storage.writing(places.with_suffix(place, ".ids.data")) as part, part.open("wb") as file:
            file.writelines(ids)
        storage.write_array(places.with_suffix(place, ".ids.npy"), bounds)
    storage.write_array(places.with_suffix(place, ".npy"), table)


def find_copies(
    tables: list[str],
    low: str,
    high: str | None,
    cut: str,
    inherited: Sequence[str],
    num_skills: int,
    totals: str,
    firsts: str | None,
    parent_names: str | None,
) -> Record:
    """Count texts and copies of each skill, for the texts with a hash in [low, high).

    Args:
        tables: Places of tables of texts, without suffixes, in which the range is complete.
        low: First hash of the range.
        high: End of the range, exclusive. None stands for no limit.
        cut: Hash below which a text is held out.
        inherited: Exceptions to the cut in the parent.
        num_skills: Number of skills.
        totals: File to write, an array (skill, total). The totals are the number of copies; then texts, samples and bytes in train, and the
            same three numbers in holdout. Dropped copies count only as copies.
        firsts: Place for the first samples of texts with copies, if copies are dropped. With None, copies are kept.
        parent_names: File with the names of the parent's shards, a name on each line. None without a parent.

    Returns:
        Number of copies, and of entries in the table of first samples.
    """
    stretches = _stretches(tables, low, high)
    entries, order = _sorted(stretches)
    is_first, group = _groups(entries["text"])
    is_new = entries["skill"] != PARENT
    samples = entries["num_samples"].astype(np.int64)
    copies = np.zeros(num_skills, np.int64)
    np.add.at(copies, entries["skill"][is_new], (samples - is_first)[is_new])

    is_counted = is_new if firsts is None else is_new & is_first
    counted = entries[is_counted]
    sizes = np.zeros((num_skills, 2, 3), np.int64)
    side = np.where(is_below(counted["text"], cut, inherited), HOLDOUT, TRAIN)
    if firsts is None:
        # A text has an entry in each of its chunks, and counts as one text of the skill.
        _, distinct = np.unique(group[is_counted] * num_skills + counted["skill"], return_index=True)
        np.add.at(sizes[:, :, TEXTS], (counted["skill"][distinct], side[distinct]), 1)
        np.add.at(sizes[:, :, SAMPLES], (counted["skill"], side), samples[is_counted])
        np.add.at(sizes[:, :, BYTES], (counted["skill"], side), counted["num_bytes"].astype(np.int64))
    else:
        np.add.at(sizes[:, :, TEXTS], (counted["skill"], side), 1)
        np.add.at(sizes[:, :, SAMPLES], (counted["skill"], side), 1)
        np.add.at(sizes[:, :, BYTES], (counted["skill"], side), counted["first_bytes"].astype(np.int64))
    # Not in the record: the records of all ranges stand in the driver's memory together.
    storage.write_array(totals, np.column_stack((copies, sizes.reshape(num_skills, 6))))
    num_firsts = 0
    if firsts is not None:
        ids = _ids_of(stretches).take(pa.array(order))
        num_firsts = _write_firsts(firsts, parent_names, entries, ids, is_first, group)
    return {"copies": int(copies.sum()), "firsts": num_firsts}


def is_below(texts: np.ndarray, cut: str, inherited: Sequence[str]) -> Bool[np.ndarray, " text"]:
    """Return whether each text is held out by the cut and by the exceptions of a parent.

    Args:
        texts: Hashes.
        cut: Hash below which a text is held out.
        inherited: Exceptions to the cut.
    """
    below: Bool[np.ndarray, " text"] = texts < hash_of(cut)
    return below ^ np.isin(texts, hashes_of(inherited)) if inherited else below


class _Stretch(NamedTuple):
    """Entries of a range of hashes in one table.

    Attributes:
        place: Place of the table, without suffixes.
        begin: Entry of the table with which the stretch begins.
        entries: Entries, dtype `TEXTS_DTYPE`.
    """

    place: str
    begin: int
    entries: np.ndarray


def _stretches(tables: Sequence[str], low: str, high: str | None) -> list[_Stretch]:
    """Return the entries of the texts with a hash in [low, high), of each table."""
    stretches = []
    for place in tables:
        table = storage.load_array(places.with_suffix(place, ".npy"))
        begin = int(np.searchsorted(table["text"], hash_of(low)))
        end = len(table) if high is None else int(np.searchsorted(table["text"], hash_of(high)))
        stretches.append(_Stretch(place, begin, np.array(table[begin:end])))
    return stretches


def _sorted(stretches: Sequence[_Stretch]) -> tuple[np.ndarray, Int[np.ndarray, " entry"]]:
    """Return all entries, sorted by text and then by the order of the corpus, and their positions before the sort.

    Texts of a parent come before new texts.
    """
    entries = np.concatenate([np.empty(0, TEXTS_DTYPE), *(stretch.entries for stretch in stretches)])
    is_new = entries["skill"] != PARENT
    # Two tables of a parent may hold the same text. The number of the shard makes the order total.
    before = () if is_new.all() else (entries["chunk"], entries["row"], entries["file"], is_new)
    order = np.lexsort((*(before or (entries["row"], entries["file"])), entries["text"]))
    return entries[order], order


def _ids_of(stretches: Sequence[_Stretch]) -> pa.LargeBinaryArray:
    """Return the ids of the first samples of all entries, in the order of the stretches. An entry without an id has an empty id.

    Each stretch is read by one open and one read, so the ids add no more opens than the tables have.
    """
    sizes = np.concatenate(
        [np.empty(0, np.int64), *(stretch.entries["id_bytes"].astype(np.int64) for stretch in stretches)]
    )
    data = bytearray()
    for stretch in stretches:
        num_bytes = int(stretch.entries["id_bytes"].sum(dtype=np.int64))
        if num_bytes:
            bounds = storage.load_array(places.with_suffix(stretch.place, ".ids.npy"))
            with storage.open_at(places.with_suffix(stretch.place, ".ids.data")) as file:
                file.seek(int(bounds[stretch.begin]))
                data += file.read(num_bytes)
    if len(data) != sizes.sum():
        raise ShardError(
            "a scratch file with ids ends too early: damaged or edited. Remove the unfinished output directory and run the command again."
        )
    return array_of(data, sizes)


def merge_tables(inputs: list[str], out: str, low: str, high: str | None) -> Record:
    """Write one table of texts with the entries of a range of hashes from several tables.

    Args:
        inputs: Places of tables, without suffixes.
        out: Place of the table to write, without suffixes.
        low: First hash of the range.
        high: End of the range, exclusive. None stands for no limit.
    """
    stretches = _stretches(inputs, low, high)
    entries, order = _sorted(stretches)
    write_table(out, entries, gathered(_ids_of(stretches), order))
    return {}


def _groups(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of the sorted hashes whether the hash is new, and the number of its group of equal hashes."""
    is_first = np.ones(len(texts), bool)
    is_first[1:] = texts[1:] != texts[:-1]
    return is_first, np.cumsum(is_first) - 1


def _write_firsts(
    place: str,
    parent_names: str | None,
    entries: np.ndarray,
    ids_of_entries: pa.LargeBinaryArray,
    is_first: np.ndarray,
    group: np.ndarray,
) -> int:
    """Write the first samples of the texts with copies, one entry for each text and chunk with the text.

    Returns:
        Number of entries.
    """
    # Only texts with copies are written: a chunk looks up its texts, and a text without an entry stays as it is.
    starts = np.flatnonzero(is_first)
    is_new = entries["skill"] != PARENT
    repeated = np.zeros(len(starts), bool)
    if len(starts):
        repeated = np.add.reduceat(entries["num_samples"], starts) > 1
        repeated &= np.add.reduceat(is_new, starts, dtype=np.int64) > 0
    ids = [b""] * len(starts)
    names = [] if parent_names is None else storage.read_bytes(parent_names).splitlines()
    # The tars of a parent are not read. In place of the id of a parent's sample stand the row and the name of the shard.
    of_repeated = ids_of_entries.take(pa.array(starts[repeated])).to_pylist()
    for position, sample_id in zip(np.flatnonzero(repeated).tolist(), of_repeated, strict=True):
        first = entries[starts[position]]
        shard = int(first["chunk"]) - PARENT_CHUNK
        ids[position] = sample_id if shard < 0 else b"row %d of %s" % (int(first["row"]), names[shard])
    # A text has an entry for each skill of a chunk, and a chunk needs one. The chunks of a text rise.
    is_other_chunk = is_first.copy()
    is_other_chunk[1:] |= entries["chunk"][1:] != entries["chunk"][:-1]
    chosen = np.flatnonzero(is_other_chunk & is_new & repeated[group])
    # By chunk and then by text: `_mark_copies` cuts out the stretch of its chunk and searches for hashes in the stretch.
    chosen = chosen[np.lexsort((entries["text"][chosen], entries["chunk"][chosen]))]
    table = np.empty(len(chosen), FIRSTS_DTYPE)
    for name, positions in (
        ("chunk", chosen),
        ("text", chosen),
        ("file", starts[group[chosen]]),
        ("row", starts[group[chosen]]),
    ):
        table[name] = entries[name][positions]
    _write_table_with_ids(place, table, [ids[position] for position in group[chosen].tolist()])
    return len(table)


def _write_table_with_ids(place: str, table: np.ndarray, ids: Sequence[bytes]) -> None:
    """Write PLACE.npy, dtype `FIRSTS_DTYPE`, and PLACE.data with the ids of the entries in the same order."""
    table["id_bytes"] = [len(sample_id) for sample_id in ids]
    table["start"] = np.cumsum(table["id_bytes"], dtype=np.uint64) - table["id_bytes"]
    storage.write_bytes(places.with_suffix(place, ".data"), b"".join(ids))
    storage.write_array(places.with_suffix(place, ".npy"), table)


def _firsts(inputs: Sequence[str], low: int, high: int) -> tuple[np.ndarray, list[bytes]]:
    """Return the first samples for the chunks with numbers in [low, high), sorted by chunk and text, and their ids."""
    stretches, ids = [np.empty(0, FIRSTS_DTYPE)], []
    for place in inputs:
        table = storage.load_array(places.with_suffix(place, ".npy"))
        begin, end = np.searchsorted(table["chunk"], np.array([low, high], np.uint64)).tolist()
        if begin == end:
            continue
        stretch = np.array(table[begin:end])
        with storage.open_at(places.with_suffix(place, ".data")) as file:
            file.seek(int(stretch["start"][0]))
            ids += [file.read(size) for size in stretch["id_bytes"].tolist()]
        stretches.append(stretch)
    table = np.concatenate(stretches)
    order = np.lexsort((table["text"], table["chunk"]))
    return table[order], [ids[position] for position in order.tolist()]


def merge_firsts(inputs: list[str], out: str, low: int, high: int) -> Record:
    """Write one table of first samples with the entries of a range of chunks from several tables.

    Args:
        inputs: Places of tables.
        out: Place of the table to write.
        low: First number of a chunk.
        high: End of the range, exclusive.
    """
    _write_table_with_ids(out, *_firsts(inputs, low, high))
    return {}


def _member(file: Any, entry: np.void) -> tuple[str, bytes, dict[str, Any]]:
    """Read the id, text and meta of a sample from the data of a chunk."""
    file.seek(int(entry["start"]))
    text, json = file.read(int(entry["text_bytes"])), orjson.loads(file.read(int(entry["json_bytes"])))
    return json["id"], text, json["meta"]


def find_texts(
    tables: list[str],
    low: str,
    high: str | None,
    drop: bool,
    beyond: Mapping[str, str],
    order: Order,
    most: int,
) -> Record:
    """Find the lowest or highest texts of some skills in a range of hashes.

    Args:
        tables: Places of tables of texts, without suffixes, in which the range is complete.
        low: First hash of the range.
        high: End of the range, exclusive. None stands for no limit.
        drop: Whether copies are dropped. Only the first sample of a text counts then.
        beyond: Skill -> hash. Only texts with a larger hash count, and "" stands for all texts.
        order: "lowest" or "highest".
        most: Largest number of texts of a skill.

    Returns:
        Skill -> texts in the requested order. A text is a hash and, for each skill with this text, the number of samples and
        their bytes.
    """
    entries, _ = _sorted(_stretches(tables, low, high))
    is_first, group = _groups(entries["text"])
    # The shards of a parent stay as they are, so a text of the parent cannot change its side.
    is_free = ~np.isin(group, group[entries["skill"] == PARENT])
    if drop:
        is_free &= is_first
    entries, group = entries[is_free], group[is_free]
    texts: dict[str, list[Any]] = {}
    for skill, after in beyond.items():
        positions = np.flatnonzero(entries["skill"] == int(skill))
        if after:
            positions = positions[entries["text"][positions] > hash_of(after)]
        groups = np.unique(group[positions])
        groups = groups[:most] if order == "lowest" else groups[::-1][:most]
        texts[skill] = [_described(entries, group, number, drop=drop) for number in groups.tolist()]
    return {"skills": texts}


def _described(entries: np.ndarray, group: np.ndarray, number: int, *, drop: bool) -> list[Any]:
    """Return the hash of a group of equal texts, and for each skill the number of samples and their bytes."""
    begin, end = np.searchsorted(group, [number, number + 1]).tolist()
    members: dict[str, list[int]] = {}
    for entry in entries[begin:end]:
        size = members.setdefault(str(int(entry["skill"])), [0, 0])
        size[0] += 1 if drop else int(entry["num_samples"])
        size[1] += int(entry["first_bytes" if drop else "num_bytes"])
    return [hex_of(entries["text"][begin : begin + 1])[0], members]


class _Copy(NamedTuple):
    """Sample that is a copy.

    Attributes:
        file: Number of the file in the corpus.
        row: Row in the file.
        chunk: Place of the chunk of the sample.
        place: Entry in the chunk's sorted index.
        first_id: Id of the first sample with the same text. In a parent, the row and the name of the shard.
        is_of_parent: Whether the first sample is a sample of the parent.
    """

    file: int
    row: int
    chunk: str
    place: int
    first_id: str
    is_of_parent: bool


def set_copies_aside(
    partition: Partition,
    num_chunks: int,
    scratch: str,
    files: list[int],
    first_row: int,
    firsts: list[str],
    rejected_before: str | None,
    rejected: str,
    max_sample_bytes: int,
    num_rejected_before: int | None,
) -> Record:
    """Mark the copies in a partition's chunks. Write the copies to rejected/, after the rows that the tags set aside.

    Args:
        partition: Partition of the corpus.
        num_chunks: Number of chunks of this partition.
        scratch: Directory of the chunks.
        files: Number of the file in the corpus of each stretch.
        first_row: Number of rows of the first file before the partition.
        firsts: Tables of first samples, in which this partition is complete.
        rejected_before: File of the rows that the tags set aside, or None without such rows.
        rejected: File to write. Without rows, no file is written.
        max_sample_bytes: Limit of a sample's size with which the corpus was tagged.
        num_rejected_before: Number of rows of `rejected_before` that belong to the shards. None: all rows.

    Returns:
        Number of copies.
    """
    copies = (
        copy
        for chunk in range(num_chunks)
        for copy in _mark_copies(scratch, chunk_number(partition.index, chunk), firsts)
    )
    batch = list(islice(copies, COPIES_AT_ONCE))
    if num_rejected_before == 0:
        rejected_before = None
    if not batch:
        if rejected_before is not None:
            storage.write_bytes(rejected, first_rejected(rejected_before, num_rejected_before))
        return {"copies": 0}
    num_copies = 0
    with storage.writing(rejected) as part, part.open("wb") as file:
        if rejected_before is not None:
            file.write(first_rejected(rejected_before, num_rejected_before))
        while batch:
            file.writelines(_rejections(partition, files, first_row, batch, max_sample_bytes))
            num_copies += len(batch)
            batch = list(islice(copies, COPIES_AT_ONCE))
    return {"copies": num_copies}


def _mark_copies(scratch: str, number: int, firsts: list[str]) -> Iterator[_Copy]:
    """Yield the copies in a chunk, in the order of the corpus. At the end, write CHUNK.copies.npy: whether each entry is a copy."""
    chunk = chunk_place(scratch, number)
    index = storage.load_array(places.with_suffix(chunk, ".npy"))
    is_copy = np.zeros(len(index), bool)
    table, ids = _firsts(firsts, number, number + 1)
    if len(table):
        matches = np.minimum(np.searchsorted(table["text"], index["text"]), len(table) - 1)
        is_first = (table["row"][matches] == index["row"]) & (table["file"][matches] == index["file"])
        is_copy = (table["text"][matches] == index["text"]) & ~is_first
        entries = np.flatnonzero(is_copy)
        entries = entries[np.lexsort((index["row"][entries], index["file"][entries]))]
        for place in entries.tolist():
            file, row, match = int(index["file"][place]), int(index["row"][place]), int(matches[place])
            yield _Copy(file, row, chunk, place, ids[match].decode(), int(table["file"][match]) == PARENT)
    storage.write_array(places.with_suffix(chunk, ".copies.npy"), is_copy)


def _rejections(
    partition: Partition, files: Sequence[int], first_row: int, copies: Sequence[_Copy], max_sample_bytes: int
) -> Iterator[bytes]:
    """Yield a line of rejected/ for each copy."""
    names: dict[int, str] = {}
    lines: dict[tuple[int, int], int] = {}
    for file, of_file in groupby(copies, key=lambda copy: copy.file):
        stretch = partition.stretches[files.index(file)]
        skipped = first_row if file == files[0] else 0
        rows = {copy.row - skipped for copy in of_file}
        numbers = line_numbers(stretch, rows, max_sample_bytes=max_sample_bytes)
        names[file] = stretch.name
        lines.update(((file, row + skipped), line) for row, line in numbers.items())
    for chunk, chunk_copies in groupby(copies, key=lambda copy: copy.chunk):
        index = storage.load_array(places.with_suffix(chunk, ".npy"))
        with storage.open_at(places.with_suffix(chunk, ".data")) as file:
            for copy in chunk_copies:
                sample_id, text, meta = _member(file, index[copy.place])
                raw = orjson.dumps({"id": sample_id, "text": text.decode(), "meta": meta}).decode()
                first = f"{copy.first_id} in the continued shards" if copy.is_of_parent else f"sample {copy.first_id!r}"
                detail = f"the text is a copy of that of {first}"
                rejection = Rejection(names[copy.file], lines[copy.file, copy.row], "copy", detail, sample_id, raw)
                yield orjson.dumps(rejection.to_json(), option=orjson.OPT_APPEND_NEWLINE)
