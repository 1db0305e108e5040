"""The end of the program, as a thread sees it that waits for losses.

A loader may read ahead in threads of an executor (Grain does). Python joins these threads before it ends, so a thread that waits for
losses would hold a finished program until the waiting time is over. `sys.is_finalizing()` becomes true only after the threads have ended.
At the end of the program, Python wakes the idle threads of all executors. So this module keeps an executor with one idle thread: once the
thread is gone, the program ends.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

# Process id -> the executor, and its idle thread. A forked process has the table without the thread, so it makes an entry of its own.
_IDLE: dict[int, tuple[ThreadPoolExecutor, threading.Thread]] = {}


def interpreter_ends() -> bool:
    """Return whether the program of this process ends.

    >>> interpreter_ends()
    False
    """
    if os.getpid() not in _IDLE:
        executor = ThreadPoolExecutor(1, thread_name_prefix="skillshard-idle")
        try:
            _IDLE[os.getpid()] = executor, executor.submit(threading.current_thread).result()
        except RuntimeError:  # an executor takes no work once the program ends
            return True
    return not _IDLE[os.getpid()][1].is_alive()
