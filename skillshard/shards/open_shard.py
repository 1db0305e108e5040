"""A shard in memory maps: the bytes of a tar, and the index that says where each text and each JSON lies."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import orjson

from skillshard.corpus import Sample
from skillshard.errors import ShardError
from skillshard.shards.layouts import LAYOUTS
from skillshard.shards.manifest import ANEW, TAR_BLOCK, Layout
from skillshard.shards.mapped import Mapped
from skillshard.shards.members import read_members
from skillshard.shards.texts import text_hashes


@dataclass(frozen=True)
class OpenShard:
    """Shard in memory maps: the bytes of the tar, and the index with the dtype of the layout."""

    data: Mapped
    index: np.ndarray
    layout: Layout

    def text(self, row: int) -> str:
        start, text_bytes = self.index[row].tolist()[:2]
        return str(self.data[start : start + text_bytes], "utf-8")

    def member(self, row: int) -> bytes | memoryview:
        """Return the bytes of a row's JSON."""
        begin = int(LAYOUTS[self.layout].json_starts(self.index[row : row + 1])[0])
        return self.data[begin : begin + int(self.index["json_bytes"][row])]

    def sample(self, row: int) -> Sample:
        """Return a row's sample, without further members."""
        member = orjson.loads(self.member(row))
        return Sample(member["id"], self.text(row), member["meta"])

    def members(self, row: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """Return the bytes of a row's further members, such as images, by suffix. None: all members."""
        if self.layout != "pairs":
            return {}
        json_start = int(LAYOUTS[self.layout].json_starts(self.index[row : row + 1])[0])
        return read_members(self.data, json_start, int(self.index["json_bytes"][row]), wanted)

    def text_hashes(self, rows: range) -> np.ndarray:
        """Return the hashes of the texts of some rows, dtype uint64, one for each row."""
        spans = self.index[["text_start", "text_bytes"]][rows.start : rows.stop].tolist()
        return text_hashes(bytes(self.data[start : start + size]) for start, size in spans)

    def disagreement(self) -> str | None:
        """Describe the first row of the index that the headers of the tar contradict, or return None.

        The description is the rest of a sentence that begins with the name of the tar.
        """
        if len(self.data) % TAR_BLOCK:
            return f"is {len(self.data):,} bytes, not a whole number of blocks of {TAR_BLOCK}"
        return LAYOUTS[self.layout].disagreement(memoryview(self.data), self.index)


def entries_of(data: Mapped, dtype: np.dtype, num_samples: int, name: str) -> np.ndarray:
    """Return the entries of a mapped .npy file with one entry for each sample."""
    # The entries are the end of the .npy file, so their number gives the length of the header before them.
    first = len(data) - num_samples * dtype.itemsize
    if first < 0:
        raise ShardError(
            f"{name} is {len(data):,} bytes, too few for the {num_samples:,} samples of the manifest. {ANEW}"
        )
    return np.frombuffer(data, dtype, offset=first)
