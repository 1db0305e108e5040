"""Read files over http and https: one GET for a file, a HEAD for its size.

Only the standard library. What is wrong is raised as it is, once: `storage.retried` decides what to try again.
"""

import contextlib
import http.client
import io
import urllib.error
import urllib.request
from typing import Any

TIMEOUT_S = 60.0
"""A server that sends nothing for so long is given up, in seconds."""


def is_web(place: str) -> bool:
    """
    >>> is_web("https://host/S"), is_web("s3://bucket/S")
    (True, False)
    """
    return place.startswith(("http://", "https://"))


def get(url: str) -> io.BufferedReader:
    """The body of a file, from its start.

    Raises:
        FileNotFoundError: there is none.
        OSError, http.client.HTTPException: no answer, or an answer that is not the file.
        ConnectionError: while reading, the body ended before it was whole.
    """
    return io.BufferedReader(_Body(_ask(url, "GET")), 1 << 20)


def num_bytes(url: str) -> int | None:
    """The size of a file; None if it is not there.

    Raises:
        OSError, http.client.HTTPException: no answer, or one without a size.
    """
    try:
        with contextlib.closing(_ask(url, "HEAD")) as answer:
            return int(answer.headers["Content-Length"])
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise ConnectionError("the server tells no Content-Length") from error


def _ask(url: str, method: str) -> Any:
    request = urllib.request.Request(
        url, method=method, headers={"Accept-Encoding": "identity", "User-Agent": "skillshard"}
    )
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise FileNotFoundError(error.code, error.reason, url) from error
        raise


class _Body(io.RawIOBase):
    """A body that must have as many bytes as its Content-Length says (http.client takes a short one for whole)."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer
        length = answer.headers["Content-Length"]
        self._length = None if length is None else int(length)
        self._got = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._answer.read1(len(buffer))  # what is there: readinto would wait until the buffer is full
        read = len(data)
        buffer[:read] = data
        self._got += read
        if not read and len(buffer) and self._length is not None and self._got != self._length:
            raise ConnectionError(f"the connection closed after {self._got:,} of {self._length:,} bytes")
        return read

    def close(self) -> None:
        self._answer.close()
        super().close()
