"""`--dry-run` of `tag` and `shard`: an estimate that is near the truth, and nothing on the disk."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillshard.corpus import Corpus
from skillshard.corpus.estimate import estimate
from tests.commands import fails, works
from tests.conftest import lines, tree


def many_rows(number: int = 12_000) -> list[dict[str, Any]]:
    random.seed(5)
    words = [f"word{index}" for index in range(500)]
    return [
        {
            "id": f"row-{row:06d}",
            "text": " ".join(random.choices(words, k=random.randint(20, 80))),
            "topic": random.choice("abc"),
        }
        for row in range(number)
    ]


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "text", "topic"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=4_000)
    return sink.getvalue()


def as_arrow(rows: list[dict[str, Any]]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1_000)
    return sink.getvalue()


def as_zstd(rows: list[dict[str, Any]]) -> bytes:
    data: bytes = pa.Codec("zstd").compress(lines(rows), asbytes=True)
    return data


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".jsonl": lines,
    ".jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    ".jsonl.bz2": lambda rows: bz2.compress(lines(rows)),
    ".jsonl.xz": lambda rows: lzma.compress(lines(rows)),
    ".jsonl.zst": as_zstd,
    ".json": lambda rows: json.dumps(rows).encode(),
    ".csv": as_csv,
    ".parquet": as_parquet,
    ".arrow": as_arrow,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_number_of_rows_is_near_the_truth_in_every_format(suffix: str, tmp_path: Path) -> None:
    rows = many_rows()
    (tmp_path / f"a{suffix}").write_bytes(WRITERS[suffix](rows[:9_000]))
    (tmp_path / f"b{suffix}").write_bytes(WRITERS[suffix](rows[9_000:]))
    corpus = Corpus.open(tmp_path)
    first = estimate(corpus, corpus.reading())
    assert first.num_rows == pytest.approx(12_000, rel=0.1)
    assert first.is_exact == (suffix == ".parquet")
    assert first.num_read == 4_000


def test_a_small_corpus_is_counted_and_not_estimated(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(many_rows(40)) + b"no json\n")
    corpus = Corpus.open(tmp_path)
    first = estimate(corpus, corpus.reading())
    assert (first.num_rows, first.is_exact, len(first.rejections)) == (41, True, 1)


def test_the_rows_of_files_that_are_not_read_are_estimated_by_files_with_the_same_suffix(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02d}.jsonl").write_bytes(lines(many_rows(100)))
    corpus = Corpus.open(tmp_path)
    first = estimate(corpus, corpus.reading())
    assert first.num_rows == pytest.approx(2_000, rel=0.02) and not first.is_exact
    assert len(first.files) == 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned") / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines(many_rows(3_000)))
    return folder


@pytest.fixture(scope="module")
def tags(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tagged") / "T"
    works("tag", "metadata", corpus, "--field", "topic", "--out", out)
    return out


def bytes_named(pattern: str, output: str) -> float:
    match = re.search(pattern, output)
    assert match is not None, output
    return float(match[1]) * {"B": 1, "kB": 1e3, "MB": 1e6}[match[2]]


def size_of(folder: Path, suffix: str = "") -> int:
    return sum(place.stat().st_size for place in folder.rglob(f"*{suffix}") if place.is_file())


def test_the_plan_of_tags_says_what_the_command_then_writes(corpus: Path, tags: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    plan = works("tag", "metadata", corpus, "--field", "topic", "--dry-run", "--workers", 1, "--out", tmp_path / "T")
    assert tree(tmp_path) == before
    assert "1 file, " in plan and "in 1 partition (tasks); about 3," in plan
    assert bytes_named(r"1 part, about ([\d.]+) (\w+);", plan) == pytest.approx(size_of(tags, ".parquet"), rel=0.3)
    assert re.search(r"\ba \d+\.\d %", plan) and "out: " in plan and "is new" in plan
    assert "based on: 2,000 rows from the beginning of 1 file of 1" in plan


def test_the_plan_of_shards_says_what_the_command_then_writes(corpus: Path, tags: Path, tmp_path: Path) -> None:
    options = (corpus, "--tags", tags, "--shard-size", "300kB", "--out", tmp_path / "S")
    plan = works("shard", *options, "--dry-run")
    assert tree(tmp_path) == {}
    works("shard", *options)
    num_shards = len(list((tmp_path / "S").rglob("*.tar")))
    match = re.search(r"about (\d+) shards of 3 skills", plan)
    assert match is not None and int(match[1]) == pytest.approx(num_shards, rel=0.1)
    assert bytes_named(r"3 skills, ([\d.]+) (\w+),", plan) == pytest.approx(size_of(tmp_path / "S", ".tar"), rel=0.03)
    assert bytes_named(r"indexes ([\d.]+) (\w+) in", plan) == pytest.approx(size_of(tmp_path / "S"), rel=0.05)
    assert "is finished" in works("shard", *options, "--dry-run")


def test_the_plan_of_the_first_rows_reads_their_files_alone(corpus: Path, tags: Path, tmp_path: Path) -> None:
    plan = works("tag", "metadata", corpus, "--field", "topic", "--limit", 50, "--dry-run", "--out", tmp_path / "T")
    assert "; 50 rows\n" in plan
    sharded = works("shard", corpus, "--tags", tags, "--limit", 60, "--dry-run", "--out", tmp_path / "S")
    assert "; 60 rows\n" in sharded and "first rows are assumed" in sharded
    assert tree(tmp_path) == {}


def test_the_plan_names_what_is_not_estimated_and_what_is_bad(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(lines(many_rows(30)) + b"no json\n")
    plan = works("tag", "embedding", tmp_path / "bad.jsonl", "--skills", 3, "--dry-run", "--out", tmp_path / "T")
    assert "the search for skills by embedding is not estimated" in plan
    assert "bad rows: 1 of 31 (malformed-json 1), and the command stops at the first bad row" in plan
    assert not (tmp_path / "T").exists()


def test_a_plan_is_refused_where_the_command_is_refused(corpus: Path, tags: Path, tmp_path: Path) -> None:
    out = corpus / "T"
    assert "lies in" in fails("tag", "metadata", corpus, "--field", "topic", "--dry-run", "--out", out)
    other = tmp_path / "other.jsonl"
    other.write_bytes(lines(many_rows(5)))
    assert "another corpus" in fails("shard", other, "--tags", tags, "--dry-run", "--out", tmp_path / "S")
