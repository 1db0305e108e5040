"""The guesses of `skillshard peek` are pure functions of the first rows and the names of the files."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from skillshard.corpus.by_columns import table_by_columns
from skillshard.corpus.guess import Row, fields_of, guess, options_of, shell_line
from skillshard.corpus.mapping import FieldMapping
from tests.commands import fails


def rows(*values: dict[str, Any], file: str = "a.jsonl") -> list[Row]:
    return [Row(file, "jsonl", row) for row in values]


def talk(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": str(number)}]


def numbered(**fields: Any) -> list[Row]:
    return rows(*({name: make(number) for name, make in fields.items()} for number in range(20)))


def topic(number: int) -> str:
    return ("law", "garden")[number % 2]


def words(number: int) -> str:
    return f"A text of some length, number {number}"


@pytest.mark.parametrize(
    ("first_rows", "options", "skill"),
    [
        (numbered(id=str, text=words, topic=topic), [], "topic"),
        (numbered(uuid=str, body=words, topic=topic), ["--id-field", "uuid", "--text-field", "body"], "topic"),
        (numbered(docId=int, content=words), ["--id-field", "docId", "--text-field", "content"], None),
        (numbered(id=topic, text=words), ["--id-from-row"], None),
        (numbered(id=lambda number: number / 2, text=words), ["--id-from-row"], None),
        (numbered(messages=talk, source=topic), ["--id-from-row", "--messages", "messages"], "source"),
        (
            numbered(question=words, answer=words),
            ["--id-from-row", "--text-field", "question", "--text-field", "answer", "--answer", "answer"],
            None,
        ),
        (
            numbered(input=words, output=lambda number: ["", words(number)][number % 2]),  # an answer is empty
            ["--id-from-row", "--text-field", "input", "--text-field", "output"],
            None,
        ),
        (
            numbered(input=words, output=lambda number: [words(number), "another answer"]),
            ["--id-from-row", "--text-field", "input", "--text-field", "output.0", "--answer", "output.0"],
            None,
        ),
        (numbered(short=str, long=words), ["--id-from-row", "--text-field", "long"], None),
        (numbered(id=str, text=words, meta=lambda number: {"category": topic(number)}), [], "meta.category"),
        (numbered(id=str, text=words, created=topic), [], None),  # a time is no skill
        (numbered(id=str, text=words, topic=lambda number: topic(number) if number else None), [], None),
        (  # a question without an answer
            numbered(id=str, context=words, question=str, answers=lambda number: [{"text": "x"}] if number else []),
            ["--text-field", "context", "--text-field", "question"],
            None,
        ),
        # SQuAD as a table, and as rows of the JSON document: the name of an array is the name of its strings.
        (
            numbered(
                id=str,
                title=topic,
                context=words,
                question=str,
                answers=lambda number: {"text": [str(number)], "start": [number]},
            ),
            [
                "--text-field",
                "context",
                "--text-field",
                "question",
                "--text-field",
                "answers.text",
                "--answer",
                "answers.text",
            ],
            "title",
        ),
        (
            numbered(
                id=str, context=words, question=str, answers=lambda number: [{"text": str(number), "start": number}]
            ),
            [
                "--text-field",
                "context",
                "--text-field",
                "question",
                "--text-field",
                "answers.0.text",
                "--answer",
                "answers.0.text",
            ],
            None,
        ),
        (
            numbered(id=str, url=str, data=lambda number: {"text": [words(number), words(number)]}),
            ["--text-field", "data.text.0"],
            None,
        ),
        (
            numbered(id=str, stem=words, answerKey=lambda number: "ABCD"[number % 4]),
            ["--text-field", "stem"],
            None,
        ),  # an answer is no skill
        (numbered(id=str, text=words, topic=lambda number: ("law", " ")[number % 2]), [], None),  # white space
        (  # UltraChat and LIMA: the turns of a conversation as strings
            numbered(id=str, data=lambda number: [words(number), "An answer."][: 1 + number % 4]),
            ["--messages", "data"],
            None,
        ),
        (  # sentences, and no turns: most rows have a single string
            numbered(id=str, data=lambda number: [words(number)]),
            ["--text-field", "data"],
            None,
        ),
        (numbered(id=str, chosen=words, rejected=lambda number: 2 * words(number)), ["--text-field", "chosen"], None),
        (
            numbered(id=str, content=words, events=lambda number: [{"text": "opened"}]),
            ["--text-field", "content"],
            None,
        ),
        (
            numbered(task_id=str, prompt=words, canonical_solution=words, test=words),
            [
                "--id-field",
                "task_id",
                *("--text-field", "prompt", "--text-field", "canonical_solution", "--answer", "canonical_solution"),
            ],
            None,
        ),
    ],
)
def test_the_fields_are_guessed_from_names_and_values(
    first_rows: list[Row], options: list[str], skill: str | None
) -> None:
    guessed = guess(first_rows, ["a.jsonl"])
    assert options_of(guessed.fields) == options
    assert guessed.skill == skill


@pytest.mark.parametrize(
    ("files", "skill"),
    [
        (["law/0.jsonl", "law/1.jsonl", "garden/0.jsonl"], "file.parts.0"),
        (["data/law/0.jsonl", "data/garden/0.jsonl"], "file.folder"),
        (["law.jsonl", "garden.jsonl"], "file.stem"),
        (["part-00000.jsonl", "part-00001.jsonl"], None),
        (["train.jsonl", "test.jsonl"], None),
        (["all.jsonl"], None),
    ],
)
def test_folders_and_names_of_files_are_skills_if_no_field_is(files: list[str], skill: str | None) -> None:
    assert guess(numbered(id=str, text=words), files).skill == skill


def test_a_text_of_a_usual_name_may_lack_in_some_rows() -> None:
    mostly = rows(*({"hash": f"{number:064d}", **({"content": "x = 1"} if number else {})} for number in range(20)))
    assert guess(mostly, ["a.parquet"]).fields.text_field == ("content",)
    seldom = rows(*({"hash": f"{number:064d}", **({"content": "x = 1"} if number % 2 else {})} for number in range(20)))
    assert guess(seldom, ["a.parquet"]).fields.text_field != ("content",)


def test_the_reason_of_an_id_says_that_values_stand_twice() -> None:
    assert "values of id stand twice" in guess(numbered(id=topic, text=words), ["a.jsonl"]).id_reason
    assert "no field of every row looks like an id" in guess(numbered(text=words), ["a.jsonl"]).id_reason


def test_json_in_a_column_is_proposed_by_its_paths() -> None:
    guessed = guess(
        numbered(id=str, payload=lambda number: orjson.dumps({"body": words(number), "topic": topic(number)}).decode()),
        ["a.csv"],
    )
    assert (guessed.fields.text_field, guessed.skill) == (("payload.body",), "payload.topic")
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    assert guess(numbered(chat=lambda _: orjson.dumps(chat).decode()), ["a.csv"]).fields.messages == "chat"
    assert guess(numbered(dialog=lambda _: '["1+1?", "2"]'), ["a.csv"]).fields.messages == "dialog"
    assert guess(numbered(input_ids=lambda number: f"[1, {number}]"), ["a.csv"]).fields.token_ids == "input_ids"


def test_strings_of_which_no_part_is_a_text_stay_strings() -> None:
    # As a skill or as a text, an array of strings is taken as it is written.
    tags = guess(numbered(text=words, topic=lambda number: f'["{topic(number)}"]'), ["a.csv"])
    assert tags.skill == "topic"
    # The files of a corpus of JSON files have no common key.
    files = guess(numbered(content=lambda number: f'{{"key{number}": 1}}'), ["a.parquet"])
    assert files.fields.text_field == ("content",)
    odd = guess(numbered(notes=lambda number: f"[{number}, 1, 2]"), ["a.csv"])
    assert "look like JSON, and no part of them looks like a text" in odd.text_reason
    python = guess(numbered(turns=lambda number: f"[{{'from': 'human', 'value': '{number}'}}]"), ["a.csv"])
    assert "as Python shows them" in python.text_reason


@pytest.mark.parametrize("date", ["2019-{:02d}-05", "05/{:02d}/2021", "2019-{:02d}-05T10:00:00Z"])
def test_dates_are_no_skills(date: str) -> None:
    dated = numbered(id=str, text=words, posted=lambda number: date.format(number % 3 + 1))
    assert guess(dated, ["a.csv"]).skill is None


def test_known_fields_are_not_guessed() -> None:
    known = FieldMapping(id_field=None, text_field="topic")
    guessed = guess(numbered(id=str, text=words, topic=topic, kind=topic), ["a.jsonl"], known)
    assert guessed.fields is known and guessed.skill == "kind"


def test_a_corpus_without_rows_has_a_guess() -> None:
    guessed = guess([], [])
    assert guessed.skill is None
    assert guessed.id_reason == guessed.text_reason == guessed.skill_reason == "no row could be read"


def test_fields_show_types_values_and_an_example_without_control_characters() -> None:
    shown = fields_of(rows({"a": None, "b": {"c": [1]}}, {"a": "red\x1b[31m\n"}, {"a": "x" * 500}))
    assert [(facts.path, facts.num_rows, facts.num_values) for facts in shown] == [("a", 3, 3), ("b.c", 1, 1)]
    assert shown[0].types == ("string", "null") and shown[0].example == "red\\x1b[31m\\n"
    assert all(len(facts.example) <= 48 for facts in shown)


def test_a_line_for_the_shell_has_no_control_characters() -> None:
    line = shell_line(["--field", "it's\x1b[31m\\", "a b", "\u202eleft"])
    assert line == "--field $'it\\'s\\x1b[31m\\\\' 'a b' $'\\u202eleft'"


@pytest.mark.parametrize(
    "table",
    [
        {"text": {"0": "a b c", "1": "d e f"}, "label": {"0": "x", "1": "y"}},
        {"columns": ["text", "label"], "index": [0, 1], "data": [["a b c", "x"], ["d e f", "y"]]},
        {"text": ["a b c", "d e f"], "label": ["x", "y"]},
    ],
)
def test_a_table_by_columns_is_refused_with_the_right_way_to_write_rows(table: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(orjson.dumps(table))
    remedy = "to_json(path, orient='records', lines=True)"
    assert remedy in fails("peek", tmp_path / "a.json")
    for options in ((), ("--id-from-row",), ("--id-field", "label", "--text-field", "review")):
        sentence = fails("tag", "metadata", tmp_path / "a.json", *options, "--field", "label", "--out", tmp_path / "T")
        assert remedy in sentence and len(sentence) < 600


@pytest.mark.parametrize(
    "row",
    [
        {"input_ids": [1, 2], "labels": [1, 2]},
        {"tokens": ["a", "b"], "tags": ["x", "y"]},
        {"text": "a b c", "scores": {"0": 1}},
        {"data": [{"text": "a b c"}]},
    ],
)
def test_a_row_with_arrays_or_objects_is_no_table(row: Any) -> None:
    assert table_by_columns(row) is None
