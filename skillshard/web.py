"""Read files over http and https: one GET request for a file, and a HEAD request for its size.

The module uses the standard library only. Errors are raised unchanged and after one try, because `storage.retried` decides about
another try.
"""

import contextlib
import http.client
import io
import urllib.error
import urllib.request
from typing import Any

TIMEOUT_S = 60.0
"""Seconds without a byte from the server after which a request fails."""


def is_web(place: str) -> bool:
    """Whether a place is a URI of http or https.

    >>> is_web("https://host/S"), is_web("s3://bucket/S")
    (True, False)
    """
    return place.startswith(("http://", "https://"))


def get(url: str) -> io.BufferedReader:
    """Open the body of a file for reading from the start.

    Raises:
        FileNotFoundError: The file does not exist.
        OSError, http.client.HTTPException: The server gives no answer, or an answer that is not the file.
        ConnectionError: While reading: the body ended too early.
    """
    return io.BufferedReader(_Body(_ask(url, "GET")), 1 << 20)


def num_bytes(url: str) -> int | None:
    """Return the size of a file in bytes. None: the file does not exist.

    Raises:
        OSError, http.client.HTTPException: The server gives no answer, or an answer without a size.
    """
    try:
        with contextlib.closing(_ask(url, "HEAD")) as answer:
            return int(answer.headers["Content-Length"])
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise ConnectionError("the server tells no Content-Length") from error


def _ask(url: str, method: str) -> Any:
    # "identity": Content-Length must be the size of the file, and not of a compressed form.
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
    """The body of an answer, with a check that its size is its Content-Length. http.client accepts a body that ends too early."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer
        length = answer.headers["Content-Length"]
        self._length = None if length is None else int(length)
        self._got = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._answer.read1(len(buffer))  # the bytes at hand: readinto would wait until the buffer is full
        read = len(data)
        buffer[:read] = data
        self._got += read
        if not read and len(buffer) and self._length is not None and self._got != self._length:
            raise ConnectionError(f"the connection closed after {self._got:,} of {self._length:,} bytes")
        return read

    def close(self) -> None:
        self._answer.close()
        super().close()
