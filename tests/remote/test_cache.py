"""The cache: one download for all processes, a limit, and no wrong byte after the death of a process or on a full disk."""

import errno
import mmap
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skillshard import canonical
from skillshard.errors import StorageError
from skillshard.mixing.mixer import Mixer
from skillshard.policies import proportional
from skillshard.shards import cache as cache_module
from skillshard.shards import files
from skillshard.shards.cache import Cache
from skillshard.shards.files import Wanted
from skillshard.shards.read import ShardSet
from tests.conftest import REPOSITORY, tree
from tests.remote.server import Between

READ_ALL = """
import hashlib, sys
from skillshard import storage
from skillshard.shards.read import ShardSet
storage.BACK_OFF_S = 0.01
shards = ShardSet.open(sys.argv[1], cache=sys.argv[2])
print("opened", flush=True)
found = hashlib.sha256()
for skill, of_skill in shards.train.items():
    for sample in of_skill:
        found.update(sample.text.encode())
print(found.hexdigest())
"""


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def wait_until(condition: Callable[[], object], timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s"
        time.sleep(0.005)


def texts(shards: ShardSet) -> list[str]:
    return [sample.text for of_skill in shards.train.values() for sample in of_skill]


def sizes(folder: Path) -> dict[str, int]:
    return {name: len(data) for name, data in tree(folder).items()}


def parts(folder: Path) -> list[Path]:
    return list(folder.glob(f"*{cache_module.PART}"))


# ------------------------------------------------------------------------------------------------------ many processes


def test_four_processes_share_a_cache_and_every_file_is_fetched_once(
    between: tuple[Between, str], shards: ShardSet, tmp_path: Path
) -> None:
    server, place = between
    server.faults = lambda path, nth: 0.05
    outcomes = [finish(process) for process in [start(READ_ALL, place, tmp_path) for _ in range(4)]]
    assert {outcome[0] for outcome in outcomes} == {0}, outcomes
    assert len({outcome[1] for outcome in outcomes}) == 1
    assert server.asked.pop("/manifest.json") == 4
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == 2 * sum(len(of_skill.shard_rows) for of_skill in shards.train.values())
    assert not parts(tmp_path)


def test_who_waits_for_a_killed_download_takes_it_over(
    between: tuple[Between, str], shards: ShardSet, tmp_path: Path
) -> None:
    server, place = between
    server.faults = lambda path, nth: "drip" if path.endswith(".tar") and nth == 0 else None
    killed = start(READ_ALL, place, tmp_path)
    wait_until(lambda: any(part.stat().st_size for part in parts(tmp_path)))
    waiting = start(READ_ALL, place, tmp_path)
    assert waiting.stdout is not None and waiting.stdout.readline() == "opened\n"
    requests = dict(server.asked)
    time.sleep(0.3)
    assert {path: num for path, num in server.asked.items() if num > 1} == {"/manifest.json": 2}, requests
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    server.faults = lambda path, nth: None
    code, out, err = finish(waiting)
    assert code == 0, err
    assert texts(ShardSet.open(place, cache=tmp_path)) == texts(shards) and not parts(tmp_path)
    assert out == finish(start(READ_ALL, shards.root, tmp_path))[1].removeprefix("opened\n")


def test_what_a_killed_download_left_is_never_read_and_goes(
    between: tuple[Between, str], shards: ShardSet, tmp_path: Path
) -> None:
    _, place = between
    columns = shards.train["add"].columns
    (tmp_path / f"{columns.digest[0]}.part").write_bytes(b"half of a sha")
    (tmp_path / f"{'0' * 32}.part").write_bytes(b"of another set")
    opened = ShardSet.open(place, cache=tmp_path)
    assert not parts(tmp_path)
    (tmp_path / f"{columns.digest[0]}.part").write_bytes(b"x" * 2 * columns.num_bytes[0])
    assert texts(opened) == texts(shards) and not parts(tmp_path)


ORPHAN = """
import os, sys, time
from skillshard.shards.read import ShardSet
shards = ShardSet.open(sys.argv[1], cache=sys.argv[2])
shards.train["add"].prefetch(0)
while not any(name.endswith(".part") and os.path.getsize(f"{sys.argv[2]}/{name}") for name in os.listdir(sys.argv[2])):
    time.sleep(0.01)
child = os.fork()
if not child:
    time.sleep(3600)
    os._exit(0)
print(child, flush=True)
os._exit(0)
"""


def test_a_forked_child_does_not_hold_the_claims_of_its_dead_parent(
    between: tuple[Between, str], shards: ShardSet, tmp_path: Path
) -> None:
    server, place = between
    server.faults = lambda path, nth: "drip" if path.endswith(".tar") and nth == 0 else None
    process = start(ORPHAN, place, tmp_path)
    assert process.stdout is not None and process.stderr is not None
    child = int(process.stdout.readline())
    process.wait()
    server.faults = lambda path, nth: None
    try:
        # The child lives for an hour, so a claim that it held would keep the reading from its end.
        assert texts(ShardSet.open(place, cache=tmp_path)) == texts(shards)
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()
        process.stderr.close()


# ---------------------------------------------------------------------------------------------------- limit and eviction


def fill(cache: Cache, folder: Path, *contents: bytes) -> list[Wanted]:
    """Put files into a cache, in this order, a second apart."""
    wanted = []
    for second, content in enumerate(contents):
        (folder / str(second)).write_bytes(content)
        wanted.append(Wanted(str(second), canonical.digest(content), len(content)))
        cache.open(str(folder / str(second)), wanted[-1]).close()
        os.utime(cache.folder / wanted[-1].digest, (second, second))
    return wanted


@pytest.mark.parametrize("limit", [1, 60_000, 150_000, 10**9])
def test_any_limit_gives_the_right_stream_and_is_kept(limit: int, place: str, shards: ShardSet, tmp_path: Path) -> None:
    remote = ShardSet.open(place, cache=tmp_path, cache_bytes=limit)
    for _ in range(2):
        assert texts(remote) == texts(shards)
    opened = [(of_skill, shard) for of_skill in remote.train.values() for shard in of_skill._open]
    in_use = sum(
        of_skill.columns.num_bytes[shard] + 128 + 16 * of_skill.columns.num_samples[shard] for of_skill, shard in opened
    )
    just_arrived = cache_module.NUM_THREADS * max(sizes(tmp_path).values())
    wait_until(lambda: not parts(tmp_path) and sum(sizes(tmp_path).values()) <= limit + in_use + just_arrived)


def test_the_longest_unused_goes_first_and_what_is_mapped_never(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 250)
    first, second = fill(cache, tmp_path, b"a" * 100, b"b" * 100)
    with cache.open("unread", first):  # the file was used a moment ago, and is closed again
        pass
    (third,) = fill(cache, tmp_path, b"c" * 100)
    assert set(sizes(cache.folder)) == {first.digest, third.digest}
    with cache.open("unread", first) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    os.utime(cache.folder / first.digest, (0, 0))
    fill(cache, tmp_path, b"d" * 240)
    assert first.digest in sizes(cache.folder) and third.digest not in sizes(cache.folder)
    assert mapped[:] == b"a" * 100
    mapped.close()
    fill(cache, tmp_path, b"e" * 240)
    assert set(sizes(cache.folder)) == {canonical.digest(b"e" * 240)}
    assert second.digest not in sizes(cache.folder)


def test_room_is_made_before_a_file_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download, totals = files.download, []

    def recorded(place: str, wanted: Wanted, descriptor: int) -> None:
        totals.append(sum(sizes(tmp_path / "cache").values()) + (wanted.num_bytes or 0))
        download(place, wanted, descriptor)

    monkeypatch.setattr(cache_module, "download", recorded)
    fill(Cache(tmp_path / "cache", 250), tmp_path, b"a" * 100, b"b" * 100, b"c" * 100, b"d" * 200)
    assert totals == [100, 200, 200, 200]


def test_another_process_does_not_evict_what_this_one_has_mapped(place: str, shards: ShardSet, tmp_path: Path) -> None:
    remote = ShardSet.open(place, cache=tmp_path)
    opened = remote.train["add"].open_shard(0)
    code = READ_ALL.replace("cache=sys.argv[2]", "cache=sys.argv[2], cache_bytes=1")
    code, _, err = finish(start(code, place, tmp_path))  # type: ignore[assignment]
    assert code == 0, err
    assert remote.train["add"].columns.digest[0] in sizes(tmp_path)
    assert opened.text(0) == shards.train["add"].open_shard(0).text(0)


def test_the_cache_may_be_deleted_while_it_is_used(place: str, shards: ShardSet, tmp_path: Path) -> None:
    remote = ShardSet.open(place, cache=tmp_path / "cache")
    texts_read = []
    for of_skill in remote.train.values():
        for number, sample in enumerate(of_skill):
            texts_read.append(sample.text)
            if number % 20 == 0:
                for path in [*(tmp_path / "cache").glob("*")]:
                    path.unlink(missing_ok=True)
    assert texts_read == texts(shards)


def read(cache: Cache, place: Path, wanted: Wanted) -> bytes:
    with cache.open(str(place), wanted) as file:
        return os.pread(file.fileno(), 1_000_000, 0)


def test_a_download_whose_file_was_deleted_does_not_name_another_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, cache = b"shard" * 100, Cache(tmp_path / "cache", None)
    (tmp_path / "there").write_bytes(content)
    wanted = Wanted("there", canonical.digest(content))
    part = cache.folder / f"{wanted.digest}{cache_module.PART}"
    download = cache_module.download

    def and_then_another_begins(*arguments: Any) -> None:
        download(*arguments)
        part.unlink()
        part.touch()

    monkeypatch.setattr(cache_module, "download", and_then_another_begins)
    assert read(cache, tmp_path / "there", wanted) == content
    assert sizes(cache.folder) == {part.name: 0}
    monkeypatch.setattr(cache_module, "download", download)
    assert read(cache, tmp_path / "there", wanted) == content
    assert sizes(cache.folder) == {wanted.digest: len(content)}


def test_an_entry_that_another_file_has_taken_the_name_of_is_checked_again(tmp_path: Path) -> None:
    content, cache = b"shard" * 100, Cache(tmp_path / "cache", None)
    (tmp_path / "there").write_bytes(content)
    wanted = Wanted("there", canonical.digest(content))
    for other in (b"", b"shark" * 100):
        cache.open(str(tmp_path / "there"), wanted).close()
        (tmp_path / "other").write_bytes(other)
        (tmp_path / "other").rename(cache.folder / wanted.digest)
        assert read(cache, tmp_path / "there", wanted) == content


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(
    between: tuple[Between, str], shards: ShardSet, tmp_path: Path
) -> None:
    server, place = between
    assert texts(ShardSet.open(place, cache=tmp_path)) == texts(shards)
    num_requests = sum(server.asked.values())
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if number % 2 else data[:9] + bytes([data[9] ^ 4]) + data[10:])
    assert texts(ShardSet.open(place, cache=tmp_path)) == texts(shards)
    assert sum(server.asked.values()) == 2 * num_requests


# -------------------------------------------------------------------------------------------------------------- full disk


class Disk:
    """A disk that holds a limited number of bytes of the cache."""

    def __init__(self, folder: Path, num_bytes: int) -> None:
        self.folder, self.num_bytes, self.write = folder, num_bytes, os.write

    def __call__(self, descriptor: int, data: Any) -> int:
        if sum(sizes(self.folder).values()) + len(data) > self.num_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.write(descriptor, data)


def test_the_cache_makes_room_on_a_full_disk(
    place: str, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cache, "prefetch", lambda self, place, wanted: None)
    remote = ShardSet.open(place, cache=tmp_path)
    disk = Disk(tmp_path, 400_000)
    monkeypatch.setattr("skillshard.shards.cache.os.write", disk)
    held = []
    for of_skill in remote.train.values():
        for shard in range(len(of_skill.shard_rows)):
            opened = of_skill.open_checked(shard)
            held += [opened.text(row) for row in range(int(of_skill.shard_rows[shard]))]
    assert held == texts(shards)


def test_a_full_disk_with_nothing_to_evict_is_one_sentence(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = ShardSet.open(place, cache=tmp_path)
    monkeypatch.setattr("skillshard.shards.cache.os.write", Disk(tmp_path, 1000))
    with pytest.raises(
        StorageError,
        match=r"no room in the cache .* for train/add/000000.tar \([\d,]+ bytes\): the disk is full, and all",
    ):
        remote.train["add"].open_shard(0)
    assert not sizes(tmp_path)


LIMITED = """
import resource, sys
from skillshard.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
main(["mix", sys.argv[1], "--draws", "50", "--policy", "proportional", "--round-draws", "50", "--cache", sys.argv[2]])
"""


def test_a_process_that_may_not_write_so_much_says_so(between: tuple[Between, str], tmp_path: Path) -> None:
    code, out, err = finish(start(LIMITED, between[1], tmp_path / "cache"))
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert re.match(
        r"error: no room in the cache .*cache for train/add/\d+\.tar \([\d,]+ bytes\): the disk is full", err
    )
    Cache(tmp_path / "cache", None)  # the new cache removes the unfinished downloads of the threads
    assert all(canonical.digest(data) == name for name, data in tree(tmp_path / "cache").items())


# ------------------------------------------------------------------------------------------------------------ read-ahead


def test_the_stream_finds_its_next_shards_fetched(
    between: tuple[Between, str], shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetchers: list[str] = []
    fetch = Cache._fetch

    def recorded(self: Cache, place: str, wanted: Wanted, descriptor: int) -> Any:
        fetchers.append(cache_module.threading.current_thread().name)
        return fetch(self, place, wanted, descriptor)

    monkeypatch.setattr(Cache, "_fetch", recorded)
    server, place = between
    server.faults = lambda path, nth: 0.02
    local = Mixer(shards, proportional(), ledger=tmp_path / "a", round_draws=40)
    remote = Mixer(ShardSet.open(place, cache=tmp_path / "c"), proportional(), ledger=tmp_path / "b", round_draws=40)
    for number in range(30):
        before = len(fetchers)
        assert remote.batch(number * 40, 40).text == local.batch(number * 40, 40).text
        if number:
            assert set(fetchers[before:]) <= {"skillshard-read-ahead"}
        local_cache = remote.shards.files.cache  # type: ignore[attr-defined]
        wait_until(lambda local_cache=local_cache: not local_cache._ahead._waiting)
    assert len(fetchers) == len(set(server.asked)) - 1 > 20


def test_a_shard_set_that_reads_ahead_can_be_pickled(
    between: tuple[Between, str], shards: ShardSet, tmp_path: Path
) -> None:
    server, place = between
    server.faults = lambda path, nth: 0.05
    remote = ShardSet.open(place, cache=tmp_path)
    remote.train["add"].prefetch(0)
    again = pickle.loads(pickle.dumps(remote))
    assert texts(again) == texts(remote) == texts(shards)
    assert server.asked["/train/add/000000.tar"] == 1


def test_a_file_of_the_cache_is_for_whoever_the_umask_lets_read_and_for_nobody_to_execute(tmp_path: Path) -> None:
    umask = os.umask(0o002)
    try:
        cache = Cache(tmp_path / "cache", None)
        (wanted,) = fill(cache, tmp_path, b"a" * 100)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((cache.folder / wanted.digest).stat().st_mode) == 0o664
