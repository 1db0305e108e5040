"""Answers by spans: the masks of bytes, of tokens and of packed blocks mark exactly the characters of the answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.corpus import FieldMapping, Sample
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.template import Span
from skillshard.errors import ObservationError
from skillshard.loss import IGNORE, LossKind, answer_spans, answer_tokens
from skillshard.proxy.reading import Bytes

TEXTS = st.text(st.sampled_from("ab é🙂\n"), min_size=2, max_size=20)
KIND = LossKind(prompt_field="answer_spans")


@st.composite
def texts_with_spans(draw: st.DrawFn) -> tuple[str, list[Span]]:
    text = draw(TEXTS)
    bounds = sorted(draw(st.sets(st.integers(0, len(text)), min_size=2, max_size=6)))
    return text, list(zip(bounds[::2], bounds[1::2], strict=False))


@given(texts_with_spans())
def test_the_spans_of_the_metadata_are_taken_as_they_are(case: tuple[str, list[Span]]) -> None:
    text, spans = case
    meta = {"answer_spans": [list(span) for span in spans]}
    assert answer_spans(text, KIND, meta) == answer_spans(text, KIND, {"meta": meta} | meta) == spans


@given(texts_with_spans(), st.integers(1, 4))
def test_a_token_is_marked_if_it_has_a_character_of_an_answer(case: tuple[str, list[Span]], width: int) -> None:
    text, spans = case
    starts = np.arange(0, len(text), width)
    offsets = np.stack([starts, np.minimum(starts + width, len(text))], 1)
    answered = {place for start, stop in spans for place in range(start, stop)}
    expected = [bool(answered & set(range(start, stop))) for start, stop in offsets.tolist()]
    assert answer_tokens(offsets, spans).tolist() == expected


@given(texts_with_spans(), st.integers(1, 4), st.integers(0, 2), st.integers(0, 2))
def test_the_end_of_a_text_belongs_to_the_answer_before_it_and_the_begin_to_the_answer_behind_it(
    case: tuple[str, list[Span]], width: int, num_before: int, num_after: int
) -> None:
    text, spans = case
    starts = np.arange(0, len(text), width)
    offsets = np.stack([starts, np.minimum(starts + width, len(text))], 1)
    special = np.zeros((2, 2), np.int64)
    masked = answer_tokens(np.concatenate([special[:num_before], offsets, special[:num_after]]), spans).tolist()
    before, after = [spans[0][0] == 0] * num_before, [spans[-1][1] == len(text)] * num_after
    assert masked == [*before, *answer_tokens(offsets, spans).tolist(), *after]


@given(texts_with_spans(), st.integers(2, 40))
def test_a_proxy_of_bytes_predicts_the_answers_that_its_window_holds(case: tuple[str, list[Span]], window: int) -> None:
    text, spans = case
    batch = Bytes(window).encode([text], [spans])
    targets = bytes(batch.targets[batch.targets != IGNORE].tolist())
    end = len(text[: spans[-1][1]].encode())
    wanted = [len(text[:place].encode()) for place in range(len(text) + 1)]
    data = text.encode()
    read = range(max(0, end - window), end)
    inside = [byte for start, stop in spans for byte in range(wanted[start], wanted[stop]) if byte in read[1:]]
    assert targets == bytes(data[byte] for byte in inside)


def test_the_length_of_a_prompt_and_the_span_behind_it_are_the_same_answer() -> None:
    by_length = answer_spans("add 1+1: 2", LossKind(prompt_field="n"), {"n": 9})
    assert by_length == answer_spans("add 1+1: 2", KIND, {"answer_spans": [[9, 10]]}) == [(9, 10)]


def test_the_spans_that_tagging_writes_are_the_spans_that_masks_read() -> None:
    mapping = FieldMapping(id_field=None, text=r"{q}\n{a}", answer="a")
    sample = RowFields(mapping, "a.jsonl").sample({"q": "1+1?", "a": "2"}, 0)
    assert sample == Sample("a.jsonl@0", "1+1?\n2", {"answer_spans": [[5, 6]]})
    assert answer_spans(sample.text, KIND, sample.meta) == [(5, 6)]


@pytest.mark.parametrize(
    "value",
    [None, True, -1, 4, "2", 1.0, [], [[0]], [[0, 1, 2]], [[2, 1]], [[1, 1]], [[0, 5]], [[-1, 2]], [[0, 2], [1, 3]], [[0, True]]],
    ids=repr,
)  # fmt: skip
def test_a_value_that_names_no_answer_within_the_text_is_refused_in_a_sentence(value: object) -> None:
    with pytest.raises(ObservationError) as error:
        answer_spans("abcd", KIND, {} if value is None else {"answer_spans": value})
    shown = "missing" if value is None else repr(value)
    assert str(error.value) == (
        f"the text 'abcd' of 4 characters: its metadata field 'answer_spans' is {shown}, expected the number of characters of the prompt, "
        "from 0 to 3, or the spans of the answers, such as [[3, 4]], in rising order within the text. Name another field, or leave such "
        "samples out."
    )
