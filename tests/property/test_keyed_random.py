"""Randomness is a pure function of its labels, for all inputs."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.keyed_random import chances, distinct, integers, keyed_seed, keyed_words, permutation
from skillshard.proxy.train import TokenBatch
from skillshard.proxy.trial import random_batches

labels = st.lists(st.one_of(st.text(max_size=4), st.integers(-(2**40), 2**40)), max_size=4)


@given(labels, st.integers(0, 50), st.integers(0, 50))
def test_fewer_words_are_the_beginning_of_more(key: list[str | int], num: int, more: int) -> None:
    words = keyed_words(num + more, *key)
    assert words.dtype == np.uint64
    assert keyed_words(num, *key).tolist() == words[:num].tolist()


@given(labels, labels)
def test_other_labels_give_other_words(first: list[str | int], second: list[str | int]) -> None:
    assert (keyed_words(2, *first).tolist() == keyed_words(2, *second).tolist()) == (first == second)


def test_the_words_are_the_committed_ones() -> None:
    assert [f"{word:016x}" for word in keyed_words(3, "batch", 0, 1).tolist()] == [
        "d96c1e6edc26a853",
        "5ac41a726bd1089a",
        "818a9bcb9d463ed0",
    ]


def test_threads_do_not_disturb_one_another() -> None:
    expected = [keyed_words(20, "thread", number).tolist() for number in range(8)]
    words_of: dict[int, list[list[int]]] = {}

    def draw(number: int) -> None:
        words_of[number] = [keyed_words(20, "thread", number).tolist() for _ in range(200)]

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert words_of == {number: [expected[number]] * 200 for number in range(8)}


@given(labels, st.integers(0, 200), st.integers(1, 10**12))
def test_integers_are_below_their_bound(key: list[str | int], num: int, below: int) -> None:
    drawn = integers(num, below, *key)
    assert drawn.shape == (num,) and np.all((drawn >= 0) & (drawn < below))


def test_every_integer_is_drawn_equally_often() -> None:
    counts = np.bincount(integers(70_000, 7, "dice"), minlength=7)
    assert np.abs(counts - 10_000).max() < 5 * np.sqrt(10_000)


@given(labels, st.integers(0, 60), st.integers(1, 80))
@settings(deadline=None)
def test_distinct_integers_are_distinct_in_order_and_as_many_as_there_are(
    key: list[str | int], num: int, below: int
) -> None:
    drawn = distinct(num, below, *key)
    assert len(drawn) == min(num, below)
    assert np.all(np.diff(drawn) > 0) and np.all((drawn >= 0) & (drawn < below))


@pytest.mark.parametrize("num", [3, 8])
def test_every_integer_is_as_likely_to_be_among_the_distinct_ones(num: int) -> None:
    counts = np.bincount(np.concatenate([distinct(num, 10, "rows", key) for key in range(4000)]), minlength=10)
    expected = 4000 * num / 10
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (1.0, 10_000, 10_000), (0.25, 2_280, 2_720)])
def test_chances_are_true_as_often_as_their_share(share: float, least: int, most: int) -> None:
    assert least <= chances(10_000, share, "coins").sum() <= most


def test_a_seed_can_be_written_as_json_and_read_by_anything() -> None:
    assert all(0 <= keyed_seed("seed", number) < 2**53 for number in range(1000))
    assert len({keyed_seed("seed", number) for number in range(1000)}) == 1000


@given(st.integers(1, 100))
def test_a_permutation_depends_on_its_labels(num: int) -> None:
    assert sorted(permutation(num, "a").tolist()) == list(range(num))
    assert num < 20 or permutation(num, "a").tolist() != permutation(num, "b").tolist()


def test_a_batch_depends_on_its_key_and_step_alone_and_the_last_position_is_never_emptied() -> None:
    texts = TokenBatch(np.arange(1, 41).reshape(10, 4, 1), np.zeros((10, 4), dtype=np.int64))

    def batch(*key: str | int, step: int, share: float = 0.0) -> np.ndarray:
        batches = random_batches(texts, key=key, first_step=step - 1, drop_share=share, size=64)
        next(batches)
        return next(batches).tokens[:, :, 0]

    assert np.array_equal(batch(0, step=5), batch(0, step=5))
    others = [batch(0, step=5), batch(0, step=6), batch(1, step=5), batch(0, "add", step=5), batch(0, "carry", step=5)]
    assert all(not np.array_equal(earlier, later) for number, earlier in enumerate(others) for later in others[:number])
    emptied = batch(0, step=5, share=0.5) == 0
    assert not emptied[:, -1].any() and 0.3 < emptied[:, :-1].mean() < 0.7
    assert np.array_equal(batch(0, step=5, share=0.5)[~emptied], others[0][~emptied])
