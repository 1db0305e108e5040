"""The last figures of the benchmark of tokens come from calls of the library that no other test makes. No speed is asserted."""

from pathlib import Path

import pytest

from benchmarks import tokens


def test_writing_and_the_resume_in_many_tokens_give_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MEMORY", tmp_path)
    tokens.prepare(tmp_path, 40)
    writing = tokens.measure_writing(tmp_path)
    assert set(writing) == {"encode_batch", "write_tokens", "write_tokens_with_mask"} and min(writing.values()) > 0
    resumed = tokens.measure_resume(tmp_path, num_tokens=4 * 10**6)
    assert {"beginning_cpu_ms", "middle_cpu_ms", "end_cpu_ms", "own_mb_0"} <= set(resumed)
