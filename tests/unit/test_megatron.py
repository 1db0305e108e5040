"""`skillshard export --format megatron`: token ids as .bin and .idx, read back by a reader that shares no code with the writer."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from skillshard import export as export_module
from skillshard import export_files, export_rows, megatron, policies
from skillshard.errors import TokensError
from skillshard.export import export_shards
from skillshard.export_manifest import MANIFEST
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.shards.tokens import write_tokens
from tests.commands import skillshard, works
from tests.conftest import HERE, tag_and_shard, tree, write_corpus
from tests.tokenizers_trained import EOS, counted, letter_tokenizer, letters, uneven_shards
from tests.unit.test_export import stop_after

SEPARATOR = letter_tokenizer().token_to_id(EOS)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return uneven_shards(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module")
def tokens(uneven: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    return counted(uneven, tmp_path_factory.mktemp("tokens") / "T")


def documents(prefix: Path) -> tuple[np.dtype, list[list[int]]]:
    """Read a pair of files as Megatron-LM's reader does. Return the type of the ids, and the ids of each document."""
    with prefix.with_name(prefix.name + ".idx").open("rb") as file:
        assert file.read(9) == b"MMIDIDX\x00\x00"
        (version,) = struct.unpack("<Q", file.read(8))
        (code,) = struct.unpack("<B", file.read(1))
        num_sequences, num_bounds = struct.unpack("<QQ", file.read(16))
        lengths = np.frombuffer(file.read(4 * num_sequences), "<i4")
        pointers = np.frombuffer(file.read(8 * num_sequences), "<i8")
        bounds = np.frombuffer(file.read(8 * num_bounds), "<i8")
        assert file.read() == b"" and version == 1
    dtype = {8: np.dtype("<u2"), 4: np.dtype("<i4")}[code]
    data = prefix.with_name(prefix.name + ".bin").read_bytes()
    sequences = [
        np.frombuffer(data, dtype, count=length, offset=pointer).tolist()
        for length, pointer in zip(lengths.tolist(), pointers.tolist(), strict=True)
    ]
    assert sum(map(len, sequences)) * dtype.itemsize == len(data)
    assert bounds.tolist() == list(range(num_sequences + 1))
    return dtype, sequences


def encoded(texts: list[str], separator: str | None) -> list[list[int]]:
    tokenizer, last = letter_tokenizer(), [] if separator is None else [SEPARATOR]
    return [tokenizer.encode(text).ids + last for text in texts]


@pytest.mark.parametrize("separator", [None, EOS])
@pytest.mark.parametrize("split", ["train", "holdout"])
def test_each_skill_is_a_pair_with_the_ids_of_its_samples_in_stored_order(
    split: str, separator: str | None, uneven: ShardSet, tokens: TokenSet, tmp_path: Path
) -> None:
    options = () if separator is None else ("--separator", separator)
    shown = works(
        *("export", uneven.root, "--format", "megatron", "--tokens", tokens.root, "--split", split, *options),
        *("--workers", 1, "--out", tmp_path / "E"),
    )
    skills = uneven.train if split == "train" else uneven.holdout
    assert f"{sum(map(len, skills.values())):,} rows of 3 skills in 6 files" in shown
    for skill, own in skills.items():
        dtype, sequences = documents(tmp_path / "E" / own.folder)
        assert dtype == np.uint16
        assert sequences == encoded([sample.text for sample in own], separator), skill
    assert skillshard("verify", tmp_path / "E").code == 0
    facts = json.loads(skillshard("inspect", tmp_path / "E", "--json").out)
    assert (facts["format"], facts["columns"]) == ("megatron", ["tokens"])
    assert {skill["name"]: skill["num_rows"] for skill in facts["skills"]} == {
        skill: len(own) for skill, own in skills.items()
    }


@pytest.mark.parametrize("separator", [None, EOS])
def test_a_mix_is_a_pair_with_the_draws_of_the_mix_in_their_order(
    separator: str | None, uneven: ShardSet, tokens: TokenSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"policy": policies.temperature(2.0), "draws": 300, "seed": 7, "round_draws": 64}
    export_shards(uneven, tmp_path / "texts", format="jsonl", workers=1, **arguments)
    # Small groups and pieces for the ids alone, because a group of texts costs a search in the stream.
    for module in (export_files, export_rows):
        monkeypatch.setattr(module, "GROUP_BYTES", 100)
    monkeypatch.setattr(megatron, "_PIECE", 7)
    rows = [json.loads(line) for line in (tmp_path / "texts" / "000000.jsonl").read_bytes().splitlines()]
    export_shards(uneven, tmp_path / "E", format="megatron", tokens=tokens, separator=separator, workers=1, **arguments)
    assert documents(tmp_path / "E" / "mix")[1] == encoded([row["text"] for row in rows], separator)
    divided = {"format": "megatron", "tokens": tokens, "separator": separator, "file_bytes": 100_000, **arguments}
    manifest = export_shards(uneven, tmp_path / "divided", workers=2, **divided)
    names = [file.name.removesuffix(".bin") for file in manifest.files if file.name.endswith(".bin")]
    assert len(names) > 2 and names[1].startswith("mix.00001-of-")
    assert [ids for name in names for ids in documents(tmp_path / "divided" / name)[1]] == encoded(
        [row["text"] for row in rows], separator
    )


def test_a_large_skill_may_be_divided_into_pairs(uneven: ShardSet, tokens: TokenSet, tmp_path: Path) -> None:
    for workers in (1, 2):
        manifest = export_shards(
            uneven, tmp_path / str(workers), format="megatron", tokens=tokens, file_bytes=50_000, workers=workers
        )
    assert tree(tmp_path / "1") == tree(tmp_path / "2")
    for own in uneven.train.values():
        names = [file.name for file in manifest.files if file.name.split(".")[0] == own.folder]
        pairs = sorted({name.rpartition(".")[0] for name in names})
        assert [ids for name in pairs for ids in documents(tmp_path / "1" / name)[1]] == encoded(
            [sample.text for sample in own], None
        )


def test_ids_of_a_large_vocabulary_are_int32(uneven: ShardSet, tmp_path: Path) -> None:
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {f"-{number}": number for number in range(70_000)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary | {letter: 70_000 + n for n, letter in enumerate(alphabet)}))
    tokenizer.normalizer = normalizers.Replace(Regex("[^a-z ]"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = write_tokens(uneven, tokenizer, tmp_path / "T", backend=HERE)
    export_shards(uneven, tmp_path / "E", format="megatron", tokens=tokens, workers=1)
    for own in uneven.train.values():
        dtype, sequences = documents(tmp_path / "E" / own.folder)
        assert dtype == np.int32
        assert sequences == [tokenizer.encode(sample.text).ids for sample in own]


def test_a_stopped_export_goes_on(
    uneven: ShardSet, tokens: TokenSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"format": "megatron", "tokens": tokens, "separator": EOS, "workers": 1}
    export_shards(uneven, tmp_path / "whole", **arguments)
    write_pair = export_module.write_pair
    stop_after(1, "write_pair", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        export_shards(uneven, tmp_path / "E", **arguments)
    assert not (tmp_path / "E" / MANIFEST).exists()
    monkeypatch.setattr(export_module, "write_pair", write_pair)
    export_shards(uneven, tmp_path / "E", **arguments)
    assert tree(tmp_path / "E") == tree(tmp_path / "whole")


def test_a_flipped_id_is_never_exported(uneven: ShardSet, tmp_path: Path) -> None:
    tokens = counted(uneven, tmp_path / "T")
    place = tmp_path / "T" / "train" / "add" / "000000.ids.bin"
    data = bytearray(place.read_bytes())
    data[10] ^= 1
    place.write_bytes(data)
    with pytest.raises(TokensError, match=r"add/000000\.ids\.bin: bytes 0 to .* have digest"):
        export_shards(uneven, tmp_path / "E", format="megatron", tokens=tokens, workers=1)
    assert not (tmp_path / "E" / MANIFEST).exists()


def test_arguments_that_do_not_fit_are_one_sentence(
    uneven: ShardSet, tokens: TokenSet, shards: ShardSet, tmp_path: Path
) -> None:
    counts = write_tokens(uneven, letter_tokenizer(), tmp_path / "C", counts_only=True, backend=HERE)
    for source, arguments, sentence in (
        (uneven, {"format": "megatron"}, "has token ids in place of texts: give `tokens` too"),
        (uneven, {"format": "jsonl", "tokens": tokens}, "`tokens` belongs to `format='megatron'`, and jsonl has texts"),
        (uneven, {"format": "jsonl", "separator": EOS}, "`separator` belongs to `format='megatron'`"),
        (uneven, {"format": "megatron", "tokens": counts}, "has token counts alone, and no token ids"),
        (uneven, {"format": "megatron", "tokens": tokens, "separator": "<end>"}, "has no token '<end>'"),
        (shards, {"format": "megatron", "tokens": tokens}, "has the tokens of shards"),
    ):
        with pytest.raises(TokensError) as raised:
            export_shards(source, tmp_path / "E", **arguments)
        assert sentence in str(raised.value)
        assert not (tmp_path / "E").exists()


def test_tokens_with_masked_prompts_are_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [letters("add", number, 5) for number in range(20)])
    uneven = tag_and_shard(corpus, tmp_path)
    tokens = write_tokens(uneven, letter_tokenizer(), tmp_path / "T", answer_after=" ", backend=HERE)
    with pytest.raises(
        TokensError, match=r"has a mask, by which a trainer learns .* alone. Files of Megatron-LM have no masks"
    ):
        export_shards(uneven, tmp_path / "E", format="megatron", tokens=tokens, workers=1)
