r"""Files of Megatron-LM's indexed data sets: the token ids of documents, and an index of the documents.

    NAME.bin    ids of all documents, one document after the other, uint16 or int32
    NAME.idx    the bytes "MMIDIDX\0\0"
                version: 1                             uint64
                code of the type of the ids            uint8: 8 for uint16, 4 for int32
                number of sequences                    uint64
                number of bounds of documents          uint64
                number of ids of each sequence         int32
                first byte of each sequence in .bin    int64
                bounds of the documents: 0, 1, 2, ...  int64

All numbers are little-endian. A document is a sample, and is one sequence. So the number of bounds is the number of sequences and 1.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Integer

from skillshard import places
from skillshard.errors import TokensError
from skillshard.shards.token_manifest import KeptIds
from skillshard.shards.token_set import TokenSet

HEADER = b"MMIDIDX\0\0"
VERSION = 1
_TYPES: dict[str, tuple[int, np.dtype[Any]]] = {"uint16": (8, np.dtype("<u2")), "uint32": (4, np.dtype("<i4"))}
"""Type of the ids of a token set -> code and type of the ids in .bin. Megatron-LM has no type uint32."""
# A thousand pages of memory: the columns of 10**9 documents take 16 GB, and are written piece by piece.
_PIECE = 1 << 19
"""Number of entries of a column of the index that are made at once."""


class Documents(NamedTuple):
    """Neighbouring documents.

    Attributes:
        skills: Skill -> number of documents.
        sizes: Number of ids of each document, separators included.
        ids: Ids of all documents, one document after the other. The id in the place of a separator has no meaning.
    """

    skills: Counter[str]
    sizes: Int[np.ndarray, " document"]
    ids: Integer[np.ndarray, " token"]


def refuse_many_ids(tokens: TokenSet) -> None:
    """Raise TokensError if a token set may have an id that int32 cannot hold."""
    ids = tokens.manifest.ids
    if ids is not None and ids.num_ids > 1 << 31:
        raise TokensError(
            f"the tokenizer of {places.public(tokens.root)} has {ids.num_ids:,} ids, and files of Megatron-LM hold ids below {1 << 31:,}."
        )


def write_documents(
    data: Path, index: Path, documents: Iterable[Documents], kept: KeptIds, separator: int | None
) -> Counter[str]:
    """Write both files, and return the number of documents of each skill.

    Args:
        data, index: Paths of the .bin and of the .idx.
        documents: Documents in their order, each with a place for the separator, if any.
        kept: Form of the ids.
        separator: Id that becomes the last id of each document. None: no separator.
    """
    code, dtype = _TYPES[kept.type]
    skills, sizes = Counter[str](), [np.empty(0, "<i4")]
    with data.open("wb") as file:
        for group in documents:
            ids = group.ids.astype(dtype)
            if separator is not None:
                ids[np.cumsum(group.sizes) - 1] = separator
            file.write(ids.tobytes())
            skills.update(group.skills)
            sizes.append(group.sizes.astype("<i4"))
    lengths = np.concatenate(sizes)
    with index.open("wb") as file:
        file.write(HEADER + struct.pack("<QBQQ", VERSION, code, len(lengths), len(lengths) + 1))
        file.write(lengths.tobytes())
        for pointers in _pointers(lengths, dtype.itemsize):
            file.write(pointers.tobytes())
        for begin in range(0, len(lengths) + 1, _PIECE):
            file.write(np.arange(begin, min(begin + _PIECE, len(lengths) + 1), dtype="<i8").tobytes())
    return skills


def _pointers(lengths: Int[np.ndarray, " document"], id_bytes: int) -> Iterator[Int[np.ndarray, " some"]]:
    """Yield the first byte of each document, piece by piece."""
    before = 0
    for begin in range(0, len(lengths), _PIECE):
        ends = np.cumsum(lengths[begin : begin + _PIECE], dtype="<i8") * id_bytes + before
        yield np.concatenate([[before], ends[:-1]]).astype("<i8")
        before = int(ends[-1])
