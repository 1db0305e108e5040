"""Plan merge levels: how the sorted files of many tasks become files that the next tasks can read. Pure functions of numbers.

N tasks each write one sorted file, and R readers each need a range of keys from all files. Without merge levels, N x R opens fetch stretches
that become shorter with each further file. A merge level changes the shape: a merge reads the same range of keys in `fan_in` files and writes
one file of this range. So the level has `fan_in` times fewer rows of files, and `fan_in` times more columns, which are ranges of keys. The
number of files and the size of a file stay about the same, and so do the parallelism and the memory of a task.

    level 0     N rows, one column with all R readers
    level 1     N / fan_in rows, fan_in columns with R / fan_in readers
    ...
    readers     each opens the rows of the last level in its column

With L levels, a fan-in of about N^(1 / (L + 1)) leaves as many rows for a reader as for a merge. Each level reads and writes all bytes once more,
and N files cost about N x fan_in opens for each level: n log n instead of n squared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

# An open, a search and the seeks cost as much time as the transfer of this many bytes. 256 kB stand for 1 to 2 ms on a shared file
# system with 200 MB/s for each process. A local disk has cheaper opens, and a store has more expensive opens.
OPEN_BYTES = 256 << 10
"""Cost of an open, in bytes read or written."""
# A task keeps the positions of its ranges in all inputs in memory, and a task of a cluster gets the names of its inputs as arguments.
MAX_FAN_IN = 1024
"""Largest number of files that a merge or a reader opens."""

# Two levels and a fan-in of 1,024 suffice for a billion files. In a job array, each level is a call more.
MAX_LEVELS = 2
"""Largest number of levels, unless `max_fan_in` needs more."""


@dataclass(frozen=True)
class SortedFile:
    """File of a level, by its position.

    Attributes:
        level: 0 for the files of the sorting tasks.
        row: Row at the level. At level 0, the number of the file.
        column: Range of keys at the level, from 0.
    """

    level: int
    row: int
    column: int

    @property
    def name(self) -> str:
        """Name of the file, unique in a plan."""
        return f"{self.level}-{self.column:06d}-{self.row:06d}"


@dataclass(frozen=True)
class Merge:
    """Task of a merge level.

    Attributes:
        output: File to write.
        inputs: Files of the level before.
        first_reader: First reader that needs the output.
        last_reader: End of the readers, exclusive.
    """

    output: SortedFile
    inputs: tuple[SortedFile, ...]
    first_reader: int
    last_reader: int


@dataclass(frozen=True)
class MergePlan:
    """Levels of merges between `num_files` sorted files and `num_readers` readers.

    Attributes:
        num_files: Number of files of level 0.
        num_readers: Number of readers, in the order of their ranges of keys.
        fan_ins: Largest number of inputs of a merge, for each level.
    """

    num_files: int
    num_readers: int
    fan_ins: tuple[int, ...]

    @cached_property
    def _rows(self) -> list[int]:
        rows = [self.num_files]
        for fan_in in self.fan_ins:
            rows.append(-(-rows[-1] // fan_in))
        return rows

    @cached_property
    def _bounds(self) -> list[list[int]]:
        """First reader of each column, for each level, with the number of readers at the end."""
        bounds = [[0, self.num_readers]]
        for fan_in in self.fan_ins:
            cuts = [
                first + (last - first) * piece // pieces
                for first, last in pairwise(bounds[-1])
                for pieces in (min(fan_in, last - first),)
                for piece in range(pieces)
            ]
            bounds.append([*cuts, self.num_readers])
        return bounds

    def merges(self, level: int) -> Iterator[Merge]:
        """Yield the merges of a level, from 1 to the number of levels. Merges of the same inputs follow one another.

        The inputs of a merge lie far apart in the order of the corpus. So the outputs have similar sizes, even if neighbouring files hold
        the same skill.
        """
        num_rows, bounds = self._rows[level], self._bounds[level]
        column = 0
        for before, (first, last) in enumerate(pairwise(self._bounds[level - 1])):
            columns = []
            while bounds[column] < last:
                columns.append(column)
                column += 1
            assert not columns or bounds[columns[0]] == first
            for row in range(num_rows):
                inputs = self._inputs(level, row, before)
                for number in columns:
                    yield Merge(SortedFile(level, row, number), inputs, bounds[number], bounds[number + 1])

    def _inputs(self, level: int, row: int, column: int) -> tuple[SortedFile, ...]:
        rows = range(row, self._rows[level - 1], self._rows[level])
        return tuple(SortedFile(level - 1, before, column) for before in rows)

    def columns(self) -> Iterator[tuple[tuple[SortedFile, ...], range]]:
        """Yield the files of each column of the last level, with the readers of the column, in order."""
        last_level = len(self.fan_ins)
        bounds = self._bounds[-1]
        for column, (first, last) in enumerate(pairwise(bounds)):
            yield tuple(SortedFile(last_level, row, column) for row in range(self._rows[-1])), range(first, last)

    @property
    def num_opens(self) -> int:
        """Number of opens of all merges and readers."""
        opens, num_columns = 0, 1
        for level, fan_in in enumerate(self.fan_ins, start=1):
            # A column has either `fan_in` readers or more, or is cut into its readers. So the product is right up to the number of readers.
            num_columns = min(num_columns * fan_in, self.num_readers)
            opens += num_columns * self._rows[level - 1]
        return opens + self.num_readers * self._rows[-1]

    def cost(self, num_bytes: int, open_bytes: int = OPEN_BYTES) -> int:
        """Return the cost in bytes: each level reads and writes all bytes, and an open counts as `open_bytes`."""
        return 2 * len(self.fan_ins) * num_bytes + open_bytes * self.num_opens


def plan_merges(
    num_files: int,
    num_readers: int,
    num_bytes: int,
    *,
    max_fan_in: int = MAX_FAN_IN,
    open_bytes: int = OPEN_BYTES,
) -> MergePlan:
    """Return the plan with the lowest cost in which no task opens more than `max_fan_in` files.

    Args:
        num_files: Number of sorted files.
        num_readers: Number of readers.
        num_bytes: Bytes of all files.
        max_fan_in: Largest number of files that a task opens, at least 2.
        open_bytes: Cost of an open, in bytes.

    >>> plan_merges(100, 100, 100 << 27).fan_ins
    ()
    >>> plan_merges(10_000, 10_000, 10_000 << 27).fan_ins
    (100,)
    >>> plan_merges(8, 8, 8 << 27, max_fan_in=2).fan_ins
    (2, 2)
    """
    plans: list[MergePlan] = []
    for num_levels in range(num_files.bit_length() + 1):
        fan_in = _root(num_files, num_levels + 1)
        if fan_in <= max_fan_in and (num_levels <= MAX_LEVELS or not plans):
            plans.append(MergePlan(num_files, num_readers, (fan_in,) * num_levels))
    # The first of equal costs has the fewest levels.
    return min(plans, key=lambda plan: plan.cost(num_bytes, open_bytes))


def _root(number: int, power: int) -> int:
    """Return the smallest integer, at least 2, whose power reaches the number. With the power 1, the number itself.

    >>> _root(1000, 3), _root(1001, 3), _root(1, 2), _root(5, 1)
    (10, 11, 2, 5)
    """
    if power == 1:
        return number
    root = max(2, round(number ** (1 / power)) - 1)
    while root**power < number:
        root += 1
    return root
