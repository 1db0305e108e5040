"""The clients of a store: one client for a bucket and process, and no request sees the bytes of another request."""

import io
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.fs as pafs
import pytest

from skillshard import places, storage

QUERY = "?region=us-east-1&endpoint_override=127.0.0.1:9&scheme=http"


@pytest.mark.parametrize(
    "place", ["s3://one", "s3://one/", "s3://one/a/000.tar", "s3://one/a=1/", "s3://KEY:SECRET@one/a", "s3://one/a%20b"]
)
def test_the_path_in_a_bucket_is_what_pyarrow_says(place: str) -> None:
    for _ in range(2):
        assert places.filesystem(place + QUERY)[1] == pafs.FileSystem.from_uri(place + QUERY)[1]


def test_files_of_a_bucket_share_a_client_and_other_keys_do_not() -> None:
    with ThreadPoolExecutor(8) as threads:
        same = list(threads.map(lambda number: places.filesystem(f"s3://two/{number}.tar{QUERY}")[0], range(64)))
    assert all(client is same[0] for client in same)
    assert places.filesystem(f"s3://KEY:SECRET@two/0.tar{QUERY}")[0] is not same[0]
    assert places.filesystem(f"s3://two/0.tar{QUERY}&allow_bucket_creation=true")[0] is not same[0]


def test_a_forked_child_makes_its_own_client() -> None:
    parents = places.filesystem(f"s3://three/0.tar{QUERY}")[0]
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if not child:
        childs = places.filesystem(f"s3://three/0.tar{QUERY}")[0]
        sender.send((childs is parents, childs is places.filesystem(f"s3://three/1.tar{QUERY}")[0]))
        os._exit(0)
    assert receiver.recv() == (False, True)
    os.waitpid(child, 0)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 350])
def test_every_request_gets_a_buffer_of_zeros(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content, buffers = bytes(range(1, 201)) * 2, []

    class File(io.BytesIO):
        def size(self) -> int:
            return size

        def readinto(self, buffer: Any) -> int:
            buffers.append(bytes(buffer))
            return super().readinto(buffer)

    class Store:
        def open_input_file(self, path: str) -> File:
            return File(content[:size])

    monkeypatch.setattr(storage, "CHUNK_BYTES", 100)
    monkeypatch.setattr(places, "filesystem", lambda place: (Store(), place))
    assert b"".join(storage.chunks("s3://bucket/key")) == content[:size]
    assert len(buffers) == -(-size // 100) and not any(map(any, buffers))
