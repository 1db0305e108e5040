"""`DataLoader` and `StatefulDataLoader` give a single stream for any number of workers, without silent loss or repetition."""

import copy
import itertools
import json
import pickle
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
    default_collate,
    random_split,
)
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length

from skillshard.errors import LedgerError, LengthError, PolicyError, RoundError
from skillshard.hf import WholeStream
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.torch import InOrder, MixedDataset, collate, one_index, restart, resume
from tests.adapters.trainers import expected_texts, live_mixer, losses_at, measured_mixer

BATCH = 8
pytestmark = pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")


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
    """The state is saved in the middle of a round, and loaded into a new mixer, dataset and loader."""
    expected = expected_texts(shards, tmp_path / "reference", steps=20, step_draws=BATCH)
    seen, saved = [], b""
    for start, end in [(0, stop), (stop, 20)]:
        mixer = measured_mixer(shards, tmp_path / "run", step_draws=BATCH)
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
    """The state stays small, and a resume after 10 ** 14 batches counts through no index, which would take years."""
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH)
    first = stateful(MixedDataset(mixer), 0)
    next(iter(first))
    state = first.state_dict()
    far = 10**14
    _move(state, far)
    assert len(json.dumps(state)) < 1_000
    loader = stateful(MixedDataset(mixer), 0)
    loader.load_state_dict(state)
    assert iter(loader)._next_index() == list(range(far * BATCH, (far + 1) * BATCH))


def test_workers_resume_far_ahead_too(shards: ShardSet, tmp_path: Path) -> None:
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH, round_draws=4_000, policy=stratified())
    first = stateful(MixedDataset(mixer), 2)
    next(iter(first))
    state = first.state_dict()
    _move(state, 20_000)
    mixer.round(40)  # the batches between would have decided the round
    assert len(json.dumps(state, default=str)) < 3_000
    loader = stateful(MixedDataset(mixer), 2)
    loader.load_state_dict(state)
    batch = next(iter(loader))
    assert batch["draw"].tolist() == list(range(160_000, 160_008))
    assert batch["text"] == mixer.batch(160_000, BATCH).text


def _move(state: Any, far: int) -> None:
    """Set the state of a loader far ahead, as if the loader had yielded `far` batches."""
    for name, value in state.items():
        if name in ("_sampler_iter_yielded", "_num_yielded", "_snapshot_step"):
            state[name] = far
        elif name == "samples_yielded" or name == "next":
            state[name] = far * BATCH
        elif isinstance(value, dict):
            _move(value, far)


def test_the_default_sampler_resumes_too_only_slower(shards: ShardSet, tmp_path: Path) -> None:
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH)
    loader = StatefulDataLoader(MixedDataset(mixer), batch_size=BATCH)
    list(itertools.islice(loader, 3))
    state = loader.state_dict()
    other = StatefulDataLoader(MixedDataset(measured_mixer(shards, tmp_path, step_draws=BATCH)), batch_size=BATCH)
    other.load_state_dict(state)
    assert next(iter(other))["draw"].tolist() == list(range(24, 32))


def test_a_loaders_state_is_of_one_run_and_rank(shards: ShardSet, tmp_path: Path) -> None:
    mixer = measured_mixer(shards, tmp_path / "a", step_draws=BATCH)
    state = MixedDataset(mixer, rank=0, world_size=2).state_dict()
    with pytest.raises(LedgerError, match=r"of world_size 2, and here world_size is 1.*mixer.load_state_dict"):
        MixedDataset(mixer).load_state_dict(state)
    other = measured_mixer(shards, tmp_path / "b", step_draws=BATCH, seed=9)
    with pytest.raises(LedgerError, match="this loader's state is of run"):
        MixedDataset(other, rank=0, world_size=2).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_second_iteration_is_refused(shards: ShardSet, tmp_path: Path, workers: int, persistent: bool) -> None:
    if persistent and not workers:
        return
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH, round_draws=1000)
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
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH, round_draws=1000)
    loader = DataLoader(MixedDataset(mixer), batch_size=BATCH, num_workers=workers, collate_fn=collate)
    list(itertools.islice(loader, 3))
    mixer.load_state_dict(mixer.state_dict(step=3))
    assert next(iter(loader))["draw"].tolist() == list(range(24, 32))


@pytest.mark.parametrize(
    "ask",
    [
        lambda dataset: len(DataLoader(dataset, batch_size=BATCH)),
        lambda dataset: len(DataLoader(dataset, batch_size=None)),
        lambda dataset: len(StatefulDataLoader(dataset, batch_size=BATCH)),
        lambda dataset: len(DataLoader(dataset, batch_size=BATCH, sampler=InOrder(dataset))),
        lambda dataset: len(DataLoader(dataset, batch_size=BATCH, sampler=InOrder())),
        lambda dataset: dataset[random.randrange(len(dataset))],
        lambda dataset: DataLoader(dataset, batch_size=BATCH, shuffle=True),
        lambda dataset: StatefulDataLoader(dataset, batch_size=BATCH, shuffle=True),
        lambda dataset: list(RandomSampler(dataset, replacement=True)),
        lambda dataset: DistributedSampler(dataset, num_replicas=2, rank=0),
        lambda dataset: DistributedSamplerWrapper(InOrder(dataset), num_replicas=2, rank=0),
        lambda dataset: ConcatDataset([dataset] * 3),
        lambda dataset: StackDataset(dataset),
        lambda dataset: random_split(dataset, [0.9, 0.1]),
        lambda dataset: random_split(dataset, [100, 10]),
        lambda dataset: LengthGroupedSampler(BATCH, dataset=dataset, model_input_name="text"),
        lambda dataset: [item["text"] for item in dataset],
        lambda dataset: list(reversed(dataset)),
        lambda dataset: OneCycleLR(
            SGD(torch.nn.Linear(1, 1).parameters()), 0.1, epochs=1, steps_per_epoch=len(DataLoader(dataset))
        ),
    ],
)
def test_an_endless_stream_has_no_length_for_schedules_samplers_and_walks(
    shards: ShardSet, tmp_path: Path, ask: Any
) -> None:
    dataset = MixedDataset(measured_mixer(shards, tmp_path, step_draws=BATCH))
    with pytest.raises(TypeError, match=r"max_steps|mixer\.batch\(first, num\)") as refused:
        ask(dataset)
    assert isinstance(refused.value, PolicyError)
    assert len([*tmp_path.rglob("rounds/*")]) <= 1, "a look at one sample decides one round"


def test_whoever_asks_whether_there_is_a_length_goes_on_without_one(shards: ShardSet, tmp_path: Path) -> None:
    dataset = MixedDataset(measured_mixer(shards, tmp_path, step_draws=BATCH))
    assert not has_length(dataset) and sized_len(DataLoader(dataset)) is None
    assert bool(dataset) and bool(InOrder(dataset))
    with pytest.raises(LengthError, match="the losses decide where its stream ends"):
        len(MixedDataset(measured_mixer(shards, tmp_path / "ends", step_draws=BATCH, repeat="stop")))


def test_samplers_that_need_no_length_are_served(shards: ShardSet, tmp_path: Path) -> None:
    expected = expected_texts(shards, tmp_path / "reference", steps=3, step_draws=BATCH)
    for number, make in enumerate(
        [
            lambda dataset: DataLoader(dataset, batch_size=BATCH, sampler=SequentialSampler(dataset)),
            lambda dataset: DataLoader(dataset, batch_sampler=BatchSampler(SequentialSampler(dataset), BATCH, False)),
            lambda dataset: DataLoader(dataset, batch_sampler=BatchSampler(InOrder(), BATCH, True)),
            lambda dataset: DataLoader(dataset, batch_sampler=[[*range(8)], [*range(8, 11)], [*range(11, 24)]]),
            lambda dataset: DataLoader(Subset(dataset, range(24)), batch_size=BATCH),
        ]
    ):
        dataset = MixedDataset(measured_mixer(shards, tmp_path / str(number), step_draws=BATCH, round_draws=40))
        batches = itertools.islice(make(dataset), 3)
        assert [text for batch in batches for text in batch["text"]] == [text for step in expected for text in step]


@pytest.mark.parametrize(
    ("indices", "sentence"),
    [
        ([5, 3, 4], r"indices 5 to 4, not one after the other: it shuffles.*no shuffle and no sampler.*random_split"),
        ([0, 1, 3], r"indices 0 to 3, not one after the other"),
        ([1, 3, 5], r"in steps of 2: a DistributedSampler.*use_distributed_sampler=False"),
        ([8, 9, 10], r"indices 8 to 10 first.*skip_first_batches.*ignore_data_skip=True.*WholeStream, which takes no"),
    ],
)
def test_an_order_that_would_lose_samples_is_refused_at_the_first_batch(
    shards: ShardSet, tmp_path: Path, indices: list[int], sentence: str
) -> None:
    dataset = MixedDataset(measured_mixer(shards, tmp_path, step_draws=BATCH))
    for sampled in (dataset, Subset(dataset, indices)):
        sampler = [list(range(3))] if isinstance(sampled, Subset) else [indices]
        with pytest.raises(PolicyError, match=sentence):
            list(DataLoader(sampled, batch_sampler=sampler))
        dataset = MixedDataset(measured_mixer(shards, tmp_path, step_draws=BATCH))


class Around(Dataset[Any]):
    """A user's dataset around the dataset of a stream, with a length of its own. Each item reads its sample twice."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 40

    def __getitem__(self, number: int) -> str:
        return f"{self.dataset[number]['skill']}: {self.dataset[number]['text']}"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [None, BATCH])
@pytest.mark.parametrize("make", [MixedDataset, WholeStream])
def test_a_dataset_around_the_stream_is_read_in_order_and_its_shuffle_and_second_epoch_are_refused(
    shards: ShardSet, tmp_path: Path, workers: int, batch_size: int | None, make: Any
) -> None:
    def loader(name: str, **arguments: Any) -> DataLoader[Any]:
        mixer = Mixer(shards, stratified(), ledger=tmp_path / name, round_draws=40)
        return DataLoader(Around(make(mixer)), batch_size=batch_size, num_workers=workers, **arguments)

    expected = Mixer(shards, stratified(), ledger=tmp_path / "expected", round_draws=40).batch(0, 40)
    in_order = loader("in-order")
    read = [text for batch in in_order for text in ([batch] if batch_size is None else batch)]
    assert read == [f"{skill}: {text}" for skill, text in zip(expected.skill, expected.text, strict=True)]
    with pytest.raises(PolicyError, match="was read through this dataset already, and would begin again"):
        list(in_order)
    shuffled = loader("shuffled", shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(PolicyError, match=r"not one after the other|first, and the stream begins at index 0"):
        list(shuffled)


@pytest.mark.parametrize("workers", [0, 2])
def test_indices_that_another_has_shared_out_are_refused(shards: ShardSet, tmp_path: Path, workers: int) -> None:
    """accelerate divides batches in this way: rank 0 of 2 would read every other batch of its half."""
    dataset = MixedDataset(measured_mixer(shards, tmp_path, step_draws=BATCH, round_draws=10_000), rank=0, world_size=2)
    every_other = [list(range(number * BATCH, (number + 1) * BATCH)) for number in range(0, 40, 2)]
    loader = DataLoader(dataset, batch_sampler=every_other, num_workers=workers, collate_fn=collate)
    with pytest.raises(PolicyError, match=r"shares out again what MixedDataset has already shared out.*WholeStream"):
        list(loader)


def test_an_iterator_does_not_go_on_elsewhere_when_the_mixer_was_moved(shards: ShardSet, tmp_path: Path) -> None:
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH, round_draws=1000)
    loader = DataLoader(MixedDataset(mixer), batch_size=BATCH, collate_fn=collate)
    batches = iter(loader)
    list(itertools.islice(batches, 3))
    mixer.load_state_dict(mixer.state_dict(step=3))
    with pytest.raises(PolicyError, match=r"mixer stands at draw 24, and stood at 0 when this iterator was begun"):
        next(batches)
    assert next(iter(loader))["draw"].tolist() == list(range(24, 32))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("in_order", [False, True])
def test_a_run_that_cannot_begin_says_so_where_the_loader_begins(
    shards: ShardSet, tmp_path: Path, workers: int, in_order: bool
) -> None:
    """The loader refuses at once, and not in a worker after `wait_s`."""

    def first(mixer: Mixer) -> Any:
        dataset = MixedDataset(mixer)
        sampler = InOrder(dataset) if in_order else None
        return next(
            iter(DataLoader(dataset, batch_size=BATCH, sampler=sampler, num_workers=workers, collate_fn=collate))
        )

    mixer = live_mixer(shards, tmp_path, step_draws=BATCH, wait_s=200.0)
    with pytest.raises(RoundError, match=r"^policy skill_it begins with the losses.*call mixer\.report\(0, losses\)"):
        first(mixer)
    mixer.report(0, losses_at(0))
    assert first(mixer)["draw"][0] == 0
    mixer.batch(0, 5 * BATCH)
    mixer.report(5, losses_at(5))
    again = live_mixer(shards, tmp_path, step_draws=BATCH, wait_s=200.0)
    with pytest.raises(LedgerError, match=r"holds losses of an earlier attempt, up to draw 40.*mixer\.restart\(\)"):
        first(again)
    with pytest.warns(UserWarning, match="resumed at draw 0"):
        again.restart()
    again.report(0, losses_at(1))
    assert first(again)["draw"][0] == 0


def test_a_restart_lets_the_same_dataset_begin_again(shards: ShardSet, tmp_path: Path) -> None:
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH)
    loader = DataLoader(MixedDataset(mixer), batch_size=BATCH, collate_fn=collate)
    batches = iter(loader)
    assert next(batches)["draw"][0] == 0
    with pytest.warns(UserWarning, match="resumed at draw 0"):
        restart(mixer)
    mixer.report(0, losses_at(1))
    with pytest.raises(PolicyError, match="Make a new iterator"):
        next(batches)
    assert next(iter(loader))["draw"][0] == 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("repeat", ["stop", "drop", "cap:2"])
def test_a_static_stream_that_ends_has_its_true_length(
    shards: ShardSet, tmp_path: Path, workers: int, world_size: int, repeat: str
) -> None:
    arguments: dict[str, Any] = {"policy": stratified(), "repeat": repeat, "round_draws": 40}
    expected = sum(len(batch) for batch in live_mixer(shards, tmp_path / "a", step_draws=1, **arguments).batches(100))
    mixer = live_mixer(shards, tmp_path / "b", step_draws=1, **arguments)
    assert mixer.length() == expected
    for rank in range(world_size):
        dataset = MixedDataset(mixer, rank=rank, world_size=world_size)
        loader = DataLoader(dataset, batch_size=9, num_workers=workers, collate_fn=collate)
        assert len(dataset) == len(dataset) == expected // world_size
        assert [*(tmp_path / "b").rglob("rounds/*")] == [] or rank
        length = len(loader)
        assert length == len([*loader])
        assert (
            len(DataLoader(dataset, batch_size=9, sampler=InOrder(dataset), drop_last=True))
            == expected // world_size // 9
        )
    mixer.load_state_dict(mixer.state_at(20).model_dump(by_alias=True))
    assert len(MixedDataset(mixer)) == expected - 20


@pytest.mark.parametrize(
    "make",
    [
        RandomSampler,
        lambda dataset: DistributedSampler(dataset, 2, 0),
        lambda dataset: DistributedSampler(dataset, 2, 1, shuffle=False),
    ],
)
def test_samplers_of_a_stream_with_a_length_are_refused_at_the_first_batch(
    shards: ShardSet, tmp_path: Path, make: Any
) -> None:
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH, policy=stratified(), repeat="stop")
    dataset = MixedDataset(mixer)
    with pytest.raises(PolicyError, match=r"it shuffles the stream|a DistributedSampler shares out again"):
        list(DataLoader(dataset, batch_size=BATCH, sampler=make(dataset)))
    with pytest.raises(PolicyError, match="it shuffles the stream"):
        list(DataLoader(random_split(MixedDataset(mixer), [0.5, 0.5])[0], batch_size=BATCH))


@pytest.mark.parametrize("index", [-1, slice(0, 3), 1.5, "0", None, 1 << 62])
def test_an_index_outside_the_stream_or_no_integer_is_refused(shards: ShardSet, tmp_path: Path, index: Any) -> None:
    dataset = MixedDataset(measured_mixer(shards, tmp_path, step_draws=BATCH))
    with pytest.raises(PolicyError, match=r"MixedDataset\[.*\]: an index is a whole number from 0"):
        one_index(index, "MixedDataset")
    assert dataset[np.int64(3)]["draw"] == 3


def test_a_worker_that_is_late_may_begin_after_another_has_read_on(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = MixedDataset(measured_mixer(shards, tmp_path, step_draws=BATCH))
    workers = [copy.copy(dataset) for _ in range(2)]  # a fork copies everything except the shared memory

    def asks(worker: int, batch: int, loop: int = 100) -> Any:
        info = SimpleNamespace(id=worker, num_workers=2, seed=loop + worker)
        monkeypatch.setattr("skillshard.torch.get_worker_info", lambda: info)
        return workers[worker].__getitems__(range(batch * BATCH, (batch + 1) * BATCH)).batch.text

    texts = [asks(1, 1), asks(1, 3), asks(0, 0), asks(0, 2)]
    expected = expected_texts(shards, tmp_path / "reference", steps=4, step_draws=BATCH)
    assert texts == [expected[number] for number in (1, 3, 0, 2)]
    workers[0] = copy.copy(dataset)
    with pytest.raises(PolicyError, match="would begin again"):
        asks(0, 0, loop=300)


def test_collate_gives_what_the_default_collation_gives(shards: ShardSet, tmp_path: Path) -> None:
    items = MixedDataset(measured_mixer(shards, tmp_path, step_draws=BATCH)).__getitems__(range(16))
    fast, slow = collate(items), default_collate(items)
    assert torch.equal(torch.from_numpy(fast["draw"]), slow["draw"])
    assert fast["draw"].dtype == np.int64
    assert (fast["skill"], fast["text"]) == (slow["skill"], slow["text"])
    assert items[2:4] == [items[2], items[3]]


def test_a_users_own_collation_gets_items(shards: ShardSet, tmp_path: Path) -> None:
    def lengths(items: Any) -> torch.Tensor:
        return torch.tensor([len(item["text"]) for item in items])

    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH)
    loader = DataLoader(MixedDataset(mixer), batch_size=BATCH, num_workers=1, collate_fn=lengths)
    assert next(iter(loader)).tolist() == [len(text) for text in mixer.batch(0, BATCH).text]


def test_workers_may_be_spawned(shards: ShardSet, tmp_path: Path) -> None:
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH)
    loader = DataLoader(
        MixedDataset(mixer), batch_size=BATCH, num_workers=1, collate_fn=collate, multiprocessing_context="spawn"
    )
    assert next(iter(loader))["text"] == mixer.batch(0, BATCH).text


def test_resume_in_one_process_is_load_state_dict(shards: ShardSet, tmp_path: Path) -> None:
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH)
    resume(mixer, mixer.state_dict(step=4))
    assert mixer.draw == 32


@pytest.mark.parametrize(
    "error", [LedgerError("another run."), OSError(28, "No space left on device"), TypeError("no state")]
)
def test_every_rank_learns_of_any_error_that_ends_the_resume_of_rank_0(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH)
    sent: list[Any] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda outcome, src: sent.extend(outcome))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(mixer, "load_state_dict", fail)
    with pytest.raises(type(error), match=re.escape(str(error))):
        resume(mixer, {})
    assert len(sent) == 1, "rank 0 must send its outcome before it raises, because the other ranks wait for it"

    def receive(outcome: list[Any], src: int) -> None:
        outcome[:] = sent

    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", receive)
    with pytest.raises(LedgerError, match="rank 0 could not resume: .*" + re.escape(str(error))):
        resume(mixer, {})


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("policy", [None, stratified()], ids=["live", "static"])
def test_a_stream_that_ends_gives_every_rank_as_many_samples_as_the_others(
    shards: ShardSet, tmp_path: Path, workers: int, world_size: int, policy: Any
) -> None:
    size = 9  # the streams of this corpus end within a batch of 9 samples
    drawn: list[list[list[int]]] = []
    for rank in range(world_size):
        mixer = measured_mixer(
            shards, tmp_path, step_draws=size * world_size, policy=policy, repeat="stop", round_draws=10_000
        )
        dataset = MixedDataset(mixer, rank=rank, world_size=world_size)
        loader = DataLoader(dataset, batch_size=size, num_workers=workers, collate_fn=collate)
        drawn.append([batch["draw"].tolist() for batch in loader])
    total = sum(len(batch) for batch in mixer.batches(100))
    assert total // world_size % size, "the corpus must end within a batch"
    for batches in drawn:
        rest = total // world_size % size
        assert [len(batch) for batch in batches] == [size] * (total // world_size // size) + [rest]
    everything = sorted(draw for batches in drawn for batch in batches for draw in batch)
    assert everything == list(range(total // world_size * world_size))


@pytest.mark.parametrize("rank", [0, 999])
@pytest.mark.parametrize("has_length", [True, False])
def test_a_stream_with_fewer_samples_than_ranks_is_refused_and_does_not_end_in_silence(
    has_length: bool, rank: int, shards: ShardSet, tmp_path: Path
) -> None:
    chosen = {"policy": stratified()} if has_length else {"initial_losses": False}
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH, repeat="drop", round_draws=4096, **chosen)
    dataset = MixedDataset(mixer, rank=rank, world_size=1000)
    loader = DataLoader(dataset, sampler=InOrder(dataset), batch_size=BATCH, collate_fn=collate)
    if has_length:
        with pytest.raises(PolicyError, match=r"the stream ends after 5\d\d draws, and world_size is 1,000"):
            len(loader)
    with pytest.raises(PolicyError, match=r"the stream has fewer draws, and world_size is 1,000: .* Give fewer ranks"):
        next(iter(loader))


def test_an_error_in_a_loader_worker_shows_its_traceback_as_lines(shards: ShardSet, tmp_path: Path) -> None:
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH, wait_s=0.1)
    mixer.report(0, losses_at(0))
    with pytest.raises(RoundError) as refused:
        for _ in DataLoader(MixedDataset(mixer), batch_size=BATCH, num_workers=1, collate_fn=len):
            pass
    first, second, *_, last = str(refused.value).strip().split("\n")
    assert first.startswith("Caught RoundError in DataLoader worker process 0")
    assert second == "Original Traceback (most recent call last):"
    assert last.startswith("skillshard.errors.RoundError: waited 0.1 s for round 2: the last observation is of draw 0")
