"""Which fields of a row become the id, the text and the metadata of a sample: every way, and every mistake in a sentence."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.corpus import ANSWER_SPANS, Corpus, CorpusReading, FieldMapping, Sample, lookup, read_partition
from skillshard.corpus.bad_record import BadRecord
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.messages import render_messages
from skillshard.errors import CorpusError

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3", "source": "self"}
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "tool", "content": None},
    {"role": "assistant", "content": [{"type": "text", "text": "Yes, "}, {"type": "text", "text": "two."}]},
]


def sample_of(row: Any, **arguments: Any) -> Sample:
    name = "web/en/a.jsonl"
    return RowFields(FieldMapping(**{"id_field": None, **arguments}), name).sample(row, 7)


def answers_of(sample: Sample) -> list[str]:
    return [sample.text[start:stop] for start, stop in sample.meta[ANSWER_SPANS]]


def fault_of(row: Any, **arguments: Any) -> BadRecord:
    with pytest.raises(BadRecord) as error:
        sample_of(row, **arguments)
    return error.value


# ------------------------------------------------------------------------------------------------------------ text


def test_several_text_fields_are_joined_by_an_empty_line_and_leave_the_metadata() -> None:
    sample = sample_of({"title": "A", "body": "B", "lang": "en"}, text_field=("title", "body"))
    assert sample == Sample("web/en/a.jsonl@7", "A\n\nB", {"lang": "en"})


def test_json_in_a_string_is_read_by_every_kind_of_path() -> None:
    inner = {"body": "B", "topic": "law", "lang": {"code": "en"}, "hash": 2**70}
    row = {"id": 3, "payload": orjson.dumps(inner | {"hash": None}).decode().replace("null", str(2**70))}
    before = dict(row)
    sample = sample_of(row, id_field="id", text_field="payload.body")
    rest = {"payload": {"topic": "law", "lang": {"code": "en"}, "hash": str(2**70)}}
    assert sample == Sample("3", "B", rest) and row == before
    untouched = Sample("3", "T", {"payload": row["payload"]})
    assert lookup(untouched, "payload.lang.code") == lookup(untouched, "meta.payload.lang.code") == "en"
    mapping = FieldMapping(text_field="payload.body", columns="payload.lang", drop="payload.lang.code")
    assert mapping.kept_meta({"payload": row["payload"], "n": 1}) == {"payload": {"lang": {}}}
    assert sample_of(row, text="{payload.topic}: {payload.body}").text == "law: B"
    fault = fault_of(row, text_field="payload.bodi")
    assert "did you mean 'payload.body'?" in fault.detail


@pytest.mark.parametrize(("names", "delimiter"), [("id;body", ";"), ("id\tbody", r"\t"), ("id|body", "|")])
def test_a_table_with_another_delimiter_is_told(names: str, delimiter: str) -> None:
    detail = fault_of({names: "x"}, text_field="body").detail
    assert detail.endswith(
        f"the single field {names!r}, which looks like several names. Give `delimiter='{delimiter}'`"
    )


def test_messages_in_a_string_stand_in_the_metadata_as_messages() -> None:
    (plain, written) = (sample_of({"chat": chat}, messages="chat") for chat in (CHAT, orjson.dumps(CHAT).decode()))
    assert written == plain and written.meta["chat"] == CHAT
    nested = sample_of({"row": orjson.dumps({"chat": CHAT, "n": 1}).decode()}, messages="row.chat")
    assert (nested.text, lookup(nested, "row.chat")) == (plain.text, CHAT)
    assert "that is not valid JSON" in fault_of({"chat": str(CHAT)}, messages="chat").detail
    assert sample_of({"ids": "[5, 6]"}, token_ids="ids").text == "5 6"


@pytest.mark.parametrize("text", ["[sic] a note", "{", '{"a": 1', "[1, 2", '"quoted"', "[NaN]", '{"a": 1, "a": 2}'])
def test_a_string_that_holds_no_json_has_no_fields(text: str) -> None:
    assert sample_of({"body": text}, text_field="body").text == text
    assert "no field 'body.a' for the text" in fault_of({"body": text}, text_field="body.a").detail


def test_a_template_makes_the_text_and_an_empty_field_leaves_no_gap() -> None:
    template = r"{instruction}\n\n{input}\n\n{output}"
    assert sample_of(dict(ALPACA), text=template).text == "Add.\n\n1 2\n\n3"
    assert sample_of({**ALPACA, "input": ""}, text=template).text == "Add.\n\n3"
    assert sample_of({**ALPACA, "input": None}, text=template).text == "Add.\n\n3"


def test_numbers_and_arrays_of_one_element_stand_in_a_template_as_json() -> None:
    row = {"q": ["How many?"], "n": 3, "share": 0.5, "sure": True}
    assert sample_of(row, text="{q} {n} {share} {sure}").text == "How many? 3 0.5 true"


def test_the_answer_fields_are_cut_out_of_the_text_by_their_spans() -> None:
    sample = sample_of(dict(ALPACA), text=r"{instruction}\n\n{input}\n\n{output}", answer="output")
    assert answers_of(sample) == ["3"]
    assert sample.meta == {"source": "self", ANSWER_SPANS: [[11, 12]]}


@given(st.lists(st.sampled_from(["", " ", "é🙂", "a\nb"]), min_size=3, max_size=3))
def test_spans_cut_exactly_the_answers_for_all_values(values: list[str]) -> None:
    row = dict(zip(("a", "b", "c"), values, strict=True))
    if not (values[1] or values[2]) or not "".join(values).strip():
        assert fault_of(row, text="Q {a} B {b} C {c}!", answer=("b", "c")).reason == "empty-text"
        return
    sample = sample_of(row, text="Q {a} B {b} C {c}!", answer=("b", "c"))
    assert answers_of(sample) == [value for value in values[1:] if value]


def test_messages_stay_in_the_metadata_and_the_assistants_messages_are_the_answers() -> None:
    sample = sample_of({"messages": CHAT, "source": "x"}, messages="messages")
    assert sample.text == "system: Be short.\n\nuser: 1+1?\n\nassistant: 2\n\nassistant: Yes, two."
    assert answers_of(sample) == ["2", "Yes, two."]
    assert sample.meta["messages"] == CHAT


@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant"]), "content": st.text("a: \né🙂", max_size=6) | st.none()}
        ),
        max_size=5,
    )
)
def test_the_spans_of_messages_cut_exactly_the_assistants_contents(messages: list[dict[str, Any]]) -> None:
    text, spans = render_messages(messages, "messages")
    spoken = [message for message in messages if message["content"]]
    assert [text[start:stop] for start, stop in spans] == [
        message["content"] for message in spoken if message["role"] == "assistant"
    ]
    assert text == "\n\n".join(f"{message['role']}: {message['content']}" for message in spoken)


def test_a_long_integer_in_a_template_keeps_its_digits(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": "hash", "n": 36893488147419103233}\n')
    corpus = Corpus.open(tmp_path, fields=FieldMapping(id_field=None, text="{q} {n}"))
    (item,) = read_partition(corpus.partitions()[0], corpus.reading())
    assert item == Sample("a.jsonl@0", "hash 36893488147419103233", {})


# -------------------------------------------------------------------------------------------------- ids and metadata


def test_ids_and_texts_may_be_nested_and_leave_no_copy_in_the_metadata() -> None:
    row = {"data": {"uid": 5, "body": ["hi"], "lang": "en"}, "n": 1}
    sample = sample_of(row, id_field="data.uid", text_field="data.body.0")
    assert sample == Sample("5", "hi", {"data": {"lang": "en"}, "n": 1})
    assert row == {"data": {"uid": 5, "body": ["hi"], "lang": "en"}, "n": 1}


def test_parts_of_the_files_name_are_ids_texts_and_skills() -> None:
    sample = sample_of({"body": "hi"}, id_field="file.stem", text="{file.folder}: {body}")
    assert sample == Sample("a", "web/en: hi", {})
    assert [lookup(sample, path) for path in ("file.name", "file.parts.0")] == ["web/en/a.jsonl", "web"]


def test_a_field_of_the_text_stays_in_the_metadata_if_columns_names_it() -> None:
    sample = sample_of({"topic": "law", "body": "hi", "n": 1}, text="{topic}: {body}", columns=("topic",))
    assert sample.meta == {"topic": "law", "n": 1}


def test_columns_and_drop_decide_what_shards_keep_and_taggers_see_all() -> None:
    row = {"text": "hi", "lang": "en", "source": {"site": "a", "date": "b"}, "n": 1}
    sample = sample_of(dict(row), columns=("lang", "meta.source.site", "other"), drop="lang")
    assert lookup(sample, "source.date") == "b"
    reading = CorpusReading({"": FieldMapping(columns=("lang", "meta.source.site", "other"), drop="lang")})
    assert reading.kept_meta(sample) == {"source": {"site": "a"}}
    assert CorpusReading({"": FieldMapping(drop=("source.date", "n"))}).kept_meta(sample) == {
        "lang": "en",
        "source": {"site": "a"},
    }


def test_messages_and_answer_spans_are_kept_with_every_choice_of_columns() -> None:
    mapping = FieldMapping(id_field=None, messages="data.chat", columns="lang")
    sample = RowFields(mapping, "a.jsonl").sample({"data": {"chat": CHAT, "n": 1}, "lang": "en", "k": 2}, 0)
    assert mapping.kept_meta(sample.meta) == {
        "data": {"chat": CHAT},
        "lang": "en",
        ANSWER_SPANS: sample.meta[ANSWER_SPANS],
    }


def test_equal_ids_of_two_corpora_are_told_apart_by_the_prefix() -> None:
    reading = CorpusReading({"wiki": FieldMapping(), "chat": FieldMapping(id_field=None, text_field="body")})
    wiki, chat = reading.rows_of("wiki/a.jsonl"), reading.rows_of("chat/b/a.jsonl")
    assert wiki.sample({"id": 1, "text": "x"}, 0) == Sample("wiki/1", "x", {})
    assert chat.sample({"id": 1, "body": "y"}, 9) == Sample("chat/b/a.jsonl@9", "y", {"id": 1})


def test_beside_a_corpus_with_answers_the_whole_text_of_another_corpus_is_an_answer() -> None:
    chat, plain = FieldMapping(id_field=None, messages="m"), FieldMapping(id_field=None)
    fields = CorpusReading({"chat": chat, "books": plain}).rows_of("books/a.jsonl")
    assert fields.sample({"text": "whole"}, 0).meta == {ANSWER_SPANS: [[0, 5]]}
    assert fields.sample({"text": "whole", ANSWER_SPANS: [[1, 2]]}, 0).meta == {ANSWER_SPANS: [[1, 2]]}
    assert CorpusReading({"books": plain}).rows_of("books/a.jsonl").sample({"text": "whole"}, 0).meta == {}


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("row", "arguments", "reason", "sentence"),
    [
        ({"txt": "hi"}, {}, "missing-field", "no field 'text' for the text (did you mean 'txt'?); the row has txt"),
        (
            {"a": "x"},
            {"text": "{a} {data.b}"},
            "missing-field",
            "no field 'data.b' for the text; the row has a",
        ),
        ({"a": ["x", "y"]}, {"text": "{a}"}, "wrong-type", "the field 'a' of the text must be a string or a number, got an array"),
        ({"a": {}}, {"text": "{a}"}, "wrong-type", "the field 'a' of the text must be a string or a number, got an object"),
        ({"a": "", "b": " "}, {"text": "A: {a}{b}"}, "empty-text", "the fields of the text, 'a', 'b', are empty or only white space"),
        ({"a": "x", "b": None}, {"text": "{a}{b}", "answer": "b"}, "empty-text", "the answer in 'b' is empty"),
        (
            {"text": "x", "b": "y", ANSWER_SPANS: 1},
            {"text": "{text}{b}", "answer": "b"},
            "wrong-type",
            "the field 'answer_spans' is taken: the spans of the answers stand there. Rename the field",
        ),
        ({"chat": []}, {"messages": "messages"}, "missing-field", "no field 'messages' for the text; the row has chat"),
        ({"m": "hi"}, {"messages": "m"}, "wrong-type", "the messages in 'm' must be an array of objects or of strings, got a string"),
        ({"m": [{"role": "user", "content": "hi"}, 3]}, {"messages": "m"}, "wrong-type", "the message 'm.1' must be an object, got a number (3)"),
        ({"m": ["hi"]}, {"messages": "m"}, "empty-text", "the messages in 'm' have no answer of the assistant; the roles are user"),
        (
            {"m": [{"speaker": "human", "value": "hi"}]},
            {"messages": "m"},
            "wrong-type",
            "the message 'm.0' has no 'role': expected the keys 'role' and 'content', or 'from' and 'value', got 'speaker', 'value'",
        ),
        ({"m": [{"role": 1, "content": "x"}]}, {"messages": "m"}, "wrong-type", "the role in 'm.0.role' must be a string, got a number (1)"),
        ({"m": [{"role": "user", "content": 1}]}, {"messages": "m"}, "wrong-type", "the content in 'm.0.content' must be a string, got a number (1)"),
        (
            {"m": [{"role": "user", "content": [{"type": "image_url"}]}]},
            {"messages": "m"},
            "wrong-type",
            "the part 'm.0.content.0' must be an object with the type 'text' and a text: other parts, such as images, are not read",
        ),
        ({"m": CHAT[:2]}, {"messages": "m"}, "empty-text", "the messages in 'm' have no answer of the assistant; the roles are system, user"),
        ({"m": [{"from": "narrator", "value": "x"}]}, {"messages": "m"}, "empty-text", "the messages in 'm' have no answer of the assistant; the roles are narrator"),
        ({"m": []}, {"messages": "m"}, "empty-text", "the messages in 'm' have no answer of the assistant; the roles are none, because the array is empty"),
        ({"text": "hi"}, {"id_field": "uid"}, "missing-field", "no field 'uid' for the id; the row has text. Where rows have no ids, `id_field=None` makes ids of the file and the row"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_refused_in_one_sentence(
    row: Any, arguments: dict[str, Any], reason: str, sentence: str
) -> None:
    fault = fault_of(row, **arguments)
    assert (fault.reason, fault.detail) == (reason, sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"text": "{a}", "text_field": "b"}, "`text_field` and `text` both make the text of a sample: give one of the two."),
        ({"text": "{a}", "messages": "m"}, "`text` and `messages` both make the text of a sample: give one of the two."),
        ({"text": "hi"}, "the template 'hi' names no field: every text would be the same. Name a field in braces, such as {text}."),
        (
            {"text": "{instruction} {output}", "answer": "outptu"},
            "the answer 'outptu' (did you mean 'output'?) is no field of the text. The fields of the text are instruction, output. Name one "
            "of the fields with `answer`, or add the field to the text.",
        ),
        (
            {"messages": "m", "answer": "m"},
            "`answer` and `messages` do not go together: the answers of a conversation are the messages of the assistant. Leave `answer` out.",
        ),
        ({"id_field": ""}, "`id_field` needs the path of a field, such as 'id' or 'meta.source', got ''. Where rows have no ids, `id_field=None` makes ids of the file and the row."),
        ({"drop": ("a", "")}, "`drop` needs the path of a field, such as 'id' or 'meta.source', got ('a', '')."),
    ],
)  # fmt: skip
def test_a_mapping_that_makes_no_sense_is_refused_in_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CorpusError) as error:
        FieldMapping(**arguments)
    assert str(error.value) == sentence


# ------------------------------------------------------------------------------------------------------- the record


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"id_field": None},
        {"text_field": ("a", "b"), "answer": "b"},
        {"text": "{a}", "columns": ("c", "d")},
        {"messages": "m", "drop": "x"},
    ],
)
def test_a_reading_is_recorded_and_read_back(arguments: dict[str, Any]) -> None:
    for mappings in ({"": FieldMapping(**arguments)}, {"a": FieldMapping(**arguments), "b": FieldMapping()}):
        reading = CorpusReading(mappings, 99)
        assert CorpusReading.from_json(reading.to_json()) == reading


def test_the_record_of_an_unknown_reading_is_refused_in_a_sentence() -> None:
    with pytest.raises(CorpusError, match="Another version of skillshard recorded the reading"):
        CorpusReading.from_json({"id_field": "id", "text_field": "text", "rows": "Instances", "max_sample_bytes": 1})
