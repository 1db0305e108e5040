"""Small files are packed into one partition: the same samples, ids, error sentences and shards, in far fewer tasks."""

import bz2
import gzip
import lzma
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard import stages, storage, taggers
from skillshard.canonical import from_json, to_json
from skillshard.corpus import (
    Corpus,
    CorpusFile,
    CorpusReading,
    FieldMapping,
    FileLayout,
    PartitionReader,
    Rejection,
    Sample,
    read_partition,
)
from skillshard.corpus.partitions import Packing, Partition, cut
from skillshard.errors import CorpusError, SkillshardError, TagsError
from skillshard.merge_levels import plan_merges
from skillshard.report.clusters import compare
from skillshard.shards.write import write_shards
from skillshard.taggers import repeated_ids
from skillshard.tags import Tags
from tests.conftest import HERE, lines, samples, tree

NO_IDS = FieldMapping(id_field=None)
ENDINGS: dict[str, Callable[[bytes], bytes]] = {
    "jsonl": bytes,
    "jsonl.gz": lambda data: gzip.compress(data, mtime=0),
    "jsonl.zst": lambda data: bytes(pa.Codec("zstd").compress(data, asbytes=True)),
    "jsonl.bz2": bz2.compress,
    "jsonl.xz": lzma.compress,
}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "sync", lambda path: None)


def csv_of(records: list[dict[str, Any]]) -> bytes:
    rows = [f'{record["id"]},"{record["text"]}",{record["meta"]["skill"]}\n' for record in records]
    return "".join(["id,text,skill\n", *rows]).encode()


def write_mixed(folder: Path) -> Path:
    """Write 60 samples to 12 files of all kinds, and two empty files."""
    folder.mkdir()
    records = samples(add=30, carry=30)
    groups = [records[number::12] for number in range(12)]
    for number, (ending, compressed) in enumerate(ENDINGS.items()):
        (folder / f"{number:02}.{ending}").write_bytes(compressed(lines(groups[number])))
    (folder / "05.csv").write_bytes(csv_of(groups[5]))
    (folder / "06.json").write_bytes(orjson.dumps(groups[6]))
    for number in (7, 8):
        pq.write_table(pa.Table.from_pylist(groups[number]), folder / f"{number:02}.parquet")
    tables = [pa.Table.from_pylist(groups[number]) for number in (9, 10)]
    with pa.ipc.new_file(folder / "09.arrow", tables[0].schema) as writer:
        writer.write_table(tables[0])
    with pa.ipc.new_stream(folder / "10.arrow", tables[1].schema) as writer:
        writer.write_table(tables[1])
    (folder / "11.jsonl").write_bytes(lines(groups[11]))
    (folder / "03b.jsonl").write_bytes(b"")
    (folder / "12.jsonl").write_bytes(b"\n")
    return folder


@given(
    sizes=st.lists(st.integers(0, 400), min_size=1, max_size=60),
    compressed=st.sets(st.integers(0, 59)),
    partition_bytes=st.integers(1, 1000),
    max_files=st.integers(1, 9),
)
def test_every_file_is_in_the_partitions_in_order_and_no_packed_partition_is_too_large(
    sizes: list[int], compressed: set[int], partition_bytes: int, max_files: int
) -> None:
    files = [
        CorpusFile(f"/{n}", f"{n:02}", "jsonl", size, 0, "gzip" if n in compressed else None)
        for n, size in enumerate(sizes)
    ]
    partitions = list(cut(files, partition_bytes, packing=Packing(max_files=max_files)))
    alone = [stretch for part in cut(files, partition_bytes, packing=None) for stretch in part.stretches]
    assert [stretch for part in partitions for stretch in part.stretches] == alone
    assert [part.index for part in partitions] == list(range(len(partitions)))

    def weight(stretch: Any) -> int:
        return int(stretch.file_bytes) * (4 if stretch.compression else 1)

    for part in partitions:
        if len(part.stretches) > 1:
            assert len(part.stretches) <= max_files and sum(map(weight, part.stretches)) <= partition_bytes
            assert all(weight(stretch) * 8 <= partition_bytes for stretch in part.stretches)
    # Two neighbouring partitions of small files do not fit into one, so there are few partitions.
    for before, after in pairwise(partitions):
        both = [*before.stretches, *after.stretches]
        if all(weight(stretch) * 8 <= partition_bytes and stretch.start == 0 for stretch in both):
            assert (
                len(before.stretches) == max_files
                or sum(map(weight, both[: len(before.stretches) + 1])) > partition_bytes
            )


def test_5_000_files_of_20_kb_are_a_few_partitions() -> None:
    files = [CorpusFile(f"/{n}.jsonl", f"{n:04}.jsonl", "jsonl", 20_000, 0) for n in range(5_000)]
    partitions = list(cut(files, 64 << 20))
    assert len(partitions) == 5
    assert partitions[0].name == "0000.jsonl to 1023.jsonl, 1,024 files"


def test_all_formats_in_one_partition_give_the_rows_of_single_files(tmp_path: Path) -> None:
    corpus = Corpus.open(write_mixed(tmp_path / "C"))
    reading = CorpusReading({"": NO_IDS})
    (packed,) = corpus.partitions()
    alone = [read_partition(part, reading) for part in corpus.partitions(packing=None)]
    rows = list(read_partition(packed, reading))
    assert rows == [row for part in alone for row in part]
    assert len({row.id for row in rows if isinstance(row, Sample)}) == len(rows) == 60
    readers = [PartitionReader(part) for part in (packed, *corpus.partitions(packing=None))]
    for reader in readers:
        assert sum(1 for _ in reader) == sum(reader.num_rows())
    assert readers[0].digests() == [digest for reader in readers[1:] for digest in reader.digests()]


@pytest.mark.parametrize("copies", ["keep", "drop"])
def test_the_shards_are_those_of_unpacked_files(copies: Any, tmp_path: Path) -> None:
    """Tags of the time before the packing are read too: their partitions are single files."""
    folder = write_mixed(tmp_path / "C")
    again = [{**record, "id": f"copy-{number}"} for number, record in enumerate(samples(add=9))]
    (folder / "13.jsonl").write_bytes(lines(again) + b"no JSON\n")
    corpus = Corpus.open(folder, fields=FieldMapping())
    tagger = taggers.metadata("skill")
    tags = taggers.tag_corpus(
        corpus, tagger, tmp_path / "T", on_bad_sample="set-aside", max_set_aside=1.0, backend=HERE
    )
    assert len(tags.manifest.parts) == 1 and len(tags.manifest.parts[0].stretches) == len(corpus.files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taggers.tag, "DEFAULT_PACKING", Packing(max_files=1))
        alone = taggers.tag_corpus(
            corpus, tagger, tmp_path / "T1", on_bad_sample="set-aside", max_set_aside=1.0, backend=HERE
        )
    assert len(alone.manifest.parts) == len(corpus.files)
    as_version_1(tmp_path / "T1")
    shards = []
    for name in ("T", "T1"):
        out = tmp_path / f"S-{name}"
        write_shards(
            corpus, Tags.open(tmp_path / name), out, shard_bytes=4_000, holdout=0.2, copies=copies, backend=HERE
        )
        files = tree(out)
        rejected = b"".join(data for file, data in sorted(files.items()) if file.startswith("rejected/"))
        shards.append(({file: data for file, data in files.items() if file.endswith((".tar", ".npy"))}, rejected))
    assert shards[0] == shards[1]
    assert (b'"copy"' in shards[0][1]) == (copies == "drop")


def as_version_1(folder: Path) -> None:
    """Turn the manifest of tags with one file for each partition into a manifest of version 1."""
    place = folder / "tags.json"
    manifest = from_json(place.read_bytes(), place)
    for part in manifest["parts"]:
        part.update(part.pop("stretches")[0])
    del manifest["made_from"]["arguments"]["packing"], manifest["set_aside_by"]  # of version 2
    place.write_bytes(to_json({**manifest, "schema": "skillshard/tags/1"}))


def test_sentences_name_the_file_and_the_line_in_a_packed_partition(tmp_path: Path) -> None:
    folder = tmp_path / "C"
    folder.mkdir()
    records = samples(add=8)
    (folder / "a.jsonl").write_bytes(lines(records[:3]))
    (folder / "b.jsonl").write_bytes(b"")
    (folder / "c.csv").write_bytes(csv_of(records[3:5]))
    (folder / "d.jsonl").write_bytes(b"\n" + lines(records[5:]) + lines([{**records[6], "meta": {}}]))
    tagger = taggers.metadata("skill")
    with pytest.raises(CorpusError, match=r"^d\.jsonl line 5: field 'skill' is missing"):
        taggers.tag_corpus(Corpus.open(folder), tagger, tmp_path / "T", backend=HERE)
    (folder / "d.jsonl").write_bytes(b"\n" + lines(records[5:]) + lines([records[4]]))
    with pytest.raises(CorpusError) as error:
        taggers.tag_corpus(Corpus.open(folder), tagger, tmp_path / "T2", backend=HERE)
    assert str(error.value).startswith(f"d.jsonl line 5: id {records[4]['id']!r} stands already in c.csv, line 3")
    tags = taggers.tag_corpus(
        Corpus.open(folder), tagger, tmp_path / "T3", backend=HERE, on_bad_sample="set-aside", max_set_aside=1.0
    )
    (line,) = (tmp_path / "T3" / "rejected" / "000000.jsonl").read_bytes().splitlines()
    assert (orjson.loads(line)["file"], orjson.loads(line)["line"]) == ("d.jsonl", 5)
    assert [stretch.num_rows for stretch in tags.manifest.parts[0].stretches] == [3, 0, 2, 4]


def test_a_changed_file_of_a_packed_partition_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "C"
    folder.mkdir()
    for number, name in enumerate("abc"):
        (folder / f"{name}.jsonl").write_bytes(lines(samples(add=9)[3 * number : 3 * number + 3]))
    tags = taggers.tag_corpus(Corpus.open(folder), taggers.metadata("skill"), tmp_path / "T", backend=HERE)
    file = folder / "b.jsonl"
    file.write_bytes(file.read_bytes().replace(b"text", b"tezt", 2)[: file.stat().st_size])
    with pytest.raises((TagsError, SkillshardError), match=r"b\.jsonl changed"):
        write_shards(Corpus.open(folder), tags, tmp_path / "S", backend=HERE)
    with pytest.raises(SkillshardError, match=r"b\.jsonl changed"):
        taggers.tag_corpus(Corpus.open(folder), taggers.metadata("skill"), tmp_path / "T", backend=HERE)


def test_a_field_is_compared_file_by_file_in_a_packed_partition(tmp_path: Path) -> None:
    corpus = write_mixed(tmp_path / "C")
    tags = taggers.tag_corpus(Corpus.open(corpus), taggers.metadata("skill"), tmp_path / "T", backend=HERE)
    assert compare(tags, "skill", [str(corpus)]).accuracy == 1


@settings(max_examples=25, deadline=None)
@given(
    num_ids=st.lists(st.integers(0, 12), min_size=1, max_size=14),
    ids_per_range=st.integers(1, 40),
    max_fan_in=st.sampled_from([2, 3, 64]),
)
def test_repeated_ids_are_found_with_any_ranges_and_merge_levels(
    tmp_path_factory: pytest.TempPathFactory, num_ids: list[int], ids_per_range: int, max_fan_in: int
) -> None:
    """Files hold ids from 0 on, so an id is repeated in each file with more ids. All hashes of two ids are equal."""
    folder = tmp_path_factory.mktemp("ids")
    (folder / "C").mkdir()
    for number, num in enumerate(num_ids):
        records = [{"id": f"{i}", "text": "t", "skill": "s"} for i in range(num)]
        (folder / "C" / f"{number:02}.jsonl").write_bytes(lines(records) + b" " * 500)
    first_of: dict[str, int] = {}
    expected = [
        (part, row)
        for part, num in enumerate(num_ids)
        for row in range(num)
        if first_of.setdefault(f"{row}", part) != part
    ]
    if not any(num_ids):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated_ids, "IDS_PER_RANGE", ids_per_range)
        patch.setattr(stages, "plan_merges", lambda *numbers: plan_merges(*numbers, max_fan_in=max_fan_in))
        patch.setattr(taggers.tag, "id_hashes", lambda ids: (int(str(sample_id)) // 2 << 59 for sample_id in ids))
        tags = taggers.tag_corpus(
            Corpus.open(folder / "C"),
            taggers.metadata("skill"),
            folder / "T",
            on_bad_sample="set-aside",
            max_set_aside=1.0,
            partition_bytes=1_000,
            backend=HERE,
        )
    refused = [
        (part, row)
        for part in range(len(num_ids))
        for row, tag in enumerate(tags.rows(part))
        if tag.reason == "duplicate-id"
    ]
    assert refused == expected
    assert not (folder / "T" / ".work").exists()
    shutil.rmtree(folder)


def test_a_partition_of_several_files_survives_json(tmp_path: Path) -> None:
    corpus = Corpus.open(write_mixed(tmp_path / "C"), layout=FileLayout(encoding="cp1252"))
    (partition,) = corpus.partitions()
    assert Partition.from_json(orjson.loads(orjson.dumps(partition.to_json()))) == partition
    with pytest.raises(CorpusError, match="not a partition: expected the fields index, stretches"):
        Partition.from_json({"index": 0})
    with pytest.raises(CorpusError, match="not a stretch of a file"):
        Partition.from_json({"index": 0, "stretches": [{}]})


def test_a_damaged_file_of_a_packed_partition_does_not_hide_the_next_file(tmp_path: Path) -> None:
    folder = tmp_path / "C"
    folder.mkdir()
    records = samples(add=4)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines(records[:2]), mtime=0)[:-9])
    (folder / "b.parquet").write_bytes(b"PAR1 damaged")
    (folder / "c.jsonl").write_bytes(lines(records[2:]))
    (partition,) = Corpus.open(folder).partitions()
    rows = list(read_partition(partition))
    assert [row.file for row in rows if isinstance(row, Rejection)] == ["a.jsonl.gz", "b.parquet"]
    assert [row.id for row in rows if isinstance(row, Sample)][-2:] == [record["id"] for record in records[2:]]
