"""A function that promises one thread takes one thread, whatever the limit of the libraries, because bytes and CPU time depend on the limit.

The suite itself allows one thread, so no other test would see a lost limit.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.manifold
import sklearn.utils.extmath
from threadpoolctl import threadpool_info, threadpool_limits

from skillshard.policies import Observation, ado
from skillshard.report.clusters import flattened
from skillshard.taggers.clusters import kmeans
from tests.commands import works
from tests.conftest import samples, write_corpus

Watch = Callable[[Any, str], list[set[int]]]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Note the threads that the BLAS libraries may use at each call of a function."""

    def of(place: Any, name: str) -> list[set[int]]:
        calls: list[set[int]] = []
        function = getattr(place, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            calls.append({library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"})
            return function(*arguments, **named)

        monkeypatch.setattr(place, name, watched)
        return calls

    return of


def test_the_fits_of_ado_take_one_thread(watch: Watch) -> None:
    calls = watch(import_module("skillshard.policies.ado"), "fit_scaling_law")
    policy = ado(warmup_steps=0, refit_steps=1)
    state = policy.init(("add", "carry"), (300, 100))
    with threadpool_limits(2):
        for step in range(1, 6):
            losses = {"add": 3 / step, "carry": 4 / step}
            state = policy.observe(state, Observation(step, losses, 10 * step, {"add": 5 * step, "carry": 5 * step}))
    assert calls == [{1}] * 4


def test_clusters_take_one_thread(watch: Watch, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", samples(add=60, carry=60))
    calls = {
        name: watch(place, name)
        for place, name in (
            (sklearn.utils.extmath, "randomized_svd"),
            (kmeans, "fit"),
            (kmeans, "assign"),
            (kmeans, "sums_of"),
        )
    }
    with threadpool_limits(2):
        works("tag", "embedding", corpus, "--skills", 2, "--out", tmp_path / "tags")
    for name, threads in calls.items():
        assert threads and all(each == {1} for each in threads), name


def test_a_map_of_points_takes_one_thread(watch: Watch) -> None:
    calls = watch(sklearn.manifold.TSNE, "fit_transform")
    with threadpool_limits(2):
        flattened(np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32))
    assert calls == [{1}]
