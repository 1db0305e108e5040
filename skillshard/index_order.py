"""The order in which loaders ask a dataset for indices, and the orders that would lose or repeat samples.

A map-style dataset does not see the sampler that reads it. It sees the indices that each process asks for, batch by batch, and
these indices tell a plain reader apart from one that shuffles, skips, shares out again or begins again. Each process (the
loader's own, or a worker) checks its own indices.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

Fault = Literal["shuffled", "strided", "skipped", "shared out", "begun again"]


@dataclass(frozen=True)
class Asker:
    """The process that asks.

    Attributes:
        worker: number of the loader's worker; 0 without workers.
        num_workers: number of the loader's workers; 1 without workers.
        processes: number of processes that take turns in the batches of one stream; 1 where each process has a share of its own.
    """

    worker: int = 0
    num_workers: int = 1
    processes: int = 1


@dataclass(frozen=True)
class Asked:
    """The batch of consecutive indices that a process asked for last.

    Attributes:
        start: first index.
        num: number of indices.
        stride: how many batches lie between two first indices of the process; 0 after its first batch.
    """

    start: int
    num: int
    stride: int = 0


def next_asked(
    indices: Int[np.ndarray, " index"], last: Asked | None, asker: Asker, *, resumed: bool = False
) -> Asked | Fault:
    """What a process asks for, or how the order of its indices would lose or repeat samples.

    Worker 0 reads the first batch of its process, so worker 0 alone must begin at the beginning. The other workers then go on by
    equal steps. Batches of different sizes are only checked where one process reads all of them.

    Args:
        indices: of one batch; not empty.
        last: the batch before it; None for the first batch.
        asker: the process.
        resumed: whether the loader goes on by a state of its own, so that its first index may be any.

    Example:
        >>> next_asked(np.arange(8), None, Asker())
        Asked(start=0, num=8, stride=0)
        >>> next_asked(np.arange(8, 16), Asked(0, 8), Asker())
        Asked(start=8, num=8, stride=1)
        >>> next_asked(np.arange(16, 24), Asked(0, 8), Asker())
        'shared out'
        >>> next_asked(np.arange(16, 24), None, Asker())
        'skipped'
    """
    start, num = int(indices[0]), len(indices)
    steps = np.diff(indices)
    if np.any(steps != 1):
        return "strided" if np.all(steps > 1) and np.all(steps == steps[0]) else "shuffled"
    if last is None:
        if resumed or asker.worker or start in range(0, asker.processes * num, num):
            return Asked(start, num)
        return "skipped"
    if start < last.start + last.num:
        return "begun again" if start in range(0, asker.processes * num, num) else "shuffled"
    turns = {asker.num_workers, asker.num_workers * asker.processes}  # the second: every rank reads its own batches
    for stride in {last.stride} if last.stride else turns:
        if start == last.start + stride * last.num:
            return Asked(start, num, stride)
    if num != last.num and turns != {1}:
        return Asked(start, num, last.stride)
    return "shared out"
