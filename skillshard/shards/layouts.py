"""The two layouts of the members in the tars of a shard set.

- `pairs` (pairs.py), the default: two members for each sample, the text and the JSON. Every reader of tars sees whole samples.
- `compact` (compact.py): one member for each text, and the JSONs of 1,024 samples in one member. Texts of 1 kB take a third less space.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from skillshard.shards import compact, pairs
from skillshard.shards.manifest import Layout
from skillshard.shards.tar import Bytes


@runtime_checkable
class TarLayout(Protocol):
    """Functions of a layout. The modules of both layouts have these names."""

    @property
    def DTYPE(self) -> Any:
        """Entry of the index of a shard."""

    def tar_bytes_of(
        self, text_bytes: Int[np.ndarray, " row"], json_bytes: Int[np.ndarray, " row"]
    ) -> Int[np.ndarray, " row"]:
        """Return the bytes of each sample in a shard."""

    def tar_chunks(
        self, shard: int, parts: Iterable[tuple[pa.LargeBinaryArray, pa.LargeBinaryArray]]
    ) -> Iterator[Bytes]:
        """Yield the bytes of a shard's tar without the end mark."""

    def index_of(self, text_bytes: Int[np.ndarray, " row"], json_bytes: Int[np.ndarray, " row"]) -> np.ndarray:
        """Return the index of a shard."""

    def json_starts(self, entries: np.ndarray) -> Int[np.ndarray, " row"]:
        """Return the first byte of each JSON."""

    def disagreement(self, data: Bytes, index: np.ndarray) -> str | None:
        """Describe the first row of the index that the headers of the tar contradict, or return None."""


LAYOUTS: Mapping[Layout, TarLayout] = {"pairs": pairs, "compact": compact}
