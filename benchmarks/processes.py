"""Commands of the checks of a GPU: run to their end, or killed at a chosen moment with all their descendants."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
COMMAND_S = 400
"""Longest time of a command of the checks, where the check names no other time."""
KILL_WAIT_S = 240
"""Longest time to wait for the moment of a kill."""


def command_of(*words: Any) -> list[str]:
    return [sys.executable, "-c", "import sys; from skillshard.cli import main; sys.exit(main())", *map(str, words)]


def run_command(
    words: Sequence[str], environment: Mapping[str, str] = {}, timeout_s: float | None = COMMAND_S
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, print its output, and return the output and the exit code."""
    print("$", *words[1:], flush=True)
    ended = subprocess.run(
        words, cwd=REPOSITORY, env=environment_of(environment), capture_output=True, text=True, timeout=timeout_s
    )
    print(ended.stdout, ended.stderr, sep="\n", flush=True)
    return ended


def environment_of(more: Mapping[str, str]) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **more}


def kill_when(words: Sequence[str], is_time: Callable[[], bool]) -> bool:
    """Start a command, and kill its processes with SIGKILL when the time has come. Return whether the command still ran."""
    print("$", *words[1:], "(until the kill)", flush=True)
    process = subprocess.Popen(
        words,
        cwd=REPOSITORY,
        env=environment_of({}),
        stdout=subprocess.DEVNULL,
        stderr=sys.stderr,
    )
    end = time.monotonic() + KILL_WAIT_S
    while process.poll() is None and not is_time() and time.monotonic() < end:
        time.sleep(0.02)
    was_running = process.poll() is None
    if was_running:
        # The whole tree, and not the group alone: torchrun starts its processes in groups of their own.
        for pid in tree_of(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
    return was_running


def tree_of(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of a program stands in parentheses and may hold spaces. The parent is the second field after the name.
            parent = int(place.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(place.parent.name))
    tree = [pid]
    for member in tree:
        tree += children.get(member, [])
    return tree


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = function()
    return result, round(time.perf_counter() - started, 2)


def checked(
    words: Sequence[str], environment: Mapping[str, str] = {}, timeout_s: float | None = COMMAND_S
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        timeout_s: Longest time of the command. With None, the command takes any time.

    Raises:
        SystemExit: The command failed.
    """
    ended = run_command(words, environment, timeout_s)
    if ended.returncode:
        raise SystemExit(f"{' '.join(words[1:])} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return ended


def write_json(place: Path, value: Any) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(value, indent=1) + "\n")
