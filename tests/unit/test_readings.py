"""The readings of a proxy: bytes, segments, the tokens of a pretrained model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.errors import ProxyError
from skillshard.loss import IGNORE
from skillshard.proxy.reading import Bytes, Reading
from skillshard.proxy.segments import ASK, PAD, SPECIAL, UNKNOWN, Segments, fit_segments, without
from skillshard.synthetic.addition import addition_samples
from skillshard.synthetic.lego import lego_samples

LEGO = [sample["text"] for sample in lego_samples(k=3, num_samples=200, seed=0)]
TEXTS = st.lists(
    st.text(min_size=2, max_size=30).filter(lambda text: len(text.encode("utf-8", "ignore")) > 1), min_size=1
)


def words_of(reading: Segments, tokens: np.ndarray) -> list[list[str]]:
    vocabulary = [*SPECIAL, *reading.words]
    return [[vocabulary[token] for token in row if token != PAD] for row in tokens]


def lego_reading() -> Segments:
    return fit_segments(LEGO, separators=",.:", answer_after="= ")


def test_a_lego_text_becomes_a_position_for_each_clause_and_the_answer_is_not_in_the_prompt():
    reading = lego_reading()
    batch = reading.encode(["Input: b = not a, c = val b, a = val 1. Output: b = 0."])
    assert words_of(reading, batch.tokens[0]) == [
        ["Input"],
        ["b", "=", "not", "a"],
        ["c", "=", "val", "b"],
        ["a", "=", "val", "1"],
        ["Output"],
        ["b", "=", "<ask>"],
    ]
    assert (batch.targets[0, :-1] == IGNORE).all() and reading.words[batch.targets[0, -1] - len(SPECIAL)] == "0"


def test_addition_is_read_digit_by_digit():
    texts = [sample["text"] for sample in addition_samples(k=2, num_samples=50, seed=0)]
    reading = fit_segments(texts, separators=" ,+=", answer_after="Output: ")
    words = words_of(reading, reading.encode(["Input: A = 1 7 + 0 5 , A 1 = ? Output: 2"]).tokens[0])
    assert words == [["Input:"], ["A"], ["1"], ["7"], ["0"], ["5"], ["A"], ["1"], ["?"], ["Output:", "<ask>"]]


@given(st.permutations(LEGO[:20]))
def test_the_order_of_the_texts_does_not_matter(texts):
    assert fit_segments(texts, separators=",.:", answer_after="= ") == fit_segments(
        LEGO[:20], separators=",.:", answer_after="= "
    )


def test_words_and_lengths_that_were_not_seen_are_read_as_far_as_they_go():
    reading = fit_segments(["a b, c = d"], separators=",", answer_after="= ")
    batch = reading.encode(["x, y, a b c d, e = f"])
    assert batch.tokens.shape == (1, 2, 3)
    assert words_of(reading, batch.tokens[0]) == [["a", "b", "c"], ["<unknown>", "=", "<ask>"]]
    assert batch.targets[0, -1] == UNKNOWN
    assert batch.tokens[0, -1, 2] == ASK


def test_leaving_a_part_out_empties_its_position_only():
    batch = lego_reading().encode(LEGO[:5])
    changed = without(batch, 2)
    assert (changed.tokens[:, 2] == PAD).all()
    assert (np.delete(changed.tokens, 2, axis=1) == np.delete(batch.tokens, 2, axis=1)).all()


@pytest.mark.parametrize("text", ["no mark", "= 1", "a, b = ", "a, b = ,."])
def test_a_text_without_prompt_or_answer_is_refused(text):
    reading = Segments(",.", "= ", (), 1, 1)
    assert (reading.refusal(text) is None) == (text == "= 1")
    if text != "= 1":
        with pytest.raises(ProxyError, match=r"has no answer: expected a prompt, '= ' and a word"):
            fit_segments([text], separators=",.", answer_after="= ")


def test_separators_that_cut_everything_are_refused():
    with pytest.raises(
        ProxyError, match=r"cut a text into 601 segments of up to 2 words\. At most 512 segments of 32 words are read"
    ):
        fit_segments(["a " * 600 + "= b"], separators=" ", answer_after="= ")


@given(TEXTS, st.integers(2, 40))
def test_bytes_predict_each_byte_from_those_before_it(texts, window):
    encodable = [text for text in texts if text.isprintable() and text.isascii()]
    if not encodable:
        return
    batch = Bytes(window=window).encode(encodable)
    for row, text in enumerate(encodable):
        read = text.encode()[:window]
        assert bytes(batch.tokens[row, : len(read) - 1, 0].tolist()) == read[:-1]
        assert bytes(batch.targets[row][batch.targets[row] != IGNORE].tolist()) == read[1:]


@given(st.text("ab=", min_size=1, max_size=30), st.text("cd", min_size=1, max_size=5), st.integers(8, 20))
def test_where_there_is_an_answer_its_bytes_alone_are_predicted_even_of_a_long_text(prompt, answer, window):
    batch = Bytes(window=window, answer_after="=").encode([f"{prompt}={answer}"])
    assert bytes(batch.targets[batch.targets != IGNORE].tolist()) == answer.encode()


def test_every_reading_meets_the_protocol():
    assert isinstance(Bytes(window=4), Reading) and isinstance(lego_reading(), Reading)
