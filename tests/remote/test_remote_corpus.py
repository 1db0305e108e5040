"""A corpus in a store: directories, globs and files whose address has a query."""

from pathlib import Path

import boto3
import pytest

from skillshard.corpus import Corpus, Sample, read_partition
from skillshard.errors import CorpusError
from tests.commands import works
from tests.conftest import lines, samples, tree
from tests.remote.conftest import BUCKET

DATA = lines(samples(add=5, carry=3))


@pytest.fixture(scope="module")
def address(s3_address: str) -> str:
    client = boto3.client("s3", endpoint_url=f"http://{s3_address}", region_name="us-east-1")
    half = DATA.index(b"\n", len(DATA) // 2) + 1
    for name, data in {
        "part-1.jsonl": DATA[:half],
        "lang=en/part-2.jsonl": DATA[half:],
        "notes.md": b"# Notes",
    }.items():
        client.put_object(Bucket=BUCKET, Key=f"raw/{name}", Body=data)
    client.close()
    return s3_address


def uri(address: str, path: str, keys: str = "") -> str:
    return f"s3://{keys}{BUCKET}/{path}?region=us-east-1&endpoint_override={address}&scheme=http"


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("raw", ["lang=en/part-2.jsonl", "part-1.jsonl"]),
        ("raw/", ["lang=en/part-2.jsonl", "part-1.jsonl"]),
        ("raw/part-?.jsonl", ["part-1.jsonl"]),
        ("raw/**/*.jsonl", ["lang=en/part-2.jsonl", "part-1.jsonl"]),
        ("raw/part-1.jsonl", ["part-1.jsonl"]),
    ],
)
def test_a_query_in_the_address_is_for_the_store(path: str, names: list[str], address: str) -> None:
    corpus = Corpus.open(uri(address, path))
    assert [file.name for file in corpus.files] == names
    rows = [row for partition in corpus.partitions() for row in read_partition(partition)]
    assert len(rows) == (8 if len(names) == 2 else 5)
    assert all(isinstance(row, Sample) for row in rows)


def test_a_missing_place_is_said_without_its_keys(address: str) -> None:
    with pytest.raises(CorpusError) as error:
        Corpus.open(uri(address, "nothing", "KEY:SECRET@"))
    assert "no such file or directory" in str(error.value)
    assert "SECRET" not in str(error.value)


def test_tags_and_shards_of_a_corpus_in_a_store_are_those_of_the_same_local_files(address: str, tmp_path: Path) -> None:
    half = DATA.index(b"\n", len(DATA) // 2) + 1
    (tmp_path / "raw" / "lang=en").mkdir(parents=True)
    (tmp_path / "raw" / "part-1.jsonl").write_bytes(DATA[:half])
    (tmp_path / "raw" / "lang=en" / "part-2.jsonl").write_bytes(DATA[half:])
    (tmp_path / "raw" / "notes.md").write_bytes(b"# Notes")
    for name, corpus in (("remote", uri(address, "raw")), ("local", tmp_path / "raw")):
        works("tag", "metadata", corpus, "--field", "meta.skill", "--out", tmp_path / name / "T", "--workers", 1)
        works("shard", corpus, "--tags", tmp_path / name / "T", "--out", tmp_path / name / "S", "--workers", 1)
    assert tree(tmp_path / "remote") == tree(tmp_path / "local")
