"""Wait for records of other processes, and notice that the trainer of a loader worker has ended."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing import connection


def wait_for(ready: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until `ready` returns True or the time is over. Return whether `ready` returned True."""
    # The pause doubles from 1 ms, so that a short wait ends promptly, up to 0.1 s, so that a long wait costs little.
    end, pause = time.monotonic() + timeout_s, 0.001
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    return True


def parent_is_gone(parent: int) -> bool:
    """Return whether this process is a worker of multiprocessing, such as a loader worker, whose trainer has ended.

    Args:
        parent: Process id of the parent when this process began.
    """
    # Two signs are needed. A forked worker inherits the write ends of the pipes of earlier workers, so the sentinel of the
    # trainer may stay silent after the trainer ended. But a process whose parent ended gets another parent at once, so the
    # parent's process id changes. With a forkserver the parent is the server and does not change, and the sentinel is reliable.
    started_by = multiprocessing.parent_process()
    if started_by is None:
        return False
    return os.getppid() != parent or bool(connection.wait([started_by.sentinel], timeout=0))


def process_and_thread() -> tuple[int, int]:
    """Return the ids of this process and of this thread."""
    return os.getpid(), threading.get_ident()
