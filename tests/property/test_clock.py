"""The clock turns steps into positions by a single rule, wherever a run was resumed, and never guesses."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from skillshard.errors import ObservationError
from skillshard.mixing.stream import BLOCKS, DRAWS, LAST_DRAW, Clock, StreamWords

SIZES = st.integers(1, 10_000)
STEPS = st.integers(0, 1_000_000)
WORDS = st.sampled_from([DRAWS, BLOCKS])


@given(WORDS, SIZES, STEPS)
def test_a_new_run_is_at_a_step_times_the_size_of_a_step(words: StreamWords, size: int, step: int) -> None:
    assert Clock(words, size).position_at(step) == step * size


@given(WORDS, SIZES, STEPS, STEPS)
def test_a_resume_where_the_clock_stands_changes_no_position(
    words: StreamWords, size: int, saved: int, step: int
) -> None:
    clock = Clock(words, size)
    assert clock.resumed(saved, clock.position_at(saved)).position_at(step) == clock.position_at(step)


@given(st.lists(st.tuples(SIZES, st.integers(0, 1000)), min_size=1, max_size=8), SIZES)
def test_a_run_of_several_step_sizes_is_at_the_sum_of_what_its_steps_took(
    stretches: list[tuple[int, int]], size: int
) -> None:
    clock, step, num_draws = Clock(DRAWS, None), 0, 0
    for step_size, num_steps in stretches:
        clock = replace(clock, step_size=step_size).resumed(step, num_draws)
        step, num_draws = step + num_steps, num_draws + num_steps * step_size
        assert clock.position_at(step) == num_draws
    assert replace(clock.resumed(step, num_draws), step_size=size).position_at(step + 1) == num_draws + size


@given(SIZES, STEPS, STEPS)
def test_a_state_without_a_step_counts_from_the_beginning(size: int, step: int, position: int) -> None:
    assert Clock(DRAWS, size).resumed(None, position).position_at(step) == step * size


@given(STEPS, STEPS, STEPS)
def test_without_a_step_size_the_step_of_the_resume_alone_is_known(saved: int, position: int, step: int) -> None:
    clock = Clock(DRAWS, None).resumed(saved, position)
    assert clock.position_at(saved) == position
    assume(step != saved)
    with pytest.raises(ObservationError, match=r"give Mixer\(\.\.\., step_draws=samples per optimizer step"):
        clock.position_at(step)


@given(WORDS, SIZES, STEPS, st.integers(0, LAST_DRAW), st.integers(0, LAST_DRAW))
def test_a_position_is_within_the_stream_or_refused(
    words: StreamWords, size: int, saved: int, position: int, step: int
) -> None:
    clock = Clock(words, size).resumed(saved, position)
    expected = position + (step - saved) * size
    if 0 <= expected <= LAST_DRAW:
        assert clock.position_at(step) == expected
    else:
        with pytest.raises(ObservationError, match=f"step {step} would be of {words.position} {expected:,}: "):
            clock.position_at(step)
