"""The ceiling of the rows that a tagging may set aside: a pure rule, and its error."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from skillshard.corpus import Partition, PartitionReader, Rejection
from skillshard.corpus.bad_rows import DEFAULT_SHARE, proposed_share
from skillshard.errors import CorpusError, TagsError, name_some
from skillshard.execution import Record, Task, Watcher
from skillshard.printable import counted, printable

EARLY_ROWS = 10_000
"""Number of rows from which on a stage may stop before its end. Among fewer rows, a bad block at the beginning could decide."""
Count = tuple[str, str, str | None, int]
"""File, reason, field and number of rows that were set aside."""


@dataclass(frozen=True)
class Ceiling:
    """Largest share of the rows that may be set aside. The unread rest of a file counts as one row.

    Attributes:
        share: Share of the rows, from 0 to 1.

    Raises:
        TagsError: The share is out of range.

    >>> Ceiling(0.29).is_exceeded(29, 100), Ceiling(0.29).is_exceeded(30, 100)
    (False, True)
    """

    share: float = DEFAULT_SHARE

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise TagsError(f"`max_set_aside={self.share:g}`: give a share of the rows from 0 to 1, such as 0.05.")

    def is_exceeded(self, num_set_aside: int, num_rows: int) -> bool:
        """Whether more rows are set aside than the ceiling allows. The comparison is exact for shares such as 0.29."""
        return num_set_aside > Fraction(repr(float(self.share))) * num_rows

    def is_exceeded_early(self, num_set_aside: int, num_rows: int) -> bool:
        """Whether the first rows of the corpus suffice to stop."""
        return num_rows >= EARLY_ROWS and self.is_exceeded(num_set_aside, num_rows)

    def check(self, file_rows: Iterable[tuple[str, int]], counts: Iterable[Count], *, is_whole: bool) -> None:
        """Check the rows of a corpus, or of its beginning.

        Args:
            file_rows: Files with numbers of rows.
            counts: Rows that were set aside.
            is_whole: Whether the rows are the whole corpus, and not only its beginning.

        Raises:
            CorpusError: More rows are set aside than the ceiling allows.
        """
        kinds = list(counts)
        num_rows, num_set_aside = Counter[str](), Counter[str]()
        for file, rows in file_rows:
            num_rows[file] += rows
        for file, _, _, num in kinds:
            num_set_aside[file] += num
        total, total_bad = num_rows.total(), num_set_aside.total()
        exceeded = self.is_exceeded if is_whole else self.is_exceeded_early
        if not exceeded(total_bad, total):
            return
        # Tags of version 1 do not know the files.
        worst = sorted(filter(None, num_set_aside), key=lambda file: (-num_set_aside[file], file))[:3]
        files = "; ".join(
            f"{printable(file)} {num_set_aside[file]:,} of {counted(num_rows[file], 'row')}" for file in worst
        )
        raise CorpusError(
            f"{total_bad:,} of {'the' if is_whole else 'the first'} {counted(total, 'row')} of the corpus ({100 * total_bad / total:.3g} %) were set "
            f"aside, and at most {100 * self.share:g} % may be: {described(kinds)}.{f' The worst files: {files}.' if files else ''} Mend the rows or "
            f"name the right fields, or run the same command with `max_set_aside={proposed_share(total_bad, total):g}` to go on. The finished "
            "tasks are kept."
        )


def described(counts: Iterable[Count]) -> str:
    """Return the reasons, the fields and the numbers of rows for a sentence, the most frequent first.

    >>> described([("a", "empty-text", "text", 2), ("a", "malformed-json", None, 1), ("b", "empty-text", "text", 1)])
    "empty-text of 'text' 3, malformed-json 1"
    """
    total: Counter[str] = Counter()
    for _, reason, field, num_rows in counts:
        total[f"{reason} of {field!r}" if field else reason] += num_rows
    kinds = sorted(total, key=lambda kind: (-total[kind], kind))
    return name_some((f"{printable(kind)} {total[kind]:,}" for kind in kinds), 8)


def counts_of(rejections: Iterable[Rejection]) -> list[Count]:
    """Count rejections by file, reason and field, in this order."""
    counter = Counter((rejection.file, rejection.reason, rejection.field) for rejection in rejections)
    return [(*key, counter[key]) for key in sorted(counter, key=lambda key: (key[0], key[1], key[2] or ""))]


def early_check(ceiling: Ceiling, reader: PartitionReader) -> Callable[[int, int, Iterable[Rejection]], None]:
    """Return a function that stops inside the first partition of a corpus, which may be one large file.

    Args:
        ceiling: Ceiling of the tagging.
        reader: Reader of a partition. Only the first partition knows all rows before.

    Returns:
        A function of the number of rows read, of the number of rejections among them, and of the rejections.
    """

    def check(num_rows: int, num_set_aside: int, rejections: Iterable[Rejection]) -> None:
        if reader.partition.index == 0 and ceiling.is_exceeded_early(num_set_aside, num_rows):
            bounds = pairwise([*reader.first_rows, num_rows])
            names = (stretch.name for stretch in reader.partition.stretches)
            file_rows = [(name, last - first) for name, (first, last) in zip(names, bounds, strict=False)]
            ceiling.check(file_rows, counts_of(rejections), is_whole=False)

    return check


class CeilingWatch:
    """Watcher of a stage that stops once the first partitions exceed the ceiling.

    Partitions are added up in the order of the corpus, so the order in which the tasks end does not matter.

    Args:
        on_done: Function or watcher that receives the news too.
        ceiling: Ceiling of the tagging.
        partitions: Partitions of the corpus. The key of a task is the index of its partition.
    """

    def __init__(
        self, on_done: Callable[[Task, Record], None], ceiling: Ceiling, partitions: Sequence[Partition]
    ) -> None:
        self._on_done, self._ceiling, self._partitions = on_done, ceiling, partitions
        self._waiting: dict[int, Record] = {}
        self._num_added = self._num_rows = self._num_set_aside = 0
        self._file_rows: list[tuple[str, int]] = []
        self._counts: list[Count] = []

    def __call__(self, task: Task, record: Record) -> None:
        self._on_done(task, record)
        self._add(task, record)

    def found_done(self, task: Task, record: Record) -> None:
        (self._on_done.found_done if isinstance(self._on_done, Watcher) else self._on_done)(task, record)
        self._add(task, record)

    def part(self, task: Task, share: float) -> None:
        if isinstance(self._on_done, Watcher):
            self._on_done.part(task, share)

    def _add(self, task: Task, record: Record) -> None:
        self._waiting[int(task.key)] = record
        while (added := self._waiting.pop(self._num_added, None)) is not None:
            # Work of earlier versions has no such counts, and is refused after the stage.
            counts = [tuple(count) for count in added.get("set_aside_by", [])]
            file_rows = _file_rows(self._partitions[self._num_added], added) if "set_aside_by" in added else []
            self._num_added += 1
            self._file_rows += file_rows
            self._counts += counts
            self._num_rows += sum(num for _, num in file_rows)
            self._num_set_aside += sum(count[3] for count in counts)
            # The sums first, because a sum over all partitions at each partition would take quadratic time.
            if self._ceiling.is_exceeded_early(self._num_set_aside, self._num_rows):
                self._ceiling.check(self._file_rows, self._counts, is_whole=False)


def check_partitions(ceiling: Ceiling, partitions: Sequence[Partition], records: Sequence[Record]) -> None:
    """Check the records of all partitions of a corpus, which have the numbers of rows, and of rows set aside by file, reason and field.

    Raises:
        CorpusError: More rows are set aside than the ceiling allows.
    """
    ceiling.check(
        (pair for partition, record in zip(partitions, records, strict=True) for pair in _file_rows(partition, record)),
        (tuple(count) for record in records for count in record["set_aside_by"]),
        is_whole=True,
    )


def _file_rows(partition: Partition, record: Record) -> list[tuple[str, int]]:
    """Return file and number of rows of each stretch of a partition."""
    names = (stretch.name for stretch in partition.stretches)
    return list(zip(names, record["file_rows"], strict=True))
