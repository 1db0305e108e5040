"""Tag by labels: a file of ids and skills that another program made.

The labels are read like a corpus, so every format of a corpus holds labels too. Each partition of the labels gives sorted tables of the
hashes of its ids. The tables are merged, and the workers look the ids of the samples up in the merged table, which is memory-mapped.

Memory for merging: about 60 bytes for each label, in one process.

    SCRATCH/labels/000000.npz    hashes and skills of a partition of the labels
    SCRATCH/labels/hashes.npy    upper 64 bits of the hash of each id, rising
    SCRATCH/labels/rests.npy     lower 64 bits of the same hashes
    SCRATCH/labels/skills.npy    position of the skill of each id among the names
    SCRATCH/labels/names.json    written last: names of the skills, in rising order
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import xxhash

from skillshard import canonical, places, storage
from skillshard.corpus import (
    Corpus,
    CorpusReading,
    FieldMapping,
    Partition,
    PartitionReader,
    Rejection,
    Sample,
    unit_of,
)
from skillshard.errors import TagsError
from skillshard.execution import Record, keyed, run
from skillshard.printable import counted
from skillshard.taggers.tagger import Finder, Search, Tag, Untagged

STAGE = "labels"
_OF_CORPUS = re.compile(r"\. (Give `delimiter=|Where rows have no ids).*")
LABEL_DTYPE = np.dtype([("hash", "<u8"), ("rest", "<u8"), ("skill", "<u4")])


@dataclass(frozen=True)
class Labels:
    """The finder that `labels` makes."""

    place: str
    label_id: str
    label: str
    digests: dict[str, str]

    @property
    def name(self) -> str:
        return "labels"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"label_id": self.label_id, "label": self.label, "files": self.digests}

    @property
    def stages(self) -> tuple[str, ...]:
        return (STAGE,)

    def find(self, search: Search) -> "LabelTable":
        """Read the labels, and merge the tables of their partitions."""
        folder = search.work.scratch(STAGE)
        mapping = FieldMapping(id_field=self.label_id, text="{" + self.label + "}")
        reading = CorpusReading({"": mapping})
        partitions = Corpus.open(self.place).partitions()
        tasks = keyed(
            (
                {"partition": partition, "reading": reading, "out": places.join(folder, f"{partition.index:06d}.npz")}
                for partition in partitions
            ),
            about=(partition.name for partition in partitions),
        )
        run(
            read_labels,
            tasks,
            backend=search.backend,
            # Among the scratch files: a command that stops at the first sample can then begin anew with other arguments.
            records=places.join(folder, "records"),
            stage=STAGE,
            on_done=search.on_stage("reading labels", len(tasks)),
        )
        names = places.join(folder, "names.json")
        if not storage.exists(names):
            merged, skills = _merged([task.arguments["out"] for task in tasks], self.place)
            for column, name in (("hash", "hashes"), ("rest", "rests"), ("skill", "skills")):
                storage.write_array(places.join(folder, f"{name}.npy"), np.ascontiguousarray(merged[column]))
            storage.write_bytes(names, canonical.to_json(skills))
        return LabelTable(folder, places.public(self.place))


@dataclass(frozen=True)
class LabelTable:
    """A tagger by the merged table of labels.

    Attributes:
        folder: Directory of the table.
        labels: Place of the labels, for messages.
    """

    folder: str
    labels: str

    is_rowwise: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "labels"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def tag(self, samples: Sequence[Sample]) -> list[Tag | Untagged]:
        table = _opened(self.folder)
        skills = [(sample.id, table.skill_of(sample.id)) for sample in samples]
        missing = f"{self.labels} has no skill for the id"
        return [
            Tag(skill) if skill is not None else Untagged("no-label", f"{missing} {identity!r}")
            for identity, skill in skills
        ]


@dataclass(frozen=True)
class _Table:
    hashes: np.ndarray
    rests: np.ndarray
    skills: np.ndarray
    names: list[str]

    def skill_of(self, sample_id: str) -> str | None:
        """Return the skill of an id, or None if the labels do not have the id."""
        first, rest = _hash_of(sample_id)
        # Two ids with the same 64 bits are rare, and then stand next to each other.
        position = int(np.searchsorted(self.hashes, np.uint64(first)))
        while position < len(self.hashes) and int(self.hashes[position]) == first:
            if int(self.rests[position]) == rest:
                return self.names[int(self.skills[position])]
            position += 1
        return None


@lru_cache(maxsize=1)
def _opened(folder: str) -> _Table:
    hashes, rests, skills = (
        storage.load_array(places.join(folder, f"{name}.npy")) for name in ("hashes", "rests", "skills")
    )
    return _Table(hashes, rests, skills, storage.read_json(places.join(folder, "names.json")))


def _hash_of(sample_id: str) -> tuple[int, int]:
    return divmod(xxhash.xxh3_128_intdigest(sample_id.encode()), 1 << 64)


def read_labels(partition: Partition, reading: CorpusReading, out: str) -> Record:
    """Read a partition of the labels, and write the hashes of its ids with the skills.

    Raises:
        TagsError: A row has no id or no skill.
    """
    numbers: dict[str, int] = {}
    rows = []
    for row in PartitionReader(partition, reading):
        if isinstance(row, Rejection):
            # The skill is read in the place of a text, and the options that the detail names are of the corpus.
            detail = _OF_CORPUS.sub("", row.detail.replace(" for the text", ""))
            where = "" if row.line is None else f" {unit_of(row.file)} {row.line}"
            raise TagsError(
                f"{row.file}{where} is no label: {detail}. A label is an id and a skill, and a CSV file has commas between the two. Mend the row, or "
                "name other fields with `label_id` and `label`."
            )
        rows.append((*_hash_of(row.id), numbers.setdefault(row.text, len(numbers))))
    storage.write_arrays(out, {"labels": np.array(rows, LABEL_DTYPE), "names": np.array(list(numbers), np.str_)})
    return {"num_labels": len(rows)}


def _merged(parts: Sequence[str], place: str) -> tuple[np.ndarray, list[str]]:
    """Merge the tables of the partitions, sorted by hash. A label that stands twice with the same skill counts once.

    Raises:
        TagsError: The labels are empty, or an id has two skills.
    """
    tables = [storage.load_arrays(part) for part in parts]
    names = sorted({name for table in tables for name in table["names"].tolist()})
    if not names:
        raise TagsError(f"{places.public(place)} holds no labels: give a file with a row for each id.")
    number_of = {name: number for number, name in enumerate(names)}
    for table in tables:
        numbers = np.array([number_of[name] for name in table["names"].tolist()], np.uint32)
        if len(numbers):
            table["labels"]["skill"] = numbers[table["labels"]["skill"]]
    labels = np.concatenate([table["labels"] for table in tables])
    labels = labels[np.lexsort((labels["skill"], labels["rest"], labels["hash"]))]
    is_again = np.append(
        False, (labels["hash"][1:] == labels["hash"][:-1]) & (labels["rest"][1:] == labels["rest"][:-1])
    )
    contradictions = np.flatnonzero(is_again[1:] & (labels["skill"][1:] != labels["skill"][:-1])) + 1
    if len(contradictions):
        first = int(contradictions[0])
        skills = [names[labels["skill"][position]] for position in (first - 1, first)]
        raise TagsError(
            f"{places.public(place)} gives an id two skills, {skills[0]!r} and {skills[1]!r} ({counted(len(contradictions), 'such id')}). Give "
            "each id a single skill."
        )
    return labels[~is_again], names


def labels(place: str | os.PathLike[str], *, label_id: str = "id", label: str = "skill") -> Finder:
    """Tag by a file of labels, in any format of a corpus.

    Args:
        place: File or directory of the labels. Each row is an id and a skill. A skill may be an integer.
        label_id: Path of the id in a row.
        label: Path of the skill in a row.

    Returns:
        A tagger. A sample without a label is a bad sample with the reason "no-label".

    Raises:
        CorpusError: The place holds no files, or a path is not valid.
        StorageError: The place cannot be read.
    """
    FieldMapping(id_field=label_id, text_field=label)  # refuses paths that are none
    source = Corpus.open(os.fspath(place))
    digests = {file.name: storage.file_digest(file.place) for file in source.files}
    return Labels(os.fspath(place), label_id, label, digests)
