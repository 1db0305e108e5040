"""Read a partition and its tags side by side, block by block."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from skillshard.corpus import PartitionReader, Sample, SampleJsons, SampleLists
from skillshard.corpus.members import Members
from skillshard.corpus.sample import Rejection
from skillshard.errors import TagsError
from skillshard.tags import read_batches

_UNKNOWN = -1
"""Index that stands for no skill."""
_SCHEMA = pa.schema([("id", pa.string()), ("skill", pa.int32()), ("reason", pa.string())])


class TaggedRows(NamedTuple):
    """Tagged samples among neighbouring rows of a stretch, at least one. Lists have a value for each sample, or are empty where this is said.

    Attributes:
        rows: Row of the partition.
        skills: Index of the skill.
        ids, texts: Id and text, as in `Sample`.
        metas: Metadata, as in `Sample`. Empty if the metadata is given as JSON.
        members: Members, as in `Sample`. Empty if no reader of this format gives members.
        file: Name of the file in the corpus.
        id_jsons, meta_jsons: Id and metadata as JSON, as in `SampleJsons`. Empty if the metadata is given in `metas`.
    """

    rows: Int[np.ndarray, " sample"]
    skills: Int[np.ndarray, " sample"]
    ids: list[str]
    texts: list[str]
    metas: list[dict[str, Any]]
    members: list[Members]
    file: str
    id_jsons: Sequence[bytes] = ()
    meta_jsons: Sequence[bytes] = ()

    def first(self, num: int) -> "TaggedRows":
        """Return the first samples."""
        return TaggedRows(
            self.rows[:num],
            self.skills[:num],
            self.ids[:num],
            self.texts[:num],
            self.metas[:num],
            self.members[:num],
            self.file,
            self.id_jsons[:num],
            self.meta_jsons[:num],
        )


def tagged_rows(
    reader: PartitionReader,
    tags_part: str,
    expected_digests: list[str],
    skills: Sequence[str],
    set_aside: Counter[str],
    most_rows: int | None,
) -> Iterator[TaggedRows]:
    """Yield the tagged samples among the first rows of a partition. Count the other rows by reason in `set_aside`.

    Args:
        reader: Reader of the partition.
        tags_part: File with the tags of the partition.
        expected_digests: Digests of the rows of each stretch at the tagging.
        skills: Names of all skills, in the order of their indexes.
        set_aside: Counter of the rows that the tags set aside.
        most_rows: Number of rows to yield. The rest is read all the same, because only the digest of all rows shows a change. None: all rows.

    Raises:
        TagsError: The rows differ from the tagged rows.
    """
    tags = _TagReader(tags_part, skills)
    first = 0
    for block in reader.blocks_or_lists():
        name = reader.partition.stretches[len(reader.first_rows) - 1].name
        num_rows = len(block) if isinstance(block, list) else block.num_rows
        of_block = tags.next(num_rows)
        tagged = _tagged(block, of_block, name) if of_block.num_rows == num_rows else None
        if tagged is None:
            raise _changed(name, tags_part)
        num_left = num_rows if most_rows is None else max(0, most_rows - first)
        set_aside.update(of_block.column("reason").slice(0, num_left).drop_null().to_pylist())
        if num_left < num_rows:
            tagged = tagged.first(int(np.searchsorted(tagged.rows, num_left)))
        if len(tagged.rows):
            yield tagged._replace(rows=first + tagged.rows)
        first += num_rows
    stretches = reader.partition.stretches
    # A tag without a row means that the corpus has changed.
    if tags.next(1).num_rows:
        raise _changed(stretches[-1].name, tags_part)
    # The ids alone cannot show a changed text or meta. The digest is complete only after the last row.
    for stretch, digest, expected in zip(stretches, reader.digests(), expected_digests, strict=True):
        if digest != expected:
            raise _changed(stretch.name, tags_part)


def _tagged(
    block: list[Sample | Rejection] | SampleJsons | SampleLists, tags: pa.RecordBatch, file: str
) -> TaggedRows | None:
    """Return the samples of a block that the tags did not set aside, with rows of the block, or None if the rows differ from the tagged rows."""
    reasons = tags.column("reason")
    rows = np.arange(tags.num_rows)
    if reasons.null_count < len(reasons):
        rows = np.flatnonzero(reasons.is_null())
        tags = tags.take(pa.array(rows))
        values = block if isinstance(block, list) else block.samples()
        block = [values[row] for row in rows.tolist()]
    metas: list[dict[str, Any]] = []
    members: list[Members] = []
    jsons: tuple[list[bytes], list[bytes]] = ([], [])
    if isinstance(block, SampleJsons):
        ids, texts, jsons = block.ids, block.texts, (block.id_jsons, block.meta_jsons)
    elif isinstance(block, SampleLists):
        ids, texts, metas = block.ids, block.texts, block.metas
    else:
        samples = [row for row in block if isinstance(row, Sample)]
        if len(samples) < len(block):
            return None
        ids, texts = [sample.id for sample in samples], [sample.text for sample in samples]
        metas, members = [sample.meta for sample in samples], [sample.members for sample in samples]
    skills = tags.column("skill").to_numpy()
    if (skills == _UNKNOWN).any() or not pa.array(ids, pa.string()).equals(tags.column("id")):
        return None
    return TaggedRows(rows, skills, ids, texts, metas, members, file, *jsons)


class _TagReader:
    """Reader of the rows of a part of the tags, some rows at a time.

    Args:
        place: File of the part.
        skills: Names of all skills, in the order of their indexes.
    """

    def __init__(self, place: str, skills: Sequence[str]) -> None:
        self._batches = read_batches(place)
        self._skills = pa.array(skills, pa.string())
        self._rest = pa.RecordBatch.from_pylist([], _SCHEMA)

    def next(self, num: int) -> pa.RecordBatch:
        """Return the id, the index of the skill and the reason of the next rows: `num` rows, or fewer at the end."""
        parts = [self._rest.slice(0, num)]
        num_left = num - parts[0].num_rows
        while num_left and (batch := next(self._batches, None)) is not None:
            indexes = pc.index_in(batch.column("skill"), self._skills).fill_null(_UNKNOWN)
            self._rest = pa.record_batch([batch.column("id"), indexes, batch.column("reason")], schema=_SCHEMA)
            parts.append(self._rest.slice(0, num_left))
            num_left -= parts[-1].num_rows
        self._rest = self._rest.slice(parts[-1].num_rows)
        filled = [part for part in parts if part.num_rows]
        return (
            pa.Table.from_batches(filled).combine_chunks().to_batches()[0] if len(filled) > 1 else (filled or parts)[0]
        )


def _changed(name: str, tags_part: str) -> TagsError:
    return TagsError(
        f"{name} changed after the tagging: its rows differ from {tags_part}. Tag the present corpus into another "
        "directory, and shard with the new tags."
    )
