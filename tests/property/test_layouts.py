"""The places of texts and JSONs in the tars of both layouts follow from the sizes alone, and every damaged place is noticed."""

import io
import tarfile
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.shards import compact
from skillshard.shards.layouts import LAYOUTS
from skillshard.shards.manifest import Layout
from skillshard.shards.tar import END_OF_ARCHIVE

LAYOUT = pytest.mark.parametrize("layout", sorted(LAYOUTS))
SAMPLES = st.lists(
    st.tuples(st.binary(min_size=1, max_size=1200), st.binary(min_size=1, max_size=900)), min_size=1, max_size=12
)


@pytest.fixture(autouse=True)
def _small_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "MEMBER_ROWS", 4)
    monkeypatch.setattr(compact, "MEMBER_BYTES", 1500)


def shard_of(
    layout: Layout, samples: list[tuple[bytes, bytes]], cuts: list[int] | None = None
) -> tuple[bytes, np.ndarray]:
    """Write the tar of shard 7 in parts, and return its bytes and its index."""
    bounds = [0, *sorted(cut % (len(samples) + 1) for cut in cuts or []), len(samples)]
    parts = (
        tuple(pa.array(column, pa.large_binary()) for column in zip(*samples[low:high], strict=True))
        for low, high in pairwise(bounds)
        if high > low
    )
    data = b"".join(LAYOUTS[layout].tar_chunks(7, parts)) + END_OF_ARCHIVE
    sizes = np.array([(len(text), len(json)) for text, json in samples], np.int64)
    return data, LAYOUTS[layout].index_of(sizes[:, 0], sizes[:, 1])


@LAYOUT
@settings(deadline=None)
@given(samples=SAMPLES, cuts=st.lists(st.integers(0, 12), max_size=4))
def test_the_index_points_at_each_text_and_json_whatever_the_parts_of_the_writer(
    layout: Any, samples: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    data, index = shard_of(layout, samples, cuts)
    assert (data, index.tobytes()) == (shard_of(layout, samples)[0], shard_of(layout, samples)[1].tobytes())
    starts = LAYOUTS[layout].json_starts(index).tolist()
    for row, (text, json) in enumerate(samples):
        text_start, text_bytes, json_bytes = index[row].tolist()[:3]
        assert data[text_start : text_start + text_bytes] == text
        assert data[starts[row] : starts[row] + json_bytes] == json
    assert LAYOUTS[layout].disagreement(data, index) is None


@given(samples=SAMPLES)
@settings(deadline=None)
def test_a_compact_tar_has_a_member_for_each_text_and_json_lines_after_at_most_four_texts(
    samples: list[tuple[bytes, bytes]],
) -> None:
    samples = [(text, json.replace(b"\n", b" ")) for text, json in samples]
    data, _ = shard_of("compact", samples)
    texts, lines, rows = [], [], 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            if member.name.startswith("__samples__/"):
                assert member.name == f"__samples__/{7 * 10**8 + rows:016d}.jsonl"
                lines += file.read().split(b"\n")[:-1]
                assert len(lines) - rows <= 4
                rows = len(lines)
            else:
                assert member.name == f"{7 * 10**8 + len(texts):016d}.txt"
                texts.append(file.read())
    assert list(zip(texts, lines, strict=True)) == samples


@LAYOUT
@settings(deadline=None)
@given(samples=SAMPLES, data=st.data())
def test_an_index_with_any_other_number_is_noticed(
    layout: Any, samples: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    tar, index = shard_of(layout, samples)
    row = data.draw(st.integers(0, len(samples) - 1))
    field = data.draw(st.sampled_from(index.dtype.names))
    number = data.draw(
        st.integers(0, 2 ** (8 * index.dtype[field].itemsize) - 1).filter(lambda value: value != index[field][row])
    )
    index[field][row] = number
    difference = LAYOUTS[layout].disagreement(tar, index)
    assert difference is not None and "has no sample where its index says row" in difference
