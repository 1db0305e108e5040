"""Workers on Ray, with the interface of the local pool (`skillshard.pool`). Only this module imports ray.

The number of tasks in flight follows the cluster: nodes that join get tasks, and the tasks of nodes that leave are tried again. The end
of a worker is charged to a task only if the task ran and the node is still alive. In all other cases the event is "lost".

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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillshard import progress
from skillshard.errors import ExecutionError, first_line
from skillshard.pool import Event

OBJECT_STORE_BYTES = 256 << 20
"""Shared memory of a local Ray. Tasks pass only small records and need little memory."""
CONNECT_TIMEOUT_S = 10
"""Seconds to wait for an answer at the address of a Ray cluster. Ray itself would wait for minutes."""
RESOURCES_S = 2.0
"""Seconds between two looks at the nodes of the cluster. A new node then gets tasks soon, and a look costs little."""
MAX_SHARES_READ = 100
"""Largest number of running tasks whose progress is read at a time. Each share is a file on the disk that the nodes share."""


@dataclass(frozen=True)
class Needs:
    """Resources that a task asks of Ray.

    Attributes:
        num_cpus: Number of CPUs.
        num_gpus: Number of GPUs.
        num_bytes: Memory in bytes. None: nothing is asked for, and Ray places one task on each CPU.
    """

    num_cpus: int = 1
    num_gpus: float = 0.0
    num_bytes: int | None = None

    def slots(self, resources: dict[str, float]) -> int:
        """Return the number of tasks that fit into the resources of a node or a cluster at the same time.

        >>> Needs(num_cpus=2).slots({"CPU": 9.0}), Needs(num_bytes=10).slots({"CPU": 9.0, "memory": 45.0})
        (4, 4)
        """
        slots = [resources.get("CPU", 0.0) // self.num_cpus]
        if self.num_gpus:
            slots.append(resources.get("GPU", 0.0) // self.num_gpus)
        if self.num_bytes is not None:
            slots.append(resources.get("memory", 0.0) // self.num_bytes)
        return int(min(slots))


# ------------------------------------------------------------------------------------------------------------- workers


class RayPool:
    """Workers of a Ray cluster. The `with` block connects to the cluster, and its end stops the running tasks.

    Args:
        address: Address of a cluster, "auto", or "local" for a Ray on this machine.
        num_local_cpus: Number of CPUs of a Ray on this machine.
        needs: Resources of a task.
        keeps_model: Whether actors do task after task and keep a loaded model.
        shares: Directory that all nodes see, for the progress of the running tasks.
    """

    def __init__(self, address: str, *, num_local_cpus: int, needs: Needs, keeps_model: bool, shares: Path) -> None:
        self._address, self._num_local_cpus = address, num_local_cpus
        self._needs, self._keeps_model, self._shares = needs, keeps_model, shares
        self._running: dict[Any, str] = {}
        self._actor_of: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._nodes: dict[str, dict[str, float]] = {}
        self._nodes_at_begin: dict[str, frozenset[str]] = {}
        self._looked_s = self._shares_read_s = float("-inf")
        self._cleanup = contextlib.ExitStack()

    @property
    def running(self) -> tuple[str, ...]:
        """Keys of the running tasks."""
        return tuple(self._running.values())

    @property
    def has_room(self) -> bool:
        """Whether the cluster can take another task just now."""
        if time.monotonic() - self._looked_s >= RESOURCES_S:
            self._look_at_nodes()
        slots = sum(self._needs.slots(resources) for resources in self._nodes.values())
        # A second task waits for each slot, so that no slot waits for this process. The surplus also shows an autoscaler that more
        # nodes have work. An actor holds its slot, so a second actor for the slot would only wait.
        return len(self._running) < max(1, slots if self._keeps_model else 2 * slots)

    def begin(self, key: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin `function(*arguments)` on the cluster."""
        self._share_place(key).unlink(missing_ok=True)  # of an earlier try
        self._nodes_at_begin[key] = frozenset(self._nodes)
        place = str(self._share_place(key))
        if not self._keeps_model:
            self._running[self._task.remote(place, function, arguments)] = key
            return
        actor = self._idle.pop() if self._idle else self._actor.remote()
        reference = actor.do.remote(place, function, arguments)
        self._running[reference], self._actor_of[reference] = key, actor

    def wait(self, timeout_s: float) -> Iterator[Event]:
        """Wait for events of the running tasks, at most `timeout_s` seconds, and yield the events."""
        import ray

        for reference in ray.wait(list(self._running), num_returns=1, timeout=timeout_s)[0]:
            key = self._running.pop(reference)
            yield self._outcome(reference, key)
        if time.monotonic() - self._shares_read_s >= timeout_s:
            self._shares_read_s = time.monotonic()
            for key in list(self._running.values())[:MAX_SHARES_READ]:
                if share := self._read_share(key):
                    yield Event(key, "part", share)

    def _outcome(self, reference: Any, key: str) -> Event:
        import ray

        actor = self._actor_of.pop(reference, None)
        try:
            event = Event(key, "done", ray.get(reference))
        except ray.exceptions.RayTaskError as error:
            event = Event(key, "failed", error.cause)
        except ray.exceptions.RayError as error:
            died = ChildProcessError(f"its Ray worker died ({first_line(error)})")
            is_lost = self._is_lost(key, error)
            if is_lost:  # other idle actors may be gone with the same node
                self._kill(self._idle)
                self._idle = []
            event, actor = Event(key, "lost" if is_lost else "died", died), None
        if actor is not None:
            self._idle.append(actor)
        self._share_place(key).unlink(missing_ok=True)
        return event

    def _is_lost(self, key: str, error: Exception) -> bool:
        """Whether the worker's end has another cause than the task: a lost or preempted node, or a death before the task began."""
        import ray

        errors = ray.exceptions
        if isinstance(error, errors.OutOfMemoryError):
            return False
        of_nodes = (errors.NodeDiedError, errors.ActorUnavailableError, errors.LocalRayletDiedError)
        if isinstance(error, of_nodes) or getattr(error, "preempted", False):
            return True
        self._look_at_nodes()
        return not self._share_place(key).exists() or not self._nodes_at_begin[key] <= set(self._nodes)

    def _look_at_nodes(self) -> None:
        import ray

        # Ray counts the resources of a node that it drains until the node is gone.
        self._nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        self._looked_s = time.monotonic()

    def _share_place(self, key: str) -> Path:
        return self._shares / f".{key}.progress"

    def _read_share(self, key: str) -> float | None:
        try:
            return float(self._share_place(key).read_text())
        except (FileNotFoundError, ValueError):  # not written yet, or half written
            return None

    def __enter__(self) -> "RayPool":
        with contextlib.ExitStack() as cleanup:
            cleanup.enter_context(one_connection())
            _connect(self._address, self._num_local_cpus)
            import ray

            self._look_at_nodes()
            self._refuse_too_much()
            needs = self._needs
            resources = {"num_cpus": needs.num_cpus, "num_gpus": needs.num_gpus, "memory": needs.num_bytes}
            remote: Any = ray.remote
            self._task = remote(**resources, max_retries=0)(_do)
            self._actor = remote(**resources, max_restarts=0)(_Keeper)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        import ray

        with self._cleanup:
            # Tasks run still only after an error or a signal. Idle actors would hold the CPUs of the next stage.
            self._kill([*self._idle, *self._actor_of.values()])
            if not self._keeps_model:
                for reference in self._running:
                    ray.cancel(reference, force=True)

    def _kill(self, actors: list[Any]) -> None:
        import ray

        for actor in actors:
            ray.kill(actor)

    def _refuse_too_much(self) -> None:
        """Refuse a task that fits on no node of the cluster. Ray would wait without an end."""
        largest = {
            name: max((node.get(name, 0.0) for node in self._nodes.values()), default=0.0)
            for name in ("CPU", "GPU", "memory")
        }
        needs = self._needs
        if needs.num_gpus > largest["GPU"]:
            raise ExecutionError(
                f"a GPU was asked for, and the Ray cluster has {largest['GPU']:g}. Give `device='cpu'`, or add a node that has one."
            )
        # An autoscaled cluster may begin with a head without CPUs. Each later node has at least one.
        if needs.num_cpus > max(1.0, largest["CPU"]):
            raise ExecutionError(
                f"`task_cpus={needs.num_cpus}`: the largest node of the Ray cluster has {largest['CPU']:g} CPUs. Give a smaller "
                "`task_cpus`, or add a larger node."
            )
        if needs.num_bytes is not None and needs.num_bytes > largest["memory"]:
            raise ExecutionError(
                f"`task_memory={needs.num_bytes}`: the largest node of the Ray cluster has {int(largest['memory']):,} bytes of memory for "
                "tasks. Give a smaller `task_memory`, or add a larger node."
            )


def _do(place: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Do a task. A file shows that the task began, and the finished share: Ray has no cheap way from a task to the driver."""
    file = Path(place)

    def write(share: float) -> None:
        with contextlib.suppress(OSError):  # a full disk stops the task where the task writes its results, not here
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{share:.4f}")

    write(0.0)
    try:
        with progress.sent_to(write):
            return function(*arguments)
    finally:
        file.unlink(missing_ok=True)


class _Keeper:
    """An actor for many tasks, in turn."""

    def do(self, place: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return _do(place, function, arguments)


# ---------------------------------------------------------------------------------------------------------- connection


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
        if not _Connection.num_blocks and _Connection.is_ours:
            import ray

            _Connection.is_ours = False
            ray.shutdown()


def _connect(address: str, num_local_cpus: int) -> None:
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
