"""The first rows of a corpus: `--limit` of tags and shards."""

import bz2
import json
import os
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard import taggers
from skillshard.corpus import Corpus, CorpusReading, FieldMapping, FileLayout, PartitionReader, Sample, read_partition
from skillshard.corpus.reader import count_rows
from skillshard.errors import CorpusError, ShardError, TagsError
from skillshard.execution import Backend
from skillshard.shards.read import ShardSet
from skillshard.shards.write import Copies, write_shards
from skillshard.tags import Tags
from tests.commands import fails, skillshard, works
from tests.conftest import HERE, lines, samples, tree, write_corpus
from tests.topics import topic_corpus

PARTITION_BYTES = 2_000
NO_IDS = FieldMapping(id_field=None)


def mixed_corpus(folder: Path) -> Path:
    """Write a corpus with a file of every kind: good rows, bad rows, blank lines, and a file that is cut off."""
    folder.mkdir()
    rows = samples(a=40, b=20)
    good = lines(rows).splitlines(keepends=True)
    (folder / "0.jsonl").write_bytes(b"".join(good[:15]) + b"\n  \nno json\n" + b"".join(good[15:30]))
    (folder / "1.jsonl.bz2").write_bytes(bz2.compress(b"".join(good[30:40]))[:-20])
    (folder / "2.csv").write_text("text,skill\none,a\ntwo\n\nthree,b\n")
    (folder / "3.json").write_text(json.dumps([{"text": "x", "skill": "a"}, {"text": ""}, {"text": "y", "skill": "b"}]))
    table = pa.table({"text": ["p", None, "q", "r"], "skill": ["a", "a", "b", "b"], "raw": [b"\0", b"x", b"\0", b"\0"]})
    pq.write_table(table, folder / "4.parquet", row_group_size=2)
    with tarfile.open(folder / "5.tar", "w") as tar:
        for name, data in (("1.txt", b"first"), ("1.json", b'{"skill": "a"}'), ("LICENSE", b"-"), ("2.txt", b"second")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    (folder / "6.txt").write_text("line one\n\nline two\n" + 3_000 * "long " + "\n")
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = mixed_corpus(tmp_path_factory.mktemp("mixed") / "corpus")
    return Corpus.open(folder, fields=NO_IDS, layout=FileLayout(text_files="lines"))


def items(corpus: Corpus, reading: CorpusReading, limit: int | None = None) -> list[object]:
    partitions = corpus.partitions(partition_bytes=PARTITION_BYTES)
    if limit is not None:
        partitions = corpus.first_partitions(
            limit, partition_bytes=PARTITION_BYTES, max_sample_bytes=reading.max_sample_bytes
        )
    return [item for partition in partitions for item in read_partition(partition, reading)]


@pytest.mark.parametrize("max_sample_bytes", [16 << 20, 10_000])
def test_the_rows_of_every_format_are_counted_as_the_readers_give_them(mixed: Corpus, max_sample_bytes: int) -> None:
    reading = mixed.reading(max_sample_bytes)
    partitions = list(mixed.partitions(partition_bytes=PARTITION_BYTES, packing=None))
    assert len(partitions) >= len(mixed.files)
    for partition in partitions:
        (stretch,) = partition.stretches
        num_items = len(list(read_partition(partition, reading)))
        assert count_rows(stretch, reading, most=1_000_000) == num_items, stretch
        assert count_rows(stretch, reading, most=2) == min(2, num_items)


@given(limit=st.integers(1, 120))
@settings(max_examples=30)
def test_a_limit_reads_the_first_rows_and_no_other_row(mixed: Corpus, limit: int) -> None:
    reading = mixed.reading()
    assert items(mixed, reading, limit) == items(mixed, reading)[:limit]


@given(limit=st.integers(1, 120))
@settings(max_examples=30)
def test_the_record_of_the_rows_leads_to_the_same_partitions(mixed: Corpus, limit: int) -> None:
    reading = mixed.reading()
    for partition_bytes in (PARTITION_BYTES, 1 << 26):
        first = mixed.first_partitions(limit, partition_bytes=partition_bytes)
        readers = [PartitionReader(partition, reading) for partition in first]
        assert sum(len(list(reader)) for reader in readers) <= limit
        num_rows = [reader.num_rows() for reader in readers]
        assert mixed.partitions_again(num_rows, limit, partition_bytes=partition_bytes) == first


def test_files_behind_the_limit_are_not_opened(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", samples(a=60))
    (corpus / "9.parquet").write_bytes(b"no Parquet")
    opened = Corpus.open(corpus)
    (corpus / "9.parquet").unlink()
    assert len(opened.first_partitions(10)) == 1


def tag(corpus: Path, out: Path, limit: int | None = None, backend: Backend = HERE, **more: object) -> Tags:
    return taggers.tag_corpus(
        Corpus.open(corpus),
        taggers.metadata("skill"),
        out,
        partition_bytes=PARTITION_BYTES,
        limit=limit,
        backend=backend,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("skills") / "corpus", samples(a=60, b=30, c=1))


def ids(tags: Tags) -> list[str | None]:
    return [row.id for part in range(len(tags.manifest.parts)) for row in tags.rows(part)]


def test_limited_tags_have_the_first_rows_and_the_same_bytes_for_any_number_of_workers(
    corpus: Path, tmp_path: Path
) -> None:
    full = tag(corpus, tmp_path / "full")
    for limit in (1, 40, 91):
        limited = tag(corpus, tmp_path / f"one-{limit}", limit)
        assert ids(limited) == ids(full)[:limit]
        assert (limited.manifest.num_rows, limited.limit) == (limit, limit)
        tag(corpus, tmp_path / f"two-{limit}", limit, Backend(workers=2))
        assert tree(tmp_path / f"one-{limit}") == tree(tmp_path / f"two-{limit}")
        assert limited.verify() == []


def test_limited_tags_are_never_taken_for_tags_of_the_whole_corpus(corpus: Path, tmp_path: Path) -> None:
    tag(corpus, tmp_path / "T", 40)
    for other in (None, 41):
        with pytest.raises(Exception, match="limit"):
            tag(corpus, tmp_path / "T", other)
    tag(corpus, tmp_path / "full")
    with pytest.raises(TagsError, match="not tags of the same rows"):
        taggers.regroup_tags([tmp_path / "T", tmp_path / "full"], tmp_path / "R", backend=HERE)
    regrouped = taggers.regroup_tags([tmp_path / "T"], tmp_path / "M", mapping={"*": "all"}, backend=HERE)
    assert regrouped.limit == 40


def test_a_limit_beyond_the_corpus_reads_the_whole_corpus(corpus: Path, tmp_path: Path) -> None:
    limited = tag(corpus, tmp_path / "T", 1_000)
    assert limited.manifest.num_rows == 91
    shards = write_shards(Corpus.open(corpus), limited, tmp_path / "S", backend=HERE)
    assert shards.manifest.num_rows == 91 and shards.verify() == []


def sharded_ids(shards: ShardSet) -> set[str]:
    return {sample.id for split in (shards.train, shards.holdout) for skill in split.values() for sample in skill}


@pytest.mark.parametrize("copies", ["keep", "drop"])
def test_shards_of_limited_tags_and_limited_shards_have_the_same_samples(
    copies: Copies, corpus: Path, tmp_path: Path
) -> None:
    opened = Corpus.open(corpus)
    full, limited = tag(corpus, tmp_path / "full"), tag(corpus, tmp_path / "T", 40)
    of_limited = write_shards(opened, limited, tmp_path / "S", copies=copies, backend=HERE)
    again = write_shards(opened, full, tmp_path / "F", limit=40, copies=copies, backend=HERE)
    assert sharded_ids(of_limited) == sharded_ids(again) == set(ids(full)[:40])
    for shards in (of_limited, again):
        assert shards.manifest.made_from["arguments"]["limit"] == shards.manifest.num_rows == 40
        assert shards.verify() == []
    names = {place.relative_to(tmp_path / "S") for place in (tmp_path / "S").rglob("*.tar")}
    assert all((tmp_path / "S" / name).read_bytes() == (tmp_path / "F" / name).read_bytes() for name in names)


@pytest.mark.parametrize("limit", [17, 33, 45])
@pytest.mark.parametrize("copies", ["keep", "drop"])
def test_rows_that_are_set_aside_behind_the_limit_are_not_counted(copies: Copies, limit: int, tmp_path: Path) -> None:
    records = samples(a=30, b=30)
    for number in (5, 20, 33, 34, 50):
        records[number]["meta"] = {}
    records[16]["text"] = records[3]["text"]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "0.jsonl").write_bytes(lines(records))
    tags = tag(corpus, tmp_path / "T", on_bad_sample="set-aside", max_set_aside=1.0)
    shards = write_shards(
        Corpus.open(corpus),
        tags,
        tmp_path / "S",
        limit=limit,
        copies=copies,
        backend=HERE,
    )
    num_bad = sum(number < limit for number in (5, 20, 33, 34, 50))
    expected = {"missing-field": num_bad} | ({"copy": 1} if copies == "drop" else {})
    assert shards.manifest.set_aside == expected
    assert shards.manifest.num_rows == limit
    assert shards.verify() == []


def test_shards_need_tags_of_all_their_rows(corpus: Path, tmp_path: Path) -> None:
    tags = tag(corpus, tmp_path / "T", 40)
    with pytest.raises(ShardError, match=r"`limit=41`, but .*T has tags of the first 40 rows only"):
        write_shards(Corpus.open(corpus), tags, tmp_path / "S", limit=41, backend=HERE)
    with pytest.raises(ShardError, match="at least 1"):
        write_shards(Corpus.open(corpus), tags, tmp_path / "S", limit=0, backend=HERE)
    with pytest.raises(CorpusError, match="at least 1"):
        tag(corpus, tmp_path / "U", 0)


def test_a_change_of_the_rows_that_were_read_is_noticed(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", samples(a=60), num_files=1)
    tags = tag(corpus, tmp_path / "T", 40)
    place = corpus / "0.jsonl"
    place.write_bytes(place.read_bytes().replace(b"a number 30", b"a NUMBER 30"))
    with pytest.raises(TagsError, match="changed after the tagging"):
        write_shards(Corpus.open(corpus), tags, tmp_path / "S", backend=HERE)


def test_taggers_that_look_at_the_whole_corpus_first_see_the_first_rows_alone(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path / "corpus", 120)
    works("tag", "embedding", corpus, "--skills", 3, "--limit", 100, "--workers", 1, "--out", tmp_path / "T")
    embeddings = sum(len(np.load(place)) for place in (tmp_path / "T").rglob("*.npy") if "embeddings" in str(place))
    assert Tags.open(tmp_path / "T").manifest.num_rows == embeddings == 100


def test_the_commands_say_that_only_the_first_rows_were_read(corpus: Path, tmp_path: Path) -> None:
    line = "limited to the first 40 rows of the corpus;"
    tagged = works("tag", "metadata", corpus, "--field", "skill", "--limit", 40, "--out", tmp_path / "T")
    sharded = works("shard", corpus, "--tags", tmp_path / "T", "--out", tmp_path / "S")
    assert line in tagged and line in sharded and line in works("inspect", tmp_path / "S")
    few = works("shard", corpus, "--tags", tmp_path / "T", "--limit", 1, "--out", tmp_path / "F")
    assert "limited to the first 1 row of the corpus" in few
    sentence = fails("shard", corpus, "--tags", tmp_path / "T", "--limit", 50, "--out", tmp_path / "G")
    assert "--limit 50, but" in sentence and "Give a smaller --limit" in sentence
    assert skillshard("tag", "metadata", corpus, "--field", "skill", "--limit", 0, "--out", tmp_path / "U").code == 2


def test_limited_tags_are_resumed_and_found_finished(corpus: Path, tmp_path: Path) -> None:
    first = tag(corpus, tmp_path / "T", 40)
    place = corpus / "0.jsonl"
    before = place.stat()
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns + 5_000_000_000))
    again = tag(corpus, tmp_path / "T", 40)  # a new time of change makes the command compare the rows
    assert again.digest == first.digest
    assert all(isinstance(item, Sample) for item in items(Corpus.open(corpus), Corpus.open(corpus).reading(), 40))
