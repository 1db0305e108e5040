"""Every way to read the stream gives the fields of a mixer under the same names and with the same values."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, default_collate

from skillshard.errors import FieldError
from skillshard.hf import WholeStream
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.torch import MixedDataset, PackedDataset, collate, collate_blocks
from tests.adapters.packed_trainer import Source
from tests.conftest import sample, tag_and_shard, write_corpus

FIELDS = ("id", "meta.prompt.chars", "image")
BATCH = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Write two skills whose samples have a nested field, and an image on every second sample."""
    folder = tmp_path_factory.mktemp("fields")
    records = [sample(skill, number) for number in range(90) for skill in ("add", "carry")]
    for number, record in enumerate(records):
        record["meta"] |= {"prompt": {"chars": number % 7}}
        if number % 4 < 2:
            record["meta"]["image"] = f"{number}.png"
    return tag_and_shard(write_corpus(folder / "corpus", records), folder, shard_bytes=30_000)


def mixer(shards: ShardSet, ledger: Path, **arguments: Any) -> Mixer:
    arguments = {"fields": FIELDS, "field_defaults": {"image": None}} | arguments
    return Mixer(shards, stratified(), ledger=ledger, round_draws=20, step_draws=BATCH, **arguments)


@pytest.fixture
def stream(shards: ShardSet, tmp_path: Path) -> Mixer:
    return mixer(shards, tmp_path / "run")


def plain(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values.tolist() if isinstance(values, np.ndarray) else values for name, values in batch.items()}


def expected(shards: ShardSet, stream: Mixer, first: int, num: int) -> dict[str, Any]:
    """Return the columns of draws by the ids alone: the metadata of each sample is looked up among all samples of the shards."""
    samples = {sample.id: (skill, sample) for skill, part in shards.train.items() for sample in part}
    drawn = [samples[identity] for identity in stream.ids(first, num)]
    return {
        "draw": list(range(first, first + num)),
        "skill": [skill for skill, _ in drawn],
        "text": [sample.text for _, sample in drawn],
        "id": [sample.id for _, sample in drawn],
        "meta.prompt.chars": [sample.meta["prompt"]["chars"] for _, sample in drawn],
        "image": [sample.meta.get("image") for _, sample in drawn],
    }


def test_a_batch_has_the_fields_of_its_samples_under_their_paths(shards: ShardSet, stream: Mixer) -> None:
    for first, batch in zip(range(0, 60, BATCH), stream.batches(BATCH), strict=False):
        assert plain(batch.columns()) == expected(shards, stream, first, BATCH)
        assert list(batch.columns()) == ["draw", "skill", "text", *FIELDS]
    draws = np.array([3, 47, 21, 20])
    whole = expected(shards, stream, 0, 60)
    assert plain(stream.at(draws).columns()) == {
        name: [values[draw] for draw in draws] for name, values in whole.items()
    }


def test_samples_one_by_one_have_the_fields_too(shards: ShardSet, stream: Mixer, tmp_path: Path) -> None:
    whole = expected(shards, stream, 0, 50)
    for mixed in itertools.islice(stream, 50):
        assert mixed.fields == {path: whole[path][mixed.draw] for path in FIELDS}
    bare = mixer(shards, tmp_path / "bare", fields=(), field_defaults=None)
    assert next(iter(bare)).fields == {} == bare.batch(0, 8).fields


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0), (2, 1), (3, 2)])
def test_loaders_of_any_number_of_ranks_and_workers_give_the_fields_of_the_one_stream(
    shards: ShardSet, stream: Mixer, world_size: int, workers: int
) -> None:
    whole = expected(shards, stream, 0, 3 * BATCH)
    for rank in range(world_size):
        dataset = MixedDataset(stream, rank=rank, world_size=world_size)
        loader = DataLoader(dataset, batch_size=BATCH // world_size, num_workers=workers, collate_fn=collate)
        batches = [plain(batch) for batch in itertools.islice(loader, 3)]
        for name, values in whole.items():
            assert [value for batch in batches for value in batch[name]] == values[rank::world_size], name


def test_items_the_default_collation_and_the_dataset_of_the_trainer_have_the_same_names(
    shards: ShardSet, tmp_path: Path
) -> None:
    stream = mixer(shards, tmp_path / "run", field_defaults={"image": ""})
    items = MixedDataset(stream).__getitems__(list(range(8)))
    columns = stream.batch(0, 8).columns()
    assert list(items[3]) == ["draw", "skill", "text", *FIELDS]
    assert list(items[3].values()) == [values[3] for values in columns.values()]
    batch = default_collate(list(items))
    assert {
        name: list(values) if name != "meta.prompt.chars" else values.tolist() for name, values in batch.items()
    } == {name: list(values) for name, values in columns.items()}
    whole = WholeStream(mixer(shards, tmp_path / "whole", field_defaults={"image": ""}))
    assert list(whole.__getitems__([0, 1])) == list(items[:2])


def test_a_run_goes_on_with_other_fields(shards: ShardSet, tmp_path: Path) -> None:
    stream = mixer(shards, tmp_path / "run")
    whole = expected(shards, stream, 0, 80)
    states = [stream.state_dict() for _ in itertools.islice(stream.batches(7), 6)]
    for state, paths in zip(states, itertools.cycle([("meta.prompt.chars",), ("id", "meta.prompt.chars"), ()])):
        again = mixer(shards, tmp_path / "run", fields=paths, field_defaults=None)
        again.load_state_dict(state)
        batch, first = next(again.batches(BATCH)), state["draw"]
        columns = {name: whole[name][first : first + BATCH] for name in ("draw", "skill", "text", *paths)}
        assert plain(batch.columns()) == columns


SENTENCE = (
    r"sample '(add|carry)-\d+' of skill '\1' has no field 'meta.imag' \(did you mean 'meta.image'\?\); its metadata has .*meta.prompt.*"
    r"Name another field, or give a value for such samples: Mixer\(..., field_defaults=\{'meta.imag': None\}\)."
)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_field_that_a_sample_lacks_stops_the_loader_with_the_sentence(
    shards: ShardSet, tmp_path: Path, workers: int
) -> None:
    stream = mixer(shards, tmp_path / "run", fields=("meta.imag",), field_defaults=None)
    with pytest.raises(FieldError) as error:
        list(itertools.islice(DataLoader(MixedDataset(stream), BATCH, num_workers=workers, collate_fn=collate), 2))
    assert re.search(SENTENCE, str(error.value))


def test_blocks_of_tokens_have_the_fields_of_the_samples_in_them(blocks: Source, tmp_path: Path) -> None:
    mixed = Mixer(ShardSet.open(blocks.shards), stratified(), ledger=tmp_path / "run", round_draws=8, fields=("id",))
    packed = PackedTokens(mixed, TokenSet.open(blocks.counts), block_tokens=6, separator=None)
    for first in (0, 5, 40):
        batch = packed.batch(first, 5)
        assert set(batch.sample_draw.tolist()) == set(batch.draw.ravel().tolist())
        assert batch.fields["id"] == [mixed.ids(draw, 1)[0] for draw in batch.sample_draw.tolist()]
        assert (batch.sample_draw[np.searchsorted(batch.sample_draw, batch.draw)] == batch.draw).all()
    loader = DataLoader(PackedDataset(packed), batch_size=5, num_workers=1, collate_fn=collate_blocks)
    tensors: Mapping[str, Any] = next(iter(loader))
    assert tensors["id"] == packed.batch(0, 5).fields["id"]
    assert tensors["sample_draw"].tolist() == packed.batch(0, 5).sample_draw.tolist()
