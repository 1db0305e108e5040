"""Find copies: samples whose folded text stands earlier in the corpus, in any skill.

Each chunk of sorted samples has a table of its texts, `CHUNK.texts.npy`, with one entry for each text and skill, sorted by hash. A
task reads one range of hashes from the tables of all chunks, so the task sees all copies of a text together:

- `find_copies` counts the copies. If copies are dropped, the task also names the first sample of each text with copies.
- `find_texts` finds the lowest or highest hashes of some skills, for split.py.
- `set_copies_aside` marks the copies in the chunks of one partition and writes the copies to rejected/.

Costs: 52 bytes of scratch space for each distinct text of a chunk and skill. A task needs about 200 bytes of memory for each of
`TEXTS_PER_RANGE` entries. A text has at most one entry for each chunk and skill, however often the text is repeated. The driver
holds the totals of each skill and split, but no list of copies.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import orjson

from skillshard import storage
from skillshard.corpus import Partition, Rejection, line_numbers
from skillshard.execution import Record
from skillshard.shards.split import BYTES, HOLDOUT, SAMPLES, TEXTS, TRAIN, Order
from skillshard.shards.texts import HASH_DTYPE, hash_of, hex_of

# About 200 MB of memory, with the arrays for sorting.
TEXTS_PER_RANGE = 1_000_000
"""Number of entries that a task reads, about."""
# About 60 MB of memory. Each look-up of line numbers reads the partition once more, so a batch is large.
COPIES_AT_ONCE = 250_000
"""Number of copies whose line numbers are looked up together."""
TEXTS_DTYPE = np.dtype(
    [
        ("text", HASH_DTYPE),
        ("skill", "<u4"),
        ("row", "<u8"),  # of the first sample: row of the partition
        ("place", "<u4"),  # of the first sample: entry of the chunk's sorted index
        ("num_samples", "<u4"),
        ("first_bytes", "<u8"),  # of the first sample in a tar
        ("num_bytes", "<u8"),  # of all samples in a tar
    ]
)
_FIRSTS_DTYPE = np.dtype(
    [
        ("chunk", "<u4"),
        ("text", HASH_DTYPE),
        ("row", "<i8"),  # the row that stays; -1 if the first sample is in another chunk
        ("id_start", "<u8"),
        ("id_bytes", "<u4"),
    ]
)


def texts_of_chunk(
    texts: np.ndarray, skills: np.ndarray, rows: np.ndarray, num_bytes: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Return the table of a chunk's texts, dtype `TEXTS_DTYPE`.

    All arguments have one entry for each sample, in the order of the corpus.

    Args:
        texts: Hash of the text.
        skills: Index of the skill.
        rows: Row in the partition, rising.
        num_bytes: Bytes of the sample in a tar.
        places: Entry in the chunk's sorted index.
    """
    # The sort is stable, so the first of equal texts is the first sample in the order of the corpus.
    order = np.lexsort((skills, texts))
    texts, skills = texts[order], skills[order]
    is_first = np.append(True, (texts[1:] != texts[:-1]) | (skills[1:] != skills[:-1]))
    starts = np.flatnonzero(is_first)
    table = np.empty(len(starts), TEXTS_DTYPE)
    table["text"], table["skill"] = texts[starts], skills[starts]
    for name, values in (("row", rows), ("place", places), ("first_bytes", num_bytes)):
        table[name] = values[order][starts]
    table["num_samples"] = np.diff(np.append(starts, len(order)))
    table["num_bytes"] = np.add.reduceat(num_bytes[order], starts)
    return table


def find_copies(chunks: list[str], low: str, high: str | None, cut: str, num_skills: int, firsts: str | None) -> Record:
    """Count texts and copies of each skill, for the texts with a hash in [low, high).

    Args:
        chunks: All chunks, in the order of the corpus.
        low: First hash of the range.
        high: End of the range, exclusive. None stands for no limit.
        cut: Hash below which a text is held out.
        num_skills: Number of skills.
        firsts: Place for the first samples of texts with copies, if copies are dropped. With None, copies are kept.

    Returns:
        Skill -> number of copies; then texts, samples and bytes in train, and the same three numbers in holdout. Dropped copies
        count only as copies.
    """
    entries, chunk_numbers = _entries(chunks, low, high)
    is_first, group = _groups(entries["text"])
    counted = entries if firsts is None else entries[is_first]
    samples = entries["num_samples"].astype(np.int64)
    copies = np.zeros(num_skills, np.int64)
    np.add.at(copies, entries["skill"], samples - is_first)

    sizes = np.zeros((num_skills, 2, 3), np.int64)
    side = np.where(counted["text"] < hash_of(cut), HOLDOUT, TRAIN)
    if firsts is None:
        # A text has an entry in each of its chunks, and counts as one text of the skill.
        _, distinct = np.unique(group * num_skills + entries["skill"], return_index=True)
        np.add.at(sizes[:, :, TEXTS], (counted["skill"][distinct], side[distinct]), 1)
        np.add.at(sizes[:, :, SAMPLES], (counted["skill"], side), samples)
        np.add.at(sizes[:, :, BYTES], (counted["skill"], side), counted["num_bytes"].astype(np.int64))
    else:
        np.add.at(sizes[:, :, TEXTS], (counted["skill"], side), 1)
        np.add.at(sizes[:, :, SAMPLES], (counted["skill"], side), 1)
        np.add.at(sizes[:, :, BYTES], (counted["skill"], side), counted["first_bytes"].astype(np.int64))
        _write_firsts(firsts, chunks, entries, chunk_numbers, is_first, group)
    present = np.flatnonzero(copies + sizes.sum(axis=(1, 2))).tolist()
    return {"skills": {str(skill): [int(copies[skill]), *sizes[skill].ravel().tolist()] for skill in present}}


def _entries(chunks: list[str], low: str, high: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the entries of a range with their chunk numbers, sorted by text and then by the order of the corpus."""
    tables = []
    for chunk in chunks:
        table = np.load(f"{chunk}.texts.npy", mmap_mode="r")
        begin = int(np.searchsorted(table["text"], hash_of(low)))
        end = len(table) if high is None else int(np.searchsorted(table["text"], hash_of(high)))
        tables.append(np.array(table[begin:end]))
    entries = np.concatenate(tables)
    chunk_numbers = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    order = np.lexsort((entries["row"], chunk_numbers, entries["text"]))
    return entries[order], chunk_numbers[order]


def _groups(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of the sorted hashes whether the hash is new, and the number of its group of equal hashes."""
    is_first = np.ones(len(texts), bool)
    is_first[1:] = texts[1:] != texts[:-1]
    return is_first, np.cumsum(is_first) - 1


def _write_firsts(
    place: str,
    chunks: list[str],
    entries: np.ndarray,
    chunk_numbers: np.ndarray,
    is_first: np.ndarray,
    group: np.ndarray,
) -> None:
    """Write PLACE.npy and PLACE.ids for the texts with copies.

    PLACE.npy has an entry for each chunk and text, with the row that stays. PLACE.ids has the ids of the first samples.
    """
    # Only texts with copies are written: a chunk looks up its texts, and a text without an entry stays as it is.
    starts = np.flatnonzero(is_first)
    first_chunks = chunk_numbers[starts]
    repeated = np.add.reduceat(entries["num_samples"], starts) > 1 if len(starts) else np.zeros(0, bool)
    ids = _ids_at(chunks, first_chunks[repeated], entries["place"][starts][repeated])
    id_bytes = np.zeros(len(starts), np.int64)
    id_bytes[repeated] = [len(value) for value in ids]
    id_starts = np.cumsum(id_bytes) - id_bytes

    chosen = np.flatnonzero(repeated[group])
    # A text has an entry for each skill of a chunk, and a chunk needs one.
    _, first_of_chunk = np.unique(group[chosen] * len(chunks) + chunk_numbers[chosen], return_index=True)
    chosen = chosen[first_of_chunk]
    # By chunk and then by text: `_mark_copies` cuts out the stretch of its chunk and searches for hashes in the stretch.
    chosen = chosen[np.lexsort((entries["text"][chosen], chunk_numbers[chosen]))]
    table = np.empty(len(chosen), _FIRSTS_DTYPE)
    table["chunk"], table["text"] = chunk_numbers[chosen], entries["text"][chosen]
    in_first_chunk = table["chunk"] == first_chunks[group[chosen]]
    table["row"] = np.where(in_first_chunk, entries["row"][starts][group[chosen]].astype(np.int64), -1)
    table["id_start"], table["id_bytes"] = id_starts[group[chosen]], id_bytes[group[chosen]]
    storage.write_bytes(f"{place}.ids", b"".join(ids))
    storage.write_array(f"{place}.npy", table)


def _ids_at(chunks: list[str], chunk_numbers: np.ndarray, places: np.ndarray) -> list[bytes]:
    """Return the ids of samples, given by chunk number and entry of the sorted index. Each chunk is opened once."""
    ids: list[bytes] = [b""] * len(places)
    by_chunk = np.argsort(chunk_numbers, kind="stable").tolist()
    for number, positions in groupby(by_chunk, key=lambda position: int(chunk_numbers[position])):
        index = np.load(f"{chunks[number]}.npy", mmap_mode="r")
        with open(f"{chunks[number]}.data", "rb") as file:
            for position in positions:
                ids[position] = _member(file, index[int(places[position])])[0].encode()
    return ids


def _member(file: Any, entry: np.void) -> tuple[str, bytes, dict[str, Any]]:
    """Read the id, text and meta of a sample from the data of a chunk."""
    file.seek(int(entry["start"]))
    text, json = file.read(int(entry["text_bytes"])), orjson.loads(file.read(int(entry["json_bytes"])))
    return json["id"], text, json["meta"]


def find_texts(
    chunks: list[str],
    low: str,
    high: str | None,
    drop: bool,
    beyond: Mapping[str, str],
    order: Order,
    most: int,
) -> Record:
    """Find the lowest or highest texts of some skills in a range of hashes.

    Args:
        chunks: All chunks, in the order of the corpus.
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
    entries, _ = _entries(chunks, low, high)
    is_first, group = _groups(entries["text"])
    if drop:
        entries, group = entries[is_first], group[is_first]
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
        row: Row in the partition.
        chunk: Chunk of the sample.
        place: Entry in the chunk's sorted index.
        first_id: Id of the first sample with the same text.
    """

    row: int
    chunk: str
    place: int
    first_id: str


def set_copies_aside(
    partition: Partition,
    chunks: list[str],
    first_chunk: int,
    firsts: list[str],
    rejected_before: str | None,
    rejected: str,
    max_sample_bytes: int,
) -> Record:
    """Mark the copies in a partition's chunks. Write the copies to rejected/, after the rows that the tags set aside.

    Args:
        partition: Partition of the corpus.
        chunks: Chunks of this partition.
        first_chunk: Number of the first of these chunks among all chunks.
        firsts: Places that `find_copies` wrote, in the order of the ranges.
        rejected_before: File of the rows that the tags set aside, or None without such rows.
        rejected: File to write. Without rows, no file is written.
        max_sample_bytes: Limit of a sample's size with which the corpus was tagged.

    Returns:
        Number of copies.
    """
    copies = (
        copy for number, chunk in enumerate(chunks, start=first_chunk) for copy in _mark_copies(chunk, number, firsts)
    )
    batch = list(islice(copies, COPIES_AT_ONCE))
    if not batch:
        if rejected_before is not None:
            storage.write_bytes(rejected, storage.read_bytes(rejected_before))
        return {"copies": 0}
    num_copies = 0
    with storage.writing(rejected) as part, part.open("wb") as file:
        if rejected_before is not None:
            file.write(storage.read_bytes(rejected_before))
        while batch:
            file.writelines(_rejections(partition, batch, max_sample_bytes))
            num_copies += len(batch)
            batch = list(islice(copies, COPIES_AT_ONCE))
    return {"copies": num_copies}


def _mark_copies(chunk: str, number: int, firsts: list[str]) -> Iterator[_Copy]:
    """Yield the copies in a chunk, in the order of the corpus. At the end, write CHUNK.copies.npy: whether each entry is a copy."""
    index = np.load(f"{chunk}.npy", mmap_mode="r")
    is_copy = np.zeros(len(index), bool)
    tables = [np.load(f"{place}.npy", mmap_mode="r") for place in firsts]
    spans = [np.searchsorted(table["chunk"], np.array([number, number + 1], np.uint32)).tolist() for table in tables]
    table = np.concatenate([table[begin:end] for table, (begin, end) in zip(tables, spans, strict=True)])
    if len(table):
        # The ranges follow one another, so the joined table is sorted by hash and can be searched.
        matches = np.minimum(np.searchsorted(table["text"], index["text"]), len(table) - 1)
        is_copy = (table["text"][matches] == index["text"]) & (table["row"][matches] != index["row"].astype(np.int64))
        places = np.flatnonzero(is_copy)
        places = places[np.argsort(index["row"][places])]
        ids = _first_ids(firsts, np.repeat(np.arange(len(spans)), [end - begin for begin, end in spans]), table)
        for row, place in zip(index["row"][places].tolist(), places.tolist(), strict=True):
            yield _Copy(row, chunk, place, ids[int(matches[place])])
    storage.write_array(f"{chunk}.copies.npy", is_copy)


def _first_ids(firsts: list[str], ranges: np.ndarray, table: np.ndarray) -> list[str]:
    """Read the ids of the first samples of all entries, from the files of the ranges."""
    ids: list[str] = []
    for number, positions in groupby(range(len(table)), key=lambda position: int(ranges[position])):
        with open(f"{firsts[number]}.ids", "rb") as file:
            for position in positions:
                file.seek(int(table["id_start"][position]))
                ids.append(file.read(int(table["id_bytes"][position])).decode())
    return ids


def _rejections(partition: Partition, copies: Sequence[_Copy], max_sample_bytes: int) -> Iterator[bytes]:
    """Yield a line of rejected/ for each copy."""
    lines = line_numbers(partition, {copy.row for copy in copies}, max_sample_bytes=max_sample_bytes)
    for chunk, chunk_copies in groupby(copies, key=lambda copy: copy.chunk):
        index = np.load(f"{chunk}.npy", mmap_mode="r")
        with open(f"{chunk}.data", "rb") as file:
            for copy in chunk_copies:
                sample_id, text, meta = _member(file, index[copy.place])
                raw = orjson.dumps({"id": sample_id, "text": text.decode(), "meta": meta}).decode()
                detail = f"the text is a copy of that of sample {copy.first_id!r}"
                rejection = Rejection(partition.name, lines[copy.row], "copy", detail, sample_id, raw)
                yield orjson.dumps(rejection.to_json(), option=orjson.OPT_APPEND_NEWLINE)
