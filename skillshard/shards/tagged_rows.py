"""Read a partition and its tags side by side, block by block."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from skillshard.corpus import PartitionReader, Sample
from skillshard.corpus.sample import Rejection
from skillshard.errors import TagsError
from skillshard.tags import read_batches


class TaggedRows(NamedTuple):
    """Tagged samples among neighbouring rows of a stretch.

    Attributes:
        rows: Row of the partition of each sample.
        samples: Samples, at least one.
        skills: Skill of each sample.
    """

    rows: Int[np.ndarray, " sample"]
    samples: list[Sample]
    skills: list[str]


def tagged_rows(
    reader: PartitionReader,
    tags_part: str,
    expected_digests: list[str],
    set_aside: Counter[str],
    most_rows: int | None,
) -> Iterator[TaggedRows]:
    """Yield the tagged samples among the first rows of a partition. Count the other rows by reason in `set_aside`.

    Args:
        reader: Reader of the partition.
        tags_part: File with the tags of the partition.
        expected_digests: Digests of the rows of each stretch at the tagging.
        set_aside: Counter of the rows that the tags set aside.
        most_rows: Number of rows to yield. The rest is read all the same, because only the digest of all rows shows a change. None: all rows.

    Raises:
        TagsError: The rows differ from the tagged rows.
    """
    tags = _TagReader(tags_part)
    first = 0
    for block in reader.blocks():
        tagged = _tagged(block, *tags.next(len(block)))
        if tagged is None:
            raise _changed(reader.partition.stretches[len(reader.first_rows) - 1].name, tags_part)
        positions, samples, skills, reasons = tagged
        num_left = len(block) if most_rows is None else max(0, most_rows - first)
        set_aside.update(reason for reason in reasons[:num_left] if reason is not None)
        num_samples = int(np.searchsorted(positions, num_left))
        if num_samples:
            yield TaggedRows(first + positions[:num_samples], samples[:num_samples], skills[:num_samples])
        first += len(block)
    stretches = reader.partition.stretches
    # A tag without a row means that the corpus has changed.
    if tags.next(1)[0]:
        raise _changed(stretches[-1].name, tags_part)
    # The ids alone cannot show a changed text or meta. The digest is complete only after the last row.
    for stretch, digest, expected in zip(stretches, reader.digests(), expected_digests, strict=True):
        if digest != expected:
            raise _changed(stretch.name, tags_part)


def _tagged(
    block: list[Sample | Rejection], ids: list[str | None], skills: list[str | None], reasons: list[str | None]
) -> tuple[Int[np.ndarray, " sample"], list[Sample], list[str], list[str | None]] | None:
    """Return the positions, the samples and the skills of the rows of a block that the tags did not set aside, and the reasons of all rows.

    None: the rows differ from the tagged rows.
    """
    if len(ids) < len(block):
        return None
    positions = np.arange(len(block))
    rows = block
    if reasons.count(None) < len(reasons):
        chosen = [position for position, reason in enumerate(reasons) if reason is None]
        positions = np.array(chosen, np.int64)
        rows = [block[position] for position in chosen]
        ids, skills = ([column[position] for position in chosen] for column in (ids, skills))
    samples = [row for row in rows if isinstance(row, Sample)]
    names = [skill for skill in skills if skill is not None]
    if len(samples) < len(rows) or len(names) < len(rows) or [sample.id for sample in samples] != ids:
        return None
    return positions, samples, names, reasons


class _TagReader:
    """Reader of the rows of a part of the tags, some rows at a time.

    Args:
        place: File of the part.
    """

    def __init__(self, place: str) -> None:
        self._batches = read_batches(place)
        self._columns: tuple[list[str | None], ...] = ([], [], [])
        self._start = 0

    def next(self, num: int) -> tuple[list[str | None], list[str | None], list[str | None]]:
        """Return the ids, the skills and the reasons of the next rows: `num` rows, or fewer at the end."""
        while len(self._columns[0]) - self._start < num and (batch := next(self._batches, None)) is not None:
            names = ("id", "skill", "reason")
            self._columns = tuple(
                column[self._start :] + batch.column(name).to_pylist()
                for column, name in zip(self._columns, names, strict=True)
            )
            self._start = 0
        ids, skills, reasons = (column[self._start : self._start + num] for column in self._columns)
        self._start += num
        return ids, skills, reasons


def _changed(name: str, tags_part: str) -> TagsError:
    return TagsError(
        f"{name} changed after the tagging: its rows differ from {tags_part}. Tag the present corpus into another "
        "directory, and shard with the new tags."
    )
