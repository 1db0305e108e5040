"""The clients of remote stores. Clients are shared, are made one at a time, and are safe when a process forks."""

import os
import re
import threading
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow.fs as pafs

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "az", "azure")
"""Schemes of the stores whose URIs escape special characters, and that can be written."""
# The characters of RFC 3986 that stand for themselves in a path. "#" and "?" would end the path.
_IN_PATHS = "/=+~@,!'()*:&$;-._"


def is_of_store(place: str) -> bool:
    """Return whether a place is the URI of a store whose URIs escape special characters.

    >>> is_of_store("s3://bucket/c%23"), is_of_store("https://host/c%23"), is_of_store("data/c#")
    (True, False, False)
    """
    return place.partition("://")[0] in SCHEMES and "://" in place


def escaped(uri: str) -> str:
    """Return a URI of a store with escapes for the characters that no URI may hold, and for "#", because objects have no fragments.

    >>> escaped("s3://bucket/c#/a b.txt?region=eu"), escaped("s3://bucket/c%23")
    ('s3://bucket/c%23/a%20b.txt?region=eu', 's3://bucket/c%23')
    """
    return quote(uri, safe=f"{_IN_PATHS}?%[]") if is_of_store(uri) else uri


def escaped_name(name: str) -> str:
    """Return the name of an object as a part of a URI.

    >>> escaped_name("c#/100%/été?.txt")
    'c%23/100%25/%C3%A9t%C3%A9%3F.txt'
    """
    return quote(name, safe=_IN_PATHS)


class Clients:
    """The clients of stores in this process, made one at a time.

    Two threads that make S3 clients at the same time can crash the process (apache/arrow issues 39703 and 39897). Clients are shared,
    because a separate client for every file would open a new connection for every file. A forked child process makes new clients. The
    child keeps the parent's clients unused, because the child must neither use nor close the parent's connections.
    """

    def __init__(self) -> None:
        self._making = threading.Lock()
        self._made: dict[str, pafs.FileSystem] = {}
        self._of_parents: list[dict[str, pafs.FileSystem]] = []

    def of(self, uri: str) -> tuple[pafs.FileSystem, str]:
        """Return the client for a URI, and the path in the store. Exceptions of pyarrow are not caught."""
        uri = escaped(uri)
        parts = urlsplit(uri)
        bucket, key = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
        # pyarrow parses any other URI, such as a key with an empty part.
        is_plain = parts.scheme == "s3" and _PLAIN_KEY.fullmatch(key)
        root = urlunsplit((parts.scheme, parts.netloc, "", parts.query, ""))
        with self._making:
            if is_plain and root in self._made:
                return self._made[root], bucket + unquote(key)
            client, path = pafs.FileSystem.from_uri(uri)
            if is_plain:
                self._made[root] = client
        return client, path

    def after_fork(self) -> None:
        self._making = threading.Lock()  # another thread of the parent may have held the old lock
        self._of_parents.append(self._made)
        self._made = {}


_PLAIN_KEY = re.compile(r"(/[\w.=+~@,!'()*:&$;%-]+)*", re.ASCII)
clients = Clients()
os.register_at_fork(after_in_child=clients.after_fork)


class NoFork:
    """A lock between forks and calls into a store's client. Any number of calls may run at the same time.

    A fork waits for the running requests. A child that is forked while another thread is inside the S3 client would inherit locked
    locks, and would hang in the first read (seen with DataLoader workers, tests/remote).
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._forking = False

    # A waiting fork goes first: new calls wait for the fork, and otherwise a busy process could never fork.
    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    # `before_fork` keeps the lock, and `after_fork` releases the lock in parent and child, so both have a free lock after the fork.
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
