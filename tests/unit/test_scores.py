"""A costly tagger in small units gives the same bytes as partition by partition, and a scored unit is not scored again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from skillshard import taggers
from skillshard.corpus import Corpus, PartitionReader, Sample
from skillshard.taggers.losses.scores import score_rows
from skillshard.taggers.rows import num_rows_of
from skillshard.taggers.tagger import SAMPLES_AT_ONCE, RowTagger, Search, Tag, Untagged, groups_of_rows
from tests.conftest import HERE, lines, samples, tree


@dataclass(frozen=True)
class Together:
    """A tagger whose outcomes depend on the samples of the same call, as sums of floats do."""

    name = "together"
    arguments: Any = None

    def tag(self, samples: Sequence[Sample]) -> list[Tag | Untagged]:
        together = sum(map(len, (sample.id for sample in samples))) / 7
        return [
            Untagged("wrong-type", f"{sample.id} is not liked")
            if sample.id.endswith("13")
            else Tag("long" if len(sample.text) > 20 else "short", together + len(sample.id) / 3)
            for sample in samples
        ]


@dataclass(frozen=True)
class Scored(Together):
    """The same tagger in small units."""

    @property
    def stages(self) -> tuple[str, ...]:
        return ("count", "score")

    def find(self, search: Search) -> RowTagger:
        return score_rows(self, search, num_rows_of(search))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Write an empty file and two files of more than one stretch, with bad rows, refused rows and rows that repeat an id."""
    folder = tmp_path_factory.mktemp("scores")
    records = samples(add=2 * SAMPLES_AT_ONCE + 100, carry=700)
    (folder / "a.jsonl").write_bytes(lines(records[:2000]) + b"{\n" + lines(records[2000:]))
    (folder / "b.jsonl").write_bytes(b"{\n" + lines(records[50:80]) + lines([{**records[0], "id": "new"}]))
    (folder / "c.jsonl").write_bytes(b"")
    return Corpus.open(folder)


def tag(corpus: Corpus, tagger: Together, out: Path) -> dict[str, bytes]:
    taggers.tag_corpus(
        corpus, tagger, out, on_bad_sample="set-aside", max_set_aside=1.0, backend=HERE, partition_bytes=150_000
    )
    return tree(out)


def test_in_small_units_the_bytes_are_those_of_whole_partitions(corpus: Corpus, tmp_path: Path) -> None:
    assert len(corpus.partitions(partition_bytes=150_000)) >= 3
    assert tag(corpus, Scored(), tmp_path / "scored") == tag(corpus, Together(), tmp_path / "whole")


@pytest.mark.parametrize("most", [1, 2_000])
def test_groups_that_long_texts_end_early_are_the_same_in_small_tasks_and_in_whole_partitions(
    most: int, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skillshard.taggers.tagger.CHARACTERS_AT_ONCE", most)
    assert tag(corpus, Scored(), tmp_path / "scored") == tag(corpus, Together(), tmp_path / "whole")


def test_a_group_ends_after_32_million_characters_of_text_or_metadata() -> None:
    long = [Sample(str(number), "x" * 10_000_000, {}) for number in range(7)]
    assert [len(group) for group in groups_of_rows(long)] == [4, 3]
    in_meta = [Sample(str(number), "x", {"html": "x" * 20_000_000}) for number in range(3)]
    assert [len(group) for group in groups_of_rows(in_meta)] == [2, 1]
    short = [Sample(str(number), "x", {}) for number in range(SAMPLES_AT_ONCE + 1)]
    assert [len(group) for group in groups_of_rows(short)] == [SAMPLES_AT_ONCE, 1]


def test_stretches_that_were_scored_are_not_scored_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_calls = 0
    tag_plainly = Together.tag

    def stopped(self: Together, samples: Sequence[Sample]) -> list[Tag | Untagged]:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            raise KeyboardInterrupt
        return tag_plainly(self, samples)

    monkeypatch.setattr(Together, "tag", stopped)
    with pytest.raises(KeyboardInterrupt):
        tag(corpus, Scored(), tmp_path / "T")
    records = list((tmp_path / "T" / ".work" / "records" / "score").iterdir())
    assert len(records) == 2
    written = tag(corpus, Scored(), tmp_path / "T")
    assert num_calls == 3 + len([unit for unit in range(num_units(corpus)) if unit >= 2])
    assert written == tag(corpus, Together(), tmp_path / "whole")


def num_units(corpus: Corpus) -> int:
    num_rows = [sum(1 for _ in PartitionReader(partition)) for partition in corpus.partitions(partition_bytes=150_000)]
    return sum(-(-num // SAMPLES_AT_ONCE) for num in num_rows)
