"""Shards in the compact layout hold the samples of the default layout, in the same order, in less space."""

import gc
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from skillshard import taggers
from skillshard.corpus import Corpus
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards import compact
from skillshard.shards.manifest import Manifest4
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import write_tokens
from skillshard.shards.write import write_shards
from skillshard.tags import Tags
from tests.commands import skillshard, works
from tests.conftest import HERE, lines, samples, tree, write_corpus
from tests.tokenizers_trained import byte_tokenizer


def sharded(corpus: Corpus, tags: Tags, out: Path, layout: Any, **options: Any) -> ShardSet:
    return write_shards(corpus, tags, out, shard_bytes=50_000, holdout=0.1, layout=layout, backend=HERE, **options)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Tags]:
    folder = tmp_path_factory.mktemp("compact")
    corpus = Corpus.open(write_corpus(folder / "corpus", samples(add=1500, carry=150, negate=30)))
    return corpus, taggers.tag_corpus(corpus, taggers.metadata("skill"), folder / "tags", backend=HERE)


@pytest.fixture(scope="module")
def both(tagged: tuple[Corpus, Tags], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    """Write a set in each layout. The set in pairs has one shard of each skill and split, as the compact set has."""
    folder = tmp_path_factory.mktemp("both")
    return {
        layout: write_shards(*tagged, folder / layout, holdout=0.1, layout=layout, backend=HERE)  # type: ignore[arg-type]
        for layout in ("pairs", "compact")
    }


def of_all(shards: ShardSet) -> list[Any]:
    return [
        (split, name, list(skill))
        for split, skills in (("train", shards.train), ("holdout", shards.holdout))
        for name, skill in skills.items()
    ]


def test_both_layouts_hold_the_same_samples_and_keys_in_the_same_order(both: dict[str, ShardSet]) -> None:
    pairs, small = both["pairs"], both["compact"]
    assert isinstance(small.manifest, Manifest4) and (small.layout, pairs.layout) == ("compact", "pairs")
    assert of_all(pairs) == of_all(small) and small.verify() == []
    for name, skill in small.train.items():
        assert skill.keys(0).tobytes() == pairs.train[name].keys(0).tobytes()
    assert small.manifest.split == pairs.manifest.split  # type: ignore[union-attr]


def test_a_mix_has_the_same_texts_and_fields_in_both_layouts(both: dict[str, ShardSet], tmp_path: Path) -> None:
    batches = {}
    for name, shards in both.items():
        mixer = Mixer(
            shards, stratified(), ledger=tmp_path / name, round_draws=256, seed=3, fields=("id", "meta.skill"), lag=1
        )
        batches[name] = [mixer.batch(first, 64) for first in range(0, 1024, 64)]
        places = [mixer.find(np.arange(first, first + 100)) for first in (0, 300)]
        batches[f"{name} at places"] = [mixer.samples.cut(drawn) for drawn in places]
        assert [len(mixer.samples.metas(drawn)) for drawn in places] == [100, 100]
    for layouts in (("pairs", "compact"), ("pairs at places", "compact at places")):
        for name in ("text", "skill", "draw", "id", "meta.skill"):
            columns = [[list(batch.columns()[name]) for batch in batches[layout]] for layout in layouts]
            assert columns[0] == columns[1]


def test_token_counts_of_both_layouts_are_equal(both: dict[str, ShardSet], tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    byte_tokenizer(["What is 254 plus 504? 758"]).save(str(tokenizer))
    counts = {name: write_tokens(shards, tokenizer, tmp_path / name, backend=HERE) for name, shards in both.items()}
    assert counts["pairs"].manifest.num_train == counts["compact"].manifest.num_train > 0


@pytest.mark.parametrize("copies", ["keep", "drop"])
def test_merges_chunks_and_members_of_any_size_give_the_same_compact_bytes(
    copies: str, tagged: tuple[Corpus, Tags], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sharded(*tagged, tmp_path / "expected", "compact", copies=copies)
    monkeypatch.setattr("skillshard.shards.sort.SORT_BYTES", 1 << 14)
    monkeypatch.setattr("skillshard.shards.merge.BATCH_BYTES", 3000)
    assert sharded(*tagged, tmp_path / "again", "compact", copies=copies) == ShardSet.open(tmp_path / "again")
    assert tree(tmp_path / "again") == tree(tmp_path / "expected") and len(expected.train["add"].shard_rows) > 2


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves files to the garbage collector
def test_the_webdataset_package_reads_the_texts_and_passes_over_the_json_lines(both: dict[str, ShardSet]) -> None:
    import webdataset as wds

    skill = both["compact"].train["add"]
    assert len(skill) > compact.MEMBER_ROWS, "the shard has one member of JSON Lines alone"
    path = str(both["compact"].root / skill.name(0))  # type: ignore[operator]
    read = list(wds.WebDataset(path, shardshuffle=False, empty_check=False))
    assert [sample["txt"].decode() for sample in read] == [sample.text for sample in skill]
    assert {name for sample in read for name in sample if not name.startswith("__")} == {"txt"}
    gc.collect()
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.startswith("__samples__/")]
        rows = [orjson.loads(line) for member in members for line in tar.extractfile(member).read().splitlines()]  # type: ignore[union-attr]
    assert [row["id"] for row in rows] == [sample.id for sample in skill] and len(members) == 2


def test_a_compact_set_is_a_corpus_of_its_texts(both: dict[str, ShardSet], tmp_path: Path) -> None:
    folder = both["compact"].root
    works("tag", "metadata", f"{folder}/train/add/*.tar", "--field", "file.parts.0", "--out", tmp_path / "T")
    assert Tags.open(tmp_path / "T").manifest.num_tagged == len(both["compact"].train["add"])


def test_texts_of_1_kb_take_at_most_1_95_bytes_for_each_byte_on_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(np.log(1000) - 0.125, 0.5, 2000), 50, 8000).astype(int).tolist()
    records = [
        {"id": f"skill-0-{number:08d}", "text": f"{number:08d}".ljust(size, "x"), "skill": "a"}
        for number, size in enumerate(sizes)
    ]
    (tmp_path / "corpus.jsonl").write_bytes(lines(records))
    corpus = Corpus.open(tmp_path / "corpus.jsonl")
    tags = taggers.tag_corpus(corpus, taggers.metadata("skill"), tmp_path / "tags", backend=HERE)
    shares = {}
    for layout in ("pairs", "compact"):
        write_shards(corpus, tags, tmp_path / layout, layout=layout, backend=HERE)  # type: ignore[arg-type]
        files = [path for path in (tmp_path / layout).rglob("*") if path.is_file() and path.name != "manifest.json"]
        shares[layout] = sum(path.stat().st_size for path in files) / sum(sizes)
    assert shares["compact"] <= 1.95 < 2.7 < shares["pairs"]


def test_a_damaged_compact_shard_is_refused_with_the_row(both: dict[str, ShardSet], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "S"
    shutil.copytree(both["compact"].root, folder)
    skill = ShardSet.open(folder).train["negate"]
    tar = folder / skill.name(0)
    data = bytearray(tar.read_bytes())
    start = data.index(b"__samples__/")
    data[start + 124] ^= 1  # a digit of the size in the header of the JSON Lines
    tar.write_bytes(data)
    faults = ShardSet.open(folder).verify()
    assert len(faults) == 1 and "has digest" in faults[0]
    opened = both["compact"].train["negate"].open_shard(0)
    assert "expected a text of" in str(compact.disagreement(bytes(data), opened.index))


def test_the_command_line_writes_both_layouts_and_refuses_another(tagged: tuple[Corpus, Tags], tmp_path: Path) -> None:
    _, tags = tagged
    folder = Path(tags.folder).parent
    works("shard", folder / "corpus", "--tags", tags.folder, "--layout", "compact", "--out", tmp_path / "S")
    assert ShardSet.open(tmp_path / "S").layout == "compact"
    facts = orjson.loads(works("inspect", tmp_path / "S", "--json"))
    assert (facts["layout"], facts["has_keys"]) == ("compact", True)
    outcome = skillshard("shard", folder / "corpus", "--tags", tags.folder, "--layout", "zip", "--out", tmp_path / "Z")
    assert outcome.code == 2 and "'zip' is not one of 'pairs'," in outcome.err
