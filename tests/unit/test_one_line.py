"""The objects of a session are one line without secrets in a notebook, a debugger or a traceback."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import skillshard as ss
from skillshard.shards.files import RemoteFiles
from tests.conftest import HERE, samples, write_corpus
from tests.tokenizers_trained import EOS, byte_tokenizer

MOST_CHARACTERS = 250


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


@pytest.fixture(scope="module")
def shards(folder: Path) -> ss.ShardSet:
    corpus = ss.Corpus.open(write_corpus(folder / "C", samples(add=60, carry=40)))
    tags = ss.tag_corpus(corpus, ss.taggers.metadata("skill"), folder / "T", backend=HERE)
    return ss.write_shards(corpus, tags, folder / "S", holdout=0.1, backend=HERE)


@pytest.fixture(scope="module")
def counts(folder: Path, shards: ss.ShardSet) -> ss.TokenSet:
    return ss.write_tokens(shards, byte_tokenizer(["add carry"]), folder / "N", backend=HERE)


@pytest.fixture
def mixer(tmp_path: Path, shards: ss.ShardSet, counts: ss.TokenSet) -> ss.Mixer:
    policy = ss.policies.stratified()
    return ss.Mixer(shards, policy, ledger=tmp_path / "run", round_draws=4096, unit="tokens", tokens=counts)


def test_a_corpus_is_its_files_and_bytes(folder: Path, shards: ss.ShardSet) -> None:
    corpus = ss.Corpus.open(folder / "C")
    num_bytes = sum(path.stat().st_size for path in (folder / "C").iterdir())
    assert repr(corpus) == f"Corpus(3 files, {num_bytes:,} bytes, from '{folder}/C/0.jsonl' on)"
    assert repr(ss.Corpus(())) == "Corpus(0 files, 0 bytes)"


def test_tags_are_their_place_and_numbers(folder: Path, shards: ss.ShardSet) -> None:
    assert (
        repr(ss.Tags.open(folder / "T"))
        == f"Tags('{folder}/T': 2 skills, 100 samples, 0 set aside, {_num_parts(folder)})"
    )


def _num_parts(folder: Path) -> str:
    num = len(list((folder / "T" / "parts").iterdir()))
    return f"{num} part{'s' * (num != 1)}"


def test_a_shard_set_is_its_place_and_numbers_chosen_or_not(folder: Path, shards: ss.ShardSet) -> None:
    train, holdout = (sum(map(len, split.values())) for split in (shards.train, shards.holdout))
    assert repr(shards) == f"ShardSet('{folder}/S': 2 skills, {train} train + {holdout} holdout samples, 4 shards)"
    chosen = shards.choose(["carry"])
    in_carry = f"{len(shards.train['carry'])} train + {len(shards.holdout['carry'])} holdout samples"
    assert repr(chosen) == f"ShardSet('{folder}/S': 1 skill of 2, {in_carry}, 2 shards)"
    assert (
        repr(shards.train["add"])
        == f"SkillShards('add' of '{folder}/S': train, {len(shards.train['add'])} samples in 1 shard)"
    )


def test_tokens_are_their_place_and_numbers(folder: Path, counts: ss.TokenSet) -> None:
    train, holdout = counts.manifest.num_train, counts.manifest.num_holdout
    assert (
        repr(counts) == f"TokenSet('{folder}/N': 2 skills, {train:,} train + {holdout:,} holdout tokens, ids of uint16)"
    )
    assert repr(counts.train["add"]).startswith(f"SkillTokens('add' of '{folder}/N': train, ")


def test_a_graph_is_its_numbers_of_skills_and_its_density() -> None:
    graph = ss.SkillGraph(("add", "carry"), ("carry",), [[1.0], [0.0]])
    assert repr(graph) == "SkillGraph(2 training x 1 evaluation skills, density 0.500)"
    assert repr(ss.SkillGraph.identity(("add", "carry"))) == "SkillGraph(identity of 2 skills)"
    part = ss.SkillGraph.identity(("add", "carry")).choose(columns=("carry",))
    assert repr(part) == "SkillGraph(2 training x 1 evaluation skills, density 0.500)"


def test_a_mixer_and_its_packed_stream_say_policy_ledger_and_where_they_stand(
    folder: Path, tmp_path: Path, mixer: ss.Mixer, counts: ss.TokenSet
) -> None:
    next(mixer.batches(3))
    line = f"Mixer('{folder}/S', policy stratified, ledger '{tmp_path}/run': 2 skills, 4,096 draws a round, at draw 3)"
    assert repr(mixer) == line
    packed = ss.PackedTokens(mixer, counts, block_tokens=16, separator=EOS)
    assert repr(packed) == f"PackedTokens(blocks of 16 tokens, at block 0, of {line})"
    assert repr(packed.at(np.arange(7, 9))) == "PackedBatch(2 blocks of 16 tokens from block 7 on)"
    assert repr(mixer.batch(5, 2)) == "Batch(2 samples from draw 5 on, of 2 skills)"


def test_no_line_shows_the_key_of_a_store_or_the_signature_of_an_address(shards: ss.ShardSet) -> None:
    for place in ("s3://KEY:SECRET@bucket/S", "https://user:SECRET@host/S?sig=SECRET"):
        remote = replace(shards, files=RemoteFiles(place, None))
        for line in (repr(remote), repr(remote.train["add"]), repr(remote.files)):
            assert "SECRET" not in line and "\n" not in line
        corpus_file = replace(ss.Corpus.open(Path(shards.root).parent / "C").files[0], place=f"{place}/0.jsonl")
        assert "SECRET" not in repr(ss.Corpus((corpus_file,)))


def test_lines_stay_short_whatever_they_hold(shards: ss.ShardSet, counts: ss.TokenSet, mixer: ss.Mixer) -> None:
    names = [f"skill {number}" for number in range(1000)]
    graph = ss.SkillGraph.chain(names)
    for shown in (shards, shards.train["add"], counts, counts.train["add"], mixer, mixer.batch(0, 4000), graph):
        line = repr(shown)
        assert "\n" not in line and len(line) <= MOST_CHARACTERS + 2 * len(str(shards.root))
