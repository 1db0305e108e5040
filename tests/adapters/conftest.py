import gc
from collections.abc import Iterator

import pytest

from skillshard.shards.read import ShardSet
from tests.adapters import processes
from tests.adapters.packed_trainer import Source
from tests.tokenizers_trained import counted, uneven_shards

collect_ignore = ["logger_trainer.py"]
"""A program of its own, whose imports start threads and services. The collection of doctests would import it."""


@pytest.fixture(autouse=True)
def loaders_of_earlier_tests_are_gone() -> None:
    """Collect the loaders of earlier tests before a test forks, because a forked worker must not inherit them.

    PyTorch's loaders complain when a worker collects them. The report of pytest may then begin in the midst of another parse, which CPython
    3.11 up to 3.11.7 answers with a SystemError (gh-106905).
    """
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def no_server_of_ranks_stays() -> Iterator[None]:
    yield
    processes.SERVER.stop()


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("blocks")
    counts = counted(uneven_shards(folder), folder / "T")
    return Source(str(folder / "shards"), str(counts.root))


@pytest.fixture(params=["samples", "blocks"])
def source(request: pytest.FixtureRequest, shards: ShardSet, blocks: Source) -> Source:
    return blocks if request.param == "blocks" else Source(str(shards.root))
