"""Hold a command at a number of files, so that no machine is too slow to kill the command before its end.

Python imports this module at the start of every process with the directory on PYTHONPATH, so it reaches the workers of a command too.
`SKILLSHARD_TEST_HELD` is DIRECTORY:NUMBER. While the directory has the number of files, no process gives a file its final name, until the
file DIRECTORY.goes-on exists.
"""

import os
import time
from collections.abc import Callable
from typing import Any

FOLDER, _, NUMBER = os.environ.get("SKILLSHARD_TEST_HELD", "").rpartition(":")


def held(function: Callable[..., None]) -> Callable[..., None]:
    def waits_and_calls(*arguments: Any, **options: Any) -> None:
        while sum(len(files) for _, _, files in os.walk(FOLDER)) >= int(NUMBER):
            if os.path.exists(f"{FOLDER}.goes-on"):
                break
            time.sleep(0.05)
        return function(*arguments, **options)

    return waits_and_calls


if FOLDER:
    os.replace, os.link = held(os.replace), held(os.link)
