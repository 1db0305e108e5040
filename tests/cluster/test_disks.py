"""Two nodes without a shared directory, a full disk, and SIGTERM to the driver. The bytes are those of one local process."""

import logging
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from skillshard import places, storage
from tests.commands import fails, finish, skillshard, start, works
from tests.conftest import lines, samples, tree
from tests.fault.test_killed import num_files, wait_until
from tests.ray_cluster import HUNG_S, Node
from tests.remote.conftest import BUCKET  # sets the keys of the store, which the nodes inherit

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(900), pytest.mark.xdist_group("ray")]
TAG = {"field": "skill", "partition-size": "2kB"}
SHARD = {"shard-size": "30kB", "holdout": 0.1}


def can_mount() -> bool:
    command = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mounts = pytest.mark.skipif(not can_mount(), reason="mounting a directory needs root and the program unshare")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a corpus of many partitions, and its tags and shards by one local process."""
    folder = tmp_path_factory.mktemp("disks")
    (folder / "corpus").mkdir()
    records = samples(add=300, carry=200, negate=40)
    for number in range(3):
        (folder / "corpus" / f"{number}.jsonl").write_bytes(lines(records[number::3]))
    works(*tag(folder, folder / "T"), "--workers", 1)
    works(*shard(folder, folder / "S"), "--workers", 1)
    return folder


def words_of(options: Mapping[str, object]) -> list[object]:
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def tag(base: Path, out: Path) -> tuple[object, ...]:
    return ("tag", "metadata", base / "corpus", *words_of(TAG), "--out", out)


def shard(base: Path, out: Path) -> tuple[object, ...]:
    return ("shard", base / "corpus", "--tags", base / "T", *words_of(SHARD), "--out", out)


@pytest.fixture
def second(head: tuple[Node, int, int], request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """Start the second node. With the parameter "own disk", the node does not see the files of the tests."""
    own_disk = request.getfixturevalue("base").parent if getattr(request, "param", "") == "own disk" else None
    address = f"127.0.0.1:{head[1]}"
    node = Node(f"{head[0].marker}-second-{tmp_path.name}", tmp_path, "--address", address, own_disk=own_disk)
    try:
        node.wait(HUNG_S)
        yield node
    finally:
        node.end()


@pytest.fixture
def bucket() -> Iterator[str]:
    """Start a store, and return the address that a name is put into."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    client.close()
    yield f"s3://{BUCKET}/{{}}?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


@needs_mounts
@pytest.mark.parametrize("second", ["own disk"], indirect=True)
def test_a_pipeline_in_a_store_needs_no_shared_directory(
    second: Node, cluster: tuple[str, str], base: Path, bucket: str, tmp_path: Path
) -> None:
    for name, data in tree(base / "corpus").items():
        storage.write_bytes(bucket.format(f"corpus/{name}"), data)
    sections = {
        "corpus": bucket.format("corpus"),
        "out": bucket.format("work"),
        "tag": {"metadata": TAG},
        "shard": SHARD,
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(sections, sort_keys=False))
    works("run", tmp_path / "pipeline.yaml", "--ray-address", cluster[0])
    for name, local in (("tags", "T"), ("shards", "S")):
        place = bucket.format(f"work/{name}")
        files = storage.list_files(place, hidden=True)
        assert {places.relative(file.place, place): storage.read_bytes(file.place) for file in files} == tree(
            base / local
        )
    # The second node takes tasks, and does not see the files of this machine.
    outcome = skillshard(*tag(base, bucket.format("of-local-files")), "--ray-address", cluster[0])
    assert outcome.code != 0 and "corpus/" in outcome.err and "no such file" in outcome.err.lower()


@needs_mounts
@pytest.mark.parametrize("second", ["own disk"], indirect=True)
def test_scratch_files_on_the_own_disk_of_each_node_are_refused_in_a_sentence_and_a_store_takes_the_files(
    second: Node, cluster: tuple[str, str], base: Path, bucket: str
) -> None:
    for name, data in tree(base / "corpus").items():
        storage.write_bytes(bucket.format(f"corpus/{name}"), data)
    corpus, tags, shards = (bucket.format(name) for name in ("corpus", "T", "S"))
    works("tag", "metadata", corpus, *words_of(TAG), "--out", tags, "--ray-address", cluster[0])
    command = ("shard", corpus, "--tags", tags, *words_of(SHARD), "--out", shards, "--ray-address", cluster[0])
    # The path exists on both nodes, and is another directory on each node.
    own = base.parent / "scratch"
    sentence = fails(*command, "--scratch", own)
    assert second.is_up()
    assert "No such file" in sentence and str(own) in sentence
    assert "on the machine of the task" in sentence and "a directory that all machines share, or in a store" in sentence
    assert not storage.exists(places.join(shards, "manifest.json"))
    # The records of the finished tasks name files that no node but one has, so another place is no continuation.
    other = fails(*command, "--scratch", bucket.format("scratch"))
    assert str(own) in other and "remove" in other
    storage.remove_tree(shards)
    works(*command, "--scratch", bucket.format("scratch"))
    for place, local in ((tags, "T"), (shards, "S")):
        files = storage.list_files(place, hidden=True)
        read = {places.relative(file.place, place): storage.read_bytes(file.place) for file in files}
        assert read == tree(base / local)
    assert not storage.list_files(bucket.format("scratch"), hidden=True)


@needs_mounts
def test_a_full_disk_ends_in_a_sentence_and_more_room_ends_the_work(
    second: Node, cluster: tuple[str, str], base: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    assert second.is_up()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=True)
    try:
        sentence = fails(*shard(base, disk / "S"), "--ray-address", cluster[0])
        assert "No space left on device" in sentence
        # Ray kills the tasks that run beside the failed one, and their unfinished files stay until the next command.
        assert not (disk / "S" / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        works(*shard(base, disk / "S"), "--ray-address", cluster[0])
        assert tree(disk / "S") == tree(base / "S")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("verb", [tag, shard])
def test_a_driver_that_gets_sigterm_says_how_to_go_on_and_the_next_command_ends_the_work(
    verb: Callable[[Path, Path], tuple[object, ...]], second: Node, cluster: tuple[str, str], base: Path, tmp_path: Path
) -> None:
    assert second.is_up()
    command = (*verb(base, tmp_path / "out"), "--ray-address", cluster[0])
    driver = start(*command)
    wait_until(lambda: num_files(tmp_path / "out") >= 3 or driver.poll() is not None, timeout_s=HUNG_S)
    driver.send_signal(signal.SIGTERM)
    outcome = finish(driver, HUNG_S)
    assert outcome.code == 128 + signal.SIGTERM, outcome
    assert "stopped by SIGTERM" in outcome.err and "To go on: " in outcome.err
    works(*command)
    assert tree(tmp_path / "out") == tree(base / ("T" if verb is tag else "S"))
