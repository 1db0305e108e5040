"""Workers on Ray, with the interface of the local pool (`skillshard.pool`). Only this module and ray_connection.py import ray.

The number of tasks in flight follows the cluster: nodes that join get tasks, and the tasks of nodes that leave are tried again. The end
of a worker is charged to a task only if the task ran and the node is still alive. In all other cases the event is "lost".
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from skillshard import places, progress, storage
from skillshard.errors import ExecutionError, StorageError, first_line
from skillshard.pool import Event
from skillshard.ray_connection import connect, end_own_connection, one_connection

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


class RayPool:
    """Workers of a Ray cluster. The `with` block connects to the cluster, and its end stops the running tasks.

    Args:
        address: Address of a cluster, "auto", or "local" for a Ray on this machine.
        num_local_cpus: Number of CPUs of a Ray on this machine.
        needs: Resources of a task.
        keeps_model: Whether actors do task after task and keep a loaded model.
        shares: Directory that all nodes see, or place in a store, for the progress of the running tasks.
    """

    def __init__(self, address: str, *, num_local_cpus: int, needs: Needs, keeps_model: bool, shares: str) -> None:
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
        place = self._share_place(key)
        if not places.is_remote(place):
            storage.remove(place)  # of an earlier try
        self._nodes_at_begin[key] = frozenset(self._nodes)
        if not self._keeps_model:
            self._running[self._task.remote(place, function, arguments)] = key
            return
        actor = self._idle.pop() if self._idle else self._actor.remote()
        reference = actor.do.remote(place, function, arguments)
        self._running[reference], self._actor_of[reference] = key, actor

    def wait(self, timeout_s: float) -> Iterator[Event]:
        """Wait for events of the running tasks, at most `timeout_s` seconds, and yield the events."""
        import ray

        # An actor that is idle here has no task to begin, and holds a slot. The actor of a running task may wait for this slot, if the slots
        # were counted while a lost node was still listed.
        self._kill(self._idle)
        self._idle = []
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
        storage.remove(self._share_place(key))
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
        return not storage.exists(self._share_place(key)) or not self._nodes_at_begin[key] <= set(self._nodes)

    def _look_at_nodes(self) -> None:
        import ray

        # Ray counts the resources of a node that it drains until the node is gone.
        self._nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        self._looked_s = time.monotonic()

    def _share_place(self, key: str) -> str:
        return places.join(self._shares, f".{key}.progress")

    def _read_share(self, key: str) -> float | None:
        try:
            return float(storage.read_bytes(self._share_place(key)))
        except (StorageError, ValueError):  # not written yet, or half written
            return None

    def __enter__(self) -> "RayPool":
        with contextlib.ExitStack() as cleanup:
            cleanup.enter_context(one_connection())
            connect(self._address, self._num_local_cpus)
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
        with self._cleanup:
            # Tasks run still only after an error or a signal. An answer that arrives at the moment of `ray.cancel` makes Ray abort this
            # process, so the tasks end with the connection where the connection may end.
            if not (self._running and end_own_connection()):
                self._stop_tasks()
            # The tasks of a killed command run on for a while beside the tasks of this command, and write their shares again.
            storage.remove(*map(self._share_place, self._nodes_at_begin))

    def _stop_tasks(self) -> None:
        import ray

        # Idle actors would hold the CPUs of the next stage.
        self._kill([*self._idle, *self._actor_of.values()])
        if self._running and not self._keeps_model:
            for reference in self._running:
                ray.cancel(reference, force=True)
            # Ray may abort the process if the answer of a cancelled task arrives while the connection ends.
            ray.wait(list(self._running), num_returns=len(self._running), timeout=5.0, fetch_local=False)

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

    def write(share: float) -> None:
        data = f"{share:.4f}".encode()
        with contextlib.suppress(OSError):  # a full disk stops the task where the task writes its results, not here
            if places.is_remote(place):
                storage.write_bytes(place, data)
                return
            # Not whole or nothing: a half-written share is read again a second later, and a sync to the disk takes time.
            file = places.local_path(place)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    write(0.0)
    try:
        with progress.sent_to(write):
            return function(*arguments)
    finally:
        storage.remove(place)


class _Keeper:
    """An actor for many tasks, in turn."""

    def do(self, place: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return _do(place, function, arguments)
