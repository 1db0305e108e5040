"""A process that learns a graph is killed before and after each of its writes, and another process goes on to the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skillshard.shards.read import ShardSet
from tests.conftest import REPOSITORY, tree
from tests.unit.test_graph_learning import learn

SMALL: dict[str, Any] = {"method": "linear", "steps": 1, "warmup_steps": 1, "eval_every": 1, "eval_samples": 1}

# Each child is forked after the imports, which take longer than a small graph. The process has run no tensor operation, so it has no
# threads that a fork would lose.
KILLED_AT_EVERY_WRITE = """
import json, os, signal, sys
from pathlib import Path
from skillshard.shards.read import ShardSet
from tests.fault.test_killed_graph import SMALL
from tests.unit.test_graph_learning import learn

shards, folder = ShardSet.open(sys.argv[1]), Path(sys.argv[2])
replace = os.replace

def in_child(function):
    child = os.fork()
    if child == 0:
        function()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def killed(out, write, is_before):
    num_writes = 0
    def counting(*names):
        nonlocal num_writes
        num_writes += 1
        if num_writes == write and is_before:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)
        if num_writes == write:
            os.kill(os.getpid(), signal.SIGKILL)
    os.replace = counting
    learn(shards, out, **SMALL)

codes = []
for is_before in (True, False):
    write = 0
    while not codes or codes[-1][0] != 0 or write == 0:
        write += 1
        out = folder / f"{'before' if is_before else 'after'}-{write}" / "graph.json"
        first = in_child(lambda: killed(out, write, is_before))
        codes.append((first, in_child(lambda: learn(shards, out, **SMALL))))
print(json.dumps(codes))
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_before_and_after_every_write_it_goes_on_to_the_same_bytes(shards: ShardSet, tmp_path: Path) -> None:
    learn(shards, tmp_path / "whole" / "graph.json", **SMALL)
    command = [sys.executable, "-c", KILLED_AT_EVERY_WRITE, str(shards.root), str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stderr
    codes = json.loads(ended.stdout.splitlines()[-1])
    # Texts of the timing, texts, warm start and three trials with their records, and the graph. The last process of each kind is not killed.
    assert codes == [*[[-9, 0]] * 8, [0, 0]] * 2
    for folder in sorted((tmp_path / "killed").iterdir()):
        assert tree(folder) == tree(tmp_path / "whole"), folder.name
