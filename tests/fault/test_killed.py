"""Jobs that are killed, repeated, run twice at once, or run out of disk give the bytes of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skillshard import execution
from skillshard.errors import ExecutionError
from skillshard.execution import MAX_TRIES, Backend, Task, keyed, run
from tests.commands import finish, marked, start, works
from tests.conftest import REPOSITORY, lines, samples, tree
from tests.tokenizers_trained import byte_tokenizer, save

Command = tuple[object, ...]
HELD = Path(__file__).parent / "held"


def tag(base: Path, out: Path, workers: int = 1) -> Command:
    options = ("--partition-size", "4kB", "--on-bad-sample", "set-aside", "--max-set-aside", "1", "--workers", workers)
    return ("tag", "metadata", base / "corpus", "--out", out, "--field", "skill", *options)


def shard(base: Path, out: Path, workers: int = 1) -> Command:
    options = ("--shard-size", "60kB", "--holdout", 0.1, "--workers", workers)
    return ("shard", base / "corpus", "--tags", base / "tags", "--out", out, *options)


def shard_drop(base: Path, out: Path, workers: int = 1) -> Command:
    return (*shard(base, out, workers), "--copies", "drop")


def tokens(base: Path, out: Path, workers: int = 1) -> Command:
    return ("tokens", base / "shards", "--tokenizer", base / "tokenizer.json", "--out", out, "--workers", workers)


def tokens_from_ids(base: Path, out: Path, workers: int = 1) -> Command:
    return ("tokens", base / "ids-shards", "--from-ids", "--out", out, "--workers", workers)


COMMANDS = {"tag": tag, "shard": shard, "shard-drop": shard_drop, "tokens": tokens, "tokens-from-ids": tokens_from_ids}
pytestmark = pytest.mark.long
MANIFESTS = {
    "tag": "tags.json",
    "shard": "manifest.json",
    "shard-drop": "manifest.json",
    "tokens": "tokens.json",
    "tokens-from-ids": "tokens.json",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a corpus in about 90 partitions with ids and texts that repeat in other partitions, and its artefacts.

    The artefacts are the tags, the shards with and without copies, and the tokens. The samples are tokenized already in a second corpus,
    with labels, and the shards and tokens of its ids are artefacts too.
    """
    folder = tmp_path_factory.mktemp("base")
    (folder / "corpus").mkdir()
    records = samples(add=1500, carry=900, negate=300)
    for part in range(4):
        repeated = [{**record, "text": "again"} for record in records[(part + 1) % 4 : 400 : 4]][:20]
        copies = [
            {**record, "id": f"copy-{record['id']}", "text": record["text"].upper()}
            for record in records[(part + 2) % 4 : 600 : 8]
        ]
        (folder / "corpus" / f"{part}.jsonl").write_bytes(lines([*records[part::4], *repeated, *copies]) + b"{\n")
    works(*tag(folder, folder / "tags"))
    works(*shard(folder, folder / "shards"))
    works(*shard_drop(folder, folder / "shards-drop"))
    save(byte_tokenizer(record["text"] for record in records), folder / "tokenizer.json")
    works(*tokens(folder, folder / "tokens"))
    (folder / "ids").mkdir()
    for part in range(4):
        (folder / "ids" / f"{part}.jsonl").write_bytes(lines([tokenized(record) for record in records[part::4]]))
    of_ids = ("--token-ids", "input_ids", "--token-labels", "labels", "--vocab-size", 256, "--partition-size", "8kB")
    works("tag", "metadata", folder / "ids", "--field", "skill", *of_ids, "--out", folder / "ids-tags")
    sizes = ("--shard-size", "60kB", "--holdout", 0.1)
    works("shard", folder / "ids", "--tags", folder / "ids-tags", *sizes, "--out", folder / "ids-shards")
    works(*tokens_from_ids(folder, folder / "tokens-from-ids"))
    return folder


def tokenized(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the bytes of its text as token ids, of which all but the first three are learned."""
    ids = list(record["text"].encode())
    labels = [*[-100] * min(3, len(ids) - 1), *ids[min(3, len(ids) - 1) :]]
    return {"id": record["id"], "skill": record["meta"]["skill"], "input_ids": ids, "labels": labels}


def expected(base: Path, verb: str) -> dict[str, bytes]:
    return tree(base / {"tag": "tags", "shard": "shards", "shard-drop": "shards-drop"}.get(verb, verb))


def num_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def wait_until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s"
        time.sleep(0.002)


def start_held(*command: object, folder: Path, num: int, marker: str) -> "subprocess.Popen[str]":
    """Start a command that is held when a directory has a number of files. tests/fault/held/sitecustomize.py holds the processes."""
    changes = {"SKILLSHARD_TEST_HELD": f"{folder}:{num}", "PYTHONPATH": f"{HELD}{os.pathsep}{REPOSITORY}"}
    return start(*command, marker=marker, env_changes=changes)


def kill_and_see_all_end(process: "subprocess.Popen[str]", marker: str) -> None:
    process.kill()
    process.communicate()
    wait_until(lambda: not marked(marker))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_killed_at_many_points_and_run_again_it_completes_with_the_same_bytes(
    verb: str, workers: int, base: Path, tmp_path: Path
) -> None:
    command, out = COMMANDS[verb](base, tmp_path / "out", workers), tmp_path / "out"
    for number, more in enumerate((1, 3, 40, 97)):
        marker, before = f"{tmp_path}-{number}", num_files(out)
        process = start_held(*command, folder=out, num=before + more, marker=marker)
        wait_until(
            lambda before=before, more=more, process=process: (
                num_files(out) >= before + more or process.poll() is not None
            )
        )
        kill_and_see_all_end(process, marker)
    assert not (out / MANIFESTS[verb]).exists(), "killed too late to show anything"
    assert finish(start(*command)).code == 0
    assert tree(out) == expected(base, verb)
    works("verify", out)


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_killed_at_random_moments_and_run_again_it_completes_with_the_same_bytes(
    verb: str, base: Path, tmp_path: Path
) -> None:
    command, out, chance = COMMANDS[verb](base, tmp_path / "out", 2), tmp_path / "out", random.Random(7)
    for number in range(4):
        process = start(*command, marker=f"{tmp_path}-{number}")
        wait_until(lambda process=process: out.exists() or process.poll() is not None)
        time.sleep(chance.random() * 1.5)
        kill_and_see_all_end(process, f"{tmp_path}-{number}")
    works(*command)
    assert tree(out) == expected(base, verb)


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_a_kill_between_the_manifest_and_the_cleaning_is_mended_by_the_next_run(
    verb: str, base: Path, tmp_path: Path
) -> None:
    command, out = COMMANDS[verb](base, tmp_path / "out"), tmp_path / "out"
    works(*command)
    (out / ".work" / "records").mkdir(parents=True)
    (out / ".work" / "job.json").write_text("{}")
    (out / ".tags.json.1-00000000.part").write_text("half")
    works(*command)
    assert tree(out) == expected(base, verb)


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_run_several_times_at_once_all_succeed_with_the_same_bytes(verb: str, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    processes = []
    for number, delay_s in enumerate((0.0, 0.0, 0.15, 0.3)):
        time.sleep(delay_s)
        processes.append(start(*COMMANDS[verb](base, out, 1 + number % 2), marker=str(tmp_path)))
    outcomes = [finish(process) for process in processes]
    assert [outcome.code for outcome in outcomes] == [0] * 4, outcomes
    assert tree(out) == expected(base, verb)
    assert not marked(str(tmp_path))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_a_full_disk_ends_in_one_sentence_and_the_next_run_completes(
    verb: str, workers: int, base: Path, tmp_path: Path
) -> None:
    """A file cannot grow over a limit: the system call fails as on a full disk."""
    command, out = COMMANDS[verb](base, tmp_path / "out", workers), tmp_path / "out"
    limited = (
        "import resource, sys; from skillshard.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500)); main(sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", limited, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and ended.stderr.splitlines()[-1] == errors[0]
    assert "File too large" in errors[0] and "mend the cause and run the same command again" in errors[0]
    # Outside of .work stand whole files alone, of tasks whose files are below the limit, and no manifest.
    left = {name: content for name, content in tree(out).items() if not name.startswith(".work/")}
    assert left.items() <= expected(base, verb).items() and MANIFESTS[verb] not in left
    assert not [name for name in tree(out) if name.endswith(".part")]
    works(*command)
    assert tree(out) == expected(base, verb)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_a_worker_that_is_killed_is_replaced(verb: str, base: Path, tmp_path: Path) -> None:
    out, marker = tmp_path / "out", str(tmp_path)
    process = start_held(*COMMANDS[verb](base, out, 2), folder=out, num=5, marker=marker)
    wait_until(lambda: num_files(out) > 4 or process.poll() is not None)
    workers = [pid for pid in marked(marker) if pid != process.pid and parent_of(pid) != process.pid]
    assert process.poll() is None and workers, "nothing left to kill"
    os.kill(workers[0], signal.SIGKILL)
    Path(f"{out}.goes-on").touch()
    outcome = finish(process)
    assert outcome.code == 0, outcome
    assert tree(out) == expected(base, verb)
    assert not marked(marker)


# ----------------------------------------------------------------------------------------------- the seam by itself

SQUARE = '''
import os, signal
from pathlib import Path

def square(number, folder, deaths):
    """Die `deaths` times, then work."""
    tries = Path(folder) / str(number)
    with tries.open("a") as file:
        file.write(".")
    if len(tries.read_text()) <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"square": number * number}
'''
"""A module of a function that workers import."""
FAIL = """
def fail(number, folder, deaths):
    with (Path(folder) / str(number)).open("a") as file:
        file.write(".")
    raise OSError(5, "Input/output error")
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a module of functions that the workers can import."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "work_that_dies.py").write_text(SQUARE + FAIL)
    (tmp_path / "tries").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")
    sys.modules.pop("work_that_dies", None)
    return tmp_path


def tries_of(work: Path) -> dict[str, int]:
    return {path.name: len(path.read_text()) for path in (work / "tries").iterdir()}


def test_a_task_whose_worker_dies_is_tried_again(work: Path) -> None:
    import work_that_dies  # type: ignore[import-not-found]

    tasks = keyed(
        {"number": number, "folder": str(work / "tries"), "deaths": 2 * (number == 3)} for number in range(12)
    )
    results = run(work_that_dies.square, tasks, backend=Backend(workers=2), records=str(work / "records"))
    assert [record["square"] for record in results] == [number * number for number in range(12)]
    assert tries_of(work)["3"] == 3


def test_a_node_without_the_package_is_one_sentence_without_a_traceback() -> None:
    """The text is the text of Ray for an actor whose class the node could not import."""
    error = RuntimeError(
        "The actor with name _Keeper failed to import on the worker. This may be because needed library dependencies are not installed in "
        "the worker environment:\n\nTraceback (most recent call last):\n  File \"x.py\", line 1\nModuleNotFoundError: No module named 'skillshard'\n"
    )
    tries, task = execution._Tries("tag"), Task("000001", {}, "b.jsonl")
    for _ in range(MAX_TRIES - 1):
        tries.count(task, error, is_lost=False)
    with pytest.raises(ExecutionError, match=r"task 000001 \(b.jsonl\) of the stage tag failed 3 times") as caught:
        tries.count(task, error, is_lost=False)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)
    assert "No module named 'skillshard'); install skillshard with the same extras on every node" in str(caught.value)


def test_deaths_of_many_tasks_are_not_added_up(work: Path) -> None:
    import work_that_dies

    tasks = keyed({"number": number, "folder": str(work / "tries"), "deaths": number % 2} for number in range(10))
    results = run(work_that_dies.square, tasks, backend=Backend(workers=2), records=str(work / "records"))
    assert [record["square"] for record in results] == [number * number for number in range(10)]


def test_a_task_that_kills_every_worker_stops_the_job_with_its_name_and_what_is_done_is_kept(work: Path) -> None:
    import work_that_dies

    tasks = keyed(
        {"number": number, "folder": str(work / "tries"), "deaths": 99 * (number == 5)} for number in range(9)
    )
    with pytest.raises(
        ExecutionError,
        match=f"task 000005 of the stage records failed {MAX_TRIES} times.*killed, or out of memory.*run the same command again",
    ):
        run(work_that_dies.square, tasks, backend=Backend(workers=2), records=str(work / "records"))
    assert {f"00000{number}.json" for number in range(5)} <= {path.name for path in (work / "records").iterdir()}
    assert tries_of(work)["5"] == MAX_TRIES


def test_an_error_of_the_system_is_tried_again_and_then_named(work: Path) -> None:
    import work_that_dies

    tasks = keyed({"number": number, "folder": str(work / "tries"), "deaths": 0} for number in range(2))
    with pytest.raises(
        ExecutionError, match=r"task 00000[01] of the stage records failed 3 times.*\[Errno 5\] Input/output error"
    ):
        run(work_that_dies.fail, tasks, backend=Backend(workers=2), records=str(work / "records"))
