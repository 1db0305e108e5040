"""The sample of a corpus's texts is the same for every division of the corpus, and never larger than the limit."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.answers import AnswerRule
from skillshard.corpus import Corpus, CorpusReading
from skillshard.execution import Backend
from skillshard.loss import LossKind
from skillshard.taggers.losses.sampled_texts import SampledText, sample_texts
from tests.conftest import lines

READING = CorpusReading(max_sample_bytes=1000)


def short(text: str) -> str | None:
    return "too short" if len(text) < 2 else None


def sampled(rows: list[dict[str, str]], *, limit: int, partition_bytes: int, num_files: int) -> list[SampledText]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        for number in range(num_files):
            (folder / "corpus" / f"{number}.jsonl").write_bytes(lines(rows[number::num_files]))
        return sample_texts(
            Corpus.open(folder / "corpus").partitions(partition_bytes=partition_bytes),
            limit=limit,
            reading=READING,
            refusal=short,
            stop_at_refused=False,
            scratch=str(folder / "scratch"),
            records=str(folder / "records"),
            backend=Backend(workers=1),
            on_done=lambda task, record: None,
            rule=AnswerRule(LossKind()),
        )


@given(
    st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=40),
    st.integers(1, 50),
    st.integers(30, 2000),
    st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_a_sample_does_not_depend_on_how_the_corpus_is_cut(
    texts: list[str], limit: int, partition_bytes: int, num_files: int
) -> None:
    rows = [{"id": f"{number}", "text": text} for number, text in enumerate(texts)]
    chosen = sampled(rows, limit=limit, partition_bytes=partition_bytes, num_files=min(num_files, len(rows)))
    assert chosen == sampled(rows, limit=limit, partition_bytes=1 << 20, num_files=1)
    usable = {row["id"]: row["text"] for row in rows if len(row["text"]) > 1}
    assert len(chosen) == min(limit, len(usable))
    assert all(usable[text_read.id] == text_read.text for text_read in chosen)
    assert [text_read.hash for text_read in chosen] == sorted(text_read.hash for text_read in chosen)


def test_a_larger_sample_begins_with_the_smaller_one() -> None:
    rows = [{"id": f"{number}", "text": f"text {number}"} for number in range(60)]
    small = sampled(rows, limit=10, partition_bytes=300, num_files=2)
    large = sampled(rows, limit=30, partition_bytes=500, num_files=3)
    assert large[:10] == small
