"""Conversations in the style of ShareGPT, folder fields in ids and texts, texts of bytes, and remedies that name keys of a corpus file."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillshard.corpus import ANSWER_SPANS, Corpus, FieldMapping, Rejection, Sample, read_partition
from tests.commands import fails, skillshard, works
from tests.conftest import lines


def rows_of(corpus: Path, **fields: Any) -> list[Sample | Rejection]:
    opened = Corpus.open(corpus, fields=FieldMapping(**fields))
    return [row for partition in opened.partitions() for row in read_partition(partition, opened.reading())]


# -------------------------------------------------------------------------------------------------------- conversations


def talk(roles: tuple[str, str], keys: tuple[str, str]) -> list[dict[str, str]]:
    return [{keys[0]: roles[0], keys[1]: "1 + 1?"}, {keys[0]: roles[1], keys[1]: "2"}]


def test_both_styles_of_messages_give_the_same_text_and_the_same_answers(tmp_path: Path) -> None:
    rows = [
        {"id": "chat", "turns": talk(("user", "assistant"), ("role", "content"))},
        {"id": "gpt", "turns": talk(("human", "gpt"), ("from", "value"))},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    chat, gpt = rows_of(tmp_path, messages="turns")
    assert isinstance(chat, Sample) and isinstance(gpt, Sample)
    assert chat.text == gpt.text == "user: 1 + 1?\n\nassistant: 2"
    assert chat.meta[ANSWER_SPANS] == gpt.meta[ANSWER_SPANS] == [[len(gpt.text) - 1, len(gpt.text)]]
    assert gpt.meta["turns"] == rows[1]["turns"]  # a chat template needs the messages as they are


def test_a_message_without_a_known_pair_of_keys_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"id": "1", "turns": [{"from": "human", "text": "hi"}]}]))
    (row,) = rows_of(tmp_path, messages="turns")
    assert isinstance(row, Rejection)
    assert "expected the keys 'role' and 'content', or 'from' and 'value', got 'from', 'text'" in row.detail
    assert row.field == "turns"


def test_peek_proposes_the_conversations_of_sharegpt(tmp_path: Path) -> None:
    rows = [{"id": str(n), "conversations": talk(("human", "gpt"), ("from", "value"))} for n in range(5)]
    (tmp_path / "sharegpt.json").write_text(json.dumps(rows))
    command = works("peek", tmp_path / "sharegpt.json").splitlines()[-1]
    assert "--messages conversations" in command


# ------------------------------------------------------------------------------------------------------- folder fields


@pytest.fixture
def by_language(tmp_path: Path) -> Path:
    for language in ("en", "de"):
        folder = tmp_path / "corpus" / f"lang={language}"
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_bytes(lines([{"text": f"word in {language}", "topic": "x"}]))
        pq.write_table(pa.table({"text": [f"row in {language}"], "topic": ["y"]}), folder / "b.parquet")
    return tmp_path / "corpus"


def test_a_folder_field_stands_in_a_template_and_in_the_metadata(by_language: Path) -> None:
    rows = rows_of(by_language, id_field=None, text="[{lang}] {text}")
    assert [row.text for row in rows if isinstance(row, Sample)] == [
        "[de] word in de",
        "[de] row in de",
        "[en] word in en",
        "[en] row in en",
    ]
    assert all(isinstance(row, Sample) and row.meta["lang"] in ("de", "en") for row in rows)


def test_a_folder_field_makes_ids_and_texts_and_a_field_of_the_row_has_priority(by_language: Path) -> None:
    named = rows_of(by_language / "lang=en", id_field=None, text="{lang} {text}")
    assert all(isinstance(row, Rejection) for row in named)  # the folder is the corpus itself, and no part of the names
    ids = [row.id for row in rows_of(by_language, id_field="lang")]
    assert ids == ["de", "de", "en", "en"]
    (by_language / "lang=en" / "c.jsonl").write_bytes(lines([{"lang": "fr", "text": "mot"}]))
    last = rows_of(by_language, id_field=None, text="{lang} {text}")[-1]
    assert isinstance(last, Sample) and (last.text, last.meta) == ("fr mot", {"lang": "en"})


def test_an_unknown_field_is_answered_with_the_folder_fields_too(by_language: Path) -> None:
    row = rows_of(by_language, id_field=None, text="{lnag} {text}")[0]
    assert isinstance(row, Rejection) and "did you mean 'lang'?" in row.detail


# -------------------------------------------------------------------------------------------------------- texts of bytes


def test_a_column_of_bytes_is_the_text_and_the_id_where_the_bytes_are_utf8(tmp_path: Path) -> None:
    texts = ["Grüße".encode(), b"plain", b"\xff\xfe", b"nul\0"]
    ids = [b"a", b"b", b"c", b"d"]
    for kind, name in ((pa.binary(), "a"), (pa.large_binary(), "b")):
        pq.write_table(
            pa.table({"id": pa.array(ids, kind), "text": pa.array(texts, kind)}), tmp_path / f"{name}.parquet"
        )
        rows = rows_of(tmp_path / f"{name}.parquet")
        assert [(row.id, row.text) for row in rows if isinstance(row, Sample)] == [("a", "Grüße"), ("b", "plain")]
        assert [(row.reason, row.field) for row in rows if isinstance(row, Rejection)] == [
            ("invalid-utf8", "text"),
            ("wrong-type", "text"),
        ]


# ------------------------------------------------------------------------------------------------------ a corpus file


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(lines([{"id": "1", "body": "text", "topic": "x"}]))
    (tmp_path / "corpus.yaml").write_text("corpora:\n  wiki:\n    files: in/\n")
    return tmp_path / "corpus.yaml"


def tag(corpus: Path, out: Path) -> tuple[object, ...]:
    return ("tag", "metadata", corpus, "--field", "topic", "--out", out, "--workers", 1)


def test_the_remedy_for_a_row_of_a_corpus_file_names_its_keys(listed: Path, tmp_path: Path) -> None:
    sentence = fails(*tag(listed, tmp_path / "T"))
    assert sentence == (
        "wiki/a.jsonl line 1: no field 'text' for the text; the row has id, body, topic. Mend the row, name another field with --field, 'id_field' or "
        "'text_field', or set such samples aside with --on-bad-sample set-aside. The keys in quotes stand in the corpus file, under 'wiki'."
    )
    plain = fails(*tag(tmp_path / "in", tmp_path / "U"))
    assert "--field, --id-field or --text-field" in plain and "corpus file" not in plain


@pytest.mark.parametrize(
    ("row", "key"),
    [({"text": "t", "topic": "x"}, "'id_from_row: true' makes ids"), ({"id": "1", "topic": "x"}, "'text_field'")],
)
def test_every_remedy_of_a_mapping_is_a_key(row: dict[str, str], key: str, listed: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "a.jsonl").write_bytes(lines([row]))
    sentence = fails(*tag(listed, tmp_path / "T"))
    assert key in sentence and "--id" not in sentence and "--text" not in sentence


def test_the_remedy_for_a_layout_is_a_key(listed: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "b.csv").write_text('id,text,topic\n1,"open,x\n')
    listed.write_text("corpora:\n  wiki:\n    files: in/b.csv\n")
    sentence = fails(*tag(listed, tmp_path / "T"))
    assert "give 'quote: '''" in sentence and "--quote" not in sentence


def test_notes_and_errors_of_opening_name_keys(listed: Path, tmp_path: Path) -> None:
    listed.write_text("corpora:\n  wiki:\n    files: in/\n    text_field: body\n    drop: tpoic\n")
    outcome = skillshard(*tag(listed, tmp_path / "T"))
    assert outcome.code == 0 and "field 'tpoic' of 'drop' (did you mean 'topic'?)" in outcome.err
    (tmp_path / "in" / "a.jsonl").unlink()
    (tmp_path / "in" / "notes.txt").write_text("hi")
    assert "give 'text_files: whole' or 'text_files: lines'" in fails(*tag(listed, tmp_path / "U"))


def test_a_pipeline_with_a_corpus_file_reads_paths_from_the_directory_of_the_corpus_file(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed.write_text("corpora:\n  wiki:\n    files: in/\n    text_field: body\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    corpus = os.path.relpath(listed, elsewhere)
    (tmp_path / "pipeline.yaml").write_text(
        f"corpus: {corpus}\nout: work\nworkers: 1\ntag:\n  metadata: {{field: topic}}\nshard:\n"
    )
    works("run", tmp_path / "pipeline.yaml")
    assert (elsewhere / "work" / "shards" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--messages", "text"), "--messages"),
        (("--messages", "turns"), "--messages"),
        (("--text", "{title}"), "--text"),
        (("--text-field", "title"), "--text-field"),
    ],
)
def test_the_remedy_for_a_text_names_the_option_that_named_the_text(
    tmp_path: Path, options: tuple[str, str], word: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(lines([{"id": "1", "text": "hello", "topic": "x"}]))
    sentence = fails(*tag(tmp_path / "in", tmp_path / "T"), *options)
    assert f"name another field with --field, --id-field or {word}, or set such samples aside" in sentence
