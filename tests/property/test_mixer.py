"""The stream is a function of shards, seed and ledger, for every reader and after any number of kills."""

import gc
import itertools
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import open_records
from skillshard.mixing.round_records import RoundRecord
from skillshard.policies import Policy, chain, floor, proportional, skill_it, stratified
from skillshard.shards.read import ShardSet
from skillshard.torch import MixedDataset

SKILLS = ("add", "carry", "negate")


def live() -> Policy:
    return chain(skill_it(SkillGraph.chain(SKILLS), eta=1.0, window=2), floor(0.02))


def losses_at(step: int) -> dict[str, float]:
    """Return the losses that a deterministic trainer would report."""
    return {skill: 2.0 / (1 + step * (number + 1) / 10) for number, skill in enumerate(SKILLS)}


def mixer(shards: ShardSet, ledger: Path, policy: Policy | None = None, **arguments: Any) -> Mixer:
    defaults: dict[str, Any] = {"round_draws": 60, "step_draws": 12, "wait_s": 1.0}
    policy = policy or live()
    if policy.reads_losses:
        defaults["initial_losses"] = False
    return Mixer(shards, policy, ledger=ledger, **(defaults | arguments))


def train(stream: Mixer, *, start: int, stop: int, world_size: int = 1) -> list[str]:
    """Train steps start .. stop - 1, report after every fifth step, and return the ids that were seen."""
    assert stream.step_draws is not None
    seen = []
    for step in range(start, stop):
        first = stream.state_dict(step=step)["draw"]
        for rank in range(world_size):
            share = stream.at(first + rank + world_size * np.arange(stream.step_draws // world_size))
            assert len(share.text) == stream.step_draws // world_size
        seen += stream.ids(first, stream.step_draws)
        if (step + 1) % 5 == 0:
            stream.report(step + 1, losses_at(step + 1))
    return seen


@pytest.fixture(scope="module")
def whole(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the ids of an undisturbed run of 60 steps."""
    return train(mixer(shards, tmp_path_factory.mktemp("ledger")), start=0, stop=60)


def test_weights_follow_the_losses_and_counts_follow_the_weights(shards: ShardSet, tmp_path: Path) -> None:
    stream = mixer(shards, tmp_path)
    train(stream, start=0, stop=60)
    rounds = [stream.round(number) for number in range(12)]
    assert rounds[0].weights != rounds[-1].weights
    assert [record.observations for record in rounds[:4]] == [[], [], [60], [120]]
    assert all(sum(record.counts) == 60 for record in rounds)


@given(kills=st.lists(st.integers(1, 59), max_size=4), data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_killed_anywhere_goes_on_with_the_same_stream(
    shards: ShardSet, whole: list[str], kills: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ledger = tmp_path_factory.mktemp("ledger")
    seen: list[str] = []
    saved: dict[str, Any] | None = None
    for killed_at in [*sorted(kills), 60]:
        stream = mixer(shards, ledger)
        start = 0
        if saved is not None:
            start = saved["step"]
            with_warning = pytest.warns(UserWarning, match="left behind") if has_later(stream, saved["draw"]) else None
            if with_warning is None:
                stream.load_state_dict(saved)
            else:
                with with_warning:
                    stream.load_state_dict(saved)
        seen = seen[: start * 12] + train(
            stream, start=start, stop=killed_at, world_size=data.draw(st.sampled_from([1, 2, 4]))
        )
        saved = stream.state_dict(step=data.draw(st.integers(start, killed_at)))
    assert seen == whole


def has_later(stream: Mixer, draw: int) -> bool:
    return any(record.draw > draw for record in open_records(stream.ledger).observations)


def test_a_mixer_can_be_resumed_at_every_draw(shards: ShardSet, tmp_path: Path) -> None:
    stream = mixer(shards, tmp_path, stratified(), round_draws=17)
    expected = [sample.text for sample in itertools.islice(stream, 105)]
    states = [stream.state_at(draw).model_dump(by_alias=True) for draw in range(100)]
    for draw, state in enumerate(states):
        other = mixer(shards, tmp_path, stratified(), round_draws=17)
        other.load_state_dict(state)
        assert [sample.text for sample in itertools.islice(other, 5)] == expected[draw : draw + 5]
        assert other.draw == draw + 5


def test_iterating_batches_and_asking_for_draws_give_the_same(shards: ShardSet, tmp_path: Path) -> None:
    stream = mixer(shards, tmp_path, proportional())
    by_sample = list(itertools.islice(stream, 130))
    other = mixer(shards, tmp_path, proportional())
    batches = list(itertools.islice(other.batches(13), 10))
    assert [sample.text for sample in by_sample] == [text for batch in batches for text in batch.text]
    assert [sample.skill for sample in by_sample] == [skill for batch in batches for skill in batch.skill]
    scattered = stream.at(np.array([129, 0, 61, 60]))
    assert scattered.text == [by_sample[draw].text for draw in (129, 0, 61, 60)]


def test_a_skill_gives_all_its_samples_before_it_repeats_one(shards: ShardSet, tmp_path: Path) -> None:
    stream = mixer(shards, tmp_path, stratified())
    ids = stream.ids(0, 600)
    for skill in SKILLS:
        size = len(shards.train[skill])
        of_skill = [identity for identity in ids if identity.startswith(skill)]
        assert abs(len(of_skill) - 200) <= 1
        for start in range(0, len(of_skill), size):
            epoch = of_skill[start : start + size]
            assert len(set(epoch)) == len(epoch)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_a_data_loader_gives_the_same_batches_for_any_number_of_workers(
    shards: ShardSet, tmp_path: Path, num_workers: int
) -> None:
    stream = mixer(shards, tmp_path, lag=1)
    loader = DataLoader(
        MixedDataset(stream), batch_size=12, num_workers=num_workers, prefetch_factor=1 if num_workers else None
    )
    seen = []
    for step, batch in enumerate(itertools.islice(loader, 30), start=1):
        seen += batch["draw"].tolist()
        assert batch["text"] == stream.batch((step - 1) * 12, 12).text
        if step % 5 == 0:
            stream.report(step, losses_at(step))
    assert seen == list(range(360))


@given(split=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4)), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_split_over_ranks_gives_the_one_stream(
    shards: ShardSet, whole: list[str], split: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each stretch has its own number of ranks. A batch of all ranks together has 24 samples."""
    stream = mixer(shards, tmp_path_factory.mktemp("ledger"), step_draws=24)
    reference = mixer(shards, tmp_path_factory.mktemp("ledger"), step_draws=24)
    first = 0
    for world_size, _ in split:
        per_rank = 24 // world_size
        for _ in range(2):
            datasets = [MixedDataset(stream, rank=rank, world_size=world_size) for rank in range(world_size)]
            stream._draw = first
            shares = [dataset.__getitems__(list(range(per_rank))) for dataset in datasets]
            union = sorted((item for share in shares for item in share), key=lambda item: item["draw"])
            num = per_rank * world_size
            assert [item["draw"] for item in union] == list(range(first, first + num))
            for each in (stream, reference):
                if first + num >= 60 and first < 60:
                    each.report(0, losses_at(1), draw=60)
                if first + num >= 120 and first < 120:
                    each.report(1, losses_at(2), draw=120)
            assert [item["text"] for item in union] == reference.batch(first, num).text
            first += num


def test_the_initial_graph_weights_decide_the_first_rounds(shards: ShardSet, tmp_path: Path) -> None:
    record = mixer(shards, tmp_path).round(0)
    expected = np.exp([1.5, 1.5, 1.0]) / np.exp([1.5, 1.5, 1.0]).sum() * (1 - 3 * 0.02) + 0.02
    np.testing.assert_allclose(record.weights, expected)
    assert isinstance(record, RoundRecord)


def test_counts_add_up_over_the_whole_stream(shards: ShardSet, tmp_path: Path) -> None:
    stream = mixer(shards, tmp_path, stratified(), round_draws=7)
    drawn = Counter(stream.batch(0, 7 * 50).skill)
    assert all(abs(drawn[skill] - 7 * 50 / 3) < 1 for skill in SKILLS)


def test_a_mixer_that_is_dropped_gives_its_memory_maps_back_at_once(shards: ShardSet, tmp_path: Path) -> None:
    stream = mixer(shards, tmp_path, stratified())
    assert stream.samples.cut(stream.find(np.arange(50))).text == stream.batch(0, 50).text
    reference = weakref.ref(stream)
    gc.disable()
    try:
        del stream
        assert reference() is None
    finally:
        gc.enable()
