"""Small corpora with readable ids, and the environment of the suite.

Every numerical library of the suite works with one thread, also in the processes that tests start. Two pytest workers share
two cores, and threads that wait for each other there cost ten times the work itself. Tests of "bytes do not depend on the number
of threads" set a larger number of threads.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a library reads the variables once, at its import

from tests import checked_types

checked_types.install()

import gzip
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings

from skillshard import taggers
from skillshard.corpus import Corpus
from skillshard.execution import Backend
from skillshard.shards.read import ShardSet
from skillshard.shards.write import write_shards

# A mistake of skillshard shows its traceback, also in processes that tests start.
os.environ.setdefault("SKILLSHARD_DEBUG", "1")

# Both limits are of wall time, which a busy machine exceeds without a fault of the code.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"
HERE = Backend(workers=1)

WriteCorpus = Callable[..., Path]


def sample(skill: str, number: int) -> dict[str, Any]:
    return {
        "id": f"{skill}-{number:04d}",
        "text": f"{skill} number {number}: {'é' * (number % 7)}{number * 7919 % 10007}",
        "meta": {"skill": skill, "number": number},
    }


def samples(**num_of: int) -> list[dict[str, Any]]:
    """Make samples of several skills, interleaved."""
    records = [sample(skill, number) for skill, num in num_of.items() for number in range(num)]
    return sorted(records, key=lambda record: (record["meta"]["number"], record["id"]))


def lines(records: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)


def write_corpus(folder: Path, records: Sequence[dict[str, Any]], *, num_files: int = 3) -> Path:
    """Write a corpus of several JSONL files, the second file gzipped."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        part = lines(records[number::num_files])
        if number == 1:
            (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(part, mtime=0))
        else:
            (folder / f"{number}.jsonl").write_bytes(part)
    return folder


def tag_and_shard(
    corpus: Path, folder: Path, *, backend: Backend = HERE, shard_bytes: int = 50_000, holdout: float = 0.1
) -> ShardSet:
    opened = Corpus.open(corpus)
    tags = taggers.tag_corpus(
        opened, taggers.metadata("skill"), folder / "tags", backend=backend, partition_bytes=20_000
    )
    return write_shards(opened, tags, folder / "shards", shard_bytes=shard_bytes, holdout=holdout, backend=backend)


def tree(folder: str | Path) -> dict[str, bytes]:
    """Return every file under a directory with its bytes, including hidden files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Write three skills of 400, 150 and 30 samples, in several shards."""
    folder = tmp_path_factory.mktemp("shards")
    return tag_and_shard(write_corpus(folder / "corpus", samples(add=400, carry=150, negate=30)), folder)


@pytest.fixture(params=["instructions", "sources"])
def real_corpus(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    folder = SHARED / "corpora" / request.param
    if not folder.is_dir():
        pytest.skip(f"the real corpus {folder} is not on this machine; the generated twin of this test runs everywhere")
    yield request.param, folder
