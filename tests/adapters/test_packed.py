"""Blocks of tokens through loaders, workers and ranks: a single stream, in time, and without a warning about forks."""

import itertools
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from skillshard.errors import LedgerError, PolicyError
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import stratified
from skillshard.shards.tokenizers import encode
from skillshard.torch import (
    BLOCK_COLUMNS,
    InOrder,
    PackedDataset,
    PackedTensors,
    block_collator,
    collate_blocks,
    resume,
)
from tests.adapters.packed_trainer import STEP_BLOCKS, Source, live_packed
from tests.adapters.processes import finish, kill, records, start_ranks
from tests.adapters.trainers import expected_items, live_mixer, losses_at, measured
from tests.tokenizers_trained import EOS

STEPS = 30
pytestmark = pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")


class Places(NamedTuple):
    shards: str
    counts: str
    blocks: list[list[list[int]]]
    """Blocks of every step of a run in one process, without a loader."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, blocks: Source) -> Places:
    packed_stream = live_packed(*blocks, tmp_path_factory.mktemp("reference"))
    expected = expected_items(packed_stream, steps=STEPS, step_items=STEP_BLOCKS, every_steps=3)
    assert packed_stream.mixer.round(0).weights != packed_stream.mixer.round(2).weights
    return Places(*blocks, expected)


def packed(places: Places, ledger: Path) -> PackedTokens:
    return measured(live_packed(places.shards, places.counts, ledger))


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_loader_gives_the_same_blocks_for_any_number_of_workers(
    places: Places, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """The weights follow the reports, and the tokenizer is used before the workers are forked."""
    stream = packed(places, tmp_path)
    encode(stream.tokens.tokenizer, ["a b c"] * 10, special_tokens=False)
    loader = DataLoader(
        PackedDataset(stream),
        batch_size=STEP_BLOCKS,
        num_workers=workers,
        collate_fn=collate_blocks,
        prefetch_factor=1 if workers else None,
    )
    for step, batch in enumerate(itertools.islice(loader, STEPS), start=1):
        assert batch["input_ids"].tolist() == places.blocks[step - 1]
        assert batch["block"].tolist() == list(range((step - 1) * STEP_BLOCKS, step * STEP_BLOCKS))
        assert batch["skill_tokens"].sum(1).tolist() == [6] * STEP_BLOCKS
        if step % 3 == 0:
            stream.report(step, losses_at(step))
    assert "fork" not in capfd.readouterr().err


@pytest.mark.parametrize("packing", ["one", "skill", "best-fit"])
def test_every_packing_gives_the_same_blocks_through_two_workers_and_after_a_resume_with_another_number(
    places: Places, tmp_path: Path, packing: str
) -> None:
    """The weights follow the reports."""

    def opened(name: str) -> PackedTokens:
        return live_packed(places.shards, places.counts, tmp_path / name, packing=packing)

    expected = expected_items(opened("reference"), steps=20, step_items=STEP_BLOCKS, every_steps=2)
    saved: dict[str, Any] = {}
    for first, last, workers in ((0, 9, 2), (9, 16, 1), (16, 20, 0)):
        stream = opened("run")
        if first:
            stream.load_state_dict(saved)
        else:
            measured(stream)
        loader = DataLoader(
            PackedDataset(stream), batch_size=STEP_BLOCKS, num_workers=workers, collate_fn=collate_blocks
        )
        for step, batch in zip(range(first + 1, last + 1), loader, strict=False):
            assert batch["input_ids"].tolist() == expected[step - 1]
            assert batch["block"].tolist() == list(range((step - 1) * STEP_BLOCKS, step * STEP_BLOCKS))
            if step % 2 == 0:
                stream.report(step, losses_at(step))
        saved = stream.state_dict(step=last)
    assert stream.mixer.round(0).weights != stream.mixer.round(2).weights
    assert verify_ledger(DirectoryLedger(tmp_path / "run")) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_goes_on_with_the_next_blocks(places: Places, tmp_path: Path, workers: int) -> None:
    seen: list[Any] = []
    saved: dict[str, Any] = {}
    for start, end in [(0, 11), (11, STEPS)]:
        stream = packed(places, tmp_path)
        loader: Any = StatefulDataLoader(
            PackedDataset(stream),
            sampler=InOrder(),
            batch_size=STEP_BLOCKS,
            num_workers=workers,
            collate_fn=collate_blocks,
            prefetch_factor=1 if workers else None,
        )
        if saved:
            stream.load_state_dict(saved["packed"])
            loader.load_state_dict(saved["loader"])
        for step, batch in zip(range(start + 1, end + 1), loader, strict=False):
            seen.append(batch["input_ids"].tolist())
            if step % 3 == 0:
                stream.report(step, losses_at(step))
            if step == end:
                saved = {"packed": stream.state_dict(step=step), "loader": loader.state_dict()}
    assert seen == places.blocks


def test_a_loaders_state_is_of_one_size_of_blocks(places: Places, tmp_path: Path) -> None:
    stream = packed(places, tmp_path)
    other = PackedTokens(stream.mixer, stream.tokens, block_tokens=7, separator=EOS)
    state = PackedDataset(stream).state_dict()
    with pytest.raises(
        LedgerError, match=r"state is of block_tokens 6, and here block_tokens is 7.*packed.load_state_dict"
    ):
        PackedDataset(other).load_state_dict(state)


def test_a_second_iteration_is_refused_and_after_load_state_dict_the_same_loader_goes_on(
    places: Places, tmp_path: Path
) -> None:
    stream = packed(places, tmp_path)
    loader = DataLoader(PackedDataset(stream), batch_size=STEP_BLOCKS, collate_fn=collate_blocks)
    next(iter(loader))
    with pytest.raises(
        PolicyError, match=r"the stream from block 0 was read through this dataset already.*PackedDataset"
    ):
        next(iter(loader))
    resume(stream, stream.state_dict(step=1))
    assert next(iter(loader))["input_ids"].tolist() == places.blocks[1]


def test_collate_blocks_gives_what_the_default_collation_gives(places: Places, tmp_path: Path) -> None:
    items = PackedDataset(packed(places, tmp_path)).__getitems__(range(8))
    fast, slow = collate_blocks(items), default_collate(items)
    for name in BLOCK_COLUMNS:
        assert torch.equal(fast[name], slow[name])
        assert fast[name].dtype == slow[name].dtype == torch.int64
    assert [item["block"] for item in items[2:4]] == [2, 3]


COLUMNS = (
    *BLOCK_COLUMNS,
    "learned",
    "attention_mask",
    "position_ids",
    "segment_ids",
    "cu_seqlens",
    "max_seqlen",
    "draw",
    "skill",
)


@pytest.mark.parametrize(("workers", "context"), [(0, None), (1, "fork"), (1, "spawn")])
def test_a_loader_gives_the_columns_that_were_asked_for(
    places: Places, tmp_path: Path, workers: int, context: str | None
) -> None:
    expected = packed(places, tmp_path / "a").batch(0, 5)
    for columns in (("input_ids",), COLUMNS):
        stream = packed(places, tmp_path / str(len(columns)))
        loader = DataLoader(
            PackedDataset(stream),
            batch_size=5,
            num_workers=workers,
            collate_fn=block_collator(*columns),
            multiprocessing_context=context,
        )
        batch: dict[str, Any] = dict(next(iter(loader)))
        assert tuple(batch) == columns
        for name in columns:
            value = getattr(expected, name)
            assert batch[name] == value if isinstance(value, int) else (batch[name].numpy() == value).all(), name
    assert PackedTensors.__annotations__.keys() == set(COLUMNS)


def test_a_column_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        PolicyError, match=r"'label' is no column of a batch of blocks \(did you mean 'labels'\?\): give block, "
    ):
        block_collator("label")


def test_workers_may_be_spawned(places: Places, tmp_path: Path) -> None:
    loader = DataLoader(
        PackedDataset(packed(places, tmp_path)),
        batch_size=STEP_BLOCKS,
        num_workers=1,
        collate_fn=collate_blocks,
        multiprocessing_context="spawn",
    )
    assert next(iter(loader))["input_ids"].tolist() == places.blocks[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_stream_that_ends_ends_the_loader_on_every_rank_at_the_same_step(
    places: Places, tmp_path: Path, workers: int, world_size: int
) -> None:
    counts = []
    for rank in range(world_size):
        mixer = live_mixer(places.shards, tmp_path, step_draws=12, policy=stratified(), repeat="drop")
        stream = PackedTokens(mixer, packed(places, tmp_path / "other").tokens, block_tokens=9, separator=EOS)
        dataset = PackedDataset(stream, rank=rank, world_size=world_size)
        loader = DataLoader(dataset, batch_size=8, num_workers=workers, collate_fn=collate_blocks)
        length = len(loader)
        counts.append([len(batch["block"]) for batch in loader])
        assert len(counts[-1]) == length
    total = sum(len(batch) for batch in stream.batches(50))
    assert all(sizes == counts[0] for sizes in counts)
    if world_size == 1:
        assert sum(counts[0]) == total
    else:
        share = total // world_size
        assert counts[0] == [8] * (share // 8) + [share % 8] * (share % 8 > 0)


def start(places: Places, folder: Path, *, world_size: int, workers: int) -> Any:
    folder.mkdir(exist_ok=True)
    arguments = [places.shards, places.counts, str(folder), str(STEPS), str(workers)]
    return start_ranks("packed_trainer", world_size, arguments, folder)


def test_the_union_of_all_ranks_is_the_packed_stream_after_a_kill_and_with_other_ranks(
    places: Places, tmp_path: Path
) -> None:
    """A real gloo group of two ranks is killed, and then three ranks continue. A step that is repeated has the same blocks."""
    folder = tmp_path / "ddp"
    processes = start(places, folder, world_size=2, workers=0)
    end = time.monotonic() + 100
    while max((record["step"] for record in records(folder / "rank-0.jsonl")), default=0) < 10:
        assert all(process.poll() is None for process in processes), finish(processes)
        assert time.monotonic() < end
        time.sleep(0.005)
    kill(processes)
    assert finish(start(places, folder, world_size=3, workers=1)) == [0] * 3
    tokens_of: dict[int, list[int]] = {}
    for path in folder.glob("rank-*.jsonl"):
        for record in records(path):
            for block, tokens in zip(record["blocks"], record["tokens"], strict=True):
                assert tokens_of.setdefault(block, tokens) == tokens
    assert sorted(tokens_of) == list(range(STEPS * STEP_BLOCKS))
    assert [tokens_of[block] for block in sorted(tokens_of)] == [tokens for step in places.blocks for tokens in step]
    assert verify_ledger(DirectoryLedger(folder / "run")) == []


def test_workers_tokenize_where_the_environment_asks_for_threads(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer has started threads in this process. A fork has no threads, and a worker that waited for them would hang."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    stream = packed(places, tmp_path)
    encode(stream.tokens.tokenizer, ["a b c"] * 10, special_tokens=False)
    loader = DataLoader(
        PackedDataset(stream),
        batch_size=STEP_BLOCKS,
        num_workers=2,
        collate_fn=collate_blocks,
        multiprocessing_context="fork",
        timeout=240,
    )
    batches = iter(loader)
    assert [next(batches)["input_ids"].tolist() for _ in range(3)] == places.blocks[:3]
