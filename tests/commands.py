"""The command line in a test: in this process, or as a process of its own."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from skillshard.cli import main
from tests.conftest import samples, write_corpus


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """Return the only error, which is the last line. A traceback or a second error fails the test."""
        assert "Traceback" not in self.err, self.err
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and self.err.splitlines()[-1] == errors[0], self.err
        return errors[0].removeprefix("error: ")


def skillshard(*arguments: object) -> Outcome:
    """Run a verb in this process."""
    written, err = io.BytesIO(), io.StringIO()
    # Verbs with output of lines write to the `buffer` of the stream.
    out = io.TextIOWrapper(written, encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    out.flush()
    return Outcome(code, written.getvalue().decode(), err.getvalue())


def fails(*arguments: object) -> str:
    """Run a verb that must exit 1, and return the sentence."""
    outcome = skillshard(*arguments)
    assert outcome.code == 1, outcome
    return outcome.sentence


def works(*arguments: object) -> str:
    """Run a verb that must exit 0, and return the output."""
    outcome = skillshard(*arguments)
    assert outcome.code == 0, outcome
    return outcome.out


def write_artefacts(folder: Path) -> Path:
    """Write a corpus of 20 samples as C, its tags as T and its shards as S, and return the directory."""
    write_corpus(folder / "C", samples(add=12, carry=8))
    works("tag", "metadata", folder / "C", "--out", folder / "T", "--field", "meta.skill", "--workers", 1)
    works("shard", folder / "C", "--tags", folder / "T", "--out", folder / "S", "--workers", 1, "--holdout", 0.2)
    return folder


def start(*arguments: object, marker: str = "", env_changes: Mapping[str, str | None] = {}) -> "subprocess.Popen[str]":
    """Start a verb as a process. `marker` stands in the environment of the process and of all its children."""
    changed = {**os.environ, "SKILLSHARD_TEST": marker, **env_changes}
    return subprocess.Popen(
        [sys.executable, "-m", "skillshard", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in changed.items() if value is not None},
        # A shell starts a job in the background with SIGINT ignored, and a command inherits this from the tests of such a job.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: "subprocess.Popen[str]", timeout_s: float = 600) -> Outcome:
    out, err = process.communicate(timeout=timeout_s)
    return Outcome(process.returncode, out, err)


def marked(marker: str) -> list[int]:
    """Return the processes whose environment holds a marker, without this process."""
    pids = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            alive = place.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if alive and f"={marker}".encode() in place.joinpath("environ").read_bytes():
                pids.append(int(place.name))
    return [pid for pid in pids if pid != os.getpid()]
