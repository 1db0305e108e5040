"""A Ray cluster on this machine, of processes that a test can kill: a head with a dashboard, and further nodes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.commands import marked

HUNG_S = 600
"""Time after which a command counts as hung. No command takes a tenth of the time on a quiet machine, and on a loaded machine Ray's workers
start five times as slowly.
"""


def free_ports(num: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def wait_for_port(port: int, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        assert time.monotonic() < end, f"no Ray at port {port}"
        time.sleep(0.2)


def end_all(marker: str) -> None:
    """End the marked processes by their ids, and wait for the end."""
    for kind, timeout_s in ((signal.SIGTERM, 5), (signal.SIGKILL, 20)):
        end = time.monotonic() + timeout_s
        while (left := marked(marker)) and time.monotonic() < end:
            kill_all(left, kind)
            time.sleep(0.3)
    assert not marked(marker)


def kill_all(pids: list[int], kind: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, kind)


class Node:
    """The processes of one node: a head, or a node that joins a cluster.

    Args:
        marker: Value in the environment of all processes of the node.
        folder: Directory of the log.
        options: Options of `ray start`.
        own_disk: Directory in whose place the node sees an empty directory of its own, as another machine does. This needs root.
    """

    def __init__(self, marker: str, folder: Path, *options: object, own_disk: Path | None = None) -> None:
        agent, agent_grpc, environments, metrics = free_ports(4)
        self.marker, self._log = marker, folder / f"{marker}.log"
        command = [Path(sys.executable).with_name("ray"), "start", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address", "127.0.0.1", "--num-cpus", "2", "--object-store-memory", str(80 << 20)]
        command += ["--dashboard-agent-listen-port", str(agent), "--dashboard-agent-grpc-port", str(agent_grpc)]
        command += ["--runtime-env-agent-port", str(environments), "--metrics-export-port", str(metrics)]
        # Ports of the range are shared by the nodes of this machine, so the system chooses.
        command += ["--min-worker-port", "0", "--max-worker-port", "0", *map(str, options)]
        if own_disk is not None:
            # The mount belongs to the processes of the node alone, and ends with them.
            mount = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
            command = [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                mount,
                str(own_disk),
                *map(str, command),
            ]
        self._command = command
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("wb") as log:
            environment = {**os.environ, "SKILLSHARD_TEST": self.marker}
            return subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)

    def workers(self) -> list[int]:
        """Return the processes of the node that do a task just now, or else the idle ones."""
        titles = {pid: _title(pid) for pid in self._pids()}
        # Other titles with this prefix are agents, whose death ends the node.
        names = ("ray::_do", "ray::_Keeper", "ray::IDLE")
        rays = [pid for pid, title in titles.items() if title.startswith(names)]
        return [pid for pid in rays if "IDLE" not in titles[pid]] or rays

    def is_up(self) -> bool:
        """Whether the node has joined its cluster, which `ray start` says at last."""
        return self.process.poll() is None and "will now block forever" in self._log.read_text()

    def wait(self, timeout_s: float) -> None:
        """Wait until the node has joined. Ray gives a node 30 seconds to start, too few on a loaded machine, so the start is repeated."""
        end = time.monotonic() + timeout_s
        while not self.is_up():
            assert time.monotonic() < end, self._log.read_text()
            if self.process.poll() is not None:
                end_all(self.marker)
                self.process = self._start()
            time.sleep(0.2)

    def lose(self) -> None:
        """Kill all processes of the node at once, as when a machine is taken away."""
        kill_all(self._pids())
        self.process.wait()

    def _pids(self) -> list[int]:
        """Return the processes of the node. A process of Ray that sets its title overwrites its environment, so the children count too."""
        parents = {int(place.name): _parent(place) for place in Path("/proc").glob("[0-9]*")}
        pids = marked(self.marker)
        for pid in pids:  # the list grows while it is read
            pids += [child for child, parent in parents.items() if parent == pid and child not in pids]
        return pids

    def end(self) -> None:
        end_all(self.marker)
        self.process.wait()


def _parent(place: Path) -> int:
    try:
        return int((place / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # gone meanwhile
        return 0


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # gone meanwhile
        return ""
