"""A server between the tests and the files, which counts requests and makes faults."""

import contextlib
import http.client
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Fault = str | float | None
"""Fault of an answer: a status ("500"), "busy" (503 with a pause of 7 s), "reset", "cut", "wrong", "longer", "other", "hang", "drip", a delay in seconds, or None."""
Faults = Callable[[str, int], Fault]
"""A function that returns the fault of the n-th GET of a path, with n from 0."""


@contextlib.contextmanager
def served(folder: Path | str) -> Iterator[str]:
    """Return the address of `python -m http.server` in a directory."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield f"127.0.0.1:{process.stdout.readline().split(' port ')[1].split()[0]}"
        process.terminate()


class Between:
    """A proxy on loopback.

    Attributes:
        asked: Number of GETs of each path. The path of a store has the bucket.
        faults: Fault of each GET. A test may change the function at any time.
        sent: Number of PUTs of each path.
        write_faults: Fault of each PUT. A test may change the function at any time. "lost" does the request and answers 500.
    """

    def __init__(self, upstream: str) -> None:
        self.asked: Counter[str] = Counter()
        self.faults: Faults = lambda path, nth: None
        self.sent: Counter[str] = Counter()
        self.write_faults: Faults = lambda path, nth: None
        between = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                nth, between.asked[path] = between.asked[path], between.asked[path] + 1
                self._answer(between.faults(path, nth))

            def do_HEAD(self) -> None:
                self._answer(None)

            def do_PUT(self) -> None:
                path = self.path.partition("?")[0]
                nth, between.sent[path] = between.sent[path], between.sent[path] + 1
                fault = between.write_faults(path, nth)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if fault is None or fault == "lost" or isinstance(fault, float):
                    status, headers, answer = self._upstream(body)
                if fault is not None and not isinstance(fault, float):
                    status, headers, answer = 500 if fault == "lost" else int(fault), {}, b"no"
                elif isinstance(fault, float):
                    time.sleep(fault)
                self._send_answer(status, headers, answer)

            def do_POST(self) -> None:
                self._send_answer(*self._upstream(self.rfile.read(int(self.headers.get("Content-Length", 0)))))

            do_DELETE = do_POST

            def _send_answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _answer(self, fault: Fault) -> None:
                status, headers, body = self._upstream()
                if isinstance(fault, float):
                    time.sleep(fault)
                elif fault == "hang":
                    between.released.wait(20)
                elif fault and fault.isdigit():
                    status, headers, body = int(fault), {}, b"no"
                elif fault == "busy":
                    status, headers, body = 503, {"Retry-After": "7"}, b"no"
                elif fault == "wrong":
                    body = bytes([body[0] ^ 1]) + body[1:]
                elif fault == "longer":
                    body += b"more"
                elif fault == "other":
                    body = b"<html>please log in</html>"
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                        self.send_header(name, value)
                length = int(headers.get("Content-Length", len(body))) if self.command == "HEAD" else len(body)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command != "HEAD":
                    self._send(body, fault)

            def _send(self, body: bytes, fault: Fault) -> None:
                if fault == "drip":
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    between.released.wait(20)
                    self.wfile.write(body[len(body) // 2 :])
                elif fault in ("cut", "reset"):
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    if fault == "reset":
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                else:
                    self.wfile.write(body)

            def _upstream(self, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
                connection = http.client.HTTPConnection(upstream, timeout=30)
                try:
                    sent = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                    connection.request(self.command, self.path, body, headers=sent)
                    answer = connection.getresponse()
                    return answer.status, dict(answer.headers.items()), answer.read()
                finally:
                    connection.close()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients that hang up are a part of the tests

        self.released = threading.Event()
        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
