"""Rows inside a JSON document: in an array of the object, or in arrays of arrays, with the fields around each row."""

import json
from pathlib import Path
from typing import Any

import pytest

from skillshard.corpus import Corpus, CorpusReading, FieldMapping, FileLayout, Rejection, Sample
from skillshard.corpus.partitions import Partition
from skillshard.corpus.reader import PartitionReader, read_partition
from skillshard.shards.read import ShardSet
from skillshard.taggers import tag as tag_module
from tests.commands import fails, works

QUESTIONS = {
    "version": "1.1",
    "data": [
        {
            "paragraphs": [
                {"qas": [{"id": "q0", "question": "Who?", "answers": [{"text": "Ada"}]}, {"id": "q1", "question": "When?"}], "context": "Ada wrote."},
                {"qas": [], "context": "Nobody asks."},
            ],
            "title": "Ada",
        },
        {"title": "Bean", "paragraphs": [{"context": "Beans grow.", "qas": [{"id": "q2", "question": "What?", "title": "own"}]}]},
    ],
    "source": "test",
}  # fmt: skip


def read(document: Any, rows: str, folder: Path, indent: int | None = None) -> list[Sample | Rejection]:
    (folder / "a.json").write_text(json.dumps(document, indent=indent))
    corpus = Corpus.open(folder / "a.json", layout=FileLayout(rows=rows))
    (partition,) = corpus.partitions()
    return list(read_partition(partition, CorpusReading({"": FieldMapping(text_field="question")})))


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_in_arrays_of_arrays_have_the_fields_of_all_objects_around(indent: int | None, tmp_path: Path) -> None:
    samples = [row for row in read(QUESTIONS, "data.paragraphs.qas", tmp_path, indent) if isinstance(row, Sample)]
    assert [(sample.id, sample.text) for sample in samples] == [("q0", "Who?"), ("q1", "When?"), ("q2", "What?")]
    around = [(sample.meta["version"], sample.meta["source"], sample.meta["context"], sample.meta["title"]) for sample in samples]  # fmt: skip
    assert around == [
        ("1.1", "test", "Ada wrote.", "Ada"),
        ("1.1", "test", "Ada wrote.", "Ada"),
        ("1.1", "test", "Beans grow.", "own"),  # a field of the row has priority
    ]


def test_objects_and_arrays_alternate_on_the_way_to_the_rows(tmp_path: Path) -> None:
    document = {"a": {"b": [{"c": {"d": [{"id": "1", "question": "x"}], "e": 1}, "f": 2}], "g": 3}, "h": 4}
    (sample,) = read(document, "a.b.c.d", tmp_path)
    assert isinstance(sample, Sample) and sample.meta == {"e": 1, "f": 2, "g": 3, "h": 4}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"data": [{"qas": [{"id": "1", "question": "x"}]}, {"title": "t"}]}, "no field 'data.1.qas' with the rows; the fields are title. Name the field with `rows`"),
        ({"data": [{"qas": [{"id": "1", "question": "x"}]}, 7]}, "expected an object with the rows at 'data.1', got a number (7)"),
        ({"data": [{"qas": [{"id": "1", "question": "x"}]}, {"qas": "none"}]}, "expected an array with the rows at 'data.1.qas', got a string"),
    ],
)  # fmt: skip
def test_an_element_without_rows_is_named(document: Any, sentence: str, tmp_path: Path) -> None:
    (bad,) = read(document, "data.qas", tmp_path)
    assert isinstance(bad, Rejection)
    assert sentence in bad.detail and bad.reason == "missing-field"


def write_task(folder: Path, definition: str) -> None:
    rows = [{"id": f"{number}", "input": f"The court hears appeal {number}."} for number in range(20)]
    task = {"Kind": "law", "Definition": definition, "Instances": rows}
    folder.mkdir(exist_ok=True)
    (folder / "a.json").write_text(json.dumps(task))


TAG = ("--rows", "Instances", "--text-field", "input", "--field", "Kind", "--workers", 1)


def test_another_value_beside_the_rows_is_noticed(tmp_path: Path) -> None:
    write_task(tmp_path / "C", "one")
    works("tag", "metadata", tmp_path / "C", *TAG, "--out", tmp_path / "T")
    write_task(tmp_path / "C", "two")
    sentence = fails("shard", tmp_path / "C", "--tags", tmp_path / "T", "--workers", 1, "--out", tmp_path / "S")
    assert "changed" in sentence and "a.json" in sentence


def test_tags_of_an_earlier_version_still_fit_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_before(partition: Partition, reading: CorpusReading) -> PartitionReader:
        return PartitionReader(partition, reading, ["" for _ in partition.stretches])

    write_task(tmp_path / "C", "one")
    with monkeypatch.context() as patch:
        patch.setattr(tag_module, "PartitionReader", as_before)
        works("tag", "metadata", tmp_path / "C", *TAG, "--out", tmp_path / "T")
    assert json.loads((tmp_path / "T" / "tags.json").read_text())["schema"] == "skillshard/tags/2"
    works("shard", tmp_path / "C", "--tags", tmp_path / "T", "--workers", 1, "--out", tmp_path / "S")
    assert len(ShardSet.open(tmp_path / "S").train["law"]) + len(ShardSet.open(tmp_path / "S").holdout["law"]) == 20
    works("tag", "metadata", tmp_path / "C", *TAG, "--out", tmp_path / "newer")
    assert json.loads((tmp_path / "newer" / "tags.json").read_text())["schema"] == "skillshard/tags/3"


def test_a_long_integer_beside_a_missing_text_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"id": "1", "n": 1' + 400 * "0" + ', "rows": [{"a": 1}]}]')
    (partition,) = Corpus.open(tmp_path / "a.json").partitions()
    (bad,) = read_partition(partition)
    assert isinstance(bad, Rejection) and "the field 'rows' is an array of objects" in bad.detail


@pytest.mark.parametrize("indent", [None, 2])
def test_a_star_reads_the_values_of_an_object_as_rows_with_their_names(indent: int | None, tmp_path: Path) -> None:
    by_id = {"7": {"id": "a", "question": "x"}, "8": {"id": "b", "question": "y", "key": "own"}}
    rows = [sample for sample in read(by_id | {"version": 1}, "*", tmp_path, indent) if isinstance(sample, Sample)]
    assert [(row.id, row.meta) for row in rows] == [
        ("a", {"version": 1, "key": "7"}),
        ("b", {"version": 1, "key": "own"}),
    ]


def test_a_star_stands_for_a_step_on_the_way_to_the_rows(tmp_path: Path) -> None:
    passages = {"p": {"url": "u", "qa": [{"id": "1", "question": "x"}, {"id": "2", "question": "y"}]}}
    for document, rows in (({"data": passages}, "data.*.qa"), (passages, "*.qa")):
        got = read(document, rows, tmp_path)
        assert [sample.meta for sample in got if isinstance(sample, Sample)] == 2 * [{"key": "p", "url": "u"}]
    splits = {"train": [{"id": "1", "question": "x"}], "test": [{"id": "2", "question": "y"}]}
    got = read(splits, "*", tmp_path)
    assert [sample.meta for sample in got if isinstance(sample, Sample)] == [{"key": "train"}, {"key": "test"}]
    (bad,) = read({"version": 1}, "*", tmp_path)
    assert isinstance(bad, Rejection) and "no field '*' with the rows; the fields are version" in bad.detail
