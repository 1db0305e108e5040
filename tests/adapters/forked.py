"""A process that imports the modules of the ranks of a training once, and forks each rank.

A rank that is an interpreter of its own spends its first 2 to 6 seconds on importing PyTorch and transformers, more than on its training.
The server reads a request from each line of its standard input: {"module", "arguments", "environment", "place"}. The server imports
the module and forks, and the child calls the module's `run(arguments)`. The server writes the process id of the child to PLACE.pid, and
the exit code to PLACE.code after the end of the child. PLACE.err holds the standard error of the child. The server ends with its input.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

TICK_S = 0.02


class Server:
    """The client of the server, which starts the server at the first request."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def fork(self, module: str, arguments: Sequence[str], environment: dict[str, str], place: Path) -> "Forked":
        """Start `module.run(arguments)` in a process. `place` is the beginning of the paths of its files."""
        if self.process is None:
            command = [sys.executable, "-m", "tests.adapters.forked"]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, **environment})
        request = {"module": module, "arguments": arguments, "environment": environment, "place": str(place)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return Forked(place)

    def stop(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(60)
            self.process = None


class Forked:
    """A forked process, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @property
    def pid(self) -> int:
        end = time.monotonic() + 100
        while not (written := self._read("pid")):
            assert time.monotonic() < end, "the server has not forked"
            time.sleep(TICK_S)
        return int(written)

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        code = self._read("code")
        return int(code) if code else None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 100) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.place), timeout)
            time.sleep(TICK_S)
        return code

    def communicate(self, timeout: float = 100) -> tuple[None, str]:
        self.wait(timeout)
        return None, self._read("err")

    def _read(self, suffix: str) -> str:
        path = self.place.with_suffix(f".{suffix}")
        return path.read_text(errors="replace") if path.exists() else ""


def write(place: str, suffix: str, text: int) -> None:
    """Write a file whole or not at all."""
    Path(f"{place}.part").write_text(str(text))
    os.replace(f"{place}.part", f"{place}.{suffix}")


def run_child(request: dict[str, Any]) -> None:
    """Run the child to its end."""
    code = 1
    try:
        for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, os.devnull, os.O_WRONLY)):
            os.dup2(os.open(path, flags), number)
        os.dup2(os.open(f"{request['place']}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.environ |= request["environment"]
        warnings.simplefilter("ignore")
        import_module(request["module"]).run(request["arguments"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    places: dict[int, str] = {}
    open_input, read = True, b""
    while open_input or places:
        if open_input and select.select([0], [], [], TICK_S)[0]:
            more = os.read(0, 65536)
            open_input = bool(more)
            *lines, read = (read + more).split(b"\n")
            for request in map(json.loads, lines):
                import_module(request["module"])
                pid = os.fork()
                if not pid:
                    run_child(request)
                places[pid] = request["place"]
                write(request["place"], "pid", pid)
        elif not open_input:
            time.sleep(TICK_S)
        for pid in list(places):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                write(places.pop(pid), "code", os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    serve()
