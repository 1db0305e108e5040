"""Every example runs as its docstring says, and continues after the last checkpoint when the command is repeated."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.records import open_records
from skillshard.shards.read import ShardSet
from tests.conftest import REPOSITORY

ON_RAY = {"ray_train.py"}
"""Scripts that need a Ray. tests/cluster/test_ray_train.py runs the scripts."""
ELSEWHERE = {"torchtitan_loader.py"}
"""Scripts that need an environment of their own. tests/adapters/test_torchtitan.py runs the loader of the script."""
EXAMPLES = sorted({path.name for path in (REPOSITORY / "examples").glob("*.py")} - ON_RAY - ELSEWHERE)
WITHOUT_LOSSES = {"stateful_dataloader.py"}
WITHOUT_FIRST_LOSSES = {"get_batch.py", "training_losses.py"}
"""Scripts that report the losses of their batches, and measure nothing before the first step."""
OFTEN = {"get_batch.py", "huggingface_trainer.py", "packed_tokens.py", "trl_sft.py"}
"""Scripts that report every fifth step."""
OWN_CORPUS = {"image_captions.py": ("bar", "disc", "square"), "token_ids.py": ("ones", "threes", "twos")}
"""Scripts that make a corpus and shards in their directory, and take no shards, with their skills."""
STEP_DRAWS = 32
QUIET = {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
GOES_ON_AFTER_CTRL_C = [("ddp.py", 0), ("pytorch.py", 0)]
"""Commands that write a checkpoint whole or not at all, so that a test can stop and repeat the command at any moment."""


def commands(name: str) -> list[str]:
    """Return the commands in the docstring of an example."""
    docstring = (REPOSITORY / "examples" / name).read_text().split('"""')[1].replace("\n", " ")
    return re.findall(r"(?:python|torchrun) [^:;()]*?--steps 100", docstring)


def run(command: str, shards: ShardSet, run_dir: Path, steps: int) -> subprocess.CompletedProcess[str]:
    """Run a command of a docstring as a user types the command, with shards, directory and number of steps of the test."""
    words = words_of(command, shards, run_dir, steps)
    return subprocess.run(
        words, capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, **QUIET}, timeout=200
    )


def words_of(command: str, shards: ShardSet, run_dir: Path, steps: int) -> list[str]:
    """Return the words of a command for this interpreter, with shards, directory and number of steps of the test."""
    words = shlex.split(command)
    for option, value in (("--shards", str(shards.root)), ("--run-dir", str(run_dir)), ("--steps", str(steps))):
        if option in words or option != "--shards":
            words[words.index(option) + 1] = value
    words[:1] = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}[words[0]]
    return words


def test_every_example_is_known_and_its_commands_have_directories_of_their_own() -> None:
    assert EXAMPLES == [
        "ddp.py",
        "get_batch.py",
        "grain_loader.py",
        "huggingface_trainer.py",
        "image_captions.py",
        "lightning_trainer.py",
        "packed_tokens.py",
        "plain_numpy.py",
        "pytorch.py",
        "stateful_dataloader.py",
        "token_ids.py",
        "training_losses.py",
        "trl_sft.py",
        "webdataset_loader.py",
    ]
    all_commands = [command for name in EXAMPLES for command in commands(name)]
    assert len(all_commands) == len(EXAMPLES) + 3, all_commands  # three trainers also have a command with torchrun
    directories = [re.findall(r"--run-dir (\S+)", command)[0] for command in all_commands]
    assert len(set(directories)) == len(directories)


def check_run(ended: subprocess.CompletedProcess[str], name: str, run_dir: Path, steps: int) -> None:
    """Check the output and the records of a command that ran up to a step."""
    assert ended.returncode == 0, ended.stderr[-3000:]
    ledger = DirectoryLedger(run_dir)
    records = open_records(ledger)
    assert verify_ledger(ledger) == []
    if name in WITHOUT_LOSSES:
        assert records.observations.num() == 0
        return
    has_first = name not in WITHOUT_FIRST_LOSSES  # the losses before the first step
    assert records.observations.num() == has_first + steps // (5 if name in OFTEN else 10)
    assert re.search(r"\'?add\'?: ", ended.stdout), ended.stdout
    first = records.observations.get(0)
    assert first is not None and (first.draw == 0) == has_first
    if name == "training_losses.py":
        # A step has 8 samples, and a batch counts each of its samples.
        assert [record.draw for record in records.observations] == [80 * number for number in range(1, steps // 10 + 1)]


def check_resumed(run_dir: Path, *, num_generations: int = 1) -> None:
    """Check that a run was resumed once, and that no unfinished file is left."""
    assert open_records(DirectoryLedger(run_dir)).generation == num_generations
    assert not [*run_dir.glob("*.tmp"), *run_dir.glob("unfinished*")]


LONG = {
    (name, number) for name in ("trl_sft.py", "huggingface_trainer.py", "lightning_trainer.py") for number in (0, 1)
}
"""Commands that take half a minute or more. Tests in tests/adapters kill and resume these trainers with smaller models."""
UNINTERRUPTED = [
    pytest.param(name, number, marks=[pytest.mark.long] if (name, number) in LONG else [])
    for name in EXAMPLES
    for number, _ in enumerate(commands(name))
    if (name, number) not in GOES_ON_AFTER_CTRL_C and name not in OWN_CORPUS
]


@pytest.mark.parametrize(("name", "number"), UNINTERRUPTED)
def test_an_example_runs_as_its_docstring_says_and_goes_on(
    shards: ShardSet, tmp_path: Path, name: str, number: int
) -> None:
    if (name, number) == ("huggingface_trainer.py", 1) and int(version("transformers").partition(".")[0]) < 5:
        pytest.skip("transformers before version 5 loads no checkpoint of an optimizer in several processes on a CPU")
    if name == "trl_sft.py" and find_spec("trl") is None:
        pytest.skip("TRL needs newer releases of its requirements than the lowest ones of skillshard")
    for steps in (10, 20):
        check_run(run(commands(name)[number], shards, tmp_path / "run", steps), name, tmp_path / "run", steps)
    # TRL looks at the first row before the callback restarts the run. The look decides round 0, so the restart begins a generation too.
    check_resumed(tmp_path / "run", num_generations=2 if name == "trl_sft.py" else 1)
    if (name, number) == ("huggingface_trainer.py", 0):
        # After its last step, the Trainer itself would train a step beyond `max_steps`.
        again = run(commands(name)[number], shards, tmp_path / "run", 20)
        assert again.returncode == 0 and again.stdout == "", again
        numbers = {int(path.name.split("-")[1]) for path in (tmp_path / "run" / "checkpoints").iterdir()}
        assert max(numbers) == 20


@pytest.mark.long
@pytest.mark.parametrize("name", OWN_CORPUS)
def test_an_example_with_its_own_corpus_makes_the_corpus_and_goes_on_after_a_kill_with_other_workers(
    shards: ShardSet, tmp_path: Path, name: str
) -> None:
    run_dir = tmp_path / "run"
    (command,) = commands(name)
    first = run(command, shards, run_dir, 10)
    assert first.returncode == 0, first.stderr[-3000:]
    process = subprocess.Popen(
        words_of(command, shards, run_dir, 100_000),
        cwd=REPOSITORY,
        env={**os.environ, **QUIET},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert next(process.stdout).strip() == "goes on after step 10"
        assert next(process.stdout).startswith("20 ")
        process.kill()
    last = run(f"{command} --workers 4", shards, run_dir, 60)
    assert last.returncode == 0, last.stderr[-3000:]
    assert last.stdout.startswith("goes on after step ") and last.stdout.splitlines()[-1].startswith("60 ")
    ledger = DirectoryLedger(run_dir / "ledger")
    assert verify_ledger(ledger) == []
    records = open_records(ledger)
    # Every skill begins at the loss of a guess, and learns.
    before, after = records.observations.get(0), records.observations.get(records.observations.num() - 1)
    assert before is not None and after is not None
    assert name == "token_ids.py" or after.draw == 60 * STEP_DRAWS  # a block of tokens has no fixed number of draws
    assert all(after.losses[skill] < before.losses[skill] for skill in OWN_CORPUS[name])


@pytest.mark.parametrize("name", ["pytorch.py", "plain_numpy.py"])
def test_an_example_that_died_before_its_first_checkpoint_begins_again(
    shards: ShardSet, tmp_path: Path, name: str
) -> None:
    script = str(REPOSITORY / "examples" / name)
    arguments = ["--shards", str(shards.root), "--run-dir", str(tmp_path / "run"), "--steps", "100000"]
    process = subprocess.Popen(
        [sys.executable, script, *arguments], env={**os.environ, **QUIET}, stdout=subprocess.PIPE
    )
    # The losses before the first step.
    assert process.stdout is not None and process.stdout.readline().startswith(b"0 ")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for checkpoint in (tmp_path / "run").glob("checkpoint.*"):
        checkpoint.unlink()
    time.sleep(0.1)
    ended = run(commands(name)[0], shards, tmp_path / "run", 10)
    assert ended.returncode == 0, ended.stderr[-3000:]
    records = open_records(DirectoryLedger(tmp_path / "run"))
    assert records.generation == 1 and records.observations.num() == 2


def test_no_process_ends_right_behind_a_barrier() -> None:
    """A thread of Gloo frees the last barrier with the lock of Python. At the end of Python, this aborts the process (docs/LOG.md)."""
    pages = [REPOSITORY / "docs" / "three-days.md", *(REPOSITORY / "examples").glob("*.py")]
    groups = [page for page in pages if "destroy_process_group()" in page.read_text()]
    assert len(groups) >= 5
    wrong = [page.name for page in groups if re.search(r"barrier\(\)\s+\S*destroy_process_group", page.read_text())]
    assert not wrong, wrong


def test_the_option_may_be_called_run_where_torchrun_does_not_take_it(shards: ShardSet, tmp_path: Path) -> None:
    command = commands("ddp.py")[0].replace("--nproc-per-node 2", "--nproc-per-node 1")
    words = command.replace(" examples/ddp.py", " -- examples/ddp.py").replace("--run-dir", "--run").split()
    words[words.index("--shards") + 1], words[words.index("--run") + 1] = str(shards.root), str(tmp_path / "run")
    words[words.index("--steps") + 1] = "0"
    words[:1] = [sys.executable, "-m", "torch.distributed.run"]
    ended = subprocess.run(
        words, capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, **QUIET}, timeout=200
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.startswith("0 {")


def test_the_plain_loop_writes_its_metrics_for_tensorboard_over_the_draws(shards: ShardSet, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (10, 20):
        command = f"{commands('pytorch.py')[0]} --log-dir {tmp_path / 'logs'}"
        check_run(run(command, shards, tmp_path / "run", steps), "pytorch.py", tmp_path / "run", steps)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    mixer_names = {
        f"skillshard/{kind}/{skill}" for kind in ("weight", "share", "epochs", "loss") for skill in shards.skills
    }
    assert mixer_names <= set(events.Tags()["scalars"])
    (skill, *_) = shards.skills
    assert [event.step for event in events.Scalars(f"skillshard/loss/{skill}")] == [0, 320, 640]
    losses = open_records(DirectoryLedger(tmp_path / "run")).observations
    recorded = [record.losses[skill] for record in losses]
    assert [event.value for event in events.Scalars(f"skillshard/loss/{skill}")] == pytest.approx(recorded)


DOES_NOT_DIVIDE = "32 samples a step do not divide over 3 processes."


def test_a_number_of_processes_that_does_not_divide_the_batch_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    command = commands("ddp.py")[0].replace("--nproc-per-node 2", "--nproc-per-node 3")
    ended = run(command, shards, tmp_path / "run", 10)
    assert ended.returncode != 0
    assert DOES_NOT_DIVIDE in ended.stderr


def test_lightnings_example_refuses_such_a_number_before_it_meets_the_other_processes(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single process with the variables that torchrun gives to a process of three."""
    for variable, value in (("WORLD_SIZE", "3"), ("RANK", "1"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "3")):
        monkeypatch.setenv(variable, value)
    ended = run(commands("lightning_trainer.py")[0], shards, tmp_path / "run", 10)
    assert ended.returncode != 0
    assert DOES_NOT_DIVIDE in ended.stderr


def processes_with(text: str) -> list[int]:
    """Return the ids of running processes whose command line holds a text."""
    ids = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if text in place.joinpath("cmdline").read_bytes().decode(errors="replace"):
                ids.append(int(place.name))
    return ids


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param("ddp.py", 0, marks=pytest.mark.long),
        ("pytorch.py", 0),
        pytest.param("huggingface_trainer.py", 1, marks=pytest.mark.long),
        pytest.param("lightning_trainer.py", 1, marks=pytest.mark.long),
    ],
)
def test_ctrl_c_leaves_no_process_of_an_example_and_the_same_command_goes_on(
    shards: ShardSet, tmp_path: Path, name: str, number: int
) -> None:
    run_dir = tmp_path / "run"
    words = words_of(commands(name)[number], shards, run_dir, 100_000)
    process = subprocess.Popen(
        words,
        cwd=REPOSITORY,
        env={**os.environ, **QUIET},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores the signal
    )
    end = time.monotonic() + 150
    while not [*run_dir.glob("checkpoint.pt"), *run_dir.glob("checkpoints/*")]:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends Ctrl-C to every process of the job
    assert process.wait(timeout=90) != 0
    while processes_with(str(run_dir)):
        assert time.monotonic() < end + 90, processes_with(str(run_dir))
        time.sleep(0.2)
    if (name, number) not in GOES_ON_AFTER_CTRL_C:
        return
    observations = open_records(DirectoryLedger(run_dir)).observations
    newest = observations.get(observations.num() - 1)
    assert newest is not None
    steps = newest.draw // STEP_DRAWS + 20  # beyond the checkpoint, and a multiple of 10
    steps -= steps % 10
    check_run(run(commands(name)[number], shards, run_dir, steps), name, run_dir, steps)
    check_resumed(run_dir)
