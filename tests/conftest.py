"""Small corpora with readable ids, made by hand.

Every numerical library of the suite works with one thread, also in the processes that tests start: two pytest workers share
two cores, and threads that wait for each other there cost ten times the work itself. Tests of "bytes do not depend on the number
of threads" ask for more threads themselves.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read once, when a library is imported

from tests import checked_types

checked_types.install()

import gzip
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from skillshard import taggers
from skillshard.corpus import Corpus
from skillshard.execution import Backend
from skillshard.shards.read import ShardSet
from skillshard.shards.write import write_shards

os.environ.setdefault(
    "SKILLSHARD_DEBUG", "1"
)  # a mistake of ours shows its traceback, also in processes that tests start

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
    """Samples of some skills, interleaved."""
    made = [sample(skill, number) for skill, num in num_of.items() for number in range(num)]
    return sorted(made, key=lambda record: (record["meta"]["number"], record["id"]))


def lines(records: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)


def write_corpus(folder: Path, records: Sequence[dict[str, Any]], *, num_files: int = 3) -> Path:
    """A corpus of several JSONL files, the second one gzipped."""
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(num_files):
        part = lines(records[at::num_files])
        if at == 1:
            (folder / f"{at}.jsonl.gz").write_bytes(gzip.compress(part, mtime=0))
        else:
            (folder / f"{at}.jsonl").write_bytes(part)
    return folder


def tag_and_shard(
    corpus: Path, folder: Path, *, backend: Backend = HERE, shard_bytes: int = 50_000, holdout: float = 0.1
) -> ShardSet:
    opened = Corpus.open(corpus)
    tags = taggers.tag_corpus(
        opened, taggers.metadata("skill"), folder / "tags", backend=backend, partition_bytes=20_000
    )
    return write_shards(opened, tags, folder / "shards", shard_bytes=shard_bytes, holdout=holdout, backend=backend)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a directory, hidden ones too, and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Three skills of 400, 150 and 30 samples, in several shards."""
    folder = tmp_path_factory.mktemp("shards")
    return tag_and_shard(write_corpus(folder / "corpus", samples(add=400, carry=150, negate=30)), folder)


@pytest.fixture(params=["instructions", "sources"])
def real_corpus(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    folder = SHARED / "corpora" / request.param
    if not folder.is_dir():
        pytest.skip(f"the real corpus {folder} is not on this machine; the generated twin of this test runs everywhere")
    yield request.param, folder
