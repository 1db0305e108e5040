"""The Ray cluster of all tests in this folder."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_cluster import HUNG_S, Node, free_ports, wait_for_port

MARKER = f"ray-{os.getpid()}"


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, int, int]]:
    """Start the head of a Ray with a token of its own. Return the head, its port, and the port of the dashboard."""
    port, dashboard = free_ports(2)
    # A short path, because the folder holds Unix sockets.
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"ss-{MARKER}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONWARNINGS", "ignore")
        options = ("--head", "--temp-dir", folder, "--port", port, "--dashboard-port", dashboard)
        options += ("--include-dashboard", "true", "--dashboard-host", "127.0.0.1")
        node = Node(f"{MARKER}-head", tmp_path_factory.mktemp("ray"), *options)
        try:
            node.wait(HUNG_S)
            wait_for_port(port, 60)
            wait_for_port(dashboard, 60)
            yield node, port, dashboard
        finally:
            node.end()
            subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture(scope="session")
def cluster(head: tuple[Node, int, int]) -> tuple[str, str]:
    """Return the address of a Ray of two CPUs, and the address of the dashboard, which takes jobs."""
    return f"127.0.0.1:{head[1]}", f"http://127.0.0.1:{head[2]}"
