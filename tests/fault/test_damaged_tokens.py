"""Token sets that are damaged, cut, exchanged, of another tokenizer or of an older version: a sentence, and never a wrong block."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from skillshard.canonical import digest
from skillshard.errors import SkillshardError, TokensError
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import stratified
from skillshard.shards import token_set
from skillshard.shards.read import ShardSet
from skillshard.shards.token_manifest import KeptIds, id_type_of
from skillshard.shards.token_set import TokenSet, checks_of
from skillshard.shards.tokens import tokenize_shard, write_tokens
from tests.commands import fails, skillshard, works
from tests.conftest import HERE, tag_and_shard, write_corpus
from tests.tokenizers_trained import EOS, letter_tokenizer, letters, uneven_shards

FILES = ("tokens.npy", "ids.bin", "answers.bin", "checks.npy")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return uneven_shards(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, Path, list[Any]]:
    """Return shards of prompts and answers, their tokens, and the blocks of one epoch."""
    folder = tmp_path_factory.mktemp("whole")
    records = [letters(skill, number, 5 + number % 7) for skill in ("add", "carry") for number in range(60)]
    for number, record in enumerate(records):
        record["meta"]["prompt"] = number % 5
    shards = tag_and_shard(write_corpus(folder / "corpus", records), folder, shard_bytes=40_000)
    tokens = write_tokens(shards, letter_tokenizer(), folder / "T", prompt_field="prompt", backend=HERE)
    return shards, folder / "T", blocks_of(shards, tokens, folder / "run")


def packed(shards: ShardSet, tokens: TokenSet, ledger: Path) -> PackedTokens:
    mixer = Mixer(shards, stratified(), ledger=ledger, round_draws=40, repeat="drop")
    return PackedTokens(mixer, tokens, block_tokens=16, separator=EOS)


def blocks_of(shards: ShardSet, tokens: TokenSet, ledger: Path) -> list[Any]:
    return [[batch.input_ids.tolist(), batch.labels.tolist()] for batch in packed(shards, tokens, ledger).batches(3)]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "train").rglob("*") if path.name.partition(".")[2] in FILES)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_a_flip_a_cut_or_an_exchange_no_wrong_block_is_yielded_and_verify_finds_the_fault(
    whole: tuple[ShardSet, Path, list[Any]], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shards, source, expected = whole
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(source, folder / "T")
    files = files_of(folder / "T")
    assert {path.name.partition(".")[2] for path in files} == set(FILES)
    path = data.draw(st.sampled_from(files), label="file")
    content = bytearray(path.read_bytes())
    way = data.draw(st.sampled_from(["flip", "cut", "longer", "exchange", "missing"]), label="way")
    if way == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif way == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif way == "longer":
        content += b"\0"
    elif way == "exchange":
        others = [other for other in files if other.name == path.name and other.read_bytes() != content]
        content = bytearray(data.draw(st.sampled_from(others)).read_bytes())
    path.write_bytes(content)
    if way == "missing":
        path.unlink()
    try:
        assert blocks_of(shards, TokenSet.open(folder / "T"), folder / "run") == expected
    except SkillshardError as error:
        assert isinstance(error, TokensError) and path.name in str(error)
        assert "skillshard tokens" in str(error)
    faults = TokenSet.open(folder / "T").verify()
    assert len(faults) == 1 and path.name in faults[0]


def test_each_part_is_checked_when_it_is_first_read_and_only_then(
    uneven: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With parts of 64 bytes, a file has several parts, and the blocks before a damaged part are read."""
    monkeypatch.setattr(token_set, "CHECK_BYTES", 64)
    monkeypatch.setattr("skillshard.mixing.round_ids.CHECK_BYTES", 64)
    tokens = write_tokens(uneven, letter_tokenizer(), tmp_path / "T", backend=HERE)
    reference = packed(uneven, tokens, tmp_path / "a")
    expected = [batch.input_ids.tolist() for batch in reference.batches(1)]
    path = files_of(tmp_path / "T")[0].with_name("000000.ids.bin")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    damaged, read = packed(uneven, TokenSet.open(tmp_path / "T"), tmp_path / "b"), []
    checked: list[int] = []
    check = token_set.CheckedBytes.check
    monkeypatch.setattr(token_set.CheckedBytes, "check", lambda self, part: (checked.append(part), check(self, part)))
    with pytest.raises(
        TokensError, match=r"000000.ids.bin: bytes [\d,]+ to [\d,]+ have digest \w{16} but the file of digests says"
    ):
        for batch in damaged.batches(1):
            read.append(batch.input_ids.tolist())
    assert 0 < len(read) < len(expected) and read == expected[: len(read)]
    assert len(checked) < sum(
        len(checks_of(file.read_bytes())) for file in files_of(tmp_path / "T") if file.suffix == ".bin"
    )


def forged(folder: Path, change: Callable[[np.ndarray], None]) -> TokenSet:
    """Change the ids of a shard and every digest that names the ids, as another program might write them."""
    path = next(path for path in files_of(folder) if path.name == "000000.ids.bin" and "add" in str(path))
    ids = np.frombuffer(path.read_bytes(), "<u2").copy()
    change(ids)
    path.write_bytes(ids.tobytes())
    checks = path.with_name("000000.checks.npy")
    np.save(checks, checks_of(ids.tobytes()))
    manifest = json.loads((folder / "tokens.json").read_text())
    columns = next(skill for skill in manifest["skills"] if skill["name"] == "add")["train"]
    columns["ids_digest"][0], columns["checks_digest"][0] = digest(ids.tobytes()), digest(checks.read_bytes())
    (folder / "tokens.json").write_text(json.dumps(manifest))
    return TokenSet.open(folder)


def test_an_id_beyond_the_tokenizer_is_refused_although_every_digest_is_right(uneven: ShardSet, tmp_path: Path) -> None:
    write_tokens(uneven, letter_tokenizer(), tmp_path / "T", backend=HERE)

    def change(ids: np.ndarray) -> None:
        ids[ids == 5] = 28

    tokens = forged(tmp_path / "T", change)
    sentence = "has id 28, but the tokenizer's ids are below 28: the ids are of another tokenizer, or damaged"
    with pytest.raises(TokensError, match=sentence):
        packed(uneven, tokens, tmp_path / "run").batch(0, 400)
    assert sentence in fails("verify", tmp_path / "T")


@pytest.mark.parametrize(("num", "kind"), [(65_536, "uint16"), (65_537, "uint32"), (70_000, "uint32")])
def test_ids_take_two_bytes_up_to_65536_ids_and_four_bytes_beyond(tmp_path: Path, num: int, kind: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(num)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    records = [{"id": str(row), "text": f"w0 w{num - 1} w{row}", "meta": {"skill": "add"}} for row in range(20)]
    shards = tag_and_shard(write_corpus(tmp_path / "corpus", records), tmp_path)
    tokens = write_tokens(shards, tokenizer, tmp_path / "T", backend=HERE)
    assert tokens.manifest.ids == KeptIds(type=kind, num_ids=num)
    batch = PackedTokens(
        Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=10), tokens, block_tokens=3, separator=None
    ).batch(0, 20)
    assert (batch.input_ids[:, :2] == [0, num - 1]).all()
    assert id_type_of(num) == kind


def test_an_id_that_does_not_fit_the_type_on_disk_is_never_cut(uneven: ShardSet, tmp_path: Path) -> None:
    letter_tokenizer().save(str(tmp_path / "tokenizer.json"))
    part = next(iter(uneven.train.values()))
    with pytest.raises(TokensError, match=r"has id \d+, but the tokenizer's ids are below 3"):
        tokenize_shard(
            part,
            str(tmp_path / "tokenizer.json"),
            "x",
            False,
            {"type": "uint16", "num_ids": 3},
            {},
            None,
            str(tmp_path / "T"),
        )
    assert not list((tmp_path / "T").rglob("*.bin"))


def test_counts_alone_serve_weights_and_are_refused_for_blocks(uneven: ShardSet, tmp_path: Path) -> None:
    letter_tokenizer().save(str(tmp_path / "tokenizer.json"))
    shown = works(
        "tokens", uneven.root, "--tokenizer", tmp_path / "tokenizer.json", "--counts-only", "--out", tmp_path / "T"
    )
    assert "counts alone" in shown and not list((tmp_path / "T").rglob("*.bin"))
    assert "counts of" in works("verify", tmp_path / "T")
    tokens = TokenSet.open(tmp_path / "T")
    mixer = Mixer(uneven, stratified(), ledger=tmp_path / "run", round_draws=40, unit="tokens", tokens=tokens)
    with pytest.raises(TokensError, match="has token counts alone, and no token ids"):
        PackedTokens(mixer, tokens, block_tokens=8, separator=EOS)
    arguments = (
        "tokens",
        uneven.root,
        "--tokenizer",
        tmp_path / "tokenizer.json",
        "--counts-only",
        "--out",
        tmp_path / "U",
    )
    refused = skillshard(*arguments, "--answer-after", "b")
    assert refused.code == 2 and "--answer-after" in refused.err
    with pytest.raises(TokensError, match="a mask of answers belongs to kept ids"):
        write_tokens(uneven, letter_tokenizer(), tmp_path / "V", counts_only=True, prompt_field="p", backend=HERE)


def test_token_counts_of_version_1_are_read_as_counts_alone(uneven: ShardSet, tmp_path: Path) -> None:
    tokens = write_tokens(uneven, letter_tokenizer(), tmp_path / "T", counts_only=True, backend=HERE)
    manifest = json.loads((tmp_path / "T" / "tokens.json").read_text())
    manifest["schema"] = "skillshard/tokens/1"
    del manifest["ids"], manifest["answers"]
    for columns in (skill[split] for skill in manifest["skills"] for split in ("train", "holdout")):
        del columns["ids_digest"], columns["answers_digest"], columns["checks_digest"]
    (tmp_path / "T" / "tokens.json").write_text(json.dumps(manifest))
    older = TokenSet.open(tmp_path / "T")
    assert older.verify() == [] and older.manifest.ids is None
    assert older.manifest.skills == tokens.manifest.skills


def test_a_manifest_that_names_ids_for_some_shards_only_is_refused(uneven: ShardSet, tmp_path: Path) -> None:
    write_tokens(uneven, letter_tokenizer(), tmp_path / "T", backend=HERE)
    manifest = json.loads((tmp_path / "T" / "tokens.json").read_text())
    manifest["skills"][0]["train"]["ids_digest"][0] = None
    (tmp_path / "T" / "tokens.json").write_text(json.dumps(manifest))
    with pytest.raises(TokensError, match=r"skill 'add': train.ids_digest does not agree with ids and answers"):
        TokenSet.open(tmp_path / "T")
