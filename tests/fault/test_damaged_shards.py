"""A damaged shard set never gives a wrong sample. The mixer and `verify` name the file, the expected bytes and the bytes of the file."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skillshard.canonical import digest
from skillshard.errors import ShardError
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards.manifest import INDEX_DTYPE
from skillshard.shards.read import ShardSet
from skillshard.shards.tar import END_OF_ARCHIVE

TAR, OTHER, INDEX = "train/add/000000.tar", "train/add/000001.tar", "train/add/000000.index.npy"


def flip(root: Path, name: str, position: int) -> None:
    data = bytearray((root / name).read_bytes())
    data[position] ^= 1
    (root / name).write_bytes(data)


def swap(root: Path) -> None:
    first, second = (root / TAR).read_bytes(), (root / OTHER).read_bytes()
    (root / TAR).write_bytes(second)
    (root / OTHER).write_bytes(first)


def index_that_disagrees(root: Path, *, row: int | slice = 3, bytes_off: int = 1) -> None:
    """Return an index of the right form and digest, with a row that points beside its text."""
    data = bytearray((root / INDEX).read_bytes())
    manifest = json.loads((root / "manifest.json").read_text())
    num = manifest["skills"][0]["train"]["num_samples"][0]
    index = np.frombuffer(data, INDEX_DTYPE, offset=len(data) - num * INDEX_DTYPE.itemsize)
    index["text_start"][row] += bytes_off
    (root / INDEX).write_bytes(data)
    manifest["skills"][0]["train"]["index_digest"][0] = digest(bytes(data))
    (root / "manifest.json").write_text(json.dumps(manifest))


def shifted_index(root: Path) -> None:
    """Return an index of the right form and digest whose rows are each a block too far."""
    index_that_disagrees(root, row=slice(None), bytes_off=512)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte of text": (
        lambda root: flip(root, TAR, 520),
        f"{TAR} has digest .* but the manifest says .*: damaged",
    ),
    "a flipped byte of a header": (
        lambda root: flip(root, TAR, 3),
        f"{TAR} has digest .* but the manifest says .*: damaged",
    ),
    "a flipped byte of the index": (
        lambda root: flip(root, INDEX, -9),
        f"{INDEX} has digest .* but the manifest says .*: damaged",
    ),
    "a cut": (
        lambda root: (root / TAR).write_bytes((root / TAR).read_bytes()[:-512]),
        rf"{TAR} is [\d,]+ bytes but the manifest says [\d,]+: truncated",
    ),
    "a cut index": (
        lambda root: (root / INDEX).write_bytes((root / INDEX).read_bytes()[:-16]),
        f"{INDEX} has digest .* but the manifest says .*: damaged",
    ),
    "an empty file": (
        lambda root: (root / TAR).write_bytes(b""),
        rf"{TAR} is 0 bytes but the manifest says [\d,]+: truncated",
    ),
    "a missing shard": (lambda root: (root / TAR).unlink(), f"{TAR} is missing, but the manifest names it"),
    "a missing index": (lambda root: (root / INDEX).unlink(), f"{INDEX} is missing, but the manifest names it"),
    "two swapped shards": (swap, f"{TAR} (is .* bytes|has digest .*) but the manifest says"),
    "an index that disagrees": (
        index_that_disagrees,
        rf"{TAR} has no sample where its index says row 4 is: expected a text of \d+ bytes at byte [\d,]+ and then a JSON of \d+, "
        "got members of none and none",
    ),
    "an index two bytes off": (
        lambda root: index_that_disagrees(root, bytes_off=2),
        rf"{TAR} has no sample where its index says row 4 is: .*got members of none and none",
    ),
    "an index one block off": (
        shifted_index,
        rf"{TAR} has no sample where its index says row 1 is: expected .*, got members of (none|\d+) and (none|\d+)",
    ),
}


@pytest.fixture
def damaged(shards: ShardSet, tmp_path: Path) -> Path:
    shutil.copytree(shards.root, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.mark.parametrize("name", DAMAGES)
def test_the_mixer_stops_at_a_damaged_shard_and_verify_finds_it(damaged: Path, tmp_path: Path, name: str) -> None:
    damage, sentence = DAMAGES[name]
    damage(damaged)
    mixer = Mixer(ShardSet.open(damaged), stratified(), ledger=tmp_path / "run", round_draws=64)
    with pytest.raises(ShardError, match=sentence):
        mixer.batch(0, 3000)
    assert any(re.search(sentence, fault) for fault in ShardSet.open(damaged).verify())


@pytest.mark.parametrize(
    "name", [name for name in DAMAGES if name not in ("a flipped byte of the index", "a cut index", "a missing index")]
)
def test_who_only_finds_places_reads_no_tar_and_who_cuts_the_texts_finds_the_damage(
    damaged: Path, tmp_path: Path, name: str
) -> None:
    damage, sentence = DAMAGES[name]
    damage(damaged)
    finds, cuts = (
        Mixer(ShardSet.open(damaged), stratified(), ledger=tmp_path / "run", round_draws=64) for _ in range(2)
    )
    places = finds.find(np.arange(3000))
    with pytest.raises(ShardError, match=sentence):
        cuts.samples.cut(places)


@pytest.mark.parametrize("folder", ["../../etc", "/etc", "a/../..", "..", ""])
def test_a_manifest_that_names_a_path_outside_its_directory_is_refused(damaged: Path, folder: str) -> None:
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["skills"][0]["folder"] = folder
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    sentence = (
        rf"does not fit schemas/manifest-3\.json: skills\.0\.folder: String should match .*, got {folder!r}: damaged"
    )
    with pytest.raises(ShardError, match=sentence):
        ShardSet.open(damaged)


def test_verify_says_where_a_tar_has_no_end_though_digest_and_index_agree(shards: ShardSet, tmp_path: Path) -> None:
    """A faulty writer could make such a file. Plain tar warns of the file, and the digest alone does not find the fault."""
    shutil.copytree(shards.root, tmp_path / "cut")
    data = (tmp_path / "cut" / TAR).read_bytes().removesuffix(END_OF_ARCHIVE) + b"x" * len(END_OF_ARCHIVE)
    (tmp_path / "cut" / TAR).write_bytes(data)
    manifest = json.loads((tmp_path / "cut" / "manifest.json").read_text())
    columns = manifest["skills"][0]["train"]
    columns["digest"][0] = digest(data)
    (tmp_path / "cut" / "manifest.json").write_text(json.dumps(manifest))
    faults = ShardSet.open(tmp_path / "cut").verify()
    assert len(faults) == 1 and faults[0].startswith(f"{TAR} does not end with the end mark of a tar.")


def test_verify_names_every_damaged_shard_and_not_the_first_alone(damaged: Path) -> None:
    for name in (TAR, OTHER):
        flip(damaged, name, 520)
    faults = " ".join(ShardSet.open(damaged).verify())
    assert TAR in faults and OTHER in faults


def test_a_fault_of_the_disk_is_not_taken_for_the_limit_of_open_files(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    mixer = Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=40)
    monkeypatch.setattr("mmap.mmap", fail)
    with pytest.raises(OSError, match="Input/output error"):
        mixer.batch(0, 40)
