"""Ray gives the bytes of the local pool and the same sentences, and leaves no process behind."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from skillshard.errors import ExecutionError
from skillshard.execution import MAX_TRIES, Backend, keyed, run
from skillshard.shards.read import ShardSet
from tests.commands import Outcome, fails, finish, marked, skillshard, start, works
from tests.conftest import REPOSITORY, lines, samples, tree
from tests.fault.test_killed import SQUARE, wait_until
from tests.ray_cluster import HUNG_S, end_all, free_ports
from tests.tokenizers_trained import byte_tokenizer, save
from tests.topics import minilm, topic_corpus

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.xdist_group("ray")]
MARKER = f"ray-{os.getpid()}"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a corpus in about 20 partitions, with ids that repeat and broken lines."""
    folder = tmp_path_factory.mktemp("ray-corpus") / "corpus"
    folder.mkdir()
    records = samples(add=400, carry=200, negate=40)
    for part in range(3):
        (folder / f"{part}.jsonl").write_bytes(
            lines([*records[part::3], {**records[part - 1], "text": "again"}]) + b"{\n"
        )
    save(byte_tokenizer(record["text"] for record in records), folder.parent / "tokenizer.json")
    return folder


def commands(corpus: Path, out: Path, *options: object) -> list[tuple[object, ...]]:
    cut = ("--partition-size", "3kB", "--on-bad-sample", "set-aside", "--max-set-aside", "1")
    return [
        ("tag", "metadata", corpus, "--field", "skill", "--out", out / "T", *cut, *options),
        ("shard", corpus, "--tags", out / "T", "--out", out / "S", "--shard-size", "30kB", "--holdout", 0.1, *options),
        ("tokens", out / "S", "--tokenizer", corpus.parent / "tokenizer.json", "--out", out / "C", *options),
    ]


@pytest.fixture(scope="session")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the tree that a single process without a pool makes."""
    out = tmp_path_factory.mktemp("inline")
    for command in commands(corpus, out, "--workers", 1):
        works(*command)
    assert len([name for name in tree(out) if name.startswith("T/parts")]) > 10
    return tree(out)


def test_the_local_pool_gives_the_bytes_of_one_process(
    corpus: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for workers in (2, 3):
        for command in commands(corpus, tmp_path / str(workers), "--workers", workers):
            works(*command)
        assert tree(tmp_path / str(workers)) == expected


def test_ray_gives_the_bytes_of_one_process(
    cluster: tuple[str, str], corpus: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for command in commands(corpus, tmp_path, "--ray-address", cluster[0]):
        outcome = finish(start(*command))
        assert outcome.code == 0, outcome
    assert tree(tmp_path) == expected
    assert "T/.work/job.json" not in tree(tmp_path)


def test_actors_that_keep_an_encoder_give_the_bytes_of_one_process(cluster: tuple[str, str], tmp_path: Path) -> None:
    topic_corpus(tmp_path / "corpus", 120)
    command = ("tag", "embedding", tmp_path / "corpus", "--skills", 4, "--partition-size", "9kB")
    works(*command, "--out", tmp_path / "here", "--workers", 1)
    outcome = finish(start(*command, "--out", tmp_path / "ray", "--ray-address", cluster[0]))
    assert outcome.code == 0, outcome
    assert tree(tmp_path / "ray") == tree(tmp_path / "here")


@pytest.mark.parametrize("command", ["embedding", "loss", "graph", "compare"])
def test_a_gpu_that_the_cluster_does_not_have_is_one_sentence(
    command: str, cluster: tuple[str, str], tmp_path: Path
) -> None:
    topic_corpus(tmp_path / "corpus", 20)
    if command in ("graph", "compare"):
        works("tag", "metadata", tmp_path / "corpus", "--field", "meta.topic", "--out", tmp_path / "T")
        works("shard", tmp_path / "corpus", "--tags", tmp_path / "T", "--holdout", 0.2, "--out", tmp_path / "S")
        words = (
            ("graph", "learn", tmp_path / "S", "--method", "linear")
            if command == "graph"
            else ("compare", tmp_path / "S", "--policy", "stratified", "--policy", "proportional")
        )
        command_line: tuple[object, ...] = (*words, "--steps", 2)
    else:
        encoder = ("--encoder", minilm()) if command == "embedding" else ()
        command_line = ("tag", command, tmp_path / "corpus", *encoder, "--skills", 2)
    options = ("--device", "cuda", "--ray-address", cluster[0], "--out", tmp_path / "E.json")
    outcome = finish(start(*command_line, *options))
    assert outcome.code == 1
    assert outcome.sentence.startswith("a GPU was asked for, and the Ray cluster has 0. Give --device cpu")


def test_an_error_in_a_task_is_the_same_sentence_on_ray_and_here(cluster: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for name in "abcdef":
        (tmp_path / "corpus" / f"{name}.jsonl").write_bytes(lines(samples(add=3)) + b"{\n")
    command = ("tag", "metadata", tmp_path / "corpus", "--field", "skill")
    local = fails(*command, "--out", tmp_path / "T1", "--workers", 1)
    pool = fails(*command, "--out", tmp_path / "T2", "--workers", 2)
    ray = finish(start(*command, "--out", tmp_path / "T3", "--ray-address", cluster[0]))
    assert ray.code == 1 and local == pool == ray.sentence
    assert local.startswith("a.jsonl line 4: not valid JSON")


DRIVER = """
import sys
import ray
import work_on_ray
from skillshard.errors import SkillshardError
from skillshard.execution import Backend, keyed, run

ray.cloudpickle.register_pickle_by_value(work_on_ray)
address, folder, deaths = sys.argv[1:]
tasks = keyed({"number": number, "folder": f"{folder}/tries", "deaths": int(deaths) * (number == 3)} for number in range(6))
try:
    records = run(work_on_ray.square, tasks, backend=Backend(ray_address=address), records=f"{folder}/records")
    print([record["square"] for record in records])
except SkillshardError as error:
    sys.exit(f"error: {error}")
"""


def drive(address: str, folder: Path, deaths: int) -> Outcome:
    (folder / "tries").mkdir()
    (folder / "work_on_ray.py").write_text(SQUARE)
    (folder / "driver.py").write_text(DRIVER)
    ended = subprocess.run(
        [sys.executable, folder / "driver.py", address, folder, str(deaths)],
        capture_output=True,
        text=True,
        timeout=HUNG_S,
        check=False,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def test_a_task_whose_ray_worker_is_killed_is_tried_again(cluster: tuple[str, str], tmp_path: Path) -> None:
    outcome = drive(cluster[0], tmp_path, deaths=1)
    assert outcome.code == 0 and outcome.out.splitlines()[-1] == "[0, 1, 4, 9, 16, 25]", outcome
    assert len((tmp_path / "tries" / "3").read_text()) == 2


def test_a_task_that_kills_every_ray_worker_stops_the_job_with_a_sentence(
    cluster: tuple[str, str], tmp_path: Path
) -> None:
    outcome = drive(cluster[0], tmp_path, deaths=99)
    assert outcome.code == 1
    assert (
        f"task 000003 of the stage records failed {MAX_TRIES} times" in outcome.sentence
        and "its Ray worker died" in outcome.sentence
    )
    assert len((tmp_path / "tries" / "3").read_text()) == MAX_TRIES


FAILS = """
import os
import sys
import time
import ray
from skillshard.errors import SkillshardError
from skillshard.execution import Backend, keyed, run

address, folder, owner = sys.argv[1:]


def work(number):
    if number:
        with open(f"{folder}/pid", "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)
    while not os.path.exists(f"{folder}/pid") or not open(f"{folder}/pid").read():
        time.sleep(0.05)
    raise SkillshardError("the first task fails")


def cancel(*arguments, **options):
    sys.exit("an answer that arrives now makes Ray abort the process")


if owner == "caller":
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
else:
    ray.cancel = cancel
try:
    run(work, keyed({"number": number} for number in range(2)), backend=Backend(ray_address=address), records=f"{folder}/records")
except SkillshardError as error:
    pid = open(f"{folder}/pid").read()
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    sys.exit(f"error: {error}, {ray.is_initialized()}, {os.path.exists(f'/proc/{pid}')}")
"""


@pytest.mark.parametrize("owner", ["caller", "command"])
def test_a_failure_ends_the_running_tasks_and_no_connection_of_the_caller(
    owner: str, cluster: tuple[str, str], tmp_path: Path
) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(FAILS)
    words = [sys.executable, driver, cluster[0], tmp_path, owner]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=HUNG_S, check=False)
    outcome = Outcome(ended.returncode, ended.stdout, ended.stderr)
    assert outcome.sentence == f"the first task fails, {owner == 'caller'}, False", outcome


# ----------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_a_cluster_that_is_not_there_is_one_sentence(form: str, tmp_path: Path) -> None:
    address = form.format(*free_ports(1))
    with pytest.raises(ExecutionError) as caught:
        run(len, keyed([{"obj": ()}]), backend=Backend(ray_address=address), records=str(tmp_path))  # type: ignore[arg-type]
    assert f"no Ray cluster at `ray_address={address!r}`: " in str(caught.value)
    assert "ray start --head" in str(caught.value) and "`ray_address='local'`" in str(caught.value)


def test_a_port_that_is_not_rays_and_no_address_at_all_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(samples(add=3)))
    listener = socket.create_server(("127.0.0.1", 0))  # the port takes connections and never answers
    with listener:
        for address in ("not an address", f"127.0.0.1:{listener.getsockname()[1]}"):
            command = ("tag", "metadata", tmp_path / "a.jsonl", "--field", "skill", "--out", tmp_path / "T")
            outcome = finish(start(*command, "--ray-address", address), HUNG_S)
            assert outcome.code == 1, outcome
            assert re.search(f"no Ray cluster at --ray-address '?{re.escape(address)}'?: ", outcome.sentence), outcome


def test_a_ray_started_for_one_job_gives_the_same_bytes_and_leaves_nothing(
    corpus: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    marker = f"{MARKER}-local"
    for command in commands(corpus, tmp_path / "out", "--ray-address", "local", "--workers", 2):
        outcome = finish(start(*command, marker=marker))
        assert outcome.code == 0, outcome
    assert tree(tmp_path / "out") == expected
    assert not (tmp_path / "home" / ".ray").exists(), "a token there would change the user's next cluster"
    try:
        wait_until(lambda: not marked(marker), timeout_s=200)
    finally:
        end_all(marker)


# ---------------------------------------------------------------------------------------------------------------- jobs


def job(verb: str, *arguments: object) -> Outcome:
    command = [sys.executable, REPOSITORY / "jobs" / f"{verb}.py", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=HUNG_S, check=False)
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def test_jobs_submitted_to_ray_give_the_same_bytes(
    cluster: tuple[str, str], corpus: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for verb, *arguments in commands(corpus, tmp_path):
        submit = [
            Path(sys.executable).with_name("ray"),
            "job",
            "submit",
            "--address",
            cluster[1],
            "--working-dir",
            "jobs",
        ]
        submitted = subprocess.run(
            [*submit, "--", sys.executable, f"{verb}.py", *map(str, arguments)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=HUNG_S,
            check=False,
        )
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert tree(tmp_path) == expected


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("tag", ("metadata", "corpus", "--out", "/out", "--field", "skill")),
        ("tag", ("metadata", "/corpus", "--out", "out", "--field", "skill")),
        ("shard", ("/corpus", "--tags", "./tags", "--out", "/out")),
        ("graph", ("learn", "shards", "--steps", "4", "--out", "/out.json")),
        ("graph", ("learn", "/shards", "--steps", "4", "--out", "/out.json", "--eval", "exam")),
        ("graph", ("learn", "/shards", "--steps", "4", "--out", "/out.json", "--proxy", "models/gpt2")),
        ("compare", ("/shards", "--policy", "stratified", "--policy", "proportional", "--steps", "4", "--out", "out")),
        ("compare", ("runs/1", "runs/2", "--baseline", "stratified")),
        ("tag", ("reuse", "/corpus", "--clusters", "model", "--out", "/out")),
        ("regroup", ("/tags", "--map", "map.json", "--out", "/out")),
    ],
)
def test_a_job_refuses_a_relative_path(verb: str, arguments: tuple[str, ...]) -> None:
    outcome = job(verb, *arguments)
    assert outcome.code == 2
    assert "is a relative path" in outcome.sentence and "Give absolute paths that every node sees" in outcome.sentence


def test_a_graph_learned_by_a_job_on_ray_has_the_same_bytes(
    cluster: tuple[str, str], shards: ShardSet, tmp_path: Path
) -> None:
    options = (shards.root, "--method", "linear", "--steps", 4, "--warmup", 2, "--batch-size", 4, "--window", 16)
    options += ("--eval-samples", 4, "--device", "cpu")
    local = skillshard("graph", "learn", *options, "--workers", 1, "--out", tmp_path / "here.json")
    on_ray = job("graph", "learn", *options, "--ray-address", cluster[0], "--out", tmp_path / "there.json")
    assert (local.code, on_ray.code) == (0, 0), local.err + on_ray.err
    assert (tmp_path / "there.json").read_bytes() == (tmp_path / "here.json").read_bytes()
    assert tree(tmp_path / "there.runs") == tree(tmp_path / "here.runs")


def test_a_comparison_by_a_job_on_ray_has_the_same_bytes(
    cluster: tuple[str, str], shards: ShardSet, tmp_path: Path
) -> None:
    options = (shards.root, "--policy", "stratified", "--policy", "loss_order:eta=0.5", "--seeds", 2, "--steps", 4)
    options += ("--batch-size", 4, "--window", 16, "--eval-samples", 4, "--device", "cpu")
    local = skillshard("compare", *options, "--workers", 1, "--out", tmp_path / "here")
    on_ray = job("compare", *options, "--ray-address", cluster[0], "--out", tmp_path / "there")
    assert (local.code, on_ray.code) == (0, 0), local.err + on_ray.err
    assert "loss_order:eta=0.5 against stratified: worth it: " in local.out
    assert local.out == on_ray.out.replace("/there/", "/here/")
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_a_job_has_the_exit_codes_of_the_command_line(cluster: tuple[str, str], tmp_path: Path) -> None:
    assert job("tag", "metadata", "/corpus", "--out", tmp_path / "T").code == 2  # the option --field is missing
    assert "--field" in job("tag", "metadata", "/corpus", "--out", tmp_path / "T").err
    missing = job(
        "tag", "metadata", tmp_path / "nowhere", "--out", tmp_path / "T", "--field", "x", "--ray-address", cluster[0]
    )
    assert missing.code == 1 and "no such file or directory" in missing.sentence
