"""Neighbouring samples without an object for each sample.

Most rows of a corpus are ordinary. `SampleColumns` serves commands that need the ids, one field and the sizes of the texts. The columns are
read without a Python object for each row and field, which takes a third of the time. `SampleLists` serves commands that need the whole samples, and a
`Sample` for each row would take as long as a quarter of the parsing. `SampleJsons` serves commands that write the metadata as JSON again.
"""

from collections.abc import Container
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
from jaxtyping import Int

from skillshard.corpus.sample import Rejection, Sample

META = "meta"
"""Key whose values are the metadata, if a row has no other key beside the id and the text."""


class SampleColumns(NamedTuple):
    """Neighbouring samples as columns of equal length: lists of a block of lines, or arrays of a batch of a table.

    A block has a few hundred long lines, and arrays take longer to make than such lists. A table has the arrays already.

    Attributes:
        ids: Id of each sample, never empty.
        num_text_bytes: Size of each text in bytes of UTF-8.
        values: Value of one field of the metadata as the name of a category, never empty.
    """

    ids: list[str] | pa.StringArray
    num_text_bytes: list[int] | Int[np.ndarray, " sample"]
    values: list[str] | pa.StringArray

    @property
    def num_rows(self) -> int:
        return len(self.ids)


class SampleLists(NamedTuple):
    """Neighbouring samples of one file as lists of equal length.

    Attributes:
        ids, texts, metas: Id, text and metadata of each sample, as in `Sample`.
        file: Name of the file in the corpus.
    """

    ids: list[str]
    texts: list[str]
    metas: list[dict[str, Any]]
    file: str

    @property
    def num_rows(self) -> int:
        return len(self.ids)

    def samples(self) -> list[Sample | Rejection]:
        return list(map(Sample, self.ids, self.texts, self.metas, repeat(self.file)))


class SampleJsons(NamedTuple):
    """Neighbouring samples of one file as lists of equal length, with the metadata as JSON.

    Attributes:
        ids, texts: Id and text of each sample, as in `Sample`.
        id_jsons, meta_jsons: Id and metadata of each sample as JSON, as orjson writes them.
        file: Name of the file in the corpus.
    """

    ids: list[str]
    texts: list[str]
    id_jsons: list[bytes]
    meta_jsons: list[bytes]
    file: str

    @property
    def num_rows(self) -> int:
        return len(self.ids)

    def samples(self) -> list[Sample | Rejection]:
        return list(map(Sample, self.ids, self.texts, map(orjson.loads, self.meta_jsons), repeat(self.file)))


@dataclass(frozen=True)
class MetaField:
    """A field of the metadata that is a single key.

    Attributes:
        path: Path of the field, with or without "meta." before the key.
    """

    path: str

    @classmethod
    def of(cls, path: str) -> "MetaField | None":
        """Return the field at a path, or None if the path may have more than one step, or names no metadata.

        >>> MetaField.of("meta.lang"), MetaField.of("id"), MetaField.of("file.stem")
        (MetaField(path='meta.lang'), None, None)
        """
        key = path.removeprefix(f"{META}.")
        return None if not key or "." in key or path in ("id", "text") else cls(path)

    @property
    def key(self) -> str:
        return self.path.removeprefix(f"{META}.")

    def is_certain(self, keys: Container[str]) -> bool:
        """Return whether the path means the key in metadata with these keys. A key "meta" or "meta.lang" would come first.

        >>> MetaField("meta.lang").is_certain({"lang": "en"}), MetaField("meta.lang").is_certain({"lang": "en", "meta": {}})
        (True, False)
        """
        return self.key == self.path or not (META in keys or self.path in keys)
