"""Find the ids that stand more than once in a corpus, in ranges of the hashes of the ids.

    SCRATCH/000000.npy                 hashes of the ids of a partition, rising, with the rows (dtype `HASH_DTYPE`)
    SCRATCH/ids/1-000000-000000.npy    hashes of a range from many partitions; only in a large corpus (merge_levels.py)

A task reads a range of hashes from all files, and two ids with the same hash are read from the parts of the tags. The task needs 24 bytes
for each id of the range, several times.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from skillshard import storage
from skillshard.execution import Record
from skillshard.hash_ranges import hash_bounds, rows_between
from skillshard.merge_levels import Merge
from skillshard.stages import Stages
from skillshard.tags import part_place

# A task sorts the hashes of one range in memory: 24 bytes each, so 120 MB.
IDS_PER_RANGE = 5_000_000
# The byte order is fixed, because the nodes of a cluster read the scratch files of each other.
HASH_DTYPE = np.dtype([("hash", "<u8"), ("row", "<u8"), ("part", "<u8")])


def hashes_of_part(hashes: Sequence[int], rows: Sequence[int], part: int) -> np.ndarray:
    """Return the hashes of the ids of a part with their rows, sorted by the hash.

    Args:
        hashes: Hash of each id.
        rows: Row of each id, rising.
        part: Number of the part.
    """
    unsorted = np.asarray(hashes)
    order = np.argsort(unsorted)
    rising = unsorted[order]
    if (rising[1:] == rising[:-1]).any():
        # The rows rise, so the stable sort leaves equal hashes in the order of the rows. It takes three times as long as the sort above.
        order = np.argsort(unsorted, kind="stable")
    entries = np.empty(len(order), HASH_DTYPE)
    entries["hash"], entries["row"], entries["part"] = rising, np.asarray(rows)[order], part
    return entries


def repeated_rows(files: Sequence[str], parts: str, num_ids: int, stages: Stages) -> list[Record]:
    """Return the rows that repeat an earlier id, in the order of the corpus.

    Args:
        files: File with the hashes of each part. The files are deleted if they are merged.
        parts: Directory of the parts of the tags.
        num_ids: Number of ids of the corpus.
        stages: Runner of the tasks.

    Returns:
        For each row its "part", "row" and "id", and the place of the first row with the id, "first_part" and "first_row".
    """
    num_ranges = -(-num_ids // IDS_PER_RANGE) or 1
    bounds = hash_bounds(num_ranges)

    def merge_arguments(merge: Merge, inputs: list[str], out: str) -> dict[str, Any]:
        return {"inputs": inputs, "out": out, "low": bounds[merge.first_reader], "high": bounds[merge.last_reader]}

    num_bytes = num_ids * HASH_DTYPE.itemsize
    _, columns = stages.merged("ids", merge_hashes, files, ("",), num_ranges, num_bytes, merge_arguments)
    records = stages.run(
        "duplicates",
        "checking ids",
        find_duplicates,
        [
            {"hashes": inputs, "parts": parts, "low": bounds[number], "high": bounds[number + 1]}
            for inputs, readers in columns
            for number in readers
        ],
    )
    return sorted((row for record in records for row in record["rows"]), key=lambda row: (row["part"], row["row"]))


def merge_hashes(inputs: Sequence[str], out: str, low: int, high: int) -> Record:
    """Write one file with the hashes in [low, high) of several files."""
    storage.write_array(out, _entries(inputs, low, high))
    return {}


def find_duplicates(hashes: Sequence[str], parts: str, low: int, high: int) -> Record:
    """Find the rows with the id of an earlier row, among the ids with a hash in [low, high)."""
    entries = _entries(hashes, low, high)
    same = np.flatnonzero(entries["hash"][1:] == entries["hash"][:-1])
    suspects = entries[np.union1d(same, same + 1)]
    # Two ids may share a hash, so the ids themselves decide. Only suspects are read, and equal hashes are rare.
    first_of: dict[str, tuple[int, int]] = {}
    later = []
    places = zip(suspects["part"].tolist(), suspects["row"].tolist(), strict=True)
    for (part, row), identity in sorted(_ids_at(parts, places).items()):
        first = first_of.setdefault(identity, (part, row))
        if first != (part, row):
            later.append({"part": part, "row": row, "id": identity, "first_part": first[0], "first_row": first[1]})
    return {"rows": later}


def _entries(files: Sequence[str], low: int, high: int) -> np.ndarray:
    """Return the entries of a range of hashes from several files, sorted by hash, part and row."""
    tables = (storage.load_array(place) for place in files)
    entries = np.concatenate([np.array(table[rows_between(table["hash"], low, high)]) for table in tables])
    # The inputs of a merge lie far apart in the corpus, so the order of the files is not the order of the parts.
    return entries[np.lexsort((entries["row"], entries["part"], entries["hash"]))]


def _ids_at(parts: str, wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], str]:
    by_part: dict[int, list[int]] = {}
    for part, row in wanted:
        by_part.setdefault(part, []).append(row)
    id_of: dict[tuple[int, int], str] = {}
    for part, rows in by_part.items():
        ids = pq.read_table(storage.readable(part_place(parts, part)), columns=["id"])["id"].take(rows).to_pylist()
        id_of.update(zip(((part, row) for row in rows), ids, strict=True))
    return id_of
