"""Every example runs as it stands, and run again it goes on where it stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.records import verify_ledger
from skillshard.shards.read import ShardSet
from tests.adapters.processes import finish, start_ranks
from tests.conftest import REPOSITORY

EXAMPLES = sorted(path.name for path in (REPOSITORY / "examples").glob("*.py"))
WITHOUT_LOSSES = {"stateful_dataloader.py"}
SLOW_TO_START = {"huggingface_trainer.py", "lightning_trainer.py"}
"""Run once; tests/adapters resumes them."""
OFTEN = {"huggingface_trainer.py", "packed_tokens.py"}
"""Report every fifth step."""


def test_every_example_is_known() -> None:
    assert EXAMPLES == [
        "ddp.py",
        "huggingface_trainer.py",
        "lightning_trainer.py",
        "packed_tokens.py",
        "plain_numpy.py",
        "pytorch.py",
        "stateful_dataloader.py",
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_goes_on(shards: ShardSet, tmp_path: Path, name: str) -> None:
    reports = []
    runs = (10,) if name in SLOW_TO_START else (10, 20)
    for steps in runs:
        arguments = ["--shards", str(shards.root), "--run", str(tmp_path / "run"), "--steps", str(steps)]
        if name == "ddp.py":
            assert finish(start_ranks(f"examples/{name}", 2 if steps == 10 else 1, arguments)) in ([0, 0], [0])
        else:
            found = subprocess.run(
                [sys.executable, "-W", "ignore", str(REPOSITORY / "examples" / name), *arguments],
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
                timeout=100,
            )
            assert found.returncode == 0, found.stderr[-3000:]
        reports.append(len(list((tmp_path / "run" / "observations").glob("*.json"))))
    assert verify_ledger(DirectoryLedger(tmp_path / "run")) == []
    assert not (tmp_path / "run" / "aside").exists()
    every = 5 if name in OFTEN else 10
    assert reports == [0 if name in WITHOUT_LOSSES else steps // every for steps in runs]
