"""Only the process of the loader can read a batch of places. Every other process gets a sentence, never other texts."""

import gc
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from skillshard.errors import SkillshardError
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.torch import Items, MixedDataset, collate
from tests.conftest import REPOSITORY

READ_ELSEWHERE = """
import pickle, sys
from skillshard.errors import SkillshardError
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.torch import MixedDataset

mixer = Mixer(ShardSet.open(sys.argv[1]), stratified(), ledger=sys.argv[2], round_draws=64, seed=1)
datasets = [MixedDataset(mixer) for _ in range(3)]  # loaders of this process, none of which made the batch
try:
    print(pickle.loads(sys.stdin.buffer.read()))
except SkillshardError as error:
    print(type(error).__name__, error)
"""


def pickled(items: Items) -> bytes:
    return pickle.dumps(collate(items))


def with_its_texts(items: Items) -> bytes:
    return pickle.dumps(dict(collate(items)))


def first_batch(mixer: Mixer, collate_fn: Any) -> Any:
    loader = DataLoader(MixedDataset(mixer), batch_size=8, num_workers=1, collate_fn=collate_fn)
    return next(iter(loader))


@pytest.fixture
def mixer(shards: ShardSet, tmp_path: Path) -> Mixer:
    return Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=64)


def read_elsewhere(saved: bytes, shards: ShardSet, ledger: Path) -> str:
    command = [sys.executable, "-c", READ_ELSEWHERE, str(shards.root), str(ledger)]
    return subprocess.run(command, input=saved, capture_output=True, check=True, cwd=REPOSITORY).stdout.decode()


def test_a_batch_that_a_worker_pickled_is_read_by_the_process_of_its_loader(mixer: Mixer) -> None:
    batch = pickle.loads(first_batch(mixer, pickled))
    expected = mixer.batch(0, 8)
    assert type(batch) is dict
    assert batch["text"] == expected.text
    assert batch["skill"] == expected.skill
    assert batch["draw"].tolist() == list(range(8))


def test_another_process_gets_a_sentence_although_it_has_loaders_of_its_own(mixer: Mixer, tmp_path: Path) -> None:
    printed = read_elsewhere(first_batch(mixer, pickled), mixer.shards, tmp_path / "other")
    assert printed.startswith(
        "SkillshardError this batch holds the places of 8 texts and not the texts, and this process cannot read the places: it did not make "
        "the loader, or the mixer of that loader is gone."
    )
    assert "dict(collate(items))" in printed


def test_a_batch_with_its_texts_is_read_anywhere(mixer: Mixer, tmp_path: Path) -> None:
    printed = read_elsewhere(first_batch(mixer, with_its_texts), mixer.shards, tmp_path / "other")
    assert repr(mixer.batch(0, 8).text) in printed


def test_a_batch_whose_mixer_is_gone_gets_the_same_sentence(shards: ShardSet, tmp_path: Path) -> None:
    saved = first_batch(Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=64), pickled)
    gc.collect()
    with pytest.raises(SkillshardError, match="the mixer of that loader is gone"):
        pickle.loads(saved)
