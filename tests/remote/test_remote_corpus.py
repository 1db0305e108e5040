"""A corpus in a store: directories, globs and files whose address has a query."""

from pathlib import Path

import boto3
import pytest

from skillshard import places, storage
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


# The Stack has folders such as "c#". No URI holds these characters without escapes.
ODD_NAMES = ("c#/a b.jsonl", "c++/100%.jsonl", "größe/what?.jsonl", "plain/a&b=c.jsonl")


@pytest.fixture(scope="module")
def odd_names(address: str) -> str:
    client = boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1")
    for number, name in enumerate(ODD_NAMES):
        data = b'{"id": "%d", "text": "Text %d", "meta": {"skill": "k"}}\n' % (number, number)
        client.put_object(Bucket=BUCKET, Key=f"odd #1/{name}", Body=data)
    client.close()
    return address


def names_and_texts(place: str) -> dict[str, list[str]]:
    corpus = Corpus.open(place)
    rows = [row for partition in corpus.partitions() for row in read_partition(partition)]
    assert all(isinstance(row, Sample) for row in rows)
    texts: dict[str, list[str]] = {}
    for row in rows:
        assert isinstance(row, Sample)
        texts.setdefault(row.file, []).append(row.text)
    return texts


@pytest.mark.parametrize("folder", ["odd #1", "odd%20%231"])
def test_names_with_special_characters_are_read_in_a_store(folder: str, odd_names: str) -> None:
    every = {name: [f"Text {number}"] for number, name in enumerate(ODD_NAMES)}
    assert names_and_texts(uri(odd_names, folder)) == every
    assert names_and_texts(uri(odd_names, f"{folder}/c*/*.jsonl")) == {name: every[name] for name in ODD_NAMES[:2]}
    assert names_and_texts(uri(odd_names, f"{folder}/größe/what%3F.jsonl")) == {"what?.jsonl": ["Text 2"]}


def test_tags_and_shards_under_a_name_with_special_characters_are_those_of_local_files(
    odd_names: str, tmp_path: Path
) -> None:
    for number, name in enumerate(ODD_NAMES):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        data = b'{"id": "%d", "text": "Text %d", "meta": {"skill": "k"}}\n' % (number, number)
        (tmp_path / "raw" / name).write_bytes(data)
    out = uri(odd_names, "out é #/x")
    for corpus, place in ((uri(odd_names, "odd #1"), out), (str(tmp_path / "raw"), str(tmp_path / "local"))):
        tags, shards = places.join(place, "T"), places.join(place, "S")
        works("tag", "metadata", corpus, "--field", "skill", "--out", tags, "--workers", 1)
        works("shard", corpus, "--tags", tags, "--out", shards, "--workers", 1)
        assert "all as the manifest says" in works("verify", shards)
    written = {
        places.relative(file.place, out): storage.read_bytes(file.place)
        for file in storage.list_files(out, hidden=True)
    }
    assert written == tree(tmp_path / "local")
