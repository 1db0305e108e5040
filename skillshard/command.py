"""The command that the user typed, for sentences that name a command to run. The module imports quickly."""

import shlex
import shutil
import signal
import sys
from pathlib import Path

from skillshard.printable import printable

_JOBS = ("tag", "regroup", "shard", "graph", "tokens")


def program() -> str:
    """Return the words that start skillshard in the shell of the user.

    A command that a sentence advises must work as printed. Where no virtual environment is active, the shell does not find
    `skillshard`, so the words are the path by which this process was started.
    """
    started = Path(sys.argv[0])
    if started.parts[-2:] == ("skillshard", "__main__.py"):
        python = "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)
        return f"{python} -m skillshard"
    on_path = shutil.which(started.name)
    if started.stem != "skillshard" or (on_path and started.exists() and Path(on_path).samefile(started)):
        return "skillshard"
    return shlex.quote(sys.argv[0])


def typed(arguments: list[str] | None = None) -> str:
    """Return the command as it was typed, to be typed again.

    Args:
        arguments: Arguments of the command. None: the arguments of the process.
    """
    if arguments is not None and Path(sys.argv[0]).name.partition(".")[0] not in _JOBS:
        return shlex.join(["skillshard", *arguments])
    started = Path(sys.argv[0])
    if started.suffix == ".py" and started.name != "__main__.py":
        return shlex.join(["python", *sys.argv])
    return f"{program()} {shlex.join(sys.argv[1:])}"


def stopped(number: int, where: str = "", arguments: list[str] | None = None) -> str:
    """Return the last line of a command that a signal stopped.

    Args:
        number: Number of the signal.
        where: Place of the stop, as a part of a sentence.
        arguments: As in `typed`.
    """
    by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    return f"stopped by {by}{printable(where)}. To go on: {printable(typed(arguments))}"
