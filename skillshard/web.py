"""Read files over http and https: one GET request for a file, and a HEAD request for its size.

urllib3 keeps the connections open, follows redirects and checks the length of a body. The module asks once: `storage.retried` decides
about another try, by the same rule as for object stores and for damaged files.
"""

import functools
import io
import os
import socket
import ssl
from typing import Any

import urllib3
from urllib3.exceptions import (
    HTTPError,
    IncompleteRead,
    LocationValueError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    TimeoutError,
)

TIMEOUT_S = 60.0
"""Seconds without a byte from the server after which a request fails."""
# Enough for a store behind a gateway and a signed link. urllib3 ends a circle of redirects with an error.
MAX_REDIRECTS = 5
# "Too many requests" and "request timeout" are temporary, unlike the other statuses below 500.
TEMPORARY = (408, 429)


class WebError(OSError):
    """A request without a file as the answer.

    Attributes:
        may_pass: whether the same request may succeed in a moment.
        retry_after_s: pause that the server asks for, in seconds. None: the server does not say.
    """

    def __init__(self, sentence: str, *, may_pass: bool, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.may_pass = may_pass
        self.retry_after_s = retry_after_s


def is_web(place: str) -> bool:
    """Return whether a place is a URI of http or https.

    >>> is_web("https://host/S"), is_web("s3://bucket/S")
    (True, False)
    """
    return place.startswith(("http://", "https://"))


def get(url: str) -> io.BufferedReader:
    """Open the body of a file for reading from the start.

    Raises:
        FileNotFoundError: the file does not exist.
        WebError: the server gives no answer, or an answer that is not the file. While reading: the body ended too early.
    """
    return io.BufferedReader(_Body(_ask(url, "GET")), 1 << 20)


def num_bytes(url: str) -> int | None:
    """Return the size of a file in bytes. None: the file does not exist.

    Raises:
        WebError: the server gives no answer, or an answer without a size.
    """
    try:
        answer = _ask(url, "HEAD")
    except FileNotFoundError:
        return None
    length = answer.headers.get("Content-Length")
    answer.release_conn()
    if length is None:
        raise WebError("the server tells no Content-Length", may_pass=True)
    return int(length)


@functools.cache
def _pool(process: int) -> urllib3.PoolManager:
    """Make the connections of a process. A forked process must not share the connections of its parent."""
    return urllib3.PoolManager(maxsize=8)


def _ask(url: str, method: str) -> urllib3.BaseHTTPResponse:
    try:
        answer = _pool(os.getpid()).request(
            method,
            url,
            # "identity": Content-Length must be the size of the file, and not of a compressed form.
            headers={"Accept-Encoding": "identity", "User-Agent": "skillshard"},
            preload_content=False,
            decode_content=False,
            timeout=TIMEOUT_S,
            retries=urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=MAX_REDIRECTS),
        )
    except HTTPError as error:
        raise _web_error(error) from error
    if answer.status == 200:
        return answer
    answer.close()
    if answer.status in (404, 410):
        raise FileNotFoundError(answer.status, answer.reason, url)
    wait = answer.headers.get("Retry-After")
    raise WebError(
        f"HTTP Error {answer.status}: {answer.reason}",
        may_pass=answer.status >= 500 or answer.status in TEMPORARY,
        retry_after_s=float(wait) if wait and wait.isdigit() else None,
    )


def _web_error(error: HTTPError) -> WebError:
    """Translate an error of urllib3. Only a wrong name, a bad certificate and an invalid address never pass."""
    cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    if isinstance(cause, LocationValueError):
        # The text of the error holds the whole address, and an address may hold a signature or a token.
        return WebError("the address is not a valid URL", may_pass=False)
    if isinstance(cause, TimeoutError) and not isinstance(cause, NewConnectionError):
        return WebError(f"the request timed out after {TIMEOUT_S:g} s without a byte", may_pass=True)
    # The text of an error of urllib3 holds addresses in memory. The error of the socket is the plain one.
    socket_error = next((inner for inner in (cause.__cause__, *cause.args) if isinstance(inner, OSError)), cause)
    if isinstance(cause, NameResolutionError):
        is_unknown = isinstance(socket_error, socket.gaierror) and socket_error.errno == socket.EAI_NONAME
        return WebError(str(socket_error), may_pass=not is_unknown)
    return WebError(str(socket_error), may_pass=not isinstance(socket_error, ssl.SSLCertVerificationError))


class _Body(io.RawIOBase):
    """The body of an answer as a file, whose errors are OSErrors like the errors of other files."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._num_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._answer.read1(len(buffer))  # the bytes at hand: read would wait until the buffer is full
        except HTTPError as error:
            if any(isinstance(inner, IncompleteRead) for inner in error.args):
                total = self._answer.headers.get("Content-Length", "?")
                raise WebError(
                    f"the connection closed after {self._num_read} of {total} bytes", may_pass=True
                ) from error
            raise _web_error(error) from error
        buffer[: len(data)] = data
        self._num_read += len(data)
        return len(data)

    def close(self) -> None:
        self._answer.close()
        super().close()
