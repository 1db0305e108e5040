"""After Ctrl-C and SIGTERM no new work begins, no process survives, one sentence names the next step, and a repetition gives the same bytes."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import marked
from tests.conftest import REPOSITORY, tree
from tests.fault.test_killed import wait_until

HELD = "SKILLSHARD_TEST_HELD"
"""Variable of the place where the command waits to be stopped: "first-3" for the tasks of the first stage from number 3 on, or "first.ended"."""
LINE_S = "SKILLSHARD_TEST_LINE_S"
"""Variable of the seconds between two lines of progress."""
SLOW = """
import os, sys, time
from pathlib import Path

import typer

from skillshard import bars, progress, storage
from skillshard.cli import app, main
from skillshard.bars import Bars
from skillshard.execution import Backend, keyed, run


class Destructor:
    def __init__(self, seconds):
        self.seconds = seconds

    def __del__(self):
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            time.sleep(0.01)


held_at = os.environ.get("SKILLSHARD_TEST_HELD", "")
bars.SECONDS_BETWEEN_LINES = float(os.environ.get("SKILLSHARD_TEST_LINE_S", bars.SECONDS_BETWEEN_LINES))


def work(number, out, stage, seconds, in_destructor):
    Path(out, f"{stage}-{number}.begun").write_text("")
    held_stage, _, first_held = held_at.partition("-")
    if stage == held_stage and number >= int(first_held):
        time.sleep(3600)
    if in_destructor:
        Destructor(seconds)
    for step in range(50):
        time.sleep(seconds / 50)
        progress.advance(step + 1, 50)
    storage.write_bytes(Path(out, "results", f"{stage}-{number}"), b"%d" % number)
    return {"number": number}


@app.command()
def slow(out: Path, workers: int = 2, ray: str = "", seconds: float = 0.1, in_destructor: bool = False) -> None:
    out.mkdir(exist_ok=True)
    backend = Backend(workers, ray or None)
    with Bars(out) as bars:
        for stage in ("first", "second"):
            same = {"out": str(out), "stage": stage, "seconds": seconds, "in_destructor": in_destructor}
            tasks = keyed({"number": number, **same} for number in range(6))
            run(work, tasks, backend=backend, records=str(out / "records" / stage), on_done=bars.stage(stage, len(tasks)))
            (out / f"{stage}.ended").write_text("")
            if held_at == f"{stage}.ended":
                time.sleep(3600)


if __name__ == "__main__":
    main()
"""


class Slow:
    """A command of two stages with six tasks each, which is held at a place until the test stops the command."""

    def __init__(self, folder: Path) -> None:
        self.out, self.marker, self.script = folder / "out", str(folder), folder / "slow.py"
        self.script.write_text(SLOW)

    def start(self, *options: object, held: str = "", line_s: float = 5.0) -> "subprocess.Popen[str]":
        command = [sys.executable, self.script, "slow", self.out, *options]
        return subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_hears_ctrl_c,
            start_new_session=True,  # a terminal sends Ctrl-C to a process group
            env={
                **os.environ,
                "SKILLSHARD_TEST": self.marker,
                "PYTHONPATH": str(REPOSITORY),
                HELD: held,
                LINE_S: str(line_s),
            },
        )

    def names(self, pattern: str) -> set[str]:
        return {path.name for path in self.out.glob(pattern)} if self.out.exists() else set()

    def results(self) -> dict[str, bytes]:
        """Return the files with final names. A real command deletes the hidden files of killed writers at its start."""
        return {name: data for name, data in tree(self.out / "results").items() if not Path(name).name.startswith(".")}


def _hears_ctrl_c() -> None:
    """Restore SIGINT, because a shell starts background jobs with SIGINT ignored, and the tests may run in a background job."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path)


def stop(process: "subprocess.Popen[str]", number: signal.Signals) -> str:
    """Stop a command as a terminal or a scheduler does, and return the standard error. A command that does not end is a fault."""
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    _, err = process.communicate(timeout=240)
    return str(err)


MOMENTS: dict[str, tuple[str, Callable[[Slow], bool]]] = {
    "while the workers start": ("first-0", lambda slow: len(marked(slow.marker)) >= 3),
    "while the first tasks run": ("first-0", lambda slow: len(slow.names("first-*.begun")) >= 2),
    "while later tasks run": ("first-3", lambda slow: len(slow.names("records/first/*.json")) >= 3),
    "between two stages": ("first.ended", lambda slow: bool(slow.names("first.ended"))),
    "in the second stage": ("second-0", lambda slow: len(slow.names("second-*.begun")) >= 2),
}
"""Moment of a stop -> where the command is held, so that no machine is too slow to meet the moment, and the sign of the moment."""
EXPECTED = {f"{stage}-{number}": b"%d" % number for stage in ("first", "second") for number in range(6)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", sorted(MOMENTS))
def test_a_stopped_command_begins_nothing_leaves_no_process_and_goes_on_to_the_same_bytes(
    moment: str, number: signal.Signals, slow: Slow
) -> None:
    held, is_reached = MOMENTS[moment]
    process = slow.start(held=held)
    wait_until(lambda: is_reached(slow) or process.poll() is not None, timeout_s=240)
    assert process.poll() is None, process.communicate()
    begun = slow.names("*.begun")
    err = stop(process, number)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err and "KeyboardInterrupt" not in err, err
    wait_until(lambda: not marked(slow.marker))
    assert len(slow.names("*.begun") - begun) <= 2, "tasks that waited were begun"
    assert not list(slow.out.rglob("*.part")), "temporary files are left"
    by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    last = err.splitlines()[-1]
    assert last.startswith(f"stopped by {by}") and str(slow.out) in last
    if "runs" in moment or "run" in moment.split():
        assert "in the stage 'first'" in last and "of 6 done" in last and "What is finished is kept in" in last

    ended = set(slow.names("records/first/*.json"))
    again = shlex.split(last.partition("To go on: ")[2])
    assert again == ["python", str(slow.script), "slow", str(slow.out)]
    before = {path: path.stat().st_mtime_ns for path in (slow.out / "records").rglob("*.json")}
    subprocess.run(
        [sys.executable, *again[1:]],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert slow.results() == EXPECTED
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in before.items()), "done again"
    assert ended <= slow.names("records/first/*.json")


def test_a_second_ctrl_c_does_not_disturb_the_ending(slow: Slow) -> None:
    process = slow.start(held="first-0")
    wait_until(lambda: len(slow.names("first-*.begun")) >= 2 or process.poll() is not None, timeout_s=240)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130 and "Traceback" not in err, err
    wait_until(lambda: not marked(slow.marker))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["typer", "skillshard.cli.tag", "skillshard.repeated_keys"])
def test_a_command_whose_modules_are_still_imported_stops_with_the_same_sentence(
    module: str, number: signal.Signals, tmp_path: Path
) -> None:
    """Python prints each imported module on the standard error, so the moment of the signal does not depend on the machine."""
    words = ["-m", "skillshard", "verify", str(tmp_path / "red\x1b[31m")]
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_hears_ctrl_c,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stderr is not None
    while process.stderr.readline().rpartition("|")[2].strip() != "skillshard.command":
        assert process.poll() is None
    while process.stderr.readline().rpartition("|")[2].strip() != module:
        assert process.poll() is None
    err = stop(process, number)
    assert process.returncode == 128 + number, err
    by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    last = err.splitlines()[-1]
    assert last.startswith(f"stopped by {by}. To go on: ") and "\x1b" not in last
    assert last.partition("skillshard ")[2] == f"verify '{tmp_path}/red\\x1b[31m'"
    assert "Traceback" not in err


def test_a_command_in_one_process_stops_in_the_middle_of_a_task(slow: Slow) -> None:
    process = slow.start("--workers", 1, held="first-0")
    wait_until(lambda: len(slow.names("first-*.begun")) == 1 or process.poll() is not None, timeout_s=240)
    err = stop(process, signal.SIGTERM)
    assert process.returncode == 143 and "Traceback" not in err, err
    assert len(slow.names("*.begun")) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_that_comes_while_python_runs_a_destructor_stops_the_command(
    workers: int, number: signal.Signals, slow: Slow
) -> None:
    """Python only prints an exception that a destructor or a callback of a library raises, and continues."""
    process = slow.start("--workers", workers, "--seconds", 2, "--in-destructor")
    wait_until(lambda: len(slow.names("first-*.begun")) >= 1 or process.poll() is not None, timeout_s=240)
    err = stop(process, number)
    assert process.returncode == 128 + number and "Traceback" not in err and "ignored" not in err, err
    assert err.splitlines()[-1].startswith("stopped by"), err
    assert len(slow.names("*.begun")) <= workers + 1
    wait_until(lambda: not marked(slow.marker))


def test_without_a_terminal_a_line_every_few_seconds_tells_how_far_it_is_and_how_long_it_takes(slow: Slow) -> None:
    process = slow.start("--seconds", 2.5, line_s=0.5)
    wait_until(lambda: len(slow.names("records/first/*.json")) >= 3 or process.poll() is not None, timeout_s=240)
    err = stop(process, signal.SIGTERM)
    lines = [line for line in err.splitlines() if line.startswith("first: ")]
    assert len(lines) >= 2, err
    assert " of 6 (" in lines[-1] and "left" in lines[-1], err
    assert any(re.match(r"first: 0 of 6 \([1-9]", line) for line in lines), f"parts of tasks under way count: {lines}"


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_ray_too_a_stopped_command_leaves_nothing_running_and_goes_on(number: signal.Signals, slow: Slow) -> None:
    process = slow.start("--ray", "local", "--seconds", 6, line_s=1.0)
    wait_until(lambda: len(slow.names("records/first/*.json")) >= 1 or process.poll() is not None, timeout_s=240)
    begun = slow.names("*.begun")
    err = stop(process, number)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err, err
    assert err.splitlines()[-1].startswith("stopped by"), err
    assert any(line.startswith("first: ") and " of 6 (" in line for line in err.splitlines()), err
    wait_until(lambda: not marked(slow.marker), timeout_s=60)
    assert len(slow.names("*.begun") - begun) <= 2
    again = slow.start()
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert slow.results() == EXPECTED
