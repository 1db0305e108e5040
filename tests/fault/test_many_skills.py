"""Hundreds of skills with several shards each, in a process with a small limit of open files, a common setting of `ulimit -n`."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skillshard.canonical import to_json
from skillshard.shards import mapped
from skillshard.shards.manifest import MANIFEST
from skillshard.shards.read import ShardSet
from skillshard.storage import read_json
from tests.conftest import REPOSITORY
from tests.remote.server import served

NUM_SKILLS = 400
MIX = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]), int(sys.argv[4])))
from skillshard import Mixer, ShardSet
from skillshard.errors import SkillshardError
from skillshard.policies import stratified
try:
    shards = ShardSet.open(sys.argv[1], cache=sys.argv[5] if sys.argv[5:] else None)
    one = Mixer(shards, stratified(), ledger=sys.argv[2], round_draws={NUM_SKILLS * 20})
    for number in range(6):
        assert len(set(one.batch(number * {NUM_SKILLS * 20}, {NUM_SKILLS * 20}).skill)) == {NUM_SKILLS}
except SkillshardError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
print(len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.fixture(scope="module")
def many(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a shard set of 400 skills that share the same shards under different names."""
    manifest = read_json(f"{shards.root}/{MANIFEST}")
    add = next(skill for skill in manifest["skills"] if skill["name"] == "add")
    assert len(add["train"]["number"]) > 4
    names = [f"skill-{number:03d}" for number in range(NUM_SKILLS)]
    manifest["skills"] = [{**add, "name": name, "folder": name} for name in names]
    manifest["num_train"] = NUM_SKILLS * sum(add["train"]["num_samples"])
    manifest["num_holdout"] = NUM_SKILLS * sum(add["holdout"]["num_samples"])
    manifest["num_rows"] = manifest["num_train"] + manifest["num_holdout"] + sum(manifest["set_aside"].values())
    folder = tmp_path_factory.mktemp("many")
    for split in ("train", "holdout"):
        (folder / split).mkdir()
        for name in names:
            (folder / split / name).symlink_to(f"{shards.root}/{split}/{add['folder']}")
    (folder / MANIFEST).write_bytes(to_json(manifest))
    return folder


@pytest.fixture(scope="module")
def remote(many: Path) -> Iterator[str]:
    with served(many) as address:
        yield f"http://{address}"


def mix(place: object, folder: Path, soft: int, hard: int, *cache: Path) -> "subprocess.CompletedProcess[str]":
    arguments = [str(place), str(folder / "run"), str(soft), str(hard), *map(str, cache)]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MIX, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=120,
    )


@pytest.mark.parametrize("soft", [128, 1024])
def test_shards_of_any_number_of_skills_on_this_machine_leave_half_of_the_open_files_to_others(
    many: Path, tmp_path: Path, soft: int
) -> None:
    done = mix(many, tmp_path, soft, soft)
    assert done.returncode == 0, done.stderr
    num_open, limit = map(int, done.stdout.split())
    assert limit == soft and num_open <= soft // 2 + 8


def test_shards_in_a_cache_stay_open_and_the_limit_is_raised_in_time(remote: str, tmp_path: Path) -> None:
    done = mix(remote, tmp_path, 256, 8192, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    num_open, limit = map(int, done.stdout.split())
    assert num_open > NUM_SKILLS and limit > 256


@pytest.mark.parametrize(
    ("soft", "hard", "num_open", "expected"),
    [
        (64, 1000, 33, (256, 1000)),
        (64, 100, 33, (100, 100)),
        (64, resource.RLIM_INFINITY, 33, (256, resource.RLIM_INFINITY)),
        (64, 1000, 32, None),
        (64, 64, 60, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 10**6, None),
    ],
)
def test_the_limit_is_raised_fourfold_once_half_of_it_is_used_and_never_above_the_hard_one(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, num_open: int, expected: tuple[int, int] | None
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr("resource.setrlimit", lambda kind, wanted: limits.append(wanted))
    monkeypatch.setattr(mapped, "_newest", lambda descriptor: num_open)
    mapped._raise_limit_in_time(3)
    assert limits == ([] if expected is None else [expected])


def test_where_the_limit_cannot_be_raised_the_error_says_how_to(remote: str, tmp_path: Path) -> None:
    done = mix(remote, tmp_path, 256, 256, tmp_path / "cache")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "cannot be opened: this process has reached its limit of 256 open files. Raise the limit with 'ulimit -n'"
        in done.stderr
    )
