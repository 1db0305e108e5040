"""A list of formats. Each format gives the same samples, and the same rows with every partition size."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.corpus import (
    Corpus,
    CorpusReading,
    FieldMapping,
    Partition,
    PartitionReader,
    Rejection,
    Sample,
    read_partition,
)

REAL_CORPORA = Path(__file__).parents[2] / ".." / "shared" / "corpora"
Writer = Callable[[Path, list[Sample]], None]


def as_jsonl(samples: list[Sample]) -> bytes:
    rows = ({"id": s.id, "text": s.text, "meta": s.meta} for s in samples)
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def as_table(samples: list[Sample]) -> pa.Table:
    meta = pa.struct([("task", pa.string()), ("level", pa.int64())])
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("meta", meta)])
    rows = [{"id": s.id, "text": s.text, "meta": s.meta} for s in samples]
    return pa.Table.from_pylist(rows, schema=schema)


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def write_jsonl(folder: Path, samples: list[Sample]) -> None:
    (folder / "a.jsonl").write_bytes(as_jsonl(samples))


def write_crlf_with_bom_and_no_last_newline(folder: Path, samples: list[Sample]) -> None:
    data = as_jsonl(samples).replace(b"\n", b"\r\n").removesuffix(b"\r\n")
    (folder / "a.ndjson").write_bytes(b"\xef\xbb\xbf" + data)


def write_blank_lines(folder: Path, samples: list[Sample]) -> None:
    (folder / "a.json").write_bytes(b"\n \n" + as_jsonl(samples).replace(b"\n", b"\n\n\t\n"))


def write_gzip(folder: Path, samples: list[Sample]) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(as_jsonl(samples), mtime=0))


def write_gzip_members(folder: Path, samples: list[Sample]) -> None:
    data = as_jsonl(samples)
    parts = (data[: len(data) // 3], data[len(data) // 3 :])
    (folder / "a.json.gz").write_bytes(b"".join(gzip.compress(part, mtime=0) for part in parts))


def write_zstd(folder: Path, samples: list[Sample]) -> None:
    (folder / "a.jsonl.zst").write_bytes(zstd(as_jsonl(samples)))


def write_zstd_frames(folder: Path, samples: list[Sample]) -> None:
    data = as_jsonl(samples)
    (folder / "a.ndjson.zst").write_bytes(zstd(data[: len(data) // 3]) + zstd(data[len(data) // 3 :]))


def write_bzip2_streams(folder: Path, samples: list[Sample]) -> None:
    data = as_jsonl(samples)
    (folder / "a.jsonl.bz2").write_bytes(bz2.compress(data[: len(data) // 3]) + bz2.compress(data[len(data) // 3 :]))


def write_xz_streams_with_padding(folder: Path, samples: list[Sample]) -> None:
    data = as_jsonl(samples)
    parts = (data[: len(data) // 3], data[len(data) // 3 :])
    (folder / "a.jsonl.xz").write_bytes(b"".join(lzma.compress(part) + bytes(8) for part in parts))


def as_document(samples: list[Sample], *, indent: int | None) -> bytes:
    rows = [{"id": s.id, "text": s.text, "meta": s.meta} for s in samples]
    return json.dumps(rows, indent=indent, ensure_ascii=False).encode()


def write_json_array(folder: Path, samples: list[Sample]) -> None:
    (folder / "a.json").write_bytes(as_document(samples, indent=None))


def write_json_array_over_lines_with_bom(folder: Path, samples: list[Sample]) -> None:
    (folder / "a.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + as_document(samples, indent=2), mtime=0))


def write_json_objects_over_lines(folder: Path, samples: list[Sample]) -> None:
    rows = ({"id": s.id, "text": s.text, "meta": s.meta} for s in samples)
    (folder / "a.json").write_text("\n".join(json.dumps(row, indent=1, ensure_ascii=False) for row in rows))


def write_parquet(folder: Path, samples: list[Sample]) -> None:
    pq.write_table(as_table(samples), folder / "a.parquet", row_group_size=7)


def write_arrow_file(folder: Path, samples: list[Sample]) -> None:
    table = as_table(samples)
    with pa.ipc.new_file(folder / "a.feather", table.schema) as writer:
        writer.write_table(table, max_chunksize=5)


def write_hugging_face(folder: Path, samples: list[Sample]) -> None:
    """Write a data set as `datasets.Dataset.save_to_disk` does: two streams, and bookkeeping files without samples."""
    table, half = as_table(samples), len(samples) // 2
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (table[:half], table[half:]), strict=True):
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(part, max_chunksize=5)
    (folder / "state.json").write_bytes(orjson.dumps({"_data_files": [{"filename": n} for n in names], "_split": None}))
    (folder / "dataset_info.json").write_bytes(orjson.dumps({"features": {}}))
    (folder / "cache-12ab.arrow").write_bytes(b"not data")


def write_tar(folder: Path, samples: list[Sample]) -> None:
    with tarfile.open(folder / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, sample in enumerate(samples):
            rest = orjson.dumps({"id": sample.id, "meta": sample.meta})
            for ext, data in (("txt", sample.text.encode()), ("json", rest)):
                member = tarfile.TarInfo(f"{i:06}.{ext}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


WRITERS: list[Writer] = [
    write_jsonl,
    write_crlf_with_bom_and_no_last_newline,
    write_blank_lines,
    write_gzip,
    write_gzip_members,
    write_zstd,
    write_zstd_frames,
    write_bzip2_streams,
    write_xz_streams_with_padding,
    write_json_array,
    write_json_array_over_lines_with_bom,
    write_json_objects_over_lines,
    write_parquet,
    write_arrow_file,
    write_hugging_face,
    write_tar,
]
FORMATS = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))
SAMPLES = [
    Sample(f"{i:05}", f"text {i} " + "ü\n" * (i % 13) + "x" * (i * i % 97), {"task": "abc"[i % 3], "level": i})
    for i in range(60)
]


def items_of(folder: Path, partition_bytes: int = 1 << 26) -> list[Sample | Rejection]:
    partitions = Corpus.open(folder).partitions(partition_bytes=partition_bytes)
    return [item for partition in partitions for item in read_partition(partition)]


@FORMATS
def test_samples_come_back_as_they_were_written(write: Writer, tmp_path: Path) -> None:
    write(tmp_path, SAMPLES)
    assert items_of(tmp_path) == SAMPLES


@FORMATS
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_partitions_of_any_size_give_the_same_rows(write: Writer, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), SAMPLES)
        assert items_of(Path(folder), data.draw(st.integers(10, 10_000))) == SAMPLES


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=50).filter(lambda text: not text.isspace())
fields_of_samples = st.tuples(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
    texts,
    st.fixed_dictionaries({"task": texts, "level": st.integers(-(2**63), 2**63 - 1)}),
)


@FORMATS
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(fields_of_samples, min_size=2, max_size=8), partition_bytes=st.integers(5, 500))
def test_any_samples_come_back(
    write: Writer, rows: list[tuple[str, str, dict[str, Any]]], partition_bytes: int
) -> None:
    # Samples are made here and not by the strategy: the check of their types draws random numbers, which a strategy must not do.
    written = [Sample(*row) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), written)
        assert items_of(Path(folder), partition_bytes) == written


@FORMATS
def test_the_digest_is_that_of_the_rows_and_known_only_at_the_end(write: Writer, tmp_path: Path) -> None:
    def digests(rows: list[Sample], name: str) -> list[str]:
        (tmp_path / name).mkdir()
        write(tmp_path / name, rows)
        readers = [PartitionReader(p) for p in Corpus.open(tmp_path / name).partitions()]
        for reader in readers:
            with pytest.raises(ValueError, match="the digest is known after the last row"):
                reader.digests()
            list(reader)
        return [reader.digests() for reader in readers]

    changed = [*SAMPLES[:-1], Sample("00059", "changed", SAMPLES[-1].meta)]
    assert digests(SAMPLES, "a") == digests(SAMPLES, "b") != digests(changed, "c")


@FORMATS
def test_a_corpus_without_ids_gets_the_place_of_each_row(write: Writer, tmp_path: Path) -> None:
    write(tmp_path, SAMPLES)
    corpus = Corpus.open(tmp_path)
    whole = [
        [
            i
            for p in corpus.partitions(partition_bytes=n)
            for i in read_partition(p, CorpusReading({"": FieldMapping(id_field=None)}))
        ]
        for n in (50, 10**9)
    ]
    ids = [item.id for item in whole[0]]
    assert whole[0] == whole[1]
    assert len(set(ids)) == len(ids) == len(SAMPLES)
    assert all(identity.rpartition("@")[0] in {file.name for file in corpus.files} for identity in ids if identity)


@FORMATS
def test_a_partition_survives_json(write: Writer, tmp_path: Path) -> None:
    write(tmp_path, SAMPLES)
    partitions = list(Corpus.open(tmp_path).partitions(partition_bytes=300))
    assert partitions
    for partition in partitions:
        assert Partition.from_json(orjson.loads(orjson.dumps(partition.to_json()))) == partition


# ----------------------------------------------------------------------------------------------------- real corpora


def generated_corpus(folder: Path, num_samples: int) -> None:
    """Write a twin of the real corpora: plain, gzip and zstd files of uneven sizes, and a description that is no data."""
    rows = [Sample(f"twin-{i}", "word " * (1 + i % 40), {"category": "abc"[i % 3]}) for i in range(num_samples)]
    cuts = [0, num_samples // 10, num_samples // 3, num_samples // 2, num_samples]
    parts = [as_jsonl(rows[a:b]) for a, b in itertools.pairwise(cuts)]
    (folder / "CORPUS.md").write_text("# Twin")
    (folder / "twin-00000.jsonl").write_bytes(parts[0])
    (folder / "twin-00001.jsonl.gz").write_bytes(gzip.compress(parts[1], mtime=0))
    for i, part in enumerate(parts[2:], start=2):
        (folder / f"twin-0000{i}.jsonl.zst").write_bytes(zstd(part))


def check_corpus(folder: Path, num_samples: int) -> None:
    small, large = (items_of(folder, partition_bytes) for partition_bytes in (1 << 20, 1 << 26))
    assert small == large
    assert len(small) == len({item.id for item in small}) == num_samples
    assert all(isinstance(item, Sample) and item.meta for item in small)


def test_a_generated_corpus_is_read_whole(tmp_path: Path) -> None:
    generated_corpus(tmp_path, 20_000)
    check_corpus(tmp_path, 20_000)


@pytest.mark.parametrize(("name", "num_samples"), [("instructions", 80_262), ("sources", 16_531)])
def test_a_real_corpus_is_read_whole(name: str, num_samples: int) -> None:
    if not (REAL_CORPORA / name).is_dir():
        pytest.skip(f"{REAL_CORPORA / name} is not on this machine; the generated twin is tested instead")
    check_corpus(REAL_CORPORA / name, num_samples)
