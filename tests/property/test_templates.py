"""Templates of texts: the spans cut exactly the values, and every mistake has a sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.corpus.template import JOIN, Template
from skillshard.errors import CorpusError

TEXTS = st.text(st.sampled_from("ab {}\\\n\t.é🙂"), max_size=8)
PATHS = st.sampled_from(["a", "b.c", "meta.x.0", "dc:title", "file.stem"])


def written(literal: str) -> str:
    return "".join({"\\": "\\\\", "{": "{{", "}": "}}"}.get(char, char) for char in literal)


PARTS = st.lists(st.tuples(TEXTS, PATHS, TEXTS), min_size=1, max_size=4)
"""Literal text, path and value of each field."""


def template_of(parts: list[tuple[str, str, str]], end: str) -> Template:
    return Template(tuple(path for _, path, _ in parts), (*(literal for literal, _, _ in parts), end))


@given(PARTS, TEXTS)
def test_a_template_that_is_written_down_is_parsed_to_itself(parts: list[tuple[str, str, str]], end: str) -> None:
    pieces = [f"{written(literal)}{{{path}}}" for literal, path, _ in parts]
    assert Template.parse("".join(pieces) + written(end)) == template_of(parts, end)


@given(PARTS, TEXTS)
def test_the_spans_cut_exactly_the_values_and_stand_in_order(parts: list[tuple[str, str, str]], end: str) -> None:
    values = [value for _, _, value in parts]
    text, spans = template_of(parts, end).render(values)
    assert [text[start:stop] for start, stop in spans] == values
    bounds = [bound for span in spans for bound in span]
    assert bounds == sorted(bounds)


@given(PARTS, TEXTS)
def test_without_empty_values_the_text_is_the_plain_concatenation(parts: list[tuple[str, str, str]], end: str) -> None:
    filled = [(literal, path, value or "value") for literal, path, value in parts]
    text, _ = template_of(filled, end).render([value for _, _, value in filled])
    assert text == "".join(literal + value for literal, _, value in filled) + end


def test_an_empty_value_is_left_out_with_the_literal_text_before_it() -> None:
    template = Template.parse(r"Q: {q}\nContext: {c}\nA: {a}.")
    assert template.render(["1+1", "", "2"])[0] == "Q: 1+1\nA: 2."
    assert template.render(["", "sums", "2"])[0] == "Context: sums\nA: 2."
    assert template.render(["1+1", "", ""])[0] == "Q: 1+1."


def test_fields_are_joined_by_an_empty_line_and_empty_fields_leave_no_gap() -> None:
    template = Template.joining(["title", "body", "end"])
    assert template.render(["A", "B", "C"])[0] == JOIN.join("ABC")
    assert template.render(["", "B", "C"])[0] == JOIN.join("BC")
    assert template.render(["A", "", "C"])[0] == JOIN.join("AC")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("only words", "names no field"),
        ("{a} and {", "character 9: the brace '{' has no partner. Write {{ for a brace in the text."),
        ("{a} }", "character 5: the brace '}' has no partner. Write }} for a brace in the text."),
        ("{a}{ }", "character 4: the braces name no field"),
        ("{a}{}", "character 4: the braces name no field"),
        (r"{a}\section", r"character 4: '\\s' has no meaning. Write \\ for a backslash"),
        ("{a}\\", "has no meaning"),
        ("", "names no field"),
    ],
)
def test_a_mistake_in_a_template_is_one_sentence_with_its_place(text: str, fault: str) -> None:
    with pytest.raises(CorpusError) as error:
        Template.parse(text)
    assert fault in str(error.value)
    assert str(error.value).startswith(f"the template {text!r}")


def test_a_template_has_no_format_specifications_and_runs_no_code() -> None:
    template = Template.parse("{a!r:>10} {__class__.__init__}")
    assert template.paths == ("a!r:>10", "__class__.__init__")
