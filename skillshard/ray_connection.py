"""The connection of this process to Ray: join a cluster, or start a Ray on this machine.

A command keeps a single connection to Ray (`one_connection`). A second connection would need new workers for each stage, and fails in a
job whose working directory Ray removed after the first connection.
"""

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from skillshard.errors import ExecutionError, first_line

OBJECT_STORE_BYTES = 256 << 20
"""Shared memory of a local Ray. Tasks pass only small records and need little memory."""
CONNECT_TIMEOUT_S = 10
"""Seconds to wait for an answer at the address of a Ray cluster. Ray itself would wait for minutes."""


class _Connection:
    """The connection of this process to Ray: the number of blocks that keep the connection, and whether this module made it."""

    num_blocks = 0
    is_ours = False


@contextlib.contextmanager
def one_connection() -> Iterator[None]:
    """Keep the connection to Ray that a stage in the block makes, until the end of the outermost block."""
    _Connection.num_blocks += 1
    try:
        yield
    finally:
        _Connection.num_blocks -= 1
        if not _Connection.num_blocks:
            end_own_connection()


def end_own_connection() -> bool:
    """End the connection if the module made the connection. Ray then kills the tasks that this process has begun, on all nodes.

    Returns:
        Whether the connection was ended. A connection of the caller stays.
    """
    if not _Connection.is_ours:
        return False
    import ray

    _Connection.is_ours = False
    ray.shutdown()
    return True


def connect(address: str, num_local_cpus: int) -> None:
    """Connect to Ray unless the process is connected already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers over the network
    if address == "local":
        _guard_local_ray()
    import ray  # after the environment is set, because Ray reads the environment at the import

    if ray.is_initialized():
        return
    with _own_signal_handlers():
        if address == "local":
            _start_local(num_local_cpus)
        else:
            _join(address)
    _Connection.is_ours = True


def _start_local(num_cpus: int) -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ExecutionError(
            f"no Ray could be started here: {first_line(error).rstrip('.')}. Its logs are under /tmp/ray; without "
            "`ray_address` a local process pool does the same work."
        ) from error


def _join(address: str) -> None:
    import ray

    try:
        _refuse_silent(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ExecutionError(
            f"no Ray cluster at `ray_address={address!r}`: {first_line(error).rstrip('.')}. Start one with 'ray start "
            "--head', give its address, or use `ray_address='local'`, or none for a local process pool."
        ) from error


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block. Ray's handler would end the process without a message."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _guard_local_ray() -> None:
    """Give a local Ray a new token, unless the user chose another setting.

    Ray listens on more than loopback. By default, Ray leaves a token in the home directory, and the token switches authentication on for
    every later cluster.
    """
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _refuse_silent(address: str) -> None:
    """Refuse an address HOST:PORT without an answer. Ray itself would try for minutes, and then end the process.

    Raises:
        OSError: Nothing answers, or another program than Ray answers.
    """
    match = re.fullmatch(r"(?:ray://)?\[?([^\]/]+?)\]?:(\d+)", address)
    if match:
        with socket.create_connection((match[1], int(match[2])), timeout=CONNECT_TIMEOUT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_http2(connection):
                raise ConnectionError(
                    "what listens there is not Ray (the port of a dashboard? It is 6379 unless changed)"
                )


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether the other side answers the opening of HTTP/2 with a frame of settings, as gRPC does.

    A connection alone proves nothing. Ray's dashboard accepts a connection too, and then Ray waits for more than two minutes and
    reports a time-out.
    """
    # The client preface of HTTP/2 and an empty SETTINGS frame. Byte 3 of a frame's header of 9 bytes is its type, and 4 is SETTINGS.
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        return connection.recv(9)[3:4] == b"\4"
    except OSError:
        return False
