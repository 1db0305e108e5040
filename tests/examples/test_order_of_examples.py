"""The scripts run in any order and any number of times, and two scripts with the same directory say so. All run in this process."""

import contextlib
import io
import os
import re
import runpy
import shutil
import socket
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from skillshard.errors import LedgerError
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.records import open_records
from skillshard.shards.read import ShardSet
from tests.conftest import REPOSITORY
from tests.examples.test_examples import EXAMPLES as ALL_EXAMPLES
from tests.examples.test_examples import OWN_CORPUS, QUIET

pytestmark = pytest.mark.long

EXAMPLES = [name for name in ALL_EXAMPLES if name not in OWN_CORPUS]
"""Scripts that train on given shards."""
ONE_RUN = {"ddp.py", "lightning_trainer.py", "plain_numpy.py"}
"""Scripts with equal policy, seed and rounds. The ledger takes their runs for the same run."""


class Outcome(NamedTuple):
    """The output and the warnings of a script."""

    output: str
    warnings: list[str]


def start(name: str, shards: ShardSet, run_dir: Path, steps: int) -> Outcome:
    """Run a script like `python examples/NAME`, or like torchrun with a single process."""
    import torch.distributed

    words = ["--shards", str(shards.root), "--run-dir", str(run_dir), "--steps", str(steps)]
    output, argv, path, environment = io.StringIO(), sys.argv, sys.path, dict(os.environ)
    os.environ.update(QUIET)
    if name == "ddp.py":
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.argv = [f"examples/{name}", *words]
    sys.path = [str(REPOSITORY / "examples"), *path]  # Python begins with the directory of the script
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("always")  # other packages have warnings of their own
            runpy.run_path(str(REPOSITORY / "examples" / name), run_name="__main__")
    finally:
        sys.argv, sys.path = argv, path
        os.environ.clear()
        os.environ.update(environment)
        if torch.distributed.is_initialized():  # a script that ended by an error leaves a group
            torch.distributed.destroy_process_group()
    return Outcome(output.getvalue(), [str(warning.message) for warning in caught])


def test_every_script_runs_twice_in_a_row_and_goes_on_after_all_others_have_run(
    shards: ShardSet, tmp_path: Path
) -> None:
    for name in reversed(EXAMPLES):
        for _ in range(2):
            start(name, shards, tmp_path / name, 10)
    for name in (*EXAMPLES[3:], *EXAMPLES[:3]):
        outcome = start(name, shards, tmp_path / name, 20)
        assert outcome.output, name
        assert not any("left behind" in warning for warning in outcome.warnings), name
        ledger = DirectoryLedger(tmp_path / name)
        assert verify_ledger(ledger) == []
        assert open_records(ledger).rounds.num() >= 2


@pytest.mark.parametrize("first", EXAMPLES)
def test_two_scripts_with_one_directory_are_refused_or_say_what_they_leave_behind(
    shards: ShardSet, tmp_path: Path, first: str
) -> None:
    start(first, shards, tmp_path / "first", 20)
    for second in [name for name in EXAMPLES if name != first]:
        both = tmp_path / second
        shutil.copytree(tmp_path / "first", both)
        if {first, second} <= ONE_RUN:
            messages = start(second, shards, both, 10).warnings
            assert any("are left behind in" in sentence for sentence in messages), (second, messages)
        else:
            with pytest.raises(LedgerError, match=r"is the ledger of another run: .*give a new ledger directory"):
                start(second, shards, both, 10)


def test_each_documented_command_of_a_script_has_a_directory_of_its_own() -> None:
    commands = defaultdict(set)
    for page in [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "examples").glob("*.py"),
    ]:
        text = re.sub(r"\\?\n *", " ", page.read_text())
        for launcher, script, directory in re.findall(
            r"((?:[\w-]+ )*)examples/(\w+\.py) --shards \S+ --run-dir (\S+)", text
        ):
            commands[directory].add(("torchrun" in launcher, script))
    assert len(commands) >= len(EXAMPLES) + 2
    assert {directory: used for directory, used in commands.items() if len(used) > 1} == {}
