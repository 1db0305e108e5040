"""Grain's own DataLoader reads the stream: in one order for any workers, with its own checkpoint, in any number of threads."""

import itertools
import json
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain.python as grain
import numpy as np
import pytest

from skillshard.errors import LedgerError, PolicyError
from skillshard.grain import MixedSource, PackedSource
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packed_batch import BLOCK_COLUMNS, COLUMNS
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.torch import PackedDataset, PackedTensors
from tests.adapters.packed_trainer import Source
from tests.adapters.trainers import expected_items, expected_texts, live_mixer, losses_at, measured, measured_mixer
from tests.conftest import REPOSITORY

BATCH = 8


def loader(source: MixedSource, workers: int = 0, shard: int = 0, num_shards: int = 1) -> Any:
    options = grain.ShardOptions(shard_index=shard, shard_count=num_shards, drop_remainder=True)
    return grain.DataLoader(
        data_source=source,
        sampler=grain.SequentialSampler(len(source), shard_options=options),
        worker_count=workers,
        read_options=grain.ReadOptions(num_threads=4, prefetch_buffer_size=40),
    )


def static(shards: ShardSet, ledger: Path, **arguments: Any) -> Mixer:
    return Mixer(shards, stratified(), ledger=ledger, round_draws=40, step_draws=BATCH, **arguments)


@pytest.mark.parametrize("stop", [1, 7, 13])
def test_grains_checkpoint_goes_on_with_the_next_batch(shards: ShardSet, tmp_path: Path, stop: int) -> None:
    """Both states are saved in the middle of a live run and loaded into a new mixer, source and loader. Grain reads far ahead."""
    expected = expected_texts(shards, tmp_path / "reference", steps=20, step_draws=BATCH)
    seen, saved, names = [], b"", set()
    for start, end in [(0, stop), (stop, 20)]:
        mixer = measured_mixer(shards, tmp_path / "run", step_draws=BATCH)
        source = MixedSource(mixer, num_draws=20 * BATCH, batch_size=BATCH)
        names.add(repr(source))
        iterator = iter(loader(source))
        if saved:
            state = pickle.loads(saved)
            mixer.load_state_dict(state["mixer"])
            iterator.set_state(state["iterator"])
        for step, batch in zip(range(start + 1, end + 1), iterator, strict=False):
            seen.append(batch["text"])
            assert batch["draw"].tolist() == list(range((step - 1) * BATCH, step * BATCH))
            if step % 5 == 0:
                mixer.report(step, losses_at(step))
            if step == end:
                saved = pickle.dumps({"mixer": mixer.state_dict(step=step), "iterator": iterator.get_state()})
    assert seen == expected
    assert len(names) == 1  # Grain refuses a checkpoint whose source has another name


def test_workers_and_shards_of_grain_share_the_one_stream(shards: ShardSet, tmp_path: Path) -> None:
    mixer = static(shards, tmp_path)
    source = MixedSource(mixer, num_draws=15 * BATCH, batch_size=BATCH)
    for workers, num_shards in [(0, 3), (2, 1)]:
        ranks = [
            [batch["draw"].tolist() for batch in loader(source, workers, shard, num_shards)]
            for shard in range(num_shards)
        ]
        merged = [batch for together in zip(*ranks, strict=True) for batch in together]
        assert merged == [list(range(first, first + BATCH)) for first in range(0, 15 * BATCH, BATCH)]


def test_a_record_without_a_batch_size_is_a_sample(shards: ShardSet, tmp_path: Path) -> None:
    mixer = static(shards, tmp_path, fields=("id",))
    source = MixedSource(mixer, num_draws=100)
    assert len(source) == 100
    expected = mixer.batch(0, 100)
    assert [record["text"] for record in loader(source)] == expected.text
    assert source[7] == {"draw": 7, "skill": expected.skill[7], "text": expected.text[7], "id": mixer.ids(7, 1)[0]}
    assert source._getitems([3, 99]) == source.__getitems__([3, 99]) == [source[3], source[99]]
    dataset = grain.MapDataset.source(source).map(lambda record: record["draw"]).batch(10)
    assert [list(map(int, batch)) for batch in dataset] == np.arange(100).reshape(10, 10).tolist()


def test_a_run_goes_on_with_another_number_of_shards_by_the_mixers_state_alone(
    shards: ShardSet, tmp_path: Path
) -> None:
    mixer = static(shards, tmp_path)
    source = MixedSource(mixer, num_draws=13 * BATCH, batch_size=BATCH)
    mixer.load_state_dict(mixer.state_dict(step=4))
    rest = grain.MapDataset.source(source)[mixer.position // BATCH :]
    ranks = [[record["draw"].tolist() for record in rest[rank::3]] for rank in range(3)]
    merged = [batch for together in zip(*ranks, strict=True) for batch in together]
    assert merged == [list(range(first, first + BATCH)) for first in range(4 * BATCH, 13 * BATCH, BATCH)]


def test_threads_read_the_same_records_while_the_trainer_reports(shards: ShardSet, tmp_path: Path) -> None:
    steps = 40
    expected = expected_texts(shards, tmp_path / "reference", steps=steps, step_draws=BATCH)
    mixer = measured_mixer(shards, tmp_path / "run", step_draws=BATCH)
    source = MixedSource(mixer, num_draws=steps * BATCH, batch_size=BATCH)
    begin = threading.Barrier(8)

    def read(thread: int) -> list[list[str]]:
        begin.wait()
        return [source[step]["text"] for step in range(steps)]

    with ThreadPoolExecutor(8) as threads:
        reads = [threads.submit(read, thread) for thread in range(8)]
        for step in range(1, steps + 1):
            assert source[step - 1]["text"] == expected[step - 1]
            if step % 5 == 0:
                mixer.report(step, losses_at(step))
        assert all(future.result() == expected for future in reads)


def test_a_copy_in_another_process_is_the_same_source(shards: ShardSet, tmp_path: Path) -> None:
    source = MixedSource(static(shards, tmp_path), num_draws=64, batch_size=BATCH)
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source) and copy[5]["text"] == source[5]["text"]


def test_the_length_is_stated_once_and_counts_from_draw_0(shards: ShardSet, tmp_path: Path) -> None:
    mixer = static(shards, tmp_path / "run")
    source = MixedSource(mixer, num_draws=1001, batch_size=BATCH)
    assert (len(source), source.num_draws) == (125, 1001)
    mixer.load_state_dict(mixer.state_dict(step=3))
    again = MixedSource(mixer, num_draws=1001, batch_size=BATCH)
    assert (len(again), repr(again)) == (len(source), repr(source))
    assert again[3]["draw"][0] == 24
    ends = static(shards, tmp_path / "ends", repeat="stop")
    assert len(MixedSource(ends)) == ends.length()
    with pytest.raises(PolicyError, match=rf"num_draws is 10,000.*the stream ends after {ends.length()} draws"):
        MixedSource(ends, num_draws=10_000)


def test_a_reader_that_would_lose_or_repeat_samples_gets_a_sentence(shards: ShardSet, tmp_path: Path) -> None:
    mixer = static(shards, tmp_path / "run")
    source = MixedSource(mixer, num_draws=10**9, batch_size=BATCH)
    shuffled = grain.MapDataset.source(source).seed(1).shuffle()
    with pytest.raises(PolicyError, match=r"a look so far ahead would decide.*Read the stream in order"):
        shuffled[0]
    assert mixer.num_rounds == 0
    with pytest.raises(PolicyError, match=r"read by its indices, and not item by item"):
        next(iter(source))
    for index in (-1, 10**9 // BATCH):
        with pytest.raises(IndexError, match=r"the records are 0 to 124,999,999"):
            source[index]
    mixer.load_state_dict(mixer.state_dict(step=5))
    with pytest.raises(PolicyError, match=r"asks MixedSource for draw 0, and the stream was resumed at draw 40"):
        next(iter(loader(source)))
    assert source[5]["draw"][0] == 40


def test_a_mixer_that_does_not_fit_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    def make(number: int, **arguments: Any) -> Mixer:
        return live_mixer(shards, tmp_path / str(number), step_draws=BATCH, **arguments)

    with pytest.raises(PolicyError, match=r"^Mixer\(lag=0\) waits.*Grain reads a batch ahead"):
        MixedSource(make(0, lag=0), num_draws=100)
    with pytest.raises(PolicyError, match=r"^Mixer\(lag='live'\).*Grain reads hundreds of samples ahead"):
        MixedSource(make(1, lag="live"), num_draws=100)
    with pytest.raises(PolicyError, match=r"the losses decide where a stream with repeat='stop' ends"):
        MixedSource(make(2, repeat="stop"), num_draws=100)
    with pytest.raises(PolicyError, match=r"^the stream is endless.*num_draws=\.\.\."):
        MixedSource(make(3))
    for num_draws, batch_size in [(0, None), (100, 0), (100, 101)]:
        with pytest.raises(PolicyError, match=r"^(num_draws|batch_size) is "):
            MixedSource(make(4), num_draws=num_draws, batch_size=batch_size)


def test_a_loader_over_a_run_with_losses_but_without_the_mixers_state_is_refused(
    shards: ShardSet, tmp_path: Path
) -> None:
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH)
    mixer.batch(0, 5 * BATCH)
    mixer.report(5, losses_at(5))
    again = live_mixer(shards, tmp_path, step_draws=BATCH)
    source = MixedSource(again, num_draws=400, batch_size=BATCH)
    with pytest.raises(LedgerError, match=r"holds losses of an earlier attempt"):
        next(itertools.islice(loader(source), 1))


ENDS_EARLY = """
import sys
from pathlib import Path
from skillshard.grain import MixedSource
from tests.adapters.test_grain import loader
from tests.adapters.trainers import measured_mixer

mixer = measured_mixer(sys.argv[1], Path(sys.argv[2]), step_draws=8, wait_s=250.0)
print(next(iter(loader(MixedSource(mixer, num_draws=8000, batch_size=8))))["draw"][0])
"""


def test_a_program_ends_at_once_although_grains_threads_wait_for_losses(shards: ShardSet, tmp_path: Path) -> None:
    begun = time.monotonic()
    command = [sys.executable, "-c", ENDS_EARLY, str(shards.root), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=REPOSITORY)
    assert (ended.returncode, ended.stdout) == (0, "0\n"), ended.stderr
    assert time.monotonic() - begun < 200


# --- packed blocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 8])
def test_grains_checkpoint_goes_on_with_the_next_batch_of_blocks(blocks: Source, tmp_path: Path, stop: int) -> None:
    expected = expected_items(blocks.stream(tmp_path / "reference", step_items=BATCH), steps=14, step_items=BATCH)
    seen, saved, names = [], b"", set()
    for start, end in [(0, stop), (stop, 14)]:
        packed = measured(blocks.stream(tmp_path / "run", step_items=BATCH))
        assert isinstance(packed, PackedTokens)
        source = PackedSource(packed, num_blocks=14 * BATCH, batch_size=BATCH)
        names.add(repr(source))
        iterator = iter(loader(source))
        if saved:
            state = pickle.loads(saved)
            assert len(json.dumps(state["packed"])) < 1000
            packed.load_state_dict(state["packed"])
            iterator.set_state(state["iterator"])
        for step, batch in zip(range(start + 1, end + 1), iterator, strict=False):
            seen.append(batch["input_ids"].tolist())
            assert batch["block"].tolist() == list(range((step - 1) * BATCH, step * BATCH))
            if step % 5 == 0:
                packed.report(step, losses_at(step))
            if step == end:
                saved = pickle.dumps({"packed": packed.state_dict(step=step), "iterator": iterator.get_state()})
    assert seen == expected
    assert len(names) == 1


def test_workers_threads_and_shards_of_grain_read_the_same_blocks(blocks: Source, tmp_path: Path) -> None:
    packed = blocks.stream(tmp_path, step_items=BATCH, policy=stratified())
    assert isinstance(packed, PackedTokens)
    source = PackedSource(packed, num_blocks=15 * BATCH, batch_size=BATCH, columns=("input_ids", "cu_seqlens"))
    expected = [packed.batch(first, BATCH).input_ids.tolist() for first in range(0, 15 * BATCH, BATCH)]
    for workers, num_shards in [(0, 3), (2, 1)]:
        ranks = [
            [batch["input_ids"].tolist() for batch in loader(source, workers, shard, num_shards)]
            for shard in range(num_shards)
        ]
        assert [batch for together in zip(*ranks, strict=True) for batch in together] == expected
    copy = pickle.loads(pickle.dumps(source))  # rounds in memory are not copied
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            reads = [threads.submit(lambda: [copy[step]["input_ids"].tolist() for step in range(15)]) for _ in range(8)]
            assert all(read.result() == expected for read in reads)


def test_a_record_of_blocks_without_a_batch_size_is_a_block(blocks: Source, tmp_path: Path) -> None:
    packed = blocks.stream(tmp_path, step_items=BATCH, policy=stratified())
    assert isinstance(packed, PackedTokens)
    source = PackedSource(packed, num_blocks=40)
    record = source[7]
    assert (len(source), record["block"], sorted(record)) == (40, 7, sorted(BLOCK_COLUMNS))
    assert record["input_ids"].tolist() == packed.batch(7, 1).input_ids[0].tolist()
    packed.load_state_dict(packed.state_dict(step=2))
    assert source[16]["block"] == 16
    with pytest.raises(PolicyError, match=r"PackedSource for block 0, and the stream was resumed at block 16"):
        PackedSource(packed, num_blocks=40, batch_size=4)[0]


def test_a_packed_stream_that_does_not_fit_is_refused_and_a_far_block_decides_nothing(
    blocks: Source, tmp_path: Path
) -> None:
    assert set(COLUMNS) == set(PackedTensors.__annotations__)
    packed = blocks.stream(tmp_path / "run", step_items=BATCH, policy=stratified())
    assert isinstance(packed, PackedTokens)
    with pytest.raises(PolicyError, match=r"PackedSource\(num_blocks=\.\.\.\)"):
        PackedSource(packed)
    with pytest.raises(PolicyError, match=r"'input_id' is no column of a batch of blocks.*did you mean 'input_ids'"):
        PackedSource(packed, num_blocks=40, columns=("input_id",))
    with pytest.raises(
        PolicyError, match=r"'cu_seqlens' describes the blocks of a batch: give PackedSource\(batch_size"
    ):
        PackedSource(packed, num_blocks=40, columns=("cu_seqlens",))
    source = PackedSource(packed, num_blocks=10**9, batch_size=BATCH)
    packed.batch(0, 1)
    begun = packed.mixer.num_rounds
    for look in (lambda: source[10**7], lambda: packed.batch(10**8, 1), lambda: PackedDataset(packed)[10**8]):
        with pytest.raises(PolicyError, match=r"^block \d+0,000,000 is in round .*a look so far ahead would decide"):
            look()
    with pytest.raises(PolicyError, match="read by its indices, and not item by item"):
        next(iter(source))
    assert packed.mixer.num_rounds == begun
