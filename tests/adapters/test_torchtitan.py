"""The loader of examples/torchtitan_loader.py on two ranks, killed and continued on one: torchtitan's own class, and a class with its interface.

torchtitan needs another release of `datasets` than the tests, so it has an environment of its own. The variable TORCHTITAN_PYTHON names the
Python of that environment, which has skillshard too. Without the variable, the loader runs on the stand-in in titan_twin.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import skillshard as ss
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import write_tokens
from tests.conftest import HERE, REPOSITORY
from tests.tokenizers_trained import byte_tokenizer

pytest.importorskip("torchdata")
BLOCKS, SEQ_LEN = 8, 24
TWIN = REPOSITORY / "tests" / "adapters" / "titan_twin"


def python_of(kind: str) -> str:
    if kind == "stand-in":
        return sys.executable
    python = os.environ.get("TORCHTITAN_PYTHON")
    if python is None:
        pytest.skip("TORCHTITAN_PYTHON names no Python of an environment with torchtitan")
    return python


def read(kind: str, shards: ShardSet, run: Path, *, processes: int, steps: int, killed_after: int = 0) -> int:
    """Run the ranks, and return the exit code of torchrun."""
    paths = [REPOSITORY / "examples", REPOSITORY, *([TWIN] if kind == "stand-in" else [])]
    words = [python_of(kind), "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    arguments = [shards.root, run.parent / "tokens", run, steps, killed_after]
    ended = subprocess.run(
        [*words, "--standalone", str(REPOSITORY / "tests" / "adapters" / "titan_ranks.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0 or killed_after, ended.stderr[-3000:]
    return ended.returncode


def blocks_of(run: Path) -> dict[int, list[list[int]]]:
    """Return the blocks of each step that the last process to reach the step has read, in any order."""
    steps: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
    for file in run.glob("rank-*.jsonl"):
        world_size = int(file.stem.rpartition("-")[2])
        for line in file.read_text().splitlines():
            record = json.loads(line)
            steps[record["step"], world_size] += record["rows"]
    newest: dict[int, list[list[int]]] = {}
    for (step, _), rows in sorted(steps.items(), key=lambda item: (item[0][0], -item[0][1])):
        newest[step] = sorted(rows)
    return newest


@pytest.mark.parametrize("kind", ["stand-in", "torchtitan"])
@pytest.mark.long
def test_two_ranks_are_killed_and_one_rank_continues_without_a_lost_or_repeated_block(
    kind: str, shards: ShardSet, tmp_path: Path
) -> None:
    python_of(kind)
    tokens = write_tokens(shards, byte_tokenizer(["add carry"]), tmp_path / "tokens", backend=HERE)
    run = tmp_path / "run"
    run.mkdir()
    assert read(kind, shards, run, processes=2, steps=100, killed_after=6) != 0
    assert (run / "newest").read_text() == "4"
    read(kind, shards, run, processes=1, steps=12)
    mixer = Mixer(shards, stratified(), ledger=tmp_path / "again", round_draws=400, unit="tokens", tokens=tokens)
    packed = PackedTokens(mixer, tokens, block_tokens=SEQ_LEN + 1, separator=None, step_blocks=BLOCKS)
    expected = {
        step: sorted(
            [*row[:1], *labels[1:]] for row, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True)
        )
        for step, batch in zip(range(1, 13), packed.batches(BLOCKS), strict=False)
    }
    read_blocks = blocks_of(run)
    # The steps 5 and 6 of the killed ranks are read again, with the same blocks.
    assert read_blocks == expected
    killed = [json.loads(line) for file in run.glob("rank-*-of-2.jsonl") for line in file.read_text().splitlines()]
    assert {record["step"] for record in killed} == set(range(1, 7))
    for step in range(1, 7):
        assert sorted(row for record in killed if record["step"] == step for row in record["rows"]) == expected[step]
    assert ss.ShardSet.open(shards.root).verify() == []


def test_the_stand_in_has_the_interface_of_torchtitan(tmp_path: Path) -> None:
    program = (
        "import inspect, json, dataclasses, torchtitan.components.dataloader as module\n"
        "loader = module.ParallelAwareDataloader\n"
        "print(json.dumps([list(inspect.signature(loader.__init__).parameters), sorted(field.name for field in "
        "dataclasses.fields(loader.Config)), [base.__name__ for base in loader.__mro__ if base.__name__ == 'StatefulDataLoader'], "
        "callable(loader.Config.build)]))"
    )
    answers = []
    for kind in ("stand-in", "torchtitan"):
        environment = {**os.environ, **({"PYTHONPATH": str(TWIN)} if kind == "stand-in" else {})}
        ended = subprocess.run([python_of(kind), "-c", program], env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        answers.append(json.loads(ended.stdout.splitlines()[-1]))
    assert answers[0] == answers[1]
