"""Merge levels: every reader gets all files, no task opens more files than allowed, and opens grow as n log n."""

from collections import Counter, defaultdict
from itertools import pairwise
from math import log2

from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.merge_levels import MergePlan, SortedFile, plan_merges

NUMBERS = st.tuples(
    st.integers(0, 90),
    st.integers(0, 90),
    st.integers(0, 1 << 40),
    st.sampled_from([2, 3, 7, 64, 1000]),
    st.sampled_from([0, 1, 1 << 18, 1 << 30]),
)


def planned(numbers: tuple[int, int, int, int, int]) -> MergePlan:
    num_files, num_readers, num_bytes, max_fan_in, open_bytes = numbers
    return plan_merges(num_files, num_readers, num_bytes, max_fan_in=max_fan_in, open_bytes=open_bytes)


def level_0_files(plan: MergePlan) -> dict[SortedFile, tuple[Counter[int], range]]:
    """Return, for each file of a plan, how often each file of level 0 goes into the file, and the readers of the file."""
    content = {SortedFile(0, row, 0): (Counter([row]), range(plan.num_readers)) for row in range(plan.num_files)}
    for level in range(1, len(plan.fan_ins) + 1):
        for merge in plan.merges(level):
            readers = range(merge.first_reader, merge.last_reader)
            assert merge.output not in content, "two merges write the same file"
            assert all(set(readers) <= set(content[file][1]) for file in merge.inputs)
            content[merge.output] = (sum((content[file][0] for file in merge.inputs), Counter()), readers)
    return content


@settings(max_examples=60, deadline=None)
@given(NUMBERS)
def test_every_reader_meets_every_sorted_file_exactly_once(numbers: tuple[int, int, int, int, int]) -> None:
    plan = planned(numbers)
    content = level_0_files(plan)
    met = []
    for files, readers in plan.columns():
        assert all(content[file][1] == readers for file in files)
        assert sum((content[file][0] for file in files), Counter()) == Counter(range(plan.num_files))
        met += readers
    assert met == list(range(plan.num_readers))


@settings(max_examples=60, deadline=None)
@given(NUMBERS)
def test_the_counted_opens_are_the_opens_of_the_tasks(numbers: tuple[int, int, int, int, int]) -> None:
    plan = planned(numbers)
    merges = [merge for level in range(1, len(plan.fan_ins) + 1) for merge in plan.merges(level)]
    opens = sum(len(merge.inputs) for merge in merges) + sum(
        len(files) * len(readers) for files, readers in plan.columns()
    )
    assert plan.num_opens == opens


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 500), st.integers(0, 60), st.integers(0, 1 << 50), st.sampled_from([2, 3, 10, 64]))
def test_no_task_opens_more_files_than_allowed(num_files: int, num_readers: int, num_bytes: int, most: int) -> None:
    plan = plan_merges(num_files, num_readers, num_bytes, max_fan_in=most)
    merges = (merge for level in range(1, len(plan.fan_ins) + 1) for merge in plan.merges(level))
    assert max((len(merge.inputs) for merge in merges), default=0) <= most
    assert max((len(files) for files, _ in plan.columns()), default=0) <= most


@settings(max_examples=40, deadline=None)
@given(NUMBERS)
def test_merges_of_the_same_inputs_follow_one_another_and_no_other_merge_reads_these_inputs(
    numbers: tuple[int, int, int, int, int],
) -> None:
    """After the last of these merges has its record, the inputs are deleted, so the scratch space stays small."""
    plan = planned(numbers)
    for level in range(1, len(plan.fan_ins) + 1):
        readers: dict[SortedFile, set[tuple[SortedFile, ...]]] = defaultdict(set)
        cells = [merge.inputs for merge in plan.merges(level)]
        for inputs in cells:
            for file in inputs:
                readers[file].add(inputs)
        assert all(len(cell) == 1 for cell in readers.values())
        changes = 1 + sum(first != second for first, second in pairwise(cells))
        assert not cells or changes == len(set(cells))


def test_opens_and_bytes_grow_as_n_log_n_and_not_as_n_squared() -> None:
    """The corpora have from 3 GB to 30 TB in chunks of 64 MB, with as many readers as chunks."""
    for num in (50, 200, 500, 1_600, 5_000, 16_000, 50_000, 160_000, 500_000):
        plan = plan_merges(num, num, num << 26)
        n_log_n = num * log2(num)
        assert plan.num_opens < 64 * n_log_n
        assert len(plan.fan_ins) <= min(2, log2(num) / 6)


def test_a_plan_costs_no_more_than_any_plan_with_more_or_fewer_levels() -> None:
    for num in (1, 10, 100, 1_000, 20_000):
        best = plan_merges(num, num, num << 26)
        for levels in range(3):
            fan_in = next(root for root in range(2, num + 3) if root ** (levels + 1) >= num)
            if fan_in <= 1024:
                other = MergePlan(num, num, (fan_in,) * levels)
                assert best.cost(num << 26) <= other.cost(num << 26)
