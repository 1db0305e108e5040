"""A remote token set gives the blocks of the local token set for every packing, and no tar is fetched."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from skillshard.errors import TokensError
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import proportional
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.shards.tokens import write_tokens
from skillshard.torch import PackedDataset, block_collator
from tests.conftest import HERE, tree
from tests.remote.conftest import BUCKET, s3_uri
from tests.tokenizers_trained import EOS, byte_tokenizer

BLOCK_TOKENS, BLOCKS = 48, 96


@pytest.fixture(scope="module")
def tokens(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    texts = [sample.text for skill in shards.train.values() for sample in skill]
    return write_tokens(shards, byte_tokenizer(texts), tmp_path_factory.mktemp("tokens") / "T", backend=HERE)


def put(s3_address: str, name: str, files: Mapping[str, bytes]) -> str:
    """Put the files of a token set into the bucket of the shards, and return the URI of the set."""
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://{s3_address}", region_name="us-east-1")
    for path, data in files.items():
        client.put_object(Bucket=BUCKET, Key=f"sets/{name}/{path}", Body=data)
    client.close()
    return s3_uri(s3_address).replace("sets/S", f"sets/{name}")


@pytest.fixture(scope="module")
def remote_tokens(s3_address: str, tokens: TokenSet) -> str:
    return put(s3_address, "T", tree(Path(tokens.root)))


def packed(shards: ShardSet, tokens: TokenSet, ledger: Path, packing: str) -> PackedTokens:
    blocks = {"block_tokens": BLOCK_TOKENS, "separator": EOS}
    unit = {"unit": "blocks", "tokens": tokens, **blocks} if packing == "skill" else {}
    mixer = Mixer(shards, proportional(), ledger=ledger, round_draws=100, **unit)
    return PackedTokens(mixer, tokens, packing=packing, **blocks)


@pytest.mark.parametrize("packing", ["concat", "one", "skill", "best-fit"])
def test_blocks_of_a_remote_token_set_are_those_of_the_local_one(
    shards: ShardSet, tokens: TokenSet, s3_address: str, remote_tokens: str, tmp_path: Path, packing: str
) -> None:
    expected = packed(shards, tokens, tmp_path / "local", packing).batch(0, BLOCKS).input_ids.tolist()
    cache = tmp_path / "cache"
    remote = ShardSet.open(s3_uri(s3_address), cache=cache), TokenSet.open(remote_tokens, cache=cache)
    assert remote[1].digest == tokens.digest
    stream = packed(*remote, tmp_path / "remote", packing)
    loader = DataLoader(
        PackedDataset(stream), batch_size=12, num_workers=2, collate_fn=block_collator("input_ids", "draw")
    )
    batches = [batch for batch, _ in zip(loader, range(BLOCKS // 12), strict=False)]
    assert [row for batch in batches for row in batch["input_ids"].tolist()] == expected
    resumed = packed(*remote, tmp_path / "remote", packing)
    resumed.load_state_dict(stream.state_at(50).model_dump(by_alias=True))
    assert next(resumed.batches(10)).input_ids.tolist() == expected[50:60]
    sizes = {len(data) for data in tree(cache).values()}
    tars = {path.stat().st_size for path in Path(shards.root).rglob("*.tar")}
    assert sizes and sizes.isdisjoint(tars)


def test_verify_names_every_damaged_and_missing_file_of_a_remote_token_set(
    shards: ShardSet, tokens: TokenSet, s3_address: str, tmp_path: Path
) -> None:
    files = tree(Path(tokens.root))
    flipped, missing, *_ = sorted(name for name in files if name.startswith("train/") and name.endswith(".ids.bin"))
    (counts,) = sorted(name for name in files if name.endswith(".tokens.npy") and name.startswith("holdout/"))[-1:]
    for name in (flipped, counts):
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    del files[missing]
    remote = TokenSet.open(put(s3_address, "damaged", files))
    faults = remote.verify()
    assert len(faults) == 3
    for name, sentence in ((flipped, "arrived damaged"), (missing, "is missing"), (counts, "arrived damaged")):
        assert any(re.search(rf"{name}\S* {sentence}", fault) for fault in faults)
    cached = TokenSet.open(remote.root, cache=tmp_path / "cache")
    with pytest.raises(TokensError, match=r"ids\.bin\S* (arrived damaged|is missing)"):
        packed(shards, cached, tmp_path / "ledger", "concat").batch(0, BLOCKS)
