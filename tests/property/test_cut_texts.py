"""Texts cut out of files in memory equal the texts by slicing and decoding, for all lengths and positions."""

import mmap
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.errors import ShardError
from skillshard.mixing import round_plan
from skillshard.mixing.round_plan import INLINE_BYTES, Maps

TEXTS = st.text(max_size=40) | st.text("aé\0", min_size=INLINE_BYTES - 4, max_size=INLINE_BYTES + 4)


def _file(texts: list[bytes]) -> mmap.mmap:
    data = mmap.mmap(-1, 1 + sum(map(len, texts)))
    data.write(b"".join(texts))
    return data


@given(
    files=st.lists(st.lists(TEXTS, max_size=8), min_size=1, max_size=4), window=st.sampled_from([1, 16, 64, 1 << 30])
)
def test_texts_come_as_they_were_written_in_any_order_and_however_the_files_are_windowed(
    files: list[list[str]], window: int
) -> None:
    raw = [[text.encode() for text in texts] for texts in files]
    ends = [np.cumsum([0, *map(len, texts)]) for texts in raw]
    draws = [(file, number) for file, texts in enumerate(files) for number in range(len(texts))]
    random.Random(0).shuffle(draws)
    which = np.array([file for file, _ in draws], np.int64)
    start = np.array([ends[file][number] for file, number in draws], np.int64)
    end = np.array([ends[file][number + 1] for file, number in draws], np.int64)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(round_plan, "WINDOW_BYTES", window)
        memories = [_file(raw[0]), *(memoryview(_file(texts)) for texts in raw[1:])]
        maps = Maps(memories)
        assert maps.texts(maps.views(which, start, end)) == [files[file][number] for file, number in draws]


def test_a_text_that_arrow_cannot_count_is_refused() -> None:
    with pytest.raises(
        ShardError,
        match=r"a text is 2,147,483,648 bytes, and a mixer reads texts of less than 2,147,483,648 bytes: split",
    ):
        Maps([_file([])]).views(np.array([0]), np.array([5]), np.array([5 + (1 << 31)]))
