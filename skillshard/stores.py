"""The clients of remote stores: shared, made one after the other, and out of the way of forks."""

import os
import re
import threading
from urllib.parse import urlsplit, urlunsplit

import pyarrow.fs as pafs


class Clients:
    """The clients of stores that this process has made, one after the other.

    Two threads that make S3 clients at once can crash the process (apache/arrow issues 39703 and 39897), and a client of its own for
    every file would begin with a new connection. A forked child process makes clients of its own. The child keeps the parent's clients
    unused, because the child must neither use nor close the parent's connections.
    """

    def __init__(self) -> None:
        self._making = threading.Lock()
        self._made: dict[str, pafs.FileSystem] = {}
        self._of_parents: list[dict[str, pafs.FileSystem]] = []

    def of(self, uri: str) -> tuple[pafs.FileSystem, str]:
        """The client for a URI, and the path in its store; what pyarrow raises where there is none."""
        parts = urlsplit(uri)
        bucket, key = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
        is_plain = parts.scheme == "s3" and _PLAIN_KEY.fullmatch(key)  # else pyarrow says what the path is
        root = urlunsplit((parts.scheme, parts.netloc, "", parts.query, ""))
        with self._making:
            if is_plain and root in self._made:
                return self._made[root], bucket + key
            made, path = pafs.FileSystem.from_uri(uri)
            if is_plain:
                self._made[root] = made
        return made, path

    def after_fork(self) -> None:
        self._making = threading.Lock()
        self._of_parents.append(self._made)
        self._made = {}


_PLAIN_KEY = re.compile(r"(/[\w.=-]+)*", re.ASCII)
clients = Clients()
os.register_at_fork(after_in_child=clients.after_fork)


class NoFork:
    """Calls into a store's client, any number at a time, and forks wait for each other.

    A child that is forked while another thread is inside the S3 client inherits the client's locks, locked, and hangs in its
    first read (seen with DataLoader workers, tests/remote). So a fork waits for the requests that are under way.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._forking = False

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def before_fork(self) -> None:
        self._changed.acquire()
        self._forking = True
        self._changed.wait_for(lambda: not self._inside)

    def after_fork(self) -> None:
        self._forking = False
        self._changed.notify_all()
        self._changed.release()


no_fork = NoFork()
os.register_at_fork(before=no_fork.before_fork, after_in_parent=no_fork.after_fork, after_in_child=no_fork.after_fork)
