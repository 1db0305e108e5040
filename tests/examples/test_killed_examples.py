"""Every script is killed by SIGKILL, and the same command continues the run on another number of processes.

The batches that the training takes before the kill, up to the checkpoint, and after the kill are the stream of the ledger: each step has the
samples of its draws, so no sample comes twice and no sample is lost.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.recorded import open_recorded
from skillshard.mixing.records import open_records
from skillshard.mixing.round_records import ObservationRecord
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from tests.adapters.test_torchtitan import TWIN
from tests.conftest import REPOSITORY
from tests.examples.test_examples import ELSEWHERE, EXAMPLES, ON_RAY, OWN_CORPUS, QUIET, processes_with

pytestmark = pytest.mark.long
LIMIT_S = 300


class Script(NamedTuple):
    """A script whose run is killed and continued.

    Attributes:
        name: File in examples.
        every: Number of steps between two reports.
        before: Words of the command that is killed, in place of "python" and after the script.
        after: The same words of the command that continues.
        step_samples: Number of samples of a step, or of blocks.
        block_tokens: Number of tokens of a block. None: the training takes samples.
        begins: Whether the script reports losses before its first step.
        looks: Whether the trainer reads a sample before the run restarts, so that the start begins a generation.
    """

    name: str
    every: int
    before: tuple[str, str] = ("", "")
    after: tuple[str, str] = ("", "")
    step_samples: int = 32
    block_tokens: int | None = None
    begins: bool = True
    looks: bool = False


ALONE, TORCHRUN_1, TORCHRUN_2 = ("", ""), ("torchrun 1", ""), ("torchrun 2", "")
SCRIPTS = [
    Script("ddp.py", 10, TORCHRUN_2, TORCHRUN_1),
    Script("get_batch.py", 5, TORCHRUN_2, ALONE, 8, block_tokens=64, begins=False),
    Script("grain_loader.py", 10, ("", "--processes 2"), ("", "--processes 4")),
    Script("huggingface_trainer.py", 5, TORCHRUN_2, ALONE, 8),
    Script("huggingface_trainer.py", 5, ALONE, TORCHRUN_2, 8),
    Script("lightning_trainer.py", 10, TORCHRUN_2, ALONE),
    Script("packed_tokens.py", 5, TORCHRUN_2, ALONE, 8, block_tokens=64),
    Script("packed_tokens.py", 5, ALONE, TORCHRUN_2, 8, block_tokens=64),
    Script("plain_numpy.py", 10, ("", "--processes 2"), ALONE),
    Script("plain_numpy.py", 10, ALONE, ("", "--processes 2")),
    Script("pytorch.py", 10, ("", "--workers 2"), ("", "--workers 4")),
    Script("torchtitan_loader.py", 10, TORCHRUN_2, TORCHRUN_1, 8, block_tokens=65, begins=False),
    Script("training_losses.py", 10, TORCHRUN_2, ALONE, 8, begins=False),
    Script("trl_sft.py", 5, TORCHRUN_2, ALONE, 8, looks=True),
    Script("webdataset_loader.py", 10, ("", "--workers 2"), ("", "--workers 0")),
]
WITHOUT_PYTORCH = {"grain_loader.py", "plain_numpy.py"}
"""Scripts whose model is the counts of the bytes of all samples, so that the checkpoint itself shows which samples were taken."""


def command_of(
    name: str, shards: ShardSet, run_dir: Path, steps: int, around: tuple[str, str], *, log: Path
) -> list[str]:
    """Return the words of a command. The processes of PyTorch write the batches that they take into the folder `log`."""
    launcher, further = around
    words = [sys.executable]
    if launcher:
        words += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", launcher.split()[1]]
    if name not in WITHOUT_PYTORCH:
        words += [str(Path(__file__).with_name("watched.py")), str(log)]
    options = ["--shards", shards.root, "--run-dir", run_dir, "--steps", steps, *further.split()]
    return [*words, str(REPOSITORY / "examples" / name), *map(str, options)]


def environment_of(name: str) -> dict[str, str]:
    # The class of torchtitan has a stand-in, because torchtitan needs an environment of its own.
    paths = [str(REPOSITORY), *([str(TWIN)] if name in ELSEWHERE else [])]
    return {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(paths)}


def ledger_of(name: str, run_dir: Path) -> DirectoryLedger:
    return DirectoryLedger(run_dir / "ledger" if name in ELSEWHERE else run_dir)


def observations(name: str, run_dir: Path) -> list[ObservationRecord]:
    ledger = ledger_of(name, run_dir)
    if not (ledger.root / "run.json").exists():
        return []
    return [record for record in open_records(ledger).observations if record is not None]


def has_checkpoint(run_dir: Path) -> bool:
    places = (
        "checkpoint.pt",
        "checkpoint.npz",
        "checkpoint/newest",
        "checkpoints/last.ckpt",
        "checkpoints/*/mixer.json",
    )
    return any(any(run_dir.glob(place)) for place in places)


def kill_after_a_checkpoint(words: list[str], environment: dict[str, str], name: str, run_dir: Path) -> None:
    """Start a command, and kill all its processes at a report after its first checkpoint."""
    with (run_dir.parent / "killed.log").open("w") as log:
        process = subprocess.Popen(
            words, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    end, reports = time.monotonic() + LIMIT_S, None
    while reports is None or len(observations(name, run_dir)) <= reports:
        assert process.poll() is None and time.monotonic() < end, (run_dir.parent / "killed.log").read_text()[-3000:]
        if reports is None and has_checkpoint(run_dir):
            reports = len(observations(name, run_dir))
        time.sleep(0.01)
    # The processes of a script have the session of the script. torchrun gives its processes sessions of their own.
    os.killpg(process.pid, signal.SIGKILL)
    while pids := processes_with(str(run_dir)):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()  # a dead child stays in the list of processes until its parent asks for the outcome
        time.sleep(0.01)
    process.wait()


def saved_step(run_dir: Path) -> int:
    """Return the number of steps before the newest checkpoint of any example."""
    if (run_dir / "checkpoint.pt").exists():
        saved = torch.load(run_dir / "checkpoint.pt")
        return int(saved.get("mixer", saved.get("packed"))["step"])
    if (run_dir / "checkpoint.npz").exists():
        with np.load(run_dir / "checkpoint.npz") as saved:
            return int(json.loads(str(saved["mixer"]))["step"])
    if (run_dir / "checkpoint" / "newest").exists():
        return int((run_dir / "checkpoint" / "newest").read_text().removeprefix("step-"))
    if (run_dir / "checkpoints" / "last.ckpt").exists():
        return int(torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=False)["global_step"])
    complete = (run_dir / "checkpoints").glob("*/mixer.json")
    return max(int(path.parent.name.removeprefix("checkpoint-")) for path in complete)


def steps_of(log: Path) -> list[list[Any]]:
    """Return the samples of each step, of all ranks together, in an order of their own. A kill may have cut the last line of a rank."""
    ranks = [
        [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        for path in sorted(log.iterdir())
    ]
    return [sorted(sample for batch in batches for sample in batch) for batches in zip(*ranks, strict=False)]


def stream_of(script: Script, run_dir: Path, steps: int) -> list[list[Any]]:
    """Return the samples of each step in the stream that the ledger has decided: texts, or rows of token ids."""
    root, size = ledger_of(script.name, run_dir).root, script.step_samples
    recorded = open_recorded(root)
    if script.block_tokens is None:
        samples: list[Any] = [sample.text for sample in recorded.samples(range(steps * size))]
        if script.name in ("huggingface_trainer.py", "training_losses.py", "trl_sft.py"):
            example = runpy.run_path(str(REPOSITORY / "examples" / script.name), run_name="example")
            samples = [list(example["byte_tokenizer"]().encode(text)) for text in samples]
    else:
        # The packing `concat`: the texts of the draws one after the other, and the separator behind each text.
        tokenizer = TokenSet.open(run_dir / "tokens").tokenizer
        num_tokens, ids = steps * size * script.block_tokens, list[int]()
        for sample in recorded.samples(range(recorded.num_draws)):
            ids += [*tokenizer.encode(sample.text).ids, tokenizer.token_to_id("<|endoftext|>")]
        assert len(ids) >= num_tokens
        samples = [ids[first : first + script.block_tokens] for first in range(0, num_tokens, script.block_tokens)]
    return [sorted(samples[first : first + size]) for first in range(0, steps * size, size)]


def without_padding(steps: list[list[Any]]) -> list[list[Any]]:
    """Cut the zeros at the end of the rows of the trainers of Hugging Face, whose tokenizer has the id 0 for padding and end."""
    return [sorted(np.trim_zeros(row, "b") for row in step) for step in steps]


def check_samples(script: Script, run_dir: Path, steps: int, resumed_after: int) -> None:
    """Check that the steps of the run took exactly the samples of the stream."""
    expected = stream_of(script, run_dir, steps)
    if script.name in WITHOUT_PYTORCH:
        taken = np.frombuffer("".join(text for step in expected for text in step).encode(), np.uint8)
        with np.load(run_dir / "checkpoint.npz") as saved:
            assert (saved["counts"] == 1 + np.bincount(taken, minlength=256)).all()
        return
    # A trainer may take batches ahead of its steps. The checkpoint belongs to the batches up to its step.
    before, after = steps_of(run_dir.parent / "before"), steps_of(run_dir.parent / "after")
    assert len(before) >= resumed_after and len(after) >= steps - resumed_after
    taken_steps = [*before[:resumed_after], *after[: steps - resumed_after]]
    if script.block_tokens is None and not isinstance(expected[0][0], str):
        taken_steps = without_padding(taken_steps)
    for step, (samples, samples_of_draws) in enumerate(zip(taken_steps, expected, strict=True), start=1):
        assert samples == samples_of_draws, f"step {step}, and the run went on after step {resumed_after}"


def test_every_script_with_losses_is_killed() -> None:
    elsewhere = {
        *OWN_CORPUS,
        "stateful_dataloader.py",
    }  # test_examples.py kills the former, and the latter reports no losses
    assert {script.name for script in SCRIPTS} == {*EXAMPLES, *ELSEWHERE} - elsewhere
    assert {"ray_train.py"} == ON_RAY  # tests/cluster/test_ray_train.py kills workers and the driver


@pytest.mark.parametrize(
    "script", SCRIPTS, ids=lambda script: f"{script.name} {''.join(script.before) or 'alone'}".replace(" ", "-")
)
def test_a_killed_script_continues_on_another_number_of_processes(
    shards: ShardSet, tmp_path: Path, script: Script
) -> None:
    name, every = script.name, script.every
    if name == "trl_sft.py":
        pytest.importorskip(
            "trl", reason="TRL needs newer releases of its requirements than the lowest ones of skillshard"
        )
    assert script.before != script.after
    run_dir, environment = tmp_path / "run", environment_of(name)
    words = command_of(name, shards, run_dir, 100_000, script.before, log=tmp_path / "before")
    kill_after_a_checkpoint(words, environment, name, run_dir)
    resumed_after = saved_step(run_dir)
    steps = (len(observations(name, run_dir)) - script.begins) * every + 4 * every
    again = subprocess.run(
        command_of(name, shards, run_dir, steps, script.after, log=tmp_path / "after"),
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert verify_ledger(ledger_of(name, run_dir)) == []
    records = observations(name, run_dir)
    assert len(records) == script.begins + steps // every
    if script.block_tokens is None:
        first = 0 if script.begins else every
        draws = [step * script.step_samples for step in range(first, steps + 1, every)]
        assert [record.draw for record in records] == draws
    check_samples(script, run_dir, steps, resumed_after)
    assert all(set(record.losses) == set(shards.skills) for record in records)
    # The losses of every skill fall from the first report to the last report. The run has learned over the kill, and not begun again.
    assert all((records[-1].losses[skill] or 0.0) < (records[0].losses[skill] or 0.0) for skill in shards.skills)
    # The second command reports the steps after its checkpoint alone.
    assert 4 <= again.stdout.count("'add': ") < len(records)
    assert open_records(ledger_of(name, run_dir)).generation == 1 + script.looks
