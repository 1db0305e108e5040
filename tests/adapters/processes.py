"""Start the ranks of a training on loopback, and read the logs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.adapters.forked import Forked, Server
from tests.conftest import REPOSITORY

LIMIT_S = 150
SERVER = Server()
"""Forks the ranks of this pytest process. tests/adapters/conftest.py stops it."""

Rank = subprocess.Popen[str] | Forked


def start_ranks(
    module: str, world_size: int, arguments: list[str], folder: Path, *, own_interpreters: bool = False
) -> list[Rank]:
    """Start a process for each rank, with the environment variables that `torchrun` sets.

    Args:
        module: Module of tests/adapters with a function `run(arguments)`.
        folder: An existing directory, for the files of the processes.
        own_interpreters: Start an interpreter for each rank, as torchrun does, so that each rank has its own seed for the hashes of texts.
            An interpreter costs seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    quiet = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    ranks: list[Rank] = []
    for rank in range(world_size):
        environment = {**place, **quiet, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        if own_interpreters:
            command = [sys.executable, "-W", "ignore", "-m", f"tests.adapters.{module}", *arguments]
            ranks.append(
                subprocess.Popen(
                    command,
                    text=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env={**os.environ, **environment},
                )
            )
        else:
            files = folder / f"process-{port}-{rank}"
            ranks.append(SERVER.fork(f"tests.adapters.{module}", arguments, environment, files))
    return ranks


def finish(processes: list[Rank]) -> list[int]:
    """Return the exit codes. The first rank that fails ends the other ranks."""
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
    return [process.wait() for process in processes]


def kill(processes: list[Rank]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


def records(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a log. A kill may have cut the last line."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
