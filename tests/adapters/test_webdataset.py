"""A pipeline of `webdataset` over the stream gives the samples of the shards, in the one order, for any workers and ranks."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader, RandomSampler, random_split

from skillshard.errors import LedgerError, LengthError, PolicyError, RoundError
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.webdataset import MixedSamples
from tests.adapters.trainers import expected_texts, live_mixer, losses_at, measured_mixer

BATCH = 8


def text_and_draw(sample: dict[str, Any]) -> dict[str, Any]:
    return {"text": sample["txt"].decode(), "draw": sample["draw"]}


def loader(mixer: Mixer, workers: int = 0, **place: int) -> "webdataset.WebLoader":
    samples = MixedSamples(mixer, batch_size=BATCH, **place).map(text_and_draw).listed(BATCH)
    return webdataset.WebLoader(samples, batch_size=None, num_workers=workers)


def texts(batch: list[dict[str, Any]]) -> list[str]:
    return [sample["text"] for sample in batch]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves files to the garbage collector
def test_a_sample_is_the_sample_that_webdataset_reads_from_the_shard(shards: ShardSet, tmp_path: Path) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path, round_draws=40)
    read = list(itertools.islice(MixedSamples(mixer, batch_size=BATCH), 100))
    assert [sample["draw"] for sample in read] == list(range(100))
    assert len({sample["__url__"] for sample in read}) > 3
    for url in {sample["__url__"] for sample in read}:
        plain = {
            sample["__key__"]: sample
            for sample in webdataset.WebDataset(url, shardshuffle=False, nodesplitter=None, workersplitter=None)
        }
        for sample in read:
            if sample["__url__"] == url:
                ours = {name: sample[name] for name in ("__key__", "txt", "json")}
                assert ours == {name: plain[sample["__key__"]][name] for name in ours}
                assert json.loads(sample["json"])["skill"] == sample["skill"]
                assert str(plain[sample["__key__"]]["__url__"]) == url


def test_decoding_and_batching_work_as_with_webdataset(shards: ShardSet, tmp_path: Path) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path, round_draws=40)
    pipeline = MixedSamples(mixer, batch_size=BATCH).decode(partial=True).to_tuple("txt", "json", "draw").batched(BATCH)
    batch_texts, members, draws = next(iter(pipeline))
    assert list(batch_texts) == mixer.batch(0, BATCH).text
    assert [member["id"] for member in members] == mixer.ids(0, BATCH)
    assert np.array(draws).tolist() == list(range(BATCH))


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 3), (3, 0)])
@pytest.mark.parametrize("stop", [1, 7, 13])
def test_a_run_goes_on_with_the_next_batch_and_other_workers(
    shards: ShardSet, tmp_path: Path, stop: int, before: int, after: int
) -> None:
    expected = expected_texts(shards, tmp_path / "reference", steps=20, step_draws=BATCH)
    seen, state = [], None
    for start, end, workers in [(0, stop, before), (stop, 20, after)]:
        mixer = measured_mixer(shards, tmp_path / "run", step_draws=BATCH)
        if state is not None:
            mixer.load_state_dict(state)
        for step, batch in zip(range(start + 1, end + 1), loader(mixer, workers), strict=False):
            seen.append(texts(batch))
            assert [sample["draw"] for sample in batch] == list(range((step - 1) * BATCH, step * BATCH))
            if step % 5 == 0:
                mixer.report(step, losses_at(step))
        state = mixer.state_dict(step=end)
    assert seen == expected


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("repeat", ["epochs", "stop"])
def test_the_ranks_share_the_one_stream(
    shards: ShardSet, tmp_path: Path, world_size: int, workers: int, repeat: str
) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path, round_draws=40, repeat=repeat)
    most = 4 if repeat == "epochs" else None
    ranks = [
        [
            sample
            for batch in itertools.islice(loader(mixer, workers, rank=rank, world_size=world_size), most)
            for sample in batch
        ]
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    merged = [sample for together in zip(*ranks, strict=True) for sample in together]
    assert [sample["draw"] for sample in merged] == list(range(len(merged)))
    assert texts(merged) == mixer.batch(0, len(merged)).text
    if repeat == "stop":
        length = mixer.length()
        assert length is not None and length - world_size < len(merged) <= length


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_loop_is_refused(shards: ShardSet, tmp_path: Path, workers: int) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path, round_draws=40, step_draws=BATCH)
    batches = loader(mixer, workers).with_epoch(3)
    assert len(list(batches)) == 3
    with pytest.raises(PolicyError, match=r"read through this dataset already, and would begin again.*MixedSamples"):
        next(iter(batches))
    mixer.load_state_dict(mixer.state_dict(step=3))
    assert next(iter(batches))[0]["draw"] == 3 * BATCH


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_cannot_begin_says_so_at_once(shards: ShardSet, tmp_path: Path, workers: int) -> None:
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH, wait_s=200.0)
    with pytest.raises(RoundError, match=r"policy skill_it begins with the losses.*call mixer\.report\(0, losses\)"):
        next(iter(loader(mixer, workers)))
    mixer.report(0, losses_at(0))
    assert next(iter(loader(mixer, workers)))[0]["draw"] == 0
    mixer.batch(0, 5 * BATCH)
    mixer.report(5, losses_at(5))
    with pytest.raises(LedgerError, match=r"holds losses of an earlier attempt, up to draw 40.*mixer\.restart\(\)"):
        loader(live_mixer(shards, tmp_path, step_draws=BATCH))


def test_an_order_or_a_size_that_would_lose_samples_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=40)
    samples = MixedSamples(mixer, batch_size=BATCH).map(text_and_draw)
    with pytest.raises(PolicyError, match=r"^MixedSamples\.shuffle\(100\): the stream is shuffled already"):
        samples.shuffle(100)
    for cache in (samples.mcached, lambda: samples.lmdb_cached(str(tmp_path / "cache"))):
        with pytest.raises(PolicyError, match=r"cached\(\) keeps an endless stream and gives its first samples again"):
            cache()
    asking: list[Callable[[Any], Any]] = [
        len,
        lambda samples: len(DataLoader(samples, batch_size=None)),
        lambda samples: len(samples.batched(BATCH)),
        lambda samples: RandomSampler(samples),
        lambda samples: random_split(samples, [0.9, 0.1]),
    ]
    for ask in asking:
        with pytest.raises(LengthError, match=r"^MixedSamples has no length: count optimizer steps"):
            ask(samples)
    assert samples and samples.batched(BATCH)
    with pytest.raises(PolicyError, match=r"^MixedSamples\.select\(\) leaves samples out.*8 draws for each batch"):
        samples.select(bool)
    with pytest.raises(PolicyError, match=r"^MixedSamples\.rsample\(\) leaves samples out"):
        samples.rsample(0.5)
    stages = (
        (webdataset.shuffle(100), r"^MixedSamples\.shuffle\(100\): the stream is shuffled already"),
        (webdataset.detshuffle(100), r"^MixedSamples\.shuffle\(\): the stream is shuffled already"),
        (webdataset.select(bool), r"^MixedSamples\.select\(\) leaves samples out"),
        (webdataset.slice(8, 16), r"^MixedSamples\.slice\(\) leaves samples out"),
        (webdataset.slice(0, 16, 2), r"^MixedSamples\.slice\(\) leaves samples out"),
        (webdataset.split_by_worker, r"^MixedSamples with split_by_worker: each rank and each worker reads its share"),
        (webdataset.split_by_node, r"^MixedSamples with split_by_node: .*would lose samples\. Leave split_by_node out"),
        (webdataset.batched(4), r"^batches of 4 samples, and MixedSamples\(batch_size=8\)"),
        (webdataset.batched(), r"^batches of 20 samples, and MixedSamples\(batch_size=8\)"),
    )
    for stage, sentence in stages:
        for add in (samples.compose, samples.append):
            with pytest.raises(PolicyError, match=sentence):
                add(stage)
    assert [sample["draw"] for sample in samples.slice(3)] == [0, 1, 2]
    with pytest.raises(PolicyError, match=r"^batches of 16 samples, and MixedSamples\(batch_size=8\)"):
        samples.batched(16)
    with pytest.raises(PolicyError, match=r"^batches of 4 samples, and MixedSamples\(batch_size=8\)"):
        samples.listed(4)
    with pytest.raises(PolicyError, match=r"^batch_size is 0"):
        MixedSamples(mixer, batch_size=0)
    with pytest.raises(PolicyError, match=r"^Mixer\(lag=0\) waits.*a pipeline of webdataset reads a batch ahead"):
        MixedSamples(live_mixer(shards, tmp_path / "strict", step_draws=BATCH, lag=0), batch_size=BATCH)


def drawn(sample: dict[str, Any]) -> int:
    return int(sample["draw"])


def unchanged(batch: Any) -> Any:
    return batch


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("stages", "batch_size"),
    [
        (lambda samples: samples, BATCH // 2),
        (lambda samples: samples, BATCH),
        (lambda samples: samples, 2 * BATCH),
        (lambda samples: samples, None),
        (lambda samples: samples.listed(BATCH), None),
        (lambda samples: samples.listed(BATCH), 1),
        (lambda samples: samples.listed(BATCH), 2),
        (lambda samples: samples.listed(BATCH).unlisted(), BATCH // 2),
        (lambda samples: samples.listed(BATCH).unlisted(), BATCH),
    ],
)
def test_a_loader_with_any_batch_size_reads_the_draws_in_order_or_is_refused(
    shards: ShardSet, tmp_path: Path, workers: int, stages: Any, batch_size: int | None
) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path, round_draws=40)
    samples = stages(MixedSamples(mixer, batch_size=BATCH).map(drawn))
    loader = webdataset.WebLoader(samples, batch_size=batch_size, num_workers=workers, collate_fn=unchanged)
    samples_per_output = np.size(next(iter(stages(MixedSamples(mixer, batch_size=BATCH).map(drawn)))))
    is_whole = (batch_size or 1) * samples_per_output == BATCH
    if workers < 2 or is_whole:
        draws = np.concatenate([np.ravel(batch) for batch in itertools.islice(loader, 12)])
        assert draws.tolist() == list(range(len(draws)))
        return
    with pytest.raises(
        PolicyError, match=r"the loader takes \d+ samples of a worker in turn, and each of the \d workers"
    ):
        next(iter(loader))


def without_draw_20(sample: dict[str, Any]) -> int | None:
    return None if sample["draw"] == 20 else int(sample["draw"])


def failing(sample: dict[str, Any]) -> int:
    if sample["draw"] == 20:
        raise ValueError("a bad sample")
    return int(sample["draw"])


def collected(samples: Iterable[Any]) -> Iterator[Any]:
    yield from list(itertools.islice(samples, 16))


def doubled(samples: Iterable[Any]) -> Iterator[Any]:
    for sample in samples:
        yield from (sample, sample)


@pytest.mark.parametrize(
    "stages",
    [
        lambda samples: samples.map(without_draw_20),
        lambda samples: samples.map(without_draw_20).listed(BATCH),
        lambda samples: samples.map(failing, handler=webdataset.ignore_and_continue).listed(BATCH),
        lambda samples: samples.map(lambda sample: None),
        lambda samples: samples.compose(collected).listed(BATCH),
        lambda samples: samples.compose(doubled),
        lambda samples: samples.compose(doubled).listed(BATCH),
        lambda samples: samples.listed(BATCH).unlisted().map(without_draw_20),
    ],
)
def test_a_stage_with_another_number_of_outputs_than_samples_is_refused_within_three_batches(
    shards: ShardSet, tmp_path: Path, stages: Callable[[Any], Any]
) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=40)
    samples = stages(MixedSamples(mixer, batch_size=BATCH))
    with pytest.raises(
        PolicyError, match=r"^a stage behind MixedSamples (leaves samples out|makes several outputs)"
    ) as refused:
        list(itertools.islice(samples, 100))
    assert "\n" not in str(refused.value)
    assert mixer.num_rounds <= 2


@pytest.mark.parametrize(
    "stages",
    [
        lambda samples: samples.map(text_and_draw),
        lambda samples: samples.map(text_and_draw).listed(BATCH).unlisted(),
        lambda samples: samples.map(text_and_draw).listed(BATCH).map(list).unlisted().listed(BATCH).unlisted(),
    ],
)
def test_stages_with_an_output_for_each_sample_read_the_stream_on_and_on(
    shards: ShardSet, tmp_path: Path, stages: Callable[[Any], Any]
) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=40)
    outputs = list(itertools.islice(stages(MixedSamples(mixer, batch_size=BATCH)), 100))
    assert [output["draw"] for output in outputs] == list(range(100))
