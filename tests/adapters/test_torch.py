"""`DataLoader` and `StatefulDataLoader`: one stream, whatever the workers, and nothing in it lost or repeated in silence."""

import copy
import itertools
import json
import pickle
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from skillshard.errors import LedgerError, PolicyError
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.torch import InOrder, MixedDataset, collate, resume
from tests.adapters.trainers import expected_texts, live_mixer, losses_at

BATCH = 8
pytestmark = pytest.mark.filterwarnings("ignore:skill .* passes 4 epochs:UserWarning")


def stateful(dataset: MixedDataset, workers: int) -> "StatefulDataLoader[Any]":
    return StatefulDataLoader(
        dataset,
        sampler=InOrder(),
        batch_size=BATCH,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=2 if workers else None,
    )


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("stop", [1, 7, 13])
def test_a_stateful_loader_goes_on_with_the_next_batch(
    shards: ShardSet, tmp_path: Path, workers: int, stop: int
) -> None:
    """Saved in the middle of a round, loaded into a new mixer, dataset and loader."""
    expected = expected_texts(shards, tmp_path / "reference", steps=20, step_draws=BATCH)
    seen, saved = [], b""
    for start, end in [(0, stop), (stop, 20)]:
        mixer = live_mixer(shards, tmp_path / "run", step_draws=BATCH)
        loader = stateful(MixedDataset(mixer), workers)
        if saved:
            state = pickle.loads(saved)
            mixer.load_state_dict(state["mixer"])
            loader.load_state_dict(state["loader"])
        for step, batch in zip(range(start + 1, end + 1), loader, strict=False):
            seen.append(batch["text"])
            assert batch["draw"].tolist() == list(range((step - 1) * BATCH, step * BATCH))
            if step % 5 == 0:
                mixer.report(step, losses_at(step))
            if step == end:
                saved = pickle.dumps({"mixer": mixer.state_dict(step=step), "loader": loader.state_dict()})
    assert seen == expected


def test_a_stateful_loader_resumes_in_the_same_time_at_any_draw(shards: ShardSet, tmp_path: Path) -> None:
    """Its state stays small; ten million batches consumed cost what one costs."""
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH)
    first = stateful(MixedDataset(mixer), 0)
    next(iter(first))
    state = first.state_dict()
    far = 10_000_000
    _move(state, far)
    assert len(json.dumps(state)) < 1_000
    loader = stateful(MixedDataset(mixer), 0)
    loader.load_state_dict(state)
    begun = time.perf_counter()
    assert iter(loader)._next_index() == list(range(far * BATCH, (far + 1) * BATCH))
    assert time.perf_counter() - begun < 1.0  # counting through 80 million indices takes several seconds


def test_workers_resume_far_ahead_too(shards: ShardSet, tmp_path: Path) -> None:
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH, round_draws=4_000, policy=stratified())
    first = stateful(MixedDataset(mixer), 2)
    next(iter(first))
    state = first.state_dict()
    _move(state, 20_000)
    assert len(json.dumps(state, default=str)) < 3_000
    loader = stateful(MixedDataset(mixer), 2)
    loader.load_state_dict(state)
    batch = next(iter(loader))
    assert batch["draw"].tolist() == list(range(160_000, 160_008))
    assert batch["text"] == mixer.batch(160_000, BATCH).texts


def _move(state: Any, far: int) -> None:
    """Put a loader's state far ahead, as if it had yielded `far` batches."""
    for name, value in state.items():
        if name in ("_sampler_iter_yielded", "_num_yielded", "_snapshot_step"):
            state[name] = far
        elif name == "samples_yielded" or name == "next":
            state[name] = far * BATCH
        elif isinstance(value, dict):
            _move(value, far)


def test_the_default_sampler_resumes_too_only_slower(shards: ShardSet, tmp_path: Path) -> None:
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH)
    loader = StatefulDataLoader(MixedDataset(mixer), batch_size=BATCH)
    list(itertools.islice(loader, 3))
    state = loader.state_dict()
    other = StatefulDataLoader(MixedDataset(live_mixer(shards, tmp_path, step_draws=BATCH)), batch_size=BATCH)
    other.load_state_dict(state)
    assert next(iter(other))["draw"].tolist() == list(range(24, 32))


def test_a_loaders_state_is_of_one_run_and_rank(shards: ShardSet, tmp_path: Path) -> None:
    mixer = live_mixer(shards, tmp_path / "a", step_draws=BATCH)
    state = MixedDataset(mixer, rank=0, world_size=2).state_dict()
    with pytest.raises(LedgerError, match=r"of world_size 2, and here world_size is 1.*mixer.load_state_dict"):
        MixedDataset(mixer).load_state_dict(state)
    other = live_mixer(shards, tmp_path / "b", step_draws=BATCH, seed=9)
    with pytest.raises(LedgerError, match="this loader's state is of run"):
        MixedDataset(other, rank=0, world_size=2).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_second_iteration_is_refused(shards: ShardSet, tmp_path: Path, workers: int, persistent: bool) -> None:
    if persistent and not workers:
        return
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH, round_draws=1000)
    loader = DataLoader(
        MixedDataset(mixer), batch_size=BATCH, num_workers=workers, collate_fn=collate, persistent_workers=persistent
    )
    first = [batch["draw"].tolist() for batch in itertools.islice(loader, 3)]
    assert first[0] == list(range(8))
    with pytest.raises(PolicyError, match=r"from draw 0 was read through this dataset already, and would begin again"):
        next(iter(loader))
    assert next(iter(DataLoader(MixedDataset(mixer), batch_size=BATCH)))["draw"][0] == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_after_load_state_dict_the_same_loader_goes_on(shards: ShardSet, tmp_path: Path, workers: int) -> None:
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH, round_draws=1000)
    loader = DataLoader(MixedDataset(mixer), batch_size=BATCH, num_workers=workers, collate_fn=collate)
    list(itertools.islice(loader, 3))
    mixer.load_state_dict(mixer.state_dict(step=3))
    assert next(iter(loader))["draw"].tolist() == list(range(24, 32))


def test_shuffling_and_splitting_samplers_are_refused_where_they_are_made(shards: ShardSet, tmp_path: Path) -> None:
    dataset = MixedDataset(live_mixer(shards, tmp_path, step_draws=BATCH))
    sentence = (
        "cannot be read through a {}: the stream is endless, shuffled already and shared out over ranks. Leave shuffle"
    )
    with pytest.raises(PolicyError, match=sentence.format("RandomSampler")):
        DataLoader(dataset, batch_size=BATCH, shuffle=True)
    with pytest.raises(PolicyError, match=sentence.format("RandomSampler")):
        StatefulDataLoader(dataset, batch_size=BATCH, shuffle=True)
    with pytest.raises(PolicyError, match=sentence.format("RandomSampler")):
        list(RandomSampler(dataset, replacement=True, num_samples=4))
    with pytest.raises(PolicyError, match=sentence.format("DistributedSampler")):
        DistributedSampler(dataset, num_replicas=2, rank=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_indices_that_another_has_shared_out_are_refused(shards: ShardSet, tmp_path: Path, workers: int) -> None:
    """As accelerate does with batches: rank 0 of 2 would read every other batch of its half."""
    dataset = MixedDataset(live_mixer(shards, tmp_path, step_draws=BATCH, round_draws=10_000), rank=0, world_size=2)
    every_other = [list(range(at * BATCH, (at + 1) * BATCH)) for at in range(0, 40, 2)]
    loader = DataLoader(dataset, batch_sampler=every_other, num_workers=workers, collate_fn=collate)
    with pytest.raises(PolicyError, match=r"shares out again what MixedDataset has already shared out.*WholeStream"):
        list(loader)
    with pytest.raises(PolicyError, match="it shuffles the stream"):
        dataset.__getitems__([5, 3, 4])


def test_a_worker_that_is_late_may_begin_after_another_has_read_on(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = MixedDataset(live_mixer(shards, tmp_path, step_draws=BATCH))
    workers = [copy.copy(dataset) for _ in range(2)]  # a fork copies all but the memory that they share

    def asks(worker: int, batch: int, loop: int = 100) -> Any:
        info = SimpleNamespace(id=worker, num_workers=2, seed=loop + worker)
        monkeypatch.setattr("skillshard.torch.get_worker_info", lambda: info)
        return workers[worker].__getitems__(range(batch * BATCH, (batch + 1) * BATCH)).batch.texts

    found = [asks(1, 1), asks(1, 3), asks(0, 0), asks(0, 2)]
    expected = expected_texts(shards, tmp_path / "reference", steps=4, step_draws=BATCH)
    assert found == [expected[at] for at in (1, 3, 0, 2)]
    workers[0] = copy.copy(dataset)
    with pytest.raises(PolicyError, match="would begin again"):
        asks(0, 0, loop=300)


def test_collate_gives_what_the_default_collation_gives(shards: ShardSet, tmp_path: Path) -> None:
    items = MixedDataset(live_mixer(shards, tmp_path, step_draws=BATCH)).__getitems__(range(16))
    fast, slow = collate(items), default_collate(items)
    assert torch.equal(torch.from_numpy(fast["draw"]), slow["draw"])
    assert fast["draw"].dtype == np.int64
    assert (fast["skill"], fast["text"]) == (slow["skill"], slow["text"])
    assert items[2:4] == [items[2], items[3]]


def test_a_users_own_collation_gets_items(shards: ShardSet, tmp_path: Path) -> None:
    def lengths(items: Any) -> torch.Tensor:
        return torch.tensor([len(item["text"]) for item in items])

    mixer = live_mixer(shards, tmp_path, step_draws=BATCH)
    loader = DataLoader(MixedDataset(mixer), batch_size=BATCH, num_workers=1, collate_fn=lengths)
    assert next(iter(loader)).tolist() == [len(text) for text in mixer.batch(0, BATCH).texts]


def test_workers_may_be_spawned(shards: ShardSet, tmp_path: Path) -> None:
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH)
    loader = DataLoader(
        MixedDataset(mixer), batch_size=BATCH, num_workers=1, collate_fn=collate, multiprocessing_context="spawn"
    )
    assert next(iter(loader))["text"] == mixer.batch(0, BATCH).texts


def test_resume_in_one_process_is_load_state_dict(shards: ShardSet, tmp_path: Path) -> None:
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH)
    resume(mixer, mixer.state_dict(step=4))
    assert mixer.draw == 32


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_stream_that_ends_ends_the_loader_on_every_rank_at_the_same_step(
    shards: ShardSet, tmp_path: Path, workers: int, world_size: int
) -> None:
    counts = []
    for rank in range(world_size):
        mixer = live_mixer(shards, tmp_path, step_draws=BATCH * world_size, policy=stratified(), repeat="stop")
        dataset = MixedDataset(mixer, rank=rank, world_size=world_size)
        loader = DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate)
        counts.append([len(batch["text"]) for batch in loader])
    total = sum(len(batch) for batch in mixer.batches(100))
    assert all(sizes == counts[0] for sizes in counts)
    if world_size == 1:
        assert sum(counts[0]) == total
    else:
        assert counts[0] == [BATCH] * (total // (BATCH * world_size))
