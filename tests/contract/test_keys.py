"""The keys beside each shard name the sample of every row: hashes of id and text, file and row in the corpus."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from skillshard import taggers
from skillshard.corpus import Corpus, PartitionReader, Sample
from skillshard.hash_ranges import id_hash
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards.manifest import KEYS_DTYPE
from skillshard.shards.read import ShardSet
from skillshard.shards.texts import hex_of, text_hash
from skillshard.shards.write import write_shards
from skillshard.storage import file_digest
from tests.commands import works
from tests.conftest import HERE, lines, samples


@pytest.fixture(scope="module")
def corpus_and_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, ShardSet]:
    """Write a corpus of three files, each with a bad row in every partition, and its shards."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "corpus").mkdir()
    records = samples(add=90, carry=40)
    for number in range(3):
        content = [lines([record]) for record in records[number::3]]
        content[5:5] = [b"{}\n"]
        content[30:30] = [b"no JSON\n", b"\n"]  # a blank line is no row
        (folder / "corpus" / f"{number}.jsonl").write_bytes(b"".join(content))
    corpus = Corpus.open(folder / "corpus")
    tags = taggers.tag_corpus(
        corpus,
        taggers.metadata("skill"),
        folder / "tags",
        on_bad_sample="set-aside",
        max_set_aside=1.0,
        partition_bytes=900,
        backend=HERE,
    )
    return corpus, write_shards(corpus, tags, folder / "S", shard_bytes=30_000, holdout=0.1, backend=HERE)


def test_the_keys_of_a_row_lead_to_its_sample_in_the_corpus(corpus_and_shards: tuple[Corpus, ShardSet]) -> None:
    corpus, shards = corpus_and_shards
    names = [name for name, _ in shards.manifest.made_from["inputs"]]
    assert names == [file.name for file in corpus.files]
    rows: dict[str, list[Sample | None]] = {name: [] for name in names}
    for partition in corpus.partitions(partition_bytes=900):
        rows[partition.name] += [row if isinstance(row, Sample) else None for row in PartitionReader(partition)]
    num_samples = 0
    for split in (shards.train, shards.holdout):
        for skill in split.values():
            for shard in range(len(skill.shard_rows)):
                keys = skill.keys(shard)
                assert keys.dtype == KEYS_DTYPE and (np.diff(keys["id"].astype(object)) >= 0).all()
                for row, key in enumerate(keys):
                    sample = skill.open_shard(shard).sample(row)
                    origin = rows[names[int(key["file"])]][int(key["row"])]
                    assert origin is not None and (origin.id, origin.text) == (sample.id, sample.text)
                    assert int(key["id"]) == id_hash(sample.id)
                    assert hex_of(keys["text"][row : row + 1]) == [text_hash(sample.text)]
                    num_samples += 1
    assert num_samples == 130


def test_a_mixer_reads_no_keys_and_verify_misses_them(
    corpus_and_shards: tuple[Corpus, ShardSet], tmp_path: Path
) -> None:
    shards = ShardSet.open(copy_of(corpus_and_shards, tmp_path))
    for keys in Path(shards.root).rglob("*.keys.npy"):
        keys.unlink()
    assert len(Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=64).ids(0, 100)) == 100
    faults = shards.verify()
    num_shards = sum(len(skill.train.number) + len(skill.holdout.number) for skill in shards.manifest.skills)
    assert len(faults) == num_shards and all("keys.npy is missing" in fault for fault in faults)


@pytest.mark.parametrize("num_kept", [3, None])
def test_verify_finds_changed_keys(
    corpus_and_shards: tuple[Corpus, ShardSet], tmp_path: Path, num_kept: int | None
) -> None:
    root = copy_of(corpus_and_shards, tmp_path)
    keys = np.load(root / "train" / "add" / "000000.keys.npy")
    keys["row"][0] = 77
    np.save(root / "train" / "add" / "000000.keys.npy", keys[:num_kept])
    (fault,) = ShardSet.open(root).verify()
    assert "train/add/000000.keys.npy has digest" in fault


@pytest.mark.parametrize("column", ["id", "text"])
def test_verify_finds_keys_that_are_not_those_of_the_samples(
    corpus_and_shards: tuple[Corpus, ShardSet], tmp_path: Path, column: str
) -> None:
    """The digest is the digest of the manifest, as after a faulty writer."""
    root = copy_of(corpus_and_shards, tmp_path)
    place = root / "train" / "add" / "000000.keys.npy"
    keys = np.load(place)
    keys[column][2] = keys[column][1]
    np.save(place, keys)
    manifest = (root / "manifest.json").read_text()
    before = ShardSet.open(root).train["add"].columns.model_dump()["keys_digest"][0]
    (root / "manifest.json").write_text(manifest.replace(before, file_digest(place)))
    (fault,) = ShardSet.open(root).verify()
    assert "train/add/000000.keys.npy: row 3 has other hashes than the id and the text of that sample" in fault


def test_inspect_says_that_keys_are_there(corpus_and_shards: tuple[Corpus, ShardSet]) -> None:
    assert "Beside each shard lie keys" in works("inspect", corpus_and_shards[1].root)


def copy_of(corpus_and_shards: tuple[Corpus, ShardSet], folder: Path) -> Path:
    return Path(shutil.copytree(corpus_and_shards[1].root, folder / "S"))
