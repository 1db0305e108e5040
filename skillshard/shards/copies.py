"""Copies: samples whose folded text stands earlier in the corpus, in any skill. Found by sorted hashes, as equal ids are.

Each chunk of sorted samples has a table of its texts, `CHUNK.texts.npy`: one entry per text and skill, sorted by hash. A task here
takes a range of hashes from the tables of all chunks, so it sees every copy of a text together:

- `find_copies` counts, and for `drop` names the first sample of each text that has copies;
- `find_texts` finds the lowest or highest hashes of some skills, for split.py;
- `set_copies_aside` marks the copies in one partition's chunks and writes them to rejected/.

Cost: 52 bytes of scratch per distinct text of a chunk and skill. A task's memory is about 200 bytes for each of `TEXTS_PER_RANGE` entries, and
the number of entries of one text is at most that of chunks times skills, however often the text stands there. The driver holds what
the skills hold of each split, not the copies.
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

TEXTS_PER_RANGE = 1_000_000
"""Entries that a task reads: about 200 MB of memory with what it sorts."""
COPIES_AT_ONCE = 250_000
"""Copies whose lines are looked up together, which reads the partition once more: about 60 MB of memory."""
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
    """The table of a chunk's texts, dtype `TEXTS_DTYPE`.

    Args:
        texts: hash of each sample's text, in the order of the corpus, as all arguments.
        skills: its skill.
        rows: its row in the partition; rising.
        num_bytes: its bytes in a tar.
        places: its entry in the chunk's sorted index.
    """
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
    """What the skills hold of the texts whose hash is in [low, high).

    Args:
        high: None: no limit.
        cut: hash below which a text is held out.
        firsts: place for the first samples of the texts that have copies, if copies are dropped; None: they are kept.

    Returns:
        skill -> number of copies, then texts, samples and bytes in train, and the same in holdout; without copies that are
        dropped.
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
        # A text of several chunks has several entries of one skill, and counts once.
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
    """The entries of a range and the number of each entry's chunk: by text, those of one text in the order of the corpus."""
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
    """Whether each of some sorted hashes is the first of its kind, and the number of its kind."""
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
    """Write PLACE.npy, for each chunk and each of its texts that has copies anywhere the row that stays, and PLACE.ids, the
    ids of the first samples."""
    starts = np.flatnonzero(is_first)
    first_chunks = chunk_numbers[starts]
    repeated = np.add.reduceat(entries["num_samples"], starts) > 1 if len(starts) else np.zeros(0, bool)
    ids = _ids_at(chunks, first_chunks[repeated], entries["place"][starts][repeated])
    id_bytes = np.zeros(len(starts), np.int64)
    id_bytes[repeated] = [len(value) for value in ids]
    id_starts = np.cumsum(id_bytes) - id_bytes

    chosen = np.flatnonzero(repeated[group])
    _, of_chunk = np.unique(group[chosen] * len(chunks) + chunk_numbers[chosen], return_index=True)
    chosen = chosen[of_chunk]
    chosen = chosen[np.lexsort((entries["text"][chosen], chunk_numbers[chosen]))]
    table = np.empty(len(chosen), _FIRSTS_DTYPE)
    table["chunk"], table["text"] = chunk_numbers[chosen], entries["text"][chosen]
    in_first_chunk = table["chunk"] == first_chunks[group[chosen]]
    table["row"] = np.where(in_first_chunk, entries["row"][starts][group[chosen]].astype(np.int64), -1)
    table["id_start"], table["id_bytes"] = id_starts[group[chosen]], id_bytes[group[chosen]]
    storage.write_bytes(f"{place}.ids", b"".join(ids))
    storage.write_array(f"{place}.npy", table)


def _ids_at(chunks: list[str], chunk_numbers: np.ndarray, places: np.ndarray) -> list[bytes]:
    """The ids of samples, given by chunk and entry of its sorted index; every chunk is opened once."""
    ids: list[bytes] = [b""] * len(places)
    by_chunk = np.argsort(chunk_numbers, kind="stable").tolist()
    for number, positions in groupby(by_chunk, key=lambda position: int(chunk_numbers[position])):
        index = np.load(f"{chunks[number]}.npy", mmap_mode="r")
        with open(f"{chunks[number]}.data", "rb") as file:
            for position in positions:
                ids[position] = _member(file, index[int(places[position])])[0].encode()
    return ids


def _member(file: Any, entry: np.void) -> tuple[str, bytes, dict[str, Any]]:
    """Id, text and meta of a sample of a chunk."""
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
    """The texts of some skills in a range of hashes, beginning at one end.

    Args:
        drop: whether copies are dropped: then only the first sample of a text counts.
        beyond: skill -> look only at hashes above this one; "": at all.
        most: so many texts of each skill.

    Returns:
        skill -> its texts in that order, each its hash, and skill -> samples and bytes of all skills that have it.
    """
    entries, _ = _entries(chunks, low, high)
    is_first, group = _groups(entries["text"])
    if drop:
        entries, group = entries[is_first], group[is_first]
    found: dict[str, list[Any]] = {}
    for skill, after in beyond.items():
        of_skill = np.flatnonzero(entries["skill"] == int(skill))
        if after:
            of_skill = of_skill[entries["text"][of_skill] > hash_of(after)]
        kinds = np.unique(group[of_skill])
        kinds = kinds[:most] if order == "lowest" else kinds[::-1][:most]
        found[skill] = [_described(entries, group, kind, drop=drop) for kind in kinds.tolist()]
    return {"skills": found}


def _described(entries: np.ndarray, group: np.ndarray, kind: int, *, drop: bool) -> list[Any]:
    begin, end = np.searchsorted(group, [kind, kind + 1]).tolist()
    members: dict[str, list[int]] = {}
    for entry in entries[begin:end]:
        size = members.setdefault(str(int(entry["skill"])), [0, 0])
        size[0] += 1 if drop else int(entry["num_samples"])
        size[1] += int(entry["first_bytes" if drop else "num_bytes"])
    return [hex_of(entries["text"][begin : begin + 1])[0], members]


class _Copy(NamedTuple):
    """A sample that is a copy: its row in the partition, the entry of its chunk's sorted index, the id of the first sample."""

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
    """Mark the copies in a partition's chunks, and write them to rejected/ after the rows that the tags set aside.

    Args:
        chunks: the chunks of this partition.
        first_chunk: number of the first of them among all chunks.
        firsts: what `find_copies` wrote, in the order of the ranges.
        rejected_before: rejected rows of the tags; None: there are none.
        rejected: file to write, if there is a row to write.
        max_sample_bytes: as the corpus was tagged.

    Returns:
        Number of copies.
    """
    copies = (found for at, chunk in enumerate(chunks) for found in _mark_copies(chunk, first_chunk + at, firsts))
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
    """The copies in a chunk, in the order of the corpus; once all are taken, CHUNK.copies.npy says which entries they are."""
    index = np.load(f"{chunk}.npy", mmap_mode="r")
    is_copy = np.zeros(len(index), bool)
    tables = [np.load(f"{place}.npy", mmap_mode="r") for place in firsts]
    spans = [np.searchsorted(table["chunk"], np.array([number, number + 1], np.uint32)).tolist() for table in tables]
    table = np.concatenate([table[begin:end] for table, (begin, end) in zip(tables, spans, strict=True)])
    if len(table):
        # The tables of the ranges follow one another, so together they are sorted by hash.
        matches = np.minimum(np.searchsorted(table["text"], index["text"]), len(table) - 1)
        is_copy = (table["text"][matches] == index["text"]) & (table["row"][matches] != index["row"].astype(np.int64))
        places = np.flatnonzero(is_copy)
        places = places[np.argsort(index["row"][places])]
        ids = _first_ids(firsts, np.repeat(np.arange(len(spans)), [end - begin for begin, end in spans]), table)
        for row, place in zip(index["row"][places].tolist(), places.tolist(), strict=True):
            yield _Copy(row, chunk, place, ids[int(matches[place])])
    storage.write_array(f"{chunk}.copies.npy", is_copy)


def _first_ids(firsts: list[str], ranges: np.ndarray, table: np.ndarray) -> list[str]:
    """The ids of the first samples that entries name, each in the file of its range."""
    ids: list[str] = []
    for number, positions in groupby(range(len(table)), key=lambda position: int(ranges[position])):
        with open(f"{firsts[number]}.ids", "rb") as file:
            for position in positions:
                file.seek(int(table["id_start"][position]))
                ids.append(file.read(int(table["id_bytes"][position])).decode())
    return ids


def _rejections(partition: Partition, copies: Sequence[_Copy], max_sample_bytes: int) -> Iterator[bytes]:
    """Lines of rejected/ for some copies."""
    lines = line_numbers(partition, {copy.row for copy in copies}, max_sample_bytes=max_sample_bytes)
    for chunk, those in groupby(copies, key=lambda copy: copy.chunk):
        index = np.load(f"{chunk}.npy", mmap_mode="r")
        with open(f"{chunk}.data", "rb") as file:
            for copy in those:
                sample_id, text, meta = _member(file, index[copy.place])
                raw = orjson.dumps({"id": sample_id, "text": text.decode(), "meta": meta}).decode()
                detail = f"the text is a copy of that of sample {copy.first_id!r}"
                rejection = Rejection(partition.name, lines[copy.row], "copy", detail, sample_id, raw)
                yield orjson.dumps(rejection.to_json(), option=orjson.OPT_APPEND_NEWLINE)
