"""Progress of a running task: the task calls `advance`, and the task's process passes the share on."""

import contextlib
import time
from collections.abc import Callable, Iterator

SECONDS_BETWEEN = 1.0
"""Seconds between two announced shares. A task may call `advance` at every step, and most calls cost next to nothing."""


class _Receiver:
    """The receiver of the shares of `advance` in a process. None: nobody listens."""

    send: Callable[[float], None] | None = None
    last_sent_s = 0.0


def advance(done: int, total: int) -> None:
    """Announce that `done` of `total` steps of the present work are done. Without a listener, the call does nothing.

    >>> shares = []
    >>> with sent_to(shares.append):
    ...     advance(1, 4)
    ...     advance(2, 4)  # less than a second later
    >>> shares
    [0.25]
    """
    if _Receiver.send is None:
        return
    now_s = time.monotonic()
    if now_s - _Receiver.last_sent_s >= SECONDS_BETWEEN:
        _Receiver.last_sent_s = now_s
        _Receiver.send(done / total)


@contextlib.contextmanager
def sent_to(send: Callable[[float], None]) -> Iterator[None]:
    """Pass the progress of the block from `advance` to `send`, as a share from 0 to 1."""
    outer = _Receiver.send, _Receiver.last_sent_s
    _Receiver.send, _Receiver.last_sent_s = send, 0.0
    try:
        yield
    finally:
        _Receiver.send, _Receiver.last_sent_s = outer
