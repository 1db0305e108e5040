"""Start the ranks of one training on loopback, and read what they logged."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

LIMIT_S = 150


def start_ranks(script: str, world_size: int, arguments: list[str]) -> "list[subprocess.Popen[str]]":
    """Start one process for each rank, with the environment variables that `torchrun` sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-W", "ignore", str(REPOSITORY / script), *arguments]
    return [
        subprocess.Popen(
            command,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **place, **quiet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world_size)
    ]


def finish(processes: "list[subprocess.Popen[str]]") -> list[int]:
    """Exit codes; the first one that fails takes the others with it."""
    end = time.monotonic() + LIMIT_S
    while any(process.poll() is None for process in processes):
        failed = any(process.poll() not in (None, 0) for process in processes)
        if failed or time.monotonic() > end:
            time.sleep(0.3)
            for process in processes:
                process.kill()
            break
        time.sleep(0.05)
    errors = [process.communicate()[1] for process in processes]
    for process, words in zip(processes, errors, strict=True):
        if process.returncode not in (0, -signal.SIGKILL):
            raise AssertionError(words[-4000:])
    return [process.returncode for process in processes]


def kill(processes: "list[subprocess.Popen[str]]") -> None:
    for process in processes:
        process.kill()
        process.communicate()


def records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a kill may have cut the last one."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
