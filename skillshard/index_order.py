"""Check the order of a loader's indices, and recognize an order with lost or repeated samples.

A map-style dataset does not see the sampler of the loader. The dataset sees only the requested indices of each process, batch by
batch. The indices tell a plain reader apart from a reader that shuffles, skips, divides a share again or starts again. Each process
(the loader's own process, or a worker) checks the indices of the process alone.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

Fault = Literal["shuffled", "strided", "skipped", "shared out", "begun again"]


@dataclass(frozen=True)
class Reader:
    """The process that requests indices: a worker of a loader, or the process of a loader without workers.

    Attributes:
        worker: Number of the loader's worker. 0: the loader has no workers.
        num_workers: Number of the loader's workers. 1: the loader has no workers.
        processes: Number of processes that take turns with the batches of one stream. 1: each process has a share of its own.
        rank: Number of this process among the processes that take turns.
    """

    worker: int = 0
    num_workers: int = 1
    processes: int = 1
    rank: int = 0

    def may_begin_at(self, start: int, num: int) -> bool:
        """Return whether the first batch of the process may begin at an index.

        Rank 0 begins at index 0, whether it reads every batch or takes turns with the other ranks. Another begin of rank 0 is a skip.

        Args:
            start: First index of the batch.
            num: Number of indices of the batch.
        """
        return start == 0 or (self.rank > 0 and start in range(num, self.processes * num, num))


@dataclass(frozen=True)
class RequestedBatch:
    """The latest requested batch of a process, with consecutive indices.

    Attributes:
        start: First index.
        num: Number of indices.
        stride: Number of batches from one first index of the process to the next. 0: the process has read one batch only.
    """

    start: int
    num: int
    stride: int = 0


def next_request(
    indices: Int[np.ndarray, " index"], last: RequestedBatch | None, reader: Reader, *, resumed: bool = False
) -> RequestedBatch | Fault:
    """Return the requested batch, or a fault if the order of the indices would lose or repeat samples.

    Worker 0 reads the first batch of a process, so only worker 0 must start at the beginning. All workers then continue by equal
    steps. Batches of different sizes are only checked if a single process reads all batches.

    Args:
        indices: Indices of the batch, not empty.
        last: Previous batch of the process. None: the batch is the first batch.
        reader: Reader of the request.
        resumed: Whether the loader continues from a saved state. The first index may then be any index.

    Example:
        >>> next_request(np.arange(8), None, Reader())
        RequestedBatch(start=0, num=8, stride=0)
        >>> next_request(np.arange(8, 16), RequestedBatch(0, 8), Reader())
        RequestedBatch(start=8, num=8, stride=1)
        >>> next_request(np.arange(16, 24), RequestedBatch(0, 8), Reader())
        'shared out'
        >>> next_request(np.arange(16, 24), None, Reader())
        'skipped'
    """
    start, num = int(indices[0]), len(indices)
    steps = np.diff(indices)
    if np.any(steps != 1):
        return "strided" if np.all(steps > 1) and np.all(steps == steps[0]) else "shuffled"
    if last is None:
        if resumed or reader.worker or reader.may_begin_at(start, num):
            return RequestedBatch(start, num)
        return "skipped"
    if start < last.start + last.num:
        return "begun again" if reader.may_begin_at(start, num) else "shuffled"
    # Two strides are right: with dispatch_batches=True accelerate lets one process read every batch, otherwise each rank reads only
    # its own batches and passes over the batches of the other ranks.
    turns = {reader.num_workers, reader.num_workers * reader.processes}
    for stride in {last.stride} if last.stride else turns:
        if start == last.start + stride * last.num:
            return RequestedBatch(start, num, stride)
    # A short batch among several workers: the sizes of the batches that other workers read are not known, so no stride can be checked.
    if num != last.num and turns != {1}:
        return RequestedBatch(start, num, last.stride)
    return "shared out"
