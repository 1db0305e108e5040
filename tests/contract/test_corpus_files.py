"""A corpus file names several corpora with their fields: every verb takes the file, and every mistake is a sentence with its line."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from skillshard.corpus import Corpus, Sample, read_partition
from skillshard.errors import CorpusError
from skillshard.shards.read import ShardSet
from skillshard.tags import Tags
from tests.commands import fails, skillshard, works
from tests.conftest import REPOSITORY

CORPORA = r"""
corpora:
  wiki:
    files: wiki/
    text_field: [title, body]
    columns: [lang]
  chat:
    files: ["chat/*.jsonl"]
    messages: messages
    id_from_row: true
  sums:
    files: sums.json
    rows: Instances
    text: "{input}\n{output.0}"
    answer: output.0
    drop: score
"""


def write(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    write(data / "wiki" / "en" / "a.jsonl", {"id": 1, "title": "Rain", "body": "It falls.", "lang": "en", "views": 9})
    messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    write(data / "chat" / "a.jsonl", {"id": 1, "messages": messages}, {"id": 1, "messages": messages})
    write(data / "chat" / "notes.csv", "not named")
    instances = [{"id": 1, "input": "2+2", "output": ["4"], "score": 0.5}]
    write(data / "sums.json", {"Definition": "Add.", "Instances": instances})
    (data / "corpus.yaml").write_text(CORPORA)
    return data


def items_of(corpus: Corpus) -> list[Any]:
    reading = corpus.reading()
    return [item for partition in corpus.partitions() for item in read_partition(partition, reading)]


def test_each_corpus_has_its_own_fields_and_layout_and_a_prefix_for_files_and_ids(folder: Path) -> None:
    corpus = Corpus.open(folder / "corpus.yaml")
    assert [file.name for file in corpus.files] == ["chat/a.jsonl", "sums/sums.json", "wiki/en/a.jsonl"]
    chat, again, sums, wiki = items_of(corpus)
    assert (chat.id, chat.text) == ("chat/a.jsonl@0", "user: 1+1?\n\nassistant: 2")
    assert again.id != chat.id
    assert (sums.id, sums.text, sums.meta["answer_spans"]) == ("sums/1", "2+2\n4", [[4, 5]])
    assert wiki == Sample("wiki/1", "Rain\n\nIt falls.", {"lang": "en", "views": 9, "answer_spans": [[0, 15]]})


def test_tag_and_shard_take_the_file_and_shards_keep_the_chosen_metadata(folder: Path, tmp_path: Path) -> None:
    place = folder / "corpus.yaml"
    works("tag", "metadata", place, "--field", "file.parts.0", "--out", tmp_path / "T", "--workers", 1)
    assert [skill.name for skill in Tags.open(tmp_path / "T").manifest.skills] == ["chat", "sums", "wiki"]
    works("shard", place, "--tags", tmp_path / "T", "--out", tmp_path / "S", "--holdout", 0, "--workers", 1)
    shards = ShardSet.open(tmp_path / "S")
    assert shards.manifest.made_from["arguments"]["reading"]["corpora"]["chat"] == {
        "id_field": None,
        "messages": "messages",
    }
    assert [sample.meta for sample in shards.train["wiki"]] == [{"lang": "en", "answer_spans": [[0, 15]]}]
    assert [sorted(sample.meta) for sample in shards.train["sums"]] == [["Definition", "answer_spans"]]
    assert all(sample.meta["messages"][1]["content"] == "2" for sample in shards.train["chat"])


def test_a_corpus_file_with_other_fields_than_the_tags_is_refused(folder: Path, tmp_path: Path) -> None:
    place = folder / "corpus.yaml"
    works("tag", "metadata", place, "--field", "file.parts.0", "--out", tmp_path / "T", "--workers", 1)
    place.write_text(CORPORA.replace("[title, body]", "body"))
    sentence = fails("shard", place, "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1)
    assert "was made with other fields of the corpus (corpora.wiki.text_field: ['title', 'body'] -> 'body')" in sentence
    sentence = fails("tag", "metadata", place, "--field", "file.parts.0", "--out", tmp_path / "T", "--workers", 1)
    assert "arguments.reading.corpora.wiki.text_field" in sentence
    place.write_text(CORPORA.replace("rows: Instances", "rows: Instances\n    encoding: latin-1"))
    sentence = fails("shard", place, "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1)
    assert "was made from files with the layout {'layouts': {'sums': {'rows': 'Instances'}}}" in sentence


def test_the_place_of_the_file_decides_relative_places_and_not_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Corpus.open(folder / "corpus.yaml")
    monkeypatch.chdir(folder / "chat")
    assert Corpus.open("../corpus.yaml") == expected


def test_the_order_of_the_corpora_and_other_corpora_change_no_id(folder: Path) -> None:
    before = {item.id for item in items_of(Corpus.open(folder / "corpus.yaml"))}
    content = yaml.safe_load(CORPORA)
    content["corpora"] = dict(reversed(content["corpora"].items()))
    del content["corpora"]["sums"]
    (folder / "corpus.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert {item.id for item in items_of(Corpus.open(folder / "corpus.yaml"))} == before - {"sums/1"}


def test_an_output_inside_a_named_directory_is_refused(folder: Path) -> None:
    sentence = fails("tag", "metadata", folder / "corpus.yaml", "--field", "x", "--out", folder / "wiki" / "T")
    assert "lies in" in sentence


def test_the_example_and_the_test_file_fit_the_schema() -> None:
    schema = json.loads((REPOSITORY / "schemas" / "corpus-1.json").read_text())
    jsonschema.validate(yaml.safe_load(CORPORA), schema)
    jsonschema.validate(yaml.safe_load((REPOSITORY / "examples" / "corpus.yaml").read_text()), schema)


def test_the_example_runs_from_its_files_to_shards(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "examples" / "corpus.yaml", tmp_path)
    alpaca = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Name a colour.", "input": "", "output": "Red."},
    ]
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca))
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]
    write(tmp_path / "chat" / "part.jsonl", {"id": "c1", "source": "web", "messages": messages, "raw": "<p>Hi.</p>"})
    instances = [{"id": "task001-1", "input": "cat", "output": ["animal"]}]
    task = {"Categories": ["Classification"], "Definition": ["Name the kind."], "Instances": instances}
    write(tmp_path / "tasks" / "task001.json", task)
    write(tmp_path / "books" / "one.txt", "Once upon a time.")
    place = tmp_path / "corpus.yaml"
    works("tag", "metadata", place, "--field", "file.parts.0", "--out", tmp_path / "T", "--workers", 1)
    works("shard", place, "--tags", tmp_path / "T", "--out", tmp_path / "S", "--holdout", 0, "--workers", 1)
    shards = ShardSet.open(tmp_path / "S")
    samples = {sample.id: sample for skill in shards.train.values() for sample in skill}
    assert sorted(samples) == [
        "alpaca/alpaca.json@1",
        "alpaca/alpaca.json@2",
        "books/one.txt",
        "chat/c1",
        "tasks/task001-1",
    ]
    answers = {
        identity: [sample.text[start:stop] for start, stop in sample.meta.get("answer_spans", [])]
        for identity, sample in samples.items()
    }
    assert answers["alpaca/alpaca.json@2"] == ["Red."]
    assert samples["alpaca/alpaca.json@2"].text == "Name a colour.\n\nRed."
    assert answers["chat/c1"] == ["Hello!"]
    assert sorted(samples["chat/c1"].meta) == ["answer_spans", "messages", "source"]
    assert answers["tasks/task001-1"] == ["animal"]
    assert samples["tasks/task001-1"].meta == {"Categories": ["Classification"], "answer_spans": [[21, 27]]}
    assert answers["books/one.txt"] == [samples["books/one.txt"].text]


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("corpora:\n  a:\n    files: x\n    text-field: y\n", "line 4: unknown key 'corpora.a.text-field' (did you mean 'text_field'?). The keys there are files, id_field,"),
        ("corpus:\n  a:\n    files: x\n", "line 1: unknown key 'corpus' (did you mean 'corpora'?). The keys there are schema, corpora."),
        ("corpora:\n  a:\n    text: '{b}'\n", "line 2: the key 'corpora.a.files' is missing. Name the files of the corpus."),
        ("corpora: {}\n", "line 1: corpora: Dictionary should have at least 1 item"),
        ("corpora:\n  a:\n    files: x\n    id_field: no\n", "line 4: corpora.a.id_field: Input should be a valid string, got False. A string such as 'no' or '1' needs quotes."),
        ("corpora:\n  a:\n    files: x\n    drop: [b, 1]\n", "line 4: corpora.a.drop"),
        ("corpora:\n  2023:\n    files: x\n", "line 2: the key 2023 is no string. Write the key in quotes."),
        ("corpora:\n  a:\n    files: x\n  a:\n    files: y\n", "line 4: the key 'a' stands twice. Keep one of the two."),
        ("corpora:\n  a:\n    files: x\n   text: y\n", "line 4: not valid YAML (column 4: "),
        ("corpora:\n\ta: x\n", "line 2: not valid YAML (column 1: found character '\\t' that cannot start any token)"),
        ("corpora: !!python/object:os.system x\n", "line 1: not valid YAML (column 10: could not determine a constructor"),
        ("", "is no corpus file: expected the key 'corpora'"),
        ("just words\n", "is no corpus file: expected the key 'corpora'"),
        ("corpora:\n  a/b:\n    files: x\n", "line 2, corpus 'a/b': a name has letters, digits, '.', '_' and '-'"),
        ("corpora:\n  a:\n    files: []\n", "line 2, corpus 'a': 'files' names no file."),
        ("corpora:\n  a:\n    files: b.yaml\n", "line 2, corpus 'a': 'files' names a YAML file, and a corpus file holds no other corpus file."),
        ("corpora:\n  a:\n    files: x\n    id_field: b\n    id_from_row: true\n", "line 2, corpus 'a': 'id_field' and 'id_from_row' both make the ids."),
        ("corpora:\n  a:\n    files: x\n    id_field: ''\n", "line 2, corpus 'a': 'id_field' needs the path of a field, such as 'id' or 'meta.source', got ''. Where rows have no ids, 'id_from_row: true' makes ids"),
        ("corpora:\n  a:\n    files: x\n    text: words\n", "line 2, corpus 'a': the template 'words' names no field"),
        ("corpora:\n  a:\n    files: x\n    encoding: utf8000\n", "line 2, corpus 'a': 'encoding' 'utf8000' is not known."),
        ("corpora:\n  a:\n    files: nowhere\n", "corpus 'a': "),
        ("[" * 5000, "nested too deeply"),
        ("corpora:\n  a: [x]\n", "line 2: corpora.a: Input should be a valid dictionary"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_sentence_with_its_line(content: str, sentence: str, tmp_path: Path) -> None:
    place = tmp_path / "corpus.yaml"
    place.write_text(content)
    with pytest.raises(CorpusError) as error:
        Corpus.open(place)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    place = tmp_path / "corpus.yaml"
    place.write_bytes(b"corpora:\n  a: \xff\n")
    with pytest.raises(CorpusError, match="line 2: not valid UTF-8"):
        Corpus.open(place)


def test_a_misspelled_column_is_noted_with_the_nearest_field_before_the_work(folder: Path, tmp_path: Path) -> None:
    place = folder / "corpus.yaml"
    place.write_text(
        CORPORA.replace("columns: [lang]", "columns: [lng]").replace("drop: score", "drop: [score, Instances]")
    )
    outcome = skillshard("tag", "metadata", place, "--field", "file.parts.0", "--out", tmp_path / "T", "--workers", 1)
    assert outcome.code == 0
    notes = [line for line in outcome.err.splitlines() if line.startswith("note: no field")]
    assert notes == [
        "note: no field 'lng' of 'columns' (did you mean 'lang'?); the row has lang, views, answer_spans in the first 1 sample of wiki/en/a.jsonl.",
        "note: no field 'Instances' of 'drop'; the row has Definition, score, answer_spans in the first 1 sample of sums/sums.json.",
    ]


def test_a_field_of_the_id_and_ids_from_rows_are_not_given_together(folder: Path, tmp_path: Path) -> None:
    options = ("--field", "file.stem", "--out", tmp_path / "T", "--id-field", "id", "--id-from-row")
    outcome = skillshard("tag", "metadata", folder / "wiki", *options)
    assert outcome.code == 2
    assert "names a field, and --id-from-row makes ids without a field" in " ".join(
        outcome.err.replace("│", "").split()
    )


def test_other_places_and_options_beside_a_corpus_file_are_refused(folder: Path, tmp_path: Path) -> None:
    place, out = folder / "corpus.yaml", tmp_path / "T"
    sentence = fails("tag", "metadata", place, folder / "wiki", "--field", "x", "--out", out)
    assert "is a corpus file, and 1 other places stand beside the file" in sentence
    for option in (("--text-field", "body"), ("--id-from-row",), ("--rows", "Instances")):
        sentence = fails("tag", "metadata", place, "--field", "x", "--out", out, *option)
        assert "is a corpus file, which names the fields and the layout of each corpus" in sentence
