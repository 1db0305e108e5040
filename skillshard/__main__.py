"""The command `skillshard`, also as `python -m skillshard`.

Python imports the command line in 0.2 s, and more slowly on a busy machine. This module handles the signals before the import, so Ctrl-C
ends the command with one sentence almost from the beginning. Python itself takes the first 0.02 s to start.
"""

import os
import signal
from types import FrameType

SIGNALS = {signal.SIGINT, signal.SIGTERM}


def main() -> None:
    """Handle the signals, import the command line, and run it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a signal during the next import waits until the handler is set
    from skillshard.command import stopped

    def stop(number: int, frame: FrameType | None) -> None:
        # An exception could be caught or printed by a package that is half imported. Nothing is begun yet, so the process may end here.
        os.write(2, f"{stopped(number)}\n".encode(errors="backslashreplace"))
        os._exit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell starts background jobs with Ctrl-C ignored
            signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    from skillshard.cli import main as run

    run()


if __name__ == "__main__":
    main()
