"""Addresses of data sets: a local folder in the layout of the Hub stands for the Hub, because the tests have no network."""

import re
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from skillshard.corpus import Corpus, FileLayout, Sample, read_partition
from skillshard.corpus.hub import HubAddress
from skillshard.errors import CorpusError
from tests.commands import works

CARD = """---
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train-*.jsonl
  - split: test
    path: main/test.jsonl
- config_name: rows
  data_files: tasks/*.json
  field: rows
---
# A data set
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "set"
    files = {
        "README.md": CARD,
        "main/train-0.jsonl": '{"id": "a", "text": "one", "topic": "x"}\n',
        "main/train-1.jsonl": '{"id": "b", "text": "two", "topic": "y"}\n',
        "main/test.jsonl": '{"id": "c", "text": "three"}\n',
        "tasks/1.json": '{"rows": [{"id": "d", "text": "four"}], "topic": "z"}',
    }
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    yield place


def ids(address: str, **options: FileLayout) -> list[str | None]:
    return [row.id for part in Corpus.open(address, **options).partitions() for row in read_partition(part)]


def test_a_split_and_a_configuration_choose_the_files(folder: Path) -> None:
    assert ids(f"hf:{folder}") == ids(f"hf:{folder}/main:train") == ["a", "b"]
    assert ids(f"hf:{folder}:test") == ids(f"hf:{folder}/main:test") == ["c"]
    assert [file.name for file in Corpus.open(f"hf:{folder}").files] == ["main/train-0.jsonl", "main/train-1.jsonl"]


def test_the_field_of_the_rows_that_the_card_names_is_used(folder: Path) -> None:
    (part,) = Corpus.open(f"hf:{folder}/rows").partitions()
    assert list(read_partition(part)) == [Sample("d", "four", {"topic": "z"})]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("{folder}:tain", "no split 'tain' (did you mean 'train'?). The splits are train, test."),
        ("{folder}/other", "cannot be opened: BuilderConfig 'other' not found. Available: ['main', 'rows']."),
    ],
)
def test_a_wrong_split_or_configuration_is_said_with_the_known_names(address: str, sentence: str, folder: Path) -> None:
    with pytest.raises(CorpusError, match=re.escape(sentence)):
        Corpus.open("hf:" + address.format(folder=folder))


@pytest.mark.parametrize("address", ["hf:", "hf:a//b", "hf:a/b/c/d", "hf:a/b:", "hf:a/b/c@v1/d"])
def test_another_form_of_an_address_is_refused(address: str) -> None:
    with pytest.raises(CorpusError, match="is no address of a data set: give hf:NAME, hf:NAME/CONFIG or"):
        HubAddress.parse(address)


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_reach(*arguments: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach 'org/name' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset_builder", out_of_reach)
    with pytest.raises(CorpusError) as error:
        Corpus.open("hf:org/name")
    assert str(error.value).startswith(
        "hf:org/name cannot be opened: Couldn't reach 'org/name' on the Hub (LocalEntryNotFoundError). Are the name and the "
        "configuration right, and is there a network?"
    )


def test_a_data_set_is_tagged_and_sharded_by_its_address(folder: Path, tmp_path: Path) -> None:
    works("tag", "metadata", f"hf:{folder}", "--field", "topic", "--out", tmp_path / "T", "--workers", 1)
    works("shard", f"hf:{folder}", "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1)
    assert "all as the manifest says" in works("verify", tmp_path / "S")


def test_a_dataset_that_the_library_has_saved_is_read(tmp_path: Path) -> None:
    rows = {"id": ["a", "b", "c"], "text": ["one", "two", "three"]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "saved")
    assert ids(str(tmp_path / "saved")) == ids(str(tmp_path / "saved" / "train")) == ["a", "b", "c"]
