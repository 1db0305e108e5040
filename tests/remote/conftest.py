"""A shard set on a real S3 API, on a plain web server, and behind a server with faults, all on loopback."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skillshard import storage, web
from skillshard.shards.read import ShardSet
from tests.conftest import tree
from tests.remote.server import Between, served

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
os.environ.update(KEYS, NO_PROXY="127.0.0.1")


def s3_uri(address: str) -> str:
    return f"s3://{BUCKET}/sets/S?endpoint_override={address}&scheme=http&region=us-east-1"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat a failed request at once."""
    monkeypatch.setattr(storage, "BACK_OFF_S", 0.005)
    monkeypatch.setattr(web, "TIMEOUT_S", 5.0)


@pytest.fixture(scope="session")
def s3_address(shards: ShardSet) -> Iterator[str]:
    """Start a real S3 API that holds the shard set in bucket/sets/S, and return the address."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    for name, data in tree(Path(shards.root)).items():
        client.put_object(Bucket=BUCKET, Key=f"sets/S/{name}", Body=data)
    client.close()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def web_address(shards: ShardSet) -> Iterator[str]:
    with served(shards.root) as address:
        yield address


@pytest.fixture(params=["s3", "http"])
def place(request: pytest.FixtureRequest) -> str:
    """Return the shard set's URI at each kind of store."""
    if request.param == "s3":
        return s3_uri(request.getfixturevalue("s3_address"))
    return f"http://{request.getfixturevalue('web_address')}"


Through = Callable[[str], tuple[Between, str]]


@pytest.fixture
def through(request: pytest.FixtureRequest) -> Iterator[Through]:
    """Start a server in between ("s3" or "http"), and return the server and the shard set's URI through the server."""
    opened = []

    def make(kind: str) -> tuple[Between, str]:
        between = Between(request.getfixturevalue("s3_address" if kind == "s3" else "web_address"))
        opened.append(between)
        return between, s3_uri(between.address) if kind == "s3" else f"http://{between.address}"

    yield make
    for between in opened:
        between.close()


@pytest.fixture
def between(through: Through) -> tuple[Between, str]:
    """Start a server in between for http, and return the server and the shard set's URI through the server."""
    return through("http")
