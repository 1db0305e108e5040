"""Indices in the order of the stream pass for any number of workers and processes. Any other order is a fault."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from skillshard.index_order import Fault, Reader, RequestedBatch, next_request

SIZES, COUNTS = st.integers(1, 6), st.integers(1, 4)


def asks(starts: list[int], num: int, reader: Reader, *, resumed: bool = False) -> RequestedBatch | Fault | None:
    """Return the answer to the last of several batches of one process."""
    last: RequestedBatch | Fault | None = None
    for start in starts:
        assert not isinstance(last, str), last
        last = next_request(np.arange(start, start + num), last, reader, resumed=resumed)
    return last


def begins(num: int, num_workers: int, processes: int, rank: int, worker: int, batches: int) -> list[int]:
    """Return the first indices of a worker of a rank. The ranks take turns in batches, and the workers of a rank in the batches of the rank."""
    return [((number * num_workers + worker) * processes + rank) * num for number in range(batches)]


@given(num=SIZES, num_workers=COUNTS, processes=COUNTS, data=st.data())
def test_batches_in_the_order_of_the_stream_are_let_through(
    num: int, num_workers: int, processes: int, data: st.DataObject
) -> None:
    rank, worker = data.draw(st.integers(0, processes - 1)), data.draw(st.integers(0, num_workers - 1))
    starts = begins(num, num_workers, processes, rank, worker, 5)
    assert isinstance(asks(starts, num, Reader(worker, num_workers, processes, rank)), RequestedBatch)
    dispatched = begins(num, num_workers, 1, 0, worker, 5)
    assert isinstance(asks(dispatched, num, Reader(worker, num_workers, processes)), RequestedBatch)


@given(num=SIZES, num_workers=COUNTS, processes=COUNTS, skipped=st.integers(1, 9))
def test_a_skip_of_any_number_of_batches_by_the_rank_that_reads_all_batches_is_refused(
    num: int, num_workers: int, processes: int, skipped: int
) -> None:
    """With dispatch_batches=True, rank 0 reads every batch. A skip of fewer batches than processes would look like the begin of another rank."""
    assert asks([skipped * num], num, Reader(0, num_workers, processes)) == "skipped"


@given(num=SIZES, num_workers=COUNTS, processes=COUNTS, skipped=st.integers(1, 50), data=st.data())
def test_a_beginning_after_the_first_batch_of_all_processes_is_refused_unless_resumed(
    num: int, num_workers: int, processes: int, skipped: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, processes - 1))
    reader = Reader(0, num_workers, processes, rank)
    start = (skipped * processes + rank) * num
    assert asks([start], num, reader) == "skipped"
    starts = [start + number * num_workers * processes * num for number in range(3)]
    assert isinstance(asks(starts, num, reader, resumed=True), RequestedBatch)


@given(num=SIZES, num_workers=COUNTS, batches=st.integers(1, 4), factor=st.integers(2, 4))
def test_batches_that_are_left_to_other_processes_are_noticed_at_the_second_batch(
    num: int, num_workers: int, batches: int, factor: int
) -> None:
    reader = Reader(0, num_workers, 1)
    starts = [number * num_workers * num for number in range(batches)]
    left_out = starts[-1] + factor * num_workers * num
    assert asks([*starts, left_out], num, reader) == "shared out"


@given(num=SIZES, num_workers=COUNTS, processes=COUNTS, batches=st.integers(1, 5), data=st.data())
def test_a_stream_that_begins_again_is_noticed(
    num: int, num_workers: int, processes: int, batches: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, processes - 1))
    starts = begins(num, num_workers, processes, rank, 0, batches)
    assert asks([*starts, starts[0]], num, Reader(0, num_workers, processes, rank)) == "begun again"


@given(st.permutations(range(6)), st.integers(0, 100))
def test_indices_that_do_not_follow_one_another_are_shuffled(order: list[int], first: int) -> None:
    verdict = next_request(np.array(order) + first, None, Reader(), resumed=True)
    assert (verdict == RequestedBatch(first, 6)) if order == sorted(order) else (verdict == "shuffled")


@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 4))
def test_every_nth_index_is_strided(step: int, num: int, rank: int) -> None:
    assert next_request(np.arange(rank, rank + step * num, step), None, Reader()) == "strided"


@given(st.lists(SIZES, min_size=2, max_size=8))
def test_one_process_may_read_batches_of_different_sizes(sizes: list[int]) -> None:
    last: RequestedBatch | Fault | None = None
    for start, num in zip(np.cumsum([0, *sizes]).tolist(), sizes, strict=False):
        assert not isinstance(last, str)
        last = next_request(np.arange(start, start + num), last, Reader())
    assert last == RequestedBatch(sum(sizes[:-1]), sizes[-1], 1)
