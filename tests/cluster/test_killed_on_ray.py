"""Workers, nodes and drivers are killed while commands run on two nodes. The bytes are those of an undisturbed local run.

Each test kills a worker, a whole node and the driver, in a seeded order: 20 kills over the tests of this file.
"""

import itertools
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.commands import finish, start, works
from tests.conftest import REPOSITORY, lines, samples, tree
from tests.fault.test_killed import num_files, wait_until
from tests.ray_cluster import HUNG_S, Node, kill_all
from tests.tokenizers_trained import byte_tokenizer, save
from tests.topics import topic_corpus

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(900), pytest.mark.xdist_group("ray")]
NUMBERS = itertools.count()


class TwoNodes:
    """The head of the session, and a second node that a test may lose."""

    def __init__(self, head: Node, address: str, folder: Path) -> None:
        self.head, self.address, self._folder = head, address, folder
        self.join()

    def join(self) -> None:
        """Start the second node, without waiting for the node."""
        marker = self.head.marker.replace("head", f"node-{next(NUMBERS)}")
        self.second = Node(marker, self._folder, "--address", self.address)


@pytest.fixture(scope="module")
def nodes(head: tuple[Node, int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    two = TwoNodes(head[0], f"127.0.0.1:{head[1]}", tmp_path_factory.mktemp("nodes"))
    yield two
    two.second.end()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the inputs of all commands."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "corpus").mkdir()
    records = samples(add=300, carry=200, negate=40)
    for number in range(3):
        copies = [{**record, "id": f"copy-{record['id']}"} for record in records[number:90:7]]
        (folder / "corpus" / f"{number}.jsonl").write_bytes(lines([*records[number::3], *copies]))
    save(byte_tokenizer(record["text"] for record in records), folder / "tokenizer.json")
    topic_corpus(folder / "topics", 150)
    return folder


def expected(base: Path, verb: str) -> Path:
    """Return the output of a command by one process of this machine, made at the first call."""
    folder = base / "expected" / verb
    if not folder.exists():
        for needed in NEEDS[verb]:
            expected(base, needed)
        works(*COMMANDS[verb](base, folder), "--workers", 1)
    return folder


def tag(base: Path, out: Path) -> tuple[object, ...]:
    return ("tag", "metadata", base / "corpus", "--field", "skill", "--partition-size", "3kB", "--out", out / "T")


def shard(base: Path, out: Path) -> tuple[object, ...]:
    tags = base / "expected" / "tag" / "T"
    return ("shard", base / "corpus", "--tags", tags, "--shard-size", "30kB", "--holdout", 0.1, "--out", out / "S")


def tokens(base: Path, out: Path) -> tuple[object, ...]:
    shards = base / "expected" / "shard" / "S"
    return ("tokens", shards, "--tokenizer", base / "tokenizer.json", "--out", out / "C")


def k_means(base: Path, out: Path) -> tuple[object, ...]:
    return ("tag", "embedding", base / "topics", "--skills", 4, "--partition-size", "4kB", "--out", out / "E")


def graph(base: Path, out: Path) -> tuple[object, ...]:
    proxy = ("--batch-size", 4, "--window", 16, "--eval-samples", 4, "--device", "cpu")
    steps = ("--method", "linear", "--steps", 40, "--warmup", 4)
    return ("graph", "learn", base / "expected" / "shard" / "S", *steps, *proxy, "--out", out / "graph.json")


def compare(base: Path, out: Path) -> tuple[object, ...]:
    proxy = ("--batch-size", 4, "--window", 16, "--eval-samples", 4, "--device", "cpu")
    policies = ("--policy", "stratified", "--policy", "proportional", "--seeds", 3, "--steps", 40)
    return ("compare", base / "expected" / "shard" / "S", *policies, *proxy, "--out", out / "compared")


COMMANDS = {"tag": tag, "shard": shard, "tokens": tokens, "k-means": k_means, "graph": graph, "compare": compare}
NEEDS: dict[str, tuple[str, ...]] = {
    "tag": (),
    "shard": ("tag",),
    "tokens": ("shard",),
    "k-means": (),
    "graph": ("shard",),
    "compare": ("shard",),
}
"""Command -> the commands whose expected output is its input."""


def kill_one(kind: str, nodes: TwoNodes, driver: "subprocess.Popen[str]") -> None:
    if kind == "driver":
        driver.kill()
        driver.communicate()
    elif kind == "node":
        nodes.second.lose()
        nodes.join()
    else:
        wait_until(lambda: bool(nodes.head.workers() + nodes.second.workers()), timeout_s=120)
        kill_all((nodes.head.workers() + nodes.second.workers())[:1])


def disturb(command: tuple[object, ...], out: Path, nodes: TwoNodes, kinds: list[str], steps: list[int]) -> None:
    """Run a command on two nodes, kill something whenever some more files are there, and let the command end.

    Args:
        command: Command, without the address of the cluster.
        out: Directory of the output.
        nodes: Nodes of the cluster.
        kinds: Kinds of kills, in their order.
        steps: Number of new files before each kill.
    """
    driver = start(*command, "--ray-address", nodes.address)
    for kind, num_more in zip(kinds, steps, strict=True):
        before = num_files(out)
        wait_until(lambda: num_files(out) >= before + num_more or driver.poll() is not None, timeout_s=HUNG_S)  # noqa: B023
        assert driver.poll() is None, f"the command ended before the kill of a {kind}: {driver.communicate()}"
        kill_one(kind, nodes, driver)
        if kind == "driver":
            driver = start(*command, "--ray-address", nodes.address)
    outcome = finish(driver, HUNG_S)
    assert outcome.code == 0, outcome


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_a_command_whose_worker_node_and_driver_are_killed_gives_the_same_bytes(
    verb: str, nodes: TwoNodes, base: Path, tmp_path: Path
) -> None:
    undisturbed = expected(base, verb)
    order = random.Random(f"kills of {verb}")
    kinds = ["worker", "node", "driver"]
    order.shuffle(kinds)
    nodes.second.wait(HUNG_S)
    disturb(COMMANDS[verb](base, tmp_path), tmp_path, nodes, kinds, [order.randint(1, 3) for _ in kinds])
    assert tree(tmp_path) == tree(undisturbed)


def write_pipeline(base: Path, out: Path, place: Path) -> None:
    sections = {
        "corpus": str(base / "corpus"),
        "out": str(out),
        "tag": {"metadata": {"field": "skill", "partition-size": "3kB"}},
        "shard": {"shard-size": "30kB", "holdout": 0.1},
        "tokens": {"tokenizer": str(base / "tokenizer.json")},
    }
    place.write_text(yaml.safe_dump(sections, sort_keys=False))


def check_pipeline(base: Path, out: Path) -> None:
    for stage, verb, name in (("tags", "tag", "T"), ("shards", "shard", "S"), ("tokens", "tokens", "C")):
        assert tree(out / stage) == tree(expected(base, verb) / name)


def test_a_pipeline_whose_workers_nodes_and_driver_are_killed_gives_the_same_bytes(
    nodes: TwoNodes, base: Path, tmp_path: Path
) -> None:
    write_pipeline(base, tmp_path / "work", tmp_path / "pipeline.yaml")
    order = random.Random("kills of a pipeline")
    kinds = ["worker", "worker", "node", "driver", "driver"]
    order.shuffle(kinds)
    nodes.second.wait(HUNG_S)
    command = ("run", tmp_path / "pipeline.yaml")
    disturb(command, tmp_path, nodes, kinds, [order.randint(2, 8) for _ in kinds])
    check_pipeline(base, tmp_path / "work")


def test_a_job_of_several_stages_runs_on_two_nodes_from_a_working_directory_that_ray_copies(
    nodes: TwoNodes, cluster: tuple[str, str], base: Path, tmp_path: Path
) -> None:
    """Ray removes the copy when the job leaves the cluster, so a second connection of the same job would fail."""
    nodes.second.wait(HUNG_S)
    folder = tmp_path / "project"
    shutil.copytree(REPOSITORY / "jobs", folder / "jobs")
    write_pipeline(base, tmp_path / "work", folder / "pipeline.yaml")
    ray = Path(sys.executable).with_name("ray")
    submit = [ray, "job", "submit", "--address", cluster[1], "--working-dir", ".", "--"]
    submitted = subprocess.run(
        [*submit, sys.executable, "jobs/pipeline.py", "pipeline.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HUNG_S,
        check=False,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    check_pipeline(base, tmp_path / "work")
